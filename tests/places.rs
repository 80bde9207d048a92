//! Where backups can go, in clear and encrypted: one application's pipes, from a full backup to one file back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use bk_push::rsync::servers::{Account, Sshd};
use rusqlite::Connection;
use serde_json::Value;

use crate::gateway::{self, Gateway};
use crate::harness::{Sandbox, assert_same_tree, files_below, noise, snapshot};
use crate::keys::{Keyring, age_key};

const BUCKET: &str = "backups";

/// A destination off this machine.
pub struct Place {
    server: Server,
    /// Its name, as tools take it.
    pub name: String,
    /// The variables by which it is reached.
    pub variables: Vec<(String, String)>,
}

enum Server {
    Store(Gateway),
    Host(Sshd),
}

impl Place {
    /// A folder of a bucket.
    pub fn bucket() -> Self {
        let gateway = Gateway::start();
        gateway.make_bucket(BUCKET);
        let variables = gateway::variables(&format!("http://127.0.0.1:{}", gateway.port()));
        Place { server: Server::Store(gateway), name: format!("s3://{BUCKET}/my/apps"), variables }
    }

    /// A folder of another host, which has a shell.
    pub fn host() -> Self {
        let sshd = Sshd::start();
        let name = sshd.location(Account::Shell, "my apps");
        Place { variables: sshd.variables(Account::Shell), name, server: Server::Host(sshd) }
    }

    /// What it holds, but for bk's own small things.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let mut objects: BTreeMap<String, Vec<u8>> = match &self.server {
            Server::Store(gateway) => {
                let keys = gateway.keys(BUCKET, "my/apps/");
                let name = |key: &str| key["my/apps/".len()..].to_owned();
                keys.iter().map(|key| (name(key), gateway.read(BUCKET, key))).collect()
            }
            Server::Host(sshd) => {
                let root = sshd.backups().join("my apps");
                let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().into();
                let files = files_below(&root);
                files.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
            }
        };
        objects.retain(|name, _| !name.starts_with(".bk"));
        objects
    }

    /// Puts an object there.
    pub fn write(&self, name: &str, content: &[u8]) {
        match &self.server {
            Server::Store(gateway) => gateway.write(BUCKET, &format!("my/apps/{name}"), content),
            Server::Host(sshd) => {
                let path = sshd.backups().join("my apps").join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }
    }
}

/// How what is stored is encrypted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cipher {
    None,
    Age,
    Gpg,
}

/// An application, and the place that its backups go to.
struct World {
    place: Place,
    sandbox: Sandbox,
    keyring: Option<Keyring>,
    /// What push needs to be told, beside the place.
    encrypt: Vec<String>,
}

impl World {
    /// The place holds no backup yet; what a prune may delete it deletes at once.
    fn new(place: Place, cipher: Cipher) -> Self {
        let mut sandbox = Sandbox::with_destination(&place.name);
        for (name, value) in &place.variables {
            sandbox.set(name, value);
        }
        sandbox.init(&place.name, "0s");
        let mut keyring = None;
        let encrypt = match cipher {
            Cipher::None => vec!["--plaintext-secrets".to_owned()],
            Cipher::Age => vec!["--encrypt".into(), format!("age:{}", age_key(&sandbox, "key"))],
            Cipher::Gpg => {
                let made = Keyring::new(&mut sandbox);
                made.add(&sandbox, "backup@example.org", "");
                keyring = Some(made);
                vec!["--encrypt".into(), "gpg:backup@example.org".into()]
            }
        };
        World { place, sandbox, keyring, encrypt }
    }

    /// The pipe of a backup on top of the latest; returns the document at its end.
    #[track_caller]
    fn back_up(&self) -> Value {
        let dest = self.place.name.as_str();
        let latest = ["manifest", "latest", "--from", dest, "--app", "app", "--or-none"];
        let parent = self.sandbox.run("bk-push", &latest, b"").ok().stdout;
        fs::write(self.sandbox.path("parent.json"), parent).unwrap();
        let encrypt = self.encrypt.iter().map(String::as_str);
        let push: Vec<&str> = ["bk-push", "--to", dest].into_iter().chain(encrypt).collect();
        let mut ended = self.sandbox.pipe(&[
            &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
            &["bk-dump", "sqlite", "data/app.db"],
            &["bk-dump", "archive", "--name", "config", "settings"],
            &["bk-manifest", "add", "--root", "src", "events", "thumbnails"],
            &push,
            &["bk-verify", "--from", dest],
            &["bk-prune", "--from", dest, "--keep-last", "1"],
        ]);
        for (number, step) in ended.iter().enumerate() {
            assert_eq!(step.code, 0, "step {number}: {}", step.stderr);
        }
        ended.pop().unwrap().json()
    }

