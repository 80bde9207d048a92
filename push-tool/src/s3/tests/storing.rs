//! Uploads that are cut, answered wrongly, or race with others.

use super::*;

const PARTS: usize = (20 << 20) + 3;

fn stored(server: &Server, name: &str) -> Option<Vec<u8>> {
    server.bucket().objects.get(&format!("backups/{name}")).map(|object| object.bytes.clone())
}

/// A destination that has been used: it knows what its store can do.
fn used(server: &Server) -> S3 {
    let s3 = open(server);
    s3.create("used", b"").unwrap();
    s3
}

#[test]
fn a_busy_store_is_asked_again_and_not_for_ever() {
    let server = Server::start();
    let s3 = used(&server);
    refuse(&server, Kind::Put, 2, 503, "SlowDown");
    let before = server.count(Kind::Put);
    put(&s3, "a", b"content").unwrap();
    assert_eq!(server.count(Kind::Put) - before, 3);
    assert_eq!(stored(&server, "a").unwrap(), b"content");
    refuse(&server, Kind::Put, 9, 500, "InternalError");
    let before = server.count(Kind::Put);
    let error = put(&s3, "b", b"content").unwrap_err();
    assert_eq!((error.kind, error.may_retry()), (ErrorKind::Transient, true));
    assert_eq!(server.count(Kind::Put) - before, 4);
    assert_eq!(stored(&server, "b"), None);
}

#[test]
fn an_answer_that_is_lost_costs_nothing() {
    let server = Server::start();
    let s3 = used(&server);
    server.before(Kind::Put, 1, Accident::LoseReply);
    assert_eq!(s3.create("mark", b"mine").unwrap(), Created::New);
    // Of every try.
    (1..=4).for_each(|number| server.before(Kind::Put, number, Accident::LoseReply));
    put(&s3, "a", b"mine").unwrap();
    assert_eq!(stored(&server, "a").unwrap(), b"mine");
    for kind in [Kind::Begin, Kind::Part, Kind::Complete] {
        server.before(kind, 1, Accident::LoseReply);
        let name = format!("{kind:?}");
        put(&s3, &name, &bytes(PARTS)).unwrap();
        assert!(stored(&server, &name).unwrap() == bytes(PARTS), "{name}");
    }
    server.before(Kind::DeleteMany, 1, Accident::LoseReply);
    assert!(s3.delete(&["a".into(), "mark".into()]).is_empty());
    assert_eq!(stored(&server, "a"), None);
}

#[test]
fn the_same_bytes_of_another_are_not_ours() {
    let server = Server::start();
    let (s3, other) = (used(&server), open(&server));
    assert_eq!(other.create("lease", b"same").unwrap(), Created::New);
    assert_eq!(s3.create("lease", b"same").unwrap(), Created::Taken);
    put(&other, "big", &bytes(PARTS)).unwrap();
    assert_eq!(put(&s3, "big", &bytes(PARTS)).unwrap_err().kind, ErrorKind::Exists);
}

#[test]
fn an_object_in_parts_overwrites_none_that_came_meanwhile() {
    let server = Server::start();
    let s3 = used(&server);
    let theirs =
        |name: &'static str| Accident::First(Box::new(move |bucket| bucket.store(name, b"theirs")));
    // In the moment between our look and the completion.
    server.before(Kind::Complete, 1, theirs("backups/late"));
    assert_eq!(put(&s3, "late", &bytes(PARTS)).unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(stored(&server, "late").unwrap(), b"theirs");
    // At a store that heeds the condition for whole objects only.
    server.before(Kind::Part, 2, theirs("backups/early"));
    let forgets = Accident::First(Box::new(|bucket| bucket.has_create_only = false));
    server.before(Kind::Complete, 1, forgets);
    assert_eq!(put(&s3, "early", &bytes(PARTS)).unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(stored(&server, "early").unwrap(), b"theirs");
    assert!(server.bucket().uploads.is_empty());
}

#[test]
fn two_that_the_store_lets_neither_create_try_again() {
    let server = Server::start();
    let s3 = used(&server);
    refuse(&server, Kind::Put, 1, 409, "ConditionalRequestConflict");
    assert_eq!(s3.create("a", b"1").unwrap(), Created::New);
}

#[test]
fn parts_are_equal_and_come_together_in_order() {
    let server = Server::start();
    let s3 = used(&server);
    // The first part arrives last.
    let (sender, receiver) = std::sync::mpsc::channel();
    server.before(Kind::Part, 1, Accident::Wait(receiver));
    let mut upload = s3.put("a", 1).unwrap();
    for piece in bytes(PARTS).chunks(99_999) {
        upload.write_all(piece).unwrap();
    }
    while server.count(Kind::Part) < 2 {
        std::thread::yield_now();
    }
    let unfinished = server.bucket().uploads.values().next().unwrap().clone();
    let is_equal = |(part, _): &(Vec<u8>, String)| part.len() == 8 << 20;
    assert!(unfinished.parts.values().all(is_equal));
    drop(sender);
    upload.commit().unwrap();
    assert!(stored(&server, "a").unwrap() == bytes(PARTS));
    assert_eq!(server.count(Kind::Part), 3);
    // One that fits into a part is put at once.
    put(&s3, "b", &bytes(8 << 20)).unwrap();
    assert_eq!(server.count(Kind::Begin), 1);
}

#[test]
fn a_part_that_is_large_is_waited_for_before_the_next_is_read() {
    let server = Server::start();
    let s3 = used(&server);
    let mut upload = s3.put("a", 200 << 30).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    server.before(Kind::Part, 1, Accident::Wait(receiver));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            upload.write_all(&bytes(30 << 20)).unwrap();
            upload
        });
        while server.count(Kind::Part) == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(500));
        assert!(!writing.is_finished());
        drop(sender);
        writing.join().unwrap().commit().unwrap();
    });
    assert!(stored(&server, "a").unwrap() == bytes(30 << 20));
}

