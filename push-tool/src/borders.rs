//! Other destinations below this one's root: what lies in them is none of ours.
//!
//! A listing shows everything below the root, in no particular order. So markers are gathered while
//! it is read, and what they fence off is left out once all are known.

use std::collections::BTreeSet;

use anyhow::Context;

use crate::destination::{Destination, ErrorKind, ObjectInfo};
use crate::parallel;
use crate::place::{MARKER, OWN_FOLDER, parent};
use crate::store::{MARKER_LIMIT, Marker};

/// Objects of a listing that have the name of a marker, in folders below the root.
#[derive(Debug, Default)]
pub struct Candidates(Vec<ObjectInfo>);

/// The folders that are destinations of their own.
#[derive(Debug, Default)]
pub struct Borders {
    folders: BTreeSet<String>,
    /// Markers that could not be read, and why; their folders count as destinations.
    pub unreadable: Vec<(ObjectInfo, anyhow::Error)>,
}

impl Candidates {
    /// Notes an object of a listing.
    pub fn note(&mut self, object: &ObjectInfo) {
        let folder = parent(&object.name);
        let file = object.name.strip_prefix(folder).and_then(|file| file.strip_prefix('/'));
        if file == Some(MARKER) && folder.split('/').next() != Some(OWN_FOLDER) {
            self.0.push(object.clone());
        }
    }

    /// Reads them: only one that holds a marker makes a destination.
    pub fn confirm(self, destination: &dyn Destination) -> Borders {
        let read = parallel::map(destination.at_once(), self.0, |object| {
            let marker = is_marker(destination, &object.name);
            (object, marker)
        });
        let mut borders = Borders::default();
        for (object, marker) in read {
            if !matches!(marker, Ok(false)) {
                borders.folders.insert(parent(&object.name).to_owned());
            }
            if let Err(error) = marker {
                borders.unreadable.push((object, error));
            }
        }
        borders
    }
}

/// Whether an object of that name is there, and holds what a marker does.
///
/// # Errors
/// Those of the destination.
pub(crate) fn is_marker(destination: &dyn Destination, name: &str) -> anyhow::Result<bool> {
    match destination.read(name, Some(0..MARKER_LIMIT)) {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        reader => Marker::is_in(reader?).with_context(|| format!("cannot read '{name}'")),
    }
}

impl Borders {
    /// Whether an object lies in another destination.
    pub fn is_beyond(&self, name: &str) -> bool {
        !self.folders.is_empty()
            && name.match_indices('/').any(|(slash, _)| self.folders.contains(&name[..slash]))
    }

    /// The folders that are other destinations.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.folders.iter().map(String::as_str)
    }

    /// What to tell people, if anything was left out.
    pub fn warning(&self) -> Option<String> {
        let first = bk_manifest::path::escape(self.folders.first()?.as_bytes());
        Some(match self.folders.len() {
            1 => {
                format!("'{first}' is a backup destination of its own: what is in it was left out")
            }
            count => format!(
                "'{first}' and {} more folders are backup destinations of their own: what is in \
                 them was left out",
                count - 1
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    const MARKER_TEXT: &[u8] = br#"{"id":"0123456789abcdef","grace_seconds":86400}"#;

    fn borders(memory: &Memory) -> Borders {
        let mut candidates = Candidates::default();
        for object in memory.list("").unwrap() {
            candidates.note(&object.unwrap());
        }
        candidates.confirm(memory)
    }

    #[test]
    fn a_marker_below_the_root_fences_its_folder_off() {
        let memory = Memory::new("2026-05-01T00:00:00Z");
        memory.store(MARKER, MARKER_TEXT);
        assert_eq!(borders(&memory).warning(), None);
        memory.store("hosts/b/.bk-destination", MARKER_TEXT);
        let borders = borders(&memory);
        for name in ["hosts/b/manifest.json", "hosts/b/.bk/marks/m", "hosts/b/.bk-destination"] {
            assert!(borders.is_beyond(name), "{name}");
        }
        for name in ["hosts/b", "hosts/bb/manifest.json", "hosts/manifest.json", MARKER] {
            assert!(!borders.is_beyond(name), "{name}");
        }
        assert!(borders.warning().unwrap().contains("'hosts/b' is a backup destination"));
    }

    #[test]
    fn what_is_no_marker_hides_nothing() {
        let memory = Memory::new("2026-05-01T00:00:00Z");
        memory.store("2026/.bk-destination", b"");
        memory.store("2026/04/.bk-destination", br#"{"id":"x"}"#);
        memory.store("2026/05/.bk-destination", &vec![b' '; 1 << 20]);
        memory.store("2026/06/not.bk-destination", MARKER_TEXT);
        memory.store(".bk/marks/.bk-destination", MARKER_TEXT);
        let borders = borders(&memory);
        assert_eq!(borders.folders().count(), 0);
        assert!(borders.unreadable.is_empty());
    }
}
