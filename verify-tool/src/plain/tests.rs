//! Plain files in backups made by hand, one of which inherits from the other.

use std::fs;

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry};
use bk_manifest::exit::Exit;
use bk_manifest::select::Selection;
use bk_push::mark::Mark;
use bk_push::plain::StoredSum;
use serde_json::{Value, json};

use super::Looked;
use crate::level::Level;
use crate::report::{ReportFile, ReportFormat};
use crate::sample::{CHILD, PARENT, Ran, Sample, at_level, options, path, plain};
use crate::verify::Options;

const LEVELS: [Level; 3] = [Level::Present, Level::Stored, Level::Content];

/// An entry whose object is `object` of the component `minio`, of an earlier backup or its own.
fn entry(name: &str, object: &str, backup: Option<&str>, bytes: &[u8]) -> Entry {
    let mut entry = Entry::new(path(&format!("minio/{name}")));
    entry.component = Some("minio".into());
    entry.set_content(Digest::of(bytes), bytes.len() as u64);
    let (object, backup) = (format!("minio/{object}"), backup.map(str::to_owned));
    entry.at = Some(At { object, backup, ..At::default() });
    entry
}

fn sample() -> Sample {
    let lines = |backup: Option<&str>, own: u64| {
        let mut lines = vec![json!({"component": "minio", "count": 3, "size": 9})];
        if let Some(backup) = backup {
            lines[0]["backup"] = json!(backup);
            lines.push(json!({"component": "minio", "count": own, "size": 4}));
        }
        lines
    };
    let files = |backup: Option<&'static str>| {
        vec![
            entry("a", "a", backup, b"one"),
            entry("b", "b", backup, b"two"),
            entry("b2", "b", backup, b"two"),
        ]
    };
    let mut of_child = files(Some(PARENT));
    of_child.push(entry("new", "new", None, b"four"));
    plain(
        (files(None), lines(None, 0), &[("minio/a", b"one"), ("minio/b", b"two")]),
        (of_child, lines(Some(PARENT), 1), &[("minio/new", b"four")]),
    )
}

/// Verifies the second backup; what the JSON report says of it.
fn reported(sample: &Sample, document: &[u8], options: Options) -> (Ran, Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = |format, name: &str| ReportFile { format, file: folder.path().join(name) };
    let reports = vec![file(ReportFormat::Json, "r.json"), file(ReportFormat::Junit, "r.xml")];
    let ran = sample.verify(document, &Options { reports, ..options });
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let json = serde_json::from_str(&read("r.json")).unwrap();
    (ran, json, read("r.xml"))
}

#[test]
fn each_object_is_counted_once() {
    let sample = sample();
    let child = sample.child.stored();
    for (level, checked) in LEVELS.into_iter().zip([
        json!({"objects": 3, "read": 0, "entries": 0, "bytes": 0}),
        json!({"objects": 3, "read": 3, "entries": 0, "bytes": 10}),
        json!({"objects": 3, "read": 3, "entries": 4, "bytes": 23}),
    ]) {
        let (ran, report, xml) = reported(&sample, &child, at_level(level));
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.said);
        assert_eq!(report["checked"], checked);
        // The manifest too.
        assert!(xml.contains("tests=\"4\" failures=\"0\""), "{xml}");
    }
}

#[test]
fn behind_its_push_the_own_ones_are_read() {
    let sample = sample();
    let pushed = sample.child.pushed(&sample);
    sample.alter(&sample.parent, "minio/a", |bytes| bytes[0] ^= 1);
    let (ran, report, _) = reported(&sample, &pushed, options());
    assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.said);
    assert_eq!((&report["checked"]["objects"], &report["checked"]["read"]), (&json!(3), &json!(1)));
    sample.alter(&sample.child, "minio/new", |bytes| bytes[0] ^= 1);
    assert_eq!(sample.verify(&pushed, &options()).exit(), Exit::Damaged);
}

