//! The plain layout: each file an object of its own. Small ones are stored in batches, several at
//! once; large ones are streamed.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use anyhow::Context;
use bk_manifest::digest::{Digest, Hasher};
use bk_manifest::entry::{At, Entry};
use bk_manifest::manifest::Layout;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::{Fate, Item, Packer};
use crate::encrypt::Cipher;
use crate::partial::ClosedPlain;
use crate::plain::{self, StoredSum};
use crate::source::file::OpenFile;
use crate::upload::{PlainBatch, PlainFile, StoppedStoring, Uploader};
use crate::volume::FRAME_BYTES;

/// Files of a batch: their names go into one small piece of the partial list.
const BATCH_FILES: usize = 1000;

/// The batch that is being stored while the next one is read.
#[derive(Default)]
pub(super) struct Storing(Option<Receiver<()>>);

impl Storing {
    /// Waits for the batch before, and hands over the next one: no more than one is held in memory
    /// beside the one that is read.
    fn begin(&mut self, uploader: &Uploader, batch: PlainBatch) -> Result<(), StoppedStoring> {
        if let Some(before) = self.0.take() {
            // It ends by being dropped.
            let _ = before.recv();
        }
        self.0 = Some(uploader.plain(batch)?);
        Ok(())
    }
}

impl Packer<'_> {
    /// The object that an entry's file is to be, where it is not to go into a volume.
    pub(super) fn plain_name(&self, entry: &Entry) -> Option<String> {
        let located = self.tools.sources.locate(entry)?;
        if located.layout != Layout::Plain {
            return None;
        }
        if self.tools.sources.has_dump_named_like(entry.component()) {
            return None;
        }
        let cipher = self.tools.encryption.of(entry.component());
        let object = plain::name(entry, cipher.map(|cipher| cipher.method.word()))?;
        // Its name may still be taken, by what prune is about to remove.
        (!self.tools.lost.contains(&object)).then_some(object)
    }

    /// Stores the items of the wave that are to be objects of their own, and gives their places.
    pub(super) fn put_plain(
        &mut self,
        wave: &mut [Item],
        items: Vec<(usize, String)>,
    ) -> anyhow::Result<Vec<(usize, At)>> {
        let cipher = self.cipher.clone();
        let mut places = Vec::with_capacity(items.len());
        let mut items = items.into_iter().peekable();
        while let Some((first, _)) = items.peek() {
            let closed = ClosedPlain {
                component: wave[*first].entry.component().to_owned(),
                encryption: cipher.as_ref().map(|cipher| cipher.method.word().to_owned()),
            };
            let mut files = Vec::new();
            while let Some((number, object)) =
                items.next_if(|(number, _)| wave[*number].entry.component() == closed.component)
            {
                let item = &mut wave[number];
                let Fate::New(file) = &mut item.fate else { continue };
                let mut entry = item.entry.clone();
                entry.at = Some(At { object, ..At::default() });
                files.push((number, PlainFile { entry, bytes: std::mem::take(&mut file.bytes) }));
                if files.len() == BATCH_FILES {
                    break;
                }
            }
            if let Some(cipher) = &cipher {
                files = files
                    .into_par_iter()
                    .map(|(number, file)| Ok((number, encrypt(cipher, file)?)))
                    .collect::<anyhow::Result<_>>()?;
            }
            let at = |(number, file): &(usize, PlainFile)| Some((*number, file.entry.at.clone()?));
            places.extend(files.iter().filter_map(at));
            let files = files.into_iter().map(|(_, file)| file).collect();
            self.storing.begin(self.tools.uploader, PlainBatch { closed, files })?;
        }
        Ok(places)
    }

    /// Streams a large file into an object of its own; returns its digest. Nothing is committed.
    pub(super) fn stream_plain(
        &mut self,
        open: &mut OpenFile<'_>,
        object: &str,
    ) -> anyhow::Result<io::Result<Digest>> {
        // One object is open at a time.
        self.close_volume()?;
        let size = open.size();
        let uploader = self.tools.uploader;
        uploader.open(object, size, self.cipher.as_ref())?;
        let mut hasher = Hasher::default();
        let mut left = size;
        while left > 0 {
            bk_manifest::signal::check()?;
            let due = left.min(FRAME_BYTES as u64);
            let mut chunk = Vec::with_capacity(FRAME_BYTES);
            let read = (&mut *open).take(due).read_to_end(&mut chunk);
            let error = match read {
                Ok(0) => io::Error::new(io::ErrorKind::UnexpectedEof, "became shorter"),
                Ok(read) => {
                    left -= read as u64;
                    hasher.update(&chunk);
                    self.tools.progress.advance(read as u64, 0);
                    uploader.write(chunk)?;
                    continue;
                }
                Err(error) => error,
            };
            uploader.abandon()?;
            return Ok(Err(error));
        }
        Ok(Ok(hasher.finish().0))
    }
}

/// Encrypts a file in memory, and notes in its entry what is stored.
fn encrypt(cipher: &Arc<Cipher>, mut file: PlainFile) -> anyhow::Result<PlainFile> {
    let mut sealed = Vec::with_capacity(file.bytes.len() + 1024);
    let mut encrypting = cipher.begin()?;
    if let Err(error) = encrypting.write(&file.bytes, &mut sealed) {
        return Err(encrypting.explain(error))
            .with_context(|| format!("cannot encrypt '{}'", file.entry.path));
    }
    encrypting
        .finish(&mut sealed)
        .with_context(|| format!("cannot encrypt '{}'", file.entry.path))?;
    let sum = StoredSum { checksum: Digest::of(&sealed), size: sealed.len() as u64 };
    if let Some(at) = &mut file.entry.at {
        sum.record(at);
    }
    Ok(PlainFile { bytes: sealed, ..file })
}
