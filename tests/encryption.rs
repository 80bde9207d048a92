//! Backups that are encrypted by the real age and gpg, and come back, with our programs and without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Sandbox, assert_same_tree, files_below, noise, run, snapshot};
use crate::keys::{Keyring, age_key};

const NEW: &[&str] = &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"];
const ADD: &[&str] = &["bk-manifest", "add", "--root", "src"];
const ARCHIVE: &[&str] = &["bk-dump", "archive", "--name", "config", "settings"];
const MARK: &str = "a line that nobody else may read";

/// A sandbox with a key of age in `key` and one of gpg; how to encrypt for either.
fn sandbox() -> (Sandbox, Keyring, [String; 2]) {
    let mut sandbox = Sandbox::new();
    let recipient = age_key(&sandbox, "key");
    let keyring = Keyring::new(&mut sandbox);
    keyring.add(&sandbox, "backup@example.org", "");
    fs::create_dir(sandbox.path("settings")).unwrap();
    fs::write(sandbox.path("settings/env"), MARK.repeat(10)).unwrap();
    (sandbox, keyring, [format!("age:{recipient}"), "gpg:backup@example.org".to_owned()])
}

/// Backs up the tree and an archive on top of the latest backup; returns the document.
#[track_caller]
fn back_up(sandbox: &Sandbox, push: &[&str]) -> Vec<u8> {
    let latest = ["manifest", "latest", "--from", "dest", "--app", "app", "--or-none"];
    fs::write(sandbox.path("parent.json"), sandbox.run("bk-push", &latest, b"").ok().stdout)
        .unwrap();
    let push = [&["bk-push", "--to", "dest"][..], push].concat();
    let mut ended = sandbox.pipe(&[NEW, ARCHIVE, ADD, &push]);
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""));
    }
    ended.pop().unwrap().stdout
}

/// Three backups with changes between them; the last document.
fn three_backups(sandbox: &Sandbox, push: &[&str]) -> Vec<u8> {
    sandbox.nasty_tree();
    sandbox.write("private", MARK.repeat(100));
    back_up(sandbox, push);
    sandbox.write("second", "only since the second");
    fs::rename(sandbox.path("src/noise"), sandbox.path("src/renamed noise")).unwrap();
    back_up(sandbox, push);
    sandbox.write("third", noise(9, 3 << 20));
    fs::write(sandbox.path("settings/env"), MARK.repeat(20)).unwrap();
    back_up(sandbox, push)
}

fn json(document: &[u8]) -> Value {
    serde_json::from_slice(document).unwrap()
}

fn stored_objects(sandbox: &Sandbox) -> Vec<PathBuf> {
    let is_object = |path: &PathBuf| path.to_str().unwrap().contains(".tar.zst");
    files_below(&sandbox.path("dest")).into_iter().filter(is_object).collect()
}

/// Compares `src` and the archive with what was restored into a folder.
fn assert_restored(sandbox: &Sandbox, target: &str) {
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path(target)));
    let archive = sandbox.path(target).join(".bk/config/config.tar.zst");
    let listed = sandbox.run("tar", &["--zstd", "-xOf", archive.to_str().unwrap()], b"").expect(0);
    assert_eq!(listed.stdout, fs::read(sandbox.path("settings/env")).unwrap());
}

#[test]
fn an_encrypted_chain_comes_back_and_holds_nothing_in_clear() {
    let (sandbox, _keyring, ways) = sandbox();
    for how in &ways {
        let method = &how[..3];
        let document = three_backups(&sandbox, &["--encrypt", how]);
        assert_eq!(json(&document)["chain"].as_object().unwrap().len(), 2, "{method}");
        for object in stored_objects(&sandbox) {
            assert!(object.to_str().unwrap().ends_with(method), "{}", object.display());
            let bytes = fs::read(&object).unwrap();
            assert!(!bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes()));
            assert!(!bytes.starts_with(b"\x28\xb5\x2f\xfd"), "{}", object.display());
        }
        let target = format!("back-{method}");
        let key = ["fetch", "--from", "dest", "--identity", "key", "--target", &target];
        sandbox.run("bk-push", &key, &document).expect(0);
        assert_restored(&sandbox, &target);
        fs::remove_dir_all(sandbox.path("dest")).unwrap();
        fs::remove_dir_all(sandbox.path("src")).unwrap();
        fs::create_dir(sandbox.path("src")).unwrap();
        sandbox.init("dest", "24h");
    }
}

