//! Puts a bucket's objects back into a bucket. What is there and is the same is left; nothing is
//! replaced by content that has not been checked.

use std::path::Path;

use anyhow::Context;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::Reason;
use bk_manifest::manifest::{Component, Status};
use bk_manifest::path::{RelPath, escape};
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::select::Selection;
use bk_manifest::spool::{Document, Spool};

use super::objects::Objects;
use super::putting::{Putting, key};
use super::strangers::Strangers;
use super::{Attributes, Bucket, KIND, etag};
use crate::catalog::Folders;
use crate::decrypt::{self, Sealed};
use crate::destination::Error;
use crate::fetch::find;
use crate::identity::Identities;
use crate::parallel;
use crate::read::Plan;
use crate::store::Store;

/// Objects that are put at once: a small one takes as long as an answer takes.
const IN_FLIGHT: usize = 8;
/// Objects that are looked at together.
const LOOK_BATCH: usize = 1000;
/// Names of lost objects, and of strangers, that are shown one by one.
pub(super) const NAMES_SHOWN: usize = 50;

/// What to put back, and over what.
pub struct Options<'a> {
    /// The component, by its record.
    pub component: Component,
    /// Patterns of paths; none: all of it.
    pub paths: &'a [String],
    /// Whether the bucket may hold something, and what differs is overwritten.
    pub overwrites: bool,
    /// Whether what the backup does not have is removed in the end.
    pub deletes_strangers: bool,
    /// Only find out what would be done.
    pub is_dry: bool,
    /// The keys of encrypted objects.
    pub identities: &'a Identities,
    /// The folder for opened copies of encrypted objects.
    pub temporary: &'a Path,
}

/// The bucket of a backup that is to be put back: the one that is named, or the only one there is.
///
/// # Errors
/// [`Exit::NotFound`] if there is none, or it was skipped; [`Exit::Usage`] for several.
pub fn the_component(document: &Document, names: &[String]) -> anyhow::Result<Component> {
    let mut buckets = document.trailer.components()?;
    buckets.retain(|component| {
        component.kind == KIND && (names.is_empty() || names.contains(&component.name))
    });
    let all: Vec<&str> = buckets.iter().map(|component| &*component.name).collect();
    match buckets.as_slice() {
        [] => Err(fail(Exit::NotFound, "the backup holds no such bucket")),
        [one] if one.status == Status::Skipped => {
            let reason = one.extra.get("reason").and_then(serde_json::Value::as_str);
            let reason = escape(reason.unwrap_or("no reason given").as_bytes());
            let message = format!("the bucket '{}' was skipped: {reason}", one.name);
            Err(fail(Exit::NotFound, message))
        }
        [one] => Ok(one.clone()),
        _ => Err(Failure::new(Exit::Usage, "several buckets are in the backup")
            .hint(format!("say which with --component: {}", all.join(", ")))
            .into()),
    }
}

