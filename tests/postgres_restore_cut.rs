//! Restores that end half-way, killed, by a signal, by an error or for want of space: the database
//! that was there is still there, and the next restore does well.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Random, Sandbox};
use crate::postgres::{bench, lines};
use crate::postgres_restore::{Backup, FORMS, adorn, attributes, back_up, before, databases};
use crate::server::{APP, PATIENCE, Server, fake};

/// A database whose restores take a moment, and its backup; then it gets a newer row.
pub fn killing_ground(form: &[&str], rows: u32) -> (Server, Sandbox, Backup, String) {
    let (server, sandbox) = bench(&format!(
        "CREATE TABLE t AS SELECT n AS a, md5(n::text) AS b FROM generate_series(1, {rows}) n; \
         CREATE INDEX ON t (b); CREATE TABLE newer (a int)"
    ));
    adorn(&server);
    let backup = back_up(&sandbox, APP, form);
    let content = server.content(APP);
    (server, sandbox, backup, content)
}

/// What must hold after a restore was killed at whatever moment: the old rows, or all of the backup's,
/// are there under the database's own name, and the same command again does well and leaves nothing.
#[track_caller]
fn assert_recovers(
    server: &Server,
    sandbox: &Sandbox,
    backup: &Backup,
    content: &str,
    newer: &str,
    moment: &str,
) {
    let is_closed = "SELECT NOT datallowconn FROM pg_database WHERE datname = 'app'";
    if server.sql("postgres", is_closed) == "t" {
        // The one stated command; the rerun does without it, every other time.
        if moment.len().is_multiple_of(2) {
            server.sql("postgres", "ALTER DATABASE \"app\" ALLOW_CONNECTIONS true");
            assert_eq!(server.content(APP), newer, "{moment}");
        }
    } else {
        let found = server.content(APP);
        assert!(found == newer || found == content, "{moment}: {found}");
        if found == content {
            let kept = before(server);
            assert_eq!(server.content(kept.last().unwrap()), newer, "{moment}");
        }
    }
    let adorned = attributes(server, APP);
    let again = backup.restore(sandbox, &["--database", APP, "--replace"]);
    assert_eq!(again.code, 0, "{moment}: {}", again.stderr);
    assert_eq!(server.content(APP), content, "{moment}");
    assert_eq!(
        attributes(server, APP).replace("|f|", "|t|"),
        adorned.replace("|f|", "|t|"),
        "{moment}"
    );
    for name in databases(server) {
        assert!(name == APP || name.starts_with("app__before_"), "{moment}: {name}");
        if name != APP {
            server.sql("postgres", &format!("DROP DATABASE \"{name}\" (FORCE)"));
        }
    }
}

#[test]
fn a_restore_killed_at_any_moment_loses_nothing() {
    let mut random = Random::from_run();
    for form in [FORMS[0], FORMS[1], FORMS[4]] {
        let (server, sandbox, backup, content) = killing_ground(form, 20_000);
        let args = ["--database", APP, "--replace"];
        let began = Instant::now();
        backup.restore(&sandbox, &args).ok();
        let length = u64::try_from(began.elapsed().as_millis()).unwrap();
        server.sql("postgres", &format!("DROP DATABASE \"{}\"", before(&server)[0]));
        for round in 0..8 {
            server.sql(APP, "INSERT INTO newer VALUES (1)");
            let newer = server.content(APP);
            let moment = random.below(length);
            kill_after(&sandbox, &backup, &args, Duration::from_millis(moment));
            let moment = format!("{form:?}, round {round}, killed after {moment} ms");
            assert_recovers(&server, &sandbox, &backup, &content, &newer, &moment);
        }
    }
}

