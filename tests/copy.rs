//! A second destination: copied to, listed, verified, pruned, built on, restored from.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::harness::{Sandbox, assert_same_tree, files_below, noise, run, snapshot};

const COPY: [&str; 6] = ["copy", "--from", "dest", "--to", "other", "--quiet"];

/// Three backups that build on one another at `dest`, and an empty destination `other`.
fn chain() -> (Sandbox, Vec<u8>) {
    let sandbox = Sandbox::new();
    sandbox.init("other", "24h");
    sandbox.nasty_tree();
    sandbox.back_up();
    sandbox.write("second", noise(2, 3 << 20));
    sandbox.back_up();
    sandbox.write("small/f1", "changed");
    let document = sandbox.back_up();
    (sandbox, document)
}

#[test]
fn a_copy_restores_by_itself() {
    let (sandbox, document) = chain();
    let before = snapshot(&sandbox.path("src"));
    let copied = sandbox.run("bk-push", &COPY, &document).ok();
    let place = copied.json()["run"]["place"].as_str().unwrap().to_owned();
    let stored = fs::read(sandbox.path("dest").join(&place)).unwrap();
    assert_eq!(fs::read(sandbox.path("other").join(&place)).unwrap(), stored, "byte for byte");
    fs::remove_dir_all(sandbox.path("dest")).unwrap();

    // What the copy stored of the chain is read too, not its own objects alone.
    let verified = sandbox.run("bk-verify", &["--from", "other"], &copied.stdout).ok().json();
    let proofs = verified["verification"]["run"]["proofs"].as_array().unwrap();
    assert_eq!((&proofs[0]["level"], &proofs[0]["scope"]), (&"stored".into(), &"all".into()));
    sandbox.run("bk-verify", &["--from", "other", "--level", "content"], &copied.stdout).ok();

    let latest = sandbox.run("bk-push", &["manifest", "latest", "--from", "other"], b"").ok();
    sandbox
        .run("bk-push", &["fetch", "--from", "other", "--target", "back"], &latest.stdout)
        .expect(0);
    assert_same_tree(&before, &snapshot(&sandbox.path("back")));

    let folder = sandbox.path("other").join(place);
    let folder = folder.parent().unwrap();
    let sums = ["--quiet", "-c", "SHA256SUMS"];
    run(sandbox.command("sha256sum").current_dir(folder).args(sums), b"").ok();
    let mut command = Command::new("bash");
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command.arg(folder.join("RESTORE.txt")).arg(sandbox.path("by-hand"));
    run(&mut command, b"").expect(0);
    assert_same_tree(&before, &snapshot(&sandbox.path("by-hand")));
}

#[test]
fn a_second_copy_brings_what_is_new_and_a_third_nothing() {
    let (sandbox, document) = chain();
    sandbox.run("bk-push", &COPY, &document).ok();
    let before = files_below(&sandbox.path("other")).len();
    sandbox.write("fourth", "new");
    let document = sandbox.back_up();
    let copied = sandbox.run("bk-push", &COPY, &document).ok().json();
    let pushed = &copied["verification"]["run"]["pushed"];
    assert_eq!((&pushed["objects"], &pushed["elsewhere"]), (&1.into(), &serde_json::Value::Null));
    // The volume, three side files, the manifest.
    assert_eq!(files_below(&sandbox.path("other")).len(), before + 5);
    let again = sandbox.run("bk-push", &COPY, &document).ok().json();
    assert_eq!(again["verification"]["run"]["pushed"]["objects"], 0);
    assert_eq!(files_below(&sandbox.path("other")).len(), before + 5);
}

#[test]
fn a_push_builds_on_a_copy() {
    let (sandbox, document) = chain();
    sandbox.run("bk-push", &COPY, &document).ok();
    fs::remove_dir_all(sandbox.path("dest")).unwrap();
    fs::rename(sandbox.path("other"), sandbox.path("dest")).unwrap();
    sandbox.write("fifth", "new");
    let pushed: serde_json::Value = serde_json::from_slice(&sandbox.back_up()).unwrap();
    assert_eq!(pushed["backup"]["type"], "incremental");
    assert_eq!(pushed["verification"]["run"]["pushed"]["objects"], 1);
    sandbox.fetch(&sandbox.latest(), "back");
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("back")));
}

