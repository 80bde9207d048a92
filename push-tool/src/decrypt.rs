//! Objects as they were before they were encrypted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use bk_manifest::command::Finished;
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::{Header, Trailer};
use bk_manifest::path::escape;
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::stream::Error as FormatError;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::catalog::{Folders, needed_objects};
use crate::destination::{Destination, Error};
use crate::encrypt::{Method, said};
use crate::identity::{Identities, Opener};
use crate::piped::{Piped, Step};
use crate::place::MARKER;
use crate::plain::{PlainFiles, StoredSum};
use crate::store::no_destination;

/// As much of an object as its header may take, and what is moved at once.
const BUFFER: usize = 64 << 10;

/// The encrypted ones among a backup's objects, and which of them are wanted.
pub struct Sealed {
    folders: Folders,
    /// Those that `objects` names, by their names at the destination.
    objects: BTreeMap<String, SealedObject>,
    /// Which of the rest are encrypted; their entries say what is stored.
    plain: PlainFiles,
    /// The wanted ones of `objects`.
    wanted: BTreeSet<String>,
    /// One wanted plain file of each backup and component: all of these were encrypted by one push,
    /// for the same keys.
    samples: BTreeMap<(Option<String>, String), SealedObject>,
}

#[derive(Clone, Debug)]
struct SealedObject {
    name: String,
    method: Method,
    /// As stored; opened it is smaller.
    stored: StoredSum,
}

impl SealedObject {
    fn new(name: &str, word: &str, stored: StoredSum) -> Result<Self, FormatError> {
        let method = Method::of_word(word).ok_or_else(|| {
            let word = escape(word.as_bytes());
            FormatError::Malformed(format!("'{name}' is encrypted by an unknown '{word}'"))
        })?;
        Ok(SealedObject { name: name.to_owned(), method, stored })
    }
}

impl Sealed {
    /// Takes the encrypted ones of a manifest that lies in `folder`; by the manifest, for a name says
    /// nothing. None is wanted yet.
    ///
    /// # Errors
    /// [`Exit::Malformed`] for a method that this version does not know, and for a manifest that is.
    pub fn new(header: &Header, trailer: &Trailer, folder: &str) -> anyhow::Result<Self> {
        let mut objects = BTreeMap::new();
        for object in needed_objects(header, trailer, folder)? {
            let Some(word) = &object.record.encryption else { continue };
            let stored = StoredSum { checksum: object.record.checksum, size: object.record.size };
            let sealed = SealedObject::new(&object.name, word, stored)?;
            objects.insert(object.name, sealed);
        }
        Ok(Sealed {
            folders: Folders::new(header, folder)?,
            objects,
            plain: PlainFiles::new(header, trailer, folder)?,
            wanted: BTreeSet::new(),
            samples: BTreeMap::new(),
        })
    }

    /// Says that an entry's content will be read.
    ///
    /// # Errors
    /// Those of a malformed manifest.
    pub fn want(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let Some(at) = &entry.at else { return Ok(()) };
        if let Some(record) = self.plain.at(at) {
            let sample = (record.backup.clone(), record.component.clone());
            if record.encryption.is_some() && !self.samples.contains_key(&sample) {
                let name = self.folders.object(at.backup.as_deref(), &at.object)?;
                if let Some(object) = self.plain(entry, &name)? {
                    self.samples.insert(sample, object);
                }
            }
        } else if !self.objects.is_empty() {
            let name = self.folders.object(at.backup.as_deref(), &at.object)?;
            if self.objects.contains_key(&name) {
                self.wanted.insert(name);
            }
        }
        Ok(())
    }

    /// The plain file that holds an entry's content, if it is encrypted.
    fn plain(&self, entry: &Entry, name: &str) -> Result<Option<SealedObject>, FormatError> {
        let Some(at) = &entry.at else { return Ok(None) };
        match self.plain.at(at).and_then(|record| record.encryption.as_ref()) {
            None => Ok(None),
            Some(word) => SealedObject::new(name, word, StoredSum::of(entry, at)?).map(Some),
        }
    }

    /// Those whose keys are to be tried.
    fn tried(&self) -> Vec<&SealedObject> {
        let named = self.wanted.iter().filter_map(|name| self.objects.get(name));
        named.chain(self.samples.values()).collect()
    }
}

