//! Backup and restore through the real programs: what comes back is what was there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::{Sandbox, assert_same_tree, noise, run, snapshot};

#[test]
fn a_nasty_tree_comes_back_the_same() {
    let sandbox = Sandbox::new();
    sandbox.nasty_tree();
    let before = snapshot(&sandbox.path("src"));
    let document = sandbox.back_up();
    sandbox.fetch(&document, "back");
    assert_same_tree(&before, &snapshot(&sandbox.path("back")));
}

#[test]
fn the_stored_manifest_is_the_printed_one_without_its_run() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "1");
    let document = sandbox.back_up();
    let printed: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let stored = fs::read(sandbox.backups()[0].join("manifest.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&stored).unwrap();
    assert_eq!(printed["verification"]["total_checksum"], stored["verification"]["total_checksum"]);
    assert_eq!(printed["files"], stored["files"]);
    assert!(stored.get("run").is_none());
    assert!(stored["verification"].get("run").is_none());
    assert_eq!(printed["backup"]["type"], "full");
}

/// Three backups with a rename, a copy, a delete, a chmod alone, a new hard link and odd names
/// between them; returns the tree as it is at the third.
fn three_backups(sandbox: &Sandbox) -> Vec<u8> {
    sandbox.nasty_tree();
    sandbox.back_up();
    let src = sandbox.path("src");
    sandbox.write("second", "only since the second");
    fs::rename(src.join("noise"), src.join("renamed noise")).unwrap();
    sandbox.back_up();
    fs::rename(src.join("small/f6"), src.join("small/renamed")).unwrap();
    fs::copy(src.join("small/f7"), src.join("copied")).unwrap();
    fs::remove_file(src.join("small/f8")).unwrap();
    fs::set_permissions(src.join("small/f9"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(src.join("second"), src.join("a new hard link")).unwrap();
    sandbox.write("third\nwith a newline", "x");
    sandbox.back_up()
}

#[test]
fn a_third_incremental_comes_back_the_same_and_costs_only_what_is_new() {
    let sandbox = Sandbox::new();
    let document = three_backups(&sandbox);
    let json: serde_json::Value = serde_json::from_slice(&document).unwrap();
    assert_eq!(json["backup"]["type"], "incremental");
    assert_eq!(
        json["verification"]["run"]["pushed"]["read"], 0,
        "its only new file repeats an 'x'"
    );
    assert_eq!(json["chain"].as_object().unwrap().len(), 2);
    let before = snapshot(&sandbox.path("src"));
    sandbox.fetch(&document, "back");
    assert_same_tree(&before, &snapshot(&sandbox.path("back")));
}

#[test]
fn a_third_incremental_comes_back_by_hand() {
    for format in ["json", "yaml"] {
        let sandbox = Sandbox::new();
        let mut document = three_backups(&sandbox);
        if format == "yaml" {
            sandbox.write("fourth", "in yaml");
            document = sandbox.try_back_up(&["--format", "yaml"]).pop().unwrap().ok().stdout;
        }
        let before = snapshot(&sandbox.path("src"));
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        let place = document["run"]["place"].as_str().unwrap();
        assert!(place.ends_with(format));
        let folder = sandbox.path("dest").join(place);
        let script = folder.with_file_name("RESTORE.txt");
        assert!(fs::read_to_string(&script).unwrap().lines().count() <= 40);
        // Our programs are not on this PATH.
        let mut command = Command::new("bash");
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").arg(&script);
        run(command.arg(sandbox.path("by-hand")), b"").expect(0);
        assert_same_tree(&before, &snapshot(&sandbox.path("by-hand")));
    }
}

#[test]
fn a_restore_by_hand_tells_damage() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "content");
    sandbox.back_up();
    let volume = &sandbox.volumes()[0];
    let mut bytes = fs::read(volume).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::write(volume, bytes).unwrap();
    let script = sandbox.backups()[0].join("RESTORE.txt");
    let ended = run(Command::new("bash").arg(script).arg(sandbox.path("by-hand")), b"");
    assert_ne!(ended.code, 0);
}

#[test]
fn a_restore_by_hand_brings_back_all_that_is_whole() {
    let sandbox = Sandbox::new();
    for number in 0..3 {
        sandbox.write(&format!("f{number}"), noise(number, 3 << 20));
        sandbox.back_up();
    }
    // One volume is damaged at its begin, another is gone.
    let script = sandbox.backups()[2].join("RESTORE.txt");
    let volumes = sandbox.volumes();
    fs::write(&volumes[0], vec![7; 1000]).unwrap();
    fs::remove_file(&volumes[1]).unwrap();
    let by_hand = sandbox.path("by-hand");
    let ended = run(Command::new("bash").arg(script).arg(&by_hand), b"").expect(1);
    assert!(ended.stderr.contains("DAMAGED: files/000001.tar.zst"), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("LOST: f").count(), 2, "{}", ended.stderr);
    assert_eq!(fs::read(by_hand.join("f2")).unwrap(), noise(2, 3 << 20));
    let names: Vec<_> = fs::read_dir(&by_hand).unwrap().collect();
    assert_eq!(names.len(), 1, "what it worked with is gone: {names:?}");
}

#[test]
fn what_was_asked_for_and_is_not_there_is_told_before_anything_is_written() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "content");
    let document = sandbox.back_up();
    let fetch = ["fetch", "--from", "dest", "--target", "back"];
    for (asked, said) in [
        (&["--path", "a", "--path", "typo"][..], "no path of the backup matches 'typo'"),
        (&["--component", "typo"], "the backup has no component 'typo'"),
    ] {
        let ended = sandbox.run("bk-push", &[&fetch[..], asked].concat(), &document).expect(13);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
        assert!(!sandbox.path("back").exists());
    }
}