    /// The latest manifest, as `bk-push manifest` prints it.
    #[track_caller]
    fn latest(&self) -> Vec<u8> {
        let latest = ["manifest", "latest", "--from", &self.place.name, "--app", "app"];
        self.sandbox.run("bk-push", &latest, b"").ok().stdout
    }

    /// A program's arguments with the key that opens the backups; gpg has it in its keyring.
    fn with_key<'a>(&self, arguments: &[&'a str]) -> Vec<&'a str> {
        let key = ["--identity", "key"];
        let is_needed = self.sandbox.path("key").exists();
        [arguments, if is_needed { &key } else { &[] }].concat()
    }

    fn verify(&self, level: &str, arguments: &[&str]) -> i32 {
        let verify = ["--from", &self.place.name, "--level", level];
        self.sandbox.run("bk-verify", &[&verify, arguments].concat(), &self.latest()).code
    }

    /// The statements that make a database what it is.
    fn database(&self, path: &str) -> String {
        self.sandbox.run("sqlite3", &[path, ".dump"], b"").ok().text()
    }
}

/// The folder of a backup at its place.
fn folder(document: &Value) -> String {
    document["run"]["place"].as_str().unwrap().rsplit_once('/').unwrap().0.to_owned()
}

/// A part of bytes that do not compress, which is in every copy that is not encrypted.
fn marker(seed: u64) -> Vec<u8> {
    noise(seed, 1 << 20)[500_000..500_032].to_vec()
}

/// Three states of the application are backed up, each pruning the one before.
fn assert_the_pipes_run(place: Place, cipher: Cipher) {
    let mut world = World::new(place, cipher);
    make_application(&world.sandbox);
    let first = world.back_up();
    assert_eq!(first["backup"]["type"], "full");
    world.sandbox.write("events/short-lived", noise(13, 3 << 20));
    let second = world.back_up();
    assert_eq!(second["backup"]["type"], "incremental");
    change_application(&world.sandbox);
    let third = world.back_up();
    assert_eq!(third["backup"]["type"], "incremental");
    let stored = third["verification"]["run"]["pushed"]["stored"].as_u64().unwrap();
    assert!(stored < 3 << 20, "{stored} bytes: what was renamed costs nothing");

    assert_only_what_is_needed_is_left(&world, &[first, second, third]);
    assert_one_file_comes_alone(&world, "events/small/f17", "one");
    assert_one_file_comes_alone(&world, "events/changed", "another");
    assert_everything_comes_back(&world);
    assert_nobody_else_can_read(&mut world, cipher);
}

fn make_application(sandbox: &Sandbox) {
    sandbox.nasty_tree();
    fs::rename(sandbox.path("src"), sandbox.path("events")).unwrap();
    fs::create_dir(sandbox.path("src")).unwrap();
    fs::rename(sandbox.path("events"), sandbox.path("src/events")).unwrap();
    sandbox.write("events/changed", "first");
    sandbox.write("events/secret", noise(10, 1 << 20));
    sandbox.write("thumbnails/a.jpg", noise(14, 30_000));
    for folder in ["data", "settings"] {
        fs::create_dir(sandbox.path(folder)).unwrap();
    }
    fs::write(sandbox.path("settings/env"), noise(11, 1 << 20)).unwrap();
    let database = Connection::open(sandbox.path("data/app.db")).unwrap();
    database.execute_batch("CREATE TABLE t (a, b BLOB); INSERT INTO t VALUES (1, NULL)").unwrap();
    let secret = noise(12, 1 << 20);
    database.execute("INSERT INTO t VALUES (2, ?1)", [&secret]).unwrap();
}

fn change_application(sandbox: &Sandbox) {
    let src = sandbox.path("src");
    fs::remove_file(src.join("events/short-lived")).unwrap();
    fs::remove_file(src.join("events/small/f7")).unwrap();
    fs::rename(src.join("events/noise"), src.join("thumbnails/renamed")).unwrap();
    sandbox.write("events/changed", "third");
    sandbox.write("events/new", "new");
    fs::write(sandbox.path("settings/more"), "more").unwrap();
    let database = Connection::open(sandbox.path("data/app.db")).unwrap();
    database.execute_batch("UPDATE t SET a = 3 WHERE a = 1").unwrap();
}

