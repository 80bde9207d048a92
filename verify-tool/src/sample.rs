//! Backups made by hand for tests: tar bytes, zstd frames, entries that say where content lies.

use std::cell::RefCell;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry};
use bk_manifest::exit::Exit;
use bk_manifest::manifest::{
    Application, Backup, Component, EndRun, Header, ObjectRecord, Pushed, Run, Status, Trailer,
};
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;
use bk_manifest::select::Selection;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use bk_push::place;
use bk_push::store::Store;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::dumps::{DumpName, Dumps};
use crate::level::Level;
use crate::verify::{Options, verify};

pub(crate) const PARENT: &str = "backup-20260427-000000-0000000a";
pub(crate) const CHILD: &str = "backup-20260428-000000-0000000b";
pub(crate) const VOLUME: &str = "files/000001.tar.zst";
pub(crate) const DUMP: &str = "database/app.dump";

/// A destination with two backups; the second inherits from the first.
pub(crate) struct Sample {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
    pub(crate) parent: Made,
    pub(crate) child: Made,
}

/// A backup as it was made.
pub(crate) struct Made {
    pub(crate) id: &'static str,
    pub(crate) folder: String,
    pub(crate) header: Header,
    pub(crate) entries: Vec<Entry>,
    pub(crate) trailer: Trailer,
}

/// What a verify came to.
pub(crate) struct Ran {
    pub(crate) result: anyhow::Result<Exit>,
    pub(crate) output: Vec<u8>,
    pub(crate) said: Vec<String>,
}

impl Ran {
    pub(crate) fn exit(&self) -> Exit {
        match &self.result {
            Ok(exit) => *exit,
            Err(error) => bk_manifest::exit::classify(error),
        }
    }

    /// Whether the document was ended.
    pub(crate) fn is_ended(&self) -> bool {
        Reader::new(&self.output[..]).and_then(Reader::end).is_ok()
    }

    pub(crate) fn proofs(&self) -> Vec<(String, String)> {
        let (_, trailer) = Reader::new(&self.output[..]).unwrap().end().unwrap();
        let proofs = trailer.run().unwrap().proofs;
        assert!(proofs.iter().all(|p| Some(p.total_checksum) == trailer.total_checksum()));
        proofs.into_iter().map(|proof| (proof.level, proof.scope)).collect()
    }

    pub(crate) fn has_said(&self, part: &str) -> bool {
        self.said.iter().any(|line| line.contains(part))
    }
}

/// Keeps what is said.
#[derive(Default)]
pub(crate) struct Heard(pub(crate) Mutex<Vec<String>>);

impl Progress for Heard {
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
    fn note(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64, _: u64) {}
    fn end(&self) {}
}

/// A kind of dump that ends with `END`.
pub(crate) struct EndMark;

impl Dumps for EndMark {
    fn knows(&self, dump: DumpName<'_>) -> bool {
        dump.component == "postgresql" && dump.name == "app.dump"
    }

    fn check(&self, _: DumpName<'_>, file: &std::path::Path) -> anyhow::Result<()> {
        let bytes = std::fs::read(file)?;
        if bytes.ends_with(b"UNKNOWN") {
            anyhow::bail!("the program that reads it is not installed");
        }
        if !bytes.ends_with(b"END") {
            return Err(bk_manifest::exit::fail(Exit::Damaged, "it ends early"));
        }
        Ok(())
    }
}

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

pub(crate) fn options() -> Options {
    Options {
        level: None,
        selection: Selection::default(),
        reports: Vec::new(),
        clock: || Time::from_unix(1_777_777_777, 0),
        host: "host".into(),
        identities: bk_push::identity::Identities::default(),
        temporary: std::env::temp_dir(),
    }
}

pub(crate) fn at_level(level: Level) -> Options {
    Options { level: Some(level), ..options() }
}

