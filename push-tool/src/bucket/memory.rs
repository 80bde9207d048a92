//! A bucket in memory whose objects change, vanish and are refused at will.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bk_manifest::digest::Digest;
use bk_manifest::time::Time;

use super::{Attributes, Bucket, Content, Listed, Listing};
use crate::destination::{Error, ErrorKind, Result, Upload, cause};

/// A bucket in memory; its clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct MemoryBucket(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    gets: AtomicU64,
    puts: AtomicU64,
}

/// What happens to a bucket behind the back of who reads it.
pub(crate) type Accident = Box<dyn FnOnce(&mut Objects) + Send>;

/// Objects by key.
pub(crate) type Objects = BTreeMap<String, Object>;

#[derive(Default)]
struct State {
    objects: Objects,
    /// What a listing shows beside what is there.
    listed_too: Vec<Listed>,
    refused: BTreeMap<String, ErrorKind>,
    /// No request is answered any more.
    is_gone: bool,
    /// So many objects may be asked for; then the keys are revoked.
    valid_for: Option<u64>,
    /// The backup destination that it lies in.
    destination_above: Option<String>,
    /// What happens after some of an object's bytes were read.
    accidents: Vec<(String, Accident)>,
}

/// An object, and what it was listed as.
#[derive(Clone)]
pub(crate) struct Object {
    pub(crate) bytes: Vec<u8>,
    pub(crate) modified: Time,
    pub(crate) etag: String,
    pub(crate) attributes: Attributes,
}

impl Object {
    pub(crate) fn new(bytes: &[u8], second: i64) -> Self {
        Object {
            bytes: bytes.to_vec(),
            modified: Time::from_unix(1_770_000_000 + second, 123_000_000),
            etag: Digest::of(bytes).to_string()[7..39].to_owned(),
            attributes: Attributes::default(),
        }
    }

    pub(crate) fn with_type(mut self, content_type: &str) -> Self {
        self.attributes.headers.insert("content-type", content_type.to_owned());
        self
    }

    pub(crate) fn with_metadata(mut self, key: &str, value: &str) -> Self {
        self.attributes.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    fn listed(&self, key: &str) -> Listed {
        Listed {
            key: key.to_owned(),
            size: self.bytes.len() as u64,
            modified: self.modified,
            etag: self.etag.clone(),
        }
    }
}

impl MemoryBucket {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub(crate) fn store(&self, key: &str, object: Object) {
        self.state().objects.insert(key.to_owned(), object);
    }

    pub(crate) fn remove(&self, key: &str) {
        self.state().objects.remove(key).unwrap();
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub(crate) fn object(&self, key: &str) -> Option<Object> {
        self.state().objects.get(key).cloned()
    }

    /// Has a listing show something that is not so.
    pub(crate) fn also_list(&self, key: &str, object: &Object) {
        self.state().listed_too.push(object.listed(key));
    }

    /// Has it lie in a backup destination.
    pub(crate) fn lie_in(&self, destination: &str) {
        self.state().destination_above = Some(destination.to_owned());
    }

    pub(crate) fn deny(&self, key: &str) {
        self.refuse(key, ErrorKind::Denied);
    }

    pub(crate) fn refuse(&self, key: &str, kind: ErrorKind) {
        self.state().refused.insert(key.to_owned(), kind);
    }

    pub(crate) fn vanish(&self) {
        self.state().is_gone = true;
    }

    /// Has the keys revoked once so many objects were asked for.
    pub(crate) fn revoke_after(&self, gets: u64) {
        self.state().valid_for = Some(gets);
    }

    /// Has something happen once the first byte of an object was read.
    pub(crate) fn while_reading(&self, key: &str, accident: Accident) {
        self.state().accidents.push((key.to_owned(), accident));
    }

    /// How many objects were asked for.
    pub(crate) fn gets(&self) -> u64 {
        self.0.gets.load(Ordering::SeqCst)
    }

    /// How many objects were put.
    pub(crate) fn puts(&self) -> u64 {
        self.0.puts.load(Ordering::SeqCst)
    }

    fn error(verb: &'static str, key: &str, kind: ErrorKind) -> Error {
        let source = cause(kind, io::Error::other(format!("{kind:?}")));
        Error { kind, verb, name: key.to_owned(), place: "memory".into(), source }
    }

    fn check(&self, verb: &'static str, key: &str) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.is_gone {
            return Err(Self::error(verb, key, ErrorKind::Transient));
        }
        if state.valid_for.is_some_and(|gets| self.gets() > gets) {
            return Err(Self::error(verb, key, ErrorKind::Denied));
        }
        if let Some(kind) = state.refused.get(key) {
            return Err(Self::error(verb, key, *kind));
        }
        Ok(state)
    }
}

impl Bucket for MemoryBucket {
    fn describe(&self) -> String {
        "s3://memory".into()
    }