/// Puts the objects of a component back.
///
/// # Errors
/// [`Exit::Usage`] for a bucket that is not empty, unless it may be overwritten;
/// [`Exit::NotFound`] if nothing is selected; a bucket that refuses everything.
pub fn mirror(
    document: &mut Document,
    store: &Store,
    bucket: &dyn Bucket,
    options: &Options<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let name = &options.component.name;
    let selection = Selection::new(options.paths, std::slice::from_ref(name))?;
    if options.deletes_strangers && options.component.status != Status::Complete {
        let message = format!("'{name}' is not complete in this backup: nothing can be a stranger");
        return Err(Failure::new(Exit::Usage, message)
            .hint("put it back without --delete-strangers, or an earlier backup")
            .into());
    }
    let folder = find(document, store, progress)?;
    let folders = Folders::new(&document.header, &folder)?;
    let objects = Objects::list(bucket, name, progress)?;
    if !objects.is_empty() && !options.overwrites {
        let message = format!("'{}' is not empty", bucket.describe());
        return Err(Failure::new(Exit::Usage, message)
            .hint("to put back what is missing or differs, which is overwritten: --into")
            .into());
    }
    let sealed = Sealed::new(&document.header, &document.trailer, &folder)?;
    let prefix = RelPath::new(name.as_bytes())?;
    let mut work = Work::new(&folders, sealed, bucket, prefix.clone())?;
    work.compare(document, objects, &selection)?;
    if work.selected == 0 && !options.paths.is_empty() {
        return Err(fail(Exit::NotFound, "no path of the bucket matches"));
    }
    let Work { plan, sealed, markers, strangers, counts, .. } = work;
    let (destination, identities) = (&*store.destination, options.identities);
    let stored =
        decrypt::Objects::open(destination, sealed, identities, options.temporary, progress)?;
    let (markers, strangers) = (markers.finish()?, strangers.finish()?);
    if options.is_dry {
        counts.tell("would be ", bucket, progress);
        let strangers = Strangers { bucket, prefix, entries: strangers, progress };
        if options.deletes_strangers {
            strangers.tell_removal()?;
        } else {
            strangers.tell("is left")?;
        }
        return Ok(document.trailer.worsen(Exit::Done)?);
    }

    progress.begin("putting back", Some(counts.bytes));
    let putting = Putting::new(bucket, prefix.clone(), progress);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(IN_FLIGHT).build();
    pool.context("cannot start threads")?
        .install(|| plan.run(&stored, &document.entries, &putting))?;
    for marker in markers.iter() {
        bk_manifest::signal::check()?;
        putting.mark(&marker?)?;
    }
    progress.end();
    counts.tell("", bucket, progress);
    let lost = putting.lost();
    tell_some(lost.iter().map(|(path, why)| Ok(format!("lost: '{path}' {why}"))), progress)?;
    let strangers = Strangers { bucket, prefix, entries: strangers, progress };
    let are_left = match (options.deletes_strangers, lost.is_empty()) {
        (true, true) => strangers.remove()? > 0,
        (true, false) => {
            progress.warn("not everything is back: what the backup does not have was left");
            true
        }
        (false, _) => {
            strangers.tell("is left")?;
            false
        }
    };
    let mine = if lost.is_empty() && !are_left { Exit::Done } else { Exit::Partial };
    Ok(document.trailer.worsen(mine)?)
}

/// What is to be done, found by going through backup and bucket side by side.
struct Work<'a> {
    folders: &'a Folders,
    bucket: &'a dyn Bucket,
    prefix: RelPath,
    /// Entries whose content is there, in objects that were stored at another time.
    doubtful: Vec<(u64, Entry)>,
    plan: Plan,
    /// What of the encrypted objects holds what is to be put back.
    sealed: Sealed,
    /// Folders that stand for themselves.
    markers: Spool,
    /// What only the bucket has.
    strangers: Spool,
    selected: u64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    put: u64,
    bytes: u64,
    replaced: u64,
    same: u64,
    /// Those among them of which only the content is known, and why of one.
    hidden: u64,
    why_hidden: Option<Error>,
    /// Objects whose keys no backup can hold.
    unnameable: u64,
}

impl<'a> Work<'a> {
    fn new(
        folders: &'a Folders,
        sealed: Sealed,
        bucket: &'a dyn Bucket,
        prefix: RelPath,
    ) -> anyhow::Result<Self> {
        Ok(Work {
            folders,
            bucket,
            prefix,
            doubtful: Vec::new(),
            plan: Plan::default(),
            sealed,
            markers: Spool::new()?,
            strangers: Spool::new()?,
            selected: 0,
            counts: Counts::default(),
        })
    }

    fn compare(
        &mut self,
        document: &Document,
        mut objects: Objects,
        selection: &Selection,
    ) -> anyhow::Result<()> {
        let is_mine = |entry: &anyhow::Result<(u64, Entry)>| {
            entry.as_ref().map_or(true, |(_, entry)| selection.matches(entry))
        };
        let mut entries = document.entries.places().filter(is_mine).peekable();
        let mut left_out = std::mem::take(&mut objects.left_out);
        objects.each(&mut left_out, &mut |found| {
            let is_due = |entry: &anyhow::Result<(u64, Entry)>| {
                entry.as_ref().map_or(true, |(_, entry)| entry.path <= found.path)
            };
            let mut is_stranger = true;
            while let Some(entry) = entries.next_if(is_due) {
                let (place, entry) = entry?;
                let there = (entry.path == found.path).then_some(&found);
                is_stranger &= there.is_none();
                self.take(place, &entry, there)?;
            }
            if is_stranger && selection.matches(&found) {
                self.strangers.push(&found)?;
            }
            Ok(())
        })?;
        for entry in entries {
            let (place, entry) = entry?;
            self.take(place, &entry, None)?;
        }
        self.look()?;
        self.counts.unnameable = left_out.count(Reason::Unnameable);
        Ok(())
    }

