//! Backups of a bucket whose objects are stored one by one, in clear and encrypted: proved, fetched, and
//! brought back by hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::encryption::instead;
use crate::harness::{Ended, Sandbox, noise, run};
use crate::keys::age_key;
use crate::proxy::Request;
use crate::s3::{DEST, World};

/// The application's bucket.
const SOURCE: &str = "documents";
const MARK: &[u8] = b"a line that nobody else may read";

/// The world of the tests of S3, with an application's bucket in its store, keys of age in `key` and
/// `other`, and a folder `dest` as a second destination.
fn world() -> (World, BTreeMap<String, Vec<u8>>, String) {
    let world = World::new("24h");
    world.gateway.make_bucket(SOURCE);
    world.sandbox.init("dest", "24h");
    let mut contents = BTreeMap::new();
    let objects = [
        ("a", MARK.repeat(10)),
        ("d/same-as-a.txt", MARK.repeat(10)),
        ("d/e-f.jpg", noise(1, 100_000)),
        ("empty", Vec::new()),
        ("large", noise(2, 9 << 20)),
        // A name that a tool could take for a manifest goes into a volume.
        ("manifest.json", b"{}".to_vec()),
    ];
    for (key, bytes) in objects {
        world.gateway.write(SOURCE, key, &bytes);
        contents.insert(key.to_owned(), bytes);
    }
    let recipient = age_key(&world.sandbox, "key");
    age_key(&world.sandbox, "other");
    (world, contents, format!("age:{recipient}"))
}

/// In clear and encrypted: where to, what push is told, what opens it.
type Way<'a> = (&'a str, Vec<&'a str>, &'a [&'a str]);

fn ways(age: &str) -> [Way<'_>; 2] {
    [("dest", vec![], &[]), ("sealed", vec!["--encrypt", age], &["--identity", "key"])]
}

/// Backs the bucket up on top of the latest backup; returns the document.
#[track_caller]
fn back_up(sandbox: &Sandbox, dest: &str, push: &[&str]) -> Vec<u8> {
    let latest = ["manifest", "latest", "--from", dest, "--app", "app", "--or-none"];
    let parent = sandbox.run("bk-push", &latest, b"").ok().stdout;
    fs::write(sandbox.path("parent.json"), parent).unwrap();
    let push = [&["bk-push", "--to", dest][..], push].concat();
    let mut ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
        &["bk-push", "add", "--bucket", "s3://documents", "--as", "minio"],
        &push,
    ]);
    for step in &ended {
        assert_eq!(step.code, 0, "{}", step.stderr);
    }
    ended.pop().unwrap().stdout
}

/// Two backups at `dest`, the second with an object more; the last document.
#[track_caller]
fn two_backups(
    (world, contents): (&World, &mut BTreeMap<String, Vec<u8>>),
    dest: &str,
    push: &[&str],
) -> Vec<u8> {
    back_up(&world.sandbox, dest, push);
    world.gateway.write(SOURCE, "new", b"since the second");
    contents.insert("new".into(), b"since the second".to_vec());
    back_up(&world.sandbox, dest, push)
}

fn json(document: &[u8]) -> Value {
    serde_json::from_slice(document).unwrap()
}

/// The folder of a backup in the destination `dest`.
fn folder(sandbox: &Sandbox, dest: &str, document: &[u8]) -> PathBuf {
    let place = json(document)["run"]["place"].as_str().unwrap().to_owned();
    sandbox.path(dest).join(place).parent().unwrap().to_owned()
}

fn assert_back(root: &Path, contents: &BTreeMap<String, Vec<u8>>) {
    for (key, bytes) in contents {
        assert!(fs::read(root.join("minio").join(key)).unwrap() == *bytes, "{key}");
    }
}

/// Runs a step with the document, and `--identity` where there is one.
fn with_key(sandbox: &Sandbox, args: &[&str], key: &[&str], document: &[u8]) -> Ended {
    let (program, args) = args.split_first().unwrap();
    sandbox.run(program, &[args, key].concat(), document)
}

