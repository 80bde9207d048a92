//! The plain layout: files that are an object each, `<component>/…` in the folder of their backup.
//!
//! There may be millions of them, so a manifest's `objects` has one line for all of a component
//! (its [`PlainRecord`]); the entries name them, and one listing of the component's folder says
//! which are there.

use std::collections::{BTreeMap, BTreeSet};

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry};
use bk_manifest::lookup::Lookup;
use bk_manifest::manifest::{Header, ObjectRecord, PlainRecord, Trailer};
use bk_manifest::path::escape;
use bk_manifest::spool::Entries;
use bk_manifest::stream::Error as FormatError;
use serde::{Deserialize, Serialize};

use crate::catalog::Folders;
use crate::destination::Destination;
use crate::mark::Marked;
use crate::{names, place, volume, walk};

/// Longest part of a name, in bytes: a file system takes 255, and uploads add to it.
const PART_LIMIT: usize = 200;
/// Longest name, in bytes: stores of buckets take 1,024 with all that stands before it.
const NAME_LIMIT: usize = 600;
/// The member of `at` that says what is stored of an encrypted object.
const STORED: &str = "stored";

/// The name of the object that an entry's file can be, in the folder of its backup; `None` if its path
/// is no name that every destination takes and no tool takes for something else. It goes into a
/// volume then.
pub fn name(entry: &Entry, suffix: Option<&str>) -> Option<String> {
    let component = entry.component();
    let path = std::str::from_utf8(entry.path.as_bytes()).ok()?;
    let below = path.strip_prefix(component)?.strip_prefix('/')?;
    // Folders of the backup that hold something else.
    let is_taken = component == volume::FOLDER
        || component == place::AGAIN
        || place::MANIFEST_NAMES.contains(&component)
        || place::SIDE_FILES.contains(&component);
    let is_odd = |part: &str| {
        part.len() > PART_LIMIT
            || part.trim() != part
            || part.starts_with(place::OWN_FOLDER)
            || part.contains(|c: char| c.is_control() || c == '\\')
    };
    let (folders, _) = below.rsplit_once('/').unwrap_or_default();
    // `a` and `a.age/b` would both want to be `a.age`.
    let has_suffix =
        |part: &str| suffix.is_some_and(|suffix| part.ends_with(&format!(".{suffix}")));
    let is_bad = is_taken
        || path.len() > NAME_LIMIT
        || below.split('/').any(is_odd)
        || folders.split('/').any(has_suffix)
        || walk::may_be_manifest(path);
    (!is_bad).then(|| match suffix {
        None => path.to_owned(),
        Some(suffix) => format!("{path}.{suffix}"),
    })
}

/// The component whose plain object this is, if it is one: the first part of the name.
pub fn component(object: &str) -> Option<&str> {
    object.split_once('/').map(|(component, _)| component)
}

/// What is stored of an encrypted object that is one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSum {
    /// SHA-256 of it as stored.
    pub checksum: Digest,
    /// Bytes as stored.
    pub size: u64,
}

impl StoredSum {
    /// That of an entry whose object is one file: what `at` says, or the content's own where the object
    /// is not encrypted.
    ///
    /// # Errors
    /// An entry that says neither.
    pub fn of(entry: &Entry, at: &At) -> Result<Self, FormatError> {
        let path = &entry.path;
        let malformed = || FormatError::Malformed(format!("'{path}' does not say what is stored"));
        match (at.extra.get(STORED), entry.checksum, entry.size) {
            (Some(stored), ..) => StoredSum::deserialize(stored).map_err(|_| malformed()),
            (None, Some(checksum), Some(size)) => Ok(StoredSum { checksum, size }),
            _ => Err(malformed()),
        }
    }

    /// Puts it into the `at` of an entry.
    pub fn record(self, at: &mut At) {
        let stored = serde_json::json!({"checksum": self.checksum, "size": self.size});
        at.extra.insert(STORED.into(), stored);
    }

    /// Takes it out again.
    pub fn forget(at: &mut At) {
        at.extra.remove(STORED);
    }
}

/// What lies in some folders of a destination, by name; memory is bounded.
#[derive(Default)]
pub struct Listed(Lookup);

/// The size of what counts as gone.
const GONE: u64 = u64::MAX;

impl Listed {
    /// Adds what lies in a folder.
    ///
    /// # Errors
    /// Those of the destination and of the temporary files.
    pub fn add(&mut self, destination: &dyn Destination, folder: &str) -> anyhow::Result<()> {
        for object in destination.list(folder)? {
            bk_manifest::signal::check()?;
            let object = object?;
            self.0.insert(names::key(&object.name), object.size)?;
        }
        Ok(())
    }

    /// Counts an object as gone from now on.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        self.0.insert(names::key(name), GONE)
    }

    /// The size of an object, if it is there.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn size(&self, name: &str) -> anyhow::Result<Option<u64>> {
        Ok(self.0.get(names::key(name))?.filter(|size| *size != GONE))
    }
}

/// A plain object that a backup needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainObject {
    /// Its name at the destination.
    pub name: String,
    /// Where its entry says that it lies.
    pub at: At,
    /// What is stored.
    pub stored: StoredSum,
    /// The program that opens it; `None` is not encrypted.
    pub encryption: Option<String>,
}

/// The plain files that a manifest's entries refer to.
pub struct PlainFiles {
    folders: Folders,
    /// The objects that `objects` names, which are not plain files.
    named: BTreeSet<(Option<String>, String)>,
    records: BTreeMap<(Option<String>, String), PlainRecord>,
}

impl PlainFiles {
    /// Those of a manifest that lies in `folder`.
    ///
    /// # Errors
    /// A malformed header or trailer.
    pub fn new(header: &Header, trailer: &Trailer, folder: &str) -> anyhow::Result<Self> {
        let folders = Folders::new(header, folder)?;
        Ok(PlainFiles::of(folders, &trailer.objects()?, trailer.plain()?))
    }

