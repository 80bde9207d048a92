//! An application's own bucket in a real object store: into backups and back, by the tools and by the scripts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use crate::gateway::{self, Gateway};
use crate::harness::{Ended, Sandbox, noise, run};
use crate::proxy::{Fault, Proxy, Request};

/// The application's bucket, as the settings name it.
const BUCKET: &str = "s3://documents";

/// An application with a bucket that is reached through a proxy, and places for its backups.
struct World {
    gateway: Gateway,
    proxy: Proxy,
    sandbox: Sandbox,
}

/// An object: its key as it stands in an address, what it is sent with, its content.
#[derive(Clone)]
struct Object {
    key: String,
    headers: Vec<&'static str>,
    content: Vec<u8>,
}

impl Object {
    fn new(key: &str, headers: &[&'static str], content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref().to_vec();
        Object { key: key.to_owned(), headers: headers.to_vec(), content }
    }
}

/// Objects with all that an application may give them.
fn objects() -> Vec<Object> {
    vec![
        Object::new("plain", &[], "plain"),
        Object::new(
            "a%20b/%C3%BCnic%C3%B6d%C3%A9%20%E6%97%A5%E6%9C%AC.pdf",
            &[
                "Content-Type: application/pdf",
                "x-amz-meta-owner: anna b",
                "x-amz-meta-pages: 12",
                "Cache-Control: max-age=60, private",
                "Content-Disposition: attachment; filename=\"a b.pdf\"",
                "Content-Language: de",
            ],
            noise(1, 70_000),
        ),
        Object::new("zipped", &["Content-Encoding: gzip", "Content-Type: text/css"], noise(2, 900)),
        Object::new("nothing", &["Content-Type: image/x-none", "x-amz-meta-why: none"], ""),
        Object::new("empty%20folder/", &[], ""),
        Object::new("-rf%20%2A", &["Content-Type: text/plain"], "x"),
        Object::new(".hidden/..x", &[], "x"),
        Object::new("new%0Aline%09tab%20", &[], "x"),
        Object::new("q%3Fa%3D1%26b%23c%2541%2Bd%27%22%3C%3E%5C", &[], "x"),
        Object::new(&["d".repeat(200), "e".repeat(200)].join("/"), &[], "deep"),
        Object::new("same", &["Content-Type: text/a"], "twice"),
        Object::new("same%20again", &["Content-Type: text/b"], "twice"),
    ]
}

/// Two parts, so that its entity tag is no checksum of it.
fn large() -> Object {
    Object::new("large", &["Content-Type: video/mp4", "x-amz-meta-length: 9"], noise(3, 11 << 20))
}

impl World {
    fn new() -> Self {
        let gateway = Gateway::start();
        for bucket in ["documents", "backups"] {
            gateway.make_bucket(bucket);
        }
        let proxy = Proxy::start(gateway.port());
        World { gateway, proxy, sandbox: Sandbox::new() }
    }

    /// The same, where the environment says how places and the bucket are reached.
    fn reached() -> Self {
        let mut world = World::new();
        // Backups go past the proxy: what it counts is asked of the application's bucket.
        let url = format!("http://127.0.0.1:{}", world.gateway.port());
        for (name, value) in gateway::variables(&url).into_iter().chain(world.settings()) {
            world.sandbox.set(&name, value);
        }
        world
    }

    /// The settings by which the application's bucket is reached.
    fn settings(&self) -> Vec<(String, String)> {
        let renamed = |(name, value): (String, String)| {
            (name.replace("BACKUP_S3_", "BACKUP_BUCKET_S3_"), value)
        };
        gateway::variables(&self.proxy.url()).into_iter().map(renamed).collect()
    }

    #[track_caller]
    fn put(&self, object: &Object) {
        let headers: Vec<&str> = object.headers.iter().flat_map(|header| ["-H", header]).collect();
        let path = format!("/documents/{}", object.key);
        let parts: Vec<&[u8]> = object.content.chunks(6 << 20).collect();
        if parts.len() < 2 {
            self.gateway.request_with("PUT", &path, &headers, &object.content).expect(0);
            return;
        }
        let begin = format!("{path}?uploads=");
        let begun = self.gateway.request_with("POST", &begin, &headers, b"").expect(0).text();
        let id = begun.split("UploadId>").nth(1).unwrap().trim_end_matches("</");
        let mut done = String::new();
        for (number, part) in (1..).zip(parts) {
            let path = format!("{path}?partNumber={number}&uploadId={id}");
            self.gateway.request("PUT", &path, part).expect(0);
            let sum = run(&mut Command::new("md5sum"), part).expect(0).text();
            let (number, tag) = (format!("<PartNumber>{number}</PartNumber>"), &sum[..32]);
            done += &format!("<Part>{number}<ETag>{tag}</ETag></Part>");
        }
        let done = format!("<CompleteMultipartUpload>{done}</CompleteMultipartUpload>");
        let path = format!("{path}?uploadId={id}");
        self.gateway.request("POST", &path, done.as_bytes()).expect(0);
    }

