//! The command line of `bk-dump`.

mod connection;
mod globals;
mod postgres;
mod restore;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bk_manifest::cli::shrink::ShrinkArgs;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure, classify};
use bk_manifest::progress::Progress;
use bk_manifest::shell::{Console, EXIT_CODES_HELP, Verbosity};
use bk_manifest::shrink::MaxShrink;
use bk_manifest::time::Time;
use clap::{Parser, Subcommand};

use crate::check::{self, DumpKind};
use crate::filter::Patient;
use crate::level::Level;
use crate::postgres::connection::{Request, Server};
use crate::{archive, filter, sqlite};

/// The pipe that a step is part of, for those who start it by itself.
const PIPE: &str =
    "bk-manifest new --app NAME | bk-dump … | bk-manifest add --root DIR | bk-push …";
/// The same for restoring.
const RESTORE_PIPE: &str = "bk-push manifest latest --from DEST | bk-push fetch --from DEST --target DIR | bk-dump restore --from DIR …";

/// Get a database or an archive out consistently, and back in
///
/// A dump step stands in a pipe between `bk-manifest new` and `bk-push`: it reads the manifest,
/// writes one file into the stage folder, and passes the manifest on with that file added.
#[derive(Debug, Parser)]
#[command(name = "bk-dump", version, after_help = EXIT_CODES_HELP)]
pub struct Args {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Dump a PostgreSQL database from one snapshot
    Postgres(postgres::PostgresArgs),
    /// Dump the roles of a PostgreSQL server, with their passwords
    Globals(globals::GlobalsArgs),
    /// Copy an SQLite database while it is in use
    Sqlite(SqliteArgs),
    /// Put a few files and folders (configuration, secrets) into one archive
    Archive(ArchiveArgs),
    /// Read dumps to their end
    Check(CheckArgs),
    /// Restore a dump that `bk-push fetch` has brought back
    Restore(restore::RestoreArgs),
}

#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "help texts: backticks would be printed")]
struct StageArgs {
    /// Folder for finished dumps until they are pushed [default: bk/stage in the state folder]
    ///
    /// The state folder is $XDG_STATE_HOME or ~/.local/state. What dead runs left in it is removed.
    #[arg(long, value_name = "DIR", env = "BK_STAGE")]
    stage: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "help texts: backticks would be printed")]
