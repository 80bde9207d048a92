//! Retention rules as a user states them.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use jiff::{Span, tz::TimeZone};

/// Which backups are to be kept; one that any rule keeps stays.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The newest so many.
    pub last: Option<NonZeroU32>,
    /// One for each of the newest so many days that have one.
    pub daily: Option<NonZeroU32>,
    /// The same for weeks.
    pub weekly: Option<NonZeroU32>,
    /// The same for months.
    pub monthly: Option<NonZeroU32>,
    /// The same for years.
    pub yearly: Option<NonZeroU32>,
    /// All that are not older than this when the newest backup is made.
    pub within: Option<Within>,
}

impl Rules {
    /// Whether there is none at all, which is no policy.
    pub fn is_empty(&self) -> bool {
        [self.last, self.daily, self.weekly, self.monthly, self.yearly].iter().all(Option::is_none)
            && self.within.is_none()
    }
}

/// A length of time in calendar units: `30d`, `36h`, `1y6m`.
#[derive(Clone, Debug)]
pub struct Within {
    text: String,
    span: Span,
}

impl Within {
    /// So many days, as `BACKUP_RETENTION_DAYS` states it.
    ///
    /// # Errors
    /// A number that is out of range.
    pub fn days(days: u32) -> Result<Self, BadSpan> {
        format!("{days}d").parse()
    }

    /// The length in calendar units.
    pub fn span(&self) -> Span {
        self.span
    }
}

/// A text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a length of time is a number above 0 and h, d, w, m or y, such as 30d or 1y6m")]
pub struct BadSpan;

impl FromStr for Within {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let (mut span, mut rest, mut total) = (Span::new(), text, 0);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(BadSpan)?;
            let number: i64 = rest[..digits].parse().map_err(|_| BadSpan)?;
            let mut characters = rest[digits..].chars();
            span = match characters.next() {
                Some('h') => span.try_hours(i64::from(span.get_hours()) + number),
                Some('d') => span.try_days(i64::from(span.get_days()) + number),
                Some('w') => span.try_weeks(i64::from(span.get_weeks()) + number),
                Some('m') => span.try_months(i64::from(span.get_months()) + number),
                Some('y') => span.try_years(i64::from(span.get_years()) + number),
                _ => return Err(BadSpan),
            }
            .map_err(|_| BadSpan)?;
            total += number;
            rest = characters.as_str();
        }
        if total == 0 { Err(BadSpan) } else { Ok(Within { text: text.to_owned(), span }) }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The day that a week begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeekStart {
    /// As ISO 8601 has it.
    #[default]
    Monday,
    /// As `GeoLens` has it.
    Sunday,
}

/// Where days, weeks, months and years begin.
#[derive(Clone, Debug)]
pub struct Calendar {
    /// The zone whose midnight counts.
    pub zone: TimeZone,
    /// The day that a week begins with.
    pub week_start: WeekStart,
}

impl Default for Calendar {
    fn default() -> Self {
        Calendar { zone: TimeZone::UTC, week_start: WeekStart::Monday }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_units() {
        for (text, hours, days, weeks, months, years) in [
            ("30d", 0, 30, 0, 0, 0),
            ("36h", 36, 0, 0, 0, 0),
            ("2w", 0, 0, 2, 0, 0),
            ("1y6m", 0, 0, 0, 6, 1),
            ("1d1d", 0, 2, 0, 0, 0),
        ] {
            let within: Within = text.parse().unwrap();
            let span = within.span();
            assert_eq!(
                (span.get_hours(), span.get_days(), span.get_weeks(), span.get_months()),
                (hours, days, weeks, months),
                "{text}"
            );
            assert_eq!(span.get_years(), years, "{text}");
            assert_eq!(within.to_string(), text);
        }
        for bad in [
            "",
            "30",
            "d",
            "-1d",
            "0d",
            "1x",
            "1D",
            "1 d",
            "99999999999y",
            "9223372036854775807d9d",
        ] {
            assert!(bad.parse::<Within>().is_err(), "{bad}");
        }
    }
}
