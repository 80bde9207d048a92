//! What goes wrong while a database is dumped, and damaged dumps: in every format a failure with its
//! cause in one line, no backup, nothing staged, no session left on the server, earlier backups fine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Random, Sandbox, files_below, run};
use crate::interrupt::with_small_disk;
use crate::postgres::{
    ADD, DUMP, EVERYTHING, HEAVY, NEW, PUSH, Step, assert_nothing_new, back_up, bench, fake_dump,
    lines, restore, spawn_pipe, spawn_pipe_of, staged, wait_until,
};
use crate::postgres_cut::{FORMATS, back_up_as, dump_step};
use crate::server::{APP, ENCODED_PASSWORD, Server};

/// Rows that take a moment to dump, and few bytes to keep; in two tables, for two jobs.
const LONG: &str = "CREATE TABLE a (n int, long text); CREATE TABLE b (n int, long text); \
    ALTER TABLE a ALTER long SET STORAGE EXTERNAL; ALTER TABLE b ALTER long SET STORAGE EXTERNAL; \
    INSERT INTO a SELECT n, repeat(md5(n::text), 32768) FROM generate_series(1, 100) n; \
    INSERT INTO b SELECT * FROM a";

/// Ends when some session waits for a lock, which is where the tests hold a dump up.
const WAITING: &str =
    "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'app'";

/// A dump that was made to fail left nothing but one line that says why.
#[track_caller]
fn assert_failed(
    (mut dump, mut push): (Step, Step),
    expected: i32,
    causes: &[&str],
    (server, sandbox, earlier): (&Server, &Sandbox, &[u8]),
) {
    let (code, said) = dump.end();
    assert_eq!(code, Some(expected), "{said}");
    assert_eq!(lines(&said).len(), 1, "{said}");
    assert!(causes.iter().any(|cause| said.contains(cause)), "{said}");
    assert_eq!(push.wait().unwrap().code(), Some(21));
    wait_until("the server is there", || server.try_sql("postgres", "SELECT 1").code == 0);
    server.wait_until_idle();
    assert_nothing_new(sandbox, earlier);
}

/// Where `pg_dump` waits before it begins, while the snapshot is held.
struct Gate(PathBuf);

impl Gate {
    fn new(server: &Server, sandbox: &mut Sandbox) -> Self {
        let gate = sandbox.path("gate");
        // The folder goes with the test, also one that failed.
        let script = format!(
            "touch '{0}.reached'; while [ ! -e '{0}' ] && [ -d '{1}' ]; do sleep 0.01; done; \
             exec \"$real\" \"$@\"",
            gate.display(),
            sandbox.path("src").display(),
        );
        fake_dump(server, sandbox, &script);
        Gate(gate)
    }

    fn wait_until_reached(&self) {
        let reached = self.0.with_extension("reached");
        wait_until("the snapshot is held and pg_dump is to begin", || reached.exists());
    }

    fn open(&self) {
        fs::write(&self.0, "").unwrap();
    }

    fn close(&self) {
        fs::remove_file(&self.0).unwrap();
        fs::remove_file(self.0.with_extension("reached")).unwrap();
    }
}

/// A dump is at work: some of it lies in the stage.
fn wait_until_half_way(sandbox: &Sandbox) {
    wait_until("some of the dump is written", || {
        let sizes = staged(sandbox).into_iter().map(|file| file.metadata().map_or(0, |m| m.len()));
        sizes.sum::<u64>() > 10_000
    });
}

#[test]
fn a_dump_whose_server_is_killed_becomes_no_backup() {
    let causes = [
        "server closed the connection unexpectedly",
        "terminating connection",
        "connection to server was lost",
    ];
    let (mut server, mut sandbox) = bench(LONG);
    let sums = "SELECT count(*), md5(string_agg(md5(long), '' ORDER BY n)) FROM a";
    let before = server.sql(APP, sums);
    for (name, format) in FORMATS {
        let step = dump_step(APP, &[format, &["--compress", "none"]].concat());
        let earlier = back_up_as(&sandbox, APP, format);
        // One session, as the kernel does when memory is short: the server ends all others.
        let pipe = spawn_pipe_of(&sandbox, &step);
        wait_until_half_way(&sandbox);
        let dumping = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pg_dump' LIMIT 1";
        let pid = server.sql("postgres", dumping).parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert_failed(pipe, 1, &causes, (&server, &sandbox, &earlier));
        // All of it.
        let pipe = spawn_pipe_of(&sandbox, &step);
        wait_until_half_way(&sandbox);
        server.crash();
        server.restart();
        server.known_to(&mut sandbox);
        assert_failed(pipe, 1, &causes, (&server, &sandbox, &earlier));
        assert_eq!(server.sql(APP, sums), before, "{name}");
        let verify = ["--from", "dest", "--level", "content"];
        sandbox.run("bk-verify", &verify, &earlier).expect(0);
    }
}

