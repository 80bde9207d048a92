//! What is wrong with where a backup was found.

use bk_push::locate::Located;

use crate::problem::{Fault, Problem};

/// The fault of a stored manifest that is not the one that came in.
pub fn problem(located: &Located) -> Option<Problem> {
    match located {
        Located::Same(_) => None,
        Located::Other(manifest) => Some(Problem::of_object(
            Fault::OtherManifest,
            &manifest.name,
            "is not the manifest that came in: it has another total_checksum",
        )),
        Located::Unreadable(manifest, error) => {
            let detail = format!("cannot be read as a manifest: {error:#}");
            Some(Problem::of_object(Fault::BadManifest, &manifest.name, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{CHILD, PARENT, Sample, at_level, replace};
    use bk_manifest::digest::Digest;
    use bk_manifest::exit::{Exit, classify};
    use bk_manifest::manifest::Run;
    use bk_manifest::stream::Reader;
    use bk_push::locate::locate;

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
            assert_eq!(located.manifest().name, right, "{run:?}");
            assert!(problem(&located).is_none());
        }
    }

    #[test]
    fn another_manifest_of_the_same_id_is_damage() {
        let sample = Sample::new();
        let located = locate(&sample.store, &Run::default(), PARENT, total(&sample)).unwrap();
        assert_eq!(problem(&located).unwrap().fault, Fault::OtherManifest);
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
