//! The command line of `bk-manifest`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::add;
use crate::entry::{DEFAULT_COMPONENT, Trust};
use crate::exit::{Exit, Failure, fail};
use crate::manifest::{Application, Backup, Header, ParentFile, Run, Trailer, is_name};
use crate::scan::{self, Excludes};
use crate::shell::{Console, EXIT_CODES_HELP, Verbosity};
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
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// Name of the application
    #[arg(long, env = "BACKUP_APP")]
    app: String,
    /// Version of the application
    #[arg(long)]
    app_version: Option<String>,
    /// Name that tells several series of one application apart
    #[arg(long)]
    series: Option<String>,
    /// Manifest of the backup to build on, as `bk-push manifest latest` printed it
    #[arg(long, value_name = "FILE")]
    parent: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
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
    };
    let input = console.input("bk-manifest new --app NAME | bk-manifest add --root DIR | …")?;
    let reader = Reader::new(Box::new(input) as Box<dyn Read>)?;
    add::add(reader, console.output(), &args.root, &options, console)
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
