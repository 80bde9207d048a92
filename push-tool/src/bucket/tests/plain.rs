//! A bucket's objects, each stored as an object of its own.

use super::*;
use crate::destination::Destination;
use crate::mark::{self, Mark};
use crate::plain::PlainFiles;
use crate::testing::noise;
use bk_manifest::digest::Digest;

const FOLDER: &str = "2026/05/01/b1";

/// What lies at the destination below a folder, by name and content.
fn below(memory: &Memory, folder: &str) -> Vec<(String, Vec<u8>)> {
    let prefix = format!("{folder}/");
    let names = memory.names().into_iter();
    let below = names.filter_map(|name| Some((name.strip_prefix(&prefix)?.to_owned(), name)));
    below.map(|(short, name)| (short, read(memory, &name))).collect()
}

fn read(memory: &Memory, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut memory.read(name, None).unwrap(), &mut bytes).unwrap();
    bytes
}

/// Lists the bucket, and pushes it on top of the backup before.
fn backed_up(
    number: u32,
    before: Option<&[u8]>,
    bucket: &MemoryBucket,
    memory: &Arc<Memory>,
) -> Vec<u8> {
    let parent = before.map(as_parent);
    let (_, document) = added(&begun(number, parent.as_ref(), Vec::new()), bucket).unwrap();
    pushed(&document, bucket, memory).unwrap().1
}

/// Fails the test unless all plain files of a stored backup are there with their bytes.
fn assert_whole(document: &[u8], memory: &Memory, folder: &str) -> u64 {
    let mut reader = Reader::new(document).unwrap();
    let header = reader.header().clone();
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        entries.push(entry);
    }
    let (_, trailer) = reader.end().unwrap();
    let files = PlainFiles::new(&header, &trailer, folder).unwrap();
    let mut count = 0;
    for entry in entries {
        let Some(object) = files.object(&entry).unwrap() else { continue };
        let bytes = read(memory, &object.name);
        assert_eq!(Digest::of(&bytes), object.stored.checksum, "{}", object.name);
        count += 1;
    }
    count
}

#[test]
fn each_object_is_one_and_the_manifest_has_a_line_for_all() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    let large = noise(5 << 20);
    for (key, content) in [("a b/c.jpg", &b"photo"[..]), ("large", &large), ("same", b"photo")] {
        bucket.store(key, Object::new(content, 1));
    }
    let stored = backed_up(1, None, &bucket, &memory);
    let objects = below(&memory, &format!("{FOLDER}/minio"));
    assert_eq!(objects, [("a b/c.jpg".to_owned(), b"photo".to_vec()), ("large".to_owned(), large)]);
    let (entries, trailer) = entries(&stored);
    assert_eq!(entries[2].at, entries[0].at, "the same content is stored once");
    assert!(trailer.objects().unwrap().is_empty());
    let json: serde_json::Value = serde_json::from_slice(&stored).unwrap();
    let size = 2 * 5 + (5 << 20);
    assert_eq!(json["objects"], json!([{"component": "minio", "count": 3, "size": size}]));
    assert_eq!(json["verification"]["run"]["pushed"]["objects"], 2);
    let sums = String::from_utf8(read(&memory, &format!("{FOLDER}/SHA256SUMS"))).unwrap();
    assert!(
        sums.starts_with(&format!("{}  minio/a b/c.jpg\n", Digest::of(b"photo").hex())),
        "{sums}"
    );
    assert!(memory.names().iter().all(|name| !name.starts_with(".bk/partial")));
}

#[test]
fn names_that_would_be_taken_for_something_else_go_into_a_volume() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    for key in ["manifest.json", "x/manifest.yaml", ".bk-destination/x", "a\\b", "fine"] {
        bucket.store(key, Object::new(key.as_bytes(), 1));
    }
    let stored = backed_up(1, None, &bucket, &memory);
    let names: Vec<String> = below(&memory, FOLDER).into_iter().map(|(name, _)| name).collect();
    let own = ["MANIFEST.txt", "RESTORE.txt", "SHA256SUMS", "files/000001.tar.zst"];
    assert_eq!(names, [&own[..], &["manifest.json", "minio/fine"]].concat());
    let (entries, trailer) = entries(&stored);
    assert_eq!(
        entries.iter().filter(|entry| entry.at.as_ref().unwrap().offset.is_some()).count(),
        4
    );
    assert_eq!((trailer.objects().unwrap().len(), trailer.plain().unwrap()[0].count), (1, 1));
}

#[test]
fn a_name_that_is_too_long_for_a_folder_costs_a_restore_by_hand_that_file_alone() {
    let long = "n".repeat(300);
    for layout in [Layout::Plain, Layout::Packed] {
        let (bucket, memory) = (MemoryBucket::default(), memory());
        for key in ["a", &long, &format!("{long}/below"), "zz/after"] {
            bucket.store(
                &key.replace(&format!("{long}/"), &format!("x{long}/")),
                Object::new(key.as_bytes(), 1),
            );
        }
        let reader = begun(1, None, Vec::new());
        let mut document = Vec::new();
        let options = Options { layout, ..OPTIONS };
        add(Reader::new(&reader[..]).unwrap(), &mut document, &bucket, &options, &Silent).unwrap();
        pushed(&document, &bucket, &memory).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in below(&memory, FOLDER) {
            let file = folder.path().join("backup").join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            let mut file = std::fs::File::create(file).unwrap();
            std::io::Write::write_all(&mut file, &bytes).unwrap();
        }
        let mut script = std::process::Command::new("bash");
        script.arg(folder.path().join("backup/RESTORE.txt")).arg(folder.path().join("back"));
        let ended = script.output().unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("LOST: minio/{long}\n")), "{told}");
        assert!(told.contains(&format!("LOST: minio/x{long}/below\n")), "{told}");
        assert_eq!(told.matches("LOST").count(), 2, "{told}");
        for key in ["a", "zz/after"] {
            let back = folder.path().join("back/minio").join(key);
            assert_eq!(std::fs::read(back).unwrap(), key.as_bytes(), "{told}");
        }
    }
}

