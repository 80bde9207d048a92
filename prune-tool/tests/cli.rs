//! The command line of `bk-prune`, and a run in a pipe, through the real binary.

#![expect(clippy::unwrap_used, reason = "what a helper cannot do, the test cannot either")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bk_manifest::digest::Digest;
use bk_manifest::manifest::{
    Application, Backup, Component, EndRun, Header, ObjectRecord, Proof, Pushed, Run, Status,
    Trailer,
};
use bk_manifest::progress::human_bytes;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use bk_push::store::Store;
use serde_json::{Map, json};

fn prune(folder: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bk-prune"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("TMPDIR", std::env::temp_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without having read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A destination `dest` with a backup on each of these days of April 2026, each with one object.
fn destination(folder: &Path, grace: Duration, days: &[u32]) -> Store {
    let (store, _) = Store::init(
        folder.join("dest").to_str().unwrap(),
        &bk_push::access::Access::default(),
        grace,
    )
    .unwrap();
    for day in days {
        let (header, trailer) = manifest(*day);
        let place = place(*day);
        put(&store, &format!("{place}/files/000001.tar.zst"), b"volume");
        put(&store, &format!("{place}/SHA256SUMS"), b"sums");
        let writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        put(&store, &format!("{place}/manifest.json"), &writer.end(trailer).unwrap().0);
    }
    store
}

fn put(store: &Store, name: &str, bytes: &[u8]) {
    let mut upload = store.destination.put(name, bytes.len() as u64).unwrap();
    upload.write_all(bytes).unwrap();
    upload.commit().unwrap();
}

fn id(day: u32) -> String {
    format!("backup-202604{day:02}-020000-00000000")
}

fn place(day: u32) -> String {
    format!("2026/04/{day:02}/{}", id(day))
}

fn manifest(day: u32) -> (Header, Trailer) {
    let application = Application { name: "app".into(), version: None };
    let backup = Backup {
        id: id(day),
        kind: Some("full".into()),
        timestamp: format!("2026-04-{day:02}T02:00:00.000Z"),
        ..Backup::default()
    };
    let mut header = Header::new(&application, Some(&backup), &Run::default()).stored();
    header.set("chain", json!({}));
    let mut trailer = Trailer::default();
    trailer.set_components(&[Component {
        name: "files".into(),
        kind: "tree".into(),
        status: Status::Complete,
        extra: Map::new(),
    }]);
    trailer.set(
        "objects",
        json!([ObjectRecord {
            backup: None,
            checksum: Digest::of(b"volume"),
            encryption: None,
            live: 1,
            object: "files/000001.tar.zst".into(),
            size: 6,
            extra: Map::new(),
        }]),
    );
    (header, trailer)
}

/// What push and verify would hand on for the backup of a day.
struct Piped {
    header: Header,
    trailer: Trailer,
    run: Run,
    end: EndRun,
}

impl Piped {
    fn new(day: u32) -> Self {
        let (header, trailer) = manifest(day);
        let writer = Writer::new(Vec::new(), Format::Json, header.clone()).unwrap();
        let (_, written) = writer.end(trailer.clone()).unwrap();
        let proof = |level: &str, scope: &str| Proof {
            total_checksum: written.total_checksum().unwrap(),
            level: level.into(),
            scope: scope.into(),
            time: Time::from_unix(1_777_000_000, 0),
            host: "vm1".into(),
        };
        let end = EndRun {
            pushed: Some(Pushed { id: id(day), ..Pushed::default() }),
            proofs: vec![proof("present", "all"), proof("stored", "own")],
            ..EndRun::default()
        };
        let run = Run { place: Some(format!("{}/manifest.json", place(day))), ..Run::default() };
        Piped { header, trailer, run, end }
    }

    fn bytes(mut self) -> Vec<u8> {
        self.header.set_run(&self.run);
        self.trailer.set_run(&self.end);
        let writer = Writer::new(Vec::new(), Format::Json, self.header).unwrap();
        writer.end(self.trailer).unwrap().0
    }
}

/// Bytes of all that the backup of a day has at the destination.
fn freed(folder: &Path, day: u32) -> u64 {
    files(&folder.join("dest").join(place(day))).values().map(|bytes| bytes.len() as u64).sum()
}

/// Every file at the destination with its content.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn help_shows_the_rules_and_the_codes() {
    let folder = tempfile::tempdir().unwrap();
    let output = prune(folder.path(), &["--help"], b"");
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for word in [
        "--from",
        "--keep-last",
        "--keep-daily",
        "--keep-weekly",
        "--keep-monthly",
        "--keep-yearly",
        "--keep-within",
        "--time-zone",
        "--week-start",
        "--dry-run",
        "--standalone",
        "--undelete",
        "BACKUP_DESTINATION_PATH",
        "BACKUP_RETENTION_DAYS",
        "Exit codes:",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(!help.contains("--now"), "{help}");
    let output = prune(folder.path(), &["--version"], b"");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("bk-prune 0."));
}

