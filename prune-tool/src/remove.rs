//! Carries a plan out: announces what is to go, and deletes what has been announced long enough.
//!
//! In this order, so that a run that dies anywhere leaves every backup that is there with all its
//! objects, and nothing that is not named by a manifest, a mark or a partial list:
//! the new mark, the record of what is left, manifests, objects, partial lists, due marks.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::time::Duration;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::progress::Progress;
use bk_manifest::spool::ReadFrom;
use bk_manifest::time::Time;
use bk_push::destination::{Created, Destination, ErrorKind};
use bk_push::mark::{self, Mark};
use bk_push::names::Names;
use bk_push::parallel;
use serde::Serialize;

use crate::plan::Plan;
use crate::seen::{self, Seen};
use crate::survey::Survey;

/// Names deleted by one call; a signal is noticed between two.
const BATCH: usize = 1000;
/// How often a name that is taken is tried anew.
const ATTEMPTS: u32 = 5;
/// Unfinished uploads younger than this are let be, however short the grace time is.
const SWEEP_AFTER: Duration = Duration::from_hours(1);

/// Does what the plan says. What dead uploads left is tidied up as far as the keys allow.
///
/// # Errors
/// Those of the destination; what could not be deleted stays marked, and the next run tries again.
/// [`Exit::Busy`] if the marks to act by are gone.
pub fn carry_out(
    destination: &dyn Destination,
    survey: &Survey,
    plan: &Plan,
    grace: Duration,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    if let Some(mark) = &plan.mark {
        put_mark(destination, mark, survey.now)?;
    }
    let left = Seen { series: plan.series.clone(), backups: plan.remaining() };
    seen::write(destination, &survey.seen, &left, survey.now)?;
    let deletion = &plan.deletion;
    check_marks(destination, &deletion.marks)?;
    delete(destination, &deletion.manifests)?;
    check_gone(destination, &deletion.manifests)?;
    delete_names(destination, &deletion.objects)?;
    delete_names(destination, &deletion.pieces)?;
    delete(destination, &deletion.marks)?;
    if let Err(error) = destination.sweep(survey.now.before(grace.max(SWEEP_AFTER))) {
        bk_manifest::signal::check()?;
        // Everything else is done, and no backup hangs on it.
        let error = anyhow::Error::from(error);
        progress.warn(&format!("what dead uploads left stays there: {error:#}"));
    }
    Ok(())
}

/// Refuses to delete by marks that are gone: another run has done what they say, or taken them back,
/// and a push that commits now no longer sees them.
fn check_marks(destination: &dyn Destination, marks: &[String]) -> anyhow::Result<()> {
    if marks.is_empty() {
        return Ok(());
    }
    let mut missing: BTreeSet<&str> = marks.iter().map(String::as_str).collect();
    for object in destination.list(mark::FOLDER)? {
        missing.remove(object?.name.as_str());
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Busy, "another run has removed the marks that this one was to act by")
        .hint("nothing was removed by this one; run it again")
        .into())
}

/// Makes sure that no manifest is left whose objects go next, whatever the store has answered: a backup
/// would be listed and not be whole.
fn check_gone(destination: &dyn Destination, manifests: &[String]) -> anyhow::Result<()> {
    let stat = |name: &String| Ok(destination.stat(name)?.map(|_| name.clone()));
    let found = parallel::try_map(destination.at_once(), manifests.iter().collect(), stat)?;
    let Some(name) = found.into_iter().flatten().next() else { return Ok(()) };
    let place = destination.describe();
    let message = format!("'{name}' is still at '{place}', which has said that it is removed");
    Err(Failure::new(Exit::Failed, message)
        .hint("the objects of that backup were left; what stands between here and the store?")
        .into())
}

/// Puts a mark under a name of its own. It may be large, so it is streamed.
///
/// # Errors
/// Those of the destination and of the temporary files.
pub fn put_mark<Objects: Serialize>(
    destination: &dyn Destination,
    mark: &Mark<Objects>,
    now: Time,
) -> anyhow::Result<()> {
    let file = tempfile::tempfile().context("cannot create a temporary file")?;
    let mut text = BufWriter::new(&file);
    serde_json::to_writer(&mut text, mark).context("cannot write a temporary file")?;
    text.flush().context("cannot write a temporary file")?;
    drop(text);
    let length = file.metadata().context("cannot read a temporary file")?.len();
    create_new(destination, |destination, random| {
        let name = mark::name(now, random);
        let mut upload = destination.put(&name, length)?;
        std::io::copy(&mut ReadFrom::new(&file), &mut upload)
            .with_context(|| format!("cannot store '{name}' at '{}'", destination.describe()))?;
        match upload.commit() {
            Err(error) if error.kind == ErrorKind::Exists => Ok(Created::Taken),
            committed => Ok(committed.map(|()| Created::New)?),
        }
    })
}

/// Stores an object under a new name, made of the random number that `create` is given.
///
/// # Errors
/// Those of the destination.
pub fn create_new(
    destination: &dyn Destination,
    create: impl Fn(&dyn Destination, u32) -> anyhow::Result<Created>,
) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let mut random = [0u8; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes")?;
        if create(destination, u32::from_be_bytes(random))? == Created::New {
            return Ok(());
        }
    }
    anyhow::bail!("cannot find a free name at '{}'", destination.describe())
}

/// Deletes as [`delete`] does, without holding all names.
fn delete_names(destination: &dyn Destination, names: &Names) -> anyhow::Result<()> {
    let mut names = names.iter();
    loop {
        let batch = names.by_ref().take(BATCH).collect::<anyhow::Result<Vec<_>>>()?;
        if batch.is_empty() {
            return Ok(());
        }
        delete(destination, &batch)?;
    }
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
