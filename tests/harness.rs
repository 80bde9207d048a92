//! What the tests share: the built tools, a sandbox, pipes, snapshots of trees, seeded chance.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The folder with the five programs, built once.
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("BK_BIN_DIR") {
            return dir.into();
        }
        let output = Command::new(env!("CARGO"))
            .args(["build", "--workspace", "--bins", "--message-format=json", "--quiet"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "the tools do not build");
        let text = String::from_utf8(output.stdout).unwrap();
        let executable = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .unwrap();
        executable.parent().unwrap().to_owned()
    })
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; 128 + n for death by signal n.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// Fails the test unless the code is this one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stderr: {}", self.stderr);
        self
    }

    /// Fails the test unless all went well and nothing was said.
    #[track_caller]
    pub fn ok(self) -> Self {
        let ended = self.expect(0);
        assert_eq!(ended.stderr, "");
        ended
    }

    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// Its standard output as a JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A folder of its own, with an application's tree in `src` and a destination in `dest`.
pub struct Sandbox {
    dir: tempfile::TempDir,
    variables: BTreeMap<String, OsString>,
    destination: String,
}

impl Sandbox {
    /// An empty tree, and a destination.
    pub fn new() -> Self {
        let sandbox = Sandbox::with_destination("dest");
        sandbox.init("dest", "24h");
        sandbox
    }

    /// The same where the backups go elsewhere, and nothing is there yet.
    pub fn with_destination(destination: &str) -> Self {
        let sandbox = Sandbox {
            dir: tempfile::tempdir().unwrap(),
            variables: BTreeMap::new(),
            destination: destination.to_owned(),
        };
        for folder in ["src", "tmp", "home"] {
            fs::create_dir(sandbox.path(folder)).unwrap();
        }
        sandbox
    }

    /// Makes a destination with a grace time.
    pub fn init(&self, dest: &str, grace: &str) {
        self.run("bk-push", &["init", "--to", dest, "--grace", grace], b"").ok();
    }

