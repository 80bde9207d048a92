//! The command line of `bk-dump`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::progress::Progress;
use bk_manifest::shell::{Console, EXIT_CODES_HELP, Verbosity};
use bk_manifest::time::Time;
use clap::{Parser, Subcommand};

use crate::check::{self, DumpKind};
use crate::connection::{self, Request, Server, Via};
use crate::filter::Patient;
use crate::{archive, filter, postgres, postgres_restore, restore, sqlite, unpack};

/// The variable of a connection URL, where no other is named.
const DEFAULT_URL_VARIABLE: &str = "DATABASE_URL";
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
    Postgres(PostgresArgs),
    /// Copy an SQLite database while it is in use
    Sqlite(SqliteArgs),
    /// Put a few files and folders (configuration, secrets) into one archive
    Archive(ArchiveArgs),
    /// Read dumps to their end
    Check(CheckArgs),
    /// Restore a dump that `bk-push fetch` has brought back
    Restore(RestoreArgs),
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
struct ConnectionArgs {
    /// Run the PostgreSQL programs inside a container: docker:CONTAINER or compose:SERVICE
    #[arg(long, value_name = "PLACE", hide_possible_values = true)]
    via: Option<String>,
    /// Take the connection URL from this environment variable [default: DATABASE_URL, if set]
    ///
    /// Without a URL the variables of libpq hold: PGHOST, PGPORT, PGUSER, PGPASSWORD, PGPASSFILE…
    /// With --via only a variable that is named here is read.
    #[arg(long, value_name = "NAME")]
    url_env: Option<String>,
    /// Role to connect as
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Database
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Caught, so that a password in it is not repeated by the message about an unknown argument.
    #[arg(hide = true, value_name = "URL", value_parser = clap::builder::OsStringValueParser::new())]
    stray: Vec<std::ffi::OsString>,
}

