//! A destination where rsync is all there is: a daemon, or an account that may run nothing else.
//!
//! What rsync cannot do is done as well as it can: a range is read from a copy of the whole object,
//! and a name is taken only as far as nobody else takes it at the same moment.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bk_manifest::command::{Command, Finished, Program};
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::lock::Lock;
use bk_manifest::path::RelPath;
use bk_manifest::time::Time;

use super::fault::Fault;
use super::link::Link;
use super::listing::{self, PARTIAL, UNFINISHED, UNFINISHED_NAME, is_object, is_unfinished};
use super::settings::{Names, Settings};
use super::stage::{Stage, Staged, StagedFile, make_folders, private_folder};
use crate::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};
use crate::place;

/// How often something is tried where trying again may help.
const ATTEMPTS: u32 = 3;
/// Before the second attempt; longer before each one more.
const PAUSE: Duration = Duration::from_secs(1);
/// Objects kept for more ranges: a volume is read in many.
const KEPT: usize = 2;
/// The first rsync that takes file names apart from the shell's words by itself.
const OLDEST: (u32, u32, u32) = (3, 2, 4);

/// The way to the other rsync.
pub(super) enum Way {
    /// Through ssh.
    Ssh(Arc<Link>),
    /// To a daemon, with its password.
    Daemon { password: Option<String>, patience: Duration },
}

/// A destination by rsync alone.
pub(super) struct Alone {
    program: Program,
    way: Way,
    /// What rsync calls the root, with a slash at its end.
    target: String,
    /// The root as an argument of the other rsync, where folders below it are named whole.
    root: String,
    place: String,
    names: Names,
    rate: Option<u64>,
    /// Whether the other rsync can be asked to wait for the disk.
    can_sync: AtomicBool,
    is_prepared: Mutex<bool>,
    /// One at a time takes names, which rsync does in two steps.
    taking: Mutex<()>,
    kept: Mutex<Vec<(String, Arc<File>)>>,
    next: AtomicU64,
}

impl Alone {
    /// The destination at a root; nothing is asked of it yet.
    ///
    /// # Errors
    /// No rsync here, or one that is too old.
    pub(super) fn new(
        way: Way,
        target: &str,
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
        Ok(Alone {
            program,
            way,
            target: target.trim_end_matches('/').to_owned() + "/",
            root: root.trim_end_matches('/').to_owned(),
            place,
            names: settings.names.clone(),
            rate: settings.rate,
            can_sync: AtomicBool::new(true),
            is_prepared: Mutex::new(false),
            taking: Mutex::new(()),
            kept: Mutex::new(Vec::new()),
            next: AtomicU64::new(0),
        })
    }

    /// rsync on the names that it reads from a file, each relative to the root.
    fn command(&self, names: &[&str]) -> std::result::Result<Command, Fault> {
        let mut list = tempfile::tempfile()?;
        for name in names {
            list.write_all(name.as_bytes())?;
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
            .env_remove("RSYNC_PASSWORD")
            .args(["--no-motd", "--files-from=-", "--from0", "--ignore-missing-args"]);
        match &self.way {
            Way::Ssh(link) => command = command.arg("-e").arg(link.for_rsync()),
            Way::Daemon { password, patience } => {
                let seconds = patience.as_secs().max(1);
                command = command
                    .arg(format!("--contimeout={seconds}"))
                    .arg(format!("--timeout={}", seconds * 10));
                if let Some(password) = password {
                    command = command.env("RSYNC_PASSWORD", password);
                }
            }
        }
        Ok(command)
    }

    /// How the destination is called in messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn fault(&self, finished: &Finished) -> Fault {
        Fault::of(finished, &self.names)
    }

