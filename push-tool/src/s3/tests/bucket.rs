//! Keys that others left in the bucket, rules it has, its clock, what dead uploads left.

use super::*;

#[test]
fn keys_of_others_end_no_listing() {
    let server = Server::start();
    let s3 = open(&server);
    let odd = ["x/a//b", "x//a", "x/folder/", "x/../y", "x/.", "x/\u{1}b", "x/a\nb"];
    let fine = ["x/a b+c%20&<d>", "x/ä", "x/q?x=1#f", "x/z'\""];
    for name in odd.iter().chain(&fine) {
        server.bucket().store(&format!("backups/{name}"), b"1");
    }
    for key in ["/a", "backups", "backups-of-others/x", "backups//x"] {
        server.bucket().store(key, b"1");
    }
    server.bucket().page = 1;
    let mut found = names(&s3, "x").unwrap();
    found.retain(|name| !odd.contains(&name.as_str()) || name.contains(char::is_control));
    let mut expected = fine.map(str::to_owned).to_vec();
    let with_controls = odd.iter().filter(|name| name.contains(char::is_control));
    expected.extend(with_controls.map(|name| (*name).to_owned()));
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(names(&s3, "").unwrap(), expected);
    for name in fine {
        assert_eq!(read(&s3, name, None).unwrap(), b"1", "{name}");
        assert_eq!(s3.stat(name).unwrap().unwrap().size, 1, "{name}");
    }
    // Both ways to remove, for a name that XML cannot hold.
    assert!(s3.delete(&expected).is_empty());
    assert!(names(&s3, "").unwrap().is_empty());
}

#[test]
fn a_listing_that_goes_round_in_circles_ends() {
    let server = Server::start();
    let s3 = open(&server);
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x\
                </NextContinuationToken></ListBucketResult>";
    for number in 1..=3 {
        let same = Accident::Lie(Box::new(move |reply| reply.body = page.into()));
        server.before(Kind::List, number, same);
    }
    assert!(names(&s3, "").is_err());
    assert_eq!(server.count(Kind::List), 2);
}

#[test]
fn a_page_that_is_cut_is_asked_for_again() {
    let server = Server::start();
    let s3 = open(&server);
    server.bucket().store("backups/a", b"1");
    server.before(Kind::List, 1, Accident::CutReply(50));
    assert_eq!(names(&s3, "").unwrap(), ["a"]);
    // The second page fails for good: the listing says so and does not just end.
    server.bucket().store("backups/b", b"1");
    server.bucket().page = 1;
    server.before(Kind::List, 2, Accident::Refuse(403, "AccessDenied"));
    let listed: Vec<_> = s3.list("").unwrap().collect();
    assert_eq!(listed.len(), 2);
    assert!(listed[0].is_ok() && listed[1].is_err());
}

#[test]
fn dead_uploads_of_ours_are_swept_and_no_others() {
    let server = Server::start();
    let s3 = open(&server);
    for name in ["2026/05/01/b/files/000001.tar.zst", ".bk/partial/b/1.entries"] {
        let mut upload = s3.put(name, 1).unwrap();
        upload.write_all(&bytes(9 << 20)).unwrap();
        std::mem::forget(upload);
    }
    while server.count(Kind::Part) < 2 {
        std::thread::yield_now();
    }
    let others = S3::open(server.bucket_name(), "", &server.access(&[])).unwrap();
    for name in ["uploads/film.mp4", "backups/film.mp4", "backups-of-others/2026/05/01/b/x"] {
        let mut upload = others.put(name, 1).unwrap();
        upload.write_all(&bytes(9 << 20)).unwrap();
        std::mem::forget(upload);
    }
    server.bucket().store("backups/.bk/probe-dead", b"1");
    server.bucket().page = 1;
    let began = server.bucket().uploads.values().map(|upload| upload.initiated).min().unwrap();
    assert_eq!(s3.sweep(began).unwrap(), 0);
    let later = Time::from_unix(server.bucket().now().unix().0 + 60, 0);
    assert_eq!(s3.sweep(later).unwrap(), 3);
    assert_eq!(server.bucket().uploads.len(), 3);
    assert_eq!(s3.sweep(later).unwrap(), 0);
}

