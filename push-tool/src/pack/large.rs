//! Large files: streamed frame by frame, hashed while they are compressed.

use std::io::{self, Read};

use bk_manifest::digest::{Digest, Hasher};
use bk_manifest::entry::{At, Entry};
use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSlice;

use super::{Packer, VOLUME_BYTES, locate};
use crate::source::file::{NotTaken, OpenFile, Opener};
use crate::volume::{self, FRAME_BYTES};

impl Packer<'_> {
    /// Stores a file that is streamed.
    pub(super) fn large(&mut self, mut entry: Entry) -> anyhow::Result<()> {
        let sources = self.tools.sources;
        let located = locate(sources, &entry)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let mut open = match Opener::default().open(&located, &entry) {
                Ok(open) => open,
                Err(why) => {
                    sources.check()?;
                    self.leave_out(&entry, &why);
                    return Ok(());
                }
            };
            open.describe(&mut entry);
            let plain = self.plain_name(&entry);
            let content = match (self.look_up(&mut open, &entry)?, &plain) {
                (Ok(None), None) => self.stream(&mut open, &entry)?,
                (Ok(None), Some(object)) => self.stream_plain(&mut open, object)?.map(|digest| {
                    let at = At { object: object.clone(), ..At::default() };
                    Content { at, digest, is_new: true }
                }),
                (Ok(Some(known)), _) => Ok(known),
                (Err(error), _) => Err(error),
            };
            let is_unchanged = content.is_ok() && open.is_unchanged().unwrap_or(false);
            if !is_unchanged && tries == 1 {
                if plain.is_some() {
                    self.tools.uploader.abandon()?;
                }
                continue;
            }
            let content = match content {
                Ok(content) => content,
                Err(error) => {
                    sources.check()?;
                    self.leave_out(&entry, &NotTaken::from(error));
                    return Ok(());
                }
            };
            if !is_unchanged {
                self.report_changed(&entry);
            }
            entry.set_content(content.digest, open.size());
            entry.at = Some(content.at);
            if content.is_new {
                self.totals.stored += open.size();
                if plain.is_some() {
                    self.tools.uploader.close_plain(&mut entry)?;
                } else if let Some(volume) = &mut self.volume {
                    volume.entries.push(&entry)?;
                    volume.count += 1;
                }
                self.known.add(&entry)?;
            } else {
                self.totals.inherited += open.size();
                self.tools.progress.advance(open.size(), 0);
            }
            self.done(&entry)?;
            self.tools.progress.advance(0, 1);
            return self.close_full_volume();
        }
    }

    /// Hashes a file that may be known by its size, and finds out whether it is; if not, it is at its
    /// start again.
    fn look_up(
        &mut self,
        open: &mut OpenFile<'_>,
        entry: &Entry,
    ) -> anyhow::Result<io::Result<Option<Content>>> {
        if !self.known.may_know_size(open.size())? {
            return Ok(Ok(None));
        }
        let (digest, size) = match open.hash() {
            Ok(sum) => sum,
            Err(error) => return Ok(Err(error)),
        };
        if size == open.size()
            && let Some(at) = self.find_known(&digest, size, entry)?
        {
            return Ok(Ok(Some(Content { at, digest, is_new: false })));
        }
        Ok(open.rewind().map(|()| None))
    }

    /// Streams a member into the volume. Whatever happens to the file, the tar stays a tar: what is
    /// missing of the announced size is filled with zeros, and no entry refers to them.
    fn stream(
        &mut self,
        open: &mut OpenFile<'_>,
        entry: &Entry,
    ) -> anyhow::Result<io::Result<Content>> {
        let size = open.size();
        let header = volume::header(entry, size)?;
        if size > VOLUME_BYTES {
            // The room that the open one was given is not enough.
            self.close_volume()?;
        }
        let volume = self.open_volume(size)?;
        let (object, offset) = (volume.object.clone(), volume.offset);
        let skip = header.len() as u64;
        let chunk_bytes = FRAME_BYTES * rayon::current_num_threads().clamp(2, 16);
        let mut hasher = Hasher::default();
        let mut source = Remaining { file: open, left: size, error: None };
        let (mut chunk, mut start) = (header, skip);
        source.read(&mut chunk, chunk_bytes);
        loop {
            bk_manifest::signal::check()?;
            if source.left == 0 {
                chunk.resize(chunk.len() + volume::padding(size), 0);
            }
            let is_last = source.left == 0;
            let content_end =
                if is_last { chunk.len() - volume::padding(size) } else { chunk.len() };
            let content = &chunk[usize::try_from(start)?..content_end];
            let (next, ((), frames)) = rayon::join(
                || {
                    let mut next = Vec::new();
                    source.read(&mut next, chunk_bytes);
                    next
                },
                || {
                    rayon::join(
                        || hasher.update(content),
                        || {
                            chunk
                                .par_chunks(FRAME_BYTES)
                                .map(volume::frame)
                                .collect::<io::Result<Vec<_>>>()
                        },
                    )
                },
            );
            for frame in frames? {
                self.write_frame(frame)?;
            }
            self.tools.progress.advance(content.len() as u64, 0);
            if is_last {
                break;
            }
            (chunk, start) = (next, 0);
        }
        let length = self.open_volume(0)?.offset - offset;
        let at = At {
            object,
            offset: Some(offset),
            length: Some(length),
            skip: Some(skip),
            ..At::default()
        };
        let content = Content { at, digest: hasher.finish().0, is_new: true };
        Ok(source.error.map_or(Ok(content), Err))
    }
}

/// What a large file holds, and where that lies.
struct Content {
    at: At,
    digest: Digest,
    /// Whether it was stored just now.
    is_new: bool,
}

/// The announced bytes of a file; after an error they are zeros.
struct Remaining<'a, 'f> {
    file: &'a mut OpenFile<'f>,
    left: u64,
    error: Option<io::Error>,
}

impl Remaining<'_, '_> {
    /// Appends up to `length` bytes to `chunk`, fewer only at the announced end.
    fn read(&mut self, chunk: &mut Vec<u8>, length: usize) {
        let due = usize::try_from(self.left.min(length as u64)).unwrap_or(length);
        let filled = chunk.len() + due;
        if self.error.is_none() {
            match (&mut *self.file).take(due as u64).read_to_end(chunk) {
                Ok(_) if chunk.len() < filled => {
                    self.error =
                        Some(io::Error::new(io::ErrorKind::UnexpectedEof, "became shorter"));
                }
                Ok(_) => {}
                Err(error) => self.error = Some(error),
            }
        }
        chunk.resize(filled, 0);
        self.left -= due as u64;
    }
}
