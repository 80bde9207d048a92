//! `bk-manifest check`: reads a document to its end, and every member that bk has a type for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use crate::entry::Entry;
use crate::manifest::{Header, PlainRecord, Trailer};
use crate::spool::Spool;
use crate::stream::{Error, Reader};

/// Reads a whole document and finds nothing wrong with it.
///
/// Beyond what [`Reader::end`] compares, every member that bk knows is looked into, and every
/// backup that an entry of a stored manifest refers to must have its place in `chain`. What `objects`
/// says of plain files must be what the entries say.
///
/// # Errors
/// [`Error`], the first fault that was met.
pub fn check(input: impl Read) -> Result<(Header, Trailer), Error> {
    let mut reader = Reader::new(input)?;
    let header = reader.header();
    let id = match header.backup()? {
        None => None,
        Some(backup) => {
            backup.time()?;
            header.series()?;
            Some(backup.id)
        }
    };
    header.run()?;
    let chain = header.0.get("chain").map(|_| header.chain()).transpose()?;
    let mut whole: Option<Spool> = None;
    while let Some(entry) = reader.next_entry()? {
        crate::signal::check().map_err(Error::Io)?;
        if entry.is_file() && entry.at.as_ref().is_some_and(|at| at.offset.is_none()) {
            let spool = match &mut whole {
                Some(spool) => spool,
                None => whole.insert(Spool::new().map_err(temporary)?),
            };
            spool.push(&entry).map_err(temporary)?;
        }
        let Some(backup) = entry.at.and_then(|at| at.backup) else { continue };
        let is_known = |chain: &BTreeMap<String, String>| {
            chain.contains_key(&backup) || id.as_ref() == Some(&backup)
        };
        if chain.as_ref().is_some_and(|chain| !is_known(chain)) {
            return Err(Error::Malformed(format!(
                "'{}' lies in a backup that 'chain' does not have, '{}'",
                entry.path,
                backup.escape_debug()
            )));
        }
    }
    let (header, trailer) = reader.end()?;
    trailer.components()?;
    check_whole(whole, &trailer)?;
    trailer.left_out()?;
    trailer.exit()?;
    Ok((header, trailer))
}

fn temporary(error: anyhow::Error) -> Error {
    Error::Io(io::Error::other(error))
}

/// Compares the entries whose objects are one file each with what `objects` says of these.
///
/// Which of them are plain files only the end of the document says, so they were put aside.
fn check_whole(whole: Option<Spool>, trailer: &Trailer) -> Result<(), Error> {
    let (objects, records) = (trailer.objects()?, trailer.plain()?);
    // Entries that are on their way to a destination may say where an earlier backup has them.
    if trailer.members.get("objects").is_none() {
        return Ok(());
    }
    let named: BTreeSet<_> =
        objects.iter().map(|object| (object.backup.as_deref(), &*object.object)).collect();
    let mut found: BTreeMap<(Option<String>, String), (u64, u64)> = BTreeMap::new();
    for record in &records {
        let PlainRecord { backup, component, .. } = record;
        if found.insert((backup.clone(), component.clone()), (0, 0)).is_some() {
            return Err(Error::Malformed(format!("'objects' has '{component}' twice")));
        }
    }
    let whole = whole.map(Spool::finish).transpose().map_err(temporary)?;
    for entry in whole.iter().flat_map(crate::spool::Entries::iter) {
        crate::signal::check().map_err(Error::Io)?;
        let entry = entry.map_err(temporary)?;
        let Entry { at: Some(at), .. } = &entry else { continue };
        if named.contains(&(at.backup.as_deref(), &*at.object)) {
            continue;
        }
        let component = at.object.split_once('/').map(|(component, _)| component);
        // What `objects` lacks altogether is for those who have to find it at a destination.
        let Some(sums) = component
            .and_then(|component| found.get_mut(&(at.backup.clone(), component.to_owned())))
        else {
            continue;
        };
        sums.0 += 1;
        sums.1 = sums.1.saturating_add(entry.size.unwrap_or(0));
    }
    for PlainRecord { backup, component, count, size, .. } in &records {
        let sums = found.get(&(backup.clone(), component.clone())).copied().unwrap_or_default();
        if sums != (*count, *size) {
            return Err(Error::Malformed(format!(
                "'objects' says that {count} files with {size} bytes lie in '{component}/', but these \
                 are {} with {}",
                sums.0, sums.1
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::stream::{Format, Writer};
    use serde_json::{Value, json};

    /// A document with a dump, two plain files of an earlier backup and one of its own.
    fn document(objects: &Value) -> Vec<u8> {
        let mut header = Header::default();
        header.set("version", json!("2.0"));
        header.set("application", json!({"name": "app"}));
        header.set(
            "backup",
            json!({"id": "b2", "type": "full", "timestamp": "2026-04-28T02:21:50.000Z"}),
        );
        header.set("chain", json!({"b1": "../b1"}));
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        let sum = Digest::of(b"").to_string();
        for (path, object, backup, size) in [
            ("minio/a", "minio/a.age", Some("b1"), 3),
            ("minio/b", "minio/a.age", Some("b1"), 3),
            ("minio/c", "minio/c", None, 4),
            (".bk/db/app.dump", "db/app.dump", None, 5),
        ] {
            let mut at = json!({"object": object});
            if let Some(backup) = backup {
                at["backup"] = json!(backup);
            }
            let entry = json!({"at": at, "checksum": sum, "path": path, "size": size});
            writer.entry(&serde_json::from_value(entry).unwrap()).unwrap();
        }
        let mut trailer = Trailer::default();
        trailer.set("components", json!([]));
        if !objects.is_null() {
            trailer.set("objects", objects.clone());
        }
        writer.end(trailer).unwrap().0
    }

    fn objects() -> Value {
        json!([
            {"checksum": Digest::of(b""), "live": 5, "object": "db/app.dump", "size": 5},
            {"backup": "b1", "component": "minio", "count": 2, "encryption": "age", "size": 6},
            {"component": "minio", "count": 1, "size": 4},
        ])
    }

    #[test]
    fn plain_files_are_accounted_for() {
        check(&document(&objects())[..]).unwrap();
        // On its way to a destination a document has none.
        check(&document(&Value::Null)[..]).unwrap();
    }

    #[test]
    fn plain_files_that_objects_does_not_account_for_are_refused() {
        type Break = fn(&mut Vec<Value>);
        let breaks: [(Break, &str); 4] = [
            (|lines| lines[1]["count"] = json!(3), "that 3 files with 6 bytes lie in 'minio/'"),
            (|lines| lines[2]["size"] = json!(3), "but these are 1 with 4"),
            (
                |lines| lines.push(json!({"component": "other", "count": 1, "size": 0})),
                "these are 0 with 0",
            ),
            (|lines| lines.push(lines[2].clone()), "'objects' has 'minio' twice"),
        ];
        for (number, (change, said)) in breaks.into_iter().enumerate() {
            let mut lines = objects().as_array().unwrap().clone();
            change(&mut lines);
            let error = check(&document(&Value::Array(lines))[..]).unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{number}: {error}");
            assert!(error.to_string().contains(said), "{number}: {error}");
        }
    }
}
