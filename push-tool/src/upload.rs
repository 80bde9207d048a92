//! The thread that writes objects: while it hashes and stores, the others read and compress.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use bk_manifest::digest::HashWriter;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::spool::Spool;

use crate::destination::{Created, Destination, Error, Upload};
use crate::encrypt::{Cipher, Encrypting, Method};
use crate::partial::{
    BEGUN, Begun, Closed, ClosedObject, ClosedPlain, ENTRIES, FOLDER, NAME, Named,
};
use crate::plain::StoredSum;
use crate::{parallel, place};

/// Messages that may wait: what bounds the memory between the threads, at a frame each.
const QUEUE: usize = 8;
/// A list is renewed no more often than this, however short the grace time.
const RENEW_AT_LEAST: Duration = Duration::from_mins(1);

enum Message {
    Open(String, u64, Option<Arc<Cipher>>),
    Bytes(Vec<u8>),
    Close(Spool),
    ClosePlain(Box<Entry>, Sender<StoredSum>),
    Abandon,
    Plain(PlainBatch, Sender<()>),
}

/// Plain files of one component that are stored together.
pub struct PlainBatch {
    /// The component, and how it is encrypted.
    pub closed: ClosedPlain,
    /// The files.
    pub files: Vec<PlainFile>,
}

/// A file as it is to be stored.
pub struct PlainFile {
    /// Its entry, whose `at` names the object.
    pub entry: Entry,
    /// The object, encrypted if it is to be.
    pub bytes: Vec<u8>,
}

/// What the thread has stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The objects that `objects` names one by one.
    pub objects: Vec<ObjectRecord>,
    /// Number of plain files, and their bytes as stored.
    pub plain: (u64, u64),
}

/// The sending side of the thread.
pub struct Uploader {
    sender: SyncSender<Message>,
}

/// The thread has stopped; its own result says why.
#[derive(Debug, thiserror::Error)]
#[error("storing has stopped")]
pub struct StoppedStoring;

impl Uploader {
    /// The two ends of the thread's queue.
    pub fn channel() -> (Self, Queue) {
        let (sender, receiver) = sync_channel(QUEUE);
        (Uploader { sender }, Queue(receiver))
    }

    fn send(&self, message: Message) -> Result<(), StoppedStoring> {
        self.sender.send(message).map_err(|_| StoppedStoring)
    }

    /// Begins an object of about `bound` bytes at most before it is encrypted, by its name in the
    /// backup's folder.
    ///
    /// # Errors
    /// If the thread has stopped, as all of these.
    pub fn open(
        &self,
        object: &str,
        bound: u64,
        cipher: Option<&Arc<Cipher>>,
    ) -> Result<(), StoppedStoring> {
        self.send(Message::Open(object.to_owned(), bound, cipher.cloned()))
    }

    /// Appends to the open object.
    pub fn write(&self, bytes: Vec<u8>) -> Result<(), StoppedStoring> {
        self.send(Message::Bytes(bytes))
    }

    /// Commits the open object; `entries` are those whose content it holds.
    pub fn close(&self, entries: Spool) -> Result<(), StoppedStoring> {
        self.send(Message::Close(entries))
    }

    /// Commits the open object, which is one plain file, and waits for it; what is stored of an
    /// encrypted one is noted in its entry.
    pub fn close_plain(&self, entry: &mut Entry) -> Result<(), StoppedStoring> {
        let (reply, answer) = channel();
        self.send(Message::ClosePlain(Box::new(entry.clone()), reply))?;
        let stored = answer.recv().map_err(|_| StoppedStoring)?;
        note_stored(entry, stored);
        Ok(())
    }

    /// Gives the open object up: nothing of it is left.
    pub fn abandon(&self) -> Result<(), StoppedStoring> {
        self.send(Message::Abandon)
    }

    /// Stores plain files, several at once. What is returned ends when they are stored, or storing
    /// has stopped.
    pub fn plain(&self, batch: PlainBatch) -> Result<Receiver<()>, StoppedStoring> {
        let (reply, answer) = channel();
        self.send(Message::Plain(batch, reply))?;
        Ok(answer)
    }
}

/// The receiving side.
pub struct Queue(Receiver<Message>);

/// A push's partial list at the destination.
pub struct PartialWriter<'a> {
    destination: &'a dyn Destination,
    folder: String,
    backup_folder: String,
    /// The first piece; put again if prune took the list of a push that slept too long.
    begun: Vec<u8>,
    pieces: Vec<String>,
    /// The number of the next piece.
    next: usize,
    renewed: Instant,
    interval: Duration,
}

