//! A bucket as an application has it: keys of any kind, attributes, and objects that are replaced.

use std::io::{self, Read};

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::path::RelPath;
use reqwest::Method;
use reqwest::header::HeaderMap;

use super::answer;
use super::client::{Request, date};
use super::download::Download;
use super::fault::Fault;
use super::upload::{Headers, S3Upload};
use super::{S3, listing, removal};
use crate::access::Access;
use crate::bucket::{Attributes, Bucket, Content, HEADERS, Listed, Listing, header_text};
use crate::destination::{Error, ErrorKind, Result, Upload};

/// What the names of headers begin with that an application chose.
const METADATA: &str = "x-amz-meta-";

/// An application's bucket at a store that speaks S3.
pub struct ApplicationBucket(S3);

impl ApplicationBucket {
    /// The objects below a prefix of a bucket; nothing is asked of it yet.
    ///
    /// # Errors
    /// As [`S3::open`].
    pub fn open(bucket: &str, prefix: &str, access: &Access) -> anyhow::Result<Self> {
        Ok(ApplicationBucket(S3::open(bucket, prefix, access)?))
    }

    /// The whole key of an object, or of what stands for a folder.
    ///
    /// No other key is ever sent: in an address `a/../b` would be another object.
    fn key(&self, below: &str) -> std::result::Result<String, Fault> {
        RelPath::new(below.strip_suffix('/').unwrap_or(below))
            .map_err(|error| Fault::Local(error.to_string()))?;
        Ok(self.0.key_prefix("") + below)
    }

    fn error(&self, verb: &'static str, key: &str, fault: Fault) -> Error {
        of_a_source(self.0.error(verb, key, fault))
    }

    fn begin(&self, key: &str, etag: Option<&str>) -> std::result::Result<Content<'_>, Fault> {
        let whole = self.key(key)?;
        let mut request = Request::new(Method::GET, &whole);
        if let Some(etag) = etag.filter(|etag| !etag.is_empty()) {
            request = request.header("if-match", format!("\"{etag}\""));
        }
        let response = self.0.client.open(&request)?;
        let headers = response.headers().clone();
        let download = Download::of(&self.0, key, whole, response)?;
        let (size, modified) = download
            .left()
            .zip(date(&headers, "last-modified"))
            .ok_or_else(|| Fault::Odd("an object has no size or time".into()))?;
        let etag = headers.get("etag").map(|etag| header_text(etag.as_bytes()));
        let etag = etag.as_deref().map(unquoted).unwrap_or_default();
        let listed = Listed { key: key.to_owned(), size, modified, etag };
        let attributes = attributes(&headers);
        Ok(Content { listed, attributes, bytes: Box::new(OneState(download)) })
    }
}

impl Bucket for ApplicationBucket {
    fn describe(&self) -> String {
        self.0.place.clone()
    }

    fn destination_above(&self) -> anyhow::Result<Option<String>> {
        self.0.destination_above().map_err(|error| match error.downcast() {
            Ok(error) => of_a_source(error).into(),
            Err(error) => error,
        })
    }

    fn attributes(&self, key: &str) -> Result<Option<Attributes>> {
        let head = self.key(key).and_then(|whole| self.0.head(&whole));
        let head = head.map_err(|fault| self.error("look at", key, fault))?;
        Ok(head.map(|head| attributes(&head.headers)))
    }

    fn list(&self) -> Result<Listing<'_>> {
        let objects = listing::Objects::begin(&self.0, "", listed).map_err(of_a_source)?;
        Ok(Box::new(objects.map(|object| object.map_err(of_a_source))))
    }

    fn get(&self, key: &str, etag: Option<&str>) -> Result<Content<'_>> {
        self.begin(key, etag).map_err(|fault| self.error("read", key, fault))
    }

    fn put(&self, key: &str, size: u64, attributes: &Attributes) -> Result<Box<dyn Upload + '_>> {
        let whole = self.key(key).map_err(|fault| self.error("store", key, fault))?;
        Ok(Box::new(S3Upload::over(&self.0, key, whole, size, headers(attributes))))
    }

    fn delete(&self, keys: &[String]) -> Vec<Error> {
        removal::delete(&self.0, keys, |key| self.key(key))
    }
}

/// A bucket that is not there is no destination that is not there.
fn of_a_source(mut error: Error) -> Error {
    if let Some(failure) = error.source.downcast_mut::<Failure>()
        && failure.exit == Exit::NoDestination
    {
        failure.exit = Exit::NotFound;
    }
    error
}

/// An object of a listing. A key that is no text cannot be asked for; it is told by what no key holds.
fn listed(s3: &S3, key: Option<String>, listed: &answer::Listed) -> Option<Listed> {
    let key = match key {
        Some(key) => key.strip_prefix(&s3.key_prefix(""))?.to_owned(),
        None => format!("\0{}", listed.key),
    };
    // What stands for the prefix itself, as a folder.
    let is_root = key.is_empty() && listed.size == 0;
    let etag = listed.etag.as_deref().map(unquoted).unwrap_or_default();
    (!is_root).then_some(Listed { key, size: listed.size, modified: listed.last_modified, etag })
}

/// An entity tag as it is recorded.
fn unquoted(etag: &str) -> String {
    etag.trim().trim_matches('"').to_owned()
}

fn attributes(headers: &HeaderMap) -> Attributes {
    let mut attributes = Attributes::default();
    for name in HEADERS {
        if let Some(value) = headers.get(name) {
            attributes.headers.insert(name, header_text(value.as_bytes()));
        }
    }
    for (name, value) in headers {
        if let Some(name) = name.as_str().strip_prefix(METADATA) {
            attributes.metadata.insert(name.to_owned(), header_text(value.as_bytes()));
        }
    }
    attributes
}

fn headers(attributes: &Attributes) -> Headers {
    let own = attributes.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let metadata = &attributes.metadata;
    let metadata =
        metadata.iter().map(|(name, value)| (format!("{METADATA}{name}"), value.clone()));
    own.chain(metadata).collect()
}

/// Reads one state of an object to its end.
struct OneState<'a>(Download<'a>);

impl Read for OneState<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
            match cause.map(|cause| cause.kind) {
                Some(ErrorKind::Exists | ErrorKind::NotFound) => {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "it was replaced meanwhile")
                }
                _ => error,
            }
        })
    }
}