#[test]
fn a_component_that_vanishes_from_the_backup_is_refused_unless_it_is_meant() {
    let mut sandbox = Sandbox::new();
    sandbox.write("a", "content");
    fs::write(sandbox.path("secret"), "key").unwrap();
    let new = sandbox.run("bk-manifest", &["new", "--app", "app"], b"").ok().stdout;
    let archive = ["archive", "--name", "config", "--stage", "stage", "secret"];
    let document = sandbox.run("bk-dump", &archive, &new).expect(0).stdout;
    let add = ["add", "--root", "src"];
    let document = sandbox.run("bk-manifest", &add, &document).expect(0).stdout;
    sandbox.run("bk-push", &["--to", "dest"], &document).expect(0);
    let refused = sandbox.try_back_up(&[]).pop().unwrap().expect(22);
    assert!(refused.stderr.contains("holds 'config', and this one does not"), "{}", refused.stderr);
    sandbox.try_back_up(&["--full"]).pop().unwrap().expect(22);
    assert_eq!(sandbox.backups().len(), 1);
    sandbox.set("BACKUP_MAX_SHRINK", "100");
    sandbox.try_back_up(&[]).pop().unwrap().expect(0);
}

#[test]
fn dumps_that_wait_to_be_stored_are_not_stored_with_the_tree_around_them() {
    let sandbox = Sandbox::new();
    sandbox.write("state/secret", "key");
    sandbox.write("a", "content");
    let new = sandbox.run("bk-manifest", &["new", "--app", "app"], b"").ok().stdout;
    let archive = ["archive", "--name", "config", "--stage", "src/stage", "src/state/secret"];
    let document = sandbox.run("bk-dump", &archive, &new).expect(0).stdout;
    let document = sandbox.run("bk-manifest", &["add", "--root", "src"], &document).expect(0);
    let listed = sandbox.run("bk-manifest", &["ls"], &document.stdout).ok().text();
    assert!(listed.contains("state/secret") && !listed.contains("stage/"), "{listed}");
}

#[test]
fn other_programs_read_the_volumes() {
    let sandbox = Sandbox::new();
    sandbox.nasty_tree();
    sandbox.back_up();
    let volume = sandbox.volumes()[0].to_str().unwrap().to_owned();
    let listed = sandbox.run("bsdtar", &["-tf", &volume], b"").ok();
    let members = listed.stdout.iter().filter(|byte| **byte == b'\n').count();
    let python = "import sys,subprocess,tarfile,io
data=subprocess.run(['zstd','-dcq',sys.argv[1]],check=True,capture_output=True).stdout
tar=tarfile.open(fileobj=io.BytesIO(data))
print(sum(1 for member in tar if tar.extractfile(member).read() is not None))";
    let counted = sandbox.run("python3", &["-c", python, &volume], b"").ok();
    assert!(members > 50, "{members}");
    assert_eq!(counted.text().trim(), members.to_string());
    let checked = sandbox.run("zstd", &["-tq", &volume], b"");
    assert_eq!(checked.code, 0, "{}", checked.stderr);
}

