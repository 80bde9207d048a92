//! What is at the destination of what a copy needs, and whether it is the right content.

use std::collections::BTreeMap;

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::path::escape;
use bk_manifest::time::Time;

use super::Copy;
use crate::base::sizes;
use crate::catalog::{Catalog, NeededObject, needed_objects, reread};
use crate::destination::Destination;
use crate::partial::{self, Closed};
use crate::upload::ClosedPiece;
use crate::{mark, place};

/// What is at the destination of what is needed.
pub(super) struct Look {
    /// When the look began, by the store's clock.
    pub(super) began: Time,
    pub(super) present: Vec<NeededObject>,
    pub(super) missing: Vec<NeededObject>,
    /// Whether marks that are not due yet name any of it.
    pub(super) is_marked: bool,
}

impl Copy<'_> {
    pub(super) fn destination(&self) -> &dyn Destination {
        &*self.to.destination
    }

    /// Looks at the marks, then at what is there.
    ///
    /// A mark that is not due yet does no harm: no prune deletes by it before it has read all
    /// manifests again, this one among them, if that is committed by then.
    pub(super) fn look(&self) -> anyhow::Result<Look> {
        let destination = self.destination();
        let began = destination.now()?;
        let marks = mark::read_all(destination)?;
        let now = destination.now()?;
        let mut is_marked = false;
        for placed in &marks {
            let names = mark::marked_names(std::slice::from_ref(placed));
            let Some(hit) = self.needed.iter().find(|object| names.contains(&*object.name)) else {
                continue;
            };
            if now.since(placed.object.modified) >= self.to.grace() {
                let name = escape(hit.name.as_bytes());
                let message = format!("a prune from {} removes '{name}'", placed.mark.host);
                return Err(Failure::new(Exit::Busy, escape(message.as_bytes()))
                    .hint(
                        "copy again once it has ended; one that died is ended by the next bk-prune",
                    )
                    .into());
            }
            is_marked = true;
        }
        let sizes = sizes(destination, self.needed)?;
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        for object in self.needed {
            match sizes.get(object.name.as_str()).copied().flatten() {
                None => missing.push(object.clone()),
                Some(size) if size == object.record.size => present.push(object.clone()),
                Some(size) => {
                    let why = format!("has {size} bytes instead of {}", object.record.size);
                    return Err(self.taken(&object.name, &why));
                }
            }
        }
        Ok(Look { began, present, missing, is_marked })
    }

    /// Makes sure that what is there is what is needed: something there says so, or it is read.
    pub(super) fn vouch(&self, catalog: &Catalog, look: &Look) -> anyhow::Result<()> {
        let destination = self.destination();
        let mut open: BTreeMap<&str, &ObjectRecord> =
            look.present.iter().map(|object| (object.name.as_str(), &object.record)).collect();
        let vouch = |open: &mut BTreeMap<&str, &ObjectRecord>, name: &str, checksum: Digest| {
            if open.get(name).is_some_and(|record| record.checksum == checksum) {
                open.remove(name);
            }
        };
        if !open.is_empty() {
            for list in partial::read_all(destination)? {
                let Some(begun) = &list.begun else { continue };
                for piece in list.closed() {
                    // One that is cut or gone vouches for nothing.
                    let Ok(piece) = ClosedPiece::open(destination, piece) else { continue };
                    let Closed::Object(closed) = piece.closed else { continue };
                    let name = place::join(&begun.folder, &closed.object);
                    vouch(&mut open, &name, closed.checksum);
                }
            }
            for backup in catalog.backups.iter().rev() {
                bk_manifest::signal::check()?;
                if open.is_empty() {
                    break;
                }
                // One that is malformed vouches for nothing either.
                let Ok((header, trailer)) = reread(destination, backup) else { continue };
                let objects = needed_objects(&header, &trailer, backup.folder());
                for object in objects.unwrap_or_default() {
                    vouch(&mut open, &object.name, object.record.checksum);
                }
            }
        }
        for (name, record) in open {
            self.compare(name, record)?;
        }
        Ok(())
    }

    /// Reads an object at the destination and compares it with its record.
    pub(super) fn compare(&self, name: &str, record: &ObjectRecord) -> anyhow::Result<()> {
        let read = Digest::of_reader(self.destination().read(name, None)?);
        let (checksum, _) = read.with_context(|| format!("cannot read '{name}'"))?;
        if checksum == record.checksum {
            return Ok(());
        }
        Err(self.taken(name, "has another checksum"))
    }

    pub(super) fn taken(&self, name: &str, why: &str) -> anyhow::Error {
        let place = self.destination().describe();
        let name = escape(name.as_bytes());
        Failure::new(Exit::Failed, format!("'{name}' is at '{place}' with other content: it {why}"))
            .hint("nothing is overwritten; what a push left that died is removed by bk-prune")
            .into()
    }
}
