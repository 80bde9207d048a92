//! `bk-manifest add`: merged with the parent and with what came before it in the pipe.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bk_manifest::entry::{At, Entry};
use bk_manifest::manifest::{Application, Backup, Header, Run, Trailer};
use bk_manifest::path::RelPath;
use bk_manifest::spool::Document;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use serde_json::json;

use crate::harness::{Ran, run, run_command, tool, write};

const PARENT: &str = "backup-20260427-022150-0f0e0d0c";

/// A tree with a manifest of it, as if it had been stored an hour from now: all of it is settled.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
        fs::create_dir_all(fixture.root().join("sub")).unwrap();
        for (name, text) in
            [("same", "1"), ("sub/touched", "22"), ("sub/grown", "333"), ("swapped", "4")]
        {
            write(&fixture.root().join(name), text);
        }
        fixture
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("tree")
    }

    fn parent(&self) -> String {
        self.folder.path().join("parent.json").to_str().unwrap().to_owned()
    }

    /// Stores a manifest of the tree as it is, whose backup began `seconds` from now.
    fn store_parent(&self, seconds: i64) {
        let hashed = add(self, &run(&["new", "--app", "app"], b"").stdout, &["--hash"]);
        let document = Document::read(&hashed.stdout[..]).unwrap();
        let (now, _) = Time::now().unix();
        let backup = Backup {
            id: PARENT.into(),
            timestamp: Time::from_unix(now + seconds, 0).to_string(),
            ..Backup::default()
        };
        let application = Application { name: "app".into(), version: None };
        let header = Header::new(&application, Some(&backup), &Run::default());
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        for entry in document.entries.iter() {
            let mut entry = entry.unwrap();
            if entry.is_file() {
                entry.at = Some(At {
                    backup: (entry.path.as_bytes() == b"same").then(|| "backup-0".to_owned()),
                    object: "files/000001.tar.zst".into(),
                    offset: Some(0),
                    length: Some(9),
                    ..At::default()
                });
            }
            writer.entry(&entry).unwrap();
        }
        let (bytes, _) = writer.end(document.trailer).unwrap();
        write(Path::new(&self.parent()), bytes);
    }

    fn child(&self, flags: &[&str]) -> Vec<Entry> {
        let new = run(&["new", "--app", "app", "--parent", &self.parent()], b"").success();
        entries(&add(self, &new.stdout, flags).success().stdout)
    }
}

fn add(fixture: &Fixture, input: &[u8], flags: &[&str]) -> Ran {
    let root = fixture.root();
    let mut args = vec!["add", "--root", root.to_str().unwrap()];
    args.extend(flags);
    run(&args, input)
}

fn entries(document: &[u8]) -> Vec<Entry> {
    let document = Document::read(document).unwrap();
    document.entries.iter().map(Result::unwrap).collect()
}

fn paths(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.path.to_string()).collect()
}

/// The files that were taken from the parent, with the backup that holds them.
fn inherited(entries: &[Entry]) -> Vec<(String, String)> {
    let known = entries.iter().filter(|entry| entry.checksum.is_some());
    known
        .map(|entry| {
            let at = entry.at.as_ref().expect("who has a checksum has a place");
            (entry.path.to_string(), at.backup.clone().expect("the parent's own id is filled in"))
        })
        .collect()
}

