//! Gets content out of stored objects again: frame by frame, as many at once as there are cores and as the
//! destination likes, every byte hashed.

use std::io::{self, Read, Write};
use std::ops::Range;

use anyhow::Context;
use bk_manifest::digest::Hasher;
use bk_manifest::entry::{At, Entry};
use bk_manifest::exit::Failure;
use bk_manifest::sort::Sorter;
use bk_manifest::spool::Entries;

use crate::catalog::Folders;
use crate::decrypt::{self, Objects, Opened};
use crate::destination::Error;
use crate::parallel;

mod run;

use run::{Run, Source};

/// Memory for the order of reading; more goes through temporary files.
const ORDER_BUDGET: usize = 16 << 20;
/// Runs whose frames are decoded at once at most: each takes some eight megabytes.
const DECODED_AT_ONCE: usize = 6;
/// Runs that are read together: many, since the last of them are waited for.
const BATCH_RUNS: usize = 1024;
/// Files read together: any number of equal ones can lie in the same bytes.
const BATCH_ENTRIES: usize = 16 << 10;
/// Most that is decoded in memory for the files that share their frames, in bytes: more than a frame of
/// small files holds.
const SHARED_LIMIT: u64 = 4 << 20;
/// The same for one object that is several files, of which many may be read at once.
const SHARED_WHOLE_LIMIT: u64 = 1 << 20;

/// What is wrong with an entry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// A phrase that goes behind the entry's name.
    pub detail: String,
    /// Whether the destination would not give the bytes, so that nothing is known of them.
    pub is_refused: bool,
}

impl Damage {
    /// # Errors
    /// What must end the whole reading: a fault that has an exit code of its own and may pass.
    fn unreadable(error: anyhow::Error) -> anyhow::Result<Self> {
        let refusal = Error::among(error.as_ref()).filter(|error| error.is_refusal());
        if refusal.is_some_and(|error| error.may_retry() && error.source.is::<Failure>()) {
            return Err(error);
        }
        let is_refused = refusal.is_some();
        Ok(Damage { detail: format!("cannot be read: {error:#}"), is_refused })
    }
}

/// What becomes of content that is read.
///
/// Called from several threads at once, for different entries.
pub trait Receive: Sync {
    /// Takes the bytes of one entry.
    type Output: Write;

    /// Begins an entry; `None` skips it.
    ///
    /// # Errors
    /// What must end the whole reading, such as a full disk.
    fn begin(&self, entry: &Entry) -> anyhow::Result<Option<Self::Output>>;

    /// Ends an entry: its content came whole with its checksum, or `damage` says what is wrong.
    ///
    /// # Errors
    /// What must end the whole reading.
    fn end(
        &self,
        entry: &Entry,
        output: Self::Output,
        damage: Option<&Damage>,
    ) -> anyhow::Result<()>;
}

/// Which content is to be read, sorted by where it lies.
pub struct Plan {
    order: Sorter,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { order: Sorter::new(ORDER_BUDGET) }
    }
}

/// A group of entries that lie in the same bytes of one object.
struct Group {
    object: String,
    /// Start and length in the object; `None` is all of it, uncompressed.
    range: Option<(u64, u64)>,
    /// Whether nothing else is read of the object.
    is_streamed: bool,
    entries: Vec<Entry>,
}

impl Group {
    fn bytes(&self) -> Option<Range<u64>> {
        self.range.map(|(start, length)| start..start.saturating_add(length))
    }
}

/// What is read together.
#[derive(Default)]
struct Batch {
    runs: Vec<Run>,
    entries: usize,
}

impl Batch {
    /// The last group, if an entry that lies in these bytes may still join it.
    fn same_place(&mut self, object: &str, range: Option<(u64, u64)>) -> Option<&mut Group> {
        let has_room = self.entries < BATCH_ENTRIES;
        let group = self.runs.last_mut().and_then(Run::last)?;
        Some(group).filter(|group| has_room && group.range == range && group.object == object)
    }

    /// The one file that is read of an encrypted object needs no copy of that.
    fn stream_last(&mut self, sealed: Option<&(String, u64)>) {
        let Some((object, 1)) = sealed else { return };
        // What follows may be of other objects, which are not encrypted.
        let mut groups = self.runs.iter_mut().rev().filter_map(Run::last);
        if let Some(group) = groups.find(|group| group.object == *object) {
            group.is_streamed = group.entries.len() == 1;
        }
    }

    fn is_full(&self) -> bool {
        self.runs.len() >= BATCH_RUNS || self.entries >= BATCH_ENTRIES
    }