#[test]
fn the_manifest_says_what_is_encrypted_and_how_it_is_stored() {
    let (sandbox, _keyring, [age, _]) = sandbox();
    sandbox.write("f", "x");
    let document = json(&back_up(&sandbox, &["--encrypt", &age]));
    for object in document["objects"].as_array().unwrap() {
        assert_eq!(object["encryption"], "age");
    }
    for component in document["components"].as_array().unwrap() {
        assert_eq!(component["encryption"], "age");
    }
    let folder = &sandbox.backups()[0];
    let entries = document["files"]["manifest"].as_array().unwrap();
    let archive = entries.iter().find(|entry| entry["component"] == "config").unwrap();
    assert_eq!(archive["at"]["object"], "config.tar.zst.age");
    let stored = folder.join("config.tar.zst.age");
    assert_eq!(archive["at"]["stored"]["size"], fs::metadata(&stored).unwrap().len());
    let sum = sandbox.run("sha256sum", &[stored.to_str().unwrap()], b"").ok().text();
    let sum = format!("sha256:{}", sum.split(' ').next().unwrap());
    assert_eq!(archive["at"]["stored"]["checksum"], Value::from(sum));
    let file = entries.iter().find(|entry| entry["path"] == "f").unwrap();
    assert_eq!(file["at"]["object"], "files/000001.tar.zst.age");
    assert!(file["at"]["stored"].is_null());
    let summary = fs::read_to_string(folder.join("MANIFEST.txt")).unwrap();
    assert_eq!(summary.matches("encrypted: age").count(), 2, "{summary}");
    let show = sandbox.run("bk-manifest", &["show"], &sandbox.latest()).ok().text();
    assert_eq!(show.matches("encrypted: age").count(), 2, "{show}");
}

#[test]
fn an_encrypted_chain_comes_back_by_hand() {
    for (number, format) in [(0, "json"), (1, "yaml")] {
        let (sandbox, keyring, ways) = sandbox();
        let document = three_backups(&sandbox, &["--encrypt", &ways[number], "--format", format]);
        let document = json(&document);
        let manifest = sandbox.path("dest").join(document["run"]["place"].as_str().unwrap());
        assert!(manifest.to_str().unwrap().ends_with(format));
        let script = manifest.with_file_name("RESTORE.txt");
        assert!(fs::read_to_string(&script).unwrap().lines().count() <= 40);
        // Our programs are not on this PATH.
        let mut command = Command::new("bash");
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").arg(&script);
        if number == 1 {
            command.env("GNUPGHOME", keyring.home());
        }
        command.arg(sandbox.path("by-hand"));
        if number == 0 {
            command.arg(sandbox.path("key"));
        }
        run(&mut command, b"").expect(0);
        assert_restored(&sandbox, "by-hand");
        let mut sums = sandbox.command("sha256sum");
        let folder = script.parent().unwrap();
        run(sums.current_dir(folder).args(["--quiet", "-c", "SHA256SUMS"]), b"").ok();
    }
}

#[test]
fn one_object_opens_by_hand() {
    let (sandbox, _keyring, ways) = sandbox();
    sandbox.write("f", "x");
    for (how, open) in ways.iter().zip(["age -d -i key", "gpg -q -d"]) {
        back_up(&sandbox, &["--encrypt", how, "--full"]);
        let folder = sandbox.backups().pop().unwrap();
        let object = folder.join("files/000001.tar.zst").display().to_string();
        let script = format!("{open} {object}.{} | zstd -dc | tar -t", &how[..3]);
        assert_eq!(sandbox.run("bash", &["-c", &script], b"").ok().text(), "f\n");
    }
}

#[test]
fn present_and_stored_need_no_key_and_content_does() {
    let (mut sandbox, keyring, ways) = sandbox();
    sandbox.write("f", "x");
    for how in &ways {
        let document = back_up(&sandbox, &["--encrypt", how, "--full"]);
        let empty = Keyring::new(&mut sandbox);
        for level in ["present", "stored"] {
            sandbox.run("bk-verify", &["--from", "dest", "--level", level], &document).expect(0);
        }
        let content = ["--from", "dest", "--level", "content"];
        let refused = sandbox.run("bk-verify", &content, &document).expect(12);
        assert!(refused.stderr.contains("hint: it was encrypted for "), "{}", refused.stderr);
        drop(empty);
        keyring.use_in(&mut sandbox);
        let with_key = [&content[..], &["--identity", "key"]].concat();
        let ended = sandbox.run("bk-verify", &with_key, &document).expect(0);
        assert_eq!(ended.json()["verification"]["run"]["proofs"][0]["level"], "content");
    }
}

