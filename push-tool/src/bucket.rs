//! An application's own bucket, which a backup takes objects from and puts them back into.
//!
//! Unlike a destination it belongs to someone else: its objects change at any time, keys are whatever
//! an application chose, and each has attributes that are kept.

pub mod add;
#[cfg(test)]
pub(crate) mod memory;
pub mod mirror;
mod objects;
mod putting;
mod strangers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read;

use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::path::{escape, plain_text};
use bk_manifest::time::Time;
use serde_json::{Map, Value};

use crate::access::Access;
use crate::destination::{Error, Result, Upload};
use crate::location::Location;
use crate::s3::application::ApplicationBucket;

/// The kind of component that a bucket is.
pub const KIND: &str = "bucket";
/// Headers of an object that are kept; each is a field of the entry, with `_` for `-`.
pub const HEADERS: [&str; 6] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
];
/// The field of an entry that holds what the store calls the state of the object.
const ETAG: &str = "etag";
/// The field of an entry that holds what the application has attached to the object.
const METADATA: &str = "metadata";

/// An object of a bucket, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key, below the prefix that the bucket was opened with.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was stored, by the store's clock.
    pub modified: Time,
    /// What changes with its content, without quotes.
    pub etag: String,
}

/// What an object has beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Those of [`HEADERS`] that it has.
    pub headers: BTreeMap<&'static str, String>,
    /// What the application has attached, by name in lower case.
    pub metadata: BTreeMap<String, String>,
}

/// An object that is being read.
pub struct Content<'a> {
    /// What it is: of one state, whatever is put meanwhile.
    pub listed: Listed,
    /// What it has beside its content.
    pub attributes: Attributes,
    /// Its bytes. They end early only with an error.
    pub bytes: Box<dyn Read + Send + 'a>,
}

/// Objects of a listing, one by one.
pub type Listing<'a> = Box<dyn Iterator<Item = Result<Listed>> + 'a>;

/// A bucket, or what lies below a prefix of one. All calls may come from several threads.
pub trait Bucket: Send + Sync {
    /// How it is called in messages.
    fn describe(&self) -> String;

    /// The backup destination that it lies in, by its name, if there is one that may be looked at.
    fn destination_above(&self) -> anyhow::Result<Option<String>>;

    /// All objects, as a stream, in any order. A change meanwhile may show one twice.
    ///
    /// # Errors
    /// Access denied, no such bucket ([`Exit::NotFound`]).
    fn list(&self) -> Result<Listing<'_>>;

    /// What an object has beside its content, which is not read; `None` if there is no object.
    ///
    /// # Errors
    /// Access denied.
    fn attributes(&self, key: &str) -> Result<Option<Attributes>>;

    /// Begins to read an object; only one with this entity tag, if one is given.
    ///
    /// # Errors
    /// [`crate::destination::ErrorKind::Exists`] if another is there by now.
    fn get(&self, key: &str, etag: Option<&str>) -> Result<Content<'_>>;

    /// Begins to store an object of so many bytes. Committed, it takes the place of one that is there,
    /// all at once; dropped before, it leaves that as it is.
    fn put(&self, key: &str, size: u64, attributes: &Attributes) -> Result<Box<dyn Upload + '_>>;

    /// Removes objects, as many as it can. Returns those that could not be removed.
    fn delete(&self, keys: &[String]) -> Vec<Error>;
}

/// Opens the bucket of a name, reached by the variables that begin with a prefix.
pub type Connect<'a> = &'a dyn Fn(&str, &str) -> anyhow::Result<Box<dyn Bucket>>;

/// Bucket and prefix that a name tells: `s3://BUCKET/PREFIX`.
///
/// # Errors
/// [`Exit::Usage`] for any other.
pub fn parse_name(name: &str) -> anyhow::Result<(String, String)> {
    match Location::parse(name)? {
        Location::S3 { bucket, prefix } => Ok((bucket, prefix)),
        Location::Local(_) | Location::Ssh { .. } | Location::Daemon { .. } => {
            let message = format!("'{}' is no bucket", escape(name.as_bytes()));
            Err(Failure::new(Exit::Usage, message).hint("a bucket is s3://BUCKET/PREFIX").into())
        }
    }
}

/// Opens the bucket of a name.
///
/// # Errors
/// [`Exit::Usage`] for a name that is no bucket's, and for settings that are missing.
pub fn open(name: &str, access: &Access) -> anyhow::Result<Box<dyn Bucket>> {
    let (bucket, prefix) = parse_name(name)?;
    Ok(Box::new(ApplicationBucket::open(&bucket, &prefix, access)?))
}

/// Opens no bucket, for tests of what needs none.
#[cfg(test)]
pub(crate) fn none(name: &str, _: &str) -> anyhow::Result<Box<dyn Bucket>> {
    anyhow::bail!("'{name}' is a bucket")
}

impl Attributes {
    /// Puts them into an entry.
    pub fn record(&self, entry: &mut Entry) {
        for (name, value) in &self.headers {
            entry.extra.insert(field(name), value.as_str().into());
        }
        if !self.metadata.is_empty() {
            let metadata = self.metadata.iter().map(|(key, value)| (key.clone(), json(value)));
            entry.extra.insert(METADATA.into(), Value::Object(metadata.collect()));
        }
    }

    /// Those that an entry records.
    pub fn recorded(entry: &Entry) -> Self {
        let text = |value: Option<&Value>| Some(value?.as_str()?.to_owned());
        let header = |name: &'static str| Some((name, text(entry.extra.get(&field(name)))?));
        let none = Map::new();
        let metadata = entry.extra.get(METADATA).and_then(Value::as_object).unwrap_or(&none);
        let metadata =
            metadata.iter().filter_map(|(key, value)| Some((key.clone(), text(Some(value))?)));
        Attributes {
            headers: HEADERS.into_iter().filter_map(header).collect(),
            metadata: metadata.collect(),
        }
    }

    /// Takes those of an entry away.
    pub fn forget(entry: &mut Entry) {
        for name in HEADERS {
            entry.extra.remove(&field(name));
        }
        entry.extra.remove(METADATA);
    }
}

fn json(text: &str) -> Value {
    text.into()
}

fn field(header: &str) -> String {
    header.replace('-', "_")
}

/// Text of a header as an entry may hold it: no control characters, which no header needs.
pub fn header_text(bytes: &[u8]) -> String {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        // What HTTP meant before it meant nothing.
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    match plain_text(text.as_bytes()) {
        Some(_) => text,
        None => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
    }
}

/// Puts into an entry what an object is. An entity tag that no
/// store should give is none.
pub fn describe(listed: &Listed, entry: &mut Entry) {
    entry.size = Some(listed.size);
    entry.mtime = Some(listed.modified);
    match plain_text(listed.etag.as_bytes()) {
        Some(etag) if !etag.is_empty() => entry.extra.insert(ETAG.into(), etag.into()),
        _ => entry.extra.remove(ETAG),
    };
}

/// The entity tag that an entry records.
pub fn etag(entry: &Entry) -> Option<&str> {
    entry.extra.get(ETAG)?.as_str()
}
