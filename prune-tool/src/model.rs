//! Random runs of push, prune, undelete and kill against the two promises: every listed backup has
//! all its objects at every moment, and in the end nothing is left that nothing needs.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use bk_manifest::time::Time;
use bk_push::destination::Destination;
use bk_push::mark::{self, Marked};
use bk_push::{catalog::Catalog, place};

use crate::prune::prune;
use crate::rules::Rules;
use crate::survey::Survey;
use crate::testing::{GRACE, Made, Memory, PLAIN, Random, check_whole, needed, options, seeds};
use crate::undelete::undelete;
use bk_manifest::progress::Silent;

/// A push between its begin and its commit.
struct Push {
    made: Made,
    looked: Option<Time>,
    renewals: u32,
    is_suspended: bool,
}

struct World {
    store: Memory,
    random: Random,
    pushes: Vec<Push>,
    dead: Vec<Made>,
    committed: Vec<Made>,
    context: String,
}

impl World {
    fn new(seed: u64) -> Self {
        World {
            store: Memory::new("2026-01-01T00:00:00Z"),
            random: Random(seed),
            pushes: Vec::new(),
            dead: Vec::new(),
            committed: Vec::new(),
            context: format!("BK_TEST_SEED={seed}"),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..20 => self.begin_push(),
            20..35 => self.look(),
            35..55 => self.commit(),
            55..60 => self.kill_push(),
            60..80 => self.advance(),
            80..95 => self.prune(),
            _ => self.undelete(),
        }
        check_whole(&self.store, &self.context);
        if let Some(newest) = self.committed.last() {
            assert!(self.store.has(&newest.manifest()), "the newest is gone: {}", self.context);
        }
    }

    fn begin_push(&mut self) {
        // A second apart, so that no two have the same id.
        self.store.advance(Duration::from_secs(1));
        let mut made = Made::new(&self.store.now().unwrap().to_string());
        if self.random.chance(20) {
            made = made.partial();
        }
        made.own = (0..=self.random.below(3)).map(|n| format!("files/{n:06}.tar.zst")).collect();
        if self.random.chance(50) {
            made.own.extend((0..self.random.below(4)).map(|n| format!("{PLAIN}{n}")));
        }
        let mut parents: Vec<Made> = self.committed.iter().rev().take(3).cloned().collect();
        parents.extend(self.dead.iter().cloned());
        for parent in parents {
            if self.random.chance(50) {
                made = made.on(&parent);
            }
        }
        made.inherited.sort();
        made.inherited.dedup();
        let random = &mut self.random;
        made.inherited.retain(|_| random.chance(70));
        made.begin_list(&self.store);
        made.put_objects(&self.store);
        self.pushes.push(Push { made, looked: None, renewals: 0, is_suspended: false });
    }

    fn pick(&mut self) -> Option<usize> {
        let count = self.pushes.len() as u64;
        (count > 0).then(|| usize::try_from(self.random.below(count)).unwrap())
    }

    /// First the marks, then the presence of everything needed; what is marked or gone is stored
    /// again.
    fn look(&mut self) {
        let Some(index) = self.pick() else { return };
        let Push { made, looked, .. } = &mut self.pushes[index];
        let store = &self.store;
        let marked = Marked::of(&mark::read_all(store).unwrap()).unwrap();
        let is_lost = |name: &str| marked.contains(name).unwrap() || !store.has(name);
        let mut again = 0;
        made.inherited.retain(|(_, folder, object)| {
            let lost = is_lost(&place::join(folder, object));
            again += u64::from(lost);
            !lost
        });
        let folder = made.folder();
        made.own.retain(|object| {
            let lost = is_lost(&place::join(&folder, object));
            again += u64::from(lost);
            !lost
        });
        for _ in 0..again {
            let number = self.random.next();
            let object = format!("files/again-{number:016x}.tar.zst");
            made.name_object(store, usize::try_from(number >> 1).unwrap(), &object);
            store.store(&place::join(&folder, &object), object.as_bytes());
            made.own.push(object);
        }
        *looked = Some(store.now().unwrap());
    }

