//! Copies a backup to another destination as it is stored, with what it needs of its chain.
//!
//! Everything keeps its name, so that one manifest serves at both. Keys are not needed: the bytes are
//! those that are stored. An object is copied once: what is there already with its size and is vouched
//! for by a manifest or a partial list there is taken as it is, anything else is read and compared.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::manifest::{EndRun, ObjectRecord, Pushed};
use bk_manifest::path::escape;
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::spool::Document;
use bk_manifest::stream::Error as FormatError;
use bk_manifest::time::Time;

use crate::catalog::{Catalog, NeededObject, needed_objects};
use crate::commit::Needs;
use crate::destination::{Destination, ObjectInfo};
use crate::locate::{Located, locate};
use crate::partial::Begun;
use crate::plain::PlainFiles;
use crate::store::Store;
use crate::upload::PartialWriter;
use crate::{place, secrets};

mod look;
mod plain;
mod transfer;

use plain::Plain;

/// How often what vanished meanwhile is copied again before the copy gives up.
const PASSES: usize = 4;

/// Copies the backup that the document describes, and notes in it where it lies now.
///
/// # Errors
/// [`Exit::Usage`] if both are one destination, or for secrets in clear where those are refused, [`Exit::Damaged`] for what is not at the source as
/// recorded, [`Exit::Busy`] where a prune is at work on what is needed, [`Exit::Failed`] for a name
/// that is taken by other content. No backup exists at the destination then that was not there.
pub fn copy(
    document: &mut Document,
    from: &Store,
    to: &Store,
    refuses_plain_secrets: bool,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    if from.marker.id == to.marker.id {
        return Err(Failure::new(Exit::Usage, "source and destination are the same destination")
            .hint("or one is a copy of the other, made by other means, with its marker")
            .into());
    }
    let Some(backup) = document.header.backup()? else {
        return Err(fail(Exit::NotFound, "the manifest describes no backup: nothing to copy"));
    };
    if refuses_plain_secrets {
        secrets::check_stored(&document.trailer.components()?)?;
    }
    let total = document.trailer.total_checksum().context("the manifest has no sum")?;
    let series = document.header.series()?;
    let manifest = find_source(document, from, &backup.id, total)?;
    let destination = &*to.destination;
    let holder = format!("bk-push copy of {}, since {}", backup.id, Time::now());
    let _lock = destination.lock(&series, &holder)?;
    let catalog = Catalog::read(destination)?;
    let there = find(&catalog, destination, &backup.id, total, &manifest.name)?;
    if let Some(elsewhere) = there.as_ref().filter(|name| **name != manifest.name) {
        progress.note(&format!("{} is at '{elsewhere}' already", backup.id));
        return note(
            document,
            to,
            elsewhere.clone(),
            Pushed { id: backup.id, ..Pushed::default() },
        );
    }
    let needed = needed(document, &manifest)?;
    let files =
        PlainFiles::new(&document.header, &document.trailer, place::parent(&manifest.name))?;
    let plain = Plain::new(files, &document.entries);
    let copy = Copy { from: &*from.destination, to, needed: &needed, plain: &plain, progress };
    let mut look = copy.look()?;
    copy.vouch(&catalog, &look)?;
    let mut pushed = Pushed { id: backup.id.clone(), ..Pushed::default() };
    pushed.inherited = look.present_bytes();
    if there.is_some() && look.is_all_there() {
        progress.note(&format!("{} is there already", backup.id));
        return note(document, to, manifest.name, pushed);
    }
    // Its objects lie in several folders, so they are named from the root.
    let begun = Begun {
        id: format!("{}.copy", backup.id),
        series: series.clone(),
        folder: String::new(),
        host: backup.host.unwrap_or_default(),
    };
    let list = Mutex::new(PartialWriter::resume(destination, &begun, to.grace())?);
    progress.begin("copying", Some(look.missing_bytes()));
    let mut passes = 0..PASSES;
    while !look.is_all_there() {
        if passes.next().is_none() {
            let message = "objects vanish at the destination as fast as they are stored";
            return Err(fail(Exit::Failed, message));
        }
        copy.check_source(&look.missing)?;
        copy.check_plain_source(&look.plain_missing)?;
        copy.store_all(&look.missing, &list)?;
        copy.store_plain(&look.plain_missing, &list)?;
        let elsewhere = look.missing.iter().filter(|object| object.record.backup.is_some()).count();
        pushed.elsewhere += elsewhere as u64 + look.plain_missing.elsewhere;
        pushed.objects += look.missing.len() as u64 + look.plain_missing.count;
        pushed.stored = pushed.stored.saturating_add(look.missing_bytes());
        look = copy.look()?;
    }
    progress.end();
    pushed.read = pushed.stored;
    let mut list = list.into_inner().unwrap_or_else(PoisonError::into_inner);
    if there.is_none() {
        copy.put_side_files(document, &manifest.name, &mut list)?;
        copy.put_manifest(&manifest, total)?;
        let (objects, entries) = (needed.clone(), &document.entries);
        let needs = Needs { objects, plain: plain.files(), entries };
        needs.confirm(to, &manifest.name, look.began, look.is_marked)?;
    }
    for error in list.remove() {
        progress.warn(&format!("{:#}", anyhow::Error::from(error)));
    }
    progress.note(&format!("copied {} ({})", backup.id, human_bytes(pushed.stored)));
    note(document, to, manifest.name, pushed)
}

