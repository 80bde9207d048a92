//! Header and trailer of a manifest by reading both of its ends, however many entries are between.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::manifest::{Header, Trailer};
use crate::stream::{Reader, read_outer};

/// How much is read from either end at first, in bytes.
const FIRST_READ: u64 = 256 << 10;

const JSON_HEAD: &[u8] = b"\"files\":{\"manifest\":[";
const JSON_TAIL: &[u8] = b"\n],\"checksum\":";
const YAML_HEAD: &[u8] = b"\nfiles:\n  manifest:\n";
const YAML_TAIL: &[u8] = b"\n  checksum: \"sha256:";

/// Reads header and trailer of a manifest in a file of this host.
///
/// They are checked against the manifest's own sum. A document laid out otherwise than ours is read
/// whole.
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

/// Both ends of a document of `size` bytes, by reads from one byte up to another; `None` if it has to
/// be read whole.
///
/// # Errors
/// Those of `range`, and any fault of the document.
pub fn read_ends(
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