#[test]
fn sha256sum_checks_what_a_backup_needs() {
    let sandbox = Sandbox::new();
    three_backups(&sandbox);
    for folder in sandbox.backups() {
        let mut command = sandbox.command("sha256sum");
        run(command.current_dir(folder).args(["--quiet", "-c", "SHA256SUMS"]), b"").ok();
    }
}

/// Waits until files are older than the clock's grain, before which all of them are read again.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(2100));
}

#[test]
fn unchanged_files_cost_nothing_and_full_stores_everything() {
    let sandbox = Sandbox::new();
    for number in 0..200 {
        sandbox.write(&format!("f{number}"), format!("content {number}"));
    }
    settle();
    sandbox.back_up();
    let second: serde_json::Value = serde_json::from_slice(&sandbox.back_up()).unwrap();
    assert_eq!(second["verification"]["run"]["pushed"]["read"], 0);
    assert_eq!(second["verification"]["run"]["pushed"]["objects"], 0);
    let full = sandbox.try_back_up(&["--full"]).pop().unwrap().expect(0).json();
    assert_eq!(full["backup"]["type"], "full");
    assert_eq!(full["chain"], serde_json::json!({}));
    assert_eq!(full["backup"]["parent_backup_id"], serde_json::Value::Null);
}

#[test]
fn a_claim_is_not_believed_where_the_object_is_gone() {
    let sandbox = Sandbox::new();
    for number in 0..20 {
        sandbox.write(&format!("f{number}"), format!("content {number}"));
    }
    settle();
    sandbox.back_up();
    fs::remove_file(&sandbox.volumes()[0]).unwrap();
    let document = sandbox.back_up();
    let before = snapshot(&sandbox.path("src"));
    sandbox.fetch(&document, "back");
    assert_same_tree(&before, &snapshot(&sandbox.path("back")));
}

#[test]
fn a_claim_is_not_believed_where_the_object_has_another_size() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "content");
    settle();
    sandbox.back_up();
    let volume = &sandbox.volumes()[0];
    let length = fs::metadata(volume).unwrap().len();
    fs::OpenOptions::new().write(true).open(volume).unwrap().set_len(length / 2).unwrap();
    let document = sandbox.back_up();
    sandbox.fetch(&document, "back");
    assert_eq!(fs::read(sandbox.path("back/f")).unwrap(), b"content");
}

#[test]
fn a_parent_from_another_destination_is_stored_again() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "content");
    settle();
    let document = sandbox.back_up();
    sandbox.init("other", "24h");
    fs::write(sandbox.path("parent.json"), document).unwrap();
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
        &["bk-manifest", "add", "--root", "src"],
        &["bk-push", "--to", "other"],
    ]);
    assert!(ended[2].stderr.contains("not at this destination"), "{}", ended[2].stderr);
    assert_eq!(ended[2].code, 0);
    let document = &ended[2].stdout;
    fs::rename(sandbox.path("dest"), sandbox.path("gone")).unwrap();
    let fetched =
        sandbox.run("bk-push", &["fetch", "--from", "other", "--target", "back"], document);
    fetched.expect(0);
    assert_eq!(fs::read(sandbox.path("back/f")).unwrap(), b"content");
}

#[test]
fn a_parent_of_another_series_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "content");
    fs::write(sandbox.path("parent.json"), sandbox.back_up()).unwrap();
    let other = ["new", "--app", "other", "--parent", "parent.json"];
    let ended = sandbox.run("bk-manifest", &other, b"").expect(2);
    assert!(ended.stderr.contains("series"), "{}", ended.stderr);
}

#[test]
fn one_path_is_fetched_without_the_rest() {
    let sandbox = Sandbox::new();
    sandbox.nasty_tree();
    let document = sandbox.back_up();
    let fetch = ["fetch", "--from", "dest", "--target", "back", "--path", "small/f1*"];
    sandbox.run("bk-push", &fetch, &document).expect(0);
    let names: Vec<_> = snapshot(&sandbox.path("back")).into_keys().collect();
    assert_eq!(names.len(), 12, "{names:?}");
    let nothing = ["fetch", "--from", "dest", "--target", "nothing", "--path", "no/such"];
    sandbox.run("bk-push", &nothing, &document).expect(13);
    assert!(!sandbox.path("nothing").exists());
}

