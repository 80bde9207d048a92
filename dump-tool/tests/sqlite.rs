//! SQLite databases dumped and put back.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bk_manifest::digest::Digest;
use bk_manifest::manifest::Status;
use bk_manifest::stream::{Format, Reader, Writer};
use rusqlite::Connection;
use serde_json::{Map, Value, json};

use crate::harness::{Bench, bank, begun, entries, write};

/// Moves money to and fro as fast as it can until told to stop.
fn busy_writer(path: PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let bank = Connection::open(path).unwrap();
        bank.busy_timeout(Duration::from_secs(30)).unwrap();
        bank.execute_batch("PRAGMA synchronous = OFF").unwrap();
        let mut commits = 0;
        while !stop.load(Ordering::Relaxed) {
            bank.execute_batch(
                "BEGIN IMMEDIATE;
                 UPDATE account SET money = money - 1 WHERE id = 1 + abs(random() % 500);
                 UPDATE account SET money = money + 1 WHERE id = 501 + abs(random() % 500);
                 UPDATE ballast SET x = randomblob(20000) WHERE rowid = 1 + abs(random() % 40);
                 COMMIT;",
            )
            .unwrap();
            commits += 1;
        }
        commits
    })
}

#[test]
fn a_database_under_a_busy_writer_is_copied_at_one_point_in_time() {
    for journal in ["WAL", "DELETE"] {
        let bench = Bench::new();
        let path = bench.path("bank.db");
        let bank = bank(&path, journal);
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> =
            (0..2).map(|_| busy_writer(path.clone(), Arc::clone(&stop))).collect();
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        let document = bench.works(&["sqlite", "bank.db", "--name", "db"], &begun());
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        let commits: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        assert!(commits > 10, "the writers were no load: {commits}");
        assert!(took < Duration::from_mins(1), "{took:?}");
        drop(bank);

        bench.fetch(&document);
        bench.works(&["restore", "--from", "fetched", "--to", "new.db"], &document);
        let new = Connection::open(bench.path("new.db")).unwrap();
        let number = |sql: &str| new.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(number("SELECT sum(money) FROM account"), 100_000, "{journal}");
        assert_eq!(number("SELECT count(*) FROM ballast"), 40);
        assert_eq!(number("PRAGMA user_version"), 42);
        let mode: String = new.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, journal.to_lowercase());
    }
}

#[test]
fn the_entry_tells_where_the_dump_is_and_what_it_is() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    let document = bench.works(&["sqlite", "bank.db"], &begun());
    let entry = entries(&document).remove(0);
    assert_eq!(entry.path.to_string(), ".bk/database/bank.db.zst");
    assert_eq!((entry.component(), entry.mode, &entry.at), ("database", Some(0o600), &None));
    let mut staged = bench.staged_files();
    staged.retain(|path| !path.file_name().unwrap().as_bytes().starts_with(b"."));
    let bytes = fs::read(&staged[0]).unwrap();
    assert_eq!((entry.checksum, entry.size), (Some(Digest::of(&bytes)), Some(bytes.len() as u64)));
    let (_, trailer) = Reader::new(&document[..]).unwrap().end().unwrap();
    let component = &trailer.components().unwrap()[0];
    assert_eq!((component.kind.as_str(), component.status), ("sqlite", Status::Complete));
    assert_eq!(component.extra["user_version"], 42);
    assert_eq!(trailer.members.get("database").unwrap()["schema_version"], "42");
}

#[test]
fn the_source_is_not_written_to() {
    let bench = Bench::new();
    let path = bench.path("bank.db");
    let bank = bank(&path, "WAL");
    bank.execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE account SET money = 100;").unwrap();
    let wal = bench.path("bank.db-wal");
    let before = (fs::read(&path).unwrap(), fs::read(&wal).unwrap());
    bench.works(&["sqlite", "bank.db"], &begun());
    assert!(before == (fs::read(&path).unwrap(), fs::read(&wal).unwrap()));
}

