//! The formats of a PostgreSQL dump: what is stored of each, and that it comes back.

use std::fs;

use crate::harness::{Ended, Sandbox};
use crate::postgres::{NEW, PUSH};
use crate::server::{APP, Server, fake};

/// Two tables, one of them of a type and with names that dumps have to quote, and a large object.
const TABLES: &str = r#"
CREATE TABLE events (id serial PRIMARY KEY, name text, at timestamptz DEFAULT '2026-04-28 02:21:50+02');
INSERT INTO events (name) SELECT 'ünï \. \N ' || n FROM generate_series(1, 3000) n;
CREATE TABLE "odd "" name" (n int REFERENCES events (id), bytes bytea);
INSERT INTO "odd "" name" SELECT n, decode(md5(n::text), 'hex') FROM generate_series(1, 500) n;
SELECT lo_from_bytea(4711, decode(repeat('00ff0a0d', 5000), 'hex'));
"#;

/// Flags, and the names of the staged files; '*' stands for a number.
const FORMS: &[(&[&str], &[&str])] = &[
    (&[], &["app.dump"]),
    (&["--format", "custom", "--compress", "none"], &["app.dump"]),
    (&["--format", "plain"], &["app.sql.zst"]),
    (&["--format", "plain", "--compress", "gzip"], &["app.sql.gz"]),
    (&["--format", "plain", "--compress", "none"], &["app.sql"]),
    (
        &["--format", "directory", "--jobs", "2"],
        &["app.dir/*.dat.gz", "app.dir/blob_*.dat.gz", "app.dir/blobs.toc", "app.dir/toc.dat"],
    ),
    (
        &["--format", "directory", "--compress", "none"],
        &["app.dir/*.dat", "app.dir/blob_*.dat", "app.dir/blobs.toc", "app.dir/toc.dat"],
    ),
];

fn bench() -> (Server, Sandbox) {
    let server = Server::start();
    server.sql(APP, TABLES);
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    (server, sandbox)
}

/// The dump step with these flags, and the push behind it. Returns the document.
#[track_caller]
fn back_up(sandbox: &Sandbox, flags: &[&str], parent: bool) -> (Vec<u8>, serde_json::Value) {
    let dump = [&["bk-dump", "postgres", "--database", APP][..], flags].concat();
    let mut new = NEW.to_vec();
    if parent {
        fs::write(sandbox.path("parent.json"), sandbox.latest()).unwrap();
        new.extend(["--parent", "parent.json"]);
    }
    let ended = sandbox.pipe(&[&new, &dump, PUSH]);
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""), "{flags:?}");
    }
    let document = ended.last().unwrap().stdout.clone();
    let json = serde_json::from_slice(&document).unwrap();
    (document, json)
}

/// The paths below `.bk/database/`, sorted, with '*' for every number; each once. Before PostgreSQL 17 the
/// list of large objects has none.
fn names(document: &serde_json::Value) -> Vec<String> {
    let mut names: Vec<String> = document["files"]["manifest"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let path = entry["path"].as_str().unwrap().strip_prefix(".bk/database/").unwrap();
            let mut name = String::new();
            for c in path.chars() {
                match c {
                    '0'..='9' if name.ends_with('*') => {}
                    '0'..='9' => name.push('*'),
                    c => name.push(c),
                }
            }
            name
        })
        .collect();
    for name in &mut names {
        *name = name.replace("blobs_*.toc", "blobs.toc");
    }
    names.sort();
    names.dedup();
    names
}

#[test]
fn every_format_is_stored_checked_and_read_again() {
    let (_server, sandbox) = bench();
    for (flags, expected) in FORMS {
        let (text, document) = back_up(&sandbox, flags, false);
        assert_eq!(names(&document), *expected, "{flags:?}");
        let verify = ["--from", "dest", "--level", "content"];
        sandbox.run("bk-verify", &verify, &text).ok();
        let target = format!("back{}", flags.concat());
        sandbox.fetch(&text, &target);
        let check = ["check", "--from", &target];
        let checked: Ended = sandbox.run("bk-dump", &check, &text);
        assert_eq!(checked.code, 0, "{flags:?}: {}", checked.stderr);
        let component = &document["components"][0];
        let find = |flag: &str| flags.iter().position(|f| *f == flag).map(|at| flags[at + 1]);
        assert_eq!(component["format"], find("--format").unwrap_or("custom"));
        assert!(component["compression"].is_string());
        let staged = sandbox.path("stage").join(document["backup"]["id"].as_str().unwrap());
        assert!(!staged.join("database").exists(), "{flags:?}");
    }
}

