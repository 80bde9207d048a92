//! A destination where rsync is all there is: a daemon, or an account that may run nothing else.
//!
//! What rsync cannot do is done as well as it can: a range is read from a copy of the whole object,
//! and a name is taken only as far as nobody else takes it at the same moment.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::lock::Lock;
use bk_manifest::path::RelPath;
use bk_manifest::time::Time;

use super::fault::Fault;
use super::listing::{self, UNFINISHED, is_object, is_unfinished};
use super::stage::{Stage, Staged, StagedFile};
use super::transfer::Rsync;
use crate::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};
use crate::place;

type Outcome<T> = std::result::Result<T, Fault>;

/// Objects kept for more ranges: a volume is read in many.
const KEPT: usize = 2;
/// Requests at once: each is a program of its own, and sshd lets ten share a connection.
pub(super) const AT_ONCE: usize = 4;

/// A destination by rsync alone.
pub(super) struct Alone {
    pub(super) rsync: Rsync,
    is_prepared: Mutex<bool>,
    /// One at a time takes names, which rsync does in two steps.
    taking: Mutex<()>,
    kept: Mutex<Vec<(String, Arc<File>)>>,
}

impl Alone {
    /// The destination that rsync has at its other end.
    pub(super) fn new(rsync: Rsync) -> Self {
        Alone {
            rsync,
            is_prepared: Mutex::new(false),
            taking: Mutex::new(()),
            kept: Mutex::new(Vec::new()),
        }
    }

    fn place(&self) -> &str {
        self.rsync.place()
    }

    fn list_below<'a>(
        &'a self,
        name: &str,
        is_deep: bool,
    ) -> Outcome<impl Iterator<Item = io::Result<ObjectInfo>> + use<'a>> {
        let spooled = self.rsync.retried(|| self.rsync.list(name, is_deep))?;
        let found = listing::objects(spooled, b'\n', listing::rsync_line);
        Ok(found.filter_map(|object| match object {
            Ok(object) => {
                let name = self.rsync.shown(&object.name)?.to_owned();
                Some(Ok(ObjectInfo { name, ..object }))
            }
            Err(error) => Some(Err(error)),
        }))
    }

    /// Sends a file to a name that nothing has.
    fn send(&self, file: &StagedFile, name: &str) -> Outcome<Created> {
        let mut is_prepared = locked(&self.is_prepared);
        if !*is_prepared {
            // rsync would make the root too; only the marker is to.
            if name != place::MARKER && !self.rsync.retried(|| self.rsync.has_root())? {
                return Err(Fault::no_root());
            }
            self.rsync.retried(|| self.rsync.prepare())?;
            *is_prepared = true;
        }
        drop(is_prepared);
        self.rsync.send(file, name)
    }

    /// A copy of an object, kept for the ranges that are asked for next.
    fn kept(&self, name: &str) -> Outcome<Arc<File>> {
        let mut kept = locked(&self.kept);
        if let Some(index) = kept.iter().position(|(known, _)| known == name) {
            let found = kept.remove(index);
            let file = Arc::clone(&found.1);
            kept.push(found);
            return Ok(file);
        }
        let file = Arc::new(self.rsync.fetch(name)?);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((name.to_owned(), Arc::clone(&file)));
        Ok(file)
    }
}

/// Removes what dead uploads left, by a listing and a removal; returns how many.
pub(super) fn sweep(
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

/// What a lock guards is whole between any two of its uses, even if a thread died meanwhile.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object's name that may be used over there.
///
/// # Errors
/// One that leads out, or has control characters: no object of ours has.
pub(super) fn checked(name: &str) -> Outcome<RelPath> {
    let refused = |why: String| Fault::failure(ErrorKind::Other, Failure::new(Exit::Failed, why));
    if name.chars().any(char::is_control) {
        return Err(refused("name with control characters".into()));
    }
    RelPath::new(name).map_err(|error| refused(error.to_string()))
}

impl Destination for Alone {
    fn describe(&self) -> String {
        self.place().to_owned()
    }

    fn at_once(&self) -> usize {
        AT_ONCE
    }

    fn limits(&self) -> Vec<String> {
        let mut limits = self.rsync.limits();
        limits
            .push("no shell there: whole objects are fetched, and only one host may write".into());
        limits
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        let fail = |fault: Fault| fault.on("list", folder, self.place());
        if !folder.is_empty() {
            checked(folder).map_err(fail)?;
        }
        let found = match self.list_below(folder, true) {
            // No root, no object.
            Err(fault) if fault.kind == ErrorKind::NotFound => {
                return Ok(Box::new(std::iter::empty()));
            }
            found => found.map_err(fail)?,
        };
        let place = self.place().to_owned();
        let found = found
            .map(move |object| object.map_err(|error| Fault::from(error).on("list", "", &place)));
        Ok(Box::new(
            found.filter(|object| object.as_ref().map_or(true, |object| is_object(&object.name))),
        ))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        let stat = || -> Outcome<Option<ObjectInfo>> {
            checked(name)?;
            let found = match self.list_below(name, false) {
                Err(fault) if fault.kind == ErrorKind::NotFound => return Ok(None),
                found => found?,
            };
            for object in found {
                let object = object?;
                if object.name == name {
                    return Ok(Some(object));
                }
            }
            Ok(None)
        };
        stat().map_err(|fault| fault.on("look at", name, self.place()))
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        let open = || -> Outcome<Box<dyn Read + Send>> {
            checked(name)?;
            match range {
                None => Ok(Box::new(self.rsync.fetch(name)?)),
                Some(Range { start, end }) => {
                    Ok(Box::new(Part { file: self.kept(name)?, place: start, end }))
                }
            }
        };
        open().map_err(|fault| fault.on("read", name, self.place()))
    }

    fn put(&self, name: &str, _: u64) -> Result<Box<dyn Upload + '_>> {
        checked(name).map_err(|fault| fault.on("store", name, self.place()))?;
        Ok(Box::new(AloneUpload { alone: self, name: name.to_owned(), stage: Stage::new(0) }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        let create = || -> Outcome<Created> {
            checked(name)?;
            let file = StagedFile::of(bytes)?;
            let _taking = locked(&self.taking);
            self.send(&file, name)
        };
        create().map_err(|fault| fault.on("store", name, self.place()))
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        let mut failed = Vec::new();
        let mut wanted = Vec::new();
        for name in names {
            match checked(name) {
                Ok(_) => wanted.push(name.as_str()),
                Err(fault) => failed.push(fault.on("remove", name, self.place())),
            }
        }
        locked(&self.kept).retain(|(name, _)| !wanted.contains(&name.as_str()));
        if wanted.is_empty() {
            return failed;
        }
        if let Err(fault) = self.rsync.retried(|| self.rsync.remove(&wanted)) {
            let fail = |name: &&str| fault.again().on("remove", name, self.place());
            failed.extend(wanted.iter().map(fail));
        }
        failed
    }

    fn now(&self) -> Result<Time> {
        let probe = || -> Outcome<String> {
            let name = place::join(UNFINISHED, &self.rsync.unfinished_name()?);
            self.send(&StagedFile::of(b"\n")?, &name)?;
            Ok(name)
        };
        let fail = |fault: Fault| fault.on("read the clock of", "", self.place());
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
        let fail = |fault: Fault| fault.on("sweep", UNFINISHED, self.place());
        let left = self.list_below(UNFINISHED, true).map_err(fail)?;
        sweep(self, left.map(|object| object.map_err(|error| fail(error.into()))), before)
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
        let store = || -> Outcome<Created> {
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
        Err(fault.on("store", &name, alone.place()))
    }
}
