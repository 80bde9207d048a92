//! Archives made and unpacked, also hostile ones.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::manifest::{Component, EndRun, Status, Trailer};
use bk_manifest::path::RelPath;
use bk_manifest::stream::{Format, Writer};
use serde_json::Map;

use crate::harness::{Bench, begun, entries, header, write};

/// A tree with what a file system can hold.
pub(crate) fn config(bench: &Bench) {
    write(&bench.path(".env"), b"SECRET=1\n");
    write(&bench.path("conf/certs/key"), b"key");
    fs::set_permissions(bench.path("conf/certs/key"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(bench.path("conf/certs/key"), bench.path("conf/second")).unwrap();
    symlink("/nowhere/at/all", bench.path("conf/dangling")).unwrap();
    write(&bench.path("conf").join("line\nbreak"), b"odd");
    write(&bench.path("conf").join(std::ffi::OsStr::from_bytes(b"\xff\x01")), b"bytes");
    write(&bench.path(&format!("conf/{}/{}", "d".repeat(200), "f".repeat(200))), b"long");
    write(&bench.path("conf/large"), &vec![7; 9 << 20]);
    fs::create_dir(bench.path("conf/empty")).unwrap();
    fs::set_permissions(bench.path("conf/empty"), fs::Permissions::from_mode(0o500)).unwrap();
}

/// Names, kinds, modes, times and contents below a folder.
fn tree(folder: &Path) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in fs::read_dir(&current).unwrap().flatten() {
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                folders.push(path.clone());
                String::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().to_string_lossy().into_owned()
            } else {
                Digest::of(&fs::read(&path).unwrap()).to_string()
            };
            lines.push(format!(
                "{} {:o} {}.{} {} {content}",
                bk_manifest::path::escape(
                    path.strip_prefix(folder).unwrap().as_os_str().as_bytes()
                ),
                metadata.mode(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                if metadata.is_dir() { 0 } else { metadata.nlink() },
            ));
        }
    }
    lines.sort();
    lines
}

#[test]
fn an_archive_comes_back_as_it_was() {
    for format in ["tar.zst", "tar.gz"] {
        let bench = Bench::new();
        config(&bench);
        let args = ["archive", "--name", "config", "--format", format, "conf", ".env"];
        let document = bench.works(&args, &begun());
        let again = bench.works(&args, &begun());
        assert_eq!(entries(&document)[0].checksum, entries(&again)[0].checksum, "not repeatable");
        bench.fetch(&document);
        bench.works(&["restore", "--from", "fetched", "--into", "out"], &document);
        assert_eq!(tree(&bench.path("out/conf")), tree(&bench.path("conf")), "{format}");
        assert_eq!(fs::read(bench.path("out/.env")).unwrap(), b"SECRET=1\n");
    }
}

#[test]
fn other_programs_read_the_archive() {
    let bench = Bench::new();
    config(&bench);
    bench.works(&["archive", "--name", "config", "conf", ".env"], &begun());
    let staged = bench.staged_files();
    let archive =
        staged.iter().find(|path| path.extension().is_some_and(|end| end == "zst")).unwrap();
    fs::create_dir(bench.path("tar")).unwrap();
    let status = Command::new("tar")
        .arg("--zstd")
        .arg("-xpf")
        .arg(archive)
        .arg("-C")
        .arg(bench.path("tar"))
        .status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(error) => panic!("tar cannot be run: {error}"),
    }
    assert_eq!(tree(&bench.path("tar/conf")), tree(&bench.path("conf")));
}

#[test]
fn a_missing_path_is_found_out_before_anything_is_written() {
    let bench = Bench::new();
    config(&bench);
    let outcome = bench.run(&["archive", "--name", "config", ".env", "absent"], &begun());
    assert_eq!(outcome.code, 13, "{}", outcome.stderr);
    assert!(outcome.stdout.is_empty());
    assert!(bench.staged_files().is_empty());
    bench.fails(&["archive", "--name", "c", "../x"], &begun(), 2, "..");
    symlink("conf", bench.path("link")).unwrap();
    bench.fails(&["archive", "--name", "c", "link/certs"], &begun(), 13, "link/certs");
}

