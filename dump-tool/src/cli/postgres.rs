//! The command line of `bk-dump postgres`.

use std::io::{Read, Write};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bk_manifest::cli::shrink::ShrinkArgs;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::shell::Console;

use super::connection::{ConnectionArgs, server_request};
use super::{PIPE, StageArgs, filter_options};
use crate::compress::Compression;
use crate::filter::{self, Patient, Work};
use crate::level::Level;
use crate::postgres;
use crate::postgres::connection::Server;
use crate::postgres::databases;
use crate::postgres::format::Format;
use crate::several::{self, Ends, Step};
use crate::shrink::Group;

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct PostgresArgs {
    /// Name of the component; of several databases each is NAME-DATABASE
    #[arg(long, value_name = "NAME", default_value = "database")]
    name: String,
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Dump every database of the server but templates and closed ones
    #[arg(long, conflicts_with = "database")]
    all_databases: bool,
    #[command(flatten)]
    stage: StageArgs,
    #[command(flatten)]
    shrink: ShrinkArgs,
    /// plain (SQL), custom (one archive) or directory (a file for each table, dumped by several jobs)
    #[arg(long, value_name = "FORMAT", default_value = "custom")]
    format: Format,
    /// none, gzip or zstd [default: zstd for plain, gzip for the archives]
    #[arg(long, value_name = "KIND")]
    compress: Option<Compression>,
    /// Tables dumped at once, with --format directory
    #[arg(long, value_name = "N", default_value_t = default_jobs())]
    jobs: NonZeroUsize,
    /// Seconds to wait for a lock on a table [default: until it is free]
    #[arg(long, value_name = "SECONDS")]
    lock_timeout: Option<NonZeroU32>,
    /// In a plain dump: drop what is there before it is made (--clean --if-exists)
    #[arg(long)]
    clean: bool,
    /// Leave out who owns what
    #[arg(long)]
    no_owner: bool,
    /// Leave out who may do what
    #[arg(long)]
    no_acl: bool,
    /// Leave out tables that match (can be repeated)
    #[arg(long, value_name = "PATTERN")]
    exclude_table: Vec<String>,
    /// Leave out the rows of tables that match (can be repeated)
    #[arg(long, value_name = "PATTERN")]
    exclude_table_data: Vec<String>,
    /// How a restore can be compared: none, count (rows) or full (rows and their fingerprints)
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    fingerprint: Level,
    /// Query for the version of the application's schema [default: known migration programs]
    #[arg(long, value_name = "SQL")]
    schema_version_query: Option<String>,
}

/// As many as there are cores, but few enough to leave the server to its application.
pub(super) fn default_jobs() -> NonZeroUsize {
    let most = NonZeroUsize::MIN.saturating_add(3);
    std::thread::available_parallelism().map_or(NonZeroUsize::MIN, |cores| cores.min(most))
}

pub(super) fn run(args: &PostgresArgs, console: &Console) -> anyhow::Result<Exit> {
    let filter = |name: &str| filter_options(name, &args.stage, args.shrink.limit());
    let one = filter(&args.name)?;
    let request = server_request(&args.connection)?;
    let options = options(args)?;
    let open_input = |cancel: &Cancel| anyhow::Ok(Patient::new(console.input(PIPE)?, cancel));
    if !args.all_databases && args.connection.database.len() < 2 {
        let input = open_input(&one.cancel)?;
        let server = Server::new(&request)?;
        return filter::run(input, console.output(), &one, console, |work| {
            postgres::begin(&server, &options, work)
        });
    }
    let server = Server::new(&request)?;
    let databases = if args.all_databases {
        databases::all(&server, &one.cancel, console)?
    } else {
        args.connection.database.clone()
    };
    let components = databases::components(&args.name, &databases)?;
    let group = args.all_databases.then(|| Group {
        prefix: format!("{}-", args.name),
        components: components.keys().cloned().collect(),
    });
    // One database is dumped after the other; each snapshot is taken as the header passes.
    let turn = Mutex::new(());
    let mut steps = Vec::new();
    for (component, database) in components {
        let (mut filter, server) = (filter(&component)?, server.in_database(database));
        filter.group = group.clone().map(|group| (postgres::KIND, group));
        let (options, turn) = (&options, &turn);
        let cancel = filter.cancel.clone();
        let run = move |input: &mut dyn Read, output: &mut dyn Write| {
            filter::run(input, output, &filter, console, |work| {
                let dump = postgres::begin(&server, options, work)?;
                Ok(move |work: &Work<'_>| {
                    let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    dump(work)
                })
            })
        };
        steps.push(Step { run: Box::new(run), cancel });
    }
    let Some(first) = steps.first() else {
        return Err(fail(Exit::NotFound, "the server has no database to dump"));
    };
    let cancel = first.cancel.clone();
    let input = || Ok(Box::new(open_input(&cancel)?) as Box<dyn Read>);
    several::run(steps, Ends { input, output: || console.output() })
}

fn options(args: &PostgresArgs) -> anyhow::Result<postgres::Options> {
    if args.clean && args.format != Format::Plain {
        return Err(Failure::new(Exit::Usage, "--clean is for plain dumps")
            .hint("an archive is told so when it is restored")
            .into());
    }
    Ok(postgres::Options {
        format: args.format,
        compression: args.compress,
        jobs: args.jobs.get(),
        lock_timeout: args.lock_timeout.map(|seconds| Duration::from_secs(seconds.get().into())),
        clean: args.clean,
        exclude_table: args.exclude_table.clone(),
        no_owner: args.no_owner,
        no_acl: args.no_acl,
        exclude_table_data: args.exclude_table_data.clone(),
        level: args.fingerprint,
        schema_version_query: args.schema_version_query.clone(),
    })
}
