//! Keys, clocks and buckets that are not what the store wants.

use super::*;
use bk_manifest::exit::{Exit, classify};

fn refused(server: &Server, others: &[(&str, &str)]) -> Error {
    let s3 = S3::open(server.bucket_name(), "backups", &server.access(others)).unwrap();
    let error = s3.stat("a").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    error
}

#[test]
fn keys_that_are_wrong_are_told_apart() {
    let server = Server::start();
    let secret = hint(refused(&server, &[("BACKUP_S3_SECRET_KEY", "wrong")]));
    assert!(secret.contains("BACKUP_S3_SECRET_KEY"), "{secret}");
    let id = hint(refused(&server, &[("BACKUP_S3_ACCESS_KEY", "AKOTHER")]));
    assert!(id.contains("does not know"), "{id}");
    server.ask_for_token("lent");
    let token = hint(refused(&server, &[]));
    assert!(token.contains("get new ones"), "{token}");
}

#[test]
fn a_token_goes_with_the_keys_that_it_belongs_to() {
    let server = Server::start();
    server.ask_for_token("lent");
    let variables = server.variables().into_iter().map(|(name, value)| {
        let name = match &*name {
            "BACKUP_S3_ACCESS_KEY" => "AWS_ACCESS_KEY_ID",
            "BACKUP_S3_SECRET_KEY" => "AWS_SECRET_ACCESS_KEY",
            name => name,
        };
        (name.into(), value.into())
    });
    let token = ("AWS_SESSION_TOKEN".into(), "lent".into());
    let access = Access::new("BACKUP", variables.chain([token]));
    let s3 = S3::open(server.bucket_name(), "", &access).unwrap();
    assert_eq!(s3.stat("a").unwrap(), None);
}

#[test]
fn a_clock_that_is_wrong_by_a_day_is_named() {
    let server = Server::start();
    server.bucket().ahead = 86_400;
    let error = refused(&server, &[]);
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("RequestTimeTooSkewed"));
    assert!(hint(refused(&server, &[])).contains("clock"));
}

#[test]
fn no_key_is_in_what_is_told() {
    let server = Server::start();
    let secret = "wrongsecret12345";
    let error = refused(&server, &[("BACKUP_S3_SECRET_KEY", secret)]);
    let told = format!("{error:?}");
    let told = format!("{told} {:#}", anyhow::Error::from(error));
    assert!(!told.contains(secret) && !told.contains("Credential="), "{told}");
}

