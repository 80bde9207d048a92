//! `bk-push fetch`: brings a backup back, into a folder or a bucket.

use std::path::PathBuf;

use bk_manifest::exit::Exit;
use bk_manifest::select::Selection;
use bk_manifest::shell::Console;
use bk_manifest::spool::Document;
use bk_manifest::stream::Format;
use bk_manifest::time::Time;

use super::access::{AccessArgs, IdentityArgs, connect};
use crate::bucket::mirror;
use crate::fetch::{self, Occupied};
use crate::store::Store;

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct FetchArgs {
    /// Destination to read from
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH")]
    from: String,
    #[command(flatten)]
    access: AccessArgs,
    /// Folder to restore into; empty or new
    #[arg(long, value_name = "DIR", required_unless_present = "bucket", conflicts_with = "bucket")]
    target: Option<PathBuf>,
    /// Bucket to put a bucket's objects back into; empty
    #[arg(long, value_name = "BUCKET", conflicts_with = "resume")]
    bucket: Option<String>,
    /// How the variables begin that say how to reach the bucket [default: as for the destination]
    #[arg(long, value_name = "PREFIX", requires = "bucket")]
    bucket_access: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Restore only paths that match, and what is below them (can be repeated)
    #[arg(long, value_name = "GLOB")]
    path: Vec<String>,
    /// Restore only this component (can be repeated)
    #[arg(long, value_name = "NAME")]
    component: Vec<String>,
    /// Go on with a fetch of the same backup that was stopped
    #[arg(long, conflicts_with = "into")]
    resume: bool,
    /// Restore into a folder that is not empty; what is replaced is put aside (in a bucket it is
    /// overwritten, where it differs)
    #[arg(long)]
    into: bool,
    /// Remove from the bucket what the backup does not have, once all is back
    #[arg(long, requires_all = ["bucket", "into"], conflicts_with = "path")]
    delete_strangers: bool,
    /// Only find out whether the target can take it: its state, its space
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &FetchArgs, console: &Console) -> anyhow::Result<Exit> {
    let Some(target) = &args.target else { return run_mirror(args, console) };
    let options = fetch::Options {
        target: target.clone(),
        selection: Selection::new(&args.path, &args.component)?,
        occupied: match (args.resume, args.into) {
            (true, _) => Occupied::Resume,
            (_, true) => Occupied::Into,
            _ => Occupied::Refuse,
        },
        is_dry: args.dry_run,
        identities: args.identity.read(),
        temporary: std::env::temp_dir(),
        now: Time::now(),
    };
    let input = console
        .input("bk-push manifest latest --from DEST | bk-push fetch --from DEST --target DIR")?;
    let mut document = Document::read(input)?;
    let store = Store::open(&args.from, &args.access.read())?;
    let exit = fetch::fetch(&mut document, &store, &options, console)?;
    document.write(console.output(), Format::Json)?;
    Ok(exit)
}

/// The fetch into a bucket.
fn run_mirror(args: &FetchArgs, console: &Console) -> anyhow::Result<Exit> {
    let name = args.bucket.as_deref().unwrap_or_default();
    let access = args.bucket_access.as_deref().unwrap_or(&args.access.access);
    let bucket = connect(name, access)?;
    let input = console.input(
        "bk-push manifest latest --from DEST | bk-push fetch --from DEST --bucket s3://BUCKET",
    )?;
    let mut document = Document::read(input)?;
    let options = mirror::Options {
        component: mirror::the_component(&document, &args.component)?,
        paths: &args.path,
        overwrites: args.into,
        deletes_strangers: args.delete_strangers,
        is_dry: args.dry_run,
        identities: &args.identity.read(),
        temporary: &std::env::temp_dir(),
    };
    let store = Store::open(&args.from, &args.access.read())?;
    let exit = mirror::mirror(&mut document, &store, &*bucket, &options, console)?;
    document.write(console.output(), Format::Json)?;
    Ok(exit)
}
