//! The command line of `bk-dump`, through the real binary.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bk_manifest::atomic::{self, Existing};
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::manifest::{Application, Backup, Component, EndRun, Header, Run, Status, Trailer};
use bk_manifest::path::RelPath;
use bk_manifest::stream::{Format, Reader, Writer};
use rusqlite::Connection;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A folder with a stage, and the tool to run in it.
struct Bench {
    folder: TempDir,
}

struct Outcome {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        Bench { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn stage(&self) -> PathBuf {
        self.path("stage")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bk-dump"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("BK_STAGE", self.stage())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str], input: &[u8]) -> Child {
        let mut child = self.command(args).spawn().unwrap();
        // It may have ended without reading.
        let _ = child.stdin.take().unwrap().write_all(input);
        child
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Outcome {
        let output = self.start(args, input).wait_with_output().unwrap();
        Outcome {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap()),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A run that must work and say nothing; returns its document.
    fn works(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let outcome = self.run(args, input);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
        outcome.stdout
    }

    /// A run that must fail with this code, one line of error, no ended document and no dump left.
    fn fails(&self, args: &[&str], input: &[u8], code: i32, says: &str) {
        let outcome = self.run(args, input);
        assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
        let errors: Vec<_> =
            outcome.stderr.lines().filter(|line| !line.starts_with("bk-dump: hint: ")).collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("bk-dump: error: "), "{errors:?}");
        assert!(errors[0].contains(says), "{errors:?} does not say '{says}'");
        let is_ended = Reader::new(&outcome.stdout[..]).is_ok_and(|reader| reader.end().is_ok());
        assert!(!is_ended, "a step that failed has ended its document");
    }

    fn staged_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.stage()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    found.push(entry.path());
                }
            }
        }
        found
    }

    /// Does what push and fetch do: puts the staged files where restore looks for them.
    fn fetch(&self, document: &[u8]) -> PathBuf {
        let target = self.path("fetched");
        let mut reader = Reader::new(document).unwrap();
        let run = reader.header().run().unwrap();
        while let Some(entry) = reader.next_entry().unwrap() {
            for source in &run.sources {
                let prefix = RelPath::new(source.prefix.0.clone()).unwrap();
                if let Some(below) = entry.path.below(&prefix) {
                    let root = Path::new(std::ffi::OsStr::from_bytes(&source.root.0));
                    let to = target.join(entry.path.as_path());
                    fs::create_dir_all(to.parent().unwrap()).unwrap();
                    fs::copy(root.join(std::ffi::OsStr::from_bytes(below)), to).unwrap();
                }
            }
        }
        target
    }
}

fn header() -> Header {
    let backup = Backup {
        id: "backup-20260428-022150-a1b2c3d4".into(),
        timestamp: "2026-04-28T02:21:50.000Z".into(),
        ..Backup::default()
    };
    let application = Application { name: "app".into(), version: None };
    Header::new(&application, Some(&backup), &Run::default())
}

fn begun() -> Vec<u8> {
    let mut trailer = Trailer::default();
    trailer.set_run(&EndRun::default());
    Writer::new(Vec::new(), Format::Json, header()).unwrap().end(trailer).unwrap().0
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    atomic::create(path, bytes, 0o600, Existing::Replace).unwrap();
}

