//! A destination on a host that gives us a shell: ranges are read there, a name is taken by a link, and
//! large objects go by rsync.

mod reader;

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::lock::Lock;
use bk_manifest::time::Time;

use self::reader::FarReader;
use super::alone::{AT_ONCE, Alone, checked, sweep};
use super::fault::Fault;
use super::link::{Link, Reply};
use super::listing::{self, Record, UNFINISHED, is_object};
use super::scripts;
use super::stage::{Stage, Staged, StagedFile};
use super::transfer::retried;
use crate::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};
use crate::place;

/// Largest object that goes through the shell, in one step; larger ones can be interrupted and go on.
const SMALL: usize = 1 << 20;

type Outcome<T> = std::result::Result<T, Fault>;

/// What a host offers.
pub(super) struct Offer {
    /// The login's own folder, if it can be entered.
    pub(super) home: Option<String>,
    /// Whether `find` prints times to the nanosecond.
    has_times: bool,
    has_sha256sum: bool,
}

/// Asks what the host offers; `None` if it gives no shell, or not the programs that we need.
///
/// # Errors
/// Those of ssh; login scripts that print something; no rsync there.
pub(super) fn probe(link: &Link) -> Outcome<Option<Offer>> {
    let mut reply = match link.run(scripts::PROBE, &[], b"") {
        Ok(reply) => reply,
        // ssh itself failed, or login scripts print.
        Err(fault) if fault.kind == ErrorKind::Transient || fault.is_of_host() => {
            return Err(fault);
        }
        Err(_) => return Ok(None),
    };
    let mut said = String::new();
    (&mut reply.output).take(64 << 10).read_to_string(&mut said)?;
    link.end(reply)?;
    let mut lines = said.lines();
    let home = lines.next().filter(|home| home.starts_with('/')).map(str::to_owned);
    let has = |word: &str| said.lines().skip(1).any(|line| line == word);
    if !has("end") || said.lines().any(|line| line.starts_with("no ")) {
        return Ok(None);
    }
    if !has("rsync") {
        return Err(Fault::failure(
            ErrorKind::Other,
            Failure::new(Exit::NoDestination, format!("there is no rsync at '{}'", link.host()))
                .hint("install it there; it must be on the PATH of a session without terminal"),
        ));
    }
    Ok(Some(Offer { home, has_times: has("times"), has_sha256sum: has("sha256sum") }))
}

/// A destination on a host with a shell.
pub(super) struct Far {
    link: Arc<Link>,
    /// The folder as the shell takes it: absolute.
    root: String,
    offer: Offer,
    alone: Alone,
}

/// What a script said, with its output and whether the root is there.
enum Said {
    /// The destination's root is not there.
    Gone,
    Missing,
    Taken,
    Lost,
    Done(Reply),
}

impl Far {
    /// The destination in a folder there.
    pub(super) fn new(link: Arc<Link>, root: String, offer: Offer, alone: Alone) -> Self {
        Far { link, root, offer, alone }
    }

    fn said(&self, reply: Reply) -> Outcome<Said> {
        let said = match reply.word.as_str() {
            "ok" => return Ok(Said::Done(reply)),
            "gone" => Said::Gone,
            "missing" => Said::Missing,
            "taken" => Said::Taken,
            "lost" => Said::Lost,
            word => {
                let word = bk_manifest::path::escape(word.as_bytes());
                return Err(io::Error::other(format!("unexpected answer '{word}'")).into());
            }
        };
        self.link.end(reply)?;
        Ok(said)
    }

    fn run(&self, script: &str, lines: &[&str], bytes: &[u8]) -> Outcome<Said> {
        let lines: Vec<&str> = [self.root.as_str()].iter().chain(lines).copied().collect();
        self.said(self.link.run(script, &lines, bytes)?)
    }

    /// Runs a script and returns all that it prints, up to a MiB.
    fn ask(&self, script: &str, lines: &[&str]) -> Outcome<Option<Vec<u8>>> {
        match self.run(script, lines, b"")? {
            Said::Done(mut reply) => {
                let mut output = Vec::new();
                (&mut reply.output).take(1 << 20).read_to_end(&mut output)?;
                self.link.end(reply)?;
                Ok(Some(output))
            }
            _ => Ok(None),
        }
    }

    fn list_below(
        &self,
        folder: &str,
    ) -> Outcome<Option<impl Iterator<Item = io::Result<ObjectInfo>> + use<>>> {
        let Said::Done(mut reply) = self.run(scripts::LIST, &[folder], b"")? else {
            return Ok(None);
        };
        let spooled = listing::spool(&mut reply.output)?;
        self.link.end(reply)?;
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let found = listing::objects(spooled, 0, listing::find_record);
        Ok(Some(found.map(move |object| {
            object.map(|object| ObjectInfo { name: format!("{prefix}{}", object.name), ..object })
        })))
    }

