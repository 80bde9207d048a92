//! SQLite databases in use: what comes back is one state that the application had committed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bk_manifest::scan::STAGE_MARKER;
use rusqlite::Connection;

use crate::harness::{Ended, Sandbox, bin_dir, copy_program, files_below};

pub const NEW: &[&str] = &["bk-manifest", "new", "--app", "app"];
pub const DUMP: &[&str] = &["bk-dump", "sqlite", "data/app.db"];
pub const ADD: &[&str] = &["bk-manifest", "add", "--root", "src"];
pub const PUSH: &[&str] = &["bk-push", "--to", "dest"];
/// Bound for everything that must not wait for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the accounts hold together, however it is moved between them.
const MONEY: i64 = 100_000;

/// Makes a database whose tables always change in one transaction.
pub fn bank(sandbox: &Sandbox, journal: &str, padding: usize) -> PathBuf {
    fs::create_dir_all(sandbox.path("data")).unwrap();
    let path = sandbox.path("data/app.db");
    let mut database = Connection::open(&path).unwrap();
    database.pragma_update(None, "journal_mode", journal).unwrap();
    database
        .execute_batch(
            "CREATE TABLE total (n INTEGER); INSERT INTO total VALUES (0);
             CREATE TABLE log (n INTEGER PRIMARY KEY, noise BLOB);
             CREATE TABLE padding (noise BLOB);
             CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER);
             WITH RECURSIVE n (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < 99)
                 INSERT INTO account SELECT i, 1000 FROM n;
             CREATE TABLE transfer
                 (id INTEGER PRIMARY KEY AUTOINCREMENT, giver REFERENCES account (id),
                  taker REFERENCES account (id), amount INTEGER);
             PRAGMA user_version = 42;",
        )
        .unwrap();
    let transaction = database.transaction().unwrap();
    for _ in 0..padding {
        transaction.execute("INSERT INTO padding VALUES (randomblob(100000))", []).unwrap();
    }
    transaction.commit().unwrap();
    path
}

pub fn deposit(database: &mut Connection) -> rusqlite::Result<i64> {
    let transaction = database.transaction()?;
    transaction.execute("UPDATE total SET n = n + 1", [])?;
    transaction
        .execute("INSERT INTO log SELECT n, randomblob(2000) FROM total", [])
        .and_then(|_| transaction.execute("UPDATE padding SET noise = randomblob(100000) WHERE rowid = 1 + (SELECT n FROM total) % 50", []))?;
    let number: i64 = transaction.query_row("SELECT n FROM total", [], |row| row.get(0))?;
    let (giver, taker, amount) = (number % 100, (number * 7 + 1) % 100, number % 13);
    for (account, change) in [(giver, -amount), (taker, amount)] {
        transaction
            .execute("UPDATE account SET money = money + ?2 WHERE id = ?1", [account, change])?;
    }
    transaction.execute(
        "INSERT INTO transfer (giver, taker, amount) VALUES (?1, ?2, ?3)",
        [giver, taker, amount],
    )?;
    transaction.commit()?;
    Ok(number)
}

/// How many deposits a database holds; both tables must agree, and all pages be sound.
#[track_caller]
pub fn balance(path: &Path) -> i64 {
    let database = Connection::open(path).unwrap();
    let number = |query: &str| database.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let total = number("SELECT n FROM total");
    assert_eq!(number("SELECT count(*) FROM log"), total, "half a transaction");
    assert_eq!(number("SELECT coalesce(max(n), 0) FROM log"), total);
    assert_eq!(number("PRAGMA user_version"), 42);
    assert_eq!(number("SELECT sum(money) FROM account"), MONEY, "half a transfer");
    let wrong = "SELECT count(*) FROM account WHERE money <> 1000
        - (SELECT coalesce(sum(amount), 0) FROM transfer WHERE giver = account.id)
        + (SELECT coalesce(sum(amount), 0) FROM transfer WHERE taker = account.id)";
    assert_eq!(number(wrong), 0, "accounts and transfers do not agree");
    total
}

#[track_caller]
pub fn all_ok(ended: Vec<Ended>) -> Ended {
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""));
    }
    ended.into_iter().next_back().unwrap()
}

