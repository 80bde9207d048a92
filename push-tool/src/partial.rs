//! Partial lists: what a push has stored before its commit, so that a later push can build on it and
//! prune can tell it from a stranger.
//!
//! `.bk/partial/<backup id>/` holds small pieces: `begun.json`; for each object, or each batch of plain
//! files, `NNNNNN.name` before it is put and `NNNNNN.entries` (a line for each file in it) once it is
//! closed; `renewed-N` so often that the newest piece is never older than a quarter of the grace time.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::time::Time;
use serde::{Deserialize, Serialize};

use crate::destination::Destination;
use crate::parallel;

/// The folder of the partial lists.
pub const FOLDER: &str = ".bk/partial";
/// The first piece of a list.
pub const BEGUN: &str = "begun.json";
/// How the piece ends that names an object which is about to be put.
pub const NAME: &str = ".name";
/// How the piece ends that holds the entries of an object which is closed.
pub const ENTRIES: &str = ".entries";

/// Largest piece with names that is read, in bytes: more than those of a batch of plain files have.
const PIECE_LIMIT: u64 = 4 << 20;
/// Pieces that are held in memory at once: each may name a thousand objects.
const PIECES_AT_ONCE: usize = 64;

/// How a push begins its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The backup's id.
    pub id: String,
    /// Its series.
    pub series: String,
    /// Its folder at the destination.
    pub folder: String,
    /// Who pushes, for people.
    pub host: String,
}

/// Objects that are about to be put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Their names in the backup's folder.
    pub objects: Vec<String>,
}

/// The first line of a piece with entries: where their content lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Closed {
    /// All of it in one object.
    Object(ClosedObject),
    /// Each in an object of its own.
    Plain(ClosedPlain),
}

/// Plain files that are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedPlain {
    /// The component whose files they are.
    pub component: String,
    /// The program that opens them; `None` is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
}

/// An object that is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedObject {
    /// Its name in the backup's folder.
    pub object: String,
    /// Bytes as stored.
    pub size: u64,
    /// SHA-256 as stored.
    pub checksum: Digest,
    /// The program that opens it; `None` is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
}

impl ClosedObject {
    /// What a partial list keeps of a record.
    pub fn of(record: &ObjectRecord) -> Self {
        ClosedObject {
            object: record.object.clone(),
            size: record.size,
            checksum: record.checksum,
            encryption: record.encryption.clone(),
        }
    }

    /// The object's record in a manifest that does not refer to it yet.
    pub fn record(self) -> ObjectRecord {
        ObjectRecord {
            backup: None,
            checksum: self.checksum,
            encryption: self.encryption,
            live: 0,
            object: self.object,
            size: self.size,
            extra: serde_json::Map::new(),
        }
    }
}

/// A partial list at the destination.
#[derive(Clone, Debug)]
pub struct PartialList {
    /// How it began; `None` if its push died before that, or it cannot be read.
    pub begun: Option<Begun>,
    /// The backup's id, from the folder's name.
    pub id: String,
    /// The names of all its pieces at the destination.
    pub pieces: Vec<String>,
    /// When the newest of them was stored, by the store's clock.
    pub renewed: Time,
}

/// All partial lists at the destination, by backup id.
///
/// # Errors
/// Those of the destination.
pub fn read_all(destination: &dyn Destination) -> anyhow::Result<Vec<PartialList>> {
    let mut lists: BTreeMap<String, PartialList> = BTreeMap::new();
    for object in destination.list(FOLDER)? {
        let object = object?;
        let Some((id, piece)) = object.name[FOLDER.len()..].trim_start_matches('/').split_once('/')
        else {
            continue;
        };
        let begun = if piece == BEGUN { read_json(destination, &object.name)? } else { None };
        let list = lists.entry(id.to_owned()).or_insert_with(|| PartialList {
            begun: None,
            id: id.to_owned(),
            pieces: Vec::new(),
            renewed: object.modified,
        });
        list.begun = begun.or(list.begun.take());
        list.renewed = list.renewed.max(object.modified);
        list.pieces.push(object.name);
    }
    Ok(lists.into_values().collect())
}

impl PartialList {
    /// Hands out the objects that it names, by their names at the destination: put or about to be.
    ///
    /// # Errors
    /// Those of the destination and of `found`; a name that leads out of the backup's folder.
    pub fn each_object(
        &self,
        destination: &dyn Destination,
        found: &mut dyn FnMut(String) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(begun) = &self.begun else { return Ok(()) };
        let pieces: Vec<&str> = self.of_kind(NAME).collect();
        for pieces in pieces.chunks(PIECES_AT_ONCE) {
            let named = parallel::map(destination.at_once(), pieces.to_vec(), |piece| {
                read_json::<Named>(destination, piece)
            });
            for named in named.into_iter().filter_map(Result::transpose) {
                for object in named?.objects {
                    found(crate::place::object(&begun.folder, &object)?)?;
                }
            }
        }
        Ok(())
    }

    /// The pieces with entries of closed objects.
    pub fn closed(&self) -> impl Iterator<Item = &str> {
        self.of_kind(ENTRIES)
    }

    fn of_kind(&self, suffix: &str) -> impl Iterator<Item = &str> {
        self.pieces.iter().map(String::as_str).filter(move |piece| piece.ends_with(suffix))
    }
}

/// Reads a small JSON piece; `None` if it is gone or malformed (its push died, or has just ended).
fn read_json<T: for<'de> Deserialize<'de>>(
    destination: &dyn Destination,
    name: &str,
) -> anyhow::Result<Option<T>> {
    let mut bytes = Vec::new();
    match destination.read(name, Some(0..PIECE_LIMIT)) {
        Ok(mut reader) => {
            reader.read_to_end(&mut bytes).with_context(|| format!("cannot read '{name}'"))?
        }
        Err(error) if error.kind == crate::destination::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(serde_json::from_slice(&bytes).ok())
}
