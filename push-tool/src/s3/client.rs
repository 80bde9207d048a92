//! Signed requests to one bucket, tried again where that helps.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::time::Time;
use md5::{Digest as _, Md5};
use object_store::aws::AwsAuthorizer;
use object_store::client::{HttpRequest, HttpRequestBody};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use tokio::runtime::Handle;

use super::answer::{self, Form};
use super::fault::Fault;
use super::settings::Settings;
use super::transport::{self, Moved, Patience, wait};
use crate::destination::ErrorKind;
use crate::rate::Limiter;

/// Longest answer that is read into memory, in bytes: 1,000 keys of a listing take 2 MB at most.
const ANSWER_LIMIT: usize = 16 << 20;
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long an upload that is given up may take to be taken back.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A request, before it is signed.
#[derive(Clone)]
pub(super) struct Request {
    method: Method,
    key: String,
    query: Vec<(&'static str, String)>,
    headers: Vec<(Cow<'static, str>, String)>,
    body: HttpRequestBody,
}

impl Request {
    /// One for an object; the bucket itself has an empty key.
    pub(super) fn new(method: Method, key: &str) -> Self {
        Request {
            method,
            key: key.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: HttpRequestBody::empty(),
        }
    }

    /// Adds a parameter.
    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Adds a header.
    pub(super) fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
    ) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// What is sent, with a checksum for the store to check.
    ///
    /// The signature covers its SHA-256 already. MD5 is what every store has checked since the first,
    /// what deleting many at once needs, and what a bucket with Object Lock asks for.
    pub(super) fn body(self, bytes: Vec<u8>) -> Self {
        let checksum = BASE64_STANDARD.encode(Md5::digest(&bytes));
        Request { body: bytes.into(), ..self.header("content-md5", checksum) }
    }
}

/// What a store answered, read to its end.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub(super) fn text(&self) -> Result<&str, Fault> {
        std::str::from_utf8(&self.body).map_err(|error| Fault::Odd(error.to_string()))
    }
}

/// Tries that are left of something.
pub(super) struct Tries {
    left: u32,
    /// Before the next one.
    delay: Duration,
}