#[test]
fn a_wrong_command_line_is_2_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path(), Duration::ZERO, &[26, 27]);
    let before = files(folder.path());
    for arguments in [
        &["--from", "dest", "--standalone"][..],
        &["--from", "dest"],
        &["--standalone", "--keep-last", "1"],
        &["--from", "dest", "--standalone", "--keep-last", "0"],
        &["--from", "dest", "--standalone", "--keep-within", "30"],
        &["--from", "dest", "--standalone", "--keep-last", "1", "--time-zone", "Nowhere"],
        &["--from", "dest", "--standalone", "--keep-last", "1", "--week-start", "friday"],
        &["--from", "dest", "--standalone", "--keep-last", "1", "--series", "x"],
        &["--from", "ftp://host/x", "--standalone", "--keep-last", "1"],
    ] {
        let output = prune(folder.path(), arguments, b"");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(files(folder.path()), before);
}

#[test]
fn no_rule_is_2_even_behind_a_good_pipe() {
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path(), Duration::ZERO, &[26, 27]);
    let output = prune(folder.path(), &["--from", "dest"], &Piped::new(27).bytes());
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stderr),
        "bk-prune: error: no rule says what to keep\n\
         bk-prune: hint: give at least one, such as --keep-daily 7 --keep-weekly 4\n"
    );
}

#[test]
fn a_destination_that_is_not_there_is_10() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("unmounted")).unwrap();
    for name in ["unmounted", "nowhere"] {
        let output =
            prune(folder.path(), &["--from", name, "--standalone", "--keep-last", "1"], b"");
        assert_eq!(output.status.code(), Some(10), "{name}");
    }
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_run_in_a_pipe_removes_and_passes_the_document_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = destination(folder.path(), Duration::ZERO, &[25, 26, 27]);
    let freed = freed(folder.path(), 25);
    let mut piped = Piped::new(27);
    piped.end.code = 3;
    piped.run.destination = Some(store.marker.id.clone());
    let output = prune(folder.path(), &["--from", "dest", "--keep-last", "2"], &piped.bytes());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stderr),
        format!(
            "bk-prune: kept 2, marked 0, removed 1, freed {} in 3 objects\n",
            human_bytes(freed)
        )
    );
    let (_, trailer) = Reader::new(&output.stdout[..]).unwrap().end().unwrap();
    assert_eq!(
        trailer.run().unwrap().extra["pruned"],
        json!({
            "freed": freed, "freed_objects": 3, "kept": 2, "marked": [], "old_versions": 0,
            "old_versions_objects": 0, "removed": [id(25)]
        })
    );
    let left = files(&folder.path().join("dest/2026"));
    assert_eq!(left.len(), 6, "{:?}", left.keys());
    assert!(!left.keys().any(|name| name.contains(&id(25))));
}

#[test]
fn with_a_grace_time_backups_are_marked_and_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path(), Duration::from_hours(24), &[25, 26, 27]);
    let before = files(&folder.path().join("dest/2026"));
    let keep = &["--from", "dest", "--standalone", "--keep-last", "1"];
    let output = prune(folder.path(), keep, b"");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stderr),
        "bk-prune: kept 1, marked 2 (deleted by the first run after 24 h), removed 0, freed 0 B\n"
    );
    assert!(output.stdout.is_empty());
    assert_eq!(files(&folder.path().join("dest/2026")), before);
    let output = prune(folder.path(), &["--from", "dest", "--undelete"], b"");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), format!("{}  back\n{}  back\n", id(25), id(26)));
    let output = prune(folder.path(), &["--from", "dest", "--undelete"], b"");
    assert_eq!(text(&output.stdout), "no backup is marked\n");
}

