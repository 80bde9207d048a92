//! Requests cost time, and money at some stores: there are as many as bytes ask for, not files.

use super::*;
use crate::access::Access;
use crate::bucket::none;
use crate::catalog::Catalog;
use crate::dry_run::DryRun;
use crate::fetch;
use crate::identity::Identities;
use crate::push::{self, push};
use crate::store::Store;
use crate::testing::noise;
use bk_manifest::entry::Entry;
use bk_manifest::manifest::Trailer;
use bk_manifest::manifest::{
    Application, Backup, Header, HostPath, Layout, Run, Source, SourceKind,
};
use bk_manifest::path::RelPath;
use bk_manifest::progress::Silent;
use bk_manifest::select::Selection;
use bk_manifest::spool::Document;
use bk_manifest::stream::{Format, Reader, Writer};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn destination(server: &Server) -> (String, Access) {
    (format!("s3://{}/backups", server.bucket_name()), server.access(&[]))
}

/// A document of so many small files below a folder, and a large one, as `add` would have made it.
fn document(root: &Path, id: &str, files: u32, large: &[u8]) -> Vec<u8> {
    let backup =
        Backup { id: id.into(), timestamp: "2026-05-01T00:00:00.000Z".into(), ..Backup::default() };
    let source = Source {
        component: "files".into(),
        kind: SourceKind::Tree,
        root: HostPath(root.as_os_str().as_bytes().to_vec()),
        prefix: HostPath::default(),
        paths: Vec::new(),
        access: None,
        layout: Layout::Packed,
    };
    let run = Run { sources: vec![source], ..Run::default() };
    let application = Application { name: "app".into(), version: None };
    let header = Header::new(&application, Some(&backup), &run);
    let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
    let small = |number| format!("content of {number} {}", "x".repeat(200)).into_bytes();
    let contents = (0..files).map(small).chain([large.to_vec()]);
    for (number, content) in contents.enumerate() {
        let name = format!("f{number:06}");
        std::fs::File::create(root.join(&name)).unwrap().write_all(&content).unwrap();
        let mut entry = Entry::new(RelPath::new(name).unwrap());
        entry.size = Some(content.len() as u64);
        writer.entry(&entry).unwrap();
    }
    writer.end(Trailer::default()).unwrap().0
}

fn push_files(server: &Server, id: &str, files: u32) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    push_document(server, &document(tree.path(), id, files, b"large"), false)
}

fn push_document(server: &Server, document: &[u8], is_dry: bool) -> Vec<u8> {
    let (name, access) = destination(server);
    let mut store = Store::open(&name, &access).unwrap();
    if is_dry {
        store.destination = Box::new(DryRun::over(store.destination).unwrap());
    }
    let options = push::Options { is_dry, ..push::Options::default() };
    let mut output = Vec::new();
    push(Reader::new(document).unwrap(), &mut output, &store, &options, &none, &Silent).unwrap();
    output
}

#[test]
fn requests_are_in_proportion_to_bytes_and_not_to_files() {
    let server = Server::start();
    let (name, access) = destination(&server);
    Store::init(&name, &access, Duration::from_hours(24)).unwrap();
    let before = server.total();
    push_files(&server, "backup-20260501-000000-aaaaaaaa", 20);
    let of_few = server.total() - before;
    let before = server.total();
    let pushed = push_files(&server, "backup-20260501-000000-bbbbbbbb", 3000);
    let of_many = server.total() - before;
    assert_eq!(of_few, of_many);
    assert!(of_many < 30, "{of_many}");
    // The file's place is known: a range of the volume.
    let store = Store::open(&name, &access).unwrap();
    let target = tempfile::tempdir().unwrap();
    let options = fetch::Options {
        target: target.path().to_owned(),
        selection: Selection::new(&["f001777".to_owned()], &[]).unwrap(),
        occupied: fetch::Occupied::Refuse,
        is_dry: false,
        identities: Identities::default(),
        temporary: std::env::temp_dir(),
        now: Time::now(),
    };
    let before = server.total();
    let mut document = Document::read(&pushed[..]).unwrap();
    fetch::fetch(&mut document, &store, &options, &Silent).unwrap();
    let content = std::fs::read_to_string(target.path().join("f001777")).unwrap();
    assert!(content.starts_with("content of 1777 "));
    let of_one = server.total() - before;
    assert!(of_one <= 5, "{of_one}");
}

#[test]
fn a_list_of_backups_reads_both_ends_of_each_manifest() {
    let server = Server::start();
    let (name, access) = destination(&server);
    Store::init(&name, &access, Duration::from_hours(24)).unwrap();
    for number in 0..3 {
        push_files(&server, &format!("backup-20260501-00000{number}-aaaaaaaa"), 10);
    }
    let store = Store::open(&name, &access).unwrap();
    let before = (server.total(), server.count(Kind::Get));
    let catalog = Catalog::read(&*store.destination).unwrap();
    assert_eq!(catalog.backups.len(), 3);
    assert!(server.count(Kind::Get) - before.1 <= 6);
    assert!(server.total() - before.0 <= 7);
}

/// What a store does to find out what the destination can do, and to remove what it left there.
const PROBE: u64 = 8;

#[test]
fn a_dry_run_says_how_many_requests_it_will_take_and_stores_nothing() {
    let server = Server::start();
    let (name, access) = destination(&server);
    Store::init(&name, &access, Duration::from_hours(24)).unwrap();
    let keys = || server.bucket().objects.keys().cloned().collect::<Vec<_>>();
    let tree = tempfile::tempdir().unwrap();
    let large = noise(40 << 20);
    let document = document(tree.path(), "backup-20260501-000000-aaaaaaaa", 500, &large);
    let before = (keys(), server.total());
    let said = String::from_utf8(push_document(&server, &document, true)).unwrap();
    assert_eq!(keys(), before.0, "nothing was stored");
    assert!(
        said.starts_with("would store backup-20260501-000000-aaaaaaaa of app: 1 objects, "),
        "{said}"
    );
    let requests: u64 = said.trim().rsplit(' ').nth(1).unwrap().parse().unwrap();
    let before = server.total();
    push_document(&server, &document, false);
    let real = server.total() - before;
    assert!(requests > 10 && requests <= real && real <= requests + PROBE, "{requests} {real}");
}
