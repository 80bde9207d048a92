//! What backups need, by names at the destination.
//!
//! Header and trailer tell all of it but for plain files: those stand in the entries, which are many,
//! and read only where plain files are to go.

use std::collections::BTreeMap;

use bk_manifest::stream::Reader;
use bk_push::catalog::{self, BackupInfo, NeededObject};
use bk_push::destination::Destination;
use bk_push::plain::PlainFiles;

/// What one backup needs.
pub struct Needs {
    /// The objects that its manifest names one by one.
    pub objects: Vec<NeededObject>,
    /// The folders with the plain files that it needs, whosever they are.
    pub sets: Vec<String>,
    plain: PlainFiles,
}

impl Needs {
    /// Reads header and trailer of a backup's manifest.
    ///
    /// # Errors
    /// Those of the destination, and any fault of the manifest.
    pub fn read(destination: &dyn Destination, backup: &BackupInfo) -> anyhow::Result<Self> {
        let (header, trailer) = catalog::reread(destination, backup)?;
        let objects = catalog::needed_objects(&header, &trailer, backup.folder())?;
        let plain = PlainFiles::new(&header, &trailer, backup.folder())?;
        let sets = plain.folders().collect::<anyhow::Result<_>>()?;
        Ok(Needs { objects, sets, plain })
    }

    /// Reads the entries and hands out the plain files, each with its size as stored; one that
    /// several entries share comes several times.
    ///
    /// # Errors
    /// As [`Needs::read`], and those of `found`.
    pub fn each_plain(
        &self,
        destination: &dyn Destination,
        backup: &BackupInfo,
        found: &mut dyn FnMut(&str, u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let mut reader = Reader::new(destination.read(&backup.manifest.name, None)?)?;
        while let Some(entry) = reader.next_entry()? {
            bk_manifest::signal::check()?;
            if let Some(object) = self.plain.object(&entry)? {
                found(&object.name, object.stored.size)?;
            }
        }
        // Only now it is known that nothing was missing.
        reader.end()?;
        Ok(())
    }
}

/// The folders that hold plain files of any backup, and whether files of theirs may go.
#[derive(Default)]
pub struct Sets(BTreeMap<String, bool>);

impl Sets {
    /// Takes the folders of a backup.
    pub fn add(&mut self, folders: &[String]) {
        for folder in folders {
            self.0.entry(folder.clone()).or_default();
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes that an object may go.
    pub fn shrink(&mut self, name: &str) {
        for folder in folders_above(name) {
            if let Some(shrinks) = self.0.get_mut(folder) {
                *shrinks = true;
            }
        }
    }

    /// Whether one of these folders loses files.
    pub fn shrinks(&self, folders: &[String]) -> bool {
        folders.iter().any(|folder| self.0.get(folder) == Some(&true))
    }

    /// Whether any folder does.
    pub fn any_shrinks(&self) -> bool {
        self.0.values().any(|shrinks| *shrinks)
    }

    /// Whether an object lies in a folder that loses files: then what needs it has been asked for.
    pub fn is_in_shrinking(&self, name: &str) -> bool {
        !self.is_empty() && folders_above(name).any(|folder| self.0.get(folder) == Some(&true))
    }

    /// Whether an object lies in a folder that loses nothing: that accounts for all in it.
    pub fn accounts_for(&self, name: &str) -> bool {
        !self.is_empty() && folders_above(name).any(|folder| self.0.get(folder) == Some(&false))
    }
}

/// The folders that an object lies in, outermost first.
pub fn folders_above(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').filter_map(|(slash, _)| name.get(..slash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_lose_files_shrink() {
        let mut sets = Sets::default();
        let folders = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (first, second): (Vec<String>, Vec<String>) =
            (folders(&["2026/b1/minio", "2026/b1/other"]), folders(&["2026/b2/minio"]));
        sets.add(&first);
        sets.add(&second);
        sets.shrink("2026/b1/files/000001.tar.zst");
        sets.shrink("2026/b1/minio-x/a");
        assert!(!sets.any_shrinks());
        sets.shrink("2026/b1/minio/a/b/c");
        assert!(sets.shrinks(&first) && !sets.shrinks(&second) && sets.any_shrinks());
        assert!(sets.is_in_shrinking("2026/b1/minio/x") && !sets.accounts_for("2026/b1/minio/x"));
        assert!(sets.accounts_for("2026/b2/minio/x/y") && sets.accounts_for("2026/b1/other/x"));
        for stranger in ["2026/b2/minio", "2026/b2/x", "notes.txt", "2026/b2/minio.txt"] {
            assert!(!sets.accounts_for(stranger) && !sets.is_in_shrinking(stranger), "{stranger}");
        }
    }
}
