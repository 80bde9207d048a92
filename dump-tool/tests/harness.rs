//! Runs the binary in a folder of its own, and makes what it works on.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bk_manifest::atomic::{self, Existing};
use bk_manifest::entry::Entry;
use bk_manifest::manifest::{Application, Backup, EndRun, Header, Run, Trailer};
use bk_manifest::path::RelPath;
use bk_manifest::stream::{Format, Reader, Writer};
use rusqlite::Connection;
use tempfile::TempDir;

/// A folder with a stage, and the tool to run in it.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
}

pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Bench { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn stage(&self) -> PathBuf {
        self.path("stage")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
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

    pub(crate) fn start(&self, args: &[&str], input: &[u8]) -> Child {
        let mut child = self.command(args).spawn().unwrap();
        // It may have ended without reading.
        let _ = child.stdin.take().unwrap().write_all(input);
        child
    }

    pub(crate) fn run(&self, args: &[&str], input: &[u8]) -> Outcome {
        let output = self.start(args, input).wait_with_output().unwrap();
        Outcome {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap()),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A run that must work and say nothing; returns its document.
    pub(crate) fn works(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let outcome = self.run(args, input);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
        outcome.stdout
    }

    /// A run that must fail with this code, one line of error, no ended document and no dump left.
    pub(crate) fn fails(&self, args: &[&str], input: &[u8], code: i32, says: &str) {
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

    pub(crate) fn staged_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.stage()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if entry.file_name() != bk_manifest::scan::STAGE_MARKER {
                    found.push(entry.path());
                }
            }
        }
        found
    }

    /// Does what push and fetch do: puts the staged files where restore looks for them.
    pub(crate) fn fetch(&self, document: &[u8]) -> PathBuf {
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

pub(crate) fn header() -> Header {
    let backup = Backup {
        id: "backup-20260428-022150-a1b2c3d4".into(),
        timestamp: "2026-04-28T02:21:50.000Z".into(),
        ..Backup::default()
    };
    let application = Application { name: "app".into(), version: None };
    Header::new(&application, Some(&backup), &Run::default())
}

pub(crate) fn begun() -> Vec<u8> {
    let mut trailer = Trailer::default();
    trailer.set_run(&EndRun::default());
    Writer::new(Vec::new(), Format::Json, header()).unwrap().end(trailer).unwrap().0
}

pub(crate) fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    atomic::create(path, bytes, 0o600, Existing::Replace).unwrap();
}

pub(crate) fn entries(document: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(document).unwrap();
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

/// A bank whose accounts always add up, and enough beside it for the copy to take some time.
pub(crate) fn bank(path: &Path, journal: &str) -> Connection {
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
