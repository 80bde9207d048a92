//! Downloads that are cut or answered wrongly.

use super::*;

const LENGTH: usize = 3 << 20;

fn holding(server: &Server) -> S3 {
    server.bucket().store("backups/a", &bytes(LENGTH));
    open(server)
}

fn lie(server: &Server, lie: impl FnOnce(&mut crate::testing::server::Reply) + Send + 'static) {
    server.before(Kind::Get, 1, Accident::Lie(Box::new(lie)));
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_was() {
    let server = Server::start();
    let s3 = holding(&server);
    // More often than one request is tried: bytes came in between.
    for number in 1..=6 {
        server.before(Kind::Get, number, Accident::CutReply(400_000));
    }
    assert!(read(&s3, "a", None).unwrap() == bytes(LENGTH));
    assert_eq!(server.count(Kind::Get), 7);
    server.before(Kind::Get, 1, Accident::CutReply(1000));
    assert!(read(&s3, "a", Some(5000..900_000)).unwrap() == bytes(LENGTH)[5000..900_000]);
}

#[test]
fn a_download_that_is_cut_at_once_again_and_again_is_an_error() {
    let server = Server::start();
    let s3 = holding(&server);
    (1..=9).for_each(|number| server.before(Kind::Get, number, Accident::CutReply(0)));
    assert!(read(&s3, "a", None).is_err());
    assert!(server.count(Kind::Get) <= 5);
}

#[test]
fn another_object_of_the_same_name_is_not_gone_on_with() {
    let server = Server::start();
    let s3 = holding(&server);
    server.before(Kind::Get, 1, Accident::CutReply(400_000));
    let other = |bucket: &mut crate::testing::server::Bucket| {
        bucket.store("backups/a", &vec![0; LENGTH]);
    };
    server.before(Kind::Get, 2, Accident::First(Box::new(other)));
    assert!(read(&s3, "a", None).is_err());
}

#[test]
fn a_server_that_knows_no_ranges_gives_the_right_bytes() {
    let server = Server::start();
    let s3 = holding(&server);
    lie(&server, |reply| {
        reply.status = 200;
        reply.headers.retain(|(name, _)| name != "content-range");
        reply.body = bytes(LENGTH);
    });
    assert!(read(&s3, "a", Some(70_000..1_000_000)).unwrap() == bytes(LENGTH)[70_000..1_000_000]);
}

#[test]
fn an_answer_of_another_length_or_range_is_found_out() {
    let server = Server::start();
    let s3 = holding(&server);
    // Too long: the rest is not taken for content.
    lie(&server, |reply| reply.body.extend_from_slice(b"more"));
    assert!(read(&s3, "a", Some(10..20)).unwrap() == bytes(LENGTH)[10..20]);
    // Too short: the rest is asked for.
    lie(&server, |reply| reply.body.truncate(5));
    assert!(read(&s3, "a", Some(10..20)).unwrap() == bytes(LENGTH)[10..20]);
    for range in ["bytes 11-20/3145728", "bytes 9-3/3145728", "bytes 10-19", "lines"] {
        lie(&server, move |reply| {
            reply.headers.retain(|(name, _)| name != "content-range");
            reply.headers.push(("content-range".into(), range.into()));
        });
        assert!(read(&s3, "a", Some(10..20)).is_err(), "{range}");
    }
}

#[test]
fn an_answer_without_a_length_is_read_to_its_end() {
    let server = Server::start();
    let s3 = holding(&server);
    lie(&server, crate::testing::server::Reply::chunk);
    assert!(read(&s3, "a", None).unwrap() == bytes(LENGTH));
    // A server that knows no ranges either: it ends where the object does.
    lie(&server, |reply| {
        reply.status = 200;
        reply.headers.retain(|(name, _)| name != "content-range");
        reply.body = bytes(LENGTH);
        reply.chunk();
    });
    let (start, end) = (LENGTH - 5, LENGTH as u64 + 10);
    assert!(read(&s3, "a", Some(start as u64..end)).unwrap() == bytes(LENGTH)[start..]);
    assert_eq!(server.count(Kind::Get), 2);
    // One that is cut is no end.
    lie(&server, crate::testing::server::Reply::chunk);
    server.before(Kind::Get, 1, Accident::CutReply(400_000));
    assert!(read(&s3, "a", None).unwrap() == bytes(LENGTH));
    assert_eq!(server.count(Kind::Get), 4);
    // Unless all of it was there.
    lie(&server, crate::testing::server::Reply::chunk);
    server.before(Kind::Get, 1, Accident::CutReply(LENGTH));
    assert!(read(&s3, "a", None).unwrap() == bytes(LENGTH));
    assert_eq!(server.count(Kind::Get), 6);
}

#[test]
fn a_download_that_hardly_moves_is_given_up() {
    let server = Server::start();
    let s3 = holding(&server);
    (1..=99).for_each(|number| server.before(Kind::Get, number, Accident::CutReply(40_000)));
    assert!(read(&s3, "a", None).is_err());
    assert_eq!(server.count(Kind::Get), 4);
}

#[test]
fn several_read_at_once() {
    let server = Server::start();
    let s3 = holding(&server);
    let (sender, receiver) = std::sync::mpsc::channel();
    server.before(Kind::Get, 1, Accident::Wait(receiver));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| read(&s3, "a", None).unwrap());
        while server.count(Kind::Get) == 0 {
            std::thread::yield_now();
        }
        // Done while the first still waits.
        assert!(read(&s3, "a", None).unwrap() == bytes(LENGTH));
        drop(sender);
        assert!(first.join().unwrap() == bytes(LENGTH));
    });
}