    fn push(&mut self, group: Group) {
        self.entries += group.entries.len();
        let refused = match self.runs.last_mut() {
            Some(run) => run.join(group),
            None => Some(group),
        };
        self.runs.extend(refused.map(Run::new));
    }
}

impl Plan {
    /// Plans to read an entry's content. `place` is where [`Entries`] holds it.
    ///
    /// # Errors
    /// A full disk under the temporary files; a place that the manifest's chain does not know.
    pub fn push(&mut self, folders: &Folders, at: &At, place: u64) -> anyhow::Result<()> {
        let object = folders.object(at.backup.as_deref(), &at.object)?;
        let mut record = object.into_bytes();
        record.push(0);
        record.push(u8::from(at.offset.is_some()));
        for number in [at.offset.unwrap_or(0), at.length.unwrap_or(0), at.skip.unwrap_or(0), place]
        {
            record.extend_from_slice(&number.to_be_bytes());
        }
        self.order.push(&record)
    }

    /// Reads all of it and hands it to `receive`.
    ///
    /// Damage of an entry is told to `receive` and does not end the reading.
    ///
    /// # Errors
    /// Those of `receive` and of the temporary files; being stopped.
    pub fn run<R: Receive>(
        self,
        objects: &Objects<'_>,
        entries: &Entries,
        receive: &R,
    ) -> anyhow::Result<()> {
        let mut batch = Batch::default();
        // How many groups the encrypted object has that is being read.
        let mut sealed: Option<(String, u64)> = None;
        for record in self.order.finish()? {
            bk_manifest::signal::check()?;
            let (object, range, place) = parse(&record?)?;
            let entry = entries.at(place)?;
            if let Some(group) = batch.same_place(&object, range) {
                group.entries.push(entry);
                batch.entries += 1;
                continue;
            }
            let is_sealed = range.is_some() && objects.is_sealed(&object);
            let is_same = sealed.as_ref().is_some_and(|(sealed, _)| *sealed == object);
            // Only one encrypted object is kept open.
            if batch.is_full() || (is_sealed && !is_same) {
                if !is_same {
                    batch.stream_last(sealed.as_ref());
                }
                read_batch(objects, std::mem::take(&mut batch), receive)?;
            }
            if is_sealed {
                let groups = sealed.filter(|_| is_same).map_or(0, |(_, groups)| groups);
                sealed = Some((object.clone(), groups + 1));
            }
            batch.push(Group { object, range, is_streamed: false, entries: vec![entry] });
        }
        batch.stream_last(sealed.as_ref());
        read_batch(objects, batch, receive)
    }
}

type Record = (String, Option<(u64, u64)>, u64);