#[test]
fn a_bucket_that_is_called_like_an_archive_gets_no_folder_of_that_name() {
    let stage = tempfile::tempdir().unwrap();
    let source = Source {
        component: "minio".into(),
        kind: SourceKind::Stage,
        root: HostPath(stage.path().to_str().unwrap().into()),
        prefix: HostPath(".bk/minio".into()),
        paths: Vec::new(),
        access: None,
        layout: Layout::Packed,
    };
    let (bucket, memory) = (MemoryBucket::default(), memory());
    bucket.store("k", Object::new(b"1", 1));
    let begun = begun(1, None, vec![source]);
    let mut document = Vec::new();
    let options = Options { component: "minio.tar.zst", ..OPTIONS };
    add(Reader::new(&begun[..]).unwrap(), &mut document, &bucket, &options, &Silent).unwrap();
    pushed(&document, &bucket, &memory).unwrap();
    let folders = below(&memory, FOLDER).into_iter().filter(|(name, _)| name.contains('/'));
    assert_eq!(folders.map(|(name, _)| name).collect::<Vec<_>>(), ["files/000001.tar.zst"]);
}

#[test]
fn the_next_backup_refers_to_what_is_there() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    for key in ["a", "b", "c"] {
        bucket.store(key, Object::new(key.as_bytes(), 1));
    }
    let first = backed_up(1, None, &bucket, &memory);
    bucket.store("b", Object::new(b"other", 2));
    bucket.store("moved", Object::new(b"c", 2));
    // A disk has lost one of them.
    memory.drop_object(&format!("{FOLDER}/minio/a"));
    let second = backed_up(2, Some(&first), &bucket, &memory);
    let names = below(&memory, "2026/05/02/b2/minio");
    assert_eq!(names, [("a".to_owned(), b"a".to_vec()), ("b".to_owned(), b"other".to_vec())]);
    let json: serde_json::Value = serde_json::from_slice(&second).unwrap();
    assert_eq!(
        json["objects"],
        json!([
            {"component": "minio", "count": 2, "size": 6},
            {"backup": "b1", "component": "minio", "count": 2, "size": 2},
        ])
    );
    assert_eq!(assert_whole(&second, &memory, "2026/05/02/b2"), 4);
}

#[test]
fn what_prune_has_marked_is_stored_again() {
    let bucket = MemoryBucket::default();
    for key in ["a", "b"] {
        bucket.store(key, Object::new(key.as_bytes(), 1));
    }
    let marked = Mark { objects: vec![format!("{FOLDER}/minio/a")], ..Mark::default() };
    let bytes = serde_json::to_vec(&marked).unwrap();
    // Before the push begins, and while it is under way: it has looked at the marks once by then.
    for late in [false, true] {
        let memory = memory();
        let first = backed_up(1, None, &bucket, &memory);
        let name = mark::name(memory.now().unwrap(), 1);
        if late {
            let (name, bytes) = (name, bytes.clone());
            memory.before(
                "begun.json",
                Box::new(move |objects, now| {
                    objects.insert(name, (bytes, *now));
                }),
            );
        } else {
            memory.store(&name, &bytes);
        }
        let second = backed_up(2, Some(&first), &bucket, &memory);
        let (entries, _) = entries(&second);
        let backup = |entry: &Entry| entry.at.as_ref().unwrap().backup.clone();
        assert_eq!((backup(&entries[0]), backup(&entries[1])), (None, Some("b1".into())), "{late}");
        assert_eq!(assert_whole(&second, &memory, "2026/05/02/b2"), 2);
    }
}

#[test]
fn a_push_that_died_costs_nothing_twice() {
    let bucket = MemoryBucket::default();
    for number in 0..20u32 {
        bucket.store(&format!("k{number:02}"), Object::new(&number.to_le_bytes(), 1));
    }
    bucket.store("large", Object::new(&noise(3 << 20), 1));
    let (mut used, mut changes) = (0, 0);
    loop {
        let memory = memory();
        memory.die_after(Some(changes));
        let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
        let ended = pushed(&document, &bucket, &memory);
        memory.die_after(None);
        if ended.is_ok() {
            break;
        }
        let stored = backed_up(2, None, &bucket, &memory);
        assert_eq!(assert_whole(&stored, &memory, "2026/05/02/b2"), 21, "{changes} changes");
        let dead =
            entries(&stored).0.iter().filter(|e| e.at.as_ref().unwrap().backup.is_some()).count();
        used = used.max(dead);
        changes += 1;
    }
    assert!(changes > 25, "{changes}");
    assert_eq!(used, 21, "all that was stored is used");
}
