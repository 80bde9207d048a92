//! Sources that change, vanish or cannot be read while they are backed up.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Sandbox, assert_same_tree, noise, snapshot};

/// A document of the tree, made before something changes.
fn walked(sandbox: &Sandbox) -> Vec<u8> {
    let mut ended = sandbox
        .pipe(&[&["bk-manifest", "new", "--app", "app"], &["bk-manifest", "add", "--root", "src"]]);
    ended.pop().unwrap().ok().stdout
}

#[test]
fn a_file_that_changed_since_the_walk_is_stored_as_it_is_now() {
    let sandbox = Sandbox::new();
    sandbox.write("grown", "1");
    sandbox.write("shrunk", noise(1, 5 << 20));
    sandbox.write("gone", "x");
    sandbox.write("gone large", noise(2, 5 << 20));
    sandbox.write("now a folder", "x");
    sandbox.write("stays", "x");
    let document = walked(&sandbox);
    sandbox.write("grown", noise(3, 6 << 20));
    sandbox.write("shrunk", "small");
    fs::remove_file(sandbox.path("src/gone")).unwrap();
    fs::remove_file(sandbox.path("src/gone large")).unwrap();
    fs::remove_file(sandbox.path("src/now a folder")).unwrap();
    fs::create_dir(sandbox.path("src/now a folder")).unwrap();
    let ended = sandbox.run("bk-push", &["--to", "dest"], &document);
    let json = ended.json();
    assert_eq!(json["left_out"]["vanished"]["count"], 2, "{}", json["left_out"]);
    assert_eq!(json["left_out"]["unreadable"]["names"][0]["path"], "now a folder");
    assert_eq!(ended.code, 3);
    let document = ended.stdout;
    sandbox.run("bk-push", &["fetch", "--from", "dest", "--target", "back"], &document).expect(3);
    assert_eq!(fs::read(sandbox.path("back/grown")).unwrap(), noise(3, 6 << 20));
    assert_eq!(fs::read(sandbox.path("back/shrunk")).unwrap(), b"small");
    assert_eq!(fs::read(sandbox.path("back/stays")).unwrap(), b"x");
}

#[test]
fn files_that_grew_since_the_walk_are_stored_whole_in_bounded_memory() {
    let sandbox = Sandbox::new();
    let sizes = [(150, 1 << 20), (30, 9 << 20)];
    let files = || sizes.iter().flat_map(|(count, size)| (0..*count).map(move |n| (n, *size)));
    for (number, size) in files() {
        sandbox.write(&format!("{size}/{number}"), "");
    }
    fs::write(sandbox.path("walked.json"), walked(&sandbox)).unwrap();
    for (number, size) in files() {
        let path = sandbox.path("src").join(format!("{size}/{number}"));
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        file.set_len(size).unwrap();
        file.write_all(number.to_string().as_bytes()).unwrap();
    }
    let measured = "import resource, subprocess, sys
code = subprocess.run(sys.argv[2:], stdin=open('walked.json')).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=open(sys.argv[1], 'w'))
sys.exit(code)";
    let args = ["-c", measured, "tmp/used", "bk-push", "--to", "dest"];
    let ended = sandbox.run("python3", &args, b"").ok();
    assert_eq!(ended.json()["components"][0]["status"], "complete");
    sandbox.fetch(&ended.stdout, "back");
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("back")));
    let used: u64 = fs::read_to_string(sandbox.path("tmp/used")).unwrap().trim().parse().unwrap();
    assert!(used < 100 << 10, "{used} KiB of memory");
}

