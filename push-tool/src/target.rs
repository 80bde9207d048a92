//! The folder that a fetch fills: every path is made below it and nowhere else, whoever swaps a
//! link in meanwhile, and what is replaced is kept.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bk_manifest::atomic;
use bk_manifest::beneath::{Cursor, Root, set_node_mode};
use bk_manifest::digest::Digest;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::path::RelPath;
use bk_manifest::time::Time;
use bk_manifest::tree_root::TreeRoot;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, mkdirat, openat, statat,
    unlinkat,
};
use rustix::io::Errno;

/// How the names of unfinished files begin; the process and a number follow.
const UNFINISHED: &str = ".bk-tmp-";
/// Folders until their own mode is set, and those that the manifest does not list.
const FOLDER_MODE: u32 = 0o700;

/// Whether a name is that of a file which a fetch had not finished.
pub fn is_unfinished(name: &[u8]) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    std::str::from_utf8(name)
        .ok()
        .and_then(|name| name.strip_prefix(UNFINISHED)?.split_once('-'))
        .is_some_and(|(process, number)| is_number(process) && is_number(number))
}

/// A target folder.
pub struct Target {
    root: Root,
    /// Whether owners can be set.
    is_root: bool,
    /// Below the root: where what is replaced goes; `None` if nothing may be replaced.
    aside: Option<RelPath>,
    next: AtomicU64,
    replaced: AtomicU64,
    unowned: AtomicU64,
}

