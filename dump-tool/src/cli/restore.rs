//! The command line of `bk-dump restore`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bk_manifest::exit::Exit;
use bk_manifest::shell::Console;
use bk_manifest::time::Time;

use super::RESTORE_PIPE;
use super::connection::{ConnectionArgs, request};
use super::postgres::default_jobs;
use crate::postgres::connection::{Request, Server};
use crate::postgres::restore::{Wanted, Way, Without};
use crate::{postgres, restore, sqlite, unpack};

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
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
    /// Put aside what is there: a file as NAME.before-TIME, files in .bk-replaced-TIME/, a database
    /// as NAME + __before_ + TIME
    #[arg(long)]
    replace: bool,
    /// For SQLite: replace a database that a process still has open
    ///
    /// Without it that is refused. Such a process goes on with the old file, under its new name;
    /// what it writes there is not in the restored one.
    #[arg(long, requires = "replace", requires = "to")]
    even_if_open: bool,
    #[command(flatten)]
    postgres: PostgresArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// What only a restore of PostgreSQL knows.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct PostgresArgs {
    /// For PostgreSQL: sessions that load at once (custom and directory format)
    #[arg(long, value_name = "N", default_value_t = default_jobs())]
    jobs: NonZeroUsize,
    /// For PostgreSQL: drop the old database once the new one is in its place
    #[arg(long, requires = "replace", conflicts_with_all = ["in_place", "table", "schema"])]
    drop_old: bool,
    /// For PostgreSQL: load into the database that is there, in one transaction
    #[arg(long)]
    in_place: bool,
    /// For PostgreSQL: only this table with all that belongs to it (can be repeated)
    #[arg(long, value_name = "SCHEMA.TABLE", value_parser = Wanted::table)]
    table: Vec<Wanted>,
    /// For PostgreSQL: only what is in this schema (can be repeated)
    #[arg(long, value_name = "NAME", value_parser = Wanted::schema)]
    schema: Vec<Wanted>,
    /// For PostgreSQL: everything belongs to the role that restores
    #[arg(long)]
    no_owner: bool,
    /// For PostgreSQL: leave out who may do what
    #[arg(long)]
    no_acl: bool,
    /// For PostgreSQL: make the roles that the server lacks, without login
    #[arg(long)]
    create_missing_roles: bool,
}

impl PostgresArgs {
    fn options(&self, replaces: bool, now: Time) -> postgres::restore::Options {
        let wanted: Vec<Wanted> = self.table.iter().chain(&self.schema).cloned().collect();
        postgres::restore::Options {
            now,
            way: if !wanted.is_empty() {
                Way::Selected(wanted)
            } else if self.in_place {
                Way::InPlace
            } else {
                Way::Swap { drops_old: self.drop_old }
            },
            replaces,
            jobs: self.jobs,
            without: Without { owners: self.no_owner, rights: self.no_acl },
            creates_roles: self.create_missing_roles,
        }
    }
}

pub(super) fn run(args: &RestoreArgs, console: &Console) -> anyhow::Result<Exit> {
    let request = request(&args.connection)?;
    let now = Time::now();
    let replaces = args.replace;
    let server;
    let target = if let Some(path) = &args.to {
        let (path, even_if_open) = (path.clone(), args.even_if_open);
        restore::Target::Sqlite(sqlite::restore::Target { path, replaces, even_if_open, now })
    } else if let Some(folder) = &args.into {
        restore::Target::Folder(unpack::Target { folder, replaces, now })
    } else if is_cluster(&args.connection, &request) {
        server = Server::new(&request)?;
        restore::Target::Cluster(&server)
    } else if let Some(asked) = postgres_target(&args.connection, &request) {
        server = Server::new(&asked)?;
        restore::Target::Postgres(postgres::restore::Target {
            server: &server,
            options: args.postgres.options(replaces, now),
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

/// Whether a server was named, and no database on it: roles are restored so.
fn is_cluster(args: &ConnectionArgs, request: &Request) -> bool {
    let is_asked = args.via.is_some() || args.user.is_some();
    let is_named = !args.database.is_empty() || request.url.is_some();
    is_asked && !is_named && request.default_database.is_none()
}

/// The connection to restore through, if one was asked for; the database must have been named.
fn postgres_target(args: &ConnectionArgs, request: &Request) -> Option<Request> {
    let is_asked = args.via.is_some()
        || args.url_env.is_some()
        || !args.database.is_empty()
        || args.user.is_some();
    if !is_asked {
        return None;
    }
    let mut request = request.clone();
    if args.database.is_empty() && request.url.is_none() {
        request.database.clone_from(&request.default_database);
    }
    Some(request)
}
