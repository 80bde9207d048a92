//! Finds the stored manifest of a backup, and whether it is the one that came in.

use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::manifest::Run;

use crate::catalog::Catalog;
use crate::destination::{Destination, ObjectInfo};
use crate::store::Store;
use crate::{outer, place};

/// A backup's stored manifest, and what it is like.
#[derive(Debug)]
pub enum Located {
    /// The one that came in.
    Same(ObjectInfo),
    /// Another one with the same id.
    Other(ObjectInfo),
    /// It cannot be read as a manifest.
    Unreadable(ObjectInfo, anyhow::Error),
}

impl Located {
    /// The object that holds it.
    pub fn manifest(&self) -> &ObjectInfo {
        match self {
            Located::Same(manifest)
            | Located::Other(manifest)
            | Located::Unreadable(manifest, _) => manifest,
        }
    }

    /// The folder that holds the backup's own objects.
    pub fn folder(&self) -> &str {
        place::parent(&self.manifest().name)
    }
}

/// Finds the backup `id` whose manifest has this sum.
///
/// The place in `run` saves reading all manifests. It is only a hint: it counts when the manifest
/// there is the one that came in.
///
/// # Errors
/// [`Exit::NotFound`] if the destination has no such backup; those of the destination.
pub fn locate(store: &Store, run: &Run, id: &str, total: Digest) -> anyhow::Result<Located> {
    let destination = &*store.destination;
    let hint = run
        .place
        .as_deref()
        .filter(|_| run.destination.as_deref() == Some(&store.marker.id))
        .filter(|place| place::is_manifest(place) && place::object("", place).is_ok());
    if let Some(hint) = hint
        && let Some(manifest) = destination.stat(hint)?
        && is_it(destination, &manifest, id, total)
    {
        return Ok(Located::Same(manifest));
    }
    let catalog = Catalog::read(destination)?;
    let total = total.to_string();
    let mut with_id = catalog.backups.into_iter().filter(|backup| backup.id == id).peekable();
    if let Some(other) = with_id.peek() {
        let other = other.manifest.clone();
        return Ok(match with_id.find(|backup| backup.total_checksum == total) {
            Some(backup) => Located::Same(backup.manifest),
            None => Located::Other(other),
        });
    }
    let is_named_so =
        |name: &str| Some(name) == hint || place::parent(name).rsplit('/').next() == Some(id);
    let unreadable = catalog.unreadable.into_iter().find(|(object, _)| is_named_so(&object.name));
    let Some((manifest, error)) = unreadable else {
        let message = format!("no backup '{id}' at '{}'", destination.describe());
        return Err(fail(Exit::NotFound, message));
    };
    Ok(Located::Unreadable(manifest, error))
}

/// Whether the object is the manifest of this backup with this sum.
fn is_it(destination: &dyn Destination, object: &ObjectInfo, id: &str, total: Digest) -> bool {
    outer::read(destination, object).is_ok_and(|(header, trailer)| {
        trailer.total_checksum() == Some(total)
            && header.backup().is_ok_and(|backup| backup.is_some_and(|backup| backup.id == id))
    })
}