#[test]
fn an_upload_that_may_not_be_swept_spares_no_other_and_the_rights_are_named() {
    let server = Server::start();
    let s3 = open(&server);
    for name in ["2026/05/01/b/1", "2026/05/01/b/2"] {
        let mut upload = s3.put(name, 1).unwrap();
        upload.write_all(&bytes(9 << 20)).unwrap();
        std::mem::forget(upload);
    }
    while server.count(Kind::Part) < 2 {
        std::thread::yield_now();
    }
    server.bucket().store("backups/.bk/probe-dead", b"1");
    let later = Time::from_unix(server.bucket().now().unix().0 + 60, 0);
    refuse(&server, Kind::Abort, 1, 403, "AccessDenied");
    let error = s3.sweep(later).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.source.to_string().contains("s3:AbortMultipartUpload"), "{}", error.source);
    assert_eq!(server.bucket().uploads.len(), 1);
    assert!(server.bucket().objects.is_empty());
    refuse(&server, Kind::Uploads, 1, 403, "AccessDenied");
    let error = s3.sweep(later).unwrap_err();
    assert!(error.source.to_string().contains("s3:ListBucketMultipartUploads"));
}

#[test]
fn a_proxy_with_a_clock_of_its_own_is_not_believed() {
    let server = Server::start();
    server.put_proxy_ahead(7200);
    let s3 = open(&server);
    let now = s3.now().unwrap().unix().0;
    put(&s3, "a", b"1").unwrap();
    let stored = s3.stat("a").unwrap().unwrap().modified.unix().0;
    assert!(now.abs_diff(stored) < 60, "{now} {stored}");
}

#[test]
fn who_may_only_read_can_ask_the_time() {
    let server = Server::start();
    let s3 = open(&server);
    refuse(&server, Kind::Put, 1, 403, "AccessDenied");
    assert!(s3.now().is_ok());
}

#[test]
fn a_store_that_overwrites_is_told_of_and_written_with_care() {
    let server = Server::start();
    server.bucket().has_create_only = false;
    let s3 = open(&server);
    let limits = s3.limits();
    assert!(limits.len() == 1 && limits[0].contains("one host at a time"), "{limits:?}");
    assert_eq!(s3.create("a", b"1").unwrap(), Created::New);
    assert_eq!(s3.create("a", b"2").unwrap(), Created::Taken);
    server.before(Kind::Put, 1, Accident::LoseReply);
    assert_eq!(s3.create("b", b"1").unwrap(), Created::New);
    // Somebody overwrites ours in the same moment: theirs is there, so it is not ours.
    let theirs = Accident::First(Box::new(|bucket| bucket.store("backups/c", b"theirs")));
    server.before(Kind::Head, 2, theirs);
    assert_eq!(s3.create("c", b"mine").unwrap(), Created::Taken);
    assert!(open(&Server::start()).limits().is_empty());
}

#[test]
fn a_store_that_refuses_the_condition_is_one_without_it() {
    let server = Server::start();
    server.bucket().has_create_only = false;
    refuse(&server, Kind::Put, 1, 501, "NotImplemented");
    let s3 = open(&server);
    assert_eq!(s3.create("a", b"1").unwrap(), Created::New);
    assert_eq!(s3.create("a", b"1").unwrap(), Created::Taken);
    assert_eq!(names(&s3, "").unwrap(), ["a"]);
}