    /// Lists what is below names, folders to their last file.
    fn spool(&self, name: &str, is_deep: bool) -> std::result::Result<BufReader<File>, Fault> {
        let nowhere = private_folder()?;
        let mut command = self.command(&[name])?.args(["--list-only", "--no-h"]);
        if is_deep {
            command = command.args(["-r", "--exclude=/lost+found"]);
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

    fn list_below(
        &self,
        folder: &str,
    ) -> std::result::Result<impl Iterator<Item = io::Result<ObjectInfo>> + use<>, Fault> {
        let name = if folder.is_empty() { "/" } else { folder };
        let spooled = retried(|| self.spool(name, true))?;
        Ok(listing::objects(spooled, b'\n', listing::rsync_line))
    }

    /// Makes the folder of what is unfinished: rsync's own begin in it.
    fn prepare(&self) -> std::result::Result<(), Fault> {
        let mut is_prepared = locked(&self.is_prepared);
        if !*is_prepared {
            let folder = private_folder()?;
            make_folders(folder.path(), UNFINISHED)?;
            let command = self.command(&[UNFINISHED])?.arg("--chmod=D700").arg("--");
            let (_, finished) = command.arg(folder.path().join("")).arg(&self.target).output()?;
            if !finished.is_success() {
                return Err(self.fault(&finished));
            }
            *is_prepared = true;
        }
        Ok(())
    }

    /// Sends a file to a name that nothing has. A transfer that is cut goes on where it was.
    ///
    /// # Errors
    /// Those of rsync.
    pub(super) fn send(
        &self,
        file: &StagedFile,
        name: &str,
    ) -> std::result::Result<Created, Fault> {
        retried(|| self.prepare())?;
        let tree = file.under(name)?;
        let mut is_first = true;
        retried(|| {
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
                if syncs && finished.stderr.contains("--fsync") {
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
            if is_new || (!is_first && self.is_same(&tree, name)?) {
                Ok(Created::New)
            } else {
                Ok(Created::Taken)
            }
        })
    }

    /// Whether the object of that name has the content of the one in a tree.
    fn is_same(&self, tree: &std::path::Path, name: &str) -> std::result::Result<bool, Fault> {
        let command = self.command(&[name])?.args(["--dry-run", "--checksum", "--out-format=%i"]);
        let (said, finished) = command.arg("--").arg(tree.join("")).arg(&self.target).output()?;
        if !finished.is_success() {
            return Err(self.fault(&finished));
        }
        Ok(!said.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"<f")))
    }

    /// Fetches an object as a whole, into a file without a name.
    fn fetch(&self, name: &str) -> std::result::Result<File, Fault> {
        let folder = private_folder()?;
        let command = self.command(&[name])?.arg("--chmod=D700,F600").arg("--");
        let (_, finished) = command.arg(&self.target).arg(folder.path().join("")).output()?;
        if !finished.is_success() {
            return Err(self.fault(&finished));
        }
        match File::open(folder.path().join(name)) {
            // The other rsync sends nothing for what is not there, and we take no links.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::missing()),
            file => Ok(file?),
        }
    }

    /// A copy of an object, kept for the ranges that are asked for next.
    fn kept(&self, name: &str) -> std::result::Result<Arc<File>, Fault> {
        let mut kept = locked(&self.kept);
        if let Some(index) = kept.iter().position(|(known, _)| known == name) {
            let found = kept.remove(index);
            let file = Arc::clone(&found.1);
            kept.push(found);
            return Ok(file);
        }
        let file = Arc::new(retried(|| self.fetch(name))?);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((name.to_owned(), Arc::clone(&file)));
        Ok(file)
    }

    fn remove(&self, names: &[&str]) -> std::result::Result<(), Fault> {
        let folder = private_folder()?;
        for name in names {
            // With their folders here, only the files themselves are missing.
            make_folders(folder.path(), place::parent(name))?;
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
    pub(super) fn unfinished_name(&self) -> std::result::Result<String, Fault> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(io::Error::from)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(format!("{UNFINISHED_NAME}{:016x}-{number}", u64::from_ne_bytes(random)))
    }

    /// Removes what dead uploads left, by a listing and a removal; returns how many.
    pub(super) fn sweep_by(
        destination: &dyn Destination,
        left: impl Iterator<Item = Result<ObjectInfo>>,
        before: Time,
    ) -> Result<u64> {
        let mut names = Vec::new();
        for object in left {
            let object = object?;
            if is_unfinished(&object.name) && object.modified < before {
                names.push(object.name);
            }
        }
        match destination.delete(&names).into_iter().next() {
            Some(error) => Err(error),
            None => Ok(names.len() as u64),
        }
    }
}

/// An object's name that may be used over there.
///
/// # Errors
/// One that leads out, or has control characters: no object of ours has.
pub(super) fn checked(name: &str) -> std::result::Result<RelPath, Fault> {
    let refused = |why: String| Fault::failure(ErrorKind::Other, Failure::new(Exit::Failed, why));
    if name.chars().any(char::is_control) {
        return Err(refused("name with control characters".into()));
    }
    RelPath::new(name).map_err(|error| refused(error.to_string()))
}

/// Tries again, after a pause, while that may help.
///
/// # Errors
/// That of the last attempt; being stopped.
pub(super) fn retried<T>(
    mut attempt: impl FnMut() -> std::result::Result<T, Fault>,
) -> std::result::Result<T, Fault> {
    let mut number = 1;
    loop {
        match attempt() {
            Err(fault) if fault.kind == ErrorKind::Transient && number < ATTEMPTS => {
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

/// What a lock guards is whole between any two of its uses, even if a thread died meanwhile.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The version in the first line that `rsync --version` prints.
fn version(said: &str) -> Option<(u32, u32, u32)> {
    let text = said.lines().next()?.split_once("version ")?.1;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
}

impl Destination for Alone {
    fn describe(&self) -> String {
        self.place.clone()
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = match &self.way {
            Way::Ssh(link) => link.limits(),
            Way::Daemon { .. } => Vec::new(),
        };
        limits
            .push("no shell there: whole objects are fetched, and only one host may write".into());
        limits
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        let fail = |fault: Fault| fault.on("list", folder, &self.place);
        if !folder.is_empty() {
            checked(folder).map_err(fail)?;
        }
        let found = match self.list_below(folder) {
            // No root, no object.
            Err(fault) if fault.kind == ErrorKind::NotFound => {
                return Ok(Box::new(std::iter::empty()));
            }
            found => found.map_err(fail)?,
        };
        let place = self.place.clone();
        let found = found
            .map(move |object| object.map_err(|error| Fault::from(error).on("list", "", &place)));
        Ok(Box::new(
            found.filter(|object| object.as_ref().map_or(true, |object| is_object(&object.name))),
        ))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        let stat = || -> std::result::Result<Option<ObjectInfo>, Fault> {
            checked(name)?;
            let spooled = match retried(|| self.spool(name, false)) {
                Err(fault) if fault.kind == ErrorKind::NotFound => return Ok(None),
                spooled => spooled?,
            };
            for object in listing::objects(spooled, b'\n', listing::rsync_line) {
                let object = object?;
                if object.name == name {
                    return Ok(Some(object));
                }
            }
            Ok(None)
        };
        stat().map_err(|fault| fault.on("look at", name, &self.place))
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        let open = || -> std::result::Result<Box<dyn Read + Send>, Fault> {
            checked(name)?;
            match range {
                None => Ok(Box::new(retried(|| self.fetch(name))?)),
                Some(Range { start, end }) => {
                    Ok(Box::new(Part { file: self.kept(name)?, place: start, end }))
                }
            }
        };
        open().map_err(|fault| fault.on("read", name, &self.place))
    }

    fn put(&self, name: &str, _: u64) -> Result<Box<dyn Upload + '_>> {
        checked(name).map_err(|fault| fault.on("store", name, &self.place))?;
        Ok(Box::new(AloneUpload { alone: self, name: name.to_owned(), stage: Stage::new(0) }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        let create = || -> std::result::Result<Created, Fault> {
            checked(name)?;
            let file = StagedFile::of(bytes)?;
            let _taking = locked(&self.taking);
            self.send(&file, name)
        };
        create().map_err(|fault| fault.on("store", name, &self.place))
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        let mut failed = Vec::new();
        let mut wanted = Vec::new();
        for name in names {
            match checked(name) {
                Ok(_) => wanted.push(name.as_str()),
                Err(fault) => failed.push(fault.on("remove", name, &self.place)),
            }
        }
        locked(&self.kept).retain(|(name, _)| !wanted.contains(&name.as_str()));
        if wanted.is_empty() {
            return failed;
        }
        if let Err(fault) = retried(|| self.remove(&wanted)) {
            let fail = |name: &&str| fault.again().on("remove", name, &self.place);
            failed.extend(wanted.iter().map(fail));
        }
        failed
    }

    fn now(&self) -> Result<Time> {
        let probe = || -> std::result::Result<String, Fault> {
            let name = place::join(UNFINISHED, &self.unfinished_name()?);
            self.send(&StagedFile::of(b"\n")?, &name)?;
            Ok(name)
        };
        let fail = |fault: Fault| fault.on("read the clock of", "", &self.place);
        let name = probe().map_err(fail)?;
        let stored = self.stat(&name)?;
        // What stays is swept.
        self.delete(&[name]);
        match stored {
            Some(object) => Ok(object.modified),
            None => Err(fail(io::Error::other("what was just stored is not there").into())),
        }
    }

    fn sweep(&self, before: Time) -> Result<u64> {
        let fail = |fault: Fault| fault.on("sweep", UNFINISHED, &self.place);
        let left = self.list_below(UNFINISHED).map_err(fail)?;
        Alone::sweep_by(self, left.map(|object| object.map_err(|error| fail(error.into()))), before)
    }

    fn lock(&self, _: &str, _: &str) -> anyhow::Result<Option<Lock>> {
        Ok(None)
    }
}

/// A range of a kept copy.
struct Part {
    file: Arc<File>,
    place: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.place)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let (buffer, _) = buffer.split_at_mut(length);
        let read = self.file.read_at(buffer, self.place)?;
        self.place += read as u64;
        Ok(read)
    }
}

struct AloneUpload<'a> {
    alone: &'a Alone,
    name: String,
    stage: Stage,
}

impl Write for AloneUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stage.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stage.flush()
    }
}

impl Upload for AloneUpload<'_> {
    fn commit(self: Box<Self>) -> Result<()> {
        let AloneUpload { alone, name, stage } = *self;
        let store = || -> std::result::Result<Created, Fault> {
            match stage.finish()? {
                Staged::Bytes(bytes) => alone.send(&StagedFile::of(&bytes)?, &name),
                Staged::File(file) => alone.send(&file, &name),
            }
        };
        let fault = match store() {
            Ok(Created::New) => return Ok(()),
            Ok(Created::Taken) => Fault::taken(),
            Err(fault) => fault,
        };
        Err(fault.on("store", &name, &alone.place))
    }
}