#[test]
fn a_component_may_have_a_key_of_its_own() {
    let (sandbox, _keyring, [_, gpg]) = sandbox();
    let other = age_key(&sandbox, "other");
    sandbox.write("f", "in the tree");
    let config = format!("config=age:{other}");
    let document = back_up(&sandbox, &["--encrypt", &config, "--encrypt", &gpg]);
    let names: Vec<_> = stored_objects(&sandbox);
    let ends =
        |end: &str| names.iter().filter(|path| path.to_str().unwrap().ends_with(end)).count();
    assert_eq!((ends("config.tar.zst.age"), ends("000001.tar.zst.gpg")), (1, 1), "{names:?}");
    // The tree's key alone gives the tree.
    let tree = ["fetch", "--from", "dest", "--target", "tree", "--component", "files"];
    sandbox.run("bk-push", &tree, &document).expect(0);
    assert_eq!(fs::read(sandbox.path("tree/f")).unwrap(), b"in the tree");
    let all = ["fetch", "--from", "dest", "--target", "all"];
    sandbox.run("bk-push", &all, &document).expect(12);
    assert!(!sandbox.path("all").exists());
    sandbox.run("bk-push", &[&all[..], &["--identity", "other"]].concat(), &document).expect(0);
    assert_restored(&sandbox, "all");
}

#[test]
fn content_is_not_shared_by_components_with_different_keys() {
    let (sandbox, _keyring, [age, gpg]) = sandbox();
    for tree in ["one", "two"] {
        fs::create_dir(sandbox.path(tree)).unwrap();
        fs::write(sandbox.path(tree).join("same"), noise(3, 100_000)).unwrap();
    }
    let second = format!("two={gpg}");
    let add = |tree: &'static str| {
        ["bk-manifest", "add", "--root", tree, "--as", tree, "--component", tree]
    };
    for _ in 0..2 {
        let latest = ["manifest", "latest", "--from", "dest", "--app", "app", "--or-none"];
        let parent = sandbox.run("bk-push", &latest, b"").ok().stdout;
        fs::write(sandbox.path("parent.json"), parent).unwrap();
        let push = ["bk-push", "--to", "dest", "--encrypt", &age, "--encrypt", &second];
        let ended = sandbox.pipe(&[NEW, &add("one"), &add("two"), &push]).pop().unwrap().ok();
        for entry in ended.json()["files"]["manifest"].as_array().unwrap() {
            let Some(object) = entry["at"]["object"].as_str() else { continue };
            let end = if entry["component"] == "one" { ".age" } else { ".gpg" };
            assert!(object.ends_with(end), "{entry}");
        }
    }
}

#[test]
fn what_is_to_be_encrypted_is_not_taken_from_a_parent_in_clear() {
    let (sandbox, _keyring, [age, gpg]) = sandbox();
    sandbox.write("f", noise(4, 50_000));
    back_up(&sandbox, &[]);
    for how in [&age, &gpg] {
        let document = json(&back_up(&sandbox, &["--encrypt", how]));
        for object in document["objects"].as_array().unwrap() {
            assert_eq!(object["encryption"], how[..3], "{object}");
        }
    }
    // The other way round it is refused, unless it is meant.
    let refused = sandbox.try_back_up(&[]).pop().unwrap().expect(2);
    assert!(refused.stderr.contains("was encrypted until now"), "{}", refused.stderr);
    let document = back_up(&sandbox, &["--full"]);
    assert!(json(&document)["objects"][0]["encryption"].is_null());
    sandbox.run("bk-push", &["fetch", "--from", "dest", "--target", "back"], &document).expect(0);
    assert_restored(&sandbox, "back");
}

#[test]
fn a_file_that_is_named_like_an_encrypted_one_is_content() {
    let (sandbox, _keyring, [age, _]) = sandbox();
    sandbox.write("mine.age", "no age at all");
    let document = back_up(&sandbox, &[]);
    sandbox.fetch(&document, "clear");
    let document = back_up(&sandbox, &["--encrypt", &age]);
    let fetch = ["fetch", "--from", "dest", "--identity", "key", "--target", "back"];
    sandbox.run("bk-push", &fetch, &document).expect(0);
    for target in ["clear", "back"] {
        assert_eq!(fs::read(sandbox.path(target).join("mine.age")).unwrap(), b"no age at all");
    }
}

