//! What the tests share: hand-made backups and a small random generator.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry};
use bk_manifest::manifest::{
    Application, Backup, Component, Header, ObjectRecord, PlainRecord, Run, Status, Trailer,
};
use bk_manifest::path::RelPath;
use bk_manifest::stream::{Format, Writer};
use bk_manifest::time::Time;
use bk_push::catalog::BackupInfo;
use bk_push::destination::Destination;
pub(crate) use bk_push::memory::Memory;
use bk_push::plain::component;
use bk_push::{catalog, partial, place};
use serde_json::{Map, Value, json};

use crate::needs::Needs;
use crate::plan::Policy;
use crate::prune::Options;
use crate::rules::{Calendar, Rules};

/// The grace time of the tests.
pub(crate) const GRACE: Duration = Duration::from_hours(24);

/// The component whose files are an object each, with the slash behind it.
pub(crate) const PLAIN: &str = "minio/";

/// A backup made by hand.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) series: String,
    pub(crate) time: Time,
    pub(crate) components: Vec<(String, Status)>,
    /// Objects in its own folder; those below [`PLAIN`] are plain files.
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

    /// Has plain files too.
    pub(crate) fn with_plain(mut self, names: &[&str]) -> Self {
        self.own.extend(names.iter().map(|name| format!("{PLAIN}{name}")));
        self
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
            encryption: None,
            live: 1,
            object: object.to_owned(),
            size: object.len() as u64,
            extra: Map::new(),
        };
        let all: Vec<(Option<&String>, &String)> = self
            .own
            .iter()
            .map(|object| (None, object))
            .chain(self.inherited.iter().map(|(id, _, object)| (Some(id), object)))
            .collect();
        let (plain, named): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, object)| is_plain(object));
        let mut lines: Vec<Value> =
            named.into_iter().map(|(backup, object)| json!(record(backup, object))).collect();
        let mut sets: BTreeMap<(Option<&String>, &str), u64> = BTreeMap::new();
        for (backup, object) in &plain {
            *sets.entry((*backup, component(object).unwrap())).or_default() += 1;
        }
        lines.extend(sets.into_iter().map(|((backup, component), count)| {
            json!(PlainRecord {
                backup: backup.cloned(),
                component: component.into(),
                count,
                encryption: None,
                size: 1,
                extra: Map::new(),
            })
        }));
        trailer.set("objects", json!(lines));
        let mut writer = Writer::new(Vec::new(), Format::Json, header.clone()).unwrap();
        for (number, (backup, object)) in plain.into_iter().enumerate() {
            let mut entry = Entry::new(RelPath::new(format!("{PLAIN}{number:06}")).unwrap());
            entry.component = Some(PLAIN.trim_end_matches('/').into());
            entry.set_content(Digest::of(object.as_bytes()), object.len() as u64);
            let object = object.clone();
            entry.at = Some(At { backup: backup.cloned(), object, ..At::default() });
            writer.entry(&entry).unwrap();
        }
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

    /// Begins a partial list that names its own objects: plain files together.
    pub(crate) fn begin_list(&self, destination: &dyn Destination) {
        let (plain, named): (Vec<_>, Vec<_>) =
            self.own.iter().cloned().partition(|object| is_plain(object));
        for (number, object) in named.iter().enumerate() {
            self.name_object(destination, number, object);
        }
        if !plain.is_empty() {
            self.name_objects(destination, named.len(), plain);
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
        self.name_objects(destination, number, vec![object.to_owned()]);
    }

    fn name_objects(&self, destination: &dyn Destination, number: usize, objects: Vec<String>) {
        self.begin(destination);
        let named = partial::Named { objects };
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

/// Whether an object is a plain file: in a manifest that lies, also below a folder of its own making.
fn is_plain(object: &str) -> bool {
    object.starts_with(PLAIN) || object.contains(&format!("/{PLAIN}"))
}

fn put(destination: &dyn Destination, name: &str, bytes: &[u8]) {
    let mut upload = destination.put(name, bytes.len() as u64).unwrap();
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

/// All objects that a backup needs, plain files too.
pub(crate) fn needed(destination: &dyn Destination, backup: &BackupInfo) -> BTreeSet<String> {
    let needs = Needs::read(destination, backup).unwrap();
    let mut names: BTreeSet<String> =
        needs.objects.iter().map(|object| object.name.clone()).collect();
    let mut add = |name: &str, _: u64| {
        names.insert(name.to_owned());
        Ok(())
    };
    needs.each_plain(destination, backup, &mut add).unwrap();
    names
}

/// Every backup that is listed has all its objects.
pub(crate) fn check_whole(destination: &dyn Destination, context: &str) {
    let listed = catalog::Catalog::read(destination).unwrap();
    for backup in &listed.backups {
        for name in needed(destination, backup) {
            assert!(
                destination.stat(&name).unwrap().is_some(),
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
