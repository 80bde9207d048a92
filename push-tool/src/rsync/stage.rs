//! An object on its way: in memory while it is small, else in a private file that rsync can be given.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bk_manifest::digest::Digest;

use super::private::Private;
use crate::place;

/// How much of an object tells whether a transfer that was cut can go on with it.
const HEAD: u64 = 1 << 20;

/// The object.
pub(super) struct Stage {
    /// Largest that is held in memory, in bytes.
    limit: usize,
    bytes: Vec<u8>,
    file: Option<(Private, File)>,
    length: u64,
}

/// What was staged.
pub(super) enum Staged {
    Bytes(Vec<u8>),
    File(StagedFile),
}

/// A file in a private folder.
pub(super) struct StagedFile {
    folder: Private,
    pub(super) length: u64,
}

impl Stage {
    /// An empty object that is held in memory up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Stage { limit, bytes: Vec::new(), file: None, length: 0 }
    }

    /// The object as it is now.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub(super) fn finish(self) -> io::Result<Staged> {
        match self.file {
            None => Ok(Staged::Bytes(self.bytes)),
            Some((folder, mut file)) => {
                file.flush()?;
                Ok(Staged::File(StagedFile { folder, length: self.length }))
            }
        }
    }
}

impl Write for Stage {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stage = || {
            if self.file.is_none() && self.bytes.len() + bytes.len() > self.limit {
                self.file = Some(StagedFile::create(&self.bytes)?);
                self.bytes = Vec::new();
            }
            match &mut self.file {
                None => self.bytes.extend_from_slice(bytes),
                Some((_, file)) => file.write_all(bytes)?,
            }
            Ok(())
        };
        // A disk that is full here is not the one over there.
        stage().map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("in the folder of temporary files here: {error}"))
        })?;
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StagedFile {
    const NAME: &str = "object";

    fn create(bytes: &[u8]) -> io::Result<(Private, File)> {
        let folder = Private::new()?;
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.path().join(Self::NAME))?;
        file.write_all(bytes)?;
        Ok((folder, file))
    }

    /// A file with these bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn of(bytes: &[u8]) -> io::Result<Self> {
        let (folder, _) = StagedFile::create(bytes)?;
        Ok(StagedFile { folder, length: bytes.len() as u64 })
    }

    /// A name that it shares with what has its length and begins as it does, so most likely with what
    /// was left of itself when a transfer was cut.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn likeness(&self) -> io::Result<String> {
        let mut head = Vec::new();
        File::open(self.folder.path().join(Self::NAME))?.take(HEAD).read_to_end(&mut head)?;
        Ok(format!("{:032x}-{}", Digest::of(&head).key(), self.length))
    }

    /// Puts it below its folder under an object's name; returns where that name begins.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn under(&self, name: &str) -> io::Result<PathBuf> {
        let tree = self.folder.path().join("tree");
        make_folders(&tree, place::parent(name))?;
        std::fs::rename(self.folder.path().join(Self::NAME), tree.join(name))?;
        Ok(tree)
    }
}

/// Makes a folder and those above it, up to a root, which is made too.
///
/// # Errors
/// Those of the file system.
pub(super) fn make_folders(root: &Path, name: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(root.join(name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_large_object_is_in_a_file_of_ours_alone() {
        let mut stage = Stage::new(4);
        stage.write_all(b"1234").unwrap();
        assert!(matches!(stage.finish().unwrap(), Staged::Bytes(bytes) if bytes == b"1234"));
        let mut stage = Stage::new(4);
        stage.write_all(b"123").unwrap();
        stage.write_all(b"45").unwrap();
        let Staged::File(file) = stage.finish().unwrap() else { panic!("it is in memory") };
        assert_eq!(file.length, 5);
        let tree = file.under("a/b/c").unwrap();
        assert_eq!(std::fs::read(tree.join("a/b/c")).unwrap(), b"12345");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(tree.parent().unwrap()), mode(&tree.join("a/b/c"))), (0o700, 0o600));
        let folder = tree.parent().unwrap().to_owned();
        drop(file);
        assert!(!folder.exists());
    }

    #[test]
    fn what_is_alike_has_the_same_name() {
        let name = |bytes: &[u8]| StagedFile::of(bytes).unwrap().likeness().unwrap();
        assert_eq!(name(b"abc"), name(b"abc"));
        assert_ne!(name(b"abc"), name(b"abd"));
        assert_ne!(name(b"abc"), name(b"abcd"));
    }
}