#[test]
fn a_locked_database_is_waited_for_and_then_given_up() {
    let bench = Bench::new();
    let bank = bank(&bench.path("bank.db"), "DELETE");
    bank.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let began = Instant::now();
    bench.fails(
        &["sqlite", "bank.db", "--busy-timeout", "1"],
        &begun(),
        1,
        "was locked for longer than 1 s",
    );
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(bench.staged_files().is_empty());
    let waiting = bench.start(&["sqlite", "bank.db"], &begun());
    std::thread::sleep(Duration::from_millis(500));
    bank.execute_batch("COMMIT").unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_no_sound_database_is_refused() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    let mut bytes = fs::read(bench.path("bank.db")).unwrap();
    for page in 1..8 {
        bytes[page * 4096..page * 4096 + 300].fill(0xa5);
    }
    write(&bench.path("corrupt.db"), &bytes);
    bench.fails(&["sqlite", "corrupt.db"], &begun(), 1, "corrupt");
    write(&bench.path("cut.db"), &bytes[..4096 * 20]);
    bench.fails(&["sqlite", "cut.db"], &begun(), 1, "corrupt");
    write(&bench.path("text.db"), &b"no database at all\n".repeat(1000));
    bench.fails(&["sqlite", "text.db"], &begun(), 1, "is not an SQLite database");
    fs::create_dir(bench.path("folder")).unwrap();
    bench.fails(&["sqlite", "folder"], &begun(), 1, "is no database file");
    bench.fails(&["sqlite", "absent.db"], &begun(), 13, "cannot open the database 'absent.db'");
    assert!(bench.staged_files().is_empty());
}

/// The record of the one component of a document.
fn facts(document: &[u8]) -> Map<String, Value> {
    let (_, trailer) = Reader::new(document).unwrap().end().unwrap();
    trailer.components().unwrap().remove(0).extra
}

/// The document with another record of its one component, and its sums made right again.
fn with_facts(document: &[u8], change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
    let mut reader = Reader::new(document).unwrap();
    let mut writer = Writer::new(Vec::new(), Format::Json, reader.header().clone()).unwrap();
    while let Some(entry) = reader.next_entry().unwrap() {
        writer.entry(&entry).unwrap();
    }
    let (_, mut trailer) = reader.end().unwrap();
    let mut components = trailer.components().unwrap();
    change(&mut components[0].extra);
    trailer.set_components(&components);
    writer.end(trailer).unwrap().0
}

/// A small database made by these statements.
fn database(bench: &Bench, statements: &str) {
    let database = Connection::open(bench.path("app.db")).unwrap();
    database.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    database.execute_batch(statements).unwrap();
}

const DUMP: &[&str] = &["sqlite", "app.db"];

const RESTORE: &[&str] = &["restore", "--from", "fetched", "--to", "new.db"];