    /// Waits until the next backup can trust what this one saw of all that is there by now: two seconds
    /// of the clock are its grain.
    fn settle() {
        std::thread::sleep(Duration::from_secs(3));
    }

    fn remove_all(&self, objects: &[Object]) {
        for object in objects {
            self.gateway.remove("documents", &object.key);
        }
        assert_eq!(self.gateway.keys("documents", ""), [""; 0]);
    }

    /// The bucket holds these objects, with all that they were sent with, and no others.
    #[track_caller]
    fn assert_holds(&self, objects: &[Object]) {
        assert_eq!(self.gateway.keys("documents", "").len(), objects.len());
        for object in objects {
            let path = format!("/documents/{}", object.key);
            let answer = self.gateway.request_with("GET", &path, &["-i"], b"").expect(0).stdout;
            let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(answer[..end].to_vec()).unwrap();
            assert!(answer[end + 4..] == object.content, "{}", object.key);
            let kept = |line: &str| {
                let (name, value) = line.split_once(": ")?;
                let name = name.to_ascii_lowercase();
                let is_own = name.starts_with("x-amz-meta-")
                    || name == "cache-control"
                    || name.starts_with("content-") && name != "content-length";
                is_own.then(|| (name, value.to_owned()))
            };
            let mut found: BTreeMap<String, String> = head.lines().filter_map(kept).collect();
            let wanted: BTreeMap<String, String> =
                object.headers.iter().filter_map(|header| kept(header)).collect();
            // What the store says where nobody said anything.
            if !wanted.contains_key("content-type") {
                found.remove("content-type");
            }
            assert_eq!(found, wanted, "{}", object.key);
        }
    }

    /// How the steps of a backup to a place end, on top of the latest one there.
    fn try_back_up(&self, bucket: &str, dest: &str) -> [Ended; 3] {
        let latest = ["manifest", "latest", "--from", dest, "--or-none"];
        let parent = self.sandbox.run("bk-push", &latest, b"").expect(0).stdout;
        fs::write(self.sandbox.path("parent.json"), parent).unwrap();
        let ended = self.sandbox.pipe(&[
            &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
            &["bk-push", "add", "--bucket", bucket, "--as", "minio", "--access", "BACKUP_BUCKET"],
            &["bk-push", "--to", dest],
        ]);
        ended.try_into().unwrap()
    }

    #[track_caller]
    fn back_up(&self, dest: &str) -> Vec<u8> {
        let [_, add, push] = self.try_back_up(BUCKET, dest);
        assert_eq!((add.code, add.stderr), (0, String::new()));
        push.expect(0).stdout
    }

