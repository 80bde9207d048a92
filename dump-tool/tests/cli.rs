//! The command line of `bk-dump`, through the real binary.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "tests")]

mod archive;
mod harness;
mod sqlite;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::archive::config;
use crate::harness::{Bench, bank, begun, write};

/// A module that is not listed above would never run.
#[test]
fn no_test_file_is_forgotten() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    for file in fs::read_dir(folder).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "cli") else {
            continue;
        };
        assert!(include_str!("cli.rs").contains(&format!("mod {module};")), "{name}");
    }
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

#[test]
fn of_several_dumps_the_worst_decides() {
    let bench = Bench::new();
    write(&bench.path("cut.sql"), b"SELECT 1;\n");
    for files in [["cut.sql", "gone.sql"], ["gone.sql", "cut.sql"]] {
        let outcome = bench.run(&["check", files[0], files[1]], b"");
        assert_eq!(outcome.code, 20, "{files:?}: {}", outcome.stderr);
        for said in ["error: 'cut.sql': ", "warning: 'gone.sql': "] {
            assert!(outcome.stderr.contains(said), "{files:?}: {}", outcome.stderr);
        }
    }
}
