//! A bucket from its listing to a committed backup, and back.

mod mirror;
mod plain;
mod s3;
mod unreadable;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bk_manifest::entry::{Entry, Kind};
use bk_manifest::exit::{Exit, classify};
use bk_manifest::left_out::Reason;
use bk_manifest::manifest::{
    Application, Backup, EndRun, Header, HostPath, Layout, ParentFile, Run, Source, SourceKind,
    Status, Trailer,
};
use bk_manifest::path::RelPath;
use bk_manifest::progress::{Progress, Silent};
use bk_manifest::shrink::MaxShrink;
use bk_manifest::spool::Document;
use bk_manifest::stream::{Format, Reader, Writer};
use serde_json::json;

use super::add::{Options, add, skip};
use super::memory::{MemoryBucket, Object};
use super::{Attributes, Bucket};
use crate::destination::{Destination as _, ErrorKind};
use crate::memory::{Memory, store_on};
use crate::place;
use crate::push::{self, push};

const GRACE: Duration = Duration::from_hours(24);

/// A pipe's begin; entries are as an earlier step would have added them.
fn begun(number: u32, parent: Option<&tempfile::NamedTempFile>, sources: Vec<Source>) -> Vec<u8> {
    let backup = Backup {
        id: format!("b{number}"),
        timestamp: format!("2026-05-0{number}T00:00:00.000Z"),
        parent_backup_id: parent.map(|_| format!("b{}", number - 1)),
        ..Backup::default()
    };
    let parent = parent.map(|file| ParentFile { file: file.path().to_str().unwrap().into() });
    let run = Run { parent, sources, ..Run::default() };
    let application = Application { name: "app".into(), version: None };
    let header = Header::new(&application, Some(&backup), &run);
    let mut trailer = Trailer::default();
    trailer.set_run(&EndRun::default());
    Writer::new(Vec::new(), Format::Json, header).unwrap().end(trailer).unwrap().0
}

/// What the marker of a destination holds.
const MARKER: &[u8] = br#"{"id":"00000000075bcd15","grace_seconds":86400}"#;

const OPTIONS: Options<'static> = Options {
    component: "minio",
    name: "s3://documents",
    access: "SOURCE",
    rehash: false,
    layout: Layout::Plain,
    max_shrink: MaxShrink(90),
};

fn added(document: &[u8], bucket: &MemoryBucket) -> anyhow::Result<(Exit, Vec<u8>)> {
    let mut output = Vec::new();
    let reader = Reader::new(document).unwrap();
    let exit = add(reader, &mut output, bucket, &OPTIONS, &Silent)?;
    Ok((exit, output))
}

fn entries(document: &[u8]) -> (Vec<Entry>, Trailer) {
    let mut reader = Reader::new(document).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        entries.push(entry);
    }
    (entries, reader.end().unwrap().1)
}

fn paths(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.path.to_string()).collect()
}

fn pushed(
    document: &[u8],
    bucket: &MemoryBucket,
    memory: &Arc<Memory>,
) -> anyhow::Result<(Exit, Vec<u8>)> {
    let mut output = Vec::new();
    let reader = Reader::new(document).unwrap();
    let options = push::Options::default();
    let asked = RefCell::new(Vec::new());
    let connect = |name: &str, access: &str| -> anyhow::Result<Box<dyn Bucket>> {
        asked.borrow_mut().push(format!("{name} {access}"));
        Ok(Box::new(bucket.clone()))
    };
    let exit = push(reader, &mut output, &store_on(memory, GRACE), &options, &connect, &Silent)?;
    assert_eq!(asked.into_inner(), ["s3://documents SOURCE"]);
    Ok((exit, output))
}

fn memory() -> Arc<Memory> {
    let memory = Memory::new("2026-05-01T00:00:00Z");
    memory.create(place::MARKER, MARKER).unwrap();
    Arc::new(memory)
}

