//! Prune's marks: what is to go, put at the destination before anything is removed.

use std::collections::BTreeSet;
use std::io::Read;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::time::Time;
use serde::{Deserialize, Serialize};

use crate::destination::{Destination, ObjectInfo};
use crate::{parallel, place};

/// The folder of the marks.
pub const FOLDER: &str = ".bk/marks";
/// Largest mark that is read, in bytes.
const SIZE_LIMIT: u64 = 64 << 20;

/// What a prune announced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Who put it there, for people.
    pub host: String,
    /// The series that was pruned.
    pub series: String,
    /// Ids of the backups that are to go.
    pub backups: Vec<String>,
    /// Their manifests and side files, by their names at the destination; deleted first.
    pub manifests: Vec<String>,
    /// The objects that nothing else needs, by their names at the destination.
    pub objects: Vec<String>,
}

/// A mark at the destination.
#[derive(Clone, Debug)]
pub struct PlacedMark {
    /// The object that holds it; its time is the mark's, by the store's clock.
    pub object: ObjectInfo,
    /// What it says.
    pub mark: Mark,
}

/// The name of a new mark, by the store's clock and a random part.
pub fn name(now: Time, random: u32) -> String {
    format!("{FOLDER}/{}-{random:08x}.json", now.format("%Y%m%dT%H%M%SZ"))
}

/// Whether an object is a mark, by its name: file managers leave files of their own everywhere.
fn is_mark(name: &str) -> bool {
    let file = name.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/')).unwrap_or("");
    file.strip_suffix(".json").and_then(|stem| stem.split_once('-')).is_some_and(
        |(time, random)| {
            time.len() == 16
                && time.starts_with(|first: char| first.is_ascii_digit())
                && time.ends_with('Z')
                && random.len() == 8
                && random.bytes().all(|byte| byte.is_ascii_hexdigit())
        },
    )
}

/// All marks at the destination; what else lies in their folder is none of ours.
///
/// # Errors
/// [`Exit::Malformed`] for one that cannot be understood: what it names is not known, so neither
/// prune nor push may go on.
pub fn read_all(destination: &dyn Destination) -> anyhow::Result<Vec<PlacedMark>> {
    let is_one = |object: &crate::destination::Result<ObjectInfo>| {
        object.as_ref().map_or(true, |object| is_mark(&object.name))
    };
    let objects = destination.list(FOLDER)?.filter(is_one).collect::<Result<Vec<_>, _>>()?;
    let marks = parallel::map(destination.at_once(), objects, |object| read(destination, object));
    let mut marks =
        marks.into_iter().filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
    marks.sort_by(|a, b| a.object.name.cmp(&b.object.name));
    Ok(marks)
}

/// A mark; `None` if its prune has ended meanwhile.
fn read(destination: &dyn Destination, object: ObjectInfo) -> anyhow::Result<Option<PlacedMark>> {
    let mut bytes = Vec::new();
    let read = match destination.read(&object.name, Some(0..SIZE_LIMIT)) {
        Ok(mut reader) => reader.read_to_end(&mut bytes),
        Err(error) if error.kind == crate::destination::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    read.with_context(|| format!("cannot read the mark '{}'", object.name))?;
    let mark: Mark = serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(Exit::Malformed, format!("the mark '{}' is malformed: {error}", object.name))
    })?;
    for name in mark.manifests.iter().chain(&mark.objects) {
        place::object("", name).with_context(|| format!("the mark '{}'", object.name))?;
    }
    Ok(Some(PlacedMark { object, mark }))
}

/// Everything that marks name, by its name at the destination.
pub fn marked_names(marks: &[PlacedMark]) -> BTreeSet<&str> {
    marks
        .iter()
        .flat_map(|placed| placed.mark.manifests.iter().chain(&placed.mark.objects))
        .map(String::as_str)
        .collect()
}