    /// Stores a small object in one step.
    fn store_small(&self, name: &str, bytes: &[u8]) -> Outcome<Created> {
        // The marker is what makes a folder a destination, so the folder may be made for it.
        let root_too = if name == place::MARKER { "yes" } else { "no" };
        let size = bytes.len().to_string();
        let mut is_first = true;
        retried(|| {
            // Never the same name twice: an attempt that seemed to fail may have linked it.
            let unfinished = self.alone.rsync.unfinished_name()?;
            let lines = [place::parent(name), last(name), &unfinished, &size, root_too];
            let said = self.run(scripts::CREATE, &lines, bytes);
            let was_first = std::mem::take(&mut is_first);
            match said? {
                Said::Done(reply) => self.link.end(reply).map(|()| Created::New),
                // The answer to an earlier attempt may have been lost.
                Said::Taken if !was_first && self.holds(name, bytes)? => Ok(Created::New),
                Said::Taken => Ok(Created::Taken),
                _ => Err(Fault::no_root()),
            }
        })
    }

    /// Begins to read an object, or a range of it; `None` if there is none.
    fn begin_read(&self, name: &str, from: u64, end: Option<u64>) -> Outcome<Option<Reply>> {
        // Over there the first byte is 1.
        let first = from.saturating_add(1).to_string();
        let count = end.map_or("all".to_owned(), |end| end.saturating_sub(from).to_string());
        match self.run(scripts::READ, &[place::parent(name), last(name), &first, &count], b"")? {
            Said::Done(reply) => Ok(Some(reply)),
            _ => Ok(None),
        }
    }

    fn holds(&self, name: &str, bytes: &[u8]) -> Outcome<bool> {
        let mut stored = Vec::new();
        if let Some(mut reply) = self.begin_read(name, 0, None)? {
            (&mut reply.output).take(bytes.len() as u64 + 1).read_to_end(&mut stored)?;
        }
        Ok(stored == bytes)
    }

    /// Stores a large object: sent by rsync beside, then given its name.
    fn store_large(&self, file: &StagedFile, name: &str) -> Outcome<Created> {
        let folder = place::join(UNFINISHED, &self.alone.rsync.unfinished_name()?);
        // What a transfer that was cut has left is found by that name, also by the next push.
        let unfinished = place::join(&folder, &file.likeness()?);
        retried(|| self.ask(scripts::PREPARE, &[]))?.ok_or_else(Fault::no_root)?;
        self.alone.rsync.send(file, &unfinished)?;
        let size = file.length.to_string();
        let lines = [place::parent(name), last(name), &unfinished, &size];
        let mut is_first = true;
        retried(|| {
            let said = self.run(scripts::FINISH, &lines, b"");
            let was_first = std::mem::take(&mut is_first);
            match said? {
                Said::Done(reply) => self.link.end(reply).map(|()| Created::New),
                Said::Taken => Ok(Created::Taken),
                // An earlier attempt has finished, and its answer was lost.
                Said::Lost if !was_first => match self.look_at(name)? {
                    Some(object) if object.size == file.length => Ok(Created::New),
                    _ => Err(Fault::missing()),
                },
                Said::Lost => Err(Fault::missing()),
                _ => Err(Fault::no_root()),
            }
        })
    }

    fn place(&self) -> &str {
        self.alone.rsync.place()
    }

    fn look_at(&self, name: &str) -> Outcome<Option<ObjectInfo>> {
        let said = retried(|| self.ask(scripts::STAT, &[place::parent(name), last(name)]))?;
        let Some(record) = said.as_deref().and_then(|said| said.strip_suffix(b"\0")) else {
            return Ok(None);
        };
        match listing::find_record(record) {
            Record::Object(object) => Ok(Some(ObjectInfo { name: name.to_owned(), ..object })),
            _ => Err(io::Error::other("unexpected size or time").into()),
        }
    }

    /// Removes what a file names, in the lines of [`scripts::DELETE`]; returns the causes by number.
    fn remove(&self, lines: &[u8]) -> Outcome<Vec<(usize, String)>> {
        // Not through a pipe of ours: nobody reads on while what failed is being printed.
        let mut file = tempfile::tempfile()?;
        file.write_all(lines)?;
        io::Seek::rewind(&mut file)?;
        let reply = self.link.run_on_file(scripts::DELETE, &[&self.root], file)?;
        let Said::Done(mut reply) = self.said(reply)? else { return Ok(Vec::new()) };
        let mut output = String::new();
        (&mut reply.output).take(16 << 20).read_to_string(&mut output)?;
        self.link.end(reply)?;
        let parse = |line: &str| {
            let (number, cause) = line.split_once(' ')?;
            Some((number.parse::<usize>().ok()?.checked_sub(1)?, cause.to_owned()))
        };
        Ok(output.lines().filter_map(parse).collect())
    }
}

fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

impl Destination for Far {
    fn describe(&self) -> String {
        self.alone.describe()
    }

    fn at_once(&self) -> usize {
        AT_ONCE
    }