#[derive(Debug, clap::Args)]
struct PostgresArgs {
    /// Name of the component
    #[arg(long, value_name = "NAME", default_value = "database")]
    name: String,
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    stage: StageArgs,
    /// Leave out who owns what
    #[arg(long)]
    no_owner: bool,
    /// Leave out who may do what
    #[arg(long)]
    no_acl: bool,
    /// Leave out the rows of tables that match (can be repeated)
    #[arg(long, value_name = "PATTERN")]
    exclude_table_data: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct SqliteArgs {
    /// The database file
    path: PathBuf,
    /// Name of the component
    #[arg(long, value_name = "NAME", default_value = "database")]
    name: String,
    #[command(flatten)]
    stage: StageArgs,
    /// Seconds to wait for a lock that another process holds
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    busy_timeout: u32,
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
    #[command(flatten)]
    stage: StageArgs,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Dumps: .dump, .sql, .sql.gz, .tar.zst, .tar.gz, or an SQLite database as .zst
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    files: Vec<PathBuf>,
    /// In a pipe: check the dumps of the manifest that `bk-push fetch` put into DIR
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Run the PostgreSQL programs inside a container: docker:CONTAINER or compose:SERVICE
    #[arg(long, value_name = "PLACE")]
    via: Option<String>,
}

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct RestoreArgs {
    /// Folder that `bk-push fetch` has filled
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Component to restore [default: the only one of the target's kind]
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// For SQLite: the database file to be made
    #[arg(long, value_name = "FILE", alias = "sqlite", conflicts_with_all = ["into", "via", "url_env", "database"])]
    to: Option<PathBuf>,
    /// For an archive: the folder to unpack into
    #[arg(long, value_name = "DIR", conflicts_with_all = ["via", "url_env", "database"])]
    into: Option<PathBuf>,
    /// Check the dump and whether the target would take it, and touch nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Put aside what is there: a database as NAME.before-TIME, files in .bk-replaced-TIME/
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
    /// For PostgreSQL: everything belongs to the role that restores
    #[arg(long)]
    no_owner: bool,
    /// For PostgreSQL: leave out who may do what
    #[arg(long)]
    no_acl: bool,
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
        Command::Postgres(args) => run_postgres(args, console),
        Command::Sqlite(args) => run_sqlite(args, console),
        Command::Archive(args) => run_archive(args, console),
        Command::Check(args) => run_check(args, console),
        Command::Restore(args) => run_restore(args, console),
    }
}

fn run_postgres(args: &PostgresArgs, console: &Console) -> anyhow::Result<Exit> {
    let filter = filter_options(&args.name, &args.stage)?;
    let request = request(&args.connection)?;
    let options = postgres::Options {
        no_owner: args.no_owner,
        no_acl: args.no_acl,
        exclude_table_data: args.exclude_table_data.clone(),
    };
    let input = Patient::new(console.input(PIPE)?, &filter.cancel);
    let server = Server::new(&request)?;
    filter::run(input, console.output(), &filter, console, |work| {
        postgres::begin(&server, &options, work)
    })
}

fn run_sqlite(args: &SqliteArgs, console: &Console) -> anyhow::Result<Exit> {
    let filter = filter_options(&args.name, &args.stage)?;
    let options = sqlite::Options {
        path: args.path.clone(),
        busy_timeout: Duration::from_secs(args.busy_timeout.into()),
    };
    let input = Patient::new(console.input(PIPE)?, &filter.cancel);
    filter::run(input, console.output(), &filter, console, |work| sqlite::begin(&options, work))
}

fn run_archive(args: &ArchiveArgs, console: &Console) -> anyhow::Result<Exit> {
    let filter = filter_options(&args.name, &args.stage)?;
    let options = archive::Options::new(args.root.as_deref(), &args.paths, args.format)?;
    let input = Patient::new(console.input(PIPE)?, &filter.cancel);
    filter::run(input, console.output(), &filter, console, |work| archive::begin(&options, work))
}

fn run_check(args: &CheckArgs, console: &Console) -> anyhow::Result<Exit> {
    let via = via(args.via.as_deref())?;
    let server = Server::new(&Request { via, ..Request::default() })?;
    if let Some(from) = &args.from {
        let input = console.input(RESTORE_PIPE)?;
        return restore::check_all(input, console.output(), from, &server, console);
    }
    let kinds: Vec<(DumpKind, &PathBuf)> = args
        .files
        .iter()
        .map(|file| {
            let kind = file.to_str().and_then(DumpKind::of_name).ok_or_else(|| {
                let message = format!("the name '{}' is not that of a dump", file.display());
                Failure::new(Exit::Usage, message)
                    .hint("dumps end in .dump, .sql, .sql.gz, .tar.zst, .tar.gz or .zst")
            })?;
            Ok((kind, file))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut worst: Option<anyhow::Error> = None;
    for (kind, file) in kinds {
        bk_manifest::signal::check()?;
        match check::check_with(kind, file, &server, console) {
            Ok(()) => console.note(&format!("'{}' can be read to its end", file.display())),
            Err(error) => {
                // All of them are looked at; the last one is told by the shell.
                if let Some(earlier) = worst.replace(error) {
                    console.warn(&format!("{earlier:#}"));
                }
            }
        }
    }
    worst.map_or(Ok(Exit::Done), Err)
}

fn run_restore(args: &RestoreArgs, console: &Console) -> anyhow::Result<Exit> {
    let request = request(&args.connection)?;
    let now = Time::now();
    let replaces = args.replace;
    let server;
    let target = if let Some(path) = &args.to {
        restore::Target::Sqlite(sqlite::Target { path: path.clone(), replaces, now })
    } else if let Some(folder) = &args.into {
        restore::Target::Folder(unpack::Target { folder, replaces, now })
    } else if let Some(asked) = postgres_target(&args.connection, &request)? {
        if replaces {
            return Err(Failure::new(Exit::Usage, "--replace is not for PostgreSQL databases")
                .hint("restore into a new one (--database NAME) and rename them")
                .into());
        }
        server = Server::new(&asked)?;
        restore::Target::Postgres(postgres_restore::Target {
            server: &server,
            no_owner: args.no_owner,
            no_acl: args.no_acl,
        })
    } else {
        restore::Target::None
    };
    let options = restore::Options {
        from: args.from.clone(),
        component: args.component.clone(),
        target,
        is_dry_run: args.dry_run,
    };
    let input = console.input(RESTORE_PIPE)?;
    restore::restore(input, console.output(), &options, console)
}

/// The connection to restore through, if one was asked for; the database must have been named.
fn postgres_target(args: &ConnectionArgs, request: &Request) -> anyhow::Result<Option<Request>> {
    let is_asked = args.via.is_some()
        || args.url_env.is_some()
        || args.database.is_some()
        || args.user.is_some();
    if !is_asked {
        return Ok(None);
    }
    let is_named = args.database.is_some() || request.url.is_some();
    if !is_named && request.default_database.is_none() {
        return Err(fail(Exit::Usage, "which database to restore into? --database NAME"));
    }
    let mut request = request.clone();
    if !is_named {
        request.database.clone_from(&request.default_database);
    }
    Ok(Some(request))
}

fn filter_options(name: &str, args: &StageArgs) -> anyhow::Result<filter::Options> {
    filter::check_name(name)?;
    let stage = match &args.stage {
        Some(stage) if !stage.as_os_str().is_empty() => stage.clone(),
        _ => default_stage()?,
    };
    Ok(filter::Options {
        component: name.to_owned(),
        stage,
        now: Time::now(),
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

fn via(text: Option<&str>) -> anyhow::Result<Via> {
    match text {
        None => Ok(Via::Host),
        Some(text) => {
            text.parse().map_err(|why: &str| fail(Exit::Usage, format!("malformed --via: {why}")))
        }
    }
}

/// Takes the connection from arguments and environment; flags come before variables.
fn request(args: &ConnectionArgs) -> anyhow::Result<Request> {
    let typed = [&args.via, &args.url_env, &args.user, &args.database];
    let is_exposed =
        typed.into_iter().flatten().map(String::as_str).any(connection::is_connection_string);
    if is_exposed || !args.stray.is_empty() {
        // What it was is not repeated: it may hold a password.
        return Err(Failure::new(
            Exit::Usage,
            "an argument that belongs to no option, or a connection string among the arguments",
        )
        .hint("arguments are seen by every user of this machine: put the URL into a variable")
        .hint("and name that: --url-env NAME; the database goes into --database NAME")
        .into());
    }
    let variable = |name: &str| std::env::var(name).ok();
    let url = match &args.url_env {
        Some(name) => Some(connection::url_of(name, variable(name))?),
        None if args.via.is_some() => None,
        None => variable(DEFAULT_URL_VARIABLE).filter(|url| !url.trim().is_empty()),
    };
    Ok(Request {
        via: via(args.via.as_deref())?,
        url,
        user: args.user.clone(),
        database: args.database.clone(),
        default_database: variable("PGDATABASE").filter(|name| !name.is_empty()),
        default_password: variable("PGPASSWORD").filter(|password| !password.is_empty()),
    })
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
