//! Programs killed at any moment, readers that die, disks that fill: earlier backups stay, a rerun
//! succeeds and does not start from nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Ended, Random, Sandbox, assert_same_tree, noise, snapshot};

/// A tree that takes push some tenths of a second.
fn heavy_tree(sandbox: &Sandbox) {
    for number in 0..60 {
        sandbox.write(&format!("large/{number:02}"), noise(number, 3 << 20));
    }
    for number in 0..2000 {
        sandbox.write(&format!("small/{number}"), format!("content {number}"));
    }
}

/// Every backup at the destination restores to the byte.
fn assert_all_restore(sandbox: &Sandbox) {
    let list = sandbox.run("bk-push", &["list", "--from", "dest", "--json"], b"").ok().text();
    for line in list.lines() {
        let backup: serde_json::Value = serde_json::from_str(line).unwrap();
        let id = backup["id"].as_str().unwrap();
        let document = sandbox.run("bk-push", &["manifest", id, "--from", "dest"], b"").ok().stdout;
        sandbox.run("bk-verify", &["--from", "dest", "--level", "content"], &document).expect(0);
    }
}

#[test]
fn a_killed_push_costs_nothing_and_the_next_builds_on_it() {
    let mut random = Random::from_run();
    let sandbox = Sandbox::new();
    sandbox.write("small/0", "before");
    sandbox.back_up();
    heavy_tree(&sandbox);
    let new = sandbox
        .pipe(&[&["bk-manifest", "new", "--app", "app"], &["bk-manifest", "add", "--root", "src"]]);
    let document = &new[1].stdout;
    let mut was_killed_after_storing = false;
    for round in 0..12 {
        fs::write(sandbox.path("document"), document).unwrap();
        // A new id each round, as a new run would have.
        let id = format!("backup-20261120-1200{round:02}-0000000{}", round % 10);
        let text = String::from_utf8(document.clone()).unwrap();
        let start = text.find("\"id\":\"backup-").unwrap() + 6;
        let end = start + text[start..].find('"').unwrap();
        let renamed = format!("{}{id}{}", &text[..start], &text[end..]);
        fs::write(sandbox.path("document"), with_total(&sandbox, &renamed)).unwrap();
        let mut child = sandbox
            .command("bk-push")
            .args(["--to", "dest"])
            .stdin(fs::File::open(sandbox.path("document")).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.below(700)));
        let has_ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if has_ended {
            break;
        }
        // A volume can be built on once its entries are noted.
        was_killed_after_storing |= crate::harness::files_below(&sandbox.path("dest"))
            .iter()
            .any(|file| file.to_str().unwrap().ends_with(".entries"));
        assert_all_restore(&sandbox);
    }
    let last: serde_json::Value = serde_json::from_slice(&sandbox.back_up()).unwrap();
    if was_killed_after_storing {
        let pushed = &last["verification"]["run"]["pushed"];
        assert!(pushed["inherited"].as_u64().unwrap() > 0, "it started from nothing: {pushed}");
    }
    let before = snapshot(&sandbox.path("src"));
    sandbox.fetch(&sandbox.latest(), "back");
    assert_same_tree(&before, &snapshot(&sandbox.path("back")));
}

/// The document with its total checksum made right again.
fn with_total(sandbox: &Sandbox, text: &str) -> Vec<u8> {
    let filter = "del(.run,.verification,.files.manifest)";
    let canonical = sandbox.run("jq", &["-cS", filter], text.as_bytes()).ok();
    let sum = sandbox.run("sha256sum", &[], &canonical.stdout).ok().text();
    let place = text.rfind("\"total_checksum\":\"sha256:").unwrap() + 25;
    [&text[..place], &sum[..64], &text[place + 64..]].concat().into_bytes()
}

