//! The outer shell of every tool: parse, run, report, exit.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::error::ErrorKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::exit::{ClosedPipe, Exit, Failure, classify, is_closed_pipe};
use crate::path;
use crate::progress::{Progress, human_bytes};
use crate::signal;

/// What every tool's arguments have in common.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Verbosity {
    /// Print warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say what is done, also where stderr is no terminal
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The text below every tool's help.
pub const EXIT_CODES_HELP: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 done but incomplete, \
10 no destination, 11 busy, 12 access denied, 13 not found, 20 data damaged, 21 manifest damaged, \
22 verdict not met";

/// Runs a tool: its arguments are parsed, `run` does its step, an error becomes one line on stderr
/// and an exit code.
pub fn main<A: Parser>(
    tool: &'static str,
    verbosity: impl Fn(&A) -> &Verbosity,
    run: impl FnOnce(&A, &Console) -> anyhow::Result<Exit>,
) -> ExitCode {
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let console = Console::new(tool, verbosity(&args));
    if let Err(error) = signal::install() {
        console.line(&format!("warning: cannot catch signals: {error}"));
    }
    raise_descriptor_limit();
    let result = run(&args, &console);
    console.end();
    let exit = match result {
        Ok(exit) => exit,
        Err(error) => {
            if signal::caught().is_none() && !is_closed_pipe(&error) {
                console.error(&error);
            }
            classify(&error)
        }
    };
    if let Some(signal) = signal::caught() {
        signal::die_of(signal);
    }
    ExitCode::from(exit.code())
}

/// A walk holds a descriptor for each folder above it; the usual limit of 1,024 is for programs that
/// use `select`, which we do not.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, deep trees are left out, which is said.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn usage(error: &clap::Error) -> ExitCode {
    let exit = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    };
    // A help text nobody reads is no failure of ours.
    let _ = error.print();
    ExitCode::from(exit.code())
}

/// Standard error: messages for people, a line each, and one line of progress at a terminal.
pub struct Console {
    tool: &'static str,
    shows_notes: bool,
    shows_progress: bool,
    work: Mutex<Option<Work>>,
}

struct Work {
    what: String,
    total_bytes: Option<u64>,
    bytes: u64,
    items: u64,
    began: Instant,
    shown: Option<Instant>,
}

/// How often the line of progress is drawn.
const REFRESH: Duration = Duration::from_millis(200);

impl Console {
    fn new(tool: &'static str, verbosity: &Verbosity) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Console {
            tool,
            shows_notes: verbosity.verbose || (is_terminal && !verbosity.quiet),
            shows_progress: is_terminal && !verbosity.quiet,
            work: Mutex::new(None),
        }
    }

    fn line(&self, message: &str) {
        let clear = if self.shows_progress { "\r\x1b[K" } else { "" };
        // Nowhere is left to say that stderr is gone.
        let _ = writeln!(io::stderr(), "{clear}{}: {message}", self.tool);
    }

    fn error(&self, error: &anyhow::Error) {
        let message = format!("{error:#}");
        self.line(&format!("error: {}", path::escape(message.trim_end().as_bytes())));
        for failure in error.chain().filter_map(|cause| cause.downcast_ref::<Failure>()) {
            for hint in &failure.hints {
                self.line(&format!("hint: {}", path::escape(hint.as_bytes())));
            }
        }
    }

    /// Standard input as a manifest; a terminal there is a mistake.
    ///
    /// # Errors
    /// [`Exit::Usage`] with the pipe that was meant.
    pub fn input(&self, example: &str) -> anyhow::Result<impl io::Read + use<>> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(Failure::new(Exit::Usage, "standard input is a terminal, not a manifest")
                .hint(format!("use it in a pipe: {example}"))
                .into());
        }
        Ok(PipeIn(stdin))
    }

    /// Standard output for people and scripts that asked for it; also at a terminal.
    pub fn text_output(&self) -> Box<dyn Write> {
        Box::new(io::BufWriter::with_capacity(1 << 16, PipeOut(io::stdout())))
    }

    /// Standard output for a manifest; at a terminal the document is not printed.
    pub fn output(&self) -> Box<dyn Write> {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            Box::new(io::sink())
        } else {
            Box::new(io::BufWriter::with_capacity(1 << 16, PipeOut(stdout)))
        }
    }
}

/// Standard input that notices a signal also while nothing comes: a plain read would sleep on.
struct PipeIn(io::Stdin);

impl io::Read for PipeIn {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        loop {
            signal::check()?;
            let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut ready, Some(&tick)) {
                Ok(0) | Err(Errno::INTR) => {}
                // Past the buffer of `Stdin`, which poll does not see.
                Ok(_) => return Ok(rustix::io::read(&self.0, buffer)?),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Standard output whose reader may go: then writing fails with [`ClosedPipe`].
struct PipeOut(io::Stdout);

impl Write for PipeOut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(unwritten)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(unwritten)
    }
}

/// Says what could not be written: the file that a shell opened has no name here.
fn unwritten(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, ClosedPipe),
        io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, format!("cannot write to standard output: {error}")),
    }
}

impl Progress for Console {
    fn warn(&self, message: &str) {
        self.line(&format!("warning: {}", path::escape(message.as_bytes())));
    }

    fn note(&self, message: &str) {
        if self.shows_notes {
            self.line(&path::escape(message.as_bytes()));
        }
    }

    fn begin(&self, what: &str, total_bytes: Option<u64>) {
        if let Ok(mut work) = self.work.lock() {
            *work = Some(Work {
                what: what.to_owned(),
                total_bytes,
                bytes: 0,
                items: 0,
                began: Instant::now(),
                shown: None,
            });
        }
    }

    fn advance(&self, bytes: u64, items: u64) {
        if !self.shows_progress {
            return;
        }
        let Ok(mut guard) = self.work.lock() else { return };
        let Some(work) = guard.as_mut() else { return };
        work.bytes += bytes;
        work.items += items;
        if work.shown.is_some_and(|shown| shown.elapsed() < REFRESH) {
            return;
        }
        work.shown = Some(Instant::now());
        let seconds = work.began.elapsed().as_secs().max(1);
        let part = match work.total_bytes {
            Some(total) if total > 0 => {
                format!(" of {} ({} %)", human_bytes(total), work.bytes.saturating_mul(100) / total)
            }
            _ => String::new(),
        };
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{}: {}: {}{part}, {} files, {}/s",
            self.tool,
            work.what,
            human_bytes(work.bytes),
            work.items,
            human_bytes(work.bytes / seconds),
        );
    }

    fn end(&self) {
        let was_shown = self
            .work
            .lock()
            .ok()
            .and_then(|mut work| work.take())
            .is_some_and(|work| work.shown.is_some());
        if was_shown && self.shows_progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
