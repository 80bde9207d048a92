//! Being stopped: a signal sets a flag, long work looks at it, the tool cleans up and then dies of
//! that signal, so that the shell sees it.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The signal that arrived; a process has one set of signals, so this is one value for all of it.
static CAUGHT: std::sync::LazyLock<Arc<AtomicUsize>> =
    std::sync::LazyLock::new(|| Arc::new(AtomicUsize::new(0)));

/// Nobody reads it: once a signal has arrived, something is there to be read, for ever. Before that there
/// must be nothing, not even its end: so one who could write is kept, also if all signals are ignored.
static ARRIVAL: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();

/// The process was told to stop.
#[derive(Debug, thiserror::Error)]
#[error("stopped by signal {0}")]
pub struct Stopped(pub usize);

/// Makes HUP, INT and TERM set the flag; a second one ends the process at once. One that we were
/// started to ignore, as under `nohup`, stays ignored.
///
/// # Errors
/// If the system refuses the handler.
pub fn install() -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let heeded =
        [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| !is_ignored(&status, *signal));
    // Who calls this twice has the first one rung, too.
    let _ = ARRIVAL.set(heed(heeded)?);
    Ok(())
}

/// Has these signals set the flag, and ring.
fn heed(signals: impl Iterator<Item = i32>) -> io::Result<(PipeReader, PipeWriter)> {
    let (arrival, ring) = io::pipe()?;
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in signals {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&is_second))?;
        signal_hook::flag::register(signal, Arc::clone(&is_second))?;
        let number = usize::try_from(signal).unwrap_or_default();
        signal_hook::flag::register_usize(signal, Arc::clone(&CAUGHT), number)?;
        // Behind the flag: whom it wakes finds that set.
        signal_hook::low_level::pipe::register(signal, ring.try_clone()?)?;
    }
    Ok((arrival, ring))
}

/// Whether a process ignores a signal, by what `/proc/PID/status` says of it (proc(5)): `SigIgn`, in hex, has
/// the lowest bit for signal 1. A system without that file ignores none.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// The signal that arrived, if one did.
pub fn caught() -> Option<usize> {
    Some(CAUGHT.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// What becomes readable when a signal arrives, for whom sleeps in `poll`.
pub(crate) fn arrival() -> Option<BorrowedFd<'static>> {
    ARRIVAL.get().map(|(arrival, _)| arrival.as_fd())
}

/// Called in every long loop.
///
/// # Errors
/// [`Stopped`] once a signal has arrived.
pub fn check() -> io::Result<()> {
    match caught() {
        None => Ok(()),
        Some(signal) => Err(io::Error::other(Stopped(signal))),
    }
}

/// Ends the process by the signal that was caught, after all has been cleaned up.
pub(crate) fn die_of(signal: usize) {
    if let Ok(signal) = i32::try_from(signal) {
        // Fails only for a signal without a default action, which we do not catch.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_woken_where_all_signals_are_ignored() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let (arrival, _ring) = heed(std::iter::empty()).unwrap();
        let mut wake = [PollFd::new(&arrival, PollFlags::IN)];
        assert_eq!(poll(&mut wake, Some(&Timespec::default())).unwrap(), 0);
    }

    #[test]
    fn ignored_signals_are_told_by_their_bits() {
        let status =
            "SigBlk:\t0000000000000004\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000004002\n";
        assert!(is_ignored(status, SIGHUP));
        assert!(!is_ignored(status, SIGINT) && !is_ignored(status, SIGTERM));
        assert!(!is_ignored("", SIGHUP));
    }
}
