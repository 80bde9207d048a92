//! Rules of a bucket by which the store removes, freezes or keeps objects on its own.

use reqwest::Method;

use super::S3;
use super::answer::{Filter, Form, Lifecycle, LifecycleRule, ObjectLock, Versioning};
use super::client::Request;

/// What users should know of the store and the bucket, a line each.
///
/// Keys that may not ask learn nothing: that is no failure.
pub(super) fn limits(s3: &S3) -> Vec<String> {
    let mut limits = Vec::new();
    if s3.abilities().is_ok_and(|abilities| !abilities.has_create_only) {
        limits.push(
            "this store does not refuse to overwrite an object: let only one host at a time push \
             or prune here"
                .into(),
        );
    }
    limits.extend(ask(s3, "lifecycle").map(|rules| of_lifecycle(s3, &rules)).unwrap_or_default());
    limits.extend(ask(s3, "object-lock").and_then(|lock: ObjectLock| of_lock(&lock)));
    if versioning(s3).is_some() {
        limits.push(
            "the bucket keeps old versions: what prune removes goes on taking space until a \
             lifecycle rule for noncurrent versions removes it"
                .into(),
        );
    }
    limits
}

/// Whether what is removed stays as an old version. Where that was suspended, only what was stored before
/// does.
pub(super) fn keeps_versions(s3: &S3) -> bool {
    versioning(s3).as_deref() == Some("Enabled")
}

/// The state of versioning, of a bucket that has ever had it.
fn versioning(s3: &S3) -> Option<String> {
    ask(s3, "versioning").and_then(|versioning: Versioning| versioning.status)
}

fn ask<T: Form>(s3: &S3, what: &'static str) -> Option<T> {
    s3.client.ask(&Request::new(Method::GET, "").query(what, "")).ok()
}

fn of_lock(lock: &ObjectLock) -> Option<String> {
    let retention = lock.rule.as_ref()?.default_retention.as_ref()?;
    let time = match (retention.days, retention.years) {
        (Some(days), _) => counted(days, "day"),
        (None, Some(years)) => counted(years, "year"),
        (None, None) => return None,
    };
    let mode = retention.mode.as_deref().unwrap_or("unknown mode");
    let mode = bk_manifest::path::escape(mode.as_bytes());
    Some(format!(
        "Object Lock keeps every new object for {time} ({mode}): prune cannot free its space before"
    ))
}

fn of_lifecycle(s3: &S3, rules: &Lifecycle) -> Vec<String> {
    let of_rule = |rule: &LifecycleRule| {
        let touches = rule.status == "Enabled"
            && !has_tag(rule)
            && touches(&s3.key_prefix(""), &prefix(rule));
        if !touches {
            return None;
        }
        let id = bk_manifest::path::escape(rule.id.as_deref().unwrap_or_default().as_bytes());
        if let Some(expiration) = &rule.expiration {
            let when = match (expiration.days, &expiration.date) {
                (Some(days), _) => format!("after {}", counted(days, "day")),
                (None, Some(date)) => {
                    format!("from {} on", bk_manifest::path::escape(date.as_bytes()))
                }
                (None, None) => return None,
            };
            return Some(format!(
                "lifecycle rule '{id}' removes objects {when}, those too that newer backups build \
                 on: take the rule away and let bk-prune decide"
            ));
        }
        let frozen = rule
            .transition
            .iter()
            .find(|transition| matches!(&*transition.storage_class, "GLACIER" | "DEEP_ARCHIVE"))?;
        Some(format!(
            "lifecycle rule '{id}' moves objects to {}: they cannot be read, nor built on, before \
             the store has restored them",
            frozen.storage_class
        ))
    };
    rules.rule.iter().filter_map(of_rule).collect()
}

fn counted(number: u32, unit: &str) -> String {
    if number == 1 { format!("1 {unit}") } else { format!("{number} {unit}s") }
}

/// Whether a rule is for objects with a tag, which those that are stored here have not.
fn has_tag(rule: &LifecycleRule) -> bool {
    let of_filter = |filter: &Filter| {
        !filter.tag.is_empty() || filter.and.as_ref().is_some_and(|and| !and.tag.is_empty())
    };
    rule.filter.as_ref().is_some_and(of_filter)
}

/// The keys that a rule is for; empty for all.
fn prefix(rule: &LifecycleRule) -> String {
    let of_filter = |filter: &Filter| {
        filter.prefix.clone().or_else(|| filter.and.as_ref().and_then(|and| and.prefix.clone()))
    };
    rule.prefix.clone().or_else(|| rule.filter.as_ref().and_then(of_filter)).unwrap_or_default()
}

/// Whether keys that begin with one can begin with the other.
fn touches(ours: &str, theirs: &str) -> bool {
    ours.starts_with(theirs) || theirs.starts_with(ours)
}
