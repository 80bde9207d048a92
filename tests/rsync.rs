//! Backups on another host: through ssh with a shell, through ssh with nothing but rsync, to a daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bk_push::rsync::servers::{Account, RsyncDaemon, Sshd};

use crate::harness::{Sandbox, assert_same_tree, files_below, noise, snapshot};

const LATEST: &[&str] = &["manifest", "latest", "--app", "app", "--or-none", "--from"];

/// A destination elsewhere, and where it lies.
struct Place {
    name: String,
    folder: PathBuf,
    variables: Vec<(String, String)>,
}

impl Place {
    fn by_ssh(sshd: &Sshd, account: Account) -> Self {
        let folder = sshd.backups().join("a b");
        Place { name: sshd.location(account, "a b"), folder, variables: sshd.variables(account) }
    }

    /// A sandbox from which it is reached.
    fn sandbox(&self) -> Sandbox {
        let mut sandbox = Sandbox::new();
        for (name, value) in &self.variables {
            sandbox.set(name, value);
        }
        sandbox.run("bk-push", &["init", "--to", &self.name], b"").expect(0);
        sandbox
    }

    /// Backs the sandbox's tree up on top of the latest backup there; returns what verify printed.
    fn back_up(&self, sandbox: &Sandbox) -> Vec<u8> {
        let parent = sandbox.run("bk-push", &[LATEST, &[&self.name]].concat(), b"").expect(0);
        fs::write(sandbox.path("parent.json"), parent.stdout).unwrap();
        let mut ended = sandbox.pipe(&[
            &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
            &["bk-manifest", "add", "--root", "src"],
            &["bk-push", "--to", &self.name],
            &["bk-verify", "--from", &self.name],
        ]);
        for step in &ended {
            assert_eq!(step.code, 0, "{}", step.stderr);
        }
        ended.pop().unwrap().stdout
    }
}

fn volumes(folder: &Path) -> Vec<PathBuf> {
    let is_volume = |path: &PathBuf| path.to_string_lossy().ends_with(".tar.zst");
    files_below(folder).into_iter().filter(is_volume).collect()
}

/// Full, incremental, prune, back again; then damage, which must be found.
fn assert_the_pipes_run(place: &Place) {
    let sandbox = place.sandbox();
    sandbox.nasty_tree();
    place.back_up(&sandbox);
    sandbox.write("later", noise(2, 300_000));
    let document = place.back_up(&sandbox);
    let prune = ["--from", &place.name, "--keep-last", "1"];
    sandbox.run("bk-prune", &prune, &document).expect(0);
    let latest = sandbox.run("bk-push", &[LATEST, &[&place.name]].concat(), b"").ok().stdout;
    let fetch = ["fetch", "--from", &place.name, "--target", "back"];
    sandbox.run("bk-push", &fetch, &latest).expect(0);
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("back")));
    let verify =
        |level: &str| sandbox.run("bk-verify", &["--from", &place.name, "--level", level], &latest);
    verify("content").expect(0);
    verify("stored").expect(0);
    let volume = &volumes(&place.folder)[0];
    let mut bytes = fs::read(volume).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(volume, bytes).unwrap();
    verify("stored").expect(20);
    let left = fs::read_dir(sandbox.path("tmp")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("bk-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_pipes_run_through_ssh_with_a_shell() {
    assert_the_pipes_run(&Place::by_ssh(&Sshd::start(), Account::Shell));
}

#[test]
fn the_pipes_run_through_ssh_with_rsync_alone() {
    assert_the_pipes_run(&Place::by_ssh(&Sshd::start(), Account::Rrsync));
}

#[test]
fn the_pipes_run_to_a_daemon() {
    let daemon = RsyncDaemon::start();
    assert_the_pipes_run(&Place {
        name: daemon.location("backups/a b"),
        folder: daemon.backups().join("a b"),
        variables: daemon.variables(),
    });
}

#[test]
fn a_push_to_another_host_that_is_killed_leaves_no_backup_and_the_next_one_goes_on() {
    let sshd = Sshd::start();
    let place = Place::by_ssh(&sshd, Account::Shell);
    let sandbox = place.sandbox();
    sandbox.write("large", noise(1, 6 << 20));
    let ended = sandbox
        .pipe(&[&["bk-manifest", "new", "--app", "app"], &["bk-manifest", "add", "--root", "src"]]);
    fs::write(sandbox.path("document"), &ended[1].stdout).unwrap();
    let mut push = sandbox
        .command("bk-push")
        .args(["--to", &place.name])
        .env("BACKUP_LIMIT_RATE", "1M")
        .stdin(fs::File::open(sandbox.path("document")).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Folders come and go there; what rsync is writing is a file right in this one.
    let unfinished = || {
        let Ok(entries) = fs::read_dir(place.folder.join(".bk/tmp")) else { return false };
        let files = entries.filter_map(|entry| entry.ok()?.metadata().ok());
        files.filter(fs::Metadata::is_file).any(|file| file.len() > 200_000)
    };
    let since = Instant::now();
    while !unfinished() {
        assert!(since.elapsed() < Duration::from_secs(60), "nothing is sent");
        std::thread::sleep(Duration::from_millis(10));
    }
    push.kill().unwrap();
    push.wait().unwrap();
    assert!(volumes(&place.folder).is_empty());
    let list = sandbox.run("bk-push", &["list", "--from", &place.name, "--json"], b"").ok();
    assert_eq!(list.text(), "");
    place.back_up(&sandbox);
    assert_eq!(volumes(&place.folder).len(), 1);
}