fn entries(document: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(document).unwrap();
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

/// A bank whose accounts always add up, and enough beside it for the copy to take some time.
fn bank(path: &Path, journal: &str) -> Connection {
    let bank = Connection::open(path).unwrap();
    bank.pragma_update(None, "journal_mode", journal).unwrap();
    bank.execute_batch(
        "CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER);
         INSERT INTO account SELECT value, 100 FROM generate_series(1, 1000);
         CREATE TABLE ballast(x BLOB);
         PRAGMA user_version = 42;",
    )
    .or_else(|_| {
        bank.execute_batch(
            "CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, money INTEGER);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             INSERT INTO account SELECT i, 100 FROM n;
             CREATE TABLE ballast(x BLOB);
             PRAGMA user_version = 42;",
        )
    })
    .unwrap();
    for _ in 0..40 {
        bank.execute("INSERT INTO ballast VALUES (randomblob(1000000))", []).unwrap();
    }
    bank.busy_timeout(Duration::from_secs(30)).unwrap();
    bank
}

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

/// A tree with what a file system can hold.
fn config(bench: &Bench) {
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

#[test]
fn what_is_there_is_not_overwritten() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    config(&bench);
    let document = bench.works(&["sqlite", "bank.db"], &begun());
    let document = bench.works(&["archive", "--name", "config", "conf", ".env"], &document);
    bench.fetch(&document);
    write(&bench.path("new.db"), b"old");
    write(&bench.path("new.db-wal"), b"old wal");
    let restore = ["restore", "--from", "fetched", "--to", "new.db"];
    bench.fails(&restore, &document, 2, "'new.db' is there already");
    fs::remove_file(bench.path("new.db")).unwrap();
    bench.fails(&restore, &document, 2, "'new.db-wal' is there already");
    write(&bench.path("new.db"), b"old");
    bench.works(&[&restore[..], &["--replace"]].concat(), &document);
    assert!(!bench.path("new.db-wal").exists(), "a stale -wal would be played into the new file");
    let mut kept: Vec<_> = fs::read_dir(bench.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("new.db.before-"))
        .collect();
    kept.sort();
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert_eq!(fs::read(bench.path(&kept[0])).unwrap(), b"old");
    assert_eq!(fs::read(bench.path(&kept[1])).unwrap(), b"old wal");

    write(&bench.path("out/.env"), b"mine");
    let unpack = ["restore", "--from", "fetched", "--into", "out"];
    bench.fails(&unpack, &document, 2, "'out/.env' is there already");
    assert!(!bench.path("out/conf").exists(), "nothing is written before all is looked at");
    bench.works(&[&unpack[..], &["--replace"]].concat(), &document);
    assert_eq!(fs::read(bench.path("out/.env")).unwrap(), b"SECRET=1\n");
    let aside = fs::read_dir(bench.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains(".bk-replaced-"))
        .unwrap();
    assert_eq!(fs::read(aside.join(".env")).unwrap(), b"mine");
}

#[test]
fn the_target_must_fit_the_component() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    let one = bench.works(&["sqlite", "bank.db"], &begun());
    let two = bench.works(&["sqlite", "bank.db", "--name", "other"], &one);
    let restore = ["restore", "--from", "fetched"];
    let with = |more: &[&'static str]| [&restore[..], more].concat();
    bench.fetch(&two);
    bench.fails(&restore, &one, 2, "needs a target");
    bench.fails(&with(&["--to", "x"]), &two, 2, "several components fit: database, other");
    bench.fails(&with(&["--into", "x"]), &two, 13, "no archive");
    bench.fails(&with(&["--to", "x", "--component", "no"]), &two, 13, "no component 'no'");
    bench.fails(&with(&["--database", "x", "--component", "other"]), &two, 2, "needs a target");
    bench.fails(&with(&["--to", "no/x", "--component", "other"]), &two, 13, "'no' is not there");
    bench.works(&with(&["--to", "x", "--component", "other"]), &two);
}

#[test]
fn a_dump_or_document_that_is_damaged_touches_nothing() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    let document = bench.works(&["sqlite", "bank.db"], &begun());
    let fetched = bench.fetch(&document).join(".bk/database/bank.db.zst");
    let restore = ["restore", "--from", "fetched", "--to", "new.db"];
    bench.fails(&restore, &document[..document.len() - 2], 21, "cut short");
    let good = fs::read(&fetched).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    write(&fetched, &flipped);
    bench.fails(&restore, &document, 20, "");
    write(&fetched, &good[..good.len() - 5]);
    bench.fails(&restore, &document, 20, "");
    bench.fails(&["check", fetched.to_str().unwrap()], b"", 20, "");
    fs::remove_file(&fetched).unwrap();
    bench.fails(&restore, &document, 13, "cannot open");
    assert!(!bench.path("new.db").exists());
    write(&fetched, &good);
    bench.works(&["check", fetched.to_str().unwrap()], b"");
    bench.works(&["check", "--from", "fetched"], &document);
    bench.works(&restore, &document);
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

#[test]
fn a_killed_dump_is_swept_by_the_next() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    let mut child = bench.command(&["sqlite", "bank.db"]).spawn().unwrap();
    let other = String::from_utf8(begun()).unwrap().replacen("a1b2c3d4", "ffffffff", 1);
    // Its sums do not fit any more: that is found at the end, which is not reached.
    child.stdin.as_mut().unwrap().write_all(other.as_bytes()).unwrap();
    let began = Instant::now();
    while bench.staged_files().len() < 2 && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    bench.works(&["sqlite", "bank.db"], &begun());
    let left: Vec<_> = bench
        .staged_files()
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("ffffffff"))
        .collect();
    // Killed too late, it had finished: then it is kept for a while.
    let is_finished = left.iter().any(|path| path.ends_with("bank.db.zst"));
    assert!(is_finished || left.is_empty(), "{left:?}");
}

#[test]
fn a_signal_ends_it_and_leaves_nothing() {
    let bench = Bench::new();
    let bank = bank(&bench.path("bank.db"), "DELETE");
    bank.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let child = bench.start(&["sqlite", "bank.db"], &begun());
    std::thread::sleep(Duration::from_millis(400));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(15));
    assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0));
    assert!(bench.staged_files().is_empty());
}

#[test]
fn a_signal_is_heard_while_the_step_before_is_silent() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    let mut child = bench.command(&["sqlite", "bank.db"]).spawn().unwrap();
    let stdin = child.stdin.take();
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    drop(stdin);
}

#[test]
fn a_reader_that_dies_is_a_failure_without_a_message() {
    let bench = Bench::new();
    drop(bank(&bench.path("bank.db"), "DELETE"));
    let mut child = bench.command(&["sqlite", "bank.db"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let document = begun();
    let half = document.windows(8).position(|part| part == b"\"files\":").unwrap();
    stdin.write_all(&document[..half + 21]).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    stdin.write_all(&document[half + 21..]).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(bench.staged_files().is_empty());
}

#[test]
fn a_password_among_the_arguments_is_refused_and_not_repeated() {
    let bench = Bench::new();
    let url = "postgresql://me:geheim@db/app";
    for args in [
        &["postgres", url][..],
        &["postgres", "--database", url],
        &["postgres", "--via", url],
        &["postgres", "--url-env", url],
        &["restore", "--from", "x", url],
    ] {
        let outcome = bench.run(args, &begun());
        assert_eq!(outcome.code, 2, "{args:?}");
        assert!(!outcome.stderr.contains("geheim"), "{}", outcome.stderr);
        assert!(outcome.stdout.is_empty());
    }
}

#[test]
fn every_command_explains_itself() {
    let bench = Bench::new();
    for command in ["", "postgres", "sqlite", "archive", "check", "restore"] {
        let args: Vec<&str> =
            [command, "--help"].into_iter().filter(|arg| !arg.is_empty()).collect();
        let help = String::from_utf8(bench.works(&args, b"")).unwrap();
        assert!(help.contains("Usage: bk-dump"), "{help}");
    }
    bench.works(&["--version"], b"");
    assert_eq!(bench.run(&["sqlite"], b"").code, 2);
    assert_eq!(bench.run(&["check"], b"").code, 2);
    bench.fails(&["check", "photo.jpg"], b"", 2, "is not that of a dump");
}
