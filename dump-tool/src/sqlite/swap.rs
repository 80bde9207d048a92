//! A database file put in the place of another, together with what SQLite keeps beside it.
//!
//! Four files cannot be renamed at once, so the order makes every moment a sound one:
//!
//! 1. `-wal`, `-shm` and `-journal` get a second name beside the name that the old database will have;
//! 2. the old database is renamed: with them it is complete from here on, and the place is empty;
//! 3. the first names of the side files are removed;
//! 4. the new database gets its name.
//!
//! Each step is on the disk before the next. So a stale `-wal`, which SQLite would play into any
//! database of that name, never lies beside the new file; the old database never lies without its
//! own; and an application that starts in between finds no database, not half of one. What it does
//! then to side files (SQLite removes those of an empty database) costs the second names nothing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bk_manifest::atomic::{self, Existing, NewFile};
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::progress::Progress;
use bk_manifest::time::Time;
use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

use super::{SIDE_FILES, beside};

/// How names of files begin that a restore is still writing.
pub(super) const UNFINISHED: &str = ".bk-tmp-restore-";
/// What stands between a database's name and the time at which it was put aside.
const BEFORE: &[u8] = b".before-";

/// A database's place, which no other restore changes meanwhile.
pub(super) struct Place {
    path: PathBuf,
    folder: PathBuf,
    _lock: File,
}

/// The folder of a path; a bare name is in the current one.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A name that nothing has yet, under which what is at `path` is kept.
fn kept_name(path: &Path, now: Time) -> PathBuf {
    let mut stem = path.as_os_str().as_bytes().to_vec();
    stem.extend_from_slice(BEFORE);
    stem.extend(now.format("%Y%m%d-%H%M%S").into_bytes());
    let stem = PathBuf::from(OsString::from_vec(stem));
    let mut name = stem.clone();
    let mut number = 1;
    while names_of(&name).any(|name| fs::symlink_metadata(name).is_ok()) {
        number += 1;
        name = beside(&stem, &format!("-{number}"));
    }
    name
}

/// A database and all that SQLite may keep beside it.
pub(super) fn names_of(path: &Path) -> impl Iterator<Item = PathBuf> {
    [""].into_iter().chain(SIDE_FILES).map(|suffix| beside(path, suffix))
}