/// What sends requests to one bucket.
pub(super) struct Client {
    http: reqwest::Client,
    runtime: Handle,
    pub(super) settings: Settings,
    limiter: Option<Arc<Limiter>>,
    requests: AtomicU64,
}

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`Exit::Usage`] for certificates that are none; those of the system.
    pub(super) fn new(settings: Settings) -> anyhow::Result<Self> {
        let runtime = transport::runtime()?;
        let http = transport::connector(&settings).map_err(|error| fail(Exit::Usage, error))?;
        let limiter = settings.rate.map(|rate| Arc::new(Limiter::new(rate)));
        Ok(Client { http, runtime, settings, limiter, requests: AtomicU64::new(0) })
    }

    /// Requests that were sent so far, each try counted.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// Why the last try failed.
    pub(super) fn send(&self, request: &Request) -> Result<Answer, Fault> {
        self.retry(|| self.send_once(request))
    }

    /// Sends a request that is answered in XML.
    ///
    /// # Errors
    /// As [`Client::send`]; an answer that is no such answer.
    pub(super) fn ask<T: Form>(&self, request: &Request) -> Result<T, Fault> {
        self.retry(|| answer::parse(self.send_once(request)?.text()?))
    }

    /// Sends a request whose answer has no words if all went well.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(super) fn tell(&self, request: &Request) -> Result<(), Fault> {
        self.retry(|| answer::silence(self.send_once(request)?.text()?))
    }

    fn send_once(&self, request: &Request) -> Result<Answer, Fault> {
        let mut response = self.attempt(request, self.patience())?;
        let headers = response.headers().clone();
        let body = self.read_all(&mut response, self.patience())?;
        Ok(Answer { headers, body })
    }

    /// Sends a request whose answer is read piece by piece with [`Client::piece`].
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(super) fn open(&self, request: &Request) -> Result<reqwest::Response, Fault> {
        self.retry(|| self.attempt(request, self.patience()))
    }

    /// Sends a request that takes back what is given up: once, even when the process is to stop.
    pub(super) fn send_at_last(&self, request: &Request) -> Result<(), Fault> {
        let patience =
            Patience { stall: LAST_WORDS.min(self.settings.stall), heeds_signals: false };
        self.attempt(request, patience).map(drop)
    }

    /// Replaces `piece` by the next piece of an answer's body; an empty one is its end.
    ///
    /// # Errors
    /// A connection that was cut; one on which nothing comes.
    pub(super) fn piece(
        &self,
        response: &mut reqwest::Response,
        piece: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        piece.clear();
        if let Some(next) = self.chunk(response, self.patience())? {
            piece.extend_from_slice(next.as_ref());
            if let Some(limiter) = &self.limiter {
                transport::pause(limiter.reserve(piece.len()))?;
            }
        }
        Ok(())
    }

    fn chunk(
        &self,
        response: &mut reqwest::Response,
        patience: Patience,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, Fault> {
        wait(&self.runtime, &Moved::default(), patience, response.chunk())?.map_err(network)
    }

    /// Tries until it succeeds, cannot, or was tried often enough.
    pub(super) fn retry<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut tries = self.tries();
        loop {
            match attempt() {
                Err(fault) => self.again(&mut tries, fault)?,
                result => return result,
            }
        }
    }

    /// As many tries as a request has.
    pub(super) fn tries(&self) -> Tries {
        Tries { left: self.settings.retries, delay: self.settings.delay }
    }

    /// Waits before another try.
    ///
    /// # Errors
    /// The fault itself, if none may help or none is left.
    pub(super) fn again(&self, tries: &mut Tries, fault: Fault) -> Result<(), Fault> {
        if tries.left == 0 || fault.kind() != ErrorKind::Transient {
            return Err(fault);
        }
        tries.left -= 1;
        self.pause(tries.delay)?;
        tries.delay = (tries.delay * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// Waits before another try, up to twice as long as said: many who wait for one store come back
    /// one after the other.
    pub(super) fn pause(&self, delay: Duration) -> Result<(), Fault> {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(std::io::Error::from)?;
        let share = f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX);
        Ok(transport::pause(delay + self.settings.delay.mul_f64(share))?)
    }

    fn patience(&self) -> Patience {
        Patience { stall: self.settings.stall, heeds_signals: true }
    }

    fn attempt(&self, request: &Request, patience: Patience) -> Result<reqwest::Response, Fault> {
        let moved = Moved::default();
        let http = self.signed(request, &moved)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut response =
            wait(&self.runtime, &moved, patience, self.http.execute(http))?.map_err(network)?;
        let status = response.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(response);
        }
        let region = response.headers().get("x-amz-bucket-region");
        let region = region.and_then(|region| region.to_str().ok()).map(str::to_owned);
        let region = region.filter(|region| *region != self.settings.region);
        let body = self.read_all(&mut response, patience).unwrap_or_default();
        Err(Fault::refused(status, region, &String::from_utf8_lossy(&body)))
    }

    fn read_all(
        &self,
        response: &mut reqwest::Response,
        patience: Patience,
    ) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        while let Some(piece) = self.chunk(response, patience)? {
            let piece = piece.as_ref();
            if body.len() + piece.len() > ANSWER_LIMIT {
                return Err(Fault::Odd("it does not end".into()));
            }
            body.extend_from_slice(piece);
        }
        Ok(body)
    }

    fn signed(&self, request: &Request, moved: &Moved) -> Result<reqwest::Request, Fault> {
        let url = self.url(request);
        let made = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            let mut signing = HttpRequest::new(request.body.clone());
            *signing.method_mut() = request.method.clone();
            *signing.uri_mut() = url.as_str().parse()?;
            for (name, value) in &request.headers {
                let value = HeaderValue::from_bytes(value.as_bytes())?;
                signing.headers_mut().insert(HeaderName::try_from(&**name)?, value);
            }
            let Settings { credential, region, .. } = &self.settings;
            AwsAuthorizer::new(credential, "s3", region).try_authorize(&mut signing, None)?;
            Ok(signing)
        };
        let (parts, _) = made().map_err(|error| Fault::Local(error.to_string()))?.into_parts();
        let mut http = reqwest::Request::new(parts.method, url);
        *http.headers_mut() = parts.headers;
        let length = request.body.content_length();
        if length > 0 || matches!(request.method, Method::PUT | Method::POST) {
            http.headers_mut().insert(CONTENT_LENGTH, length.into());
            let body = transport::body(request.body.clone(), moved.clone(), self.limiter.clone());
            *http.body_mut() = Some(body);
        }
        Ok(http)
    }

    fn url(&self, request: &Request) -> Url {
        let mut url = self.settings.base.clone();
        let path = url.path().to_owned();
        let key = percent_encoded(&request.key, true);
        url.set_path(&if key.is_empty() { path } else { path + &key });
        if !request.query.is_empty() {
            let pairs = request.query.iter().map(|(name, value)| {
                format!("{}={}", percent_encoded(name, false), percent_encoded(value, false))
            });
            url.set_query(Some(&pairs.collect::<Vec<_>>().join("&")));
        }
        url
    }
}

/// When a store answered, by its own clock.
pub(super) fn date(headers: &HeaderMap, name: &str) -> Option<Time> {
    let text = headers.get(name)?.to_str().ok()?;
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Time::from_unix(time.as_second(), 0))
}

/// What is sent of it in an address: all but letters, digits and `-._~`, and `/` where it is a path.
fn percent_encoded(text: &str, is_path: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (is_path && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn network(error: reqwest::Error) -> Fault {
    let reached = !error.is_connect();
    let text = transport::chain(&error.without_url());
    // A certificate that is wrong stays wrong, and so does a server that speaks no TLS.
    let is_transient = !text.contains("certificate") && !text.contains("corrupt message");
    Fault::Network { text, is_transient, reached }
}
