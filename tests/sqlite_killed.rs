//! SQLite databases whose writer, dump or restore is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::harness::{Random, Sandbox, files_below, is_sealed};
use crate::sqlite::{
    DEPOSITS, DUMP, NEW, PATIENCE, PUSH, Writer, all_ok, balance, bank, deposit, lines, record,
    recorded, restore, staged,
};

#[test]
fn what_a_killed_writer_left_is_read_as_the_application_would() {
    let mut random = Random::from_run();
    for journal in ["wal", "delete"] {
        let sandbox = Sandbox::new();
        let path = bank(&sandbox, journal, 50);
        for round in 0..6 {
            let writer = Writer::start(&path, DEPOSITS);
            let began = Instant::now();
            while Connection::open(&path)
                .and_then(|database| {
                    database.busy_timeout(PATIENCE)?;
                    database.query_row("SELECT n > ?1 FROM total", [round * 3], |row| row.get(0))
                })
                .is_ok_and(|is_at_work: bool| !is_at_work)
            {
                assert!(began.elapsed() < PATIENCE, "the writer does not write");
            }
            std::thread::sleep(Duration::from_millis(random.below(60)));
            drop(writer);
            let ended = sandbox.pipe(&[NEW, DUMP, PUSH]);
            let copied = if ended[1].code == 0 {
                let name = format!("restored-{round}.db");
                Some(balance(&restore(&sandbox, &ended[2].stdout, &name)))
            } else {
                // A transaction that must be rolled back first, which a reader does not do.
                assert_eq!(ended[1].code, 1);
                assert_eq!(lines(&ended[1].stderr).len(), 1, "{}", ended[1].stderr);
                assert!(ended[1].stderr.contains("after a crash"), "{}", ended[1].stderr);
                assert_eq!(ended[2].code, 21);
                assert_eq!(journal, "delete", "{}", ended[1].stderr);
                None
            };
            // What the application finds when it comes back.
            let found = balance(&path);
            assert!(copied.is_none_or(|copied| copied == found), "{copied:?}, not {found}");
        }
        let document = all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout;
        assert_eq!(balance(&restore(&sandbox, &document, "last.db")), balance(&path));
    }
}

#[test]
fn a_killed_dump_leaves_no_backup_and_no_lock() {
    let mut random = Random::from_run();
    let sandbox = Sandbox::new();
    let path = bank(&sandbox, "wal", 300);
    let mut database = Connection::open(&path).unwrap();
    let began = Instant::now();
    all_ok(sandbox.pipe(&[NEW, DUMP, PUSH]));
    let length = u64::try_from(began.elapsed().as_millis()).unwrap();
    let mut backups = 1;
    for round in 0..8 {
        let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
        fs::write(sandbox.path("new"), new).unwrap();
        let mut dump = sandbox
            .command(DUMP[0])
            .args(&DUMP[1..])
            .stdin(fs::File::open(sandbox.path("new")).unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut push = sandbox
            .command(PUSH[0])
            .args(&PUSH[1..])
            .stdin(dump.stdout.take().unwrap())
            .stdout(Stdio::null())
            .stderr(fs::File::create(sandbox.path("tmp/said")).unwrap())
            .spawn()
            .unwrap();
        let moment = random.below(length);
        std::thread::sleep(Duration::from_millis(moment));
        dump.kill().unwrap();
        dump.wait().unwrap();
        match push.wait().unwrap().code() {
            // It had ended its document just before.
            Some(0) => backups += 1,
            code => {
                let said = fs::read_to_string(sandbox.path("tmp/said")).unwrap();
                assert_eq!(code, Some(21), "round {round}, killed after {moment} ms: {said}");
            }
        }
        assert_eq!(sandbox.backups().len(), backups);
        deposit(&mut database).unwrap();
        database
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
            .unwrap();
    }
    let document = all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout;
    let mut left = staged(&sandbox);
    left.retain(|file| !is_sealed(file));
    assert_eq!(left, Vec::<PathBuf>::new(), "it was not swept");
    assert_eq!(balance(&restore(&sandbox, &document, "restored.db")), 8);
}

#[test]
fn writer_and_backup_are_killed_and_the_next_backup_is_good() {
    let mut random = Random::from_run();
    for journal in ["wal", "delete"] {
        let sandbox = Sandbox::new();
        let path = bank(&sandbox, journal, 100);
        for round in 0..10 {
            let mut writer = Some(Writer::start(&path, DEPOSITS));
            let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
            fs::write(sandbox.path("new"), new).unwrap();
            let mut dump = sandbox
                .command(DUMP[0])
                .args(&DUMP[1..])
                .stdin(fs::File::open(sandbox.path("new")).unwrap())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // The one or the other first, somewhere in what takes some tenths of a second.
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(random.below(200)));
                if random.below(2) == 0 {
                    writer.take();
                } else {
                    dump.kill().unwrap();
                }
            }
            dump.kill().unwrap();
            dump.wait().unwrap();
            drop(writer);
            // The application comes back first, which also rolls back what was not committed.
            let found = balance(&path);
            let document = all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout;
            let restored = restore(&sandbox, &document, &format!("restored-{round}.db"));
            assert_eq!(balance(&restored), found);
            assert_eq!(recorded(&sandbox, &restored), record(&document)["tables"]);
        }
    }
}