/// Restores the database of a document to a new file.
#[track_caller]
pub fn restore(sandbox: &Sandbox, document: &[u8], name: &str) -> PathBuf {
    let target = format!("back-{name}");
    sandbox.fetch(document, &target);
    let path = sandbox.path(name);
    let restore = ["restore", "--from", &target, "--to", path.to_str().unwrap()];
    let ended = sandbox.run("bk-dump", &restore, document).expect(0);
    assert_eq!(ended.stderr, "");
    path
}

/// The component's record of a document.
pub fn record(document: &[u8]) -> serde_json::Value {
    let document: serde_json::Value = serde_json::from_slice(document).unwrap();
    let components = document["components"].as_array().unwrap();
    components.iter().rfind(|component| component["kind"] == "sqlite").unwrap().clone()
}

/// What a dump of a database by itself records of its tables.
pub fn recorded(sandbox: &Sandbox, path: &Path) -> serde_json::Value {
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let dump = ["sqlite", "--name", "another", path.to_str().unwrap()];
    record(&sandbox.run("bk-dump", &dump, &new).ok().stdout)["tables"].clone()
}

/// Dumps in what lies in the stage folder.
pub fn staged(sandbox: &Sandbox) -> Vec<PathBuf> {
    let stage = sandbox.path("stage");
    let mut files = if stage.exists() { files_below(&stage) } else { Vec::new() };
    // The small record of a pipe stays until the next run, which finds no dump with it.
    files.retain(|path| !path.to_str().unwrap().contains("/another/"));
    files.retain(|path| !path.file_name().unwrap().to_str().unwrap().ends_with(".json"));
    files.retain(|path| !path.ends_with(STAGE_MARKER));
    files
}

pub fn lines(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| !line.contains("hint:")).collect()
}

#[test]
fn a_database_under_full_load_comes_back_as_one_state() {
    for journal in ["wal", "delete"] {
        let sandbox = Sandbox::new();
        sandbox.write("photo.jpg", "a photo");
        let path = bank(&sandbox, journal, 400);
        let (stop, deposits) = (AtomicBool::new(false), AtomicI64::new(0));
        let began = Instant::now();
        let (document, before, after) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut database = Connection::open(&path).unwrap();
                database.busy_timeout(PATIENCE).unwrap();
                database.pragma_update(None, "synchronous", "OFF").unwrap();
                while !stop.load(Ordering::Relaxed) && began.elapsed() < PATIENCE {
                    deposits.store(deposit(&mut database).unwrap(), Ordering::Relaxed);
                }
            });
            while deposits.load(Ordering::Relaxed) < 20 {
                assert!(began.elapsed() < PATIENCE);
                std::thread::yield_now();
            }
            let before = deposits.load(Ordering::Relaxed);
            let ended = sandbox.pipe(&[
                NEW,
                DUMP,
                ADD,
                PUSH,
                &["bk-verify", "--from", "dest"],
                &["bk-prune", "--from", "dest", "--keep-last", "3", "-q"],
            ]);
            let after = deposits.load(Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            (all_ok(ended).stdout, before, after)
        });
        assert!(began.elapsed() < PATIENCE, "a busy writer holds the copy up");
        let restored = restore(&sandbox, &document, "restored.db");
        let balance = balance(&restored);
        assert!((before..=after).contains(&balance), "{before} <= {balance} <= {after}");
        let recorded_tables = &record(&document)["tables"];
        assert_eq!(recorded_tables[1]["name"], "log");
        assert_eq!(recorded_tables[1]["rows"], balance);
        assert_eq!(recorded(&sandbox, &restored), *recorded_tables, "not the recorded state");
        assert!(before < after, "the writer was held up");
        assert_eq!(staged(&sandbox), Vec::<PathBuf>::new());
        let found: String = Connection::open(&restored)
            .unwrap()
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found, journal);
    }
}

