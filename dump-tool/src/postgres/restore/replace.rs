//! The usual way: a database is loaded beside the one that it is for, compared, and takes its place.

use std::time::{Duration, Instant};

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure, classify, fail};
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::time::Time;
use serde_json::Value;

use super::analyze::analyze;
use super::attributes::Attributes;
use super::beside::{self, Beside};
use super::guard::Guard;
use super::load::load;
use super::old::{self, Old};
use super::settings::undisturbed;
use super::space::Space;
use super::swap::{Swap, reopening};
use super::{Job, Way, compare, names, requirements};
use crate::postgres::session::{identifier, literal};

/// How long it is tried to drop what was loaded.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is waited between two tries.
const TICK: Duration = Duration::from_millis(100);

/// What was found, and what will be done.
pub(super) struct Replacement {
    guard: Guard,
    old: Option<Old>,
    /// What the old database will be called.
    before: String,
    /// Roles to be made.
    roles: Vec<String>,
}

impl Replacement {
    /// Looks at everything, and tells it.
    ///
    /// # Errors
    /// What stands against it.
    pub(super) fn plan(
        job: &Job<'_>,
        is_dry_run: bool,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let mut guard = Guard::lock(&job.server, &job.name)?;
        check_rights(&mut guard)?;
        let beside = names::beside(&job.name, job.backup);
        let was_restoring = !beside::left_over(&mut guard, &job.name, &beside)?.is_empty();
        if was_restoring && !is_dry_run && is_closed(&mut guard, &job.name)? {
            guard.run(&reopening(&job.name))?;
            progress.warn(&format!(
                "a restore that was killed had closed '{}' to connections: it is open again",
                job.name
            ));
        }
        let old = Old::find(&mut guard, &job.server, &job.name)?;
        if let Some(old) = &old {
            old.check_closed(&job.name, was_restoring)?;
            if !old.objects.is_empty() && !job.options.replaces {
                let hint = "to put it aside and restore under its name: --replace";
                return Err(old::not_empty(&job.name, &old.objects, hint));
            }
            Old::check_ties(&mut guard, &job.name)?;
        }
        let roles = requirements::check_server(&mut guard, job, progress)?;
        beside::check_name(&mut guard, &job.name, job.backup)?;
        let before = free_name(&mut guard, job)?;
        let tablespace = old.as_ref().and_then(|old| old.tablespace.as_deref());
        check_space(&mut guard, job, tablespace, progress)?;
        let replacement = Replacement { guard, old, before, roles };
        replacement.tell(job, &beside, progress);
        Ok(replacement)
    }

    fn tell(&self, job: &Job<'_>, beside: &str, progress: &dyn Progress) {
        progress.note(&format!("plan: load into '{beside}' and compare"));
        progress.note(&match &self.old {
            None => format!("plan: rename it to '{}', which is not there yet", job.name),
            Some(old) if old.objects.is_empty() => {
                format!("plan: rename it to '{}', which is empty and is dropped", job.name)
            }
            Some(old) => format!(
                "plan: replace '{}' ({}, {} open sessions, which are ended); it {}",
                job.name,
                old.size.map_or_else(|| "of unknown size".to_owned(), human_bytes),
                old.sessions,
                if drops_old(job) {
                    "is dropped".to_owned()
                } else {
                    format!("stays as '{}'", self.before)
                }
            ),
        });
    }

