//! The command line of `bk-push` by itself.

use std::process::{Command, Output, Stdio};

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn bk_push(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bk-push"))
        .args(args)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn assert_ended(args: &[&str], code: i32, says: &str) {
    let output = bk_push(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

#[test]
fn every_command_has_help() {
    for command in ["init", "add", "list", "manifest", "fetch", "copy"] {
        let output = bk_push(&[command, "--help"]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("Usage: bk-push"));
    }
}

#[test]
fn a_wrong_command_line_is_usage() {
    assert_ended(&["--nonsense"], 2, "unexpected argument");
    assert_ended(&[], 2, "--to DEST");
    assert_ended(&["fetch", "--from", "x"], 2, "--target");
    assert_ended(&["copy", "--from", "x"], 2, "--to");
    assert_ended(&["list", "--from", "x", "--settle", "soon"], 2, "a time is a number");
    assert_ended(
        &["fetch", "--from", "x", "--target", "t", "--into", "--resume"],
        2,
        "cannot be used",
    );
    assert_ended(
        &["fetch", "--from", "x", "--bucket", "s3://b", "--delete-strangers"],
        2,
        "--into",
    );
    assert_ended(
        &["fetch", "--from", "x", "--bucket", "s3://b", "--target", "t"],
        2,
        "cannot be used",
    );
    assert_ended(&["fetch", "--from", "x", "--bucket", "/b"], 2, "is no bucket");
    assert_ended(&["list", "--from", "x", "--series", "s"], 10, "bk-push init");
    assert_ended(&["init", "--to", "x", "--grace", "soon"], 2, "a time is a number");
    assert_ended(&["manifest", "latest", "--from", "x", "--before", "noon"], 2, "--before");
}

#[test]
fn a_name_that_a_program_would_take_for_an_option_is_refused() {
    for dest in ["-oProxyCommand=id:/path", "rsync://-x/module", "ftp://host/path"] {
        assert_ended(&["list", &format!("--from={dest}")], 2, "is no destination");
    }
}

#[test]
fn an_empty_input_is_no_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().to_str().unwrap();
    assert_ended(&["init", "--to", dest], 0, "");
    assert_ended(&["--to", dest], 21, "cut short");
    assert_ended(&["fetch", "--from", dest, "--target", "t"], 21, "cut short");
}
