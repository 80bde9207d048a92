//! Follows names on their way out: what due marks name and what is to be marked, less what
//! something that stays still needs. All manifests are read, one at a time; their entries only where
//! plain files are to go.

use std::collections::BTreeSet;

use bk_push::borders::Borders;
use bk_push::catalog::BackupInfo;
use bk_push::destination::Destination;
use bk_push::mark::Mark;
use bk_push::names::Names;
use bk_push::place::{may_be_object, side_files, side_files_of};

use crate::needs::{Needs, Sets, folders_above};
use crate::plan::{Amount, Class, Marks, Strangers};
use crate::survey::{List, Survey};
use crate::table::{
    DUE, FOUND, HELD, KEPT, LEFT, PENDING, REQUIRED, SIDE, STAYS, Table, Verdict, partial_list_of,
};

/// Names of strangers that are shown.
const STRANGERS_SHOWN: usize = 3;

/// The names on their way out.
pub(crate) struct Flow<'a> {
    table: Table,
    /// What may go, each name once: what due marks name, dead pushes left, and backups need that go.
    candidates: Names,
    sets: Sets,
    /// Manifests that are deleted now.
    pub(crate) due_manifests: BTreeSet<String>,
    /// Manifests and side files that are marked now.
    fresh_manifests: BTreeSet<String>,
    /// The newest complete backup, which must have all its objects.
    last_good: Option<&'a BackupInfo>,
    /// How many of those have not been found.
    required: u64,
}

/// What the listing says of the names.
#[derive(Default)]
pub(crate) struct Sizes {
    /// What is deleted now.
    pub(crate) deleted: Amount,
    /// What is marked now.
    pub(crate) marked: Amount,
    /// What nothing accounts for.
    pub(crate) strangers: Strangers,
}

/// What becomes of the candidates.
#[derive(Default)]
pub(crate) struct Going {
    /// Objects that are deleted now, and side files.
    pub(crate) objects: Names,
    /// Pieces of partial lists that are deleted now.
    pub(crate) pieces: Names,
    /// What is marked now.
    pub(crate) marked: Names,
}

impl<'a> Flow<'a> {
    /// Begins with what marks and partial lists name.
    pub(crate) fn new(
        marks: &Marks<'_>,
        survey: &Survey,
        series: &str,
        last_good: Option<&'a BackupInfo>,
    ) -> anyhow::Result<Self> {
        let mut flow = Flow {
            table: Table::default(),
            candidates: Names::default(),
            sets: Sets::default(),
            due_manifests: BTreeSet::new(),
            fresh_manifests: BTreeSet::new(),
            last_good,
            required: 0,
        };
        for (name, is_due) in marks.names() {
            bk_manifest::signal::check()?;
            flow.add(&name?, if is_due { DUE } else { PENDING })?;
        }
        for list in &survey.lists {
            let is_mine = list.begun.as_ref().is_none_or(|begun| begun.series == series);
            let is_held = list.is_alive || !is_mine;
            let flag = if is_held { HELD } else { LEFT };
            for name in &list.pieces {
                flow.add(name, flag)?;
            }
            for name in list.objects.iter() {
                bk_manifest::signal::check()?;
                flow.add(&name?, flag)?;
            }
            for name in side_files_left(list).iter().filter(|_| !is_held) {
                flow.add(name, flag)?;
            }
        }
        Ok(flow)
    }

    /// Adds to what is known of a name.
    fn add(&mut self, name: &str, flags: u64) -> anyhow::Result<()> {
        let before = self.table.add(name, flags)?;
        if flags & (DUE | LEFT) != 0 && !before.has(DUE | LEFT) {
            self.candidates.add(name)?;
        }
        Ok(())
    }

    /// Reads every manifest: first those that go, then those that need what they name.
    pub(crate) fn read(
        &mut self,
        destination: &dyn Destination,
        survey: &Survey,
        class: &impl Fn(&BackupInfo) -> Class,
    ) -> anyhow::Result<()> {
        let mut staying = Vec::new();
        for backup in &survey.catalog.backups {
            bk_manifest::signal::check()?;
            let needs = Needs::read(destination, backup)?;
            let flags = flags(class(backup));
            for object in &needs.objects {
                self.add(&object.name, flags)?;
                if self.is_last_good(backup) {
                    self.require(&object.name, object.record.size)?;
                }
            }
            self.sets.add(&needs.sets);
            if flags & LEFT != 0 {
                needs.each_plain(destination, backup, &mut |name, _| self.add(name, flags))?;
            } else if !needs.sets.is_empty() {
                staying.push((backup, flags, needs.sets));
            }
        }
        if !self.sets.is_empty() {
            for name in self.candidates.iter() {
                bk_manifest::signal::check()?;
                self.sets.shrink(&name?);
            }
        }
        for (backup, flags, sets) in staying {
            let is_asked = self.is_last_good(backup) && self.sets.any_shrinks();
            if is_asked || self.sets.shrinks(&sets) {
                self.read_plain(destination, backup, flags)?;
            }
        }
        self.side_files(survey, class)
    }

    fn is_last_good(&self, backup: &BackupInfo) -> bool {
        self.last_good.is_some_and(|good| good.manifest.name == backup.manifest.name)
    }

    /// Has a backup that stays keep its plain files, as far as any could go.
    fn read_plain(
        &mut self,
        destination: &dyn Destination,
        backup: &BackupInfo,
        flags: u64,
    ) -> anyhow::Result<()> {
        let is_last_good = self.is_last_good(backup);
        // Again, since it is too much to be held for all backups.
        let needs = Needs::read(destination, backup)?;
        needs.each_plain(destination, backup, &mut |name, size| {
            if self.sets.is_in_shrinking(name) {
                self.add(name, flags)?;
            }
            if is_last_good { self.require(name, size) } else { Ok(()) }
        })
    }

