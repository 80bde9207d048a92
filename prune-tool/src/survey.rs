//! What is at the destination: marks, partial lists, backups, and what the last prune left.

use std::collections::BTreeSet;
use std::time::Duration;

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::path::escape;
use bk_manifest::time::Time;
use bk_push::catalog::Catalog;
use bk_push::destination::Destination;
use bk_push::mark::{self, PlacedMark};
use bk_push::names::Names;
use bk_push::partial;

use crate::seen::{self, PlacedSeen};

/// A partial list with the names that it holds.
#[derive(Debug)]
pub struct List {
    /// The id of the backup that its push was making.
    pub id: String,
    /// Its series and the folder of its objects, if its push came so far.
    pub begun: Option<partial::Begun>,
    /// The names of its own pieces.
    pub pieces: Vec<String>,
    /// The objects that it names.
    pub objects: Names,
    /// Whether it was renewed within the grace time.
    pub is_alive: bool,
}

/// All that prune decides upon.
///
/// Taken in an order that makes it safe while others push and prune: the clock after the marks, so
/// that each mark is at least as old as it seems; partial lists before manifests, so that an object
/// is seen in one of them when its push commits in between; the record of what was left last.
#[derive(Debug)]
pub struct Survey {
    /// The marks, oldest name first.
    pub marks: Vec<PlacedMark>,
    /// The time after the marks were read.
    pub now: Time,
    /// The partial lists.
    pub lists: Vec<List>,
    /// The backups.
    pub catalog: Catalog,
    /// What earlier prunes left.
    pub seen: Vec<PlacedSeen>,
}

impl Survey {
    /// Reads all of it. The time is the store's own, or `clock` where nothing may be touched.
    ///
    /// # Errors
    /// Those of the destination; [`Exit::Malformed`] for a mark or a list that is not understood.
    pub fn read(
        destination: &dyn Destination,
        grace: Duration,
        clock: Option<Time>,
    ) -> anyhow::Result<Self> {
        let marks = mark::read_all(destination)?;
        let now = match clock {
            Some(time) => time,
            None => destination.now()?,
        };
        let mut lists = Vec::new();
        for list in partial::read_all(destination)? {
            bk_manifest::signal::check()?;
            let mut objects = Names::default();
            list.each_object(destination, &mut |name| objects.add(&name))?;
            lists.push(List {
                objects,
                is_alive: now.since(list.renewed) < grace,
                id: list.id,
                begun: list.begun,
                pieces: list.pieces,
            });
        }
        let mut catalog = Catalog::read(destination)?;
        // A manifest that another prune, or the push that made it, has just taken away.
        let unreadable = std::mem::take(&mut catalog.unreadable);
        for (object, error) in unreadable {
            if destination.stat(&object.name)?.is_some() {
                catalog.unreadable.push((object, error));
            }
        }
        let seen = seen::read_all(destination)?;
        Ok(Survey { marks, now, lists, catalog, seen })
    }

    /// Refuses a destination of which something cannot be known: what a manifest that cannot be
    /// read needs, or where backups went that the last prune left.
    ///
    /// # Errors
    /// [`Exit::Malformed`] and [`Exit::Unmet`].
    pub fn check(&self, accepts_missing: bool) -> anyhow::Result<()> {
        if let Some((object, error)) = self.catalog.unreadable.first() {
            let name = escape(object.name.as_bytes());
            let more = match self.catalog.unreadable.len() {
                1 => String::new(),
                count => format!(" (and {} more)", count - 1),
            };
            let message = format!("cannot tell what '{name}'{more} needs: {error:#}");
            return Err(Failure::new(Exit::Malformed, message)
                .hint("nothing is removed while a manifest cannot be read")
                .hint("repair it, or move it out of the destination if that backup is given up")
                .into());
        }
        if accepts_missing {
            return Ok(());
        }
        seen::check(&self.seen, &self.known_ids())
    }

    /// Whether a manifest that was listed is gone by now.
    ///
    /// # Errors
    /// Those of the destination.
    pub fn is_outdated(&self, destination: &dyn Destination) -> anyhow::Result<bool> {
        for backup in &self.catalog.backups {
            bk_manifest::signal::check()?;
            if destination.stat(&backup.manifest.name)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ids of the backups that are there, and of those that marks name.
    fn known_ids(&self) -> BTreeSet<&str> {
        let here = self.catalog.backups.iter().map(|backup| backup.id.as_str());
        let marked = self.marks.iter().flat_map(|placed| &placed.mark.backups);
        here.chain(marked.map(String::as_str)).collect()
    }
}
