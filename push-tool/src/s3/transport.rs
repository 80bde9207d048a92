//! Bytes to and from a store: the runtime that moves them, and how it is noticed that nothing moves.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::stream::unfold;
use object_store::client::HttpRequestBody;
use reqwest::Body;
use tokio::runtime::Handle;

use super::authorities;
use super::fault::Fault;
use super::settings::Settings;
use crate::rate::Limiter;

/// How often it is looked whether the process is to stop.
const TICK: Duration = Duration::from_millis(250);
const CONNECT: Duration = Duration::from_secs(15);
/// Bytes that are handed to the connection at once.
const PIECE: usize = 64 << 10;

/// The runtime of all connections of this process: one thread that moves bytes.
///
/// Those who wait for an answer do so in their own threads, as many at once as there are.
pub(super) fn runtime() -> io::Result<Handle> {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    static STARTING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(handle) = RUNTIME.get() {
        return Ok(handle.clone());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("s3".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(RUNTIME.get_or_init(|| handle).clone())
}

/// Makes the connections' side, which keeps them open between requests.
pub(super) fn connector(settings: &Settings) -> Result<reqwest::Client, String> {
    let provider = rustls::crypto::ring::default_provider();
    // Fails only if one is there already.
    let _ = provider.clone().install_default();
    let mut builder = reqwest::Client::builder()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .user_agent(concat!("bk/", env!("CARGO_PKG_VERSION")));
    if let Some(pem) = &settings.authorities {
        let tls = authorities::trusting(pem, Arc::new(provider))
            .map_err(|error| format!("{}: {error}", settings.names.authorities))?;
        builder = builder.tls_backend_preconfigured(tls);
    }
    if settings.base.scheme() == "http" {
        // A bare container has none, and none are needed.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| chain(&error))
}

/// An error and all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Bytes that a request has moved so far.
#[derive(Clone, Default)]
pub(super) struct Moved(Arc<AtomicU64>);

impl Moved {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request's body, handed over piece by piece, so that it is seen to move and held to the rate.
pub(super) fn body(body: HttpRequestBody, moved: Moved, limiter: Option<Arc<Limiter>>) -> Body {
    let piece = limiter.as_ref().map_or(PIECE, |limiter| limiter.piece().min(PIECE));
    let pieces = unfold(0, move |start| {
        let (body, moved, limiter) = (body.clone(), moved.clone(), limiter.clone());
        async move {
            let end = body.content_length().min(start + piece);
            let piece = body.as_bytes().filter(|_| start < end)?.slice(start..end);
            if let Some(limiter) = limiter {
                tokio::time::sleep(limiter.reserve(piece.len())).await;
            }
            moved.0.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Some((Ok::<_, Infallible>(piece), end))
        }
    });
    Body::wrap_stream(pieces)
}

/// How long to wait, and for what.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// How long nothing may move.
    pub(super) stall: Duration,
    /// Whether being told to stop ends it; not where what a stopped run began is taken back.
    pub(super) heeds_signals: bool,
}

/// Waits in this thread until the work is done, nothing moves, or the process is to stop.
pub(super) fn wait<T>(
    runtime: &Handle,
    moved: &Moved,
    patience: Patience,
    work: impl Future<Output = T>,
) -> Result<T, Fault> {
    runtime.block_on(async {
        let mut work = pin!(work);
        let (mut seen, mut since) = (moved.count(), Instant::now());
        loop {
            if let Ok(done) = tokio::time::timeout(TICK.min(patience.stall), &mut work).await {
                return Ok(done);
            }
            if patience.heeds_signals {
                bk_manifest::signal::check()?;
            }
            if moved.count() != seen {
                (seen, since) = (moved.count(), Instant::now());
            } else if since.elapsed() >= patience.stall {
                let text = format!("nothing came for {} s", patience.stall.as_secs());
                return Err(Fault::Network { text, is_transient: true, reached: true });
            }
        }
    })
}

/// Sleeps, unless the process is to stop.
pub(super) fn pause(mut time: Duration) -> io::Result<()> {
    while !time.is_zero() {
        bk_manifest::signal::check()?;
        let step = time.min(TICK);
        std::thread::sleep(step);
        time -= step;
    }
    Ok(())
}