#[test]
fn they_come_back_by_our_tools_and_by_hand() {
    let (world, mut contents, age) = world();
    let sandbox = &world.sandbox;
    for (dest, push, key) in ways(&age) {
        sandbox.init(dest, "24h");
        let document = two_backups((&world, &mut contents), dest, &push);
        let last = folder(sandbox, dest, &document);
        assert!(sandbox.run("bk-manifest", &["check"], &document).expect(0).stderr.is_empty());
        let shown = sandbox.run("bk-manifest", &["show"], &document).ok().text();
        assert!(shown.contains("files one by one in minio/"), "{shown}");
        let listed = sandbox.run("bk-push", &["list", "--from", dest, "--json"], b"").ok().text();
        let first = json(listed.lines().next().unwrap().as_bytes());
        assert!(first["stored"].as_u64().unwrap() > 9 << 20, "{first}");

        let mut sums = sandbox.command("sha256sum");
        run(sums.current_dir(&last).args(["--quiet", "-c", "SHA256SUMS"]), b"").ok();
        let (by_hand, back) = (format!("{dest}-by-hand"), format!("{dest}-back"));
        let mut command = Command::new("bash");
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        command.arg(last.join("RESTORE.txt")).arg(sandbox.path(&by_hand));
        if !key.is_empty() {
            command.arg(sandbox.path("key"));
        }
        run(&mut command, b"").expect(0);
        assert_back(&sandbox.path(&by_hand), &contents);

        let fetch = ["bk-push", "fetch", "--from", dest, "--target", &back];
        with_key(sandbox, &fetch, key, &document).expect(0);
        assert_back(&sandbox.path(&back), &contents);
        for level in ["present", "stored", "content"] {
            let verify = ["bk-verify", "--from", dest, "--level", level];
            with_key(sandbox, &verify, key, &document).expect(0);
        }
    }
    let document = sandbox.run("bk-push", &["manifest", "latest", "--from", "sealed"], b"").ok();
    for file in crate::harness::files_below(&sandbox.path("sealed")) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(MARK.len()).any(|window| window == MARK), "{}", file.display());
    }
    for key in [&[][..], &["--identity", "other"]] {
        for level in ["present", "stored"] {
            let verify = ["bk-verify", "--from", "sealed", "--level", level];
            with_key(sandbox, &verify, key, &document.stdout).expect(0);
        }
        let content = ["bk-verify", "--from", "sealed", "--level", "content"];
        with_key(sandbox, &content, key, &document.stdout).expect(12);
        let fetch = ["bk-push", "fetch", "--from", "sealed", "--target", "none"];
        with_key(sandbox, &fetch, key, &document.stdout).expect(12);
        assert!(!sandbox.path("none").exists());
    }
}

#[test]
fn damage_of_one_costs_the_others_nothing() {
    let (world, mut contents, age) = world();
    let sandbox = &world.sandbox;
    for (dest, push, key) in ways(&age) {
        sandbox.init(dest, "24h");
        back_up(sandbox, dest, &push);
        let document = two_backups((&world, &mut contents), dest, &push);
        let objects = crate::harness::files_below(&sandbox.path(dest));
        let object = |name: &str| {
            let is_it = |path: &&PathBuf| path.to_str().unwrap().contains(name);
            objects.iter().find(is_it).unwrap()
        };
        let flipped = object("minio/d/e-f.jpg");
        let mut bytes = fs::read(flipped).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(flipped, bytes).unwrap();
        fs::remove_file(object("minio/large")).unwrap();

        for (level, told) in [
            ("present", "1 missing"),
            ("stored", "1 missing, 1 checksum"),
            ("content", "1 missing, 1 checksum"),
        ] {
            let verify =
                ["bk-verify", "--from", dest, "--level", level, "--report", "json=report.json"];
            let ended = with_key(sandbox, &verify, key, &document).expect(20);
            assert!(ended.stderr.contains(&format!("is damaged: {told}\n")), "{}", ended.stderr);
            assert!(ended.stderr.contains("affected: 'minio/large'"), "{}", ended.stderr);
            assert!(ended.stderr.contains("also needed by: backup-"), "{}", ended.stderr);
            let report = json(&fs::read(sandbox.path("report.json")).unwrap());
            assert_eq!(report["verdict"], "damaged");
        }
        let back = format!("{dest}-back");
        let fetch = ["bk-push", "fetch", "--from", dest, "--target", &back];
        let ended = with_key(sandbox, &fetch, key, &document).expect(3);
        for lost in ["minio/large", "minio/d/e-f.jpg"] {
            assert!(ended.stderr.contains(&format!("lost: '{lost}'")), "{}", ended.stderr);
        }
        let mut whole = contents.clone();
        whole.retain(|key, _| key != "large" && key != "d/e-f.jpg");
        assert_back(&sandbox.path(&back), &whole);
        let one = format!("{dest}-one");
        let fetch = ["bk-push", "fetch", "--from", dest, "--target", &one, "--path", "minio/a"];
        with_key(sandbox, &fetch, key, &document).expect(0);
        assert_eq!(fs::read(sandbox.path(&one).join("minio/a")).unwrap(), contents["a"]);
    }
}

