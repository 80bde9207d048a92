//! Copies that die, stores that lie, and prunes at work in between.

mod plain;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::mark::Mark;
use crate::memory::{Memory, Objects};
use crate::partial::ClosedObject;
use bk_manifest::exit::classify;
use bk_manifest::manifest::{Application, Backup, Header, Run, Trailer};
use bk_manifest::progress::Silent;
use bk_manifest::stream::{Format, Writer};
use serde_json::{Map, json};

const GRACE: Duration = Duration::from_hours(24);
const FULL: &str = "2026/04/27/backup-a";
const LAST: &str = "2026/04/29/backup-c";

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new("2026-05-01T00:00:00Z"))
}

fn store(memory: &Arc<Memory>, id: &str) -> Store {
    let mut store = crate::memory::store_on(memory, GRACE);
    store.marker.id = id.into();
    store
}

fn content(name: &str) -> Vec<u8> {
    name.repeat(1 + name.len()).into_bytes()
}

/// A backup's manifest: with objects of its own, and of the backup in `FULL`.
fn manifest(id: &str, own: &[&str], inherited: &[&str]) -> (String, Vec<u8>) {
    let day = if id == "backup-a" { "27" } else { "29" };
    let folder = format!("2026/04/{day}/{id}");
    let backup = Backup {
        id: id.into(),
        timestamp: format!("2026-04-{day}T02:21:50.000Z"),
        ..Backup::default()
    };
    let application = Application { name: "app".into(), version: None };
    let mut header = Header::new(&application, Some(&backup), &Run::default()).stored();
    header.set("chain", json!({"backup-a": place::relative(&folder, FULL)}));
    let record = |backup: Option<&str>, folder: &str, object: &str| {
        let bytes = content(&place::join(folder, object));
        ObjectRecord {
            backup: backup.map(str::to_owned),
            checksum: Digest::of(&bytes),
            encryption: None,
            live: 1,
            object: object.to_owned(),
            size: bytes.len() as u64,
            extra: Map::new(),
        }
    };
    let mut objects: Vec<_> = own.iter().map(|object| record(None, &folder, object)).collect();
    objects.extend(inherited.iter().map(|object| record(Some("backup-a"), FULL, object)));
    let mut trailer = Trailer::default();
    trailer.set("objects", json!(objects));
    let bytes = Writer::new(Vec::new(), Format::Json, header).unwrap().end(trailer).unwrap().0;
    (place::join(&folder, "manifest.json"), bytes)
}

/// The last backup of a chain, at a source of which the first backup's own manifest is gone.
struct World {
    from: Arc<Memory>,
    to: Arc<Memory>,
    manifest: Vec<u8>,
}

const NEEDED: [&str; 4] = [
    "2026/04/27/backup-a/files/000001.tar.zst",
    "2026/04/27/backup-a/files/000002.tar.zst",
    "2026/04/29/backup-c/database/app.dump",
    "2026/04/29/backup-c/files/000001.tar.zst",
];

impl World {
    fn new() -> Self {
        let (from, to) = (memory(), memory());
        let own = ["database/app.dump", "files/000001.tar.zst"];
        let (name, manifest) =
            manifest("backup-c", &own, &["files/000001.tar.zst", "files/000002.tar.zst"]);
        for name in NEEDED {
            from.store(name, &content(name));
        }
        from.store(&name, &manifest);
        World { from, to, manifest }
    }

    fn copy(&self) -> anyhow::Result<(Exit, Document)> {
        let mut document = Document::read(&self.manifest[..]).unwrap();
        let exit =
            copy(&mut document, &store(&self.from, "a"), &store(&self.to, "b"), false, &Silent)?;
        Ok((exit, document))
    }

    fn fails(&self, exit: Exit, says: &str) {
        let error = self.copy().err().unwrap();
        assert_eq!(classify(&error), exit, "{error:#}");
        assert!(format!("{error:#}").contains(says), "{error:#}");
    }