#[test]
fn a_hard_link_fetched_without_its_first_path_is_a_file() {
    let sandbox = Sandbox::new();
    sandbox.nasty_tree();
    let document = sandbox.back_up();
    let fetch = ["fetch", "--from", "dest", "--target", "back", "--path", "zz*"];
    sandbox.run("bk-push", &fetch, &document).expect(0);
    assert_eq!(fs::read(sandbox.path("back/zz hard link")).unwrap(), b"content 1\n");
}

#[test]
fn a_target_in_use_is_refused_and_into_keeps_what_it_replaces() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "from the backup");
    sandbox.write("d/g", "from the backup");
    let document = sandbox.back_up();
    fs::create_dir_all(sandbox.path("back/f")).unwrap();
    fs::write(sandbox.path("back/d"), "newer").unwrap();
    fs::write(sandbox.path("back/stranger"), "mine").unwrap();
    let fetch = ["fetch", "--from", "dest", "--target", "back"];
    let refused = sandbox.run("bk-push", &fetch, &document).expect(2);
    assert!(refused.stderr.contains("--into"), "{}", refused.stderr);
    assert_eq!(fs::read(sandbox.path("back/d")).unwrap(), b"newer");
    let into = [&fetch[..], &["--into"]].concat();
    let ended = sandbox.run("bk-push", &into, &document).expect(0);
    assert!(ended.stderr.contains("stranger"), "{}", ended.stderr);
    assert_eq!(fs::read(sandbox.path("back/d/g")).unwrap(), b"from the backup");
    assert_eq!(fs::read(sandbox.path("back/f")).unwrap(), b"from the backup");
    assert_eq!(fs::read(sandbox.path("back/stranger")).unwrap(), b"mine");
    let kept: Vec<_> = fs::read_dir(sandbox.path("back"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains(".bk-replaced-"))
        .collect();
    assert_eq!(fs::read(kept[0].join("d")).unwrap(), b"newer");
    assert!(kept[0].join("f").is_dir());
}

/// Neither its size nor its time says what a file holds.
#[test]
fn a_file_in_the_target_is_kept_only_if_its_content_is_the_backups() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "from the backup");
    let document = sandbox.back_up();
    for (target, how) in [("used", "--into"), ("stopped", "--resume")] {
        sandbox.fetch(&document, target);
        let file = sandbox.path(target).join("f");
        let times = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "from the bitrot").unwrap();
        fs::File::open(&file).unwrap().set_modified(times).unwrap();
        let fetch = ["fetch", "--from", "dest", "--target", target, how];
        sandbox.run("bk-push", &fetch, &document).expect(0);
        assert_eq!(fs::read(&file).unwrap(), b"from the backup", "{how}");
    }
}

#[test]
fn a_link_in_the_target_leads_nowhere() {
    let sandbox = Sandbox::new();
    sandbox.write("d/secret", "from the backup");
    let document = sandbox.back_up();
    fs::create_dir(sandbox.path("outside")).unwrap();
    fs::create_dir(sandbox.path("back")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("outside"), sandbox.path("back/d")).unwrap();
    let into = ["fetch", "--from", "dest", "--target", "back", "--into"];
    sandbox.run("bk-push", &into, &document).expect(0);
    assert!(fs::read_dir(sandbox.path("outside")).unwrap().next().is_none());
    assert_eq!(fs::read(sandbox.path("back/d/secret")).unwrap(), b"from the backup");
}

#[test]
fn a_destination_without_its_marker_is_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("unmounted")).unwrap();
    let document = sandbox.run("bk-manifest", &["new", "--app", "app"], b"").ok().stdout;
    for dest in ["unmounted", "not there"] {
        sandbox.run("bk-push", &["--to", dest], &document).expect(10);
        sandbox.run("bk-push", &["list", "--from", dest], b"").expect(10);
        let none = ["manifest", "latest", "--from", dest, "--or-none"];
        assert_eq!(sandbox.run("bk-push", &none, b"").expect(10).stdout, b"");
    }
    assert!(fs::read_dir(sandbox.path("unmounted")).unwrap().next().is_none());
}

