//! Plain files of a copy: too many to hold in memory, and each small, so they go in batches.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry};
use bk_manifest::lookup::Lookup;
use bk_manifest::manifest::Header;
use bk_manifest::path::escape;
use bk_manifest::spool::{Entries, Spool};
use bk_manifest::stream::{Error as FormatError, Reader};

use super::Copy;
use super::look::Marks;
use super::transfer::{Transfer, WORKERS};
use crate::catalog::{BackupInfo, NeededObject, reread};
use crate::destination::Destination;
use crate::names;
use crate::partial::{Closed, ClosedPlain};
use crate::plain::{PlainFiles, PlainObject, StoredSum};
use crate::upload::{ClosedPiece, PartialWriter};
use crate::{parallel, place};

/// Files of a batch, and the bytes of their names: these go into one small piece of the partial list.
const BATCH_FILES: usize = 1000;
const BATCH_NAMES: usize = 1 << 18;

/// Entries whose plain files are in the same state, each file once.
pub(super) struct Found {
    entries: Spool,
    /// How many files, and how many of them belong to an earlier backup.
    count: u64,
    elsewhere: u64,
    bytes: u64,
}

/// Those that are closed for reading.
pub(super) struct FoundFiles {
    pub(super) entries: Entries,
    pub(super) count: u64,
    pub(super) elsewhere: u64,
    pub(super) bytes: u64,
}

impl Found {
    fn new() -> anyhow::Result<Self> {
        Ok(Found { entries: Spool::new()?, count: 0, elsewhere: 0, bytes: 0 })
    }

    fn add(&mut self, entry: &Entry, object: &PlainObject) -> anyhow::Result<()> {
        self.entries.push(entry)?;
        self.count += 1;
        self.elsewhere += u64::from(object.at.backup.is_some());
        self.bytes = self.bytes.saturating_add(object.stored.size);
        Ok(())
    }

    fn finish(self) -> anyhow::Result<FoundFiles> {
        let Found { entries, count, elsewhere, bytes } = self;
        Ok(FoundFiles { entries: entries.finish()?, count, elsewhere, bytes })
    }
}

/// The plain files that a copy needs.
pub(super) struct Plain<'a> {
    files: PlainFiles,
    entries: &'a Entries,
}

impl<'a> Plain<'a> {
    pub(super) fn new(files: PlainFiles, entries: &'a Entries) -> Self {
        Plain { files, entries }
    }

    pub(super) fn files(&self) -> &PlainFiles {
        &self.files
    }

    /// Hands out each plain file once, with an entry that refers to it.
    ///
    /// What a manifest says must not become a mark, a marker or a manifest of ours.
    fn each(
        &self,
        needed: &[NeededObject],
        found: &mut dyn FnMut(&Entry, PlainObject) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let named: BTreeSet<&str> = needed.iter().map(|object| object.name.as_str()).collect();
        let mut seen = Lookup::default();
        for entry in self.entries.iter() {
            bk_manifest::signal::check()?;
            let entry = entry?;
            let Some(object) = self.files.object(&entry)? else { continue };
            let (key, sum) = (names::key(&object.name), short(object.stored.checksum));
            let before = seen.get(key)?;
            let is_double = before.is_some_and(|before| before != sum);
            if is_double
                || named.contains(object.name.as_str())
                || !place::may_be_object(&object.name)
            {
                let name = escape(object.name.as_bytes());
                let message = format!("'{name}' cannot be the object of '{}'", entry.path);
                return Err(FormatError::Malformed(message).into());
            }
            if before.is_none() {
                seen.insert(key, sum)?;
                found(&entry, object)?;
            }
        }
        Ok(())
    }

    /// The object of an entry that was handed out.
    fn object(&self, entry: &Entry) -> anyhow::Result<PlainObject> {
        self.files
            .object(entry)?
            .ok_or_else(|| anyhow::anyhow!("'{}' is no plain file", entry.path))
    }
}

/// Enough of a checksum to tell whether somebody vouches for the same.
fn short(checksum: Digest) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "half of the key is what is wanted")]
    let short = checksum.key() as u64;
    short | OPEN
}

/// The bit of a remembered checksum that says that nobody has vouched for it yet.
const OPEN: u64 = 1;

