//! What a store can do, found out by trying: not by its name, nor by what it says of itself.

use reqwest::Method;

use super::S3;
use super::client::{Request, date};
use super::fault::Fault;
use crate::destination::ErrorKind;

/// How the names of the objects begin that are put to find out; they do not count as objects.
pub(super) const NAME: &str = ".bk/probe-";

/// What was found out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    /// Whether of two that create one object the second is refused.
    pub(super) has_create_only: bool,
    /// Seconds by which objects' times differ from what answers say the time is: a proxy in front
    /// may have a clock of its own.
    pub(super) clock_offset: i64,
}

/// Creates an object twice and looks at its time.
///
/// # Errors
/// Those of the store; keys that may not write.
pub(super) fn probe(s3: &S3) -> Result<Abilities, Fault> {
    let key = s3.key(&format!("{NAME}{}", super::random()?))?;
    let put = |is_exclusive: bool| {
        let request = Request::new(Method::PUT, &key).body(b"probe\n".to_vec());
        if is_exclusive { request.header("if-none-match", "*") } else { request }
    };
    let first = match s3.client.send(&put(true)) {
        // A store that does not know the condition may refuse it.
        Err(fault) if fault.is_unknown_request() || fault.status() == Some(400) => {
            Ok((s3.client.send(&put(false))?, false))
        }
        // Its name is new: a first try was stored, and its answer lost.
        Err(fault) if fault.kind() == ErrorKind::Exists => {
            Ok((s3.client.send(&Request::new(Method::HEAD, &key))?, true))
        }
        result => result.map(|answer| (answer, true)),
    };
    let result = first.and_then(|(answer, takes_condition)| {
        let answered = date(&answer.headers, "date");
        let has_create_only = takes_condition
            && match s3.client.send(&put(true)) {
                Ok(_) => false,
                Err(fault) if fault.kind() == ErrorKind::Exists => true,
                Err(fault) => return Err(fault),
            };
        let head = s3.client.send(&Request::new(Method::HEAD, &key))?;
        let stored = date(&head.headers, "last-modified");
        let offset = |from: bk_manifest::time::Time, to: bk_manifest::time::Time| {
            // Less is the time that the requests took.
            Some(to.unix().0 - from.unix().0).filter(|offset| offset.unsigned_abs() > SAME_CLOCK)
        };
        let clock_offset = answered.zip(stored).and_then(|(a, b)| offset(a, b)).unwrap_or(0);
        Ok(Abilities { has_create_only, clock_offset })
    });
    // What is left of it is taken away by prune.
    let _ = s3.client.send_at_last(&Request::new(Method::DELETE, &key));
    result
}

/// Seconds by which the two times may differ on one clock.
const SAME_CLOCK: u64 = 5;