/// A document as the file that the next backup names as its parent.
fn as_parent(document: &[u8]) -> tempfile::NamedTempFile {
    let mut reader = Reader::new(document).unwrap();
    let header = reader.header().stored();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = Writer::new(&file, Format::Json, header).unwrap();
    bk_manifest::stream::copy_entries(&mut reader, &mut writer).unwrap();
    let (_, trailer) = reader.end().unwrap();
    writer.end(trailer.stored()).unwrap();
    file
}

fn text(entry: &Entry, field: &str) -> Option<String> {
    Some(entry.extra.get(field)?.as_str()?.to_owned())
}

#[test]
fn a_listing_becomes_entries_in_the_order_of_paths() {
    let bucket = MemoryBucket::default();
    // In the order of bytes `a!` and `a.txt` come before `a/b`.
    for key in ["a!", "a.txt", "a/b", "a/b.c", "ä\n", "B"] {
        bucket.store(key, Object::new(key.as_bytes(), 5));
    }
    bucket.store("empty/", Object::new(b"", 5));
    let (exit, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    assert_eq!(exit, Exit::Done);
    let (entries, trailer) = entries(&document);
    assert_eq!(
        paths(&entries),
        [
            "minio/B",
            "minio/a/b",
            "minio/a/b.c",
            "minio/a!",
            "minio/a.txt",
            "minio/empty",
            "minio/ä\\n"
        ]
    );
    let first = &entries[0];
    assert_eq!((first.component(), first.size), ("minio", Some(1)));
    assert_eq!(first.mtime.unwrap().to_string(), "2026-02-02T02:40:05.123Z");
    assert_eq!(text(first, "etag"), Some(bucket.object("B").unwrap().etag));
    assert_eq!(entries[5].kind, Kind::Directory);
    assert!(entries.iter().all(|entry| entry.at.is_none() && entry.checksum.is_none()));
    let component = &trailer.components().unwrap()[0];
    assert_eq!((component.kind.as_str(), component.status), ("bucket", Status::Complete));
    assert_eq!(bucket.gets(), 0);
    let header = Reader::new(&document[..]).unwrap().header().clone();
    let source = &header.run().unwrap().sources[0];
    assert_eq!((source.kind, source.access.as_deref()), (SourceKind::Bucket, Some("SOURCE")));
}

#[test]
fn keys_that_can_be_no_paths_are_counted_and_make_the_component_partial() {
    let bucket = MemoryBucket::default();
    let long = "x".repeat(1024);
    for key in ["a//b", "/a", "..", "a/../b", "./c", "full/", "", "nul\0", "good", "..c", &long] {
        bucket.store(key, Object::new(b"1", 0));
    }
    let (exit, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    assert_eq!(exit, Exit::Partial);
    let (entries, trailer) = entries(&document);
    assert_eq!(paths(&entries), ["minio/..c", "minio/good", &format!("minio/{long}")]);
    assert_eq!(trailer.left_out().unwrap().count(Reason::Unnameable), 8);
    assert_eq!(trailer.components().unwrap()[0].status, Status::Partial);
    assert!(format!("{:?}", trailer.left_out().unwrap()).contains("a/../b"));
}

#[test]
fn an_object_that_is_a_folder_too_is_left_out_for_what_is_below_it() {
    let bucket = MemoryBucket::default();
    for (key, bytes) in
        [("a", "1"), ("a/b", "2"), ("a/b/c", "3"), ("a!", "4"), ("d", "5"), ("d/", "")]
    {
        bucket.store(key, Object::new(bytes.as_bytes(), 0));
    }
    let (exit, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    let (entries, trailer) = entries(&document);
    assert_eq!(paths(&entries), ["minio/a/b/c", "minio/a!", "minio/d"]);
    assert_eq!((exit, entries[2].size), (Exit::Partial, Some(1)));
    assert_eq!(trailer.left_out().unwrap().count(Reason::Unnameable), 3);
}

#[test]
fn a_listing_that_shows_a_key_twice_gives_one_entry_of_the_later_state() {
    let bucket = MemoryBucket::default();
    // Whichever of the entity tags is the greater one.
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let later = Object::new(format!("later {key}").as_bytes(), 9);
        bucket.store(key, later.clone());
        bucket.also_list(key, &Object::new(b"x", 3));
        bucket.also_list(key, &later);
    }
    let (exit, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    let (entries, _) = entries(&document);
    assert_eq!((exit, entries.len()), (Exit::Done, 8));
    assert!(entries.iter().all(|entry| entry.size == Some(7)));
}

#[test]
fn backups_in_the_bucket_are_not_backed_up() {
    let bucket = MemoryBucket::default();
    for key in ["backups/.bk-destination", "backups/2026/x", "backups!", "z"] {
        let content = if key.ends_with(".bk-destination") { MARKER } else { b"1" };
        bucket.store(key, Object::new(content, 0));
    }
    let (exit, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    let (entries, trailer) = entries(&document);
    assert_eq!(
        (exit, paths(&entries)),
        (Exit::Done, vec!["minio/backups!".into(), "minio/z".into()])
    );
    assert_eq!(trailer.left_out().unwrap().count(Reason::Destination), 1);
    bucket.store(".bk-destination", Object::new(MARKER, 0));
    let error = added(&begun(1, None, Vec::new()), &bucket).unwrap_err();
    assert_eq!(classify(&error), Exit::Usage);
    assert!(error.to_string().contains("'.bk-destination'"), "{error}");
}

#[test]
fn an_object_that_is_only_called_like_a_marker_hides_nothing() {
    let bucket = MemoryBucket::default();
    let large = [MARKER, &b" ".repeat(70_000)].concat();
    for (folder, content) in [("", &b""[..]), ("a/", b"{}"), ("b/", b"\xff"), ("c/", &large)] {
        bucket.store(&format!("{folder}.bk-destination"), Object::new(content, 0));
        // The listing shows it before the marker, and another behind it.
        bucket.store(&format!("{folder}-first"), Object::new(b"1", 0));
        bucket.store(&format!("{folder}last"), Object::new(b"1", 0));
    }
    let (exit, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    let (entries, trailer) = entries(&document);
    let hidden = trailer.left_out().unwrap().count(Reason::Destination);
    // The last one has no more than blanks beyond what is read of it: it is a marker.
    assert_eq!((exit, entries.len(), hidden), (Exit::Done, 9, 1), "{:?}", paths(&entries));
}

#[test]
fn a_bucket_that_lies_in_a_destination_is_not_backed_up() {
    let bucket = MemoryBucket::default();
    bucket.store("2026/x", Object::new(b"1", 0));
    bucket.lie_in("s3://backups");
    let error = added(&begun(1, None, Vec::new()), &bucket).unwrap_err();
    assert_eq!(classify(&error), Exit::Usage);
    assert!(error.to_string().contains("lies in the backup destination 's3://backups'"));
}

#[test]
fn unchanged_objects_are_not_read_again_and_keep_what_the_parent_knows() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    let first = Object::new(b"one", 1).with_type("text/x").with_metadata("who", "me ä");
    bucket.store("same", first);
    bucket.store("size", Object::new(b"two", 1));
    bucket.store("time", Object::new(b"three", 1));
    bucket.store("tag", Object::new(b"nine", 1));
    let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
    assert_eq!((exit, bucket.gets()), (Exit::Done, 4));
    let parent = as_parent(&stored);

    bucket.store("size", Object::new(b"four", 1));
    bucket.store("time", Object::new(b"three", 2));
    bucket.store("tag", Object::new(b"five", 1));
    let (_, document) = added(&begun(2, Some(&parent), Vec::new()), &bucket).unwrap();
    let (listed, _) = entries(&document);
    let known: Vec<_> = listed.iter().filter(|entry| entry.at.is_some()).collect();
    assert_eq!(known.len(), 1);
    assert_eq!(text(known[0], "content_type").as_deref(), Some("text/x"));
    assert_eq!(known[0].extra["metadata"]["who"], "me ä");
    let (_, stored) = pushed(&document, &bucket, &memory).unwrap();
    assert_eq!(bucket.gets(), 7);

    // What was read is known by the time that the listing had.
    let parent = as_parent(&stored);
    let (_, document) = added(&begun(3, Some(&parent), Vec::new()), &bucket).unwrap();
    pushed(&document, &bucket, &memory).unwrap();
    assert_eq!(bucket.gets(), 7);
}

#[test]
fn what_changes_with_the_object_is_what_was_read() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    bucket.store("k", Object::new(b"old", 1).with_type("text/old").with_metadata("a", "1"));
    let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    // Between listing and reading.
    let new = Object::new(b"newer", 7).with_type("text/new");
    bucket.store("k", new.clone());
    let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
    let (entries, _) = entries(&stored);
    assert_eq!((exit, entries[0].size), (Exit::Done, Some(5)));
    assert_eq!(text(&entries[0], "etag"), Some(new.etag));
    assert_eq!(Attributes::recorded(&entries[0]), new.attributes);
}

#[test]
fn an_object_that_changes_under_the_reading_is_read_again_once() {
    for times in [1, 2] {
        for size in [100usize, 3 << 20] {
            let (bucket, memory) = (MemoryBucket::default(), memory());
            bucket.store("k", Object::new(&vec![0; size], 1));
            for number in 1..=times {
                let next = Object::new(&vec![number; size], number.into());
                bucket.while_reading(
                    "k",
                    Box::new(move |objects| drop(objects.insert("k".into(), next))),
                );
            }
            let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
            let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
            let (entries, trailer) = entries(&stored);
            let changed = trailer.left_out().unwrap().count(Reason::ChangedWhileRead);
            if times == 1 {
                assert_eq!((exit, changed, entries.len()), (Exit::Done, 0, 1), "{size}");
            } else {
                assert_eq!((exit, changed, entries.len()), (Exit::Partial, 1, 0), "{size}");
            }
        }
    }
}

#[test]
fn a_bucket_and_a_tree_meet_only_where_they_do() {
    let tree = Source {
        component: "files".into(),
        kind: SourceKind::Tree,
        root: HostPath(b"/srv".to_vec()),
        prefix: HostPath::default(),
        paths: Vec::new(),
        access: None,
        layout: Layout::Plain,
    };
    let bucket = MemoryBucket::default();
    bucket.store("k", Object::new(b"1", 0));
    for (path, is_refused) in [
        ("minio", true),
        ("minio/x", true),
        ("minio/k", true),
        ("minio.txt", false),
        ("a", false),
        ("z", false),
    ] {
        let empty = begun(1, None, vec![tree.clone()]);
        let reader = Reader::new(&empty[..]).unwrap();
        let header = reader.header().clone();
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        writer.entry(&Entry::new(RelPath::new(path).unwrap())).unwrap();
        let (document, _) = writer.end(reader.end().unwrap().1).unwrap();
        match added(&document, &bucket) {
            Err(error) => {
                assert!(is_refused, "{path}: {error:#}");
                assert_eq!(classify(&error), Exit::Usage);
            }
            Ok((_, output)) => {
                assert!(!is_refused, "{path}");
                assert_eq!(entries(&output).0.len(), 2);
            }
        }
    }
}

#[test]
fn a_skipped_bucket_is_told_and_is_no_fault() {
    let begun = begun(1, None, Vec::new());
    let mut output = Vec::new();
    let reader = Reader::new(&begun[..]).unwrap();
    let exit = skip(reader, &mut output, "minio", "s3://documents", "elsewhere").unwrap();
    assert_eq!(exit, Exit::Done);
    let (_, trailer) = entries(&output);
    let component = &trailer.components().unwrap()[0];
    assert_eq!(
        (component.status, &component.extra["reason"]),
        (Status::Skipped, &"elsewhere".into())
    );
    let blank = skip(Reader::new(&begun[..]).unwrap(), std::io::sink(), "minio", "s3://b", " ");
    assert_eq!(classify(&blank.unwrap_err()), Exit::Usage);
    // Its name is taken, for another record and for a bucket that is read.
    let again = skip(Reader::new(&output[..]).unwrap(), std::io::sink(), "minio", "x", "y");
    assert_eq!(classify(&again.unwrap_err()), Exit::Usage);
    let error = added(&output, &MemoryBucket::default()).unwrap_err();
    assert_eq!(classify(&error), Exit::Usage);
}

/// Says nothing but checks that warnings do not grow with what they are about.
struct Few(std::sync::atomic::AtomicU32);

impl Progress for Few {
    fn warn(&self, _: &str) {
        let before = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(before < 100);
    }
    fn note(&self, _: &str) {}
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64, _: u64) {}
    fn end(&self) {}
}

/// 40,000 keys that are never in memory together.
struct Many;

impl Bucket for Many {
    fn describe(&self) -> String {
        "s3://many".into()
    }

    fn destination_above(&self) -> anyhow::Result<Option<String>> {
        Ok(None)
    }

    fn attributes(&self, _: &str) -> crate::destination::Result<Option<Attributes>> {
        unreachable!("nothing is looked at")
    }

    fn list(&self) -> crate::destination::Result<super::Listing<'_>> {
        Ok(Box::new((0..40_000u32).map(|number| {
            let object = Object::new(b"", i64::from(number));
            Ok(super::Listed {
                key: format!("{}//{number}", number % 7).replacen(
                    "//",
                    if number % 2 == 0 { "/" } else { "//" },
                    1,
                ),
                size: 1,
                modified: object.modified,
                etag: object.etag,
            })
        })))
    }

    fn get(&self, _: &str, _: Option<&str>) -> crate::destination::Result<super::Content<'_>> {
        unreachable!("nothing is read")
    }

    fn put(
        &self,
        _: &str,
        _: u64,
        _: &Attributes,
    ) -> crate::destination::Result<Box<dyn crate::destination::Upload + '_>> {
        unreachable!("nothing is put")
    }

    fn delete(&self, _: &[String]) -> Vec<crate::destination::Error> {
        unreachable!("nothing is removed")
    }
}

