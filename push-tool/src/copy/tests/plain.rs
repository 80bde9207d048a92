//! Copies of plain files: those of the backup itself are encrypted, the inherited ones are not.

use super::*;
use crate::partial::{Closed, ENTRIES};
use crate::plain::StoredSum;
use crate::upload::ClosedPiece;
use bk_manifest::entry::{At, Entry};
use bk_manifest::path::RelPath;

/// A backup with three plain files of its own, and two of the backup in `FULL`, one of them twice.
struct Plain {
    from: Arc<Memory>,
    to: Arc<Memory>,
    manifest: Vec<u8>,
    needed: Vec<String>,
}

const OWN: [&str; 3] = ["minio/a.age", "minio/b/c.age", "minio/d.age"];
const INHERITED: [&str; 3] = ["minio/x", "minio/y/z", "minio/x"];

fn document(own: &[&str], inherited: &[&str]) -> (String, Vec<u8>) {
    let (name, bytes) = manifest("backup-c", &[], &[]);
    let reader = bk_manifest::stream::Reader::new(&bytes[..]).unwrap();
    let header = reader.header().clone();
    let mut trailer = reader.end().unwrap().1;
    trailer.set(
        "objects",
        json!([
            {"component": "minio", "count": own.len(), "size": 9, "encryption": "age"},
            {"backup": "backup-a", "component": "minio", "count": inherited.len(), "size": 9},
        ]),
    );
    let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
    let own = own.iter().map(|object| (None, LAST, *object));
    let inherited = inherited.iter().map(|object| (Some("backup-a".to_owned()), FULL, *object));
    for (number, (backup, folder, object)) in own.chain(inherited).enumerate() {
        let mut entry = Entry::new(RelPath::new(format!("minio/{number:06}")).unwrap());
        entry.component = Some("minio".into());
        let stored = content(&place::join(folder, object));
        let (sum, size) = (Digest::of(&stored), stored.len() as u64);
        let mut at = At { backup: backup.clone(), object: object.into(), ..At::default() };
        if backup.is_none() {
            // What it is when it is opened.
            entry.set_content(Digest::of(b"clear"), 5);
            StoredSum { checksum: sum, size }.record(&mut at);
        } else {
            entry.set_content(sum, size);
        }
        entry.at = Some(at);
        writer.entry(&entry).unwrap();
    }
    (name, writer.end(trailer).unwrap().0)
}

impl Plain {
    fn new() -> Self {
        let (from, to) = (memory(), memory());
        let (name, manifest) = document(&OWN, &INHERITED);
        let mut needed: Vec<String> = OWN.map(|object| place::join(LAST, object)).to_vec();
        needed.extend(INHERITED[..2].iter().map(|object| place::join(FULL, object)));
        for name in &needed {
            from.store(name, &content(name));
        }
        from.store(&name, &manifest);
        Plain { from, to, manifest, needed }
    }

    fn copy(&self) -> anyhow::Result<Pushed> {
        let mut document = Document::read(&self.manifest[..]).unwrap();
        let (from, to) = (store(&self.from, "a"), store(&self.to, "b"));
        copy(&mut document, &from, &to, false, &Silent)?;
        Ok(document.trailer.run().unwrap().pushed.unwrap())
    }

    #[track_caller]
    fn fails(&self, exit: Exit, says: &str) {
        let error = self.copy().err().unwrap();
        assert_eq!(classify(&error), exit, "{error:#}");
        assert!(format!("{error:#}").contains(says), "{error:#}");
        assert!(!self.is_committed());
    }

    fn is_committed(&self) -> bool {
        self.to.has(&place::join(LAST, "manifest.json"))
    }

    #[track_caller]
    fn assert_whole(&self) {
        // What was to happen when something is read is over.
        self.to.before_reading("", Box::new(|_, _| ()));
        for name in &self.needed {
            assert_eq!(read(&self.to, name), content(name), "{name}");
        }
    }

    fn bytes(&self) -> u64 {
        self.needed.iter().map(|name| content(name).len() as u64).sum()
    }
}

#[test]
fn plain_files_come_as_they_are_stored() {
    let world = Plain::new();
    let pushed = world.copy().unwrap();
    assert_eq!((pushed.objects, pushed.elsewhere, pushed.inherited), (5, 2, 0));
    assert_eq!(pushed.stored, world.bytes());
    world.assert_whole();
    assert!(!world.to.names().iter().any(|name| name.starts_with(".bk/")));
    // Once more: nothing to do.
    world.to.die_after(Some(0));
    let pushed = world.copy().unwrap();
    assert_eq!((pushed.objects, pushed.stored, pushed.inherited), (0, 0, world.bytes()));
}