#[test]
fn files_under_a_busy_writer_are_stored_and_reported() {
    let sandbox = Sandbox::new();
    sandbox.write("log", "");
    sandbox.write("large log", noise(4, 40 << 20));
    sandbox.write("still", "x");
    let is_over = AtomicBool::new(false);
    let mut ended = std::thread::scope(|scope| {
        for name in ["log", "large log"] {
            let path = sandbox.path("src").join(name);
            let is_over = &is_over;
            scope.spawn(move || {
                let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    file.write_all(b"another line\n").unwrap();
                }
            });
        }
        let ended = sandbox.try_back_up(&[]);
        is_over.store(true, Ordering::Relaxed);
        ended
    });
    let push = ended.pop().unwrap().expect(3);
    let json = push.json();
    assert_eq!(json["components"][0]["status"], "partial");
    assert!(json["left_out"]["changed_while_read"]["count"].as_u64().unwrap() >= 1);
    sandbox.run("bk-verify", &["--from", "dest", "--level", "content"], &push.stdout).expect(3);
    let fetched =
        sandbox.run("bk-push", &["fetch", "--from", "dest", "--target", "back"], &push.stdout);
    assert_eq!(fetched.code, 3);
    let prefix = fs::read(sandbox.path("back/large log")).unwrap();
    assert!(fs::read(sandbox.path("src/large log")).unwrap().starts_with(&prefix));
}

#[test]
fn a_small_file_that_changes_under_the_read_is_reported() {
    let sandbox = Sandbox::new();
    sandbox.write("log", "a line\n");
    let document = walked(&sandbox);
    let path = sandbox.path("src/log");
    let is_over = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                file.write_all(b"another line\n").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        // Every read of the file takes a while, so that a line comes meanwhile.
        let slow = ["-f", "-o", "/dev/null", "-P", path.to_str().unwrap(), "-e", "trace=read"];
        let slow =
            [&slow[..], &["-e", "inject=read:delay_enter=100000", "bk-push", "--to", "dest"]]
                .concat();
        let ended = sandbox.run("strace", &slow, &document);
        is_over.store(true, Ordering::Relaxed);
        ended
    });
    assert_eq!(ended.json()["left_out"]["changed_while_read"]["names"][0]["path"], "log");
    assert_eq!(ended.code, 3, "{}", ended.stderr);
}

#[test]
fn a_tree_that_churns_gives_a_backup_that_verifies() {
    let sandbox = Sandbox::new();
    for number in 0..300 {
        sandbox.write(&format!("d{}/f{number}", number % 7), noise(number, 20_000));
    }
    let is_over = AtomicBool::new(false);
    let mut ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = crate::harness::Random::from_run();
            while !is_over.load(Ordering::Relaxed) {
                let number = random.below(300);
                let path = sandbox.path(&format!("src/d{}/f{number}", number % 7));
                match random.below(4) {
                    0 => drop(fs::remove_file(&path)),
                    1 => drop(fs::write(&path, noise(number, random.below(3 << 20) as usize))),
                    2 => drop(fs::rename(&path, path.with_extension("moved"))),
                    _ => drop(
                        fs::OpenOptions::new()
                            .write(true)
                            .open(&path)
                            .map(|f| f.set_len(random.below(9999))),
                    ),
                }
            }
        });
        let ended = sandbox.try_back_up(&[]);
        is_over.store(true, Ordering::Relaxed);
        ended
    });
    let push = ended.pop().unwrap();
    assert!(push.code == 0 || push.code == 3, "{}: {}", push.code, push.stderr);
    let verify = ["--from", "dest", "--level", "content"];
    assert_eq!(sandbox.run("bk-verify", &verify, &push.stdout).code, push.code);
}

#[test]
fn sockets_are_counted_and_no_fault() {
    let sandbox = Sandbox::new();
    let _socket = UnixListener::bind(sandbox.path("src/socket")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&sandbox.back_up()).unwrap();
    assert_eq!(json["left_out"]["socket"]["count"], 1);
    assert_eq!(json["components"][0]["status"], "complete");
}

