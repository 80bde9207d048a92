//! A bucket of an application: what it has is taken and put back as it is.

use super::*;
use crate::bucket::{Attributes, Bucket, Listed};
use crate::s3::application::ApplicationBucket;

fn documents(server: &Server, prefix: &str) -> ApplicationBucket {
    ApplicationBucket::open(server.bucket_name(), prefix, &server.access(&[])).unwrap()
}

fn put(bucket: &ApplicationBucket, key: &str, bytes: &[u8], attributes: &Attributes) -> Result<()> {
    let mut upload = bucket.put(key, bytes.len() as u64, attributes)?;
    upload.write_all(bytes).unwrap();
    upload.commit()
}

fn listed(bucket: &ApplicationBucket) -> Vec<Listed> {
    bucket.list().unwrap().map(std::result::Result::unwrap).collect()
}

fn keys(bucket: &ApplicationBucket) -> Vec<String> {
    listed(bucket).into_iter().map(|listed| listed.key).collect()
}

fn some_attributes() -> Attributes {
    let mut attributes = Attributes::default();
    for name in crate::bucket::HEADERS {
        attributes.headers.insert(name, format!("{name}/x; y=\"z\""));
    }
    attributes.headers.insert("content-encoding", "gzip".into());
    attributes.metadata.insert("owner".into(), "ä ö".into());
    attributes.metadata.insert("x_y-1".into(), "plain".into());
    attributes
}

#[test]
fn content_and_attributes_come_back_whatever_the_size() {
    let server = Server::start();
    let bucket = documents(&server, "p");
    let attributes = some_attributes();
    // Not compressed at all, whatever its header says.
    for (key, size) in [("empty", 0), ("small/ä +%\n.txt", 1000), ("large", 20 << 20)] {
        put(&bucket, key, &bytes(size), &attributes).unwrap();
        let content = bucket.get(key, None).unwrap();
        assert_eq!(content.attributes, attributes, "{key}");
        let known = listed(&bucket).into_iter().find(|listed| listed.key == key).unwrap();
        let mut got = content.listed;
        // One tells whole seconds.
        got.modified = known.modified;
        assert_eq!(got, known);
        let mut read = Vec::new();
        bucket.get(key, Some(&known.etag)).unwrap().bytes.read_to_end(&mut read).unwrap();
        assert!(read == bytes(size), "{key}");
    }
    assert_eq!(server.count(Kind::Complete), 1);
    assert!(server.bucket().objects.keys().all(|key| key.starts_with("p/")));
}

#[test]
fn every_key_is_listed_and_only_plain_ones_are_asked_for() {
    let server = Server::start();
    let odd = ["a//b", "/a", "a/../b", "./c", "f/"];
    for key in odd.iter().chain(&["a", "b"]) {
        server.bucket().store(&format!("p/{key}"), b"");
    }
    for key in ["p/", "other/x", "pp"] {
        server.bucket().store(key, b"");
    }
    server.bucket().page = 2;
    let bucket = documents(&server, "p");
    assert_eq!(keys(&bucket), ["./c", "/a", "a", "a/../b", "a//b", "b", "f/"]);
    let before = server.total();
    for key in &odd[..4] {
        assert!(
            bucket.get(key, None).is_err() && bucket.put(key, 1, &Attributes::default()).is_err()
        );
    }
    let all: Vec<String> = odd.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(bucket.delete(&all).len(), 4);
    assert_eq!(server.total() - before, 1);
    assert!(!server.bucket().objects.contains_key("p/f/"));
    assert!(server.bucket().objects.contains_key("p/b"));
}

#[test]
fn an_object_that_is_replaced_meanwhile_is_not_gone_on_with() {
    let server = Server::start();
    let bucket = documents(&server, "");
    server.bucket().store("k", &bytes(100_000));
    server.before(Kind::Get, 1, Accident::CutReply(50_000));
    server.before(
        Kind::Get,
        2,
        Accident::First(Box::new(|bucket| bucket.store("k", &vec![7; 100_000]))),
    );
    let mut content = bucket.get("k", None).unwrap();
    let error = content.bytes.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    // And one that is only cut is.
    server.before(Kind::Get, 1, Accident::CutReply(50_000));
    let mut read = Vec::new();
    bucket.get("k", None).unwrap().bytes.read_to_end(&mut read).unwrap();
    assert!(read == vec![7; 100_000]);
}

#[test]
fn an_upload_that_is_dropped_leaves_the_object_as_it_is() {
    let server = Server::start();
    let bucket = documents(&server, "");
    for size in [10, 20 << 20] {
        server.bucket().store("k", b"old");
        let mut upload = bucket.put("k", size, &Attributes::default()).unwrap();
        upload.write_all(&bytes(usize::try_from(size).unwrap() - 1)).unwrap();
        drop(upload);
        assert_eq!(server.bucket().objects["k"].bytes, b"old");
        assert!(server.bucket().uploads.is_empty());
    }
}

#[test]
fn a_bucket_that_is_missing_or_closed_is_told() {
    use bk_manifest::exit::{Exit, classify};
    let server = Server::start();
    let bucket = ApplicationBucket::open("nowhere", "", &server.access(&[])).unwrap();
    let error = anyhow::Error::from(bucket.list().err().unwrap());
    assert_eq!(classify(&error), Exit::NotFound);
    let bucket = documents(&server, "");
    refuse(&server, Kind::List, 1, 403, "AccessDenied");
    let error = anyhow::Error::from(bucket.list().err().unwrap());
    assert_eq!(classify(&error), Exit::Denied);
}

#[test]
fn a_destination_above_is_found_at_the_bucket_and_at_each_prefix() {
    let server = Server::start();
    let above = |prefix| documents(&server, prefix).destination_above().unwrap();
    assert_eq!(above("a/b/c"), None);
    let marker = br#"{"id":"x","grace_seconds":1}"#;
    server.bucket().store("a/.bk-destination", marker);
    // Anybody may call an object so.
    server.bucket().store("a/b/.bk-destination", b"");
    let name = format!("s3://{}", server.bucket_name());
    for (prefix, expected) in
        [("a/b/c", Some("/a")), ("a/.bk", Some("/a")), ("a", None), ("ab/c", None)]
    {
        assert_eq!(above(prefix), expected.map(|folder| format!("{name}{folder}")), "{prefix}");
    }
    server.bucket().store(".bk-destination", marker);
    assert_eq!(above("ab"), Some(name));
    assert_eq!(above(""), None);
}

#[test]
fn keys_that_may_not_look_above_are_used_all_the_same() {
    let server = Server::start();
    server.bucket().store(".bk-destination", br#"{"id":"x","grace_seconds":1}"#);
    refuse(&server, Kind::Get, 1, 403, "AccessDenied");
    assert_eq!(documents(&server, "a").destination_above().unwrap(), None);
}
