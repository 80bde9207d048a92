//! One run at a time: an advisory lock that the system releases when its holder dies.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

use crate::exit::{Exit, Failure};

/// A lock that is held; dropping it releases it.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    ///
    /// `holder` is a line for people: who, on which host, since when. The file stays; only the lock
    /// on it counts, so nothing goes stale.
    ///
    /// # Errors
    /// [`Exit::Busy`] if another process holds it; those of the file system.
    pub fn take(path: &Path, holder: &str) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(path)
            .with_context(|| format!("cannot open the lock '{}'", path.display()))?;
        Lock::hold(file, holder)
    }

    /// Takes the lock on a file that is open for reading and writing.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn hold(mut file: File, holder: &str) -> anyhow::Result<Self> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut who = String::new();
                // Who has it is a courtesy.
                let _ = file.read_to_string(&mut who);
                return Err(Failure::new(
                    Exit::Busy,
                    format!("another run is busy: {}", who.trim()),
                )
                .hint("wait for it, or stop it; the lock goes with its process")
                .into());
            }
            Err(error) => {
                return Err(io::Error::from(error)).context("cannot take the lock");
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{holder}"))
            .context("cannot write the lock")?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::classify;

    #[test]
    fn the_second_taker_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::take(&path, "bk-push on vm1").unwrap();
        let error = Lock::take(&path, "bk-prune").err().unwrap();
        assert_eq!(classify(&error), Exit::Busy);
        assert!(error.to_string().contains("bk-push on vm1"));
        drop(held);
        Lock::take(&path, "bk-prune").unwrap();
    }
}
