//! Waiting for a program that runs, and ending it when it is time.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::cancel::{Bell, Cancel};
use crate::signal;

/// How long a program has to end after TERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether it has ended where the system cannot say so: before Linux 5.3, or in
/// a container that forbids it.
const TICK: Duration = Duration::from_millis(20);

/// The thread that waits for a program, and ends it when it is time.
pub(super) struct Keeper {
    handle: duct::Handle,
    /// Readable once the program has ended.
    end: Option<OwnedFd>,
    bell: Bell,
    /// Each ends the program.
    cancels: [Cancel; 2],
    heeds_signals: bool,
    patience: Duration,
}

impl Keeper {
    /// That of a program, which each of these ends.
    pub(super) fn new(
        handle: duct::Handle,
        bell: Bell,
        cancels: [Cancel; 2],
        heeds_signals: bool,
    ) -> Self {
        for cancel in &cancels {
            cancel.rings(&bell);
        }
        // No one else waits for the program, so its number is still its own.
        let end = pid(&handle).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Keeper { handle, end, bell, cancels, heeds_signals, patience: PATIENCE }
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn run(&self) -> io::Result<ExitStatus> {
        let mut asked: Option<Instant> = None;
        loop {
            if let Some(output) = self.handle.try_wait()? {
                return Ok(output.status);
            }
            if asked.is_none() && self.must_stop() {
                self.terminate();
                asked = Some(Instant::now());
            }
            let left = match asked.map(|since| self.patience.checked_sub(since.elapsed())) {
                Some(None) => {
                    self.handle.kill()?;
                    None
                }
                left => left.flatten(),
            };
            self.sleep(asked.is_some(), left)?;
        }
    }

    fn must_stop(&self) -> bool {
        self.cancels.iter().any(Cancel::is_cancelled)
            || (self.heeds_signals && signal::caught().is_some())
    }

    /// Sleeps until the program has ended, the time is over, or it is to be ended and was not yet asked.
    fn sleep(&self, is_asked: bool, mut left: Option<Duration>) -> io::Result<()> {
        let mut fds = Vec::with_capacity(3);
        match &self.end {
            Some(end) => fds.push(PollFd::new(end, PollFlags::IN)),
            None => left = Some(left.map_or(TICK, |left| left.min(TICK))),
        }
        if !is_asked {
            fds.push(PollFd::new(&self.bell, PollFlags::IN));
            let signal = signal::arrival().filter(|_| self.heeds_signals);
            fds.extend(signal.map(|signal| PollFd::from_borrowed_fd(signal, PollFlags::IN)));
        }
        let left = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends TERM.
    fn terminate(&self) {
        if let Some(pid) = pid(&self.handle) {
            // It may have just ended.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// The number of the one program that we run by a handle.
fn pid(handle: &duct::Handle) -> Option<Pid> {
    handle.pids().first().and_then(|pid| Pid::from_raw(i32::try_from(*pid).ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn keeper(script: &str, cancel: &Cancel) -> Keeper {
        let handle = duct::cmd("sh", ["-c", script]).unchecked().start().unwrap();
        let cancels = [cancel.clone(), Cancel::default()];
        Keeper::new(handle, Bell::new().unwrap(), cancels, true)
    }

    #[test]
    fn a_system_that_cannot_tell_of_an_end_is_asked_again() {
        for is_told in [true, false] {
            let mut ending = keeper("exit 3", &Cancel::default());
            let cancel = Cancel::default();
            let mut lasting = keeper("exec sleep 60", &cancel);
            assert!(ending.end.is_some() && lasting.end.is_some());
            if !is_told {
                (ending.end, lasting.end) = (None, None);
            }
            assert_eq!(ending.run().unwrap().code(), Some(3));
            std::thread::scope(|scope| {
                let ended = scope.spawn(|| lasting.run().unwrap());
                cancel.cancel();
                assert_eq!(ended.join().unwrap().signal(), Some(15));
            });
        }
    }

    #[test]
    fn what_was_cancelled_before_it_began_is_ended() {
        let cancel = Cancel::default();
        cancel.cancel();
        assert_eq!(keeper("exec sleep 60", &cancel).run().unwrap().signal(), Some(15));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let (mut said, stdout) = io::pipe().unwrap();
        let script = "trap '' TERM; echo; exec sleep 60";
        let handle = duct::cmd("sh", ["-c", script]).unchecked().stdout_file(stdout).start();
        let cancels = [Cancel::default(), Cancel::default()];
        cancels[1].cancel();
        let mut deaf = Keeper::new(handle.unwrap(), Bell::new().unwrap(), cancels, true);
        deaf.patience = Duration::from_millis(50);
        said.read_exact(&mut [0]).unwrap();
        assert_eq!(deaf.run().unwrap().signal(), Some(9));
    }
}
