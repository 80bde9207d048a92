//! `bk-manifest add`: merges a walked tree into the document, and what the parent knows of it into
//! the tree's entries.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use crate::beneath::{Cursor, Root};
use crate::digest::Digest;
use crate::entry::{DEFAULT_COMPONENT, Entry, Kind, Trust};
use crate::exit::{Exit, Failure, fail};
use crate::left_out::{LeftOut, Reason};
use crate::manifest::{Component, HostPath, Run, Source, SourceKind, Status, Trailer, is_within};
use crate::path::RelPath;
use crate::progress::Progress;
use crate::scan::{self, scan};
use crate::stream::{Format, Reader, Writer};
use crate::time::Time;
use crate::tree_root::TreeRoot;

/// A file whose change time is this close to the parent's start may have changed again within the
/// clock's grain: it is read.
const CLOCK_GRAIN: std::time::Duration = std::time::Duration::from_secs(2);
/// Files hashed at once with [`Options::hash`].
const HASH_BATCH: usize = 1024;

/// How a tree is added.
pub struct Options {
    /// The component; [`DEFAULT_COMPONENT`] if nothing else was said.
    pub component: String,
    /// What to walk.
    pub scan: scan::Options,
    /// Whether to read the files and record their checksums.
    pub hash: bool,
    /// Whether to take no file as unchanged.
    pub rehash: bool,
    /// What makes a file unchanged.
    pub trust: Trust,
}

/// Walks the tree at `root` and writes the document with its entries merged in.
///
/// # Errors
/// A malformed document or parent, a root that cannot be read, paths that are there already.
pub fn add(
    mut incoming: Reader<'_>,
    output: impl Write,
    root: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let root_path = std::path::absolute(root)?;
    let folder = Root::open(&root_path).map_err(|error| {
        fail(Exit::NotFound, format!("cannot open '{}': {error}", root.display()))
    })?;
    let mut header = incoming.header().clone();
    if header.backup()?.is_some_and(|backup| backup.kind.is_some()) {
        return Err(Failure::new(Exit::Usage, "the manifest is that of a stored backup")
            .hint("begin a new one: bk-manifest new --app NAME | bk-manifest add --root DIR | …")
            .into());
    }
    let mut run = header.run()?;
    let source = source(&root_path, options);
    check_overlap(&run, &source)?;
    // Before a first tree there are only dumps, which come last: no need to wait for them.
    let has_trees = run.sources.iter().any(|source| source.kind == SourceKind::Tree);
    run.sources.push(source);
    let mut parent = match &run.parent {
        Some(parent) if !options.hash => Some(Parent::open(Path::new(&parent.file))?),
        _ => None,
    };
    // With a prefix the root has an entry.
    let tree_root = match options.scan.prefix {
        Some(_) => None,
        None => Some(
            TreeRoot::of_folder(folder.as_fd())
                .with_context(|| format!("cannot read '{}'", root.display()))?,
        ),
    };
    header.set_run(&run);
    let writer = Writer::new(output, Format::Json, header)?;
    let mut left_out = LeftOut::default();
    let mut merge = Merge {
        writer,
        pending: if has_trees { incoming.next_entry()? } else { None },
        waits: has_trees,
        incoming,
        batch: Vec::new(),
        root: &folder,
        prefix: options.scan.prefix.clone(),
        progress,
    };
    let mut unreadable = LeftOut::default();
    scan(&folder, &options.scan, &mut left_out, progress, &mut |mut entry| {
        if options.component != DEFAULT_COMPONENT {
            entry.component = Some(options.component.clone());
        }
        if let Some(parent) = &mut parent {
            parent.complete(&mut entry, options)?;
        }
        if options.hash { merge.hash_later(entry, &mut unreadable) } else { merge.entry(&entry) }
    })?;
    merge.flush_hashes(&mut unreadable)?;
    left_out.merge(unreadable);
    if let Some(parent) = parent {
        parent.reader.end().context("the parent's manifest")?;
    }
    merge.end(options, tree_root, left_out)
}

fn source(root: &Path, options: &Options) -> Source {
    use std::os::unix::ffi::OsStrExt;
    Source {
        component: options.component.clone(),
        kind: SourceKind::Tree,
        root: HostPath(root.as_os_str().as_bytes().to_vec()),
        prefix: HostPath(
            options
                .scan
                .prefix
                .as_ref()
                .map(|prefix| prefix.as_bytes().to_vec())
                .unwrap_or_default(),
        ),
        paths: options.scan.paths.iter().map(|path| HostPath(path.as_bytes().to_vec())).collect(),
    }
}

