//! Dumps that are folders: their files are collected while they are decoded, and read to the end
//! once all of them are there.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use bk_manifest::entry::Entry;
use bk_manifest::path::RelPath;

use crate::dumps::DumpName;
use crate::room::Room;

/// The folders of a backup, by their paths in it.
#[derive(Debug, Default)]
pub(crate) struct DumpFolders(BTreeMap<RelPath, DumpFolder>);

/// One of them.
#[derive(Debug)]
pub(crate) struct DumpFolder {
    component: String,
    name: String,
    /// The first of its files, which stands for all in reports.
    first: Entry,
    /// Where it is put together.
    place: Option<PathBuf>,
    files: u64,
    missing: u64,
    bytes: u64,
}

impl DumpFolders {
    /// Counts a file in, whether or not it is going to be decoded.
    pub(crate) fn expect(&mut self, path: RelPath, dump: DumpName<'_>, entry: &Entry) {
        let folder = self.0.entry(path).or_insert_with(|| DumpFolder {
            component: dump.component.to_owned(),
            name: dump.name.to_owned(),
            first: entry.clone(),
            place: None,
            files: 0,
            missing: 0,
            bytes: 0,
        });
        folder.files += 1;
        folder.missing += 1;
        folder.bytes += entry.size.unwrap_or(0);
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The folders without those that are not wanted whole.
    pub(crate) fn wanted_whole(mut self, wanted: &BTreeMap<RelPath, u64>) -> Self {
        self.0.retain(|path, folder| wanted.get(path) == Some(&folder.files));
        self
    }

    /// Makes room for each; returns those for which there is none, with their bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make_room(&mut self, room: &Room) -> anyhow::Result<Vec<(Entry, u64)>> {
        let mut refused = Vec::new();
        for folder in self.0.values_mut() {
            if room.take(folder.bytes) {
                folder.place = Some(room.folder()?);
            } else {
                refused.push((folder.first.clone(), folder.bytes));
            }
        }
        self.0.retain(|_, folder| folder.place.is_some());
        Ok(refused)
    }

    /// Opens the place of one of their files; `None` for a file that is in none.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(&self, entry: &Entry) -> anyhow::Result<Option<File>> {
        use std::os::unix::ffi::OsStrExt;
        let folder = entry.path.parent().and_then(|parent| self.0.get(&parent));
        let Some(place) = folder.and_then(|folder| folder.place.as_ref()) else {
            return Ok(None);
        };
        let name = std::ffi::OsStr::from_bytes(entry.path.file_name());
        File::create_new(place.join(name)).map(Some).context("cannot create a temporary file")
    }

    /// Says that a file is there, and whole.
    pub(crate) fn have(&mut self, entry: &Entry) {
        let parent = entry.path.parent();
        if let Some(folder) = parent.and_then(|parent| self.0.get_mut(&parent)) {
            folder.missing = folder.missing.saturating_sub(1);
        }
    }

    /// Those that are there with all of their files.
    pub(crate) fn complete(&self) -> impl Iterator<Item = &DumpFolder> {
        self.0.values().filter(|folder| folder.missing == 0)
    }
}

impl DumpFolder {
    /// What tells how it is to be read.
    pub(crate) fn dump(&self) -> DumpName<'_> {
        DumpName { component: &self.component, name: &self.name }
    }

    /// The entry that stands for it in reports.
    pub(crate) fn first(&self) -> &Entry {
        &self.first
    }

    /// Where it was put together.
    ///
    /// # Errors
    /// If no room was made for it.
    pub(crate) fn place(&self) -> anyhow::Result<&PathBuf> {
        self.place.as_ref().context("a dump without a place")
    }
}
