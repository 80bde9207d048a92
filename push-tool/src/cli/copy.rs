//! `bk-push copy`: brings a backup to another destination.

use bk_manifest::exit::Exit;
use bk_manifest::shell::Console;
use bk_manifest::spool::Document;
use bk_manifest::stream::Format;

use super::access::AccessArgs;
use crate::access::{self, Access};
use crate::copy;
use crate::location::Location;
use crate::store::Store;

#[derive(Debug, clap::Args)]
pub(super) struct CopyArgs {
    /// Destination to read from
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH", hide_env_values = true)]
    from: String,
    #[command(flatten)]
    access: AccessArgs,
    /// Destination to store to
    #[arg(long, value_name = "DEST", env = "BACKUP_COPY_DESTINATION_PATH", hide_env_values = true)]
    to: String,
    /// As --access, for the destination to store to [default: that of the variables `BACKUP_COPY_…`,
    /// if there are any, else as --access]
    #[arg(long, value_name = "PREFIX")]
    to_access: Option<String>,
    /// Let archives and roles leave this host in clear; also `PREFIX_PLAINTEXT_SECRETS=true`
    #[arg(long)]
    plaintext_secrets: bool,
}

impl CopyArgs {
    /// How the second destination is reached.
    fn read_to_access(&self) -> Access {
        let named = |prefix: &str| Access::new(prefix, std::env::vars_os());
        match &self.to_access {
            Some(prefix) => named(prefix),
            None => Some(named(access::COPY_PREFIX))
                .filter(Access::is_given)
                .unwrap_or_else(|| self.access.read()),
        }
    }
}

pub(super) fn run(args: &CopyArgs, console: &Console) -> anyhow::Result<Exit> {
    let input = console.input("bk-push manifest ID --from A | bk-push copy --from A --to B")?;
    let mut document = Document::read(input)?;
    let from = Store::open(&args.from, &args.access.read())?;
    let access = args.read_to_access();
    let allows_plain =
        args.plaintext_secrets || access.switch("PLAINTEXT_SECRETS")?.unwrap_or(false);
    let refuses_plain = Location::parse(&args.to)?.is_remote() && !allows_plain;
    let to = Store::open(&args.to, &access)?;
    let exit = copy::copy(&mut document, &from, &to, refuses_plain, console)?;
    document.write(console.output(), Format::Json)?;
    Ok(exit)
}
