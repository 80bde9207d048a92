//! `bk-push`: stores the backup of the manifest on standard input.

use std::path::PathBuf;

use anyhow::Context;
use bk_manifest::cli::shrink::ShrinkArgs;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::shell::Console;
use bk_manifest::stream::{Format, Reader};
use clap::ValueEnum;

use super::access::{AccessArgs, connect, is_empty};
use crate::dry_run::DryRun;
use crate::encrypt::Choice;
use crate::location::Location;
use crate::push;
use crate::store::Store;

#[derive(Debug, clap::Args)]
pub(super) struct PushArgs {
    /// Destination to store to
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH", hide_env_values = true)]
    to: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
    /// Store everything, whatever the parent has
    #[arg(long)]
    full: bool,
    /// Read, compress and encrypt, but store nothing; print what would be stored, and for S3 in how many
    /// requests
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    encrypt: EncryptArgs,
    #[command(flatten)]
    shrink: ShrinkArgs,
    /// Form of the stored manifest
    #[arg(long, value_enum, default_value = "json", env = "BACKUP_MANIFEST_FORMAT")]
    format: FormatArg,
}

/// How what is stored is encrypted.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "help texts: backticks would be printed")]
struct EncryptArgs {
    /// Encrypt for age:RECIPIENT or gpg:KEY, or one component: NAME=age:RECIPIENT (can be repeated)
    #[arg(long, value_name = "HOW", env = "BACKUP_ENCRYPT")]
    encrypt: Vec<String>,
    /// Encrypt for the recipients in a file, by age
    #[arg(long, value_name = "FILE", env = "BACKUP_ENCRYPT_RECIPIENTS_FILE")]
    recipients_file: Option<PathBuf>,
    /// Let archives and roles leave this host in clear; also BACKUP_PLAINTEXT_SECRETS=true
    #[arg(long)]
    plaintext_secrets: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Json,
    Yaml,
}

pub(super) fn run(args: &PushArgs, console: &Console) -> anyhow::Result<Exit> {
    let to = args.to.as_deref().ok_or_else(|| {
        Failure::new(Exit::Usage, "no destination was given").hint("say where to: --to DEST")
    })?;
    let format = match args.format {
        FormatArg::Json => Format::Json,
        FormatArg::Yaml => Format::Yaml,
    };
    let access = args.access.read();
    let allows_plain = access.switch("PLAINTEXT_SECRETS")?.unwrap_or(false);
    let allows_plain = args.encrypt.plaintext_secrets || allows_plain;
    let recipients = args.encrypt.recipients_file.as_ref().filter(|file| !is_empty(file));
    let options = push::Options {
        full: args.full,
        is_dry: args.dry_run,
        format,
        max_shrink: args.shrink.limit(),
        refuses_plain_secrets: Location::parse(to)?.is_remote() && !allows_plain,
        identity: access.plain("BACKUP_IDENTITY_FILE").map(PathBuf::from),
        encryption: Choice::new(&args.encrypt.encrypt, recipients)?,
    };
    let input = console.input("bk-manifest new … | bk-manifest add … | bk-push --to DEST")?;
    let reader = Reader::new(input)?;
    let mut store = Store::open(to, &access)?;
    let mut output = console.output();
    if args.dry_run {
        let dry_run = DryRun::over(store.destination).context("cannot create a temporary file")?;
        store.destination = Box::new(dry_run);
        output = console.text_output();
    }
    push::push(reader, output, &store, &options, &connect, console)
}