/// Refuses a tree whose paths would meet those of an earlier one, or a component that is no tree.
fn check_overlap(run: &Run, source: &Source) -> anyhow::Result<()> {
    for earlier in &run.sources {
        if earlier.kind != SourceKind::Tree {
            if earlier.component == source.component {
                let message = format!("the component '{}' is there already", source.component);
                return Err(fail(Exit::Usage, message));
            }
            continue;
        }
        for (mine, theirs) in source
            .areas()
            .iter()
            .flat_map(|mine| earlier.areas().into_iter().map(move |t| (mine, t)))
        {
            if is_within(mine, &theirs) || is_within(&theirs, mine) {
                return Err(Failure::new(
                    Exit::Usage,
                    "the paths of this tree meet those of an earlier one",
                )
                .hint("give one of them a name of its own: --as PREFIX")
                .into());
            }
        }
    }
    Ok(())
}

/// The parent's manifest, streamed beside the walk.
struct Parent {
    reader: Reader<'static>,
    id: String,
    began: Time,
    next: Option<Entry>,
}

impl Parent {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("the parent's manifest '{}'", path.display());
        let file = File::open(path).with_context(context)?;
        let mut reader = Reader::new(file).with_context(context)?;
        let backup = reader.header().the_backup().with_context(context)?;
        let began = backup.time().with_context(context)?;
        let next = reader.next_entry().with_context(context)?;
        Ok(Parent { reader, id: backup.id, began, next })
    }

    /// Gives an unchanged file its checksum and its place from the parent.
    fn complete(&mut self, entry: &mut Entry, options: &Options) -> anyhow::Result<()> {
        while self.next.as_ref().is_some_and(|next| next.path < entry.path) {
            self.next = self.reader.next_entry().context("the parent's manifest")?;
        }
        let Some(known) = self.next.as_ref().filter(|next| next.path == entry.path) else {
            return Ok(());
        };
        let changed = if options.trust.ctime { entry.ctime } else { entry.mtime };
        let is_settled = changed.is_some_and(|changed| changed < self.began.before(CLOCK_GRAIN));
        if options.rehash || !is_settled || !entry.is_unchanged_from(known, options.trust) {
            return Ok(());
        }
        if let (Some(checksum), Some(size), Some(at)) = (known.checksum, known.size, &known.at) {
            entry.set_content(checksum, size);
            let mut at = at.clone();
            at.backup.get_or_insert_with(|| self.id.clone());
            entry.at = Some(at);
        }
        Ok(())
    }
}

struct Merge<'a, 'r, W> {
    writer: Writer<W>,
    incoming: Reader<'r>,
    /// The incoming entry that is due next, where incoming ones are waited for.
    pending: Option<Entry>,
    waits: bool,
    /// Entries whose files are to be hashed together.
    batch: Vec<Entry>,
    root: &'a Root,
    prefix: Option<RelPath>,
    progress: &'a dyn Progress,
}

impl<W: Write> Merge<'_, '_, W> {
    fn entry(&mut self, entry: &Entry) -> anyhow::Result<()> {
        while let Some(pending) = &self.pending {
            if pending.path > entry.path {
                break;
            }
            let is_same = pending.path == entry.path;
            if is_same && !(pending.kind == Kind::Directory && entry.kind == Kind::Directory) {
                let message = format!("'{}' is in the manifest already", entry.path);
                return Err(fail(Exit::Usage, message));
            }
            self.writer.entry(pending)?;
            self.pending = self.incoming.next_entry()?;
            if is_same {
                return Ok(());
            }
        }
        Ok(self.writer.entry(entry)?)
    }

    fn hash_later(&mut self, entry: Entry, left_out: &mut LeftOut) -> anyhow::Result<()> {
        self.batch.push(entry);
        if self.batch.len() < HASH_BATCH { Ok(()) } else { self.flush_hashes(left_out) }
    }

