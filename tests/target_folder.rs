//! Mode and owner: of the folder that a tree was taken from and the one that it is fetched into, and
//! where a system does not let them be set. And names that it does not take.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crate::harness::{Ended, Sandbox};

/// A backup of a tree whose own folder has a mode, and as root also an owner, that no other has.
fn backed_up() -> (Sandbox, Vec<u8>) {
    let sandbox = Sandbox::new();
    sandbox.write("events/a", "1");
    let src = sandbox.path("src");
    if rustix::process::geteuid().is_root() {
        chown(&src, Some(1234), Some(2345)).unwrap();
    }
    fs::set_permissions(&src, fs::Permissions::from_mode(0o2751)).unwrap();
    let document = sandbox.back_up();
    (sandbox, document)
}

fn fetch(sandbox: &Sandbox, document: &[u8], target: &str, flags: &[&str]) -> Ended {
    let fetch = [&["fetch", "--from", "dest", "--target", target][..], flags].concat();
    sandbox.run("bk-push", &fetch, document)
}

fn attributes(sandbox: &Sandbox, folder: &str) -> (u32, u32, u32) {
    let metadata = fs::metadata(sandbox.path(folder)).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

#[test]
fn a_folder_that_fetch_made_gets_what_the_trees_own_folder_had() {
    let (sandbox, document) = backed_up();
    fs::create_dir(sandbox.path("empty")).unwrap();
    for (target, flags) in [
        ("made", &[][..]),
        ("empty", &["--into"]),
        ("component", &["--into", "--component", "files"]),
    ] {
        fetch(&sandbox, &document, target, flags).expect(0);
        assert_eq!(attributes(&sandbox, target), attributes(&sandbox, "src"), "{target}");
    }
}

#[test]
fn a_fetch_that_was_stopped_gives_them_when_it_is_run_again() {
    let (sandbox, document) = backed_up();
    fetch(&sandbox, &document, "made", &["--into"]).expect(0);
    // As when it was stopped before the end.
    let marker = sandbox.path("made/.bk/fetched.json");
    let text = fs::read_to_string(&marker).unwrap();
    assert!(text.contains("\"is_complete\":true"), "{text}");
    fs::write(&marker, text.replace("\"is_complete\":true", "\"is_complete\":false")).unwrap();
    fs::set_permissions(sandbox.path("made"), fs::Permissions::from_mode(0o755)).unwrap();
    fetch(&sandbox, &document, "made", &["--into"]).expect(0);
    assert_eq!(attributes(&sandbox, "made"), attributes(&sandbox, "src"));
}

#[test]
fn a_folder_that_is_in_use_keeps_what_it_has() {
    let (sandbox, document) = backed_up();
    fs::create_dir(sandbox.path("used")).unwrap();
    fs::set_permissions(sandbox.path("used"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(sandbox.path("used/stranger"), "x").unwrap();
    let before = attributes(&sandbox, "used");
    fetch(&sandbox, &document, "used", &["--into"]).expect(0);
    fetch(&sandbox, &document, "used", &["--resume"]).expect(0);
    assert_eq!(attributes(&sandbox, "used"), before);
    fetch(&sandbox, &document, "some", &["--path", "events"]).expect(0);
    assert_ne!(attributes(&sandbox, "some"), attributes(&sandbox, "src"));
    // Going on with all of it, in a folder that fetch made, is another matter.
    fetch(&sandbox, &document, "some", &["--resume"]).expect(0);
    assert_eq!(attributes(&sandbox, "some"), attributes(&sandbox, "src"));
}

#[test]
fn named_paths_record_the_folder_too_and_a_prefix_is_an_entry() {
    let (sandbox, _) = backed_up();
    let add = ["bk-manifest", "add", "--root", "src"];
    let new = ["bk-manifest", "new", "--app", "app"];
    for (more, has_root) in [(&["events"][..], true), (&["--as", "prefix"], false)] {
        let add = [&add[..], more].concat();
        let push = ["bk-push", "--to", "dest"];
        let document = sandbox.pipe(&[&new, &add, &push]).pop().unwrap().ok().json();
        let root = &document["components"][0]["root"];
        assert_eq!(root["mode"] == "2751", has_root, "{root}");
        assert_eq!(root.is_null(), !has_root, "{root}");
    }
}

/// As a manifest of an earlier version, which has no record of it.
#[test]
fn without_a_record_the_folder_is_left() {
    let (sandbox, document) = backed_up();
    let mut json: serde_json::Value = serde_json::from_slice(&document).unwrap();
    json["components"][0].as_object_mut().unwrap().remove("root");
    let script = "jq -cS 'del(.run,.verification,.files.manifest)' | sha256sum";
    let sum = sandbox.run("sh", &["-c", script], json.to_string().as_bytes()).ok().text();
    let sum = format!("sha256:{}", &sum[..64]);
    let text = String::from_utf8(document).unwrap();
    let root = text.find("\"root\":{\"mode\"").unwrap();
    let end = root + text[root..].find('}').unwrap() + 1;
    let begin = text[..root].rfind(',').unwrap();
    let old = json["verification"]["total_checksum"].as_str().unwrap();
    let document = (text[..begin].to_owned() + &text[end..]).replace(old, &sum);
    let place = json["run"]["place"].as_str().unwrap();
    fs::write(sandbox.path("dest").join(place), &document).unwrap();
    let document = sandbox.latest();
    fetch(&sandbox, &document, "old", &[]).expect(0);
    assert_ne!(attributes(&sandbox, "old"), attributes(&sandbox, "src"));
}

#[test]
fn a_folder_of_another_user_is_restored_into_all_the_same() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (sandbox, document) = backed_up();
    fs::write(sandbox.path("document"), document).unwrap();
    sandbox.lend_tools();
    let script = "chmod 0777 . tmp home; chmod -R a+rX dest document; mkdir -m 0777 theirs
        PATH=$PWD/bin:$PATH setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '
        bk-push fetch --from dest --target theirs < document > fetched; echo $?
        bk-push fetch --from dest --target mine < document > fetched; echo $?'";
    let ended = sandbox.run("sh", &["-c", script], b"").expect(0);
    assert_eq!(ended.text(), "0\n0\n", "{}", ended.stderr);
    assert!(ended.stderr.contains("'theirs' itself keeps"), "{}", ended.stderr);
    assert_eq!(fs::read(sandbox.path("theirs/events/a")).unwrap(), b"1");
    assert_eq!(attributes(&sandbox, "theirs"), (0o777, 0, 0));
    assert_eq!(attributes(&sandbox, "mine"), (0o2751, 65534, 65534));
}

/// As root of a container that knows no other user, or on a share whose server takes root for nobody.
#[test]
fn an_owner_that_cannot_be_set_costs_no_content() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    for name in ["mine", "theirs/run", "theirs/too"] {
        sandbox.write(name, name);
    }
    let theirs = sandbox.path("src/theirs");
    std::os::unix::fs::symlink("run", theirs.join("link")).unwrap();
    for name in [theirs.clone(), theirs.join("run"), theirs.join("too"), theirs.join("link")] {
        std::os::unix::fs::lchown(name, Some(1000), Some(1000)).unwrap();
    }
    fs::set_permissions(theirs.join("run"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(sandbox.path("document"), sandbox.back_up()).unwrap();
    let script = "unshare --user --map-root-user true || exit 77
        unshare --user --map-root-user bk-push fetch --from dest --target back < document > fetched";
    let ended = sandbox.run("sh", &["-c", script], b"");
    if ended.code == 77 {
        return;
    }
    let ended = ended.expect(3);
    assert!(ended.stderr.contains("4 paths did not get their owner"), "{}", ended.stderr);
    assert_eq!(fs::read(sandbox.path("back/theirs/too")).unwrap(), b"theirs/too");
    assert_eq!(fs::read_link(sandbox.path("back/theirs/link")).unwrap().as_os_str(), "run");
    // Root's own program it must not become.
    assert_eq!(attributes(&sandbox, "back/theirs/run"), (0o755, 0, 0));
}

/// As from a file system that knows longer names than the target's.
#[test]
fn a_name_that_the_target_cannot_hold_costs_that_path_alone() {
    let sandbox = Sandbox::new();
    for name in ["kept", "much/deeper/kept", "LONG", "FOLDER/inside"] {
        sandbox.write(name, name);
    }
    let document = String::from_utf8(sandbox.back_up()).unwrap();
    let long = "n".repeat(300);
    let document = document.replace("\"LONG\"", &format!("\"L{long}\""));
    let document = document.replace("\"FOLDER", &format!("\"F{long}"));
    // The sums by the recipes in README.
    let sum = |filter: &str, text: &str| {
        sandbox.run("sh", &["-c", filter], text.as_bytes()).ok().text()[..64].to_owned()
    };
    let old: serde_json::Value = serde_json::from_str(&document).unwrap();
    let blocks = "jq -cS '.files.manifest[]' | split -l 1024 --filter=sha256sum | sha256sum";
    let files = format!("sha256:{}", sum(blocks, &document));
    let document = document.replace(old["files"]["checksum"].as_str().unwrap(), &files);
    let all = "jq -cS 'del(.run,.verification,.files.manifest)' | sha256sum";
    let total = format!("sha256:{}", sum(all, &document));
    let recorded = old["verification"]["total_checksum"].as_str().unwrap();
    let document = document.replace(recorded, &total).into_bytes();
    let place = serde_json::from_slice::<serde_json::Value>(&document).unwrap()["run"]["place"]
        .as_str()
        .unwrap()
        .to_owned();
    fs::write(sandbox.path("dest").join(place), &document).unwrap();
    let ended = fetch(&sandbox, &document, "back", &[]).expect(3);
    assert_eq!(ended.stderr.matches("lost: '").count(), 3, "{}", ended.stderr);
    assert_eq!(fs::read(sandbox.path("back/kept")).unwrap(), b"kept");
    assert_eq!(fs::read(sandbox.path("back/much/deeper/kept")).unwrap(), b"much/deeper/kept");
}
