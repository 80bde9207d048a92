//! Prune's marks: what is to go, put at the destination before anything is removed.

use std::fmt;
use std::io::BufReader;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::lookup::Lookup;
use bk_manifest::time::Time;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::destination::{Destination, ObjectInfo};
use crate::names::{self, Names};
use crate::{parallel, place};

/// The folder of the marks.
pub const FOLDER: &str = ".bk/marks";

/// What a prune announced. Its objects may be millions: they are read and written one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark<Objects = Vec<String>> {
    /// Who put it there, for people.
    pub host: String,
    /// The series that was pruned.
    pub series: String,
    /// Ids of the backups that are to go.
    pub backups: Vec<String>,
    /// Their manifests and side files, by their names at the destination; deleted first.
    pub manifests: Vec<String>,
    /// The objects that nothing else needs, by their names at the destination.
    pub objects: Objects,
}

/// A mark at the destination.
#[derive(Debug)]
pub struct PlacedMark {
    /// The object that holds it; its time is the mark's, by the store's clock.
    pub object: ObjectInfo,
    /// What it says.
    pub mark: Mark<Names>,
}

impl PlacedMark {
    /// Everything that it names, by its name at the destination; an error is one of the temporary
    /// files.
    pub fn names(&self) -> impl Iterator<Item = anyhow::Result<String>> + '_ {
        self.mark.manifests.iter().cloned().map(Ok).chain(self.mark.objects.iter())
    }
}

/// Everything that marks name; memory is bounded.
#[derive(Default)]
pub struct Marked(Lookup);

impl Marked {
    /// What these marks name.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn of<'a>(marks: impl IntoIterator<Item = &'a PlacedMark>) -> anyhow::Result<Self> {
        let mut marked = Marked::default();
        for name in marks.into_iter().flat_map(PlacedMark::names) {
            bk_manifest::signal::check()?;
            marked.0.insert(names::key(&name?), 0)?;
        }
        Ok(marked)
    }

    /// Whether this is named, by its name at the destination.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn contains(&self, name: &str) -> anyhow::Result<bool> {
        Ok(!self.0.is_empty() && self.0.get(names::key(name))?.is_some())
    }
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
    let reader = match destination.read(&object.name, None) {
        Err(error) if error.kind == crate::destination::ErrorKind::NotFound => return Ok(None),
        reader => reader?,
    };
    let context = || format!("cannot read the mark '{}'", object.name);
    let read: serde_json::Result<Mark<ReadNames>> = serde_json::from_reader(BufReader::new(reader));
    let Mark { host, series, backups, manifests, objects } = match read {
        Err(error) if error.is_io() => return Err(error).with_context(context),
        Err(error) => {
            let message = format!("the mark '{}' is malformed: {error}", object.name);
            return Err(Failure::new(Exit::Malformed, message).into());
        }
        Ok(mark) => mark,
    };
    for name in &manifests {
        place::object("", name).with_context(context)?;
    }
    let objects = objects.0.with_context(context)?;
    Ok(Some(PlacedMark { object, mark: Mark { host, series, backups, manifests, objects } }))
}

/// The objects of a mark as they are read. What goes wrong with the temporary files is no fault of
/// the mark's form.
struct ReadNames(anyhow::Result<Names>);

impl<'de> Deserialize<'de> for ReadNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(EachName)
    }
}

struct EachName;

impl<'de> Visitor<'de> for EachName {
    type Value = ReadNames;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("names of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut read: A) -> Result<ReadNames, A::Error> {
        let mut all = Ok(Names::default());
        while let Some(name) = read.next_element::<String>()? {
            all = all.and_then(|mut names| {
                bk_manifest::signal::check()?;
                // Checked as those in a manifest are: they are deleted.
                names.add(&place::object("", &name)?)?;
                Ok(names)
            });
        }
        Ok(ReadNames(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use bk_manifest::exit::classify;

    const NAME: &str = ".bk/marks/20260501T000000Z-00000000.json";

    fn memory(text: &[u8]) -> Memory {
        let memory = Memory::new("2026-05-01T00:00:00Z");
        memory.store(NAME, text);
        memory
    }

    /// More than any limit on a document that is held in memory.
    #[test]
    fn a_mark_of_very_many_names_is_read() {
        let mut mark: Mark = Mark { manifests: vec!["b/manifest.json".into()], ..Mark::default() };
        let long = "x".repeat(700);
        mark.objects = (0..100_000).map(|number| format!("b/minio/{long}/{number}")).collect();
        let text = serde_json::to_vec(&mark).unwrap();
        assert!(text.len() > 64 << 20);
        let marks = read_all(&memory(&text)).unwrap();
        assert_eq!(marks[0].names().count(), 100_001);
        let marked = Marked::of(&marks).unwrap();
        for name in mark.objects.iter().chain(&mark.manifests) {
            assert!(marked.contains(name).unwrap());
        }
        assert!(!marked.contains("b/minio/x").unwrap());
        assert_eq!(serde_json::to_vec(&marks[0].mark).unwrap(), text, "it is written as it was");
    }

    #[test]
    fn a_mark_that_is_cut_or_leads_out_is_refused() {
        let mark: Mark = Mark { objects: vec!["b/minio/a".into()], ..Mark::default() };
        let text = serde_json::to_vec(&mark).unwrap();
        for cut in [0, 1, text.len() - 4, text.len() - 1] {
            let error = read_all(&memory(&text[..cut])).unwrap_err();
            assert_eq!(classify(&error), Exit::Malformed, "{error:#}");
        }
        for (manifest, object) in [("a", "../b"), ("../a", "b"), ("a", "/b"), ("a", "b\0c")] {
            let mark: Mark = Mark {
                manifests: vec![manifest.into()],
                objects: vec![object.into()],
                ..Mark::default()
            };
            let error = read_all(&memory(&serde_json::to_vec(&mark).unwrap())).unwrap_err();
            assert_eq!(classify(&error), Exit::Malformed, "{error:#}");
        }
    }
}
