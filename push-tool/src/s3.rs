//! A bucket as destination, or a prefix in one, at any store that speaks S3.
//!
//! All requests are made here, signed and sent by `client` in the thread that calls; nothing that
//! is asynchronous is seen outside `transport`.

mod answer;
pub mod application;
mod authorities;
mod client;
mod download;
mod fault;
mod listing;
mod probe;
mod removal;
mod rules;
mod settings;
#[cfg(test)]
mod tests;
mod transport;
mod upload;

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::path::RelPath;
use bk_manifest::time::Time;
use reqwest::Method;

use crate::access::Access;
use crate::borders::is_marker;
use crate::destination::{
    Change, Created, Destination, Error, ErrorKind, Listing, ObjectInfo, Result, Upload,
};
use crate::place::{MARKER, join, parent};
use client::{Client, Request, date};
use fault::Fault;
use probe::Abilities;
use settings::Settings;

/// What an object carries that tells who put it: an answer that was lost is so made up for.
const TOKEN: &str = "x-amz-meta-bk-put";

/// A destination in a bucket.
pub struct S3 {
    client: Arc<Client>,
    prefix: String,
    place: String,
    abilities: OnceLock<Abilities>,
    /// Held while abilities are found out, and while an object is created that the store would let
    /// others create too.
    one: Mutex<()>,
}

/// Who put the object of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Us,
    Other,
}

impl S3 {
    /// The destination below a prefix of a bucket; nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Exit::Denied`] without keys,
    /// [`Exit::Usage`] for variables that are malformed.
    pub fn open(bucket: &str, prefix: &str, access: &Access) -> anyhow::Result<Self> {
        let client = Client::new(Settings::read(bucket, access)?)?;
        Ok(S3::at(Arc::new(client), &format!("s3://{bucket}"), prefix))
    }

    fn at(client: Arc<Client>, bucket: &str, prefix: &str) -> Self {
        S3 {
            client,
            prefix: prefix.to_owned(),
            place: join(bucket, prefix).trim_end_matches('/').to_owned(),
            abilities: OnceLock::new(),
            one: Mutex::new(()),
        }
    }

    /// The key of an object.
    fn key(&self, name: &str) -> std::result::Result<String, Fault> {
        RelPath::new(name).map_err(|error| Fault::Local(error.to_string()))?;
        Ok(join(&self.prefix, name))
    }

    /// What all keys below a folder begin with.
    fn key_prefix(&self, folder: &str) -> String {
        let path = match folder {
            "" => self.prefix.clone(),
            folder => join(&self.prefix, folder),
        };
        if path.is_empty() { path } else { path + "/" }
    }

