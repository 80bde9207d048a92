//! Follows names on their way out: what due marks name and what is to be marked, less what
//! something that stays still needs. All manifests are read once, one at a time.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};

use bk_push::catalog::BackupInfo;
use bk_push::destination::Destination;
use bk_push::mark::Mark;
use bk_push::place::{self, may_be_object, side_files, side_files_of};

use crate::names::{objects_of, partial_list_of};
use crate::plan::{Class, Marks, Strangers};
use crate::survey::{List, Survey};

/// Names of strangers that are shown.
const STRANGERS_SHOWN: usize = 3;
/// Most names in one mark: far below the size that a reader of marks accepts.
const NAMES_PER_MARK: usize = 100_000;

/// The names on their way out.
pub(crate) struct Flow<'a> {
    /// Named by due marks: deleted now unless something that stays names them.
    pub(crate) due: BTreeSet<String>,
    /// To be marked now unless a backup that is kept names them.
    fresh: BTreeSet<String>,
    /// Named by marks that are not due: looked at when those are.
    pending: &'a HashSet<&'a str>,
    /// Objects and pieces of lists that are let be.
    held: HashSet<&'a str>,
    /// Manifests that are deleted now.
    pub(crate) due_manifests: BTreeSet<String>,
    /// Manifests and side files that are marked now.
    fresh_manifests: BTreeSet<String>,
    /// The manifest of the newest complete backup, which must have all its objects.
    last_good: Option<&'a str>,
    /// Those objects and their sizes.
    required: BTreeMap<String, u64>,
    /// Hashes of all names that something accounts for.
    known: HashSet<u64>,
    hasher: RandomState,
}

/// What the listing says of the names.
#[derive(Default)]
pub(crate) struct Sizes {
    /// Bytes that are deleted now.
    pub(crate) deleted: u64,
    /// Bytes that are marked now.
    pub(crate) marked: u64,
    /// What nothing accounts for.
    pub(crate) strangers: Strangers,
    /// An object of the newest complete backup that is not there with its size.
    pub(crate) missing: Option<String>,
}

impl<'a> Flow<'a> {
    /// Begins with what marks and partial lists name.
    pub(crate) fn new(
        marks: &'a Marks,
        survey: &'a Survey,
        series: &str,
        last_good: Option<&'a str>,
    ) -> Self {
        let mut flow = Flow {
            due: marks.due.iter().map(|name| (*name).to_owned()).collect(),
            // What a due mark names but something else holds would be forgotten with the mark.
            fresh: marks.due.iter().map(|name| (*name).to_owned()).collect(),
            pending: &marks.pending,
            held: HashSet::new(),
            due_manifests: BTreeSet::new(),
            fresh_manifests: BTreeSet::new(),
            last_good,
            required: BTreeMap::new(),
            known: HashSet::new(),
            hasher: RandomState::new(),
        };
        for name in marks.due.iter().chain(&marks.pending) {
            flow.know(name);
        }
        for list in &survey.lists {
            for name in &list.objects {
                flow.know(name);
            }
            let is_mine = list.begun.as_ref().is_none_or(|begun| begun.series == series);
            if list.is_alive || !is_mine {
                flow.held.extend(list.objects.iter().chain(&list.pieces).map(String::as_str));
            } else {
                flow.fresh.extend(list.pieces.iter().cloned());
                flow.fresh.extend(list.objects.iter().chain(&side_files_left(list)).cloned());
            }
        }
        flow
    }

    fn know(&mut self, name: &str) {
        self.known.insert(self.hasher.hash_one(name));
    }

    /// Reads every manifest: first those that go, then those that need what they name.
    pub(crate) fn read(
        &mut self,
        destination: &dyn Destination,
        survey: &Survey,
        class: &impl Fn(&BackupInfo) -> Class,
    ) -> anyhow::Result<()> {
        for goes in [true, false] {
            for backup in &survey.catalog.backups {
                let class = class(backup);
                if matches!(class, Class::Due | Class::New) == goes {
                    bk_manifest::signal::check()?;
                    self.backup(destination, backup, class)?;
                }
            }
        }
        // Where its manifest stays or is only marked now, a side file is not an object that goes.
        for backup in &survey.catalog.backups {
            let class = class(backup);
            let manifest = &backup.manifest.name;
            match class {
                Class::Due => drop(self.due_manifests.insert(manifest.clone())),
                Class::New => drop(self.fresh_manifests.insert(manifest.clone())),
                _ => {}
            }
            for side in side_files(manifest) {
                self.know(&side);
                self.fresh.remove(&side);
                if class != Class::Due {
                    self.due.remove(&side);
                }
                if class == Class::New {
                    self.fresh_manifests.insert(side);
                }
            }
        }
        Ok(())
    }

