//! The command line of `bk-dump globals`.

use bk_manifest::exit::Exit;
use bk_manifest::shell::Console;
use bk_manifest::shrink::MaxShrink;

use super::connection::{ConnectionArgs, request};
use super::{PIPE, StageArgs, filter_options};
use crate::filter::{self, Patient};
use crate::postgres::connection::Server;
use crate::postgres::globals;

#[derive(Debug, clap::Args)]
pub(super) struct GlobalsArgs {
    /// Name of the component
    #[arg(long, value_name = "NAME", default_value = "globals")]
    name: String,
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    stage: StageArgs,
    /// Leave out the passwords of roles: no superuser is needed then
    #[arg(long)]
    no_role_passwords: bool,
}

pub(super) fn run(args: &GlobalsArgs, console: &Console) -> anyhow::Result<Exit> {
    let filter = filter_options(&args.name, &args.stage, MaxShrink::NO_LIMIT)?;
    let filter = filter::Options { is_secret: true, ..filter };
    let request = request(&args.connection)?;
    let options = globals::Options { no_role_passwords: args.no_role_passwords };
    let input = Patient::new(console.input(PIPE)?, &filter.cancel);
    let server = Server::new(&request)?;
    filter::run(input, console.output(), &filter, console, |work| {
        globals::begin(&server, options, work)
    })
}