#[test]
fn a_dry_run_says_why_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path(), Duration::ZERO, &[25, 26, 27]);
    let before = files(folder.path());
    let table = format!(
        "{}  2026-04-25 02:00:00+00:00  full  6 B  remove: no rule keeps it; deleted at once\n\
         {}  2026-04-26 02:00:00+00:00  full  6 B  keep: daily 2 of 2 (2026-04-26)\n\
         {}  2026-04-27 02:00:00+00:00  full  6 B  \
         keep: newest, newest complete files, daily 1 of 2 (2026-04-27)\n\
         would keep 2, mark 1 ({} in 3 objects, deleted at once)\n",
        id(25),
        id(26),
        id(27),
        human_bytes(freed(folder.path(), 25))
    );
    let arguments = &["--from", "dest", "--keep-daily", "2", "-n"][..];
    let output = prune(folder.path(), &[arguments, &["--standalone"]].concat(), b"");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), table.as_str()));
    assert!(output.stderr.is_empty());
    let piped = Piped::new(27).bytes();
    let output = prune(folder.path(), arguments, &piped);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), table.as_str()));
    assert_eq!(output.stdout, piped);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_document_without_proof_is_22_and_nothing_is_touched() {
    type Spoil = fn(&mut Piped);
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path(), Duration::ZERO, &[25, 26, 27]);
    let before = files(folder.path());
    let spoils: [(&str, Spoil); 10] = [
        ("not pushed", |piped| piped.end.pushed = None),
        ("pushed another", |piped| piped.end.pushed.as_mut().unwrap().id = id(26)),
        ("pushed elsewhere", |piped| piped.run.destination = Some("another".into())),
        ("no place", |piped| piped.run.place = None),
        ("another's place", |piped| {
            piped.run.place = Some(format!("{}/manifest.json", place(26)));
        }),
        ("a place that is empty", |piped| piped.run.place = Some("x/manifest.json".into())),
        ("not verified", |piped| piped.end.proofs.clear()),
        ("only presence", |piped| piped.end.proofs.truncate(1)),
        ("only a part", |piped| piped.end.proofs[1].scope = "selected".into()),
        ("proof of another", |piped| {
            piped.end.proofs[0].total_checksum = Digest::of(b"another");
        }),
    ];
    for (what, spoil) in spoils {
        let mut piped = Piped::new(27);
        spoil(&mut piped);
        let output = prune(folder.path(), &["--from", "dest", "--keep-last", "1"], &piped.bytes());
        assert_eq!(output.status.code(), Some(22), "{what}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{what}");
        assert_eq!(files(folder.path()), before, "{what}");
    }
}

#[test]
fn a_document_that_is_cut_or_altered_is_21_and_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path(), Duration::ZERO, &[26, 27]);
    let before = files(folder.path());
    let whole = Piped::new(27).bytes();
    let altered = text(&whole).replace("vm1", "vm2").replace("\"app\"", "\"apq\"").into_bytes();
    let cuts = (0..whole.len() - 2).step_by(97).map(|length| whole[..length].to_vec());
    for bytes in cuts.chain([altered]) {
        let output = prune(folder.path(), &["--from", "dest", "--keep-last", "1"], &bytes);
        assert_eq!(output.status.code(), Some(21), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(files(folder.path()), before);
}

#[test]
fn standalone_names_the_series_where_there_are_several() {
    let folder = tempfile::tempdir().unwrap();
    let store = destination(folder.path(), Duration::ZERO, &[26, 27]);
    let (mut header, trailer) = manifest(20);
    header.set("application", json!({"name": "other", "version": null}));
    let writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
    let name = format!("{}/manifest.json", place(20));
    put(&store, &format!("{}/files/000001.tar.zst", place(20)), b"volume");
    put(&store, &name, &writer.end(trailer).unwrap().0);
    let keep = ["--from", "dest", "--standalone", "--keep-last", "1"];
    let output = prune(folder.path(), &keep, b"");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("app, other"));
    let output = prune(folder.path(), &[&keep[..], &["--app", "nobody"]].concat(), b"");
    assert_eq!(output.status.code(), Some(13));
    let output = prune(folder.path(), &[&keep[..], &["--app", "app"]].concat(), b"");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let left = files(&folder.path().join("dest/2026"));
    assert!(!left.keys().any(|path| path.contains(&id(26))));
    assert!(left.keys().any(|path| path.contains(&id(20))));
}

#[test]
fn an_empty_destination_needs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path(), Duration::ZERO, &[]);
    let output = prune(folder.path(), &["--from", "dest", "--standalone", "--keep-last", "1"], b"");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
}
