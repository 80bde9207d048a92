//! Names at the destination: which ones belong to a backup, and which prune may ever remove.

use std::collections::BTreeMap;

use bk_push::catalog::{self, BackupInfo};
use bk_push::destination::Destination;
use bk_push::{partial, place};

/// The files beside a manifest that go with it.
///
/// In a flat set, `<stem>.manifest.json`, they carry the set's name.
pub fn side_files(manifest: &str) -> Vec<String> {
    let folder = place::parent(manifest);
    let file = manifest.rsplit('/').next().unwrap_or(manifest);
    let stem =
        place::MANIFEST_NAMES.iter().find_map(|name| file.strip_suffix(name)).unwrap_or_default();
    side_files_of(folder, stem)
}

/// The side files in a folder; `stem` is empty, or ends with a full stop.
pub fn side_files_of(folder: &str, stem: &str) -> Vec<String> {
    place::SIDE_FILES.iter().map(|side| place::join(folder, &format!("{stem}{side}"))).collect()
}

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

/// Whether a name could be that of an object that backups share: no manifest and nothing of bk's own.
///
/// Manifests and marks are read from the destination, so what they claim is checked.
pub fn may_be_object(name: &str) -> bool {
    let own = name.strip_prefix(place::OWN_FOLDER);
    name != place::MARKER
        && !own.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        && !place::is_manifest(name)
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
    fn side_files_carry_the_name_of_a_flat_set() {
        assert_eq!(
            side_files("2026/04/28/b/manifest.json"),
            ["MANIFEST.txt", "SHA256SUMS", "RESTORE.txt"].map(|n| format!("2026/04/28/b/{n}"))
        );
        assert_eq!(
            side_files("daily/app_1.manifest.yaml"),
            ["MANIFEST.txt", "SHA256SUMS", "RESTORE.txt"].map(|n| format!("daily/app_1.{n}"))
        );
        assert_eq!(side_files("manifest.json")[1], "SHA256SUMS");
    }

    #[test]
    fn what_is_bks_own_is_no_object() {
        for name in [".bk-destination", ".bk/marks/x.json", ".bk", "a/manifest.json"] {
            assert!(!may_be_object(name), "{name}");
        }
        for name in ["a/files/000001.tar.zst", ".bkx", "a/.bk/x"] {
            assert!(may_be_object(name), "{name}");
        }
        assert_eq!(partial_list_of(".bk/partial/b1/begun.json"), Some("b1"));
        for name in [".bk/partial/b1", ".bk/partial//x", ".bk/partialx/b/c", ".bk/marks/x.json"] {
            assert_eq!(partial_list_of(name), None, "{name}");
        }
    }
}
