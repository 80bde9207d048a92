//! Who has the files of a database open.
//!
//! They are only looked at. An exclusive lock taken through SQLite would tell too, but it writes: it
//! makes a `-shm` file, replays a `-wal` or a journal that a crash left, and on closing moves the
//! `-wal` into the database and removes it. So the kernel is asked instead: for open files through
//! `/proc`, and for the locks that SQLite takes with `F_GETLK`, which takes none itself.
//!
//! What is seen: as root every process of this host, in containers too (one that runs inside a
//! container sees that container's only). As another user the files of one's own processes, and
//! locks: in WAL mode every open connection holds one, in other modes only while it reads or writes.
//! Not seen are other hosts on a network file system, but for their locks.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::process::{Flock, FlockType, fcntl_getlk};

/// How many are named.
const NAMED: usize = 3;

/// The processes that have one of some files open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holders {
    /// Their names by their numbers; 0 for those that only the kernel knows of.
    processes: BTreeMap<u32, String>,
}

impl Holders {
    /// Looks for processes, other than this one, that have one of `files` open.
    pub(super) fn of(files: &[PathBuf]) -> Self {
        let mut holders = Holders::default();
        let nodes: Vec<(u64, u64)> = files
            .iter()
            .filter_map(|file| fs::metadata(file).ok())
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .collect();
        if nodes.is_empty() {
            return holders;
        }
        for process in processes().filter(|process| *process != std::process::id()) {
            if has_open(process, &nodes) {
                holders.add(process);
            }
        }
        for file in files {
            // A process whose files may not be looked at is told by its lock.
            let lock = File::open(file)
                .ok()
                .and_then(|file| fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()?);
            if let Some(lock) = lock {
                holders.add(lock.pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs()));
            }
        }
        holders
    }

    fn add(&mut self, process: u32) {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        self.processes.insert(process, name.trim_end().escape_debug().to_string());
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (process, name)) in self.processes.iter().take(NAMED).enumerate() {
            if number > 0 {
                write!(f, ", ")?;
            }
            match (process, name.as_str()) {
                (0, _) => write!(f, "a process that cannot be seen from here")?,
                (process, "") => write!(f, "process {process}")?,
                (process, name) => write!(f, "process {process} ({name})")?,
            }
        }
        match self.processes.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Numbers of all processes that can be seen.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn has_open(process: u32, nodes: &[(u64, u64)]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        // Follows the kernel's own link: to the file itself, whatever its name is by now.
        fs::metadata(descriptor.path())
            .is_ok_and(|metadata| nodes.contains(&(metadata.dev(), metadata.ino())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process that has its standard input open, under a name of its own.
    fn reader(file: &std::path::Path) -> Child {
        Command::new("sleep").arg("600").stdin(File::open(file).unwrap()).spawn().unwrap()
    }

    #[test]
    fn others_are_named_and_this_process_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        File::create(&one).unwrap();
        File::create(&two).unwrap();
        let _own = File::open(&one).unwrap();
        let files = [one.clone(), two.clone(), folder.path().join("absent")];
        assert!(Holders::of(&files).is_empty());
        let mut child = reader(&two);
        let holders = Holders::of(&files);
        assert_eq!(holders.to_string(), format!("process {} (sleep)", child.id()));
        assert!(Holders::of(&files[..1]).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Holders::of(&files).is_empty());
    }

    #[test]
    fn a_lock_is_seen_without_proc() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let script = "import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('PRAGMA journal_mode = WAL')
database.execute('CREATE TABLE t (a)')
print(flush=True)
sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let file = File::open(&path).unwrap();
        let lock = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).unwrap().unwrap();
        assert_eq!(lock.pid.unwrap().as_raw_nonzero().get().unsigned_abs(), child.id());
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn many_are_counted_and_the_unseen_said() {
        let holders = |list: &[(u32, &str)]| Holders {
            processes: list.iter().map(|(id, name)| (*id, (*name).to_owned())).collect(),
        };
        assert_eq!(holders(&[(0, "")]).to_string(), "a process that cannot be seen from here");
        assert_eq!(
            holders(&[(7, "app"), (8, ""), (9, "x"), (10, "y"), (11, "z")]).to_string(),
            "process 7 (app), process 8, process 9 (x) and 2 more"
        );
    }
}