impl<'a> PartialWriter<'a> {
    /// Begins the list.
    ///
    /// # Errors
    /// Those of the destination; a list of that id that is there already.
    pub fn begin(
        destination: &'a dyn Destination,
        begun: &Begun,
        grace: Duration,
    ) -> anyhow::Result<Self> {
        let mut list = PartialWriter::new(destination, begun, grace)?;
        let text = list.begun.clone();
        list.piece(BEGUN, &text)?;
        Ok(list)
    }

    /// Begins the list, or goes on with that of an earlier run of the same step.
    ///
    /// # Errors
    /// Those of the destination.
    pub fn resume(
        destination: &'a dyn Destination,
        begun: &Begun,
        grace: Duration,
    ) -> anyhow::Result<Self> {
        let mut list = PartialWriter::new(destination, begun, grace)?;
        let numbers = |name: &str| {
            let piece = name.rsplit('/').next().unwrap_or(name);
            piece.split(['-', '.']).filter_map(|part| part.parse::<usize>().ok()).max()
        };
        for object in destination.list(&list.folder)? {
            let name = object?.name;
            list.next = list.next.max(numbers(&name).map_or(0, |number| number + 1));
            list.pieces.push(name);
        }
        if destination.create(&place::join(&list.folder, BEGUN), &list.begun)? == Created::New {
            list.pieces.push(place::join(&list.folder, BEGUN));
        } else {
            // Prune leaves alone what a list names that is alive.
            list.put_renewal()?;
        }
        Ok(list)
    }

    fn new(
        destination: &'a dyn Destination,
        begun: &Begun,
        grace: Duration,
    ) -> anyhow::Result<Self> {
        Ok(PartialWriter {
            destination,
            folder: format!("{FOLDER}/{}", begun.id),
            backup_folder: begun.folder.clone(),
            begun: serde_json::to_vec(begun)?,
            pieces: Vec::new(),
            next: 1,
            renewed: Instant::now(),
            interval: (grace / 4).max(RENEW_AT_LEAST),
        })
    }