    fn require(&mut self, name: &str, size: u64) -> anyhow::Result<()> {
        if !self.table.require(name, size)?.has(REQUIRED) {
            self.required += 1;
        }
        Ok(())
    }

    /// Where its manifest stays or is only marked now, a side file is not an object that goes.
    fn side_files(
        &mut self,
        survey: &Survey,
        class: &impl Fn(&BackupInfo) -> Class,
    ) -> anyhow::Result<()> {
        for backup in &survey.catalog.backups {
            let class = class(backup);
            let manifest = &backup.manifest.name;
            match class {
                Class::Due => drop(self.due_manifests.insert(manifest.clone())),
                Class::New => drop(self.fresh_manifests.insert(manifest.clone())),
                _ => {}
            }
            for side in side_files(manifest) {
                self.add(&side, if class == Class::Due { SIDE } else { SIDE | STAYS })?;
                if class == Class::New {
                    self.fresh_manifests.insert(side);
                }
            }
        }
        Ok(())
    }

    /// Lists the destination: how much goes, and what nothing accounts for.
    pub(crate) fn look(
        &mut self,
        destination: &dyn Destination,
        survey: &Survey,
    ) -> anyhow::Result<Sizes> {
        let folders: BTreeSet<&str> = survey
            .lists
            .iter()
            .filter_map(|list| list.begun.as_ref())
            .map(|begun| begun.folder.as_str())
            .collect();
        let mut sizes = Sizes::default();
        for object in destination.list("")? {
            bk_manifest::signal::check()?;
            let object = object?;
            let name = object.name.as_str();
            let state = self.table.get(name)?;
            if state.requires(object.size) && !state.has(FOUND) {
                self.table.add(name, FOUND)?;
                self.required -= 1;
            }
            if survey.catalog.borders.is_beyond(name) {
                continue;
            }
            let verdict = state.verdict(name);
            if verdict == Verdict::Deleted || self.due_manifests.contains(name) {
                sizes.deleted.add(object.size);
            } else if verdict == Verdict::Marked || self.fresh_manifests.contains(name) {
                sizes.marked.add(object.size);
            } else if may_be_object(name)
                && !state.is_known()
                && !self.sets.accounts_for(name)
                && !folders_above(name).any(|folder| folders.contains(folder))
            {
                sizes.strangers.count += 1;
                if sizes.strangers.names.len() < STRANGERS_SHOWN {
                    sizes.strangers.names.push(object.name);
                }
            }
        }
        Ok(sizes)
    }

    /// An object of the newest complete backup that was not listed with its size, and that backup.
    pub(crate) fn missing(
        &self,
        destination: &dyn Destination,
    ) -> anyhow::Result<Option<(&'a BackupInfo, String)>> {
        let Some(backup) = self.last_good.filter(|_| self.required > 0) else { return Ok(None) };
        let mut missing: Option<String> = None;
        let mut look = |name: &str| -> anyhow::Result<()> {
            let state = self.table.get(name)?;
            if state.has(REQUIRED)
                && !state.has(FOUND)
                && missing.as_deref().is_none_or(|first| name < first)
            {
                missing = Some(name.to_owned());
            }
            Ok(())
        };
        let needs = Needs::read(destination, backup)?;
        for object in &needs.objects {
            look(&object.name)?;
        }
        needs.each_plain(destination, backup, &mut |name, _| look(name))?;
        Ok(missing.map(|name| (backup, name)))
    }

    /// Tells what goes now from what is marked now. What lies in another destination never goes,
    /// whatever a mark says that was put before that was known.
    pub(crate) fn going(&self, borders: &Borders) -> anyhow::Result<Going> {
        let mut going = Going::default();
        for name in self.candidates.iter() {
            bk_manifest::signal::check()?;
            let name = name?;
            if borders.is_beyond(&name) {
                continue;
            }
            match self.table.get(&name)?.verdict(&name) {
                Verdict::Deleted if partial_list_of(&name).is_some() => going.pieces.add(&name)?,
                Verdict::Deleted => going.objects.add(&name)?,
                Verdict::Marked => going.marked.add(&name)?,
                Verdict::Stays => {}
            }
        }
        Ok(going)
    }

    /// The mark to put for what is newly to go, if there is any.
    pub(crate) fn mark(
        self,
        objects: Names,
        new: &[&BackupInfo],
        series: &str,
        host: &str,
    ) -> Option<Mark<Names>> {
        if new.is_empty() && objects.is_empty() {
            return None;
        }
        let ids: BTreeSet<&str> = new.iter().map(|backup| backup.id.as_str()).collect();
        Some(Mark {
            host: host.to_owned(),
            series: series.to_owned(),
            backups: ids.into_iter().map(str::to_owned).collect(),
            manifests: self.fresh_manifests.into_iter().collect(),
            objects,
        })
    }
}

/// What a backup of this class makes of what it needs.
fn flags(class: Class) -> u64 {
    match class {
        Class::Due => LEFT,
        Class::New => LEFT | STAYS,
        Class::Marked(_) => STAYS,
        Class::Kept => KEPT,
    }
}

/// The side files that a push may have left that died before its commit.
///
/// Only in a folder that bears the backup's name: elsewhere they may be somebody else's.
fn side_files_left(list: &List) -> Vec<String> {
    match &list.begun {
        Some(begun) if begun.folder.rsplit('/').next() == Some(&list.id) => {
            side_files_of(&begun.folder, "")
        }
        _ => Vec::new(),
    }
}