/// Of the backups before the last there is only what that one needs: not they, nor their objects.
#[track_caller]
fn assert_only_what_is_needed_is_left(world: &World, [first, second, third]: &[Value; 3]) {
    let list = ["list", "--from", &world.place.name, "--json"];
    let listed = world.sandbox.run("bk-push", &list, b"").ok().text();
    let id = third["backup"]["id"].as_str().unwrap();
    assert!(listed.lines().count() == 1 && listed.contains(id), "{listed}");
    let gone = ["manifest", second["backup"]["id"].as_str().unwrap(), "--from", &world.place.name];
    world.sandbox.run("bk-push", &gone, b"").expect(13);

    let mut needed = BTreeSet::new();
    for object in third["objects"].as_array().unwrap() {
        let backup = match object["backup"].as_str() {
            None => third,
            Some(id) => [first, second].into_iter().find(|of| of["backup"]["id"] == id).unwrap(),
        };
        needed.insert(format!("{}/{}", folder(backup), object["object"].as_str().unwrap()));
    }
    assert!(needed.iter().any(|name| name.starts_with(&folder(first))), "{needed:?}");
    assert!(!needed.iter().any(|name| name.starts_with(&folder(second))), "{needed:?}");
    for name in ["manifest.json", "MANIFEST.txt", "SHA256SUMS", "RESTORE.txt"] {
        needed.insert(format!("{}/{name}", folder(third)));
    }
    let there: BTreeSet<String> = world.place.objects().into_keys().collect();
    assert_eq!(there, needed);
}

#[track_caller]
fn assert_one_file_comes_alone(world: &World, path: &str, target: &str) {
    let fetch = ["fetch", "--from", &world.place.name, "--path", path, "--target", target];
    world.sandbox.run("bk-push", &world.with_key(&fetch), &world.latest()).expect(0);
    let target = world.sandbox.path(target);
    let mut files = files_below(&target);
    files.retain(|file| !file.starts_with(target.join(".bk")));
    assert_eq!(files, [target.join(path)]);
    let source = world.sandbox.path("src").join(path);
    assert_eq!(fs::read(&files[0]).unwrap(), fs::read(source).unwrap());
}

/// By the pipe of a restore: files, database, configuration.
#[track_caller]
fn assert_everything_comes_back(world: &World) {
    let (sandbox, dest) = (&world.sandbox, world.place.name.as_str());
    let ended = sandbox.pipe(&[
        &["bk-push", "manifest", "latest", "--from", dest, "--app", "app"],
        &world.with_key(&["bk-push", "fetch", "--from", dest, "--target", "restored"]),
        &["bk-dump", "restore", "--from", "restored", "--to", "restored.db"],
    ]);
    for (number, step) in ended.iter().enumerate() {
        assert_eq!(step.code, 0, "step {number}: {}", step.stderr);
    }
    let restored = ended.last().unwrap();
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("restored")));
    assert_eq!(world.database("restored.db"), world.database("data/app.db"));
    let into = ["restore", "--from", "restored", "--into", "config"];
    sandbox.run("bk-dump", &into, &restored.stdout).expect(0);
    assert_same_tree(
        &snapshot(&sandbox.path("settings")),
        &snapshot(&sandbox.path("config/settings")),
    );
}

/// Without the key what is stored is proved, and not its content; with the key that is, too.
#[track_caller]
fn assert_nobody_else_can_read(world: &mut World, cipher: Cipher) {
    let is_clear = cipher == Cipher::None;
    let objects = world.place.objects();
    for (name, seed) in [("a file", 10), ("the archive", 11), ("the database", 12)] {
        let marker = marker(seed);
        let has = |object: &Vec<u8>| object.windows(marker.len()).any(|window| window == marker);
        assert_eq!(objects.values().any(has), is_clear, "{name}");
    }
    assert_eq!(world.verify("content", &world.with_key(&[])), 0);
    let without = world.keyring.is_some().then(|| Keyring::new(&mut world.sandbox));
    for level in ["present", "stored"] {
        assert_eq!(world.verify(level, &[]), 0, "{level}");
    }
    assert_eq!(world.verify("content", &[]), if is_clear { 0 } else { 12 });
    drop(without);
}

#[test]
fn the_pipes_run_with_a_bucket_in_clear() {
    assert_the_pipes_run(Place::bucket(), Cipher::None);
}

#[test]
fn the_pipes_run_with_a_bucket_encrypted_by_age() {
    assert_the_pipes_run(Place::bucket(), Cipher::Age);
}

#[test]
fn the_pipes_run_through_ssh_in_clear() {
    assert_the_pipes_run(Place::host(), Cipher::None);
}

#[test]
fn the_pipes_run_through_ssh_encrypted_by_age() {
    assert_the_pipes_run(Place::host(), Cipher::Age);
}

#[test]
fn the_pipes_run_through_ssh_encrypted_by_gpg() {
    assert_the_pipes_run(Place::host(), Cipher::Gpg);
}
