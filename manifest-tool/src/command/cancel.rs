//! Asking programs that run to end, because another part of the work has failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};

use crate::signal;

/// A flag that ends running programs when another part of the work has failed.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_cancelled: AtomicBool,
    /// Whoever sleeps until it is set.
    sleepers: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Cancel {
    /// Asks everything that looks at it to stop.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Release);
        let sleepers = self.0.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        for sleeper in sleepers.iter().filter_map(Weak::upgrade) {
            // It fails only where it was rung without end, and then it rings.
            let _ = rustix::io::write(&sleeper, &1u64.to_ne_bytes());
        }
    }

    /// Whether that was asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }

    /// Called in every long loop.
    ///
    /// # Errors
    /// Once a signal has arrived, or the work was cancelled.
    pub fn check(&self) -> io::Result<()> {
        signal::check()?;
        if self.is_cancelled() {
            return Err(io::Error::other("stopped, because another part of the work failed"));
        }
        Ok(())
    }

    /// Rings that bell once it is cancelled. Who was too late for it must look at the flag before he
    /// sleeps.
    pub(super) fn rings(&self, bell: &Bell) {
        let mut sleepers = self.0.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        sleepers.retain(|sleeper| sleeper.strong_count() > 0);
        sleepers.push(Arc::downgrade(&bell.0));
    }
}

/// What wakes one thread from a `poll`.
pub(super) struct Bell(Arc<OwnedFd>);

impl Bell {
    /// One that nobody has rung.
    ///
    /// # Errors
    /// If the system has no more of them.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Bell(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