    fn number(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    fn piece(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let name = place::join(&self.folder, name);
        if self.destination.create(&name, bytes)? == Created::Taken {
            let message = format!("'{name}' is there already: this manifest was pushed before");
            return Err(Failure::new(Exit::Failed, message)
                .hint("begin again with bk-manifest new; what that push stored is used")
                .into());
        }
        self.pieces.push(name);
        self.renewed = Instant::now();
        Ok(())
    }

    /// Names objects that are about to be put, by their names in the backup's folder.
    ///
    /// # Errors
    /// Those of the destination, as all of these.
    pub fn name(&mut self, objects: Vec<String>) -> anyhow::Result<()> {
        let named = Named { objects };
        let piece = format!("{:06}{NAME}", self.number());
        self.piece(&piece, &serde_json::to_vec(&named)?)
    }

    /// Renews the list if that is due.
    ///
    /// # Errors
    /// Those of the destination.
    pub fn renew(&mut self) -> anyhow::Result<()> {
        if self.renewed.elapsed() < self.interval {
            return Ok(());
        }
        self.destination.create(&place::join(&self.folder, BEGUN), &self.begun)?;
        self.put_renewal()
    }

    fn put_renewal(&mut self) -> anyhow::Result<()> {
        let number = self.number();
        self.piece(&format!("renewed-{number:06}"), b"")
    }

    /// The entries of what is closed, one a line behind a line for where they lie.
    ///
    /// # Errors
    /// Those of the destination.
    pub fn closed(&mut self, closed: &Closed, entries: Spool) -> anyhow::Result<()> {
        let number = self.number();
        let name = place::join(&self.folder, &format!("{number:06}{ENTRIES}"));
        let entries = entries.finish()?;
        let mut upload = self.destination.put(&name, entries.bytes() + LINE_LIMIT)?;
        let named = |error| Error::name_once(error, || format!("cannot store '{name}'"));
        let mut line = serde_json::to_vec(closed)?;
        line.push(b'\n');
        upload.write_all(&line).map_err(named)?;
        for entry in entries.iter() {
            line.clear();
            entry?.write_canonical(&mut line);
            line.push(b'\n');
            upload.write_all(&line).map_err(named)?;
        }
        upload.commit()?;
        self.pieces.push(name);
        self.renewed = Instant::now();
        Ok(())
    }

    /// Removes the list; the manifest speaks for the objects now.
    pub fn remove(self) -> Vec<Error> {
        self.destination.delete(&self.pieces)
    }

    /// Stores what comes through the queue until its sender is dropped.
    ///
    /// # Errors
    /// Those of the destination; the object that was open then leaves nothing but its name here.
    pub fn run(&mut self, queue: Queue) -> anyhow::Result<Stored> {
        let mut open: Option<OpenObject<'a>> = None;
        let mut stored = Stored::default();
        let Queue(receiver) = queue;
        loop {
            // Nothing may come for hours, while a dump is written before us.
            let due = self.interval.saturating_sub(self.renewed.elapsed());
            let message = match receiver.recv_timeout(due) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    self.renew()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            match message {
                Message::Open(object, bound, cipher) => {
                    self.name(vec![object.clone()])?;
                    open = Some(self.begin_object(object, bound, cipher.as_deref())?);
                }
                Message::Bytes(bytes) => {
                    if let Some(object) = open.take() {
                        open = Some(object.write(&bytes, self.destination)?);
                    }
                    self.renew()?;
                }
                Message::Close(entries) => {
                    if let Some(object) = open.take() {
                        let record = object.commit(self.destination)?.record();
                        self.closed(&Closed::Object(ClosedObject::of(&record)), entries)?;
                        stored.objects.push(record);
                    }
                }
                Message::ClosePlain(mut entry, reply) => {
                    if let Some(object) = open.take() {
                        let object = object.commit(self.destination)?;
                        let sum = StoredSum { checksum: object.checksum, size: object.size };
                        note_stored(&mut entry, sum);
                        let closed = ClosedPlain {
                            component: entry.component().to_owned(),
                            encryption: object.encryption,
                        };
                        self.closed_plain(closed, std::iter::once(&*entry))?;
                        stored.plain.0 += 1;
                        stored.plain.1 += sum.size;
                        // Who asked may have been stopped.
                        let _ = reply.send(sum);
                    }
                }
                Message::Abandon => open = None,
                Message::Plain(batch, _reply) => {
                    stored.plain.0 += batch.files.len() as u64;
                    stored.plain.1 += batch.files.iter().map(|f| f.bytes.len() as u64).sum::<u64>();
                    self.put_plain(batch)?;
                }
            }
        }
        Ok(stored)
    }

    /// Stores plain files: their names first, then as many at once as the destination likes, then
    /// their entries.
    fn put_plain(&mut self, batch: PlainBatch) -> anyhow::Result<()> {
        let PlainBatch { closed, files } = batch;
        self.name(
            files.iter().filter_map(|file| Some(file.entry.at.as_ref()?.object.clone())).collect(),
        )?;
        let destination = self.destination;
        let put = |file: &PlainFile| -> anyhow::Result<()> {
            bk_manifest::signal::check()?;
            let at = file.entry.at.as_ref().context("a plain file without a name")?;
            let name = place::join(&self.backup_folder, &at.object);
            let mut upload = destination.put(&name, file.bytes.len() as u64)?;
            upload.write_all(&file.bytes).map_err(|error| {
                Error::name_once(error, || cannot_store(&at.object, destination))
            })?;
            Ok(upload.commit()?)
        };
        parallel::map(destination.at_once(), files.iter().collect(), put)
            .into_iter()
            .collect::<anyhow::Result<()>>()?;
        self.closed_plain(closed, files.iter().map(|file| &file.entry))
    }

    fn closed_plain<'e>(
        &mut self,
        closed: ClosedPlain,
        entries: impl Iterator<Item = &'e Entry>,
    ) -> anyhow::Result<()> {
        let mut spool = Spool::new()?;
        for entry in entries {
            spool.push(entry)?;
        }
        self.closed(&Closed::Plain(closed), spool)
    }

    fn begin_object(
        &self,
        object: String,
        bound: u64,
        cipher: Option<&Cipher>,
    ) -> anyhow::Result<OpenObject<'a>> {
        let encrypting = cipher.map(Cipher::begin).transpose()?;
        let bound = if cipher.is_some() { Cipher::bound(bound) } else { bound };
        let upload = self.destination.put(&place::join(&self.backup_folder, &object), bound)?;
        let method = cipher.map(|cipher| cipher.method);
        Ok(OpenObject { object, upload: HashWriter::new(upload), encrypting, method })
    }
}

/// An object that is being stored: hashed as it is stored, encrypted before.
struct OpenObject<'a> {
    object: String,
    upload: HashWriter<Box<dyn Upload + 'a>>,
    encrypting: Option<Encrypting>,
    method: Option<Method>,
}