#[test]
fn an_upload_that_is_given_up_leaves_nothing() {
    let server = Server::start();
    let s3 = used(&server);
    let mut upload = s3.put("a", 1).unwrap();
    upload.write_all(&bytes(PARTS)).unwrap();
    assert_eq!(server.bucket().uploads.len(), 1);
    drop(upload);
    assert!(server.bucket().uploads.is_empty());
    // A part that is refused for good.
    refuse(&server, Kind::Part, 1, 403, "AccessDenied");
    assert_eq!(put(&s3, "a", &bytes(PARTS)).unwrap_err().kind, ErrorKind::Denied);
    assert!(server.bucket().uploads.is_empty());
    assert_eq!(names(&s3, "").unwrap(), ["used"]);
}

#[test]
fn a_completion_that_fails_behind_its_200_is_seen() {
    let server = Server::start();
    let s3 = used(&server);
    let error = |code: &'static str| {
        Accident::Lie(Box::new(move |reply| {
            reply.body = format!("<Error><Code>{code}</Code></Error>").into();
        }))
    };
    // Nothing was done, though the status is 200: a part went missing.
    let without = Accident::First(Box::new(|bucket| {
        bucket.uploads.values_mut().for_each(|upload| drop(upload.parts.pop_first()));
    }));
    server.before(Kind::Complete, 1, without);
    assert!(put(&s3, "a", &bytes(PARTS)).is_err());
    assert_eq!(stored(&server, "a"), None);
    // It was done, though it says otherwise.
    server.before(Kind::Complete, 1, error("InternalError"));
    put(&s3, "b", &bytes(PARTS)).unwrap();
    assert!(stored(&server, "b").unwrap() == bytes(PARTS));
}

#[test]
fn bytes_that_change_on_the_way_are_refused_by_the_store() {
    let server = Server::start();
    let s3 = used(&server);
    // The server checks both sums of each request: this one says so once, and is not asked again.
    refuse(&server, Kind::Put, 1, 400, "XAmzContentSHA256Mismatch");
    assert!(put(&s3, "a", b"content").is_err());
    assert_eq!(stored(&server, "a"), None);
}

#[test]
fn a_server_that_is_dead_is_an_error_and_a_slow_one_is_not() {
    let server = Server::start();
    let s3 = impatient(&server, "1G");
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..2).map(|_| std::sync::mpsc::channel::<()>()).unzip();
    for (number, receiver) in (1..).zip(receivers) {
        server.before(Kind::List, number, Accident::Wait(receiver));
    }
    let error = names(&s3, "").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient);
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("nothing came"));
    assert_eq!(server.count(Kind::List), 2);
    drop(senders);
    // It takes longer than nothing may move, both ways.
    let slow = impatient(&server, "100K");
    let since = std::time::Instant::now();
    put(&slow, "a", &bytes(120_000)).unwrap();
    assert!(since.elapsed() > slow.client.settings.stall);
    assert_eq!(server.count(Kind::Put), 3);
    let since = std::time::Instant::now();
    // What came is paid for by what comes next.
    for _ in 0..2 {
        assert!(read(&slow, "a", None).unwrap() == bytes(120_000));
    }
    assert!(since.elapsed() > slow.client.settings.stall);
}
