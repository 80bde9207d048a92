//! Compares one path of a folder with what the manifest says of it.

use std::io;
use std::sync::atomic::AtomicU64;

use bk_manifest::beneath::Cursor;
use bk_manifest::digest::Digest;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::path::{RelPath, escape};
use bk_manifest::progress::Progress;
use bk_manifest::time::Time;
use rustix::fs::{AtFlags, FileType, Stat, readlinkat, statat};
use rustix::io::Errno;

use crate::check::Counted;
use crate::problem::{Fault, Problem};

/// What counts as a difference.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether modes, owners, times and links count.
    pub metadata: bool,
    /// Whether owners count: only root can set them.
    pub owners: bool,
    /// Whether the content of further names of a file is hashed although that of its first name is,
    /// which may not have been selected.
    pub reads_links: bool,
}

/// What a comparison reads with.
pub struct Comparing<'a> {
    /// What counts.
    pub rules: Rules,
    /// How many bytes were read.
    pub bytes: &'a AtomicU64,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

type Difference = (Fault, String);

impl Comparing<'_> {
    /// Everything in which a path differs from its entry.
    ///
    /// # Errors
    /// Those of the file system other than an absent path and denied access; being stopped.
    pub fn compare(&self, cursor: &mut Cursor<'_>, entry: &Entry) -> io::Result<Vec<Problem>> {
        let mut differences = Vec::new();
        if let Err(error) = self.find(cursor, entry, &mut differences) {
            bk_manifest::signal::check()?;
            differences.push(match Errno::from_io_error(&error) {
                Some(Errno::NOENT) => (Fault::Missing, "is missing".into()),
                Some(Errno::NOTDIR | Errno::LOOP) => (
                    Fault::Missing,
                    "is missing: something else is in the place of a folder".into(),
                ),
                Some(Errno::ACCESS | Errno::PERM) => {
                    (Fault::Denied, "cannot be read: access denied".into())
                }
                _ => (Fault::Unreadable, format!("cannot be read: {error}")),
            });
        }
        Ok(differences
            .into_iter()
            .map(|(fault, detail)| Problem::of_path(fault, &entry.path, detail))
            .collect())
    }

    fn find(
        &self,
        cursor: &mut Cursor<'_>,
        entry: &Entry,
        differences: &mut Vec<Difference>,
    ) -> io::Result<()> {
        let stat = stat(cursor, &entry.path)?;
        let found = FileType::from_raw_mode(stat.st_mode);
        if found != type_of(&entry.kind) {
            let expected = word(type_of(&entry.kind));
            differences.push((Fault::Type, format!("is {} instead of {expected}", word(found))));
            return Ok(());
        }
        let mut metadata = Vec::new();
        match &entry.kind {
            Kind::File => differences.extend(self.content(cursor, entry, &stat)?),
            Kind::Hardlink(first) => {
                let is_same = match self::stat(cursor, first) {
                    Ok(other) => (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino),
                    Err(_) => false,
                };
                if !is_same {
                    metadata.push(format!("is no hard link to '{first}'"));
                }
                if !is_same || self.rules.reads_links {
                    differences.extend(self.content(cursor, entry, &stat)?);
                }
            }
            Kind::Symlink(target) => {
                let (folder, name) = cursor.parent(&entry.path)?;
                let found = readlinkat(folder, name, Vec::new())?;
                if found.as_bytes() != target {
                    let (found, target) = (escape(found.as_bytes()), escape(target));
                    let detail = format!("points to '{found}' instead of '{target}'");
                    differences.push((Fault::Content, detail));
                }
            }
            Kind::Block(major, minor) | Kind::Char(major, minor) => {
                let found = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                if found != (*major, *minor) {
                    let detail =
                        format!("is device {}:{} instead of {major}:{minor}", found.0, found.1);
                    differences.push((Fault::Content, detail));
                }
            }
            Kind::Directory | Kind::Fifo => {}
        }
        self.metadata(entry, &stat, &mut metadata);
        if self.rules.metadata && !metadata.is_empty() {
            differences.push((Fault::Metadata, metadata.join(", ")));
        }
        Ok(())
    }

    fn content(
        &self,
        cursor: &mut Cursor<'_>,
        entry: &Entry,
        stat: &Stat,
    ) -> io::Result<Option<Difference>> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if let Some(expected) = entry.size.filter(|expected| *expected != size) {
            return Ok(Some((Fault::Content, format!("has {size} bytes instead of {expected}"))));
        }
        let Some(expected) = entry.checksum else {
            let is_judged = entry.size == Some(0);
            let detail = "has no checksum in the manifest to be judged by";
            return Ok((!is_judged).then(|| (Fault::Unhashed, detail.into())));
        };
        let file = cursor.open_file(&entry.path)?;
        let counted = Counted { inner: file, bytes: self.bytes, progress: self.progress };
        let (checksum, _) = Digest::of_reader(counted)?;
        let is_same = checksum == expected;
        Ok((!is_same).then(|| (Fault::Content, "has other content".into())))
    }

    fn metadata(&self, entry: &Entry, stat: &Stat, differences: &mut Vec<String>) {
        let mode = stat.st_mode & 0o7777;
        // The mode of a symbolic link means nothing and cannot be set.
        let expected = entry.mode.filter(|_| !matches!(entry.kind, Kind::Symlink(_)));
        if let Some(expected) = expected.filter(|expected| *expected != mode) {
            differences.push(format!("has mode {mode:04o} instead of {expected:04o}"));
        }
        let owner = (stat.st_uid, stat.st_gid);
        let expected = entry.owner.filter(|_| self.rules.owners);
        if let Some((user, group)) = expected.filter(|expected| *expected != owner) {
            let (uid, gid) = owner;
            differences.push(format!("has owner {uid}:{gid} instead of {user}:{group}"));
        }
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let mtime = Time::from_unix(stat.st_mtime, nanoseconds);
        if let Some(expected) = entry.mtime.filter(|expected| *expected != mtime) {
            differences.push(format!("was changed at {mtime} instead of {expected}"));
        }
    }
}

fn stat(cursor: &mut Cursor<'_>, path: &RelPath) -> io::Result<Stat> {
    let (folder, name) = cursor.parent(path)?;
    Ok(statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn type_of(kind: &Kind) -> FileType {
    match kind {
        Kind::File | Kind::Hardlink(_) => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Block(..) => FileType::BlockDevice,
        Kind::Char(..) => FileType::CharacterDevice,
    }
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::BlockDevice => "a block device",
        FileType::CharacterDevice => "a character device",
        FileType::Socket => "a socket",
        FileType::Unknown => "something unknown",
    }
}