    /// Plans what becomes of an entry, where `there` is in the bucket.
    fn take(&mut self, place: u64, entry: &Entry, there: Option<&Entry>) -> anyhow::Result<()> {
        self.selected += 1;
        if entry.kind == Kind::Directory {
            if there.is_none() {
                self.markers.push(entry)?;
            }
            return Ok(());
        }
        match there.filter(|there| is_same(entry, there)) {
            Some(there) if there.mtime == entry.mtime => self.counts.same += 1,
            Some(_) => {
                self.doubtful.push((place, entry.clone()));
                if self.doubtful.len() == LOOK_BATCH {
                    self.look()?;
                }
            }
            None => self.put(place, entry, there.is_some_and(Entry::is_file))?,
        }
        Ok(())
    }

    /// Looks at the doubtful ones: whoever stored them may have changed what they have beside their content.
    fn look(&mut self) -> anyhow::Result<()> {
        let (bucket, prefix) = (self.bucket, &self.prefix);
        let look = |(place, entry): (u64, Entry)| -> anyhow::Result<_> {
            bk_manifest::signal::check()?;
            Ok((bucket.attributes(&key(&entry, prefix)?), place, entry))
        };
        let looked = parallel::map(IN_FLIGHT, std::mem::take(&mut self.doubtful), look);
        for looked in looked {
            let (found, place, entry) = looked?;
            match found {
                Ok(Some(found)) if found == Attributes::recorded(&entry) => self.counts.same += 1,
                Ok(_) => self.put(place, &entry, true)?,
                Err(error) if error.is_withheld() => {
                    self.counts.same += 1;
                    self.counts.hidden += 1;
                    self.counts.why_hidden.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Plans to put an entry's object.
    fn put(&mut self, place: u64, entry: &Entry, replaces: bool) -> anyhow::Result<()> {
        self.counts.put += 1;
        self.counts.bytes = self.counts.bytes.saturating_add(entry.size.unwrap_or(0));
        self.counts.replaced += u64::from(replaces);
        let at = entry.at.as_ref().with_context(|| format!("'{}' is not stored", entry.path))?;
        self.sealed.want(entry)?;
        self.plan.push(self.folders, at, place)
    }
}

/// Whether the store says that an object is the one that the backup has.
fn is_same(entry: &Entry, there: &Entry) -> bool {
    there.is_file()
        && entry.size == there.size
        && etag(entry).is_some()
        && etag(entry) == etag(there)
}

impl Counts {
    fn tell(self, would: &str, bucket: &dyn Bucket, progress: &dyn Progress) {
        let Counts { put, bytes, replaced, same, hidden, why_hidden, unnameable } = self;
        progress.note(&format!(
            "{put} objects {would}put into '{}', {}; {replaced} of them replace another, {same} \
             were there",
            bucket.describe(),
            human_bytes(bytes)
        ));
        if let Some(error) = why_hidden {
            progress.warn(&format!(
                "{hidden} objects with the same content were left, whatever metadata they have: {:#}",
                anyhow::Error::from(error)
            ));
        }
        if unnameable > 0 {
            progress.warn(&format!("{unnameable} objects there have keys that no backup can hold"));
        }
    }
}

/// Lines for people, as many as anybody reads.
pub(super) fn tell_some(
    lines: impl Iterator<Item = anyhow::Result<String>>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let mut more = 0u64;
    for (number, line) in lines.enumerate() {
        let line = line?;
        if number < NAMES_SHOWN {
            progress.warn(&line);
        } else {
            more += 1;
        }
    }
    if more > 0 {
        progress.warn(&format!("{more} more"));
    }
    Ok(())
}
