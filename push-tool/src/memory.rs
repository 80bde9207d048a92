//! A destination in memory whose clock and faults are at hand, for tests.
#![expect(clippy::unwrap_used, reason = "only tests use it, and want to end where it breaks")]

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bk_manifest::time::Time;

use crate::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};
use crate::store::{Marker, Store};

/// A destination in memory.
pub struct Memory(Mutex<State>);

struct State {
    objects: Objects,
    now: Time,
    /// Whether what is removed is said to be kept as an old version.
    keeps_versions: bool,
    /// Whether sweeping fails.
    fails_sweep: bool,
    /// Part of the names that are said to be removed, and stay.
    stays: Option<&'static str>,
    /// Changes that still succeed; behind them everything fails, as after a kill.
    left: Option<u64>,
    /// Part of a name, and what happens just before the first change of such an object.
    accident: Option<(String, Accident)>,
    /// The same before the first reading of such an object.
    reading: Option<(String, Accident)>,
}

/// What happens to a destination behind the back of who uses it.
pub type Accident = Box<dyn FnOnce(&mut Objects, &mut Time) + Send>;

/// Objects by name, each with the time it was stored.
pub type Objects = BTreeMap<String, (Vec<u8>, Time)>;

impl Memory {
    /// Empty, its clock at `now` (RFC 3339).
    ///
    /// # Panics
    /// If that is no time.
    pub fn new(now: &str) -> Self {
        Memory(Mutex::new(State {
            objects: BTreeMap::new(),
            now: now.parse().unwrap(),
            keeps_versions: false,
            fails_sweep: false,
            stays: None,
            left: None,
            accident: None,
            reading: None,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Moves the clock on.
    ///
    /// # Panics
    /// If a test has panicked while it used this.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state();
        let (seconds, nanoseconds) = state.now.unix();
        state.now = Time::from_unix(seconds + i64::try_from(by.as_secs()).unwrap(), nanoseconds);
    }

    /// Lets so many changes succeed; `None`: all.
    ///
    /// # Panics
    /// If a test has panicked while it used this, as all of these.
    pub fn die_after(&self, changes: Option<u64>) {
        self.state().left = changes;
    }

    /// Has it say that it keeps old versions.
    ///
    /// # Panics
    /// If a test has panicked while it used this.
    pub fn keep_versions(&self) {
        self.state().keeps_versions = true;
    }

    /// Has its sweep fail.
    ///
    /// # Panics
    /// If a test has panicked while it used this.
    pub fn fail_sweep(&self) {
        self.state().fails_sweep = true;
    }

    /// Has it say of objects whose names contain `part` that they are removed, while they stay.
    ///
    /// # Panics
    /// If a test has panicked while it used this.
    pub fn lie_of_removing(&self, part: &'static str) {
        self.state().stays = Some(part);
    }

    /// Has something happen just before the first change of an object whose name contains `part`.
    ///
    /// # Panics
    /// If a test has panicked while it used this.
    pub fn before(&self, part: &str, accident: Accident) {
        self.state().accident = Some((part.to_owned(), accident));
    }

    /// Has something happen just before the first reading of an object whose name contains `part`.
    ///
    /// # Panics
    /// If a test has panicked while it used this.
    pub fn before_reading(&self, part: &str, accident: Accident) {
        self.state().reading = Some((part.to_owned(), accident));
    }

    /// All objects, by name.
    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Whether the object is there.
    pub fn has(&self, name: &str) -> bool {
        self.state().objects.contains_key(name)
    }

    /// Puts an object by hand.
    ///
    /// # Panics
    /// If its name is taken.
    pub fn store(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let now = state.now;
        let old = state.objects.insert(name.to_owned(), (bytes.to_vec(), now));
        assert!(old.is_none(), "'{name}' is overwritten");
    }

    /// Changes an object's bytes, as a disk may.
    ///
    /// # Panics
    /// If it is not there.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.state().objects.get_mut(name).unwrap().0);
    }

    /// Loses an object, as a store may.
    ///
    /// # Panics
    /// If it is not there.
    pub fn drop_object(&self, name: &str) {
        assert!(self.state().objects.remove(name).is_some(), "{name}");
    }
}

impl State {
    fn change(&mut self, verb: &'static str, name: &str) -> Result<()> {
        if let Some((_, accident)) = self.accident.take_if(|(part, _)| name.contains(&**part)) {
            accident(&mut self.objects, &mut self.now);
        }
        match &mut self.left {
            None => Ok(()),
            Some(0) => Err(error(ErrorKind::Other, verb, name)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

/// A name that leads out is none.
fn checked(verb: &'static str, name: &str) -> Result<()> {
    match bk_manifest::path::RelPath::new(name) {
        Ok(_) => Ok(()),
        Err(_) => Err(error(ErrorKind::Other, verb, name)),
    }
}

fn error(kind: ErrorKind, verb: &'static str, name: &str) -> Error {
    let source = io::Error::other("killed").into();
    Error { kind, verb, name: name.into(), place: "memory".into(), source }
}

fn info(name: &str, object: &(Vec<u8>, Time)) -> ObjectInfo {
    ObjectInfo { name: name.into(), size: object.0.len() as u64, modified: object.1 }
}

impl Destination for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        let below = |name: &str| {
            folder.is_empty() || name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
        };
        let found: Vec<_> = self
            .state()
            .objects
            .iter()
            .filter(|(name, _)| below(name))
            .map(|(name, object)| Ok(info(name, object)))
            .collect();
        Ok(Box::new(found.into_iter()))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.state().objects.get(name).map(|object| info(name, object)))
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        checked("read", name)?;
        let mut state = self.state();
        let State { reading, objects, now, .. } = &mut *state;
        if let Some((_, accident)) = reading.take_if(|(part, _)| name.contains(&**part)) {
            accident(objects, now);
        }
        let (bytes, _) =
            state.objects.get(name).ok_or_else(|| error(ErrorKind::NotFound, "read", name))?;
        let range = range.unwrap_or(0..u64::MAX);
        let cut = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(bytes.len());
        Ok(Box::new(Cursor::new(bytes[cut(range.start)..cut(range.end)].to_vec())))
    }

    fn put(&self, name: &str, _: u64) -> Result<Box<dyn Upload + '_>> {
        Ok(Box::new(MemoryUpload { memory: self, name: name.to_owned(), bytes: Vec::new() }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        checked("store", name)?;
        let mut state = self.state();
        if state.objects.contains_key(name) {
            return Ok(Created::Taken);
        }
        state.change("store", name)?;
        let now = state.now;
        state.objects.insert(name.to_owned(), (bytes.to_vec(), now));
        Ok(Created::New)
    }

    /// In no order that anybody may rely on: from both ends in turn.
    fn delete(&self, names: &[String]) -> Vec<Error> {
        let mut state = self.state();
        let mut rest: std::collections::VecDeque<&String> = names.iter().collect();
        let mut failed = Vec::new();
        let mut next = || {
            if rest.len().is_multiple_of(2) { rest.pop_front() } else { rest.pop_back() }
        };
        while let Some(name) = next() {
            match checked("remove", name).and_then(|()| state.change("remove", name)) {
                Ok(()) if state.stays.is_some_and(|part| name.contains(part)) => {}
                Ok(()) => drop(state.objects.remove(name)),
                Err(error) => failed.push(error),
            }
        }
        failed
    }

    fn now(&self) -> Result<Time> {
        Ok(self.state().now)
    }

    fn sweep(&self, _: Time) -> Result<u64> {
        if self.state().fails_sweep {
            return Err(error(ErrorKind::Other, "sweep", ""));
        }
        Ok(0)
    }

    fn keeps_versions(&self) -> bool {
        self.state().keeps_versions
    }

    fn lock(&self, _: &str, _: &str) -> anyhow::Result<Option<bk_manifest::lock::Lock>> {
        Ok(None)
    }
}

struct MemoryUpload<'a> {
    memory: &'a Memory,
    name: String,
    bytes: Vec<u8>,
}

impl Write for MemoryUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for MemoryUpload<'_> {
    fn commit(self: Box<Self>) -> Result<()> {
        match self.memory.create(&self.name, &self.bytes)? {
            Created::New => Ok(()),
            Created::Taken => Err(error(ErrorKind::Exists, "store", &self.name)),
        }
    }
}

/// A store on a destination that the test keeps a hand on.
pub fn store_on(memory: &Arc<Memory>, grace: Duration) -> Store {
    let marker = Marker { id: "memory".into(), grace_seconds: grace.as_secs() };
    Store { destination: Box::new(Shared(Arc::clone(memory))), marker }
}

/// A destination that several hold.
struct Shared(Arc<Memory>);

impl Destination for Shared {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        self.0.list(folder)
    }
    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        self.0.stat(name)
    }
    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        self.0.read(name, range)
    }
    fn put(&self, name: &str, bound: u64) -> Result<Box<dyn Upload + '_>> {
        self.0.put(name, bound)
    }
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        self.0.create(name, bytes)
    }
    fn delete(&self, names: &[String]) -> Vec<Error> {
        self.0.delete(names)
    }
    fn now(&self) -> Result<Time> {
        self.0.now()
    }
    fn sweep(&self, before: Time) -> Result<u64> {
        self.0.sweep(before)
    }
    fn lock(&self, series: &str, holder: &str) -> anyhow::Result<Option<bk_manifest::lock::Lock>> {
        self.0.lock(series, holder)
    }
}
