//! A bucket that is put back: over what is there, and over damage.

use super::*;
use crate::bucket::mirror::{self, the_component};
use crate::identity::Identities;

/// A committed backup of a bucket, as the document that begins a restore.
struct Stored {
    memory: Arc<Memory>,
    document: Vec<u8>,
}

impl Stored {
    fn of(bucket: &MemoryBucket) -> Self {
        let memory = memory();
        let (_, document) = added(&begun(1, None, Vec::new()), bucket).unwrap();
        let (_, document) = pushed(&document, bucket, &memory).unwrap();
        Stored { memory, document }
    }

    /// Puts it back; `flags` are `into`, `delete` and `dry`.
    fn mirror(
        &self,
        bucket: &MemoryBucket,
        flags: &[&str],
        paths: &[&str],
    ) -> anyhow::Result<Exit> {
        let mut document = Document::read(&self.document[..]).unwrap();
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let options = mirror::Options {
            component: the_component(&document, &[])?,
            paths: &paths,
            overwrites: flags.contains(&"into"),
            deletes_strangers: flags.contains(&"delete"),
            is_dry: flags.contains(&"dry"),
            identities: &Identities::default(),
            temporary: &std::env::temp_dir(),
        };
        let store = store_on(&self.memory, GRACE);
        mirror::mirror(&mut document, &store, bucket, &options, &Silent)
    }
}

/// A bucket with all that can be put back: attributes, an empty folder, sizes.
fn documents() -> MemoryBucket {
    let bucket = MemoryBucket::default();
    bucket.store("a/b", Object::new(b"one", 1).with_type("text/plain").with_metadata("who", "me"));
    bucket.store("a!", Object::new(b"", 1));
    bucket.store("ä\n", Object::new(&[7; 5000], 2).with_type("x/y"));
    bucket.store("large", Object::new(&vec![9; 5 << 20], 3).with_metadata("n", "1"));
    bucket.store("empty/", Object::new(b"", 1));
    bucket
}

#[test]
fn nothing_is_put_into_a_backup_destination_and_nothing_removed_from_it() {
    let stored = Stored::of(&documents());
    let other = MemoryBucket::default();
    other.store("05/backup/manifest.json", Object::new(b"{}", 1));
    other.lie_in("s3://b/backups");
    for flags in [&["into", "delete"][..], &["into", "dry"]] {
        let error = stored.mirror(&other, flags, &[]).unwrap_err();
        assert_eq!(classify(&error), Exit::Usage, "{error}");
    }
    assert_eq!(other.keys(), ["05/backup/manifest.json"]);
}

fn assert_same(found: &MemoryBucket, expected: &MemoryBucket) {
    assert_eq!(found.keys(), expected.keys());
    for key in found.keys() {
        let (found, expected) = (found.object(&key).unwrap(), expected.object(&key).unwrap());
        assert!(found.bytes == expected.bytes, "{key}");
        assert_eq!(found.attributes, expected.attributes, "{key}");
    }
}

#[test]
fn a_bucket_comes_back_with_all_that_its_objects_had() {
    let bucket = documents();
    let target = MemoryBucket::default();
    assert_eq!(Stored::of(&bucket).mirror(&target, &[], &[]).unwrap(), Exit::Done);
    assert_same(&target, &bucket);
}

#[test]
fn what_is_there_is_neither_replaced_nor_removed_unless_told() {
    let bucket = documents();
    let stored = Stored::of(&bucket);
    let target = MemoryBucket::default();
    target.store("a/b", Object::new(b"two", 9));
    target.store("large", bucket.object("large").unwrap());
    target.store("stranger", Object::new(b"s", 9));
    target.store("a//odd", Object::new(b"s", 9));
    let error = stored.mirror(&target, &[], &[]).unwrap_err();
    assert_eq!(classify(&error), Exit::Usage);
    assert_eq!(stored.mirror(&target, &["into", "delete", "dry"], &[]).unwrap(), Exit::Done);
    assert_eq!((target.keys().len(), target.puts()), (4, 0));

    // What is the same is not put again.
    assert_eq!(stored.mirror(&target, &["into"], &[]).unwrap(), Exit::Done);
    assert_eq!((target.keys().len(), target.puts()), (7, 4));
    assert_eq!(target.object("a/b").unwrap().bytes, b"one");
    assert_eq!(stored.mirror(&target, &["into"], &[]).unwrap(), Exit::Done);
    assert_eq!(target.puts(), 4);

    assert_eq!(stored.mirror(&target, &["into", "delete"], &[]).unwrap(), Exit::Done);
    // It is told; no backup could ever hold it.
    target.remove("a//odd");
    assert_same(&target, &bucket);
}

#[test]
fn attributes_that_were_changed_since_are_put_back() {
    let bucket = documents();
    bucket.store("e", {
        let mut object = Object::new(b"e", 4);
        object.attributes.headers.insert("expires", "Thu, 01 Dec 2044 16:00:00 GMT".into());
        object
    });
    let stored = Stored::of(&bucket);
    // The same content under the same entity tag, stored later.
    bucket.store("a/b", Object::new(b"one", 99).with_type("text/html"));
    bucket.store("e", Object::new(b"e", 99));
    bucket.store("a!", Object::new(b"", 99));
    assert_eq!(stored.mirror(&bucket, &["into"], &[]).unwrap(), Exit::Done);
    assert_eq!(bucket.puts(), 2);
    assert_eq!(
        bucket.object("a/b").unwrap().attributes,
        documents().object("a/b").unwrap().attributes
    );
    assert!(bucket.object("e").unwrap().attributes.headers.contains_key("expires"));
}

