//! A folder as destination: a disk, or a mounted NAS.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bk_manifest::atomic::{self, Existing, NewFile};
use bk_manifest::lock::Lock;
use bk_manifest::path::RelPath;
use bk_manifest::time::Time;
use walkdir::WalkDir;

use crate::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload, cause,
};
use crate::place::OWN_FOLDER;

/// Where unfinished files are; on the destination's file system, so that a rename finishes them.
const UNFINISHED: &str = ".bk/tmp";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A destination in a folder of this machine.
///
/// Files get mode 0600 and folders 0700, whatever the umask.
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// The destination in `root`, which must exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Local { root: root.into() }
    }

    /// The folder that holds it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn error(&self, verb: &'static str, name: &str, error: io::Error) -> Error {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::Denied
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            io::ErrorKind::Interrupted | io::ErrorKind::TimedOut => ErrorKind::Transient,
            _ => ErrorKind::Other,
        };
        let name = bk_manifest::path::escape(name.as_bytes());
        Error { kind, verb, name, place: self.describe(), source: cause(kind, error) }
    }

    /// The file of an object. A name that leads out of the root has none.
    fn file(&self, name: &str) -> io::Result<PathBuf> {
        let path = RelPath::new(name)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(self.root.join(path.as_path()))
    }

    /// An unfinished file, with the folder that will hold it.
    fn begin(&self, name: &str) -> io::Result<(NewFile, PathBuf)> {
        let path = self.file(name)?;
        let unfinished = self.root.join(UNFINISHED);
        atomic::create_folders(&unfinished, FOLDER_MODE)?;
        if let Some(folder) = path.parent() {
            atomic::create_folders(folder, FOLDER_MODE)?;
        }
        Ok((NewFile::create_in(&unfinished, FILE_MODE)?, path))
    }

    fn info(name: &str, path: &Path) -> io::Result<Option<ObjectInfo>> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(ObjectInfo {
                name: name.to_owned(),
                size: metadata.len(),
                modified: modified(&metadata),
            })),
            Ok(_) => Ok(None),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn modified(metadata: &fs::Metadata) -> Time {
    Time::from_unix(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0))
}

/// Opens a regular file, and nothing else that may stand in its place.
fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"))
    }
}