/// Reads objects, and opens those that are encrypted.
pub struct Objects<'a> {
    destination: &'a dyn Destination,
    sealed: Sealed,
    openers: BTreeMap<Method, Opener>,
    /// Where one is kept while ranges of it are read.
    temporary: PathBuf,
    held: Mutex<Option<Arc<Held>>>,
}

/// Bytes of an object, or why there are none.
pub type Opened<'a> = anyhow::Result<Box<dyn Read + Send + 'a>>;

/// What must end the whole reading, inside of an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct Fatal(anyhow::Error);

/// Tells damage from what must end the whole reading.
///
/// # Errors
/// The latter: a wrong key, a program that was killed, being stopped.
pub fn damage(error: io::Error) -> anyhow::Result<io::Error> {
    match error.downcast::<Fatal>() {
        Ok(fatal) => Err(fatal.0),
        Err(error) => Ok(error),
    }
}

impl<'a> Objects<'a> {
    /// Finds the keys of those that are encrypted and wanted, and tries them; of plain files one of
    /// each backup and component.
    ///
    /// # Errors
    /// [`Exit::Denied`] for an object that is whole and that no key here opens.
    pub fn open(
        destination: &'a dyn Destination,
        sealed: Sealed,
        identities: &Identities,
        temporary: &Path,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let methods: BTreeSet<Method> =
            sealed.tried().into_iter().map(|object| object.method).collect();
        let opener = |method| Ok((method, identities.opener(method, progress)?));
        let objects = Objects {
            destination,
            openers: methods.into_iter().map(opener).collect::<anyhow::Result<_>>()?,
            sealed,
            temporary: temporary.to_owned(),
            held: Mutex::default(),
        };
        objects.sealed.tried().into_par_iter().try_for_each(|object| objects.try_key(object))?;
        Ok(objects)
    }

    /// Whether an object that `objects` names is encrypted.
    pub fn is_sealed(&self, name: &str) -> bool {
        self.sealed.objects.contains_key(name)
    }

    /// Is told that something could not be read: asks whether it is the whole destination that is gone.
    ///
    /// # Errors
    /// If it is: then the rest is not lost, and would only be waited for.
    pub fn ask_for_destination(&self) -> anyhow::Result<()> {
        match self.destination.stat(MARKER)? {
            Some(_) => Ok(()),
            None => Err(no_destination(&self.destination.describe(), "is gone").into()),
        }
    }

    /// How many small objects are worth reading at once.
    pub fn at_once(&self) -> usize {
        self.destination.at_once()
    }

