//! The command line of `bk-push`.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::manifest::{Application, Header, Trailer};
use bk_manifest::progress::Progress;
use bk_manifest::select::Selection;
use bk_manifest::shell::{Console, EXIT_CODES_HELP, Verbosity};
use bk_manifest::spool::Document;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use clap::{Parser, Subcommand, ValueEnum};

use crate::access::{self, Access};
use crate::bucket::{self, Bucket, add, mirror};
use crate::catalog::{BackupInfo, Catalog};
use crate::destination::{self, Created, Destination, ErrorKind};
use crate::encrypt::Choice;
use crate::fetch::{self, Occupied};
use crate::identity::Identities;
use crate::location::Location;
use crate::rate::Rate;
use crate::store::{self, Store};
use crate::{copy, list, mark, push, walk};

/// Store a backup at a destination: manifest in, manifest out
///
/// Without a command, the manifest on standard input is stored: its files first, then itself.
#[derive(Debug, Parser)]
#[command(name = "bk-push", version, after_help = EXIT_CODES_HELP, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    push: PushArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a folder a backup destination
    Init(InitArgs),
    /// List the backups at a destination
    List(ListArgs),
    /// Print the manifest of a backup: the begin of a pipe
    Manifest(ManifestArgs),
    /// Restore the backup of the manifest on standard input into a folder or a bucket
    Fetch(FetchArgs),
    /// Copy the backup of the manifest on standard input to another destination
    Copy(CopyArgs),
    /// Add the objects of an application's own bucket to the manifest
    Add(AddArgs),
}

/// How a destination off this machine is reached.
#[derive(Debug, clap::Args)]
pub struct AccessArgs {
    /// How the variables begin that say how to reach the destination: `PREFIX_S3_ENDPOINT`, …
    #[arg(long, value_name = "PREFIX", default_value = access::PREFIX)]
    access: String,
    /// Bytes a second to and from a destination off this machine at most, with K, M or G
    #[arg(long, value_name = "RATE")]
    limit_rate: Option<Rate>,
}

impl AccessArgs {
    /// What the environment says.
    pub fn read(&self) -> Access {
        let flag = self.limit_rate.map(|rate| {
            (format!("{}_LIMIT_RATE", self.access).into(), rate.bytes().to_string().into())
        });
        Access::new(&self.access, std::env::vars_os().chain(flag))
    }
}