/// Puts a program before the real one on the PATH.
pub fn instead(sandbox: &mut Sandbox, program: &str, script: &str) {
    let folder = sandbox.path("instead");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("script"), format!("#!/bin/bash\n{script}\n")).unwrap();
    crate::harness::copy_program(&folder.join("script"), &folder.join(program));
    let mut path = folder.into_os_string();
    for rest in [crate::harness::bin_dir().as_os_str(), "/usr/bin".as_ref(), "/bin".as_ref()] {
        path.push(":");
        path.push(rest);
    }
    sandbox.set("PATH", path);
}

#[test]
fn each_volume_is_opened_once_for_all_of_its_files() {
    let (mut sandbox, _keyring, [age, _]) = sandbox();
    for number in 0..400 {
        sandbox.write(&format!("d{}/f{number}", number % 7), noise(number, 20_000));
    }
    back_up(&sandbox, &["--encrypt", &age]);
    sandbox.write("more", noise(1000, 20_000));
    let document = back_up(&sandbox, &["--encrypt", &age]);
    let script = "echo x >> ${0%/*}/calls; exec /usr/bin/age \"$@\"";
    instead(&mut sandbox, "age", script);
    let fetch = ["fetch", "--from", "dest", "--identity", "key", "--target", "back"];
    sandbox.run("bk-push", &fetch, &document).expect(0);
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("back")));
    let calls = fs::read_to_string(sandbox.path("instead/calls")).unwrap().lines().count();
    // Two volumes and the archive: each tried for its key, then opened.
    assert_eq!(calls, 6);
    assert!(files_below(&sandbox.path("tmp")).iter().all(|path| is_of_harness(path)));
}

/// Whether a temporary file is the harness' own.
fn is_of_harness(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.starts_with("stderr-") || name == "stdout"
}

#[test]
fn prune_removes_encrypted_objects_by_name() {
    let (sandbox, _keyring, [age, _]) = sandbox();
    sandbox.init("short", "0s");
    sandbox.write("f", "first");
    let mut documents = Vec::new();
    for content in ["first", "second"] {
        sandbox.write("f", content);
        let push = ["bk-push", "--to", "short", "--encrypt", &age];
        let steps: [&[&str]; 3] = [&["bk-manifest", "new", "--app", "app"], ADD, &push];
        documents.push(sandbox.pipe(&steps).pop().unwrap().ok().stdout);
    }
    for _ in 0..2 {
        let prune = ["--standalone", "--from", "short", "--keep-last", "1", "-q"];
        let ended = sandbox.run("bk-prune", &prune, b"");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
    let left: Vec<PathBuf> = files_below(&sandbox.path("short"))
        .into_iter()
        .filter(|path| path.to_str().unwrap().ends_with(".age"))
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let fetch = ["fetch", "--from", "short", "--identity", "key", "--target", "back"];
    sandbox.run("bk-push", &fetch, &documents[1]).expect(0);
    assert_eq!(fs::read(sandbox.path("back/f")).unwrap(), b"second");
}

#[test]
fn a_key_inside_of_the_backup_is_a_warning() {
    let (mut sandbox, _keyring, [age, _]) = sandbox();
    sandbox.write("f", "x");
    for (key, is_inside) in [("key", false), ("src/keys/key", true), ("settings/key", true)] {
        fs::create_dir_all(sandbox.path("src/keys")).unwrap();
        if is_inside {
            fs::copy(sandbox.path("key"), sandbox.path(key)).unwrap();
        }
        sandbox.set("BACKUP_IDENTITY_FILE", sandbox.path(key));
        let push = ["bk-push", "--to", "dest", "--encrypt", &age];
        let new = ["bk-manifest", "new", "--app", "app"];
        let ended = sandbox.pipe(&[&new, ARCHIVE, ADD, &push]).pop().unwrap().expect(0);
        assert_eq!(ended.stderr.contains("keep a copy elsewhere"), is_inside, "{}", ended.stderr);
    }
}

#[test]
fn an_archive_is_secret_unless_it_is_said_to_be_public() {
    let (sandbox, _keyring, _) = sandbox();
    let new = ["bk-manifest", "new", "--app", "app"];
    let public = ["bk-dump", "archive", "--name", "docs", "--public", "settings"];
    let document = sandbox.pipe(&[&new, ARCHIVE, &public]).pop().unwrap().ok().json();
    assert_eq!(document["run"]["secrets"], serde_json::json!(["config"]));
    let archived = sandbox.path("settings");
    let archived = archived.to_str().unwrap();
    assert_eq!(document["run"]["archived"], serde_json::json!([archived, archived]));
    assert!(document["components"][0]["public"].is_null());
    assert_eq!(document["components"][1]["public"], true);
}