/// Starts a restore and kills it, and it alone, with no chance to clean up.
fn kill_after(sandbox: &Sandbox, backup: &Backup, args: &[&str], moment: Duration) {
    let input = sandbox.path("document");
    fs::write(&input, &backup.document).unwrap();
    let mut child = backup
        .command(sandbox, args)
        .stdin(fs::File::open(input).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(moment);
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn a_restore_killed_at_each_of_its_statements_loses_nothing() {
    let (server, mut sandbox, backup, content) = killing_ground(FORMS[0], 10);
    let args = ["--database", APP, "--replace"];
    let (count, limit) = (sandbox.path("count"), sandbox.path("limit"));
    let (first, mut random) = (sandbox.path("first"), Random::from_run());
    // Before the statement is sent, or right behind it.
    let script = format!(
        "while IFS= read -r line; do
            case \"$line\" in '\\echo'*) printf '%s\\n' \"$line\"; continue;; esac
            read -r number < '{0}'; number=$((number + 1)); echo $number > '{0}'
            {{ read -r before; read -r behind; }} < '{1}'
            [ $number -ne $before ] || kill -9 $PPID
            case \"$line\" in 'CREATE DATABASE'*) echo $number > '{2}';; esac
            printf '%s\\n' \"$line\"
            [ $number -ne $behind ] || {{ sleep 0.05; kill -9 $PPID; }}
        done | \"$real\" \"$@\"",
        count.display(),
        limit.display(),
        first.display()
    );
    fake(&server, &mut sandbox, "psql", &script);
    let set = |before: u32, behind: u32| {
        fs::write(&count, "0\n").unwrap();
        fs::write(&limit, format!("{before}\n{behind}\n")).unwrap();
    };
    set(0, 0);
    backup.restore(&sandbox, &args).ok();
    let number = |path| -> u32 { fs::read_to_string(path).unwrap().trim().parse().unwrap() };
    let (first, total) = (number(&first), number(&count));
    assert!(first + 10 < total, "{first} of {total}");
    server.sql("postgres", &format!("DROP DATABASE \"{}\"", before(&server)[0]));
    // What comes before the first one only asks.
    for statement in first..=total {
        server.sql(APP, "INSERT INTO newer VALUES (1)");
        let newer = server.content(APP);
        let is_before = random.below(2) == 0;
        set(if is_before { statement } else { 0 }, if is_before { 0 } else { statement });
        let ended = backup.restore(&sandbox, &args);
        assert!([0, 137].contains(&ended.code), "{statement}: {}", ended.stderr);
        set(0, 0);
        let moment = format!("statement {statement} of {total}, before it: {is_before}");
        assert_recovers(&server, &sandbox, &backup, &content, &newer, &moment);
    }
}

#[test]
fn a_plain_dump_in_place_is_all_or_nothing_when_killed() {
    let mut random = Random::from_run();
    let (server, sandbox) = bench(
        "CREATE TABLE t AS SELECT n AS a, md5(n::text) AS b FROM generate_series(1, 50000) n",
    );
    let backup = back_up(&sandbox, APP, FORMS[2]);
    server.sql("postgres", "CREATE DATABASE empty TEMPLATE template0");
    let over = backup.restore(&sandbox, &["--database", APP, "--in-place", "--replace"]).expect(1);
    assert!(over.stderr.contains("unless it was made with --clean"), "{}", over.stderr);
    let args = ["--database", "empty", "--in-place"];
    let mut length = 2000;
    for _ in 0..10 {
        let began = Instant::now();
        let moment = random.below(length);
        kill_after(&sandbox, &backup, &args, Duration::from_millis(moment));
        length = length.min(u64::try_from(began.elapsed().as_millis()).unwrap() + 500);
        server.wait_for("SELECT count(*) FROM pg_stat_activity WHERE datname = 'empty'", "0");
        let count = "SELECT CASE WHEN to_regclass('t') IS NULL THEN 0 ELSE (SELECT reltuples FROM pg_class WHERE relname = 't') END";
        if server.sql("empty", count) != "0" {
            assert_eq!(server.sql("empty", "SELECT count(*) FROM t"), "50000", "after {moment} ms");
            server.sql("empty", "DROP TABLE t");
        }
    }
}

#[test]
fn a_signal_takes_back_what_was_begun() {
    let (server, mut sandbox, backup, content) = killing_ground(FORMS[0], 10);
    // Half of the load is done when it comes.
    let script = "[ \"$1\" = --version ] && exec \"$real\" \"$@\"
        case \"$*\" in *--dbname*) \"$real\" \"$@\"; kill -TERM $PPID; exec sleep 60;; esac
        exec \"$real\" \"$@\"";
    fake(&server, &mut sandbox, "pg_restore", script);
    let began = Instant::now();
    backup.restore(&sandbox, &["--database", APP, "--replace"]).expect(128 + 15);
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(server.content(APP), content);
    assert_eq!(databases(&server), [APP]);
    // While it waits for the sessions to end: nobody is left shut out.
    let (server, mut sandbox, backup, content) = killing_ground(FORMS[0], 10);
    let script = "while IFS= read -r line; do
            printf '%s\\n' \"$line\"
            case \"$line\" in *'ALLOW_CONNECTIONS false'*)
                case \"$line\" in CREATE*) ;; *) sleep 0.2; kill -TERM $PPID; exit;; esac;;
            esac
        done | \"$real\" \"$@\"";
    fake(&server, &mut sandbox, "psql", script);
    backup.restore(&sandbox, &["--database", APP, "--replace"]).expect(128 + 15);
    assert_eq!(server.content(APP), content);
    assert_eq!(databases(&server), [APP]);
}

#[test]
fn a_failed_load_leaves_no_database() {
    let (server, mut sandbox, backup, content) = killing_ground(FORMS[0], 10);
    let script = "case \"$*\" in *--dbname*) \"$real\" \"$@\"; echo 'pg_restore: error: at last' >&2; exit 1;; esac
        exec \"$real\" \"$@\"";
    fake(&server, &mut sandbox, "pg_restore", script);
    let ended = backup.restore(&sandbox, &["--database", APP, "--replace"]).expect(1);
    assert_eq!(lines(&ended.stderr).len(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("pg_restore: error: at last"), "{}", ended.stderr);
    assert_eq!((server.content(APP), databases(&server)), (content, vec![APP.to_owned()]));
    // Warnings are none.
    let script = "case \"$*\" in *--dbname*) echo 'pg_restore: warning: only that' >&2;; esac
        exec \"$real\" \"$@\"";
    fake(&server, &mut sandbox, "pg_restore", script);
    let ended = backup.restore(&sandbox, &["--database", APP, "--replace"]).expect(0);
    assert!(ended.stderr.contains("warning: pg_restore: warning: only that"), "{}", ended.stderr);
}

#[test]
fn a_full_disk_fails_the_load_and_nothing_else() {
    let server = Server::start_with_small_disk(30_000);
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    let place = server.small_disk();
    server.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", place.display()));
    server.sql("postgres", "ALTER DATABASE app SET TABLESPACE small");
    server.sql(
        APP,
        "CREATE TABLE t AS SELECT n AS a, md5(n::text) || repeat('x', 100) AS b FROM generate_series(1, 70000) n",
    );
    let rows = "SELECT count(*), sum(a) FROM t";
    let content = server.sql(APP, rows);
    for form in FORMS {
        let backup = back_up(&sandbox, APP, form);
        let mut session = server.session(APP);
        session.sql("SELECT 1");
        for way in [&["--replace"][..], &["--replace", "--in-place"]] {
            if way.len() == 2 && form[1] == "plain" {
                continue;
            }
            let args = [&["--database", APP][..], way].concat();
            let ended = backup.restore(&sandbox, &args).expect(1);
            assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
            // In place the open session is a warning.
            assert_eq!(lines(&ended.stderr).len(), way.len(), "{}", ended.stderr);
            if way.len() == 1 {
                session.sql("SELECT 1");
            }
            assert_eq!(server.sql(APP, rows), content, "{form:?}");
            assert_eq!(databases(&server), [APP]);
        }
    }
}
