//! What a run would do, before it does any of it: what is announced, what is deleted, what is let
//! be. A dry run prints it and stops here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::path::escape;
use bk_manifest::time::Time;
use bk_push::catalog::BackupInfo;
use bk_push::destination::Destination;
use bk_push::mark::{Mark, PlacedMark};
use bk_push::names::Names;
use bk_push::place;

use crate::flow::{Flow, Going};
use crate::policy::{self, Backup, Reason};
use crate::rules::{Calendar, Rules};
use crate::survey::Survey;
use crate::table::partial_list_of;

/// What decides what may go.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which backups stay.
    pub rules: Rules,
    /// Where days, weeks, months and years begin.
    pub calendar: Calendar,
    /// The time that the rules count from; what is later is from the future.
    pub now: Time,
    /// How long a mark must have stood before what it names is deleted.
    pub grace: Duration,
    /// The name of this machine, for people who read a mark.
    pub host: String,
}

/// What becomes of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays, for these reasons.
    Keep(Vec<Reason>),
    /// No rule keeps it: it is marked now.
    Mark,
    /// A mark names it since then.
    Marked(Time),
    /// Its mark has stood long enough: it is deleted now.
    Delete,
}

/// A backup of the series and what becomes of it.
#[derive(Clone, Debug)]
pub struct Line {
    /// The backup.
    pub backup: BackupInfo,
    /// What becomes of it.
    pub fate: Fate,
}

/// What is there of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    /// Counts one more object.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What is deleted now, since the marks that name it have stood for the grace time.
#[derive(Debug, Default)]
pub struct Deletion {
    /// Manifests; gone before anything else is.
    pub manifests: Vec<String>,
    /// Objects that nothing else needs, and side files.
    pub objects: Names,
    /// Pieces of partial lists.
    pub pieces: Names,
    /// The marks; last.
    pub marks: Vec<String>,
    /// How much of it is there.
    pub amount: Amount,
}

/// Objects that no manifest, mark or partial list names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// How many.
    pub count: u64,
    /// The first few.
    pub names: Vec<String>,
}

/// All that a run would do.
#[derive(Debug)]
pub struct Plan {
    /// The series.
    pub series: String,
    /// Its backups, oldest first.
    pub lines: Vec<Line>,
    /// The mark to put; none if there is nothing new to go.
    pub mark: Option<Mark<Names>>,
    /// How much there is of what it names.
    pub marked: Amount,
    /// What is deleted now.
    pub deletion: Deletion,
    /// Objects of unknown origin, which are let be.
    pub strangers: Strangers,
}

/// How a backup is affected, whatever its series.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Its mark is due.
    Due,
    /// Another mark names it.
    Marked(Time),
    /// It is marked now.
    New,
    /// It stays.
    Kept,
}