impl Destination for Local {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        let error = |name: &str, error: walkdir::Error| {
            self.error("list", name, error.into_io_error().unwrap_or(io::ErrorKind::Other.into()))
        };
        let start = if folder.is_empty() {
            self.root.clone()
        } else {
            self.file(folder).map_err(|error| self.error("list", folder, error))?
        };
        if !start.is_dir() {
            return match fs::symlink_metadata(&start) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.error("list", folder, error))
                }
                _ => Ok(Box::new(std::iter::empty())),
            };
        }
        let unfinished = self.root.join(UNFINISHED);
        let walk =
            WalkDir::new(start).into_iter().filter_entry(move |entry| entry.path() != unfinished);
        Ok(Box::new(walk.filter_map(move |entry| {
            let entry = match entry {
                Ok(entry) => entry,
                // Gone since its folder was read: prune or a commit at work.
                Err(gone)
                    if gone.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) =>
                {
                    return None;
                }
                Err(failed) => {
                    let name = failed.path().map(|path| path.display().to_string());
                    return Some(Err(error(&name.unwrap_or_default(), failed)));
                }
            };
            if !entry.file_type().is_file() {
                return None;
            }
            // A name that is not plain text cannot be one of ours.
            let name = entry.path().strip_prefix(&self.root).ok()?.to_str()?;
            match entry.metadata() {
                Ok(metadata) => Some(Ok(ObjectInfo {
                    name: name.to_owned(),
                    size: metadata.len(),
                    modified: modified(&metadata),
                })),
                Err(gone)
                    if gone.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) =>
                {
                    None
                }
                Err(failed) => Some(Err(error(name, failed))),
            }
        })))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        self.file(name)
            .and_then(|path| Local::info(name, &path))
            .map_err(|error| self.error("look at", name, error))
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        let open = || -> io::Result<Box<dyn Read + Send>> {
            let mut file = open(&self.file(name)?)?;
            Ok(match range {
                None => Box::new(file),
                Some(range) => {
                    file.seek(SeekFrom::Start(range.start))?;
                    Box::new(file.take(range.end.saturating_sub(range.start)))
                }
            })
        };
        open().map_err(|error| self.error("read", name, error))
    }

    fn put(&self, name: &str) -> Result<Box<dyn Upload + '_>> {
        let (file, path) = self.begin(name).map_err(|error| self.error("store", name, error))?;
        Ok(Box::new(LocalUpload { local: self, name: name.to_owned(), file, path }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        let create = || -> io::Result<()> {
            let (mut file, path) = self.begin(name)?;
            file.write_all(bytes)?;
            file.commit(&path, Existing::Keep)
        };
        match create() {
            Ok(()) => Ok(Created::New),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Taken),
            Err(error) => Err(self.error("store", name, error)),
        }
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        let mut failed = Vec::new();
        let mut folders = std::collections::BTreeSet::new();
        for name in names {
            let removed = self.file(name).and_then(|path| match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Ok(()) => {
                    folders.extend(path.parent().map(Path::to_owned));
                    Ok(())
                }
                result => result,
            });
            if let Err(error) = removed {
                failed.push(self.error("remove", name, error));
            }
        }
        // After a power cut nothing may come back of which a later removal took the rest.
        for folder in &folders {
            if let Err(error) = atomic::sync_folder(folder) {
                failed.push(self.error("sync", &folder.display().to_string(), error));
            }
        }
        for folder in folders.iter().rev() {
            self.remove_empty(folder);
        }
        failed
    }

    fn now(&self) -> Result<Time> {
        // A file server stamps files by its own clock, so a file is asked, not this machine.
        let probe = || -> io::Result<Time> {
            let unfinished = self.root.join(UNFINISHED);
            atomic::create_folders(&unfinished, FOLDER_MODE)?;
            let mut file = NewFile::create_in(&unfinished, FILE_MODE)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            Ok(modified(&file.as_file().metadata()?))
        };
        probe().map_err(|error| self.error("read the clock of", "", error))
    }

    fn sweep(&self, before: Time) -> Result<u64> {
        let sweep = || -> io::Result<u64> {
            let mut swept = 0;
            let folder = match fs::read_dir(self.root.join(UNFINISHED)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                folder => folder?,
            };
            for entry in folder {
                let entry = entry?;
                match entry.metadata() {
                    Ok(metadata) if metadata.is_file() && modified(&metadata) < before => {
                        fs::remove_file(entry.path())?;
                        swept += 1;
                    }
                    _ => {}
                }
            }
            Ok(swept)
        };
        sweep().map_err(|error| self.error("sweep", UNFINISHED, error))
    }

    fn lock(&self, holder: &str) -> anyhow::Result<Option<Lock>> {
        let folder = self.root.join(OWN_FOLDER);
        atomic::create_folders(&folder, FOLDER_MODE)
            .map_err(|error| self.error("lock", OWN_FOLDER, error))
            .context("cannot take the destination's lock")?;
        Lock::take(&folder.join("lock"), holder).map(Some)
    }
}

impl Local {
    /// Removes a folder and those above it as far as they are empty; never the root.
    fn remove_empty(&self, folder: &Path) {
        let mut folder = folder;
        while folder != self.root && folder.starts_with(&self.root) {
            // Not empty, or somebody else was faster: either way there is nothing to do.
            if fs::remove_dir(folder).is_err() {
                return;
            }
            let Some(above) = folder.parent() else { return };
            folder = above;
        }
    }
}

struct LocalUpload<'a> {
    local: &'a Local,
    name: String,
    file: NewFile,
    path: PathBuf,
}

impl Write for LocalUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Upload for LocalUpload<'_> {
    fn commit(self: Box<Self>) -> Result<()> {
        // Prune may have removed the folder as empty meanwhile.
        let LocalUpload { local, name, file, path } = *self;
        atomic::create_folders(path.parent().unwrap_or(&local.root), FOLDER_MODE)
            .and_then(|()| file.commit(&path, Existing::Keep))
            .map_err(|error| local.error("store", &name, error))
    }
}