    fn backup(
        &mut self,
        destination: &dyn Destination,
        backup: &BackupInfo,
        class: Class,
    ) -> anyhow::Result<()> {
        let objects = objects_of(destination, backup)?;
        if self.last_good == Some(&backup.manifest.name) {
            self.required.clone_from(&objects);
        }
        for name in objects.into_keys() {
            self.know(&name);
            match class {
                Class::Due | Class::New => {
                    if class == Class::New {
                        self.due.remove(&name);
                    }
                    self.fresh.insert(name);
                }
                Class::Marked(_) => {
                    self.due.remove(&name);
                }
                Class::Kept => {
                    self.due.remove(&name);
                    self.fresh.remove(&name);
                }
            }
        }
        Ok(())
    }

    /// Takes out what is held, what is bk's own, and what is marked already.
    ///
    /// An object that a due mark names and a live list holds is marked anew: the push behind the
    /// list has slept, may have stored its content again under another name, and forgets it with
    /// its list.
    pub(crate) fn settle(&mut self) {
        let is_removable = |name: &str| may_be_object(name) || partial_list_of(name).is_some();
        let mut again = BTreeSet::new();
        self.due.retain(|name| {
            let is_held = self.held.contains(name.as_str());
            if is_held && may_be_object(name) && self.fresh.contains(name) {
                again.insert(name.clone());
            }
            !is_held && is_removable(name)
        });
        self.fresh.retain(|name| {
            (again.contains(name) || !self.held.contains(name.as_str()))
                && is_removable(name)
                && !self.due.contains(name)
                && !self.pending.contains(name.as_str())
        });
    }

    /// Lists the destination: how much goes, and what nothing accounts for.
    pub(crate) fn look(
        &mut self,
        destination: &dyn Destination,
        survey: &Survey,
    ) -> anyhow::Result<Sizes> {
        let folders: Vec<&str> = survey
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
            if self.required.get(name) == Some(&object.size) {
                self.required.remove(name);
            }
            if self.due.contains(name) || self.due_manifests.contains(name) {
                sizes.deleted += object.size;
            } else if self.fresh.contains(name) || self.fresh_manifests.contains(name) {
                sizes.marked += object.size;
            } else if may_be_object(name)
                && !self.known.contains(&self.hasher.hash_one(name))
                && !folders.contains(&place::parent(name))
            {
                sizes.strangers.count += 1;
                if sizes.strangers.names.len() < STRANGERS_SHOWN {
                    sizes.strangers.names.push(object.name);
                }
            }
        }
        sizes.missing = self.required.pop_first().map(|(name, _)| name);
        Ok(sizes)
    }

    /// The marks to put for what is newly to go; that with the manifests last, so that no objects
    /// are left unmarked behind them if the run dies in between.
    pub(crate) fn marks(self, new: &[&BackupInfo], series: &str, host: &str) -> Vec<Mark> {
        let objects: Vec<String> = self.fresh.into_iter().collect();
        if new.is_empty() && objects.is_empty() {
            return Vec::new();
        }
        let mark = |objects: &[String]| Mark {
            host: host.to_owned(),
            series: series.to_owned(),
            backups: Vec::new(),
            manifests: Vec::new(),
            objects: objects.to_vec(),
        };
        let mut marks: Vec<Mark> = objects.chunks(NAMES_PER_MARK).map(mark).collect();
        let mut last = marks.pop().unwrap_or_else(|| mark(&[]));
        let ids: BTreeSet<&str> = new.iter().map(|backup| backup.id.as_str()).collect();
        last.backups = ids.into_iter().map(str::to_owned).collect();
        last.manifests = self.fresh_manifests.into_iter().collect();
        marks.push(last);
        marks
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
