//! The parent's manifest, streamed beside the listing of a source: what it knows of unchanged files.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::entry::Entry;
use crate::manifest::ParentFile;
use crate::stream::Reader;
use crate::time::Time;

/// A file whose change time is this close to the parent's start may have changed again within the
/// clock's grain: it is read.
const CLOCK_GRAIN: Duration = Duration::from_secs(2);

/// The parent's manifest, read as far as the listing has come.
pub struct Parent {
    reader: Reader<'static>,
    id: String,
    began: Time,
    next: Option<Entry>,
}

impl Parent {
    /// Opens the file that a run names.
    ///
    /// # Errors
    /// One that cannot be read, or describes no backup.
    pub fn open(parent: &ParentFile) -> anyhow::Result<Self> {
        let path = Path::new(&parent.file);
        let context = || format!("the parent's manifest '{}'", path.display());
        let file = File::open(path).with_context(context)?;
        let mut reader = Reader::new(file).with_context(context)?;
        let backup = reader.header().the_backup().with_context(context)?;
        let began = backup.time().with_context(context)?;
        let next = reader.next_entry().with_context(context)?;
        Ok(Parent { reader, id: backup.id, began, next })
    }

    /// Gives an entry its checksum and its place from the parent, if `is_unchanged` says of the
    /// parent's entry (the second one) that it is the same file. Returns that one then.
    ///
    /// `changed` is when the file changed last: what changed when the parent had begun, or just
    /// before, is never taken as unchanged. Entries are to come in the order of their paths.
    ///
    /// # Errors
    /// A malformed parent.
    pub fn complete(
        &mut self,
        entry: &mut Entry,
        changed: Option<Time>,
        is_unchanged: impl Fn(&Entry, &Entry) -> bool,
    ) -> anyhow::Result<Option<&Entry>> {
        while self.next.as_ref().is_some_and(|next| next.path < entry.path) {
            self.next = self.reader.next_entry().context("the parent's manifest")?;
        }
        let Some(known) = self.next.as_ref().filter(|next| next.path == entry.path) else {
            return Ok(None);
        };
        let is_settled = changed.is_some_and(|changed| changed < self.began.before(CLOCK_GRAIN));
        if !is_settled || !is_unchanged(entry, known) {
            return Ok(None);
        }
        let (Some(checksum), Some(size), Some(at)) = (known.checksum, known.size, &known.at) else {
            return Ok(None);
        };
        entry.set_content(checksum, size);
        let mut at = at.clone();
        at.backup.get_or_insert_with(|| self.id.clone());
        entry.at = Some(at);
        Ok(Some(known))
    }

    /// Reads the rest, to be sure of what was taken.
    ///
    /// # Errors
    /// A malformed parent.
    pub fn end(self) -> anyhow::Result<()> {
        self.reader.end().context("the parent's manifest")?;
        Ok(())
    }
}