    fn fetch(&self, dest: &str, document: &[u8], more: &[&str]) -> Ended {
        let place = ["--bucket", BUCKET, "--bucket-access", "BACKUP_BUCKET"];
        let fetch = [&["fetch", "--from", dest][..], &place, more].concat();
        self.sandbox.run("bk-push", &fetch, document)
    }
}

#[test]
fn a_bucket_comes_back_with_all_that_its_objects_have() {
    let world = World::reached();
    let mut objects = objects();
    objects.extend([large(), Object::new(&"l".repeat(1000), &[], "no name of a file")]);
    objects.iter().for_each(|object| world.put(object));
    world.assert_holds(&objects);
    world.sandbox.init("s3://backups/apps", "24h");
    let verify = |dest: &str, document: &[u8]| {
        world.sandbox.run("bk-verify", &["--from", dest, "--level", "content"], document).expect(0)
    };
    for dest in ["dest", "s3://backups/apps"] {
        let document = world.back_up(dest);
        verify(dest, &document);
        world.remove_all(&objects);
        world.fetch(dest, &document, &["--dry-run"]).expect(0);
        assert_eq!(world.gateway.keys("documents", ""), [""; 0]);
        world.fetch(dest, &document, &[]).expect(0);
        world.assert_holds(&objects);
        assert_eq!(world.gateway.open_uploads("documents"), 0);
    }
}

#[test]
fn only_what_changed_is_read_and_the_next_backup_has_it() {
    let world = World::reached();
    let mut objects = objects();
    objects.push(large());
    objects.iter().for_each(|object| world.put(object));
    World::settle();
    world.back_up("dest");
    assert_eq!(world.proxy.count("GET", ""), objects.len() - 1, "but for the folder");
    world.proxy.clear();
    world.back_up("dest");
    assert_eq!(world.proxy.total(), 1, "one listing tells that nothing has changed");

    let changed = Object::new("plain", &["Content-Type: text/new"], "other");
    let new = Object::new("folder/new", &["x-amz-meta-is: new"], noise(5, 300_000));
    let gone = objects.iter().position(|object| object.key == "zipped").unwrap();
    world.gateway.remove("documents", &objects.remove(gone).key);
    objects.retain(|object| object.key != "plain");
    objects.extend([changed, new]);
    objects[objects.len() - 2..].iter().for_each(|object| world.put(object));
    world.proxy.clear();
    let document = world.back_up("dest");
    let read = ["documents/plain", "documents/folder/new"].map(|end| world.proxy.count("GET", end));
    assert_eq!((read, world.proxy.count("GET", "")), ([1, 1], 2));

    // What is there and the same is not sent, what differs is, what is no longer there stays.
    let strangers = [Object::new("stranger", &[], "x"), Object::new("f/older", &[], "x")];
    strangers.iter().for_each(|object| world.put(object));
    world.put(&Object::new("plain", &[], "overwritten"));
    let refused = world.fetch("dest", &document, &[]).expect(2);
    assert!(refused.stderr.contains("not empty"), "{}", refused.stderr);
    let told = world.fetch("dest", &document, &["--into", "--dry-run"]).expect(0).stderr;
    assert!(told.contains("'stranger' is not in the backup; it is left"), "{told}");
    let dry = ["--into", "--delete-strangers", "--dry-run"];
    let told = world.fetch("dest", &document, &dry).expect(0).stderr;
    assert!(told.contains("2 objects that the backup does not have would be removed"), "{told}");
    assert!(told.contains("'stranger' is not in the backup; it would be removed"), "{told}");
    assert_eq!(world.gateway.read("documents", "plain"), b"overwritten");
    world.proxy.clear();
    world.fetch("dest", &document, &["--into"]).expect(0);
    let put = |end: &str| world.proxy.count("PUT", end) + world.proxy.count("BEGIN", end);
    assert_eq!((put("documents/plain"), put("")), (1, 1));
    world.assert_holds(&[&objects[..], &strangers].concat());
    world.fetch("dest", &document, &["--into", "--delete-strangers"]).expect(0);
    world.assert_holds(&objects);
}

#[test]
fn keys_that_no_path_can_be_are_told_and_the_rest_is_stored() {
    let world = World::reached();
    for key in ["good", "a//b", "/c"] {
        world.put(&Object::new(key, &["x-amz-meta-a: b"], key));
    }
    let [_, add, push] = world.try_back_up(BUCKET, "dest");
    assert_eq!((add.code, push.code), (3, 3));
    assert!(add.stderr.contains("2 objects are left out"), "{}", add.stderr);
    assert_eq!(push.json()["left_out"]["unnameable"]["count"], 2);
    assert_eq!(push.json()["files"]["count"], 1);
}

/// A backup ends with these codes of bk-push add and bk-push, and a message; there is none then.
#[track_caller]
fn fails(world: &World, bucket: &str, codes: [i32; 2], message: &str) {
    let [_, add, push] = world.try_back_up(bucket, "dest");
    assert_eq!([add.code, push.code], codes, "{}{}", add.stderr, push.stderr);
    let text = add.stderr + &push.stderr;
    assert!(text.contains(message), "{text}");
    assert!(!text.contains("hush"), "{text}");
    let list = world.sandbox.run("bk-push", &["list", "--from", "dest", "--json"], b"").expect(0);
    assert_eq!(list.text(), "");
}

#[test]
fn a_bucket_that_cannot_be_read_makes_no_backup() {
    let mut world = World::reached();
    for number in 0..40 {
        world.put(&Object::new(&format!("{number:02}"), &[], format!("{number}")));
    }
    world.put(&large());
    let reads = |request: &Request| request.kind() == "GET";

    // The keys are revoked while objects are read.
    let held = world.proxy.hold(reads, 15);
    std::thread::scope(|scope| {
        let gateway = &world.gateway;
        scope.spawn(move || {
            held.wait();
            gateway.administer(&["user", "suspend"]);
            held.release();
        });
        fails(&world, BUCKET, [0, 12], "UserSuspended");
    });
    world.gateway.administer(&["user", "enable"]);
    world.proxy.clear();
    // In the midst of the large one, which comes behind a listing and the others.
    let refused = Fault::Refuse(403, "InvalidAccessKeyId");
    world.proxy.on(|request| request.is("GET", "large"), 0, 1, Fault::CutAnswer(7 << 20));
    world.proxy.on(|_| true, 41, usize::MAX, refused);
    fails(&world, BUCKET, [0, 12], "InvalidAccessKeyId");
    world.proxy.clear();
    // They may list and not read.
    world.proxy.on(reads, 0, usize::MAX, Fault::Refuse(403, "AccessDenied"));
    fails(&world, BUCKET, [0, 12], "AccessDenied");
    world.proxy.clear();
    // There is no such bucket.
    fails(&world, "s3://nowhere", [13, 21], "make the bucket first");
    // They are the wrong ones.
    world.sandbox.set("BACKUP_BUCKET_S3_SECRET_KEY", "hush");
    fails(&world, BUCKET, [12, 21], "BACKUP_BUCKET_S3_SECRET_KEY");
    for (name, value) in world.settings() {
        world.sandbox.set(&name, value);
    }
    world.proxy.clear();

    // One object that is denied is left out, and the others are stored.
    let denied = Fault::Refuse(403, "AccessDenied");
    world.proxy.on(|request| request.is("GET", "documents/07"), 0, usize::MAX, denied);
    let [_, _, push] = world.try_back_up(BUCKET, "dest");
    assert_eq!(push.code, 3, "{}", push.stderr);
    let document = push.json();
    let left_out = &document["left_out"]["unreadable"];
    assert_eq!(
        (&left_out["count"], &left_out["names"][0]["path"]),
        (&1.into(), &"minio/07".into())
    );
    assert_eq!(document["files"]["count"], 40);
}

/// An application with a folder and two buckets, and an env file that says so.
struct Application {
    world: World,
    objects: Vec<Object>,
}

impl Application {
    fn new() -> Self {
        let world = World::new();
        world.gateway.make_bucket("avatars");
        world.gateway.write("avatars", "anna.png", b"a face");
        world.sandbox.write("file", "of the folder");
        let objects = objects();
        objects.iter().for_each(|object| world.put(object));
        let application = Application { world, objects };
        application.configure("BACKUP_BUCKET='minio=s3://documents s3://avatars'\n");
        application
    }

