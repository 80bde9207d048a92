//! The sources of a run, folders of this host and buckets: where the content of each entry is.

pub mod file;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use anyhow::Context;
use bk_manifest::beneath::{Cursor, Root};
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::manifest::{Layout, Run, Source, SourceKind, is_within};
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;
use bk_manifest::spool::Entries;

use crate::access;
use crate::bucket::{Bucket, Connect};
use crate::destination::{self, ErrorKind};

/// Objects of a bucket that are read at once: a small one takes as long as an answer takes.
const IN_FLIGHT: usize = 12;
/// Objects in a row that fail for no reason of their own before their bucket is given up.
const FAULTS_LIMIT: u32 = 16;

/// What this run's entries come from.
pub struct Sources {
    sources: Vec<OpenSource>,
    /// Threads that wait for answers, if there is a bucket.
    waiting: Option<rayon::ThreadPool>,
}

struct OpenSource {
    source: Source,
    place: Place,
    /// The recorded paths that it covers; an empty one is everything.
    areas: Vec<Vec<u8>>,
}

/// What a source is.
pub enum Place {
    /// A folder. For a stage folder also a shared lock, which keeps the next dump step from sweeping
    /// it.
    Folder(Root),
    /// A bucket.
    Bucket(OpenBucket),
}

/// A bucket, and how it has answered lately.
pub struct OpenBucket {
    /// The bucket.
    pub bucket: Box<dyn Bucket>,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    in_a_row: u32,
    last: Option<anyhow::Error>,
    /// The last refusal.
    denied: Option<anyhow::Error>,
    /// Whether it is yet to be told whom a fault meant: the object, or all of them.
    is_doubtful: bool,
    /// An object that could be read.
    readable: Option<String>,
}

impl OpenBucket {
    /// Notes that an object was read.
    pub fn answered(&self, key: &str) {
        if let Ok(mut faults) = self.faults.lock() {
            (faults.in_a_row, faults.last) = (0, None);
            faults.readable.get_or_insert_with(|| key.to_owned());
        }
    }

    /// Notes that access to an object was denied.
    pub fn denied(&self, error: anyhow::Error) {
        if let Ok(mut faults) = self.faults.lock() {
            (faults.denied, faults.is_doubtful) = (Some(error), true);
        }
    }

    /// Notes a fault that is not the object's own.
    pub fn failed(&self, error: anyhow::Error) {
        if let Ok(mut faults) = self.faults.lock() {
            faults.in_a_row += 1;
            (faults.last, faults.is_doubtful) = (Some(error), true);
        }
    }

    fn faults(&self) -> anyhow::Result<MutexGuard<'_, Faults>> {
        self.faults.lock().map_err(|_| anyhow::anyhow!("a thread ended"))
    }

    /// Fails if it has answered nothing for long, is gone, or no longer lets us in. Objects may fail one
    /// by one: what could be read before, or listed, tells whether these are such.
    fn check(&self) -> anyhow::Result<()> {
        let mut faults = self.faults()?;
        if faults.in_a_row >= FAULTS_LIMIT
            && let Some(error) = faults.last.take()
        {
            return Err(error);
        }
        if !std::mem::take(&mut faults.is_doubtful) {
            return Ok(());
        }
        let readable = faults.readable.clone();
        drop(faults);
        Ok(self.look_again(readable)?)
    }

    fn look_again(&self, readable: Option<String>) -> destination::Result<()> {
        match readable.map(|key| self.bucket.get(&key, None).map(drop)) {
            Some(Err(error)) if error.kind == ErrorKind::NotFound => {}
            Some(looked) => return looked,
            None => {}
        }
        self.bucket.list().map(drop)
    }
}

/// A source and the path of a file below its root.
pub struct Located<'a> {
    /// What it is.
    pub place: &'a Place,
    /// The file below it.
    pub below: RelPath,
    /// Whether a dump step made it for this run.
    pub kind: SourceKind,
    /// How it is to be stored.
    pub layout: Layout,
}

impl Sources {
    /// Opens the folders and buckets that the run names.
    ///
    /// # Errors
    /// A folder that cannot be opened any more; a bucket whose settings are missing.
    pub fn open(run: &Run, connect: Connect<'_>) -> anyhow::Result<Self> {
        let sources = run
            .sources
            .iter()
            .filter_map(|source| OpenSource::open(source, connect).transpose())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let has_bucket = sources.iter().any(|open| open.source.kind == SourceKind::Bucket);
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(IN_FLIGHT).build();
        let waiting = has_bucket.then(pool).transpose().context("cannot start threads")?;
        Ok(Sources { sources, waiting })
    }

    /// Has `work` read objects in parallel, where there is a bucket; else it is not called.
    pub fn read_objects(&self, work: impl FnOnce() + Send) {
        if let Some(waiting) = &self.waiting {
            waiting.install(work);
        }
    }

    /// Fails if a bucket has given nothing for long: it would be a backup of nothing. To be called every
    /// now and then, for each call may ask a bucket once.
    ///
    /// # Errors
    /// The last one that the bucket gave.
    pub fn check(&self) -> anyhow::Result<()> {
        self.buckets().try_for_each(|(_, bucket)| bucket.check())
    }

