//! What is at the destination of what a copy needs, and whether it is the right content.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::path::escape;
use bk_manifest::time::Time;

use super::Copy;
use super::plain::FoundFiles;
use crate::base::sizes;
use crate::catalog::{Catalog, NeededObject, needed_objects, reread};
use crate::destination::Destination;
use crate::mark::{self, Marked, PlacedMark};
use crate::partial::{self, Begun, Closed, PartialList};
use crate::place;
use crate::upload::ClosedPiece;

/// What is at the destination of what is needed.
pub(super) struct Look {
    /// When the look began, by the store's clock.
    pub(super) began: Time,
    pub(super) present: Vec<NeededObject>,
    pub(super) missing: Vec<NeededObject>,
    pub(super) plain_present: FoundFiles,
    pub(super) plain_missing: FoundFiles,
    /// Whether marks that are not due yet name any of it.
    pub(super) is_marked: bool,
}

impl Look {
    pub(super) fn is_all_there(&self) -> bool {
        self.missing.is_empty() && self.plain_missing.count == 0
    }

    pub(super) fn present_bytes(&self) -> u64 {
        bytes(&self.present).saturating_add(self.plain_present.bytes)
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        bytes(&self.missing).saturating_add(self.plain_missing.bytes)
    }
}

fn bytes(objects: &[NeededObject]) -> u64 {
    objects.iter().fold(0, |sum, object| sum.saturating_add(object.record.size))
}

/// The marks at the destination, and whether they name what is needed.
pub(super) struct Marks {
    due: Vec<PlacedMark>,
    of_due: Marked,
    of_young: Marked,
    /// Whether a young one has.
    is_hit: bool,
}

impl Marks {
    fn read(destination: &dyn Destination, grace: Duration) -> anyhow::Result<Self> {
        let marks = mark::read_all(destination)?;
        let now = destination.now()?;
        let (due, young): (Vec<_>, Vec<_>) =
            marks.into_iter().partition(|placed| now.since(placed.object.modified) >= grace);
        let (of_due, of_young) = (Marked::of(&due)?, Marked::of(&young)?);
        Ok(Marks { due, of_due, of_young, is_hit: false })
    }

    /// Looks whether one names an object.
    ///
    /// # Errors
    /// [`Exit::Busy`] for one that is due.
    pub(super) fn look_at(&mut self, name: &str) -> anyhow::Result<()> {
        self.is_hit = self.is_hit || self.of_young.contains(name)?;
        if !self.of_due.contains(name)? {
            return Ok(());
        }
        let names_it = |placed: &&PlacedMark| {
            placed.names().any(|named| named.is_ok_and(|named| named == name))
        };
        let host = self.due.iter().find(names_it).map(|placed| placed.mark.host.as_str());
        let name = escape(name.as_bytes());
        let message = format!("a prune from {} removes '{name}'", host.unwrap_or_default());
        Err(Failure::new(Exit::Busy, escape(message.as_bytes()))
            .hint("copy again once it has ended; one that died is ended by the next bk-prune")
            .into())
    }
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
        let mut marks = Marks::read(destination, self.to.grace())?;
        for object in self.needed {
            marks.look_at(&object.name)?;
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
        let (plain_present, plain_missing) = self.look_at_plain(&mut marks)?;
        let is_marked = marks.is_hit;
        Ok(Look { began, present, missing, plain_present, plain_missing, is_marked })
    }

    /// The pieces with what copies and pushes have closed that are not committed, if they are asked
    /// for.
    pub(super) fn closed_pieces(&self, is_due: bool) -> anyhow::Result<Vec<(Begun, String)>> {
        let lists = if is_due { partial::read_all(self.destination())? } else { Vec::new() };
        let of_list = |list: PartialList| -> Vec<(Begun, String)> {
            let Some(begun) = &list.begun else { return Vec::new() };
            list.closed().map(|piece| (begun.clone(), piece.to_owned())).collect()
        };
        Ok(lists.into_iter().flat_map(of_list).collect())
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
        for (begun, piece) in self.closed_pieces(!open.is_empty())? {
            // One that is cut or gone vouches for nothing.
            let Ok(piece) = ClosedPiece::open(destination, &piece) else { continue };
            let Closed::Object(closed) = piece.closed else { continue };
            let name = place::join(&begun.folder, &closed.object);
            vouch(&mut open, &name, closed.checksum);
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
        for (name, record) in open {
            self.compare(name, record.checksum)?;
        }
        self.vouch_for_plain(&catalog.backups, &look.plain_present)
    }

    /// Reads an object at the destination and compares it with its checksum.
    pub(super) fn compare(&self, name: &str, due: Digest) -> anyhow::Result<()> {
        let read = Digest::of_reader(self.destination().read(name, None)?);
        let (checksum, _) = read.with_context(|| format!("cannot read '{name}'"))?;
        if checksum == due {
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
