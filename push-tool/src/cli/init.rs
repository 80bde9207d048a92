//! `bk-push init`: makes a destination.

use std::time::Duration;

use bk_manifest::exit::{Exit, fail};
use bk_manifest::progress::Progress;
use bk_manifest::shell::Console;

use super::access::AccessArgs;
use super::parse_duration;
use crate::destination::Created;
use crate::store::Store;

#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// Place to make a destination; a folder is made if the one above it is there
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH")]
    to: String,
    #[command(flatten)]
    access: AccessArgs,
    /// How long prune waits between its mark and the removal: longer than any push takes
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    grace: Duration,
}

pub(super) fn run(args: &InitArgs, console: &Console) -> anyhow::Result<Exit> {
    let (store, created) = Store::init(&args.to, &args.access.read(), args.grace)?;
    for limit in store.destination.limits() {
        console.warn(&limit);
    }
    match created {
        Created::New => console.note(&format!("'{}' is a backup destination now", args.to)),
        Created::Taken if store.grace() == args.grace => {
            console.note(&format!("'{}' is a backup destination already", args.to));
        }
        Created::Taken => {
            let message = format!(
                "'{}' is a backup destination already, with a grace time of {} s",
                args.to,
                store.grace().as_secs()
            );
            return Err(fail(Exit::Failed, message));
        }
    }
    Ok(Exit::Done)
}
