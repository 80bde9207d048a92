//! Finds manifests below a prefix, ours in any place and those of other systems, in one pass over a
//! listing that may have millions of names; and waits for listings that lag.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bk_manifest::exit::{Exit, Failure};

use crate::borders::Candidates;
use crate::destination::{Destination, ObjectInfo};
use crate::place;

/// How often a destination is listed before it counts as never at rest.
const LOOKS: u32 = 10;
/// How PicPeak's programs name their manifests, in whatever folder.
const FOREIGN_PREFIX: &str = "backup-manifest-";
const FOREIGN_SUFFIXES: [&str; 3] = [".json", ".yaml", ".yml"];

/// Whether an object can be a manifest of another system that goes by another name than ours do.
fn is_foreign_manifest(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.starts_with(FOREIGN_PREFIX) && FOREIGN_SUFFIXES.iter().any(|suffix| file.ends_with(suffix))
}

/// Whether an object can be a manifest, of ours or of another system, by its name.
pub fn may_be_manifest(name: &str) -> bool {
    place::is_manifest(name) || is_foreign_manifest(name)
}

/// Whether an object is one of bk's own, which come and go at any time.
fn is_own(name: &str) -> bool {
    name.strip_prefix(place::OWN_FOLDER).is_some_and(|rest| rest.starts_with('/'))
}

/// Manifests as a listing shows them, those of other destinations in it too.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The manifests.
    pub objects: Vec<ObjectInfo>,
    /// What may be markers of other destinations.
    pub candidates: Candidates,
}

/// What one listing showed.
struct Look {
    manifests: Manifests,
    objects: u64,
    /// Of all names and sizes, in whatever order they come.
    sum: u64,
}

/// Lists everything once; keeps the manifests only.
fn look(destination: &dyn Destination, hasher: &RandomState) -> anyhow::Result<Look> {
    let mut look = Look { manifests: Manifests::default(), objects: 0, sum: 0 };
    for object in destination.list("")? {
        bk_manifest::signal::check()?;
        let object = object?;
        if is_own(&object.name) {
            continue;
        }
        look.objects += 1;
        look.sum = look.sum.wrapping_add(hasher.hash_one((&object.name, object.size)));
        look.manifests.candidates.note(&object);
        if may_be_manifest(&object.name) {
            look.manifests.objects.push(object);
        }
    }
    Ok(look)
}

/// The manifests at a destination, as one listing shows them.
///
/// # Errors
/// Those of the listing.
pub fn manifests(destination: &dyn Destination) -> anyhow::Result<Manifests> {
    Ok(look(destination, &RandomState::new())?.manifests)
}

