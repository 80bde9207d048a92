//! Runs the binary in an environment of its own, with all streams kept.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The binary without the environment of whoever runs the tests.
pub(crate) fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bk-manifest"));
    command.args(args).env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// What a run printed, and how it ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// It ended with 0 and said nothing on stderr.
    #[track_caller]
    pub(crate) fn success(self) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{}", self.text());
        self
    }

    /// It ended with `code`, and one line on stderr that has `message` in it.
    #[track_caller]
    pub(crate) fn failure(self, code: i32, message: &str) -> Self {
        assert_eq!(self.code, code, "{}", self.stderr);
        let errors: Vec<_> = self.stderr.lines().filter(|l| !l.contains(": hint: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert!(errors[0].starts_with("bk-manifest: error: "), "{}", self.stderr);
        assert!(self.stderr.contains(message), "{message:?} in {}", self.stderr);
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs with `input` on standard input.
pub(crate) fn run_command(mut command: Command, input: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A tool that refuses its input early closes it.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap().into()
    })
}

pub(crate) fn run(args: &[&str], input: &[u8]) -> Ran {
    run_command(tool(args), input)
}

/// A file with these bytes.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::File::create(path).unwrap().write_all(bytes.as_ref()).unwrap();
}

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Numbers that look random and come again with their seed (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    /// With the seed in `BK_TEST_SEED`, or a new one; it is printed, for a failure to show.
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("BK_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => {
                u64::from(std::process::id()) << 20
                    ^ u64::from(bk_manifest::time::Time::now().unix().1)
            }
        };
        println!("BK_TEST_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::try_from(self.below(values.len() as u64)).unwrap()]
    }
}
