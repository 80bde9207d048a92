//! The pipes with a bucket as destination, in a real object store.

use std::fs;
use std::process::Command;

use crate::gateway::{self, Gateway};
use crate::harness::{Ended, Sandbox, assert_same_tree, run, snapshot};
use crate::proxy::Proxy;

/// The bucket.
pub const BUCKET: &str = "backups";
/// The destination.
pub const DEST: &str = "s3://backups/apps/one";
/// What stands before its keys.
pub const PREFIX: &str = "apps/one/";

/// A sandbox whose destination is a bucket, reached through a proxy.
pub struct World {
    /// The store.
    pub gateway: Gateway,
    /// What stands before it.
    pub proxy: Proxy,
    /// The application.
    pub sandbox: Sandbox,
}

impl World {
    /// Starts all of it; the destination is made, with a grace time.
    pub fn new(grace: &str) -> Self {
        let gateway = Gateway::start();
        gateway.make_bucket(BUCKET);
        let proxy = Proxy::start(gateway.port());
        let mut sandbox = Sandbox::with_destination(DEST);
        for (name, value) in gateway::variables(&proxy.url()) {
            sandbox.set(&name, value);
        }
        sandbox.init(DEST, grace);
        proxy.clear();
        World { gateway, proxy, sandbox }
    }

    /// The keys below the destination, but for its own small things.
    pub fn keys(&self) -> Vec<String> {
        let own = format!("{PREFIX}.bk");
        let keys = self.gateway.keys(BUCKET, PREFIX);
        keys.into_iter().filter(|key| !key.starts_with(&own)).collect()
    }

    /// How many backups are listed.
    #[track_caller]
    pub fn backups(&self) -> usize {
        self.ids().len()
    }

    /// The ids of the backups that are listed.
    #[track_caller]
    pub fn ids(&self) -> Vec<String> {
        let list = self.sandbox.run("bk-push", &["list", "--from", DEST, "--json"], b"").ok();
        let id = |line: &str| {
            let backup: serde_json::Value = serde_json::from_str(line).unwrap();
            backup["id"].as_str().unwrap().to_owned()
        };
        list.text().lines().map(id).collect()
    }

    /// Every backup that is listed restores to the byte.
    #[track_caller]
    pub fn assert_all_restore(&self) {
        for id in self.ids() {
            let args = ["manifest", &id, "--from", DEST];
            let document = self.sandbox.run("bk-push", &args, b"").ok().stdout;
            self.verify("content", &document).expect(0);
        }
    }

    /// Verifies a document at a level.
    pub fn verify(&self, level: &str, document: &[u8]) -> Ended {
        self.sandbox.run("bk-verify", &["--from", DEST, "--level", level], document)
    }

    /// The tree comes back from the latest backup.
    #[track_caller]
    pub fn assert_restores(&self, target: &str) {
        self.sandbox.fetch(&self.sandbox.latest(), target);
        let source = snapshot(&self.sandbox.path("src"));
        assert_same_tree(&source, &snapshot(&self.sandbox.path(target)));
    }
}

#[test]
fn the_pipes_run_with_a_bucket() {
    let world = World::new("24h");
    let sandbox = &world.sandbox;
    let none = sandbox.run("bk-push", &["manifest", "latest", "--from", DEST], b"");
    assert_eq!(none.code, 13, "{}", none.stderr);
    sandbox.nasty_tree();
    let full = sandbox.back_up();
    let kind = |document: &[u8]| {
        let json: serde_json::Value = serde_json::from_slice(document).unwrap();
        json["backup"]["type"].as_str().unwrap().to_owned()
    };
    assert_eq!(kind(&full), "full");
    sandbox.write("second", "only since the second");
    fs::rename(sandbox.path("src/noise"), sandbox.path("src/renamed noise")).unwrap();
    let second = sandbox.back_up();
    assert_eq!(kind(&second), "incremental");
    let keys = world.keys().len();
    let third = sandbox.back_up();
    let json: serde_json::Value = serde_json::from_slice(&third).unwrap();
    assert_eq!(json["verification"]["run"]["pushed"]["stored"], 0, "nothing has changed");
    assert_eq!(world.keys().len(), keys + 4, "the manifest and what goes with it");
    assert_eq!(world.backups(), 3);
    for level in ["present", "stored", "content"] {
        world.verify(level, &third).expect(0);
    }
    world.assert_restores("back");
    let one = ["fetch", "--from", DEST, "--target", "one", "--path", "small/f1*"];
    sandbox.run("bk-push", &one, &third).expect(0);
    assert_eq!(fs::read(sandbox.path("one/small/f17")).unwrap(), b"content 17\n");
    assert!(!sandbox.path("one/small/f2").exists());
}

