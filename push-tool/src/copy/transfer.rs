//! Brings objects, side files and the manifest from one destination to the other.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use bk_manifest::digest::{Digest, HashWriter};
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::path::escape;
use bk_manifest::spool::{Document, Spool};
use bk_manifest::stream::{Error as FormatError, Reader};

use super::Copy;
use crate::base::sizes;
use crate::catalog::NeededObject;
use crate::describe::SideFiles;
use crate::destination::{Error, ErrorKind, ObjectInfo};
use crate::partial::{Closed, ClosedObject};
use crate::place;
use crate::upload::PartialWriter;

/// Objects that are copied at once.
pub(super) const WORKERS: usize = 3;
/// Bytes of each that are held.
const BUFFER: usize = 256 << 10;

/// An object that is to be brought.
#[derive(Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) name: &'a str,
    /// What is stored of it.
    pub(super) checksum: Digest,
    pub(super) size: u64,
}

impl Copy<'_> {
    /// Refuses a source that lacks what is to be copied.
    pub(super) fn check_source(&self, missing: &[NeededObject]) -> anyhow::Result<()> {
        let sizes = sizes(self.from, missing)?;
        for object in missing {
            let size = sizes.get(object.name.as_str()).copied().flatten();
            self.check_size(&object.name, object.record.size, size)?;
        }
        Ok(())
    }

    /// Refuses an object at the source that is not there with its size.
    pub(super) fn check_size(
        &self,
        name: &str,
        due: u64,
        there: Option<u64>,
    ) -> anyhow::Result<()> {
        match there {
            Some(size) if size == due => Ok(()),
            Some(size) => Err(self.damaged(name, &format!("has {size} bytes instead of {due}"))),
            None => Err(self.damaged(name, "is missing")),
        }
    }

    fn damaged(&self, name: &str, why: &str) -> anyhow::Error {
        let message = format!("'{}' at '{}' {why}", escape(name.as_bytes()), self.from.describe());
        Failure::new(Exit::Damaged, message)
            .hint("nothing was committed; bk-verify says what else is damaged at the source")
            .into()
    }

    /// Copies objects, several at once; the first failure stops all.
    pub(super) fn store_all(
        &self,
        missing: &[NeededObject],
        list: &Mutex<PartialWriter<'_>>,
    ) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let work = || {
            while let Some(object) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.store(object, list) {
                    next.store(missing.len(), Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(missing.len()) {
                scope.spawn(work);
            }
        });
        match failure.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(_) => anyhow::bail!("copying failed"),
        }
    }

    fn store(&self, object: &NeededObject, list: &Mutex<PartialWriter<'_>>) -> anyhow::Result<()> {
        let NeededObject { name, record } = object;
        let lock = || list.lock().map_err(|_| anyhow::anyhow!("copying failed"));
        lock()?.name(vec![name.clone()])?;
        self.bring(Transfer { name, checksum: record.checksum, size: record.size }, list)?;
        let closed = ClosedObject { object: name.clone(), ..ClosedObject::of(record) };
        lock()?.closed(&Closed::Object(closed), Spool::new()?)
    }

    /// Brings one object whose name is in the list, and checks it on the way.
    pub(super) fn bring(
        &self,
        object: Transfer<'_>,
        list: &Mutex<PartialWriter<'_>>,
    ) -> anyhow::Result<()> {
        let Transfer { name, checksum: due, size: due_size } = object;
        let mut reader = match self.from.read(name, None) {
            Err(error) if error.kind == ErrorKind::NotFound => {
                return Err(self.damaged(name, "is missing"));
            }
            reader => reader?,
        };
        let mut upload = HashWriter::new(self.destination().put(name, due_size)?);
        let mut buffer = vec![0; usize::try_from(due_size)?.clamp(1, BUFFER)];
        let mut length = 0u64;
        loop {
            bk_manifest::signal::check()?;
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let place = self.from.describe();
                    return Err(error)
                        .with_context(|| format!("cannot read '{name}' at '{place}'"));
                }
            };
            length += read as u64;
            if length > due_size {
                return Err(self.damaged(name, "is longer than it was"));
            }
            let storing =
                || format!("cannot store '{name}' at '{}'", self.destination().describe());
            upload
                .write_all(buffer.get(..read).unwrap_or_default())
                .map_err(|error| Error::name_once(error, storing))?;
            self.progress.advance(read as u64, 0);
            list.lock().map_err(|_| anyhow::anyhow!("copying failed"))?.renew()?;
        }
        let (upload, checksum, size) = upload.finish();
        self.check_size(name, due_size, Some(size))?;
        if checksum != due {
            return Err(self.damaged(name, "does not have its checksum"));
        }
        match upload.commit() {
            // Somebody else was faster.
            Err(error) if error.kind == ErrorKind::Exists => self.compare(name, due)?,
            committed => committed?,
        }
        self.progress.advance(0, 1);
        Ok(())
    }

    /// Puts the side files, made anew from the manifest: there is no checksum of those at the source.
    pub(super) fn put_side_files(
        &self,
        document: &Document,
        manifest: &str,
        list: &mut PartialWriter<'_>,
    ) -> anyhow::Result<()> {
        let destination = self.destination();
        let (folder, stem) = (place::parent(manifest), place::stem(manifest));
        let file = manifest.rsplit('/').next().unwrap_or(manifest);
        let Document { header, trailer, entries } = document;
        let files = SideFiles::new(header, trailer, file, entries)?;
        for side in place::SIDE_FILES {
            let name = place::join(folder, &format!("{stem}{side}"));
            if destination.stat(&name)?.is_some() {
                let (there, _) = Digest::of_reader(destination.read(&name, None)?)?;
                let mut due = HashWriter::new(std::io::sink());
                files.write(side, &mut due)?;
                if there != due.finish().1 {
                    return Err(self.taken(&name, "differs from what is to be there"));
                }
                continue;
            }
            list.name(vec![name.clone()])?;
            files.put(side, destination.put(&name, files.bound())?, &name)?;
        }
        Ok(())
    }

    /// Puts the manifest byte for byte as it is stored at the source: the commit. It has been read to
    /// its end by then and found to be the one that came in.
    pub(super) fn put_manifest(&self, manifest: &ObjectInfo, total: Digest) -> anyhow::Result<()> {
        let name = &manifest.name;
        let mut upload = self.destination().put(name, manifest.size)?;
        let context = || format!("cannot copy '{name}'");
        let mut tee = Tee { input: self.from.read(name, None)?, output: &mut upload };
        let read = Reader::new(&mut tee).and_then(Reader::end);
        match read {
            Ok((_, trailer)) if trailer.total_checksum() == Some(total) => {}
            Ok(_) => return Err(self.damaged(name, "has changed since it was found")),
            Err(error @ FormatError::Io(_)) => return Err(error).with_context(context),
            Err(error) => return Err(self.damaged(name, &format!("is damaged: {error}"))),
        }
        std::io::copy(&mut tee, &mut std::io::sink()).with_context(context)?;
        Ok(upload.commit()?)
    }
}

/// Writes what is read from it.
struct Tee<R, W> {
    input: R,
    output: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        bk_manifest::signal::check()?;
        let read = self.input.read(buffer)?;
        self.output.write_all(buffer.get(..read).unwrap_or_default())?;
        Ok(read)
    }
}
