//! Hard links: each repeats checksum and place of its first path, which may be any distance away.

use bk_manifest::entry::{Entry, Kind};
use bk_manifest::sort::{Sorter, pair, unpair};
use bk_manifest::spool::{Entries, Spool};

/// Memory for hard links on their way; more goes through temporary files.
const BUDGET: usize = 8 << 20;

/// Gives every hard link the checksum, size and place of its first path.
///
/// A link whose first path was left out, or is another file by now, becomes a file of its own, to be
/// packed; returns whether there was one.
///
/// # Errors
/// A full disk under the temporary files.
pub fn resolve(entries: &Entries) -> anyhow::Result<(Entries, bool)> {
    // Links in the order of their first paths, to be met while reading the entries once …
    let mut by_target = Sorter::new(BUDGET);
    for entry in entries.iter() {
        let entry = entry?;
        if let Kind::Hardlink(target) = &entry.kind {
            by_target.push(&pair(&target.sort_key(), &entry.path.sort_key()))?;
        }
    }
    // … and then in their own order, with the place of the first path's entry.
    let mut by_path = Sorter::new(BUDGET);
    let mut links = by_target.finish()?.peekable();
    for place in entries.places() {
        let (place, entry) = place?;
        let key = entry.path.sort_key();
        while let Some(record) =
            links.next_if(|record| record.as_ref().is_ok_and(|record| unpair(record).0 <= &key[..]))
        {
            let record = record?;
            let (target, link) = unpair(&record);
            if target == key && entry.is_file() {
                by_path.push(&pair(link, &place.to_be_bytes()))?;
            }
        }
    }
    let mut resolved = by_path.finish()?.peekable();
    let mut out = Spool::new()?;
    let mut has_orphans = false;
    for entry in entries.iter() {
        let mut entry = entry?;
        if matches!(entry.kind, Kind::Hardlink(_)) {
            let key = entry.path.sort_key();
            let is_mine = |record: &anyhow::Result<Vec<u8>>| {
                record.as_ref().is_ok_and(|record| unpair(record).0 == &key[..])
            };
            let first = match resolved.next_if(is_mine) {
                None => None,
                Some(record) => {
                    let record = record?;
                    let place =
                        unpair(&record).1.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
                    Some(entries.at(place)?).filter(|first| is_same_file(first, &entry))
                }
            };
            if let Some(first) = first {
                repeat(&mut entry, &first);
            } else {
                has_orphans = true;
                entry.kind = Kind::File;
                (entry.at, entry.checksum) = (None, None);
            }
        }
        out.push(&entry)?;
    }
    Ok((out.finish()?, has_orphans))
}

/// Whether the first path was still the link's file when it was read.
fn is_same_file(first: &Entry, link: &Entry) -> bool {
    first.inode == link.inode || first.inode.is_none() || link.inode.is_none()
}

/// A hard link has no content or attributes of its own; it repeats them, so that it can be restored
/// without its first path.
fn repeat(link: &mut Entry, first: &Entry) {
    link.checksum = first.checksum;
    link.at = first.at.as_ref().map(|at| crate::known::refer(at, first, link));
    (link.mode, link.owner) = (first.mode, first.owner);
    (link.mtime, link.ctime, link.inode) = (first.mtime, first.ctime, first.inode);
    link.size = first.size;
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::digest::Digest;
    use bk_manifest::entry::At;
    use bk_manifest::path::RelPath;

    #[test]
    fn links_get_what_their_first_path_has() {
        let mut spool = Spool::new().unwrap();
        let mut first = Entry::new(RelPath::new("a/x").unwrap());
        first.set_content(Digest::of(b"1"), 1);
        first.at = Some(At {
            object: "o".into(),
            offset: Some(1),
            length: Some(2),
            skip: Some(3),
            ..At::default()
        });
        spool.push(&first).unwrap();
        for (path, target) in [("a/y", "a/x"), ("b", "a gone"), ("c", "a/x")] {
            let mut link = Entry::new(RelPath::new(path).unwrap());
            link.kind = Kind::Hardlink(RelPath::new(target).unwrap());
            spool.push(&link).unwrap();
        }
        let (entries, has_orphans) = resolve(&spool.finish().unwrap()).unwrap();
        let entries: Vec<Entry> = entries.iter().map(Result::unwrap).collect();
        assert!(has_orphans);
        assert_eq!(entries.len(), 4);
        assert!(entries[2].is_file() && entries[2].at.is_none());
        for link in [&entries[1], &entries[3]] {
            assert_eq!(link.checksum, first.checksum);
            assert_eq!(link.at.as_ref().unwrap().member.as_deref(), Some(&b"a/x"[..]));
        }
    }
}