    fn destination_above(&self) -> anyhow::Result<Option<String>> {
        Ok(self.state().destination_above.clone())
    }

    fn list(&self) -> Result<Listing<'_>> {
        let state = self.check("list", "")?;
        let objects = state.objects.iter().map(|(key, object)| object.listed(key));
        let all: Vec<_> = objects.chain(state.listed_too.iter().cloned()).map(Ok).collect();
        Ok(Box::new(all.into_iter()))
    }

    fn attributes(&self, key: &str) -> Result<Option<Attributes>> {
        let state = match self.check("look at", key) {
            // It may be looked at.
            Err(error) if error.kind == ErrorKind::Archived => self.state(),
            state => state?,
        };
        Ok(state.objects.get(key).map(|object| object.attributes.clone()))
    }

    fn get(&self, key: &str, etag: Option<&str>) -> Result<Content<'_>> {
        self.0.gets.fetch_add(1, Ordering::SeqCst);
        let state = self.check("read", key)?;
        let object = state.objects.get(key).cloned();
        let object = object.ok_or_else(|| Self::error("read", key, ErrorKind::NotFound))?;
        if etag.is_some_and(|etag| etag != object.etag) {
            return Err(Self::error("read", key, ErrorKind::Exists));
        }
        // A store tells the time of one object in whole seconds.
        let mut listed = object.listed(key);
        listed.modified = Time::from_unix(object.modified.unix().0, 0);
        let bytes =
            Reading { bucket: self, listed: listed.clone(), bytes: Cursor::new(object.bytes) };
        Ok(Content { listed, attributes: object.attributes, bytes: Box::new(bytes) })
    }

    fn put(&self, key: &str, _: u64, attributes: &Attributes) -> Result<Box<dyn Upload + '_>> {
        drop(self.check("store", key)?);
        let (key, attributes) = (key.to_owned(), attributes.clone());
        Ok(Box::new(Storing { bucket: self, key, attributes, bytes: Vec::new() }))
    }

    fn delete(&self, keys: &[String]) -> Vec<Error> {
        let remove = |key: &String| match self.check("remove", key) {
            Ok(mut state) => {
                state.objects.remove(key);
                None
            }
            Err(error) => Some(error),
        };
        keys.iter().filter_map(remove).collect()
    }
}

/// An object being put.
struct Storing<'a> {
    bucket: &'a MemoryBucket,
    key: String,
    attributes: Attributes,
    bytes: Vec<u8>,
}

impl Write for Storing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for Storing<'_> {
    fn commit(self: Box<Self>) -> Result<()> {
        let mut state = self.bucket.check("store", &self.key)?;
        self.bucket.0.puts.fetch_add(1, Ordering::SeqCst);
        let object = Object { attributes: self.attributes, ..Object::new(&self.bytes, 1000) };
        state.objects.insert(self.key, object);
        Ok(())
    }
}

/// An object being read in small pieces, each asked for anew by its state.
struct Reading<'a> {
    bucket: &'a MemoryBucket,
    listed: Listed,
    bytes: Cursor<Vec<u8>>,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let key = &self.listed.key;
        let mut state =
            self.bucket.check("read", key).map_err(|error| io::Error::other(error.to_string()))?;
        let etag = state.objects.get(key).map(|object| &object.etag);
        if self.bytes.position() > 0 && etag != Some(&self.listed.etag) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "another object by now"));
        }
        let piece = buffer.len().min(1 << 16).min(1 + self.bytes.get_ref().len() / 2);
        let read = self.bytes.read(&mut buffer[..piece])?;
        if let Some(place) = state.accidents.iter().position(|(name, _)| name == key) {
            let (_, accident) = state.accidents.remove(place);
            accident(&mut state.objects);
        }
        Ok(read)
    }
}
