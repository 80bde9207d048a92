//! The objects that are one file each: there may be millions of them, so they are neither held in memory
//! nor asked for one by one.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::lookup::Lookup;
use bk_manifest::progress::Progress;
use bk_manifest::sort::{Sorted, Sorter};
use bk_manifest::spool::Entries;
use bk_push::catalog::Folders;
use bk_push::destination::Destination;
use bk_push::parallel;
use bk_push::plain::{Listed, PlainFiles, PlainObject};

use crate::check::{MarkWarnings, is_accessible, read_one};
use crate::problem::{Fault, Findings, Names, Problem};
use crate::report::is_told_by_entry;

/// Memory for their order; more goes through temporary files.
const ORDER_BUDGET: usize = 16 << 20;
/// Objects that are looked at together.
const BATCH: usize = 1024;

/// Those that a verify is about.
pub struct PlainTargets<'a> {
    files: &'a PlainFiles,
    order: Sorter,
    folders: BTreeSet<String>,
}

/// What they are looked at with.
pub struct Looking<'a> {
    /// Where they are.
    pub destination: &'a dyn Destination,
    /// What is there.
    pub listed: &'a Listed,
    /// The entries that name them.
    pub entries: &'a Entries,
    /// Whether the bytes of an object are to be read; it is asked whether that is the backup's own.
    pub reads: &'a (dyn Fn(bool) -> bool + Sync),
    /// Whether those whose bytes are not read will be, by their content.
    pub reads_content: bool,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

/// What looking at them came to.
#[derive(Default)]
pub struct Looked {
    /// How many they are.
    pub objects: u64,
    /// Of them those whose bytes were read.
    pub read: u64,
    /// How many bytes that were.
    pub bytes: u64,
    /// Their names, while they are few.
    names: Vec<String>,
    /// Those with a problem.
    pub faulty: Faulty,
}

/// Objects with a problem, outside of memory.
#[derive(Default)]
pub struct Faulty(Lookup);

impl Faulty {
    fn add(&mut self, name: &str, fault: Fault) -> anyhow::Result<()> {
        self.0.insert(key(name), u64::from(fault == Fault::Missing))
    }

    /// What that means for the files in an object: it is missing, or its content is lost.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn get(&self, name: &str) -> anyhow::Result<Option<Fault>> {
        let is_missing = self.0.get(key(name))?;
        Ok(is_missing.map(|missing| if missing == 1 { Fault::Missing } else { Fault::Content }))
    }
}

fn key(name: &str) -> u128 {
    Digest::of(name.as_bytes()).key()
}

/// An object and the files that are it: any number of equal ones.
struct Target {
    object: PlainObject,
    files: Names,
}

impl Looked {
    /// Their names, or how many they are.
    pub fn into_names(self) -> Vec<String> {
        if is_told_by_entry(self.objects) {
            return self.names;
        }
        vec![format!("{} objects of one file each", self.objects)]
    }
}

impl<'a> PlainTargets<'a> {
    /// None of a manifest's plain files yet.
    pub fn new(files: &'a PlainFiles) -> Self {
        PlainTargets { files, order: Sorter::new(ORDER_BUDGET), folders: BTreeSet::new() }
    }

    /// Takes the object of an entry, if that is a plain file. `place` is where [`Entries`] holds it.
    ///
    /// # Errors
    /// A malformed entry; those of the temporary files.
    pub fn take(&mut self, entry: &Entry, place: u64, folders: &Folders) -> anyhow::Result<()> {
        let (Some(object), Some((_, record))) =
            (self.files.object(entry)?, self.files.record(entry)?)
        else {
            return Ok(());
        };
        let mut line = object.name.into_bytes();
        line.push(0);
        line.extend_from_slice(&place.to_be_bytes());
        self.order.push(&line)?;
        let folder = folders.object(record.backup.as_deref(), &record.component)?;
        self.folders.insert(folder);
        Ok(())
    }

    /// The folders that they lie in.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.folders.iter().map(String::as_str)
    }

    /// Looks whether they are there, and reads those that are to be read, several at once.
    ///
    /// # Errors
    /// Denied access, a passing fault, being stopped; those of the temporary files. What is wrong with
    /// an object goes into `findings`.
    pub fn check(
        self,
        looking: &Looking<'_>,
        marked: &mut MarkWarnings<'_>,
        findings: &mut Findings,
    ) -> anyhow::Result<Looked> {
        let mut looked = Looked::default();
        let mut targets =
            Targets { files: self.files, entries: looking.entries, order: self.order.finish()? };
        let mut next: Option<Target> = None;
        looking.progress.begin("looking at objects", None);
        loop {
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(target) = targets.next(&mut next)?
            {
                marked.look(&target.object.name);
                batch.push(target);
            }
            if batch.is_empty() {
                break;
            }
            looked.take(batch, looking, findings)?;
        }
        looking.progress.end();
        Ok(looked)
    }
}

/// The objects in the order of their names.
struct Targets<'a> {
    files: &'a PlainFiles,
    entries: &'a Entries,
    order: Sorted,
}

impl Targets<'_> {
    /// The next object with all of its files; `begun` is the one behind it.
    fn next(&mut self, begun: &mut Option<Target>) -> anyhow::Result<Option<Target>> {
        for line in self.order.by_ref() {
            bk_manifest::signal::check()?;
            let line = line?;
            let place = line.last_chunk().context("temporary file")?;
            let entry = self.entries.at(u64::from_be_bytes(*place))?;
            let object = self.files.object(&entry)?.context("temporary file")?;
            let is_same = |target: &&mut Target| {
                target.object.name == object.name && target.object.stored == object.stored
            };
            if let Some(target) = begun.as_mut().filter(is_same) {
                target.files.add(&entry.path);
                continue;
            }
            let mut files = Names::default();
            files.add(&entry.path);
            if let Some(before) = begun.replace(Target { object, files }) {
                return Ok(Some(before));
            }
        }
        Ok(begun.take())
    }
}

impl Looked {
    fn take(
        &mut self,
        batch: Vec<Target>,
        looking: &Looking<'_>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        self.objects += batch.len() as u64;
        if is_told_by_entry(self.objects) {
            self.names.extend(batch.iter().map(|target| target.object.name.clone()));
        } else {
            self.names = Vec::new();
        }
        let destination = looking.destination;
        let read_bytes = AtomicU64::new(0);
        let look = |target: Target| -> anyhow::Result<_> {
            bk_manifest::signal::check()?;
            let PlainObject { name, stored, at, .. } = &target.object;
            let of = |fault, detail: String| Some(Problem::of_plain(fault, name, detail));
            let is_read = (looking.reads)(at.backup.is_none());
            let problem = match looking.listed.size(name)? {
                None => of(Fault::Missing, "is missing".into()),
                Some(size) if size != stored.size => {
                    of(Fault::Size, format!("has {size} bytes instead of {}", stored.size))
                }
                Some(_) if is_read => {
                    let fault =
                        read_one(destination, name, *stored, &read_bytes, looking.progress)?;
                    return Ok((true, fault.and_then(|(fault, detail)| of(fault, detail)), target));
                }
                Some(_) if looking.reads_content => {
                    is_accessible(destination, name)?;
                    None
                }
                Some(_) => None,
            };
            Ok((false, problem, target))
        };
        for (is_read, problem, target) in parallel::try_map(destination.at_once(), batch, look)? {
            self.read += u64::from(is_read);
            if let Some(mut problem) = problem {
                self.faulty.add(&target.object.name, problem.fault)?;
                problem.files = target.files;
                findings.add(problem);
            }
        }
        self.bytes += read_bytes.into_inner();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
