//! A plain dump on its way into `psql`.
//!
//! Such a dump is a script, and `psql` would run programs for it (`\!`, `\copy … from program`), write
//! files (`\o`) or go to another server (`\connect`). So it is fed behind a `\restrict` of ours, with
//! a key that it cannot know: from then on `psql` takes no backslash command. Newer versions of
//! `pg_dump` put such a pair of lines into the dump themselves; these two are left out on the way.

use std::io::{self, BufRead, Read, Write};

use anyhow::Context;
use rustix::rand::{GetRandomFlags, getrandom};

/// Where it says what it is.
const HEAD_LIMIT: u64 = 256;
/// Longest line that can be one of the pair, or a comment beside it.
const LINE_LIMIT: usize = 4096;

/// A key that nobody can guess.
///
/// # Errors
/// If the system has no random bytes.
pub(super) fn key() -> anyhow::Result<String> {
    let mut bytes = [0u8; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("cannot get random bytes")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Whether this is a dump of a whole server: its first lines say so.
///
/// # Errors
/// Those of reading.
pub(super) fn is_cluster(dump: impl BufRead) -> io::Result<bool> {
    let mut head = Vec::new();
    dump.take(HEAD_LIMIT).read_to_end(&mut head)?;
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    Ok(lines.any(|line| line == b"-- PostgreSQL database cluster dump"))
}

/// Writes a whole script for `psql`: the dump between our own lines.
///
/// In a transaction nothing counts before the last line has come, so a script that is cut short, by
/// our own death too, changes nothing. `psql` prints the key at the end: then it was not still inside
/// a text or a table's rows.
///
/// # Errors
/// Those of reading (the decoder's too) and of writing.
pub(super) fn feed(
    dump: impl BufRead,
    key: &str,
    is_transaction: bool,
    output: &mut impl Write,
) -> io::Result<()> {
    writeln!(output, "\\restrict {key}")?;
    if is_transaction {
        writeln!(output, "BEGIN;")?;
    }
    without_frame(dump, output)?;
    if is_transaction {
        writeln!(output, "\nCOMMIT;")?;
    }
    writeln!(output, "\n\\unrestrict {key}\n\\echo {key}")
}

/// Copies a dump without its own `\restrict`, if that comes before the first statement, and without
/// the `\unrestrict` of the same key, if that comes behind the last one. Any other is not of
/// `pg_dump`'s making, and `psql` shall see it.
fn without_frame(mut dump: impl BufRead, output: &mut impl Write) -> io::Result<()> {
    let mut frame = Frame::Head;
    // What follows an `\unrestrict` that may be the last one.
    let mut held: Vec<u8> = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let is_whole = read_part(&mut dump, &mut line)?;
        if line.is_empty() {
            // What is held begins with the line that is left out.
            let kept =
                held.iter().position(|byte| *byte == b'\n').map_or(&[][..], |end| &held[end + 1..]);
            return output.write_all(kept);
        }
        let text = line.trim_ascii_end();
        let is_silent = is_whole && (text.is_empty() || text.starts_with(b"--"));
        match &frame {
            Frame::Head if is_silent => output.write_all(&line)?,
            Frame::Head => {
                if let Some(key) = text.strip_prefix(b"\\restrict ").filter(|_| is_whole) {
                    frame = Frame::Body([b"\\unrestrict ", key].concat());
                } else {
                    output.write_all(&line)?;
                    frame = Frame::None;
                }
            }
            Frame::Body(end) => {
                let is_end = is_whole && text == end;
                let goes_on = is_end || !is_silent || held.len() > LINE_LIMIT;
                if goes_on && !held.is_empty() {
                    output.write_all(&held)?;
                    held.clear();
                }
                if is_end || !held.is_empty() {
                    held.extend_from_slice(&line);
                } else {
                    output.write_all(&line)?;
                }
            }
            Frame::None => output.write_all(&line)?,
        }
        if !is_whole {
            copy_rest(&mut dump, output)?;
        }
    }
}

enum Frame {
    /// Nothing but comments was seen yet.
    Head,
    /// The line that closes the dump's own frame.
    Body(Vec<u8>),
    /// The dump has none.
    None,
}

/// Reads a line with its end, at most [`LINE_LIMIT`] of it; says whether that is all of it.
fn read_part(dump: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut limited = dump.take(LINE_LIMIT as u64);
    let read = limited.read_until(b'\n', line)?;
    Ok(read < LINE_LIMIT || line.ends_with(b"\n"))
}

/// Copies the rest of a long line: a table's row may have any length.
fn copy_rest(dump: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
    loop {
        let buffer = dump.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
        let taken = end.unwrap_or(buffer.len());
        output.write_all(&buffer[..taken])?;
        dump.consume(taken);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(dump: &str) -> String {
        let mut output = Vec::new();
        without_frame(dump.as_bytes(), &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn the_frame_of_a_dump_is_taken_off() {
        let dump = "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\nSELECT 1;\n\n\
            --\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n\n";
        let bare = dump.replace("\\restrict abc\n", "").replace("\\unrestrict abc\n", "");
        assert_eq!(fed(dump), bare);
        assert_eq!(fed(&bare), bare);
        assert_eq!(fed(dump.trim_end()), bare.trim_end().to_owned() + "\n\n");
    }

    #[test]
    fn any_other_backslash_stays_for_psql_to_refuse() {
        for dump in [
            "SELECT 1;\n\\restrict abc\n\\unrestrict abc\n",
            "\\restrict abc\nSELECT 1;\n\\unrestrict xyz\n",
            "\\restrict abc\n\\unrestrict abc\n\\! touch x\n",
            "\\restrict abc\n\\unrestrict abc\n-- still\n\\unrestrict abc\nSELECT 1;\n",
            "\\restrict abc\n\\restrict abc\n",
            "\\! touch x\n",
        ] {
            let kept = dump.strip_prefix("\\restrict abc\n").unwrap_or(dump);
            assert_eq!(fed(dump), kept, "{dump:?}");
        }
        // Only the last one is taken off.
        assert_eq!(fed("\\restrict a\n\\unrestrict a\n\\unrestrict a\n"), "\\unrestrict a\n");
    }

    #[test]
    fn long_lines_go_through_whole() {
        for length in [LINE_LIMIT - 2, LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1, 3 * LINE_LIMIT] {
            let long = format!("\\restrict a\n--{}\n\\unrestrict a\n{0}x", "y".repeat(length));
            assert_eq!(fed(&long), long.strip_prefix("\\restrict a\n").unwrap(), "{length}");
        }
    }

    #[test]
    fn a_transaction_ends_behind_the_dump() {
        let mut output = Vec::new();
        feed(&b"SELECT 1"[..], "k", true, &mut output).unwrap();
        let script = "\\restrict k\nBEGIN;\nSELECT 1\nCOMMIT;\n\n\\unrestrict k\n\\echo k\n";
        assert_eq!(String::from_utf8(output).unwrap(), script);
    }

    #[test]
    fn keys_differ() {
        assert_eq!(key().unwrap().len(), 32);
        assert_ne!(key().unwrap(), key().unwrap());
    }
}