#[test]
fn damage_is_told_with_the_files_and_the_backups_that_it_costs() {
    type Damage = fn(&Sample);
    let damages: [(Damage, &str, Level); 4] = [
        (|s| fs::remove_file(s.file(&s.parent, "minio/b")).unwrap(), "missing", Level::Present),
        (|s| s.alter(&s.parent, "minio/b", |b| b.truncate(2)), "size", Level::Present),
        (|s| s.alter(&s.parent, "minio/b", |b| b.push(0)), "size", Level::Present),
        (|s| s.alter(&s.parent, "minio/b", |b| b[0] ^= 1), "checksum", Level::Stored),
    ];
    for (damage, kind, found_at) in damages {
        let sample = sample();
        damage(&sample);
        for level in LEVELS {
            let child = sample.child.stored();
            let (ran, report, xml) = reported(&sample, &child, at_level(level));
            if level < found_at {
                assert_eq!(ran.exit(), Exit::Done, "{kind} at {level:?}");
                continue;
            }
            assert_eq!(ran.exit(), Exit::Damaged, "{kind} at {level:?}");
            assert!(!ran.is_ended());
            let object = format!("{}/minio/b", sample.parent.folder);
            assert!(ran.has_said(&format!("object '{object}' ")), "{:?}", ran.said);
            let problems = report["problems"].as_array().unwrap();
            assert_eq!(problems.len(), 1, "{kind} at {level:?}: {problems:?}");
            assert_eq!(problems[0]["kind"], kind, "{level:?}");
            assert_eq!(problems[0]["files"], json!(["minio/b", "minio/b2"]), "{level:?}");
            assert_eq!(problems[0]["shared_with"], json!([PARENT]));
            assert!(xml.contains("tests=\"4\" failures=\"1\""), "{xml}");
        }
        let ran = sample.verify(&sample.parent.stored(), &at_level(Level::Stored));
        assert!(ran.has_said(&format!("also needed by: {CHILD}")), "{:?}", ran.said);
    }
    // What the other backup does not need is its own matter.
    let sample = sample();
    fs::remove_file(sample.file(&sample.child, "minio/new")).unwrap();
    let ran = sample.verify_child(&at_level(Level::Present));
    assert!(!ran.has_said("also needed by"), "{:?}", ran.said);
}

#[test]
fn a_selection_looks_at_the_objects_of_its_files() {
    let sample = sample();
    fs::remove_file(sample.file(&sample.child, "minio/new")).unwrap();
    let selected = |level, pattern| {
        let selection = Selection::new(&[pattern], &[]).unwrap();
        let options = Options { selection, ..at_level(level) };
        let (ran, report, _) = reported(&sample, &sample.child.stored(), options);
        (ran.exit(), report["checked"]["objects"].clone())
    };
    for level in LEVELS {
        assert_eq!(selected(level, "minio/b*"), (Exit::Done, json!(1)), "{level:?}");
        assert_eq!(selected(level, "minio/new"), (Exit::Damaged, json!(1)), "{level:?}");
    }
}

#[test]
fn content_that_is_not_what_was_stored_is_found_by_content() {
    let mut sample = sample();
    for entry in &mut sample.child.entries {
        if entry.path == path("minio/a") {
            StoredSum { checksum: Digest::of(b"one"), size: 3 }.record(entry.at.as_mut().unwrap());
            entry.set_content(Digest::of(b"two"), 3);
        }
    }
    let child = sample.child.stored();
    crate::sample::replace(&sample.file(&sample.child, "manifest.json"), &child);
    assert_eq!(sample.verify(&child, &at_level(Level::Stored)).exit(), Exit::Done);
    let (ran, report, _) = reported(&sample, &child, at_level(Level::Content));
    assert_eq!(ran.exit(), Exit::Damaged);
    let object = format!("{}/minio/a", sample.parent.folder);
    assert_eq!(report["problems"][0]["object"], object);
    assert_eq!(report["problems"][0]["files"], json!(["minio/a"]));
}

#[test]
fn an_object_that_objects_does_not_account_for_is_malformed() {
    let mut sample = sample();
    sample.child.trailer.set("objects", json!([{"component": "minio", "count": 1, "size": 4}]));
    crate::sample::replace(&sample.file(&sample.child, "manifest.json"), &sample.child.stored());
    for level in LEVELS {
        let ran = sample.verify_child(&at_level(level));
        assert_eq!(ran.exit(), Exit::Malformed, "{:?}", ran.result);
        assert!(format!("{:#}", ran.result.unwrap_err()).contains("missing from 'objects'"));
    }
}

#[test]
fn what_prune_has_marked_is_told() {
    let sample = sample();
    let object = format!("{}/minio/b", sample.parent.folder);
    let mark = Mark { objects: vec![object.clone()], ..Mark::default() };
    let text = json!({
        "host": mark.host, "series": mark.series, "backups": mark.backups,
        "manifests": mark.manifests, "objects": mark.objects,
    });
    let name = ".bk/marks/20260501T000000Z-00000000.json";
    sample.store.destination.create(name, text.to_string().as_bytes()).unwrap();
    let ran = sample.verify_child(&at_level(Level::Present));
    assert_eq!(ran.exit(), Exit::Done);
    assert!(ran.has_said(&format!("'{object}' is marked")), "{:?}", ran.said);
}

#[test]
fn very_many_are_told_as_one() {
    let looked = Looked { objects: 9_999, names: vec!["a".into()], ..Looked::default() };
    assert_eq!(looked.into_names(), ["a"]);
    let looked = Looked { objects: 10_000, ..Looked::default() };
    assert_eq!(looked.into_names(), ["10000 objects of one file each"]);
}
