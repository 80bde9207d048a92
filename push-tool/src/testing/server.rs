//! An S3 server on a loopback port, with faults at hand.
#![expect(clippy::unwrap_used, reason = "only tests use it, and want to end where it breaks")]

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::bucket::{self, http_date, key_of};
pub use super::bucket::{Bucket, Kind, Object, Unfinished};
pub use super::http::Reply;
use super::http::Request;
use super::signature;
use crate::access::Access;

const BUCKET: &str = "photos";
const KEY: &str = "AKTEST";
const SECRET: &str = "a/secret+key";

/// What happens to a request.
pub enum Accident {
    /// It is refused, and nothing is done.
    Refuse(u16, &'static str),
    /// It is done, and the connection cut before an answer.
    LoseReply,
    /// It is done, and of the answer's body only so many bytes are sent before the connection is cut.
    CutReply(usize),
    /// It waits until something is sent, or the sender is gone.
    Wait(Receiver<()>),
    /// Something else happens first.
    First(Box<dyn FnOnce(&mut Bucket) + Send>),
    /// Nothing is done, and it is answered with 200 and nothing.
    Keep,
    /// It is done, and answered otherwise.
    Lie(Box<dyn FnOnce(&mut Reply) + Send>),
}

/// The authority that the certificate of a server with TLS is from; no system trusts it.
pub const AUTHORITY: &str = include_str!("tls/authority.pem");

/// Its certificate for this host.
pub const OF_AUTHORITY: &str = include_str!("tls/server.pem");
/// A certificate that is its own authority, as `openssl req -x509` makes it.
pub const SELF_SIGNED: &str = include_str!("tls/self-signed.pem");
/// One whose time is over.
pub const SELF_SIGNED_EXPIRED: &str = include_str!("tls/self-signed-expired.pem");
/// One for another host.
pub const SELF_SIGNED_ELSEWHERE: &str = include_str!("tls/self-signed-elsewhere.pem");

/// A server with one bucket. It ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
}

struct Shared {
    bucket: Mutex<Bucket>,
    accidents: Mutex<Vec<(Kind, u64, Accident)>>,
    counts: Mutex<BTreeMap<Kind, u64>>,
    token: Mutex<Option<String>>,
    proxy_ahead: Mutex<i64>,
    is_over: AtomicBool,
}

impl Default for Server {
    fn default() -> Self {
        Server::start()
    }
}

impl Server {
    /// Starts it, on a port of its own.
    ///
    /// # Panics
    /// If the system gives no port, or a test has panicked while it used this, as all of these.
    pub fn start() -> Self {
        Server::listen(None)
    }

    /// Starts one that speaks TLS, with a certificate of [`AUTHORITY`].
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_with_tls() -> Self {
        Server::start_with_certificate(OF_AUTHORITY)
    }

