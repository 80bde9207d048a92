//! The thread that writes objects: while it hashes and stores, the others read and compress.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use bk_manifest::digest::HashWriter;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::spool::Spool;

use crate::destination::{Created, Destination, Upload};
use crate::encrypt::{Cipher, Encrypting, Method};
use crate::partial::{BEGUN, Begun, Closed, ENTRIES, FOLDER, NAME, Named};
use crate::place;

/// Messages that may wait: what bounds the memory between the threads, at a frame each.
const QUEUE: usize = 8;
/// A list is renewed no more often than this, however short the grace time.
const RENEW_AT_LEAST: Duration = Duration::from_mins(1);

enum Message {
    Open(String, u64, Option<Arc<Cipher>>),
    Bytes(Vec<u8>),
    Close(Spool),
}

/// What the thread is left with: the objects, or why it stopped.
pub type Stored = anyhow::Result<Vec<ObjectRecord>>;

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

    /// Names an object that is about to be put, by its name in the backup's folder.
    ///
    /// # Errors
    /// Those of the destination, as all of these.
    pub fn name(&mut self, object: &str) -> anyhow::Result<()> {
        let named = Named { object: object.to_owned() };
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

    /// The entries of an object that is closed, one a line behind a line for the object.
    ///
    /// # Errors
    /// Those of the destination.
    pub fn closed(&mut self, record: &ObjectRecord, entries: Spool) -> anyhow::Result<()> {
        let number = self.number();
        let name = place::join(&self.folder, &format!("{number:06}{ENTRIES}"));
        let entries = entries.finish()?;
        let mut upload = self.destination.put(&name, entries.bytes() + LINE_LIMIT)?;
        let closed = Closed::of(record);
        let context = || format!("cannot store '{name}'");
        let mut line = serde_json::to_vec(&closed)?;
        line.push(b'\n');
        upload.write_all(&line).with_context(context)?;
        for entry in entries.iter() {
            line.clear();
            entry?.write_canonical(&mut line);
            line.push(b'\n');
            upload.write_all(&line).with_context(context)?;
        }
        upload.commit()?;
        self.pieces.push(name);
        self.renewed = Instant::now();
        Ok(())
    }

    /// Removes the list; the manifest speaks for the objects now.
    pub fn remove(self) -> Vec<crate::destination::Error> {
        self.destination.delete(&self.pieces)
    }

    /// Stores what comes through the queue until its sender is dropped.
    ///
    /// # Errors
    /// Those of the destination; the object that was open then leaves nothing but its name here.
    pub fn run(&mut self, queue: Queue) -> Stored {
        let mut open: Option<OpenObject<'a>> = None;
        let mut stored = Vec::new();
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
                    self.name(&object)?;
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
                        self.closed(&record, entries)?;
                        stored.push(record);
                    }
                }
            }
        }
        Ok(stored)
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
        Err(error.context(cannot_store(&self.object, destination)))
    }

    /// Gives it its name, if the program that encrypted it ended well.
    fn commit(mut self, destination: &dyn Destination) -> anyhow::Result<Closed> {
        if let Some(encrypting) = self.encrypting {
            encrypting
                .finish(&mut self.upload)
                .with_context(|| cannot_store(&self.object, destination))?;
        }
        let (upload, checksum, size) = self.upload.finish();
        upload.commit()?;
        let encryption = self.method.map(|method| method.word().to_owned());
        Ok(Closed { object: self.object, size, checksum, encryption })
    }
}

fn cannot_store(object: &str, destination: &dyn Destination) -> String {
    format!("cannot store '{object}' at '{}'", destination.describe())
}

/// The entries of an object that a push had closed before it died.
pub struct ClosedPiece<'a> {
    lines: BufReader<Box<dyn Read + Send + 'a>>,
    line: Vec<u8>,
    /// The object.
    pub closed: Closed,
}

/// Longest line of a piece, in bytes.
const LINE_LIMIT: u64 = 1 << 20;

impl<'a> ClosedPiece<'a> {
    /// Reads the line for the object.
    ///
    /// # Errors
    /// Those of the destination; a piece that is malformed.
    pub fn open(destination: &'a dyn Destination, piece: &str) -> anyhow::Result<Self> {
        let mut lines = BufReader::new(destination.read(piece, None)?);
        let mut line = Vec::new();
        lines.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line)?;
        Ok(ClosedPiece { lines, closed: serde_json::from_slice(&line)?, line })
    }

    /// The next entry whose content the object holds.
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
            assert_eq!(storing.join().unwrap(), []);
            assert!(is_renewed(), "{:?}", memory.names());
        });
    }
}