    /// Puts the tools into `bin`, for another user who may not look where they were built.
    pub fn lend_tools(&self) {
        fs::create_dir(self.path("bin")).unwrap();
        for tool in ["bk-manifest", "bk-dump", "bk-push", "bk-prune", "bk-verify"] {
            copy_program(&bin_dir().join(tool), &self.path("bin").join(tool));
        }
        fs::set_permissions(self.path("bin"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A path in the sandbox.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file of the tree, with the folders above it.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path("src").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A command in the sandbox, with an environment that is always the same.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut path = bin_dir().as_os_str().to_owned();
        path.push(":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        let mut command = Command::new(program);
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", path)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("BK_STAGE", self.path("stage"))
            .envs(&self.variables);
        command
    }

    /// Adds a variable to the environment of all commands.
    pub fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.variables.insert(name.to_owned(), value.into());
    }

    /// Runs one program with this standard input.
    pub fn run(&self, program: &str, args: &[&str], input: &[u8]) -> Ended {
        run(self.command(program).args(args), input)
    }

    /// Runs programs as a pipe, with an empty standard input; returns how each ended. Only the last
    /// one's output is kept.
    pub fn pipe(&self, stages: &[&[&str]]) -> Vec<Ended> {
        let mut children: Vec<Child> = Vec::new();
        for (number, stage) in stages.iter().enumerate() {
            let input = match children.last_mut() {
                None => Stdio::null(),
                Some(child) => child.stdout.take().unwrap().into(),
            };
            let is_last = number + 1 == stages.len();
            let stderr = fs::File::create(self.path(&format!("tmp/stderr-{number}"))).unwrap();
            let output = if is_last {
                fs::File::create(self.path("tmp/stdout")).unwrap().into()
            } else {
                Stdio::piped()
            };
            let child = self
                .command(stage[0])
                .args(&stage[1..])
                .stdin(input)
                .stdout(output)
                .stderr(stderr)
                .spawn()
                .unwrap();
            children.push(child);
        }
        let last = children.len() - 1;
        children
            .into_iter()
            .enumerate()
            .map(|(number, mut child)| Ended {
                code: code(child.wait().unwrap()),
                stderr: fs::read_to_string(self.path(&format!("tmp/stderr-{number}"))).unwrap(),
                stdout: if number == last {
                    fs::read(self.path("tmp/stdout")).unwrap()
                } else {
                    Vec::new()
                },
            })
            .collect()
    }

    /// Backs the tree up to the destination, on top of the latest backup there; every step must do well.
    /// Returns the document that push printed.
    #[track_caller]
    pub fn back_up(&self) -> Vec<u8> {
        let mut ended = self.try_back_up(&[]);
        for step in &ended {
            assert_eq!(step.code, 0, "{}", step.stderr);
            assert_eq!(step.stderr, "");
        }
        ended.pop().unwrap().stdout
    }

    /// As [`Sandbox::back_up`], with more arguments for push; tells how the steps ended.
    pub fn try_back_up(&self, push: &[&str]) -> Vec<Ended> {
        let dest = self.destination.as_str();
        let latest = ["manifest", "latest", "--from", dest, "--app", "app", "--or-none"];
        let parent = self.run("bk-push", &latest, b"");
        if parent.code != 0 {
            return vec![parent];
        }
        fs::write(self.path("parent.json"), parent.stdout).unwrap();
        let push = [&["bk-push", "--to", dest][..], push].concat();
        self.pipe(&[
            &["bk-manifest", "new", "--app", "app", "--parent", "parent.json"],
            &["bk-manifest", "add", "--root", "src"],
            &push,
        ])
    }

    /// Fetches a document into `target`; every byte must come.
    #[track_caller]
    pub fn fetch(&self, document: &[u8], target: &str) {
        let fetch = ["fetch", "--from", &self.destination, "--target", target];
        self.run("bk-push", &fetch, document).expect(0);
    }

    /// The latest manifest at the destination.
    #[track_caller]
    pub fn latest(&self) -> Vec<u8> {
        self.run("bk-push", &["manifest", "latest", "--from", &self.destination], b"").ok().stdout
    }

    /// The backups' folders at `dest`, oldest first.
    pub fn backups(&self) -> Vec<PathBuf> {
        let mut folders: Vec<(String, PathBuf)> = files_below(&self.path("dest"))
            .into_iter()
            .filter(|path| path.ends_with("manifest.json"))
            .map(|path| {
                let manifest: serde_json::Value =
                    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                let time = manifest["backup"]["timestamp"].as_str().unwrap().to_owned();
                (time, path.parent().unwrap().to_owned())
            })
            .collect();
        folders.sort();
        folders.into_iter().map(|(_, folder)| folder).collect()
    }

    /// The volumes at `dest`, in the order they were stored.
    pub fn volumes(&self) -> Vec<PathBuf> {
        let mut volumes: Vec<PathBuf> = files_below(&self.path("dest"))
            .into_iter()
            .filter(|path| path.to_str().unwrap().ends_with(".tar.zst"))
            .collect();
        volumes.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
        volumes
    }

    /// A tree with everything that a file system allows and a name may hold.
    pub fn nasty_tree(&self) {
        for number in 0..50 {
            self.write(&format!("small/f{number}"), format!("content {number}\n"));
        }
        self.write("empty", "");
        self.write("zeros", vec![0; 3 << 20]);
        self.write("noise", noise(1, (5 << 20) + 17));
        self.write("same noise", noise(1, (5 << 20) + 17));
        self.write("a b/ leading and trailing ", "x");
        self.write("-rf", "x");
        self.write("back\\slash'quote\"$(id)`", "x");
        self.write("ünïcödé/日本語", "x");
        self.write(&"n".repeat(255), "long name");
        self.write(&["d".repeat(200), "e".repeat(200), "f".repeat(200)].join("/"), "long path");
        let src = self.path("src");
        for name in
            [&b"new\nline"[..], b"ends in newline\n", b"esc\x1b[31m", b"\xff\xfe", b"tab\tbed"]
        {
            fs::write(src.join(OsStr::from_bytes(name)), name).unwrap();
        }
        fs::create_dir(src.join("empty dir")).unwrap();
        fs::hard_link(src.join("small/f1"), src.join("hard link")).unwrap();
        fs::hard_link(src.join("small/f1"), src.join("zz hard link")).unwrap();
        symlink("small/f1", src.join("link")).unwrap();
        symlink("/nowhere/\n", src.join("dangling")).unwrap();
        symlink(OsStr::from_bytes(b"\xff"), src.join("odd link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            src.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
        for (path, mode) in
            [("small/f2", 0o400), ("small/f3", 0o4755), ("small", 0o750), ("empty dir", 0o1777)]
        {
            fs::set_permissions(src.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        set_mtime(&src.join("small/f4"), -86_400, 5);
        set_mtime(&src.join("small/f5"), 4_000_000_000, 999_999_999);
        set_mtime(&src.join("empty dir"), 1_000_000_000, 0);
    }
}

/// Copies a program. Not by ourselves: a child of another test could hold the copy open for writing, and
/// it could not be run.
pub fn copy_program(from: &Path, to: &Path) {
    run(std::process::Command::new("install").args(["-m", "755"]).arg(from).arg(to), b"").expect(0);
}

/// Runs a command with this standard input.
pub fn run(command: &mut Command, input: &[u8]) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    std::thread::scope(|scope| {
        // A program that does not read its input to the end is no error here.
        scope.spawn(move || stdin.write_all(input));
        scope.spawn(|| err.read_to_end(&mut stderr));
        out.read_to_end(&mut stdout).unwrap();
    });
    let code = code(child.wait().unwrap());
    Ended { code, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
}

/// Whether a staged dump was sealed. One that was killed between its seal and the end of its document
/// may still be pushed, for all that the next run knows: it stays for some hours.
pub fn is_sealed(staged: &Path) -> bool {
    let record = staged.parent().unwrap().with_file_name(".database.json");
    fs::read_to_string(record).is_ok_and(|record| record.contains("\"is_sealed\":true"))
}

/// Sets a file's modification time.
pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .unwrap();
}

/// Every regular file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else if entry.file_type().unwrap().is_file() {
            files.push(entry.path());
        }
    }
    files
}

/// What a path is, with all that a restore must bring back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime: Option<(i64, i64)>,
    content: Vec<u8>,
}

/// A tree as a map; hard links are named by the first path of their file. `.bk` is left out.
pub fn snapshot(root: &Path) -> BTreeMap<OsString, Node> {
    let mut nodes = BTreeMap::new();
    let mut paths = Vec::new();
    collect(root, Path::new(""), &mut paths);
    paths.sort();
    let mut first_names: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for path in paths {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let kind = metadata.file_type();
        let name = path.as_os_str().as_bytes().to_vec();
        let (word, content) = if kind.is_symlink() {
            ("symlink".to_owned(), fs::read_link(&full).unwrap().into_os_string().into_vec())
        } else if kind.is_file() {
            let first = first_names.entry(metadata.ino()).or_insert_with(|| name.clone());
            (format!("file of {first:?}"), fs::read(&full).unwrap())
        } else if kind.is_dir() {
            ("directory".to_owned(), Vec::new())
        } else if kind.is_fifo() {
            ("fifo".to_owned(), Vec::new())
        } else {
            (format!("{kind:?} {}", metadata.rdev()), Vec::new())
        };
        let node = Node {
            kind: word,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (!kind.is_symlink()).then(|| (metadata.mtime(), metadata.mtime_nsec())),
            content,
        };
        nodes.insert(path.into_os_string(), node);
    }
    nodes
}

fn collect(root: &Path, below: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if below.as_os_str().is_empty() && entry.file_name().as_bytes().starts_with(b".bk") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            collect(root, &path, paths);
        }
        paths.push(path);
    }
}

/// Fails the test with the paths that differ.
#[track_caller]
pub fn assert_same_tree(expected: &BTreeMap<OsString, Node>, found: &BTreeMap<OsString, Node>) {
    for (path, node) in expected {
        match found.get(path) {
            None => panic!("{path:?} is missing"),
            Some(other) if other != node => {
                let show = |node: &Node| {
                    let length = node.content.len();
                    format!(
                        "{} {:o} {:?} {:?} {length} bytes",
                        node.kind, node.mode, node.owner, node.mtime
                    )
                };
                panic!("{path:?} differs: {} became {}", show(node), show(other));
            }
            Some(_) => {}
        }
    }
    for path in found.keys() {
        assert!(expected.contains_key(path), "{path:?} is new");
    }
}

/// Bytes that do not compress, always the same for a seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Seeded chance (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// A seed of this run, printed so that a failure can be had again with `BK_SEED`.
    pub fn from_run() -> Self {
        let seed = match std::env::var("BK_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => jiff::Timestamp::now().as_nanosecond() as u64,
        };
        println!("BK_SEED={seed}");
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
