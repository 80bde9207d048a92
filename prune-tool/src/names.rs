//! Names at the destination: which ones a backup needs, and which are of partial lists.

use std::collections::BTreeMap;

use bk_push::catalog::{self, BackupInfo};
use bk_push::destination::Destination;
use bk_push::partial;

/// The objects that a backup needs, by their names at the destination, with their sizes.
///
/// # Errors
/// Those of the destination, and any fault of the manifest.
pub fn objects_of(
    destination: &dyn Destination,
    backup: &BackupInfo,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let (header, trailer) = catalog::reread(destination, backup)?;
    let needed = catalog::needed_objects(&header, &trailer, backup.folder())?;
    Ok(needed.into_iter().map(|object| (object.name, object.record.size)).collect())
}

/// The backup's id if the name is that of a piece of a partial list.
pub fn partial_list_of(name: &str) -> Option<&str> {
    let (id, piece) = name.strip_prefix(partial::FOLDER)?.strip_prefix('/')?.split_once('/')?;
    (!id.is_empty() && !piece.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_partial_lists_are_told_by_name() {
        assert_eq!(partial_list_of(".bk/partial/b1/begun.json"), Some("b1"));
        for name in [".bk/partial/b1", ".bk/partial//x", ".bk/partialx/b/c", ".bk/marks/x.json"] {
            assert_eq!(partial_list_of(name), None, "{name}");
        }
    }
}
