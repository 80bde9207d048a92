//! A folder as destination: a disk, or a mounted NAS.
//!
//! Every name is opened below the root part by part, and no symbolic link inside it is followed:
//! whoever may write there cannot have us read, write or remove anything outside.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bk_manifest::beneath::{Cursor, Root};
use bk_manifest::lock::Lock;
use bk_manifest::path::RelPath;
use bk_manifest::time::Time;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, fchmod, fsync, linkat, mkdirat, openat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use walkdir::WalkDir;

use crate::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload, cause,
};
use crate::place;

/// Where unfinished files are; on the destination's file system, so that a rename finishes them.
const UNFINISHED: &str = ".bk/tmp";
/// How their names begin; nothing else is swept.
const UNFINISHED_NAME: &str = ".bk-tmp-";
/// What ext4 has at the root of a disk, closed to all but root; nothing of ours is ever in it.
const LOST_AND_FOUND: &str = "lost+found";
/// Of the folders of a destination.
pub(crate) const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A destination in a folder of this machine.
///
/// Files get mode 0600 and folders 0700, whatever the umask.
pub struct Local {
    path: PathBuf,
    next: AtomicU64,
}

impl Local {
    /// The destination in a folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Local { path: path.into(), next: AtomicU64::new(0) }
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

    fn root(&self) -> io::Result<Root> {
        Root::open(&self.path)
    }

