//! `bk-manifest ls`: the paths of a manifest, a line each.

use std::io::Write;

use crate::entry::{Entry, Kind};
use crate::exit::{Exit, fail};
use crate::path::escape;
use crate::select::Selection;
use crate::stream::Reader;

/// How entries are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Paths for people: control characters are escaped.
    Short,
    /// Mode, owner, size, time, path and target, for people.
    Long,
    /// The paths' raw bytes, each followed by a NUL.
    Raw,
}

/// Prints the entries that are selected, while they are read.
///
/// # Errors
/// A fault of the document, also one that only its end shows; [`Exit::NotFound`] if something was
/// asked for that is not there.
pub fn ls(
    mut reader: Reader<'_>,
    output: &mut impl Write,
    selection: &Selection,
    form: Form,
) -> anyhow::Result<()> {
    let mut count = 0u64;
    while let Some(entry) = reader.next_entry()? {
        crate::signal::check()?;
        if !selection.matches(&entry) {
            continue;
        }
        count += 1;
        match form {
            Form::Short => writeln!(output, "{}", entry.path)?,
            Form::Long => writeln!(output, "{}", long(&entry))?,
            Form::Raw => {
                output.write_all(entry.path.as_bytes())?;
                output.write_all(b"\0")?;
            }
        }
    }
    output.flush()?;
    reader.end()?;
    if count == 0 && !selection.is_all() {
        return Err(fail(Exit::NotFound, "nothing in the manifest is of that path and component"));
    }
    Ok(())
}

/// A line as `tar -tv` has it; what was not recorded is `-`.
fn long(entry: &Entry) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let size = match entry.kind {
        Kind::Block(major, minor) | Kind::Char(major, minor) => Some(format!("{major},{minor}")),
        _ => entry.size.map(|size| size.to_string()),
    };
    let target = match &entry.kind {
        Kind::Symlink(target) => format!(" -> {}", escape(target)),
        Kind::Hardlink(first) => format!(" link to {first}"),
        _ => String::new(),
    };
    format!(
        "{} {:>11} {:>12} {:<30} {}{target}",
        mode(entry),
        or_dash(entry.owner.map(|(user, group)| format!("{user}:{group}"))),
        or_dash(size),
        or_dash(entry.mtime.map(|time| time.to_string())),
        entry.path,
    )
}

/// Type and permissions as `ls -l` has them.
fn mode(entry: &Entry) -> String {
    let kind = match entry.kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink(_) => 'l',
        Kind::Hardlink(_) => 'h',
        Kind::Fifo => 'p',
        Kind::Block(..) => 'b',
        Kind::Char(..) => 'c',
    };
    let Some(mode) = entry.mode else { return format!("{kind}?????????") };
    let mut text = String::from(kind);
    for (shift, special, letters) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = mode >> shift;
        let execute = match (bits & 1 != 0, mode & special != 0) {
            (true, true) => &letters[..1],
            (false, true) => &letters[1..],
            (true, false) => "x",
            (false, false) => "-",
        };
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push_str(execute);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: &str) -> String {
        long(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn long_lines_say_what_was_recorded() {
        assert_eq!(
            line(
                r#"{"mode":"4755","mtime":"2026-04-02T10:00:00.5Z","owner":"0:7","path":"a b","size":7}"#
            ),
            "-rwsr-xr-x         0:7            7 2026-04-02T10:00:00.5Z         a b"
        );
        assert_eq!(
            line(r#"{"path_b64":"YQo=","target_b64":"G1s=","type":"symlink"}"#)
                .split_whitespace()
                .collect::<Vec<_>>(),
            ["l?????????", "-", "-", "-", "a\\n", "->", "\\u{1b}["]
        );
        assert!(line(r#"{"path":"b","target":"a","type":"hardlink"}"#).ends_with("b link to a"));
        assert!(
            line(r#"{"device":"1:3","mode":"1666","path":"n","type":"char"}"#)
                .starts_with("crw-rw-rwT")
        );
    }
}