#[test]
fn timeouts_that_were_set_for_an_application_do_not_end_a_dump() {
    let (server, mut sandbox) = bench("CREATE TABLE t AS SELECT 1 AS n");
    let content = server.content(APP);
    for setting in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    ] {
        server.sql("postgres", &format!("ALTER DATABASE {APP} SET {setting} = '300ms'"));
    }
    let ended = server.try_sql(APP, "SELECT pg_sleep(30)");
    assert!(ended.stderr.contains("statement timeout"), "{}", ended.stderr);
    let gate = Gate::new(&server, &mut sandbox);
    for (name, format) in FORMATS {
        let (mut dump, mut push) = spawn_pipe_of(&sandbox, &dump_step(APP, format));
        gate.wait_until_reached();
        // The session that holds the snapshot has been idle three times too long.
        let idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' \
                    AND datname = 'app' AND clock_timestamp() - state_change > interval '900 ms'";
        server.wait_for(idle, "1");
        let mut lock = server.session("postgres");
        lock.sql(&format!("\\c {APP}\nSET idle_in_transaction_session_timeout = 0"));
        lock.sql("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE");
        gate.open();
        // A statement has lasted three times too long.
        let long = format!("{WAITING} AND clock_timestamp() - query_start > interval '900 ms'");
        server.wait_for(&long, "t");
        gate.close();
        drop(lock);
        assert_eq!(dump.end(), (Some(0), String::new()), "{name}");
        assert!(push.wait().unwrap().success(), "{name}");
        server.wait_until_idle();
        restore(&sandbox, &sandbox.latest(), name);
        server.sql("postgres", &format!("ALTER DATABASE {name} RESET ALL"));
        assert_eq!(server.content(name), content, "{name}");
    }
}

#[test]
fn a_lock_held_too_long_fails_the_dump() {
    let (server, sandbox) =
        bench("CREATE TABLE a AS SELECT 1 AS n; CREATE TABLE b AS SELECT 2 AS n");
    let earlier = back_up_as(&sandbox, APP, &[]);
    let mut lock = server.session(APP);
    lock.sql("BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE");
    for (_, format) in FORMATS {
        let step = dump_step(APP, &[format, &["--lock-timeout", "1"]].concat());
        let (mut dump, mut push) = spawn_pipe_of(&sandbox, &step);
        let (code, said) = dump.end();
        assert_eq!(code, Some(1), "{said}");
        assert_eq!(lines(&said).len(), 1, "{said}");
        let causes = ["due to statement timeout", "due to lock timeout"];
        assert!(causes.iter().any(|cause| said.contains(cause)), "{said}");
        assert_eq!(push.wait().unwrap().code(), Some(21));
        assert_nothing_new(&sandbox, &earlier);
        // The one that holds the lock is all that is left.
        server.wait_for(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            "1",
        );
    }
    drop(lock);
    let waits = dump_step(APP, &["--lock-timeout", "30"]);
    assert_eq!(spawn_pipe_of(&sandbox, &waits).0.end(), (Some(0), String::new()));
}

#[test]
fn a_table_that_is_dropped_before_it_is_locked_fails_the_dump() {
    let (server, sandbox) = bench("CREATE TABLE a AS SELECT 1 AS n");
    let earlier = back_up_as(&sandbox, APP, &[]);
    for (_, format) in FORMATS {
        server.sql(APP, "CREATE TABLE b AS SELECT 2 AS n");
        let mut other = server.session(APP);
        other.sql("BEGIN; DROP TABLE b");
        let pipe = spawn_pipe_of(&sandbox, &dump_step(APP, format));
        server.wait_for(WAITING, "t");
        other.sql("COMMIT");
        drop(other);
        let causes = ["relation \"public.b\" does not exist"];
        assert_failed(pipe, 1, &causes, (&server, &sandbox, &earlier));
    }
}

/// A migration: it waits until nobody reads the table, and all who come later wait for it.
fn spawn_migration(server: &Server) -> Step {
    let alter = ["-X", "-q", "-d", APP, "-c", "ALTER TABLE a ADD later int"];
    Step(server.command("psql").args(alter).spawn().unwrap())
}

