//! The look behind a commit that came late: prune may have been faster.

use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::spool::Entries;

use crate::base::present;
use crate::catalog::NeededObject;
use crate::plain::PlainFiles;
use crate::store::Store;
use crate::{mark, place};

/// Makes sure that a manifest that has just been committed still has all that it needs; withdraws it
/// and its side files if not.
///
/// # Errors
/// Those of the destination; [`Exit::Failed`] for a manifest that was withdrawn, or could not be.
pub fn confirm(
    store: &Store,
    manifest: &str,
    needed: &[NeededObject],
    (plain, entries): (&PlainFiles, &Entries),
) -> anyhow::Result<()> {
    let destination = &*store.destination;
    // A mark that is due may be at work, and have read the manifests before this one was there.
    let now = destination.now()?;
    let mut marks = mark::read_all(destination)?;
    marks.retain(|placed| now.since(placed.object.modified) >= store.grace());
    let marked = mark::marked_names(&marks);
    let mut missing = 0u64;
    plain.each_missing(destination, entries, &marked, &mut |_| {
        missing += 1;
        Ok(())
    })?;
    let is_safe = missing == 0
        && needed.iter().all(|object| !marked.contains(object.name.as_str()))
        && present(destination, needed)?.len() == needed.len();
    if is_safe {
        return Ok(());
    }
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
