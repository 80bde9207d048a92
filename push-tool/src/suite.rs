//! What every destination must keep, whatever kind it is.
#![expect(clippy::unwrap_used, reason = "only tests use it, and want to end where it breaks")]

use std::io::{Read, Write};

use crate::destination::{Created, Destination, ErrorKind, Upload};

/// What makes an empty destination.
pub type Make<'a> = &'a dyn Fn() -> Box<dyn Destination>;

/// Every promise, each on a destination of its own.
///
/// # Panics
/// If one is not kept.
pub fn run(make: Make<'_>) {
    let promises: [fn(&dyn Destination); 8] = [
        an_object_has_no_name_before_its_commit,
        nothing_that_is_stored_is_overwritten,
        of_many_creators_one_wins,
        ranges_are_read_and_end_with_the_object,
        folders_are_listed_by_themselves,
        what_is_deleted_is_gone_and_what_was_gone_is_no_error,
        the_clock_is_that_of_the_objects,
        names_that_lead_out_are_refused,
    ];
    for promise in promises {
        promise(&*make());
    }
}

fn put(destination: &dyn Destination, name: &str, bytes: &[u8]) {
    let mut upload = destination.put(name, bytes.len() as u64).unwrap();
    upload.write_all(bytes).unwrap();
    upload.commit().unwrap();
}

