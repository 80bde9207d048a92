//! The command line of `bk-prune`.

use std::io::Write;
use std::num::NonZeroU32;

use anyhow::Context;
use bk_manifest::cli::host_name;
use bk_manifest::exit::{ClosedPipe, Exit, Failure, fail};
use bk_manifest::path::escape;
use bk_manifest::progress::Progress;
use bk_manifest::shell::{Console, EXIT_CODES_HELP, Verbosity};
use bk_manifest::spool::Document;
use bk_manifest::stream::Format;
use bk_manifest::time::Time;
use bk_push::cli::AccessArgs;
use bk_push::store::Store;
use clap::{Parser, ValueEnum};
use jiff::tz::TimeZone;
use serde_json::json;

use crate::plan::Policy;
use crate::prune::{self, Options, Outcome};
use crate::rules::{Calendar, Rules, WeekStart, Within};
use crate::survey::Survey;
use crate::{gate, report, undelete};

/// Decide which backups may go, say why, and remove them
///
/// In a pipe, prune acts only if this run has stored the backup in the document and verified it.
/// Backups are first marked; the first run after the destination's grace time (24 h unless
/// `bk-push init` said otherwise) deletes them, so that a push at work elsewhere can save what it
/// needs. Until then --undelete takes the marks back.
///
/// A backup that any rule keeps stays. So do, whatever the rules say, the newest backup, the newest
/// complete one of each component, and those with a time in the future.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(name = "bk-prune", version, after_help = EXIT_CODES_HELP)]
pub struct Args {
    #[command(flatten)]
    verbosity: Verbosity,
    /// Destination that holds the backups
    #[arg(long, value_name = "DEST", env = "BACKUP_DESTINATION_PATH")]
    from: String,
    #[command(flatten)]
    access: AccessArgs,
    /// Zone whose midnight begins a day: a name such as Europe/Berlin, or `local`
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = parse_zone)]
    time_zone: TimeZone,
    /// Day that a week begins with
    #[arg(long, value_name = "DAY", default_value = "monday")]
    week_start: Day,
    /// Say what would be done and why, and touch nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Not in a pipe: read no manifest, ask for no proof
    #[arg(long)]
    standalone: bool,
    /// Take back the marks whose backups are still there; not in a pipe
    #[arg(long, conflicts_with_all = ["accept_missing"])]
    undelete: bool,
    /// Application whose backups are meant, where several are at the destination
    #[arg(long, env = "BACKUP_APP")]
    app: Option<String>,
    /// Series of that application
    #[arg(long)]
    series: Option<String>,
    /// Go on although backups are missing that the last run left
    #[arg(long)]
    accept_missing: bool,
    /// Time that the rules count from, instead of the clock's
    #[arg(long, value_name = "TIME", hide = true)]
    now: Option<Time>,
    #[command(flatten)]
    keep: KeepArgs,
}

