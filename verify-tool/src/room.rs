//! Where dumps are put together to be checked.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use tempfile::{NamedTempFile, TempDir};

/// A private folder for copies of dumps, and how many bytes may still go into it.
pub(crate) struct Room {
    folder: TempDir,
    free: Mutex<u64>,
}

impl Room {
    /// # Errors
    /// If the folder cannot be made in `temporary`.
    pub(crate) fn new(temporary: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot create a temporary folder in '{}'", temporary.display());
        let folder = tempfile::Builder::new()
            .prefix("bk-verify-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(temporary)
            .with_context(context)?;
        let space =
            rustix::fs::statvfs(folder.path()).map_err(io::Error::from).with_context(context)?;
        let free = Mutex::new(space.f_bavail.saturating_mul(space.f_frsize));
        Ok(Room { folder, free })
    }

    /// Sets bytes aside, if so many are free.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let Ok(mut free) = self.free.lock() else { return false };
        let is_enough = *free >= bytes;
        if is_enough {
            *free -= bytes;
        }
        is_enough
    }

    /// Says that they are free again.
    pub(crate) fn give_back(&self, bytes: u64) {
        if let Ok(mut free) = self.free.lock() {
            *free += bytes;
        }
    }

    /// A file without a name of anybody's choice.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn file(&self) -> anyhow::Result<NamedTempFile> {
        NamedTempFile::new_in(self.folder.path()).context("cannot create a temporary file")
    }

    /// A new folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        tempfile::Builder::new()
            .disable_cleanup(true)
            .tempdir_in(self.folder.path())
            .map(|folder| folder.path().to_owned())
            .context("cannot create a temporary folder")
    }
}
