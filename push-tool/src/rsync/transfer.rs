//! rsync itself: what it is told, and what its answers mean.
//!
//! Names of objects never stand among its arguments; it reads them from a file, each relative to the
//! root, and sends them to the other rsync in its own protocol.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bk_manifest::command::{Command, Finished, Program};
use bk_manifest::exit::{Exit, Failure};

use super::fault::Fault;
use super::link::Link;
use super::listing::{self, PARTIAL, UNFINISHED, UNFINISHED_NAME};
use super::private::Private;
use super::settings::{Names, Settings};
use super::stage::{StagedFile, make_folders};
use super::turns::Turns;
use crate::destination::{Created, ErrorKind};
use crate::place;

type Outcome<T> = Result<T, Fault>;

/// How often something is tried where trying again may help.
pub(super) const ATTEMPTS: u32 = 3;
/// Before the second attempt; longer before each one more.
const PAUSE: Duration = Duration::from_secs(1);
/// The first rsync that takes file names apart from the shell's words by itself.
const OLDEST: (u32, u32, u32) = (3, 2, 4);

/// The way to the other rsync.
pub(super) enum Way {
    /// Through ssh.
    Ssh(Arc<Link>),
    /// To a daemon, with its password.
    Daemon { password: Option<String>, patience: Duration },
}

/// rsync with a root at its other end.
pub(super) struct Rsync {
    program: Program,
    way: Way,
    /// What rsync calls the root, with a slash at its end.
    target: String,
    /// What stands before every name: the root below what rsync calls it, with a slash at its end.
    prefix: String,
    /// The root as an argument of the other rsync, where folders below it are named whole.
    root: String,
    place: String,
    names: Names,
    rate: Option<u64>,
    /// Whether the other rsync can be asked to wait for the disk.
    can_sync: AtomicBool,
    turns: Turns,
    next: AtomicU64,
}

impl Rsync {
    /// rsync to a root; nothing is asked of it yet.
    ///
    /// # Errors
    /// No rsync here, or one that is too old.
    pub(super) fn new(
        way: Way,
        target: &str,
        prefix: &str,
        root: &str,
        place: String,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let program = Program::find("rsync", "rsync")?;
        let (said, _) = Command::new(&program).arg("--version").output()?;
        if version(&String::from_utf8_lossy(&said)).is_none_or(|version| version < OLDEST) {
            let (major, minor, patch) = OLDEST;
            let message = format!("rsync here is older than {major}.{minor}.{patch}");
            return Err(Failure::new(Exit::Failed, message)
                .hint("older ones let the other host's shell read file names")
                .into());
        }
        Ok(Rsync {
            program,
            way,
            target: target.trim_end_matches('/').to_owned() + "/",
            prefix: prefix.to_owned(),
            root: root.trim_end_matches('/').to_owned(),
            place,
            names: settings.names.clone(),
            rate: settings.rate,
            can_sync: AtomicBool::new(true),
            turns: Turns::default(),
            next: AtomicU64::new(0),
        })
    }

    /// rsync on the names that it reads from a file, each relative to the root.
    fn command(&self, names: &[&str]) -> Outcome<Command> {
        let mut list = tempfile::tempfile()?;
        for name in names {
            list.write_all(self.named(name).as_bytes())?;
            list.write_all(b"\0")?;
        }
        io::Seek::rewind(&mut list)?;
        let mut command = Command::new(&self.program)
            .named(&format!("rsync {}", self.place))
            .input(list)
            .env("TZ", "UTC")
            // What a user has set there would change what we read, or what the other host's shell does.
            .env_remove("RSYNC_OLD_ARGS")
            .env_remove("RSYNC_PROTECT_ARGS")
            .env_remove("RSYNC_PARTIAL_DIR")
            .env_remove("RSYNC_ICONV")
            .args(["--no-motd", "--files-from=-", "--from0", "--ignore-missing-args"]);
        match &self.way {
            Way::Ssh(link) => {
                link.connect()?;
                command = command.arg("-e").arg(link.for_rsync());
            }
            Way::Daemon { password, patience } => {
                let seconds = patience.as_secs().max(1);
                command = command
                    .arg(format!("--contimeout={seconds}"))
                    .arg(format!("--timeout={}", seconds * 10));
                // Without any it would ask at the terminal.
                let password = password.as_deref().unwrap_or_default();
                command = command.env("RSYNC_PASSWORD", password);
            }
        }
        Ok(command)
    }

