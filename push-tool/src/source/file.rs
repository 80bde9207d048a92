//! Reads the content of entries, from files or objects, and notices when it changes meanwhile.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;

use bk_manifest::beneath::{Cursor, Root};
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::left_out::Reason;
use bk_manifest::time::Time;

use super::{Located, OpenBucket, Place};
use crate::bucket::{self, Attributes, Content};
use crate::destination::{Error, ErrorKind};

/// Why an entry's content could not be taken.
pub struct NotTaken {
    /// What to record.
    pub reason: Reason,
    /// What the system said.
    pub error: io::Error,
}

impl From<io::Error> for NotTaken {
    fn from(error: io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Reason::Vanished,
            io::ErrorKind::UnexpectedEof => Reason::ChangedWhileRead,
            _ => Reason::Unreadable,
        };
        NotTaken { reason, error }
    }
}

/// Opens what entries stand for; neighbours share their folder.
#[derive(Default)]
pub struct Opener<'a> {
    cursor: Option<(&'a Root, Cursor<'a>)>,
}

impl<'a> Opener<'a> {
    /// Opens an entry's content.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn open(&mut self, located: &Located<'a>, entry: &Entry) -> Result<OpenFile<'a>, NotTaken> {
        match located.place {
            Place::Folder(root) => self.open_file(root, located),
            Place::Bucket(bucket) => OpenFile::of_object(bucket, located, entry),
        }
    }

    fn open_file(
        &mut self,
        root: &'a Root,
        located: &Located<'a>,
    ) -> Result<OpenFile<'a>, NotTaken> {
        let (_, cursor) = match &mut self.cursor {
            Some(known) if std::ptr::eq(known.0, root) => known,
            other => other.insert((root, Cursor::new(root))),
        };
        // A file that goes is ordinary; a whole folder that goes was moved, or unmounted.
        cursor.parent(&located.below).map_err(|error| NotTaken {
            reason: Reason::Unreadable,
            error: io::Error::new(error.kind(), format!("its folder cannot be opened: {error}")),
        })?;
        let file = cursor.open_file(&located.below)?;
        let before = file.metadata()?;
        Ok(OpenFile(Inner::File { file, before }))
    }

    /// Reads content that fits into memory, again if it changed meanwhile, and updates its entry;
    /// `None` for one that `may_hold` says to be too large.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn read_small(
        &mut self,
        located: &Located<'a>,
        entry: &mut Entry,
        may_hold: &dyn Fn(u64) -> bool,
    ) -> Result<Option<SmallFile>, NotTaken> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut open = self.open(located, entry)?;
            if !may_hold(open.size()) {
                return Ok(None);
            }
            // No further than it reached when it was opened: a log may grow as fast as it is read.
            let due = open.size();
            let mut bytes = Vec::with_capacity(usize::try_from(due).unwrap_or(0));
            match (&mut open).take(due).read_to_end(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && tries == 1 => {
                    continue;
                }
                read => read?,
            };
            let is_unchanged = open.is_unchanged()? && bytes.len() as u64 == open.size();
            if is_unchanged || tries == 2 {
                open.describe(entry);
                let digest = Digest::of(&bytes);
                entry.set_content(digest, bytes.len() as u64);
                return Ok(Some(SmallFile { bytes, digest, has_changed: !is_unchanged }));
            }
        }
    }
}

/// Content that was opened, and what it was like then.
pub struct OpenFile<'a>(Inner<'a>);

enum Inner<'a> {
    File { file: File, before: Metadata },
    Object { bucket: &'a OpenBucket, key: String, content: Content<'a> },
}

impl<'a> OpenFile<'a> {
    fn of_object(
        bucket: &'a OpenBucket,
        located: &Located<'a>,
        entry: &Entry,
    ) -> Result<Self, NotTaken> {
        let key = std::str::from_utf8(located.below.as_bytes()).map_err(io::Error::other)?;
        let mut content = get(bucket, key, None)?;
        // Of the same content a listing knows the time better than an answer, which has no fractions of a
        // second: it is the one that the next listing is compared with.
        if bucket::etag(entry) == Some(&content.listed.etag) {
            content.listed.modified = entry.mtime.unwrap_or(content.listed.modified);
        }
        Ok(OpenFile(Inner::Object { bucket, key: key.to_owned(), content }))
    }

