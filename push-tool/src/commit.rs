//! The looks around a commit that came late: prune may have been faster.

use std::time::Duration;

use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::spool::Entries;
use bk_manifest::time::Time;

use crate::base::present;
use crate::catalog::NeededObject;
use crate::destination::Destination;
use crate::mark::{self, Marked};
use crate::place;
use crate::plain::PlainFiles;
use crate::store::Store;

/// What a manifest that is being committed needs.
pub struct Needs<'a> {
    /// The objects that its `objects` names.
    pub objects: Vec<NeededObject>,
    /// The plain files.
    pub plain: &'a PlainFiles,
    /// Its entries.
    pub entries: &'a Entries,
}

impl Needs<'_> {
    /// Whether all of it is there, and no mark names any of it that has stood for `age` by now.
    fn are_met(&self, destination: &dyn Destination, age: Duration) -> anyhow::Result<bool> {
        let now = destination.now()?;
        let mut marks = mark::read_all(destination)?;
        marks.retain(|placed| now.since(placed.object.modified) >= age);
        let marked = Marked::of(&marks)?;
        let mut missing = 0u64;
        self.plain.each_missing(destination, self.entries, &marked, &mut |_| {
            missing += 1;
            Ok(())
        })?;
        for object in &self.objects {
            missing += u64::from(marked.contains(&object.name)?);
        }
        Ok(missing == 0 && present(destination, &self.objects)?.len() == self.objects.len())
    }

    /// Looks just before the commit, where the last look is long ago by now; returns when it was looked
    /// last. What stalls behind that for half the grace time more is [`Needs::confirm`]'s.
    ///
    /// # Errors
    /// Those of the destination; [`Exit::Failed`] if something is marked or gone: nothing is committed.
    pub fn look_again(&self, store: &Store, looked: Time) -> anyhow::Result<Time> {
        let now = store.destination.now()?;
        if store.grace().is_zero() || !is_late(store, looked, now) {
            return Ok(looked);
        }
        if self.are_met(&*store.destination, Duration::ZERO)? {
            return Ok(now);
        }
        let message = "objects were marked for removal, or removed, while the manifest was written; \
                       nothing was committed";
        Err(Failure::new(Exit::Failed, message)
            .hint("run it again; what was stored is used")
            .into())
    }

    /// Makes sure that a manifest that has just been committed still has all that it needs, if the
    /// commit came late after the last look, or a mark `is_near`; withdraws it and its side files if not.
    ///
    /// # Errors
    /// Those of the destination; [`Exit::Failed`] for a manifest that was withdrawn, or could not be.
    pub fn confirm(
        &self,
        store: &Store,
        manifest: &str,
        looked: Time,
        is_near: bool,
    ) -> anyhow::Result<()> {
        let destination = &*store.destination;
        let is_due = is_near || is_late(store, looked, destination.now()?);
        // A mark that is due may be at work, and have read the manifests before this one was there.
        if is_due && !self.are_met(destination, store.grace())? {
            return withdraw(destination, manifest);
        }
        Ok(())
    }
}

/// Whether prune may have removed by now what was not marked yet when it was looked at.
fn is_late(store: &Store, looked: Time, now: Time) -> bool {
    store.grace().is_zero() || now.since(looked) > store.grace() / 2
}

fn withdraw(destination: &dyn Destination, manifest: &str) -> anyhow::Result<()> {
    let mut names = vec![manifest.to_owned()];
    names.extend(place::side_files(manifest));
    let failed = destination.delete(&names);
    if let Some(error) = failed.into_iter().find(|error| error.name == manifest) {
        let error = anyhow::Error::from(error);
        let message = format!(
            "objects were removed while the backup was committed, and it could not be withdrawn: \
             {error:#}"
        );
        return Err(Failure::new(Exit::Failed, message)
            .hint(format!("remove '{manifest}' by hand: it stands for a backup that is not whole"))
            .into());
    }
    Err(fail(Exit::Failed, "objects were removed while the backup was committed; it was withdrawn"))
}
