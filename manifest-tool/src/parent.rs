//! The parent's manifest, streamed beside the listing of a source: what it knows of unchanged files,
//! and how much the source held.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::entry::{Entry, Kind};
use crate::manifest::{MISSING, ParentFile, Source, is_within};
use crate::shrink::Extent;
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
    component: String,
    /// The recorded paths that the source covers.
    areas: Vec<Vec<u8>>,
    /// What it has of the component there, as far as it was read.
    held: Extent,
    /// Whether it has more of the component elsewhere.
    has_others: bool,
}

impl Parent {
    /// Opens the file that a run names, for a source of that run.
    ///
    /// # Errors
    /// One that cannot be read, or describes no backup.
    pub fn open(parent: &ParentFile, source: &Source) -> anyhow::Result<Self> {
        let path = Path::new(&parent.file);
        let context = || format!("the parent's manifest '{}'", path.display());
        let file = File::open(path).with_context(context)?;
        let mut reader = Reader::new(file).with_context(context)?;
        let backup = reader.header().the_backup().with_context(context)?;
        let began = backup.time().with_context(context)?;
        let next = reader.next_entry().with_context(context)?;
        Ok(Parent {
            reader,
            id: backup.id,
            began,
            next,
            component: source.component.clone(),
            areas: source.areas(),
            held: Extent::default(),
            has_others: false,
        })
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
            self.advance()?;
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

    fn advance(&mut self) -> anyhow::Result<()> {
        if let Some(entry) = self.next.take().filter(|entry| entry.component() == self.component) {
            if self.areas.iter().any(|area| is_within(entry.path.as_bytes(), area)) {
                self.held.add(&entry);
            } else {
                self.has_others |= entry.kind != Kind::Directory;
            }
        }
        self.next = self.reader.next_entry().context("the parent's manifest")?;
        Ok(())
    }

    /// Reads the rest, to be sure of what was taken; returns how much the source held then, with
    /// what was there and could not be stored.
    ///
    /// # Errors
    /// A malformed parent.
    pub fn end(mut self) -> anyhow::Result<Extent> {
        while self.next.is_some() {
            self.advance()?;
        }
        let (_, trailer) = self.reader.end().context("the parent's manifest")?;
        let components = trailer.components().context("the parent's manifest")?;
        let mine = components.iter().find(|component| component.name == self.component);
        // It is not known of which source.
        if let Some(mine) = mine.filter(|_| !self.has_others) {
            let missing = mine.extra.get(MISSING).and_then(serde_json::Value::as_u64);
            self.held.files = self.held.files.saturating_add(missing.unwrap_or(0));
        }
        Ok(self.held)
    }
}
