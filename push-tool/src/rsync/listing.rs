//! What rsync prints of a folder, read back.

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Seek};

use bk_manifest::time::Time;

use crate::destination::ObjectInfo;

/// Where unfinished files are; on the destination's file system, so that a rename finishes them.
pub(super) const UNFINISHED: &str = ".bk/tmp";
/// How the names of what is unfinished begin.
pub(super) const UNFINISHED_NAME: &str = ".bk-tmp-";
/// Where rsync keeps what it has of a transfer that was cut.
pub(super) const PARTIAL: &str = ".bk/tmp/.bk-tmp-partial";
/// What ext4 has at the root of a disk; nothing of ours is ever in it.
const LOST_AND_FOUND: &str = "lost+found";

/// Takes all of a program's output into a file without a name: who reads it may take his time.
///
/// # Errors
/// A full disk under the temporary files.
pub(super) fn spool(mut output: impl io::Read) -> io::Result<BufReader<File>> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut output, &mut file)?;
    file.rewind()?;
    Ok(BufReader::new(file))
}

/// Takes what a program prints, if it prints to a pipe.
///
/// # Errors
/// Those of [`spool`].
pub(super) fn spool_pipe(output: Option<PipeReader>) -> io::Result<BufReader<File>> {
    match output {
        Some(output) => spool(output),
        None => spool(io::empty()),
    }
}

/// Objects of a spooled listing: records that end with `end`, each read by `parse`.
pub(super) fn objects(
    mut spooled: BufReader<File>,
    end: u8,
    parse: fn(&[u8]) -> Record,
) -> impl Iterator<Item = io::Result<ObjectInfo>> {
    let mut record = Vec::new();
    std::iter::from_fn(move || {
        loop {
            record.clear();
            match spooled.read_until(end, &mut record) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            match parse(record.strip_suffix(&[end]).unwrap_or(&record)) {
                Record::Object(object) => return Some(Ok(object)),
                Record::Other => {}
                Record::Malformed => {
                    let text = bk_manifest::path::escape(&record);
                    return Some(Err(io::Error::other(format!("unexpected in a list: '{text}'"))));
                }
            }
        }
    })
}

/// Whether a file is an object: no unfinished one, and not what a disk keeps at its root.
pub(super) fn is_object(name: &str) -> bool {
    let below = |folder: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    !below(UNFINISHED) && !below(LOST_AND_FOUND)
}

