//! One run over one series, from the lock to the result.

use std::time::Duration;

use bk_manifest::exit::{Exit, Failure, classify};
use bk_manifest::lock::Lock;
use bk_manifest::path::escape;
use bk_manifest::progress::{Progress, Silent};
use bk_manifest::time::Time;
use bk_push::destination::Destination;

use crate::plan::{Amount, Fate, Plan, Policy};
use crate::policy::Reason;
use crate::remove;
use crate::seen::{self, Seen};
use crate::survey::Survey;

/// How long a lock is waited for: a push of the same pipe may still be ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// How often all is read before a run gives up because manifests vanish meanwhile: another series' prune
/// takes them away.
const READINGS: u32 = 5;

/// How a run goes about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// What may go.
    pub policy: Policy,
    /// The backup that the pipe has just made, which must be there.
    pub own: Option<String>,
    /// Whether backups may be missing that the last run left.
    pub accepts_missing: bool,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Backups that stay.
    pub kept: u64,
    /// Ids of the backups that were marked.
    pub marked: Vec<String>,
    /// Ids of the backups that were deleted.
    pub removed: Vec<String>,
    /// What was deleted, and takes no space any more.
    pub freed: Amount,
    /// What was deleted, and is kept by the store as old versions.
    pub old_versions: Amount,
}

/// Takes the series' lock, waiting a little for it.
///
/// # Errors
/// [`Exit::Busy`] if another run keeps it.
pub fn lock(
    destination: &dyn Destination,
    series: &str,
    holder: &str,
) -> anyhow::Result<Option<Lock>> {
    let mut waited = Duration::ZERO;
    loop {
        match destination.lock(series, holder) {
            Err(error) if classify(&error) == Exit::Busy && waited < LOCK_PATIENCE => {
                bk_manifest::signal::check()?;
                std::thread::sleep(LOCK_PAUSE);
                waited += LOCK_PAUSE;
            }
            result => return result,
        }
    }
}

/// Works out what would be done, and touches nothing.
///
/// # Errors
/// As [`Survey::check`] and [`Plan::new`].
pub fn plan(
    destination: &dyn Destination,
    series: &str,
    options: &Options,
    progress: &dyn Progress,
) -> anyhow::Result<Plan> {
    Ok(read(destination, Some(options.policy.now), series, options, progress)?.1)
}

/// Reads what is there and plans from it; again if a manifest that was there is gone by now.
fn read(
    destination: &dyn Destination,
    clock: Option<Time>,
    series: &str,
    options: &Options,
    progress: &dyn Progress,
) -> anyhow::Result<(Survey, Plan)> {
    let mut reading = 1;
    loop {
        let survey = Survey::read(destination, options.policy.grace, clock)?;
        match plan_from(destination, &survey, series, options, progress) {
            Err(_) if reading < READINGS && survey.is_outdated(destination)? => reading += 1,
            plan => return plan.map(|plan| (survey, plan)),
        }
    }
}

fn plan_from(
    destination: &dyn Destination,
    survey: &Survey,
    series: &str,
    options: &Options,
    progress: &dyn Progress,
) -> anyhow::Result<Plan> {
    if let Some(warning) = survey.catalog.borders.warning() {
        progress.warn(&warning);
    }
    survey.check(options.accepts_missing)?;
    if let Some(own) = &options.own
        && survey.catalog.find(own).is_none_or(|backup| backup.series != series)
    {
        let message = format!("the backup '{own}' of this run is not at the destination");
        return Err(Failure::new(Exit::Unmet, message)
            .hint("nothing was removed: what a listing does not show must not decide")
            .into());
    }
    let plan = Plan::new(destination, survey, series, &options.policy)?;
    for line in &plan.lines {
        if matches!(&line.fate, Fate::Keep(reasons) if reasons.contains(&Reason::Future)) {
            progress.warn(&format!(
                "'{}' has a time in the future ({}): it stays, and counts for no rule",
                line.backup.id, line.backup.time
            ));
        }
    }
    if plan.strangers.count > 0 {
        let more =
            if plan.strangers.count > plan.strangers.names.len() as u64 { ", …" } else { "" };
        let names: Vec<String> =
            plan.strangers.names.iter().map(|name| escape(name.as_bytes())).collect();
        progress.note(&format!(
            "{} files belong to no backup and are let be: {}{more}",
            plan.strangers.count,
            names.join(", ")
        ));
    }
    Ok(plan)
}