#[test]
fn what_cannot_be_read_makes_a_partial_backup() {
    let sandbox = Sandbox::new();
    sandbox.write("good", "x");
    sandbox.write("closed/inside", "x");
    sandbox.write("unreadable", "x");
    sandbox.lend_tools();
    // As somebody who is not root: root reads everything.
    let script =
        "chmod 000 src/closed src/unreadable; chmod 0777 . dest src tmp home; chmod -R a+rwX dest
        PATH=$PWD/bin:$PATH setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '
        bk-manifest new --app app | bk-manifest add --root src > document; echo $?
        bk-push init --to mine; bk-push --to mine < document > out.json; echo $?
        bk-push fetch --from mine --target back < out.json > fetched.json; echo $?'";
    let ended = sandbox.run("sh", &["-c", script], b"").expect(0);
    assert_eq!(ended.text(), "3\n3\n3\n", "{}", ended.stderr);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(sandbox.path("out.json")).unwrap()).unwrap();
    assert_eq!(json["left_out"]["unreadable"]["count"], 2);
    assert_eq!(json["components"][0]["status"], "partial");
    assert_eq!(fs::read(sandbox.path("back/good")).unwrap(), b"x");
}

#[test]
fn a_link_swapped_in_after_the_walk_is_not_followed() {
    let sandbox = Sandbox::new();
    sandbox.write("d/f", "mine");
    sandbox.write("g", "mine");
    let document = walked(&sandbox);
    fs::create_dir(sandbox.path("outside")).unwrap();
    fs::write(sandbox.path("outside/f"), "secret").unwrap();
    fs::remove_dir_all(sandbox.path("src/d")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("outside"), sandbox.path("src/d")).unwrap();
    fs::remove_file(sandbox.path("src/g")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("outside/f"), sandbox.path("src/g")).unwrap();
    let ended = sandbox.run("bk-push", &["--to", "dest"], &document);
    assert!(ended.code == 0 || ended.code == 3, "{}", ended.stderr);
    for volume in sandbox.volumes() {
        let content = sandbox.run("zstd", &["-dcq", volume.to_str().unwrap()], b"").stdout;
        assert!(!content.windows(6).any(|window| window == b"secret"));
    }
}

#[test]
fn a_named_pipe_swapped_in_does_not_stop_the_push() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "x");
    let document = walked(&sandbox);
    fs::remove_file(sandbox.path("src/f")).unwrap();
    sandbox.run("mkfifo", &["src/f"], b"").ok();
    sandbox.run("bk-push", &["--to", "dest"], &document).expect(3);
}

#[test]
fn a_hard_link_whose_first_path_became_another_file_keeps_its_content() {
    let sandbox = Sandbox::new();
    for group in ["replaced", "removed"] {
        sandbox.write(&format!("{group}-a"), format!("old {group}"));
        let first = sandbox.path("src").join(format!("{group}-a"));
        for link in ["b", "c"] {
            fs::hard_link(&first, sandbox.path("src").join(format!("{group}-{link}"))).unwrap();
        }
    }
    let document = walked(&sandbox);
    sandbox.write("new", "new");
    fs::rename(sandbox.path("src/new"), sandbox.path("src/replaced-a")).unwrap();
    fs::remove_file(sandbox.path("src/removed-a")).unwrap();
    let document = sandbox.run("bk-push", &["--to", "dest"], &document).expect(0).stdout;
    sandbox.run("bk-push", &["fetch", "--from", "dest", "--target", "back"], &document).expect(0);
    assert_eq!(fs::read(sandbox.path("back/replaced-a")).unwrap(), b"new");
    for name in ["replaced-b", "replaced-c", "removed-b", "removed-c"] {
        let group = name.split('-').next().unwrap();
        assert_eq!(
            fs::read(sandbox.path("back").join(name)).unwrap(),
            format!("old {group}").as_bytes()
        );
    }
}

#[test]
fn a_folder_that_was_moved_away_makes_a_partial_backup() {
    let sandbox = Sandbox::new();
    sandbox.write("folder/f", "x");
    let document = walked(&sandbox);
    fs::rename(sandbox.path("src/folder"), sandbox.path("moved")).unwrap();
    let json = sandbox.run("bk-push", &["--to", "dest"], &document).expect(3).json();
    assert_eq!(json["components"][0]["status"], "partial");
}

#[test]
fn a_tree_named_by_a_link_is_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("elsewhere"), sandbox.path("src/events")).unwrap();
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app"],
        &["bk-manifest", "add", "--root", "src", "events"],
    ]);
    assert_eq!(ended[1].code, 2);
    assert!(ended[1].stderr.contains("symbolic link"), "{}", ended[1].stderr);
}
