//! Puts objects into a bucket, as their content is read and checked.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::Context;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;

use super::{Attributes, Bucket};
use crate::destination::{Error, ErrorKind, Upload};
use crate::read::{Damage, Receive};

/// Objects in a row that cannot be put before the bucket is given up.
const FAULTS_LIMIT: u32 = 16;

/// The key of an entry's object.
pub(super) fn key(entry: &Entry, prefix: &RelPath) -> anyhow::Result<String> {
    let below = entry.path.below(prefix).filter(|below| !below.is_empty());
    let below = below.with_context(|| format!("'{}' is of another component", entry.path))?;
    let key = std::str::from_utf8(below);
    let key = key.with_context(|| format!("'{}' cannot be a key", entry.path))?;
    Ok(if entry.kind == Kind::Directory { format!("{key}/") } else { key.to_owned() })
}

/// Puts objects as their content is read.
pub(super) struct Putting<'a> {
    bucket: &'a dyn Bucket,
    prefix: RelPath,
    progress: &'a dyn Progress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lost: BTreeMap<RelPath, String>,
    faults_in_a_row: u32,
}

impl<'a> Putting<'a> {
    pub(super) fn new(bucket: &'a dyn Bucket, prefix: RelPath, progress: &'a dyn Progress) -> Self {
        Putting { bucket, prefix, progress, state: Mutex::default() }
    }

    /// The objects that could not be put, and why.
    pub(super) fn lost(self) -> BTreeMap<RelPath, String> {
        self.state.into_inner().map(|state| state.lost).unwrap_or_default()
    }

    fn lose(&self, entry: &Entry, why: String) {
        if let Ok(mut state) = self.state.lock() {
            state.lost.insert(entry.path.clone(), why);
        }
        self.progress.advance(entry.size.unwrap_or(0), 1);
    }

    /// An object that could not be put costs that one alone, unless the next will not fare better.
    fn fail(&self, entry: &Entry, error: Error) -> anyhow::Result<()> {
        let text = format!("could not be put: {}", error.source);
        let is_hopeless = match self.state.lock() {
            Ok(mut state) => {
                state.faults_in_a_row += 1;
                state.faults_in_a_row >= FAULTS_LIMIT
            }
            Err(_) => true,
        };
        if is_hopeless || matches!(error.kind, ErrorKind::Denied | ErrorKind::Full) {
            return Err(error.into());
        }
        self.lose(entry, text);
        Ok(())
    }

    fn commit(&self, entry: &Entry, upload: Box<dyn Upload + '_>) -> anyhow::Result<()> {
        if let Err(error) = upload.commit() {
            return self.fail(entry, error);
        }
        if let Ok(mut state) = self.state.lock() {
            state.faults_in_a_row = 0;
        }
        self.progress.advance(entry.size.unwrap_or(0), 1);
        Ok(())
    }

    /// Puts what stands for an empty folder.
    pub(super) fn mark(&self, entry: &Entry) -> anyhow::Result<()> {
        match self.bucket.put(&key(entry, &self.prefix)?, 0, &Attributes::recorded(entry)) {
            Ok(upload) => self.commit(entry, upload),
            Err(error) => self.fail(entry, error),
        }
    }
}

impl<'a> Receive for Putting<'a> {
    type Output = Box<dyn Upload + 'a>;

    fn begin(&self, entry: &Entry) -> anyhow::Result<Option<Self::Output>> {
        let attributes = Attributes::recorded(entry);
        let key = match key(entry, &self.prefix) {
            Ok(key) => key,
            Err(error) => {
                self.lose(entry, error.to_string());
                return Ok(None);
            }
        };
        match self.bucket.put(&key, entry.size.unwrap_or(0), &attributes) {
            Ok(upload) => Ok(Some(upload)),
            Err(error) => self.fail(entry, error).map(|()| None),
        }
    }

    fn end(
        &self,
        entry: &Entry,
        output: Self::Output,
        damage: Option<&Damage>,
    ) -> anyhow::Result<()> {
        match damage {
            None => self.commit(entry, output),
            Some(damage) => {
                self.lose(entry, damage.detail.clone());
                Ok(())
            }
        }
    }
}
