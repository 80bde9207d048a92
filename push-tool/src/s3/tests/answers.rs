//! Answers with the status of success that are none, from the store or from something before it.

use super::*;
use crate::testing::server::Reply;

const LOGIN: &str = "<!DOCTYPE html>\n<html><body>Please log in</body></html>";
const NOTHING: &str = "";

fn error(code: &str) -> String {
    format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>m</Message></Error>")
}

fn answer(server: &Server, kind: Kind, number: u64, body: String) {
    let lie = Box::new(move |reply: &mut Reply| {
        reply.status = 200;
        reply.body = body.into();
    });
    server.before(kind, number, Accident::Lie(lie));
}

/// A destination with two objects.
fn holding(server: &Server) -> S3 {
    for name in ["a", "b"] {
        server.bucket().store(&format!("backups/{name}"), b"1");
    }
    open(server)
}

#[test]
fn an_answer_that_is_no_listing_is_no_empty_listing() {
    let server = Server::start();
    let s3 = holding(&server);
    let cut = "<ListBucketResult><Name>b</Name></ListBucketResult>";
    let endless = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
    for body in [LOGIN, NOTHING, "OK", "<Response/>", cut, endless, &error("AccessDenied")] {
        let before = server.count(Kind::List);
        answer(&server, Kind::List, 1, body.to_owned());
        let error = names(&s3, "").unwrap_err();
        assert_eq!(error.kind == ErrorKind::Denied, body.contains("Denied"), "{body}");
        assert_eq!(server.count(Kind::List) - before, 1, "{body}");
    }
    // The second page too.
    server.bucket().page = 1;
    answer(&server, Kind::List, 2, LOGIN.to_owned());
    assert!(names(&s3, "").is_err());
}

#[test]
fn a_passing_fault_behind_a_200_is_tried_again() {
    let server = Server::start();
    let s3 = holding(&server);
    for code in ["InternalError", "SlowDown", "ServiceUnavailable"] {
        for kind in [Kind::List, Kind::DeleteMany, Kind::Begin, Kind::Complete] {
            answer(&server, kind, 1, error(code));
        }
        assert_eq!(names(&s3, "").unwrap(), ["a", "b"], "{code}");
        put(&s3, "c", &bytes((8 << 20) + 1)).unwrap();
        assert!(s3.delete(&["c".into(), "d".into()]).is_empty(), "{code}");
        assert_eq!(names(&s3, "").unwrap(), ["a", "b"], "{code}");
    }
    // Not for ever.
    let before = server.count(Kind::List);
    (1..=9).for_each(|number| answer(&server, Kind::List, number, error("InternalError")));
    assert_eq!(names(&s3, "").unwrap_err().kind, ErrorKind::Transient);
    assert_eq!(server.count(Kind::List) - before, 4);
}

#[test]
fn an_answer_that_does_not_speak_of_removal_removes_nothing() {
    let server = Server::start();
    let s3 = holding(&server);
    let both = ["a".to_owned(), "b".to_owned()];
    // Nothing is done, whatever the answer says.
    let ignored = |kind, number, body: &str| {
        server.before(kind, number, Accident::Keep);
        answer(&server, kind, number, body.to_owned());
    };
    for body in [LOGIN, "<Response/>", &error("AccessDenied")] {
        ignored(Kind::DeleteMany, 1, body);
        if !body.contains("Denied") {
            // An answer of no use: each is asked for.
            (1..=2).for_each(|number| ignored(Kind::Delete, number, body));
        }
        assert_eq!(s3.delete(&both).len(), 2, "{body}");
        ignored(Kind::Delete, 1, body);
        assert_eq!(s3.delete(&both[..1]).len(), 1, "{body}");
        assert_eq!(names(&s3, "").unwrap(), both, "{body}");
    }
    // Whom these mean nobody knows.
    for key in ["<Key>other</Key>", "<Key/>", ""] {
        let error = format!("<Error>{key}<Code>AccessDenied</Code></Error>");
        ignored(Kind::DeleteMany, 1, &format!("<DeleteResult>{error}</DeleteResult>"));
        let failed = s3.delete(&both);
        assert_eq!(failed.len(), 2, "{key}");
        assert!(failed.iter().all(|error| error.kind == ErrorKind::Denied), "{key}");
    }
    // No word at all.
    ignored(Kind::DeleteMany, 1, NOTHING);
    assert!(s3.delete(&both).is_empty());
    assert!(names(&s3, "").unwrap().is_empty());
}

#[test]
fn an_object_is_stored_when_it_is_there_and_not_when_a_page_came() {
    let server = Server::start();
    let s3 = open(&server);
    s3.create("used", b"").unwrap();
    for body in [LOGIN, &error("AccessDenied")] {
        server.before(Kind::Put, 1, Accident::Keep);
        answer(&server, Kind::Put, 1, body.to_owned());
        assert!(s3.create("a", b"1").is_err(), "{body}");
    }
    // It was done, whatever came back.
    answer(&server, Kind::Put, 1, LOGIN.to_owned());
    assert_eq!(s3.create("a", b"1").unwrap(), Created::New);
    assert_eq!(names(&s3, "").unwrap(), ["a", "used"]);
}

#[test]
fn a_sweep_that_is_not_answered_is_an_error() {
    let server = Server::start();
    let s3 = holding(&server);
    let later = Time::from_unix(server.bucket().now().unix().0 + 60, 0);
    let truncated = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>\
                     </ListMultipartUploadsResult>";
    for body in [LOGIN, truncated, &error("AccessDenied")] {
        let before = server.count(Kind::Uploads);
        answer(&server, Kind::Uploads, 1, body.to_owned());
        assert!(s3.sweep(later).is_err(), "{body}");
        assert_eq!(server.count(Kind::Uploads) - before, 1, "{body}");
    }
}
