//! A component that the last backup holds and this one does not: a step whose setting is missing is left
//! out without a word, and rules would in time remove every backup that still holds it.

use std::fs::File;

use anyhow::Context;
use bk_manifest::manifest::{Run, Trailer};
use bk_manifest::outer;
use bk_manifest::shrink::{MaxShrink, refusal};

/// Refuses a document that lacks a component of its parent.
///
/// # Errors
/// [`Exit::Unmet`](bk_manifest::exit::Exit::Unmet) naming it; a parent that cannot be read.
pub(crate) fn check(limit: MaxShrink, run: &Run, trailer: &Trailer) -> anyhow::Result<()> {
    let Some(parent) = run.parent.as_ref().filter(|_| limit != MaxShrink::NO_LIMIT) else {
        return Ok(());
    };
    let context = || format!("the parent's manifest '{}'", parent.file);
    let file = File::open(&parent.file).with_context(context)?;
    let (_, last) = outer::read_file(&file).with_context(context)?;
    let components = trailer.components()?;
    let last = last.components().with_context(context)?;
    match last.iter().find(|last| components.iter().all(|component| component.name != last.name)) {
        None => Ok(()),
        Some(gone) => {
            let message = format!("the last backup holds '{}', and this one does not", gone.name);
            Err(refusal(message, "is a step or a setting missing, or is it meant?"))
        }
    }
}
