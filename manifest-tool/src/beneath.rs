//! Opening paths below a root without ever leaving it: no symbolic link on the way is followed,
//! whoever swaps one in meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::path::RelPath;

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open folder that paths are opened below.
pub struct Root {
    folder: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens the folder; the root itself may be reached through links.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Root { folder, path: path.to_owned() })
    }

    /// The same open folder again.
    ///
    /// # Errors
    /// If there are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Root { folder: self.folder.try_clone()?, path: self.path.clone() })
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open folder.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// Opens paths below a root one after the other; remembers the folder it was in last, so that
/// neighbours cost one call.
pub struct Cursor<'a> {
    root: &'a Root,
    current: Option<(Vec<u8>, OwnedFd)>,
}

impl<'a> Cursor<'a> {
    /// Starts at the root.
    pub fn new(root: &'a Root) -> Self {
        Cursor { root, current: None }
    }

    /// The folder with these bytes as its relative path; empty for the root.
    ///
    /// # Errors
    /// If a part is missing, no folder, or a symbolic link (`ELOOP` or `ENOTDIR`).
    pub fn folder(&mut self, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        let is_current = self.current.as_ref().is_some_and(|(current, _)| current == path);
        if !is_current {
            let below = self.current.as_ref().and_then(|(current, folder)| {
                Some((folder.as_fd(), path.strip_prefix(&current[..])?.strip_prefix(b"/")?))
            });
            let (mut folder, rest) = match below {
                Some((folder, rest)) => (folder.try_clone_to_owned()?, rest),
                None => (self.root.as_fd().try_clone_to_owned()?, path),
            };
            for part in rest.split(|byte| *byte == b'/') {
                folder = openat(&folder, part, FOLDER, Mode::empty())?;
            }
            self.current = Some((path.to_vec(), folder));
        }
        match &self.current {
            Some((_, folder)) => Ok(folder.as_fd()),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// The folder that holds a path, and the path's last part.
    ///
    /// # Errors
    /// As [`Cursor::folder`].
    pub fn parent<'p>(&mut self, path: &'p RelPath) -> io::Result<(BorrowedFd<'_>, &'p [u8])> {
        let bytes = path.as_bytes();
        match bytes.iter().rposition(|byte| *byte == b'/') {
            None => Ok((self.root.as_fd(), bytes)),
            Some(slash) => Ok((self.folder(&bytes[..slash])?, &bytes[slash + 1..])),
        }
    }

    /// Forgets the remembered folder, after it may have been renamed or removed.
    pub fn forget(&mut self) {
        self.current = None;
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// As [`Cursor::folder`]; also if the name is not, or no longer, that of a regular file.
    pub fn open_file(&mut self, path: &RelPath) -> io::Result<File> {
        let (folder, name) = self.parent(path)?;
        // NONBLOCK: a named pipe put in its place must not stop us for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(folder, name, flags, Mode::empty())?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file any more"))
        }
    }
}

/// Gives a pipe or a device, which is not to be opened, its mode; never what a link that was put in
/// its place points to.
///
/// # Errors
/// Those of the file system; something else of that name.
pub fn set_node_mode(
    folder: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    mode: u32,
) -> io::Result<()> {
    let node =
        openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&node)?.st_mode) != kind {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "something else is in its place"));
    }
    // The kernel changes no mode through such a descriptor itself.
    let node = format!("/proc/self/fd/{}", node.as_raw_fd());
    Ok(rustix::fs::chmod(node, Mode::from_raw_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn links_are_not_followed_on_the_way_nor_at_the_end() {
        let outside = tempfile::tempdir().unwrap();
        create(&outside.path().join("secret"), b"s");
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        create(&folder.path().join("a/b/file"), b"content");
        symlink(outside.path(), folder.path().join("a/out")).unwrap();
        symlink(outside.path().join("secret"), folder.path().join("a/b/link")).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let mut cursor = Cursor::new(&root);
        let mut text = String::new();
        cursor.open_file(&path("a/b/file")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert!(cursor.open_file(&path("a/out/secret")).is_err());
        assert!(cursor.open_file(&path("a/b/link")).is_err());
        assert!(cursor.open_file(&path("a/b")).is_err());
        assert!(cursor.open_file(&path("a/b/file")).is_ok());
    }

    #[test]
    fn a_mode_is_not_set_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let mode = |name: &str| folder.path().join(name).metadata().unwrap().mode() & 0o7777;
        create(&folder.path().join("victim"), b"");
        symlink("victim", folder.path().join("swapped")).unwrap();
        let fifo = FileType::Fifo;
        for name in ["swapped", "victim"] {
            assert!(set_node_mode(root.as_fd(), name.as_bytes(), fifo, 0o666).is_err(), "{name}");
        }
        assert_eq!(mode("victim"), 0o600);
        rustix::fs::mknodat(root.as_fd(), "pipe", fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        set_node_mode(root.as_fd(), b"pipe", fifo, 0o666).unwrap();
        assert_eq!(mode("pipe"), 0o666);
    }

    fn create(name: &Path, bytes: &[u8]) {
        crate::atomic::create(name, bytes, 0o600, crate::atomic::Existing::Keep).unwrap();
    }
}