#[test]
fn a_migration_that_waits_for_a_table_does_not_hang_the_dump() {
    let (server, mut sandbox) =
        bench("CREATE TABLE a AS SELECT 1 AS n; CREATE TABLE b AS SELECT 2");
    let gate = Gate::new(&server, &mut sandbox);
    for (name, format) in FORMATS {
        let (mut dump, mut push) = spawn_pipe_of(&sandbox, &dump_step(APP, format));
        gate.wait_until_reached();
        let mut migration = spawn_migration(&server);
        wait_until("the migration is done, or waits", || {
            migration.try_wait().unwrap().is_some() || server.sql(APP, WAITING) == "t"
        });
        gate.open();
        wait_until("the dump ends", || dump.try_wait().unwrap().is_some());
        assert_eq!(dump.end(), (Some(0), String::new()), "{name}");
        assert!(push.wait().unwrap().success(), "{name}");
        wait_until("the migration is done", || migration.try_wait().unwrap().is_some());
        gate.close();
        restore(&sandbox, &sandbox.latest(), name);
        let columns = "SELECT string_agg(attname, ' ') FROM pg_attribute \
            WHERE attrelid = 'a'::regclass AND attnum > 0";
        assert_eq!(server.sql(name, columns), "n", "{name}: the snapshot was before the migration");
        server.sql(APP, "ALTER TABLE a DROP later");
        server.sql(APP, "DROP TABLE a; CREATE TABLE a AS SELECT 1 AS n");
    }
}

#[test]
fn a_table_that_is_emptied_before_it_is_locked_makes_the_backup_partial() {
    let (server, mut sandbox) =
        bench("CREATE TABLE a AS SELECT 1 AS n; CREATE TABLE b AS SELECT 2 AS n");
    let gate = Gate::new(&server, &mut sandbox);
    for (name, format) in FORMATS {
        let (mut dump, mut push) = spawn_pipe_of(&sandbox, &dump_step(APP, format));
        gate.wait_until_reached();
        // TRUNCATE heeds no snapshot: for pg_dump the table is empty from now on.
        server.sql(APP, "TRUNCATE a");
        gate.open();
        let (code, said) = dump.end();
        assert!(said.contains("public.a") && code == Some(3), "{name}: {code:?}: {said}");
        assert_eq!(push.wait().unwrap().code(), Some(3), "{name}");
        gate.close();
        server.sql(APP, "INSERT INTO a VALUES (1)");
    }
}

#[test]
fn a_lock_that_comes_between_the_jobs_of_a_dump_is_named() {
    let (server, sandbox) =
        bench("CREATE TABLE a AS SELECT 1 AS n; CREATE TABLE b AS SELECT 2 AS n");
    let earlier = back_up_as(&sandbox, APP, &[]);
    let mut lock = server.session(APP);
    lock.sql("BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE");
    let pipe = spawn_pipe_of(&sandbox, &dump_step(APP, &["--format", "directory", "--jobs", "2"]));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    server.wait_for(&format!("{waiting} AND application_name = 'pg_dump'"), "1");
    // pg_dump's first session holds the table already; its second one cannot pass by the migration.
    let mut migration = spawn_migration(&server);
    server.wait_for(&format!("{waiting} AND query LIKE 'ALTER TABLE%'"), "1");
    drop(lock);
    let causes = ["could not obtain lock on relation \"public.a\""];
    assert_failed(pipe, 1, &causes, (&server, &sandbox, &earlier));
    wait_until("the migration is done", || migration.try_wait().unwrap().is_some());
}

#[test]
fn a_role_without_its_rights_is_told_what_it_may_not() {
    let (server, mut sandbox) = bench(
        "CREATE TABLE kept (n int); CREATE TABLE lent (n int); GRANT SELECT ON lent TO \"app owner\"",
    );
    let earlier = back_up_as(&sandbox, APP, &[]);
    for (name, _) in server.variables() {
        sandbox.set(name, "");
    }
    let right = server.url();
    let wrong = right.replace(ENCODED_PASSWORD, "wrong");
    for (url, cause) in [
        (right, "permission denied for table kept"),
        (wrong, "password authentication failed for user \"app owner\""),
    ] {
        sandbox.set("DATABASE_URL", url);
        for (_, format) in FORMATS {
            let pipe = spawn_pipe_of(&sandbox, &dump_step(APP, format));
            assert_failed(pipe, 12, &[cause], (&server, &sandbox, &earlier));
        }
    }
}