#[test]
fn what_is_denied_is_not_tried_again() {
    let server = Server::start();
    let s3 = open(&server);
    refuse(&server, Kind::List, 1, 403, "AccessDenied");
    assert_eq!(names(&s3, "").unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(server.count(Kind::List), 1);
    // Revoked half-way.
    s3.create("a", b"1").unwrap();
    refuse(&server, Kind::Put, 1, 403, "InvalidAccessKeyId");
    assert_eq!(s3.create("b", b"1").unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(server.bucket().objects.len(), 1);
}

#[test]
fn a_bucket_that_is_not_there_is_no_destination() {
    let server = Server::start();
    let s3 = S3::open("other", "", &server.access(&[])).unwrap();
    let exit = |error: Error| classify(&error.into());
    assert_eq!(exit(s3.create("a", b"").unwrap_err()), Exit::NoDestination);
    assert_eq!(exit(s3.read("a", None).err().unwrap()), Exit::NoDestination);
    assert_eq!(exit(s3.list("").err().unwrap()), Exit::NoDestination);
}

#[test]
fn an_archived_object_is_told_from_a_missing_and_a_forbidden_one() {
    let server = Server::start();
    let s3 = open(&server);
    put(&s3, "a", b"1").unwrap();
    server.bucket().objects.get_mut("backups/a").unwrap().class = Some("GLACIER".into());
    let error = s3.read("a", None).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Archived);
    assert!(hint(error).contains("restore it first"));
    assert_eq!(s3.stat("a").unwrap().unwrap().size, 1);
}

#[test]
fn a_full_store_is_full() {
    let server = Server::start();
    let s3 = open(&server);
    s3.create("a", b"1").unwrap();
    refuse(&server, Kind::Put, 1, 403, "QuotaExceeded");
    assert_eq!(put(&s3, "b", b"1").unwrap_err().kind, ErrorKind::Full);
}

#[test]
fn a_certificate_of_ones_own_is_trusted_when_it_is_named_and_not_before() {
    let server = Server::start_with_tls();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(crate::testing::server::AUTHORITY.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    for name in ["BACKUP_S3_CA_FILE", "AWS_CA_BUNDLE"] {
        let access = server.access(&[(name, path)]);
        let s3 = S3::open(server.bucket_name(), "backups", &access).unwrap();
        put(&s3, name, &bytes((9 << 20) + 1)).unwrap();
        assert!(read(&s3, name, None).unwrap() == bytes((9 << 20) + 1));
    }
    let before = server.total();
    let error = open(&server).stat("a").unwrap_err();
    assert!(!error.may_retry());
    assert!(hint(error).contains("BACKUP_S3_CA_FILE"));
    assert_eq!(server.total(), before);
    file.as_file().set_len(0).unwrap();
    let access = server.access(&[("BACKUP_S3_CA_FILE", path)]);
    let error = S3::open(server.bucket_name(), "", &access).err().unwrap();
    assert_eq!(classify(&error), Exit::Usage);
}

#[test]
fn a_certificate_that_is_its_own_authority_is_trusted_as_it_is_and_no_other() {
    use crate::testing::server::{
        OF_AUTHORITY, SELF_SIGNED, SELF_SIGNED_ELSEWHERE, SELF_SIGNED_EXPIRED,
    };
    for (shown, named, is_trusted) in [
        (SELF_SIGNED, SELF_SIGNED, true),
        (SELF_SIGNED_ELSEWHERE, SELF_SIGNED, false),
        (SELF_SIGNED_ELSEWHERE, SELF_SIGNED_ELSEWHERE, false),
        (SELF_SIGNED_EXPIRED, SELF_SIGNED_EXPIRED, false),
        // One whose authority is not named.
        (OF_AUTHORITY, OF_AUTHORITY, true),
        (OF_AUTHORITY, SELF_SIGNED, false),
    ] {
        let server = Server::start_with_certificate(shown);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all(named.as_bytes()).unwrap();
        let access = server.access(&[("BACKUP_S3_CA_FILE", file.path().to_str().unwrap())]);
        let s3 = S3::open(server.bucket_name(), "backups", &access).unwrap();
        let looked = s3.stat("a");
        assert_eq!(looked.is_ok(), is_trusted, "{looked:?}");
        assert_eq!(server.total() > 0, is_trusted);
        let text = looked.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
        assert!(text.is_none_or(|text| text.contains("certificate")));
    }
}

#[test]
fn a_proxy_that_is_set_is_named_without_its_password() {
    let server = Server::start();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{port}");
    for (name, is_named) in [("HTTP_PROXY", true), ("all_proxy", true), ("HTTPS_PROXY", false)] {
        for proxy in ["http://me:secret@proxy.lan:3128", "me:secret@proxy.lan:3128"] {
            let access = server.access(&[("BACKUP_S3_ENDPOINT", &endpoint), (name, proxy)]);
            let error = S3::open("photos", "", &access).unwrap().stat("a").unwrap_err();
            let hint = hint(error);
            assert_eq!(hint.contains(&format!("{name} (proxy.lan:3128)")), is_named, "{hint}");
            assert!(!hint.contains("secret"), "{hint}");
        }
    }
}

#[test]
fn a_store_that_cannot_be_reached_is_no_destination() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{port}");
    let access = Server::start().access(&[("BACKUP_S3_ENDPOINT", &endpoint)]);
    let error = S3::open("photos", "", &access).unwrap().stat("a").unwrap_err();
    assert!(hint(error).contains("the store up"));
    // Ones that speak no TLS: they hang up, or answer as they can.
    let server = Server::start();
    let address = server.variables()[0].1.replace("http://", "");
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = plain.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for (address, told) in [(address, "the store up"), (other, "no TLS")] {
        let endpoint = format!("https://{address}");
        let access =
            server.access(&[("BACKUP_S3_ENDPOINT", &endpoint), ("BACKUP_S3_SSL_ENABLED", "true")]);
        let look = || S3::open("photos", "", &access).unwrap().stat("a").unwrap_err();
        assert_eq!(classify(&look().into()), Exit::NoDestination);
        assert!(hint(look()).contains(told), "{told}");
    }
}
