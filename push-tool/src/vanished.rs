//! A component that the last backup holds and this one does not: a step whose setting is missing is left
//! out without a word, and rules would in time remove every backup that still holds it.

use bk_manifest::manifest::{Run, Trailer};
use bk_manifest::shrink::{MaxShrink, refusal};

/// Refuses a document that lacks a component of its parent.
///
/// # Errors
/// [`Exit::Unmet`](bk_manifest::exit::Exit::Unmet) naming it; a parent that cannot be read.
pub(crate) fn check(limit: MaxShrink, run: &Run, trailer: &Trailer) -> anyhow::Result<()> {
    let last = limit.components(run.parent.as_ref())?;
    let components = trailer.components()?;
    match last.iter().find(|last| components.iter().all(|component| component.name != last.name)) {
        None => Ok(()),
        Some(gone) => {
            let message = format!("the last backup holds '{}', and this one does not", gone.name);
            Err(refusal(message, "is a step or a setting missing, or is it meant?"))
        }
    }
}
