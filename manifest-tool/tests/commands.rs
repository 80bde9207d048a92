//! `show`, `ls`, `diff` and `convert`, and what all commands have in common.

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::process::Stdio;

use crate::harness::{run, tool, write};

/// A tree with names that have to be escaped, and a manifest of it in a file.
fn fixture() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tree");
    std::fs::create_dir_all(root.join("events/a")).unwrap();
    for (name, text) in
        [("events/a/1.jpg", "one"), ("events/2.jpg", "two"), ("new\nline\x1b[31m", "x")]
    {
        write(&root.join(name), text);
    }
    symlink("events/2.jpg", root.join("link")).unwrap();
    let manifest = manifest(&folder, "a.json");
    (folder, manifest)
}

fn manifest(folder: &tempfile::TempDir, name: &str) -> String {
    let root = folder.path().join("tree");
    let new = run(&["new", "--app", "app", "--app-version", "1.0"], b"").success().stdout;
    let added = run(&["add", "--root", root.to_str().unwrap(), "--hash"], &new).success().stdout;
    let path = folder.path().join(name);
    write(&path, added);
    path.to_str().unwrap().to_owned()
}

#[test]
fn show_is_one_screen_and_json_has_no_entries() {
    let (_folder, manifest) = fixture();
    let text = run(&["show", &manifest], b"").success();
    for wanted in [
        "application  app 1.0\n",
        "entries      3 files, 2 folders, 1 symbolic link, 7 B\n",
        "sums         all hold",
    ] {
        assert!(text.text().contains(wanted), "{wanted:?} in {}", text.text());
    }
    let document = std::fs::read(&manifest).unwrap();
    let json = run(&["show", "--json"], &document).success();
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["files"]["count"], 6);
    assert!(value["files"].get("manifest").is_none());
    assert_eq!(json.text().lines().count(), 1);
    let ran = run(&["show"], &document[..document.len() - 3]).failure(21, "cut short");
    assert!(ran.stdout.is_empty());
}

#[test]
fn ls_escapes_for_people_and_has_raw_bytes_for_programs() {
    let (_folder, manifest) = fixture();
    let all = run(&["ls", &manifest], b"").success();
    assert_eq!(
        all.text(),
        "events\nevents/2.jpg\nevents/a\nevents/a/1.jpg\nlink\nnew\\nline\\u{1b}[31m\n"
    );
    let raw = run(&["ls", "-0", &manifest], b"").success();
    assert!(raw.stdout.ends_with(b"link\0new\nline\x1b[31m\0"));
    let long = run(&["ls", "-l", "--path", "link", &manifest], b"").success();
    assert!(
        long.text().starts_with("lrwxrwxrwx ") && long.text().ends_with(" link -> events/2.jpg\n")
    );
    for (glob, count) in
        [("events", 4), ("events/*", 3), ("**/*.jpg", 2), ("*", 6), ("events/*.jpg", 1)]
    {
        let ran = run(&["ls", "--path", glob, &manifest], b"").success();
        assert_eq!(ran.text().lines().count(), count, "{glob}");
    }
    run(&["ls", "--path", "nope", &manifest], b"").failure(13, "of that path and component");
    run(&["ls", "--component", "db", &manifest], b"").failure(13, "of that path and component");
    run(&["ls", "--path", "a[", &manifest], b"").failure(2, "malformed pattern 'a['");
}