#[test]
fn a_killed_fetch_is_resumed() {
    let mut random = Random::from_run();
    let sandbox = Sandbox::new();
    heavy_tree(&sandbox);
    let document = sandbox.back_up();
    fs::write(sandbox.path("document"), &document).unwrap();
    let fetch = ["fetch", "--from", "dest", "--target", "back"];
    for _ in 0..8 {
        let resume: &[&str] =
            if sandbox.path("back/.bk/fetched.json").exists() { &["--resume"] } else { &[] };
        let mut child = sandbox
            .command("bk-push")
            .args(fetch)
            .args(resume)
            .stdin(fs::File::open(sandbox.path("document")).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.below(300)));
        child.kill().unwrap();
        child.wait().unwrap();
        let source = snapshot(&sandbox.path("src"));
        if sandbox.path("back").exists() {
            for (path, node) in snapshot(&sandbox.path("back")) {
                let is_unfinished = path.to_string_lossy().contains(".bk-tmp-");
                let is_folder = source.get(&path).is_some_and(|other| *other != node);
                assert!(
                    is_unfinished || source.contains_key(&path) || is_folder,
                    "{path:?} is half-written"
                );
            }
        }
    }
    let resume: &[&str] =
        if sandbox.path("back/.bk/fetched.json").exists() { &["--resume"] } else { &[] };
    sandbox.run("bk-push", &[&fetch[..], resume].concat(), &document).expect(0);
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("back")));
}

/// What a kill can leave: a marker that has no name yet, and a part of a dump.
#[test]
fn what_a_killed_fetch_left_among_the_dumps_is_swept() {
    let sandbox = Sandbox::new();
    sandbox.write("a", "1");
    fs::create_dir(sandbox.path("config")).unwrap();
    fs::write(sandbox.path("config/x"), "x").unwrap();
    let document = sandbox
        .pipe(&[
            &["bk-manifest", "new", "--app", "app"],
            &["bk-dump", "archive", "--name", "config", "config"],
            &["bk-manifest", "add", "--root", "src"],
            &["bk-push", "--to", "dest"],
        ])
        .pop()
        .unwrap()
        .ok()
        .stdout;
    let fetch = ["fetch", "--from", "dest", "--target", "back"];
    for (left, resume) in [
        (".bk/.bk-tmp-1-0", &["--resume"][..]),
        (".bk/config/.bk-tmp-1-2", &["--resume"]),
        (".bk/.bk-tmp-1-0", &[]),
    ] {
        let left = sandbox.path("back").join(left);
        fs::create_dir_all(left.parent().unwrap()).unwrap();
        fs::write(&left, "part").unwrap();
        sandbox.run("bk-push", &[&fetch[..], resume].concat(), &document).ok();
        assert!(!left.exists(), "{left:?}");
        assert!(sandbox.path("back/.bk/config/config.tar.zst").exists());
        if left.ends_with("config/.bk-tmp-1-2") {
            fs::remove_dir_all(sandbox.path("back")).unwrap();
        }
    }
}

#[test]
fn a_push_whose_reader_died_commits_first_and_fails_quietly() {
    let sandbox = Sandbox::new();
    for number in 0..2000 {
        sandbox.write(&format!("{number}"), "x");
    }
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app"],
        &["bk-manifest", "add", "--root", "src"],
        &["bk-push", "--to", "dest"],
        &["true"],
    ]);
    assert_eq!(ended[2].code, 1);
    assert_eq!(ended[2].stderr, "");
    assert_eq!(sandbox.backups().len(), 1);
    let document = sandbox.latest();
    sandbox.run("bk-verify", &["--from", "dest", "--level", "content"], &document).expect(0);
}