#[test]
fn latest_is_asked_for_by_series_and_time() {
    let sandbox = Sandbox::new();
    let latest = ["manifest", "latest", "--from", "dest"];
    sandbox.run("bk-push", &latest, b"").expect(13);
    sandbox.write("f", "1");
    let first: serde_json::Value = serde_json::from_slice(&sandbox.back_up()).unwrap();
    sandbox.back_up();
    let before = first["backup"]["timestamp"].as_str().unwrap();
    let none = [&latest[..], &["--before", before]].concat();
    sandbox.run("bk-push", &none, b"").expect(13);
    for step in
        sandbox.pipe(&[&["bk-manifest", "new", "--app", "second"], &["bk-push", "--to", "dest"]])
    {
        assert_eq!(step.code, 0, "{}", step.stderr);
    }
    let several = sandbox.run("bk-push", &latest, b"").expect(2);
    assert!(several.stderr.contains("app, second"), "{}", several.stderr);
    sandbox.run("bk-push", &[&latest[..], &["--app", "app"]].concat(), b"").ok();
}

#[test]
fn a_destination_inside_the_tree_is_left_out() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "1");
    fs::rename(sandbox.path("dest"), sandbox.path("src/backups")).unwrap();
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app"],
        &["bk-manifest", "add", "--root", "src"],
        &["bk-push", "--to", "src/backups"],
    ]);
    let document = ended.into_iter().next_back().unwrap().ok().json();
    assert_eq!(document["files"]["count"], 1);
    assert_eq!(document["left_out"]["destination"]["count"], 1);
}

#[test]
fn two_trees_keep_apart_by_prefix() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "first");
    fs::create_dir(sandbox.path("more")).unwrap();
    fs::write(sandbox.path("more/f"), "second").unwrap();
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app"],
        &["bk-manifest", "add", "--root", "src"],
        &["bk-manifest", "add", "--root", "more", "--as", "more", "--component", "extra"],
        &["bk-push", "--to", "dest"],
    ]);
    assert_eq!(ended[2].code, 2, "the first tree covers every path");
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app"],
        &["bk-manifest", "add", "--root", "src", "--as", "main"],
        &["bk-manifest", "add", "--root", "more", "--as", "extra/more", "--component", "extra"],
        &["bk-push", "--to", "dest"],
    ]);
    let document = ended.into_iter().next_back().unwrap().ok();
    sandbox.fetch(&document.stdout, "back");
    assert_eq!(fs::read(sandbox.path("back/main/f")).unwrap(), b"first");
    assert_eq!(fs::read(sandbox.path("back/extra/more/f")).unwrap(), b"second");
}

#[test]
fn a_manifest_pushed_to_two_destinations_is_no_parent_across_them() {
    let sandbox = Sandbox::new();
    sandbox.init("other", "24h");
    for number in 0..3 {
        sandbox.write(&format!("{number}"), vec![b'a' + number; 100]);
        settle();
        let latest = ["manifest", "latest", "--from", "dest", "--app", "app", "--or-none"];
        fs::write(sandbox.path("parent.json"), sandbox.run("bk-push", &latest, b"").ok().stdout)
            .unwrap();
        let made = sandbox.pipe(&[
            &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
            &["bk-manifest", "add", "--root", "src"],
        ]);
        for dest in ["dest", "other"] {
            sandbox.run("bk-push", &["--to", dest], &made[1].stdout).expect(0);
        }
    }
    let before = snapshot(&sandbox.path("src"));
    for dest in ["dest", "other"] {
        let document = sandbox.run("bk-push", &["manifest", "latest", "--from", dest], b"").ok();
        let fetch = ["fetch", "--from", dest, "--target", &format!("back-{dest}")];
        sandbox.run("bk-push", &fetch, &document.stdout).expect(0);
        assert_same_tree(&before, &snapshot(&sandbox.path(&format!("back-{dest}"))));
    }
}

