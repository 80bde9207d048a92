//! PostgreSQL, with a private server of the tests' own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bk_manifest::scan::STAGE_MARKER;

use crate::harness::{
    Ended, Random, Sandbox, assert_same_tree, bin_dir, files_below, is_sealed, snapshot,
};
use crate::server::{APP, PATIENCE, ROLE, Server, fake};

pub const NEW: &[&str] = &["bk-manifest", "new", "--app", "app"];
pub const DUMP: &[&str] = &["bk-dump", "postgres", "--database", APP];
pub const ADD: &[&str] = &["bk-manifest", "add", "--root", "src"];
pub const PUSH: &[&str] = &["bk-push", "--to", "dest"];

/// A little of everything that a database holds.
pub const EVERYTHING: &str = r#"
SET ROLE "app owner";
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE TYPE mood AS ENUM ('glücklich', 'traurig');
CREATE TABLE events (id serial PRIMARY KEY, name text NOT NULL, mood mood, at timestamptz DEFAULT '2026-04-28 02:21:50.123456+02', data jsonb, bytes bytea, amount numeric);
COMMENT ON TABLE events IS 'Veranstaltungen';
INSERT INTO events (name, mood, data, bytes, amount) SELECT 'ünïcödé 日本語 ' || n || E' \t\n\\', 'glücklich', jsonb_build_object('n', n, 'ß', E'\u00e9'), decode(md5(n::text), 'hex'), n / 7.0 FROM generate_series(1, 2000) n;
INSERT INTO events (name) VALUES (''), (E'\\N'), (E'\\.'), ('NaN');
CREATE INDEX ON events USING gin (name gin_trgm_ops);
CREATE TABLE "Odd ""name"" ü" ("a b" int REFERENCES events (id) ON DELETE CASCADE, "select" text CHECK (length("select") < 100));
INSERT INTO "Odd ""name"" ü" SELECT n, 'x' FROM generate_series(1, 10) n;
CREATE VIEW recent AS SELECT id, name FROM events WHERE id > 1990;
CREATE MATERIALIZED VIEW summary AS SELECT mood, count(*) FROM events GROUP BY mood;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE plpgsql AS $$BEGIN RETURN 2 * n; END$$;
CREATE SCHEMA other CREATE TABLE parts (id int, day date) PARTITION BY RANGE (day);
CREATE TABLE other.parts_2026 PARTITION OF other.parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO other.parts SELECT n, date '2026-01-01' + n FROM generate_series(0, 300) n;
CREATE TABLE "empty" ();
CREATE SEQUENCE unused START 42;
SELECT setval('events_id_seq', 123456);
SELECT lo_from_bytea(4711, decode(repeat('00ff0a0d', 50000), 'hex'));
GRANT SELECT ON events TO PUBLIC;
"#;

/// Rows that do not compress: dumping them takes a moment.
pub const HEAVY: &str = "CREATE TABLE heavy AS SELECT n, \
    (SELECT string_agg(md5(random()::text || n || m), '') FROM generate_series(1, 10) m) AS noise \
    FROM generate_series(1, 60000) n";

pub fn bench(statements: &str) -> (Server, Sandbox) {
    let server = Server::start();
    server.sql(APP, statements);
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    sandbox.write("events/one.jpg", "a photo");
    (server, sandbox)
}

#[track_caller]
pub fn all_ok(ended: Vec<Ended>) -> Ended {
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""));
    }
    ended.into_iter().next_back().unwrap()
}

/// Backs database and tree up; every step must do well. Returns the document.
#[track_caller]
pub fn back_up(sandbox: &Sandbox) -> Vec<u8> {
    all_ok(sandbox.pipe(&[NEW, DUMP, ADD, PUSH])).stdout
}

/// Restores a document's database into one that is made for it.
#[track_caller]
pub fn restore(sandbox: &Sandbox, document: &[u8], database: &str) {
    let target = format!("back-{database}");
    sandbox.fetch(document, &target);
    let restore = ["restore", "--from", &target, "--database", database];
    sandbox.run("bk-dump", &restore, document).ok();
}

