//! What the last prune left behind, so that the next one notices if backups have vanished.
//!
//! A listing that is short for any reason (a mount that came back half, a store that lies, a hand
//! that slipped) makes needed objects look needless. `.bk/seen/` holds one small record a series,
//! written before anything is deleted; a run that finds less than the record says refuses to act.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::time::Time;
use bk_push::destination::{Destination, ErrorKind, ObjectInfo};
use serde::{Deserialize, Serialize};

use crate::remove;

/// The folder of the records.
pub const FOLDER: &str = ".bk/seen";
/// Largest record that is read, in bytes.
const SIZE_LIMIT: u64 = 64 << 20;
/// Most ids that a message names.
const SHOWN: usize = 3;

/// The backups of one series that a prune has left, without those that a mark named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The series.
    pub series: String,
    /// Their ids.
    pub backups: BTreeSet<String>,
}

/// A record at the destination.
#[derive(Clone, Debug)]
pub struct PlacedSeen {
    /// The object that holds it.
    pub object: ObjectInfo,
    /// What it says.
    pub seen: Seen,
}

/// All records, oldest first. One that cannot be understood is passed over: it guards, no more.
///
/// # Errors
/// Those of the destination.
pub fn read_all(destination: &dyn Destination) -> anyhow::Result<Vec<PlacedSeen>> {
    let mut records = Vec::new();
    for object in destination.list(FOLDER)? {
        let object = object?;
        let mut bytes = Vec::new();
        match destination.read(&object.name, Some(0..SIZE_LIMIT)) {
            Ok(mut reader) => reader
                .read_to_end(&mut bytes)
                .with_context(|| format!("cannot read '{}'", object.name))?,
            // Another prune has just put its own in the place of this one.
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if let Ok(seen) = serde_json::from_slice(&bytes) {
            records.push(PlacedSeen { object, seen });
        }
    }
    records.sort_by(|a, b| {
        (a.object.modified, &a.object.name).cmp(&(b.object.modified, &b.object.name))
    });
    Ok(records)
}

/// The newest record of each series.
pub fn newest(records: &[PlacedSeen]) -> BTreeMap<&str, &PlacedSeen> {
    records.iter().map(|placed| (placed.seen.series.as_str(), placed)).collect()
}

/// Refuses if backups are missing that the last prune left: `known` are those that are there or
/// that a mark names. `other` says where some may have gone that were listed here once.
///
/// # Errors
/// [`Exit::Unmet`].
pub fn check(
    records: &[PlacedSeen],
    known: &BTreeSet<&str>,
    other: Option<String>,
) -> anyhow::Result<()> {
    for (series, placed) in newest(records) {
        let missing: Vec<&str> = placed
            .seen
            .backups
            .iter()
            .map(String::as_str)
            .filter(|id| !known.contains(id))
            .collect();
        if missing.is_empty() {
            continue;
        }
        let mut names = missing.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        if missing.len() > SHOWN {
            names.push_str(", …");
        }
        let message = format!(
            "{} of {} backups of '{series}' that the last prune left are missing: {names}",
            missing.len(),
            placed.seen.backups.len(),
        );
        let failure = Failure::new(Exit::Unmet, message)
            .hint("nothing was removed: is the whole destination there?")
            .hint("if they were removed on purpose: --accept-missing");
        return Err(match other {
            None => failure,
            Some(other) => failure.hint(other),
        }
        .into());
    }
    Ok(())
}

/// Records what is left of a series, if that is news, and removes what was recorded before.
///
/// # Errors
/// Those of the destination.
pub fn write(
    destination: &dyn Destination,
    records: &[PlacedSeen],
    seen: &Seen,
    now: Time,
) -> anyhow::Result<()> {
    let is_known =
        newest(records).get(seen.series.as_str()).is_some_and(|placed| placed.seen == *seen);
    let mut old: Vec<String> = records
        .iter()
        .filter(|placed| placed.seen.series == seen.series)
        .map(|placed| placed.object.name.clone())
        .collect();
    if is_known {
        old.pop();
    } else {
        let bytes = serde_json::to_vec(seen)?;
        let stamp = now.format("%Y%m%dT%H%M%SZ");
        remove::create_new(destination, |destination, random| {
            Ok(destination.create(&format!("{FOLDER}/{stamp}-{random:08x}.json"), &bytes)?)
        })?;
    }
    if old.is_empty() { Ok(()) } else { remove::delete(destination, &old) }
}