/// A volume: each group of files in a frame of its own.
pub(crate) fn volume(groups: &[&[(&str, &[u8])]]) -> (Vec<u8>, Vec<Entry>) {
    let (mut stored, mut entries) = (Vec::new(), Vec::new());
    for group in groups {
        let mut tar = Vec::new();
        let mut skips = Vec::new();
        for (name, content) in *group {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.extend_from_slice(header.as_bytes());
            skips.push(tar.len() as u64);
            tar.extend_from_slice(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        let frame = zstd::encode_all(&tar[..], 3).unwrap();
        for ((name, content), skip) in group.iter().zip(skips) {
            let mut entry = Entry::new(path(name));
            entry.mode = Some(0o644);
            entry.set_content(Digest::of(content), content.len() as u64);
            entry.at = Some(At {
                object: VOLUME.into(),
                offset: Some(stored.len() as u64),
                length: Some(frame.len() as u64),
                skip: Some(skip),
                ..At::default()
            });
            entries.push(entry);
        }
        stored.extend(frame);
    }
    (stored, entries)
}

fn record(object: &str, bytes: &[u8]) -> ObjectRecord {
    ObjectRecord {
        backup: None,
        checksum: Digest::of(bytes),
        encryption: None,
        live: bytes.len() as u64,
        object: object.into(),
        size: bytes.len() as u64,
        extra: Map::new(),
    }
}

fn dump_entry(bytes: &[u8]) -> Entry {
    let mut entry = Entry::new(path(".bk/database/app.dump"));
    entry.component = Some("database".into());
    entry.set_content(Digest::of(bytes), bytes.len() as u64);
    entry.at = Some(At { object: DUMP.into(), ..At::default() });
    entry
}

fn inherited(entries: &[Entry]) -> Vec<Entry> {
    let mut entries = entries.to_vec();
    for at in entries.iter_mut().filter_map(|entry| entry.at.as_mut()) {
        at.backup = Some(PARENT.into());
    }
    entries
}

fn make(id: &'static str, day: &str, mut entries: Vec<Entry>, objects: &[ObjectRecord]) -> Made {
    let backup = Backup {
        id: id.into(),
        timestamp: format!("2026-04-{day}T00:00:00.000Z"),
        parent_backup_id: (id == CHILD).then(|| PARENT.into()),
        ..Backup::default()
    };
    let application = Application { name: "app".into(), version: None };
    let mut header = Header::new(&application, Some(&backup), &Run::default());
    if id == CHILD {
        header.set("chain", json!({ PARENT: format!("../../27/{PARENT}") }));
    }
    let mut trailer = Trailer::default();
    let component = |name: &str, kind: &str| Component {
        name: name.into(),
        kind: kind.into(),
        status: Status::Complete,
        extra: Map::new(),
    };
    trailer.set_components(&[component("database", "postgresql"), component("files", "tree")]);
    trailer.set("objects", json!(objects));
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Made { id, folder: format!("2026/04/{day}/{id}"), header, entries, trailer }
}

impl Made {
    /// The document with these facts of the run.
    pub(crate) fn document(&self, run: &Run, end: &EndRun) -> Vec<u8> {
        let mut header = self.header.clone();
        header.set_run(run);
        let mut trailer = self.trailer.clone();
        trailer.set_run(end);
        self.write(header, trailer)
    }

    fn write(&self, header: Header, trailer: Trailer) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        for entry in &self.entries {
            writer.entry(entry).unwrap();
        }
        writer.end(trailer).unwrap().0
    }

    /// The document as the destination has it, without anything of the run.
    pub(crate) fn stored(&self) -> Vec<u8> {
        self.write(self.header.stored(), self.trailer.stored())
    }

    /// The document as push prints it.
    pub(crate) fn pushed(&self, sample: &Sample) -> Vec<u8> {
        let run = Run {
            place: Some(format!("{}/manifest.json", self.folder)),
            destination: Some(sample.store.marker.id.clone()),
            ..Run::default()
        };
        let pushed = Some(Pushed { id: self.id.into(), ..Pushed::default() });
        self.document(&run, &EndRun { pushed, ..EndRun::default() })
    }

    fn put(&self, store: &Store, objects: &[(&str, &[u8])]) {
        for (name, bytes) in objects {
            put(store, &place::join(&self.folder, name), bytes);
        }
        put(store, &place::join(&self.folder, "manifest.json"), &self.stored());
    }
}

fn put(store: &Store, name: &str, bytes: &[u8]) {
    let mut upload = store.destination.put(name, bytes.len() as u64).unwrap();
    upload.write_all(bytes).unwrap();
    upload.commit().unwrap();
}

/// A backup's entries, the lines of its `objects`, and what lies in its folder.
pub(crate) type PlainBackup<'a> = (Vec<Entry>, Vec<Value>, &'a [(&'a str, &'a [u8])]);

