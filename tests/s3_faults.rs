//! A bucket whose store is slow, refuses, loses answers or lies: the exit code says it, the backups
//! before are untouched, a rerun succeeds.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Ended, noise};
use crate::keys::age_key;
use crate::proxy::{Fault, Request};
use crate::s3::{BUCKET, DEST, PREFIX, World};

/// One backup of a small tree, and a second tree with what makes an upload in parts.
fn world() -> World {
    let world = World::new("24h");
    for number in 0..20 {
        world.sandbox.write(&format!("small/{number}"), format!("content {number}"));
    }
    world.sandbox.back_up();
    world.sandbox.write("large", noise(1, 20 << 20));
    world.sandbox.write("small/20", "content 20");
    world.proxy.clear();
    world
}

/// How push ended in a backup on top of the latest.
fn push(world: &World) -> Ended {
    world.sandbox.try_back_up(&[]).pop().unwrap()
}

/// All that is listed restores, and a rerun does, too.
#[track_caller]
fn assert_recovers(world: &World, listed: usize) {
    world.proxy.clear();
    assert_eq!(world.backups(), listed);
    world.assert_all_restore();
    push(world).expect(0);
    world.assert_restores("back");
}

fn is(kind: &'static str, end: &'static str) -> impl Fn(&Request) -> bool + Send {
    move |request| request.is(kind, end)
}

#[test]
fn passing_faults_are_got_over() {
    let world = world();
    let slow_down = Fault::Refuse(503, "SlowDown");
    let faults: [(&'static str, &'static str, usize, Fault); 14] = [
        ("PUT", ".name", 1, slow_down.clone()),
        ("PUT", "begun.json", 1, Fault::LoseAnswer),
        ("BEGIN", ".tar.zst", 1, Fault::Refuse(500, "InternalError")),
        ("PART", ".tar.zst", 2, slow_down),
        ("PART", ".tar.zst", 1, Fault::CutRequest),
        ("PART", ".tar.zst", 1, Fault::LoseAnswer),
        ("PART", ".tar.zst", 1, Fault::Delay(Duration::from_millis(300))),
        ("COMPLETE", ".tar.zst", 1, Fault::LoseAnswer),
        ("PUT", ".entries", 1, Fault::CutRequest),
        ("LIST", BUCKET, 1, Fault::CutAnswer(100)),
        ("GET", "manifest.json", 1, Fault::CutAnswer(50)),
        ("PUT", "SHA256SUMS", 1, Fault::Refuse(502, "BadGateway")),
        ("PUT", "manifest.json", 1, Fault::LoseAnswer),
        ("DELETE", "", 1, Fault::Refuse(503, "SlowDown")),
    ];
    for (kind, end, times, fault) in faults {
        world.proxy.on(is(kind, end), 0, times, fault);
    }
    push(&world).expect(0);
    let left = world.proxy.faults_left();
    assert!(left.is_empty(), "{left:?}");
    assert_recovers(&world, 2);
}

#[test]
fn a_store_that_stays_busy_ends_the_push_and_a_rerun_builds_on_it() {
    let world = world();
    world.proxy.on(is("PUT", "SHA256SUMS"), 0, usize::MAX, Fault::Refuse(503, "SlowDown"));
    let ended = push(&world).expect(1);
    assert!(ended.stderr.contains("SlowDown"), "{}", ended.stderr);
    assert_eq!(world.proxy.count("PUT", "SHA256SUMS"), 1 + 3, "three more tries");
    world.proxy.clear();
    assert_eq!(world.backups(), 1);
    world.proxy.clear();
    push(&world).expect(0);
    assert_eq!(world.proxy.count("PART", ".tar.zst"), 0, "what was stored is stored");
    assert_recovers(&world, 2);
}

