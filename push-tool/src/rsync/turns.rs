//! Taking turns where the other side serves one request at a time, as `rrsync` without `-no-lock` does.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::fault::Fault;

/// For how long another run may keep us waiting.
const PATIENCE: Duration = Duration::from_mins(1);
/// Before it is asked again: from half of it to all of it, so that two who wait do not meet each time.
const PAUSE: Duration = Duration::from_millis(600);

/// Whose turn it is among the requests of this process.
#[derive(Default)]
pub(super) struct Turns {
    /// Requests share it until one is refused. Whether they take turns from then on.
    is_narrow: RwLock<bool>,
}

impl Turns {
    /// Makes a request; where it is refused because another one is under way, waits for its turn.
    ///
    /// # Errors
    /// Those of the request; being stopped.
    pub(super) fn take<T>(
        &self,
        mut request: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        {
            let is_narrow = self.is_narrow.read().unwrap_or_else(PoisonError::into_inner);
            if !*is_narrow {
                match request() {
                    Err(fault) if fault.is_busy() => {}
                    result => return result,
                }
            }
        }
        // Now those of this process that began before have ended, and none begins.
        let mut is_narrow = self.is_narrow.write().unwrap_or_else(PoisonError::into_inner);
        *is_narrow = true;
        let since = Instant::now();
        loop {
            match request() {
                Err(fault) if fault.is_busy() && since.elapsed() < PATIENCE => pause()?,
                result => return result,
            }
        }
    }
}

fn pause() -> Result<(), Fault> {
    bk_manifest::signal::check()?;
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    let share = f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX);
    std::thread::sleep(PAUSE.mul_f64(0.5 + share / 2.0));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use bk_manifest::exit::{Exit, Failure};

    use super::*;
    use crate::destination::ErrorKind;

    #[test]
    fn once_one_is_refused_there_is_one_at_a_time() {
        let turns = Turns::default();
        let (under_way, refused) = (AtomicU32::new(0), AtomicU32::new(0));
        let request = || {
            let is_free = under_way.fetch_add(1, Ordering::SeqCst) == 0;
            std::thread::sleep(Duration::from_millis(20));
            under_way.fetch_sub(1, Ordering::SeqCst);
            if is_free {
                return Ok(());
            }
            refused.fetch_add(1, Ordering::SeqCst);
            Err(Fault::failure(ErrorKind::Transient, Failure::new(Exit::Busy, "busy")))
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| turns.take(request).unwrap()));
            }
        });
        assert!((1..=4).contains(&refused.load(Ordering::SeqCst)), "{refused:?}");
    }
}
