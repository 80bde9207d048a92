//! Reads an object, and goes on where a connection was cut.

use std::io::{self, Read};
use std::ops::Range;

use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap};
use reqwest::{Method, Response};

use super::S3;
use super::client::{Request, Tries};
use super::fault::Fault;

/// Bytes that must come before tries count from the first again.
const PROGRESS: u64 = 1 << 20;

/// An object's bytes as they come.
pub(super) struct Download<'a> {
    s3: &'a S3,
    name: String,
    key: String,
    response: Option<Response>,
    /// The object that was begun; another one of that name is not gone on with.
    etag: Option<String>,
    /// The next byte that is due.
    position: u64,
    /// Where the object or the range ends, at the latest.
    end: u64,
    /// Whether an answer has said so: else the end of its body is the end.
    is_end_said: bool,
    piece: Vec<u8>,
    taken: usize,
    tries: Tries,
    /// Bytes that came since the tries were counted from the first.
    gained: u64,
}

/// What an answer says it holds.
struct Extent {
    start: u64,
    end: Option<u64>,
}

impl<'a> Download<'a> {
    /// Opens an object or a range of it.
    pub(super) fn open(
        s3: &'a S3,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<Box<dyn Read + Send + 'a>, Fault> {
        let key = s3.key(name)?;
        if range.as_ref().is_some_and(Range::is_empty) {
            return Ok(Box::new(io::empty()));
        }
        let mut request = Request::new(Method::GET, &key);
        if let Some(range) = &range {
            request = request.header("range", header(range.start, range.end));
        }
        let response = match s3.client.open(&request) {
            // It ends before the range begins.
            Err(fault) if fault.status() == Some(416) => return Ok(Box::new(io::empty())),
            response => response?,
        };
        let (start, wanted) = range.map_or((0, u64::MAX), |range| (range.start, range.end));
        let mut download = Download::of(s3, name, key, response)?;
        download.end = download.end.min(wanted);
        download.skip_to(start)?;
        Ok(Box::new(download))
    }

    /// Goes on with an answer that has begun.
    pub(super) fn of(
        s3: &'a S3,
        name: &str,
        key: String,
        response: Response,
    ) -> Result<Self, Fault> {
        let extent = Extent::of(&response)?;
        Ok(Download {
            s3,
            name: name.to_owned(),
            key,
            etag: text(response.headers(), ETAG.as_str()),
            response: Some(response),
            position: extent.start,
            end: extent.end.unwrap_or(u64::MAX),
            is_end_said: extent.end.is_some(),
            piece: Vec::new(),
            taken: 0,
            tries: s3.client.tries(),
            gained: 0,
        })
    }

    /// Bytes that are still due, if the answer says.
    pub(super) fn left(&self) -> Option<u64> {
        self.is_end_said.then_some(self.end - self.position)
    }

    /// Drops what a server sends that does not know ranges, or begins elsewhere.
    fn skip_to(&mut self, start: u64) -> Result<(), Fault> {
        if self.position > start {
            return Err(Fault::Odd(format!("it begins at byte {}, not at {start}", self.position)));
        }
        while self.position < start.min(self.end) && self.next_piece()? {
            let skipped = usize::try_from(start - self.position).unwrap_or(usize::MAX);
            self.taken = skipped.min(self.piece.len());
            self.position += self.taken as u64;
        }
        Ok(())
    }

    /// Gets the next piece; `false` at the end.
    fn next_piece(&mut self) -> Result<bool, Fault> {
        loop {
            if self.position >= self.end {
                return Ok(false);
            }
            let got = match &mut self.response {
                Some(response) => self.s3.client.piece(response, &mut self.piece),
                None => match self.resume() {
                    Ok(()) => continue,
                    Err(fault) => Err(fault),
                },
            };
            self.taken = 0;
            let fault = match got {
                Ok(()) if !self.piece.is_empty() => {
                    self.gain();
                    return Ok(true);
                }
                // One that was cut is an error: chunks say which is the last.
                Ok(()) if !self.is_end_said => {
                    self.end = self.position;
                    return Ok(false);
                }
                Ok(()) => {
                    let text =
                        format!("the answer ended at byte {} of {}", self.position, self.end);
                    Fault::Network { text, is_transient: true, reached: true }
                }
                Err(fault) => fault,
            };
            self.response = None;
            self.s3.client.again(&mut self.tries, fault)?;
        }
    }

    /// Counts tries from the first again, once enough came: few bytes with each would go on for days.
    fn gain(&mut self) {
        self.gained += self.piece.len() as u64;
        if self.gained >= PROGRESS {
            self.gained = 0;
            self.tries = self.s3.client.tries();
        }
    }

    /// Asks for the rest of the same object.
    fn resume(&mut self) -> Result<(), Fault> {
        let range = header(self.position, self.end);
        let mut request = Request::new(Method::GET, &self.key).header("range", range);
        if let Some(etag) = &self.etag {
            request = request.header("if-match", etag.clone());
        }
        let response = match self.s3.client.open(&request) {
            // It was cut behind the last byte.
            Err(Fault::Refused { status: 416, .. }) if !self.is_end_said => {
                self.end = self.position;
                return Ok(());
            }
            response => response?,
        };
        let extent = Extent::of(&response)?;
        if extent.start != self.position || text(response.headers(), ETAG.as_str()) != self.etag {
            return Err(Fault::Odd("it is of another range or object".into()));
        }
        if let Some(end) = extent.end {
            self.end = self.end.min(end);
            self.is_end_said = true;
        }
        self.response = Some(response);
        Ok(())
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken >= self.piece.len() {
            match self.next_piece() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(fault) => {
                    return Err(io::Error::other(self.s3.error("read", &self.name, fault)));
                }
            }
        }
        let rest = self.piece.get(self.taken..).unwrap_or_default();
        // A server may send more than it was asked for.
        let due = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let length = rest.len().min(buffer.len()).min(due);
        for (to, from) in buffer.iter_mut().zip(&rest[..length]) {
            *to = *from;
        }
        self.taken += length;
        self.position += length as u64;
        Ok(length)
    }
}

impl Extent {
    fn of(response: &Response) -> Result<Self, Fault> {
        let length = response.content_length();
        if response.status().as_u16() != 206 {
            return Ok(Extent { start: 0, end: length });
        }
        // bytes 2-4/10
        let said = text(response.headers(), CONTENT_RANGE.as_str());
        let parse = |said: &str| {
            let (range, _) = said.strip_prefix("bytes ")?.split_once('/')?;
            let (first, last) = range.split_once('-')?;
            let (start, end) = (first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
            (start < end).then_some(Extent { start, end: Some(end) })
        };
        let odd = || Fault::Odd("it does not say which range it is".into());
        said.as_deref().and_then(parse).ok_or_else(odd)
    }
}

fn header(start: u64, end: u64) -> String {
    match end {
        u64::MAX => format!("bytes={start}-"),
        end => format!("bytes={start}-{}", end.saturating_sub(1)),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