#[test]
fn a_copy_of_plain_files_may_die_at_any_change() {
    let mut deaths = 0;
    for changes in 0.. {
        let world = Plain::new();
        world.to.die_after(Some(changes));
        let is_done = world.copy().is_ok();
        world.to.die_after(None);
        assert!(world.is_committed() || !is_done);
        if world.is_committed() {
            world.assert_whole();
        }
        // Whatever lies there has been named.
        if !world.is_committed() {
            let mut named = Vec::new();
            for list in crate::partial::read_all(&*world.to).unwrap() {
                let mut add = |name| {
                    named.push(name);
                    Ok(())
                };
                list.each_object(&*world.to, &mut add).unwrap();
            }
            let there = world.to.names();
            for name in there.iter().filter(|name| !name.starts_with(".bk/")) {
                assert!(named.contains(name), "'{name}' has become a stranger");
            }
        }
        // What was closed is neither read nor copied again.
        for name in closed(&world.to) {
            world.from.drop_object(&name);
            let panics = Box::new(|_: &mut Objects, _: &mut Time| panic!("it is read again"));
            world.to.before_reading(&name, panics);
        }
        world.copy().unwrap();
        assert!(world.is_committed());
        world.assert_whole();
        if is_done {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 12, "{deaths}");
}

/// The plain files that the pieces of partial lists say are stored, where no manifest is there yet.
fn closed(to: &Memory) -> Vec<String> {
    let mut names = Vec::new();
    if to.names().iter().any(|name| place::is_manifest(name)) {
        return names;
    }
    for piece in to.names().iter().filter(|name| name.ends_with(ENTRIES)) {
        let mut piece = ClosedPiece::open(to, piece).unwrap();
        assert!(matches!(piece.closed, Closed::Plain(_)));
        while let Some(entry) = piece.next_entry().unwrap() {
            names.push(entry.at.unwrap().object);
        }
    }
    names
}

#[test]
fn a_damaged_plain_file_at_the_source_commits_nothing() {
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[0] ^= 1, |bytes| bytes.truncate(bytes.len() - 1), |bytes| bytes.push(0)];
    for number in 0..5 {
        for damage in damages {
            let world = Plain::new();
            world.from.change(&world.needed[number], damage);
            world.fails(Exit::Damaged, &world.needed[number]);
            assert!(!world.to.has(&world.needed[number]));
        }
        let world = Plain::new();
        world.from.drop_object(&world.needed[number]);
        world.fails(Exit::Damaged, "is missing");
    }
}

#[test]
fn other_content_under_a_plain_files_name_is_not_overwritten() {
    for number in 0..5 {
        let mut same_size = content(&Plain::new().needed[number]);
        same_size[0] ^= 1;
        for other in [b"x".to_vec(), same_size] {
            let world = Plain::new();
            world.to.store(&world.needed[number], &other);
            world.fails(Exit::Failed, "with other content");
            assert_eq!(read(&world.to, &world.needed[number]), other);
        }
        // The right one is taken as it is.
        let world = Plain::new();
        world.to.store(&world.needed[number], &content(&world.needed[number]));
        world.from.drop_object(&world.needed[number]);
        assert_eq!(world.copy().unwrap().objects, 4);
        world.assert_whole();
    }
}

#[test]
fn a_plain_file_that_a_manifest_vouches_for_is_not_read() {
    let world = Plain::new();
    world.copy().unwrap();
    for name in &world.needed {
        let panics = Box::new(|_: &mut Objects, _: &mut Time| panic!("it is read"));
        world.to.before_reading(name, panics);
        world.copy().unwrap();
    }
    // One that it has lost comes again.
    world.to.drop_object(&world.needed[1]);
    world.copy().unwrap();
    world.assert_whole();
}

#[test]
fn marks_are_heeded_for_plain_files() {
    for hours in [0, 24] {
        let world = Plain::new();
        let name = world.needed[4].clone();
        world.to.store(&name, &content(&name));
        let mark = Mark { host: "nas".into(), objects: vec![name], ..Mark::default() };
        let bytes = serde_json::to_vec(&mark).unwrap();
        world.to.store(".bk/marks/20260501T000000Z-00000000.json", &bytes);
        world.to.advance(Duration::from_hours(hours));
        if hours == 0 {
            world.copy().unwrap();
        } else {
            world.fails(Exit::Busy, "a prune from nas removes");
        }
    }
}

#[test]
fn plain_files_that_vanish_under_way_are_copied_again() {
    let world = Plain::new();
    let lose = Box::new(|objects: &mut Objects, _: &mut Time| {
        objects.retain(|name, _| !name.contains("/minio/"));
    });
    // The entries of the second batch.
    world.to.before("000004.entries", lose);
    assert_eq!(world.copy().unwrap().objects, 10);
    world.assert_whole();
}

#[test]
fn a_commit_that_lost_plain_files_is_withdrawn() {
    let world = Plain::new();
    let lose = Box::new(|objects: &mut Objects, now: &mut Time| {
        objects.retain(|name, _| !name.ends_with("minio/y/z"));
        *now = later(*now, 13);
    });
    world.to.before("manifest.json", lose);
    world.fails(Exit::Failed, "withdrawn");
}

#[test]
fn entries_cannot_have_other_names_copied() {
    for (own, inherited) in [
        (&["minio/manifest.json"][..], &[][..]),
        (&["minio/.bk/manifest.yaml"], &[]),
        (&["other/a"], &[]),
        (&[], &["other/a"]),
    ] {
        let world = Plain::new();
        let (name, manifest) = document(own, inherited);
        world.from.drop_object(&name);
        world.from.store(&name, &manifest);
        let world = Plain { manifest, ..world };
        world.fails(Exit::Malformed, "");
        assert!(world.to.names().is_empty());
    }
}
