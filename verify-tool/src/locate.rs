//! Finds the stored manifest of a backup, and whether it is the one that came in.

use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::manifest::Run;
use bk_push::catalog::Catalog;
use bk_push::destination::{Destination, ObjectInfo};
use bk_push::store::Store;
use bk_push::{outer, place};

use crate::problem::{Fault, Problem};

/// Where a backup lies.
pub struct Located {
    /// Its stored manifest.
    pub manifest: ObjectInfo,
    /// What is wrong with that.
    pub problem: Option<Problem>,
}

impl Located {
    /// The folder that holds the backup's own objects.
    pub fn folder(&self) -> &str {
        place::parent(&self.manifest.name)
    }
}

/// Finds the backup `id` whose manifest has this sum.
///
/// The place in `run` saves reading all manifests. It is only a hint: it counts when the manifest
/// there is the one that came in.
///
/// # Errors
/// [`Exit::NotFound`] if the destination has no such backup; those of the destination.
pub fn locate(store: &Store, run: &Run, id: &str, total: Digest) -> anyhow::Result<Located> {
    let destination = &*store.destination;
    let hint = run
        .place
        .as_deref()
        .filter(|_| run.destination.as_deref() == Some(&store.marker.id))
        .filter(|place| place::is_manifest(place) && place::object("", place).is_ok());
    if let Some(hint) = hint
        && let Some(manifest) = destination.stat(hint)?
        && is_it(destination, &manifest, id, total)
    {
        return Ok(Located { manifest, problem: None });
    }
    let catalog = Catalog::read(destination)?;
    let total_text = total.to_string();
    let mut with_id = catalog.backups.into_iter().filter(|backup| backup.id == id).peekable();
    if let Some(other) = with_id.peek() {
        let other = other.manifest.clone();
        return Ok(match with_id.find(|backup| backup.total_checksum == total_text) {
            Some(backup) => Located { manifest: backup.manifest, problem: None },
            None => Located {
                problem: Some(Problem::of_object(
                    Fault::OtherManifest,
                    &other.name,
                    "is not the manifest that came in: it has another total_checksum",
                )),
                manifest: other,
            },
        });
    }
    let is_named_so =
        |name: &str| Some(name) == hint || place::parent(name).rsplit('/').next() == Some(id);
    let unreadable = catalog.unreadable.into_iter().find(|(object, _)| is_named_so(&object.name));
    let Some((manifest, error)) = unreadable else {
        let message = format!("no backup '{id}' at '{}'", destination.describe());
        return Err(fail(Exit::NotFound, message));
    };
    let detail = format!("cannot be read as a manifest: {error:#}");
    let problem = Problem::of_object(Fault::BadManifest, &manifest.name, detail);
    Ok(Located { manifest, problem: Some(problem) })
}

/// Whether the object is the manifest of this backup with this sum.
fn is_it(destination: &dyn Destination, object: &ObjectInfo, id: &str, total: Digest) -> bool {
    outer::read(destination, object).is_ok_and(|(header, trailer)| {
        trailer.total_checksum() == Some(total)
            && header.backup().is_ok_and(|backup| backup.is_some_and(|backup| backup.id == id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{CHILD, PARENT, Sample, at_level, replace};
    use bk_manifest::exit::classify;
    use bk_manifest::stream::Reader;

    fn total(sample: &Sample) -> Digest {
        let document = sample.child.stored();
        Reader::new(&document[..]).unwrap().end().unwrap().1.total_checksum().unwrap()
    }

    fn hint(sample: &Sample, place: &str, destination: &str) -> Run {
        let destination = match destination {
            "" => sample.store.marker.id.clone(),
            other => other.to_owned(),
        };
        Run { place: Some(place.into()), destination: Some(destination), ..Run::default() }
    }

    #[test]
    fn a_hint_is_never_believed_blindly() {
        let sample = Sample::new();
        let right = format!("{}/manifest.json", sample.child.folder);
        let wrong = format!("{}/manifest.json", sample.parent.folder);
        for run in [
            Run::default(),
            hint(&sample, &right, ""),
            hint(&sample, &wrong, ""),
            hint(&sample, &right, "another"),
            hint(&sample, "../../etc/manifest.json", ""),
            hint(&sample, "gone/manifest.json", ""),
        ] {
            let located = locate(&sample.store, &run, CHILD, total(&sample)).unwrap();
            assert_eq!(located.manifest.name, right, "{run:?}");
            assert!(located.problem.is_none());
        }
    }

    #[test]
    fn another_manifest_of_the_same_id_is_damage() {
        let sample = Sample::new();
        let located = locate(&sample.store, &Run::default(), PARENT, total(&sample)).unwrap();
        assert_eq!(located.problem.unwrap().fault, Fault::OtherManifest);
    }

    #[test]
    fn a_backup_that_is_not_there_is_not_found() {
        let sample = Sample::new();
        let run = Run::default();
        let error = locate(&sample.store, &run, "backup-x", total(&sample)).err().unwrap();
        assert_eq!(classify(&error), Exit::NotFound);
    }

    #[test]
    fn a_stored_manifest_that_is_cut_or_altered_is_named() {
        let sample = Sample::new();
        let document = sample.child.stored();
        let file = sample.file(&sample.child, "manifest.json");
        let text = String::from_utf8(document.clone()).unwrap();
        for bad in [text[..text.len() - 9].to_owned(), text.replace("c/new", "c/old")] {
            replace(&file, bad.as_bytes());
            let ran = sample.verify(&document, &at_level(crate::level::Level::Stored));
            assert_eq!(ran.exit(), Exit::Malformed, "{:?}", ran.result);
            assert!(!ran.is_ended());
            assert!(ran.has_said("manifest.json"), "{:?}", ran.said);
        }
    }
}