/// Marks what is to go and deletes what was marked long enough ago. The lock is the caller's.
///
/// # Errors
/// As [`Survey::check`], [`Plan::new`] and [`remove::carry_out`].
pub fn prune(
    destination: &dyn Destination,
    series: &str,
    options: &Options,
    progress: &dyn Progress,
) -> anyhow::Result<Outcome> {
    let grace = options.policy.grace;
    let mut outcome = Outcome::default();
    // With no grace time a mark is due as soon as all has been read again.
    let rounds = if grace.is_zero() { 2 } else { 1 };
    for round in 0..rounds {
        // What there is to say was said in the first round.
        let progress = if round == 0 { progress } else { &Silent };
        let (survey, plan) = read(destination, None, series, options, progress)?;
        let is_empty = plan.lines.is_empty();
        if options.accepts_missing && round == 0 {
            accept_missing(destination, &survey, (!is_empty).then_some(series))?;
        }
        if is_empty {
            // Nothing is listed: too little to call anything needless.
            break;
        }
        remove::carry_out(destination, &survey, &plan, grace, progress)?;
        outcome.kept = plan.remaining().len() as u64;
        let deleted = plan.deletion.amount;
        if deleted.objects > 0 {
            let keeps = destination.keeps_versions();
            let sum = if keeps { &mut outcome.old_versions } else { &mut outcome.freed };
            sum.objects += deleted.objects;
            sum.bytes += deleted.bytes;
        }
        outcome.marked.clear();
        for line in &plan.lines {
            match line.fate {
                Fate::Mark => outcome.marked.push(line.backup.id.clone()),
                Fate::Delete => outcome.removed.push(line.backup.id.clone()),
                _ => {}
            }
        }
        if plan.mark.is_none() {
            break;
        }
    }
    Ok(outcome)
}

