//! The command line of `bk-verify`.

use std::io::Read;
use std::path::PathBuf;

use bk_manifest::cli::host_name;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::select::Selection;
use bk_manifest::shell::{Console, EXIT_CODES_HELP, Verbosity};
use bk_manifest::stream::Reader;
use bk_manifest::time::Time;
use bk_push::cli::{AccessArgs, IdentityArgs};
use bk_push::store::Store;
use clap::{Parser, ValueEnum};

use crate::against::against;
use crate::compare::Rules;
use crate::dumps::HostDumps;
use crate::level::Level;
use crate::report::{self, ReportFile};
use crate::verify::{Options, verify};

const PIPE: &str =
    "bk-push manifest latest --from DEST | bk-verify --from DEST --level content > verified.json";

/// Prove that a backup, or a copy of what it holds, is what its manifest says
///
/// Reads a manifest from standard input and passes it on, with the proof added, if all is good.
/// What is damaged is named on standard error: the object, the files in it, and the other backups
/// that need it; then the manifest is not ended and the exit code is 20.
#[derive(Debug, Parser)]
#[command(name = "bk-verify", version, after_help = EXIT_CODES_HELP)]
pub struct Args {
    #[command(flatten)]
    verbosity: Verbosity,
    /// Destination that holds the backup
    #[arg(
        long,
        value_name = "DEST",
        env = "BACKUP_DESTINATION_PATH",
        required_unless_present = "against"
    )]
    from: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
    /// How deep to look [default: stored; behind bk-push: present for all, stored for what it stored]
    #[arg(long, value_name = "LEVEL", conflicts_with = "against")]
    level: Option<LevelName>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Verify only paths that match, and what is below them; `*`, `**` (can be repeated)
    #[arg(long, value_name = "GLOB")]
    path: Vec<String>,
    /// Verify only this component (can be repeated)
    #[arg(long, value_name = "NAME")]
    component: Vec<String>,
    /// Compare the manifest with the files in DIR instead of with the destination
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Take differences of modes, owners, times and hard links as none
    #[arg(long, requires = "against")]
    ignore_metadata: bool,
    /// Write what was found to a file: json=FILE or junit=FILE (can be repeated)
    #[arg(long, value_name = "FORMAT=FILE")]
    report: Vec<ReportFile>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelName {
    /// Every object needed is there with its size
    Present,
    /// Its bytes have their checksum
    Stored,
    /// Every file is decoded and hashed, every dump read to its end
    Content,
}

impl From<LevelName> for Level {
    fn from(name: LevelName) -> Self {
        match name {
            LevelName::Present => Level::Present,
            LevelName::Stored => Level::Stored,
            LevelName::Content => Level::Content,
        }
    }
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
    let options = Options {
        level: args.level.map(Level::from),
        selection: Selection::new(&args.path, &args.component)?,
        reports: args.report.clone(),
        clock: || Time::now().to_milliseconds(),
        host: host_name(),
        identities: args.identity.read(),
        temporary: std::env::temp_dir(),
    };
    report::clear(&options.reports)?;
    let input: Box<dyn Read> = Box::new(console.input(PIPE)?);
    if let Some(folder) = &args.against {
        let rules = Rules {
            metadata: !args.ignore_metadata,
            owners: rustix::process::geteuid().is_root(),
            reads_links: false,
        };
        let reader = Reader::new(input)?;
        return against(reader, console.output(), folder, &options, rules, console);
    }
    let Some(from) = &args.from else {
        return Err(Failure::new(Exit::Usage, "no destination: --from DEST is missing").into());
    };
    let store = Store::open(from, &args.access.read())?;
    let reader = Reader::new(input)?;
    verify(reader, console.output(), &store, &options, &HostDumps, console)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
