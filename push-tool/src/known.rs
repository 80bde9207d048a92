//! Content that is already at the destination, by its digest: what a backup need not store again.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry, Kind};
use bk_manifest::lookup::Lookup;
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::spool::Spool;
use bk_manifest::stream::Reader;

use crate::destination::Destination;
use crate::place;
use crate::plain::{self, Listed, StoredSum};

/// Objects at the destination that entries may refer to: there with the right size, and not marked.
///
/// By backup and object name. Presence comes from one listing per folder, never from a request per
/// file.
#[derive(Default)]
pub struct Usable {
    objects: BTreeMap<String, BTreeMap<String, ObjectRecord>>,
    /// The plain files of backups, by component.
    plain: BTreeMap<(String, String), PlainSet>,
    listed: Listed,
}

/// The plain files that one backup holds of a component.
struct PlainSet {
    /// The folder of the backup.
    folder: String,
    encryption: Option<String>,
}

impl Usable {
    /// Adds an object of an earlier backup.
    pub fn add(&mut self, backup: &str, record: ObjectRecord) {
        self.objects.entry(backup.to_owned()).or_default().insert(record.object.clone(), record);
    }

    /// The object's record, if entries may refer to it.
    pub fn get(&self, backup: &str, object: &str) -> Option<&ObjectRecord> {
        self.objects.get(backup)?.get(object)
    }

    /// Adds the plain files of a component that are there in the folder of an earlier backup.
    ///
    /// # Errors
    /// Those of the destination and of the temporary files.
    pub fn add_plain(
        &mut self,
        destination: &dyn Destination,
        backup: &str,
        folder: &str,
        (component, encryption): (String, Option<String>),
    ) -> anyhow::Result<()> {
        let key = (backup.to_owned(), component);
        if !self.plain.contains_key(&key) {
            self.listed.add(destination, &place::object(folder, &key.1)?)?;
            self.plain.insert(key, PlainSet { folder: folder.to_owned(), encryption });
        }
        Ok(())
    }

    /// Whether a plain file of an earlier backup is there as its entry says, encrypted in a way that is
    /// `due`.
    ///
    /// # Errors
    /// A malformed entry; those of the temporary files.
    pub fn holds_plain(
        &self,
        backup: &str,
        at: &At,
        entry: &Entry,
        due: impl Fn(&Option<String>) -> bool,
    ) -> anyhow::Result<bool> {
        if at.offset.is_some() {
            return Ok(false);
        }
        let Some(component) = plain::component(&at.object) else { return Ok(false) };
        let key = (backup.to_owned(), component.to_owned());
        let Some(set) = self.plain.get(&key).filter(|set| due(&set.encryption)) else {
            return Ok(false);
        };
        let size = self.listed.size(&place::object(&set.folder, &at.object)?)?;
        Ok(size == Some(StoredSum::of(entry, at)?.size))
    }

    /// How the plain files of a component are encrypted in an earlier backup.
    pub fn plain_encryption(&self, backup: &str, component: &str) -> Option<&str> {
        self.plain.get(&(backup.to_owned(), component.to_owned()))?.encryption.as_deref()
    }

    /// Takes an object out: it is marked or gone. `name` is the one at the destination.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn remove(&mut self, backup: &str, object: &str, name: &str) -> anyhow::Result<()> {
        match self.objects.get_mut(backup).and_then(|objects| objects.remove(object)) {
            Some(_) => Ok(()),
            None => self.listed.remove(name),
        }
    }
}

/// A map from digests to where their content lies.
pub struct KnownContent {
    lookup: Lookup,
    entries: Spool,
    large_sizes: HashSet<u64>,
    large: u64,
    /// A parent's manifest that has not been read yet: a run without new files need not.
    parent: Option<PathBuf>,
}

impl KnownContent {
    /// Knows nothing yet. Files of at least `large` bytes have their sizes kept apart.
    ///
    /// What `parent`'s manifest lists is read in when it is first asked for.
    ///
    /// # Errors
    /// If no temporary file can be made.
    pub fn new(large: u64, parent: Option<PathBuf>) -> anyhow::Result<Self> {
        Ok(KnownContent {
            lookup: Lookup::default(),
            entries: Spool::new()?,
            large_sizes: HashSet::new(),
            large,
            parent,
        })
    }

    fn read_parent(&mut self) -> anyhow::Result<()> {
        match self.parent.take() {
            None => Ok(()),
            Some(parent) => self
                .read_manifest(&parent)
                .with_context(|| format!("the parent's manifest '{}'", parent.display())),
        }
    }

    fn read_manifest(&mut self, path: &Path) -> anyhow::Result<()> {
        let mut reader = Reader::new(File::open(path)?)?;
        let id = reader.header().the_backup()?.id;
        while let Some(mut entry) = reader.next_entry()? {
            bk_manifest::signal::check()?;
            if let Some(at) = entry.at.as_mut().filter(|_| matches!(entry.kind, Kind::File)) {
                at.backup.get_or_insert_with(|| id.clone());
                self.add(&entry)?;
            }
        }
        reader.end()?;
        Ok(())
    }

    /// Remembers where an entry's content lies.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub fn add(&mut self, entry: &Entry) -> anyhow::Result<()> {
        if let (Some(checksum), Some(_)) = (&entry.checksum, &entry.at) {
            let place = self.entries.push(entry)?;
            self.lookup.insert(checksum.key(), place)?;
            if let Some(size) = entry.size.filter(|size| *size >= self.large) {
                self.large_sizes.insert(size);
            }
        }
        Ok(())
    }

    /// Whether a large file of this size may be known; if not, it need not be hashed first.
    ///
    /// # Errors
    /// Those of the parent's manifest and the temporary files.
    pub fn may_know_size(&mut self, size: u64) -> anyhow::Result<bool> {
        self.read_parent()?;
        Ok(self.large_sizes.contains(&size))
    }

    /// The entry that was added last with content of this digest.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn find(&mut self, digest: &Digest, size: u64) -> anyhow::Result<Option<Entry>> {
        self.read_parent()?;
        let Some(place) = self.lookup.get(digest.key())? else { return Ok(None) };
        let known = self.entries.at(place)?;
        let is_it = known.checksum.as_ref() == Some(digest) && known.size == Some(size);
        Ok(Some(known).filter(|_| is_it))
    }
}

/// The `at` of an entry that refers to the content of another: with the name that it has in the tar.
pub fn refer(at: &At, known: &Entry, entry: &Entry) -> At {
    let mut at = at.clone();
    if at.offset.is_some() {
        let member = at.member.take().unwrap_or_else(|| known.path.as_bytes().to_vec());
        at.member = Some(member).filter(|member| member != entry.path.as_bytes());
    }
    at
}