#[test]
fn a_link_that_is_named_itself_is_refused() {
    let bench = Bench::new();
    config(&bench);
    symlink(".env", bench.path("link")).unwrap();
    symlink("conf", bench.path("folder")).unwrap();
    for name in ["link", "folder", "folder/", "conf/dangling"] {
        bench.fails(&["archive", "--name", "c", ".env", name], &begun(), 2, "is a symbolic link");
        assert!(bench.staged_files().is_empty());
    }
}

#[test]
fn names_are_checked_before_anything_starts() {
    let bench = Bench::new();
    config(&bench);
    let first = bench.works(&["archive", "--name", "config", ".env"], &begun());
    bench.fails(&["archive", "--name", "config", ".env"], &first, 2, "is there already");
    bench.fails(&["archive", "--name", "files", ".env"], &begun(), 2, "files");
    bench.fails(&["archive", "--name", "a/b", ".env"], &begun(), 2, "cannot be a component's name");
    let second = bench.works(&["archive", "--name", "aaa", "conf"], &first);
    let paths: Vec<_> = entries(&second).iter().map(|entry| entry.path.to_string()).collect();
    assert_eq!(paths, [".bk/aaa/aaa.tar.zst", ".bk/config/config.tar.zst"]);
}

/// A document with one archive, and that archive where fetch would have put it.
fn hostile(bench: &Bench, members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, text) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        // Past the checks of the library.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        let content = if *kind == tar::EntryType::Regular {
            text.as_bytes()
        } else {
            header.as_gnu_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
            b""
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    let bytes = zstd::encode_all(&tar.into_inner().unwrap()[..], 3).unwrap();
    write(&bench.path("fetched/.bk/config/config.tar.zst"), &bytes);
    let mut writer = Writer::new(Vec::new(), Format::Json, header()).unwrap();
    let mut entry = Entry::new(RelPath::new(".bk/config/config.tar.zst").unwrap());
    entry.component = Some("config".into());
    entry.set_content(Digest::of(&bytes), bytes.len() as u64);
    writer.entry(&entry).unwrap();
    let mut trailer = Trailer::default();
    trailer.set_components(&[Component {
        name: "config".into(),
        kind: "archive".into(),
        status: Status::Complete,
        extra: Map::new(),
    }]);
    trailer.set_run(&EndRun::default());
    writer.end(trailer).unwrap().0
}

#[test]
fn a_hostile_archive_gets_nowhere() {
    use tar::EntryType::{Link, Regular, Symlink};
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    for (members, says) in [
        (&[("../evil", Regular, "x")][..], ".."),
        (&[("a/../../evil", Regular, "x")], ".."),
        (&[("/tmp/evil", Regular, "x")], "absolute"),
        (&[("l", Symlink, out), ("l/evil", Regular, "x")], "below what is no folder"),
        (&[("h", Link, "/etc/passwd")], "links"),
        (&[("h", Link, "../x")], "links"),
        (&[("a", Regular, "x"), ("a", Regular, "y")], "twice"),
        (&[(".bk-replaced-x/a", Regular, "x")], "kept for us"),
        (&[("a", Regular, "x"), ("z", tar::EntryType::new(b'Z'), "")], "of a kind"),
    ] {
        let bench = Bench::new();
        let document = hostile(&bench, members);
        let args = ["restore", "--from", "fetched", "--into", "deep/out", "--replace"];
        fs::create_dir_all(bench.path("deep/out")).unwrap();
        bench.fails(&args, &document, 20, says);
        assert_eq!(tree(&bench.path("deep")).len(), 1, "{members:?}");
    }
    let bench = Bench::new();
    fs::create_dir(bench.path("out")).unwrap();
    symlink(outside.path(), bench.path("out/l")).unwrap();
    let document = hostile(&bench, &[("l/evil", Regular, "x")]);
    bench.fails(&["restore", "--from", "fetched", "--into", "out"], &document, 2, "l/evil");
    bench.fails(&["restore", "--from", "fetched", "--into", "out", "--replace"], &document, 2, "");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
