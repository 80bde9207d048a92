//! Faults of the store between any two steps of a push.

use super::*;
use crate::bucket::none;
use crate::catalog::Catalog;
use crate::mark::Mark;
use crate::memory::{Memory, store_on};
use bk_manifest::manifest::{Application, HostPath, Layout, Source, SourceKind};
use bk_manifest::path::RelPath;
use bk_manifest::progress::Silent;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

const GRACE: Duration = Duration::from_hours(24);

/// A tree of one file, and a document for it that `add` would have made.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(content: &[u8]) -> Self {
        let tree = tempfile::tempdir().unwrap();
        bk_manifest::atomic::create(
            &tree.path().join("f"),
            content,
            0o600,
            bk_manifest::atomic::Existing::Keep,
        )
        .unwrap();
        Tree(tree)
    }

    fn document(&self, id: &str) -> Vec<u8> {
        let backup = Backup {
            id: id.into(),
            timestamp: "2026-05-01T00:00:00.000Z".into(),
            ..Backup::default()
        };
        let source = Source {
            component: "files".into(),
            kind: SourceKind::Tree,
            root: HostPath(self.0.path().as_os_str().as_bytes().to_vec()),
            prefix: HostPath::default(),
            paths: Vec::new(),
            access: None,
            layout: Layout::Packed,
        };
        let run = Run { sources: vec![source], ..Run::default() };
        let application = Application { name: "app".into(), version: None };
        let header = Header::new(&application, Some(&backup), &run);
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        let mut entry = Entry::new(RelPath::new("f").unwrap());
        entry.size = Some(1);
        writer.entry(&entry).unwrap();
        writer.end(Trailer::default()).unwrap().0
    }

    fn push(&self, id: &str, memory: &Arc<Memory>) -> anyhow::Result<Exit> {
        self.push_as(id, memory, Choice::default())
    }

    fn push_as(&self, id: &str, memory: &Arc<Memory>, encryption: Choice) -> anyhow::Result<Exit> {
        let options = Options { encryption, ..Options::default() };
        let document = self.document(id);
        let reader = Reader::new(&document[..]).unwrap();
        push(reader, std::io::sink(), &store_on(memory, GRACE), &options, &none, &Silent)
    }
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new("2026-05-01T00:00:00Z"))
}

/// The volumes that the backups at the destination need are all there.
fn assert_whole(memory: &Memory, backups: usize) {
    let catalog = Catalog::read(memory).unwrap();
    assert_eq!(catalog.backups.len(), backups);
    for backup in &catalog.backups {
        let (header, trailer) = crate::catalog::reread(memory, backup).unwrap();
        for object in crate::catalog::needed_objects(&header, &trailer, backup.folder()).unwrap() {
            assert!(memory.has(&object.name), "{} is gone", object.name);
        }
    }
}

#[test]
fn a_push_that_dies_at_any_change_leaves_no_backup_and_a_rerun_succeeds() {
    let tree = Tree::new(b"content");
    let changes = {
        let memory = memory();
        tree.push("b0", &memory).unwrap();
        assert_whole(&memory, 1);
        memory.names().len() as u64 + 8
    };
    for left in 0..changes {
        let memory = memory();
        memory.die_after(Some(left));
        let is_done = tree.push("b0", &memory).is_ok();
        memory.die_after(None);
        let committed =
            usize::from(memory.names().iter().any(|name| name.contains("manifest.json")));
        assert!(committed == 1 || !is_done, "done without a manifest after {left} changes");
        assert_whole(&memory, committed);
        tree.push("b1", &memory).unwrap();
        assert_whole(&memory, committed + 1);
    }
}

#[test]
fn the_next_push_builds_on_what_a_dead_one_stored() {
    let tree = Tree::new(b"content");
    let memory = memory();
    // Everything but the side files and the commit: the object is closed.
    memory.die_after(Some(4));
    tree.push("b0", &memory).unwrap_err();
    memory.die_after(None);
    tree.push("b1", &memory).unwrap();
    assert_whole(&memory, 1);
    let volumes: Vec<String> =
        memory.names().into_iter().filter(|name| name.ends_with(".tar.zst")).collect();
    assert_eq!(volumes, ["2026/05/01/b0/files/000001.tar.zst"]);
}

/// For a key that nobody has.
fn for_somebody() -> Choice {
    let recipient = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    Choice::new(&[format!("age:{recipient}")], None).unwrap()
}

#[test]
fn the_next_push_knows_how_a_dead_one_encrypted() {
    let tree = Tree::new(b"content");
    for (dead, next) in [
        (for_somebody(), for_somebody()),
        (Choice::default(), for_somebody()),
        (for_somebody(), Choice::default()),
    ] {
        let memory = memory();
        memory.die_after(Some(4));
        tree.push_as("b0", &memory, dead.clone()).unwrap_err();
        memory.die_after(None);
        tree.push_as("b1", &memory, next.clone()).unwrap();
        assert_whole(&memory, 1);
        let catalog = Catalog::read(&*memory).unwrap();
        let (_, trailer) = crate::catalog::reread(&*memory, &catalog.backups[0]).unwrap();
        let record = &trailer.objects().unwrap()[0];
        let (was_sealed, is_sealed) = (dead.of("files").is_some(), next.of("files").is_some());
        // What lies there in clear is not taken over by one that encrypts.
        let is_taken_over = was_sealed || !is_sealed;
        assert_eq!(record.backup.as_deref(), is_taken_over.then_some("b0"));
        let sealed = if is_taken_over { was_sealed } else { is_sealed };
        assert_eq!(record.encryption.as_deref(), sealed.then_some("age"));
        assert_eq!(record.object.contains(".age"), sealed);
    }
}

