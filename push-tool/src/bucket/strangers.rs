//! What is in a bucket and not in the backup that is put back into it.

use bk_manifest::entry::Entry;
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;
use bk_manifest::spool::Entries;

use super::Bucket;
use super::mirror::{NAMES_SHOWN, tell_some};
use super::putting::key;

/// Objects that are removed together.
const DELETE_BATCH: usize = 1000;

/// What is in the bucket and not in the backup.
pub(super) struct Strangers<'a> {
    pub(super) bucket: &'a dyn Bucket,
    pub(super) prefix: RelPath,
    pub(super) entries: Entries,
    pub(super) progress: &'a dyn Progress,
}

impl Strangers<'_> {
    /// Names them, each with what becomes of it.
    pub(super) fn tell(&self, fate: &str) -> anyhow::Result<()> {
        let line = |entry: anyhow::Result<Entry>| {
            Ok(format!("'{}' is not in the backup; it {fate}", key(&entry?, &self.prefix)?))
        };
        tell_some(self.entries.iter().map(line), self.progress)
    }

    /// Says what [`Strangers::remove`] would do.
    pub(super) fn tell_removal(&self) -> anyhow::Result<()> {
        let count = self.entries.count();
        if count > 0 {
            let message = format!("{count} objects that the backup does not have would be removed");
            self.progress.warn(&message);
        }
        self.tell("would be removed")
    }

    /// Removes them; returns how many are left.
    pub(super) fn remove(&self) -> anyhow::Result<usize> {
        let mut failed = Vec::new();
        let mut left = 0;
        let mut batch = Vec::new();
        let mut entries = self.entries.iter().peekable();
        while let Some(entry) = entries.next() {
            bk_manifest::signal::check()?;
            batch.push(key(&entry?, &self.prefix)?);
            if batch.len() == DELETE_BATCH || entries.peek().is_none() {
                let errors = self.bucket.delete(&std::mem::take(&mut batch));
                left += errors.len();
                let room = NAMES_SHOWN.saturating_sub(failed.len());
                failed.extend(errors.into_iter().take(room));
            }
        }
        for error in failed {
            self.progress.warn(&format!("{:#}", anyhow::Error::from(error)));
        }
        let removed = self.entries.count() - left as u64;
        self.progress.note(&format!("{removed} objects that the backup does not have are removed"));
        Ok(left)
    }
}
