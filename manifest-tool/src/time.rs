//! Points in time as the manifest writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The first second of the year 0, the earliest that RFC 3339 can write.
const YEAR_ZERO: i64 = -62_167_219_200;

/// A point in time with nanoseconds, printed as RFC 3339 in UTC with up to nine decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(jiff::Timestamp);

impl Time {
    /// The clock of this machine. Only `cli` modules call it; everything else takes a time.
    pub fn now() -> Self {
        Time(jiff::Timestamp::now())
    }

    /// From a file's time stamp: seconds and nanoseconds since 1970.
    ///
    /// A time outside the years 0 to 9999 (a damaged inode) becomes the nearest that can be written.
    pub fn from_unix(seconds: i64, nanoseconds: u32) -> Self {
        let seconds = seconds.max(YEAR_ZERO);
        let nanoseconds = i32::try_from(nanoseconds.min(999_999_999)).unwrap_or(0);
        Time(jiff::Timestamp::new(seconds, nanoseconds).unwrap_or(if seconds < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        }))
    }

    /// Seconds since 1970 (rounded down) and the nanoseconds that follow them (0 to 999,999,999).
    pub fn unix(self) -> (i64, u32) {
        let (mut seconds, mut nanoseconds) = (self.0.as_second(), self.0.subsec_nanosecond());
        if nanoseconds < 0 {
            seconds -= 1;
            nanoseconds += 1_000_000_000;
        }
        (seconds, nanoseconds.unsigned_abs())
    }

    /// The instant for calendar arithmetic.
    pub fn timestamp(self) -> jiff::Timestamp {
        self.0
    }

    /// How much later than `earlier` this is; zero if it is not later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or(Duration::ZERO)
    }

    /// This time moved back, or as far as a time can be.
    #[must_use]
    pub fn before(self, by: Duration) -> Time {
        Time(self.0.checked_sub(by).unwrap_or(jiff::Timestamp::MIN))
    }

    /// Cut to milliseconds, the precision of `backup.timestamp`.
    #[must_use]
    pub fn to_milliseconds(self) -> Time {
        Time(jiff::Timestamp::from_millisecond(self.0.as_millisecond()).unwrap_or(self.0))
    }

    /// Formats in UTC with `strftime` conversions.
    pub fn format(self, format: &str) -> String {
        self.0.strftime(format).to_string()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Time {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Time)
    }
}

impl serde::Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            serde::de::Error::custom(format!("'{}' is not an RFC 3339 time", text.escape_debug()))
        })
    }
}

/// Whether a text that is a time is in the one form that we write.
pub(crate) fn is_ours(text: &[u8]) -> bool {
    text.len() >= 20
        && text[10] == b'T'
        && text[17] < b'6'
        && text.ends_with(b"Z")
        && (text.len() == 20 || !text.ends_with(b"0Z"))
}

/// Whether a text has the shape that RFC 3339, section 5.6, gives to a time.
pub(crate) fn is_rfc3339(text: &[u8]) -> bool {
    let has_shape = |bytes: &[u8], shape: &[u8]| {
        bytes.len() == shape.len()
            && bytes.iter().zip(shape).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                b'T' => matches!(byte, b'T' | b't' | b' '),
                _ => byte == wanted,
            })
    };
    let Some((start, rest)) = text.split_at_checked(19) else { return false };
    let decimals = match rest.strip_prefix(b".") {
        None => 0,
        Some(rest) => match rest.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            digits @ 1..=9 => digits + 1,
            _ => return false,
        },
    };
    let zone = &rest[decimals..];
    has_shape(start, b"0000-00-00T00:00:00")
        && (matches!(zone, b"Z" | b"z") || has_shape(zone, b"+00:00") || has_shape(zone, b"-00:00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_few_decimals_as_needed() {
        assert_eq!(Time::from_unix(0, 0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Time::from_unix(1, 500_000_000).to_string(), "1970-01-01T00:00:01.5Z");
        assert_eq!(Time::from_unix(1, 9).to_string(), "1970-01-01T00:00:01.000000009Z");
    }

    #[test]
    fn times_before_1970_survive() {
        for (seconds, nanoseconds) in [(-1, 0), (-1, 1), (-2, 999_999_999), (-86_400, 5)] {
            let time = Time::from_unix(seconds, nanoseconds);
            assert_eq!(time.unix(), (seconds, nanoseconds));
            assert_eq!(time.to_string().parse::<Time>().unwrap(), time);
        }
    }

    #[test]
    fn impossible_times_are_clamped() {
        assert_eq!(Time::from_unix(i64::MAX, 0), Time::from_unix(i64::MAX - 1, 5));
        assert_eq!(Time::from_unix(i64::MIN, 0).to_string(), "0000-01-01T00:00:00Z");
    }
}