#[test]
fn a_large_listing_is_sorted_and_counted_to_the_end() {
    let begun = begun(1, None, Vec::new());
    let mut output = Vec::new();
    let few = Few(0.into());
    add(Reader::new(&begun[..]).unwrap(), &mut output, &Many, &OPTIONS, &few).unwrap();
    let mut reader = Reader::new(&output[..]).unwrap();
    let mut count = 0;
    while reader.next_entry().unwrap().is_some() {
        count += 1;
    }
    let (_, trailer) = reader.end().unwrap();
    assert_eq!((count, trailer.left_out().unwrap().count(Reason::Unnameable)), (20_000, 20_000));
}

#[test]
fn an_object_that_has_to_be_stored_again_loses_what_it_no_longer_has() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    bucket.store("k", Object::new(b"old", 1).with_type("x/old").with_metadata("a", "1"));
    let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    let (_, stored) = pushed(&document, &bucket, &memory).unwrap();
    let parent = as_parent(&stored);
    let (_, document) = added(&begun(2, Some(&parent), Vec::new()), &bucket).unwrap();
    assert!(entries(&document).0[0].at.is_some());
    // The destination has lost it, and the application has put another.
    let object = memory.names().into_iter().find(|name| name.contains("/minio/")).unwrap();
    memory.drop_object(&object);
    bucket.store("k", Object::new(b"new", 2).with_metadata("b", "2"));
    let (_, stored) = pushed(&document, &bucket, &memory).unwrap();
    let found = Attributes::recorded(&entries(&stored).0[0]);
    assert_eq!(found, bucket.object("k").unwrap().attributes);
}