    /// Those of a manifest with these lines in `objects`.
    pub fn of(folders: Folders, objects: &[ObjectRecord], plain: Vec<PlainRecord>) -> Self {
        let named = objects.iter().map(|object| (object.backup.clone(), object.object.clone()));
        let by_key =
            |record: PlainRecord| ((record.backup.clone(), record.component.clone()), record);
        PlainFiles {
            folders,
            named: named.collect(),
            records: plain.into_iter().map(by_key).collect(),
        }
    }

    /// Whether the manifest has none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The folders that they lie in, by their names at the destination.
    ///
    /// # Errors
    /// A backup that is missing from the chain.
    pub fn folders(&self) -> impl Iterator<Item = anyhow::Result<String>> {
        self.records
            .keys()
            .map(|(backup, component)| self.folders.object(backup.as_deref(), component))
    }

    /// What is there of them.
    ///
    /// # Errors
    /// Those of the destination; a malformed chain.
    pub fn list(&self, destination: &dyn Destination) -> anyhow::Result<Listed> {
        let mut listed = Listed::default();
        for folder in self.folders() {
            listed.add(destination, &folder?)?;
        }
        Ok(listed)
    }

    /// Hands out the plain objects of `entries` that are marked, or not there with their size.
    ///
    /// # Errors
    /// Those of the destination and of `missing`; malformed entries.
    pub fn each_missing(
        &self,
        destination: &dyn Destination,
        entries: &Entries,
        marked: &Marked,
        missing: &mut dyn FnMut(PlainObject) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let listed = self.list(destination)?;
        for entry in entries.iter() {
            bk_manifest::signal::check()?;
            let Some(object) = self.object(&entry?)? else { continue };
            let is_there = listed.size(&object.name)? == Some(object.stored.size);
            if !is_there || marked.contains(&object.name)? {
                missing(object)?;
            }
        }
        Ok(())
    }

    /// The plain object that holds an entry's content, if it is one.
    ///
    /// # Errors
    /// An object that the manifest's `objects` do not account for.
    pub fn object(&self, entry: &Entry) -> anyhow::Result<Option<PlainObject>> {
        let Some((at, record)) = self.record(entry)? else { return Ok(None) };
        Ok(Some(PlainObject {
            name: self.folders.object(at.backup.as_deref(), &at.object)?,
            at: at.clone(),
            stored: StoredSum::of(entry, at)?,
            encryption: record.encryption.clone(),
        }))
    }

    /// Where an entry's content lies, and the record that accounts for it, if that is a plain file.
    ///
    /// # Errors
    /// As [`PlainFiles::object`].
    pub fn record<'a>(
        &'a self,
        entry: &'a Entry,
    ) -> Result<Option<(&'a At, &'a PlainRecord)>, FormatError> {
        let Some(at) = entry.at.as_ref().filter(|at| entry.is_file() && at.offset.is_none()) else {
            return Ok(None);
        };
        if self.is_named(at) {
            return Ok(None);
        }
        self.covering(at).map(|record| Some((at, record))).ok_or_else(|| {
            let object = escape(at.object.as_bytes());
            let message = format!("'{}' lies in '{object}', which 'objects' lacks", entry.path);
            FormatError::Malformed(message)
        })
    }

    /// The record that accounts for a place, if a plain file lies there: also that of a hard link,
    /// which repeats the place of its first path.
    pub fn at(&self, at: &At) -> Option<&PlainRecord> {
        self.covering(at).filter(|_| at.offset.is_none() && !self.is_named(at))
    }

    /// All the records.
    pub fn records(&self) -> impl Iterator<Item = &PlainRecord> {
        self.records.values()
    }

    fn is_named(&self, at: &At) -> bool {
        self.named.contains(&(at.backup.clone(), at.object.clone()))
    }

    fn covering(&self, at: &At) -> Option<&PlainRecord> {
        let component = component(&at.object)?;
        self.records.get(&(at.backup.clone(), component.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::path::RelPath;

    fn entry(path: &str) -> Entry {
        let mut entry = Entry::new(RelPath::new(path).unwrap());
        entry.component = path.split('/').next().map(str::to_owned);
        entry
    }

    #[test]
    fn keys_are_names_unless_something_else_has_them() {
        for path in ["minio/a/b c.jpg", "minio/ünïcödé", "minio/-rf", "minio/a.age"] {
            assert_eq!(name(&entry(path), None).as_deref(), Some(path));
            assert_eq!(name(&entry(path), Some("age")), Some(format!("{path}.age")));
        }
        for path in [
            "minio/manifest.json",
            "minio/a/manifest.yaml",
            "minio/app.manifest.json",
            "minio/manifests/backup-manifest-1.json",
            "minio/.bk-destination",
            "minio/.bk/marks/x",
            "minio/a\\b",
            "minio/a\nb",
            "minio/ a",
            "minio/a /b",
            "files/000001.tar.zst",
            "manifest.json/a",
            "again/a",
        ] {
            assert_eq!(name(&entry(path), None), None, "{path}");
        }
        assert_eq!(name(&entry(&format!("minio/{}", "x".repeat(201))), None), None);
        assert_eq!(name(&entry(&format!("minio{}", "/xxxxxxxxx".repeat(70))), None), None);
    }

    #[test]
    fn encrypted_files_and_folders_do_not_meet() {
        assert!(name(&entry("minio/a.age/b"), None).is_some());
        assert_eq!(name(&entry("minio/a.age/b"), Some("age")), None);
        assert!(name(&entry("minio/a.age/b"), Some("gpg")).is_some());
    }
}
