//! Stores an object: a small one by one request, a larger one in parts, several at once.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use reqwest::Method;

use super::client::{Client, Request};
use super::fault::Fault;
use super::{Owner, S3, TOKEN, answer};
use crate::destination::{Created, ErrorKind, Result, Upload};

/// Smallest part, in bytes; S3 wants 5 MiB.
const PART: u64 = 8 << 20;
/// Parts of an object at most.
const PARTS: u64 = 10_000;
/// Largest object that S3 takes, in bytes.
const OBJECT: u64 = 5 << 40;
/// Bytes in parts that are under way at once at most.
const FLYING_BYTES: u64 = 2 * PART;
/// The same for each of several objects that are stored at once.
const FLYING_BYTES_EACH: u64 = PART;

/// How large the parts of an object are that is about `bound` bytes long.
///
/// All are equal, as some stores want it; there are enough for an object that is longer by a sixteenth:
/// more would be memory for nothing, for what is announced is the size, or above it.
pub(super) fn part_size(bound: u64) -> u64 {
    let most = bound.saturating_add(bound / 16).min(OBJECT);
    most.div_ceil(PARTS).next_multiple_of(1 << 20).max(PART)
}

/// How many requests it takes to store an object of `size` bytes that was announced with `bound`.
pub(super) fn requests(bound: u64, size: u64) -> u64 {
    let parts = size.div_ceil(part_size(bound));
    // Begun, looked for, completed.
    if parts > 1 { parts + 3 } else { 1 }
}

/// An object being stored.
pub(super) struct S3Upload<'a> {
    s3: &'a S3,
    name: String,
    key: String,
    part_size: usize,
    /// Bytes that the buffer will hold, as far as that is known.
    due: usize,
    buffer: Vec<u8>,
    parts: Option<Parts>,
    how: How,
}

/// What becomes of an object that is there already, and what the new one has beside its content.
enum How {
    /// It stays, and the upload fails. The new one has a token that tells who put it.
    Create(String),
    /// It is replaced by one with these headers.
    Replace(Headers),
}

/// Headers of a request.
pub(super) type Headers = Vec<(String, String)>;

impl How {
    fn apply(&self, request: Request) -> Request {
        match self {
            How::Create(token) => request.header(TOKEN, token.clone()),
            How::Replace(headers) => headers.iter().fold(request, |request, (name, value)| {
                request.header(name.clone(), value.clone())
            }),
        }
    }
}

impl<'a> S3Upload<'a> {
    /// Begins; the store hears of it when there is more than one part.
    pub(super) fn new(s3: &'a S3, name: &str, bound: u64) -> std::result::Result<Self, Fault> {
        Ok(Self::begin(s3, name, s3.key(name)?, bound, How::Create(super::random()?)))
    }

    /// The same over an object that is there.
    pub(super) fn over(s3: &'a S3, name: &str, key: String, bound: u64, headers: Headers) -> Self {
        Self::begin(s3, name, key, bound, How::Replace(headers))
    }

    fn begin(s3: &'a S3, name: &str, key: String, bound: u64, how: How) -> Self {
        let part_size = usize::try_from(part_size(bound)).unwrap_or(usize::MAX);
        let name = name.to_owned();
        let due = part_size.min(usize::try_from(bound).unwrap_or(usize::MAX));
        S3Upload { s3, name, key, part_size, due, buffer: Vec::new(), parts: None, how }
    }

    /// Sends the buffer as a part.
    fn send(&mut self) -> std::result::Result<(), Fault> {
        let parts = match &mut self.parts {
            Some(parts) => parts,
            None => self.parts.insert(Parts::begin(self.s3, &self.key, self.part_size, &self.how)?),
        };
        parts.push(std::mem::take(&mut self.buffer))
    }
}

impl Write for S3Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= self.part_size {
            self.send()
                .map_err(|fault| io::Error::other(self.s3.error("store", &self.name, fault)))?;
        }
        if self.buffer.is_empty() {
            // One that grows leaves a hole in memory wherever it has been.
            self.buffer.reserve_exact(self.due);
        }
        let taken = bytes.len().min(self.part_size - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for S3Upload<'_> {
    fn commit(mut self: Box<Self>) -> Result<()> {
        let mut commit = || {
            if self.parts.is_none() {
                let bytes = std::mem::take(&mut self.buffer);
                if matches!(self.how, How::Create(_)) {
                    return self.s3.put_whole(&self.key, bytes);
                }
                let request = self.how.apply(Request::new(Method::PUT, &self.key)).body(bytes);
                return self.s3.client.tell(&request).map(|()| Created::New);
            }
            self.send()?;
            let Some(parts) = self.parts.take() else { return Ok(Created::Taken) };
            match &self.how {
                How::Create(token) => parts.create(self.s3, token),
                How::Replace(_) => parts.replace().map(|()| Created::New),
            }
        };
        let taken = || Fault::Refused {
            status: 412,
            code: "PreconditionFailed".into(),
            message: "the name is taken".into(),
            region: None,
        };
        match commit() {
            Ok(Created::New) => Ok(()),
            Ok(Created::Taken) => Err(self.s3.error("store", &self.name, taken())),
            Err(fault) => Err(self.s3.error("store", &self.name, fault)),
        }
    }
}