#[derive(Debug, clap::Args)]
struct PushArgs {
    /// Destination to store to
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH", hide_env_values = true)]
    to: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
    /// Store everything, whatever the parent has
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    encrypt: EncryptArgs,
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

/// The keys of encrypted backups.
#[derive(Debug, clap::Args)]
pub struct IdentityArgs {
    /// File with a key of age, for what is encrypted; gpg has its own keyring (can be repeated)
    #[arg(long, value_name = "FILE", env = "BACKUP_IDENTITY_FILE")]
    identity: Vec<PathBuf>,
}

impl IdentityArgs {
    /// The files; an empty variable names none.
    pub fn read(&self) -> Identities {
        Identities(self.identity.iter().filter(|file| !is_empty(file)).cloned().collect())
    }
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Json,
    Yaml,
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// Folder to make a destination; the one above it must be there
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH")]
    to: String,
    #[command(flatten)]
    access: AccessArgs,
    /// How long prune waits between its mark and the removal: longer than any push takes
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    grace: Duration,
}

#[derive(Debug, clap::Args)]
struct SeriesArgs {
    /// Name of the application
    #[arg(long, env = "BACKUP_APP")]
    app: Option<String>,
    /// Name of the series, where the application has several
    #[arg(long)]
    series: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
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

#[derive(Debug, clap::Args)]
struct ManifestArgs {
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

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct FetchArgs {
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

#[derive(Debug, clap::Args)]
struct CopyArgs {
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

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Bucket to list: `s3://BUCKET/PREFIX`
    #[arg(long, value_name = "BUCKET")]
    bucket: String,
    #[command(flatten)]
    access: AccessArgs,
    /// Name of the component, put before every key too
    #[arg(long = "as", value_name = "NAME")]
    component: String,
    /// Take no object as unchanged: have all of them read again
    #[arg(long)]
    rehash: bool,
    /// Record only that the bucket is not backed up, and why; nothing connects to it
    #[arg(long, value_name = "REASON", conflicts_with = "rehash")]
    skip: Option<String>,
}

/// The part of the arguments that the shell needs.
pub fn verbosity(args: &Args) -> &Verbosity {
    &args.verbosity
}

/// Does what the arguments say.
///
/// # Errors
/// Those of the step; their code is told by [`bk_manifest::exit::classify`].
pub fn run(args: &Args, console: &Console) -> anyhow::Result<Exit> {
    match &args.command {
        None => run_push(&args.push, console),
        Some(Command::Init(args)) => init(args, console),
        Some(Command::List(args)) => run_list(args, console),
        Some(Command::Manifest(args)) => manifest(args, console),
        Some(Command::Fetch(args)) => run_fetch(args, console),
        Some(Command::Copy(args)) => run_copy(args, console),
        Some(Command::Add(args)) => run_add(args, console),
    }
}

/// A time span: `90s`, `15m`, `24h`, `7d`.
///
/// # Errors
/// A line that says what a span looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let malformed = || "a time is a number and s, m, h or d".to_owned();
    let unit = text.chars().last().ok_or_else(malformed)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(malformed()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| malformed())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(malformed)
}

fn run_push(args: &PushArgs, console: &Console) -> anyhow::Result<Exit> {
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
        format,
        refuses_plain_secrets: Location::parse(to)?.is_remote() && !allows_plain,
        identity: access.plain("BACKUP_IDENTITY_FILE").map(PathBuf::from),
        encryption: Choice::new(&args.encrypt.encrypt, recipients)?,
    };
    let input = console.input("bk-manifest new … | bk-manifest add … | bk-push --to DEST")?;
    let reader = Reader::new(input)?;
    let store = Store::open(to, &access)?;
    push::push(reader, console.output(), &store, &options, &connect, console)
}

/// Opens a bucket that variables with this prefix say how to reach.
fn connect(name: &str, prefix: &str) -> anyhow::Result<Box<dyn Bucket>> {
    bucket::open(name, &Access::new(prefix, std::env::vars_os()))
}

fn run_add(args: &AddArgs, console: &Console) -> anyhow::Result<Exit> {
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
    };
    let bucket = connect(options.name, options.access)?;
    add::add(reader, console.output(), &*bucket, &options, console)
}

fn init(args: &InitArgs, console: &Console) -> anyhow::Result<Exit> {
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

impl SeriesArgs {
    /// The application that is named; an empty variable names none.
    fn app(&self) -> Option<&str> {
        self.app.as_deref().filter(|app| !app.is_empty())
    }

    /// The series that was named; none if no application was.
    fn name(&self) -> anyhow::Result<Option<String>> {
        match (self.app(), &self.series) {
            (Some(app), Some(series)) => Ok(Some(format!("{app}/{series}"))),
            (Some(app), None) => Ok(Some(app.to_owned())),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(fail(Exit::Usage, "--series needs --app")),
        }
    }
}

/// Ids of the backups that prune has marked.
fn marked_ids(destination: &dyn Destination) -> anyhow::Result<BTreeSet<String>> {
    Ok(mark::read_all(destination)?.into_iter().flat_map(|placed| placed.mark.backups).collect())
}

fn run_list(args: &ListArgs, console: &Console) -> anyhow::Result<Exit> {
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
            let failure = store::no_destination(&args.from, "is not there, or is no destination");
            return Err(match count {
                0 => failure,
                _ => failure.hint(format!("backups below it: {count}; was its marker lost?")),
            }
            .into());
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

fn manifest(args: &ManifestArgs, console: &Console) -> anyhow::Result<Exit> {
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
        return Err(Failure::new(Exit::NotFound, format!("{what} at '{name}'"))
            .hint(format!("see what is there: bk-push list --from {name}"))
            .into());
    };
    let mut reader = Reader::new(store.destination.read(&found.manifest.name, None)?)?;
    let mut header = reader.header().clone();
    // What a stored document says of its run is not believed.
    let run = bk_manifest::manifest::Run {
        place: Some(found.manifest.name.clone()),
        destination: Some(store.marker.id.clone()),
        ..bk_manifest::manifest::Run::default()
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
    let header = Header::new(&application, None, &bk_manifest::manifest::Run::default());
    Writer::new(console.output(), Format::Json, header)?.end(Trailer::default())?;
    Ok(Exit::Done)
}

fn run_fetch(args: &FetchArgs, console: &Console) -> anyhow::Result<Exit> {
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

fn run_copy(args: &CopyArgs, console: &Console) -> anyhow::Result<Exit> {
    let input = console.input("bk-push manifest ID --from A | bk-push copy --from A --to B")?;
    let mut document = Document::read(input)?;
    let from = Store::open(&args.from, &args.access.read())?;
    let to = Store::open(&args.to, &args.read_to_access())?;
    let exit = copy::copy(&mut document, &from, &to, console)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn an_empty_variable_names_no_application() {
        let name = |app: Option<&str>, series: Option<&str>| {
            let args =
                SeriesArgs { app: app.map(str::to_owned), series: series.map(str::to_owned) };
            args.name().ok()
        };
        assert_eq!(name(Some(""), None), Some(None));
        assert_eq!(name(Some(""), Some("s")), None);
        assert_eq!(name(Some("a"), Some("s")), Some(Some("a/s".into())));
    }

    #[test]
    fn spans_have_units() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_hours(24)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "h", "5", "5 h", "-1h", "5ä"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