/// No backup but these, and nothing of a dump that failed.
#[track_caller]
pub fn assert_nothing_new(sandbox: &Sandbox, latest: &[u8]) {
    let id = |document: &[u8]| -> String {
        let json: serde_json::Value = serde_json::from_slice(document).unwrap();
        json["backup"]["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(id(&sandbox.latest()), id(latest));
    assert_eq!(staged(sandbox), Vec::<PathBuf>::new());
}

/// What lies in the stage folder.
pub fn staged(sandbox: &Sandbox) -> Vec<PathBuf> {
    let stage = sandbox.path("stage");
    // The small record of a pipe stays until the next run, which finds no dump with it.
    let is_record = |path: &Path| path.file_name().unwrap().as_bytes().starts_with(b".database");
    let mut files = if stage.exists() { files_below(&stage) } else { Vec::new() };
    files.retain(|path| !is_record(path) && !path.ends_with(STAGE_MARKER));
    files
}

/// A child that does not outlive a test that failed.
pub struct Step(pub Child);

impl Deref for Step {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Step {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Step {
    /// How it ended, and what it said.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        if let Some(mut stderr) = self.stderr.take() {
            stderr.read_to_string(&mut said).unwrap();
        }
        (self.wait().unwrap().code(), said)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = self.wait();
    }
}

/// A dump step whose document can be given bit by bit.
pub fn spawn_dump(sandbox: &Sandbox, step: &[&str]) -> Step {
    let child = sandbox
        .command(step[0])
        .args(&step[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Step(child)
}

pub fn spawn_pipe(sandbox: &Sandbox) -> (Step, Step) {
    spawn_pipe_of(sandbox, DUMP)
}

/// A pipe of new, dump and push; returns dump and push.
pub fn spawn_pipe_of(sandbox: &Sandbox, step: &[&str]) -> (Step, Step) {
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let mut dump = spawn_dump(sandbox, step);
    dump.stdin.take().unwrap().write_all(&new).unwrap();
    let push = sandbox
        .command(PUSH[0])
        .args(&PUSH[1..])
        .stdin(dump.stdout.take().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (dump, Step(push))
}

#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "it never came about: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lines that are not hints.
pub fn lines(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| !line.contains("hint:")).collect()
}

#[test]
fn a_database_and_its_files_come_back_the_same() {
    let (server, sandbox) = bench(EVERYTHING);
    let content = server.content(APP);
    assert!(content.contains("large object|4711"), "{content}");
    let files = snapshot(&sandbox.path("src"));
    let ended = sandbox.pipe(&[
        NEW,
        DUMP,
        ADD,
        PUSH,
        &["bk-verify", "--from", "dest"],
        &["bk-prune", "--from", "dest", "--keep-last", "3", "-q"],
    ]);
    let printed = all_ok(ended).json();
    assert_eq!(printed["components"][0]["kind"], "postgresql");
    assert_eq!(printed["components"][0]["database"], APP);
    assert_eq!(printed["database"]["type"], "postgresql");
    assert_eq!(staged(&sandbox), Vec::<PathBuf>::new(), "push removes what it stored");
    server.wait_until_idle();

    server.sql("postgres", &format!("DROP DATABASE {APP}"));
    fs::remove_dir_all(sandbox.path("src")).unwrap();
    let document = sandbox.latest();
    sandbox.fetch(&document, "back");
    assert_same_tree(&files, &snapshot(&sandbox.path("back")));
    let restore = ["restore", "--from", "back", "--database"];
    // Into the one that is gone; a name that needs quoting; an empty one that is there.
    let odd = "Ödd \"name\" 'x";
    server.sql("postgres", "CREATE DATABASE \"there\" TEMPLATE template0");
    for name in [APP, odd, "there"] {
        let ended = sandbox.run("bk-dump", &[&restore[..], &[name]].concat(), &document).ok();
        assert_eq!(
            ended.json()["verification"]["run"]["restored"],
            serde_json::json!(["database"])
        );
        assert_eq!(server.content(name), content, "{name}");
        let known = server.sql(name, "SELECT count(*) FROM pg_stats WHERE tablename = 'events'");
        assert_ne!(known, "0", "what the planner knows of {name}");
    }
    // One that is in use is not touched.
    server.sql(APP, "DELETE FROM events WHERE id = 7; CREATE TABLE mine (); DROP VIEW recent");
    let before = server.content(APP);
    let ended = sandbox.run("bk-dump", &[&restore[..], &[APP]].concat(), &document).expect(2);
    assert_eq!(ended.stdout, b"");
    assert!(ended.stderr.contains("is not empty"), "{}", ended.stderr);
    assert_eq!(server.content(APP), before);
    server.wait_until_idle();
}

#[test]
fn what_is_not_empty_is_refused_whatever_it_holds() {
    let (server, sandbox) = bench("CREATE TABLE t (); ");
    let document = back_up(&sandbox);
    sandbox.fetch(&document, "back");
    for (number, object) in [
        "CREATE TABLE t (a int)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE e AS ENUM ('a')",
        "CREATE DOMAIN d AS int",
        "CREATE SEQUENCE s",
        "CREATE SCHEMA other",
        "CREATE SCHEMA other; CREATE TABLE other.t ()",
        "SELECT lo_create(1)",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("used{number}");
        server.sql("postgres", &format!("CREATE DATABASE {name}"));
        server.sql(&name, object);
        let before = server.content(&name);
        let restore = ["restore", "--from", "back", "--database", &name];
        let ended = sandbox.run("bk-dump", &restore, &document);
        assert_eq!(ended.code, 2, "{object}: {}", ended.stderr);
        let dry_run = [&restore[..], &["--dry-run"]].concat();
        sandbox.run("bk-dump", &dry_run, &document).expect(2);
        assert_eq!(server.content(&name), before);
    }
    // What an extension brings along is no reason.
    server.sql("postgres", "CREATE DATABASE extended");
    server.sql("extended", "CREATE EXTENSION pg_trgm");
    let restore = ["restore", "--from", "back", "--database", "extended"];
    sandbox.run("bk-dump", &restore, &document).expect(0);
}

/// As [`fake`] for `pg_dump`, which still tells its version.
pub fn fake_dump(server: &Server, sandbox: &mut Sandbox, script: &str) {
    let script = format!("[ \"$1\" = --version ] && exec \"$real\" --version\n{script}");
    fake(server, sandbox, "pg_dump", &script);
}

#[test]
fn warnings_of_pg_dump_are_shown_and_do_no_harm() {
    let (server, mut sandbox) = bench(EVERYTHING);
    let script = "echo 'pg_dump: warning: there are circular foreign-key constraints' >&2
        echo 'pg_dump: detail: ünïcödé' >&2
        exec \"$real\" \"$@\"";
    fake_dump(&server, &mut sandbox, script);
    let ended = sandbox.pipe(&[NEW, DUMP, PUSH]);
    assert_eq!(ended[1].code, 0);
    assert!(ended[1].stderr.contains("circular foreign-key constraints"), "{}", ended[1].stderr);
    assert!(ended[1].stderr.contains("ünïcödé"), "{}", ended[1].stderr);
    assert_eq!(ended[2].code, 0);
    restore(&sandbox, &ended[2].stdout, "again");
    assert_eq!(server.content("again"), server.content(APP));
}

#[test]
fn programs_that_are_missing_or_too_old_are_named_before_anything_starts() {
    let (server, mut sandbox) = bench("");
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    fake(&server, &mut sandbox, "pg_dump", "echo 'pg_dump (PostgreSQL) 9.6.24'");
    let old = sandbox.run(DUMP[0], &DUMP[1..], &new).expect(1);
    assert!(old.stderr.contains("9.6.24"), "{}", old.stderr);
    assert_eq!((old.stdout.as_slice(), lines(&old.stderr).len()), (&b""[..], 1));
    sandbox.set("PATH", bin_dir());
    let program = bin_dir().join("bk-dump");
    let missing = sandbox.run(program.to_str().unwrap(), &DUMP[1..], &new).expect(1);
    assert!(missing.stderr.contains("'pg_dump' is not installed"), "{}", missing.stderr);
    assert!(missing.stderr.contains("hint: install"), "{}", missing.stderr);
    assert_eq!(staged(&sandbox), Vec::<PathBuf>::new());
}

#[test]
fn the_header_goes_on_once_the_snapshot_is_held() {
    let (server, mut sandbox) =
        bench("CREATE TABLE seen (moment text); INSERT INTO seen VALUES ('before')");
    let gate = |name: &str| {
        let path = sandbox.path(name);
        // The folder goes with the test, also one that failed.
        let (folder, path) = (sandbox.path("src"), path.display());
        format!(
            "while [ ! -e '{path}' ] && [ -d '{}' ]; do sleep 0.01; done; exec \"$real\" \"$@\"",
            folder.display()
        )
    };
    let (psql, pg_dump) = (gate("psql may"), gate("pg_dump may"));
    fake(&server, &mut sandbox, "psql", &psql);
    fake_dump(&server, &mut sandbox, &pg_dump);
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let mut dump = spawn_dump(&sandbox, DUMP);
    let stdout = dump.stdout.take().unwrap();
    let (header, arrived) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut text = Vec::new();
        while !text.ends_with(b"\"manifest\":[") {
            assert!(stdout.read_until(b'[', &mut text).unwrap() > 0, "no header came");
        }
        header.send(()).unwrap();
        stdout.read_to_end(&mut text).unwrap();
        text
    });
    dump.stdin.take().unwrap().write_all(&new).unwrap();
    // Nothing can be held yet; a header that was to come early would be here by then.
    assert!(arrived.recv_timeout(Duration::from_millis(700)).is_err(), "it did not wait");
    fs::write(sandbox.path("psql may"), "").unwrap();
    arrived.recv_timeout(PATIENCE).unwrap();
    server.sql(APP, "INSERT INTO seen VALUES ('after'); CREATE TABLE after ()");
    fs::write(sandbox.path("pg_dump may"), "").unwrap();
    assert!(dump.wait().unwrap().success());
    let document = reader.join().unwrap();
    let pushed = sandbox.run(PUSH[0], &PUSH[1..], &document).ok();
    restore(&sandbox, &pushed.stdout, "cut");
    assert_eq!(server.sql("cut", "SELECT moment FROM seen"), "before");
    assert_eq!(server.sql("cut", "SELECT to_regclass('after') IS NULL"), "t");
}

#[test]
fn every_file_that_the_database_knows_of_is_in_the_backup() {
    let (server, sandbox) = bench("CREATE TABLE photos (name text PRIMARY KEY)");
    let stop = AtomicBool::new(false);
    let mut session = server.session(APP);
    let (count, document) = std::thread::scope(|scope| {
        let (begun, begins) = mpsc::channel();
        let (sandbox, stop) = (&sandbox, &stop);
        // An application: the photo first, then its row.
        let writer = scope.spawn(move || {
            let mut number = 0;
            let until = Instant::now() + 2 * PATIENCE;
            while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                let name = format!("photo{number:05}.jpg");
                fs::write(sandbox.path("tmp/upload"), &name).unwrap();
                fs::rename(sandbox.path("tmp/upload"), sandbox.path("src/events").join(&name))
                    .unwrap();
                session.sql(&format!("INSERT INTO photos VALUES ('{name}')"));
                number += 1;
                if number == 100 {
                    begun.send(()).unwrap();
                }
            }
            number
        });
        begins.recv().unwrap();
        let ended = sandbox.pipe(&[NEW, DUMP, ADD, PUSH]);
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), all_ok(ended).stdout)
    });
    restore(&sandbox, &document, "cut");
    let rows = server.sql("cut", "SELECT name FROM photos ORDER BY name");
    let rows: Vec<&str> = rows.lines().collect();
    assert!(
        rows.len() >= 100 && rows.len() < count,
        "{} of {count}: no writer to be cut",
        rows.len()
    );
    for name in rows {
        let photo = sandbox.path("back-cut/events").join(name);
        assert_eq!(
            fs::read_to_string(&photo).ok().as_deref(),
            Some(name),
            "{name} is not restored"
        );
    }
}