/// A destination with two backups of plain files.
pub(crate) fn plain(parent: PlainBackup<'_>, child: PlainBackup<'_>) -> Sample {
    let (folder, store) = Sample::store();
    let [parent, child] = [(PARENT, "27", parent), (CHILD, "28", child)].map(
        |(id, day, (entries, lines, stored))| {
            let mut made = make(id, day, entries, &[]);
            made.trailer.set("objects", Value::Array(lines));
            made.put(&store, stored);
            made
        },
    );
    Sample { folder, store, parent, child }
}

impl Sample {
    pub(crate) fn new() -> Self {
        Sample::with_dump(b"rows END")
    }

    fn store() -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        let (store, _) =
            Store::init(name, &bk_push::access::Access::default(), Duration::from_mins(1)).unwrap();
        (folder, store)
    }

    /// A destination whose first backup has just this volume.
    pub(crate) fn with_volume(bytes: &[u8], entries: Vec<Entry>) -> Self {
        let (folder, store) = Sample::store();
        let parent = make(PARENT, "27", entries, &[record(VOLUME, bytes)]);
        parent.put(&store, &[(VOLUME, bytes)]);
        let child = make(CHILD, "28", Vec::new(), &[]);
        Sample { folder, store, parent, child }
    }

    pub(crate) fn with_dump(dump: &[u8]) -> Self {
        let (folder, store) = Sample::store();
        let big = noise(600_000);
        let (bytes, files) =
            volume(&[&[("a.txt", b"alpha\n"), ("b/beta", b"beta\n")], &[("big", &big)]]);
        let mut entries = files.clone();
        entries.push(dump_entry(dump));
        let parent_records = [record(VOLUME, &bytes), record(DUMP, dump)];
        let parent = make(PARENT, "27", entries, &parent_records);
        parent.put(&store, &[(VOLUME, &bytes), (DUMP, dump)]);

        let (own_bytes, own_files) = volume(&[&[("c/new", b"new\n")]]);
        let mut entries = inherited(&files);
        entries.extend(own_files);
        entries.push(dump_entry(dump));
        let mut first = parent_records[0].clone();
        first.backup = Some(PARENT.into());
        let child =
            make(CHILD, "28", entries, &[first, record(VOLUME, &own_bytes), record(DUMP, dump)]);
        child.put(&store, &[(VOLUME, &own_bytes), (DUMP, dump)]);
        Sample { folder, store, parent, child }
    }

    /// The file of an object.
    pub(crate) fn file(&self, made: &Made, object: &str) -> PathBuf {
        self.folder.path().join(&made.folder).join(object)
    }

    /// Changes a stored object.
    pub(crate) fn alter(&self, made: &Made, object: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let file = self.file(made, object);
        let mut bytes = std::fs::read(&file).unwrap();
        change(&mut bytes);
        replace(&file, &bytes);
    }

    pub(crate) fn verify(&self, document: &[u8], options: &Options) -> Ran {
        let output = RefCell::new(Vec::new());
        let heard = Heard::default();
        let result = Reader::new(document).map_err(anyhow::Error::from).and_then(|reader| {
            verify(reader, &mut *output.borrow_mut(), &self.store, options, &EndMark, &heard)
        });
        Ran { result, output: output.into_inner(), said: heard.0.into_inner().unwrap() }
    }

    /// Verifies the second backup as it came from `bk-push manifest`.
    pub(crate) fn verify_child(&self, options: &Options) -> Ran {
        self.verify(&self.child.stored(), options)
    }
}

pub(crate) fn replace(file: &std::path::Path, bytes: &[u8]) {
    let existing = bk_manifest::atomic::Existing::Replace;
    bk_manifest::atomic::create(file, bytes, 0o600, existing).unwrap();
}
