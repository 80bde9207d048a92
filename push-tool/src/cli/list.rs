//! `bk-push list`: shows which backups are at a destination.

use std::io::Write;
use std::time::{Duration, Instant};

use bk_manifest::exit::Exit;
use bk_manifest::progress::Progress;
use bk_manifest::shell::Console;

use super::access::AccessArgs;
use super::parse_duration;
use super::series::{SeriesArgs, marked_ids};
use crate::catalog::Catalog;
use crate::destination::{self, ErrorKind};
use crate::store::{self, Store};
use crate::{list, walk};

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Destination to look at
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH")]
    from: String,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    series: SeriesArgs,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// List again after this time, until two listings agree: for stores whose listings lag
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    settle: Option<Duration>,
}

pub(super) fn run(args: &ListArgs, console: &Console) -> anyhow::Result<Exit> {
    let (destination, marker) = Store::find(&args.from, &args.access.read())?;
    let destination = &*destination;
    let manifests = match args.settle {
        None => walk::manifests(destination),
        Some(pause) => walk::settled(destination, pause, &mut |pause| wait(pause, console)),
    };
    let catalog = match manifests {
        Ok(manifests) => Catalog::of(destination, manifests)?,
        Err(error) if marker.is_none() && is_missing(&error) => Catalog::default(),
        Err(error) => return Err(error),
    };
    if marker.is_none() {
        // Backups of ours below a folder without its marker may be half of what there was.
        let count = catalog.backups.len();
        if count > 0 || catalog.foreign.is_empty() {
            let mut failure =
                store::no_destination(&args.from, "is not there, or is no destination");
            if count > 0 {
                failure = failure.hint(format!("backups below it: {count}; was its marker lost?"));
            }
            if let Some(folder) = catalog.borders.folders().next() {
                let folder = bk_manifest::path::escape(folder.as_bytes());
                failure = failure.hint(format!("a destination below it: '{folder}'"));
            }
            return Err(failure.into());
        }
        console.warn(&format!(
            "'{}' is no destination of bk: these are backups of other systems",
            args.from
        ));
    }
    let ids = marked_ids(destination)?;
    let series = args.series.name()?;
    let backups = list::select(&catalog, series.as_deref(), &ids);
    if series.is_some() && !catalog.foreign.is_empty() {
        let count = catalog.foreign.len();
        console
            .note(&format!("{count} backups of other systems are not shown: they have no series"));
    }
    if let Some(warning) = catalog.borders.warning() {
        console.warn(&warning);
    }
    let mut output = console.text_output();
    if args.json {
        list::json_lines(&mut output, &backups)?;
    } else {
        list::table(&mut output, &backups)?;
    }
    output.flush()?;
    for (object, error) in &catalog.unreadable {
        console.warn(&format!("'{}' cannot be read: {error:#}", object.name));
    }
    Ok(if catalog.unreadable.is_empty() { Exit::Done } else { Exit::Malformed })
}

/// Whether an error says that what was listed is not there.
fn is_missing(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<destination::Error>();
    error.is_some_and(|error| error.kind == ErrorKind::NotFound)
}

/// Waits, unless the process is told to stop.
fn wait(pause: Duration, console: &Console) -> anyhow::Result<()> {
    const TICK: Duration = Duration::from_millis(100);
    console.note(&format!("looking again in {} s", pause.as_secs()));
    let since = Instant::now();
    while since.elapsed() < pause {
        bk_manifest::signal::check()?;
        std::thread::sleep(TICK.min(pause));
    }
    Ok(())
}