#[test]
fn keys_that_are_revoked_half_way_cost_nothing() {
    let world = world();
    push(&world).expect(0);
    let requests = world.proxy.total();
    world.sandbox.write("large", noise(2, 20 << 20));
    for half in [0, requests / 4, requests / 2, requests - 4] {
        world.proxy.clear();
        world.proxy.on(|_| true, half, usize::MAX, Fault::Refuse(403, "InvalidAccessKeyId"));
        let steps = world.sandbox.try_back_up(&[]);
        assert!(steps.iter().any(|step| step.code == 12), "{half}: {steps:?}");
        assert!(steps.iter().all(|step| !step.stderr.contains("bk/test+secret")));
        world.proxy.clear();
        assert_eq!(world.backups(), 2, "{half}");
    }
    assert_recovers(&world, 2);
}

#[test]
fn a_store_that_is_lost_while_it_is_read_is_no_damage() {
    let world = world();
    push(&world).expect(0);
    let document = world.sandbox.latest();
    let steps: [&[&str]; 2] = [
        &["bk-push", "fetch", "--from", DEST, "--target", "back"],
        &["bk-verify", "--from", DEST, "--level", "content"],
    ];
    let faults =
        [(Fault::Refuse(503, "SlowDown"), 1), (Fault::Refuse(403, "InvalidAccessKeyId"), 12)];
    for ((fault, code), step) in faults.iter().flat_map(|fault| steps.map(|step| (fault, step))) {
        let is_lost = AtomicBool::new(false);
        let from_the_first_volume_on = move |request: &Request| {
            let is_volume = request.is("GET", ".tar.zst");
            is_lost.fetch_or(is_volume, Ordering::Relaxed) || is_volume
        };
        world.proxy.clear();
        world.proxy.on(from_the_first_volume_on, 0, usize::MAX, fault.clone());
        let ended = world.sandbox.run(step[0], &step[1..], &document).expect(*code);
        assert!(!ended.stderr.contains("lost"), "{}", ended.stderr);
        let requests = world.proxy.total();
        assert!(requests < 60, "{requests} requests to a store that is lost");
        let _ = std::fs::remove_dir_all(world.sandbox.path("back"));
    }
    // One object that is refused costs its own files; verify does not call it damaged.
    world.proxy.clear();
    let large = world.ids().pop().unwrap() + "/files/000001.tar.zst";
    for (step, code) in steps.iter().zip([3, 1]) {
        world.proxy.clear();
        let large = large.clone();
        let is_large = move |request: &Request| request.is("GET", &large);
        world.proxy.on(is_large, 0, usize::MAX, Fault::Refuse(503, "SlowDown"));
        world.sandbox.run(step[0], &step[1..], &document).expect(code);
    }
    assert!(world.sandbox.path("back/small/19").exists());
    std::fs::remove_dir_all(world.sandbox.path("back")).unwrap();
    assert_recovers(&world, 2);
}

