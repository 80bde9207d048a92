//! Retention at a destination whose backups were copied there: their parents' manifests never were.

use std::num::NonZeroU32;
use std::sync::Arc;

use bk_manifest::progress::Silent;
use bk_manifest::spool::Document;
use bk_push::memory::store_on;
use bk_push::place;
use bk_push::store::Store;

use crate::prune::prune;
use crate::rules::Rules;
use crate::testing::{GRACE, Made, Memory, check_whole, options};

/// A source with a full backup and two that build on it, and the other destination.
struct World {
    from: Arc<Memory>,
    to: Arc<Memory>,
    made: [Made; 3],
}

impl World {
    fn new() -> Self {
        let memory = || Arc::new(Memory::new("2026-05-01T00:00:00Z"));
        let from = memory();
        let first = Made::new("2026-04-26T02:00:00Z").store(&*from);
        let second = Made::new("2026-04-27T02:00:00Z").on(&first).store(&*from);
        let mut third = Made::new("2026-04-28T02:00:00Z").on(&second);
        // Only what the second stored.
        third.inherited.truncate(1);
        let third = third.store(&*from);
        World { from, to: memory(), made: [first, second, third] }
    }

    fn copy(&self, number: usize) -> anyhow::Result<()> {
        let mut document = Document::read(&self.made[number].document().0[..]).unwrap();
        let named = |memory: &Arc<Memory>, id: &str| -> Store {
            let mut store = store_on(memory, GRACE);
            store.marker.id = id.into();
            store
        };
        let (from, to) = (named(&self.from, "a"), named(&self.to, "b"));
        bk_push::copy::copy(&mut document, &from, &to, false, &Silent).map(|_| ())
    }

    /// Keeps the newest, until nothing is left to do.
    fn prune(&self) {
        for _ in 0..4 {
            let rules = Rules { last: NonZeroU32::new(1), ..Rules::default() };
            prune(&*self.to, "app", &options(&*self.to, rules), &Silent).unwrap();
            check_whole(&*self.to, "pruned");
            self.to.advance(GRACE);
        }
    }

    /// Just this backup is there, with all that it needs.
    #[track_caller]
    fn assert_alone(&self, number: usize, context: &str) {
        let made = &self.made[number];
        let mut expected = made.needs();
        expected.extend(place::side_files(&made.manifest()));
        expected.push(made.manifest());
        expected.sort();
        let mut names = self.to.names();
        names.retain(|name| !name.starts_with(".bk/seen/"));
        assert_eq!(names, expected, "{context}");
    }
}

#[test]
fn what_kept_copies_need_stays_and_what_nothing_needs_goes() {
    let world = World::new();
    world.copy(1).unwrap();
    let of_first = world.made[0].needs().remove(0);
    assert!(world.to.has(&of_first) && !world.to.has(&world.made[0].manifest()));
    world.prune();
    world.assert_alone(1, "one copy");
    world.copy(2).unwrap();
    world.prune();
    // The second's manifest has gone, and the first's object with it; the second's object stays.
    world.assert_alone(2, "two copies");
    assert!(!world.to.has(&of_first));
}

#[test]
fn what_a_copy_left_that_died_is_removed() {
    let mut deaths = 0;
    for changes in 0.. {
        let world = World::new();
        world.copy(2).unwrap();
        let whole = world.to.names();
        world.to.die_after(Some(changes));
        let is_done = world.copy(1).is_ok();
        world.to.die_after(None);
        // A list that is alive is left alone.
        let rules = Rules { last: NonZeroU32::new(1), ..Rules::default() };
        prune(&*world.to, "app", &options(&*world.to, rules), &Silent).unwrap();
        assert!(whole.iter().all(|name| world.to.has(name)));
        world.to.advance(GRACE);
        world.prune();
        world.assert_alone(2, &format!("died after {changes} changes"));
        if is_done {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 8, "{deaths}");
}

/// A prune may mark what a copy under way relies on, and the copy be run again.
#[test]
fn a_copy_that_is_run_again_after_a_prune_is_whole() {
    for changes in 0..14 {
        let world = World::new();
        world.copy(2).unwrap();
        world.to.die_after(Some(changes));
        let _ = world.copy(1);
        world.to.die_after(None);
        for hours in [0, 25, 25] {
            world.to.advance(std::time::Duration::from_hours(hours));
            let rules = Rules { last: NonZeroU32::new(5), ..Rules::default() };
            prune(&*world.to, "app", &options(&*world.to, rules), &Silent).unwrap();
            let context = format!("died after {changes}, {hours} h later");
            check_whole(&*world.to, &context);
            if world.copy(1).is_ok() {
                assert!(world.to.has(&world.made[1].manifest()), "{context}");
            }
            check_whole(&*world.to, &context);
        }
        world.copy(1).unwrap();
        check_whole(&*world.to, "in the end");
    }
}