    /// Bytes that it had when it was opened.
    pub fn size(&self) -> u64 {
        match &self.0 {
            Inner::File { before, .. } => before.len(),
            Inner::Object { content, .. } => content.listed.size,
        }
    }

    /// Whether it is still as it was when it was opened.
    ///
    /// An object that is being read is of one state: reading ends with an error once it is gone.
    ///
    /// # Errors
    /// Those of the file.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        let Inner::File { file, before } = &self.0 else { return Ok(true) };
        let after = file.metadata()?;
        let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        Ok(state(before) == state(&after))
    }

    /// Puts into an entry what the file was like when it was opened.
    pub fn describe(&self, entry: &mut Entry) {
        match &self.0 {
            Inner::File { before: m, .. } => {
                let time = |seconds, nanoseconds| {
                    Some(Time::from_unix(seconds, u32::try_from(nanoseconds).unwrap_or(0)))
                };
                entry.mtime = time(m.mtime(), m.mtime_nsec());
                entry.ctime = time(m.ctime(), m.ctime_nsec());
                entry.inode = Some(m.ino());
                entry.mode = Some(m.mode() & 0o7777);
                entry.owner = Some((m.uid(), m.gid()));
            }
            Inner::Object { content, .. } => {
                Attributes::forget(entry);
                bucket::describe(&content.listed, entry);
                content.attributes.record(entry);
            }
        }
    }

    /// Hashes it, once opened, to its end.
    ///
    /// # Errors
    /// Those of the file.
    pub fn hash(&mut self) -> io::Result<(Digest, u64)> {
        Digest::of_reader(self)
    }

    /// Goes back to its start; that of an object is asked for anew.
    ///
    /// # Errors
    /// Those of the file; [`io::ErrorKind::UnexpectedEof`] for an object that was replaced.
    pub fn rewind(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::File { file, .. } => file.rewind(),
            Inner::Object { bucket, key, content } => {
                let again = get(bucket, key, Some(&content.listed.etag)).map_err(|why| {
                    let is_own = why.reason != Reason::Unreadable;
                    if is_own { io::ErrorKind::UnexpectedEof.into() } else { why.error }
                })?;
                content.bytes = again.bytes;
                Ok(())
            }
        }
    }
}

impl Read for OpenFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::File { file, .. } => file.read(buffer),
            Inner::Object { bucket, key, content } => {
                let read = content.bytes.read(buffer);
                match &read {
                    Ok(_) => bucket.answered(key),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) if is_denied(error) => {
                        bucket.denied(fail(Exit::Denied, error.to_string()));
                    }
                    Err(error) => bucket.failed(anyhow::anyhow!("{error}")),
                }
                read
            }
        }
    }
}

/// Begins to read an object, and tells its own faults from those of the bucket.
fn get<'a>(bucket: &'a OpenBucket, key: &str, etag: Option<&str>) -> Result<Content<'a>, NotTaken> {
    let error = match bucket.bucket.get(key, etag) {
        Ok(content) => return Ok(content),
        Err(error) => error,
    };
    let text = chain(&error);
    let reason = match error.kind {
        ErrorKind::NotFound => Reason::Vanished,
        ErrorKind::Exists => Reason::ChangedWhileRead,
        _ => Reason::Unreadable,
    };
    match error.kind {
        ErrorKind::NotFound | ErrorKind::Exists | ErrorKind::Archived => {}
        ErrorKind::Denied => bucket.denied(error.into()),
        _ => bucket.failed(error.into()),
    }
    Err(NotTaken { reason, error: io::Error::other(text) })
}

fn is_denied(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    cause.is_some_and(|cause| cause.kind == ErrorKind::Denied)
}

fn chain(error: &Error) -> String {
    let mut text = error.source.to_string();
    let mut cause = error.source.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A small file as it was read.
pub struct SmallFile {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its content's digest.
    pub digest: Digest,
    /// Whether it changed while it was read, also at the second try.
    pub has_changed: bool,
}