impl Plan {
    /// Works out what is to be done about one series.
    ///
    /// # Errors
    /// Those of the destination, any manifest that cannot be read, [`Exit::Unmet`] if a mark names
    /// the last good backup, [`Exit::Malformed`] if one names what no prune would.
    pub fn new(
        destination: &dyn Destination,
        survey: &Survey,
        series: &str,
        policy: &Policy,
    ) -> anyhow::Result<Self> {
        let marks = Marks::new(survey, series, policy.grace)?;
        let mine: Vec<&BackupInfo> =
            survey.catalog.backups.iter().filter(|backup| backup.series == series).collect();
        check_last_good(&mine, &marks, policy.now)?;
        let free: Vec<Backup> = mine
            .iter()
            .filter(|backup| !marks.manifests.contains_key(backup.manifest.name.as_str()))
            .map(|backup| Backup::from(*backup))
            .collect();
        // By id: copies of one manifest stay or go together.
        let mut reasons: BTreeMap<String, Vec<Reason>> = BTreeMap::new();
        for decision in policy::decide(&free, &policy.rules, &policy.calendar, policy.now) {
            reasons.entry(decision.id).or_default().extend(decision.reasons);
        }
        let going: HashSet<String> = reasons
            .iter()
            .filter(|(_, reasons)| reasons.is_empty())
            .map(|(id, _)| id.clone())
            .collect();
        let class = |backup: &BackupInfo| match marks.manifests.get(backup.manifest.name.as_str()) {
            Some(None) => Class::Due,
            Some(Some(since)) => Class::Marked(*since),
            None if backup.series != series => Class::Kept,
            None if going.contains(&backup.id) => Class::New,
            None => Class::Kept,
        };
        if let Some(alien) = survey
            .catalog
            .backups
            .iter()
            .find(|backup| class(backup) == Class::Due && backup.series != series)
        {
            let message = format!("a mark of '{series}' names '{}' of another series", alien.id);
            return Err(fail(Exit::Malformed, escape(message.as_bytes())));
        }
        let last_good = mine.iter().rev().find(|backup| {
            backup.time <= policy.now
                && class(backup) == Class::Kept
                && Backup::from(**backup).is_complete()
        });
        let mut flow = Flow::new(&marks, survey, series, last_good.copied())?;
        flow.read(destination, survey, &class)?;
        let sizes = flow.look(destination, survey)?;
        if let Some((backup, missing)) = flow.missing(destination)? {
            let message = format!("'{}', the newest complete backup, lacks '{missing}'", backup.id);
            return Err(Failure::new(Exit::Unmet, escape(message.as_bytes()))
                .hint("nothing was removed: an older one may be the last good one")
                .hint("bk-verify says what is damaged; make a new backup, then prune")
                .into());
        }
        let lines: Vec<Line> = mine
            .iter()
            .map(|backup| Line {
                backup: (*backup).clone(),
                fate: match class(backup) {
                    Class::Due => Fate::Delete,
                    Class::Marked(since) => Fate::Marked(since),
                    Class::New => Fate::Mark,
                    Class::Kept => Fate::Keep(reasons.remove(&backup.id).unwrap_or_default()),
                },
            })
            .collect();
        let new: Vec<&BackupInfo> =
            lines.iter().filter(|line| line.fate == Fate::Mark).map(|line| &line.backup).collect();
        let Going { objects, pieces, marked } = flow.going(&survey.catalog.borders)?;
        let deletion = Deletion {
            manifests: flow.due_manifests.iter().cloned().collect(),
            objects,
            pieces,
            marks: marks.due().map(|placed| placed.object.name.clone()).collect(),
            amount: sizes.deleted,
        };
        Ok(Plan {
            series: series.to_owned(),
            mark: flow.mark(marked, &new, series, &policy.host),
            lines,
            marked: sizes.marked,
            deletion,
            strangers: sizes.strangers,
        })
    }

    /// Ids of the backups that are neither marked nor deleted when the run has ended.
    pub fn remaining(&self) -> BTreeSet<String> {
        self.lines
            .iter()
            .filter(|line| matches!(line.fate, Fate::Keep(_)))
            .map(|line| line.backup.id.clone())
            .collect()
    }
}

/// What the marks say.
pub(crate) struct Marks<'a> {
    /// The marks, and whether each is a due one of the series.
    marks: Vec<(&'a PlacedMark, bool)>,
    /// Manifests that marks name: `None` if a due one of the series does, else since when.
    manifests: BTreeMap<String, Option<Time>>,
}

impl<'a> Marks<'a> {
    fn new(survey: &'a Survey, series: &str, grace: Duration) -> anyhow::Result<Self> {
        let mut marks = Marks { marks: Vec::new(), manifests: BTreeMap::new() };
        for placed in &survey.marks {
            let since = placed.object.modified;
            let is_due = placed.mark.series == series && survey.now.since(since) >= grace;
            marks.marks.push((placed, is_due));
            for name in placed.names() {
                bk_manifest::signal::check()?;
                let name = name?;
                if place::is_manifest(&name) {
                    let entry = marks.manifests.entry(name).or_insert(Some(since));
                    if is_due {
                        *entry = None;
                    }
                } else if !place::may_be_object(&name) && partial_list_of(&name).is_none() {
                    let message = format!("the mark '{}' names '{name}'", placed.object.name);
                    return Err(fail(Exit::Malformed, escape(message.as_bytes())));
                }
            }
        }
        Ok(marks)
    }