    /// What the way there does not do, for people.
    pub(super) fn limits(&self) -> Vec<String> {
        match &self.way {
            Way::Ssh(link) => link.limits(),
            Way::Daemon { .. } => Vec::new(),
        }
    }

    /// How the destination is called in messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A name as rsync is given it; the empty one is the root's.
    fn named(&self, name: &str) -> String {
        match (self.prefix.trim_end_matches('/'), name) {
            ("", "") => "/".to_owned(),
            (root, "") => root.to_owned(),
            _ => format!("{}{name}", self.prefix),
        }
    }

    /// Whether the root is there.
    ///
    /// # Errors
    /// Those of rsync.
    pub(super) fn has_root(&self) -> Outcome<bool> {
        match self.list("", false) {
            Ok(listed) => Ok(listed.bytes().next().transpose()?.is_some()),
            Err(fault) if fault.kind == ErrorKind::NotFound => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    fn fault(&self, finished: &Finished) -> Fault {
        Fault::of(finished, &self.names)
    }

    /// Tries again while that may help, and waits where the other rsync serves another request.
    ///
    /// # Errors
    /// Those of [`retried`].
    pub(super) fn retried<T>(&self, mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<T> {
        self.turns.take(|| retried(&mut attempt))
    }

    /// Lists an object, or all of a folder, in the lines of [`listing::rsync_line`].
    ///
    /// # Errors
    /// Those of rsync, as all of these; [`ErrorKind::NotFound`] if there is no root.
    pub(super) fn list(&self, name: &str, is_deep: bool) -> Outcome<BufReader<File>> {
        let nowhere = Private::new()?;
        let mut command = self.command(&[name])?.args(["--list-only", "--no-h"]);
        if is_deep {
            command = command.arg("-r");
            if self.prefix.is_empty() {
                // At the root of a disk; closed to all but root.
                command = command.arg("--exclude=/lost+found");
            }
        }
        // With a list of names rsync wants to be told where to, though it copies nothing.
        let mut running = command.arg("--").arg(&self.target).arg(nowhere.path()).start()?;
        let spooled = listing::spool_pipe(running.stdout.take())?;
        let finished = running.wait()?;
        match finished.code() {
            // 24: some were gone before they were looked at, by prune or by a commit.
            Some(0 | 24) => Ok(spooled),
            _ => Err(self.fault(&finished)),
        }
    }

    /// Makes the folder of what is unfinished: what [`Rsync::send`] sends begins there.
    pub(super) fn prepare(&self) -> Outcome<()> {
        let folder = Private::new()?;
        make_folders(folder.path(), &self.named(UNFINISHED))?;
        let command = self.command(&[UNFINISHED])?.arg("--chmod=D700").arg("--");
        let (_, finished) = command.arg(folder.path().join("")).arg(&self.target).output()?;
        if finished.is_success() { Ok(()) } else { Err(self.fault(&finished)) }
    }

    /// The name of an object that [`Rsync::list`] has shown.
    pub(super) fn shown<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.prefix)
    }

    /// Sends a file to a name that nothing has. A transfer that is cut goes on where it was.
    pub(super) fn send(&self, file: &StagedFile, name: &str) -> Outcome<Created> {
        let tree = file.under(&self.named(name))?;
        let sent = self.send_from(&tree, name);
        if let Err(fault) = &sent
            && fault.kind == ErrorKind::Full
        {
            // What there is of it would keep the disk full, and prune from making room.
            let left = name.rsplit('/').next().unwrap_or(name);
            let _ = self.retried(|| self.remove(&[&place::join(PARTIAL, left)]));
        }
        sent
    }

    fn send_from(&self, tree: &Path, name: &str) -> Outcome<Created> {
        let mut is_first = true;
        self.retried(|| {
            let mut command = self.command(&[name])?.args([
                "--ignore-existing",
                "--out-format=%i",
                "--chmod=D700,F600",
            ]);
            command = command
                .arg(format!("--temp-dir={}/{UNFINISHED}", self.root))
                .arg(format!("--partial-dir={}/{PARTIAL}", self.root));
            if let Some(rate) = self.rate {
                command = command.arg(format!("--bwlimit={}", rate.div_ceil(1024)));
            }
            let syncs = self.can_sync.load(Ordering::Relaxed);
            if syncs {
                command = command.arg("--fsync");
            }
            let (said, finished) =
                command.arg("--").arg(tree.join("")).arg(&self.target).output()?;
            if !finished.is_success() {
                if syncs
                    && (finished.stderr.contains("--fsync")
                        || finished.stderr.contains("syntax or options"))
                {
                    // An older one; it is asked again without.
                    self.can_sync.store(false, Ordering::Relaxed);
                    return Err(Fault::failure(
                        ErrorKind::Transient,
                        Failure::new(Exit::Failed, finished.message()),
                    ));
                }
                is_first = false;
                return Err(self.fault(&finished));
            }
            let is_new = said.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"<f"));
            // The answer to an earlier attempt may have been lost, and the object is ours.
            if is_new || (!is_first && self.is_same(tree, name)?) {
                Ok(Created::New)
            } else {
                Ok(Created::Taken)
            }
        })
    }

    /// Whether the object of that name has the content of the one in a tree.
    fn is_same(&self, tree: &Path, name: &str) -> Outcome<bool> {
        let command = self.command(&[name])?.args(["--dry-run", "--checksum", "--out-format=%i"]);
        let (said, finished) = command.arg("--").arg(tree.join("")).arg(&self.target).output()?;
        if !finished.is_success() {
            return Err(self.fault(&finished));
        }
        Ok(!said.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"<f")))
    }

    /// Fetches an object as a whole, into a file without a name.
    ///
    /// # Errors
    /// Those of rsync; a disk that is full here, which says nothing of the object.
    pub(super) fn fetch(&self, name: &str) -> Outcome<File> {
        let fetched = self.retried(|| self.fetch_into(&Private::new()?, name));
        // The other rsync writes nothing, so the full disk is ours.
        fetched.map_err(|fault| if fault.is_full() { Fault::no_room_here(&fault) } else { fault })
    }

    fn fetch_into(&self, folder: &Private, name: &str) -> Outcome<File> {
        let room = rustix::fs::statvfs(folder.path()).map_err(io::Error::from)?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        // One that cannot fit is passed over, instead of filling the disk first.
        let command = self.command(&[name])?.args(["--chmod=D700,F600", "--info=skip1"]);
        let command = command.arg(format!("--max-size={free}")).arg("--").arg(&self.target);
        let (said, finished) = command.arg(folder.path().join("")).output()?;
        if !finished.is_success() {
            return Err(self.fault(&finished));
        }
        match File::open(folder.path().join(self.named(name))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_too_large = said.ends_with(b" is over max-size\n");
                // The other rsync sends nothing for what is not there, and we take no links.
                Err(if is_too_large { Fault::larger_than(free) } else { Fault::missing() })
            }
            file => Ok(file?),
        }
    }

    /// Removes objects; one that is not there counts as removed.
    pub(super) fn remove(&self, names: &[&str]) -> Outcome<()> {
        let folder = Private::new()?;
        for name in names {
            // With their folders here, only the files themselves are missing.
            make_folders(folder.path(), place::parent(&self.named(name)))?;
        }
        let command = self
            .command(names)?
            .args(["--dirs", "--existing", "--delete-missing-args", "--"])
            .arg(folder.path().join(""))
            .arg(&self.target);
        let (_, finished) = command.output()?;
        if finished.is_success() { Ok(()) } else { Err(self.fault(&finished)) }
    }

    /// A name for something unfinished that nothing else has.
    pub(super) fn unfinished_name(&self) -> Outcome<String> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(io::Error::from)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(format!("{UNFINISHED_NAME}{:016x}-{number}", u64::from_ne_bytes(random)))
    }
}

/// Tries again, after a pause, while that may help.
///
/// # Errors
/// That of the last attempt; being stopped.
pub(super) fn retried<T>(mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    let mut number = 1;
    loop {
        match attempt() {
            Err(fault) if fault.is_passing() && number < ATTEMPTS => {
                let mut left = PAUSE * number;
                while !left.is_zero() {
                    bk_manifest::signal::check()?;
                    let step = left.min(Duration::from_millis(100));
                    std::thread::sleep(step);
                    left -= step;
                }
                number += 1;
            }
            result => return result,
        }
    }
}

/// The version in the first line that `rsync --version` prints.
fn version(said: &str) -> Option<(u32, u32, u32)> {
    let text = said.lines().next()?.split_once("version ")?.1;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
}
