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
}
