//! Header and trailer of a stored manifest by two range reads, however many entries are between.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::Context;
use bk_manifest::manifest::{Header, Trailer};
use bk_manifest::stream::{Reader, read_outer};

use crate::destination::{Destination, ObjectInfo};

/// How much is read from either end at first, in bytes.
const FIRST_READ: u64 = 256 << 10;

const JSON_HEAD: &[u8] = b"\"files\":{\"manifest\":[";
const JSON_TAIL: &[u8] = b"\n],\"checksum\":";
const YAML_HEAD: &[u8] = b"\nfiles:\n  manifest:\n";
const YAML_TAIL: &[u8] = b"\n  checksum: \"sha256:";

/// Reads header and trailer of the manifest in `object`.
///
/// They are checked against the manifest's own sum. A document laid out otherwise than ours is read
/// whole.
///
/// # Errors
/// Those of the destination, and any fault of the document.
pub fn read(
    destination: &dyn Destination,
    object: &ObjectInfo,
) -> anyhow::Result<(Header, Trailer)> {
    let range = |start, end| -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        destination.read(&object.name, Some(start..end))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let ends = read_ends(object.size, &range);
    let context = || format!("the manifest '{}'", object.name);
    if let Some(ends) = ends.with_context(context)? {
        return Ok(ends);
    }
    let whole = destination.read(&object.name, None)?;
    Reader::new(whole).and_then(Reader::end).with_context(context)
}

/// As [`read`], for a manifest in a file of this host.
///
/// # Errors
/// Those of the file, and any fault of the document.
pub fn read_file(file: &File) -> anyhow::Result<(Header, Trailer)> {
    let range = |start: u64, end: u64| -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(end - start)?];
        file.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    };
    match read_ends(file.metadata()?.len(), &range)? {
        Some(ends) => Ok(ends),
        None => Ok(Reader::new(file)?.end()?),
    }
}

/// Both ends of a document of `size` bytes; `None` if it has to be read whole.
fn read_ends(
    size: u64,
    range: &dyn Fn(u64, u64) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Option<(Header, Trailer)>> {
    let mut length = FIRST_READ;
    while length.saturating_mul(2) < size {
        if let Some(document) = splice(&range(0, length)?, &range(size - length, size)?) {
            return Ok(Some(read_outer(&document)?));
        }
        length *= 8;
    }
    Ok(None)
}

/// The document without its entries, if both ends hold what stands around them.
fn splice(head: &[u8], tail: &[u8]) -> Option<Vec<u8>> {
    let (head_mark, tail_mark) =
        if head.first() == Some(&b'{') { (JSON_HEAD, JSON_TAIL) } else { (YAML_HEAD, YAML_TAIL) };
    let head_end = find(head, head_mark)? + head_mark.len();
    // The last one: no string holds a line break, so nothing behind the entries looks like it
    // except, in YAML, a member of a later mapping, for which the sum will not fit.
    let tail_start = tail.windows(tail_mark.len()).rposition(|window| window == tail_mark)?;
    // In YAML the line break before the mark belongs to the last entry.
    let tail_start = tail_start + usize::from(head_mark == YAML_HEAD);
    Some([&head[..head_end], &tail[tail_start..]].concat())
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Local;
    use bk_manifest::entry::Entry;
    use bk_manifest::manifest::{Application, Backup, Run};
    use bk_manifest::path::RelPath;
    use bk_manifest::stream::{Format, Writer};

    #[test]
    fn both_ends_are_what_a_full_read_gives() {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::new(folder.path());
        for format in [Format::Json, Format::Yaml] {
            let name = format!("{format:?}");
            let backup = Backup {
                id: "b".into(),
                timestamp: "2026-04-28T02:21:50.000Z".into(),
                ..Backup::default()
            };
            let header = Header::new(&Application::default(), Some(&backup), &Run::default());
            let mut upload = local.put(&name).unwrap();
            let mut writer = Writer::new(&mut upload, format, header).unwrap();
            for number in 0..20_000 {
                let path = format!("{number:06}{}", "x".repeat(40));
                writer.entry(&Entry::new(RelPath::new(path).unwrap())).unwrap();
            }
            writer.end(Trailer::default()).unwrap();
            upload.commit().unwrap();
            let object = local.stat(&name).unwrap().unwrap();
            assert!(object.size > 2 * FIRST_READ);
            let (header, trailer) = read(&local, &object).unwrap();
            let whole = Reader::new(local.read(&name, None).unwrap()).unwrap().end().unwrap();
            assert_eq!((header, trailer), whole);
        }
    }
}
