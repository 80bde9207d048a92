//! The table of contents of an archive (custom or directory format), entry by entry.
//!
//! `pg_restore --list` prints it for people: names with spaces or line ends cannot be told apart
//! there, and what belongs to what is not said at all. Source: `ReadHead` and `ReadToc` in
//! PostgreSQL's `pg_backup_archiver.c`, `_ReadExtraToc` of the two formats.

use std::io::{self, Read};

/// The versions of the form that we know: PostgreSQL 9.0 to 18.
const KNOWN: std::ops::RangeInclusive<(u8, u8)> = (1, 12)..=(1, 16);
/// Since this one an entry names the access method of its table.
const ACCESS_METHOD: (u8, u8) = (1, 14);
/// Since this one the compression is a byte, no longer a number.
const COMPRESSION_BYTE: (u8, u8) = (1, 15);
/// Since this one an entry says what kind of relation it is.
const RELATION_KIND: (u8, u8) = (1, 16);
/// The byte of custom format.
const CUSTOM: u8 = 1;
/// Entries at most, so that a damaged number does not fill the memory.
const ENTRIES_LIMIT: i64 = 10_000_000;

/// An entry: one object, or the rows of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its number, by which others refer to it.
    pub(super) id: i64,
    /// What it is: `TABLE`, `TABLE DATA`, `INDEX`…
    pub(super) kind: String,
    /// The schema that it is in; empty for none.
    pub(super) schema: String,
    /// Its name; of what belongs to a table, often the table's name and its own.
    pub(super) tag: String,
    /// The numbers of entries that it needs.
    pub(super) needs: Vec<i64>,
}

/// Reads the entries from the beginning of an archive in custom format, or from the `toc.dat` of one
/// in directory format.
///
/// # Errors
/// If it is cut short, or no archive that we know.
pub(super) fn entries(input: impl Read) -> io::Result<Vec<Entry>> {
    let mut input = Input { input, number_length: 0 };
    if input.bytes()? != *b"PGDMP" {
        return Err(io::Error::other("it is no archive of pg_dump"));
    }
    let [major, minor, _revision] = input.bytes()?;
    let version = (major, minor);
    if !KNOWN.contains(&version) {
        return Err(io::Error::other(format!("its version {major}.{minor} is not known here")));
    }
    let [number_length, offset_length, format] = input.bytes()?;
    input.number_length = usize::from(number_length).min(8);
    if version >= COMPRESSION_BYTE {
        input.bytes::<1>()?;
    } else {
        input.number()?;
    }
    // The time: second, minute, hour, day, month, year, daylight saving.
    for _ in 0..7 {
        input.number()?;
    }
    // The database, the version of its server, that of pg_dump.
    for _ in 0..3 {
        input.text()?;
    }
    let count = input.number()?;
    if !(0..=ENTRIES_LIMIT).contains(&count) {
        return Err(io::Error::other("its table of contents is damaged"));
    }
    (0..count)
        .map(|_| {
            let entry = input.entry(version)?;
            if format == CUSTOM {
                // Where its rows are.
                input.skip(1 + usize::from(offset_length))?;
            } else {
                // The file with its rows.
                input.text()?;
            }
            Ok(entry)
        })
        .collect()
}

struct Input<R> {
    input: R,
    number_length: usize,
}

impl<R: Read> Input<R> {
    fn entry(&mut self, version: (u8, u8)) -> io::Result<Entry> {
        let id = self.number()?;
        // Whether it has rows; the numbers of its catalog and in it.
        self.number()?;
        self.text()?;
        self.text()?;
        let tag = self.text()?.unwrap_or_default();
        let kind = self.text()?.unwrap_or_default();
        // The section; the statements that make it, drop it, copy into it.
        self.number()?;
        for _ in 0..3 {
            self.text()?;
        }
        let schema = self.text()?.unwrap_or_default();
        // The tablespace.
        self.text()?;
        if version >= ACCESS_METHOD {
            self.text()?;
        }
        if version >= RELATION_KIND {
            self.number()?;
        }
        // The owner; whether rows have numbers of their own.
        self.text()?;
        self.text()?;
        let mut needs = Vec::new();
        while let Some(number) = self.text()? {
            needs.push(number.parse().map_err(|_| io::Error::other("a malformed reference"))?);
        }
        Ok(Entry { id, kind, schema, tag, needs })
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, length: usize) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(length as u64), &mut io::sink())?;
        if skipped == length as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// A sign, then the absolute value, its lowest byte first.
    fn number(&mut self) -> io::Result<i64> {
        let is_negative = self.bytes()? != [0];
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes[..self.number_length])?;
        let value = i64::from_le_bytes(bytes);
        Ok(if is_negative { value.saturating_neg() } else { value })
    }

    /// Its length, then so many bytes; below zero there is no text at all.
    fn text(&mut self) -> io::Result<Option<String>> {
        let Ok(length) = u64::try_from(self.number()?) else { return Ok(None) };
        let mut bytes = Vec::new();
        (&mut self.input).take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: i32) -> Vec<u8> {
        [&[u8::from(value < 0)][..], &value.unsigned_abs().to_le_bytes()].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [number(i32::try_from(text.len()).unwrap()), text.as_bytes().to_vec()].concat()
    }

    fn archive(minor: u8, format: u8) -> Vec<u8> {
        let mut bytes = [&b"PGDMP"[..], &[1, minor, 0, 4, 8, format]].concat();
        bytes.extend(if minor < 15 { number(-1) } else { vec![1] });
        bytes.extend((0..7).flat_map(number));
        bytes.extend(["app", "15.18", "15.18"].into_iter().flat_map(text));
        bytes.extend(number(1));
        bytes.extend([number(7), number(1), text("1259"), text("16384")].concat());
        bytes.extend([text("odd\nname"), text("TABLE DATA"), number(3)].concat());
        bytes.extend([number(-1), text(""), text("COPY"), text("public"), text("")].concat());
        if minor >= 14 {
            bytes.extend(text("heap"));
        }
        if minor >= 16 {
            bytes.extend(number(114));
        }
        bytes.extend([text("me"), text("false"), text("5"), text("6"), number(-1)].concat());
        bytes.extend(if format == CUSTOM { vec![0; 9] } else { text("7.dat") });
        bytes
    }

    #[test]
    fn entries_of_all_versions_are_read() {
        let expected = [Entry {
            id: 7,
            kind: "TABLE DATA".into(),
            schema: "public".into(),
            tag: "odd\nname".into(),
            needs: vec![5, 6],
        }];
        for minor in 12..=16 {
            for format in [1, 5] {
                let found = entries(&archive(minor, format)[..]).unwrap();
                assert_eq!(found, expected, "{minor} {format}");
            }
        }
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let archive = archive(14, 1);
        for cut in 0..archive.len() {
            assert!(entries(&archive[..cut]).is_err(), "{cut}");
        }
        assert!(entries(&b"PGDMP\x01\x63\x00\x04\x08\x01"[..]).is_err());
    }
}