#[test]
fn an_object_that_vanishes_before_the_commit_is_stored_again() {
    let tree = Tree::new(b"content");
    let memory = memory();
    // The store loses the volume as soon as its entries are noted.
    memory.before(
        ".entries",
        Box::new(|objects, _| objects.retain(|name, _| !name.ends_with(".tar.zst"))),
    );
    tree.push("b0", &memory).unwrap();
    assert_whole(&memory, 1);
    assert!(memory.has("2026/05/01/b0/files/000002.tar.zst"));
}

#[test]
fn an_object_that_prune_has_marked_is_stored_again() {
    let tree = Tree::new(b"content");
    let memory = memory();
    // The volume of a dead push would be taken over, were it not marked.
    memory.die_after(Some(4));
    tree.push("b0", &memory).unwrap_err();
    memory.die_after(None);
    let volume = "2026/05/01/b0/files/000001.tar.zst";
    let mark: Mark = Mark { objects: vec![volume.into()], ..Mark::default() };
    memory.store(".bk/marks/20260501T000000Z-00000000.json", &serde_json::to_vec(&mark).unwrap());
    tree.push("b1", &memory).unwrap();
    assert!(memory.has("2026/05/01/b1/files/000001.tar.zst"));
}

#[test]
fn an_object_that_is_marked_during_the_push_is_stored_again() {
    let tree = Tree::new(b"content");
    let memory = memory();
    let volume = "2026/05/01/b0/files/000001.tar.zst";
    let mark: Mark = Mark { objects: vec![volume.into()], ..Mark::default() };
    memory.before(
        ".entries",
        Box::new(move |objects, now| {
            let text = serde_json::to_vec(&mark).unwrap();
            objects.insert(".bk/marks/20260501T000000Z-00000000.json".into(), (text, *now));
        }),
    );
    tree.push("b0", &memory).unwrap();
    memory.drop_object(volume);
    assert_whole(&memory, 1);
}

#[test]
fn a_commit_that_came_too_late_is_withdrawn() {
    let tree = Tree::new(b"content");
    let memory = memory();
    // Between the last look and the commit's answer half a grace time passes, and prune removes
    // an object.
    memory.before(
        "manifest.json",
        Box::new(|objects, now| {
            objects.retain(|name, _| !name.ends_with(".tar.zst"));
            *now = Time::from_unix(now.unix().0 + 13 * 3600, 0);
        }),
    );
    let error = tree.push("b0", &memory).unwrap_err();
    assert!(error.to_string().contains("withdrawn"), "{error:#}");
    assert_whole(&memory, 0);
}

#[test]
fn what_went_while_the_manifest_was_written_stops_the_commit() {
    let tree = Tree::new(b"content");
    let memory = memory();
    memory.before(
        "SHA256SUMS",
        Box::new(|objects, now| {
            objects.retain(|name, _| !name.ends_with(".tar.zst"));
            *now = Time::from_unix(now.unix().0 + 13 * 3600, 0);
        }),
    );
    let error = tree.push("b0", &memory).unwrap_err();
    assert!(error.to_string().contains("nothing was committed"), "{error:#}");
    tree.push("b1", &memory).unwrap();
    assert_whole(&memory, 1);
}

#[test]
fn a_commit_that_cannot_be_withdrawn_says_so() {
    let tree = Tree::new(b"content");
    let memory = memory();
    memory.before(
        "manifest.json",
        Box::new(|objects, now| {
            objects.retain(|name, _| !name.ends_with(".tar.zst"));
            *now = Time::from_unix(now.unix().0 + 13 * 3600, 0);
        }),
    );
    // The list's two pieces, the volume and its entries, the side files, the manifest.
    memory.die_after(Some(8));
    let error = tree.push("b0", &memory).unwrap_err();
    assert!(memory.has("2026/05/01/b0/manifest.json"), "{error:#}");
    assert!(error.to_string().contains("could not be withdrawn"), "{error:#}");
}

#[test]
fn a_commit_under_a_mark_that_is_due_is_withdrawn() {
    let tree = Tree::new(b"content");
    let memory = memory();
    let mark: Mark =
        Mark { objects: vec!["2026/05/01/b0/files/000001.tar.zst".into()], ..Mark::default() };
    memory.before(
        "manifest.json",
        Box::new(move |objects, now| {
            let text = serde_json::to_vec(&mark).unwrap();
            objects.insert(".bk/marks/20260501T000000Z-00000000.json".into(), (text, *now));
            *now = Time::from_unix(now.unix().0 + 25 * 3600, 0);
        }),
    );
    tree.push("b0", &memory).unwrap_err();
    assert_whole(&memory, 0);
}