/// The manifests at a destination, once two listings agree in names and sizes. `wait` is called
/// between two of them.
///
/// # Errors
/// Those of the listings and of `wait`; [`Exit::Busy`] if none of many agrees with the one before.
pub fn settled(
    destination: &dyn Destination,
    pause: Duration,
    wait: &mut dyn FnMut(Duration) -> anyhow::Result<()>,
) -> anyhow::Result<Manifests> {
    let hasher = RandomState::new();
    let mut last = look(destination, &hasher)?;
    for _ in 1..LOOKS {
        wait(pause)?;
        let next = look(destination, &hasher)?;
        if (next.objects, next.sum) == (last.objects, last.sum) {
            return Ok(next.manifests);
        }
        last = next;
    }
    let message = format!("what is at '{}' changed between any two looks", destination.describe());
    Err(Failure::new(Exit::Busy, message)
        .hint(format!("it was listed {LOOKS} times, {} s apart", pause.as_secs()))
        .hint("is a backup being stored? try again later, or list without --settle")
        .into())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read;
    use std::ops::Range;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::catalog::Catalog;
    use crate::destination::{Created, Error, Listing, Result, Upload};
    use crate::memory::Memory;
    use bk_manifest::exit::classify;
    use bk_manifest::lock::Lock;
    use bk_manifest::time::Time;

    const PAUSE: Duration = Duration::from_secs(30);

    fn memory() -> Memory {
        Memory::new("2026-05-01T00:00:00Z")
    }

    fn names(manifests: &Manifests) -> Vec<&str> {
        manifests.objects.iter().map(|object| object.name.as_str()).collect()
    }

    #[test]
    fn manifests_are_found_wherever_they_are() {
        let memory = memory();
        let found = [
            "2026/04/28/backup-1777000000000/manifests/backup-manifest-backup-b.json",
            "2026/04/28/backup-a/manifest.json",
            "2026/04/28/backup-b/manifest.yaml",
            "backup-manifest-backup-c.yaml",
            "daily/app_1.manifest.json",
            "manifest.json",
            "manifests/backup-manifest-backup-d.yml",
        ];
        for name in found {
            memory.store(name, b"");
        }
        for name in [".bk/marks/manifest.json", "x/backup-summary.json", "x/backup-manifest-.txt"] {
            memory.store(name, b"");
        }
        assert_eq!(names(&manifests(&memory).unwrap()), found);
    }

    #[test]
    fn backups_of_a_destination_inside_are_not_this_ones() {
        let memory = memory();
        memory.store("a/manifest.json", FOREIGN.as_bytes());
        memory.store("host/b/manifest.json", FOREIGN.as_bytes());
        memory.store("host/.bk-destination", br#"{"id":"b","grace_seconds":86400}"#);
        let catalog = Catalog::of(&memory, manifests(&memory).unwrap()).unwrap();
        assert_eq!(catalog.foreign.len(), 1);
        assert_eq!(catalog.borders.folders().collect::<Vec<_>>(), ["host"]);
        assert!(Catalog::read(&memory).unwrap().foreign.len() == 1);
    }

    #[test]
    fn a_backup_that_is_arriving_is_waited_for() {
        let memory = memory();
        let waits = Cell::new(0);
        let mut wait = |pause| {
            assert_eq!(pause, PAUSE);
            waits.set(waits.get() + 1);
            match waits.get() {
                1 => memory.store("b/files/000001.tar.zst", b"volume"),
                2 => memory.store("b/manifest.json", b"{}"),
                // What bk does on its own account does not count.
                _ => memory.store(".bk/partial/x/begun.json", b"{}"),
            }
            Ok(())
        };
        let manifests = settled(&memory, PAUSE, &mut wait).unwrap();
        assert_eq!((names(&manifests), waits.get()), (vec!["b/manifest.json"], 3));
    }

    #[test]
    fn an_object_that_grows_is_a_change() {
        let memory = memory();
        let mut waits = 0;
        let mut wait = |_| {
            waits += 1;
            if waits < 3 {
                if waits > 1 {
                    memory.drop_object("b/manifest.json");
                }
                memory.store("b/manifest.json", &vec![b'x'; waits]);
            }
            Ok(())
        };
        assert_eq!(settled(&memory, PAUSE, &mut wait).unwrap().objects[0].size, 2);
        assert_eq!(waits, 3);
    }

    #[test]
    fn a_destination_that_never_rests_is_given_up() {
        let memory = memory();
        let mut waits = 0;
        let mut wait = |_| {
            waits += 1;
            memory.store(&format!("photo-{waits}"), b"");
            Ok(())
        };
        let error = settled(&memory, PAUSE, &mut wait).unwrap_err();
        assert_eq!((classify(&error), waits), (Exit::Busy, 9));
    }

    #[test]
    fn a_wait_that_is_interrupted_ends_it() {
        let mut wait = |_| Err(anyhow::anyhow!("stopped"));
        assert!(settled(&memory(), PAUSE, &mut wait).is_err());
    }

    /// A store whose listing is made as it is read: a million photos, and what is in `manifests`.
    struct Endless {
        manifests: Memory,
        listed: AtomicU64,
    }

    const PHOTOS: u64 = 1_000_000;

    impl Destination for Endless {
        fn describe(&self) -> String {
            "endless".into()
        }
        fn list(&self, folder: &str) -> Result<Listing<'_>> {
            assert_eq!(folder, "", "one listing is enough");
            let photos = (0..PHOTOS).map(|number| {
                self.listed.fetch_add(1, Ordering::Relaxed);
                let name = format!("2026/04/28/backup-1/events/active/{number:09}.jpg");
                Ok(ObjectInfo { name, size: number, modified: Time::from_unix(0, 0) })
            });
            Ok(Box::new(photos.chain(self.manifests.list("")?)))
        }
        fn stat(&self, name: &str) -> Result<Option<ObjectInfo>> {
            self.manifests.stat(name)
        }
        fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>> {
            self.manifests.read(name, range)
        }
        fn put(&self, name: &str, bound: u64) -> Result<Box<dyn Upload + '_>> {
            self.manifests.put(name, bound)
        }
        fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
            self.manifests.create(name, bytes)
        }
        fn delete(&self, names: &[String]) -> Vec<Error> {
            self.manifests.delete(names)
        }
        fn now(&self) -> Result<Time> {
            self.manifests.now()
        }
        fn sweep(&self, before: Time) -> Result<u64> {
            self.manifests.sweep(before)
        }
        fn lock(&self, series: &str, holder: &str) -> anyhow::Result<Option<Lock>> {
            self.manifests.lock(series, holder)
        }
    }

    #[test]
    fn a_million_names_are_passed_by() {
        let endless = Endless { manifests: memory(), listed: AtomicU64::new(0) };
        for name in ["2026/04/28/backup-1/manifest.json", "2026/04/29/backup-2/manifest.yaml"] {
            endless.manifests.store(name, FOREIGN.as_bytes());
        }
        let catalog = Catalog::of(&endless, manifests(&endless).unwrap()).unwrap();
        assert_eq!(catalog.foreign.len(), 2);
        assert_eq!(endless.listed.load(Ordering::Relaxed), PHOTOS);
    }

    const FOREIGN: &str = r#"{"version":"2.0","backup":{"id":"b"},"files":{"manifest":[]}}"#;

    #[test]
    fn what_is_foreign_is_no_damage_and_no_backup_of_ours() {
        let memory = memory();
        memory.store("a/manifest.json", FOREIGN.as_bytes());
        memory.store("b/manifest.json", &FOREIGN.as_bytes()[..40]);
        memory.store("c/manifests/backup-manifest-c.json", b"[]");
        let found = Catalog::of(&memory, manifests(&memory).unwrap()).unwrap();
        assert_eq!((found.backups.len(), found.foreign.len()), (0, 1));
        let unreadable: Vec<&str> =
            found.unreadable.iter().map(|(object, _)| object.name.as_str()).collect();
        assert_eq!(unreadable, ["b/manifest.json", "c/manifests/backup-manifest-c.json"]);
        // What only a list looks at stops nobody else.
        assert_eq!(Catalog::read(&memory).unwrap().unreadable.len(), 1);
    }
}
