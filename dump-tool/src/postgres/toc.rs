//! The head of an archive in PostgreSQL's custom format.
//!
//! `pg_restore` ends well where the table of contents has no entries, or fewer than none: a
//! terminal's line ends in the head can make it so. An archive that `pg_dump` wrote has some.
//! Source: `ReadHead` in PostgreSQL's `pg_backup_archiver.c`.

/// How every archive begins.
const MAGIC: &[u8] = b"PGDMP";
/// The format that we know the head of: 1.12 (PostgreSQL 9.0) to 1.16 (PostgreSQL 17).
const KNOWN: std::ops::RangeInclusive<(u8, u8)> = (1, 12)..=(1, 16);
/// Since this one the compression is a byte, no longer a number.
const COMPRESSION_BYTE: (u8, u8) = (1, 15);

/// What the head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// So many entries follow.
    Entries(i64),
    /// A version that is not known here; `pg_restore` decides alone.
    Unknown,
    /// It is not the head of an archive, or it is cut short.
    Malformed,
}

/// Reads the head from the beginning of an archive.
pub(super) fn read(beginning: &[u8]) -> Head {
    let Some(rest) = beginning.strip_prefix(MAGIC) else { return Head::Malformed };
    match rest {
        [major, minor, ..] if !KNOWN.contains(&(*major, *minor)) => Head::Unknown,
        [major, minor, _revision, int_size @ 1..=8, _offset_size, _format, rest @ ..] => {
            let numbers = Numbers { rest, size: usize::from(*int_size) };
            entries(numbers, (*major, *minor)).map_or(Head::Malformed, Head::Entries)
        }
        _ => Head::Malformed,
    }
}

fn entries(mut numbers: Numbers<'_>, version: (u8, u8)) -> Option<i64> {
    if version >= COMPRESSION_BYTE {
        numbers.take(1)?;
    } else {
        numbers.number()?;
    }
    // The time: second, minute, hour, day, month, year, daylight saving.
    for _ in 0..7 {
        numbers.number()?;
    }
    // The database, the version of its server, that of pg_dump.
    for _ in 0..3 {
        let length = numbers.number()?;
        numbers.take(usize::try_from(length).ok()?)?;
    }
    numbers.number()
}

struct Numbers<'a> {
    rest: &'a [u8],
    size: usize,
}

impl<'a> Numbers<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// A sign, then the absolute value, its lowest byte first.
    fn number(&mut self) -> Option<i64> {
        let is_negative = self.take(1)? != [0];
        let mut value = 0_i64;
        for byte in self.take(self.size)?.iter().rev() {
            value = value.checked_mul(256)?.checked_add(i64::from(*byte))?;
        }
        Some(if is_negative { -value } else { value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u8) -> [u8; 5] {
        [0, value, 0, 0, 0]
    }

    /// As PostgreSQL 15 (minor version 14) and 17 (16) write it, in November.
    fn head(minor: u8, entries: u8) -> Vec<u8> {
        let mut head = [MAGIC, &[1, minor, 0, 4, 8, 1]].concat();
        head.extend(if minor < 15 { &[1, 1, 0, 0, 0][..] } else { &[1] });
        for value in [40, 14, 19, 20, 10, 126, 0] {
            head.extend(number(value));
        }
        for text in ["app", "15.18 (Debian 15.18-0+deb12u1)", "15.18 (Debian 15.18-0+deb12u1)"] {
            head.extend(number(u8::try_from(text.len()).unwrap()));
            head.extend(text.as_bytes());
        }
        head.extend(number(entries));
        head
    }

    #[test]
    fn entries_are_counted_in_all_versions() {
        for minor in [12, 14, 15, 16] {
            assert_eq!(read(&head(minor, 7)), Head::Entries(7));
        }
        assert_eq!(read(&head(99, 7)), Head::Unknown);
    }

    #[test]
    fn a_head_that_is_cut_short_is_malformed() {
        let head = head(14, 7);
        for cut in 0..head.len() {
            assert_eq!(read(&head[..cut]), Head::Malformed, "{cut}");
        }
    }

    #[test]
    fn line_ends_of_a_terminal_are_noticed() {
        let mut through_terminal = Vec::new();
        for byte in head(14, 7) {
            if byte == b'\n' {
                through_terminal.push(b'\r');
            }
            through_terminal.push(byte);
        }
        assert!(!matches!(read(&through_terminal), Head::Entries(1..)));
    }
}