#[test]
fn objects_that_need_no_restoring_and_cannot_be_looked_at_stop_no_other() {
    use crate::destination::ErrorKind;
    let bucket = documents();
    let stored = Stored::of(&bucket);
    for kind in [ErrorKind::Denied, ErrorKind::Archived] {
        let same = documents().object("a/b").unwrap();
        bucket.store("a/b", Object { modified: Object::new(b"", 99).modified, ..same });
        bucket.refuse("a/b", kind);
        bucket.remove("a!");
        let gets = bucket.gets();
        assert_eq!(stored.mirror(&bucket, &["into"], &[]).unwrap(), Exit::Done, "{kind:?}");
        assert!(bucket.object("a!").is_some(), "{kind:?}");
        assert_eq!(bucket.gets(), gets, "nothing of a bucket is read to write to it");
    }
}

#[test]
fn some_paths_come_back_alone() {
    let stored = Stored::of(&documents());
    let target = MemoryBucket::default();
    assert_eq!(stored.mirror(&target, &[], &["minio/a"]).unwrap(), Exit::Done);
    assert_eq!(target.keys(), ["a/b"]);
    let error = stored.mirror(&MemoryBucket::default(), &[], &["nope"]).unwrap_err();
    assert_eq!(classify(&error), Exit::NotFound);
}

#[test]
fn damaged_content_replaces_nothing_and_keeps_strangers() {
    let bucket = documents();
    let stored = Stored::of(&bucket);
    let volume = stored.memory.names().into_iter().find(|name| name.contains("files/")).unwrap();
    stored.memory.change(&volume, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let target = MemoryBucket::default();
    for key in ["a/b", "large", "stranger"] {
        target.store(key, Object::new(b"old", 9));
    }
    let exit = stored.mirror(&target, &["into", "delete"], &[]).unwrap();
    assert_eq!(exit, Exit::Partial);
    assert!(target.object("stranger").is_some());
    for key in target.keys() {
        let found = target.object(&key).unwrap().bytes;
        let expected = bucket.object(&key).map(|object| object.bytes);
        assert!(found == b"old" || Some(found) == expected, "{key}");
    }
    assert!(target.keys().iter().any(|key| target.object(key).unwrap().bytes == b"old"));
}

#[test]
fn a_partial_backup_calls_nothing_a_stranger() {
    let bucket = documents();
    bucket.store("x//y", Object::new(b"1", 1));
    let stored = Stored::of(&bucket);
    let error = stored.mirror(&bucket, &["into", "delete"], &[]).unwrap_err();
    assert_eq!(classify(&error), Exit::Usage);
    assert_eq!(bucket.keys().len(), 6);
    let error = stored.mirror(&bucket, &["into", "delete", "dry"], &[]).unwrap_err();
    assert_eq!(classify(&error), Exit::Usage);
}

#[test]
fn an_object_that_is_refused_costs_the_others_nothing() {
    let bucket = documents();
    let stored = Stored::of(&bucket);
    let target = MemoryBucket::default();
    target.refuse("a/b", ErrorKind::Other);
    assert_eq!(stored.mirror(&target, &[], &[]).unwrap(), Exit::Partial);
    assert_eq!(target.keys().len(), 4);
    // Where nothing may be put, the first one tells.
    let target = MemoryBucket::default();
    target.refuse("a/b", ErrorKind::Denied);
    let error = stored.mirror(&target, &[], &[]).unwrap_err();
    assert_eq!(classify(&error), Exit::Denied);
}

#[test]
fn the_bucket_that_is_meant_is_found_or_told() {
    let component = |name: &str, kind: &str, status: &str| json!({"name": name, "kind": kind, "status": status, "reason": "elsewhere"});
    let find = |components: &[serde_json::Value], names: &[&str]| {
        let empty = begun(1, None, Vec::new());
        let mut document = Document::read(&empty[..]).unwrap();
        document.trailer.set("components", json!(components));
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        the_component(&document, &names).map(|component| component.name)
    };
    let tree = component("files", "tree", "complete");
    let one = component("minio", "bucket", "complete");
    let two = component("other", "bucket", "skipped");
    let all = [tree, one, two];
    assert_eq!(find(&all[..2], &[]).unwrap(), "minio");
    assert_eq!(find(&all, &["minio"]).unwrap(), "minio");
    for (components, names, exit) in [
        (&all[..], &[][..], Exit::Usage),
        (&all[..], &["files"][..], Exit::NotFound),
        (&all[..1], &[][..], Exit::NotFound),
        (&all[..], &["other"][..], Exit::NotFound),
    ] {
        assert_eq!(classify(&find(components, names).unwrap_err()), exit, "{names:?}");
    }
}
