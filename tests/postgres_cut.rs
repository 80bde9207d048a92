//! What a dump in each format holds is one moment of the database, and in a folder only what changed
//! since the last one is stored.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Random, Sandbox, run};
use crate::postgres::{ADD, NEW, PUSH, all_ok, bench, restore, wait_until};
use crate::server::{APP, Server};

/// Each format, with the arguments that ask for it.
pub const FORMATS: [(&str, &[&str]); 3] = [
    ("custom", &["--format", "custom"]),
    ("plain", &["--format", "plain"]),
    ("directory", &["--format", "directory", "--jobs", "2"]),
];

/// The step that dumps a database in a format.
pub fn dump_step<'a>(database: &'a str, format: &[&'a str]) -> Vec<&'a str> {
    [&["bk-dump", "postgres", "--database", database][..], format].concat()
}

/// Backs a database up in a format, and the tree; every step must do well. Returns the document.
#[track_caller]
pub fn back_up_as(sandbox: &Sandbox, database: &str, format: &[&str]) -> Vec<u8> {
    all_ok(sandbox.pipe(&[NEW, &dump_step(database, format), ADD, PUSH])).stdout
}

/// The record of a document's database, which must be of this format.
#[track_caller]
pub fn component(document: &[u8], format: &str) -> Value {
    let document: Value = serde_json::from_slice(document).unwrap();
    let components = document["components"].as_array().unwrap();
    let found = components.iter().find(|component| component["kind"] == "postgresql").unwrap();
    assert_eq!((&found["format"], &found["status"]), (&format.into(), &"complete".into()));
    found.clone()
}

/// The tables that a record has rows of, with their number and fingerprint.
pub fn tables(component: &Value) -> Vec<(String, u64, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    component["tables"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|table| table.get("kind").is_none())
        .map(|table| {
            let rows = table["rows"].as_u64().unwrap();
            (text(&table["name"]), rows, text(&table["fingerprint"]))
        })
        .collect()
}

/// What `pgbench` keeps equal, whatever it is at.
const BALANCES: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), \
    (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), \
    (SELECT sum(delta) FROM pgbench_history)";
const TRANSFERS: &str = "SELECT count(*) FROM pgbench_history";

#[test]
fn a_bank_at_work_comes_back_balanced() {
    for (name, format) in FORMATS {
        let (server, sandbox) = bench("");
        assert!(
            server.bin().join("pgbench").exists(),
            "pgbench is not installed; scripts/test.sh installs what the tests need"
        );
        run(server.command("pgbench").args(["-i", "-s", "1", "-q", APP]), b"").expect(0);
        let mut bank = server
            .command("pgbench")
            .args(["-n", "-c", "2", "-T", "600", APP])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the bank is at work", || {
            server.sql(APP, "SELECT count(*) > 100 FROM pgbench_history") == "t"
        });
        let ended = sandbox.pipe(&[NEW, &dump_step(APP, format), ADD, PUSH]);
        let later: u64 = server.sql(APP, TRANSFERS).parse().unwrap();
        bank.kill().unwrap();
        bank.wait().unwrap();
        let document = all_ok(ended).stdout;
        restore(&sandbox, &document, "again");
        let restored: u64 = server.sql("again", TRANSFERS).parse().unwrap();
        assert!(100 < restored && restored < later, "{name}: {restored} of {later}");
        let sums = server.sql("again", BALANCES);
        let sums: Vec<&str> = sums.split('|').collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{name}: {sums:?}");
        assert_recorded(&server, &sandbox, &document, name, restored);
    }
}

/// The record was taken of the same moment as the dump: its counts and fingerprints are those of
/// the restored database, which a second backup records again.
#[track_caller]
fn assert_recorded(
    server: &Server,
    sandbox: &Sandbox,
    document: &[u8],
    format: &str,
    transfers: u64,
) {
    let recorded = tables(&component(document, format));
    let history = recorded.iter().find(|(table, ..)| table == "public.pgbench_history");
    assert_eq!(history.map(|(_, rows, _)| *rows), Some(transfers), "{format}: {recorded:?}");
    assert!(recorded.iter().all(|(.., fingerprint)| !fingerprint.is_empty()), "{recorded:?}");
    let again = back_up_as(sandbox, "again", &["--format", format]);
    assert_eq!(tables(&component(&again, format)), recorded, "{format}");
    server.sql(
        "again",
        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 77; \
         UPDATE pgbench_accounts SET abalance = abalance - 1 WHERE aid = 78",
    );
    let changed = back_up_as(sandbox, "again", &["--format", format]);
    let differing: Vec<String> = std::iter::zip(tables(&component(&changed, format)), recorded)
        .filter(|(now, before)| now != before)
        .map(|(now, _)| now.0)
        .collect();
    assert_eq!(differing, ["public.pgbench_accounts"], "{format}: its sum is the same, it is not");
}

/// The dump's own objects that a document's backup has stored itself: name and size.
fn stored(document: &[u8]) -> Vec<(String, u64)> {
    let document: Value = serde_json::from_slice(document).unwrap();
    let objects = document["objects"].as_array().unwrap();
    let own = objects.iter().filter(|object| object.get("backup").is_none());
    own.map(|object| (object["object"].as_str().unwrap(), object["size"].as_u64().unwrap()))
        .filter(|(name, _)| name.starts_with("database/"))
        .map(|(name, size)| (name.to_owned(), size))
        .collect()
}

#[test]
fn a_second_directory_dump_stores_only_the_table_that_changed() {
    let (server, sandbox) = bench(
        "SELECT format('CREATE TABLE t%s AS SELECT n, md5(n::text || %s) AS noise \
         FROM generate_series(1, 3000) n', i, i) FROM generate_series(1, 40) i \\gexec",
    );
    let back_up = |sandbox: &Sandbox| {
        let latest = ["manifest", "latest", "--from", "dest", "--app", "app", "--or-none"];
        let parent = sandbox.run("bk-push", &latest, b"").ok().stdout;
        std::fs::write(sandbox.path("parent.json"), parent).unwrap();
        let new = ["bk-manifest", "new", "--app", "app", "--parent", "parent.json"];
        let dump = dump_step(APP, &["--format", "directory", "--jobs", "2"]);
        all_ok(sandbox.pipe(&[&new, &dump, ADD, PUSH])).stdout
    };
    let first = stored(&back_up(&sandbox));
    assert!(first.len() >= 41, "a file for each table, and the table of contents: {first:?}");
    let of_tables: u64 = first.iter().map(|(_, size)| size).sum();
    for round in 0..3 {
        // New tables in front give all the others new numbers, and their files new names.
        let noise = Random::from_run().below(1000);
        let table = noise % 40 + 1;
        server
            .sql(APP, &format!("CREATE TABLE a{round} (); UPDATE t{table} SET noise = '{noise}'"));
        let document = back_up(&sandbox);
        let second = stored(&document);
        let names: BTreeSet<&str> = second.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.iter().any(|name| name.ends_with("/toc.dat")), "{second:?}");
        // The contents, the table that changed, the new one that is empty.
        assert!(second.len() <= 3, "{second:?}");
        let bytes: u64 = second.iter().map(|(_, size)| size).sum();
        assert!(bytes < of_tables / 4, "{bytes} of {of_tables}: {second:?}");
        let name = format!("again{round}");
        restore(&sandbox, &document, &name);
        assert_eq!(server.content(&name), server.content(APP));
    }
}