#[test]
fn a_backup_in_a_bucket_comes_back_by_hand() {
    let world = World::new("24h");
    let sandbox = &world.sandbox;
    sandbox.nasty_tree();
    sandbox.back_up();
    sandbox.write("second", "only since the second");
    let document = sandbox.back_up();
    // As any program that copies a bucket would.
    for key in world.gateway.keys(BUCKET, PREFIX) {
        let path = sandbox.path("copied").join(&key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, world.gateway.read(BUCKET, &key)).unwrap();
    }
    let json: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let manifest = sandbox.path("copied").join(PREFIX).join(json["run"]["place"].as_str().unwrap());
    let mut command = Command::new("bash");
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command.arg(manifest.with_file_name("RESTORE.txt")).arg(sandbox.path("by-hand"));
    run(&mut command, b"").expect(0);
    let source = snapshot(&sandbox.path("src"));
    assert_same_tree(&source, &snapshot(&sandbox.path("by-hand")));
}

#[test]
fn prune_in_a_pipe_leaves_what_is_kept_whole_and_nothing_else() {
    let world = World::new("0s");
    let sandbox = &world.sandbox;
    sandbox.write("kept", "in all of them");
    sandbox.back_up();
    sandbox.write("gone", crate::harness::noise(1, 100_000));
    sandbox.back_up();
    fs::remove_file(sandbox.path("src/gone")).unwrap();
    sandbox.write("new", "since the third");
    fs::write(sandbox.path("parent.json"), sandbox.latest()).unwrap();
    let before = world.keys().len();
    let ended = sandbox.pipe(&[
        &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
        &["bk-manifest", "add", "--root", "src"],
        &["bk-push", "--to", DEST],
        &["bk-verify", "--from", DEST],
        &["bk-prune", "--from", DEST, "--keep-last", "1"],
    ]);
    for step in ended {
        assert_eq!(step.code, 0, "{}", step.stderr);
    }
    let keys = world.keys();
    assert_eq!(world.backups(), 1, "{keys:#?}");
    // The volume of the first, which the last one needs, and the last with its own.
    assert_eq!(keys.len(), 1 + 5, "of {before}: {keys:#?}");
    world.assert_restores("back");
}

#[test]
fn requests_go_with_bytes_and_not_with_files() {
    let world = World::new("24h");
    let sandbox = &world.sandbox;
    for number in 0..3000 {
        sandbox.write(&format!("f{number:04}"), format!("content {number}"));
    }
    let document = sandbox.back_up();
    let pushed = world.proxy.total();
    assert!(pushed <= 40, "{pushed} requests for a volume and a manifest");
    world.proxy.clear();
    let one = ["fetch", "--from", DEST, "--target", "one", "--path", "f2999"];
    sandbox.run("bk-push", &one, &document).expect(0);
    let fetched = world.proxy.total();
    assert!(fetched <= 6, "{fetched} requests for one file of many");
    assert_eq!(fs::read(sandbox.path("one/f2999")).unwrap(), b"content 2999");
    world.proxy.clear();
    sandbox.back_up();
    assert_eq!(world.proxy.count("PUT", ".tar.zst"), 0, "nothing has changed");
    world.proxy.clear();
    world.ids();
    let listed = world.proxy.total();
    assert!(listed <= 3 + 2 * 2, "{listed} requests to list two backups");
}

#[test]
fn a_versioned_bucket_serves_too_and_is_told_of() {
    let world = World::new("0s");
    let sandbox = &world.sandbox;
    let versioned = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let path = format!("/{BUCKET}?versioning=");
    world.gateway.request("PUT", &path, versioned.as_bytes()).expect(0);
    let init = sandbox.run("bk-push", &["init", "--to", DEST, "--grace", "0s"], b"").expect(0);
    assert!(init.stderr.contains("version"), "{}", init.stderr);
    sandbox.write("a", "1");
    let back_up = || sandbox.try_back_up(&[]).pop().unwrap().expect(0);
    let told = back_up().stderr;
    // Of two that create one object this store refuses the second only where nothing is kept.
    assert!(told.contains("does not refuse to overwrite"), "{told}");
    sandbox.write("b", "2");
    world.verify("content", &back_up().stdout).expect(0);
    let prune = ["--from", DEST, "--keep-last", "1", "--standalone"];
    sandbox.run("bk-prune", &prune, b"").expect(0);
    assert_eq!(world.backups(), 1);
    world.assert_restores("back");
}