    /// Loads, compares, and lets the databases change names.
    ///
    /// # Errors
    /// As [`super::Plan::carry_out`].
    pub(super) fn carry_out(
        mut self,
        job: &Job<'_>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Exit> {
        requirements::make_roles(&mut self.guard, &self.roles)?;
        let tablespace = self.old.as_ref().and_then(|old| old.tablespace.as_deref());
        let created = Beside::create(&mut self.guard, job, tablespace, progress);
        let (beside, made) = match created {
            Ok(created) => created,
            Err(error) => {
                let name = names::beside(&job.name, job.backup);
                self.take_back(&Beside { name }, job, progress);
                return Err(error);
            }
        };
        let server = job.server.in_database(&beside.name);
        let loaded = undisturbed(&mut self.guard, job, &server)
            .and_then(|server| load(job.dump, &server, &job.loading(), progress));
        let compared = loaded.and_then(|()| {
            analyze(&server, progress);
            match compare::compare(&server, job, None, progress) {
                Err(error) if classify(&error) == Exit::Damaged => Ok(Err(kept(&error, &beside))),
                compared => compared.map(Ok),
            }
        });
        let exchanged = match compared {
            Ok(Ok(())) => self.exchange(&beside, job, progress),
            Ok(Err(differs)) => return Err(differs),
            Err(error) => Err(error),
        };
        let given = match exchanged {
            Ok(given) => given,
            Err(error) => {
                self.take_back(&beside, job, progress);
                return Err(error);
            }
        };
        self.drop_old(job, progress);
        Ok(made.worse(given))
    }

    /// Gives the loaded database all that the old one had, or that was recorded where that one held
    /// nothing, and its name.
    fn exchange(
        &mut self,
        beside: &Beside,
        job: &Job<'_>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Exit> {
        self.guard.refresh()?;
        let (attributes, found) = match &self.old {
            // The load may have taken hours, in which somebody has set something.
            Some(old) if !old.objects.is_empty() => {
                (Attributes::of_database(&mut self.guard, &job.name)?, Exit::Done)
            }
            Some(empty) => self.recorded_over(&empty.attributes.clone(), job, progress)?,
            None => (recorded(job), Exit::Done),
        };
        let given = attributes.give(&mut self.guard, &beside.name, progress);
        Swap {
            name: &job.name,
            before: self.old.is_some().then_some(self.before.as_str()),
            beside: &beside.name,
            comment: attributes.comment.as_deref(),
        }
        .commit(&mut self.guard, progress)?;
        Ok(found.worse(given))
    }

    /// What the backup has recorded, for a database that was there and held nothing. What is left
    /// out stays as it was there, and so does the owner if the recorded one is not on the server, which
    /// is [`Exit::Partial`].
    fn recorded_over(
        &mut self,
        empty: &Attributes,
        job: &Job<'_>,
        progress: &dyn Progress,
    ) -> anyhow::Result<(Attributes, Exit)> {
        let (mut attributes, mut exit) = (recorded(job), Exit::Done);
        if job.options.without.rights {
            attributes.acl.clone_from(&empty.acl);
        }
        if let Some(owner) = &attributes.owner
            && !self.guard.has_role(owner)?
        {
            progress.warn(&format!("without the owner '{owner}', who is not on the server"));
            attributes.owner = None;
            exit = Exit::Partial;
        }
        attributes.owner = attributes.owner.or_else(|| empty.owner.clone());
        Ok((attributes, exit))
    }

    /// Drops what was loaded, also after we were told to stop. A server whose disk is full may refuse any
    /// statement that makes it put aside a page of that very database; it takes another page the next
    /// time, so that trying again gets there.
    fn take_back(&self, beside: &Beside, job: &Job<'_>, progress: &dyn Progress) {
        let mut guard = self.guard.for_cleanup();
        let mut drop_it = || {
            let left = beside::left_over(&mut guard, &job.name, &beside.name)?;
            if left.contains(&beside.name) { beside.drop(&mut guard) } else { Ok(()) }
        };
        let since = Instant::now();
        let mut dropped = drop_it();
        while dropped.is_err() && since.elapsed() < PATIENCE {
            std::thread::sleep(TICK);
            dropped = drop_it();
        }
        if let Err(error) = dropped {
            progress.warn(&format!(
                "the unfinished database '{}' is still there, the next restore drops it: {error:#}",
                beside.name
            ));
        }
    }

