//! External programs: found on the PATH, run with an argument list and never through a shell, told
//! to stop when we are, and heard when they fail.

mod cancel;
mod finished;
mod keeper;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread::JoinHandle;

use anyhow::Context;
pub use cancel::Cancel;
pub use finished::Finished;
use keeper::Keeper;

use crate::exit::{Exit, Failure};

/// How much of a program's standard error is kept: the end of it.
const STDERR_LIMIT: usize = 64 << 10;
/// Largest output that [`Command::output`] takes.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// A program that was found.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    path: PathBuf,
}

impl Program {
    /// Looks for a program on the PATH; `package` is what to install where it is missing.
    ///
    /// # Errors
    /// [`Exit::Failed`] with the hint to install it.
    pub fn find(name: &str, package: &str) -> anyhow::Result<Self> {
        Program::find_optional(name).ok_or_else(|| {
            Failure::new(Exit::Failed, format!("the program '{name}' is not installed"))
                .hint(format!("install {package}"))
                .into()
        })
    }

    /// Looks for a program that one can do without.
    pub fn find_optional(name: &str) -> Option<Self> {
        which::which(name).ok().map(|path| Program { name: name.to_owned(), path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A program with its arguments, not yet started.
///
/// It has no terminal: standard input is empty unless given. Secrets go into its environment or its
/// input, never into its arguments, which every user of the machine can see.
pub struct Command {
    /// What messages call it.
    name: String,
    path: PathBuf,
    args: Vec<OsString>,
    is_for_shell: bool,
    variables: Vec<(OsString, Option<OsString>)>,
    preface: Vec<u8>,
    input: Option<File>,
    cancel: Cancel,
    heeds_signals: bool,
}

impl Command {
    /// Without arguments, in our own environment with messages in English.
    pub fn new(program: &Program) -> Self {
        Command {
            name: program.name.clone(),
            path: program.path.clone(),
            args: Vec::new(),
            is_for_shell: false,
            variables: vec![("LC_ALL".into(), Some("C".into()))],
            preface: Vec::new(),
            input: None,
            cancel: Cancel::default(),
            heeds_signals: true,
        }
    }

    /// What messages call it, where that is not the program's own name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        let arg = arg.as_ref();
        self.args.push(if self.is_for_shell { quoted(arg) } else { arg.to_owned() });
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Command::arg)
    }

    /// From here on quotes every argument: the program hands all of them to a shell, as ssh does.
    #[must_use]
    pub fn for_shell(mut self) -> Self {
        self.is_for_shell = true;
        self
    }

    /// Sends this to its standard input before anything else. It must fit into a pipe (4 KiB always
    /// do), for nobody may be reading yet.
    #[must_use]
    pub fn preface(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.preface = bytes.into();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes a variable out of its environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), None));
        self
    }

    /// Gives it an open file as standard input.
    #[must_use]
    pub fn input(mut self, file: File) -> Self {
        self.input = Some(file);
        self
    }

    /// Ends it once that is cancelled.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Runs it although we were told to stop: for cleaning up.
    #[must_use]
    pub fn despite_signals(mut self) -> Self {
        self.heeds_signals = false;
        self
    }

    /// Starts it with pipes to its output and, unless a file was given, its input.
    ///
    /// # Errors
    /// If the system cannot start it.
    pub fn start(mut self) -> anyhow::Result<Running> {
        let context = || format!("cannot start '{}'", self.name);
        let (stdout, child_stdout) = io::pipe().with_context(context)?;
        let (stderr, child_stderr) = io::pipe().with_context(context)?;
        let bell = cancel::Bell::new().with_context(context)?;
        let mut expression = duct::cmd(&self.path, &self.args)
            .unchecked()
            .stdout_file(child_stdout)
            .stderr_file(child_stderr);
        let (mut stdin, mut feeder) = (None, None);
        expression = match self.input.take() {
            Some(file) if self.preface.is_empty() => expression.stdin_file(file),
            file => {
                let (child_stdin, mut writer) = io::pipe().with_context(context)?;
                writer.write_all(&self.preface).with_context(context)?;
                match file {
                    Some(file) => feeder = Some((file, writer)),
                    None => stdin = Some(writer),
                }
                expression.stdin_file(child_stdin)
            }
        };
        // In duct the setting that was made first holds; here it is the one made last.
        for (name, value) in self.variables.iter().rev() {
            expression = match value {
                Some(value) => expression.env(name, value),
                None => expression.env_remove(name),
            };
        }
        let handle = expression.start().with_context(context)?;
        // It holds our copies of the child's ends; while they are open no pipe ever ends.
        drop(expression);
        let stop = Cancel::default();
        let cancels = [stop.clone(), self.cancel.clone()];
        let keeper = Keeper::new(handle, bell, cancels, self.heeds_signals);
        Ok(Running {
            name: self.name,
            stdin,
            stdout: Some(stdout),
            stderr: Some(std::thread::spawn(move || tail(stderr))),
            feeder: feeder.map(|(file, writer)| std::thread::spawn(move || feed(file, writer))),
            keeper: Some(std::thread::spawn(move || keeper.run())),
            stop,
            cancel: self.cancel,
            heeds_signals: self.heeds_signals,
        })
    }

    /// Runs it to its end and returns what it printed.
    ///
    /// # Errors
    /// If it cannot be started, prints too much to be held, or we were told to stop. A failure of its
    /// own is in [`Finished`].
    pub fn output(self) -> anyhow::Result<(Vec<u8>, Finished)> {
        let mut running = self.start()?;
        drop(running.stdin.take());
        let mut output = Vec::new();
        if let Some(stdout) = running.stdout.take() {
            stdout
                .take(OUTPUT_LIMIT + 1)
                .read_to_end(&mut output)
                .with_context(|| format!("cannot read what '{}' prints", running.name))?;
            // The rest may fit into the pipe: then the program itself would not notice.
            anyhow::ensure!(
                output.len() as u64 <= OUTPUT_LIMIT,
                "'{}' prints more than {} MiB",
                running.name,
                OUTPUT_LIMIT >> 20
            );
        }
        Ok((output, running.wait()?))
    }
}