    fn commit(&mut self) {
        let Some(index) = self.pick() else { return };
        let now = self.store.now().unwrap();
        let is_fresh = |looked: Time| now.since(looked) < GRACE / 2;
        if !self.pushes[index].looked.is_some_and(is_fresh) {
            return;
        }
        let made = self.pushes.swap_remove(index).made;
        made.commit(&self.store);
        made.end_list(&self.store);
        self.committed.push(made);
        self.committed.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
    }

    fn kill_push(&mut self) {
        let Some(index) = self.pick() else { return };
        let push = self.pushes.swap_remove(index);
        if self.random.chance(30) {
            // It had come as far as its side files.
            push.made.begin(&self.store);
            for side in place::side_files(&push.made.manifest()) {
                self.store.store(&side, b"side\n");
            }
        }
        self.dead.push(push.made);
    }

    fn advance(&mut self) {
        if let Some(index) = self.pick()
            && self.random.chance(20)
        {
            self.pushes[index].is_suspended ^= true;
        }
        for _ in 0..=self.random.below(5) {
            self.store.advance(GRACE / 4);
            for push in &mut self.pushes {
                if !push.is_suspended {
                    push.renewals += 1;
                    let piece = push.made.piece(&format!("renewed-{}", push.renewals));
                    self.store.store(&piece, b"");
                }
            }
        }
    }

    fn rules(&mut self) -> Rules {
        let count = NonZeroU32::new(1 + u32::try_from(self.random.below(3)).unwrap());
        if self.random.chance(50) {
            Rules { last: count, ..Rules::default() }
        } else {
            Rules { daily: count, ..Rules::default() }
        }
    }

    fn prune(&mut self) {
        let dies = self.random.chance(50).then(|| self.random.below(25));
        let rules = self.rules();
        let options = options(&self.store, rules);
        self.store.die_after(dies);
        let result = prune(&self.store, "app", &options, &Silent);
        self.store.die_after(None);
        if dies.is_none() {
            let error = result.err().map(|error| format!("{error:#}"));
            assert_eq!(error, None, "{}", self.context);
        }
    }

    fn undelete(&mut self) {
        let dies = self.random.chance(30).then(|| self.random.below(5));
        let survey = Survey::read(&self.store, GRACE, None).unwrap();
        self.store.die_after(dies);
        let result = undelete(&self.store, &survey, "app", "vm1");
        self.store.die_after(None);
        assert!(dies.is_some() || result.is_ok(), "{}", self.context);
    }

    /// With nobody at work and time going by, only what is needed stays.
    fn settle(&mut self) {
        while !self.pushes.is_empty() {
            self.kill_push();
        }
        for _ in 0..5 {
            self.store.advance(GRACE);
            let last = NonZeroU32::new(2);
            let options = options(&self.store, Rules { last, ..Rules::default() });
            prune(&self.store, "app", &options, &Silent).unwrap();
            check_whole(&self.store, &self.context);
        }
        let catalog = Catalog::read(&self.store).unwrap();
        if catalog.backups.is_empty() {
            return;
        }
        let mut accounted = BTreeSet::new();
        for backup in &catalog.backups {
            accounted.extend(needed(&self.store, backup));
            accounted.extend(place::side_files(&backup.manifest.name));
            accounted.insert(backup.manifest.name.clone());
        }
        let left: Vec<String> = self
            .store
            .names()
            .into_iter()
            .filter(|name| !accounted.contains(name) && !name.starts_with(".bk/seen/"))
            .collect();
        assert_eq!(left, [""; 0], "left over: {}", self.context);
        assert!(catalog.backups.len() <= 5, "{}", self.context);
    }
}

#[test]
fn nothing_kept_is_ever_lost_and_nothing_is_left_for_ever() {
    for seed in seeds(60) {
        let mut world = World::new(seed);
        for _ in 0..120 {
            world.step();
        }
        world.settle();
    }
}