#[test]
fn diff_tells_content_from_metadata() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, old) = fixture();
    let root = folder.path().join("tree");
    write(&root.join("events/2.jpg"), "TWO");
    std::fs::set_permissions(root.join("events/a/1.jpg"), std::fs::Permissions::from_mode(0o600))
        .unwrap();
    std::fs::remove_file(root.join("link")).unwrap();
    write(&root.join("zz"), "");
    let new = manifest(&folder, "b.json");
    let ran = run(&["diff", &old, &new], b"").success();
    assert_eq!(ran.text(), "M events/2.jpg\nm events/a/1.jpg\n- link\n+ zz\n");
    let ran = run(&["diff", "--json", "-", &new], &std::fs::read(&old).unwrap()).success();
    assert_eq!(ran.text().lines().last(), Some(r#"{"change":"added","path":"zz"}"#));
    assert_eq!(run(&["diff", &old, &old], b"").success().text(), "");
    run(&["diff", "-", "-"], b"").failure(2, "only one of the manifests");
    let document = std::fs::read(&new).unwrap();
    write(&folder.path().join("cut.json"), &document[..document.len() / 2]);
    let cut = folder.path().join("cut.json");
    run(&["diff", &old, cut.to_str().unwrap()], b"").failure(21, "cut short");
}

#[test]
fn convert_keeps_the_sums_and_the_code() {
    let (_folder, manifest) = fixture();
    let json = std::fs::read(&manifest).unwrap();
    let yaml = run(&["convert", "--format", "yaml"], &json).success().stdout;
    assert!(yaml.starts_with(b"version: \"2.0\"\n"));
    run(&["check"], &yaml).success();
    assert_eq!(run(&["convert", "--format", "json"], &yaml).success().stdout, json);
    let partial = String::from_utf8(json).unwrap().replace("\"code\":0", "\"code\":3");
    assert_eq!(run(&["convert", "--format", "yaml"], partial.as_bytes()).code, 3);
    let ran =
        run(&["convert", "--format", "yaml"], &yaml[..yaml.len() - 9]).failure(21, "manifest");
    run(&["check"], &ran.stdout).failure(21, "manifest");
}

#[test]
fn check_says_nothing_of_what_is_whole_unless_asked() {
    let (_folder, manifest) = fixture();
    assert_eq!(run(&["check", &manifest], b"").success().text(), "");
    let ran = run(&["-v", "check", &manifest], b"");
    assert!(ran.code == 0 && ran.stderr.ends_with("a.json': whole, 6 entries\n"), "{}", ran.stderr);
}

#[test]
fn a_reader_that_has_gone_is_a_failure_without_a_message() {
    let (_folder, manifest) = fixture();
    for args in
        [&["ls", &manifest][..], &["show", &manifest], &["new", "--app", "a"], &["settings"]]
    {
        let mut child = tool(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        let code = child.wait().unwrap().code();
        // It may have been faster than the reader in going.
        assert!(message.is_empty() && matches!(code, Some(0 | 1)), "{args:?}: {code:?} {message}");
    }
    let mut child = tool(&["convert", "--format", "yaml"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    std::io::copy(&mut &std::fs::read(&manifest).unwrap()[..], &mut child.stdin.take().unwrap())
        .unwrap();
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*message), (Some(1), ""));
}

#[test]
fn help_names_every_command_and_the_codes() {
    let help = run(&["--help"], b"").success();
    for word in ["new", "add", "show", "ls", "diff", "convert", "check", "settings", "Exit codes:"]
    {
        assert!(help.text().contains(word), "{word}");
    }
    for command in ["new", "add", "show", "ls", "diff", "convert", "check", "settings"] {
        let help = run(&[command, "--help"], b"").success();
        assert!(help.text().contains("Usage: bk-manifest"), "{command}");
    }
    let ran = run(&["frobnicate"], b"");
    assert_eq!((ran.code, ran.stdout.len()), (2, 0));
}

#[test]
fn a_full_disk_behind_standard_output_is_told_from_others() {
    let (_folder, manifest) = fixture();
    let document = std::fs::read(&manifest).unwrap();
    for args in [&["new", "--app", "app"][..], &["show"], &["ls"], &["convert", "--format", "yaml"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut child =
            tool(args).stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take().unwrap().write_all(&document));
        let ended = crate::harness::Ran::from(child.wait_with_output().unwrap());
        ended.failure(1, "cannot write to standard output: No space left");
    }
}

#[test]
fn a_hangup_ends_it_unless_it_was_started_to_ignore_that() {
    use std::os::unix::process::ExitStatusExt;

    let (_folder, manifest) = fixture();
    let document = std::fs::read(manifest).unwrap();
    for (trap, ends_by) in [("", Some(1)), ("trap '' HUP; ", None)] {
        let program = env!("CARGO_BIN_EXE_bk-manifest");
        let mut child = std::process::Command::new("sh")
            .args(["-c", &format!("{trap}exec \"$0\" check"), program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", child.id());
        let catches_term = || {
            let status = std::fs::read_to_string(&status).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
            u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << 14) != 0
        };
        while !catches_term() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        // It may have ended by now.
        let _ = child.stdin.take().unwrap().write_all(&document);
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.signal(), ends_by, "{}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(ended.status.code(), ends_by.is_none().then_some(0));
    }
}
