//! Groups that lie one behind the other in an object: a single request brings them all.

use std::io::{self, Read};

use bk_manifest::entry::Entry;

use super::Group;
use crate::decrypt::{Objects, Opened};

/// Bytes of an object that one request asks for, if they are of several groups: enough that its answer is
/// worth waiting for, few enough that there are several of them at once.
const LENGTH: u64 = 4 << 20;
/// Bytes between two groups that are read and dropped sooner than asking again.
const GAP: u64 = 128 << 10;

/// Groups of one object in the order of their places, at least one.
pub(super) struct Run(Vec<Group>);

impl Run {
    pub(super) fn new(first: Group) -> Self {
        Run(vec![first])
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.0
    }

    /// Whether it is an object that is one file.
    pub(super) fn is_whole(&self) -> bool {
        self.range().is_none()
    }

    /// Takes a group that follows closely, or gives it back.
    pub(super) fn join(&mut self, group: Group) -> Option<Group> {
        let (Some((start, length)), Some((begin, end))) = (group.range, self.range()) else {
            return Some(group);
        };
        let is_same = self.0.iter().all(|before| before.object == group.object);
        let is_close = (end..=end.saturating_add(GAP)).contains(&start);
        if !is_same || !is_close || start.saturating_add(length) - begin > LENGTH {
            return Some(group);
        }
        self.0.push(group);
        None
    }

    pub(super) fn last(&mut self) -> Option<&mut Group> {
        self.0.last_mut()
    }

    /// Where it begins and ends, if it is not a whole object.
    fn range(&self) -> Option<(u64, u64)> {
        let start = self.0.first()?.range?.0;
        let (last, length) = self.0.last()?.range?;
        Some((start, last.saturating_add(length)))
    }
}

/// The bytes of a run as its groups ask for them, one behind the other.
pub(super) struct Source<'a> {
    objects: &'a Objects<'a>,
    /// Where the run ends.
    end: u64,
    /// What is being read, and the place of its next byte.
    open: Option<(Box<dyn Read + Send + 'a>, u64)>,
}

impl<'a> Source<'a> {
    pub(super) fn new(objects: &'a Objects<'a>, run: &Run) -> Self {
        Source { objects, end: run.range().map_or(0, |(_, end)| end), open: None }
    }

    /// Opens the bytes of a group for one of its entries.
    ///
    /// # Errors
    /// As [`Objects::read`].
    pub(super) fn open(&mut self, group: &Group, entry: &Entry) -> anyhow::Result<Opened<'_>> {
        let Some((start, length)) = group.range.filter(|_| !group.is_streamed) else {
            return self.objects.read(&group.object, entry, group.bytes(), group.is_streamed);
        };
        let is_ahead =
            |(_, place): &(_, u64)| (*place..=place.saturating_add(GAP)).contains(&start);
        let mut open = match self.open.take().filter(is_ahead) {
            Some(open) => open,
            None => match self.objects.read(&group.object, entry, Some(start..self.end), false)? {
                Ok(reader) => (reader, start),
                Err(error) => return Ok(Err(error)),
            },
        };
        let gap = start - open.1;
        match io::copy(&mut open.0.by_ref().take(gap), &mut io::sink()) {
            Ok(passed) if passed == gap => open.1 = start,
            Ok(_) => return Ok(Err(anyhow::anyhow!("the object ends before the frames begin"))),
            Err(error) => return Ok(Err(error.into())),
        }
        let (reader, place) = self.open.insert(open);
        Ok(Ok(Box::new(Section { reader, place, end: start.saturating_add(length) })))
    }

    /// Is told that a group could not be read: the next one is asked for anew.
    ///
    /// # Errors
    /// As [`Objects::ask_for_destination`].
    pub(super) fn give_up(&mut self) -> anyhow::Result<()> {
        self.open = None;
        self.objects.ask_for_destination()
    }
}

/// One group's part of a run.
struct Section<'s, 'a> {
    reader: &'s mut Box<dyn Read + Send + 'a>,
    place: &'s mut u64,
    end: u64,
}

impl Read for Section<'_, '_> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let due = usize::try_from(self.end.saturating_sub(*self.place)).unwrap_or(usize::MAX);
        let due = due.min(output.len());
        if due == 0 {
            return Ok(0);
        }
        let read = self.reader.read(output.get_mut(..due).unwrap_or_default())?;
        *self.place += read as u64;
        Ok(read)
    }
}
