//! Reads the files that entries stand for, where they lie on this host, and notices when one changes
//! meanwhile.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use bk_manifest::beneath::{Cursor, Root};
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::left_out::Reason;
use bk_manifest::manifest::{Run, Source, SourceKind, is_within};
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;
use bk_manifest::spool::Entries;
use bk_manifest::time::Time;

/// The folders that this run's entries come from.
pub struct Sources(Vec<OpenSource>);

struct OpenSource {
    source: Source,
    /// For a stage folder also a shared lock, which keeps the next dump step from sweeping it.
    root: Root,
    /// The recorded paths that it covers; an empty one is everything.
    areas: Vec<Vec<u8>>,
}

/// A source and the path of a file below its root.
pub struct Located<'a> {
    /// The folder.
    pub root: &'a Root,
    /// The file below it.
    pub below: RelPath,
    /// Whether a dump step made it for this run.
    pub kind: SourceKind,
}

impl Sources {
    /// Opens the folders that the run names.
    ///
    /// # Errors
    /// A folder that cannot be opened any more.
    pub fn open(run: &Run) -> anyhow::Result<Self> {
        run.sources
            .iter()
            .filter_map(|source| OpenSource::open(source).transpose())
            .collect::<anyhow::Result<_>>()
            .map(Sources)
    }

    /// Where an entry's file is; `None` if no source of the run covers it.
    pub fn locate(&self, entry: &Entry) -> Option<Located<'_>> {
        let path = entry.path.as_bytes();
        self.0
            .iter()
            .filter(|open| open.source.component == entry.component())
            .find(|open| open.areas.iter().any(|area| is_within(path, area)))
            .and_then(|open| {
                let prefix = &open.source.prefix.0;
                let below = if prefix.is_empty() {
                    path
                } else {
                    path.strip_prefix(&prefix[..])?.strip_prefix(b"/")?
                };
                let below = RelPath::new(below).ok()?;
                Some(Located { root: &open.root, below, kind: open.source.kind })
            })
    }

    /// Removes what dump steps made for this run; it is stored now.
    ///
    /// Only files that were stored are removed, and folders that are empty then: a document that
    /// names another folder of this host loses nothing there.
    ///
    /// # Errors
    /// Those of the temporary files; what cannot be removed is a warning.
    pub fn remove_staged(&self, entries: &Entries, progress: &dyn Progress) -> anyhow::Result<()> {
        if self.0.iter().all(|open| open.source.kind != SourceKind::Stage) {
            return Ok(());
        }
        let mut folders = BTreeSet::new();
        for entry in entries.iter() {
            let entry = entry?;
            let Some(located) = self.locate(&entry).filter(|at| at.kind == SourceKind::Stage)
            else {
                continue;
            };
            if let Some(folder) = located.below.parent() {
                folders.insert(located.root.path().join(folder.as_path()));
            }
            let removed =
                Cursor::new(located.root).parent(&located.below).and_then(|(folder, name)| {
                    Ok(rustix::fs::unlinkat(folder, name, rustix::fs::AtFlags::empty())?)
                });
            if let Err(error) = removed {
                let path = located.root.path().display();
                progress
                    .warn(&format!("cannot remove the staged '{path}/{}': {error}", located.below));
            }
        }
        // What is not empty is the next sweep's.
        for folder in folders.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
        for open in self.0.iter().filter(|open| open.source.kind == SourceKind::Stage) {
            let _ = std::fs::remove_dir(open.root.path());
        }
        Ok(())
    }
}

impl OpenSource {
    /// `None` for a stage folder that has gone: its dump has failed, and the document will be cut
    /// short before an entry asks for it.
    fn open(source: &Source) -> anyhow::Result<Option<Self>> {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(&source.root.0));
        let root = match Root::open(path) {
            Ok(root) => root,
            Err(error)
                if source.kind == SourceKind::Stage && error.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            Err(error) => {
                let message = format!("cannot open the source '{}': {error}", path.display());
                return Err(fail(Exit::Failed, message));
            }
        };
        if source.kind == SourceKind::Stage {
            rustix::fs::flock(root.as_fd(), rustix::fs::FlockOperation::NonBlockingLockShared)
                .or_else(|error| match error {
                    // The dump step still writes there; its own lock holds until it has ended.
                    rustix::io::Errno::WOULDBLOCK => Ok(()),
                    error => Err(error),
                })
                .map_err(io::Error::from)
                .with_context(|| format!("cannot lock the stage '{}'", path.display()))?;
        }
        Ok(Some(OpenSource { source: source.clone(), root, areas: source.areas() }))
    }
}