    /// Opens a folder by its name, and makes it and those above it if they are missing.
    fn make_folder(&self, name: &str) -> io::Result<OwnedFd> {
        let mut folder = self.root()?.as_fd().try_clone_to_owned()?;
        for part in name.split('/').filter(|part| !part.is_empty()) {
            folder = match openat(&folder, part, FOLDER, Mode::empty()) {
                Err(Errno::NOENT) => {
                    match mkdirat(&folder, part, Mode::from_raw_mode(FOLDER_MODE)) {
                        // Another thread or process may have been faster.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    let made = openat(&folder, part, FOLDER, Mode::empty()).map_err(no_folder)?;
                    fchmod(&made, Mode::from_raw_mode(FOLDER_MODE))?;
                    sync_folder(folder.as_fd())?;
                    made
                }
                result => result.map_err(no_folder)?,
            };
        }
        Ok(folder)
    }

    /// Begins a file that has no name of its own.
    fn begin(&self) -> io::Result<Unfinished> {
        let folder = self.make_folder(UNFINISHED)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let mut random = [0; 4];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let name = format!("{UNFINISHED_NAME}{:08x}-{number}", u32::from_ne_bytes(random));
            match openat(&folder, &name, flags, Mode::from_raw_mode(FILE_MODE)) {
                Ok(file) => {
                    fchmod(&file, Mode::from_raw_mode(FILE_MODE))?;
                    return Ok(Unfinished { folder, name, file: File::from(file), length: 0 });
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes a folder and those above it as far as they are empty; never the root.
    fn remove_empty(&self, folder: &str) {
        let mut folder = folder;
        while let Ok(path) = RelPath::new(folder) {
            let removed = self.root().and_then(|root| {
                let mut cursor = Cursor::new(&root);
                let (parent, name) = cursor.parent(&path)?;
                Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
            });
            // Not empty, or somebody else was faster: either way there is nothing to do.
            if removed.is_err() {
                return;
            }
            folder = place::parent(folder);
        }
    }
}

/// An object's name as a path; one that leads out is none.
fn checked(name: &str) -> io::Result<RelPath> {
    RelPath::new(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// What a folder's place is taken by, said plainly.
fn no_folder(error: Errno) -> io::Error {
    match error {
        Errno::LOOP | Errno::NOTDIR => io::Error::new(
            io::ErrorKind::NotADirectory,
            "a symbolic link or a file is in the place of a folder; it is not followed",
        ),
        error => error.into(),
    }
}

fn sync_folder(folder: BorrowedFd<'_>) -> io::Result<()> {
    match fsync(folder) {
        // Some network and FUSE file systems refuse; they have no order of their own to keep.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn stat_time(stat: &rustix::fs::Stat) -> Time {
    Time::from_unix(stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

/// A file without its name; dropped before it is committed, it is gone.
struct Unfinished {
    folder: OwnedFd,
    name: String,
    file: File,
    length: u64,
}

impl Unfinished {
    /// Gives the file its name, once its bytes are on the disk.
    ///
    /// In this order: length compared, file synced, renamed, folder synced. After a crash at any
    /// point the name is absent, or stands for all of the file.
    fn commit(self, local: &Local, name: &str) -> io::Result<()> {
        let path = checked(name)?;
        if self.file.metadata()?.len() != self.length {
            return Err(io::Error::other("the file is not as long as what was written"));
        }
        self.file.sync_all()?;
        let folder = local.make_folder(place::parent(name))?;
        let last = path.file_name();
        match renameat_with(&self.folder, &self.name, &folder, last, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Not known to every file system; a link does not replace either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                linkat(&self.folder, &self.name, &folder, last, AtFlags::empty())?;
            }
            Err(error) => return Err(error.into()),
        }
        sync_folder(folder.as_fd())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone after a rename; what stays otherwise is swept by prune.
        let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Destination for Local {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        let fail = |name: &str, error: io::Error| self.error("list", name, error);
        let start = if folder.is_empty() {
            self.path.clone()
        } else {
            let path = checked(folder).map_err(|error| fail(folder, error))?;
            let opened =
                self.root().and_then(|root| Cursor::new(&root).folder(path.as_bytes()).map(|_| ()));
            match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Box::new(std::iter::empty()));
                }
                result => result.map_err(|error| fail(folder, error))?,
            }
            self.path.join(path.as_path())
        };
        let not_ours = [self.path.join(UNFINISHED), self.path.join(LOST_AND_FOUND)];
        let is_gone = |error: &walkdir::Error| {
            error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let failed = move |error: walkdir::Error| {
            let name = error.path().map(|path| path.display().to_string()).unwrap_or_default();
            fail(&name, error.into_io_error().unwrap_or(io::ErrorKind::Other.into()))
        };
        let walk = WalkDir::new(start)
            .into_iter()
            .filter_entry(move |entry| not_ours.iter().all(|path| entry.path() != path));
        Ok(Box::new(walk.filter_map(move |entry| {
            let entry = match entry {
                Ok(entry) => entry,
                // Gone since its folder was read: prune or a commit at work.
                Err(error) if is_gone(&error) && error.depth() > 0 => return None,
                Err(error) => return Some(Err(failed(error))),
            };
            if !entry.file_type().is_file() {
                return None;
            }
            // A name that is not plain text cannot be one of ours.
            let name = entry.path().strip_prefix(&self.path).ok()?.to_str()?.to_owned();
            match entry.metadata() {
                Ok(metadata) => {
                    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
                    let modified = Time::from_unix(metadata.mtime(), nanoseconds);
                    Some(Ok(ObjectInfo { name, size: metadata.len(), modified }))
                }
                Err(error) if is_gone(&error) => None,
                Err(error) => Some(Err(failed(error))),
            }
        })))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        let stat = || -> io::Result<Option<ObjectInfo>> {
            let path = checked(name)?;
            let root = self.root()?;
            let mut cursor = Cursor::new(&root);
            let (folder, last) = match cursor.parent(&path) {
                Ok(parent) => parent,
                Err(error) => {
                    return match Errno::from_io_error(&error) {
                        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                        _ => Err(error),
                    };
                }
            };
            match statat(folder, last, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    Ok(Some(ObjectInfo { name: name.to_owned(), size, modified: stat_time(&stat) }))
                }
                Ok(_) | Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        match stat() {
            // No root, no object.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map_err(|error| self.error("look at", name, error)),
        }
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        let open = || -> io::Result<Box<dyn Read + Send>> {
            let mut file = Cursor::new(&self.root()?).open_file(&checked(name)?)?;
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

    fn put(&self, name: &str, _: u64) -> Result<Box<dyn Upload + '_>> {
        let begin = || checked(name).and_then(|_| self.begin());
        let file = begin().map_err(|error| self.error("store", name, error))?;
        Ok(Box::new(LocalUpload { local: self, name: name.to_owned(), file }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        let create = || -> io::Result<()> {
            checked(name)?;
            let mut file = self.begin()?;
            file.write_all(bytes)?;
            file.commit(self, name)
        };
        match create() {
            Ok(()) => Ok(Created::New),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Taken),
            Err(error) => Err(self.error("store", name, error)),
        }
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        let mut failed = Vec::new();
        let mut folders = std::collections::BTreeMap::new();
        for name in names {
            let mut remove = || -> io::Result<()> {
                let path = checked(name)?;
                let root = self.root()?;
                let mut cursor = Cursor::new(&root);
                let (folder, last) = cursor.parent(&path)?;
                unlinkat(folder, last, AtFlags::empty())?;
                if !folders.contains_key(place::parent(name)) {
                    folders.insert(place::parent(name), folder.try_clone_to_owned()?);
                }
                Ok(())
            };
            match remove() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed.push(self.error("remove", name, error)),
            }
        }
        // After a power cut nothing may come back of which a later removal took the rest.
        for (name, folder) in &folders {
            if let Err(error) = sync_folder(folder.as_fd()) {
                failed.push(self.error("sync", name, error));
            }
        }
        for name in folders.keys().rev() {
            self.remove_empty(name);
        }
        failed
    }

    fn now(&self) -> Result<Time> {
        // A file server stamps files by its own clock, so a file is asked, not this machine.
        let probe = || -> io::Result<Time> {
            let mut file = self.begin()?;
            file.write_all(b"\n")?;
            file.file.sync_all()?;
            Ok(stat_time(&rustix::fs::fstat(&file.file)?))
        };
        probe().map_err(|error| self.error("read the clock of", "", error))
    }

    fn sweep(&self, before: Time) -> Result<u64> {
        let sweep = || -> io::Result<u64> {
            let root = self.root()?;
            let mut cursor = Cursor::new(&root);
            let folder = match cursor.folder(UNFINISHED.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                folder => folder?,
            };
            let mut swept = 0;
            for entry in Dir::read_from(folder)? {
                let entry = entry?;
                let name = entry.file_name();
                if !name.to_bytes().starts_with(UNFINISHED_NAME.as_bytes()) {
                    continue;
                }
                match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat)
                        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                            && stat_time(&stat) < before =>
                    {
                        match unlinkat(folder, name, AtFlags::empty()) {
                            Ok(()) => swept += 1,
                            // Another series' prune sweeps too.
                            Err(Errno::NOENT) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                    _ => {}
                }
            }
            Ok(swept)
        };
        sweep().map_err(|error| self.error("sweep", UNFINISHED, error))
    }

    fn lock(&self, series: &str, holder: &str) -> anyhow::Result<Option<Lock>> {
        let open = || -> io::Result<File> {
            let folder = self.make_folder(place::OWN_FOLDER)?;
            let name = format!("lock.{}", series.replace('/', "~"));
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(File::from(openat(&folder, name, flags, Mode::from_raw_mode(FILE_MODE))?))
        };
        let file = open().map_err(|error| self.error("lock", place::OWN_FOLDER, error))?;
        Lock::hold(file, holder).map(Some)
    }
}

struct LocalUpload<'a> {
    local: &'a Local,
    name: String,
    file: Unfinished,
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
        let LocalUpload { local, name, file } = *self;
        file.commit(local, &name).map_err(|error| local.error("store", &name, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// A folder with a victim in it, and a destination beside.
    fn beside_a_victim() -> (tempfile::TempDir, Local) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["outside", "dest"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let victim = folder.path().join("outside").join(format!("{UNFINISHED_NAME}old"));
        File::create(victim).unwrap().write_all(b"mine").unwrap();
        let local = Local::new(folder.path().join("dest"));
        (folder, local)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn links_inside_the_destination_lead_nowhere() {
        let (folder, local) = beside_a_victim();
        let outside = folder.path().join("outside");
        let victim = names(&outside);
        symlink("../outside", folder.path().join("dest/link")).unwrap();
        let inside = format!("link/{}", victim[0]);
        assert!(!local.delete(std::slice::from_ref(&inside)).is_empty());
        assert!(local.read(&inside, None).is_err());
        assert_eq!(local.stat(&inside).unwrap(), None);
        assert!(local.list("link").is_err());
        assert_eq!(local.list("").unwrap().count(), 0);
        assert!(local.create("link/new", b"x").is_err());
        let mut upload = local.put("link/new", 3).unwrap();
        upload.write_all(b"x").unwrap();
        assert!(upload.commit().is_err());
        assert_eq!(names(&outside), victim);
    }

    #[test]
    fn a_link_in_the_place_of_our_own_folders_is_refused() {
        let (folder, local) = beside_a_victim();
        let outside = folder.path().join("outside");
        let victim = names(&outside);
        let later = Time::from_unix(i64::from(i32::MAX), 0);
        std::fs::create_dir(folder.path().join("dest/.bk")).unwrap();
        symlink("../../outside", folder.path().join("dest/.bk/tmp")).unwrap();
        assert!(local.sweep(later).is_err());
        assert!(local.now().is_err());
        assert!(local.put("a", 1).is_err());
        std::fs::remove_file(folder.path().join("dest/.bk/tmp")).unwrap();
        std::fs::remove_dir(folder.path().join("dest/.bk")).unwrap();
        symlink("../outside", folder.path().join("dest/.bk")).unwrap();
        assert!(local.lock("app", "me").is_err());
        assert_eq!(names(&outside), victim);
    }

    #[test]
    fn only_what_we_left_unfinished_is_swept() {
        let (folder, local) = beside_a_victim();
        local.now().unwrap();
        let unfinished = folder.path().join("dest").join(UNFINISHED);
        for name in ["stranger", ".bk-tmp-1"] {
            File::create(unfinished.join(name)).unwrap();
        }
        assert_eq!(local.sweep(Time::from_unix(0, 0)).unwrap(), 0);
        assert_eq!(local.sweep(Time::from_unix(i64::from(i32::MAX), 0)).unwrap(), 1);
        assert_eq!(names(&unfinished), ["stranger"]);
    }

    #[test]
    fn two_may_sweep_at_once() {
        let (folder, local) = beside_a_victim();
        local.now().unwrap();
        let unfinished = folder.path().join("dest").join(UNFINISHED);
        let count = 2000;
        for number in 0..count {
            File::create(unfinished.join(format!("{UNFINISHED_NAME}{number}"))).unwrap();
        }
        let later = Time::from_unix(i64::from(i32::MAX), 0);
        let both = std::sync::Barrier::new(4);
        let swept: u64 = std::thread::scope(|scope| {
            let sweeps = [(); 4].map(|()| {
                scope.spawn(|| {
                    both.wait();
                    local.sweep(later).unwrap()
                })
            });
            sweeps.into_iter().map(|sweep| sweep.join().unwrap()).sum()
        });
        assert_eq!(swept, count);
    }

    #[test]
    fn what_a_disk_keeps_at_its_root_is_not_looked_into() {
        let (folder, local) = beside_a_victim();
        for name in ["lost+found/x", "a/lost+found"] {
            let path = folder.path().join("dest").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap();
        }
        let found = local.list("").unwrap().map(|object| object.unwrap().name);
        assert_eq!(found.collect::<Vec<_>>(), ["a/lost+found"]);
    }
}