    fn limits(&self) -> Vec<String> {
        self.link.limits()
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        if !self.offer.has_times {
            return self.alone.list(folder);
        }
        let fail = |fault: Fault| fault.on("list", folder, self.place());
        if !folder.is_empty() {
            checked(folder).map_err(fail)?;
        }
        let Some(found) = retried(|| self.list_below(folder)).map_err(fail)? else {
            return Ok(Box::new(std::iter::empty()));
        };
        let found = found
            .map(|object| object.map_err(|error| Fault::from(error).on("list", "", self.place())));
        Ok(Box::new(
            found.filter(|object| object.as_ref().map_or(true, |object| is_object(&object.name))),
        ))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        if !self.offer.has_times {
            return self.alone.stat(name);
        }
        let stat = || checked(name).and_then(|_| self.look_at(name));
        stat().map_err(|fault| fault.on("look at", name, self.place()))
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        let open = || checked(name).and_then(|_| FarReader::open(self, name, range));
        match open() {
            Ok(reader) => Ok(Box::new(reader)),
            Err(fault) => Err(fault.on("read", name, self.place())),
        }
    }

    fn put(&self, name: &str, _: u64) -> Result<Box<dyn Upload + '_>> {
        checked(name).map_err(|fault| fault.on("store", name, self.place()))?;
        Ok(Box::new(FarUpload { far: self, name: name.to_owned(), stage: Stage::new(SMALL) }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        let create = || checked(name).and_then(|_| self.store_small(name, bytes));
        create().map_err(|fault| fault.on("store", name, self.place()))
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        let mut failed = Vec::new();
        let mut wanted: Vec<&str> = Vec::new();
        for name in names {
            match checked(name) {
                Ok(_) => wanted.push(name),
                Err(fault) => failed.push(fault.on("remove", name, self.place())),
            }
        }
        if wanted.is_empty() {
            return failed;
        }
        // The deepest first, so that folders that became empty can go.
        wanted.sort_by_key(|name| std::cmp::Reverse((place::parent(name), last(name))));
        let mut lines = String::new();
        let mut folder = None;
        for name in &wanted {
            if folder != Some(place::parent(name)) {
                folder = Some(place::parent(name));
                lines.extend(["d", place::parent(name), "\n"]);
            }
            lines.extend(["f", last(name), "\n"]);
        }
        match retried(|| self.remove(lines.as_bytes())) {
            Ok(causes) => {
                for (number, cause) in causes {
                    if let Some(name) = wanted.get(number) {
                        failed.push(Fault::said(&cause).on("remove", name, self.place()));
                    }
                }
            }
            Err(fault) => {
                let fail = |name: &&str| fault.again().on("remove", name, self.place());
                failed.extend(wanted.iter().map(fail));
            }
        }
        failed
    }

    fn now(&self) -> Result<Time> {
        if !self.offer.has_times {
            return self.alone.now();
        }
        let now = || -> Outcome<Time> {
            let said = retried(|| self.ask(scripts::NOW, &[&self.alone.rsync.unfinished_name()?]))?;
            let said = said.ok_or_else(Fault::no_root)?;
            let time = std::str::from_utf8(&said).ok().and_then(listing::find_time);
            time.ok_or_else(|| io::Error::other("unexpected time").into())
        };
        now().map_err(|fault| fault.on("read the clock of", "", self.place()))
    }

    fn checksum(&self, name: &str) -> Result<Option<Digest>> {
        let checksum = || -> Outcome<Option<Digest>> {
            checked(name)?;
            if !self.offer.has_sha256sum {
                return Ok(None);
            }
            let lines = [place::parent(name), last(name)];
            let said = retried(|| self.ask(scripts::CHECKSUM, &lines))?;
            let said = String::from_utf8(said.ok_or_else(Fault::missing)?).unwrap_or_default();
            let hex = said.split_whitespace().next().unwrap_or_default();
            let digest = hex.parse().map_err(|_| io::Error::other("unexpected checksum"))?;
            Ok(Some(digest))
        };
        checksum().map_err(|fault| fault.on("read", name, self.place()))
    }

    fn sweep(&self, before: Time) -> Result<u64> {
        if !self.offer.has_times {
            return self.alone.sweep(before);
        }
        let fail = |fault: Fault| fault.on("sweep", UNFINISHED, self.place());
        let Some(left) = self.list_below(UNFINISHED).map_err(fail)? else { return Ok(0) };
        sweep(self, left.map(|object| object.map_err(|error| fail(error.into()))), before)
    }

    fn lock(&self, _: &str, _: &str) -> anyhow::Result<Option<Lock>> {
        Ok(None)
    }
}

struct FarUpload<'a> {
    far: &'a Far,
    name: String,
    stage: Stage,
}

impl Write for FarUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stage.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stage.flush()
    }
}

impl Upload for FarUpload<'_> {
    fn commit(self: Box<Self>) -> Result<()> {
        let FarUpload { far, name, stage } = *self;
        let store = || -> Outcome<Created> {
            match stage.finish()? {
                Staged::Bytes(bytes) => far.store_small(&name, &bytes),
                Staged::File(file) => far.store_large(&file, &name),
            }
        };
        let fault = match store() {
            Ok(Created::New) => return Ok(()),
            Ok(Created::Taken) => Fault::taken(),
            Err(fault) => fault,
        };
        Err(fault.on("store", &name, far.place()))
    }
}
