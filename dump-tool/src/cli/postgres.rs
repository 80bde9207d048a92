//! The command line of `bk-dump postgres`.

use bk_manifest::exit::Exit;
use bk_manifest::shell::Console;

use super::connection::{ConnectionArgs, request};
use super::{PIPE, StageArgs, filter_options};
use crate::filter::{self, Patient};
use crate::postgres;
use crate::postgres::connection::Server;

#[derive(Debug, clap::Args)]
pub(super) struct PostgresArgs {
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

pub(super) fn run(args: &PostgresArgs, console: &Console) -> anyhow::Result<Exit> {
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
