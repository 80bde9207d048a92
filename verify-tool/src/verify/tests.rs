//! The step as a whole: levels, selections, proofs and damage.

use super::*;
use crate::sample::{CHILD, DUMP, PARENT, Ran, Sample, VOLUME, at_level, options};
use bk_manifest::manifest::{EndRun, Run};
use std::fs;

const LEVELS: [Level; 3] = [Level::Present, Level::Stored, Level::Content];

fn assert_damaged(ran: &Ran) {
    assert_eq!(ran.exit(), Exit::Damaged, "{:?}", ran.result);
    assert!(!ran.is_ended(), "the document was ended on damage");
}

fn selected(level: Level, pattern: &str) -> Options {
    let selection = Selection::new(&[pattern], &[]).unwrap();
    Options { level: Some(level), selection, ..options() }
}

#[test]
fn a_good_backup_is_good_at_each_level_and_passed_on() {
    let sample = Sample::new();
    for level in LEVELS {
        let document = sample.child.stored();
        let ran = sample.verify(&document, &at_level(level));
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.result);
        let before = Reader::new(&document[..]).unwrap().end().unwrap();
        let after = Reader::new(&ran.output[..]).unwrap().end().unwrap();
        assert_eq!(after.1.stored(), before.1.stored());
        assert_eq!(ran.proofs(), [(level.word().to_owned(), "all".to_owned())]);
    }
}

#[test]
fn behind_its_push_two_things_are_proved() {
    let sample = Sample::new();
    let pushed = sample.child.pushed(&sample);
    let proofs = sample.verify(&pushed, &options()).proofs();
    let expected = [("present", "all"), ("stored", "own")];
    assert_eq!(proofs, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    // The push of another backup says nothing about this one.
    let other = Some(bk_manifest::manifest::Pushed { id: PARENT.into(), ..Default::default() });
    let document =
        sample.child.document(&Run::default(), &EndRun { pushed: other, ..EndRun::default() });
    let proofs = sample.verify(&document, &options()).proofs();
    assert_eq!(proofs, [("stored".to_owned(), "all".to_owned())]);
}

#[test]
fn behind_its_push_own_objects_are_read_and_inherited_ones_are_not() {
    let sample = Sample::new();
    let pushed = sample.child.pushed(&sample);
    sample.alter(&sample.parent, VOLUME, |bytes| bytes[100] ^= 1);
    assert_eq!(sample.verify(&pushed, &options()).exit(), Exit::Done);
    sample.alter(&sample.child, VOLUME, |bytes| bytes[20] ^= 1);
    assert_damaged(&sample.verify(&pushed, &options()));
}

#[test]
fn the_code_that_came_in_is_carried_on() {
    let sample = Sample::new();
    let end = EndRun { code: 3, ..EndRun::default() };
    let document = sample.child.document(&Run::default(), &end);
    let ran = sample.verify(&document, &options());
    assert_eq!(ran.exit(), Exit::Partial);
    let (_, trailer) = Reader::new(&ran.output[..]).unwrap().end().unwrap();
    assert_eq!(trailer.exit().unwrap(), Exit::Partial);
}

#[test]
fn every_kind_of_damage_to_a_volume_is_found() {
    type Damage = fn(&Sample);
    let damages: [(&str, Damage, Level); 5] = [
        ("missing", |s| fs::remove_file(s.file(&s.child, VOLUME)).unwrap(), Level::Present),
        ("truncated", |s| s.alter(&s.child, VOLUME, |b| b.truncate(10)), Level::Present),
        ("grown", |s| s.alter(&s.child, VOLUME, |b| b.push(0)), Level::Present),
        ("flipped", |s| s.alter(&s.child, VOLUME, |b| b[0] ^= 1), Level::Stored),
        (
            "swapped",
            |s| {
                let other = fs::read(s.file(&s.parent, VOLUME)).unwrap();
                s.alter(&s.child, VOLUME, |b| {
                    let length = b.len();
                    b.copy_from_slice(&other[..length]);
                });
            },
            Level::Stored,
        ),
    ];
    for (name, damage, found_at) in damages {
        let sample = Sample::new();
        damage(&sample);
        for level in LEVELS {
            let ran = sample.verify_child(&at_level(level));
            if level < found_at {
                assert_eq!(ran.exit(), Exit::Done, "{name} at {level:?}");
                continue;
            }
            assert_damaged(&ran);
            let object = format!("{}/{VOLUME}", sample.child.folder);
            assert!(ran.has_said(&object), "{name} at {level:?}: {:?}", ran.said);
            // What was only grown can be read to the last file.
            let is_whole = name == "grown" && level == Level::Content;
            let expected = if is_whole { "could be read" } else { "'c/new'" };
            assert!(ran.has_said(expected), "{name} at {level:?}: {:?}", ran.said);
            assert!(!ran.has_said("'a.txt'"), "{name} at {level:?}: {:?}", ran.said);
        }
    }
}

#[test]
fn damage_of_an_inherited_object_names_the_backups_that_share_it() {
    let sample = Sample::new();
    sample.alter(&sample.parent, VOLUME, |bytes| bytes[100] ^= 1);
    let ran = sample.verify_child(&at_level(Level::Stored));
    assert_damaged(&ran);
    assert!(ran.has_said(&format!("{}/{VOLUME}", sample.parent.folder)));
    assert!(ran.has_said(&format!("also needed by: {PARENT}")), "{:?}", ran.said);
    for file in ["'a.txt'", "'b/beta'", "'big'"] {
        assert!(ran.has_said(file), "{:?}", ran.said);
    }
    let ran = sample.verify(&sample.parent.stored(), &at_level(Level::Stored));
    assert!(ran.has_said(&format!("also needed by: {CHILD}")), "{:?}", ran.said);
}

#[test]
fn content_tells_which_files_are_lost_in_a_damaged_volume() {
    let sample = Sample::new();
    // The last frame is that of the large file; the small ones before it are whole.
    sample.alter(&sample.parent, VOLUME, |bytes| {
        let near_end = bytes.len() - 1000;
        bytes[near_end] ^= 1;
    });
    let ran = sample.verify_child(&at_level(Level::Content));
    assert_damaged(&ran);
    assert!(ran.has_said("'big'") && !ran.has_said("'a.txt'"), "{:?}", ran.said);
}

#[test]
fn a_wrong_range_or_skip_is_found_by_content_alone() {
    let sample = Sample::new();
    let mut made = Sample::new().parent;
    for (field, object) in [("skip", "a.txt"), ("offset", "big")] {
        let at = made.entries.iter_mut().find(|e| e.path.to_string() == object).unwrap();
        let at = at.at.as_mut().unwrap();
        match field {
            "skip" => at.skip = Some(500),
            _ => at.offset = at.offset.map(|offset| offset + 3),
        }
    }
    let stored = sample.folder.path().join(&made.folder).join("manifest.json");
    crate::sample::replace(&stored, &made.stored());
    assert_eq!(sample.verify(&made.stored(), &at_level(Level::Stored)).exit(), Exit::Done);
    let ran = sample.verify(&made.stored(), &at_level(Level::Content));
    assert_damaged(&ran);
    assert!(ran.has_said("'a.txt'") && ran.has_said("'big'"), "{:?}", ran.said);
    assert!(!ran.has_said("'b/beta'"), "{:?}", ran.said);
}

#[test]
fn a_dump_is_checked_to_its_end() {
    let short = Sample::with_dump(b"rows");
    assert_eq!(short.verify_child(&at_level(Level::Stored)).exit(), Exit::Done);
    let ran = short.verify_child(&at_level(Level::Content));
    assert_damaged(&ran);
    assert!(ran.has_said("it ends early") && ran.has_said(DUMP), "{:?}", ran.said);
    let unknown = Sample::with_dump(b"rows UNKNOWN");
    let ran = unknown.verify_child(&at_level(Level::Content));
    assert_eq!(ran.exit(), Exit::Unmet, "{:?}", ran.result);
    assert!(!ran.is_ended());
}

#[test]
fn a_selection_looks_at_what_it_needs_only() {
    let sample = Sample::new();
    fs::remove_file(sample.file(&sample.child, VOLUME)).unwrap();
    for level in LEVELS {
        let ran = sample.verify_child(&selected(level, "b"));
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.result);
        assert_eq!(ran.proofs(), [(level.word().to_owned(), "selected".to_owned())]);
        assert_damaged(&sample.verify_child(&selected(level, "c/**")));
    }
    assert_eq!(sample.verify_child(&selected(Level::Present, "x")).exit(), Exit::NotFound);
    let database = Selection::new::<&str>(&[], &["database".into()]).unwrap();
    let options = Options { level: None, selection: database, ..options() };
    assert_eq!(sample.verify_child(&options).exit(), Exit::Done);
}

