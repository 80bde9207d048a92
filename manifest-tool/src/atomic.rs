//! Files that appear whole or not at all, and stay after a power cut.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat};
use rustix::io::Errno;
use tempfile::{Builder, NamedTempFile};

/// A file that has no name of its own yet; dropped before [`NewFile::commit`], it is gone.
pub struct NewFile {
    file: NamedTempFile,
    length: u64,
}

/// What to do where the name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it; the commit fails with [`io::ErrorKind::AlreadyExists`].
    Keep,
    /// Put the new file in its place.
    Replace,
}

impl NewFile {
    /// Opens an unfinished file with a random name in `folder`, which must be on the file system of
    /// the final name. It has `mode`, whatever the umask.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create_in(folder: &Path, mode: u32) -> io::Result<Self> {
        let file = Builder::new().prefix(".bk-tmp-").tempfile_in(folder)?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        Ok(NewFile { file, length: 0 })
    }

    /// The open file.
    pub fn as_file(&self) -> &File {
        self.file.as_file()
    }

    /// Gives the file its name, once its bytes are on the disk.
    ///
    /// In this order: length compared, file synced, renamed, folder synced. After a crash at any
    /// point the name is absent (or the old file's), or stands for all of the new one.
    ///
    /// # Errors
    /// A taken name (see [`Existing`]), a full disk, a file shorter than what was written.
    pub fn commit(self, name: &Path, existing: Existing) -> io::Result<()> {
        let file = self.file.as_file();
        if file.metadata()?.len() != self.length {
            return Err(io::Error::other("the file is not as long as what was written"));
        }
        file.sync_all()?;
        match existing {
            Existing::Keep => self.file.persist_noclobber(name),
            Existing::Replace => self.file.persist(name),
        }
        .map_err(|error| error.error)?;
        sync_folder(folder_of(name))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `bytes` to `name`, whole or not at all.
///
/// # Errors
/// As [`NewFile::commit`].
pub fn create(name: &Path, bytes: &[u8], mode: u32, existing: Existing) -> io::Result<()> {
    let mut file = NewFile::create_in(folder_of(name), mode)?;
    file.write_all(bytes)?;
    file.commit(name, existing)
}

/// The folder of a name; a bare name is in the current one.
fn folder_of(name: &Path) -> &Path {
    match name.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Renames something between open folders, to a name that nothing has.
///
/// Where the file system cannot refuse a taken name by itself, as NFS, it is looked for first.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] for a name that is taken; those of the file system.
pub fn rename_to_free(
    (folder, name): (BorrowedFd<'_>, &[u8]),
    (new_folder, new_name): (BorrowedFd<'_>, &[u8]),
) -> io::Result<()> {
    match renameat_with(folder, name, new_folder, new_name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {}
        result => return Ok(result?),
    }
    match statat(new_folder, new_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST.into()),
        Err(Errno::NOENT) => Ok(renameat(folder, name, new_folder, new_name)?),
        Err(error) => Err(error.into()),
    }
}

/// Makes the names in a folder survive a power cut.
///
/// # Errors
/// Those of the file system; one that cannot sync folders is no error.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network and FUSE file systems refuse; they have no order of their own to keep.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// Makes a folder and those above it, each with `mode` whatever the umask, and syncs what changed.
///
/// # Errors
/// Those of the file system, also if something that is no folder has the name.
pub fn create_folders(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(Path::new("/"));
    create_folders(above, mode)?;
    match fs::create_dir(folder) {
        Ok(()) => {
            fs::set_permissions(folder, Permissions::from_mode(mode))?;
            sync_folder(if above.as_os_str().is_empty() { Path::new(".") } else { above })
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("a");
        let mut file = NewFile::create_in(folder.path(), 0o640).unwrap();
        file.write_all(b"new").unwrap();
        assert!(!name.exists());
        file.commit(&name, Existing::Keep).unwrap();
        assert_eq!(name.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        let error = create(&name, b"other", 0o600, Existing::Keep).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&name).unwrap(), b"new");
        create(&name, b"other", 0o600, Existing::Replace).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"other");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_that_is_dropped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = NewFile::create_in(folder.path(), 0o600).unwrap();
        file.write_all(b"x").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_lost_bytes_is_not_committed() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = NewFile::create_in(folder.path(), 0o600).unwrap();
        file.write_all(b"four").unwrap();
        file.as_file().set_len(2).unwrap();
        assert!(file.commit(&folder.path().join("a"), Existing::Keep).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn folders_get_their_mode() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_folders(&deep, 0o700).unwrap();
        create_folders(&deep, 0o700).unwrap();
        assert_eq!(deep.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    }
}
