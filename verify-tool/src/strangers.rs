//! What a folder holds that the manifest does not.

use std::os::fd::{AsFd, BorrowedFd};

use bk_manifest::beneath::Root;
use bk_manifest::lookup::Lookup;
use bk_manifest::path::{OWN_FOLDER, RelPath};
use bk_manifest::scan::{FETCH_MARKER, REPLACED_PREFIX};
use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::problem::Names;
use crate::wanted::key;

/// Paths that the manifest has, and the folders above them, outside of memory.
#[derive(Default)]
pub struct Known {
    paths: Lookup,
    last: Option<RelPath>,
}

impl Known {
    /// Takes the next path of the manifest.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub fn add(&mut self, path: &RelPath) -> anyhow::Result<()> {
        self.paths.insert(key(path), 0)?;
        // A manifest may hold a file without the folders above it.
        let mut above = path.parent();
        while let Some(folder) = above {
            if self.last.as_ref().is_some_and(|last| last.below(&folder).is_some()) {
                break;
            }
            self.paths.insert(key(&folder), 0)?;
            above = folder.parent();
        }
        self.last = Some(path.clone());
        Ok(())
    }

    fn has(&self, path: &RelPath) -> anyhow::Result<bool> {
        Ok(self.paths.get(key(path))?.is_some())
    }
}

/// The strangers in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// Their names; what is below a strange folder is not listed.
    pub names: Names,
    /// Folders that could not be looked into.
    pub unread: Names,
}

impl Strangers {
    /// Lists every folder that the manifest has.
    ///
    /// # Errors
    /// Those of the temporary files; being stopped.
    pub fn find(root: &Root, known: &Known) -> anyhow::Result<Self> {
        let mut strangers = Strangers::default();
        strangers.look(root.as_fd(), None, known)?;
        Ok(strangers)
    }

    fn look(
        &mut self,
        folder: BorrowedFd<'_>,
        path: Option<&RelPath>,
        known: &Known,
    ) -> anyhow::Result<()> {
        let Ok(names) = Dir::read_from(folder) else {
            self.cannot_read(path);
            return Ok(());
        };
        for name in names {
            bk_manifest::signal::check()?;
            let Ok(name) = name else {
                self.cannot_read(path);
                return Ok(());
            };
            let name = name.file_name().to_bytes();
            if matches!(name, b"." | b"..") || is_our_own(path, name) {
                continue;
            }
            let child = match path {
                Some(path) => path.join(name)?,
                None => RelPath::new(name)?,
            };
            // Whether or not `.bk` holds dumps, it is no stranger.
            if child.as_bytes() != OWN_FOLDER && !known.has(&child)? {
                self.names.add(&child);
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(folder, name, flags, Mode::empty()) {
                Ok(below) => self.look(below.as_fd(), Some(&child), known)?,
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => {}
                Err(_) => self.unread.add(&child),
            }
        }
        Ok(())
    }

    fn cannot_read(&mut self, path: Option<&RelPath>) {
        if let Some(path) = path {
            self.unread.add(path);
        }
    }
}

/// Whether a name is one that fetch leaves behind.
fn is_our_own(folder: Option<&RelPath>, name: &[u8]) -> bool {
    match folder {
        None => name.starts_with(REPLACED_PREFIX),
        Some(folder) => folder.as_bytes() == OWN_FOLDER && name == FETCH_MARKER.as_bytes(),
    }
}
