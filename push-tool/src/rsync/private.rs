//! Folders for what is on its way, which only we can look into.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Once;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

/// How the names of such folders begin.
const PREFIX: &str = "bk-private-";
/// For how long the folder of a process that was killed stays, in seconds: one that was just made is
/// not locked yet.
const YOUNG: i64 = 3600;

/// Such a folder, gone when dropped. While its process lives it is locked.
pub(super) struct Private {
    folder: TempDir,
    _lock: File,
}

impl Private {
    /// Makes one, and sweeps those whose process was killed.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn new() -> io::Result<Self> {
        static SWEPT: Once = Once::new();
        let private = Private::below(&std::env::temp_dir())?;
        SWEPT.call_once(|| private.sweep());
        Ok(private)
    }

    /// The same in another folder than that of temporary files.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn new_in(parent: &Path) -> io::Result<Self> {
        let private = Private::below(parent)?;
        private.sweep();
        Ok(private)
    }

    fn below(parent: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).permissions(Permissions::from_mode(0o700));
        let folder = builder.tempdir_in(parent)?;
        let lock = File::open(folder.path())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Private { folder, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Sweeps beside it. It is for the space alone; the next run tries again.
    fn sweep(&self) {
        let _ = self.path().parent().map_or(Ok(()), |parent| self.sweep_in(parent));
    }

    fn sweep_in(&self, parent: &Path) -> io::Result<()> {
        let own = self.path().metadata()?;
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            let is_named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            if !is_named || !entry.file_type()?.is_dir() {
                continue;
            }
            // Another may be sweeping, too.
            let Ok(folder) = File::open(entry.path()) else { continue };
            let metadata = folder.metadata()?;
            if metadata.uid() == own.uid()
                && metadata.mtime() < own.mtime() - YOUNG
                && flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_killed_process_left_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let long_ago = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        };
        let living = Private::below(parent.path()).unwrap();
        for (name, is_old) in
            [("bk-private-dead", true), ("bk-private-young", false), ("stranger", true)]
        {
            fs::create_dir(parent.path().join(name)).unwrap();
            File::create(parent.path().join(name).join("object")).unwrap();
            if is_old {
                let folder = File::open(parent.path().join(name)).unwrap();
                rustix::fs::futimens(&folder, &long_ago).unwrap();
            }
        }
        rustix::fs::futimens(File::open(living.path()).unwrap(), &long_ago).unwrap();
        Private::below(parent.path()).unwrap().sweep();
        for (name, stays) in
            [("bk-private-dead", false), ("bk-private-young", true), ("stranger", true)]
        {
            assert_eq!(parent.path().join(name).exists(), stays, "{name}");
        }
        assert!(living.path().exists());
    }
}