#[test]
fn a_second_push_in_the_pipe_stores_by_itself() {
    let sandbox = Sandbox::new();
    sandbox.init("other", "24h");
    sandbox.write("a", "aaaa");
    settle();
    fs::write(sandbox.path("parent.json"), sandbox.back_up()).unwrap();
    sandbox.write("b", "bbbb");
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
        &["bk-manifest", "add", "--root", "src"],
        &["bk-push", "--to", "dest"],
        &["bk-push", "--to", "other"],
    ]);
    let document = ended.into_iter().next_back().unwrap().expect(0).stdout;
    let fetch = ["fetch", "--from", "other", "--target", "back"];
    sandbox.run("bk-push", &fetch, &document).expect(0);
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("back")));
}

#[test]
fn a_tree_without_content_comes_back_by_hand() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("src/folder")).unwrap();
    std::os::unix::fs::symlink("nowhere", sandbox.path("src/link")).unwrap();
    sandbox.back_up();
    let script = sandbox.backups()[0].join("RESTORE.txt");
    run(Command::new("bash").arg(script).arg(sandbox.path("by-hand")), b"").expect(0);
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("by-hand")));
}

#[test]
fn a_link_to_a_lost_file_is_lost_too() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "content");
    fs::hard_link(sandbox.path("src/a"), sandbox.path("src/b")).unwrap();
    let document = sandbox.back_up();
    fs::remove_file(&sandbox.volumes()[0]).unwrap();
    fs::create_dir(sandbox.path("back")).unwrap();
    for name in ["a", "b"] {
        fs::write(sandbox.path("back").join(name), format!("old {name}")).unwrap();
    }
    let into = ["fetch", "--from", "dest", "--target", "back", "--into"];
    let ended = sandbox.run("bk-push", &into, &document).expect(3);
    assert!(ended.stderr.contains("lost: 'b'"), "{}", ended.stderr);
    assert_eq!(fs::read(sandbox.path("back/b")).unwrap(), b"old b");
}

#[test]
fn a_file_with_names_outside_the_target_is_not_changed_there() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "content");
    let document = sandbox.back_up();
    fs::create_dir(sandbox.path("back")).unwrap();
    fs::write(sandbox.path("outside"), "content").unwrap();
    fs::set_permissions(sandbox.path("outside"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(sandbox.path("outside"), sandbox.path("back/a")).unwrap();
    let into = ["fetch", "--from", "dest", "--target", "back", "--into"];
    sandbox.run("bk-push", &into, &document).expect(0);
    let mode = fs::metadata(sandbox.path("outside")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
}

#[test]
fn a_target_in_a_destination_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "content");
    let document = sandbox.back_up();
    let fetch = ["fetch", "--from", "dest", "--target", "dest/deep/below"];
    sandbox.run("bk-push", &fetch, &document).expect(2);
}

/// The same document, stored in two places: in each the content of a file may lie elsewhere.
#[test]
fn the_parent_of_another_destination_is_not_believed() {
    let sandbox = Sandbox::new();
    sandbox.init("other", "24h");
    sandbox.write("a", noise(1, 3000));
    sandbox.write("b", noise(2, 3000));
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let new = &["bk-manifest", "new", "--app", "app"][..];
    let add = &["bk-manifest", "add", "--root", "src"][..];
    let document = sandbox.pipe(&[new, add]).pop().unwrap().stdout;
    sandbox.run("bk-push", &["--to", "dest"], &document).ok();
    // By the time of the second push two files have changed places, under the same sizes and times.
    let swap = "touch -r a t; mv a c; mv b a; mv c b; touch -r t a b; rm t";
    sandbox.run("sh", &["-c", &format!("cd src && {swap}")], b"").ok();
    let other = sandbox.run("bk-push", &["--to", "other"], &document);
    assert!([0, 3].contains(&other.code), "{}", other.stderr);
    let parent = sandbox.run("bk-push", &["manifest", "latest", "--from", "dest"], b"").ok();
    fs::write(sandbox.path("parent.json"), &parent.stdout).unwrap();
    sandbox.run("sh", &["-c", &format!("cd src && {swap}")], b"").ok();
    let new = [new, &["--parent", "parent.json"]].concat();
    let push = ["bk-push", "--to", "other"];
    let ended = sandbox.pipe(&[&new, add, &push]).pop().unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let verify = ["--from", "other", "--level", "content"];
    sandbox.run("bk-verify", &verify, &ended.stdout).ok();
}