#[test]
fn a_stage_that_fills_up_fails_the_dump() {
    // Small in the database, for it compresses; large in a dump that does not.
    let (server, mut sandbox) = bench(
        "CREATE TABLE t AS SELECT n, repeat('x', 1000000) AS long FROM generate_series(1, 80) n",
    );
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    fs::write(sandbox.path("new.json"), new).unwrap();
    sandbox.set("BK_STAGE", "small/stage");
    for (name, format) in FORMATS {
        let step = dump_step(APP, &[format, &["--compress", "none"]].concat()).join(" ");
        let script = format!(
            "{step} < new.json > out.json; echo $?; find small -type f ! -name '.*' | wc -l"
        );
        for (kilobytes, cause) in [(32_000, "No space left on device"), (2_000, "are needed")] {
            let ended = with_small_disk(&sandbox, kilobytes, &script).expect(0);
            assert_eq!(ended.text(), "1\n0\n", "{name}: {}", ended.stderr);
            assert_eq!(lines(&ended.stderr).len(), 1, "{name}: {}", ended.stderr);
            assert!(ended.stderr.contains(cause), "{name}: {}", ended.stderr);
            server.wait_until_idle();
        }
    }
}

/// Changes a file a little: a bit is flipped, or some of its end is gone. Tells what was done.
fn damage(path: &Path, random: &mut Random) -> String {
    let mut bytes = fs::read(path).unwrap();
    let place = usize::try_from(random.below(bytes.len() as u64)).unwrap();
    let done = if random.below(2) == 0 {
        bytes[place] ^= 1 << random.below(8);
        format!("bit flipped at {place}")
    } else {
        bytes.truncate(place);
        format!("cut to {place}")
    };
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    format!("{}: {done}", path.display())
}

/// One of the files that hold something.
fn any_of(folder: &Path, random: &mut Random) -> PathBuf {
    let mut files = files_below(folder);
    files.retain(|file| file.metadata().unwrap().len() > 0);
    files.sort();
    files.swap_remove(usize::try_from(random.below(files.len() as u64)).unwrap())
}

#[test]
fn a_damaged_dump_is_told_by_every_reader() {
    let mut random = Random::from_run();
    let (server, sandbox) = bench(
        "CREATE TABLE a AS SELECT n, md5(n::text) AS noise FROM generate_series(1, 5000) n; \
         CREATE TABLE b AS SELECT * FROM a; CREATE TABLE empty (); SELECT lo_from_bytea(7, 'x')",
    );
    for compress in ["gzip", "none"] {
        for (name, format) in FORMATS {
            let document = back_up_as(&sandbox, APP, &[format, &["--compress", compress]].concat());
            let back = format!("back-{name}-{compress}");
            sandbox.fetch(&document, &back);
            let fetched = sandbox.path(&back).join(".bk/database");
            let stored = sandbox.backups().pop().unwrap().join("database");
            let dry_run = ["restore", "--from", &back, "--database", "new", "--dry-run"];
            let check = ["check", "--from", &back];
            let verify = ["--from", "dest", "--level", "content"];
            for (folder, program, args) in [
                (&fetched, "bk-dump", &check[..]),
                (&fetched, "bk-dump", &dry_run),
                (&stored, "bk-verify", &verify),
            ] {
                for _ in 0..4 {
                    let file = any_of(folder, &mut random);
                    let whole = fs::read(&file).unwrap();
                    let done = damage(&file, &mut random);
                    let ended = sandbox.run(program, args, &document);
                    let what = format!("{program} {args:?} {done}: {}", ended.stderr);
                    assert!([20, 21].contains(&ended.code), "{what}");
                    let is_error = |line: &&&str| line.contains("error: ");
                    assert_eq!(lines(&ended.stderr).iter().filter(is_error).count(), 1, "{what}");
                    fs::write(&file, whole).unwrap();
                }
                let ended = sandbox.run(program, args, &document);
                assert_eq!(ended.code, 0, "{program} {args:?}: {}", ended.stderr);
            }
        }
    }
    let databases = "SELECT count(*) FROM pg_database WHERE datname = 'new'";
    assert_eq!(server.sql("postgres", databases), "0");
}

