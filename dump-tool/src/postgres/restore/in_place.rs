//! Into the database that is there, in one transaction: a failure leaves it as it was.

use std::fs::File;
use std::io::BufReader;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure, classify, fail};
use bk_manifest::progress::Progress;
use serde_json::Value;

use super::analyze::analyze;
use super::guard::Guard;
use super::load::{self, Loading, load};
use super::selection::{Selection, Wanted};
use super::settings::undisturbed;
use super::{Job, archive, compare, old, requirements, waiting};
use crate::check::DumpKind;
use crate::postgres::directory;
use crate::postgres::session::literal;

/// What was found, and what will be done.
pub(super) struct InPlace {
    guard: Guard,
    /// The part of the dump; none: all of it.
    selection: Option<Selection>,
    /// Roles to be made.
    roles: Vec<String>,
}

impl InPlace {
    /// Looks at everything, and tells it; nothing `wanted` is the whole dump.
    ///
    /// # Errors
    /// [`Exit::NotFound`] for a database, table or schema that is not there; [`Exit::Usage`] for what
    /// is there already and nobody said to replace.
    pub(super) fn plan(
        job: &Job<'_>,
        wanted: &[Wanted],
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        check_commits(job)?;
        let mut guard = Guard::within(&job.server, &job.name)?;
        let roles = requirements::check_server(&mut guard, job, progress)?;
        let selection = if wanted.is_empty() {
            let objects = old::some_objects(&job.server, &job.name)?;
            if !objects.is_empty() && !job.options.replaces {
                let hint = "to drop what the dump is going to make: --replace";
                return Err(old::not_empty(&job.name, &objects, hint));
            }
            None
        } else {
            Some(select(&mut guard, job, wanted)?)
        };
        progress.note(&format!(
            "plan: load {} into '{}' in one transaction{}",
            selection.as_ref().map_or_else(
                || "all".to_owned(),
                |selection| format!("{} objects", selection.ids.len())
            ),
            job.name,
            if job.options.replaces { ", dropping what is there of it" } else { "" }
        ));
        let others = guard.count_others()?;
        if others != "0" {
            progress.warn(&format!(
                "{others} other sessions are open in '{}': what they write meanwhile will differ",
                job.name
            ));
        }
        Ok(InPlace { guard, selection, roles })
    }

    /// Loads and compares.
    ///
    /// # Errors
    /// As [`super::Plan::carry_out`].
    pub(super) fn carry_out(
        mut self,
        job: &Job<'_>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Exit> {
        requirements::make_roles(&mut self.guard, &self.roles)?;
        let list = self.selection.as_ref().map(Selection::list);
        let loading = Loading {
            is_transaction: true,
            cleans: job.options.replaces,
            list: list.as_deref(),
            ..job.loading()
        };
        let server = undisturbed(&mut self.guard, job, &job.server)?;
        let (loaded, holders) =
            waiting::watched(&mut self.guard, || load(job.dump, &server, &loading, progress));
        if let Err(error) = loaded {
            // Inside a container the load may go on without us.
            if let Err(error) = self.guard.for_cleanup().end_our_sessions() {
                progress.warn(&format!("a session that loads may still be there: {error:#}"));
            }
            return Err(match holders {
                Some(holders) => held_up(&error, &holders),
                None => error,
            });
        }
        analyze(&job.server, progress);
        compare::compare(&job.server, job, self.selection.as_ref(), progress)
            .map_err(|error| committed(error, job))?;
        Ok(Exit::Done)
    }
}

/// The error of a load that others kept from a lock that it needs.
fn held_up(error: &anyhow::Error, holders: &str) -> anyhow::Error {
    let message = format!("{error:#}: it has waited too long for the sessions {holders}");
    Failure::new(Exit::Failed, message).hint("stop the application first").into()
}

/// The error behind the commit. It is none of the codes that say that nothing was touched, such as
/// [`Exit::Damaged`].
fn committed(error: anyhow::Error, job: &Job<'_>) -> anyhow::Error {
    if bk_manifest::signal::check().is_err() {
        return error;
    }
    let hint = match classify(&error) {
        Exit::Damaged => "rows that the application wrote meanwhile differ too: stop it first",
        _ => "nothing is known to differ, but it could not be compared to its end",
    };
    Failure::new(Exit::Failed, format!("{error:#}"))
        .hint(format!("the dump is loaded and committed in '{}'", job.name))
        .hint(hint)
        .into()
}

/// Fails for a plain dump that would end our transaction by itself, as `pg_dump` has it do for large
/// objects.
fn check_commits(job: &Job<'_>) -> anyhow::Result<()> {
    let is_plain = load::compression(job.dump.kind).is_some();
    let large_objects = job.recorded.as_ref().and_then(|recorded| recorded.large_objects.as_ref());
    if !is_plain || large_objects.is_none_or(|large_objects| large_objects.count == 0) {
        return Ok(());
    }
    let message = "a plain dump with large objects is not loaded in one transaction";
    Err(Failure::new(Exit::Usage, message).hint("restore it without --in-place").into())
}

/// Finds the entries of the dump that are wanted, and what stands in their way.
fn select(guard: &mut Guard, job: &Job<'_>, wanted: &[Wanted]) -> anyhow::Result<Selection> {
    let entries = match job.dump.kind {
        DumpKind::PostgresDirectory => {
            let contents = job.dump.path.join(directory::CONTENTS);
            File::open(contents).and_then(|file| archive::entries(BufReader::new(file)))
        }
        _ => archive::entries(BufReader::new(job.dump.open()?)),
    }
    .context("cannot read the table of contents of the dump")?;
    let schemas = texts(&guard.rows("SELECT nspname::text AS name FROM pg_catalog.pg_namespace")?);
    let is_missing = |schema: &str| !schemas.iter().any(|there| there == schema);
    let selection = Selection::of(&entries, wanted, is_missing)
        .map_err(|wanted| fail(Exit::NotFound, format!("the dump does not hold {wanted}")))?;
    if job.options.replaces {
        return Ok(selection);
    }
    let pairs: Vec<String> = selection
        .relations
        .iter()
        .map(|(schema, name)| format!("({}, {})", literal(schema), literal(name)))
        .collect();
    let there = if pairs.is_empty() {
        Vec::new()
    } else {
        texts(&guard.rows(&format!(
            "SELECT format('%s.%s', n.nspname, c.relname) AS name FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE (n.nspname, c.relname) IN (VALUES {}) ORDER BY name LIMIT 3",
            pairs.join(", ")
        ))?)
    };
    if there.is_empty() {
        return Ok(selection);
    }
    let message = format!("the database '{}' holds {} already", job.name, there.join(", "));
    Err(Failure::new(Exit::Usage, message)
        .hint("to drop what is there first, in the same transaction: --replace")
        .into())
}

fn texts(rows: &[Value]) -> Vec<String> {
    let name = |row: &Value| row.get("name").and_then(Value::as_str).map(str::to_owned);
    rows.iter().filter_map(name).collect()
}