impl Copy<'_> {
    /// Looks which plain files are there; whether young marks name any goes to `marks`.
    pub(super) fn look_at_plain(
        &self,
        marks: &mut Marks,
    ) -> anyhow::Result<(FoundFiles, FoundFiles)> {
        let listed = self.plain.files.list(self.destination())?;
        let (mut present, mut missing) = (Found::new()?, Found::new()?);
        self.plain.each(self.needed, &mut |entry, object| {
            marks.look_at(&object.name)?;
            match listed.size(&object.name)? {
                None => missing.add(entry, &object),
                Some(size) if size == object.stored.size => present.add(entry, &object),
                Some(size) => {
                    let why = format!("has {size} bytes instead of {}", object.stored.size);
                    Err(self.taken(&object.name, &why))
                }
            }
        })?;
        Ok((present.finish()?, missing.finish()?))
    }

    /// Refuses a source that lacks plain files which are to be copied.
    pub(super) fn check_plain_source(&self, missing: &FoundFiles) -> anyhow::Result<()> {
        if missing.count == 0 {
            return Ok(());
        }
        let listed = self.plain.files.list(self.from)?;
        for entry in missing.entries.iter() {
            bk_manifest::signal::check()?;
            let object = self.plain.object(&entry?)?;
            self.check_size(&object.name, object.stored.size, listed.size(&object.name)?)?;
        }
        Ok(())
    }

    /// Copies plain files batch by batch, those of one batch several at once.
    pub(super) fn store_plain(
        &self,
        missing: &FoundFiles,
        list: &Mutex<PartialWriter<'_>>,
    ) -> anyhow::Result<()> {
        let mut batch: Vec<(ClosedPlain, Entry, PlainObject)> = Vec::new();
        let mut names = 0;
        for entry in missing.entries.iter() {
            let entry = entry?;
            let object = self.plain.object(&entry)?;
            let closed = ClosedPlain {
                component: crate::plain::component(&object.at.object)
                    .unwrap_or_default()
                    .to_owned(),
                encryption: object.encryption.clone(),
            };
            let is_full = batch.len() == BATCH_FILES || names > BATCH_NAMES;
            if is_full || batch.last().is_some_and(|(last, ..)| *last != closed) {
                self.store_batch(std::mem::take(&mut batch), list)?;
                names = 0;
            }
            names += object.name.len();
            batch.push((closed, entry, object));
        }
        self.store_batch(batch, list)
    }

    fn store_batch(
        &self,
        batch: Vec<(ClosedPlain, Entry, PlainObject)>,
        list: &Mutex<PartialWriter<'_>>,
    ) -> anyhow::Result<()> {
        let Some((closed, ..)) = batch.first() else { return Ok(()) };
        let closed = Closed::Plain(closed.clone());
        let lock = || list.lock().unwrap_or_else(PoisonError::into_inner);
        lock().name(batch.iter().map(|(.., object)| object.name.clone()).collect())?;
        let at_once = self.destination().at_once().max(WORKERS);
        parallel::map(at_once, batch.iter().collect(), |(.., object)| {
            let PlainObject { name, stored, .. } = object;
            self.bring(Transfer { name, checksum: stored.checksum, size: stored.size }, list)
        })
        .into_iter()
        .collect::<anyhow::Result<()>>()?;
        let mut entries = Spool::new()?;
        for (_, mut entry, object) in batch {
            // The list's names begin at the root.
            entry.at = Some(At { backup: None, object: object.name, ..object.at });
            entries.push(&entry)?;
        }
        lock().closed(&closed, entries)
    }

    /// Makes sure that the plain files which are there are the right ones: something there says so,
    /// or they are read.
    pub(super) fn vouch_for_plain(
        &self,
        backups: &[BackupInfo],
        present: &FoundFiles,
    ) -> anyhow::Result<()> {
        let destination = self.destination();
        let mut open = Open { sums: Lookup::default(), count: present.count };
        for entry in present.entries.iter() {
            let object = self.plain.object(&entry?)?;
            open.sums.insert(names::key(&object.name), short(object.stored.checksum))?;
        }
        for (begun, piece) in self.closed_pieces(present.count > 0)? {
            // One that is cut or gone vouches for nothing.
            let Ok(mut piece) = ClosedPiece::open(destination, &piece) else { continue };
            let Closed::Plain(_) = piece.closed else { continue };
            while let Ok(Some(entry)) = piece.next_entry() {
                let Some(at) = &entry.at else { continue };
                if let Ok(sum) = StoredSum::of(&entry, at) {
                    open.vouch(&place::join(&begun.folder, &at.object), sum.checksum)?;
                }
            }
        }
        let folders = self.plain.files.folders().collect::<anyhow::Result<BTreeSet<_>>>()?;
        for backup in backups.iter().rev() {
            bk_manifest::signal::check()?;
            if open.count == 0 {
                return Ok(());
            }
            // One that is malformed vouches for nothing either.
            let Ok((header, trailer)) = reread(destination, backup) else { continue };
            let Ok(files) = PlainFiles::new(&header, &trailer, backup.folder()) else { continue };
            if files.folders().filter_map(Result::ok).any(|folder| folders.contains(&folder)) {
                open.vouch_all(destination, backup, &files, &header)?;
            }
        }
        for entry in present.entries.iter() {
            let object = self.plain.object(&entry?)?;
            if open.is_open(&object.name)? {
                self.compare(&object.name, object.stored.checksum)?;
            }
        }
        Ok(())
    }
}

/// What is there that nobody has vouched for yet.
struct Open {
    sums: Lookup,
    count: u64,
}

impl Open {
    fn vouch(&mut self, name: &str, checksum: Digest) -> anyhow::Result<()> {
        let key = names::key(name);
        let sum = short(checksum);
        if self.count > 0 && self.sums.get(key)? == Some(sum) {
            self.sums.insert(key, sum & !OPEN)?;
            self.count -= 1;
        }
        Ok(())
    }

    fn is_open(&self, name: &str) -> anyhow::Result<bool> {
        Ok(self.sums.get(names::key(name))?.is_some_and(|sum| sum & OPEN != 0))
    }

    /// Vouches for what a manifest there needs, as far as that can be read.
    fn vouch_all(
        &mut self,
        destination: &dyn Destination,
        backup: &BackupInfo,
        files: &PlainFiles,
        header: &Header,
    ) -> anyhow::Result<()> {
        let Ok(document) = destination.read(&backup.manifest.name, None) else { return Ok(()) };
        let Ok(mut reader) = Reader::new(document) else { return Ok(()) };
        if reader.header() != header {
            return Ok(());
        }
        while let Ok(Some(entry)) = reader.next_entry() {
            bk_manifest::signal::check()?;
            if let Ok(Some(object)) = files.object(&entry) {
                self.vouch(&object.name, object.stored.checksum)?;
            }
        }
        Ok(())
    }
}
