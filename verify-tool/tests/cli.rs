//! The command line of `bk-verify`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn bk_verify() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bk-verify"));
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null());
    command
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A manifest of an empty tree, with both sums.
fn manifest() -> Vec<u8> {
    use bk_manifest::manifest::{Application, Backup, Header, Run, Trailer};
    use bk_manifest::stream::{Format, Writer};
    let backup = Backup {
        id: "backup-20260428-000000-0000000b".into(),
        timestamp: "2026-04-28T00:00:00.000Z".into(),
        ..Backup::default()
    };
    let header = Header::new(&Application::default(), Some(&backup), &Run::default());
    Writer::new(Vec::new(), Format::Json, header).unwrap().end(Trailer::default()).unwrap().0
}

fn destination(folder: &Path) -> String {
    let name = folder.join("dest").to_str().unwrap().to_owned();
    bk_push::store::Store::init(
        &name,
        &bk_push::access::Access::default(),
        std::time::Duration::from_mins(1),
    )
    .unwrap();
    name
}

#[test]
fn help_names_levels_and_exit_codes() {
    let output = bk_verify().arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for part in ["--from", "--level", "present", "stored", "content", "--against", "Exit codes:"] {
        assert!(help.contains(part), "{part}");
    }
    assert_eq!(stderr(&bk_verify().arg("--version").output().unwrap()), "");
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for args in [
        &[][..],
        &["--from", "d", "--level", "deep"],
        &["--from", "d", "--report", "xml=f"],
        &["--from", "d", "--ignore-metadata"],
        &["--from", "d", "--path", "a[b"],
        &["--against", "d", "--level", "stored"],
        &["--from", "s3:bucket"],
        &["--from", "d", "stray"],
    ] {
        let output = run(bk_verify().args(args), &manifest());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn an_absent_destination_is_told_apart_from_an_absent_backup() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(bk_verify().args(["--from"]).arg(folder.path()), &manifest());
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
    let output = run(bk_verify().args(["--from", &destination(folder.path())]), &manifest());
    assert_eq!(output.status.code(), Some(13), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("bk-verify: error: no backup 'backup-20260428"));
}

#[test]
fn input_that_is_no_whole_manifest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = destination(folder.path());
    let whole = manifest();
    for bad in [&b""[..], b"hello", &whole[..whole.len() - 5]] {
        let output = run(bk_verify().env("BACKUP_DESTINATION_PATH", &from), bad);
        assert_eq!(output.status.code(), Some(21), "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    }
}

#[test]
fn a_folder_is_compared_and_a_report_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(
        bk_verify().current_dir(folder.path()).args([
            "--against",
            ".",
            "--report",
            "json=report.json",
        ]),
        &manifest(),
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(output.stdout, manifest());
    assert_eq!(stderr(&output), "");
    assert!(folder.path().join("report.json").is_file());
    let output = run(bk_verify().args(["--against", "/no/such/folder"]), &manifest());
    assert_eq!(output.status.code(), Some(13), "{}", stderr(&output));
}

/// The controlling side of a new terminal, which is a terminal too.
fn terminal() -> File {
    File::options().read(true).write(true).open("/dev/ptmx").unwrap()
}

#[test]
fn a_terminal_is_no_manifest() {
    let output = bk_verify().args(["--from", "d"]).stdin(terminal()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("standard input is a terminal"), "{}", stderr(&output));
    assert!(stderr(&output).contains("hint: use it in a pipe: bk-push manifest latest"));
}

#[test]
fn a_terminal_is_shown_no_document() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = bk_verify();
    command.args(["--against"]).arg(folder.path()).stdin(Stdio::piped()).stdout(terminal());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&manifest()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_reader_that_died_is_a_failure_without_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = bk_verify();
    command.args(["--against"]).arg(folder.path()).stdin(Stdio::piped()).stdout(writer);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(&manifest());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(1), ""));
}