fn parse(record: &[u8]) -> anyhow::Result<Record> {
    let split = record.iter().position(|byte| *byte == 0).context("temporary file")?;
    let object = String::from_utf8(record[..split].to_vec()).context("temporary file")?;
    let rest = &record[split + 1..];
    let number = |index: usize| {
        rest[1 + index * 8..][..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let range = (rest[0] == 1).then(|| (number(0), number(1)));
    Ok((object, range, number(3)))
}

fn read_batch<R: Receive>(objects: &Objects<'_>, batch: Batch, receive: &R) -> anyhow::Result<()> {
    let read = |run: Run| {
        let mut source = Source::new(objects, &run);
        run.groups().iter().try_for_each(|group| {
            bk_manifest::signal::check()?;
            read_group(&mut source, group, receive)
        })
    };
    // They mostly wait: for the destination, or for where they go to.
    let at_once = objects.at_once().max(rayon::current_num_threads());
    let (whole, frames): (Vec<_>, Vec<_>) = batch.runs.into_iter().partition(Run::is_whole);
    parallel::try_map(at_once.min(DECODED_AT_ONCE), frames, read)?;
    parallel::try_map(at_once, whole, read)?;
    Ok(())
}

fn read_group<R: Receive>(
    source: &mut Source<'_>,
    group: &Group,
    receive: &R,
) -> anyhow::Result<()> {
    // Copies of one large file lie in the same bytes too, and may decode to far more than these.
    let decoded = group.entries.iter().map(decoded_end).max().unwrap_or(0);
    let limit = if group.range.is_some() { SHARED_LIMIT } else { SHARED_WHOLE_LIMIT };
    if group.entries.len() > 1 && decoded <= limit {
        return read_shared(source, group, decoded, receive);
    }
    group.entries.iter().try_for_each(|entry| {
        let is_read = match open(source, group, entry)? {
            Ok(mut content) => deliver(entry, &mut content, None, receive)?,
            Err(error) => {
                let damage = Damage::unreadable(error)?;
                deliver(entry, &mut io::empty(), Some(&damage), receive)?
            }
        };
        if is_read { Ok(()) } else { source.give_up() }
    })
}

/// Where an entry's content ends in what its frames decode to.
fn decoded_end(entry: &Entry) -> u64 {
    let skip = entry.at.as_ref().and_then(|at| at.skip).unwrap_or(0);
    skip.saturating_add(entry.size.unwrap_or(0))
}

/// Small files that share their frames, or one object: read and decoded once.
///
/// What was decoded before damage is used: each file's checksum says whether it is whole.
fn read_shared<R: Receive>(
    source: &mut Source<'_>,
    group: &Group,
    length: u64,
    receive: &R,
) -> anyhow::Result<()> {
    let Some(first) = group.entries.first() else { return Ok(()) };
    // Grown step by step it would take twice as much.
    let mut decoded = Vec::with_capacity(usize::try_from(length)?);
    let stored = source.open(group, first)?;
    let decode = || -> anyhow::Result<io::Result<usize>> {
        let stored = stored?;
        Ok(match group.range {
            Some(_) => {
                zstd::stream::read::Decoder::new(stored)?.take(length).read_to_end(&mut decoded)
            }
            // It must end with the file.
            None => stored.take(length.saturating_add(1)).read_to_end(&mut decoded),
        })
    };
    let damage = match decode() {
        Err(error) => Some(Damage::unreadable(error)?),
        Ok(Err(error)) => Some(Damage::unreadable(decrypt::damage(error)?.into())?),
        Ok(Ok(_)) => None,
    };
    if damage.is_some() {
        source.give_up()?;
    }
    for entry in &group.entries {
        let skip = entry.at.as_ref().and_then(|at| at.skip).unwrap_or(0);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut bytes = decoded.get(skip..).unwrap_or(&[]);
        deliver(entry, &mut bytes, damage.as_ref(), receive)?;
    }
    Ok(())
}

/// Opens the content of one entry at its first byte; it may go on behind the content's end.
fn open<'a>(
    source: &'a mut Source<'_>,
    group: &Group,
    entry: &Entry,
) -> anyhow::Result<Opened<'a>> {
    let stored = match source.open(group, entry)? {
        Ok(stored) if group.range.is_some() => stored,
        other => return Ok(other),
    };
    let skip = entry.at.as_ref().and_then(|at| at.skip).unwrap_or(0);
    let mut content = match zstd::stream::read::Decoder::new(stored) {
        Ok(content) => content,
        Err(error) => return Ok(Err(error).context("cannot decode")),
    };
    match io::copy(&mut content.by_ref().take(skip), &mut io::sink()) {
        Ok(skipped) if skipped == skip => Ok(Ok(Box::new(content))),
        Ok(_) => Ok(Err(anyhow::anyhow!("the frames end before the content begins"))),
        Err(error) => Ok(Err(decrypt::damage(error)?).context("cannot decode")),
    }
}

/// Copies one entry's content out, hashing it, and tells the receiver how it went. `lost` is why no more of
/// it comes. Returns whether it could be read.
fn deliver<R: Receive>(
    entry: &Entry,
    content: &mut dyn Read,
    lost: Option<&Damage>,
    receive: &R,
) -> anyhow::Result<bool> {
    let Some(mut output) = receive.begin(entry)? else { return Ok(true) };
    let size = entry.size.unwrap_or(0);
    // An object that is this one file must end with it.
    let is_whole = entry.at.as_ref().is_some_and(|at| at.offset.is_none());
    let mut content = content.take(size.saturating_add(u64::from(is_whole)));
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; usize::try_from(size.clamp(1, 256 << 10))?];
    let damage = loop {
        bk_manifest::signal::check()?;
        match content.read(&mut buffer) {
            Ok(0) => break lost.filter(|_| content.limit() > 0).cloned(),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                output
                    .write_all(&buffer[..read])
                    .with_context(|| format!("cannot write '{}'", entry.path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Some(Damage::unreadable(decrypt::damage(error)?.into())?),
        }
    };
    let is_read = damage.is_none();
    let (checksum, length) = hasher.finish();
    let damage = damage.or_else(|| {
        let detail = if length != size {
            format!("has {length} bytes instead of {size}")
        } else if entry.checksum.is_none() {
            "has no checksum in the manifest".into()
        } else if entry.checksum != Some(checksum) {
            "does not have its checksum".into()
        } else {
            return None;
        };
        Some(Damage { detail, is_refused: false })
    });
    receive.end(entry, output, damage.as_ref())?;
    Ok(is_read)
}
