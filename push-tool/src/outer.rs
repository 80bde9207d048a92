//! Header and trailer of a stored manifest by two range reads, however many entries are between.

use std::io::Read;

use anyhow::Context;
use bk_manifest::manifest::{Header, Trailer};
use bk_manifest::outer::read_ends;
use bk_manifest::stream::Reader;

use crate::destination::{Destination, ObjectInfo};

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
            let mut upload = local.put(&name, 2 << 20).unwrap();
            let mut writer = Writer::new(&mut upload, format, header).unwrap();
            for number in 0..20_000 {
                let path = format!("{number:06}{}", "x".repeat(40));
                writer.entry(&Entry::new(RelPath::new(path).unwrap())).unwrap();
            }
            writer.end(Trailer::default()).unwrap();
            upload.commit().unwrap();
            let object = local.stat(&name).unwrap().unwrap();
            assert!(object.size > 1 << 20);
            let (header, trailer) = read(&local, &object).unwrap();
            let whole = Reader::new(local.read(&name, None).unwrap()).unwrap().end().unwrap();
            assert_eq!((header, trailer), whole);
        }
    }
}