#[test]
fn what_is_no_sound_database_becomes_no_backup() {
    let sandbox = Sandbox::new();
    sandbox.write("photo.jpg", "a photo");
    let path = bank(&sandbox, "delete", 20);
    all_ok(sandbox.pipe(&[NEW, DUMP, ADD, PUSH]));
    let sound = fs::read(&path).unwrap();
    let mut flipped = sound.clone();
    // The b-tree of the first table; pages of 4096 bytes.
    flipped[4096..4096 + 200].fill(0x5a);
    let mut headless = sound.clone();
    headless[..100].fill(0x5a);
    let cases: [(&[u8], &str); 6] = [
        (&flipped, "corrupt"),
        (&sound[..sound.len() / 2], "corrupt"),
        (&sound[..5000], "corrupt"),
        (&headless, "not an SQLite database"),
        (&b"a text that is no database at all\n".repeat(500), "not an SQLite database"),
        (b"short", "not an SQLite database"),
    ];
    for (content, words) in cases {
        fs::write(&path, content).unwrap();
        let ended = sandbox.pipe(&[NEW, DUMP, ADD, PUSH]);
        assert_eq!(ended[1].code, 1, "{words}: {}", ended[1].stderr);
        assert_eq!(lines(&ended[1].stderr).len(), 1, "{}", ended[1].stderr);
        assert!(ended[1].stderr.contains(words), "{words}: {}", ended[1].stderr);
        assert_eq!(ended[3].code, 21);
        assert_eq!(sandbox.backups().len(), 1);
        assert_eq!(staged(&sandbox), Vec::<PathBuf>::new());
        assert_eq!(fs::read(&path).unwrap(), content, "the source was written to");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(sandbox.pipe(&[NEW, DUMP, PUSH])[1].code, 13);
    assert!(!path.exists(), "a missing database was made");
    fs::create_dir(&path).unwrap();
    assert_eq!(sandbox.pipe(&[NEW, DUMP, PUSH])[1].code, 1);
    assert_eq!(sandbox.backups().len(), 1);
}

#[test]
fn a_database_that_holds_nothing_is_backed_up_with_a_warning() {
    let sandbox = Sandbox::new();
    let path = bank(&sandbox, "delete", 20);
    fs::write(&path, "").unwrap();
    let ended = sandbox.pipe(&[NEW, DUMP, PUSH]);
    assert!(ended[1].stderr.contains("warning: the database '"), "{}", ended[1].stderr);
    assert!(ended[1].stderr.trim_end().ends_with("holds nothing"), "{}", ended[1].stderr);
    assert_eq!(ended[1].code, 0);
}

#[test]
fn a_lock_is_waited_for_only_so_long() {
    for journal in ["delete", "wal"] {
        let sandbox = Sandbox::new();
        let path = bank(&sandbox, journal, 1);
        let mut holder = Connection::open(&path).unwrap();
        if journal == "wal" {
            holder.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
            deposit(&mut holder).unwrap();
        } else {
            holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
        }
        let impatient = [DUMP, &["--busy-timeout", "1"]].concat();
        let began = Instant::now();
        let ended = sandbox.pipe(&[NEW, &impatient, PUSH]);
        assert!(began.elapsed() >= Duration::from_secs(1), "it did not wait");
        assert!(began.elapsed() < Duration::from_secs(20), "it waited too long");
        assert_eq!(ended[1].code, 1);
        assert_eq!(lines(&ended[1].stderr).len(), 1, "{}", ended[1].stderr);
        assert!(ended[1].stderr.contains("locked for longer than 1 s"), "{}", ended[1].stderr);
        assert_eq!(ended[2].code, 21);
        assert!(sandbox.backups().is_empty());
        // With more patience it is had as soon as the lock goes.
        let document = std::thread::scope(|scope| {
            let pipe = scope.spawn(|| all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout);
            std::thread::sleep(Duration::from_millis(300));
            drop(holder);
            pipe.join().unwrap()
        });
        let expected = i64::from(journal == "wal");
        assert_eq!(balance(&restore(&sandbox, &document, "restored.db")), expected);
    }
}

/// Runs a dump as a user who may read the database, but not write beside it.
fn dump_as_reader(sandbox: &Sandbox) -> (Ended, Ended) {
    let data = sandbox.path("data");
    fs::set_permissions(sandbox.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for file in files_below(&data) {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    }
    let mut step = Vec::new();
    if rustix::process::geteuid().is_root() {
        step.extend(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
        fs::create_dir_all(sandbox.path("stage")).unwrap();
        let stage = sandbox.path("stage");
        std::os::unix::fs::chown(&stage, Some(65534), Some(65534)).unwrap();
    }
    fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).unwrap();
    // Where the tools were built may be closed to others.
    let tool = sandbox.path("bk-dump");
    copy_program(&bin_dir().join("bk-dump"), &tool);
    step.push(tool.to_str().unwrap());
    step.extend(&DUMP[1..]);
    let mut ended = sandbox.pipe(&[NEW, &step, PUSH]);
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let push = ended.pop().unwrap();
    (ended.pop().unwrap(), push)
}

#[test]
fn a_folder_that_cannot_be_written_gives_a_good_copy_or_a_clear_line() {
    for case in ["delete", "wal", "wal in use", "wal left behind"] {
        let sandbox = Sandbox::new();
        let path = bank(&sandbox, case.split(' ').next().unwrap(), 1);
        let mut writer = Connection::open(&path).unwrap();
        assert_eq!(deposit(&mut writer).unwrap(), 1);
        if case == "wal left behind" {
            // As a crash leaves it: what was committed is in the -wal only.
            let wal = fs::read(sandbox.path("data/app.db-wal")).unwrap();
            let main = fs::read(&path).unwrap();
            drop(writer);
            fs::write(&path, main).unwrap();
            fs::write(sandbox.path("data/app.db-wal"), wal).unwrap();
        } else if case != "wal in use" {
            drop(writer);
        }
        let (dump, push) = dump_as_reader(&sandbox);
        if dump.code == 0 {
            assert_eq!(push.code, 0, "{case}: {}", push.stderr);
            assert_eq!(balance(&restore(&sandbox, &push.stdout, "restored.db")), 1, "{case}");
        } else {
            assert_eq!(dump.code, 1, "{case}: {}", dump.stderr);
            assert_eq!(lines(&dump.stderr).len(), 1, "{case}: {}", dump.stderr);
            assert!(
                dump.stderr.contains("must be able to write to the folder"),
                "{case}: {}",
                dump.stderr
            );
            assert_eq!(push.code, 21, "{case}");
            assert!(case.starts_with("wal"), "{case}: nothing of it needs to be written");
        }
    }
}

#[test]
fn a_restore_overwrites_nothing() {
    let sandbox = Sandbox::new();
    let path = bank(&sandbox, "wal", 1);
    let document = all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout;
    sandbox.fetch(&document, "back");
    // The application goes on, and leaves files beside its database.
    let mut database = Connection::open(&path).unwrap();
    assert_eq!(deposit(&mut database).unwrap(), 1);
    let names = || {
        let mut names: Vec<String> = files_below(&sandbox.path("data"))
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let with_all = ["app.db", "app.db-shm", "app.db-wal"];
    assert_eq!(names(), with_all);
    let target = path.to_str().unwrap();
    let restore = ["restore", "--from", "back", "--to", target];
    let refused = sandbox.run("bk-dump", &restore, &document).expect(2);
    assert_eq!(lines(&refused.stderr).len(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("--replace"), "{}", refused.stderr);
    assert_eq!(names(), with_all);
    assert_eq!(deposit(&mut database).unwrap(), 2);
    // As after a crash: with files beside it that nobody has open.
    let files: Vec<(PathBuf, Vec<u8>)> = files_below(&sandbox.path("data"))
        .into_iter()
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect();
    drop(database);
    for (path, bytes) in &files {
        fs::write(path, bytes).unwrap();
    }
    let replace = [&restore[..], &["--replace"]].concat();
    sandbox.run("bk-dump", &replace, &document).expect(0);
    let aside: Vec<String> = names().into_iter().filter(|name| name.contains(".before-")).collect();
    assert_eq!(aside.len(), 3, "{:?}", names());
    assert!(aside[1].ends_with("-shm") && aside[2].ends_with("-wal"), "{aside:?}");
    assert_eq!(balance(&path), 0, "the old -wal was taken for the new database's");
    assert_eq!(balance(&sandbox.path("data").join(&aside[0])), 2);
}

/// What [`deposit`] does, for a process of its own.
pub const DEPOSITS: &str = "BEGIN IMMEDIATE; UPDATE total SET n = n + 1; \
    UPDATE padding SET noise = randomblob(100000) WHERE rowid % 7 = 0; \
    INSERT INTO log SELECT n, randomblob(2000) FROM total; \
    INSERT INTO transfer (giver, taker, amount) SELECT n % 100, (n * 7 + 1) % 100, n % 13 FROM total; \
    UPDATE account SET money = money - (SELECT n % 13 FROM total) WHERE id = (SELECT n % 100 FROM total); \
    UPDATE account SET money = money + (SELECT n % 13 FROM total) WHERE id = (SELECT (n * 7 + 1) % 100 FROM total); \
    COMMIT";

/// A process that writes into the database until it is killed.
pub struct Writer(Child);

impl Writer {
    pub fn start(path: &Path, statements: &str) -> Self {
        let script = format!(
            "import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
database.execute('PRAGMA synchronous = OFF')
database.execute('PRAGMA cache_size = 5')
while True:
    for statement in {statements:?}.split(';'):
        database.execute(statement)"
        );
        let child = Command::new("python3")
            .args(["-c", &script])
            .arg(path)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Writer(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_open_database_is_not_replaced() {
    let script = "import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('SELECT count(*) FROM total').fetchone()
print(flush=True)
sys.stdin.read()
database.execute('UPDATE total SET n = n + 1')";
    for journal in ["wal", "delete"] {
        let sandbox = Sandbox::new();
        let path = bank(&sandbox, journal, 1);
        let document = all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout;
        sandbox.fetch(&document, "back");
        let mut application = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(application.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let before = crate::harness::snapshot(&sandbox.path("data"));
        let replace = ["restore", "--from", "back", "--to", path.to_str().unwrap(), "--replace"];
        for more in [&[][..], &["--dry-run"]] {
            let refused = sandbox.run("bk-dump", &[&replace, more].concat(), &document).expect(11);
            assert_eq!(lines(&refused.stderr).len(), 1, "{}", refused.stderr);
            let named = format!("is open in process {} (python3)", application.id());
            assert!(refused.stderr.contains(&named), "{}", refused.stderr);
        }
        crate::harness::assert_same_tree(&before, &crate::harness::snapshot(&sandbox.path("data")));
        let insists = [&replace[..], &["--even-if-open"]].concat();
        sandbox.run("bk-dump", &insists, &document).expect(0);
        // What it still writes goes into the old one.
        drop(application.stdin.take());
        application.wait().unwrap();
        assert_eq!(balance(&path), 0);
        sandbox.run("bk-dump", &replace, &document).expect(0);
    }
}

#[test]
fn memory_and_copy_stay_bounded_under_a_writer() {
    let sandbox = Sandbox::new();
    let path = bank(&sandbox, "wal", 1500);
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "CREATE TABLE many (id INTEGER PRIMARY KEY, a TEXT, b REAL);
             WITH RECURSIVE n (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < 300000)
                 INSERT INTO many SELECT i, 'row ' || i, i / 3.0 FROM n;",
        )
        .unwrap();
    let writer = Writer::start(&path, DEPOSITS);
    let measured = "import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_oublock, file=open(sys.argv[1], 'w'))
sys.exit(code)";
    let step = [&["python3", "-c", measured, "tmp/used"], DUMP].concat();
    let document = all_ok(sandbox.pipe(&[NEW, &step, PUSH])).stdout;
    drop(writer);
    let used = fs::read_to_string(sandbox.path("tmp/used")).unwrap();
    let used: Vec<u64> = used.split_whitespace().map(|figure| figure.parse().unwrap()).collect();
    let record = record(&document);
    let size = record["database_size"].as_u64().unwrap();
    assert!(size > 150 << 20, "{size}");
    assert_eq!(
        size,
        record["page_count"].as_u64().unwrap() * record["page_size"].as_u64().unwrap(),
        "the copy is not of the state that the transaction saw"
    );
    assert!(used[0] < 100 << 10, "{} KiB of memory", used[0]);
    // The copy and what it is compressed to, each written once: a copy that began again writes more.
    assert!(used[1] * 512 < size * 5 / 2, "{} blocks for {size} bytes", used[1]);
    assert_eq!(record["tables"][2]["rows"], 300_001);
}
