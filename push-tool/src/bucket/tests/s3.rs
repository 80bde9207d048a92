//! The same over HTTP: pages, refusals, cut answers, and the time that objects take.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::bucket::mirror::{self, the_component};
use crate::identity::Identities;
use crate::s3::application::ApplicationBucket;
use crate::testing::server::{Accident, Kind, Server};

fn open(server: &Server) -> ApplicationBucket {
    ApplicationBucket::open(server.bucket_name(), "", &server.access(&[])).unwrap()
}

fn add_from(server: &Server, document: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    let reader = Reader::new(document).unwrap();
    add(reader, &mut output, &open(server), &OPTIONS, &Silent).unwrap();
    output
}

fn push_from(server: &Server, document: &[u8], memory: &Arc<Memory>) -> (Exit, Vec<u8>) {
    let mut output = Vec::new();
    let reader = Reader::new(document).unwrap();
    let options = push::Options::default();
    let connect =
        |_: &str, _: &str| -> anyhow::Result<Box<dyn Bucket>> { Ok(Box::new(open(server))) };
    let store = store_on(memory, GRACE);
    let exit = push(reader, &mut output, &store, &options, &connect, &Silent).unwrap();
    (exit, output)
}

fn mirror_to(server: &Server, document: &[u8], memory: &Arc<Memory>) -> Exit {
    let mut document = Document::read(document).unwrap();
    let options = mirror::Options {
        component: the_component(&document, &[]).unwrap(),
        paths: &[],
        overwrites: true,
        deletes_strangers: true,
        is_dry: false,
        identities: &Identities::default(),
        temporary: &std::env::temp_dir(),
    };
    let store = store_on(memory, GRACE);
    mirror::mirror(&mut document, &store, &open(server), &options, &Silent).unwrap()
}

type Content = (Vec<u8>, Vec<(String, String)>);

/// What each key has: bytes and headers.
fn contents(server: &Server) -> BTreeMap<String, Content> {
    let bucket = server.bucket();
    let objects = bucket.objects.iter();
    objects
        .map(|(key, object)| (key.clone(), (object.bytes.clone(), object.metadata.clone())))
        .collect()
}

#[test]
fn a_bucket_goes_out_and_comes_back_over_a_bad_connection() {
    let (server, memory) = (Server::start(), memory());
    server.bucket().page = 7;
    for number in 0..60usize {
        let (key, bytes) = (format!("f{}/ö {number}%+&<\n", number % 5), vec![1; number * 997]);
        let mut bucket = server.bucket();
        bucket.store(&key, &bytes);
        let object = bucket.objects.get_mut(&key).unwrap();
        object.metadata = vec![
            ("content-type".into(), format!("x/{number}")),
            ("x-amz-meta-number".into(), number.to_string()),
        ];
    }
    server
        .bucket()
        .store("large", &(0..9 << 20).map(|n: u32| n.to_le_bytes()[1]).collect::<Vec<_>>());
    for object in server.bucket().objects.values_mut() {
        object.modified = "2026-02-02T00:00:00Z".parse().unwrap();
    }
    let expected = contents(&server);
    server.before(Kind::List, 3, Accident::Refuse(503, "SlowDown"));
    let listed = add_from(&server, &begun(1, None, Vec::new()));
    // No more than an object is tried again, whichever meets them.
    server.before(Kind::Get, 2, Accident::CutReply(300));
    server.before(Kind::Get, 5, Accident::Refuse(500, "InternalError"));
    server.before(Kind::Get, 9, Accident::LoseReply);
    let (exit, stored) = push_from(&server, &listed, &memory);
    assert_eq!(exit, Exit::Done);

    {
        let mut bucket = server.bucket();
        bucket.objects.remove("large");
        bucket.objects.retain(|key, _| !key.starts_with("f1/"));
        bucket.store("f2/new", b"stranger");
    }
    let lists = server.count(Kind::List);
    server.before(Kind::Put, 3, Accident::LoseReply);
    server.before(Kind::Part, 1, Accident::Refuse(503, "SlowDown"));
    assert_eq!(mirror_to(&server, &stored, &memory), Exit::Done);
    assert_eq!(contents(&server), expected);
    assert_eq!(server.count(Kind::Complete), 1);
    assert_eq!(server.count(Kind::Put), 13);
    assert_eq!(server.count(Kind::List) - lists, 7);

    // The next backup reads only what was put back, and finds it the same.
    let parent = as_parent(&stored);
    let listed = add_from(&server, &begun(2, Some(&parent), Vec::new()));
    let gets = server.count(Kind::Get);
    let (_, again) = push_from(&server, &listed, &memory);
    assert_eq!(server.count(Kind::Get) - gets, 13);
    let checksums = |document: &[u8]| -> Vec<_> {
        entries(document).0.into_iter().map(|entry| (entry.path, entry.checksum)).collect()
    };
    assert_eq!(checksums(&again), checksums(&stored));
}

#[test]
fn small_objects_are_read_several_at_once() {
    let (server, memory) = (Server::start(), memory());
    for number in 0..40 {
        server.bucket().store(&number.to_string(), b"x");
    }
    let listed = add_from(&server, &begun(1, None, Vec::new()));
    // Each of the first eight waits until all of them have come.
    let here = Arc::new(AtomicU64::new(0));
    let (done, waiting): (Vec<_>, Vec<_>) = (0..8).map(|_| std::sync::mpsc::channel()).unzip();
    for (number, waits) in waiting.into_iter().enumerate() {
        server.before(Kind::Get, number as u64 + 1, Accident::Wait(waits));
    }
    let pushed = std::thread::scope(|scope| {
        let pushing = scope.spawn(|| push_from(&server, &listed, &memory));
        while server.count(Kind::Get) < 8 {
            assert!(!pushing.is_finished());
            std::thread::yield_now();
        }
        here.store(server.count(Kind::Get), Ordering::SeqCst);
        drop(done);
        pushing.join().unwrap()
    });
    assert_eq!(pushed.0, Exit::Done);
    assert!(here.load(Ordering::SeqCst) >= 8);
}