#[test]
fn rules_that_endanger_backups_are_told() {
    let server = Server::start();
    let s3 = open(&server);
    let rules = |name: &str, xml: &str| {
        let mut bucket = server.bucket();
        bucket.rules.clear();
        bucket.rules.insert(name.into(), xml.into());
        drop(bucket);
        s3.limits()
    };
    let rule = |status: &str, prefix: &str, what: &str| {
        format!(
            "<LifecycleConfiguration><Rule><ID>r1</ID><Status>{status}</Status><Filter><Prefix>\
             {prefix}</Prefix></Filter>{what}</Rule></LifecycleConfiguration>"
        )
    };
    let expire = "<Expiration><Days>30</Days></Expiration>";
    let freeze = "<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>";
    let warm = "<Transition><Days>1</Days><StorageClass>STANDARD_IA</StorageClass></Transition>";
    let abort = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation>\
                 </AbortIncompleteMultipartUpload>";
    for (status, prefix, what, part) in [
        ("Enabled", "", expire, Some("'r1' removes objects after 30 days")),
        ("Enabled", "backups/2026", expire, Some("removes")),
        ("Enabled", "backups/", freeze, Some("moves objects to GLACIER")),
        ("Enabled", "uploads/", expire, None),
        ("Disabled", "", expire, None),
        ("Enabled", "", warm, None),
        ("Enabled", "", abort, None),
    ] {
        let limits = rules("lifecycle", &rule(status, prefix, what));
        let found = part.is_none_or(|part| limits.iter().any(|limit| limit.contains(part)));
        assert!(found && limits.is_empty() == part.is_none(), "{prefix} {what}: {limits:?}");
    }
    // What is stored here has no tags.
    let tag = "<Tag><Key>k</Key><Value>v</Value></Tag>";
    let of_tags = |filter: &str| {
        let all = "<Filter><Prefix></Prefix></Filter>";
        let filter = format!("<Filter>{filter}</Filter>");
        rules("lifecycle", &rule("Enabled", "", expire).replace(all, &filter))
    };
    assert!(of_tags(tag).is_empty());
    assert!(of_tags(&format!("<And><Prefix>backups/</Prefix>{tag}{tag}</And>")).is_empty());
    let sized = "<And><Prefix>backups/</Prefix><ObjectSizeGreaterThan>1</ObjectSizeGreaterThan>\
                 </And>";
    assert_eq!(of_tags(sized).len(), 1);
    let day = rules("lifecycle", &rule("Enabled", "", &expire.replace("30", "1")));
    assert!(day[0].contains("after 1 day,"), "{day:?}");
    let locked = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>\
                  <DefaultRetention><Mode>COMPLIANCE</Mode><Days>90</Days></DefaultRetention>\
                  </Rule></ObjectLockConfiguration>";
    assert!(rules("object-lock", locked)[0].contains("90 days (COMPLIANCE)"));
    let versions = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    assert!(rules("versioning", versions)[0].contains("old versions"));
    assert!(s3.keeps_versions());
    // What was stored since then is really removed.
    assert!(!rules("versioning", &versions.replace("Enabled", "Suspended")).is_empty());
    assert!(!s3.keeps_versions());
    assert!(rules("versioning", "<VersioningConfiguration/>").is_empty());
    assert!(!s3.keeps_versions());
    // Keys that may not ask learn nothing.
    for _ in 0..3 {
        server.before(Kind::Rule, 1, Accident::Refuse(403, "AccessDenied"));
    }
    assert!(s3.limits().is_empty());
}

#[test]
fn what_could_not_be_removed_is_told_by_name() {
    let server = Server::start();
    let s3 = open(&server);
    for name in ["a", "b", "c"] {
        put(&s3, name, b"1").unwrap();
    }
    let locked = "<DeleteResult><Error><Key>backups/b</Key><Code>AccessDenied</Code><Message>locked\
                  </Message></Error><Error><Key>backups/c</Key><Code>NoSuchKey</Code></Error>\
                  </DeleteResult>";
    server.before(Kind::DeleteMany, 1, Accident::Lie(Box::new(|reply| reply.body = locked.into())));
    let failed = s3.delete(&["a".into(), "b".into(), "c".into()]);
    assert_eq!(failed.len(), 1);
    assert_eq!((&*failed[0].name, failed[0].kind), ("b", ErrorKind::Denied));
    // A request that fails as a whole fails for each.
    refuse(&server, Kind::DeleteMany, 1, 403, "AccessDenied");
    assert_eq!(s3.delete(&["a".into(), "b".into()]).len(), 2);
}
