//! `bk-manifest check`: reads a document to its end, and every member that bk has a type for.

use std::io::Read;

use crate::manifest::{Header, Trailer};
use crate::stream::{Error, Reader};

/// Reads a whole document and finds nothing wrong with it.
///
/// Beyond what [`Reader::end`] compares, every member that bk knows is looked into, and every
/// backup that an entry of a stored manifest refers to must have its place in `chain`.
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
    while let Some(entry) = reader.next_entry()? {
        crate::signal::check().map_err(Error::Io)?;
        let Some(backup) = entry.at.and_then(|at| at.backup) else { continue };
        let is_known = |chain: &std::collections::BTreeMap<String, String>| {
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
    trailer.objects()?;
    trailer.plain()?;
    trailer.left_out()?;
    trailer.exit()?;
    Ok((header, trailer))
}