#[test]
fn what_the_tables_hold_is_recorded_as_asked() {
    let bench = Bench::new();
    database(&bench, "CREATE TABLE b (x); CREATE TABLE a (x); INSERT INTO a VALUES (1), (2);");
    let full = facts(&bench.works(DUMP, &begun()));
    assert_eq!(full["fingerprints"], json!({"level": "full", "method": "sha256-sum-1"}));
    assert_eq!(full["tables"][0]["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!(full["tables"][1]["fingerprint"], json!("0".repeat(64)));
    assert_eq!(full["foreign_key_violations"], 0);
    let bench = Bench::new();
    database(&bench, "CREATE TABLE b (x); CREATE TABLE a (x); INSERT INTO a VALUES (1), (2);");
    let count = facts(&bench.works(&[DUMP, &["--fingerprint", "count"]].concat(), &begun()));
    assert_eq!(count["fingerprints"], json!({"level": "count"}));
    assert_eq!(count["tables"], json!([{"name": "a", "rows": 2}, {"name": "b", "rows": 0}]));
    assert_eq!(bench.run(&[DUMP, &["--fingerprint", "some"]].concat(), &begun()).code, 2);
    let none = bench.works(&[DUMP, &["--fingerprint", "none"]].concat(), &begun());
    assert_eq!(facts(&none)["fingerprints"], json!({"level": "none"}));
    assert!(!facts(&none).contains_key("tables"));
    bench.fetch(&none);
    bench.works(RESTORE, &none);
}

#[test]
fn a_database_that_is_not_what_was_recorded_is_not_put_in_place() {
    let bench = Bench::new();
    database(
        &bench,
        "CREATE TABLE a (x); INSERT INTO a VALUES (1), (2);
         CREATE TABLE b (x); INSERT INTO b VALUES (1), (2);",
    );
    let document = bench.works(DUMP, &begun());
    bench.fetch(&document);
    write(&bench.path("new.db"), b"old");
    write(&bench.path("new.db-wal"), b"old wal");
    let replace = [RESTORE, &["--replace"]].concat();
    let names = || {
        let entries = fs::read_dir(bench.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for (place, value, says) in [
        ("/tables/0/rows", json!(3), "the table 'a' has 2 rows instead of 3"),
        ("/tables/1/fingerprint", json!("0"), "the rows of the table 'b' differ"),
        ("/tables/0/name", json!("c"), "the table 'c' is missing, the table 'a' is new"),
        ("/foreign_key_violations", json!(4), "violations of foreign keys: 0 instead of 4"),
    ] {
        let other = with_facts(&document, |facts| {
            let mut all = Value::Object(std::mem::take(facts));
            *all.pointer_mut(place).unwrap() = value;
            *facts = all.as_object().unwrap().clone();
        });
        bench.fails(&replace, &other, 20, says);
        assert_eq!(names(), before);
        assert_eq!(fs::read(bench.path("new.db")).unwrap(), b"old");
        assert_eq!(fs::read(bench.path("new.db-wal")).unwrap(), b"old wal");
    }
    let senseless = with_facts(&document, |facts| {
        facts.insert("tables".into(), json!(7));
    });
    bench.fails(&replace, &senseless, 21, "the record of the tables makes no sense");
    // As an older version recorded it.
    let older = with_facts(&document, |facts| {
        for name in ["fingerprints", "tables", "foreign_key_violations", "schema_version"] {
            facts.remove(name).unwrap();
        }
    });
    bench.works(&replace, &older);
    bench.works(&replace, &document);
}

#[test]
fn rows_that_refer_to_nothing_are_told_and_come_back() {
    let bench = Bench::new();
    database(
        &bench,
        "CREATE TABLE owner (id INTEGER PRIMARY KEY);
         CREATE TABLE photo (owner REFERENCES owner (id)); INSERT INTO photo VALUES (1), (2);",
    );
    let outcome = bench.run(DUMP, &begun());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let says = "foreign keys: 2 rows refer to rows that are not there, in 'photo'";
    assert_eq!(outcome.stderr, format!("bk-dump: warning: {says}\n"));
    assert_eq!(facts(&outcome.stdout)["foreign_key_violations"], 2);
    bench.fetch(&outcome.stdout);
    bench.works(RESTORE, &outcome.stdout);
}

#[test]
fn the_schema_version_is_found_or_asked_for() {
    let bench = Bench::new();
    database(&bench, "CREATE TABLE settings (name, value)");
    let version = |more: &[&str]| {
        let document = bench.works(&[DUMP, more].concat(), &begun());
        let (_, trailer) = Reader::new(&document[..]).unwrap().end().unwrap();
        let version = trailer.members.get("database").unwrap()["schema_version"].clone();
        assert_eq!(facts(&document)["schema_version"], version);
        (version, facts(&document)["schema_version_from"].clone())
    };
    assert_eq!(version(&[]), (json!(null), json!(null)));
    database(
        &bench,
        "CREATE TABLE alembic_version (version_num); INSERT INTO alembic_version VALUES ('a1b2');",
    );
    assert_eq!(version(&[]), (json!("a1b2"), json!("Alembic")));
    database(&bench, "PRAGMA user_version = 3; INSERT INTO settings VALUES ('schema', 17)");
    assert_eq!(version(&[]), (json!("3"), json!("user_version")));
    let query = "SELECT value FROM settings WHERE name = 'schema'";
    assert_eq!(version(&["--schema-version-query", query]), (json!("17"), json!("query")));
    for (query, says) in [
        ("SELECT v FROM config", "no such table: config"),
        ("UPDATE settings SET value = 1 RETURNING 1", "readonly"),
    ] {
        let args = [DUMP, &["--schema-version-query", query]].concat();
        bench.fails(&args, &begun(), 2, says);
    }
}

#[test]
fn what_only_the_application_can_read_is_recorded_by_name() {
    let bench = Bench::new();
    // A collation of its own, and a virtual table of an extension of its own.
    let script = "import sqlite3
database = sqlite3.connect('app.db', isolation_level=None)
database.create_collation('own', lambda a, b: (a > b) - (a < b))
for statement in '''CREATE TABLE plain (a); INSERT INTO plain VALUES (1);
    CREATE TABLE words (w TEXT COLLATE own PRIMARY KEY) WITHOUT ROWID;
    INSERT INTO words VALUES ('x'), ('y');
    PRAGMA writable_schema = ON;
    INSERT INTO sqlite_schema VALUES ('table', 'geo', 'geo', 0,
        'CREATE VIRTUAL TABLE geo USING no_such_module (x)')'''.split(';'):
    database.execute(statement)";
    let status =
        Command::new("python3").args(["-c", script]).current_dir(bench.folder.path()).status();
    assert!(status.unwrap().success());
    let outcome = bench.run(DUMP, &begun());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let says = "the rows of the table 'words' cannot be counted: SQLite cannot read it";
    assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    let tables = &facts(&outcome.stdout)["tables"];
    assert_eq!(tables[0], json!({"name": "geo", "not_judged": "a virtual table"}));
    assert_eq!(tables[1]["rows"], 1);
    assert_eq!((&tables[2]["name"], &tables[2]["rows"]), (&json!("words"), &json!(null)));
    bench.fetch(&outcome.stdout);
    assert_eq!(bench.run(RESTORE, &outcome.stdout).code, 0);
}

#[test]
fn a_database_may_have_any_name_and_be_named_by_a_link() {
    let odd = std::ffi::OsStr::from_bytes;
    let names = [":memory:", "file:x", "file:x?mode=memory", "two words", "a\nb.db", "a[1].db"];
    for name in names.map(|name| odd(name.as_bytes())).into_iter().chain([odd(b"\xff\x1b.db")]) {
        let bench = Bench::new();
        // By a path that SQLite does not take for anything else.
        let real = bench.folder.path().join(name);
        let database = Connection::open(&real).unwrap();
        database.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a)").unwrap();
        database.execute_batch("INSERT INTO t VALUES (42)").unwrap();
        symlink(name, bench.path("link.db")).unwrap();
        for (given, stem) in [(name, "database"), (odd(b"link.db"), "link.db")] {
            let mut command = bench.command(&["sqlite", "--name", "db", "--"]);
            let mut child = command.arg(given).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&begun()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let document = output.stdout;
            assert_eq!(entries(&document)[0].path.to_string(), format!(".bk/db/{stem}.zst"));
            let (_, trailer) = Reader::new(&document[..]).unwrap().end().unwrap();
            let record = &trailer.components().unwrap()[0].extra["file_name"];
            let text = record.as_str().unwrap();
            assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
            let _ = fs::remove_dir_all(bench.path("fetched"));
            bench.fetch(&document);
            fs::create_dir(bench.path("file:folder")).or_else(ignore_existing).unwrap();
            for to in ["file:new", "file:folder/new"] {
                bench.works(&["restore", "--from", "fetched", "--to", to], &document);
                let new = Connection::open(bench.path(to)).unwrap();
                let value = new.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0));
                assert_eq!(value, Ok(42));
                drop(new);
                fs::remove_file(bench.path(to)).unwrap();
            }
        }
    }
}

fn ignore_existing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}
