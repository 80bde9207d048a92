//! Carries a plan out: announces what is to go, and deletes what has been announced long enough.
//!
//! In this order, so that a run that dies anywhere leaves every backup that is there with all its
//! objects, and nothing that is not named by a manifest, a mark or a partial list:
//! new marks, the record of what is left, manifests, objects, partial lists, due marks.

use std::time::Duration;

use anyhow::Context;
use bk_manifest::time::Time;
use bk_push::destination::{Created, Destination};
use bk_push::mark;

use crate::plan::Plan;
use crate::seen::{self, Seen};
use crate::survey::Survey;

/// Names deleted by one call; a signal is noticed between two.
const BATCH: usize = 1000;
/// How often a name that is taken is tried anew.
const ATTEMPTS: u32 = 5;
/// Unfinished uploads younger than this are let be, however short the grace time is.
const SWEEP_AFTER: Duration = Duration::from_hours(1);

/// Does what the plan says.
///
/// # Errors
/// Those of the destination; what could not be deleted stays marked, and the next run tries again.
pub fn carry_out(
    destination: &dyn Destination,
    survey: &Survey,
    plan: &Plan,
    grace: Duration,
) -> anyhow::Result<()> {
    for mark in &plan.marks {
        put_mark(destination, mark, survey.now)?;
    }
    let left = Seen { series: plan.series.clone(), backups: plan.remaining() };
    seen::write(destination, &survey.seen, &left, survey.now)?;
    let deletion = &plan.deletion;
    for names in [&deletion.manifests, &deletion.objects, &deletion.pieces, &deletion.marks] {
        delete(destination, names)?;
    }
    destination.sweep(survey.now.before(grace.max(SWEEP_AFTER)))?;
    Ok(())
}

/// Puts a mark under a name of its own.
///
/// # Errors
/// Those of the destination.
pub fn put_mark(destination: &dyn Destination, mark: &mark::Mark, now: Time) -> anyhow::Result<()> {
    create_new(destination, &serde_json::to_vec(mark)?, |random| mark::name(now, random))
}

/// Stores a small object under a new name with a random part.
///
/// # Errors
/// Those of the destination.
pub fn create_new(
    destination: &dyn Destination,
    bytes: &[u8],
    name: impl Fn(u32) -> String,
) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let mut random = [0u8; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes")?;
        let name = name(u32::from_be_bytes(random));
        if destination.create(&name, bytes)? == Created::New {
            return Ok(());
        }
    }
    anyhow::bail!("cannot find a free name at '{}'", destination.describe())
}

/// Deletes objects; all of them, or it is an error.
///
/// # Errors
/// The first of the destination's; the message says how many there were.
pub fn delete(destination: &dyn Destination, names: &[String]) -> anyhow::Result<()> {
    for batch in names.chunks(BATCH) {
        bk_manifest::signal::check()?;
        let mut failed = destination.delete(batch);
        let count = failed.len();
        if count > 0 {
            let error = anyhow::Error::from(failed.swap_remove(0));
            return Err(if count == 1 {
                error
            } else {
                error.context(format!("{count} objects could not be removed"))
            });
        }
    }
    Ok(())
}
