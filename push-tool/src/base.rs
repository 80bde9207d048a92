//! What a push builds on: the parent's objects, and what pushes stored that died before their commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure, classify};
use bk_manifest::manifest::{Run, Trailer};
use bk_manifest::progress::Progress;

use crate::catalog::{Folders, NeededObject, needed_objects};
use crate::destination::{Destination, ObjectInfo};
use crate::encrypt::Choice;
use crate::known::{KnownContent, Usable};
use crate::locate::{Located, locate};
use crate::mark::{self, PlacedMark};
use crate::partial::{Begun, Closed, ClosedPlain};
use crate::store::Store;
use crate::upload::ClosedPiece;
use crate::{outer, partial, place};

/// What earlier backups and dead pushes left that this one may refer to.
#[derive(Default)]
pub struct Base {
    /// Objects that entries may refer to.
    pub usable: Usable,
    /// The folder of each backup that may be referred to.
    pub folders: BTreeMap<String, String>,
    /// Whether the parent was found.
    pub has_parent: bool,
}

/// Refuses to go on in clear what was encrypted until now: the variable that named the recipients may be
/// missing, as those of a shell are under cron.
fn refuse_to_stop_encrypting(parent: &Trailer, encryption: &Choice) -> anyhow::Result<()> {
    let components = parent.components()?;
    let stops = components.iter().find(|known| {
        known.extra.contains_key("encryption") && encryption.of(&known.name).is_none()
    });
    let Some(component) = stops else { return Ok(()) };
    let message =
        format!("'{}' was encrypted until now, and no recipient is named for it", component.name);
    Err(Failure::new(Exit::Usage, message)
        .hint("name them as before: --encrypt, BACKUP_ENCRYPT, BACKUP_ENCRYPT_RECIPIENTS_FILE")
        .hint("or, to go on in clear, store everything again: --full")
        .into())
}

impl Base {
    /// Finds the parent at the destination and what it needs; returns the file with its entries.
    ///
    /// # Errors
    /// Those of the destination and of the file; [`Exit::Usage`] if what the parent has encrypted would
    /// go on in clear.
    pub fn add_parent(
        &mut self,
        store: &Store,
        run: &Run,
        encryption: &Choice,
        progress: &dyn Progress,
    ) -> anyhow::Result<Option<PathBuf>> {
        let destination = &*store.destination;
        let Some(parent) = &run.parent else { return Ok(None) };
        let path = PathBuf::from(&parent.file);
        let file = File::open(&path)
            .with_context(|| format!("cannot open the parent's manifest '{}'", path.display()))?;
        let context = || format!("the parent's manifest '{}'", path.display());
        let (given, end) = bk_manifest::outer::read_file(&file).with_context(context)?;
        let id = given.the_backup()?.id;
        let total = end.total_checksum().with_context(context)?;
        let Some(manifest) = find_parent(store, &id, total, &given.run()?)? else {
            progress.warn(&format!(
                "the parent '{id}' is not at this destination: everything is stored again"
            ));
            return Ok(None);
        };
        let folder = place::parent(&manifest.name).to_owned();
        let (header, trailer) = outer::read(destination, &manifest)?;
        refuse_to_stop_encrypting(&trailer, encryption)?;
        self.folders.insert(id.clone(), folder.clone());
        for (backup, folder) in Folders::new(&header, &folder)?.chain() {
            self.folders.insert(backup.to_owned(), folder.to_owned());
        }
        let needed = needed_objects(&header, &trailer, &folder)?;
        for object in present(destination, &needed)? {
            let backup = object.record.backup.clone().unwrap_or_else(|| id.clone());
            self.usable.add(&backup, object.record);
        }
        for record in trailer.plain()? {
            let backup = record.backup.as_deref().unwrap_or(&id);
            let folder = self.folders.get(backup).context("a backup that 'chain' lacks")?;
            let set = (record.component, record.encryption);
            self.usable.add_plain(destination, backup, folder, set)?;
        }
        self.has_parent = true;
        Ok(Some(path))
    }