    /// The due ones.
    fn due(&self) -> impl Iterator<Item = &'a PlacedMark> + '_ {
        self.marks.iter().filter(|(_, is_due)| *is_due).map(|(placed, _)| *placed)
    }

    /// Everything that they name, and whether a due one does; an error is one of the temporary files.
    pub(crate) fn names(&self) -> impl Iterator<Item = (anyhow::Result<String>, bool)> + '_ {
        self.marks.iter().flat_map(|(placed, is_due)| placed.names().map(|name| (name, *is_due)))
    }
}

/// Refuses if what is due is what must always stay: something has happened since it was marked.
fn check_last_good(mine: &[&BackupInfo], marks: &Marks, now: Time) -> anyhow::Result<()> {
    let all: Vec<Backup> = mine.iter().map(|backup| Backup::from(*backup)).collect();
    let stays = policy::indispensable(&all, now);
    let lost = mine.iter().find(|backup| {
        stays.contains(&backup.id)
            && marks.manifests.get(backup.manifest.name.as_str()) == Some(&None)
    });
    match lost {
        None => Ok(()),
        Some(backup) => {
            let message = format!(
                "'{}' is marked for removal, but has become the last good backup",
                escape(backup.id.as_bytes())
            );
            Err(Failure::new(Exit::Unmet, message)
                .hint("newer ones are gone or damaged; to have the marked ones back: --undelete")
                .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::prune;
    use crate::testing::{GRACE, Made, Memory, check_whole, options};
    use bk_manifest::exit::classify;
    use bk_manifest::progress::Silent;
    use bk_push::place::side_files;
    use std::num::NonZeroU32;

    fn run(store: &Memory, last: u32) -> anyhow::Result<crate::prune::Outcome> {
        let rules = Rules { last: NonZeroU32::new(last), ..Rules::default() };
        prune(store, "app", &options(store, rules), &Silent)
    }

    fn two() -> (Memory, Made, Made) {
        let store = Memory::new("2026-05-01T00:00:00Z");
        let old = Made::new("2026-04-26T02:00:00Z").store(&store);
        let new = Made::new("2026-04-27T02:00:00Z").store(&store);
        (store, old, new)
    }

    #[test]
    fn a_push_that_commits_between_mark_and_deletion_keeps_its_objects() {
        let (store, old, new) = two();
        run(&store, 1).unwrap();
        let late = Made::new("2026-04-30T02:00:00Z").on(&old).store(&store);
        store.advance(GRACE);
        run(&store, 1).unwrap();
        assert!(!store.has(&old.manifest()), "the backup itself goes");
        assert!(store.has(&old.needs()[0]), "what the new one needs of it stays");
        check_whole(&store, "");
        // And goes with the one that needed it.
        Made::new("2026-05-01T02:00:00Z").store(&store);
        store.advance(GRACE);
        for _ in 0..3 {
            run(&store, 1).unwrap();
            store.advance(GRACE);
        }
        assert!(!store.has(&late.manifest()) && !store.has(&old.needs()[0]));
        assert!(!store.has(&new.manifest()));
    }

    /// What is marked can still be taken back, so it keeps what it needs until it goes itself.
    #[test]
    fn a_marked_backup_keeps_its_objects() {
        let (store, old, _) = two();
        run(&store, 1).unwrap();
        let late = Made::new("2026-04-26T12:00:00Z").on(&old).store(&store);
        store.advance(GRACE / 2);
        assert_eq!(run(&store, 1).unwrap().marked, [late.id.as_str()]);
        store.advance(GRACE / 2);
        assert_eq!(run(&store, 1).unwrap().removed, [old.id.as_str()]);
        assert!(store.has(&late.manifest()));
        check_whole(&store, "");
        for _ in 0..2 {
            store.advance(GRACE);
            run(&store, 1).unwrap();
        }
        assert!(!store.has(&late.manifest()) && !store.has(&old.needs()[0]));
    }

    #[test]
    fn a_marked_backup_fills_no_slot() {
        let (store, old, new) = two();
        let newest = Made::new("2026-04-28T02:00:00Z").store(&store);
        let mark: Mark = Mark {
            series: "app".into(),
            backups: vec![new.id.clone()],
            manifests: vec![new.manifest()],
            ..Mark::default()
        };
        crate::remove::put_mark(&store, &mark, store.now().unwrap()).unwrap();
        let outcome = run(&store, 2).unwrap();
        assert_eq!((outcome.kept, outcome.marked), (2, Vec::new()));
        for _ in 0..3 {
            store.advance(GRACE);
            run(&store, 2).unwrap();
        }
        assert!(store.has(&old.manifest()) && store.has(&newest.manifest()));
        assert!(!store.has(&new.manifest()) && !store.has(&new.needs()[0]));
    }

    #[test]
    fn an_object_of_two_backups_goes_with_the_second() {
        let (store, old, _) = two();
        let heir = Made::new("2026-04-28T02:00:00Z").on(&old).store(&store);
        Made::new("2026-04-29T02:00:00Z").store(&store);
        run(&store, 2).unwrap();
        store.advance(GRACE);
        run(&store, 2).unwrap();
        assert!(!store.has(&old.manifest()) && store.has(&old.needs()[0]));
        run(&store, 1).unwrap();
        store.advance(GRACE);
        run(&store, 1).unwrap();
        assert!(!store.has(&heir.manifest()) && !store.has(&old.needs()[0]));
    }

    /// Two prunes on two hosts each mark one of two backups that share an object: neither names it.
    #[test]
    fn marks_of_two_hosts_leave_no_stranger_behind() {
        let (store, old, _) = two();
        let heir = Made::new("2026-04-26T03:00:00Z").on(&old).store(&store);
        for made in [&old, &heir] {
            let mark = Mark {
                series: "app".into(),
                backups: vec![made.id.clone()],
                manifests: vec![made.manifest()],
                objects: made.own.iter().map(|o| place::join(&made.folder(), o)).collect(),
                ..Mark::default()
            };
            let mark =
                Mark { objects: if made.id == old.id { Vec::new() } else { mark.objects }, ..mark };
            crate::remove::put_mark(&store, &mark, store.now().unwrap()).unwrap();
        }
        for _ in 0..3 {
            store.advance(GRACE);
            run(&store, 1).unwrap();
            check_whole(&store, "");
        }
        assert!(!store.has(&old.manifest()) && !store.has(&heir.manifest()));
        assert!(!store.has(&old.needs()[0]), "it has become a stranger");
    }

    #[test]
    fn what_a_live_list_names_stays_and_what_a_dead_one_left_goes() {
        let (store, ..) = two();
        let push = Made::new("2026-04-30T02:00:00Z");
        push.begin_list(&store);
        push.put_objects(&store);
        store.store(&place::join(&push.folder(), "SHA256SUMS"), b"side");
        run(&store, 5).unwrap();
        assert!(store.names().iter().all(|name| !name.starts_with(".bk/marks/")));
        store.advance(GRACE);
        run(&store, 5).unwrap();
        assert!(store.has(&push.needs()[0]), "first it is marked");
        store.advance(GRACE);
        // It was only asleep.
        store.store(&push.piece("renewed-1"), b"");
        run(&store, 5).unwrap();
        assert!(store.has(&push.needs()[0]) && store.has(&push.piece("begun.json")));
        for _ in 0..3 {
            store.advance(GRACE);
            run(&store, 5).unwrap();
        }
        assert!(!store.names().iter().any(|name| name.contains(&push.id)), "{:?}", store.names());
    }

    #[test]
    fn the_last_good_backup_is_not_removed_even_if_marked() {
        let (store, old, new) = two();
        run(&store, 1).unwrap();
        store.drop_object(&new.manifest());
        store.advance(GRACE);
        let mut options = options(&store, Rules { last: NonZeroU32::new(1), ..Rules::default() });
        options.accepts_missing = true;
        let error = prune(&store, "app", &options, &Silent).unwrap_err();
        assert_eq!(classify(&error), Exit::Unmet);
        assert!(store.has(&old.manifest()) && store.has(&old.needs()[0]));
    }

    #[test]
    fn nothing_goes_while_the_newest_complete_backup_is_not_whole() {
        let (store, old, new) = two();
        store.drop_object(&new.needs()[0]);
        for bytes in [None, Some(b"other".as_slice())] {
            if let Some(bytes) = bytes {
                store.store(&new.needs()[0], bytes);
            }
            assert_eq!(classify(&run(&store, 1).unwrap_err()), Exit::Unmet);
            assert!(!store.names().iter().any(|name| name.starts_with(".bk/")));
        }
        let newest = Made::new("2026-04-28T02:00:00Z").store(&store);
        assert_eq!(run(&store, 1).unwrap().marked, [old.id, new.id]);
        assert!(store.has(&newest.manifest()));
    }

    #[test]
    fn a_mark_that_names_what_no_prune_would_is_refused() {
        for name in [".bk-destination", ".bk/seen/x.json", ".bk/lock"] {
            let (store, ..) = two();
            store.store(".bk-destination", b"{}");
            let mark =
                Mark { series: "app".into(), objects: vec![name.to_owned()], ..Mark::default() };
            crate::remove::put_mark(&store, &mark, store.now().unwrap()).unwrap();
            store.advance(GRACE);
            let before = store.names();
            assert_eq!(classify(&run(&store, 1).unwrap_err()), Exit::Malformed, "{name}");
            assert_eq!(store.names(), before);
        }
        // Nor does one of this series remove what belongs to another.
        let (store, ..) = two();
        let other = Made { series: "other".into(), ..Made::new("2026-01-01T00:00:00Z") };
        let other = other.store(&store);
        let mark: Mark =
            Mark { series: "app".into(), manifests: vec![other.manifest()], ..Mark::default() };
        crate::remove::put_mark(&store, &mark, store.now().unwrap()).unwrap();
        store.advance(GRACE);
        assert_eq!(classify(&run(&store, 1).unwrap_err()), Exit::Malformed);
    }

    /// A mark may name anything.
    #[test]
    fn a_lying_mark_removes_nothing_that_a_backup_has() {
        let (store, _, new) = two();
        let mut objects = new.needs();
        objects.extend(side_files(&new.manifest()));
        let mark = Mark { series: "app".into(), objects: objects.clone(), ..Mark::default() };
        crate::remove::put_mark(&store, &mark, store.now().unwrap()).unwrap();
        store.advance(GRACE);
        run(&store, 9).unwrap();
        assert!(objects.iter().all(|name| store.has(name)));
        assert!(!store.names().iter().any(|name| name.starts_with(".bk/marks/")));
    }

    /// A manifest may claim anything as its objects.
    #[test]
    fn a_lying_manifest_takes_nothing_with_it_that_others_need() {
        let (store, _, new) = two();
        let mut liar = Made::new("2026-04-20T02:00:00Z");
        let claim = |object: &str| (new.id.clone(), new.folder(), object.to_owned());
        liar.inherited = vec![
            claim("manifest.json"),
            claim("SHA256SUMS"),
            claim("files/000001.tar.zst"),
            ("x".into(), String::new(), ".bk-destination".into()),
            ("x".into(), String::new(), ".bk/lock".into()),
        ];
        let liar = liar.store(&store);
        for name in [".bk-destination", ".bk/lock"] {
            store.store(name, b"{}");
        }
        for _ in 0..3 {
            run(&store, 1).unwrap();
            store.advance(GRACE);
        }
        assert!(!store.has(&liar.manifest()));
        for name in [&new.manifest(), &place::join(&new.folder(), "SHA256SUMS"), &new.needs()[0]] {
            assert!(store.has(name), "{name}");
        }
        assert!(store.has(".bk-destination") && store.has(".bk/lock"));
    }
}
