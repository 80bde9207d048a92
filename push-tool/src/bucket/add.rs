//! `bk-push add`: lists a bucket into the document, and takes from the parent what it knows of the
//! objects.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::Context;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::{LeftOut, Reason};
use bk_manifest::manifest::{Component, HostPath, Source, SourceKind, Status, is_name, is_within};
use bk_manifest::merge::{Merge, refuse_stored, taken};
use bk_manifest::parent::Parent;
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;
use bk_manifest::scan::DESTINATION_MARKER;
use bk_manifest::sort::{Sorter, pair, unpair};
use bk_manifest::stream::{Format, Reader, Writer, copy_entries};

use super::{Attributes, Bucket, Listed, describe, etag};

/// The kind of component that a bucket is.
pub const KIND: &str = "bucket";
/// Memory for the order of the keys; more goes through temporary files.
const ORDER_BUDGET: usize = 32 << 20;
/// Backup destinations in one bucket that are told apart.
const DESTINATIONS_LIMIT: usize = 1000;

/// How a bucket is added.
pub struct Options<'a> {
    /// The component, and what stands before each key.
    pub component: &'a str,
    /// The bucket as the user named it: `s3://BUCKET/PREFIX`.
    pub name: &'a str,
    /// How the variables begin that say how it is reached.
    pub access: &'a str,
    /// Whether to take no object as unchanged.
    pub rehash: bool,
}

/// Lists a bucket and writes the document with its entries merged in.
///
/// # Errors
/// A malformed document or parent, a bucket that cannot be listed, paths and names that are taken.
pub fn add(
    incoming: Reader<'_>,
    output: impl Write,
    bucket: &dyn Bucket,
    options: &Options<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    check_name(options.component)?;
    let source = Source {
        component: options.component.to_owned(),
        kind: SourceKind::Bucket,
        root: HostPath(options.name.into()),
        prefix: HostPath(options.component.into()),
        paths: Vec::new(),
        access: Some(options.access.to_owned()),
    };
    let (mut merge, run) = Merge::begin(incoming, output, source)?;
    let mut parent = run.parent.as_ref().map(Parent::open).transpose()?;
    let mut objects = Objects::list(bucket, options.component, progress)?;
    let mut left_out = std::mem::take(&mut objects.left_out);
    objects.each(&mut left_out, progress, &mut |mut entry| {
        entry.component = Some(options.component.to_owned());
        if let Some(parent) = parent.as_mut().filter(|_| !options.rehash) {
            let changed = entry.mtime;
            let known = parent.complete(&mut entry, changed, is_unchanged)?;
            if let Some(attributes) = known.map(Attributes::recorded) {
                attributes.record(&mut entry);
            }
        }
        merge.entry(&entry)
    })?;
    parent.map_or(Ok(()), Parent::end)?;
    merge.end(options.component, KIND, left_out, |component| {
        component.extra.insert(KIND.into(), options.name.into());
    })
}

/// Records a bucket that is not backed up, and why; nobody connects to it.
///
/// # Errors
/// A malformed document, a name that is taken.
pub fn skip(
    mut incoming: Reader<'_>,
    output: impl Write,
    component: &str,
    name: &str,
    reason: &str,
) -> anyhow::Result<Exit> {
    check_name(component)?;
    let header = incoming.header().clone();
    refuse_stored(&header)?;
    if header.run()?.sources.iter().any(|source| source.component == component) {
        return Err(taken(component));
    }
    let mut writer = Writer::new(output, Format::Json, header)?;
    copy_entries(&mut incoming, &mut writer)?;
    let (_, mut trailer) = incoming.end()?;
    let mut components = trailer.components()?;
    if components.iter().any(|known| known.name == component) {
        return Err(taken(component));
    }
    let mut extra = serde_json::Map::new();
    extra.insert(KIND.into(), name.into());
    extra.insert("reason".into(), reason.into());
    let (kind, status) = (KIND.to_owned(), Status::Skipped);
    components.push(Component { name: component.to_owned(), kind, status, extra });
    trailer.set_components(&components);
    let exit = trailer.worsen(Exit::Done)?;
    writer.end(trailer)?;
    Ok(exit)
}

fn check_name(component: &str) -> anyhow::Result<()> {
    if is_name(component) {
        return Ok(());
    }
    let message = format!("'{}' cannot be the name of a component", component.escape_debug());
    Err(Failure::new(Exit::Usage, message)
        .hint("use letters, digits, '-', '_' and '.', beginning with a letter or digit")
        .into())
}