    /// Takes over what pushes of this series stored before they died.
    ///
    /// Nobody else pushes while we hold the lock; where there is none, an object that vanishes under
    /// us is found out before the commit.
    ///
    /// # Errors
    /// Those of the destination.
    pub fn add_dead_pushes(
        &mut self,
        destination: &dyn Destination,
        series: &str,
        known: &mut KnownContent,
        progress: &dyn Progress,
    ) -> anyhow::Result<()> {
        for list in partial::read_all(destination)? {
            let Some(begun) = list.begun.as_ref().filter(|begun| begun.series == series) else {
                continue;
            };
            for piece in list.closed() {
                if let Err(error) = self.add_closed(destination, piece, &list.id, begun, known) {
                    progress.warn(&format!("cannot build on '{piece}': {error:#}"));
                }
            }
        }
        Ok(())
    }

    /// Takes over an object that a dead push had closed, if it is there.
    fn add_closed(
        &mut self,
        destination: &dyn Destination,
        piece: &str,
        id: &str,
        begun: &Begun,
        known: &mut KnownContent,
    ) -> anyhow::Result<()> {
        let mut piece = ClosedPiece::open(destination, piece)?;
        match piece.closed.clone() {
            Closed::Object(closed) => {
                let name = place::object(&begun.folder, &closed.object)?;
                if destination.stat(&name)?.is_none_or(|object| object.size != closed.size) {
                    return Ok(());
                }
                self.usable.add(id, closed.record());
            }
            Closed::Plain(ClosedPlain { component, encryption }) => {
                let set = (component, encryption);
                self.usable.add_plain(destination, id, &begun.folder, set)?;
            }
        }
        self.folders.insert(id.to_owned(), begun.folder.clone());
        while let Some(mut entry) = piece.next_entry()? {
            if let Some(at) = &mut entry.at {
                at.backup = Some(id.to_owned());
            }
            known.add(&entry)?;
        }
        Ok(())
    }

    /// Takes out what prune has marked.
    ///
    /// # Errors
    /// Those of the destination; a mark that is malformed.
    pub fn drop_marked(&mut self, destination: &dyn Destination) -> anyhow::Result<()> {
        let marks = mark::read_all(destination)?;
        for name in marks.iter().flat_map(PlacedMark::names) {
            bk_manifest::signal::check()?;
            let name = name?;
            for (backup, folder) in &self.folders {
                let below = name.strip_prefix(folder.as_str());
                if let Some(object) = below.and_then(|rest| rest.strip_prefix('/')) {
                    self.usable.remove(backup, object, &name)?;
                }
            }
        }
        Ok(())
    }
}

/// The parent's stored manifest, if the very same one is at this destination.
///
/// One with the same id is not enough: a manifest that was pushed to two destinations has its files
/// at other places in the volumes of each.
fn find_parent(
    store: &Store,
    id: &str,
    total: Digest,
    given: &Run,
) -> anyhow::Result<Option<ObjectInfo>> {
    match locate(store, given, id, total) {
        Ok(Located::Same(manifest)) => Ok(Some(manifest)),
        Ok(Located::Other(_) | Located::Unreadable(..)) => Ok(None),
        Err(error) if classify(&error) == Exit::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Those objects that are there with the right size, by one listing for each folder.
///
/// # Errors
/// Those of the destination.
pub fn present(
    destination: &dyn Destination,
    needed: &[NeededObject],
) -> anyhow::Result<Vec<NeededObject>> {
    let sizes = sizes(destination, needed)?;
    Ok(needed
        .iter()
        .filter(|object| sizes.get(object.name.as_str()) == Some(&Some(object.record.size)))
        .cloned()
        .collect())
}

/// The size of each object that is there, `None` for one that is not, by one listing for each folder.
///
/// # Errors
/// Those of the destination.
pub fn sizes<'a>(
    destination: &dyn Destination,
    needed: &'a [NeededObject],
) -> anyhow::Result<BTreeMap<&'a str, Option<u64>>> {
    let mut sizes: BTreeMap<&str, Option<u64>> =
        needed.iter().map(|object| (object.name.as_str(), None)).collect();
    let folders: BTreeSet<String> = needed
        .iter()
        .map(|object| {
            let depth = object.record.object.matches('/').count();
            (0..=depth).fold(object.name.as_str(), |name, _| place::parent(name)).to_owned()
        })
        .collect();
    for folder in &folders {
        for object in destination.list(folder)? {
            bk_manifest::signal::check()?;
            let object = object?;
            if let Some(size) = sizes.get_mut(object.name.as_str()) {
                *size = Some(object.size);
            }
        }
    }
    Ok(sizes)
}