    /// Drops the old database if that was asked for, or if it holds nothing; it may have been filled
    /// since it was looked at.
    fn drop_old(&mut self, job: &Job<'_>, progress: &dyn Progress) {
        let Some(old) = &self.old else { return };
        let before = &self.before;
        let may_go = drops_old(job)
            || old.objects.is_empty()
                && old::some_objects(&job.server, before).is_ok_and(|objects| objects.is_empty());
        if !may_go {
            progress.note(&format!("the old database is kept as '{before}'"));
            return;
        }
        if let Err(error) = self.guard.run(&format!("DROP DATABASE {}", identifier(before))) {
            progress.warn(&format!("the old database is kept as '{before}': {error:#}"));
        }
    }
}

fn drops_old(job: &Job<'_>) -> bool {
    matches!(job.options.way, Way::Swap { drops_old: true })
}

/// What the backup has recorded, less what shall be left out.
fn recorded(job: &Job<'_>) -> Attributes {
    let mut attributes = Attributes::of_record(job.record);
    if job.options.without.owners {
        attributes.owner = None;
    }
    if job.options.without.rights {
        attributes.acl = None;
    }
    attributes
}

/// The error for a database that is not what was recorded, and stays to be looked at.
fn kept(error: &anyhow::Error, beside: &Beside) -> anyhow::Error {
    Failure::new(Exit::Damaged, format!("{error:#}"))
        .hint(format!("what was loaded is in '{}'; nothing else was touched", beside.name))
        .hint(format!(
            "to drop it: DROP DATABASE {}; the next restore does",
            identifier(&beside.name)
        ))
        .into()
}

/// The name that the old database will have; if that is taken, a later second's.
fn free_name(guard: &mut Guard, job: &Job<'_>) -> anyhow::Result<String> {
    let (seconds, _) = job.options.now.unix();
    for later in 0..60 {
        let name = names::before(&job.name, Time::from_unix(seconds + later, 0));
        if !guard.has_database(&name)? {
            return Ok(name);
        }
    }
    Err(fail(Exit::Usage, format!("all names for the old database of '{}' are taken", job.name)))
}

fn is_closed(guard: &mut Guard, name: &str) -> anyhow::Result<bool> {
    let count = "SELECT count(*) FROM pg_catalog.pg_database WHERE NOT datallowconn AND datname = ";
    Ok(guard.value(&format!("{count}{}", literal(name)))? != "0")
}

fn check_rights(guard: &mut Guard) -> anyhow::Result<()> {
    let may = guard.rows(
        "SELECT rolsuper OR rolcreatedb AS may, rolname::text AS role \
         FROM pg_catalog.pg_roles WHERE rolname = current_user",
    )?;
    let row = may.first().context("the server does not know our own role")?;
    if row.get("may") == Some(&Value::Bool(true)) {
        return Ok(());
    }
    let role = row.get("role").and_then(Value::as_str).unwrap_or_default();
    Err(Failure::new(Exit::Denied, format!("the role '{role}' may not make databases"))
        .hint("connect as another (--user), or let it: ALTER ROLE … CREATEDB")
        .hint("or load into the database that is there: --in-place")
        .into())
}

/// Fails where not even the loaded rows have room, and warns where indexes and the server's log may
/// not.
fn check_space(
    guard: &mut Guard,
    job: &Job<'_>,
    tablespace: Option<&str>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let Some(size) = job.record.get("database_size").and_then(Value::as_u64) else { return Ok(()) };
    let space = Space::find(guard, &job.server, tablespace, size)?;
    progress.note(&format!("plan: {}", space.describe()));
    match space.free {
        Some(free) if free < size => Err(Failure::new(
            Exit::Usage,
            format!("too little space at the server: {}", space.describe()),
        )
        .hint("make room first; both databases are there until the new one is proved")
        .into()),
        Some(free) if free < size.saturating_mul(2) => {
            progress.warn(&format!("space may run out while loading: {}", space.describe()));
            Ok(())
        }
        _ => Ok(()),
    }
}
