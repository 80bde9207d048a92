//! `bk-manifest add`: merges a walked tree into the document, and what the parent knows of it into
//! the tree's entries.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use crate::beneath::{Cursor, Root};
use crate::digest::Digest;
use crate::entry::{DEFAULT_COMPONENT, Entry, Kind, Trust};
use crate::exit::{Exit, fail};
use crate::left_out::{LeftOut, Reason};
use crate::manifest::{HostPath, Layout, Source, SourceKind};
use crate::merge::Merge;
use crate::parent::Parent;
use crate::path::RelPath;
use crate::progress::Progress;
use crate::scan::{self, scan};
use crate::shrink::{Extent, MaxShrink};
use crate::stream::Reader;
use crate::tree_root::TreeRoot;

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
    /// How much less it may hold than in the parent.
    pub max_shrink: MaxShrink,
}

/// Walks the tree at `root` and writes the document with its entries merged in.
///
/// # Errors
/// A malformed document or parent, a root that cannot be read, paths that are there already;
/// [`Exit::Unmet`] for a tree that holds much less than in the parent.
pub fn add(
    incoming: Reader<'_>,
    output: impl Write,
    root: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let root_path = std::path::absolute(root)?;
    let folder = Root::open(&root_path).map_err(|error| {
        fail(Exit::NotFound, format!("cannot open '{}': {error}", root.display()))
    })?;
    // With a prefix the root has an entry.
    let tree_root = match options.scan.prefix {
        Some(_) => None,
        None => Some(
            TreeRoot::of_folder(folder.as_fd())
                .with_context(|| format!("cannot read '{}'", root.display()))?,
        ),
    };
    let source = source(&root_path, options);
    let (merge, run) = Merge::begin(incoming, output, source.clone())?;
    let parent = run.parent.as_ref();
    let mut parent = parent.map(|parent| Parent::open(parent, &source)).transpose()?;
    let mut held = Extent::default();
    let mut left_out = LeftOut::default();
    let mut hashing = Hashing {
        merge,
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
        held.add(&entry);
        if let Some(parent) = parent.as_mut().filter(|_| !options.rehash && !options.hash) {
            let changed = if options.trust.ctime { entry.ctime } else { entry.mtime };
            parent.complete(&mut entry, changed, |entry, known| {
                entry.is_unchanged_from(known, options.trust)
            })?;
        }
        if options.hash {
            hashing.later(entry, &mut unreadable)
        } else {
            hashing.merge.entry(&entry)
        }
    })?;
    hashing.flush(&mut unreadable)?;
    left_out.merge(unreadable);
    let before = parent.map(Parent::end).transpose()?;
    // What is partial costs no complete one, and the part is worth more than nothing.
    if let Some(before) = before.filter(|_| !left_out.has_fault()) {
        options.max_shrink.check(&options.component, before, held)?;
    }
    hashing.merge.end(&options.component, "tree", left_out, |component| {
        if let Some(tree_root) = tree_root {
            tree_root.record(component);
        }
    })
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
        access: None,
        layout: Layout::Packed,
    }
}

/// Entries on their way into the document, whose files are hashed on all cores where asked for.
struct Hashing<'a, 'r, W> {
    merge: Merge<'r, W>,
    /// Entries whose files are to be hashed together.
    batch: Vec<Entry>,
    root: &'a Root,
    prefix: Option<RelPath>,
    progress: &'a dyn Progress,
}

impl<W: Write> Hashing<'_, '_, W> {
    fn later(&mut self, entry: Entry, left_out: &mut LeftOut) -> anyhow::Result<()> {
        self.batch.push(entry);
        if self.batch.len() < HASH_BATCH { Ok(()) } else { self.flush(left_out) }
    }

    fn flush(&mut self, left_out: &mut LeftOut) -> anyhow::Result<()> {
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
                self.merge.entry(&entry)?;
            }
        }
        Ok(())
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