#[test]
fn what_fails_for_a_while_in_an_encrypted_volume_does_not_lose_the_rest_of_it() {
    let world = world();
    let age = format!("age:{}", age_key(&world.sandbox, "key"));
    for number in 0..6 {
        world.sandbox.write(&format!("more/{number}"), noise(number, 2 << 20));
    }
    world.sandbox.try_back_up(&["--encrypt", &age, "--full"]).pop().unwrap().expect(0);
    let document = world.sandbox.latest();
    let fail_for_a_while = || {
        world.proxy.clear();
        // Its begin, to try the key; the whole of it, which is cut, and all tries to go on from there.
        let is_volume = || is("GET", "files/000001.tar.zst.age");
        world.proxy.on(is_volume(), 1, 1, Fault::CutAnswer(5 << 20));
        world.proxy.on(is_volume(), 0, 3 * 4, Fault::Refuse(503, "SlowDown"));
    };
    fail_for_a_while();
    let fetch = ["fetch", "--from", DEST, "--target", "back", "--identity", "key"];
    let ended = world.sandbox.run("bk-push", &fetch, &document).expect(3);
    assert!(world.proxy.faults_left().is_empty(), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("lost: ").count(), 1, "{}", ended.stderr);
    fail_for_a_while();
    let verify = ["--from", DEST, "--level", "content", "--identity", "key"];
    let ended = world.sandbox.run("bk-verify", &verify, &document).expect(22);
    assert!(world.proxy.faults_left().is_empty(), "{}", ended.stderr);
    assert!(ended.stderr.contains("SlowDown"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
}

#[test]
fn a_wrong_key_is_12_and_a_missing_bucket_10() {
    let mut world = world();
    let list = ["list", "--from", DEST];
    world.gateway.administer(&["user", "suspend"]);
    world.sandbox.run("bk-push", &list, b"").expect(12);
    world.gateway.administer(&["user", "enable"]);
    world.sandbox.run("bk-push", &list, b"").ok();
    world.sandbox.run("bk-push", &["list", "--from", "s3://nowhere/apps"], b"").expect(10);
    world.sandbox.run("bk-push", &["list", "--from", "s3://backups/other"], b"").expect(10);
    world.sandbox.run("bk-push", &["init", "--to", "s3://nowhere"], b"").expect(10);
    world.sandbox.set("BACKUP_S3_SECRET_KEY", "another");
    let wrong = world.sandbox.run("bk-push", &list, b"").expect(12);
    assert!(wrong.stderr.contains("BACKUP_S3_SECRET_KEY"), "{}", wrong.stderr);
}

#[test]
fn a_full_bucket_leaves_the_earlier_backup() {
    let world = world();
    let quota = ["--quota-scope=user", "--max-size=4M"];
    world.gateway.administer(&[&["quota", "set"][..], &quota].concat());
    world.gateway.administer(&["quota", "enable", "--quota-scope=user"]);
    let ended = push(&world).expect(1);
    assert!(ended.stderr.contains("QuotaExceeded"), "{}", ended.stderr);
    world.gateway.administer(&["quota", "disable", "--quota-scope=user"]);
    assert_recovers(&world, 1);
}

#[test]
fn a_clock_that_is_wrong_by_a_day_is_told_and_costs_nothing() {
    let world = world();
    for wrong in ["-1d", "+1d"] {
        let list = ["-f", wrong, "bk-push", "list", "--from", DEST];
        let ended = world.sandbox.run("faketime", &list, b"").expect(12);
        assert!(ended.stderr.contains("clock"), "{}", ended.stderr);
    }
    assert_recovers(&world, 1);
}

#[test]
fn a_stale_listing_costs_no_backup() {
    let world = world();
    // What the first listings said, they say again: nothing that is stored meanwhile is seen.
    world.proxy.on(is("LIST", BUCKET), 0, usize::MAX, Fault::Repeat);
    let ended = push(&world).expect(1);
    assert!(ended.stderr.contains("vanish"), "{}", ended.stderr);
    assert_recovers(&world, 1);
}

#[test]
fn prune_does_not_act_on_a_listing_that_lacks_a_backup() {
    let world = World::new("0s");
    let prune = ["--from", DEST, "--keep-last", "2", "--standalone"];
    world.sandbox.write("f", "1");
    world.sandbox.back_up();
    world.proxy.clear();
    // What this listing says is said again later.
    assert_eq!(world.backups(), 1);
    world.sandbox.write("f", "2");
    world.sandbox.back_up();
    world.sandbox.run("bk-prune", &prune, b"").expect(0);
    let keys = world.keys();
    let is_whole = |request: &Request| {
        let is_listing = request.query.contains("prefix=apps%2Fone%2F");
        is_listing && !request.query.contains("%2F.bk")
    };
    world.proxy.on(is_whole, 0, usize::MAX, Fault::Repeat);
    let ended = world.sandbox.run("bk-prune", &prune, b"").expect(22);
    world.proxy.clear();
    assert_eq!(world.keys(), keys, "{}", ended.stderr);
}

#[test]
fn wrong_bytes_and_short_objects_are_named_and_the_rest_comes_back() {
    let world = world();
    push(&world).expect(0);
    let document = world.sandbox.latest();
    for fault in [Fault::FlipBit, Fault::Shorten] {
        world.proxy.clear();
        world.proxy.on(is("GET", ".tar.zst"), 0, usize::MAX, fault.clone());
        world.verify("stored", &document).expect(20);
        world.verify("content", &document).expect(20);
        let target = format!("{fault:?}");
        let fetch = ["fetch", "--from", DEST, "--target", &target];
        let ended = world.sandbox.run("bk-push", &fetch, &document);
        assert_eq!(ended.code, 3, "{}", ended.stderr);
    }
    // An object that really is short is seen without being read.
    world.proxy.clear();
    let keys = world.keys();
    let volume = keys.iter().find(|key| key.ends_with(".tar.zst")).unwrap();
    let bytes = world.gateway.read(BUCKET, volume);
    world.gateway.write(BUCKET, volume, &bytes[..bytes.len() - 1]);
    world.verify("present", &document).expect(20);
    // A new backup mends it.
    push(&world).expect(0);
    world.verify("content", &world.sandbox.latest()).expect(0);
    world.assert_restores("back");
}

/// Begins the push of a backup of the tree on top of `parent.json`.
fn begin_push(world: &World) -> Child {
    let new = ["bk-manifest new --app app --parent parent.json", "bk-manifest add --root src"];
    let document = world.sandbox.run("sh", &["-c", &new.join(" | ")], b"").ok().stdout;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), document).unwrap();
    let mut command = world.sandbox.command("bk-push");
    command.args(["--to", DEST]).stdin(file.into_file());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_push_killed_at_any_kind_of_request_costs_nothing_and_the_next_builds_on_it() {
    let world = world();
    std::fs::write(world.sandbox.path("parent.json"), world.sandbox.latest()).unwrap();
    let moments: [(&'static str, &'static str, usize); 6] = [
        ("PUT", ".name", 0),
        ("PART", ".tar.zst", 1),
        ("COMPLETE", ".tar.zst", 0),
        ("PUT", ".entries", 0),
        ("PUT", "RESTORE.txt", 0),
        ("PUT", "manifest.json", 0),
    ];
    for (kind, end, skip) in moments {
        world.proxy.clear();
        let held = world.proxy.hold(is(kind, end), skip);
        let mut child = begin_push(&world);
        held.wait();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(world.backups(), 1, "{kind} {end}");
        // The request may reach the store though its sender is dead.
        if end != "manifest.json" {
            held.release();
        }
    }
    assert!(world.gateway.open_uploads(BUCKET) > 0, "that is what prune sweeps away");
    world.proxy.clear();
    push(&world).expect(0);
    assert_eq!(world.proxy.count("PART", ".tar.zst"), 0, "a dead push had stored it");
    assert_recovers(&world, 2);
}

#[test]
fn two_pushes_at_once_make_two_backups() {
    let world = world();
    std::fs::write(world.sandbox.path("parent.json"), world.sandbox.latest()).unwrap();
    let held = world.proxy.hold(is("PUT", "manifest.json"), 0);
    let mut first = begin_push(&world);
    held.wait();
    world.sandbox.write("small/21", "only in the second");
    push(&world).expect(0);
    assert_eq!(world.backups(), 2);
    held.release();
    assert!(first.wait().unwrap().success());
    assert_recovers(&world, 3);
    assert!(world.keys().iter().all(|key| key.starts_with(PREFIX)));
}

#[test]
fn a_push_whose_objects_a_prune_takes_meanwhile_is_no_backup() {
    let world = World::new("0s");
    world.sandbox.write("shared", noise(3, 100_000));
    world.sandbox.back_up();
    std::fs::write(world.sandbox.path("parent.json"), world.sandbox.latest()).unwrap();
    world.sandbox.write("own", "of the push");
    let held = world.proxy.hold(is("PUT", "manifest.json"), 0);
    let mut slow = begin_push(&world);
    held.wait();
    // Another host's backup needs nothing of the first, which goes, with what the slow push inherits.
    std::fs::remove_file(world.sandbox.path("src/shared")).unwrap();
    push(&world).expect(0);
    let prune = ["--from", DEST, "--keep-last", "1", "--standalone"];
    world.sandbox.run("bk-prune", &prune, b"").expect(0);
    held.release();
    assert_eq!(slow.wait().unwrap().code(), Some(1), "it has withdrawn its manifest");
    assert_recovers(&world, 1);
}
