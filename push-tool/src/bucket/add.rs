//! `bk-push add`: lists a bucket into the document, and takes from the parent what it knows of the
//! objects.

use std::io::Write;

use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::left_out::{Name, Reason};
use bk_manifest::manifest::{Component, HostPath, Layout, Source, SourceKind, Status, is_name};
use bk_manifest::merge::{Merge, refuse_stored, taken};
use bk_manifest::parent::Parent;
use bk_manifest::progress::Progress;
use bk_manifest::shrink::{Extent, MaxShrink};
use bk_manifest::stream::{Format, Reader, Writer, copy_entries};

use super::objects::Objects;
use super::{Attributes, Bucket, KIND, etag};

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
    /// How its objects are stored.
    pub layout: Layout,
    /// How much less it may hold than in the parent.
    pub max_shrink: MaxShrink,
}

/// Lists a bucket and writes the document with its entries merged in.
///
/// # Errors
/// A malformed document or parent, a bucket that cannot be listed, paths and names that are taken;
/// [`Exit::Unmet`] for a bucket that holds much less than in the parent.
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
        layout: options.layout,
    };
    let (mut merge, run) = Merge::begin(incoming, output, source.clone())?;
    let parent = run.parent.as_ref();
    let mut parent = parent.map(|parent| Parent::open(parent, &source)).transpose()?;
    let mut held = Extent::default();
    let mut objects = Objects::list(bucket, options.component, progress)?;
    let mut left_out = std::mem::take(&mut objects.left_out);
    objects.each(&mut left_out, &mut |mut entry| {
        held.add(&entry);
        if let Some(parent) = parent.as_mut().filter(|_| !options.rehash) {
            let changed = entry.mtime;
            let known = parent.complete(&mut entry, changed, is_unchanged)?;
            if let Some(attributes) = known.map(Attributes::recorded) {
                attributes.record(&mut entry);
            }
        }
        merge.entry(&entry)
    })?;
    if let Some(before) = parent.map(Parent::end).transpose()? {
        options.max_shrink.check(options.component, before, held)?;
    }
    if let Some(group) = left_out.group(Reason::Unnameable) {
        let first = group.names.first().map(Name::shown).unwrap_or_default();
        progress.warn(&format!(
            "{} objects are left out: their keys can be no paths, or are those of folders too; the \
             first is '{first}'",
            group.count
        ));
    }
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
    if reason.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "the reason to skip the bucket says nothing")
            .hint("say why it is not backed up: --skip REASON, BACKUP_BUCKET_SKIP")
            .into());
    }
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
