//! Where things lie at a destination: names of backups' folders, of their manifests, of bk's own.

use bk_manifest::manifest::Backup;
use bk_manifest::path::{RelPath, escape};
use bk_manifest::stream::Error as FormatError;

/// Marks, partial lists, unfinished files: bk's own folder at the root.
pub const OWN_FOLDER: &str = ".bk";
/// The object that makes a folder a destination.
pub const MARKER: &str = bk_manifest::scan::DESTINATION_MARKER;
/// The commit of a backup, in its folder.
pub const MANIFEST_NAMES: [&str; 2] = ["manifest.json", "manifest.yaml"];
/// Beside the manifest: what people and their programs read.
pub const SIDE_FILES: [&str; 3] = ["MANIFEST.txt", "SHA256SUMS", "RESTORE.txt"];

/// The folder, in that of a backup, of what had to be stored a second time while its name was taken.
pub const AGAIN: &str = "again";

/// The folder of a new backup: `2026/04/28/backup-…`, by its time in UTC.
///
/// # Errors
/// If the backup's time is malformed.
pub fn folder_of(backup: &Backup) -> Result<String, FormatError> {
    Ok(format!("{}/{}", backup.time()?.format("%Y/%m/%d"), backup.id))
}

/// Whether an object can be a backup's manifest, by its name.
pub fn is_manifest(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    !name.starts_with(".bk/")
        && MANIFEST_NAMES.iter().any(|manifest| {
            file.strip_suffix(manifest).is_some_and(|stem| stem.is_empty() || stem.ends_with('.'))
        })
}

/// Whether a name could be that of an object that backups share: no manifest and nothing of bk's own.
///
/// Manifests and marks are read from the destination, so what they claim is checked.
pub fn may_be_object(name: &str) -> bool {
    let own = name.strip_prefix(OWN_FOLDER);
    name != MARKER
        && !own.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        && !is_manifest(name)
}

/// What stands before the names of a manifest's side files: nothing, or in a flat set,
/// `<stem>.manifest.json`, the set's name and a full stop.
pub fn stem(manifest: &str) -> &str {
    let file = manifest.rsplit('/').next().unwrap_or(manifest);
    MANIFEST_NAMES.iter().find_map(|name| file.strip_suffix(name)).unwrap_or_default()
}

/// The side files in a folder, by the stem of their manifest.
pub fn side_files_of(folder: &str, stem: &str) -> Vec<String> {
    SIDE_FILES.iter().map(|side| join(folder, &format!("{stem}{side}"))).collect()
}

/// The files beside a manifest that go with it.
pub fn side_files(manifest: &str) -> Vec<String> {
    side_files_of(parent(manifest), stem(manifest))
}

/// The folder that holds an object; empty at the root.
pub fn parent(name: &str) -> &str {
    name.rfind('/').map_or("", |slash| &name[..slash])
}

/// A name in a folder; the folder may be the root.
pub fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The folder that `relative` (with `..` parts) leads to from `folder`.
///
/// # Errors
/// A path that leads above the destination's root, or is absolute.
pub fn resolve(folder: &str, relative: &str) -> Result<String, FormatError> {
    let outside = || {
        let relative = escape(relative.as_bytes());
        FormatError::Malformed(format!("'{relative}' leads out of the destination"))
    };
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    if relative.starts_with('/') || relative.contains('\0') {
        return Err(outside());
    }
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(outside)?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// The way from one folder to another, as `chain` records it.
pub fn relative(from: &str, to: &str) -> String {
    let split = |folder: &str| -> Vec<String> {
        folder.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let (from, to) = (split(from), split(to));
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let mut parts = vec!["..".to_owned(); from.len() - shared];
    parts.extend_from_slice(&to[shared..]);
    if parts.is_empty() { ".".into() } else { parts.join("/") }
}

/// The object's name at the destination, for one named in a backup's manifest.
///
/// # Errors
/// A name that is no relative path.
pub fn object(folder: &str, name: &str) -> Result<String, FormatError> {
    RelPath::new(name)
        .map_err(|error| FormatError::Malformed(format!("{error} as an object's name")))?;
    Ok(join(folder, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_between_folders_leads_there() {
        for (from, to, way) in [
            ("2026/04/28/b", "2026/04/27/a", "../../27/a"),
            ("2026/04/28/b", "2026/04/28/a", "../a"),
            ("b", "a", "../a"),
            ("", "daily", "daily"),
            ("daily", "daily", "."),
            ("daily", "", ".."),
        ] {
            assert_eq!(relative(from, to), way);
            assert_eq!(resolve(from, way).unwrap(), to);
        }
    }

    #[test]
    fn no_way_leads_out() {
        for (folder, way) in [("a", "../.."), ("", ".."), ("a/b", "../../../etc"), ("a", "/etc")] {
            assert!(resolve(folder, way).is_err(), "{folder} {way}");
        }
        assert!(object("a", "../x").is_err());
    }

    #[test]
    fn manifests_are_told_by_name() {
        for name in ["2026/04/28/x/manifest.json", "manifest.yaml", "daily/a_1.manifest.json"] {
            assert!(is_manifest(name), "{name}");
        }
        for name in ["x/MANIFEST.txt", "x/amanifest.json", ".bk/x/manifest.json", "manifest.json/x"]
        {
            assert!(!is_manifest(name), "{name}");
        }
    }

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
    }
}