/// Many small objects in the source.
fn many(world: &World, count: usize) {
    for number in 0..count {
        let key = format!("many/k{number:02}");
        world.gateway.write(SOURCE, &key, format!("content {number}").as_bytes());
    }
}

#[test]
fn each_is_asked_for_once_and_opened_once() {
    let (mut world, _, age) = world();
    many(&world, 30);
    let document = back_up(&world.sandbox, DEST, &["--encrypt", &age]);
    instead(&mut world.sandbox, "age", "echo x >> ${0%/*}/calls; exec /usr/bin/age \"$@\"");
    let sandbox = &world.sandbox;
    let calls = || {
        let file = sandbox.path("instead/calls");
        let count = fs::read_to_string(&file).unwrap().lines().count();
        fs::remove_file(file).unwrap();
        count
    };
    for (target, path, objects) in [("one", "minio/many/k07", 1), ("all", "minio/many", 30)] {
        world.proxy.clear();
        let fetch = ["bk-push", "fetch", "--from", DEST, "--target", target, "--path", path];
        with_key(sandbox, &fetch, &["--identity", "key"], &document).expect(0);
        // The first of them is tried for its key before anything is written.
        assert_eq!((world.proxy.count("GET", ".age"), calls()), (objects + 1, objects + 1));
        assert_eq!(fs::read(sandbox.path(target).join("minio/many/k07")).unwrap(), b"content 7");
    }
    world.proxy.clear();
    world.verify("present", &document).expect(0);
    assert_eq!(world.proxy.count("GET", ".age") + world.proxy.count("HEAD", ".age"), 0);
    assert!(world.proxy.total() < 12, "{}", world.proxy.total());
    world.proxy.clear();
    world.verify("stored", &document).expect(0);
    assert!(world.proxy.total() < 12 + 30 + 6, "{}", world.proxy.total());
}

#[test]
fn many_are_read_at_once_where_answers_take_their_time() {
    const AT_ONCE: usize = 8;
    let (world, ..) = world();
    many(&world, 30);
    let sandbox = &world.sandbox;
    let document = back_up(sandbox, DEST, &[]);
    world.gateway.make_bucket("other");
    for step in [
        &["bk-verify", "--from", DEST, "--level", "stored"][..],
        &["bk-push", "fetch", "--from", DEST, "--target", "back"],
        &["bk-push", "fetch", "--from", DEST, "--bucket", "s3://other"],
    ] {
        world.proxy.clear();
        let is_it =
            |request: &Request| request.kind() == "GET" && request.path.contains("/minio/many/k");
        // Each of them waits until all have come.
        let held: Vec<_> = (0..AT_ONCE).map(|_| world.proxy.hold(is_it, 0)).collect();
        let ended = std::thread::scope(|scope| {
            let running = scope.spawn(|| with_key(sandbox, step, &[], &document));
            for held in &held {
                held.wait();
            }
            for held in &held {
                held.release();
            }
            running.join().unwrap()
        });
        ended.expect(0);
    }
    assert_eq!(world.gateway.read("other", "many/k07"), b"content 7");
}

#[test]
fn the_layout_is_a_matter_of_choice() {
    let (mut world, contents, _) = world();
    world.sandbox.set("BACKUP_BUCKET_LAYOUT", "packed");
    let document = back_up(&world.sandbox, "dest", &[]);
    let objects = json(&document)["objects"].as_array().unwrap().clone();
    let names: Vec<_> = objects.iter().map(|object| object["object"].as_str().unwrap()).collect();
    assert_eq!(names, ["files/000001.tar.zst"]);
    let fetch = ["bk-push", "fetch", "--from", "dest", "--target", "back"];
    with_key(&world.sandbox, &fetch, &[], &document).expect(0);
    assert_back(&world.sandbox.path("back"), &contents);
}
