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
                .hint("nothing is removed while a manifest, or what may fence off one, cannot be read")
                .hint("repair it, or move it out of the destination if that backup is given up")
                .into());
        }
        if accepts_missing {
            return Ok(());
        }
        seen::check(&self.seen, &self.known_ids(), self.catalog.borders.warning())
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::num::NonZeroU32;

    use bk_manifest::exit::classify;
    use bk_manifest::progress::Silent;

    use super::*;
    use crate::prune::{Outcome, plan, prune};
    use crate::rules::Rules;
    use crate::testing::{GRACE, Made, Memory, options};

    const MARKER: &[u8] = br#"{"id":"0123456789abcdef","grace_seconds":86400}"#;
    const INNER: &str = "hosts/b/";

    fn run(store: &Memory, last: u32) -> anyhow::Result<Outcome> {
        let rules = Rules { last: NonZeroU32::new(last), ..Rules::default() };
        prune(store, "app", &options(store, rules), &Silent)
    }

    /// Two backups of an application, and below them two of the same one on another host; returns
    /// the names of what is the other's, without the marker.
    fn nested() -> (Memory, Vec<String>) {
        let (outer, inner) = ["2026-05-01T00:00:00Z"; 2].map(Memory::new).into();
        for time in ["2026-04-26T02:00:00Z", "2026-04-27T02:00:00Z"] {
            Made::new(time).with_plain(&["a"]).store(&outer);
        }
        for time in ["2026-04-20T03:00:00Z", "2026-04-28T03:00:00Z"] {
            Made::new(time).with_plain(&["a"]).store(&inner);
        }
        let mut names = Vec::new();
        for name in inner.names() {
            let mut bytes = Vec::new();
            inner.read(&name, None).unwrap().read_to_end(&mut bytes).unwrap();
            names.push(format!("{INNER}{name}"));
            outer.store(&format!("{INNER}{name}"), &bytes);
        }
        (outer, names)
    }

    fn prune_twice(store: &Memory) -> Outcome {
        run(store, 1).unwrap();
        store.advance(GRACE);
        run(store, 1).unwrap()
    }

    #[test]
    fn a_destination_inside_another_is_left_alone() {
        let (store, inner) = nested();
        store.store(&format!("{INNER}.bk-destination"), MARKER);
        let rules = Rules { last: NonZeroU32::new(1), ..Rules::default() };
        let plan = plan(&store, "app", &options(&store, rules), &Silent).unwrap();
        assert_eq!((plan.lines.len(), plan.strangers.count), (2, 0));
        let outcome = prune_twice(&store);
        assert_eq!(outcome.removed, ["backup-20260426-020000-00000000"]);
        assert_eq!(outcome.kept, 1, "the other's newest backup is not counted");
        assert!(inner.iter().all(|name| store.has(name)));
    }

    #[test]
    fn a_mark_from_before_does_not_reach_into_another_destination() {
        let (store, inner) = nested();
        run(&store, 1).unwrap();
        store.advance(GRACE);
        store.store(&format!("{INNER}.bk-destination"), MARKER);
        // What this run had left is another's now.
        assert_eq!(classify(&run(&store, 1).unwrap_err()), Exit::Unmet);
        let mut options = options(&store, Rules { last: NonZeroU32::new(2), ..Rules::default() });
        options.accepts_missing = true;
        let error = prune(&store, "app", &options, &Silent).unwrap_err();
        assert_eq!(classify(&error), Exit::Unmet, "the last good backup is marked: {error}");
        Made::new("2026-04-30T02:00:00Z").store(&store);
        prune(&store, "app", &options, &Silent).unwrap();
        assert!(inner.iter().all(|name| store.has(name)));
    }

    #[test]
    fn a_file_that_only_has_a_markers_name_hides_no_backup() {
        let (store, _) = nested();
        store.store(&format!("{INNER}.bk-destination"), b"mine");
        let survey = Survey::read(&store, GRACE, None).unwrap();
        assert_eq!(survey.catalog.backups.len(), 4);
        assert_eq!(survey.catalog.borders.warning(), None);
    }
}