    fn is_committed(&self) -> bool {
        self.to.has(&place::join(LAST, "manifest.json"))
    }

    /// What is committed is whole; nothing else is there but what was before.
    #[track_caller]
    fn assert_copied(&self) {
        let mut expected: Vec<String> = NEEDED.map(str::to_owned).to_vec();
        let manifest = place::join(LAST, "manifest.json");
        expected.extend(place::side_files(&manifest));
        expected.push(manifest.clone());
        expected.sort();
        assert_eq!(self.to.names(), expected);
        self.assert_whole();
        assert_eq!(read(&self.to, &manifest), self.manifest);
    }

    #[track_caller]
    fn assert_whole(&self) {
        for name in NEEDED {
            assert_eq!(read(&self.to, name), content(name), "{name}");
        }
    }
}

fn read(memory: &Memory, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    memory.read(name, None).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn put_mark(objects: &mut Objects, now: Time, name: &str) {
    let mark: Mark = Mark { objects: vec![name.into()], ..Mark::default() };
    let text = serde_json::to_vec(&mark).unwrap();
    objects.insert(".bk/marks/20260501T000000Z-00000000.json".into(), (text, now));
}

fn later(now: Time, hours: i64) -> Time {
    Time::from_unix(now.unix().0 + hours * 3600, 0)
}

#[test]
fn a_backup_comes_with_what_it_needs_of_its_chain() {
    let world = World::new();
    let (exit, document) = world.copy().unwrap();
    assert_eq!(exit, Exit::Done);
    world.assert_copied();
    let run = document.header.run().unwrap();
    assert_eq!(run.place, Some(place::join(LAST, "manifest.json")));
    assert_eq!(run.destination.as_deref(), Some("b"));
    let pushed = document.trailer.run().unwrap().pushed.unwrap();
    assert_eq!((pushed.objects, pushed.elsewhere, pushed.inherited), (4, 2, 0));
    // Once more: nothing to do.
    world.to.die_after(Some(0));
    let pushed = world.copy().unwrap().1.trailer.run().unwrap().pushed.unwrap();
    assert_eq!((pushed.objects, pushed.stored), (0, 0));
    let all: u64 = NEEDED.iter().map(|name| content(name).len() as u64).sum();
    assert_eq!(pushed.inherited, all);
}

#[test]
fn what_was_proved_at_the_source_proves_nothing_here() {
    let world = World::new();
    let mut document = Document::read(&world.manifest[..]).unwrap();
    let proof = json!({"total_checksum": document.trailer.total_checksum(), "level": "stored",
        "scope": "all", "time": "2026-05-01T00:00:00Z", "host": "vm1"});
    let end: EndRun = serde_json::from_value(json!({"code": 3, "proofs": [proof]})).unwrap();
    document.trailer.set_run(&end);
    let exit =
        copy(&mut document, &store(&world.from, "a"), &store(&world.to, "b"), false, &Silent);
    assert_eq!(exit.unwrap(), Exit::Partial, "the code that came in is passed on");
    assert_eq!(document.trailer.run().unwrap().proofs, []);
}

#[test]
fn a_copy_that_dies_at_any_change_leaves_no_backup_and_a_rerun_goes_on() {
    let mut deaths = 0;
    for changes in 0.. {
        let world = World::new();
        let (name, before) = manifest("backup-a", &["files/000001.tar.zst"], &[]);
        world.to.store(NEEDED[0], &content(NEEDED[0]));
        world.to.store(&name, &before);
        world.to.die_after(Some(changes));
        let is_done = world.copy().is_ok();
        world.to.die_after(None);
        if world.is_committed() {
            world.assert_whole();
        }
        assert!(world.is_committed() || !is_done, "done without a manifest: {changes}");
        assert_eq!(read(&world.to, &name), before);
        assert_eq!(read(&world.to, NEEDED[0]), content(NEEDED[0]));
        let there = world.to.names();
        let is_clean = there.iter().all(|name| !name.starts_with(".bk/"));
        world.copy().unwrap();
        assert!(there.iter().filter(|name| !name.starts_with(".bk/")).all(|n| world.to.has(n)));
        assert!(world.is_committed());
        world.assert_whole();
        // A list that could not be removed behind the commit is prune's to take.
        if is_done && is_clean {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 15, "{deaths}");
}

#[test]
fn a_rerun_copies_nothing_twice() {
    let mut spared = 0;
    for changes in 0..12 {
        let world = World::new();
        world.to.die_after(Some(changes));
        assert!(world.copy().is_err());
        world.to.die_after(None);
        for piece in world.to.names().iter().filter(|name| name.ends_with(".entries")) {
            let closed: ClosedObject = serde_json::from_slice(&read(&world.to, piece)).unwrap();
            world.from.drop_object(&closed.object);
            // Nor is it read where it lies: what was closed is vouched for.
            let panics = Box::new(|_: &mut Objects, _: &mut Time| panic!("it is read again"));
            world.to.before_reading(&closed.object, panics);
            spared += 1;
        }
        world.copy().unwrap();
        assert!(world.is_committed());
    }
    assert!(spared > 5, "{spared}");
}

#[test]
fn a_damaged_source_commits_nothing() {
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[0] ^= 1, |bytes| bytes.truncate(bytes.len() - 1), |bytes| bytes.push(0)];
    for name in NEEDED {
        for damage in damages {
            let world = World::new();
            let mut bytes = content(name);
            damage(&mut bytes);
            world.from.drop_object(name);
            world.from.store(name, &bytes);
            world.fails(Exit::Damaged, name);
            assert!(!world.is_committed() && !world.to.has(name));
        }
        let world = World::new();
        world.from.drop_object(name);
        world.fails(Exit::Damaged, "is missing");
        assert!(!world.is_committed());
    }
}

/// The listing says one thing and the read gives another.
#[test]
fn a_source_that_lies_about_sizes_commits_nothing() {
    for lie in [vec![], b"short".to_vec(), vec![b'x'; 1 << 20]] {
        let world = World::new();
        let swap = Box::new(move |objects: &mut Objects, now: &mut Time| {
            objects.insert(NEEDED[3].into(), (lie, *now));
        });
        world.from.before_reading("backup-c/files", swap);
        world.fails(Exit::Damaged, NEEDED[3]);
        assert!(!world.is_committed() && !world.to.has(NEEDED[3]));
    }
}

#[test]
fn a_manifest_that_is_damaged_another_or_gone_is_not_copied() {
    let world = World::new();
    let name = place::join(LAST, "manifest.json");
    world.from.drop_object(&name);
    let bad = String::from_utf8(world.manifest.clone()).unwrap().replace("02:21:50", "02:21:51");
    world.from.store(&name, bad.as_bytes());
    world.fails(Exit::Damaged, "is damaged");
    world.from.drop_object(&name);
    let other = manifest("backup-c", &["database/app.dump"], &[]).1;
    world.from.store(&name, &other);
    world.fails(Exit::Damaged, "another manifest");
    world.from.drop_object(&name);
    world.fails(Exit::NotFound, "no backup");
    assert!(world.to.names().is_empty());
}

/// It was whole when it was found, and is not when it is copied.
#[test]
fn a_manifest_that_changes_under_way_is_not_committed() {
    let other = manifest("backup-c", &["database/app.dump"], &[]).1;
    let cut = World::new().manifest[..300].to_vec();
    for (bad, says) in [(other, "has changed"), (cut, "is damaged")] {
        let world = World::new();
        let from = Arc::clone(&world.from);
        let swap = Box::new(move |_: &mut Objects, _: &mut Time| {
            let name = place::join(LAST, "manifest.json");
            from.drop_object(&name);
            from.store(&name, &bad);
        });
        world.to.before("SHA256SUMS", swap);
        world.fails(Exit::Damaged, says);
        assert!(!world.is_committed());
    }
}

#[test]
fn other_content_under_a_name_is_not_overwritten() {
    for name in NEEDED {
        for same_size in [false, true] {
            let world = World::new();
            let other = if same_size { vec![b'x'; content(name).len()] } else { b"x".to_vec() };
            world.to.store(name, &other);
            world.fails(Exit::Failed, "with other content");
            assert_eq!(read(&world.to, name), other);
            assert!(!world.is_committed());
        }
    }
    let world = World::new();
    let side = place::join(LAST, "RESTORE.txt");
    world.to.store(&side, b"mine");
    world.fails(Exit::Failed, "RESTORE.txt");
    assert_eq!(read(&world.to, &side), b"mine");
}

#[test]
fn what_a_manifest_there_vouches_for_is_not_read() {
    let world = World::new();
    let (name, other) = manifest("backup-a", &["files/000001.tar.zst"], &[]);
    world.to.store(&name, &other);
    // Damage of the same size, which only reading would find: verify's to tell.
    world.to.store(NEEDED[0], &vec![b'x'; content(NEEDED[0]).len()]);
    world.copy().unwrap();
    assert!(world.is_committed());
}

#[test]
fn a_strangers_object_that_is_the_right_one_is_taken() {
    let world = World::new();
    world.to.store(NEEDED[1], &content(NEEDED[1]));
    world.from.drop_object(NEEDED[1]);
    world.copy().unwrap();
    world.assert_copied();
}

#[test]
fn another_backup_of_that_id_stops_it() {
    let world = World::new();
    let (name, other) = manifest("backup-c", &[], &["files/000001.tar.zst"]);
    world.to.store(NEEDED[0], &content(NEEDED[0]));
    world.to.store(&name, &other);
    world.fails(Exit::Failed, "another backup 'backup-c'");
    assert_eq!(world.to.names().len(), 2);
    // Damaged, it is still none that may be replaced.
    world.to.drop_object(&name);
    world.to.store(&name, &other[..other.len() / 2]);
    world.fails(Exit::Failed, "which cannot be read");
}

#[test]
fn a_backup_that_has_lost_an_object_gets_it_again() {
    let world = World::new();
    world.copy().unwrap();
    world.to.drop_object(NEEDED[1]);
    world.copy().unwrap();
    world.assert_copied();
}

#[test]
fn secrets_in_clear_do_not_go_where_that_is_refused() {
    let world = World::new();
    let mut document = Document::read(&world.manifest[..]).unwrap();
    let record = json!({"name": "config", "kind": "archive", "status": "complete"});
    document.trailer.set_components(&[serde_json::from_value(record).unwrap()]);
    let (from, to) = (store(&world.from, "a"), store(&world.to, "b"));
    let error = copy(&mut document, &from, &to, true, &Silent).unwrap_err();
    assert_eq!(classify(&error), Exit::Usage);
    assert!(error.to_string().ends_with("in clear: config"), "{error:#}");
    assert!(world.to.names().is_empty());
}

#[test]
fn one_destination_is_no_copy() {
    let world = World::new();
    let mut document = Document::read(&world.manifest[..]).unwrap();
    let error =
        copy(&mut document, &store(&world.from, "a"), &store(&world.from, "a"), false, &Silent);
    assert_eq!(classify(&error.unwrap_err()), Exit::Usage);
}

#[test]
fn a_manifest_cannot_have_bks_own_names_copied() {
    for object in [".bk-destination", ".bk/marks/x.json", "manifest.json", "x/manifest.yaml"] {
        let world = World::new();
        let (_, manifest) = manifest("backup-c", &[object], &[]);
        world.from.drop_object(&place::join(LAST, "manifest.json"));
        world.from.store("manifest.json", &manifest);
        let world = World { manifest, ..world };
        let error = world.copy().err().unwrap();
        assert_eq!(classify(&error), Exit::Malformed, "{error:#}");
        assert!(world.to.names().is_empty());
    }
}

#[test]
fn a_prune_that_is_at_work_is_waited_for() {
    let world = World::new();
    world.to.store(NEEDED[0], &content(NEEDED[0]));
    let mark: Mark =
        Mark { host: "nas".into(), objects: vec![NEEDED[0].into()], ..Mark::default() };
    world.to.store(".bk/marks/20260501T000000Z-00000000.json", &serde_json::to_vec(&mark).unwrap());
    world.to.advance(GRACE);
    world.fails(Exit::Busy, "a prune from nas removes");
    assert!(!world.is_committed());
}

#[test]
fn a_mark_that_is_not_due_does_no_harm() {
    let world = World::new();
    world.to.store(NEEDED[0], &content(NEEDED[0]));
    let mark: Mark = Mark { objects: vec![NEEDED[0].into()], ..Mark::default() };
    let name = ".bk/marks/20260501T000000Z-00000000.json";
    world.to.store(name, &serde_json::to_vec(&mark).unwrap());
    world.to.advance(GRACE.saturating_sub(Duration::from_secs(1)));
    world.copy().unwrap();
    world.assert_whole();
}

#[test]
fn a_mark_that_comes_due_before_the_commit_has_it_withdrawn() {
    let world = World::new();
    world.to.store(NEEDED[0], &content(NEEDED[0]));
    let mark: Mark = Mark { objects: vec![NEEDED[0].into()], ..Mark::default() };
    let name = ".bk/marks/20260501T000000Z-00000000.json";
    world.to.store(name, &serde_json::to_vec(&mark).unwrap());
    world.to.advance(GRACE.saturating_sub(Duration::from_secs(1)));
    // Only a second later: no half grace time has passed since the look.
    let due = Box::new(|_: &mut Objects, now: &mut Time| *now = later(*now, 1));
    world.to.before("manifest.json", due);
    world.fails(Exit::Failed, "withdrawn");
    assert!(!world.is_committed());
    assert!(!world.to.has(&place::join(LAST, "RESTORE.txt")));
}

#[test]
fn a_mark_that_appears_under_way_is_seen() {
    let world = World::new();
    let mark = Box::new(|objects: &mut Objects, now: &mut Time| {
        put_mark(objects, *now, NEEDED[0]);
        *now = later(*now, 25);
    });
    world.to.before(".entries", mark);
    world.fails(Exit::Busy, "removes");
    assert!(!world.is_committed());
}

#[test]
fn what_vanishes_under_way_is_copied_again() {
    let world = World::new();
    let lose = Box::new(|objects: &mut Objects, _: &mut Time| {
        objects.retain(|name, _| !name.ends_with(".tar.zst"));
    });
    // The last piece: all four objects are there.
    world.to.before("000008.entries", lose);
    world.copy().unwrap();
    world.assert_copied();
}

#[test]
fn a_commit_that_came_too_late_is_withdrawn() {
    let world = World::new();
    let lose = Box::new(|objects: &mut Objects, now: &mut Time| {
        objects.retain(|name, _| !name.ends_with(".tar.zst"));
        *now = later(*now, 13);
    });
    world.to.before("manifest.json", lose);
    world.fails(Exit::Failed, "withdrawn");
    assert!(!world.is_committed());
    world.copy().unwrap();
    world.assert_copied();
}

#[test]
fn a_store_that_cuts_what_it_is_given_gets_no_manifest() {
    let world = World::new();
    let cut = Box::new(|objects: &mut Objects, _: &mut Time| {
        for (name, (bytes, _)) in objects.iter_mut() {
            if name.ends_with(".tar.zst") {
                bytes.pop();
            }
        }
    });
    world.to.before("000008.entries", cut);
    let result = world.copy();
    assert!(result.is_err() && !world.is_committed(), "{:?}", world.to.names());
}