#[test]
fn a_bad_document_proves_nothing() {
    let sample = Sample::new();
    let document = sample.child.stored();
    let cut = sample.verify(&document[..document.len() - 20], &options());
    assert_eq!(cut.exit(), Exit::Malformed);
    assert!(!cut.is_ended());
    let mut unlisted = Sample::new().child;
    unlisted.trailer.set("objects", serde_json::json!([]));
    let manifest = sample.file(&sample.child, "manifest.json");
    crate::sample::replace(&manifest, &unlisted.stored());
    let ran = sample.verify(&unlisted.stored(), &options());
    assert_eq!(ran.exit(), Exit::Malformed, "{:?}", ran.result);
}

#[test]
fn what_prune_has_marked_is_a_warning() {
    let sample = Sample::new();
    let object = format!("{}/{VOLUME}", sample.parent.folder);
    let mark = bk_push::mark::Mark { objects: vec![object.clone()], ..Default::default() };
    let text = serde_json::to_string(&mark_json(&mark)).unwrap();
    sample
        .store
        .destination
        .create(".bk/marks/20260501T000000Z-00000000.json", text.as_bytes())
        .unwrap();
    let ran = sample.verify_child(&options());
    assert_eq!(ran.exit(), Exit::Done);
    assert!(ran.has_said(&format!("'{object}' is marked")), "{:?}", ran.said);
}

fn mark_json(mark: &bk_push::mark::Mark) -> serde_json::Value {
    serde_json::json!({
        "host": mark.host, "series": mark.series, "backups": mark.backups,
        "manifests": mark.manifests, "objects": mark.objects,
    })
}
