//! A destination that several runs use at once, one operation at a time, in an order that a seed gives.
//!
//! Each run has a thread. It stops before every operation until it is its turn; only then does it go on,
//! to its next operation or its end. So who does what between which two steps of another is decided by
//! whoever calls [`Turns::go`], and is the same each time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use bk_manifest::lock::Lock;
use bk_manifest::time::Time;
use bk_push::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};

use bk_push::{mark, place};

use crate::testing::{GRACE, Memory};

/// Objects of a listing that one request tells.
const PAGE: usize = 6;

/// Who is where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On its way to its next operation.
    Going,
    /// Before an operation, which is an irrevocable one or not.
    Waiting { is_final: bool },
    /// It has been killed, and touches nothing any more.
    Killed,
}

/// Hands the turn from run to run.
#[derive(Default)]
pub(crate) struct Turns {
    runs: Mutex<BTreeMap<usize, Place>>,
    changed: Condvar,
    /// When each run last looked at the marks.
    looks: Mutex<BTreeMap<usize, Time>>,
    /// Manifests that were stored long after their push had looked at the marks.
    late: Mutex<BTreeSet<String>>,
}

impl Turns {
    /// Waits until every run stands before an operation or has ended; returns those that stand, and
    /// whether it is before a commit or a removal.
    pub(crate) fn standing(&self) -> BTreeMap<usize, bool> {
        let runs = self.runs.lock().unwrap();
        let is_going =
            |runs: &mut BTreeMap<usize, Place>| runs.values().any(|p| *p == Place::Going);
        let runs = self.changed.wait_while(runs, is_going).unwrap();
        let stands = |(run, place): (&usize, &Place)| match place {
            Place::Waiting { is_final } => Some((*run, *is_final)),
            _ => None,
        };
        runs.iter().filter_map(stands).collect()
    }

    fn set(&self, run: usize, place: Place) {
        self.runs.lock().unwrap().insert(run, place);
        self.changed.notify_all();
    }

    /// Lets a run begin.
    pub(crate) fn begin(&self, run: usize) {
        self.set(run, Place::Going);
    }

    /// Lets a run that stands do its operation.
    pub(crate) fn go(&self, run: usize) {
        self.set(run, Place::Going);
    }

    /// Kills a run that has not ended: its operation and all later ones fail and do nothing.
    pub(crate) fn kill(&self, run: usize) {
        if let Some(place) = self.runs.lock().unwrap().get_mut(&run) {
            *place = Place::Killed;
        }
        self.changed.notify_all();
    }

    /// Whether a manifest was stored so long after its push's look that this has to look again, and
    /// to withdraw it if need be: killed before that, it leaves what nobody can answer for.
    pub(crate) fn is_late(&self, manifest: &str) -> bool {
        self.late.lock().unwrap().contains(manifest)
    }

    /// Stops a run until it is its turn; tells whether it lives.
    fn wait(&self, run: usize, is_final: bool) -> bool {
        let mut runs = self.runs.lock().unwrap();
        if runs.get(&run) == Some(&Place::Going) {
            runs.insert(run, Place::Waiting { is_final });
            self.changed.notify_all();
        }
        let is_waiting = |runs: &mut BTreeMap<usize, Place>| {
            matches!(runs.get(&run), Some(Place::Waiting { .. }))
        };
        let runs = self.changed.wait_while(runs, is_waiting).unwrap();
        runs.get(&run) == Some(&Place::Going)
    }
}

/// The destination as one run reaches it.
#[derive(Clone)]
pub(crate) struct Turn {
    pub(crate) memory: Arc<Memory>,
    pub(crate) turns: Arc<Turns>,
    pub(crate) run: usize,
}

/// Notes, when it is dropped, that a run has ended, however.
pub(crate) struct Ending(Arc<Turns>, usize);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.runs.lock().unwrap().remove(&self.1);
        self.0.changed.notify_all();
    }
}

impl Turn {
    /// What the run's thread holds until it ends.
    pub(crate) fn ending(&self) -> Ending {
        Ending(Arc::clone(&self.turns), self.run)
    }

    fn wait(&self, verb: &'static str, name: &str) -> Result<()> {
        let is_final = verb == "remove" || verb == "store" && place::is_manifest(name);
        if self.turns.wait(self.run, is_final) {
            return Ok(());
        }
        let source = io::Error::other("killed").into();
        Err(Error {
            kind: ErrorKind::Other,
            verb,
            name: name.into(),
            place: "memory".into(),
            source,
        })
    }

    /// The objects of a listing that come next after a name.
    fn page(&self, folder: &str, after: &str) -> Result<Vec<ObjectInfo>> {
        self.wait("list", folder)?;
        let objects = self.memory.list(folder)?.map(|object| object.unwrap());
        Ok(objects.filter(|object| object.name.as_str() > after).take(PAGE).collect())
    }
}

impl Destination for Turn {
    fn describe(&self) -> String {
        self.memory.describe()
    }

    /// Page by page, as a store does: what changes behind the page in hand is seen.
    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        let folder = folder.to_owned();
        if folder == mark::FOLDER {
            self.turns.looks.lock().unwrap().insert(self.run, self.memory.now()?);
        }
        let mut page = self.page(&folder, "")?.into_iter();
        let mut after = String::new();
        let mut is_last = page.len() < PAGE;
        Ok(Box::new(std::iter::from_fn(move || {
            loop {
                if let Some(object) = page.next() {
                    object.name.clone_into(&mut after);
                    return Some(Ok(object));
                }
                if is_last {
                    return None;
                }
                match self.page(&folder, &after) {
                    Ok(next) => page = next.into_iter(),
                    Err(error) => {
                        is_last = true;
                        return Some(Err(error));
                    }
                }
                is_last = page.len() < PAGE;
            }
        })))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        self.wait("read", name)?;
        self.memory.stat(name)
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        self.wait("read", name)?;
        self.memory.read(name, range)
    }

    fn put(&self, name: &str, bound: u64) -> Result<Box<dyn Upload + '_>> {
        let upload = self.memory.put(name, bound)?;
        Ok(Box::new(TurnUpload { turn: self, name: name.to_owned(), upload }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        self.wait("store", name)?;
        self.memory.create(name, bytes)
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        let delete = |name: &String| match self.wait("remove", name) {
            Ok(()) => self.memory.delete(std::slice::from_ref(name)),
            Err(error) => vec![error],
        };
        names.iter().flat_map(delete).collect()
    }

    fn now(&self) -> Result<Time> {
        self.wait("ask the time of", "")?;
        self.memory.now()
    }

    fn sweep(&self, before: Time) -> Result<u64> {
        self.memory.sweep(before)
    }

    fn lock(&self, _: &str, _: &str) -> anyhow::Result<Option<Lock>> {
        Ok(None)
    }
}

struct TurnUpload<'a> {
    turn: &'a Turn,
    name: String,
    upload: Box<dyn Upload + 'a>,
}

impl Write for TurnUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.upload.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.upload.flush()
    }
}

impl Upload for TurnUpload<'_> {
    fn commit(self: Box<Self>) -> Result<()> {
        self.turn.wait("store", &self.name)?;
        let looked = self.turn.turns.looks.lock().unwrap().get(&self.turn.run).copied();
        if looked.is_some_and(|looked| self.turn.memory.now().unwrap().since(looked) > GRACE / 2) {
            self.turn.turns.late.lock().unwrap().insert(self.name.clone());
        }
        self.upload.commit()
    }
}
