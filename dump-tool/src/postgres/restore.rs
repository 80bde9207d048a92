//! Getting a dump of PostgreSQL back: planned and told first, then done.
//!
//! The usual way (`replace`) loads it into a database beside the one that it is for, compares that
//! with what was recorded, and lets the two change names. `in_place` loads into the database itself,
//! in one transaction; so do chosen tables and schemas.

mod acl;
mod analyze;
mod archive;
mod attributes;
mod beside;
mod compare;
mod guard;
mod in_place;
mod load;
mod names;
mod old;
mod plain;
mod replace;
mod requirements;
mod selection;
mod settings;
mod space;
mod swap;
mod waiting;

use std::num::NonZeroUsize;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::progress::Progress;
use bk_manifest::time::Time;
use serde_json::{Map, Value};

pub use self::beside::MARK;
pub use self::names::is_before;
pub use self::selection::Wanted;
use super::connection::Server;
use super::contents::Contents;
use crate::restore::Dump;

/// Where a dump goes.
pub struct Target<'a> {
    /// The server; its database is the one to be restored.
    pub server: &'a Server,
    /// How it gets there.
    pub options: Options,
}

/// How a dump is restored.
#[derive(Clone, Debug)]
pub struct Options {
    /// The time that the old database is named after.
    pub now: Time,
    /// The way.
    pub way: Way,
    /// Whether what is there may be replaced.
    pub replaces: bool,
    /// Sessions that load at once, where the form of the dump allows it.
    pub jobs: NonZeroUsize,
    /// What of the dump is left out.
    pub without: Without,
    /// Make the roles that the dump needs and the server lacks, without login.
    pub creates_roles: bool,
}

/// What of a dump can be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// Who owns what: everything belongs to the role that restores.
    pub owners: bool,
    /// Who may do what.
    pub rights: bool,
}

/// The ways to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Load beside, compare, change names.
    Swap {
        /// Whether the old database is dropped at the end.
        drops_old: bool,
    },
    /// Into the database that is there, in one transaction.
    InPlace,
    /// Only these, into the database that is there, in one transaction.
    Selected(Vec<Wanted>),
}

/// A restore of one dump into one database.
struct Job<'a> {
    /// The server, with our name for sessions; its database is the one to be restored.
    server: Server,
    /// That database.
    name: String,
    dump: &'a Dump,
    /// What was recorded of the dumped database.
    record: &'a Map<String, Value>,
    /// Of that, what it held; none if the backup does not say.
    recorded: Option<Contents>,
    /// The id of the backup.
    backup: &'a str,
    options: &'a Options,
}

/// What is going to be done; nothing has been yet.
pub struct Plan<'a> {
    job: Job<'a>,
    steps: Steps,
}

enum Steps {
    Replace(replace::Replacement),
    InPlace(in_place::InPlace),
}

/// Fails if the programs here are too old for the dump, which would look damaged to them.
///
/// # Errors
/// [`Exit::Usage`] with both versions; a program that is missing.
pub fn check_client(target: &Target<'_>, record: &Map<String, Value>) -> anyhow::Result<()> {
    requirements::check_client(target.server, record)
}

/// Looks at everything that the restore needs, and tells what it will do.
///
/// Nothing is done, but for one thing: a database that a killed restore left closed takes connections
/// again, unless this `is_dry_run`.
///
/// # Errors
/// [`Exit::Usage`], [`Exit::Denied`], [`Exit::Busy`] or [`Exit::NotFound`] for what stands against
/// it; what the programs said.
pub fn plan<'a>(
    dump: &'a Dump,
    record: &'a Map<String, Value>,
    backup: &'a str,
    target: &'a Target<'_>,
    is_dry_run: bool,
    progress: &dyn Progress,
) -> anyhow::Result<Plan<'a>> {
    let name = target.server.database().context("no database was named")?.to_owned();
    if name.len() > names::NAME_LIMIT {
        let message = format!("the name '{name}' is longer than {} bytes", names::NAME_LIMIT);
        return Err(Failure::new(Exit::Usage, message).into());
    }
    let tag = format!("bk-dump restore {}", std::process::id());
    let server = target.server.with("PGAPPNAME", &tag);
    let recorded = Contents::of_record(record)?;
    let job = Job { server, name, dump, record, recorded, backup, options: &target.options };
    job.check_plain()?;
    let steps = match &target.options.way {
        Way::Swap { .. } => Steps::Replace(replace::Replacement::plan(&job, is_dry_run, progress)?),
        Way::InPlace => Steps::InPlace(in_place::InPlace::plan(&job, &[], progress)?),
        Way::Selected(wanted) => Steps::InPlace(in_place::InPlace::plan(&job, wanted, progress)?),
    };
    Ok(Plan { job, steps })
}

impl Plan<'_> {
    /// Does it. [`Exit::Partial`] if something that belongs to the database could not be given back;
    /// each such thing is a warning.
    ///
    /// # Errors
    /// [`Exit::Damaged`] if what was loaded beside it is not what was recorded; what the programs
    /// said. The database is as it was then, or the message says otherwise.
    pub fn carry_out(self, progress: &dyn Progress) -> anyhow::Result<Exit> {
        let context = format!("cannot restore into the database '{}'", self.job.name);
        match self.steps {
            Steps::Replace(replacement) => replacement.carry_out(&self.job, progress),
            Steps::InPlace(in_place) => in_place.carry_out(&self.job, progress),
        }
        .context(context)
    }
}

impl Job<'_> {
    /// What can be known of a plain dump before it is loaded.
    fn check_plain(&self) -> anyhow::Result<()> {
        let Some(compression) = load::compression(self.dump.kind) else { return Ok(()) };
        let refused = |message: &str| Failure::new(Exit::Usage, message);
        if matches!(self.options.way, Way::Selected(_)) {
            return Err(refused("single tables cannot be taken out of a plain dump")
                .hint("restore it into a database of its own (--database NAME) and copy them")
                .into());
        }
        if self.options.without != Without::default() {
            return Err(refused("owners and rights are part of a plain dump")
                .hint("roles that the server lacks can be made: --create-missing-roles")
                .into());
        }
        if plain::is_cluster(load::decoded(self.dump.open()?, compression)?)? {
            return Err(refused("this is a dump of a whole server (pg_dumpall)")
                .hint("read it by psql: it makes roles and databases, and connects to them")
                .into());
        }
        Ok(())
    }

    fn loading(&self) -> load::Loading<'_> {
        load::Loading {
            jobs: self.options.jobs.get(),
            without: self.options.without,
            ..load::Loading::default()
        }
    }
}