#[test]
fn a_killed_dump_leaves_no_backup_and_no_snapshot() {
    let mut random = Random::from_run();
    let (server, sandbox) = bench(HEAVY);
    let began = Instant::now();
    back_up(&sandbox);
    let length = u64::try_from(began.elapsed().as_millis()).unwrap();
    let mut backups = 1;
    for round in 0..8 {
        let (mut dump, mut push) = spawn_pipe(&sandbox);
        let moment = random.below(length);
        std::thread::sleep(Duration::from_millis(moment));
        dump.kill().unwrap();
        dump.wait().unwrap();
        match push.wait().unwrap().code() {
            // It had ended its document just before.
            Some(0) => backups += 1,
            code => assert_eq!(code, Some(21), "round {round}, killed after {moment} ms"),
        }
        server.wait_until_idle();
        assert_eq!(sandbox.backups().len(), backups);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
        for left in staged(&sandbox) {
            assert_eq!(mode(&left), 0, "{}", left.display());
        }
    }
    restore(&sandbox, &sandbox.latest(), "earlier");
    assert_eq!(server.content("earlier"), server.content(APP));
    let document = back_up(&sandbox);
    let mut left = staged(&sandbox);
    left.retain(|file| !is_sealed(file));
    assert_eq!(left, Vec::<PathBuf>::new(), "it was not swept");
    restore(&sandbox, &document, "again");
    assert_eq!(server.content("again"), server.content(APP));
}

