//! Objects that cannot be read, and buckets that hold less than they did or are gone.

use super::*;

#[test]
fn what_vanished_or_is_denied_is_left_out_and_the_rest_is_stored() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    for key in ["denied", "gone", "stays"] {
        bucket.store(key, Object::new(key.as_bytes(), 1));
    }
    let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    bucket.remove("gone");
    bucket.deny("denied");
    let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
    let (entries, trailer) = entries(&stored);
    assert_eq!((exit, paths(&entries)), (Exit::Partial, vec!["minio/stays".to_owned()]));
    let left_out = trailer.left_out().unwrap();
    assert_eq!((left_out.count(Reason::Vanished), left_out.count(Reason::Unreadable)), (1, 1));
    assert_eq!(trailer.components().unwrap()[0].status, Status::Partial);
}

#[test]
fn a_bucket_that_is_empty_by_now_is_refused_and_does_not_become_the_newest_backup() {
    let (bucket, document, memory) = hundred();
    let parent = as_parent(&pushed(&document, &bucket, &memory).unwrap().1);
    let next = begun(2, Some(&parent), Vec::new());
    for key in bucket.keys().iter().take(90) {
        bucket.remove(key);
    }
    assert_eq!(added(&next, &bucket).unwrap().0, Exit::Done, "10 of 100");
    bucket.remove("099");
    let error = added(&next, &bucket).unwrap_err();
    assert_eq!(classify(&error), Exit::Unmet);
    assert!(error.to_string().contains("'minio' holds 9 files, in the last backup 100"), "{error}");
    let options = Options { max_shrink: MaxShrink::NO_LIMIT, ..OPTIONS };
    let reader = Reader::new(&next[..]).unwrap();
    assert_eq!(add(reader, Vec::new(), &bucket, &options, &Silent).unwrap(), Exit::Done);
}

#[test]
fn objects_that_are_mostly_gone_when_they_are_read_make_no_complete_backup() {
    for (gone, is_complete) in [(50, true), (51, false), (100, false)] {
        let (bucket, document, memory) = hundred();
        for key in bucket.keys().iter().take(gone) {
            bucket.remove(key);
        }
        let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
        let (_, trailer) = entries(&stored);
        let status = trailer.components().unwrap()[0].status;
        let due = if is_complete {
            (Exit::Done, Status::Complete)
        } else {
            (Exit::Partial, Status::Partial)
        };
        assert_eq!((exit, status), due, "{gone}");
        if gone == 100 {
            let parent = as_parent(&stored);
            let error = added(&begun(2, Some(&parent), Vec::new()), &bucket).unwrap_err();
            assert!(error.to_string().contains("in the last backup 100"), "{error}");
        }
    }
}

/// A bucket of 100 small objects, its listing, and a destination.
fn hundred() -> (MemoryBucket, Vec<u8>, Arc<Memory>) {
    let bucket = MemoryBucket::default();
    for number in 0..100 {
        bucket.store(&format!("{number:03}"), Object::new(format!("{number}").as_bytes(), 1));
    }
    let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    (bucket, document, memory())
}

fn has_manifest(memory: &Memory) -> bool {
    memory.names().iter().any(|name| name.ends_with("manifest.json"))
}

#[test]
fn keys_that_are_revoked_while_objects_are_read_make_no_backup() {
    for gets in [0, 10, 99] {
        let (bucket, document, memory) = hundred();
        bucket.revoke_after(gets);
        let error = pushed(&document, &bucket, &memory).unwrap_err();
        assert_eq!(classify(&error), Exit::Denied, "{gets}");
        assert!(!has_manifest(&memory));
    }
}

#[test]
fn a_bucket_that_may_be_listed_and_not_read_makes_no_backup() {
    let (bucket, document, memory) = hundred();
    bucket.keys().iter().for_each(|key| bucket.deny(key));
    let error = pushed(&document, &bucket, &memory).unwrap_err();
    assert_eq!(classify(&error), Exit::Denied);
    assert!(!has_manifest(&memory));
}

#[test]
fn many_objects_that_are_denied_each_for_itself_are_left_out() {
    // Of those that are read, and where all others are inherited.
    let (bucket, document, memory) = hundred();
    bucket.keys()[20..60].iter().for_each(|key| bucket.deny(key));
    let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
    let left_out = |stored: &[u8]| entries(stored).1.left_out().unwrap().count(Reason::Unreadable);
    assert_eq!((exit, left_out(&stored)), (Exit::Partial, 40));
    let parent = as_parent(&stored);
    let (_, document) = added(&begun(2, Some(&parent), Vec::new()), &bucket).unwrap();
    let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
    assert_eq!((exit, left_out(&stored), entries(&stored).0.len()), (Exit::Partial, 40, 60));
}

#[test]
fn a_bucket_that_stops_answering_makes_no_backup() {
    let (bucket, document, memory) = hundred();
    bucket.vanish();
    pushed(&document, &bucket, &memory).unwrap_err();
    assert!(!has_manifest(&memory));
}

#[test]
fn a_bucket_that_is_gone_makes_no_backup_however_few_it_held() {
    let (bucket, memory) = (MemoryBucket::default(), memory());
    bucket.store("only", Object::new(b"x", 1));
    let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
    bucket.vanish();
    pushed(&document, &bucket, &memory).unwrap_err();
    assert!(!has_manifest(&memory));
}

#[test]
fn objects_in_an_archive_are_left_out_however_many() {
    let (bucket, document, memory) = hundred();
    bucket.keys()[20..60].iter().for_each(|key| bucket.refuse(key, ErrorKind::Archived));
    let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
    let left_out = entries(&stored).1.left_out().unwrap().count(Reason::Unreadable);
    assert_eq!((exit, left_out), (Exit::Partial, 40));
}

#[test]
fn what_may_be_a_marker_and_cannot_be_read_is_an_object_like_any_other() {
    for kind in [ErrorKind::Archived, ErrorKind::Denied] {
        let (bucket, memory) = (MemoryBucket::default(), memory());
        for key in ["a/x", "a/.bk-destination", "b"] {
            bucket.store(key, Object::new(b"x", 1));
        }
        bucket.refuse("a/.bk-destination", kind);
        let (_, document) = added(&begun(1, None, Vec::new()), &bucket).unwrap();
        let (exit, stored) = pushed(&document, &bucket, &memory).unwrap();
        assert_eq!((exit, entries(&stored).0.len()), (Exit::Partial, 2), "{kind:?}");
    }
}

#[test]
fn a_bucket_that_may_not_be_listed_ends_no_document() {
    let bucket = MemoryBucket::default();
    bucket.deny("");
    let mut output = Vec::new();
    let begun = begun(1, None, Vec::new());
    let reader = Reader::new(&begun[..]).unwrap();
    let error = add(reader, &mut output, &bucket, &OPTIONS, &Silent).unwrap_err();
    assert_eq!(classify(&error), Exit::Denied);
    assert!(Reader::new(&output[..]).unwrap().end().is_err());
}