impl Place {
    /// Locks the folder of `path`, and removes what an earlier restore left unfinished in it.
    ///
    /// # Errors
    /// [`Exit::Busy`] if another restore works in that folder; those of the file system.
    pub(super) fn lock(path: &Path, progress: &dyn Progress) -> anyhow::Result<Self> {
        let folder = folder_of(path).to_owned();
        let context = || format!("cannot open the folder '{}'", folder.display());
        let lock = File::open(&folder).with_context(context)?;
        let place = match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Place { path: path.to_owned(), folder, _lock: lock },
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let message = format!("another restore works in '{}'", folder.display());
                return Err(fail(Exit::Busy, message));
            }
            // Some network file systems lock no folders: then nobody can tell what is left over.
            Err(_) => return Ok(Place { path: path.to_owned(), folder, _lock: lock }),
        };
        place.sweep(progress).with_context(|| {
            format!("cannot remove what a restore left in '{}'", place.folder.display())
        })?;
        Ok(place)
    }

    /// Removes unfinished files, and second names of side files whose database was not put aside.
    fn sweep(&self, progress: &dyn Progress) -> io::Result<()> {
        let mine = rustix::process::geteuid().as_raw();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let is_unfinished = entry.file_name().as_bytes().starts_with(UNFINISHED.as_bytes())
                && metadata.is_file()
                && metadata.uid() == mine;
            if is_unfinished || self.is_lone_second_name(&entry.file_name()) {
                fs::remove_file(entry.path())?;
                let path = entry.path();
                progress.note(&format!("removed '{}', left by a restore", path.display()));
            }
        }
        Ok(())
    }

    fn is_lone_second_name(&self, name: &OsStr) -> bool {
        let Some((kept, suffix)) = self.kept_side(name) else { return false };
        let is_lone = fs::symlink_metadata(kept).is_err();
        is_lone && is_same(&beside(&self.path, suffix), &self.folder.join(name))
    }

    /// For the name of a side file that was put aside: the database that it belongs to, and which.
    fn kept_side(&self, name: &OsStr) -> Option<(PathBuf, &'static str)> {
        let own = self.path.file_name()?.as_bytes();
        let rest = name.as_bytes().strip_prefix(own)?.strip_prefix(BEFORE)?;
        let suffix = SIDE_FILES.into_iter().find(|suffix| rest.ends_with(suffix.as_bytes()))?;
        let kept = &name.as_bytes()[..name.len() - suffix.len()];
        Some((self.folder.join(OsStr::from_bytes(kept)), suffix))
    }

    /// Whether a side file was put aside already, with its database, by a restore that was stopped.
    fn is_kept(&self, side: &Path, suffix: &str) -> io::Result<bool> {
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let is_kept = self.kept_side(&name).is_some_and(|(kept, other)| {
                other == suffix
                    && fs::symlink_metadata(kept).is_ok()
                    && is_same(side, &self.folder.join(&name))
            });
            if is_kept {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts a finished database in its place; with `replaces`, after putting aside what is there.
    ///
    /// # Errors
    /// A name that is taken; those of the file system. From the moment at which the old database
    /// has left its place they say where it is.
    pub(super) fn fill(
        &self,
        new: NamedTempFile,
        replaces: bool,
        now: Time,
        progress: &dyn Progress,
    ) -> anyhow::Result<()> {
        let path = &self.path;
        let sides: Vec<(PathBuf, &str)> = SIDE_FILES
            .into_iter()
            .map(|suffix| (beside(path, suffix), suffix))
            .filter(|(side, _)| replaces && fs::symlink_metadata(side).is_ok())
            .collect();
        let has_old = replaces && fs::symlink_metadata(path).is_ok();
        let kept = kept_name(path, now);
        for (side, suffix) in &sides {
            let context = || format!("cannot put '{}' aside", side.display());
            if has_old || !self.is_kept(side, suffix).with_context(context)? {
                let name = beside(&kept, suffix);
                give_second_name(side, &name).with_context(context)?;
                progress.note(&moved(side, &name));
            }
        }
        if has_old {
            let context = || format!("cannot put '{}' aside", path.display());
            self.sync().with_context(context)?;
            fs::rename(path, &kept).with_context(context)?;
            progress.note(&moved(path, &kept));
        }
        self.take(new, &sides).map_err(|error| {
            let message = format!("cannot write '{}': {error}", path.display());
            let failure = Failure::new(Exit::Failed, message);
            if has_old {
                let hint = format!("the old database is whole as '{}'", kept.display());
                return failure.hint(hint).into();
            }
            failure.into()
        })
    }

    /// The steps after the old database has left its place.
    fn take(&self, new: NamedTempFile, sides: &[(PathBuf, &str)]) -> io::Result<()> {
        self.sync()?;
        for (side, _) in sides {
            match fs::remove_file(side) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.sync()?;
        new.persist_noclobber(&self.path).map_err(|error| error.error)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        atomic::sync_folder(&self.folder)
    }
}

fn moved(old: &Path, new: &Path) -> String {
    format!("the old '{}' is now '{}'", old.display(), new.display())
}

/// A hard link, or a copy where the file system has none.
fn give_second_name(file: &Path, name: &Path) -> io::Result<()> {
    match fs::hard_link(file, name) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
        result => return result,
    }
    let mut from = File::open(file)?;
    let mode = from.metadata()?.mode() & 0o777;
    let mut copy = NewFile::create_in(folder_of(name), mode)?;
    io::copy(&mut from, &mut copy)?;
    copy.commit(name, Existing::Keep)
}

/// Whether two names are one file, or two with the same content.
fn is_same(one: &Path, other: &Path) -> bool {
    let (Ok(first), Ok(second)) = (fs::symlink_metadata(one), fs::symlink_metadata(other)) else {
        return false;
    };
    if (first.dev(), first.ino()) == (second.dev(), second.ino()) {
        return true;
    }
    let digest = |path: &Path| Digest::of_reader(File::open(path)?);
    first.len() == second.len()
        && matches!((digest(one), digest(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::progress::Silent;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn put(path: &Path, bytes: &[u8]) {
        File::create(path).unwrap().write_all(bytes).unwrap();
    }

    fn new_file(folder: &Path) -> NamedTempFile {
        let mut new = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder).unwrap();
        new.write_all(b"new").unwrap();
        new
    }

    #[test]
    fn what_a_stopped_restore_left_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // Stopped before the old database was put aside.
        put(&at("app.db"), b"old");
        put(&at("app.db-wal"), b"wal");
        fs::hard_link(at("app.db-wal"), at("app.db.before-20260101-000000-wal")).unwrap();
        put(&at("app.db.before-20250101-000000-wal"), b"of another time");
        put(&at(".bk-tmp-restore-x"), b"half");
        put(&at(".bk-tmp-restore-x-wal"), b"");
        put(&at(".bk-tmp-other"), b"");
        let place = Place::lock(&at("app.db"), &Silent).unwrap();
        let stranger = "app.db.before-20250101-000000-wal";
        assert_eq!(names(folder.path()), [".bk-tmp-other", "app.db", "app.db-wal", stranger]);
        drop(place);
        // Stopped after it.
        let kept = "app.db.before-20260101-000000";
        fs::rename(at("app.db"), at(kept)).unwrap();
        fs::hard_link(at("app.db-wal"), beside(&at(kept), "-wal")).unwrap();
        let place = Place::lock(&at("app.db"), &Silent).unwrap();
        place.fill(new_file(folder.path()), true, Time::now(), &Silent).unwrap();
        assert_eq!(
            names(folder.path()),
            [".bk-tmp-other", "app.db", stranger, kept, "app.db.before-20260101-000000-wal"]
        );
        assert_eq!(fs::read(at("app.db")).unwrap(), b"new");
        assert_eq!(fs::read(at(kept)).unwrap(), b"old");
    }

    #[test]
    fn one_restore_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let place = Place::lock(&path, &Silent).unwrap();
        let error = Place::lock(&path, &Silent).err().unwrap();
        assert_eq!(bk_manifest::exit::classify(&error), Exit::Busy);
        drop(place);
        assert!(Place::lock(&path, &Silent).is_ok());
    }

    #[test]
    fn side_files_without_a_database_are_put_aside_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        put(&beside(&path, "-journal"), b"journal");
        let place = Place::lock(&path, &Silent).unwrap();
        place.fill(new_file(folder.path()), true, Time::now(), &Silent).unwrap();
        let names = names(folder.path());
        assert_eq!((names.len(), names[0].as_str()), (2, "app.db"));
        assert!(names[1].ends_with("-journal"), "{names:?}");
    }

    #[test]
    fn what_came_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let place = Place::lock(&path, &Silent).unwrap();
        put(&path, b"of an application that was started");
        assert!(place.fill(new_file(folder.path()), false, Time::now(), &Silent).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"of an application that was started");
    }
}