struct SqliteArgs {
    /// The database file
    path: PathBuf,
    /// Name of the component
    #[arg(long, value_name = "NAME", default_value = "database")]
    name: String,
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    shrink: ShrinkArgs,
    /// Seconds to wait for a lock that another process holds
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    busy_timeout: u32,
    /// What to record of each table, for the restore to compare: none, count or full
    ///
    /// count is the number of rows; full adds a fingerprint over every value, which reads the copy
    /// once more.
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    fingerprint: Level,
    /// Query whose one value is the version of the schema
    ///
    /// Without it: user_version where it is not 0, else what the tables of known migration programs
    /// say (Prisma, Knex, Alembic, Django, Flyway, Rails, Drizzle).
    #[arg(long, value_name = "SQL")]
    schema_version_query: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ArchiveArgs {
    /// Files and folders; relative names are kept, absolute ones lose the first '/'
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Name of the component
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Folder that the paths are relative to [default: the current one]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Form of the archive: tar.zst or tar.gz
    #[arg(long, value_name = "FORM", default_value = "tar.zst")]
    format: archive::Format,
    /// It holds no secrets: it may leave this host in clear
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    stage: StageArgs,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Dumps: .dump, .dir/, .sql, .sql.gz, .sql.zst, .tar.zst, .tar.gz, or an SQLite database as .zst
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    files: Vec<PathBuf>,
    /// In a pipe: check the dumps of the manifest that `bk-push fetch` put into DIR
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Run the PostgreSQL programs elsewhere: docker:CONTAINER, compose:SERVICE or ssh:HOST
    #[arg(long, value_name = "PLACE")]
    via: Option<String>,
}

/// The part of the arguments that the shell needs.
pub fn verbosity(args: &Args) -> &Verbosity {
    &args.verbosity
}

/// Does what the arguments say.
///
/// # Errors
/// Those of the step; their code is told by [`bk_manifest::exit::classify`].
pub fn run(args: &Args, console: &Console) -> anyhow::Result<Exit> {
    match &args.command {
        Command::Postgres(args) => postgres::run(args, console),
        Command::Globals(args) => globals::run(args, console),
        Command::Sqlite(args) => run_sqlite(args, console),
        Command::Archive(args) => run_archive(args, console),
        Command::Check(args) => run_check(args, console),
        Command::Restore(args) => restore::run(args, console),
    }
}

fn run_sqlite(args: &SqliteArgs, console: &Console) -> anyhow::Result<Exit> {
    let filter = filter_options(&args.name, &args.stage, args.shrink.limit())?;
    let options = sqlite::Options {
        path: args.path.clone(),
        busy_timeout: Duration::from_secs(args.busy_timeout.into()),
        level: args.fingerprint,
        version_query: args.schema_version_query.clone(),
    };
    let input = Patient::new(console.input(PIPE)?, &filter.cancel);
    filter::run(input, console.output(), &filter, console, |work| sqlite::begin(&options, work))
}

fn run_archive(args: &ArchiveArgs, console: &Console) -> anyhow::Result<Exit> {
    let options = archive::Options {
        is_public: args.public,
        ..archive::Options::new(args.root.as_deref(), &args.paths, args.format)?
    };
    let filter = filter::Options {
        is_secret: !args.public,
        archived: options.host_paths()?,
        ..filter_options(&args.name, &args.stage, MaxShrink::NO_LIMIT)?
    };
    let input = Patient::new(console.input(PIPE)?, &filter.cancel);
    filter::run(input, console.output(), &filter, console, |_| archive::begin(&options))
}

fn run_check(args: &CheckArgs, console: &Console) -> anyhow::Result<Exit> {
    let via = connection::via(args.via.as_deref())?;
    let server = Server::new(&Request { via, ..Request::default() })?;
    if let Some(from) = &args.from {
        let input = console.input(RESTORE_PIPE)?;
        return crate::restore::check_all(input, console.output(), from, &server, console);
    }
    let kinds: Vec<(DumpKind, &PathBuf)> = args
        .files
        .iter()
        .map(|file| {
            let kind = file.to_str().and_then(DumpKind::of_name).ok_or_else(|| {
                let message = format!("the name '{}' is not that of a dump", file.display());
                Failure::new(Exit::Usage, message).hint(
                    "dumps end in .dump, .dir, .sql, .sql.gz, .sql.zst, .tar.zst, .tar.gz or .zst",
                )
            })?;
            Ok((kind, file))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut faults = Vec::new();
    for (kind, file) in kinds {
        bk_manifest::signal::check()?;
        match check::check_with(kind, file, &server, console) {
            Ok(()) => console.note(&format!("'{}' can be read to its end", file.display())),
            Err(error) => faults.push(error),
        }
    }
    // All of them were looked at; the worst is told by the shell, with its code.
    let worst = (0..faults.len()).max_by_key(|index| classify(&faults[*index]).code());
    let Some(worst) = worst.map(|index| faults.remove(index)) else { return Ok(Exit::Done) };
    for other in faults {
        console.warn(&format!("{other:#}"));
    }
    Err(worst)
}

fn filter_options(
    name: &str,
    args: &StageArgs,
    max_shrink: MaxShrink,
) -> anyhow::Result<filter::Options> {
    filter::check_name(name)?;
    let stage = match &args.stage {
        Some(stage) if !stage.as_os_str().is_empty() => stage.clone(),
        _ => default_stage()?,
    };
    Ok(filter::Options {
        component: name.to_owned(),
        stage,
        now: Time::now(),
        max_shrink,
        is_secret: false,
        archived: Vec::new(),
        group: None,
        cancel: Cancel::default(),
    })
}

/// The stage folder below the state folder; never one that other users share.
fn default_stage() -> anyhow::Result<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute())
    };
    let state = folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .or_else(|| rustix::process::geteuid().is_root().then(|| Path::new("/var/lib").to_owned()));
    match state {
        Some(state) => Ok(state.join("bk/stage")),
        None => Err(Failure::new(Exit::Usage, "there is no folder for dumps: HOME is not set")
            .hint("name one: --stage DIR or BK_STAGE")
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