    fn flush_hashes(&mut self, left_out: &mut LeftOut) -> anyhow::Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        let (root, prefix) = (self.root, self.prefix.as_ref());
        let errors: Vec<(RelPath, std::io::Error)> = batch
            .par_iter_mut()
            .filter(|entry| matches!(entry.kind, Kind::File | Kind::Hardlink(_)))
            .filter_map(|entry| hash(root, prefix, entry).err().map(|e| (entry.path.clone(), e)))
            .collect();
        crate::signal::check()?;
        for (path, error) in &errors {
            self.progress.warn(&format!("cannot read '{path}': {error}"));
            let has_changed = error.get_ref().and_then(|inner| inner.downcast_ref::<Changed>());
            let reason = match has_changed {
                Some(Changed) => Reason::ChangedWhileRead,
                None => Reason::Unreadable,
            };
            left_out.add(reason, path);
        }
        for entry in batch {
            if !errors.iter().any(|(path, _)| *path == entry.path) {
                self.entry(&entry)?;
            }
        }
        Ok(())
    }

    fn end(
        mut self,
        options: &Options,
        tree_root: Option<TreeRoot>,
        left_out: LeftOut,
    ) -> anyhow::Result<Exit> {
        if self.waits {
            while let Some(pending) = self.pending.take() {
                self.writer.entry(&pending)?;
                self.pending = self.incoming.next_entry()?;
            }
        }
        crate::stream::copy_entries(&mut self.incoming, &mut self.writer)?;
        let (_, mut trailer) = self.incoming.end()?;
        let exit = close(&mut trailer, &options.component, tree_root, left_out)?;
        self.writer.end(trailer)?;
        Ok(exit)
    }
}

/// The file was not as long as the walk had found it.
#[derive(Debug, thiserror::Error)]
#[error("it changed while it was read")]
struct Changed;

fn hash(root: &Root, prefix: Option<&RelPath>, entry: &mut Entry) -> std::io::Result<()> {
    let below = match prefix.and_then(|prefix| entry.path.below(prefix)) {
        Some(below) => RelPath::new(below).map_err(std::io::Error::other)?,
        None => entry.path.clone(),
    };
    let file = Cursor::new(root).open_file(&below)?;
    let (checksum, size) = Digest::of_reader(file)?;
    if entry.is_file() && entry.size != Some(size) {
        return Err(std::io::Error::other(Changed));
    }
    entry.checksum = Some(checksum);
    Ok(())
}

/// Records the component and what was left out; returns the code that the document now carries.
fn close(
    trailer: &mut Trailer,
    component: &str,
    tree_root: Option<TreeRoot>,
    left_out: LeftOut,
) -> anyhow::Result<Exit> {
    let (status, mine) = if left_out.has_fault() {
        (Status::Partial, Exit::Partial)
    } else {
        (Status::Complete, Exit::Done)
    };
    let mut components = trailer.components()?;
    match components.iter_mut().find(|known| known.name == component) {
        Some(known) if known.kind != "tree" => {
            return Err(fail(Exit::Usage, format!("the component '{component}' is there already")));
        }
        Some(known) if status == Status::Partial => known.status = status,
        Some(_) => {}
        None => components.push(Component {
            name: component.to_owned(),
            kind: "tree".into(),
            status,
            extra: serde_json::Map::new(),
        }),
    }
    if let Some(tree_root) = tree_root
        && let Some(mine) = components.iter_mut().find(|known| known.name == component)
    {
        tree_root.record(mine);
    }
    trailer.set_components(&components);
    trailer.leave_out(left_out)?;
    Ok(trailer.worsen(mine)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_source(prefix: &str, paths: &[&str]) -> Source {
        Source {
            component: "files".into(),
            kind: SourceKind::Tree,
            root: HostPath(b"/x".to_vec()),
            prefix: HostPath(prefix.into()),
            paths: paths.iter().map(|path| HostPath(path.as_bytes().to_vec())).collect(),
        }
    }

    #[test]
    fn trees_that_meet_are_refused() {
        for (first, second, meets) in [
            (tree_source("", &[]), tree_source("", &["a"]), true),
            (tree_source("", &["a"]), tree_source("", &["b"]), false),
            (tree_source("", &["a"]), tree_source("", &["a/b"]), true),
            (tree_source("", &["a"]), tree_source("", &["ab"]), false),
            (tree_source("p", &[]), tree_source("q", &[]), false),
            (tree_source("p", &["a"]), tree_source("p/a", &[]), true),
        ] {
            let run = Run { sources: vec![first.clone()], ..Run::default() };
            assert_eq!(check_overlap(&run, &second).is_err(), meets, "{first:?} {second:?}");
        }
    }
}
