//! The command line of `bk-dump restore`.

use std::path::PathBuf;

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::shell::Console;
use bk_manifest::time::Time;

use super::RESTORE_PIPE;
use super::connection::{ConnectionArgs, request};
use crate::postgres::connection::{Request, Server};
use crate::{postgres, restore, sqlite, unpack};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
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
    /// Put aside what is there: a database as NAME.before-TIME, files in .bk-replaced-TIME/
    #[arg(long)]
    replace: bool,
    /// For SQLite: replace a database that a process still has open
    ///
    /// Without it that is refused. Such a process goes on with the old file, under its new name;
    /// what it writes there is not in the restored one.
    #[arg(long, requires = "replace", requires = "to")]
    even_if_open: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
    /// For PostgreSQL: everything belongs to the role that restores
    #[arg(long)]
    no_owner: bool,
    /// For PostgreSQL: leave out who may do what
    #[arg(long)]
    no_acl: bool,
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
        if replaces {
            return Err(Failure::new(Exit::Usage, "--replace is not for PostgreSQL databases")
                .hint("restore into a new one (--database NAME) and rename them")
                .into());
        }
        server = Server::new(&asked)?;
        restore::Target::Postgres(postgres::restore::Target {
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