/// A program that runs; dropped, it is told to end, and waited for.
pub struct Running {
    name: String,
    /// Its standard input, unless a file was given; closed by dropping it.
    pub stdin: Option<PipeWriter>,
    /// Its standard output.
    pub stdout: Option<PipeReader>,
    stderr: Option<JoinHandle<String>>,
    /// Sends it a file behind a preface.
    feeder: Option<JoinHandle<io::Result<()>>>,
    keeper: Option<JoinHandle<io::Result<ExitStatus>>>,
    /// Ends it when it is given up.
    stop: Cancel,
    cancel: Cancel,
    heeds_signals: bool,
}

impl Running {
    /// Closes its pipes and waits for its end.
    ///
    /// # Errors
    /// If we were told to stop meanwhile. A failure of its own is in [`Finished`].
    pub fn wait(mut self) -> anyhow::Result<Finished> {
        let finished = self.finish()?;
        if self.heeds_signals {
            self.cancel.check()?;
        }
        Ok(finished)
    }

    fn finish(&mut self) -> anyhow::Result<Finished> {
        drop(self.stdin.take());
        drop(self.stdout.take());
        let lost = || format!("cannot wait for '{}'", self.name);
        let keeper = self.keeper.take().with_context(lost)?;
        let status = keeper.join().ok().with_context(lost)?.with_context(lost)?;
        let stderr = self.stderr.take().with_context(lost)?.join().ok().with_context(lost)?;
        if let Some(feeder) = self.feeder.take() {
            let fed = feeder.join().ok().with_context(lost)?;
            fed.with_context(|| format!("cannot read what '{}' is given", self.name))?;
        }
        Ok(Finished::new(&self.name, status, stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            self.stop.cancel();
            // It is being given up: how it ends says nothing.
            let _ = self.finish();
        }
    }
}

/// An argument as a POSIX shell takes it, whatever is in it.
pub fn quoted(arg: &OsStr) -> OsString {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_=./,:@%+".contains(byte);
    if !arg.is_empty() && arg.as_bytes().iter().all(is_plain) {
        return arg.to_owned();
    }
    let mut text = vec![b'\''];
    for byte in arg.as_bytes() {
        match byte {
            b'\'' => text.extend_from_slice(b"'\\''"),
            byte => text.push(*byte),
        }
    }
    text.push(b'\'');
    OsString::from_vec(text)
}

/// Sends a file; a program that reads no more of it has its reasons, and says them.
fn feed(mut file: File, mut stdin: PipeWriter) -> io::Result<()> {
    match io::copy(&mut file, &mut stdin) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Reads to the end and keeps the last part.
fn tail(mut stderr: PipeReader) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        if kept.len() > 2 * STDERR_LIMIT {
            kept.drain(..kept.len() - STDERR_LIMIT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn shell(script: &str) -> Command {
        Command::new(&Program::find("sh", "a shell").unwrap()).arg("-c").arg(script)
    }

    #[test]
    fn output_and_errors_are_both_heard() {
        let (output, finished) = shell("echo out; echo why >&2; exit 3").output().unwrap();
        assert_eq!(output, b"out\n");
        assert!(!finished.is_success());
        assert_eq!(finished.message(), "'sh' failed (exit status: 3): why");
    }

    #[test]
    fn output_is_whole_or_an_error() {
        let most = shell(&format!("head -c {OUTPUT_LIMIT} /dev/zero")).output().unwrap();
        assert_eq!((most.0.len() as u64, most.1.is_success()), (OUTPUT_LIMIT, true));
        let more = shell(&format!("head -c {} /dev/zero", OUTPUT_LIMIT + 1)).output();
        assert!(more.unwrap_err().to_string().contains("more than 64 MiB"));
    }

    #[test]
    fn the_variable_set_last_holds() {
        let command = shell("echo $A-$B-$LC_ALL").env_remove("A").env("A", "1").env("A", "2");
        let (output, _) =
            command.env("B", "3").env_remove("B").env("LC_ALL", "x").output().unwrap();
        assert_eq!(output, b"2--x\n");
    }

    #[test]
    fn a_program_can_be_talked_to() {
        let program = Program::find("cat", "coreutils").unwrap();
        let mut running = Command::new(&program).start().unwrap();
        let mut stdin = running.stdin.take().unwrap();
        stdin.write_all(b"abc").unwrap();
        drop(stdin);
        let mut text = String::new();
        running.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        assert!(running.wait().unwrap().is_success());
    }

    #[test]
    fn a_preface_comes_before_a_file_and_before_what_is_written() {
        let script = "read -r first; printf '%s|' \"$first\"; cat";
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x".repeat(200_000).as_slice()).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let (output, finished) = shell(script).preface("a b\n").input(file).output().unwrap();
        assert!(finished.is_success());
        assert_eq!((&output[..5], output.len()), (&b"a b|x"[..], 200_004));
        let mut running = shell(script).preface("a b\n").start().unwrap();
        running.stdin.take().unwrap().write_all(b"c").unwrap();
        let mut text = String::new();
        running.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "a b|c");
        // Who does not read it to its end is not waited for.
        let file = File::open("/dev/zero").unwrap();
        let (_, finished) = shell("exit 3").preface("a\n").input(file).output().unwrap();
        assert!(!finished.is_success());
    }

    #[test]
    fn what_goes_through_a_shell_arrives_as_it_was() {
        let odd = ["", "a b", "it's", "$(id) `id` \\ \"", "*", "line\nbreak", "-n", "~", "ü", "!!"];
        let joined = Command::new(&Program::find("sh", "a shell").unwrap())
            .arg("-c")
            .for_shell()
            .args(["printf", "<%s>"])
            .args(odd);
        // As ssh joins them.
        let script = joined.args[1..].join(OsStr::new(" "));
        let (output, _) = shell(script.to_str().unwrap()).output().unwrap();
        let expected: String = odd.iter().flat_map(|arg| ["<", arg, ">"]).collect();
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn a_cancelled_program_is_ended() {
        let cancel = Cancel::default();
        let running = shell("exec sleep 60").cancelled_by(&cancel).start().unwrap();
        let began = Instant::now();
        cancel.cancel();
        assert!(running.wait().is_err());
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_dropped_program_is_ended() {
        let began = Instant::now();
        drop(shell("exec sleep 60").start().unwrap());
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn much_on_standard_error_blocks_nobody() {
        let (_, finished) =
            shell("i=0; while [ $i -lt 20000 ]; do echo 0123456789 >&2; i=$((i+1)); done; exit 1")
                .output()
                .unwrap();
        assert!(finished.stderr.len() <= 2 * STDERR_LIMIT);
        assert!(finished.stderr.ends_with("\n0123456789\n"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Program::find("bk-no-such-program", "nothing").unwrap_err();
        assert_eq!(error.to_string(), "the program 'bk-no-such-program' is not installed");
    }
}