impl Target {
    /// Opens the folder. `aside` is where paths that are in the way are moved.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, aside: Option<RelPath>) -> io::Result<Self> {
        Ok(Target {
            root: Root::open(path)?,
            is_root: rustix::process::geteuid().is_root(),
            aside,
            next: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            unowned: AtomicU64::new(0),
        })
    }

    /// The open folder.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whether owners can be set here.
    pub fn sets_owners(&self) -> bool {
        self.is_root
    }

    /// How many paths were moved aside.
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// How many paths did not get their owner although owners can be set here.
    pub fn unowned(&self) -> u64 {
        self.unowned.load(Ordering::Relaxed)
    }

    /// Sets an owner, by `change`; returns whether the path has it.
    ///
    /// Root cannot give every owner: not one that a container does not know, nor on a share whose
    /// server takes root for nobody. The content is worth more than that.
    fn set_owner(
        &self,
        owner: Option<(u32, u32)>,
        change: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> io::Result<bool> {
        let Some((user, group)) = owner.filter(|_| self.is_root) else { return Ok(true) };
        match change(Some(Uid::from_raw(user)), Some(Gid::from_raw(group))) {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::INVAL) => {
                self.unowned.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a folder and those above it; one that is there stays.
    ///
    /// # Errors
    /// Those of the file system; something else in the way that may not be replaced.
    pub fn make_folders(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let mut folder = self.root.as_fd().try_clone_to_owned()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut end = 0;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            end += part.len() + usize::from(end > 0);
            folder = match openat(&folder, part, flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => make_folder(folder.as_fd(), part)?,
                Err(Errno::NOTDIR | Errno::LOOP) if self.aside.is_some() => {
                    self.put_aside(folder.as_fd(), part, &path[..end])?;
                    make_folder(folder.as_fd(), part)?
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(folder)
    }

    /// The folder that holds a path, made if need be, and the path's last part.
    fn parent<'p>(&self, path: &'p RelPath) -> io::Result<(OwnedFd, &'p [u8])> {
        let bytes = path.as_bytes();
        let slash = bytes.iter().rposition(|byte| *byte == b'/');
        let folder = self.make_folders(slash.map_or(&[], |slash| &bytes[..slash]))?;
        Ok((folder, &bytes[slash.map_or(0, |slash| slash + 1)..]))
    }

    /// Moves what has a name out of the way, keeping its path below the folder for replaced things.
    fn put_aside(&self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> io::Result<()> {
        let Some(aside) = &self.aside else {
            return Err(Errno::EXIST.into());
        };
        let kept = aside.join(path).map_err(io::Error::other)?;
        // Made without moving anything aside itself: the folder is new and ours.
        let (kept_folder, kept_name) = Target {
            root: self.root.try_clone()?,
            is_root: self.is_root,
            aside: None,
            next: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            unowned: AtomicU64::new(0),
        }
        .parent(&kept)
        .map(|(folder, name)| (folder, name.to_vec()))?;
        atomic::rename_to_free((folder, name), (kept_folder.as_fd(), &kept_name))?;
        self.replaced.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes room for a path: nothing has its name afterwards.
    fn clear(&self, folder: BorrowedFd<'_>, name: &[u8], path: &RelPath) -> io::Result<()> {
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => self.put_aside(folder, name, path.as_bytes()),
        }
    }

    /// Whether a regular file with an entry's content is there already, that may be left in place.
    ///
    /// One that has other names too is left only if it needs no change: they may lie outside.
    pub fn has_content(&self, entry: &Entry) -> bool {
        let Ok(file) = Cursor::new(&self.root).open_file(&entry.path) else { return false };
        let Ok(metadata) = file.metadata() else { return false };
        let is_finished = Some(metadata.mode() & 0o7777) == entry.mode
            && entry.mtime.map(Time::unix)
                == Some((metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)))
            && (!self.is_root || entry.owner == Some((metadata.uid(), metadata.gid())));
        (metadata.nlink() == 1 || is_finished)
            && Some(metadata.len()) == entry.size
            && Digest::of_reader(file).is_ok_and(|(digest, _)| Some(digest) == entry.checksum)
    }

    /// How many bytes are at an entry's path already, if it has its size.
    pub fn size_there(&self, entry: &Entry) -> u64 {
        let stat = Cursor::new(&self.root)
            .parent(&entry.path)
            .and_then(|(folder, name)| Ok(statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?));
        match stat.map(|stat| u64::try_from(stat.st_size).unwrap_or(0)) {
            Ok(size) if Some(size) == entry.size => size,
            _ => 0,
        }
    }

    /// Writes a small file of bk's own into `.bk/`, whole or not at all, whatever was there.
    ///
    /// # Errors
    /// Those of the file system, also if `.bk` is no folder.
    pub fn write_own(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = RelPath::new(format!(".bk/{name}")).map_err(io::Error::other)?;
        let mut file = self.create(&path)?;
        file.write_all(bytes)?;
        file.file.sync_all()?;
        if let Some(unfinished) = file.name.take() {
            rustix::fs::renameat(&file.folder, unfinished, &file.folder, name)?;
        }
        Ok(rustix::fs::fsync(&file.folder)?)
    }

    /// Reads such a file; `None` if it is not there.
    pub fn read_own(&self, name: &str) -> Option<Vec<u8>> {
        let path = RelPath::new(format!(".bk/{name}")).ok()?;
        let file = Cursor::new(&self.root).open_file(&path).ok()?;
        let mut bytes = Vec::new();
        file.take(1 << 16).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Begins a file; it has no name of its own before [`UnfinishedFile::commit`].
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(&self, path: &RelPath) -> io::Result<UnfinishedFile<'_>> {
        let (folder, _) = self.parent(path)?;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let name = format!("{UNFINISHED}{}-{number}", std::process::id());
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&folder, &name, flags, Mode::from_raw_mode(0o600)) {
                Ok(file) => {
                    let file = File::from(file);
                    return Ok(UnfinishedFile { target: self, folder, name: Some(name), file });
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes a link, a pipe or a device.
    ///
    /// # Errors
    /// Those of the file system, also where only root may make one.
    pub fn make_special(&self, entry: &Entry) -> io::Result<()> {
        let (folder, name) = self.parent(&entry.path)?;
        match &entry.kind {
            Kind::File | Kind::Directory => return Ok(()),
            Kind::Hardlink(first) => {
                let (first_folder, first_name) = self.parent(first)?;
                let first_stat = statat(&first_folder, first_name, AtFlags::SYMLINK_NOFOLLOW)?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let is_there = statat(&folder, name, flags).is_ok_and(|stat| {
                    (stat.st_dev, stat.st_ino) == (first_stat.st_dev, first_stat.st_ino)
                });
                if is_there {
                    return Ok(());
                }
                self.clear(folder.as_fd(), name, &entry.path)?;
                rustix::fs::linkat(&first_folder, first_name, &folder, name, AtFlags::empty())?;
                return Ok(());
            }
            Kind::Symlink(target) => {
                let is_there = rustix::fs::readlinkat(&folder, name, Vec::new())
                    .is_ok_and(|there| there.as_bytes() == target);
                if !is_there {
                    self.clear(folder.as_fd(), name, &entry.path)?;
                    rustix::fs::symlinkat(&target[..], &folder, name)?;
                }
            }
            Kind::Fifo | Kind::Block(..) | Kind::Char(..) => {
                let (kind, device) = match entry.kind {
                    Kind::Block(major, minor) => {
                        (FileType::BlockDevice, rustix::fs::makedev(major, minor))
                    }
                    Kind::Char(major, minor) => {
                        (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
                    }
                    _ => (FileType::Fifo, 0),
                };
                let is_there = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
                    FileType::from_raw_mode(stat.st_mode) == kind
                        && (kind == FileType::Fifo || stat.st_rdev == device)
                });
                if !is_there {
                    self.clear(folder.as_fd(), name, &entry.path)?;
                    rustix::fs::mknodat(&folder, name, kind, Mode::from_raw_mode(0o600), device)?;
                }
                if let Some(mode) = entry.mode {
                    set_node_mode(folder.as_fd(), name, kind, mode)?;
                }
            }
        }
        self.set_owner_and_times(folder.as_fd(), name, entry)
    }

    fn set_owner_and_times(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        self.set_owner(entry.owner, |user, group| {
            rustix::fs::chownat(folder, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
        })?;
        if let Some(times) = times(entry) {
            rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Gives an open file or folder its owner, mode and times; in this order, for a change of owner
    /// clears bits of the mode.
    fn set_attributes(&self, fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        let is_owned =
            self.set_owner(entry.owner, |user, group| rustix::fs::fchown(fd, user, group))?;
        if let Some(mode) = entry.mode {
            rustix::fs::fchmod(fd, allowed_mode(mode, is_owned))?;
        }
        if let Some(times) = times(entry) {
            rustix::fs::futimens(fd, &times)?;
        }
        Ok(())
    }

    /// Gives a file that was left in place, or a folder, its attributes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(&self, entry: &Entry) -> io::Result<()> {
        let mut cursor = Cursor::new(&self.root);
        if entry.kind == Kind::Directory {
            return self.set_attributes(cursor.folder(entry.path.as_bytes())?, entry);
        }
        let file = cursor.open_file(&entry.path)?;
        self.set_attributes(file.as_fd(), entry)
    }

    /// Gives the target folder itself what its tree's own folder had.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish_root(&self, root: TreeRoot) -> io::Result<()> {
        let fd = self.root.as_fd();
        let is_owned =
            self.set_owner(Some(root.owner), |user, group| rustix::fs::fchown(fd, user, group))?;
        Ok(rustix::fs::fchmod(fd, allowed_mode(root.mode, is_owned))?)
    }

    /// Removes a file that a dead fetch left unfinished.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_unfinished(&self, path: &RelPath) -> io::Result<()> {
        let mut cursor = Cursor::new(&self.root);
        let (folder, name) = cursor.parent(path)?;
        Ok(unlinkat(folder, name, AtFlags::empty())?)
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(self.root.as_fd())?)
    }
}

fn make_folder(above: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    match mkdirat(above, name, Mode::from_raw_mode(FOLDER_MODE)) {
        // Another thread may have been faster.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(above, name, flags, Mode::empty())?)
}

/// A recorded mode; set-uid and set-gid were meant for the recorded owner alone.
fn allowed_mode(mode: u32, is_owned: bool) -> Mode {
    Mode::from_raw_mode(if is_owned { mode } else { mode & 0o1777 })
}

fn times(entry: &Entry) -> Option<Timestamps> {
    let spec = |time: Time| {
        let (seconds, nanoseconds) = time.unix();
        Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
    };
    let mtime = spec(entry.mtime?);
    Some(Timestamps { last_access: mtime, last_modification: mtime })
}

/// A file without its name; dropped, it is gone.
pub struct UnfinishedFile<'a> {
    target: &'a Target,
    folder: OwnedFd,
    name: Option<String>,
    file: File,
}

impl UnfinishedFile<'_> {
    /// Gives the file its attributes and its name.
    ///
    /// # Errors
    /// Those of the file system; a taken name where nothing may be replaced.
    pub fn commit(mut self, entry: &Entry) -> io::Result<()> {
        self.target.set_attributes(self.file.as_fd(), entry)?;
        let name = entry.path.file_name();
        self.target.clear(self.folder.as_fd(), name, &entry.path)?;
        if let Some(unfinished) = self.name.take() {
            let folder = self.folder.as_fd();
            if let Err(error) =
                atomic::rename_to_free((folder, unfinished.as_bytes()), (folder, name))
            {
                self.name = Some(unfinished);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Write for UnfinishedFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for UnfinishedFile<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // What stays is swept by the next fetch.
            let _ = unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}
