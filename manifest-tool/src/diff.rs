//! `bk-manifest diff`: what differs between two manifests, merged as streams.

use std::io::Write;

use serde_json::{Map, Value};

use crate::entry::{Entry, Kind};
use crate::path;
use crate::stream::Reader;

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Only in the second manifest.
    Added,
    /// Only in the first.
    Removed,
    /// Its content, type, target or device.
    Content,
    /// Mode, owner, time or component alone.
    Metadata,
}

impl Change {
    fn sign(self) -> char {
        match self {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Content => 'M',
            Change::Metadata => 'm',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Content => "content",
            Change::Metadata => "metadata",
        }
    }
}

/// How differences are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `+ path`, `- path`, `M path`, `m path`, for people.
    Text,
    /// A JSON object for each.
    Json,
}

/// How many paths differ, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Paths only in the second manifest.
    pub added: u64,
    /// Paths only in the first.
    pub removed: u64,
    /// Paths with another content.
    pub content: u64,
    /// Paths with other attributes alone.
    pub metadata: u64,
}

/// Prints the differences in the order of the manifests, while both are read.
///
/// # Errors
/// A fault of either document, also one that only its end shows.
pub fn diff(
    mut old: Reader<'_>,
    mut new: Reader<'_>,
    output: &mut impl Write,
    form: Form,
) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let (mut left, mut right) = (old.next_entry()?, new.next_entry()?);
    loop {
        crate::signal::check()?;
        let order = match (&left, &right) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(left), Some(right)) => left.path.cmp(&right.path),
        };
        let change = match (&left, &right) {
            (Some(entry), _) if order.is_lt() => Some((Change::Removed, entry)),
            (_, Some(entry)) if order.is_gt() => Some((Change::Added, entry)),
            (Some(old), Some(new)) => compare(old, new).map(|change| (change, new)),
            _ => None,
        };
        if let Some((change, entry)) = change {
            *match change {
                Change::Added => &mut counts.added,
                Change::Removed => &mut counts.removed,
                Change::Content => &mut counts.content,
                Change::Metadata => &mut counts.metadata,
            } += 1;
            print(output, form, change, entry)?;
        }
        if order.is_le() {
            left = old.next_entry()?;
        }
        if order.is_ge() {
            right = new.next_entry()?;
        }
    }
    output.flush()?;
    old.end()?;
    new.end()?;
    Ok(counts)
}

fn print(
    output: &mut impl Write,
    form: Form,
    change: Change,
    entry: &Entry,
) -> std::io::Result<()> {
    if form == Form::Text {
        return writeln!(output, "{} {}", change.sign(), entry.path);
    }
    let mut line = Map::new();
    line.insert("change".into(), change.word().into());
    match entry.path.as_text() {
        Some(text) => line.insert("path".into(), text.into()),
        None => line.insert("path_b64".into(), path::to_base64(entry.path.as_bytes()).into()),
    };
    writeln!(output, "{}", Value::Object(line))
}

/// How two entries of one path differ; what one of them did not record is no difference.
///
/// Where a checksum is missing (a manifest before push), another size or time is another content.
fn compare(old: &Entry, new: &Entry) -> Option<Change> {
    fn differ<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
        a.zip(b).is_some_and(|(a, b)| a != b)
    }
    let has_content = |entry: &Entry| matches!(entry.kind, Kind::File | Kind::Hardlink(_));
    let is_other = if has_content(old) && has_content(new) {
        let is_known = old.checksum.is_some() && new.checksum.is_some();
        let is_older = !is_known && differ(old.mtime.as_ref(), new.mtime.as_ref());
        differ(old.checksum.as_ref(), new.checksum.as_ref())
            || differ(old.size.as_ref(), new.size.as_ref())
            || is_older
    } else {
        old.kind != new.kind
    };
    let has_other_attributes = old.kind != new.kind
        || old.component() != new.component()
        || differ(old.mode.as_ref(), new.mode.as_ref())
        || differ(old.owner.as_ref(), new.owner.as_ref())
        || differ(old.mtime.as_ref(), new.mtime.as_ref());
    match (is_other, has_other_attributes) {
        (true, _) => Some(Change::Content),
        (false, true) => Some(Change::Metadata),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(old: &str, new: &str) -> Option<Change> {
        compare(&serde_json::from_str(old).unwrap(), &serde_json::from_str(new).unwrap())
    }

    #[test]
    fn content_is_told_from_metadata() {
        let hash = |digit: &str| format!("\"checksum\":\"{}\",", digit.repeat(64));
        let file = |rest: &str| format!("{{{rest}\"path\":\"a\"}}");
        let time = |second: u32| format!("\"mtime\":\"2026-01-01T00:00:0{second}Z\",");
        for (old, new, expected) in [
            (hash("1"), hash("1"), None),
            (hash("1"), hash("2"), Some(Change::Content)),
            (hash("1") + &time(1), hash("1") + &time(2), Some(Change::Metadata)),
            (time(1), hash("1") + &time(2), Some(Change::Content)),
            (time(1), hash("1"), None),
            ("\"size\":1,".into(), "\"size\":2,".into(), Some(Change::Content)),
            ("\"mode\":\"0644\",".into(), "\"mode\":\"0600\",".into(), Some(Change::Metadata)),
            ("\"mode\":\"0644\",".into(), String::new(), None),
            ("\"owner\":\"1:1\",".into(), "\"owner\":\"1:2\",".into(), Some(Change::Metadata)),
            ("\"inode\":\"1\",".into(), "\"inode\":\"2\",".into(), None),
            (String::new(), "\"type\":\"directory\",".into(), Some(Change::Content)),
            ("\"type\":\"fifo\",".into(), "\"type\":\"fifo\",".into(), None),
            (String::new(), "\"component\":\"x\",".into(), Some(Change::Metadata)),
            (
                "\"type\":\"symlink\",\"target\":\"x\",".into(),
                "\"type\":\"symlink\",\"target\":\"y\",".into(),
                Some(Change::Content),
            ),
            (
                hash("1"),
                hash("1") + "\"type\":\"hardlink\",\"target\":\"0\",",
                Some(Change::Metadata),
            ),
        ] {
            assert_eq!(change(&file(&old), &file(&new)), expected, "{old} | {new}");
        }
    }
}