    /// Writes the env file: keys as MinIO's container has them, one in a file of its own.
    fn configure(&self, more: &str) {
        let path = |name: &str| self.world.sandbox.path(name).to_str().unwrap().to_owned();
        let mut text = format!(
            "BACKUP_APP=app\nBACKUP_DESTINATION_PATH={}\nBACKUP_ROOT={}\n{more}",
            path("dest"),
            path("src")
        );
        for (name, value) in self.world.settings() {
            match name.as_str() {
                "BACKUP_BUCKET_S3_ACCESS_KEY" => {
                    text += &format!("MINIO_ROOT_USER={value}\n{name}=${{MINIO_ROOT_USER}}\n");
                }
                "BACKUP_BUCKET_S3_SECRET_KEY" => {
                    fs::write(path("secret"), value + "\n").unwrap();
                    text += &format!("{name}_FILE={}\n", path("secret"));
                }
                _ => text += &format!("{name}={value}\n"),
            }
        }
        fs::write(path("app.env"), text).unwrap();
        fs::set_permissions(path("app.env"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Runs a script with the env file; nothing that it says is a secret.
    #[track_caller]
    fn script(&self, name: &str, more: &[&str]) -> Ended {
        let script = format!("{}/scripts/{name}", env!("CARGO_MANIFEST_DIR"));
        let ended =
            self.world.sandbox.run(&script, &[&["--env-file", "app.env"], more].concat(), b"");
        let secret = fs::read_to_string(self.world.sandbox.path("secret")).unwrap();
        assert!(!(ended.text() + &ended.stderr).contains(secret.trim()), "{}", ended.text());
        ended
    }

    #[track_caller]
    fn assert_whole(&self, strangers: &[Object]) {
        self.world.assert_holds(&[&self.objects[..], strangers].concat());
        assert_eq!(self.world.gateway.read("avatars", "anna.png"), b"a face");
        let file = fs::read(self.world.sandbox.path("src/file")).unwrap();
        assert_eq!(file, b"of the folder");
    }
}

const RESTORE: [&str; 5] = ["latest", "--confirm", "app", "--secrets", "no"];

#[test]
fn the_scripts_back_up_buckets_and_put_them_back() {
    let application = Application::new();
    let Application { world, objects } = &application;
    World::settle();
    let first = application.script("backup.sh", &[]).expect(0);
    assert_eq!(first.stderr, "");
    for line in [
        "BACKUP_BUCKET='minio=s3://documents avatars=s3://avatars'\n",
        "BACKUP_BUCKET_S3_SECRET_KEY=  # secret: fill it in\n",
        &format!("BACKUP_BUCKET_S3_ENDPOINT={}\n", world.proxy.url()),
    ] {
        assert!(first.text().contains(line), "{line} in {}", first.text());
    }
    world.proxy.clear();
    let second = application.script("backup.sh", &[]).expect(0);
    assert_eq!((world.proxy.count("GET", ""), second.stderr.as_str()), (0, ""));
    assert!(second.text().contains("(incremental)"), "{}", second.text());

    let planned = application.script("restore.sh", &["latest", "--dry-run"]).expect(0).text();
    for plan in ["minio            into s3://documents;", "avatars          into s3://avatars;"] {
        assert!(planned.contains(&format!("plan         {plan}")), "{planned}");
    }
    let stranger = Object::new("stranger", &[], "x");
    world.remove_all(objects);
    world.put(&stranger);
    world.gateway.write("avatars", "anna.png", b"another");
    fs::remove_file(world.sandbox.path("src/file")).unwrap();
    application.script("restore.sh", &["latest", "--dry-run"]).expect(0);
    assert_eq!(world.gateway.keys("documents", ""), ["stranger"]);
    application.script("restore.sh", &RESTORE).expect(0);
    application.assert_whole(&[stranger]);
    application.script("restore.sh", &[&RESTORE[..], &["--delete-strangers"]].concat()).expect(0);
    application.assert_whole(&[]);
    application.script("restore.sh", &["latest", "--target", "out"]).expect(0);
    assert_eq!(fs::read(world.sandbox.path("out/minio/plain")).unwrap(), b"plain");
}

#[test]
fn the_scripts_touch_nothing_where_a_bucket_is_out_of_reach() {
    let application = Application::new();
    let Application { world, objects } = &application;
    application.script("backup.sh", &[]).expect(0);
    fs::write(world.sandbox.path("src/file"), "newer").unwrap();
    world.remove_all(objects);
    let untouched = || {
        assert_eq!(world.gateway.keys("documents", ""), [""; 0]);
        assert_eq!(fs::read(world.sandbox.path("src/file")).unwrap(), b"newer");
    };
    world.gateway.administer(&["user", "suspend"]);
    let backup = application.script("backup.sh", &[]).expect(12);
    let message = "bk-push add ended with 12; no backup was made";
    assert!(backup.stderr.contains(message), "{}", backup.stderr);
    let restore = application.script("restore.sh", &RESTORE).expect(12);
    assert!(restore.stderr.contains("nothing was replaced"), "{}", restore.stderr);
    world.gateway.administer(&["user", "enable"]);
    untouched();

    for (settings, message) in [
        ("BACKUP_BUCKET=documents\n", "BACKUP_BUCKET cannot be 'documents'"),
        ("BACKUP_BUCKET='s3://documents'\n", "it needs minio=s3://BUCKET"),
        ("", "BACKUP_BUCKET (BACKUP_BUCKET_S3_ENDPOINT is for it) is not set"),
    ] {
        application.configure(settings);
        world.proxy.clear();
        let restore = application.script("restore.sh", &RESTORE).expect(2);
        assert!(restore.stderr.contains(message), "{}", restore.stderr);
        assert_eq!(world.proxy.total(), 0);
    }
    untouched();
}

#[test]
fn a_bucket_that_is_skipped_is_recorded_and_nobody_connects_to_it() {
    let application = Application::new();
    let Application { world, objects } = &application;
    application.script("backup.sh", &[]).expect(0);
    world.proxy.clear();
    application.configure(
        "BACKUP_BUCKET=minio=s3://documents\nBACKUP_BUCKET_SKIP=\"it's the provider's\"\n\
         BACKUP_MAX_SHRINK=100\n",
    );
    // What was backed up before is not put back, either.
    world.remove_all(objects);
    world.proxy.clear();
    let planned = application.script("restore.sh", &RESTORE).expect(0).text();
    assert!(
        planned.contains("plan         minio            not restored: BACKUP_BUCKET_SKIP"),
        "{planned}"
    );
    application.script("backup.sh", &[]).expect(0);
    let restored = application.script("restore.sh", &RESTORE).expect(0).text();
    let line = restored.lines().find(|line| line.contains(" minio ")).unwrap();
    assert!(line.contains("skipped") && line.ends_with("it's the provider's"), "{line}");
    assert_eq!(world.proxy.total(), 0);
    assert_eq!(world.gateway.keys("documents", ""), [""; 0]);
}
