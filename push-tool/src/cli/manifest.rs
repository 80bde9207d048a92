//! `bk-push manifest`: prints a stored manifest.

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::{Application, Header, Run, Trailer};
use bk_manifest::progress::Progress;
use bk_manifest::shell::Console;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;

use super::access::AccessArgs;
use super::series::{SeriesArgs, marked_ids};
use crate::catalog::{BackupInfo, Catalog};
use crate::store::Store;

#[derive(Debug, clap::Args)]
pub(super) struct ManifestArgs {
    /// Id of the backup, or `latest`
    id: String,
    /// Destination to read from
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH")]
    from: String,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    series: SeriesArgs,
    /// Latest before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    before: Option<Time>,
    /// Print an empty manifest if the destination holds no backup yet
    #[arg(long)]
    or_none: bool,
}

pub(super) fn run(args: &ManifestArgs, console: &Console) -> anyhow::Result<Exit> {
    let store = Store::open(&args.from, &args.access.read())?;
    let catalog = Catalog::read(&*store.destination)?;
    for (object, error) in &catalog.unreadable {
        console.warn(&format!("'{}' cannot be read: {error:#}", object.name));
    }
    let series = args.series.name()?;
    let found = if args.id == "latest" {
        let marked = marked_ids(&*store.destination)?;
        let backups = catalog.series(series.as_deref())?;
        let is_before = |backup: &&&BackupInfo| args.before.is_none_or(|time| backup.time < time);
        backups.iter().rev().filter(is_before).find(|backup| !marked.contains(&backup.id)).copied()
    } else {
        catalog.find(&args.id)
    };
    let Some(found) = found else {
        if args.or_none && args.id == "latest" && catalog.unreadable.is_empty() {
            return none(console, args.series.app());
        }
        let what = match args.id.as_str() {
            "latest" => "no backup".to_owned(),
            id => format!("no backup '{}'", bk_manifest::path::escape(id.as_bytes())),
        };
        let name = store.destination.describe();
        if args.or_none
            && args.id == "latest"
            && let Some((object, _)) = catalog.unreadable.first()
        {
            let object = bk_manifest::path::escape(object.name.as_bytes());
            let message = format!("'{object}' at '{name}' may be a backup, and cannot be read");
            return Err(Failure::new(Exit::NotFound, message)
                .hint(
                    "--or-none is for a destination without any: repair the file, or move it away",
                )
                .into());
        }
        return Err(Failure::new(Exit::NotFound, format!("{what} at '{name}'"))
            .hint(format!("see what is there: bk-push list --from {name}"))
            .into());
    };
    let mut reader = Reader::new(store.destination.read(&found.manifest.name, None)?)?;
    let mut header = reader.header().clone();
    // What a stored document says of its run is not believed.
    let run = Run {
        place: Some(found.manifest.name.clone()),
        destination: Some(store.marker.id.clone()),
        ..Run::default()
    };
    header.set_run(&run);
    let mut writer = Writer::new(console.output(), Format::Json, header)?;
    bk_manifest::stream::copy_entries(&mut reader, &mut writer)?;
    let (_, trailer) = reader.end()?;
    writer.end(trailer.stored())?;
    Ok(Exit::Done)
}

/// The empty document that stands for "no backup yet".
fn none(console: &Console, app: Option<&str>) -> anyhow::Result<Exit> {
    let application = Application { name: app.unwrap_or_default().to_owned(), version: None };
    let header = Header::new(&application, None, &Run::default());
    Writer::new(console.output(), Format::Json, header)?.end(Trailer::default())?;
    Ok(Exit::Done)
}
