//! Removes objects: a thousand with one request, or one by one where a store knows no other way.

use std::collections::BTreeMap;
use std::fmt::Write;

use reqwest::Method;

use super::S3;
use super::answer::{self, Deleted};
use super::client::Request;
use super::fault::Fault;
use crate::destination::{Error, ErrorKind};

/// Objects of one request.
pub(super) const BATCH: usize = 1000;
/// Single removals at once.
const AT_ONCE: usize = 8;

/// Removes objects, each by the key of its name; returns those that could not be.
pub(super) fn delete(
    s3: &S3,
    names: &[String],
    key: impl Fn(&str) -> Result<String, Fault>,
) -> Vec<Error> {
    let mut failed = Vec::new();
    let mut keys = Vec::new();
    for name in names {
        match key(name) {
            Ok(key) => keys.push((name, key)),
            Err(fault) => failed.push(s3.error("remove", name, fault)),
        }
    }
    for batch in keys.chunks(BATCH) {
        let many = if batch.len() > 1 { delete_many(s3, batch) } else { None };
        let faults = many.unwrap_or_else(|| delete_each(s3, batch));
        failed.extend(faults.into_iter().map(|(name, fault)| s3.error("remove", name, fault)));
    }
    failed
}

type Keys<'a> = [(&'a String, String)];

/// Removes them with one request; `None` if the store does not know it.
fn delete_many<'a>(s3: &S3, batch: &Keys<'a>) -> Option<Vec<(&'a String, Fault)>> {
    let mut body = "<Delete><Quiet>true</Quiet>".to_owned();
    for (_, key) in batch {
        // XML has no way to say a control character.
        if key.chars().any(char::is_control) {
            return None;
        }
        let _ = write!(body, "<Object><Key>{}</Key></Object>", answer::quoted(key));
    }
    body += "</Delete>";
    let request = Request::new(Method::POST, "").query("delete", "").body(body.into_bytes());
    let whole = |fault: &Fault| batch.iter().map(|(name, _)| (*name, fault.clone())).collect();
    let deleted: Deleted = match s3.client.ask(&request) {
        Ok(deleted) => deleted,
        Err(fault) if fault.is_unknown_request() || fault.status() == Some(400) => return None,
        // One by one it is seen what becomes of each.
        Err(Fault::Odd(_)) => return None,
        Err(fault) => return Some(whole(&fault)),
    };
    let names: BTreeMap<_, _> = batch.iter().map(|(name, key)| (&**key, *name)).collect();
    let mut failed = Vec::new();
    for error in deleted.error.into_iter().filter(|error| error.code != "NoSuchKey") {
        let fault = Fault::said(error.code, error.message);
        match names.get(&*error.key) {
            Some(name) => failed.push((*name, fault)),
            // Nobody knows whom it means: it may be any.
            None => return Some(whole(&fault)),
        }
    }
    Some(failed)
}

fn delete_each<'a>(s3: &S3, batch: &Keys<'a>) -> Vec<(&'a String, Fault)> {
    let one = |(name, key): &(&'a String, String)| match s3
        .client
        .tell(&Request::new(Method::DELETE, key))
    {
        Err(fault) if fault.kind() != ErrorKind::NotFound => Some((*name, fault)),
        _ => None,
    };
    std::thread::scope(|scope| {
        let share = batch.len().div_ceil(AT_ONCE).max(1);
        let threads: Vec<_> = batch
            .chunks(share)
            .map(|keys| scope.spawn(move || keys.iter().filter_map(one).collect::<Vec<_>>()))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| thread.join();
        threads.into_iter().filter_map(|thread| join(thread).ok()).flatten().collect()
    })
}
