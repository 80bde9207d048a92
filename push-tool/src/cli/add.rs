//! `bk-push add`: lists an application's own bucket.

use bk_manifest::cli::shrink::ShrinkArgs;
use bk_manifest::exit::Exit;
use bk_manifest::manifest::Layout;
use bk_manifest::shell::Console;
use bk_manifest::stream::Reader;

use super::access::{AccessArgs, connect};
use crate::bucket::{self, add};

#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// Bucket to list: `s3://BUCKET/PREFIX`
    #[arg(long, value_name = "BUCKET")]
    bucket: String,
    #[command(flatten)]
    access: AccessArgs,
    /// Name of the component, put before every key too
    #[arg(long = "as", value_name = "NAME")]
    component: String,
    /// How its objects are stored: each as one, which opens with any tool, or many in one volume, which
    /// takes far fewer requests where they are small
    #[arg(long, value_enum, default_value_t = LayoutArg::Plain, env = "BACKUP_BUCKET_LAYOUT")]
    layout: LayoutArg,
    /// Take no object as unchanged: have all of them read again
    #[arg(long)]
    rehash: bool,
    #[command(flatten)]
    shrink: ShrinkArgs,
    /// Record only that the bucket is not backed up, and why; nothing connects to it
    #[arg(long, value_name = "REASON", conflicts_with = "rehash")]
    skip: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LayoutArg {
    Plain,
    Packed,
}

pub(super) fn run(args: &AddArgs, console: &Console) -> anyhow::Result<Exit> {
    let input = console.input(
        "bk-manifest new … | bk-push add --bucket s3://BUCKET --as NAME | bk-push --to DEST",
    )?;
    let reader = Reader::new(input)?;
    bucket::parse_name(&args.bucket)?;
    if let Some(reason) = &args.skip {
        return add::skip(reader, console.output(), &args.component, &args.bucket, reason);
    }
    let options = add::Options {
        component: &args.component,
        name: &args.bucket,
        access: &args.access.access,
        rehash: args.rehash,
        layout: match args.layout {
            LayoutArg::Plain => Layout::Plain,
            LayoutArg::Packed => Layout::Packed,
        },
        max_shrink: args.shrink.limit(),
    };
    let bucket = connect(options.name, options.access)?;
    add::add(reader, console.output(), &*bucket, &options, console)
}