/// Balances of a database and of those put aside, each looked at in a copy: opening one changes it.
fn balances(sandbox: &Sandbox) -> (Option<i64>, Vec<i64>) {
    let copy = tempfile::tempdir_in(sandbox.path("tmp")).unwrap();
    for file in files_below(&sandbox.path("data")) {
        fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let is_side = |path: &Path| {
        ["-wal", "-shm", "-journal"].iter().any(|side| path.to_str().unwrap().ends_with(side))
    };
    let mut aside: Vec<PathBuf> = files_below(copy.path());
    aside.retain(|path| path.to_str().unwrap().contains("app.db.before-") && !is_side(path));
    let place = copy.path().join("app.db");
    let place = place.exists().then(|| balance(&place));
    (place, aside.iter().map(|path| balance(path)).collect())
}

#[test]
fn a_restore_that_is_killed_at_any_step_mixes_nothing_and_is_run_again() {
    let sandbox = Sandbox::new();
    let path = bank(&sandbox, "wal", 1);
    let document = all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout;
    sandbox.fetch(&document, "back");
    fs::write(sandbox.path("document"), &document).unwrap();
    // What a crash leaves: the main file knows nothing of what its -wal holds.
    let mut database = Connection::open(&path).unwrap();
    database.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    for _ in 0..3 {
        deposit(&mut database).unwrap();
    }
    let old: Vec<(PathBuf, Vec<u8>)> = files_below(&sandbox.path("data"))
        .into_iter()
        .map(|file| (file.clone(), fs::read(file).unwrap()))
        .collect();
    assert_eq!(old.len(), 3);
    drop(database);
    let target = path.to_str().unwrap();
    let replace = ["restore", "--from", "back", "--to", target, "--replace"];
    let mut kills = 0;
    let mut states = std::collections::BTreeSet::new();
    let calls = ["fsync", "linkat", "rename", "renameat2", "unlink", "write", "pwrite64"];
    for call in calls {
        for number in 1.. {
            fs::remove_dir_all(sandbox.path("data")).unwrap();
            fs::create_dir(sandbox.path("data")).unwrap();
            for (file, bytes) in &old {
                fs::write(file, bytes).unwrap();
            }
            let inject = format!("inject={call}:signal=KILL:when={number}");
            let log = sandbox.path("tmp/trace");
            let log = log.to_str().unwrap();
            let strace =
                ["-f", "-o", log, "-e", &format!("trace={call}"), "-e", &inject, "bk-dump"];
            let ended = sandbox.run("strace", &[&strace[..], &replace].concat(), &document);
            let (place, aside) = balances(&sandbox);
            let step = format!("{call} {number}: {place:?} and {aside:?}");
            let is_new =
                fs::read(&path).is_ok_and(|bytes| old.iter().all(|(_, old)| *old != bytes));
            for (side, _) in old.iter().filter(|(file, _)| *file != path) {
                assert!(!is_new || !side.exists(), "{step}: {side:?} lies beside the new file");
            }
            assert!(place.is_none_or(|found| found == 0 || found == 3), "{step}");
            assert!(place == Some(3) || aside == [3], "the old one is lost: {step}");
            if ended.code == 0 {
                assert_eq!((place, &aside[..]), (Some(0), &[3][..]), "{step}");
                break;
            }
            assert_eq!(ended.code, 137, "{step}: {}", ended.stderr);
            kills += 1;
            states.insert((place, aside.len()));
            sandbox.run("bk-dump", &replace, &document).expect(0);
            let (place, aside) = balances(&sandbox);
            assert_eq!(place, Some(0), "{step}");
            assert!(aside.contains(&3), "{step}, then {aside:?}");
            for file in files_below(&sandbox.path("data")) {
                let name = file.to_str().unwrap();
                assert!(!name.contains(".bk-tmp-"), "{step}: {name} is left");
                let is_lone =
                    name.strip_suffix("-wal").is_some_and(|main| !Path::new(main).exists());
                assert!(!is_lone, "{step}: {name} is left without its database");
            }
        }
    }
    assert!(kills > 10, "only {kills} steps");
    // Before, in between, and after.
    let seen: Vec<_> = states.into_iter().collect();
    assert_eq!(seen, [(None, 1), (Some(0), 1), (Some(3), 0)]);
}
