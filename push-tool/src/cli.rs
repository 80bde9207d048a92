//! The command line of `bk-push`.

mod access;
mod add;
mod copy;
mod fetch;
mod init;
mod list;
mod manifest;
mod push;
mod series;

use std::time::Duration;

use bk_manifest::exit::Exit;
use bk_manifest::shell::{Console, EXIT_CODES_HELP, Verbosity};
use clap::{Parser, Subcommand};

pub use self::access::{AccessArgs, IdentityArgs};

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
    push: push::PushArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a place a backup destination
    Init(init::InitArgs),
    /// List the backups at a destination
    List(list::ListArgs),
    /// Print the manifest of a backup: the begin of a pipe
    Manifest(manifest::ManifestArgs),
    /// Restore the backup of the manifest on standard input into a folder or a bucket
    Fetch(fetch::FetchArgs),
    /// Copy the backup of the manifest on standard input to another destination
    Copy(copy::CopyArgs),
    /// Add the objects of an application's own bucket to the manifest
    Add(add::AddArgs),
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
        None => push::run(&args.push, console),
        Some(Command::Init(args)) => init::run(args, console),
        Some(Command::List(args)) => list::run(args, console),
        Some(Command::Manifest(args)) => manifest::run(args, console),
        Some(Command::Fetch(args)) => fetch::run(args, console),
        Some(Command::Copy(args)) => copy::run(args, console),
        Some(Command::Add(args)) => add::run(args, console),
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
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