    /// Fails if a bucket has denied everything that was asked of it, and nothing of it is stored.
    ///
    /// # Errors
    /// The last one that the bucket gave.
    pub fn check_stored(&self, entries: &Entries) -> anyhow::Result<()> {
        for (source, bucket) in self.buckets() {
            let mut faults = bucket.faults()?;
            if faults.readable.is_none()
                && let Some(error) = faults.denied.take()
                && !holds_file_of(entries, &source.component)?
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn buckets(&self) -> impl Iterator<Item = (&Source, &OpenBucket)> {
        self.sources.iter().filter_map(|open| match &open.place {
            Place::Bucket(bucket) => Some((&open.source, bucket)),
            Place::Folder(_) => None,
        })
    }

    /// Where an entry's file is; `None` if no source of the run covers it.
    pub fn locate(&self, entry: &Entry) -> Option<Located<'_>> {
        let path = entry.path.as_bytes();
        self.sources
            .iter()
            .filter(|open| open.source.component == entry.component())
            .find(|open| open.areas.iter().any(|area| is_within(path, area)))
            .and_then(|open| {
                let prefix = &open.source.prefix.0;
                let below = if prefix.is_empty() {
                    path
                } else {
                    path.strip_prefix(&prefix[..])?.strip_prefix(b"/")?
                };
                let below = RelPath::new(below).ok()?;
                let Source { kind, layout, .. } = open.source;
                Some(Located { place: &open.place, below, kind, layout })
            })
    }

    /// Whether a dump may be an object of the name of a component's folder: `config.tar.zst` of the
    /// component `config`.
    pub fn has_dump_named_like(&self, component: &str) -> bool {
        let sources = self.sources.iter().map(|open| &open.source);
        sources.filter(|source| source.kind == SourceKind::Stage).any(|stage| {
            component.strip_prefix(&stage.component).is_some_and(|rest| rest.starts_with('.'))
        })
    }

    /// Whether files of a component are objects of their own.
    pub fn is_plain(&self, component: &str) -> bool {
        let is_it = |open: &OpenSource| {
            open.source.component == component && open.source.layout == Layout::Plain
        };
        self.sources.iter().any(is_it)
    }

    /// Removes what dump steps made for this run; it is stored now.
    ///
    /// Only files that were stored are removed, and folders that are empty then: a document that
    /// names another folder of this host loses nothing there.
    ///
    /// # Errors
    /// Those of the temporary files; what cannot be removed is a warning.
    pub fn remove_staged(&self, entries: &Entries, progress: &dyn Progress) -> anyhow::Result<()> {
        if self.sources.iter().all(|open| open.source.kind != SourceKind::Stage) {
            return Ok(());
        }
        let mut folders = BTreeSet::new();
        for entry in entries.iter() {
            let entry = entry?;
            let Some(Located {
                place: Place::Folder(root), below, kind: SourceKind::Stage, ..
            }) = self.locate(&entry)
            else {
                continue;
            };
            if let Some(folder) = below.parent() {
                folders.insert(root.path().join(folder.as_path()));
            }
            let removed = Cursor::new(root).parent(&below).and_then(|(folder, name)| {
                Ok(rustix::fs::unlinkat(folder, name, rustix::fs::AtFlags::empty())?)
            });
            if let Err(error) = removed {
                let path = root.path().display();
                progress.warn(&format!("cannot remove the staged '{path}/{below}': {error}"));
            }
        }
        // What is not empty is the next sweep's.
        for folder in folders.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
        for open in self.sources.iter().filter(|open| open.source.kind == SourceKind::Stage) {
            if let Place::Folder(root) = &open.place {
                let _ = std::fs::remove_dir(root.path());
            }
        }
        Ok(())
    }
}

impl OpenSource {
    /// `None` for a stage folder that has gone: its dump has failed, and the document will be cut
    /// short before an entry asks for it.
    fn open(source: &Source, connect: Connect<'_>) -> anyhow::Result<Option<Self>> {
        let place = match source.kind {
            SourceKind::Bucket => {
                let name = std::str::from_utf8(&source.root.0).context("a bucket's name")?;
                let prefix = source.access.as_deref().unwrap_or(access::PREFIX);
                let bucket = connect(name, prefix)?;
                Some(Place::Bucket(OpenBucket { bucket, faults: Mutex::default() }))
            }
            SourceKind::Tree | SourceKind::Stage => open_folder(source)?.map(Place::Folder),
        };
        let source = source.clone();
        Ok(place.map(|place| OpenSource { areas: source.areas(), source, place }))
    }
}

fn holds_file_of(entries: &Entries, component: &str) -> anyhow::Result<bool> {
    for entry in entries.iter() {
        let entry = entry?;
        if entry.is_file() && entry.component() == component {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_folder(source: &Source) -> anyhow::Result<Option<Root>> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(&source.root.0));
    let is_stage = source.kind == SourceKind::Stage;
    let root = match Root::open(path) {
        Ok(root) => root,
        Err(error) if is_stage && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let message = format!("cannot open the source '{}': {error}", path.display());
            return Err(fail(Exit::Failed, message));
        }
    };
    if is_stage {
        rustix::fs::flock(root.as_fd(), rustix::fs::FlockOperation::NonBlockingLockShared)
            .or_else(|error| match error {
                // The dump step still writes there; its own lock holds until it has ended.
                rustix::io::Errno::WOULDBLOCK => Ok(()),
                error => Err(error),
            })
            .map_err(io::Error::from)
            .with_context(|| format!("cannot lock the stage '{}'", path.display()))?;
    }
    Ok(Some(root))
}