/// Forgets what series miss, now that the user has said that it is right so; the one in hand gets
/// its new record anyway.
///
/// # Errors
/// Those of the destination.
pub fn accept_missing(
    destination: &dyn Destination,
    survey: &Survey,
    in_hand: Option<&str>,
) -> anyhow::Result<()> {
    for (other, placed) in seen::newest(&survey.seen) {
        if Some(other) == in_hand {
            continue;
        }
        let here = |id: &String| survey.catalog.find(id).is_some();
        let backups = placed.seen.backups.iter().filter(|id| here(id)).cloned().collect();
        let seen = Seen { series: other.to_owned(), backups };
        seen::write(destination, &survey.seen, &seen, survey.now)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;
    use crate::testing::{GRACE, Made, Memory, check_whole, options};
    use bk_manifest::exit::classify;
    use std::num::NonZeroU32;

    fn last(count: u32) -> Rules {
        Rules { last: NonZeroU32::new(count), ..Rules::default() }
    }

    fn run(store: &Memory, rules: Rules) -> anyhow::Result<Outcome> {
        prune(store, "app", &options(store, rules), &Silent)
    }

    /// A full backup, two that build on it, and a stranger. The third needs one volume of the second
    /// and one plain file of each.
    fn chain() -> (Memory, [Made; 3]) {
        let store = Memory::new("2026-05-01T00:00:00Z");
        let full = Made::new("2026-04-26T02:00:00Z");
        let first = full.with_plain(&["a", "b", "c"]).store(&store);
        let second = Made::new("2026-04-27T02:00:00Z").with_plain(&["d", "e"]);
        let second = second.on(&first).store(&store);
        let mut third = Made::new("2026-04-28T02:00:00Z").on(&second);
        third.inherited.retain(|(id, _, object)| match object.as_str() {
            "minio/b" | "minio/d" => true,
            object => *id == second.id && object.starts_with("files/"),
        });
        let third = third.store(&store);
        store.store("notes.txt", b"mine");
        store.store("2026/04/26/README", b"mine");
        (store, [first, second, third])
    }

    #[test]
    fn a_mark_comes_first_and_deletion_after_the_grace_time() {
        let (store, [first, second, third]) = chain();
        let before = store.names();
        let outcome = run(&store, last(1)).unwrap();
        assert_eq!(outcome.marked, [first.id.clone(), second.id.clone()]);
        assert_eq!((outcome.kept, outcome.removed.len(), outcome.freed.objects), (1, 0, 0));
        assert!(before.iter().all(|name| store.has(name)), "nothing is deleted at once");
        store.advance(GRACE.saturating_sub(Duration::from_secs(1)));
        assert_eq!(run(&store, last(1)).unwrap().marked, [""; 0], "it is marked already");
        assert!(before.iter().all(|name| store.has(name)));
        store.advance(Duration::from_secs(1));
        let outcome = run(&store, last(1)).unwrap();
        assert_eq!(outcome.removed, [first.id.clone(), second.id.clone()]);
        let needed = third.needs();
        assert_eq!(needed[1], format!("{}/files/000001.tar.zst", second.folder()));
        let left: Vec<String> =
            store.names().into_iter().filter(|name| !name.starts_with(".bk/")).collect();
        let mut expected = needed.clone();
        expected.extend(["notes.txt", "2026/04/26/README"].map(str::to_owned));
        expected.push(third.manifest());
        expected.extend(bk_push::place::side_files(&third.manifest()));
        expected.sort();
        assert_eq!(left, expected);
        assert!(outcome.freed.bytes > 0 && outcome.freed.objects > 0);
        assert!(store.names().iter().all(|name| !name.starts_with(".bk/marks/")));
    }

    #[test]
    fn nothing_counts_as_freed_where_the_store_keeps_versions() {
        let (store, _) = chain();
        store.keep_versions();
        run(&store, last(1)).unwrap();
        store.advance(GRACE);
        let outcome = run(&store, last(1)).unwrap();
        assert_eq!((outcome.removed.len(), outcome.freed), (2, Amount::default()));
        assert!(outcome.old_versions.objects > 0 && outcome.old_versions.bytes > 0);
    }

    /// Keeps what it is warned of.
    #[derive(Default)]
    struct Warnings(std::sync::Mutex<Vec<String>>);

    impl Progress for Warnings {
        fn warn(&self, message: &str) {
            self.0.lock().unwrap().push(message.to_owned());
        }
        fn note(&self, _: &str) {}
        fn begin(&self, _: &str, _: Option<u64>) {}
        fn advance(&self, _: u64, _: u64) {}
        fn end(&self) {}
    }

    #[test]
    fn a_sweep_that_fails_is_a_warning_and_costs_no_outcome() {
        let (store, _) = chain();
        store.fail_sweep();
        run(&store, last(1)).unwrap();
        store.advance(GRACE);
        let warnings = Warnings::default();
        let outcome = prune(&store, "app", &options(&store, last(1)), &warnings).unwrap();
        assert_eq!(outcome.removed.len(), 2);
        let warnings = warnings.0.into_inner().unwrap();
        assert!(warnings.iter().any(|warning| warning.contains("uploads")), "{warnings:?}");
    }

    #[test]
    fn a_manifest_that_is_still_there_keeps_its_objects() {
        let (store, _) = chain();
        run(&store, last(1)).unwrap();
        store.advance(GRACE);
        store.lie_of_removing("manifest.json");
        let before = store.names();
        let error = run(&store, last(1)).unwrap_err();
        assert!(error.to_string().contains("is still at"), "{error:#}");
        let is_volume = |name: &&String| name.contains("files/");
        let volumes = |names: &[String]| names.iter().filter(is_volume).count();
        assert_eq!(volumes(&store.names()), volumes(&before));
    }

    #[test]
    fn without_grace_time_one_run_does_both() {
        let (store, [first, second, third]) = chain();
        let mut options = options(&store, last(1));
        options.policy.grace = Duration::ZERO;
        let outcome = prune(&store, "app", &options, &Silent).unwrap();
        assert_eq!(outcome.removed, [first.id, second.id.clone()]);
        assert_eq!((outcome.kept, outcome.marked.len()), (1, 0));
        assert!(!store.has(&second.manifest()) && store.has(&third.manifest()));
        check_whole(&store, "");
    }

    /// Dies after every number of changes there can be; the next run ends what was begun.
    #[test]
    fn a_run_may_die_at_any_moment() {
        for after_mark in [false, true] {
            let (whole, [_, _, newest]) = chain();
            run(&whole, last(1)).unwrap();
            whole.advance(GRACE);
            run(&whole, last(1)).unwrap();
            let without_own = |store: &Memory| -> Vec<String> {
                store.names().into_iter().filter(|name| !name.starts_with(".bk/seen/")).collect()
            };
            let mut deaths = 0;
            for changes in 0.. {
                let (store, _) = chain();
                if after_mark {
                    run(&store, last(1)).unwrap();
                    store.advance(GRACE);
                }
                store.die_after(Some(changes));
                let result = run(&store, last(1));
                store.die_after(None);
                check_whole(&store, &format!("died after {changes} changes"));
                assert!(store.has(&newest.manifest()));
                if result.is_ok() {
                    break;
                }
                deaths += 1;
                for _ in 0..3 {
                    run(&store, last(1)).unwrap();
                    check_whole(&store, &format!("rerun after {changes} changes"));
                    store.advance(GRACE);
                }
                assert_eq!(without_own(&store), without_own(&whole), "died after {changes}");
            }
            assert!(deaths >= if after_mark { 10 } else { 2 }, "{deaths}");
        }
    }

    #[test]
    fn nothing_is_removed_while_a_manifest_cannot_be_read() {
        let (store, [first, ..]) = chain();
        run(&store, last(1)).unwrap();
        store.advance(GRACE);
        let mut bytes = first.document().0;
        bytes.truncate(bytes.len() - 9);
        store.store("2026/01/01/other/manifest.json", &bytes);
        let before = store.names();
        let error = run(&store, last(1)).unwrap_err();
        assert_eq!(classify(&error), Exit::Malformed);
        assert_eq!(store.names(), before);
    }

    #[test]
    fn a_manifest_of_another_system_stops_nothing_and_stays() {
        let (store, [first, ..]) = chain();
        let foreign = br#"{"manifest":{"version":"2.0","generator":"PicPeak Backup"},
            "backup":{"id":"backup-x"},"files":{"count":0,"total_size":0,"manifest":[]}}"#;
        let names = ["2026/01/01/backup-1/manifest.json", "x/manifests/backup-manifest-x.json"];
        for name in names {
            store.store(name, foreign);
        }
        run(&store, last(1)).unwrap();
        store.advance(GRACE);
        let outcome = run(&store, last(1)).unwrap();
        assert_eq!((outcome.kept, outcome.removed.len()), (1, 2));
        assert!(!store.has(&first.manifest()));
        assert!(names.iter().all(|name| store.has(name)));
    }

    #[test]
    fn a_listing_that_lacks_what_was_left_is_refused() {
        let (store, [_, second, third]) = chain();
        run(&store, last(3)).unwrap();
        let before_seen = store.names();
        store.drop_object(&second.manifest());
        let error = run(&store, last(1)).unwrap_err();
        assert_eq!(classify(&error), Exit::Unmet);
        assert!(error.to_string().contains(&second.id), "{error}");
        assert_eq!(store.names().len(), before_seen.len() - 1);
        let mut accepting = options(&store, last(3));
        accepting.accepts_missing = true;
        assert_eq!(prune(&store, "app", &accepting, &Silent).unwrap().kept, 2);
        assert_eq!(run(&store, last(3)).unwrap().kept, 2, "it was accepted once for all");
        // Another series notices too: what it deletes hangs on all manifests.
        store.drop_object(&third.manifest());
        let other = prune(&store, "other", &options(&store, last(1)), &Silent);
        assert_eq!(classify(&other.unwrap_err()), Exit::Unmet);
    }

    #[test]
    fn an_empty_listing_costs_nothing() {
        let store = Memory::new("2026-05-01T00:00:00Z");
        let dead = Made::new("2026-04-26T02:00:00Z");
        dead.begin_list(&store);
        dead.put_objects(&store);
        store.advance(GRACE * 3);
        let before = store.names();
        assert_eq!(run(&store, last(1)).unwrap(), Outcome::default());
        assert_eq!(store.names(), before);
    }

    #[test]
    fn the_backup_of_the_pipe_must_be_listed() {
        let (store, [first, ..]) = chain();
        let mut options = options(&store, last(1));
        for (own, series) in [("backup-of-nobody", "app"), (first.id.as_str(), "other")] {
            options.own = Some(own.to_owned());
            let error = prune(&store, series, &options, &Silent).unwrap_err();
            assert_eq!(classify(&error), Exit::Unmet);
        }
        assert!(store.names().iter().all(|name| !name.starts_with(".bk/")));
    }

    #[test]
    fn another_series_prune_may_be_at_work() {
        let (store, _) = chain();
        let mut other = Made::new("2026-01-01T02:00:00Z");
        other.series = "other".into();
        let other = other.store(&store);
        run(&store, last(1)).unwrap();
        let manifest = other.manifest();
        // The records are read behind all manifests, and before what they need.
        let remove = Box::new(move |objects: &mut bk_push::memory::Objects, _: &mut Time| {
            objects.remove(&manifest).unwrap();
        });
        store.before_reading(seen::FOLDER, remove);
        store.advance(GRACE);
        assert_eq!(run(&store, last(1)).unwrap().removed.len(), 2);
    }

    #[test]
    fn nothing_is_deleted_by_marks_that_are_gone() {
        let (store, _) = chain();
        run(&store, last(1)).unwrap();
        store.advance(GRACE);
        // The records are read behind the marks: another run takes these back.
        let take_back = Box::new(|objects: &mut bk_push::memory::Objects, _: &mut Time| {
            objects.retain(|name, _| !name.starts_with(".bk/marks/"));
        });
        store.before_reading(seen::FOLDER, take_back);
        let before = store.names();
        assert_eq!(classify(&run(&store, last(1)).unwrap_err()), Exit::Busy);
        let is_mark = |name: &&String| name.starts_with(".bk/marks/");
        assert!(before.iter().filter(|name| !is_mark(name)).all(|name| store.has(name)));
        run(&store, last(1)).unwrap();
        check_whole(&store, "");
    }

    #[test]
    fn a_dry_run_touches_nothing() {
        let (store, [first, second, third]) = chain();
        let before = store.names();
        store.die_after(Some(0));
        let plan = plan(&store, "app", &options(&store, last(1)), &Silent).unwrap();
        assert_eq!(store.names(), before);
        let fates: Vec<(&str, bool)> = plan
            .lines
            .iter()
            .map(|line| (line.backup.id.as_str(), line.fate == Fate::Mark))
            .collect();
        assert_eq!(
            fates,
            [(first.id.as_str(), true), (second.id.as_str(), true), (third.id.as_str(), false)]
        );
        assert_eq!(plan.strangers.count, 2);
        let table = crate::report::table(&plan, &options(&store, last(1)).policy);
        assert!(table.contains("remove: no rule keeps it; deleted by the first run after 24 h"));
        assert!(table.contains("keep: newest, newest complete files, last 1 of 1"), "{table}");
        assert!(table.contains("would keep 1, mark 2 ("), "{table}");
    }

    #[test]
    fn another_series_is_not_touched() {
        let (store, _) = chain();
        let mut other = Made::new("2026-01-01T02:00:00Z");
        other.series = "app/second".into();
        let other = other.store(&store);
        run(&store, last(1)).unwrap();
        store.advance(GRACE);
        // Neither its marks nor what its dead pushes left.
        let mut dead = Made::new("2026-01-02T02:00:00Z");
        dead.series = "app/second".into();
        dead.begin_list(&store);
        dead.put_objects(&store);
        store.advance(GRACE * 2);
        for _ in 0..3 {
            run(&store, last(1)).unwrap();
            store.advance(GRACE);
        }
        let all = Made::new("2026-01-03T02:00:00Z");
        let newest = Made { series: "app/second".into(), ..all }.store(&store);
        prune(&store, "app/second", &options(&store, last(1)), &Silent).unwrap();
        for _ in 0..3 {
            store.advance(GRACE);
            run(&store, last(1)).unwrap();
        }
        assert!(store.has(&other.manifest()) && store.has(&newest.manifest()));
        assert!(dead.needs().iter().all(|name| store.has(name)));
        prune(&store, "app/second", &options(&store, last(1)), &Silent).unwrap();
        assert!(!store.has(&other.manifest()));
        assert!(!dead.needs().iter().any(|name| store.has(name)));
    }
}