    /// Opens the object that holds an entry's content, or a range of what it was before it was
    /// encrypted.
    ///
    /// An encrypted one is opened into a temporary file for its ranges, of which one at a time is
    /// kept: they are to be read object by object. One that `is_streamed` is not; what is before the
    /// range is passed over.
    ///
    /// # Errors
    /// The outer one must end the whole reading; the inner one is of this object.
    pub fn read(
        &self,
        name: &str,
        entry: &Entry,
        range: Option<Range<u64>>,
        is_streamed: bool,
    ) -> anyhow::Result<Opened<'_>> {
        let object = match self.sealed.objects.get(name) {
            Some(object) => Some(object.clone()),
            None => self.sealed.plain(entry, name)?,
        };
        let Some(object) = object else {
            return Ok(self.destination.read(name, range).map_err(anyhow::Error::from));
        };
        let Some(range) = range else { return self.stream(object) };
        if !is_streamed {
            let held = self.hold(&object)?;
            return Ok(held.map(|file| {
                let section = Section { file, place: range.start, end: range.end };
                Box::new(section) as Box<dyn Read + Send>
            }));
        }
        let mut content = match self.stream(object)? {
            Ok(content) => content,
            Err(error) => return Ok(Err(error)),
        };
        match io::copy(&mut content.by_ref().take(range.start), &mut io::sink()) {
            Ok(_) => Ok(Ok(Box::new(content.take(range.end.saturating_sub(range.start))))),
            Err(error) => Ok(Err(damage(error)?.into())),
        }
    }

    /// Opens an object from its first byte on; once this is done, the key was right.
    fn stream(&self, object: SealedObject) -> anyhow::Result<Opened<'_>> {
        let source = match self.destination.read(&object.name, None) {
            Ok(source) => source,
            Err(error) => return Ok(Err(error.into())),
        };
        let mut decrypting = self.start(object, source)?;
        let mut first = vec![0; BUFFER];
        match decrypting.read(&mut first) {
            Ok(read) => {
                first.truncate(read);
                Ok(Ok(Box::new(Cursor::new(first).chain(decrypting))))
            }
            Err(error) => Ok(Err(damage(error)?.into())),
        }
    }

    fn start<'s>(
        &'s self,
        object: SealedObject,
        source: Box<dyn Read + Send + 's>,
    ) -> anyhow::Result<Decrypting<'s>> {
        let opener = self.openers.get(&object.method).context("an object without a program")?;
        Ok(Decrypting {
            objects: self,
            object,
            opener,
            source: Some(source),
            piped: Some(Piped::start(opener.command())?),
            buffer: vec![0; BUFFER],
            unsent: 0..0,
        })
    }

    /// Tries whether there is a key for an object, by its beginning.
    fn try_key(&self, object: &SealedObject) -> anyhow::Result<()> {
        bk_manifest::signal::check()?;
        let opener = self.openers.get(&object.method).context("an object without a program")?;
        let header = self.header(object);
        if !opener.has_key() {
            return Err(opener.locked(&object.name, &header, None).into());
        }
        let mut piped = Piped::start(opener.command())?;
        let (mut unsent, mut output) = (&header[..], vec![0; BUFFER]);
        loop {
            if unsent.is_empty() {
                piped.end_input();
            }
            match piped.step(unsent, &mut output)? {
                Step::Took(taken) => unsent = unsent.get(taken..).unwrap_or_default(),
                Step::Refused => unsent = &[],
                // It has begun: the key is right.
                Step::Gave(_) => return Ok(()),
                Step::Ended => break,
            }
        }
        let finished = piped.wait()?;
        if opener.lacks_key(&finished) && self.is_intact(object)? {
            return Err(opener.locked(&object.name, &header, Some(&finished)).into());
        }
        Ok(())
    }

    /// The first bytes of an object; none if it cannot be read, which is found out when it is needed.
    fn header(&self, object: &SealedObject) -> Vec<u8> {
        let mut header = Vec::new();
        if let Ok(mut stored) = self.destination.read(&object.name, Some(0..BUFFER as u64)) {
            // What came is used.
            let _ = stored.read_to_end(&mut header);
        }
        header
    }

    /// Whether the stored bytes have their checksum: then what went wrong is no damage of theirs.
    fn is_intact(&self, object: &SealedObject) -> anyhow::Result<bool> {
        let Ok(stored) = self.destination.read(&object.name, None) else {
            return Ok(false);
        };
        let read = Digest::of_reader(stored);
        bk_manifest::signal::check()?;
        Ok(read.is_ok_and(|(checksum, size)| StoredSum { checksum, size } == object.stored))
    }

    /// The object in its temporary file; opened there by the first who needs it.
    fn hold(&self, object: &SealedObject) -> anyhow::Result<anyhow::Result<Arc<Held>>> {
        // Others who need it wait here.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_ref().filter(|held| held.name == object.name) {
            return Ok(Ok(Arc::clone(held)));
        }
        // Its room is free again before the next one takes any.
        *held = None;
        let content = match self.stream(object.clone())? {
            Ok(content) => content,
            Err(error) => return Ok(Err(error)),
        };
        Ok(self.fill(object, content)?.map(|opened| {
            let opened = Arc::new(opened);
            *held = Some(Arc::clone(&opened));
            opened
        }))
    }

    fn fill(
        &self,
        object: &SealedObject,
        content: Box<dyn Read + Send + '_>,
    ) -> anyhow::Result<anyhow::Result<Held>> {
        let (name, shown) = (&object.name, self.temporary.display());
        let no_room = |why: String| {
            Failure::new(Exit::Failed, format!("cannot open '{name}' in '{shown}': {why}"))
                .hint("TMPDIR names a folder with more room")
        };
        let room = rustix::fs::statvfs(&self.temporary)
            .map_err(|error| no_room(io::Error::from(error).to_string()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let size = object.stored.size;
        if free < size {
            let why = format!("{} are free, {} needed", human_bytes(free), human_bytes(size));
            return Err(no_room(why).into());
        }
        let mut file =
            tempfile::tempfile_in(&self.temporary).map_err(|error| no_room(error.to_string()))?;
        // What it was before is smaller than what is stored: an object that unfolds is none of ours.
        let mut content = content.take(size);
        let (mut length, mut fault) = (0, None);
        let mut buffer = vec![0; BUFFER];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    let bytes = buffer.get(..read).unwrap_or_default();
                    file.write_all(bytes).map_err(|error| no_room(error.to_string()))?;
                    length += bytes.len() as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = anyhow::Error::from(damage(error)?);
                    // What came before is worth keeping only if no more will ever come.
                    if Error::among(error.as_ref()).is_some_and(Error::is_refusal) {
                        return Ok(Err(error));
                    }
                    fault = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        Ok(Ok(Held { name: name.to_owned(), file, length, fault }))
    }
}

/// An object on its way out of the program.
struct Decrypting<'a> {
    objects: &'a Objects<'a>,
    object: SealedObject,
    opener: &'a Opener,
    source: Option<Box<dyn Read + Send + 'a>>,
    piped: Option<Piped>,
    buffer: Vec<u8>,
    unsent: Range<usize>,
}

