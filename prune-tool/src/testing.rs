//! What the tests share: a destination in memory whose clock and faults are at hand, hand-made
//! backups, and a small random generator.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bk_manifest::digest::Digest;
use bk_manifest::manifest::{
    Application, Backup, Component, Header, ObjectRecord, Run, Status, Trailer,
};
use bk_manifest::stream::{Format, Writer};
use bk_manifest::time::Time;
use bk_push::destination::{
    Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};
use bk_push::{catalog, partial, place};
use serde_json::{Map, json};

use crate::plan::Policy;
use crate::prune::Options;
use crate::rules::{Calendar, Rules};

/// The grace time of the tests.
pub(crate) const GRACE: Duration = Duration::from_hours(24);

/// A destination in memory.
pub(crate) struct Memory(Mutex<State>);

struct State {
    objects: BTreeMap<String, (Vec<u8>, Time)>,
    now: Time,
    /// Changes that still succeed; behind them everything fails, as after a kill.
    left: Option<u64>,
}

impl Memory {
    pub(crate) fn new(now: &str) -> Self {
        let objects = BTreeMap::new();
        Memory(Mutex::new(State { objects, now: now.parse().unwrap(), left: None }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn advance(&self, by: Duration) {
        let mut state = self.state();
        let (seconds, nanoseconds) = state.now.unix();
        state.now = Time::from_unix(seconds + i64::try_from(by.as_secs()).unwrap(), nanoseconds);
    }

    /// Lets so many changes succeed; `None`: all.
    pub(crate) fn die_after(&self, changes: Option<u64>) {
        self.state().left = changes;
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.state().objects.contains_key(name)
    }

    pub(crate) fn store(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let now = state.now;
        let old = state.objects.insert(name.to_owned(), (bytes.to_vec(), now));
        assert!(old.is_none(), "'{name}' is overwritten");
    }

    pub(crate) fn drop_object(&self, name: &str) {
        assert!(self.state().objects.remove(name).is_some(), "{name}");
    }
}

impl State {
    fn change(&mut self, verb: &'static str, name: &str) -> Result<()> {
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
        let state = self.state();
        let (bytes, _) =
            state.objects.get(name).ok_or_else(|| error(ErrorKind::NotFound, "read", name))?;
        let range = range.unwrap_or(0..u64::MAX);
        let cut = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(bytes.len());
        Ok(Box::new(Cursor::new(bytes[cut(range.start)..cut(range.end)].to_vec())))
    }

    fn put(&self, name: &str) -> Result<Box<dyn Upload + '_>> {
        Ok(Box::new(MemoryUpload { memory: self, name: name.to_owned(), bytes: Vec::new() }))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
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
            match state.change("remove", name) {
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
        Ok(0)
    }

    fn lock(&self, _: &str) -> anyhow::Result<Option<bk_manifest::lock::Lock>> {
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

/// A backup made by hand.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) series: String,
    pub(crate) time: Time,
    pub(crate) components: Vec<(String, Status)>,
    /// Objects in its own folder.
    pub(crate) own: Vec<String>,
    /// Objects of others: backup, its folder, the object's name there.
    pub(crate) inherited: Vec<(String, String, String)>,
}

impl Made {
    /// A complete backup with one object of its own; the id is made of the time.
    pub(crate) fn new(time: &str) -> Self {
        let time: Time = time.parse().unwrap();
        Made {
            id: format!("backup-{}-00000000", time.format("%Y%m%d-%H%M%S")),
            series: "app".into(),
            time,
            components: vec![("files".into(), Status::Complete)],
            own: vec!["files/000001.tar.zst".into()],
            inherited: Vec::new(),
        }
    }

    pub(crate) fn partial(mut self) -> Self {
        for (_, status) in &mut self.components {
            *status = Status::Partial;
        }
        self
    }

    pub(crate) fn on(mut self, parent: &Made) -> Self {
        for object in &parent.own {
            self.inherited.push((parent.id.clone(), parent.folder(), object.clone()));
        }
        self.inherited.extend(parent.inherited.iter().cloned());
        self
    }

    pub(crate) fn folder(&self) -> String {
        format!("{}/{}", self.time.format("%Y/%m/%d"), self.id)
    }

    pub(crate) fn manifest(&self) -> String {
        place::join(&self.folder(), "manifest.json")
    }

    /// All that it needs, by name at the destination.
    pub(crate) fn needs(&self) -> Vec<String> {
        let own = self.own.iter().map(|object| place::join(&self.folder(), object));
        own.chain(self.inherited.iter().map(|(_, f, o)| place::join(f, o))).collect()
    }

    /// The manifest as push would store it.
    pub(crate) fn document(&self) -> (Vec<u8>, Header, Trailer) {
        let (name, second) = match self.series.split_once('/') {
            Some((name, second)) => (name, Some(second.to_owned())),
            None => (self.series.as_str(), None),
        };
        let application = Application { name: name.into(), version: None };
        let backup = Backup {
            id: self.id.clone(),
            kind: Some("full".into()),
            timestamp: self.time.to_string(),
            series: second,
            ..Backup::default()
        };
        let mut header = Header::new(&application, Some(&backup), &Run::default()).stored();
        let chain: BTreeMap<&str, String> = self
            .inherited
            .iter()
            .map(|(id, folder, _)| (id.as_str(), place::relative(&self.folder(), folder)))
            .collect();
        header.set("chain", json!(chain));
        let mut trailer = Trailer::default();
        let components: Vec<Component> = self
            .components
            .iter()
            .map(|(name, status)| Component {
                name: name.clone(),
                kind: "tree".into(),
                status: *status,
                extra: Map::new(),
            })
            .collect();
        trailer.set_components(&components);
        let record = |backup: Option<&String>, object: &str| ObjectRecord {
            backup: backup.cloned(),
            checksum: Digest::of(object.as_bytes()),
            live: 1,
            object: object.to_owned(),
            size: object.len() as u64,
            extra: Map::new(),
        };
        let mut objects: Vec<ObjectRecord> =
            self.own.iter().map(|object| record(None, object)).collect();
        objects.extend(self.inherited.iter().map(|(id, _, object)| record(Some(id), object)));
        trailer.set("objects", json!(objects));
        let writer = Writer::new(Vec::new(), Format::Json, header.clone()).unwrap();
        let (bytes, trailer) = writer.end(trailer).unwrap();
        (bytes, header, trailer)
    }

    /// Stores its own objects.
    pub(crate) fn put_objects(&self, destination: &dyn Destination) {
        for object in &self.own {
            put(destination, &place::join(&self.folder(), object), object.as_bytes());
        }
    }

    /// Stores side files and manifest.
    pub(crate) fn commit(&self, destination: &dyn Destination) {
        for side in place::SIDE_FILES {
            put(destination, &place::join(&self.folder(), side), b"side\n");
        }
        put(destination, &self.manifest(), &self.document().0);
    }

    /// Stores all of it.
    pub(crate) fn store(self, destination: &dyn Destination) -> Self {
        self.put_objects(destination);
        self.commit(destination);
        self
    }

    /// Begins a partial list that names its own objects.
    pub(crate) fn begin_list(&self, destination: &dyn Destination) {
        for (number, object) in self.own.iter().enumerate() {
            self.name_object(destination, number, object);
        }
    }

    /// Makes sure that the list says whose it is: it may be new, or have been pruned away under a
    /// push that slept.
    pub(crate) fn begin(&self, destination: &dyn Destination) {
        let begun = partial::Begun {
            id: self.id.clone(),
            series: self.series.clone(),
            folder: self.folder(),
            host: "vm1".into(),
        };
        let bytes = serde_json::to_vec(&begun).unwrap();
        destination.create(&self.piece("begun.json"), &bytes).unwrap();
    }

    /// Names an object that is about to be put.
    pub(crate) fn name_object(&self, destination: &dyn Destination, number: usize, object: &str) {
        self.begin(destination);
        let named = partial::Named { object: object.to_owned() };
        let piece = self.piece(&format!("{number:06}.name"));
        put(destination, &piece, &serde_json::to_vec(&named).unwrap());
    }

    pub(crate) fn piece(&self, name: &str) -> String {
        format!("{}/{}/{name}", partial::FOLDER, self.id)
    }

    pub(crate) fn end_list(&self, destination: &dyn Destination) {
        let prefix = self.piece("");
        let pieces: Vec<String> = destination
            .list(partial::FOLDER)
            .unwrap()
            .map(|object| object.unwrap().name)
            .filter(|name| name.starts_with(&prefix))
            .collect();
        assert!(destination.delete(&pieces).is_empty());
    }
}

fn put(destination: &dyn Destination, name: &str, bytes: &[u8]) {
    let mut upload = destination.put(name).unwrap();
    upload.write_all(bytes).unwrap();
    upload.commit().unwrap();
}

/// Options with these rules, counted from the destination's clock.
pub(crate) fn options(destination: &dyn Destination, rules: Rules) -> Options {
    Options {
        policy: Policy {
            rules,
            calendar: Calendar::default(),
            now: destination.now().unwrap(),
            grace: GRACE,
            host: "vm1".into(),
        },
        own: None,
        accepts_missing: false,
    }
}

/// Every backup that is listed has all its objects.
pub(crate) fn check_whole(destination: &dyn Destination, context: &str) {
    let listed = catalog::Catalog::read(destination).unwrap();
    for backup in &listed.backups {
        for name in crate::names::objects_of(destination, backup).unwrap().keys() {
            assert!(
                destination.stat(name).unwrap().is_some(),
                "'{}' has lost '{name}': {context}",
                backup.id
            );
        }
    }
}

/// Steele, Lea and Flood's `SplitMix64`.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The seeds of a random test: `BK_TEST_SEED` alone, or so many from 1.
pub(crate) fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("BK_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=count).collect(),
    }
}