#[test]
fn in_a_folder_a_table_that_did_not_change_costs_nothing() {
    let (server, sandbox) = bench();
    server
        .sql(APP, "CREATE TABLE heavy AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n");
    let flags = ["--format", "directory"];
    let (_, first) = back_up(&sandbox, &flags, false);
    server.sql(APP, "UPDATE events SET name = 'changed' WHERE id = 7");
    let (document, second) = back_up(&sandbox, &flags, true);
    let own: Vec<&serde_json::Value> = second["files"]["manifest"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["at"].get("backup").is_none())
        .collect();
    let names: Vec<&str> = own.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    // The table of contents holds the time, in seconds.
    let tables = names.iter().filter(|name| !name.ends_with("/toc.dat")).count();
    assert_eq!(tables, 1, "{names:?}");
    assert_eq!(second["backup"]["type"], "incremental");
    let total = |document: &serde_json::Value| document["files"]["size"].as_u64().unwrap();
    let stored: u64 = own.iter().map(|entry| entry["size"].as_u64().unwrap()).sum();
    assert!(stored < total(&first) / 3, "{stored} of {}", total(&first));
    let verify = ["--from", "dest", "--level", "content"];
    sandbox.run("bk-verify", &verify, &document).ok();
}

#[test]
fn a_folder_with_a_file_too_many_or_too_few_is_not_restored() {
    let (_server, sandbox) = bench();
    let (document, _) = back_up(&sandbox, &["--format", "directory"], false);
    sandbox.fetch(&document, "back");
    let folder = sandbox.path("back/.bk/database/app.dir");
    let table = fs::read_dir(&folder)
        .unwrap()
        .map(|found| found.unwrap().path())
        .find(|path| path.to_str().unwrap().ends_with(".dat.gz"))
        .unwrap();
    let check = |code: i32, part: &str| {
        let ended = sandbox.run("bk-dump", &["check", "--from", "back"], &document);
        assert_eq!(ended.code, code, "{}", ended.stderr);
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    };
    check(0, "");
    // pg_restore would read this instead of the one in gzip.
    let other = table.with_extension("");
    fs::write(&other, "1\tforged\n\\.\n").unwrap();
    check(20, "holds more than the dump");
    fs::remove_file(&other).unwrap();
    fs::rename(&table, sandbox.path("aside")).unwrap();
    check(13, "cannot open");
}

#[test]
fn what_a_format_cannot_be_is_said_before_anything_starts() {
    let (_server, sandbox) = bench();
    for (flags, part) in [
        (&["--format", "tar"][..], "it is plain, custom or directory"),
        (&["--compress", "lz4"], "it is none, gzip or zstd"),
        (&["--clean"], "--clean is for plain dumps"),
        (&["--jobs", "0"], "0"),
    ] {
        let dump = [&["bk-dump", "postgres", "--database", APP][..], flags].concat();
        let ended = sandbox.pipe(&[NEW, &dump]);
        assert_eq!(ended[1].code, 2, "{flags:?}: {}", ended[1].stderr);
        assert!(ended[1].stderr.contains(part), "{flags:?}: {}", ended[1].stderr);
        assert!(ended[1].stdout.is_empty());
    }
}

#[test]
fn an_emptied_database_does_not_become_the_latest_backup() {
    let (server, sandbox) = bench();
    let (first, json) = back_up(&sandbox, &[], false);
    server
        .sql(APP, "SELECT lo_unlink(4711); TRUNCATE events CASCADE; DROP TABLE \"odd \"\" name\"");
    fs::write(sandbox.path("parent.json"), &first).unwrap();
    let new = [NEW, &["--parent", "parent.json"]].concat();
    let dump = ["bk-dump", "postgres", "--database", APP];
    let ended = sandbox.pipe(&[&new, &dump, PUSH]);
    assert_eq!(ended[1].code, 22, "{}", ended[1].stderr);
    assert!(ended[1].stderr.contains("shrank by more than 90 %"), "{}", ended[1].stderr);
    assert_eq!(ended[2].code, 21, "push must not commit what was not ended");
    let latest: serde_json::Value = serde_json::from_slice(&sandbox.latest()).unwrap();
    assert_eq!(latest["backup"]["id"], json["backup"]["id"]);
    back_up(&sandbox, &["--max-shrink", "100"], true);
}

#[test]
fn a_dump_that_is_a_folder_is_proved_by_reading_it_as_one() {
    let (server, mut sandbox) = bench();
    let (document, _) = back_up(&sandbox, &["--format", "directory"], false);
    let verify = ["--from", "dest", "--level", "content"];
    fake(&server, &mut sandbox, "pg_restore", "echo 'it is no archive' >&2; exit 1");
    let ended = sandbox.run("bk-verify", &verify, &document);
    assert_eq!(ended.code, 20, "{}", ended.stderr);
    assert!(ended.stderr.contains("it is no archive"), "{}", ended.stderr);
}
