//! One pass over the data: files are read, hashed, compressed and stored at once, on all cores.
//!
//! Small files go in waves: read and hashed in parallel, told apart from known content in order,
//! gathered into frames that are compressed in parallel. While a wave is computed, the upload
//! thread stores the one before. Large files are streamed frame by frame. Entries leave in the
//! order they came.

mod dump;
mod large;
mod plain;
mod small;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry, Kind};
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::left_out::{LeftOut, Reason};
use bk_manifest::manifest::SourceKind;
use bk_manifest::progress::Progress;
use bk_manifest::spool::Spool;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use self::small::{is_bucket, is_folder, make_frame, read_items};
use crate::encrypt::{Choice, Cipher};
use crate::known::{KnownContent, Usable, refer};
use crate::source::file::{NotTaken, SmallFile};
use crate::source::{Located, Sources};
use crate::upload::Uploader;
use crate::volume::{self, FRAME_BYTES, Frame, SeekTable, VOLUME_BYTES, VOLUME_ENTRIES};

/// Files of at least this many bytes are streamed instead of held in memory.
pub const LARGE_BYTES: u64 = 2 << 20;
/// Bytes of small files in a wave, for each thread; as many more for what they have grown since they
/// were listed.
const WAVE_BYTES: u64 = 4 << 20;
/// Entries in a wave.
const WAVE_ITEMS: usize = 4096;
/// Neighbouring files that one thread reads: they share their folder.
const READ_RUN: usize = 32;

/// What a pass has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Bytes of content that were read and stored.
    pub stored: u64,
    /// Bytes of content that were at the destination already.
    pub inherited: u64,
}

/// What a packer works with.
pub struct Tools<'a> {
    /// Where files are.
    pub sources: &'a Sources,
    /// Objects that entries may refer to.
    pub usable: &'a Usable,
    /// Objects of this push that turned out to be marked or gone, plain files too.
    pub lost: &'a BTreeSet<String>,
    /// How components are encrypted.
    pub encryption: &'a Choice,
    /// Where objects go.
    pub uploader: &'a Uploader,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

/// Makes objects of files, and entries that say where the files lie.
pub struct Packer<'a> {
    tools: Tools<'a>,
    known: &'a mut KnownContent,
    /// The entries that are done, in order.
    out: Spool,
    contents: Contents,
    wave: Vec<Item>,
    wave_bytes: u64,
    volume: Option<OpenVolume>,
    storing: plain::Storing,
    /// How the wave's files, and so the open volume, are encrypted.
    cipher: Option<Arc<Cipher>>,
    last_volume: &'a mut u32,
    /// What could not be taken.
    left_out: LeftOut,
    /// The components that it belongs to.
    partial: BTreeSet<String>,
    /// How many files of each component are not stored.
    missing: BTreeMap<String, u64>,
    totals: Totals,
}

struct OpenVolume {
    object: String,
    offset: u64,
    entries: Spool,
    count: u64,
    table: SeekTable,
}

/// An entry of the wave.
struct Item {
    entry: Entry,
    fate: Fate,
}

/// What becomes of an entry.
enum Fate {
    /// It needs nothing more.
    Done,
    /// Its file is to be read.
    Unread,
    /// Its file was read.
    Read(SmallFile),
    /// Its file has grown too much to be held in memory: it is streamed in its turn.
    Grown,
    /// It could not be taken.
    NotTaken(NotTaken),
    /// Its content lies there already.
    Known(At),
    /// Its content is that of an earlier item of the wave.
    Same(usize),
    /// Its content goes into the wave's frames.
    New(SmallFile),
}

/// The items of a wave that have to be stored.
struct New {
    /// Those that share a frame.
    frames: Vec<Vec<usize>>,
    /// Those that are to be objects of their own, with their names.
    plain: Vec<(usize, String)>,
}

/// What a backup's entries refer to, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// What entries refer to, by backup (`None` is this one) and object.
    pub live: BTreeMap<(Option<String>, String), Live>,
    /// What they refer to of plain files, by backup and the component that those were stored for.
    pub plain: BTreeMap<(Option<String>, String), Live>,
    /// What is there of each component.
    pub components: BTreeMap<String, Held>,
    /// Whether there are hard links, which get their content in the end.
    pub has_links: bool,
}

/// What is there of a component.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Number of entries.
    pub entries: u64,
    /// How many of them are files.
    pub files: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// What entries need of one object.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// How many they are.
    pub count: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// The components of these entries.
    pub components: BTreeSet<String>,
}