    /// The same with another certificate for the same key.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_with_certificate(pem: &str) -> Self {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Server::listen(Some(Arc::new(config)))
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            bucket: Mutex::default(),
            accidents: Mutex::default(),
            counts: Mutex::default(),
            token: Mutex::default(),
            proxy_ahead: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if serving.is_over.load(Ordering::Relaxed) {
                    break;
                }
                let (serving, tls) = (Arc::clone(&serving), tls.clone());
                let serve = move |stream: TcpStream| {
                    stream.set_nodelay(true)?;
                    match tls {
                        None => serving.serve(&stream, &stream),
                        Some(tls) => {
                            let session = ServerConnection::new(tls).unwrap();
                            serving.serve(StreamOwned::new(session, &stream), &stream)
                        }
                    }
                };
                // A connection that breaks is its client's matter.
                std::thread::spawn(move || connection.and_then(serve));
            }
        });
        Server { address, scheme, shared }
    }

    /// The variables by which its bucket is reached.
    pub fn variables(&self) -> Vec<(String, String)> {
        let endpoint = format!("{}://{}", self.scheme, self.address);
        [
            ("ENDPOINT", &*endpoint),
            ("SSL_ENABLED", if self.scheme == "https" { "true" } else { "false" }),
            ("ACCESS_KEY", KEY),
            ("SECRET_KEY", SECRET),
            ("RETRY_DELAY", "1"),
        ]
        .map(|(name, value)| (format!("BACKUP_S3_{name}"), value.to_owned()))
        .into()
    }

    /// The same, with some others in their place.
    pub fn access(&self, others: &[(&str, &str)]) -> Access {
        let mut variables: BTreeMap<String, String> = self.variables().into_iter().collect();
        for (name, value) in others {
            variables.insert((*name).to_owned(), (*value).to_owned());
        }
        let pairs = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Access::new("BACKUP", pairs)
    }

    /// The bucket's name.
    pub fn bucket_name(&self) -> &'static str {
        BUCKET
    }

    /// The bucket, to be looked at and changed.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.shared.bucket.lock().unwrap()
    }

    /// Has something happen to the `number`th request of a kind from now on; the next one is 1.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn before(&self, kind: Kind, number: u64, accident: Accident) {
        let number = self.count(kind) + number;
        self.shared.accidents.lock().unwrap().push((kind, number, accident));
    }

    /// Lends the keys with a token: requests without it are refused.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn ask_for_token(&self, token: &str) {
        *self.shared.token.lock().unwrap() = Some(token.to_owned());
    }

    /// Has answers say another time than objects have, by so many seconds: a proxy is in front.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn put_proxy_ahead(&self, seconds: i64) {
        *self.shared.proxy_ahead.lock().unwrap() = seconds;
    }

    /// Requests of a kind that have come.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn count(&self, kind: Kind) -> u64 {
        self.shared.counts.lock().unwrap().get(&kind).copied().unwrap_or(0)
    }

    /// All requests that have come.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn total(&self) -> u64 {
        self.shared.counts.lock().unwrap().values().sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    /// Answers what comes through `stream`, which is `connection` or something over it.
    fn serve(&self, stream: impl Read + Write, connection: &TcpStream) -> std::io::Result<()> {
        let mut input = BufReader::new(stream);
        while let Some(request) = Request::read(&mut input)? {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let is_head = request.method == "HEAD";
            let (reply, most) = self.reply(&request);
            let ahead = *self.proxy_ahead.lock().unwrap();
            let now = self.bucket.lock().unwrap().now();
            let date = http_date(bk_manifest::time::Time::from_unix(now.unix().0 + ahead, 0));
            if let Some(reply) = &reply {
                let mut bytes = Vec::new();
                reply.write(&mut bytes, &date, is_head, most)?;
                input.get_mut().write_all(&bytes)?;
                input.get_mut().flush()?;
            }
            if reply.is_none_or(|reply| most <= reply.body.len()) {
                connection.shutdown(Shutdown::Both)?;
                break;
            }
        }
        Ok(())
    }

    /// The answer, if there is to be one, and how much of its body.
    fn reply(&self, request: &Request) -> (Option<Reply>, usize) {
        let refuse = |status, code| (Some(Reply::refusal(status, code)), usize::MAX);
        let Some(key) = key_of(&request.path, BUCKET) else {
            return refuse(404, "NoSuchBucket");
        };
        let Some(kind) = bucket::kind(request, &key) else {
            return refuse(501, "NotImplemented");
        };
        let mut accidents = self.accidents(kind);
        accidents.retain_mut(|accident| match accident {
            Accident::Wait(until) => {
                let _ = until.recv();
                false
            }
            _ => true,
        });
        let now = self.bucket.lock().unwrap().now();
        let token = self.token.lock().unwrap().clone();
        if let Err(code) = signature::check(request, (KEY, SECRET, token.as_deref()), now) {
            let status = if code == "XAmzContentSHA256Mismatch" { 400 } else { 403 };
            return refuse(status, code);
        }
        let mut bucket = self.bucket.lock().unwrap();
        let (mut is_lost, mut most) = (false, usize::MAX);
        let mut is_kept = false;
        let mut lies = Vec::new();
        for accident in accidents {
            match accident {
                Accident::Refuse(status, code) => return refuse(status, code),
                Accident::LoseReply => is_lost = true,
                Accident::CutReply(bytes) => most = bytes,
                Accident::First(act) => act(&mut bucket),
                Accident::Keep => is_kept = true,
                Accident::Lie(lie) => lies.push(lie),
                Accident::Wait(_) => {}
            }
        }
        let mut reply =
            if is_kept { Reply::new(200, "") } else { bucket.answer(kind, &key, request) };
        for lie in lies {
            lie(&mut reply);
        }
        if is_lost { (None, 0) } else { (Some(reply), most) }
    }

    /// Counts a request, and takes what is to happen to it.
    fn accidents(&self, kind: Kind) -> Vec<Accident> {
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(kind).or_default();
        *count += 1;
        let mut accidents = self.accidents.lock().unwrap();
        let due = accidents.extract_if(.., |(of, number, _)| *of == kind && *number == *count);
        due.map(|(_, _, accident)| accident).collect()
    }
}