/// The bytes of an object, or of a range of it.
pub(crate) fn read(
    destination: &dyn Destination,
    name: &str,
    range: Option<std::ops::Range<u64>>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    destination.read(name, range).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The names below a folder, sorted.
pub(crate) fn names(destination: &dyn Destination, folder: &str) -> Vec<String> {
    let mut names: Vec<String> =
        destination.list(folder).unwrap().map(|object| object.unwrap().name).collect();
    names.sort();
    names
}

fn an_object_has_no_name_before_its_commit(destination: &dyn Destination) {
    let mut upload = destination.put("a/b", 7).unwrap();
    upload.write_all(b"content").unwrap();
    assert_eq!(destination.stat("a/b").unwrap(), None);
    assert!(names(destination, "").is_empty());
    upload.commit().unwrap();
    assert_eq!(destination.stat("a/b").unwrap().unwrap().size, 7);
    assert_eq!(read(destination, "a/b", None), b"content");
    drop(destination.put("a/c", 1).unwrap());
    assert_eq!(names(destination, ""), ["a/b"]);
}

fn nothing_that_is_stored_is_overwritten(destination: &dyn Destination) {
    put(destination, "a", b"first");
    let mut upload = destination.put("a", 6).unwrap();
    upload.write_all(b"second").unwrap();
    assert_eq!(upload.commit().unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(destination.create("a", b"third").unwrap(), Created::Taken);
    assert_eq!(read(destination, "a", None), b"first");
    assert_eq!(destination.create("b", b"new").unwrap(), Created::New);
    assert_eq!(read(destination, "b", None), b"new");
}

fn of_many_creators_one_wins(destination: &dyn Destination) {
    let created: Vec<Created> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u8)
            .map(|number| scope.spawn(move || destination.create("lease", &[number]).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(created.iter().filter(|created| **created == Created::New).count(), 1);
    let winner = created.iter().position(|created| *created == Created::New).unwrap();
    assert_eq!(read(destination, "lease", None), [u8::try_from(winner).unwrap()]);
}

fn ranges_are_read_and_end_with_the_object(destination: &dyn Destination) {
    put(destination, "a", b"0123456789");
    assert_eq!(read(destination, "a", Some(2..5)), b"234");
    assert_eq!(read(destination, "a", Some(8..50)), b"89");
    assert_eq!(read(destination, "a", Some(50..60)), b"");
    let missing = destination.read("b", Some(0..1)).err().unwrap();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    assert!(!missing.may_retry());
}

fn folders_are_listed_by_themselves(destination: &dyn Destination) {
    for name in ["a/x", "a/b/y", "ab/z", ".bk/marks/m"] {
        put(destination, name, b"1");
    }
    assert_eq!(names(destination, "a"), ["a/b/y", "a/x"]);
    assert_eq!(names(destination, ".bk/marks"), [".bk/marks/m"]);
    assert!(names(destination, "no such").is_empty());
    assert_eq!(names(destination, "").len(), 4);
}

fn what_is_deleted_is_gone_and_what_was_gone_is_no_error(destination: &dyn Destination) {
    put(destination, "a/x", b"1");
    put(destination, "a/y", b"1");
    let gone = ["a/x".to_owned(), "never/there".to_owned()];
    assert!(destination.delete(&gone).is_empty());
    assert_eq!(names(destination, ""), ["a/y"]);
    // A folder that became empty takes new objects again.
    assert!(destination.delete(&["a/y".to_owned()]).is_empty());
    put(destination, "a/x", b"2");
    assert_eq!(read(destination, "a/x", None), b"2");
}

fn the_clock_is_that_of_the_objects(destination: &dyn Destination) {
    let before = destination.now().unwrap();
    put(destination, "a", b"1");
    let stored = destination.stat("a").unwrap().unwrap().modified;
    let after = destination.now().unwrap();
    assert!(before <= stored && stored <= after, "{before} {stored} {after}");
    assert_eq!(destination.sweep(before).unwrap(), 0);
}

fn names_that_lead_out_are_refused(destination: &dyn Destination) {
    put(destination, "a", b"1");
    for name in ["../x", "/etc/passwd", "a/../../x", ""] {
        let stored = destination.put(name, 1).and_then(Upload::commit);
        assert!(stored.is_err(), "{name}");
        assert!(destination.create(name, b"").is_err(), "{name}");
        assert!(destination.read(name, None).is_err(), "{name}");
        assert!(!destination.delete(&[name.to_owned()]).is_empty(), "{name}");
    }
    assert_eq!(names(destination, ""), ["a"]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Local;
    use crate::memory::Memory;
    use crate::rsync::servers::{Account, RsyncDaemon, Sshd};
    use crate::s3::S3;
    use crate::testing::server::Server;

    #[test]
    fn a_folder_keeps_every_promise() {
        let folder = tempfile::tempdir().unwrap();
        let next = std::cell::Cell::new(0);
        run(&|| {
            next.set(next.get() + 1);
            let path = folder.path().join(next.get().to_string());
            std::fs::create_dir(&path).unwrap();
            Box::new(Local::new(path))
        });
    }

    #[test]
    fn memory_keeps_every_promise() {
        run(&|| Box::new(Memory::new("2026-05-01T00:00:00Z")));
    }

    fn on_servers(set_up: impl Fn(&Server)) {
        let servers = std::cell::RefCell::new(Vec::new());
        run(&|| {
            let server = Server::start();
            set_up(&server);
            let s3 = S3::open(server.bucket_name(), "backups", &server.access(&[])).unwrap();
            servers.borrow_mut().push(server);
            Box::new(s3)
        });
    }

    #[test]
    fn a_bucket_keeps_every_promise() {
        on_servers(|_| {});
    }

    #[test]
    fn a_bucket_that_can_do_little_keeps_them_for_one_writer() {
        on_servers(|server| {
            let mut bucket = server.bucket();
            (bucket.has_create_only, bucket.has_delete_many, bucket.page) = (false, false, 1);
        });
    }

    #[test]
    fn a_host_with_a_shell_keeps_every_promise() {
        let sshd = Sshd::start();
        run(&|| sshd.destination(Account::Shell));
    }

    #[test]
    fn a_host_with_rsync_alone_keeps_them_for_one_writer() {
        let sshd = Sshd::start();
        run(&|| sshd.destination(Account::Rrsync));
    }

    #[test]
    fn a_daemon_keeps_them_for_one_writer() {
        let daemon = RsyncDaemon::start();
        run(&|| daemon.destination());
    }
}