/// Whether it is something that an upload left below [`UNFINISHED`].
pub(super) fn is_unfinished(name: &str) -> bool {
    let Some(file) = name.strip_prefix(".bk/tmp/") else { return false };
    // rsync puts a dot and six letters or digits behind its own.
    let is_rsyncs = file.rsplit_once('.').is_some_and(|(_, end)| {
        end.len() == 6 && end.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    file.starts_with(UNFINISHED_NAME) || is_rsyncs
}

/// A record of a listing.
pub(super) enum Record {
    Object(ObjectInfo),
    /// A folder, a link, a name that cannot be one of ours.
    Other,
    Malformed,
}

impl Record {
    fn of(name: Vec<u8>, size: u64, modified: Time) -> Self {
        match String::from_utf8(name) {
            Ok(name) => Record::Object(ObjectInfo { name, size, modified }),
            Err(_) => Record::Other,
        }
    }
}

/// Reads `-rw------- 1,234 2026/04/28 02:21:50 NAME`, as `rsync --list-only` prints it under `TZ=UTC`.
pub(super) fn rsync_line(line: &[u8]) -> Record {
    if line.first() != Some(&b'-') {
        return Record::Other;
    }
    let parse = || -> Option<Record> {
        let word = |rest: &mut &[u8]| -> Option<String> {
            let start = rest.iter().position(|byte| *byte != b' ')?;
            let (_, tail) = rest.split_at(start);
            let end = tail.iter().position(|byte| *byte == b' ')?;
            let (word, tail) = tail.split_at(end);
            *rest = tail;
            String::from_utf8(word.to_vec()).ok()
        };
        let mut rest = line;
        word(&mut rest)?;
        let size = word(&mut rest)?.replace(',', "").parse().ok()?;
        let (date, time) = (word(&mut rest)?, word(&mut rest)?);
        let modified = format!("{}T{time}Z", date.replace('/', "-")).parse().ok()?;
        // One blank, for the name may begin with more of them.
        Some(Record::of(unescaped(rest.strip_prefix(b" ")?), size, modified))
    };
    parse().unwrap_or(Record::Malformed)
}

/// Reads `SIZE SECONDS.NANOSECONDS NAME`, as `find` prints it for us.
pub(super) fn find_record(record: &[u8]) -> Record {
    let parse = || -> Option<Record> {
        let mut parts = record.splitn(3, |byte| *byte == b' ');
        let size = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let modified = find_time(std::str::from_utf8(parts.next()?).ok()?)?;
        Some(Record::of(parts.next()?.to_vec(), size, modified))
    };
    parse().unwrap_or(Record::Malformed)
}

/// Reads seconds since 1970 with decimals.
pub(super) fn find_time(text: &str) -> Option<Time> {
    let (seconds, decimals) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let nanoseconds: u32 = format!("{decimals:0<9}").get(..9)?.parse().ok()?;
    // Before 1970 the decimals count on from the second above, as the number is written.
    Some(if text.starts_with('-') && nanoseconds > 0 {
        Time::from_unix(seconds - 1, 1_000_000_000 - nanoseconds)
    } else {
        Time::from_unix(seconds, nanoseconds)
    })
}

/// A name without rsync's escapes: `\#` and three octal digits stand for a byte.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        let digits = rest.strip_prefix(b"\\#").and_then(|digits| digits.first_chunk::<3>());
        let byte =
            digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(byte) = byte {
            bytes.push(byte);
            rest = rest.get(5..).unwrap_or(&[]);
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(record: Record) -> Option<(String, u64, String)> {
        match record {
            Record::Object(object) => Some((object.name, object.size, object.modified.to_string())),
            _ => None,
        }
    }

    #[test]
    fn lines_of_rsync_are_read() {
        let time = "2026-11-21T18:03:18Z".to_owned();
        let line = |name: &str| {
            let line = format!("-rw-------      1,234,567 2026/11/21 18:03:18 {name}");
            object(rsync_line(line.as_bytes()))
        };
        for (shown, name) in [
            ("a/b c", "a/b c"),
            ("  two", "  two"),
            ("\\#303\\#274\\#012", "ü\n"),
            ("\\#134#123", "\\#123"),
            ("a\\b", "a\\b"),
            ("x -> y", "x -> y"),
        ] {
            assert_eq!(line(shown), Some((name.to_owned(), 1_234_567, time.clone())));
        }
        assert_eq!(line("\\#377"), None);
        for other in ["drwx------ 4,096 2026/11/21 18:03:18 a", "lrwx 1 2026/11/21 18:03:18 a -> b"]
        {
            assert!(matches!(rsync_line(other.as_bytes()), Record::Other));
        }
        for malformed in ["-rw", "-rw------- x 2026/11/21 18:03:18 a", "-rw------- 1 yesterday a"] {
            assert!(matches!(rsync_line(malformed.as_bytes()), Record::Malformed), "{malformed}");
        }
    }

    #[test]
    fn records_of_find_are_read() {
        let found = object(find_record(b"5 1700000000.1234567890 a b\nc"));
        let time = "2023-11-14T22:13:20.123456789Z".to_owned();
        assert_eq!(found, Some(("a b\nc".to_owned(), 5, time)));
        assert_eq!(find_time("-1.5000000000").unwrap().unix(), (-2, 500_000_000));
        assert!(matches!(find_record(b"5 a"), Record::Malformed));
    }

    #[test]
    fn only_unfinished_files_are_told_as_such() {
        for name in [".bk/tmp/.bk-tmp-1", ".bk/tmp/000001.tar.zst.aB3dE9", ".bk/tmp/.bk-tmp-p/x"] {
            assert!(is_unfinished(name), "{name}");
        }
        for name in [".bk/tmp/stranger", ".bk/marks/m.aB3dE9", "a/.bk-tmp-1"] {
            assert!(!is_unfinished(name), "{name}");
        }
    }
}