/// The rules; several are OR-ed.
#[derive(Debug, Default, clap::Args)]
#[expect(clippy::struct_field_names, reason = "clap makes the flags' names of them")]
#[expect(clippy::doc_markdown, reason = "help texts: backticks would be printed")]
#[command(next_help_heading = "Rules (a variable counts only if no rule is given here)")]
struct KeepArgs {
    /// Keep the newest N [env: BACKUP_KEEP_LAST]
    #[arg(long, value_name = "N")]
    keep_last: Option<NonZeroU32>,
    /// Keep one for each of the newest N days that have one [env: BACKUP_RETENTION_DAILY]
    #[arg(long, value_name = "N")]
    keep_daily: Option<NonZeroU32>,
    /// Keep one for each of the newest N weeks that have one [env: BACKUP_RETENTION_WEEKLY]
    #[arg(long, value_name = "N")]
    keep_weekly: Option<NonZeroU32>,
    /// Keep one for each of the newest N months that have one [env: BACKUP_KEEP_MONTHLY]
    #[arg(long, value_name = "N")]
    keep_monthly: Option<NonZeroU32>,
    /// Keep one for each of the newest N years that have one [env: BACKUP_KEEP_YEARLY]
    #[arg(long, value_name = "N")]
    keep_yearly: Option<NonZeroU32>,
    /// Keep all within this time before the newest: 36h, 30d, 8w, 6m, 2y, 1y6m [env:
    /// BACKUP_RETENTION_DAYS, a number of days]
    #[arg(long, value_name = "SPAN")]
    keep_within: Option<Within>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Day {
    Monday,
    Sunday,
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
    if args.undelete {
        return run_undelete(args);
    }
    if args.series.is_some() && app(args).is_none() {
        return Err(fail(Exit::Usage, "--series needs --app"));
    }
    let rules = rules(&args.keep, &|name| std::env::var(name).ok())?;
    if args.standalone {
        run_standalone(args, rules, console)
    } else {
        run_in_pipe(args, rules, console)
    }
}

/// The rules of the command line, or else those of the variables; the two never merge.
fn rules(keep: &KeepArgs, variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Rules> {
    let mut rules = Rules {
        last: keep.keep_last,
        daily: keep.keep_daily,
        weekly: keep.keep_weekly,
        monthly: keep.keep_monthly,
        yearly: keep.keep_yearly,
        within: keep.keep_within.clone(),
    };
    if rules.is_empty() {
        let number = |name: &str| -> anyhow::Result<Option<NonZeroU32>> {
            let Some(text) = variable(name).filter(|text| !text.trim().is_empty()) else {
                return Ok(None);
            };
            let number = text.trim().parse().map_err(|_| {
                let text = text.escape_debug();
                fail(Exit::Usage, format!("{name} must be a number above 0, not '{text}'"))
            })?;
            Ok(Some(number))
        };
        rules = Rules {
            last: number("BACKUP_KEEP_LAST")?,
            daily: number("BACKUP_RETENTION_DAILY")?,
            weekly: number("BACKUP_RETENTION_WEEKLY")?,
            monthly: number("BACKUP_KEEP_MONTHLY")?,
            yearly: number("BACKUP_KEEP_YEARLY")?,
            within: match number("BACKUP_RETENTION_DAYS")? {
                None => None,
                Some(days) => Some(Within::days(days.get()).map_err(|_| {
                    fail(Exit::Usage, "BACKUP_RETENTION_DAYS is more than a calendar has")
                })?),
            },
        };
    }
    if rules.is_empty() {
        return Err(Failure::new(Exit::Usage, "no rule says what to keep")
            .hint("give at least one, such as --keep-daily 7 --keep-weekly 4")
            .into());
    }
    Ok(rules)
}

fn parse_zone(text: &str) -> Result<TimeZone, String> {
    if text == "local" {
        return TimeZone::try_system().map_err(|error| error.to_string());
    }
    TimeZone::get(text).map_err(|error| error.to_string())
}

fn options(args: &Args, rules: Rules, store: &Store, own: Option<String>) -> Options {
    let week_start = match args.week_start {
        Day::Monday => WeekStart::Monday,
        Day::Sunday => WeekStart::Sunday,
    };
    Options {
        policy: Policy {
            rules,
            calendar: Calendar { zone: args.time_zone.clone(), week_start },
            now: args.now.unwrap_or_else(Time::now),
            grace: store.grace(),
            host: host_name(),
        },
        own,
        accepts_missing: args.accept_missing,
    }
}

fn holder() -> String {
    format!("bk-prune on {} since {}", host_name(), Time::now().format("%Y-%m-%dT%H:%M:%SZ"))
}

fn run_in_pipe(args: &Args, rules: Rules, console: &Console) -> anyhow::Result<Exit> {
    let store = Store::open(&args.from, &args.access.read())?;
    let input = console.input("… | bk-verify --from DEST | bk-prune --from DEST --keep-daily 7")?;
    let mut document = Document::read(input)?;
    let exit = document.trailer.exit()?;
    let passed = gate::check(&document, &store)?;
    check_series(args, &passed.series)?;
    let options = options(args, rules, &store, Some(passed.id));
    let destination = store.destination.as_ref();
    if args.dry_run {
        let plan = prune::plan(destination, &passed.series, &options, console)?;
        say(&mut std::io::stderr(), &report::table(&plan, &options.policy))?;
    } else {
        let lock = prune::lock(destination, &passed.series, &holder())?;
        let outcome = prune::prune(destination, &passed.series, &options, console)?;
        drop(lock);
        summarize(args, &outcome, &options)?;
        let mut run = document.trailer.run()?;
        run.extra.insert("pruned".into(), pruned(&outcome));
        document.trailer.set_run(&run);
    }
    document.write(console.output(), Format::Json)?;
    Ok(exit)
}

/// In a pipe, the document says which series it is; what was said beside it must not differ.
fn check_series(args: &Args, series: &str) -> anyhow::Result<()> {
    let (first, second) = series.split_once('/').unwrap_or((series, ""));
    let differs = |said: Option<&str>, is: &str| said.is_some_and(|said| said != is);
    if differs(app(args), first) || differs(args.series.as_deref(), second) {
        let message = format!("the document is of '{series}', not of what --app or --series says");
        return Err(Failure::new(Exit::Usage, escape(message.as_bytes()))
            .hint("leave them out: they are for --standalone (BACKUP_APP counts as --app)")
            .into());
    }
    Ok(())
}

/// What later steps are told.
fn pruned(outcome: &Outcome) -> serde_json::Value {
    json!({
        "freed": outcome.freed.bytes,
        "freed_objects": outcome.freed.objects,
        "kept": outcome.kept,
        "marked": outcome.marked,
        "old_versions": outcome.old_versions.bytes,
        "old_versions_objects": outcome.old_versions.objects,
        "removed": outcome.removed,
    })
}

fn run_standalone(args: &Args, rules: Rules, console: &Console) -> anyhow::Result<Exit> {
    let store = Store::open(&args.from, &args.access.read())?;
    let options = options(args, rules, &store, None);
    let destination = store.destination.as_ref();
    let Some(series) = standalone_series(args, &store, &options)? else {
        console.note("no backup is at the destination: nothing to do");
        return Ok(Exit::Done);
    };
    if args.dry_run {
        let plan = prune::plan(destination, &series, &options, console)?;
        say(&mut std::io::stdout(), &report::table(&plan, &options.policy))?;
    } else {
        let lock = prune::lock(destination, &series, &holder())?;
        let outcome = prune::prune(destination, &series, &options, console)?;
        drop(lock);
        summarize(args, &outcome, &options)?;
    }
    Ok(Exit::Done)
}

/// The series that is named, or the only one; `None` if there is no backup at all.
fn standalone_series(
    args: &Args,
    store: &Store,
    options: &Options,
) -> anyhow::Result<Option<String>> {
    let destination = store.destination.as_ref();
    let survey = Survey::read(destination, store.grace(), Some(options.policy.now))?;
    survey.check(options.accepts_missing)?;
    if survey.catalog.backups.is_empty() {
        if options.accepts_missing && !args.dry_run {
            prune::accept_missing(destination, &survey, None)?;
        }
        return Ok(None);
    }
    let name = series_name(args);
    let backups = survey.catalog.series(name.as_deref())?;
    match (backups.first(), name) {
        (Some(backup), _) => Ok(Some(backup.series.clone())),
        (None, name) => {
            let name = name.unwrap_or_default();
            let message = format!("no backup of '{}' is there", name.escape_debug());
            Err(Failure::new(Exit::NotFound, message)
                .hint("bk-push list shows what is there")
                .into())
        }
    }
}

/// The application that is named; an empty variable names none.
fn app(args: &Args) -> Option<&str> {
    args.app.as_deref().filter(|app| !app.is_empty())
}

fn series_name(args: &Args) -> Option<String> {
    match (app(args), &args.series) {
        (Some(app), Some(series)) => Some(format!("{app}/{series}")),
        (app, _) => app.map(str::to_owned),
    }
}

fn run_undelete(args: &Args) -> anyhow::Result<Exit> {
    let store = Store::open(&args.from, &args.access.read())?;
    let destination = store.destination.as_ref();
    let now = args.now.unwrap_or_else(Time::now);
    let survey = Survey::read(destination, store.grace(), Some(now))?;
    let mut output = std::io::stdout();
    let Some(series) = undelete::series(&survey, series_name(args).as_deref())? else {
        say(&mut output, "no backup is marked\n")?;
        return Ok(Exit::Done);
    };
    let result = if args.dry_run {
        undelete::preview(&survey, &series)
    } else {
        let lock = prune::lock(destination, &series, &holder())?;
        // As it is now that nobody else changes it.
        let survey = Survey::read(destination, store.grace(), None)?;
        let undeleted = undelete::undelete(destination, &survey, &series, &host_name())?;
        drop(lock);
        undeleted
    };
    if result.back.is_empty() && result.gone.is_empty() {
        say(&mut output, "no backup is marked\n")?;
    } else {
        say(&mut output, &report::undeleted(&result))?;
    }
    Ok(Exit::Done)
}

fn summarize(args: &Args, outcome: &Outcome, options: &Options) -> anyhow::Result<()> {
    if args.verbosity.quiet {
        return Ok(());
    }
    let summary = report::summary(outcome, options.policy.grace);
    say(&mut std::io::stderr(), &format!("bk-prune: {summary}\n"))
}

fn say(output: &mut impl Write, text: &str) -> anyhow::Result<()> {
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
        result => result.context("cannot write the report"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_beat_variables_and_never_merge_with_them() {
        let variables = |name: &str| match name {
            "BACKUP_RETENTION_DAILY" => Some("7".to_owned()),
            "BACKUP_RETENTION_DAYS" => Some("30".to_owned()),
            "BACKUP_KEEP_LAST" => Some(" ".to_owned()),
            _ => None,
        };
        let from_variables = rules(&KeepArgs::default(), &variables).unwrap();
        assert_eq!(from_variables.daily, NonZeroU32::new(7));
        assert_eq!(from_variables.within.unwrap().to_string(), "30d");
        assert_eq!(from_variables.last, None);
        let flags = KeepArgs { keep_weekly: NonZeroU32::new(4), ..KeepArgs::default() };
        let from_flags = rules(&flags, &variables).unwrap();
        assert_eq!((from_flags.weekly, from_flags.daily), (NonZeroU32::new(4), None));
        assert!(from_flags.within.is_none());
    }

    #[test]
    fn no_rule_and_a_malformed_one_are_usage_errors() {
        let error = rules(&KeepArgs::default(), &|_| None).unwrap_err();
        assert_eq!(classify(&error), Exit::Usage);
        for bad in ["0", "-1", "x", "7.5"] {
            let error = rules(&KeepArgs::default(), &|name| {
                (name == "BACKUP_RETENTION_WEEKLY").then(|| bad.to_owned())
            })
            .unwrap_err();
            assert_eq!(classify(&error), Exit::Usage);
            assert!(error.to_string().contains("BACKUP_RETENTION_WEEKLY"), "{error}");
        }
    }
}