    /// The name of the object with a key; `None` if it cannot be one of ours.
    fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        let name = key.strip_prefix(&self.key_prefix(""))?;
        RelPath::new(name).is_ok().then_some(name)
    }

    fn error(&self, verb: &'static str, name: &str, fault: Fault) -> Error {
        fault.error(verb, name, &self.place, &self.client.settings.names)
    }

    /// What the store can do; it is found out once.
    fn abilities(&self) -> std::result::Result<Abilities, Fault> {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(abilities) = self.abilities.get() {
            return Ok(*abilities);
        }
        let abilities = probe::probe(self)?;
        Ok(*self.abilities.get_or_init(|| abilities))
    }

    /// An object's head; `None` if there is none of that name.
    fn head(&self, key: &str) -> std::result::Result<Option<client::Answer>, Fault> {
        match self.client.send(&Request::new(Method::HEAD, key)) {
            Ok(answer) => Ok(Some(answer)),
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(None),
            // An answer to HEAD has no words.
            Err(Fault::Refused { .. }) => {
                let why = Request::new(Method::GET, key).header("range", "bytes=0-0");
                match self.client.send(&why) {
                    Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(None),
                    Err(fault) => Err(fault),
                    Ok(_) => Err(Fault::Odd("it can be read but not looked at".into())),
                }
            }
            Err(fault) => Err(fault),
        }
    }

    /// The backup destination that this place lies in, by its name: at the bucket, or at a prefix of ours.
    ///
    /// Keys that may not look there learn nothing: they are bound to our prefix.
    ///
    /// # Errors
    /// Those of the store.
    pub fn destination_above(&self) -> anyhow::Result<Option<String>> {
        let bucket = self.place.strip_suffix(&self.prefix).unwrap_or(&self.place);
        let mut above = self.prefix.as_str();
        while !above.is_empty() {
            above = parent(above);
            let there = S3::at(Arc::clone(&self.client), bucket.trim_end_matches('/'), above);
            match is_marker(&there, MARKER) {
                Ok(true) => return Ok(Some(there.place)),
                Ok(false) => {}
                Err(error) if Error::among(error.as_ref()).is_some_and(Error::is_withheld) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Who put the object of a name, by the token it carries.
    fn owner(&self, key: &str, token: &str) -> std::result::Result<Owner, Fault> {
        Ok(match self.head(key)? {
            None => Owner::Nobody,
            Some(head) if head.header(TOKEN) == Some(token) => Owner::Us,
            Some(_) => Owner::Other,
        })
    }

    /// Puts an object with one request, unless its name is taken.
    fn put_whole(&self, key: &str, bytes: Vec<u8>) -> std::result::Result<Created, Fault> {
        let token = random()?;
        let request = Request::new(Method::PUT, key).header(TOKEN, token.clone()).body(bytes);
        if !self.abilities()?.has_create_only {
            return self.put_unless_there(key, &token, &request);
        }
        let request = request.header("if-none-match", "*");
        let mut tries = 0;
        loop {
            let Err(fault) = self.client.tell(&request) else { return Ok(Created::New) };
            let is_unsure = matches!(fault.kind(), ErrorKind::Exists | ErrorKind::Transient)
                || matches!(fault, Fault::Odd(_));
            if !is_unsure {
                return Err(fault);
            }
            // Our own first try may have been stored, and its answer lost.
            match self.owner(key, &token) {
                Ok(Owner::Us) => return Ok(Created::New),
                Ok(Owner::Other) => return Ok(Created::Taken),
                // Two at once, and the store let neither: as it says, one tries again.
                Ok(Owner::Nobody) if fault.kind() == ErrorKind::Exists => {
                    if tries == self.client.settings.retries {
                        return Err(fault);
                    }
                    tries += 1;
                    self.client.pause(self.client.settings.delay)?;
                }
                Ok(Owner::Nobody) | Err(_) => return Err(fault),
            }
        }
    }

    /// The same at a store that does not heed the condition: safe among the threads of this process.
    fn put_unless_there(
        &self,
        key: &str,
        token: &str,
        request: &Request,
    ) -> std::result::Result<Created, Fault> {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        if self.owner(key, token)? != Owner::Nobody {
            return Ok(Created::Taken);
        }
        let sent = self.client.send(request);
        match (sent, self.owner(key, token)) {
            (_, Ok(Owner::Us)) => Ok(Created::New),
            (Ok(_), Ok(_)) => Ok(Created::Taken),
            (Ok(_), Err(fault)) | (Err(fault), _) => Err(fault),
        }
    }
}

impl Destination for S3 {
    fn describe(&self) -> String {
        self.place.clone()
    }

    fn list(&self, folder: &str) -> Result<Listing<'_>> {
        if !folder.is_empty() {
            self.key(folder).map_err(|fault| self.error("list", folder, fault))?;
        }
        Ok(Box::new(listing::Objects::begin(self, folder, listing::info)?))
    }

    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
        let stat = || -> std::result::Result<Option<ObjectInfo>, Fault> {
            let Some(head) = self.head(&self.key(name)?)? else { return Ok(None) };
            let size = head.header("content-length").and_then(|size| size.parse().ok());
            let modified = date(&head.headers, "last-modified");
            let (size, modified) = size
                .zip(modified)
                .ok_or_else(|| Fault::Odd("an object has no size or time".into()))?;
            Ok(Some(ObjectInfo { name: name.to_owned(), size, modified }))
        };
        stat().map_err(|fault| self.error("look at", name, fault))
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
        download::Download::open(self, name, range).map_err(|fault| self.error("read", name, fault))
    }

    fn put(&self, name: &str, bound: u64) -> Result<Box<dyn Upload + '_>> {
        let upload = upload::S3Upload::new(self, name, bound);
        Ok(Box::new(upload.map_err(|fault| self.error("store", name, fault))?))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        self.key(name)
            .and_then(|key| self.put_whole(&key, bytes.to_vec()))
            .map_err(|fault| self.error("store", name, fault))
    }

    fn delete(&self, names: &[String]) -> Vec<Error> {
        removal::delete(self, names, |name| self.key(name))
    }

    fn now(&self) -> Result<Time> {
        let now = || -> std::result::Result<Time, Fault> {
            let offset = match self.abilities() {
                // Who may only read believes what answers say.
                Err(fault) if fault.kind() == ErrorKind::Denied => 0,
                abilities => abilities?.clock_offset,
            };
            let request = Request::new(Method::GET, "")
                .query("list-type", "2")
                .query("max-keys", "1")
                .query("prefix", self.key_prefix(""));
            let answer = self.client.send(&request)?;
            let time =
                date(&answer.headers, "date").ok_or_else(|| Fault::Odd("it has no date".into()))?;
            Ok(Time::from_unix(time.unix().0.saturating_add(offset), 0))
        };
        now().map_err(|fault| self.error("read the clock of", "", fault))
    }

    fn sweep(&self, before: Time) -> Result<u64> {
        listing::sweep(self, before).map_err(|fault| {
            let mut error = self.error("sweep", "", fault);
            if error.kind == ErrorKind::Denied {
                let why = format!("{}; it takes {}", error.source, listing::SWEEP_RIGHTS);
                error.source = Failure::new(Exit::Denied, why).into();
            }
            error
        })
    }

    /// There is none: it would outlive its holder, and safety does not hang on it.
    fn lock(&self, _: &str, _: &str) -> anyhow::Result<Option<bk_manifest::lock::Lock>> {
        Ok(None)
    }

    fn limits(&self) -> Vec<String> {
        rules::limits(self)
    }

    fn keeps_versions(&self) -> bool {
        rules::keeps_versions(self)
    }

    fn at_once(&self) -> usize {
        16
    }

    fn requests(&self) -> Option<u64> {
        Some(self.client.requests())
    }

    fn requests_of(&self, change: Change) -> u64 {
        match change {
            Change::Put { bound, size } => upload::requests(bound, size),
            Change::Create | Change::Clock => 1,
            Change::Delete(count) => count.div_ceil(removal::BATCH as u64),
        }
    }
}

/// Sixteen bytes that nobody else has, as text.
fn random() -> std::result::Result<String, Fault> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