#[test]
fn a_terminated_push_cleans_up_and_dies_of_the_signal() {
    let sandbox = Sandbox::new();
    sandbox.write("small", "x");
    sandbox.write("large", noise(3, 64 << 20));
    let new = sandbox
        .pipe(&[&["bk-manifest", "new", "--app", "app"], &["bk-manifest", "add", "--root", "src"]]);
    let document = &new[1].stdout;
    // All but its end, so that push is still waiting when the signal comes.
    let mut child = sandbox
        .command("bk-push")
        .args(["-v", "--to", "dest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    use std::io::Write;
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(&document[..document.len() - 20]).unwrap();
    stdin.flush().unwrap();
    while !crate::harness::files_below(&sandbox.path("dest"))
        .iter()
        .any(|path| path.to_str().unwrap().contains(".bk/tmp/"))
    {
        assert!(child.try_wait().unwrap().is_none());
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    drop(child.stdin.take());
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    let left: Vec<_> = crate::harness::files_below(&sandbox.path("dest"))
        .into_iter()
        .filter(|path| path.to_str().unwrap().contains(".bk/tmp/"))
        .collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    assert!(sandbox.backups().is_empty());
}

#[test]
fn a_second_run_is_told_who_is_busy() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "x");
    let new = sandbox.run("bk-manifest", &["new", "--app", "app"], b"").ok().stdout;
    let mut first = sandbox
        .command("bk-push")
        .args(["--to", "dest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    use std::io::Write;
    first.stdin.as_mut().unwrap().write_all(&new[..new.len() - 5]).unwrap();
    while !sandbox.path("dest/.bk/partial").exists() {
        assert!(first.try_wait().unwrap().is_none());
    }
    let second = sandbox.run("bk-push", &["--to", "dest"], &new).expect(11);
    assert!(second.stderr.contains("bk-push backup-"), "{}", second.stderr);
    first.kill().unwrap();
    first.wait().unwrap();
}

/// Runs a shell script with a small file system at `small`.
pub fn with_small_disk(sandbox: &Sandbox, kilobytes: u32, script: &str) -> crate::harness::Ended {
    fs::create_dir_all(sandbox.path("small")).unwrap();
    let script = format!("mount -t tmpfs -o size={kilobytes}k none small && {{ {script}; }}");
    // Root may mount by itself; anybody else as root of a user namespace.
    let space = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    sandbox.run("unshare", &[space, "sh", "-c", &script], b"")
}

#[test]
fn a_full_destination_leaves_the_earlier_backup() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "first");
    fs::create_dir(sandbox.path("more")).unwrap();
    fs::write(sandbox.path("more/large"), noise(5, 8 << 20)).unwrap();
    let script = "bk-push init --to small
        bk-manifest new --app app | bk-manifest add --root src | bk-push --to small > first.json
        echo first $?
        bk-manifest new --app app | bk-manifest add --root more | bk-push --to small > second.json
        echo second $?
        bk-push list --from small --json | wc -l
        bk-push fetch --from small --target back < first.json > /dev/null; echo fetch $?
        bk-manifest new --app app | bk-manifest add --root src | bk-push --to small > third.json
        echo third $?; ls small/.bk/tmp";
    let ended = with_small_disk(&sandbox, 3000, script).expect(0);
    assert_eq!(ended.text(), "first 0\nsecond 1\n1\nfetch 0\nthird 0\n", "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
    assert_eq!(fs::read(sandbox.path("back/f")).unwrap(), b"first");
}

#[test]
fn a_full_target_is_told_before_anything_is_written() {
    let sandbox = Sandbox::new();
    sandbox.write("f", noise(6, 8 << 20));
    let document = sandbox.back_up();
    fs::write(sandbox.path("document"), document).unwrap();
    let script = "fetch() { bk-push fetch --from dest \"$@\" < document > out.json; echo $?; }
        fetch --dry-run --target small/new/back; ls -A small
        fetch --dry-run --target dest/back; fetch --dry-run --target src; ls -A src
        fetch --dry-run --target src --into; fetch --dry-run --target /proc/back
        fetch --target small/back
        find small -type f ! -path '*/.bk/*' | wc -l";
    let ended = with_small_disk(&sandbox, 3000, script).expect(0);
    assert_eq!(ended.text(), "1\n2\n2\nf\n0\n1\n1\n0\n", "{}", ended.stderr);
    assert!(ended.stderr.contains("are needed"), "{}", ended.stderr);
}

#[test]
fn a_full_temporary_disk_fails_the_push() {
    let sandbox = Sandbox::new();
    for number in 0..4000 {
        sandbox.write(&format!("{number:0200}"), "");
    }
    let script = "bk-manifest new --app app | bk-manifest add --root src |
        TMPDIR=small bk-push --to dest > out.json; echo $?; bk-push list --from dest --json | wc -l";
    let ended = with_small_disk(&sandbox, 200, script).expect(0);
    assert_eq!(ended.text(), "1\n0\n", "{}", ended.stderr);
}

#[test]
fn a_walk_flows_past_a_step_that_is_still_at_work() {
    let sandbox = Sandbox::new();
    for number in 0..3000 {
        sandbox.write(&format!("{number}"), "x");
    }
    // A document whose header is there, as a dump step leaves it while it dumps.
    let new = sandbox.run("bk-manifest", &["new", "--app", "app"], b"").ok().stdout;
    let text = String::from_utf8(new).unwrap();
    let (head, tail) = text.split_at(text.find("\n],").unwrap());
    let mut add = sandbox
        .command("bk-manifest")
        .args(["add", "--root", "src"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    let mut stdin = add.stdin.take().unwrap();
    stdin.write_all(head.as_bytes()).unwrap();
    stdin.flush().unwrap();
    let mut output = BufReader::new(add.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"path\":\"0\"") {
        line.clear();
        assert!(
            output.read_line(&mut line).unwrap() > 0,
            "no entry came while the dump was at work"
        );
    }
    stdin.write_all(tail.as_bytes()).unwrap();
    drop(stdin);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(add.wait().unwrap().success());
    assert!(rest.contains("\"count\":3000"));
}

#[test]
fn a_restore_goes_to_a_file_system_that_cannot_refuse_taken_names() {
    let sandbox = Sandbox::new();
    sandbox.write("a/file", "one");
    sandbox.write("b", "two");
    let archived = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app"],
        &["bk-dump", "archive", "--name", "config", "--root", "src", "a"],
        &["bk-manifest", "add", "--root", "src"],
        &["bk-push", "--to", "dest"],
    ]);
    let steps: Vec<_> = archived.into_iter().map(Ended::ok).collect();
    let document = &steps[3].stdout;
    // What NFS, for one, says to RENAME_NOREPLACE.
    let nfs = ["-f", "-qq", "-o", "tmp/trace", "-e", "trace=renameat2"];
    let inject = ["-e", "inject=renameat2:error=EINVAL"];
    let run =
        |command: &[&str]| sandbox.run("strace", &[&nfs[..], &inject, command].concat(), document);
    let restore = ["bk-dump", "restore", "--from", "back", "--into", "config"];
    run(&["bk-push", "fetch", "--from", "dest", "--target", "back"]).expect(0);
    run(&restore).expect(0);
    run(&restore).expect(2);
    for changed in ["back/a", "config/a"] {
        fs::remove_dir_all(sandbox.path(changed)).unwrap();
        fs::write(sandbox.path(changed), "in the way").unwrap();
    }
    fs::write(sandbox.path("back/b"), "of today").unwrap();
    run(&["bk-push", "fetch", "--from", "dest", "--target", "back", "--into"]).expect(0);
    run(&[&restore[..], &["--replace"]].concat()).expect(2);
    fs::remove_file(sandbox.path("config/a")).unwrap();
    fs::create_dir(sandbox.path("config/a")).unwrap();
    fs::write(sandbox.path("config/a/file"), "of today").unwrap();
    run(&[&restore[..], &["--replace"]].concat()).expect(0);
    for (file, content) in [("back/a/file", "one"), ("back/b", "two"), ("config/a/file", "one")] {
        assert_eq!(fs::read_to_string(sandbox.path(file)).unwrap(), content, "{file}");
    }
    for (folder, file, content) in [("back", "b", "of today"), ("config", "a/file", "of today")] {
        let aside = fs::read_dir(sandbox.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_str().unwrap().contains(".bk-replaced-"))
            .unwrap();
        assert_eq!(fs::read_to_string(aside.join(file)).unwrap(), content, "{folder}");
    }
}