#[test]
fn a_signal_ends_dump_and_sessions_at_once() {
    let (server, sandbox) = bench("CREATE TABLE t ()");
    let mut lock = server.session(APP);
    lock.sql("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE");
    let (mut dump, mut push) = spawn_pipe(&sandbox);
    server.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' \
         AND wait_event_type = 'Lock'",
        "1",
    );
    let pid = rustix::process::Pid::from_child(&dump);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(dump.wait().unwrap().signal(), Some(15));
    assert_eq!(push.wait().unwrap().code(), Some(21));
    drop(lock);
    server.wait_until_idle();
    assert!(sandbox.backups().is_empty());
    assert_eq!(staged(&sandbox), Vec::<PathBuf>::new());
}

#[test]
fn a_restore_that_fails_leaves_nothing_behind() {
    let (server, sandbox) = bench(EVERYTHING);
    let document = back_up(&sandbox);
    sandbox.fetch(&document, "back");
    let content = server.content(APP);
    // Another server, where the owner is not known.
    let mut other_sandbox = Sandbox::new();
    let other = Server::start();
    other.known_to(&mut other_sandbox);
    other.sql("postgres", &format!("DROP DATABASE {APP}; DROP ROLE \"{ROLE}\""));
    other.sql("postgres", "CREATE DATABASE empty");
    let back = sandbox.path("back");
    let back = back.to_str().unwrap();
    let databases = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database";
    let before = other.sql("postgres", databases);
    for name in ["new", "empty"] {
        let restore = ["restore", "--from", back, "--database", name];
        let ended = other_sandbox.run("bk-dump", &restore, &document).expect(2);
        assert_eq!(ended.stdout, b"");
        assert_eq!(lines(&ended.stderr).len(), 1, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("lacks roles that the dump needs: app owner"),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains("--no-owner"), "{}", ended.stderr);
        assert_eq!(other.sql("postgres", databases), before);
        other.wait_until_idle();
    }
    assert_eq!(
        other.sql(
            "empty",
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ),
        "0"
    );
    for name in ["new", "empty"] {
        let restore = ["restore", "--from", back, "--no-owner", "--no-acl", "--database", name];
        other_sandbox.run("bk-dump", &restore, &document).ok();
        let rows =
            "SELECT count(*) || ' ' || md5(string_agg(e::text, '' ORDER BY id)) FROM events e";
        assert_eq!(other.sql(name, rows), server.sql(APP, rows));
    }
    // A dump that is not what the manifest says never gets to the server.
    let dump = sandbox.path("back/.bk/database/app.dump");
    let bytes = fs::read(&dump).unwrap();
    for damaged in [&bytes[..bytes.len() / 2], &[&bytes[..], b"x"].concat(), b""] {
        fs::set_permissions(&dump, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&dump, damaged).unwrap();
        let restore = ["restore", "--from", back, "--database", "damaged"];
        sandbox.run("bk-dump", &restore, &document).expect(20);
    }
    assert_eq!(
        server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'damaged'"),
        "0"
    );
    assert_eq!(server.content(APP), content);
}

#[test]
fn an_empty_name_is_not_taken_for_another_database() {
    let (server, sandbox) = bench("CREATE TABLE t (n int)");
    // What libpq would take instead.
    server.sql("postgres", "CREATE TABLE another (n int)");
    for flags in [&["--database", ""][..], &["--database", APP, "--user", ""]] {
        let step = [&["bk-dump", "postgres"][..], flags].concat();
        let dump = sandbox.pipe(&[&["bk-manifest", "new", "--app", "app"], &step]).pop().unwrap();
        let ended = dump.expect(2);
        assert!(ended.stderr.contains("is empty"), "{}", ended.stderr);
        assert_eq!(ended.stdout, b"");
    }
}