impl Decrypting<'_> {
    fn finish(&self, finished: &Finished) -> io::Result<usize> {
        if finished.is_success() {
            return Ok(0);
        }
        let name = &self.object.name;
        let lacks_key = self.opener.lacks_key(finished);
        let is_damaged = finished.code().is_some()
            && (!lacks_key || !self.objects.is_intact(&self.object).map_err(fatal)?);
        if is_damaged {
            return Err(io::Error::other(format!("cannot be decrypted: {}", said(finished))));
        }
        let failure = if lacks_key {
            self.opener.locked(name, &self.objects.header(&self.object), Some(finished))
        } else {
            Failure::new(Exit::Failed, format!("cannot open '{name}': {}", finished.message()))
        };
        Err(fatal(failure.into()))
    }
}

fn fatal(error: anyhow::Error) -> io::Error {
    io::Error::other(Fatal(error))
}

impl Read for Decrypting<'_> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(piped) = self.piped.as_mut().filter(|_| !output.is_empty()) else {
                return Ok(0);
            };
            if let Some(source) = self.source.as_mut().filter(|_| self.unsent.is_empty()) {
                match source.read(&mut self.buffer)? {
                    0 => {
                        self.source = None;
                        piped.end_input();
                    }
                    read => self.unsent = 0..read,
                }
            }
            let unsent = self.buffer.get(self.unsent.clone()).unwrap_or_default();
            match piped.step(unsent, output).map_err(|error| fatal(error.into()))? {
                Step::Took(taken) => self.unsent.start += taken,
                Step::Gave(given) => return Ok(given),
                Step::Refused => (self.source, self.unsent) = (None, 0..0),
                Step::Ended => {
                    let finished = self.piped.take().map(Piped::wait).transpose();
                    return match finished.map_err(fatal)? {
                        Some(finished) => self.finish(&finished),
                        None => Ok(0),
                    };
                }
            }
        }
    }
}

/// An object in a temporary file that has no name.
struct Held {
    name: String,
    file: File,
    length: u64,
    /// Why nothing comes behind that.
    fault: Option<String>,
}

/// A range of it.
struct Section {
    file: Arc<Held>,
    place: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let due = self.end.saturating_sub(self.place);
        let there = self.file.length.saturating_sub(self.place);
        if let (0, 1.., Some(fault)) = (there, due, &self.file.fault) {
            return Err(io::Error::other(fault.clone()));
        }
        let length = usize::try_from(due.min(there)).unwrap_or(usize::MAX).min(output.len());
        let Some(output) = output.get_mut(..length) else { return Ok(0) };
        let read = self.file.file.read_at(output, self.place)?;
        self.place += read as u64;
        Ok(read)
    }
}
