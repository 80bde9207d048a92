//! A program that bytes flow through: driven by one thread, which never waits for one end of it while
//! the other one waits for us.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use bk_manifest::command::{Command, Finished, Running};
use bk_manifest::signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// A program with a pipe at either end.
pub struct Piped {
    running: Running,
    stdin: Option<PipeWriter>,
    stdout: PipeReader,
}

/// What a program did next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It took so many bytes.
    Took(usize),
    /// It takes no more.
    Refused,
    /// It gave so many bytes.
    Gave(usize),
    /// It gives no more.
    Ended,
}

impl Piped {
    /// Starts it.
    ///
    /// # Errors
    /// If the system cannot start it.
    pub fn start(command: Command) -> anyhow::Result<Self> {
        let mut running = command.start()?;
        let stdin = running.stdin.take().context("a program without an input")?;
        let stdout = running.stdout.take().context("a program without an output")?;
        for fd in [stdin.as_fd(), stdout.as_fd()] {
            let flags = fcntl_getfl(fd).map_err(io::Error::from)?;
            fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        }
        Ok(Piped { running, stdin: Some(stdin), stdout })
    }

    /// Waits until it takes some of `input` or gives something into `output`, whichever is first.
    ///
    /// # Errors
    /// Those of the pipes; being stopped.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        loop {
            signal::check()?;
            let mut fds = vec![PollFd::new(&self.stdout, PollFlags::IN)];
            if let Some(stdin) = self.stdin.as_ref().filter(|_| !input.is_empty()) {
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let is_ready =
                |number: usize| fds.get(number).is_some_and(|fd| !fd.revents().is_empty());
            let (gives, takes) = (is_ready(0), is_ready(1));
            let is_passing = |error: &io::Error| {
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
            };
            if gives {
                match self.stdout.read(output) {
                    Ok(0) => return Ok(Step::Ended),
                    Ok(read) => return Ok(Step::Gave(read)),
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            if let Some(stdin) = self.stdin.as_mut().filter(|_| takes) {
                match stdin.write(input) {
                    Ok(written) => return Ok(Step::Took(written)),
                    Err(error) if is_passing(&error) => {}
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                        self.end_input();
                        return Ok(Step::Refused);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Tells it that there is no more.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Running::wait`].
    pub fn wait(self) -> anyhow::Result<Finished> {
        drop((self.stdin, self.stdout));
        self.running.wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::command::Program;

    fn shell(script: &str) -> Piped {
        let program = Program::find("sh", "a shell").unwrap();
        Piped::start(Command::new(&program).arg("-c").arg(script)).unwrap()
    }

    #[test]
    fn more_than_the_pipes_hold_flows_through() {
        let mut piped = shell("cat");
        let input = vec![7; 3 << 20];
        let (mut sent, mut received, mut buffer) = (0, 0, vec![0; 4096]);
        loop {
            match piped.step(&input[sent..], &mut buffer).unwrap() {
                Step::Took(taken) => sent += taken,
                Step::Gave(given) => received += given,
                Step::Ended => break,
                Step::Refused => panic!("refused"),
            }
            if sent == input.len() {
                piped.end_input();
            }
        }
        assert_eq!((sent, received), (input.len(), input.len()));
        assert!(piped.wait().unwrap().is_success());
    }

    #[test]
    fn a_program_that_takes_nothing_is_told() {
        let mut piped = shell("exec <&-; echo no >&2; exit 4");
        let input = [1; 100];
        while !matches!(piped.step(&input, &mut [0; 9]).unwrap(), Step::Refused | Step::Ended) {}
        assert!(piped.wait().unwrap().message().ends_with("(exit status: 4): no"));
    }
}
