//! The command line of `bk-manifest`.

pub mod shrink;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::shrink::ShrinkArgs;
use crate::add;
use crate::check;
use crate::diff;
use crate::entry::{DEFAULT_COMPONENT, Trust};
use crate::env_file;
use crate::exit::{Exit, Failure, fail};
use crate::ls;
use crate::manifest::{Application, Backup, Header, ParentFile, Run, Trailer, is_name};
use crate::progress::Progress;
use crate::scan::{self, Excludes};
use crate::select::Selection;
use crate::settings;
use crate::settings_example;
use crate::sheet;
use crate::sheet_facts;
use crate::shell::{Console, EXIT_CODES_HELP, Verbosity};
use crate::show::Summary;
use crate::stream::{Format, Reader, Writer};
use crate::time::Time;

/// Make, read and compare manifests; walk trees
#[derive(Debug, Parser)]
#[command(name = "bk-manifest", version, after_help = EXIT_CODES_HELP)]
pub struct Args {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a pipe: print the manifest of a new backup
    New(NewArgs),
    /// Add the entries of a tree to the manifest
    Add(AddArgs),
    /// Say what a backup is and holds, for people
    Show(ShowArgs),
    /// List the paths of a manifest
    Ls(LsArgs),
    /// Say what differs between two manifests: + added, - removed, M content, m metadata only
    Diff(DiffArgs),
    /// Print the manifest in the other form; its checksums stay the same
    Convert(ConvertArgs),
    /// Read manifests to their end; say nothing if they are whole, else end with 21
    Check(CheckArgs),
    /// Print the known settings of the environment and an env file, NUL-separated, for a script
    Settings(SettingsArgs),
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// Name of the application
    #[arg(long, env = "BACKUP_APP")]
    app: String,
    /// Version of the application
    #[arg(long, env = "BACKUP_APP_VERSION")]
    app_version: Option<String>,
    /// Name that tells several series of one application apart
    #[arg(long)]
    series: Option<String>,
    /// Manifest of the backup to build on, as `bk-push manifest latest` printed it
    #[arg(long, value_name = "FILE")]
    parent: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct AddArgs {
    /// Folder that the paths are relative to
    #[arg(long, value_name = "DIR", env = "BACKUP_ROOT")]
    root: PathBuf,
    /// Files and folders below the root [default: all of it]
    paths: Vec<PathBuf>,
    /// Put PREFIX before every path, for a second tree
    #[arg(long = "as", value_name = "PREFIX")]
    prefix: Option<PathBuf>,
    /// Component that the tree belongs to
    #[arg(long, value_name = "NAME", default_value = DEFAULT_COMPONENT)]
    component: String,
    /// Leave out what matches: NAME anywhere, or a PATH from the root; `*`, `**` (can be repeated)
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave out files larger than this; K, M, G and T are powers of 1024
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_file_size: Option<u64>,
    /// Stay on the root's file system
    #[arg(long)]
    one_file_system: bool,
    /// Read every file and record its checksum, for a manifest of a tree by itself
    #[arg(long)]
    hash: bool,
    /// Take no file as unchanged: have all of them read again
    #[arg(long)]
    rehash: bool,
    /// Do not compare change times (network file systems that invent them)
    #[arg(long)]
    ignore_ctime: bool,
    /// Do not compare inode numbers (network file systems that invent them)
    #[arg(long)]
    ignore_inode: bool,
    #[command(flatten)]
    shrink: ShrinkArgs,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Manifest to read [default: standard input]
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// Print everything but the entries as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct LsArgs {
    /// Manifest to read [default: standard input]
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// Print mode, owner, size, time and target too
    #[arg(short, long)]
    long: bool,
    /// Print the raw bytes of the paths, each followed by a NUL, for xargs -0
    #[arg(short = '0', long, conflicts_with = "long")]
    null: bool,
    /// List only what matches and what is below it; `*` stays within a folder, `**` does not (can be repeated)
    #[arg(long, value_name = "GLOB")]
    path: Vec<String>,
    /// List only entries of this component (can be repeated)
    #[arg(long, value_name = "NAME")]
    component: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct DiffArgs {
    /// Older manifest; `-` is standard input
    old: PathBuf,
    /// Newer manifest; `-` is standard input
    new: PathBuf,
    /// Print a JSON object for each difference
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ConvertArgs {
    /// Form to print
    #[arg(long, value_enum)]
    format: FormatName,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormatName {
    /// One JSON document, one entry a line
    Json,
    /// Block style for people, one entry a line
    Yaml,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Manifests to read [default: standard input]
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    files: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct SettingsArgs {
    /// Read FILE too, by the rules of Docker Compose; the environment beats it, nothing is executed
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Fail if this setting has no value (can be repeated)
    #[arg(long, value_name = "NAME")]
    require: Vec<String>,
    /// Print the settings for people, with where each comes from; secrets are masked
    #[arg(long)]
    show: bool,
    /// Print a recovery sheet, to keep elsewhere: an env file without its secrets, and how to get all back with it
    #[arg(long, conflicts_with = "show")]
    sheet: bool,
    /// Print an annotated env file with all settings
    #[arg(long, conflicts_with_all = ["show", "sheet", "env_file", "require"])]
    example: bool,
}

/// The part of the arguments that the shell needs.
pub fn verbosity(args: &Args) -> &Verbosity {
    &args.verbosity
}

/// Does what the arguments say.
///
/// # Errors
/// Those of the step; their code is told by [`crate::exit::classify`].
pub fn run(args: &Args, console: &Console) -> anyhow::Result<Exit> {
    match &args.command {
        Command::New(args) => new(args, console),
        Command::Add(args) => run_add(args, console),
        Command::Show(args) => run_show(args, console),
        Command::Ls(args) => run_ls(args, console),
        Command::Diff(args) => run_diff(args, console),
        Command::Convert(args) => run_convert(args, console),
        Command::Check(args) => run_check(args, console),
        Command::Settings(args) => run_settings(args, console),
    }
}

/// Bytes with an optional unit: `512`, `10M`, `1G`.
///
/// # Errors
/// A line that says what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err("a size is a number and K, M, G or T".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a size is a number and K, M, G or T")?;
    number.checked_mul(1 << shift).ok_or_else(|| "the size is too large".into())
}

fn new(args: &NewArgs, console: &Console) -> anyhow::Result<Exit> {
    for name in [Some(&args.app), args.series.as_ref()].into_iter().flatten() {
        if !is_name(name) {
            let message = format!("'{}' cannot be a name", name.escape_debug());
            return Err(Failure::new(Exit::Usage, message)
                .hint("use letters, digits, '-', '_' and '.', beginning with a letter or digit")
                .into());
        }
    }
    let now = Time::now().to_milliseconds();
    let parent = args.parent.as_deref().map(|path| read_parent(path, args)).transpose()?.flatten();
    let mut random = [0u8; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .context("cannot get random bytes")?;
    let backup = Backup {
        id: format!("backup-{}-{:08x}", now.format("%Y%m%d-%H%M%S"), u32::from_be_bytes(random)),
        parent_backup_id: parent.as_ref().map(|(id, _)| id.clone()),
        timestamp: now.format("%Y-%m-%dT%H:%M:%S%.3fZ"),
        host: Some(host_name()),
        series: args.series.clone(),
        ..Backup::default()
    };
    let application = Application { name: args.app.clone(), version: args.app_version.clone() };
    let run = Run { parent: parent.map(|(_, file)| file), ..Run::default() };
    let header = Header::new(&application, Some(&backup), &run);
    let mut trailer = Trailer::default();
    trailer.set_run(&crate::manifest::EndRun::default());
    Writer::new(console.output(), Format::Json, header)?.end(trailer)?;
    Ok(Exit::Done)
}

/// The id of the parent and its file; none if the file stands for "no backup yet".
fn read_parent(path: &Path, args: &NewArgs) -> anyhow::Result<Option<(String, ParentFile)>> {
    let file = std::fs::File::open(path).map_err(|error| {
        fail(
            Exit::Usage,
            format!("cannot open the parent's manifest '{}': {error}", path.display()),
        )
    })?;
    let reader = Reader::new(file).with_context(|| format!("'{}'", path.display()))?;
    let Some(backup) = reader.header().backup()? else {
        reader.end().with_context(|| format!("'{}'", path.display()))?;
        return Ok(None);
    };
    let series = reader.header().series()?;
    let mine = match &args.series {
        Some(series) => format!("{}/{series}", args.app),
        None => args.app.clone(),
    };
    if series != mine {
        let message = format!(
            "the parent belongs to the series '{}', not to '{mine}'",
            series.escape_debug()
        );
        return Err(fail(Exit::Usage, message));
    }
    let file = std::path::absolute(path)?.into_os_string().into_string().map_err(|_| {
        fail(Exit::Usage, "the path of the parent's manifest is not UTF-8".to_owned())
    })?;
    Ok(Some((backup.id, ParentFile { file })))
}

/// The name of this machine.
pub fn host_name() -> String {
    crate::path::escape(rustix::system::uname().nodename().to_bytes())
}

fn run_add(args: &AddArgs, console: &Console) -> anyhow::Result<Exit> {
    use std::os::unix::ffi::OsStrExt;
    let relative = |path: &PathBuf| scan::relative(path.as_os_str().as_bytes());
    let mut paths = Vec::new();
    let mut is_whole = args.paths.is_empty();
    for path in &args.paths {
        match relative(path)? {
            Some(path) => paths.push(path),
            None => is_whole = true,
        }
    }
    let prefix = args.prefix.as_ref().map(relative).transpose()?.flatten();
    if prefix.iter().chain(&paths).any(crate::path::RelPath::is_own) {
        return Err(fail(Exit::Usage, "'.bk' is a name that bk keeps for itself"));
    }
    if !is_name(&args.component) {
        let message = format!("'{}' cannot be a component's name", args.component.escape_debug());
        return Err(fail(Exit::Usage, message));
    }
    let options = add::Options {
        component: args.component.clone(),
        scan: scan::Options {
            paths: if is_whole { Vec::new() } else { paths },
            prefix,
            excludes: Excludes::new(&args.exclude)?,
            size_limit: args.max_file_size,
            one_file_system: args.one_file_system,
        },
        hash: args.hash,
        rehash: args.rehash,
        trust: Trust { ctime: !args.ignore_ctime, inode: !args.ignore_inode },
        max_shrink: args.shrink.limit(),
    };
    let input = console.input("bk-manifest new --app NAME | bk-manifest add --root DIR | …")?;
    let reader = Reader::new(Box::new(input) as Box<dyn Read>)?;
    add::add(reader, console.output(), &args.root, &options, console)
}

/// A manifest named on the command line; `-` is standard input.
fn open(path: &Path, console: &Console) -> anyhow::Result<Box<dyn Read>> {
    if path == Path::new("-") {
        let example = "bk-push manifest latest --from DEST | bk-manifest show";
        return Ok(Box::new(console.input(example)?));
    }
    let file = std::fs::File::open(path).map_err(|error| {
        fail(Exit::Usage, format!("cannot open the manifest '{}': {error}", path.display()))
    })?;
    Ok(Box::new(file))
}

/// What an error is about, where standard input needs no name.
fn about(path: &Path) -> String {
    if path == Path::new("-") { "standard input".into() } else { format!("'{}'", path.display()) }
}

fn run_show(args: &ShowArgs, console: &Console) -> anyhow::Result<Exit> {
    let input = open(&args.file, console)?;
    let read = || Summary::read(Reader::new(input)?);
    let summary = read().with_context(|| about(&args.file))?;
    let mut output = console.text_output();
    if args.json {
        summary.write_json(&mut output)?;
    } else {
        summary.write_text(&mut output)?;
    }
    Ok(Exit::Done)
}

fn run_ls(args: &LsArgs, console: &Console) -> anyhow::Result<Exit> {
    let selection = Selection::new(&args.path, &args.component)?;
    let form = match (args.long, args.null) {
        (true, _) => ls::Form::Long,
        (_, true) => ls::Form::Raw,
        _ => ls::Form::Short,
    };
    let input = open(&args.file, console)?;
    let reader = Reader::new(input).with_context(|| about(&args.file))?;
    ls::ls(reader, &mut console.text_output(), &selection, form)
        .with_context(|| about(&args.file))?;
    Ok(Exit::Done)
}

fn run_diff(args: &DiffArgs, console: &Console) -> anyhow::Result<Exit> {
    if args.old == Path::new("-") && args.new == Path::new("-") {
        return Err(fail(Exit::Usage, "only one of the manifests can be standard input"));
    }
    let reader = |path: &Path| -> anyhow::Result<Reader<'static>> {
        Reader::new(open(path, console)?).with_context(|| about(path))
    };
    let (old, new) = (reader(&args.old)?, reader(&args.new)?);
    let form = if args.json { diff::Form::Json } else { diff::Form::Text };
    let counts = diff::diff(old, new, &mut console.text_output(), form)?;
    console.note(&format!(
        "{} added, {} removed, {} with other content, {} with other metadata",
        counts.added, counts.removed, counts.content, counts.metadata
    ));
    Ok(Exit::Done)
}

fn run_convert(args: &ConvertArgs, console: &Console) -> anyhow::Result<Exit> {
    let format = match args.format {
        FormatName::Json => Format::Json,
        FormatName::Yaml => Format::Yaml,
    };
    let input =
        console.input("bk-manifest convert --format yaml < manifest.json > manifest.yaml")?;
    let mut reader = Reader::new(input)?;
    let mut writer = Writer::new(console.output(), format, reader.header().clone())?;
    crate::stream::copy_entries(&mut reader, &mut writer)?;
    let (_, trailer) = reader.end()?;
    let exit = trailer.exit()?;
    writer.end(trailer)?;
    Ok(exit)
}

fn run_check(args: &CheckArgs, console: &Console) -> anyhow::Result<Exit> {
    let check = |path: &PathBuf| -> anyhow::Result<()> {
        let (_, trailer) = check::check(open(path, console)?).with_context(|| about(path))?;
        console.note(&format!("{}: whole, {} entries", about(path), trailer.totals.count));
        Ok(())
    };
    if let [file] = &args.files[..] {
        check(file)?;
        return Ok(Exit::Done);
    }
    let mut faults = Vec::new();
    for file in &args.files {
        if let Err(error) = check(file) {
            crate::signal::check()?;
            console.warn(&format!("{error:#}"));
            faults.push(crate::exit::classify(&error));
        }
    }
    match faults.iter().max_by_key(|exit| exit.code()) {
        None => Ok(Exit::Done),
        Some(worst) => {
            let message = format!("{} of {} are at fault", faults.len(), args.files.len());
            Err(fail(*worst, message))
        }
    }
}

fn run_settings(args: &SettingsArgs, console: &Console) -> anyhow::Result<Exit> {
    let mut output = console.text_output();
    if args.example {
        output.write_all(settings_example::example().as_bytes())?;
        output.flush()?;
        return Ok(Exit::Done);
    }
    let env_file = match &args.env_file {
        Some(path) => read_env_file(path, console)?,
        None => BTreeMap::new(),
    };
    for name in settings::misspelled(&env_file) {
        console.warn(&format!("'{name}' is no setting of bk: is it misspelled?"));
    }
    let environment = |name: &str| std::env::var_os(name);
    let sources = settings::Sources { environment: &environment, env_file: &env_file };
    let settings = settings::resolve(&sources, &args.require)
        .map_err(|error| fail(Exit::Usage, error.to_string()))?;
    if args.sheet {
        let folder = std::env::current_dir().context("cannot tell the current folder")?;
        let file = folder.join(args.env_file.as_deref().unwrap_or(Path::new("recovery.env")));
        let facts = sheet::Facts {
            config_folder: file.parent().unwrap_or(&folder).to_owned(),
            folder,
            host: host_name(),
            now: Time::now(),
            notes: sheet_facts::notes(&settings),
            recipients: sheet_facts::recipients(&settings),
            host_keys: sheet_facts::host_keys(&settings),
        };
        output.write_all(sheet::sheet(&settings, &facts).as_bytes())?;
        output.flush()?;
    } else if args.show {
        settings::write_shown(&mut output, &settings)?;
    } else {
        settings::write_pairs(&mut output, &settings)?;
    }
    Ok(Exit::Done)
}

fn read_env_file(path: &Path, console: &Console) -> anyhow::Result<BTreeMap<String, String>> {
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    let cannot =
        |error: std::io::Error| fail(Exit::Usage, format!("cannot read '{shown}': {error}"));
    let mut file = std::fs::File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode();
    if mode & 0o004 != 0 {
        console.warn(&format!("others can read '{shown}', which may hold secrets: chmod 600 it"));
    }
    if mode & 0o022 != 0 {
        console.warn(&format!("others can write '{shown}': chmod 600 it"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(cannot)?;
    env_file::parse(&text, &|name| std::env::var(name).ok())
        .map_err(|error| fail(Exit::Usage, format!("'{shown}', {error}")))
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
    fn sizes_have_units() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("10M"), Ok(10 << 20));
        assert_eq!(parse_size("1 gib"), Err("a size is a number and K, M, G or T".into()));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        for bad in ["", "M", "-1", "99999999999T", "1.5G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