/// Why an entry's file could not be taken.
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
            _ => Reason::Unreadable,
        };
        NotTaken { reason, error }
    }
}

/// A file that was opened, and what it was like then.
pub struct OpenFile {
    /// The file.
    pub file: File,
    before: Metadata,
}

impl OpenFile {
    /// Opens an entry's file.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn open(located: &Located<'_>, cursor: &mut Cursor<'_>) -> Result<Self, NotTaken> {
        // A file that goes is ordinary; a whole folder that goes was moved, or unmounted.
        cursor.parent(&located.below).map_err(|error| NotTaken {
            reason: Reason::Unreadable,
            error: io::Error::new(error.kind(), format!("its folder cannot be opened: {error}")),
        })?;
        let file = cursor.open_file(&located.below)?;
        let before = file.metadata()?;
        Ok(OpenFile { file, before })
    }

    /// Bytes that it had when it was opened.
    pub fn size(&self) -> u64 {
        self.before.len()
    }

    /// Whether it is still as it was when it was opened.
    ///
    /// # Errors
    /// Those of the file.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        let after = self.file.metadata()?;
        let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        Ok(state(&self.before) == state(&after))
    }

    /// Puts into an entry what the file was like when it was opened.
    pub fn describe(&self, entry: &mut Entry) {
        let m = &self.before;
        let time = |seconds, nanoseconds| {
            Some(Time::from_unix(seconds, u32::try_from(nanoseconds).unwrap_or(0)))
        };
        entry.mtime = time(m.mtime(), m.mtime_nsec());
        entry.ctime = time(m.ctime(), m.ctime_nsec());
        entry.inode = Some(m.ino());
        entry.mode = Some(m.mode() & 0o7777);
        entry.owner = Some((m.uid(), m.gid()));
    }
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

/// Reads a file that fits into memory, again if it changed meanwhile, and updates its entry; `None`
/// for one that `may_hold` says to be too large.
///
/// # Errors
/// [`NotTaken`].
pub fn read_small(
    located: &Located<'_>,
    cursor: &mut Cursor<'_>,
    entry: &mut Entry,
    may_hold: &dyn Fn(u64) -> bool,
) -> Result<Option<SmallFile>, NotTaken> {
    let mut tries = 0;
    loop {
        tries += 1;
        let open = OpenFile::open(located, cursor)?;
        if !may_hold(open.size()) {
            return Ok(None);
        }
        // No further than it reached when it was opened: a log may grow as fast as it is read.
        let due = open.size();
        let mut bytes = Vec::with_capacity(usize::try_from(due).unwrap_or(0));
        (&open.file).take(due).read_to_end(&mut bytes)?;
        let is_unchanged = open.is_unchanged()? && bytes.len() as u64 == open.size();
        if is_unchanged || tries == 2 {
            open.describe(entry);
            let digest = Digest::of(&bytes);
            entry.set_content(digest, bytes.len() as u64);
            return Ok(Some(SmallFile { bytes, digest, has_changed: !is_unchanged }));
        }
    }
}

/// Reads as much as fits, up to the end of the file.
///
/// # Errors
/// Those of the file.
pub fn read_chunk(file: &File, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Hashes a file from its start.
///
/// # Errors
/// Those of the file.
pub fn hash(file: &File) -> anyhow::Result<(Digest, u64)> {
    use std::io::Seek;
    let mut file = file;
    file.rewind().context("cannot read a source file")?;
    let sum = Digest::of_reader(file).context("cannot read a source file")?;
    file.rewind().context("cannot read a source file")?;
    Ok(sum)
}