#[test]
fn unchanged_files_are_taken_from_the_parent_and_changed_ones_are_not() {
    let fixture = Fixture::new();
    fixture.store_parent(3600);
    let all =
        [("same", "backup-0"), ("sub/grown", PARENT), ("sub/touched", PARENT), ("swapped", PARENT)];
    let owned = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let mut sorted = owned(&all);
    sorted.sort();
    assert_eq!(inherited(&fixture.child(&[])), sorted);

    // The clock of a change time has a grain: two writes within it look like one.
    std::thread::sleep(Duration::from_millis(20));
    let root = fixture.root();
    fs::File::open(root.join("sub/touched")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(root.join("sub/grown"))
        .unwrap()
        .write_all(b"!")
        .unwrap();
    let modified = fs::metadata(root.join("swapped")).unwrap().modified().unwrap();
    write(&root.join("other"), "5");
    fs::File::open(root.join("other")).unwrap().set_modified(modified).unwrap();
    fs::rename(root.join("other"), root.join("swapped")).unwrap();
    let child = fixture.child(&[]);
    assert_eq!(inherited(&child), owned(&[("same", "backup-0")]));
    let grown = child.iter().find(|entry| entry.path.as_bytes() == b"sub/grown").unwrap();
    assert_eq!((grown.size, &grown.at), (Some(4), &None));
}

#[test]
fn a_mode_alone_changes_the_change_time_and_so_has_the_file_read() {
    let fixture = Fixture::new();
    fixture.store_parent(3600);
    std::thread::sleep(Duration::from_millis(20));
    fs::set_permissions(fixture.root().join("same"), fs::Permissions::from_mode(0o640)).unwrap();
    let names = |flags: &[&str]| -> Vec<String> {
        inherited(&fixture.child(flags)).into_iter().map(|(path, _)| path).collect()
    };
    assert_eq!(names(&[]), ["sub/grown", "sub/touched", "swapped"]);
    assert_eq!(names(&["--ignore-ctime"]), ["same", "sub/grown", "sub/touched", "swapped"]);
}

#[test]
fn another_inode_counts_unless_it_is_ignored() {
    let fixture = Fixture::new();
    fixture.store_parent(3600);
    let text = fs::read_to_string(fixture.parent()).unwrap();
    let inode = text.split("\"inode\":\"").nth(1).unwrap().split('"').next().unwrap();
    let entries_of = |input: &str| {
        // The parent is written again with other inodes, as a file system that invents them does.
        let mut reader = Reader::new(input.as_bytes()).unwrap();
        let mut writer = Writer::new(Vec::new(), Format::Json, reader.header().clone()).unwrap();
        while let Some(mut entry) = reader.next_entry().unwrap() {
            entry.inode = entry.inode.map(|inode| inode ^ 1 << 40);
            writer.entry(&entry).unwrap();
        }
        writer.end(reader.end().unwrap().1).unwrap().0
    };
    assert!(!inode.is_empty());
    write(Path::new(&fixture.parent()), entries_of(&text));
    assert_eq!(inherited(&fixture.child(&[])), []);
    assert_eq!(inherited(&fixture.child(&["--ignore-inode"])).len(), 4);
}

#[test]
fn what_changed_just_before_the_parent_began_is_read_again() {
    for (seconds, taken) in [(1, 0), (-60, 0), (60, 4)] {
        let fixture = Fixture::new();
        fixture.store_parent(seconds);
        assert_eq!(inherited(&fixture.child(&[])).len(), taken, "{seconds} s");
    }
}

#[test]
fn rehash_takes_nothing_from_the_parent_and_hash_reads_everything() {
    let fixture = Fixture::new();
    fixture.store_parent(3600);
    assert_eq!(inherited(&fixture.child(&["--rehash"])), []);
    let hashed = fixture.child(&["--hash"]);
    assert!(hashed.iter().filter(|entry| entry.is_file()).all(|entry| entry.checksum.is_some()));
    assert!(hashed.iter().all(|entry| entry.at.is_none()));
}

#[test]
fn a_second_tree_is_merged_in_and_one_that_meets_the_first_is_refused() {
    let fixture = Fixture::new();
    let new = run(&["new", "--app", "app"], b"").success().stdout;
    let first = add(&fixture, &new, &["sub"]).success().stdout;
    let both = add(&fixture, &first, &["same"]).success().stdout;
    assert_eq!(paths(&entries(&both)), ["same", "sub", "sub/grown", "sub/touched"]);
    let prefixed = add(&fixture, &both, &["--as", "p/q", "--component", "second"]).success().stdout;
    let document = Document::read(&prefixed[..]).unwrap();
    let names: Vec<String> =
        document.trailer.components().unwrap().into_iter().map(|known| known.name).collect();
    assert_eq!(names, ["files", "second"]);
    let listed = run(&["ls", "--component", "second"], &prefixed).success();
    assert_eq!(listed.text().lines().next(), Some("p/q"));
    assert_eq!(listed.text().lines().count(), 7 - 1);
    for flags in [&["sub/grown"][..], &[], &["--as", "sub"], &["sub", "--component", "third"]] {
        let ran = add(&fixture, &first, flags).failure(2, "paths of this source meet");
        assert!(Document::read(&ran.stdout[..]).is_err());
    }
    add(&fixture, &new, &["--as", ".bk/x"]).failure(2, "a name that bk keeps for itself");
    add(&fixture, &new, &["nope"]).failure(13, "nope");
}

/// A document as a dump step leaves it: one entry below `.bk/`.
fn with_dump() -> Vec<u8> {
    let application = Application { name: "app".into(), version: None };
    let header = Header::new(&application, None, &Run::default());
    let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
    let mut entry = Entry::new(RelPath::new(".bk/db/app.dump").unwrap());
    entry.component = Some("db".into());
    writer.entry(&entry).unwrap();
    let mut trailer = Trailer::default();
    trailer.set("components", json!([{"name":"db","kind":"sqlite","status":"complete"}]));
    writer.end(trailer).unwrap().0
}

#[test]
fn dumps_from_upstream_stay_last_and_a_name_is_taken_once() {
    let fixture = Fixture::new();
    let added = add(&fixture, &with_dump(), &[]).success().stdout;
    let found = paths(&entries(&added));
    assert_eq!(found.last().map(String::as_str), Some(".bk/db/app.dump"));
    assert_eq!(found.len(), 6);
    let again = add(&fixture, &with_dump(), &["--component", "db"]);
    again.failure(2, "the component 'db' is there already");
}

#[test]
fn the_walk_flows_past_a_dump_that_is_still_being_written() {
    let fixture = Fixture::new();
    // More than the buffers between the two hold.
    for number in 0..1500 {
        write(&fixture.root().join(format!("{number:04}")), "");
    }
    let document = with_dump();
    let bracket = b"\"manifest\":[";
    let start = document.windows(bracket.len()).position(|part| part == bracket).unwrap();
    let (head, rest) = document.split_at(start + bracket.len());
    let mut child = tool(&["add", "--root", fixture.root().to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut upstream = child.stdin.take().unwrap();
    let mut downstream = BufReader::new(child.stdout.take().unwrap());
    upstream.write_all(head).unwrap();
    upstream.flush().unwrap();
    // Upstream has written no entry yet; these lines could not come if add waited for it.
    let mut document = Vec::new();
    for _ in 0..100 {
        downstream.read_until(b'\n', &mut document).unwrap();
    }
    assert!(String::from_utf8_lossy(&document).contains("\"path\":\"0050\""));
    upstream.write_all(rest).unwrap();
    drop(upstream);
    std::io::Read::read_to_end(&mut downstream, &mut document).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(entries(&document).len(), 1506);
}

#[test]
fn nothing_is_added_to_a_backup_that_is_stored() {
    let fixture = Fixture::new();
    let new = run(&["new", "--app", "app"], b"").success();
    let stored = new.text().replacen("\"backup\":{", "\"backup\":{\"type\":\"full\",", 1);
    assert!(stored.contains("\"type\""));
    add(&fixture, stored.as_bytes(), &[]).failure(2, "is that of a stored backup");
}

#[test]
fn a_document_that_is_cut_is_not_ended_by_add() {
    let fixture = Fixture::new();
    let document = with_dump();
    let whole = document.len() - 1;
    for cut in [whole - 1, whole / 2, whole * 3 / 4] {
        let ran = add(&fixture, &document[..cut], &[]).failure(21, "cut short");
        assert!(Document::read(&ran.stdout[..]).is_err());
    }
    add(&fixture, b"", &[]).failure(21, "cut short");
}

#[test]
fn a_walk_that_fails_ends_no_document() {
    let fixture = Fixture::new();
    let new = run(&["new", "--app", "app"], b"").success().stdout;
    let ran = add(&fixture, &new, &["same", "sub", "zz-missing"]).failure(13, "zz-missing");
    assert!(ran.text().contains("\"sub/grown\""), "it failed before it had walked");
    assert!(Document::read(&ran.stdout[..]).is_err());
}

#[test]
fn a_tree_that_is_empty_by_now_is_refused_unless_that_is_meant() {
    let fixture = Fixture::new();
    fixture.store_parent(3600);
    let new = run(&["new", "--app", "app", "--parent", &fixture.parent()], b"").success().stdout;
    for name in ["same", "sub/touched", "sub/grown", "swapped"] {
        fs::remove_file(fixture.root().join(name)).unwrap();
    }
    for flags in [&[][..], &["--rehash"], &["--hash"], &["--max-shrink", "99"]] {
        let message = "'files' holds 0 files, in the last backup 4: it shrank by more than 9";
        let ran = add(&fixture, &new, flags).failure(22, message);
        assert!(ran.stderr.contains("BACKUP_MAX_SHRINK=100"), "{}", ran.stderr);
        assert!(!ran.text().contains("verification"), "the document is not ended");
    }
    add(&fixture, &new, &["--max-shrink", "100"]).success();
}

#[test]
fn a_tree_is_compared_with_what_the_parent_has_of_its_own_paths() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.root().join("many")).unwrap();
    for number in 0..100 {
        write(&fixture.root().join(format!("many/{number}")), "x");
    }
    fixture.store_parent(3600);
    let new = run(&["new", "--app", "app", "--parent", &fixture.parent()], b"").success().stdout;
    add(&fixture, &new, &["sub"]).success();
    // Under another name nothing of it was there before.
    fs::remove_dir_all(fixture.root().join("many")).unwrap();
    add(&fixture, &new, &["--as", "elsewhere"]).success();
    add(&fixture, &new, &["--component", "other"]).success();
    add(&fixture, &new, &[]).failure(22, "'files' holds 4 files, in the last backup 104");
}

#[test]
fn a_parent_that_is_cut_or_altered_is_refused() {
    let fixture = Fixture::new();
    fixture.store_parent(3600);
    let new = run(&["new", "--app", "app", "--parent", &fixture.parent()], b"").success().stdout;
    let whole = fs::read(fixture.parent()).unwrap();
    let altered = String::from_utf8(whole.clone()).unwrap().replacen("\"0644\"", "\"0640\"", 1);
    for bad in [&whole[..whole.len() / 2], &whole[..whole.len() - 2], altered.as_bytes()] {
        write(Path::new(&fixture.parent()), bad);
        let ran = add(&fixture, &new, &[]).failure(21, "the parent's manifest");
        assert!(Document::read(&ran.stdout[..]).is_err());
    }
    write(Path::new(&fixture.parent()), &whole[..20]);
    run(&["new", "--app", "app", "--parent", &fixture.parent()], b"").failure(21, "parent.json");
}

#[test]
fn a_file_that_cannot_be_read_makes_the_component_partial() {
    let fixture = Fixture::new();
    let new = run(&["new", "--app", "app"], b"").success().stdout;
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&fixture.root().join("sub"), 0o000);
    mode(fixture.folder.path(), 0o755);
    let mut command = tool(&["add", "--root", fixture.root().to_str().unwrap()]);
    if rustix::process::geteuid().is_root() {
        // Root reads everything, so the tool runs as somebody else.
        let copy = fixture.folder.path().join("bk-manifest");
        fs::copy(env!("CARGO_BIN_EXE_bk-manifest"), &copy).unwrap();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
        command.args(arguments);
    }
    let ran = run_command(command, &new);
    mode(&fixture.root().join("sub"), 0o755);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("warning: cannot read 'sub'"), "{}", ran.stderr);
    let document = Document::read(&ran.stdout[..]).unwrap();
    assert_eq!(document.trailer.exit().unwrap().code(), 3);
    assert!(document.trailer.left_out().unwrap().has_fault());
    let component = document.trailer.components().unwrap().remove(0);
    assert_eq!(component.status, bk_manifest::manifest::Status::Partial);
}