/// Notes where the backup lies now. What was proved elsewhere proves nothing here.
fn note(
    document: &mut Document,
    to: &Store,
    place: String,
    pushed: Pushed,
) -> anyhow::Result<Exit> {
    let mut run = document.header.run()?;
    run.place = Some(place);
    run.destination = Some(to.marker.id.clone());
    document.header.set_run(&run);
    let end = document.trailer.run()?;
    let end = EndRun { pushed: Some(pushed), proofs: Vec::new(), ..end };
    document.trailer.set_run(&end);
    Ok(document.trailer.worsen(Exit::Done)?)
}

/// The stored manifest that the document came from.
fn find_source(
    document: &Document,
    from: &Store,
    id: &str,
    total: Digest,
) -> anyhow::Result<ObjectInfo> {
    match locate(from, &document.header.run()?, id, total)? {
        Located::Same(manifest) => Ok(manifest),
        Located::Other(manifest) => {
            let message = format!("'{}' is another manifest than the one given", manifest.name);
            Err(fail(Exit::Damaged, message))
        }
        Located::Unreadable(manifest, error) => {
            Err(fail(Exit::Damaged, format!("'{}' is damaged: {error:#}", manifest.name)))
        }
    }
}

/// Where the backup's manifest lies at the destination, if it is there already.
fn find(
    catalog: &Catalog,
    destination: &dyn Destination,
    id: &str,
    total: Digest,
    name: &str,
) -> anyhow::Result<Option<String>> {
    let total = total.to_string();
    let mut with_id = catalog.backups.iter().filter(|backup| backup.id == id).peekable();
    if let Some(other) = with_id.peek().map(|backup| backup.manifest.name.clone()) {
        // A copy in the very place comes first: what it lacks can be copied again.
        let same: Vec<&str> = with_id
            .filter(|backup| backup.total_checksum == total)
            .map(|backup| backup.manifest.name.as_str())
            .collect();
        let same = same.iter().find(|same| **same == name).or(same.first());
        if let Some(same) = same {
            return Ok(Some((*same).to_owned()));
        }
        let message =
            format!("another backup '{id}' is at '{}': '{other}'", destination.describe());
        return Err(Failure::new(Exit::Failed, message)
            .hint("a manifest that is pushed twice becomes two backups")
            .into());
    }
    if destination.stat(name)?.is_some() {
        let reason = catalog.unreadable.iter().find(|(object, _)| object.name == name);
        let reason = reason.map(|(_, error)| format!(", which cannot be read: {error:#}"));
        let message = format!(
            "'{}' is taken at '{}' by another manifest{}",
            escape(name.as_bytes()),
            destination.describe(),
            reason.unwrap_or_default()
        );
        return Err(fail(Exit::Failed, message));
    }
    Ok(None)
}

/// All objects that the backup needs, each once.
fn needed(document: &Document, manifest: &ObjectInfo) -> anyhow::Result<Vec<NeededObject>> {
    let folder = place::parent(&manifest.name);
    let mut needed: BTreeMap<String, ObjectRecord> = BTreeMap::new();
    for object in needed_objects(&document.header, &document.trailer, folder)? {
        let record = object.record;
        // What a manifest says must not become a mark, a marker or a manifest of ours.
        let is_double = needed
            .get(&object.name)
            .is_some_and(|other| (other.checksum, other.size) != (record.checksum, record.size));
        if is_double || !place::may_be_object(&object.name) {
            let name = escape(object.name.as_bytes());
            let message = format!("'objects' cannot hold '{name}'");
            return Err(FormatError::Malformed(message).into());
        }
        needed.insert(object.name, record);
    }
    Ok(needed.into_iter().map(|(name, record)| NeededObject { name, record }).collect())
}

/// A copy under way.
struct Copy<'a> {
    from: &'a dyn Destination,
    to: &'a Store,
    needed: &'a [NeededObject],
    plain: &'a Plain<'a>,
    progress: &'a dyn Progress,
}

#[cfg(test)]
mod tests;