impl OpenObject<'_> {
    fn write(mut self, bytes: &[u8], destination: &dyn Destination) -> anyhow::Result<Self> {
        let written = match &mut self.encrypting {
            None => self.upload.write_all(bytes).map_err(anyhow::Error::from),
            Some(encrypting) => encrypting.write(bytes, &mut self.upload),
        };
        let Err(error) = written else { return Ok(self) };
        let error = match self.encrypting {
            None => error,
            Some(encrypting) => encrypting.explain(error),
        };
        Err(Error::name_once(error, || cannot_store(&self.object, destination)))
    }

    /// Gives it its name, if the program that encrypted it ended well.
    fn commit(mut self, destination: &dyn Destination) -> anyhow::Result<ClosedObject> {
        if let Some(encrypting) = self.encrypting {
            encrypting.finish(&mut self.upload).map_err(|error| {
                Error::name_once(error, || cannot_store(&self.object, destination))
            })?;
        }
        let (upload, checksum, size) = self.upload.finish();
        upload.commit()?;
        let encryption = self.method.map(|method| method.word().to_owned());
        Ok(ClosedObject { object: self.object, size, checksum, encryption })
    }
}

/// Puts into the entry of a plain file what is stored of it, where that is not its content.
fn note_stored(entry: &mut Entry, stored: StoredSum) {
    let is_content = entry.checksum == Some(stored.checksum) && entry.size == Some(stored.size);
    if let Some(at) = entry.at.as_mut().filter(|_| !is_content) {
        stored.record(at);
    }
}

fn cannot_store(object: &str, destination: &dyn Destination) -> String {
    format!("cannot store '{object}' at '{}'", destination.describe())
}

/// The entries of what a push had closed before it died.
pub struct ClosedPiece<'a> {
    lines: BufReader<Box<dyn Read + Send + 'a>>,
    line: Vec<u8>,
    /// Where their content lies.
    pub closed: Closed,
}

/// Longest line of a piece, in bytes.
const LINE_LIMIT: u64 = 1 << 20;

impl<'a> ClosedPiece<'a> {
    /// Reads the first line.
    ///
    /// # Errors
    /// Those of the destination; a piece that is malformed.
    pub fn open(destination: &'a dyn Destination, piece: &str) -> anyhow::Result<Self> {
        let mut lines = BufReader::new(destination.read(piece, None)?);
        let mut line = Vec::new();
        lines.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line)?;
        Ok(ClosedPiece { lines, closed: serde_json::from_slice(&line)?, line })
    }

    /// The next entry whose content was stored.
    ///
    /// # Errors
    /// As [`ClosedPiece::open`].
    pub fn next_entry(&mut self) -> anyhow::Result<Option<Entry>> {
        self.line.clear();
        let read = self.lines.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut self.line)?;
        Ok(if read == 0 { None } else { Some(serde_json::from_slice(&self.line)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn a_push_that_waits_renews_its_list() {
        let memory = Memory::new("2026-05-01T00:00:00Z");
        let begun = Begun {
            id: "b0".into(),
            series: "app".into(),
            folder: "2026/05/01/b0".into(),
            host: "vm1".into(),
        };
        let mut list = PartialWriter::begin(&memory, &begun, Duration::ZERO).unwrap();
        list.interval = Duration::from_millis(10);
        let (uploader, queue) = Uploader::channel();
        std::thread::scope(|scope| {
            let storing = scope.spawn(move || list.run(queue).unwrap());
            let since = Instant::now();
            let is_renewed = || memory.names().iter().any(|name| name.contains("/renewed-"));
            while !is_renewed() && since.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            drop(uploader);
            assert_eq!(storing.join().unwrap(), Stored::default());
            assert!(is_renewed(), "{:?}", memory.names());
        });
    }

    #[test]
    fn an_object_that_cannot_be_stored_is_named_once() {
        use crate::testing::server::{Accident, Kind, Server};
        let server = Server::start();
        let s3 = crate::s3::S3::open(server.bucket_name(), "", &server.access(&[])).unwrap();
        let begun = Begun {
            id: "b0".into(),
            series: "app".into(),
            folder: "2026/05/01/b0".into(),
            host: "vm1".into(),
        };
        let list = PartialWriter::begin(&s3, &begun, Duration::ZERO).unwrap();
        server.before(Kind::Part, 1, Accident::Lie(Box::new(|reply| reply.headers.clear())));
        let object = list.begin_object("files/1".into(), 1, None).unwrap();
        let error = object.write(&vec![0; 40 << 20], &s3).err().unwrap();
        let text = format!("{error:#}");
        assert_eq!(text.matches("cannot store").count(), 1, "{text}");
        assert!(text.contains("/files/1'") && text.contains("ETag"), "{text}");
    }
}