#[test]
fn a_copy_in_the_pipe_has_its_own_retention() {
    let (sandbox, document) = chain();
    for _ in 0..2 {
        let verify = ["bk-verify", "--from", "other", "--quiet"];
        let prune = ["bk-prune", "--from", "other", "--keep-last", "1", "--quiet"];
        fs::write(sandbox.path("document"), &document).unwrap();
        let ended = sandbox.pipe(&[
            &["cat", "document"],
            &["bk-push", "copy", "--from", "dest", "--to", "other"],
            &verify,
            &prune,
        ]);
        for step in ended {
            assert_eq!(step.code, 0, "{}", step.stderr);
        }
    }
    assert_eq!(sandbox.backups().len(), 3, "the source keeps its own");
    // Without a verify between, what was proved at the source does not count.
    let verified = sandbox.run("bk-verify", &["--from", "dest"], &document).ok().stdout;
    let copied = sandbox.run("bk-push", &COPY, &verified).ok().stdout;
    sandbox.run("bk-prune", &["--from", "other", "--keep-last", "1"], &copied).expect(22);
}

#[test]
fn a_copy_of_damage_is_refused() {
    let (sandbox, document) = chain();
    let volume = &sandbox.volumes()[0];
    let mut bytes = fs::read(volume).unwrap();
    bytes[100] ^= 1;
    fs::write(volume, bytes).unwrap();
    let ended = sandbox.run("bk-push", &COPY, &document).expect(20);
    assert!(ended.stderr.contains("000001.tar.zst"), "{}", ended.stderr);
    assert!(ended.stdout.is_empty(), "no document is ended");
    let list = sandbox.run("bk-push", &["list", "--from", "other", "--json"], b"").ok();
    assert!(list.stdout.is_empty());
    let same = ["copy", "--from", "dest", "--to", "dest"];
    sandbox.run("bk-push", &same, &document).expect(2);
    let cut = &document[..document.len() - 2];
    sandbox.run("bk-push", &COPY, cut).expect(21);
    let nowhere = ["copy", "--from", "dest", "--to", "nowhere"];
    sandbox.run("bk-push", &nowhere, &document).expect(10);
}

#[test]
fn a_prefix_of_another_system_is_listed_without_a_marker() {
    let sandbox = Sandbox::new();
    let foreign = r#"{"manifest":{"version":"2.0","generator":"PicPeak Backup Manifest Generator"},
        "backup":{"id":"backup-20260428-022150-a1b2c3d4","type":"full",
        "timestamp":"2026-04-28T02:21:50.123Z"},"files":{"count":1,"total_size":7,
        "manifest":[{"path":"a","size":7,"checksum":"00","type":"image"}]}}"#;
    let folder = sandbox.path("picpeak/2026/04/28/backup-1777342910123/manifests");
    fs::create_dir_all(&folder).unwrap();
    let name = "backup-manifest-backup-20260428-022150-a1b2c3d4.json";
    fs::write(folder.join(name), foreign).unwrap();
    let list = ["list", "--from", "picpeak", "--settle", "0s"];
    let listed = sandbox.run("bk-push", &list, b"").expect(0);
    assert!(listed.stderr.contains("warning: 'picpeak' is no destination"), "{}", listed.stderr);
    assert!(listed.text().contains("foreign"), "{}", listed.text());
    let json = sandbox.run("bk-push", &[&list[..], &["--json"]].concat(), b"").expect(0).json();
    assert_eq!((&json["origin"], &json["series"]), (&"picpeak".into(), &serde_json::Value::Null));
    // Nothing else takes it for one of ours.
    sandbox.run("bk-push", &["manifest", "latest", "--from", "picpeak"], b"").expect(10);
    fs::create_dir(sandbox.path("empty")).unwrap();
    for nothing in ["empty", "nowhere"] {
        sandbox.run("bk-push", &["list", "--from", nothing], b"").expect(10);
    }
    // Ours, without their marker, are no backups to rely on.
    sandbox.write("f", "x");
    sandbox.back_up();
    fs::remove_file(sandbox.path("dest/.bk-destination")).unwrap();
    let ended = sandbox.run("bk-push", &["list", "--from", "dest"], b"").expect(10);
    assert!(ended.stderr.contains("backups below it: 1"), "{}", ended.stderr);
}

#[test]
fn a_wait_for_a_listing_ends_with_a_signal() {
    use std::os::unix::process::ExitStatusExt;
    let sandbox = Sandbox::new();
    let mut child = sandbox
        .command("bk-push")
        .args(["list", "--from", "dest", "--settle", "9d", "--verbose"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("looking again"), "{line}");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}