impl Contents {
    /// Counts an entry; `plain` is the component that its plain file was stored for, if it is one.
    fn add(&mut self, entry: &Entry, plain: Option<&str>) {
        let component = match self.components.get_mut(entry.component()) {
            Some(component) => component,
            None => self.components.entry(entry.component().to_owned()).or_default(),
        };
        component.entries += 1;
        self.has_links |= matches!(entry.kind, Kind::Hardlink(_));
        if !entry.is_file() {
            return;
        }
        let size = entry.size.unwrap_or(0);
        component.files += 1;
        component.bytes += size;
        if let Some(at) = &entry.at {
            let live = match plain {
                None => self.live.entry((at.backup.clone(), at.object.clone())),
                Some(plain) => self.plain.entry((at.backup.clone(), plain.to_owned())),
            };
            let live = live.or_default();
            live.count += 1;
            live.bytes += size;
            if !live.components.contains(entry.component()) {
                live.components.insert(entry.component().to_owned());
            }
        }
    }
}

/// What a packer leaves.
pub struct Packed {
    /// The entries, in order, each with its `at`.
    pub entries: bk_manifest::spool::Entries,
    /// What they refer to.
    pub contents: Contents,
    /// What could not be taken.
    pub left_out: LeftOut,
    /// The components that it belongs to.
    pub partial: BTreeSet<String>,
    /// How many files of each component are not stored.
    pub missing: BTreeMap<String, u64>,
    /// Bytes.
    pub totals: Totals,
}

