//! A destination that nothing reaches: what would be stored is counted and forgotten.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bk_manifest::time::Time;

use crate::destination::{
    Change, Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};
use crate::place;

/// What is there, with what would be there.
pub struct DryRun {
    inner: Box<dyn Destination>,
    /// The requests that would have been sent.
    requests: AtomicU64,
    /// Size and name of each object that would be there, a line each.
    stored: Mutex<BufWriter<Arc<File>>>,
}

impl DryRun {
    /// Over a destination, which is only read.
    ///
    /// # Errors
    /// If no temporary file can be made.
    pub fn over(inner: Box<dyn Destination>) -> io::Result<Self> {
        let stored = Mutex::new(BufWriter::new(Arc::new(tempfile::tempfile()?)));
        Ok(DryRun { inner, requests: AtomicU64::new(0), stored })
    }

    fn count(&self, change: Change) {
        self.requests.fetch_add(self.inner.requests_of(change), Ordering::Relaxed);
    }

    fn store(&self, name: &str, size: u64) -> io::Result<()> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(stored, "{size} {name}")
    }

    /// The objects below a folder that would be there.
    fn stored_below(
        &self,
        folder: &str,
    ) -> io::Result<impl Iterator<Item = io::Result<ObjectInfo>> + use<>> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.flush()?;
        let from = FromStart { file: Arc::clone(stored.get_ref()), at: 0 };
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Ok(BufReader::new(from).lines().filter_map(move |line| {
            let info = |line: String| {
                let (size, name) = line.split_once(' ')?;
                let size = size.parse().ok()?;
                let is_below = name.starts_with(&below);
                let name = name.to_owned();
                is_below.then(|| ObjectInfo { name, size, modified: Time::now() })
            };
            line.map(info).transpose()
        }))
    }

    fn error(&self, verb: &'static str, name: &str, error: io::Error) -> Error {
        let (name, place) = (name.to_owned(), self.describe());
        Error { kind: ErrorKind::Other, verb, name, place, source: error.into() }
    }
}

impl Destination for DryRun {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        let there = self.inner.list(folder)?;
        let stored =
            self.stored_below(folder).map_err(|error| self.error("list", folder, error))?;
        let stored = stored.map(|object| object.map_err(|error| self.error("list", "", error)));
        Ok(Box::new(there.chain(stored)))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        self.inner.stat(name)
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        self.inner.read(name, range)
    }

    fn put(&self, name: &str, bound: u64) -> Result<Box<dyn Upload + '_>> {
        Ok(Box::new(DryUpload { dry_run: self, name: name.to_owned(), bound, size: 0 }))
    }

    fn create(&self, _: &str, _: &[u8]) -> Result<Created> {
        self.count(Change::Create);
        Ok(Created::New)
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        self.count(Change::Delete(names.len() as u64));
        Vec::new()
    }

    /// That of this host: to ask for another's, some have to store something.
    fn now(&self) -> Result<Time> {
        self.count(Change::Clock);
        Ok(Time::now())
    }

    fn sweep(&self, _: Time) -> Result<u64> {
        Ok(0)
    }

    fn lock(&self, _: &str, _: &str) -> anyhow::Result<Option<bk_manifest::lock::Lock>> {
        Ok(None)
    }

    fn at_once(&self) -> usize {
        self.inner.at_once()
    }

    fn requests(&self) -> Option<u64> {
        Some(self.inner.requests()? + self.requests.load(Ordering::Relaxed))
    }
}

/// A file read from its start, while another end appends to it.
struct FromStart {
    file: Arc<File>,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

struct DryUpload<'a> {
    dry_run: &'a DryRun,
    name: String,
    bound: u64,
    size: u64,
}

impl Write for DryUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for DryUpload<'_> {
    fn commit(self: Box<Self>) -> Result<()> {
        let DryUpload { dry_run, name, bound, size } = *self;
        dry_run.count(Change::Put { bound, size });
        // What is bk's own is not listed by who stores it.
        let is_own = name.split('/').next() == Some(place::OWN_FOLDER);
        let stored = if is_own { Ok(()) } else { dry_run.store(&name, size) };
        stored.map_err(|error| dry_run.error("note", &name, error))
    }
}