/// Whether the store says that an object is the one that the parent has.
///
/// An entity tag is only ever compared with another: it is the MD5 of the content for some objects
/// and some stores, and looks like one for others.
fn is_unchanged(entry: &Entry, known: &Entry) -> bool {
    entry.is_file()
        && known.is_file()
        && entry.component() == known.component()
        && (entry.size, entry.mtime) == (known.size, known.mtime)
        && etag(entry).is_some_and(|etag| !etag.is_empty())
        && etag(entry) == etag(known)
}

/// What a bucket holds, on the way into the order of paths.
struct Objects {
    sorter: Sorter,
    left_out: LeftOut,
    /// Folders that are backup destinations, as recorded paths.
    destinations: BTreeSet<Vec<u8>>,
}

impl Objects {
    /// Reads the whole listing.
    fn list(bucket: &dyn Bucket, prefix: &str, progress: &dyn Progress) -> anyhow::Result<Self> {
        let mut objects = Objects {
            sorter: Sorter::new(ORDER_BUDGET),
            left_out: LeftOut::default(),
            destinations: BTreeSet::new(),
        };
        progress.begin("listing", None);
        for listed in bucket.list()? {
            bk_manifest::signal::check()?;
            let listed = listed?;
            objects.take(bucket, prefix, &listed)?;
            progress.advance(0, 1);
        }
        progress.end();
        Ok(objects)
    }

    fn take(&mut self, bucket: &dyn Bucket, prefix: &str, listed: &Listed) -> anyhow::Result<()> {
        // A key that ends with a slash and holds nothing is what consoles make for an empty folder.
        let folder = listed.key.strip_suffix('/').filter(|_| listed.size == 0);
        let below = folder.unwrap_or(&listed.key);
        let Ok(path) = RelPath::new(format!("{prefix}/{below}").into_bytes()) else {
            self.left_out.add_name(Reason::Unnameable, listed.key.as_bytes());
            return Ok(());
        };
        if folder.is_none() && path.file_name() == DESTINATION_MARKER.as_bytes() {
            let above = below.rsplit_once('/').map(|(above, _)| format!("{prefix}/{above}"));
            let Some(above) = above.filter(|_| self.destinations.len() < DESTINATIONS_LIMIT) else {
                let bucket = bucket.describe();
                let message = format!("'{bucket}' is a backup destination, or full of them");
                return Err(fail(Exit::Usage, message));
            };
            self.destinations.insert(above.into_bytes());
        }
        let mut entry = Entry::new(path);
        let mut rest = vec![u8::from(folder.is_some())];
        if folder.is_some() {
            entry.kind = Kind::Directory;
        } else {
            describe(listed, &mut entry);
        }
        entry.write_canonical(&mut rest);
        self.sorter.push(&pair(&entry.path.sort_key(), &rest))
    }

    /// Hands out the entries in their order, and tells what cannot be one.
    fn each(
        self,
        left_out: &mut LeftOut,
        progress: &dyn Progress,
        entry: &mut dyn FnMut(Entry) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut told: Option<&Vec<u8>> = None;
        let mut pending: Option<Entry> = None;
        for record in self.sorter.finish()? {
            bk_manifest::signal::check()?;
            let record = record?;
            // Behind a byte that has files come before folders.
            let line = unpair(&record).1.get(1..).unwrap_or_default();
            let next: Entry = serde_json::from_slice(line).context("temporary file")?;
            let is_in = |folder: &&Vec<u8>| is_within(next.path.as_bytes(), folder);
            if let Some(folder) = self.destinations.iter().find(is_in) {
                if told.replace(folder) != Some(folder) {
                    left_out.add_name(Reason::Destination, folder);
                }
                continue;
            }
            pending = match pending {
                None => Some(next),
                // The listing has shown a key twice: it was changed meanwhile.
                Some(before) if next.path == before.path && next.kind == before.kind => {
                    Some(if next.mtime < before.mtime { before } else { next })
                }
                Some(before) if next.path == before.path => {
                    left_out.add(Reason::Unnameable, &next.path);
                    Some(before)
                }
                Some(before) if before.is_file() && next.path.below(&before.path).is_some() => {
                    left_out.add(Reason::Unnameable, &before.path);
                    Some(next)
                }
                Some(before) => {
                    entry(before)?;
                    Some(next)
                }
            };
        }
        match left_out.count(Reason::Unnameable) {
            0 => {}
            count => progress.warn(&format!(
                "{count} objects are left out: their keys can be no paths, or are those of folders too"
            )),
        }
        pending.map_or(Ok(()), entry)
    }
}