impl<'a> Packer<'a> {
    /// Starts with nothing; volumes are numbered on from `last_volume`.
    ///
    /// # Errors
    /// If no temporary file can be made.
    pub fn new(
        tools: Tools<'a>,
        known: &'a mut KnownContent,
        last_volume: &'a mut u32,
    ) -> anyhow::Result<Self> {
        Ok(Packer {
            tools,
            known,
            out: Spool::new()?,
            contents: Contents::default(),
            wave: Vec::new(),
            wave_bytes: 0,
            volume: None,
            storing: plain::Storing::default(),
            cipher: None,
            last_volume,
            left_out: LeftOut::default(),
            partial: BTreeSet::new(),
            missing: BTreeMap::new(),
            totals: Totals::default(),
        })
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// An entry that no source covers; what ends the storing.
    pub fn entry(&mut self, mut entry: Entry) -> anyhow::Result<()> {
        bk_manifest::signal::check()?;
        if !entry.is_file() {
            // A hard link gets its checksum and place from its first path, in the end.
            entry.at = None;
            return self.queue(entry, Fate::Done, 0);
        }
        if let Some(at) = &entry.at {
            if entry.checksum.is_some() && self.is_there(at, &entry)? {
                if at.backup.is_some() {
                    self.totals.inherited += entry.size.unwrap_or(0);
                }
                self.tools.progress.advance(0, 1);
                return self.queue(entry, Fate::Done, 0);
            }
            entry.at = None;
        }
        let located = self.tools.sources.locate(&entry).ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("no source of this run holds '{}', which has to be stored", entry.path),
            )
            .hint("push in the pipe that made the manifest; bk-push copy moves backups")
        })?;
        if located.kind == SourceKind::Stage {
            self.flush()?;
            self.close_volume()?;
            return self.dump(entry);
        }
        self.turn_to(entry.component())?;
        let size = entry.size.unwrap_or(0);
        if size >= LARGE_BYTES {
            self.flush()?;
            return self.large(entry);
        }
        self.queue(entry, Fate::Unread, size)
    }

    /// Ends the wave and the volume where the next file is not encrypted as they are.
    fn turn_to(&mut self, component: &str) -> anyhow::Result<()> {
        let next = self.tools.encryption.of(component);
        let is_same = match (&self.cipher, next) {
            (Some(cipher), Some(next)) => Arc::ptr_eq(cipher, next),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            self.flush()?;
            self.close_volume()?;
            self.cipher = next.cloned();
        }
        Ok(())
    }

    fn queue(&mut self, entry: Entry, fate: Fate, size: u64) -> anyhow::Result<()> {
        self.wave.push(Item { entry, fate });
        self.wave_bytes += size;
        let limit = WAVE_BYTES * rayon::current_num_threads() as u64;
        if self.wave_bytes >= limit || self.wave.len() >= WAVE_ITEMS {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Ends the pass.
    ///
    /// # Errors
    /// What ends the storing.
    pub fn finish(mut self) -> anyhow::Result<Packed> {
        self.flush()?;
        self.close_volume()?;
        Ok(Packed {
            entries: self.out.finish()?,
            contents: self.contents,
            left_out: self.left_out,
            partial: self.partial,
            missing: self.missing,
            totals: self.totals,
        })
    }

    /// Works off the wave.
    fn flush(&mut self) -> anyhow::Result<()> {
        let mut wave = std::mem::take(&mut self.wave);
        self.wave_bytes = 0;
        let sources = self.tools.sources;
        let room = AtomicU64::new(WAVE_BYTES * rayon::current_num_threads() as u64);
        wave.par_chunks_mut(READ_RUN)
            .for_each(|items| read_items(sources, items, &room, is_folder));
        sources.read_objects(|| {
            wave.par_chunks_mut(1).for_each(|items| read_items(sources, items, &room, is_bucket));
        });
        sources.check()?;
        let New { frames, plain } = self.tell_apart(&mut wave)?;
        let items = &wave;
        let compressed: Vec<(Frame, Vec<u64>)> = frames
            .par_iter()
            .with_max_len(1)
            .map(|members| make_frame(items, members))
            .collect::<anyhow::Result<_>>()?;
        let mut places: HashMap<usize, At> = HashMap::new();
        for ((frame, skips), members) in compressed.into_iter().zip(&frames) {
            let volume = self.open_volume(frame.bytes.len() as u64)?;
            let at = At {
                object: volume.object.clone(),
                offset: Some(volume.offset),
                length: Some(frame.bytes.len() as u64),
                ..At::default()
            };
            for (member, skip) in members.iter().zip(skips) {
                let at = At { skip: Some(skip), ..at.clone() };
                volume
                    .entries
                    .push(&Entry { at: Some(at.clone()), ..wave[*member].entry.clone() })?;
                volume.count += 1;
                places.insert(*member, at);
            }
            self.write_frame(frame)?;
            self.close_full_volume()?;
        }
        places.extend(self.put_plain(&mut wave, plain)?);
        let firsts: Vec<Option<Entry>> = wave
            .iter()
            .map(|item| match item.fate {
                Fate::Same(first) => Some(wave[first].entry.clone()),
                _ => None,
            })
            .collect();
        for (number, (item, first)) in wave.into_iter().zip(firsts).enumerate() {
            self.finish_item(number, item, first.as_ref(), &places)?;
        }
        Ok(())
    }

    /// Decides, in order, which content is new, and gathers it into frames.
    fn tell_apart(&mut self, wave: &mut [Item]) -> anyhow::Result<New> {
        let mut frames: Vec<Vec<usize>> = Vec::new();
        let mut plain = Vec::new();
        let mut frame_bytes = FRAME_BYTES;
        let mut first_with: HashMap<Digest, usize> = HashMap::new();
        for (number, item) in wave.iter_mut().enumerate() {
            let Fate::Read(file) = &item.fate else { continue };
            let (digest, size) = (file.digest, file.bytes.len());
            let has_changed = file.has_changed;
            if has_changed {
                self.report_changed(&item.entry);
            }
            let fate = if let Some(first) = first_with.get(&digest) {
                Fate::Same(*first)
            } else if let Some(at) = self.find_known(&digest, size as u64, &item.entry)? {
                Fate::Known(at)
            } else {
                let Fate::Read(file) = std::mem::replace(&mut item.fate, Fate::Done) else {
                    continue;
                };
                first_with.insert(digest, number);
                if let Some(object) = self.plain_name(&item.entry) {
                    plain.push((number, object));
                } else {
                    if frame_bytes >= FRAME_BYTES {
                        frames.push(Vec::new());
                        frame_bytes = 0;
                    }
                    frame_bytes += size + 512;
                    if let Some(frame) = frames.last_mut() {
                        frame.push(number);
                    }
                }
                Fate::New(file)
            };
            item.fate = fate;
        }
        Ok(New { frames, plain })
    }

    fn find_known(
        &mut self,
        digest: &Digest,
        size: u64,
        entry: &Entry,
    ) -> anyhow::Result<Option<At>> {
        let Some(known) = self.known.find(digest, size)? else { return Ok(None) };
        // Who can open one component need not be able to open the other.
        let is_same = self.tools.encryption.is_same(known.component(), entry.component());
        match &known.at {
            Some(at) if is_same && self.is_there(at, &known)? => Ok(Some(refer(at, &known, entry))),
            _ => Ok(None),
        }
    }

    /// Whether an entry may refer to an object: one at the destination, or of this push and not lost.
    /// What is to be encrypted must be so there; what need not be may.
    fn is_there(&self, at: &At, entry: &Entry) -> anyhow::Result<bool> {
        let Some(backup) = &at.backup else { return Ok(!self.tools.lost.contains(&at.object)) };
        let cipher = self.tools.encryption.of(entry.component());
        let due = cipher.map(|cipher| cipher.method.word());
        let is_due = |encryption: &Option<String>| due.is_none() || encryption.as_deref() == due;
        match self.tools.usable.get(backup, &at.object) {
            Some(record) => Ok(is_due(&record.encryption)),
            None => self.tools.usable.holds_plain(backup, at, entry, is_due),
        }
    }

    fn finish_item(
        &mut self,
        number: usize,
        item: Item,
        first: Option<&Entry>,
        places: &HashMap<usize, At>,
    ) -> anyhow::Result<()> {
        let mut entry = item.entry;
        let size = entry.size.unwrap_or(0);
        match item.fate {
            Fate::Done => {
                self.done(&entry)?;
                return Ok(());
            }
            Fate::NotTaken(not_taken) => {
                self.leave_out(&entry, &not_taken);
                return Ok(());
            }
            Fate::Grown => return self.large(entry),
            Fate::Unread | Fate::Read(_) => anyhow::bail!("'{}' was passed over", entry.path),
            Fate::Known(at) => {
                self.totals.inherited += size;
                entry.at = Some(at);
            }
            Fate::Same(place) => {
                self.totals.inherited += size;
                entry.at = match (places.get(&place), first) {
                    (Some(at), Some(first)) => Some(refer(at, first, &entry)),
                    _ => anyhow::bail!("'{}' lost its content", entry.path),
                };
            }
            Fate::New(_) => {
                self.totals.stored += size;
                entry.at = places.get(&number).cloned();
                self.known.add(&entry)?;
            }
        }
        self.tools.progress.advance(size, 1);
        self.done(&entry)?;
        Ok(())
    }

    /// Puts an entry behind those that are done.
    fn done(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let plain = entry.at.as_ref().filter(|at| at.offset.is_none()).and_then(|at| {
            let component = crate::plain::component(&at.object)?;
            let is_plain = match &at.backup {
                None => self.tools.sources.is_plain(component),
                Some(backup) => self.tools.usable.get(backup, &at.object).is_none(),
            };
            is_plain.then_some(component)
        });
        self.contents.add(entry, plain);
        self.out.push(entry)?;
        Ok(())
    }

    fn leave_out(&mut self, entry: &Entry, why: &NotTaken) {
        if why.reason.is_fault() {
            self.tools.progress.warn(&format!("cannot read '{}': {}", entry.path, why.error));
            self.partial.insert(entry.component().to_owned());
        }
        *self.missing.entry(entry.component().to_owned()).or_default() += 1;
        self.left_out.add(why.reason, &entry.path);
    }

    fn report_changed(&mut self, entry: &Entry) {
        self.tools.progress.warn(&format!("'{}' changed while it was read", entry.path));
        self.left_out.add(Reason::ChangedWhileRead, &entry.path);
        self.partial.insert(entry.component().to_owned());
    }

    /// The open volume; a new one if there is none, with room for `next` more bytes.
    fn open_volume(&mut self, next: u64) -> anyhow::Result<&mut OpenVolume> {
        if self.volume.is_none() {
            *self.last_volume += 1;
            let object = volume::name(*self.last_volume);
            let cipher = self.cipher.as_ref();
            let object = cipher.map_or(object.clone(), |cipher| cipher.name(&object));
            self.tools.uploader.open(&object, VOLUME_BYTES + next, cipher)?;
            self.volume = Some(OpenVolume {
                object,
                offset: 0,
                entries: Spool::new()?,
                count: 0,
                table: SeekTable::default(),
            });
        }
        self.volume.as_mut().context("a volume was just opened")
    }

    fn write_frame(&mut self, frame: Frame) -> anyhow::Result<()> {
        let volume = self.open_volume(frame.bytes.len() as u64)?;
        volume.table.add(&frame);
        volume.offset += frame.bytes.len() as u64;
        Ok(self.tools.uploader.write(frame.bytes)?)
    }

    fn close_full_volume(&mut self) -> anyhow::Result<()> {
        let is_full = self
            .volume
            .as_ref()
            .is_some_and(|volume| volume.offset >= VOLUME_BYTES || volume.count >= VOLUME_ENTRIES);
        if is_full { self.close_volume() } else { Ok(()) }
    }

    fn close_volume(&mut self) -> anyhow::Result<()> {
        if self.volume.is_none() {
            return Ok(());
        }
        self.write_frame(volume::frame(&volume::end_of_archive())?)?;
        if let Some(volume) = self.volume.take() {
            self.tools.uploader.write(volume.table.finish())?;
            self.tools.uploader.close(volume.entries)?;
        }
        Ok(())
    }
}

fn locate<'a>(sources: &'a Sources, entry: &Entry) -> anyhow::Result<Located<'a>> {
    sources.locate(entry).with_context(|| format!("no source of this run holds '{}'", entry.path))
}