/// An object's parts at the store. Dropped before it is complete, it takes them away.
struct Parts {
    client: Arc<Client>,
    key: String,
    id: Option<String>,
    flying: VecDeque<JoinHandle<std::result::Result<String, Fault>>>,
    most_flying: usize,
    /// The store's word for each part that has arrived.
    etags: BTreeMap<u64, String>,
    sent: u64,
}

impl Parts {
    fn begin(s3: &S3, key: &str, part_size: usize, how: &How) -> std::result::Result<Self, Fault> {
        let request = how.apply(Request::new(Method::POST, key).query("uploads", ""));
        let begun: answer::Begun = s3.client.ask(&request)?;
        let most = match how {
            How::Create(_) => FLYING_BYTES,
            How::Replace(_) => FLYING_BYTES_EACH,
        } / u64::try_from(part_size).unwrap_or(u64::MAX);
        Ok(Parts {
            client: Arc::clone(&s3.client),
            key: key.to_owned(),
            id: Some(begun.upload_id),
            flying: VecDeque::new(),
            most_flying: usize::try_from(most).unwrap_or(1),
            etags: BTreeMap::new(),
            sent: 0,
        })
    }

    fn request(&self, method: Method) -> Request {
        Request::new(method, &self.key).query("uploadId", self.id.clone().unwrap_or_default())
    }

    /// Sends a part, once there is room for it.
    fn push(&mut self, bytes: Vec<u8>) -> std::result::Result<(), Fault> {
        if self.sent == PARTS {
            let text = "it is longer than was said: it does not fit into its parts";
            return Err(Fault::Local(text.into()));
        }
        self.sent += 1;
        let request = self.request(Method::PUT).query("partNumber", self.sent.to_string());
        let client = Arc::clone(&self.client);
        self.flying.push_back(std::thread::Builder::new().name("part".into()).spawn(
            move || {
                let answer = client.send(&request.body(bytes))?;
                let etag = answer.header("etag").map(str::to_owned);
                etag.ok_or_else(|| Fault::Odd("a part has no ETag".into()))
            },
        )?);
        // One that is larger than all that may fly is waited for: the next takes its memory.
        while self.flying.len() > self.most_flying {
            self.land()?;
        }
        Ok(())
    }

    /// Waits for the oldest part that is under way.
    fn land(&mut self) -> std::result::Result<(), Fault> {
        if let Some(part) = self.flying.pop_front() {
            let died = |_| Err(Fault::Local("a thread died".into()));
            let etag = part.join().unwrap_or_else(died)?;
            self.etags.insert(self.etags.len() as u64 + 1, etag);
        }
        Ok(())
    }

    /// What makes the parts an object, once all have arrived.
    fn completion(&mut self) -> std::result::Result<Request, Fault> {
        while !self.flying.is_empty() {
            self.land()?;
        }
        let mut body = "<CompleteMultipartUpload>".to_owned();
        for (number, etag) in &self.etags {
            let _ = write!(
                body,
                "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>",
                answer::quoted(etag)
            );
        }
        body += "</CompleteMultipartUpload>";
        Ok(self.request(Method::POST).body(body.into_bytes()))
    }

    /// Makes the parts an object, in the place of one that is there.
    fn replace(mut self) -> std::result::Result<(), Fault> {
        let request = self.completion()?;
        self.try_complete(&request)?;
        self.id = None;
        Ok(())
    }

    /// Makes the parts an object, unless its name is taken.
    fn create(mut self, s3: &S3, token: &str) -> std::result::Result<Created, Fault> {
        let plain = self.completion()?;
        // Not every store heeds the condition here that it heeds for a whole object.
        if s3.owner(&self.key, token)? != Owner::Nobody {
            return Ok(Created::Taken);
        }
        let sent = if s3.abilities()?.has_create_only {
            match self.try_complete(&plain.clone().header("if-none-match", "*")) {
                Err(fault) if fault.is_unknown_request() => self.try_complete(&plain),
                sent => sent,
            }
        } else {
            self.try_complete(&plain)
        };
        let Err(fault) = sent else {
            self.id = None;
            return Ok(Created::New);
        };
        // The answer to a try that succeeded may have been lost: then the upload is gone, and its name
        // taken by itself.
        match s3.owner(&self.key, token) {
            Ok(Owner::Us) => {
                self.id = None;
                Ok(Created::New)
            }
            Ok(Owner::Other) if fault.kind() == ErrorKind::Exists => Ok(Created::Taken),
            _ => Err(fault),
        }
    }

    fn try_complete(&self, request: &Request) -> std::result::Result<(), Fault> {
        self.client.ask(request).map(|answer::Completed {}| ())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if self.id.is_none() {
            return;
        }
        // One that arrived after the rest was taken away would stay.
        for part in self.flying.drain(..) {
            let _ = part.join();
        }
        // What cannot be taken away now is by prune.
        let _ = self.client.send_at_last(&self.request(Method::DELETE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_a_little_longer_than_said_fits_into_its_parts() {
        for bound in [0, 1, 8 << 20, 40 << 30, 41 << 30, 1 << 40, 5 << 40, u64::MAX] {
            let size = part_size(bound);
            assert!((5 << 20..=5 << 30).contains(&size), "{bound}");
            assert!(size * PARTS >= bound.saturating_add(bound / 16).min(OBJECT), "{bound}");
        }
        assert_eq!(part_size(73 << 30), PART);
        // A large dump does not take all memory.
        assert!(part_size(500_000_000_000) <= 51 << 20);
    }
}
