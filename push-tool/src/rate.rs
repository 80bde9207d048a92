//! A limit on bytes a second: `--limit-rate`.

use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes a second, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// Bytes a second.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    /// Reads a number of bytes with K, M or G behind it: `500K`, `10M`.
    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || "a rate is a number of bytes a second, with K, M or G".to_owned();
        let digits = text.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G']);
        let unit: u64 = match &text[digits.len()..] {
            "" => 1,
            "k" | "K" => 1 << 10,
            "m" | "M" => 1 << 20,
            "g" | "G" => 1 << 30,
            _ => return Err(malformed()),
        };
        let number: u64 = digits.parse().map_err(|_| malformed())?;
        number.checked_mul(unit).filter(|rate| *rate > 0).map(Rate).ok_or_else(malformed)
    }
}

/// Keeps all that goes through it below a rate together.
pub struct Limiter {
    rate: Rate,
    /// When what was let through so far will have had its time.
    free: Mutex<Instant>,
}

impl Limiter {
    /// Begins with nothing owed.
    pub fn new(rate: Rate) -> Self {
        Limiter { rate, free: Mutex::new(Instant::now()) }
    }

    /// The most bytes to let through at once, so that nobody waits long.
    pub fn piece(&self) -> usize {
        usize::try_from(self.rate.0 / 8).unwrap_or(usize::MAX).max(1)
    }

    /// How long to wait before so many bytes more.
    pub fn reserve(&self, bytes: usize) -> Duration {
        let now = Instant::now();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let cost = bytes.saturating_mul(1_000_000) / self.rate.0;
        let mut free = self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let wait = free.saturating_duration_since(now);
        *free = now + wait + Duration::from_micros(cost);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        let rate = |text: &str| text.parse::<Rate>().map(Rate::bytes).ok();
        for (text, bytes) in [("1", 1), ("500K", 512_000), ("10m", 10 << 20), ("1G", 1 << 30)] {
            assert_eq!(rate(text), Some(bytes), "{text}");
        }
        for bad in ["", "0", "K", "1KK", "-1", "1.5M", "99999999999G"] {
            assert_eq!(rate(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_goes_through_is_bounded_however_many_ask() {
        let limiter = Limiter::new("1000".parse().unwrap());
        let last = (0..40).map(|_| limiter.reserve(100)).max().unwrap();
        // 3,900 bytes were let through before it.
        assert!(last > Duration::from_millis(3800) && last <= Duration::from_millis(3900));
        assert!(limiter.piece() <= 125);
    }
}