#[test]
fn a_cut_dump_is_told_without_its_manifest() {
    let mut random = Random::from_run();
    let (_server, sandbox) = bench(
        "CREATE TABLE a AS SELECT n, md5(n::text) AS noise FROM generate_series(1, 5000) n; \
         SELECT lo_from_bytea(7, 'x')",
    );
    for compress in ["gzip", "none"] {
        for (name, format) in FORMATS {
            let document = back_up_as(&sandbox, APP, &[format, &["--compress", compress]].concat());
            let back = format!("back-{name}-{compress}");
            sandbox.fetch(&document, &back);
            let folder = sandbox.path(&back).join(".bk/database");
            let dump = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
            let check = ["check", dump.to_str().unwrap()];
            sandbox.run("bk-dump", &check, b"").expect(0);
            for file in files_below(&folder) {
                let whole = fs::read(&file).unwrap();
                // Nothing says how long a large object is that is not compressed.
                if file.ends_with("blob_7.dat") {
                    continue;
                }
                // Empty lines at the end of plain SQL are no loss.
                let end = whole.len() - if compress == "none" { 2 } else { 0 };
                for cut in
                    [0, 1, end / 2, end - 1, usize::try_from(random.below(end as u64)).unwrap()]
                {
                    fs::write(&file, &whole[..cut]).unwrap();
                    let ended = sandbox.run("bk-dump", &check, b"");
                    let what = format!("{} cut to {cut}: {}", file.display(), ended.stderr);
                    assert_eq!(ended.code, 20, "{what}");
                    assert!(lines(&ended.stderr).len() <= 1, "{what}");
                }
                fs::write(&file, &whole).unwrap();
            }
        }
    }
}

#[test]
fn a_dump_whose_backend_is_terminated_becomes_no_backup() {
    let (server, sandbox) = bench(HEAVY);
    let earlier = back_up(&sandbox);
    for half_way in [false, true] {
        let mut lock = server.session(APP);
        if !half_way {
            lock.sql("BEGIN; LOCK TABLE heavy IN ACCESS EXCLUSIVE MODE");
        }
        let (mut dump, mut push) = spawn_pipe(&sandbox);
        if half_way {
            wait_until("some of the dump is written", || {
                staged(&sandbox)
                    .iter()
                    .any(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 1 << 20))
            });
        } else {
            server.wait_for(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' \
                 AND wait_event_type = 'Lock'",
                "1",
            );
        }
        server.sql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'",
        );
        let (code, said) = dump.end();
        assert_eq!(code, Some(1), "{said}");
        assert_eq!(lines(&said).len(), 1, "{said}");
        let words = ["terminating connection", "server closed the connection"];
        assert!(words.iter().any(|words| said.contains(words)), "{said}");
        assert_eq!(push.wait().unwrap().code(), Some(21));
        assert_nothing_new(&sandbox, &earlier);
        drop(lock);
        server.wait_until_idle();
    }
    restore(&sandbox, &back_up(&sandbox), "again");
    assert_eq!(server.content("again"), server.content(APP));
}

#[test]
fn output_of_pg_dump_that_cannot_be_restored_is_refused() {
    let (server, mut sandbox) = bench(EVERYTHING);
    let earlier = back_up(&sandbox);
    let length = {
        let mut command = server.command("pg_dump");
        run(command.args(["--format=custom", APP]), b"").ok().stdout.len()
    };
    let cut = |bytes: usize| format!("\"$real\" \"$@\" | head -c {bytes}");
    for (script, words) in [
        (cut(length - 1), "cannot be read again"),
        (cut(length / 2), "cannot be read again"),
        (cut(100), "cannot be read again"),
        ("exit 0".to_owned(), "cannot be read again"),
        ("echo 'pg_dump: error: no'".to_owned(), "cannot be read again"),
        // A terminal's line ends.
        ("\"$real\" \"$@\" | sed 's/$/\\r/'".to_owned(), "cannot be read again"),
        // It looks whole, but the program was not content with it.
        ("\"$real\" \"$@\"; echo 'pg_dump: error: at last' >&2; exit 1".to_owned(), "at last"),
        ("\"$real\" \"$@\"; exit 3".to_owned(), "said nothing"),
        ("\"$real\" \"$@\"; kill -9 $$".to_owned(), "signal: 9"),
    ] {
        fake_dump(&server, &mut sandbox, &script);
        let ended = sandbox.pipe(&[NEW, DUMP, ADD, PUSH]);
        assert_eq!(ended[1].code, 1, "{script}: {}", ended[1].stderr);
        assert_eq!(lines(&ended[1].stderr).len(), 1, "{script}: {}", ended[1].stderr);
        assert!(ended[1].stderr.contains(words), "{script}: {}", ended[1].stderr);
        // It is 1 where the dump has failed, and taken its folder along, before push opens that.
        assert_eq!(ended[3].code, 21, "{script}: {}", ended[3].stderr);
        assert_nothing_new(&sandbox, &earlier);
        server.wait_until_idle();
    }
}
