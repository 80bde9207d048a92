//! Real pushes, prunes and undeletes of several hosts at once, without any lock: every operation of
//! one may fall between any two of another, each may stop for longer than the grace time or be
//! killed, clocks are wrong. Every backup that is listed restores to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::Scope;
use std::time::Duration;

use bk_manifest::entry::Entry;
use bk_manifest::exit::Exit;
use bk_manifest::manifest::{
    Application, Backup, Header, HostPath, Layout, ParentFile, Run, Source, SourceKind, Trailer,
};
use bk_manifest::path::RelPath;
use bk_manifest::progress::Silent;
use bk_manifest::select::Selection;
use bk_manifest::spool::Document;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use bk_push::bucket::Connect;
use bk_push::catalog::{Catalog, Folders};
use bk_push::destination::{Destination, ErrorKind};
use bk_push::fetch;
use bk_push::identity::Identities;
use bk_push::memory::store_on;
use bk_push::store::{Marker, Store};
use bk_push::{partial, place};

use crate::prune::prune;
use crate::rules::Rules;
use crate::survey::Survey;
use crate::testing::{GRACE, Memory, Random, options, seeds};
use crate::turns::{Turn, Turns};
use crate::undelete::undelete;

/// The component that the files are of; some backups have them as plain files.
const COMPONENT: &str = "minio";
/// Contents that files may have: so few that some come again.
const CONTENTS: u64 = 30;
/// Runs at once.
const AT_ONCE: usize = 4;
/// Runs of one round.
const RUNS: usize = 14;

/// The files of an application: path and content.
type Tree = BTreeMap<String, Vec<u8>>;

/// A push that was begun.
struct Pushed {
    tree: Tree,
    /// Whether it has ended by itself, with a backup or with an error.
    is_done: Option<bool>,
    is_suspended: bool,
}

/// What one round has in its hands.
struct Round<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    random: Random,
    memory: Arc<Memory>,
    turns: Arc<Turns>,
    /// The application's files as they are now.
    tree: Tree,
    /// The pushes by id, also while they run.
    pushes: Arc<Mutex<BTreeMap<String, Pushed>>>,
    /// What each manifest that was seen needs.
    needs: BTreeMap<String, BTreeSet<String>>,
    names: Vec<String>,
    begun: usize,
    renewals: u32,
}

/// Plays one round; returns how many pushes made a backup.
fn play(seed: u64) -> usize {
    println!("BK_TEST_SEED={seed}");
    std::thread::scope(|scope| {
        let mut round = Round {
            scope,
            random: Random(seed),
            memory: Arc::new(Memory::new("2026-01-01T00:00:00Z")),
            turns: Arc::default(),
            tree: Tree::new(),
            pushes: Arc::default(),
            needs: BTreeMap::new(),
            names: Vec::new(),
            begun: 0,
            renewals: 0,
        };
        round.play();
        let pushes = round.pushes.lock().unwrap();
        pushes.values().filter(|push| push.is_done == Some(true)).count()
    })
}

impl Round<'_, '_> {
    fn play(&mut self) {
        // How long one run goes on before another's turn, and how often one falls asleep before an
        // operation, to sleep through the whole of some others.
        let (stays, sleeps) = (self.random.below(100), self.random.below(20));
        let mut last = None;
        let mut asleep: BTreeMap<usize, usize> = BTreeMap::new();
        loop {
            let standing = self.turns.standing();
            self.check_whole();
            asleep.retain(|run, until| standing.contains_key(run) && *until > self.begun);
            let awake: Vec<usize> =
                standing.keys().copied().filter(|run| !asleep.contains_key(run)).collect();
            let may_begin = self.begun < RUNS && standing.len() < AT_ONCE;
            if may_begin && (awake.is_empty() || self.random.chance(5)) {
                self.begin();
            } else if standing.is_empty() {
                break;
            } else if awake.is_empty() {
                asleep.clear();
            } else {
                let count = awake.len() as u64;
                let picked = awake[usize::try_from(self.random.below(count)).unwrap()];
                let stay = last.filter(|run| awake.contains(run) && self.random.chance(stays));
                let run = stay.unwrap_or(picked);
                // Most often where it hurts.
                let sleeps = if standing[&run] { 150 } else { sleeps };
                let chance = self.random.below(1000);
                if chance < 3 {
                    self.turns.kill(run);
                } else if chance < 3 + sleeps {
                    let others = 1 + usize::try_from(self.random.below(6)).unwrap();
                    asleep.insert(run, self.begun + others);
                } else {
                    self.turns.go(run);
                }
                last = Some(run);
            }
        }
        self.check_restores();
    }

    /// Time goes by: a minute or much more, in which who sleeps renews nothing.
    fn pass(&mut self) {
        for push in self.pushes.lock().unwrap().values_mut() {
            push.is_suspended ^= self.random.chance(30);
        }
        for _ in 0..=self.random.below(7) {
            self.memory.advance(GRACE / 4);
            for (id, push) in &*self.pushes.lock().unwrap() {
                let list = format!("{}/{id}", partial::FOLDER);
                let has_begun = self.memory.has(&place::join(&list, partial::BEGUN));
                if push.is_done.is_none() && !push.is_suspended && has_begun {
                    self.renewals += 1;
                    self.memory.store(&format!("{list}/renewed-{:06}", self.renewals), b"");
                }
            }
        }
    }

    /// What a host's clock says: now and then it is wrong by a day.
    fn clock(&mut self) -> Time {
        let (seconds, _) = self.memory.now().unwrap().unix();
        let wrong = if self.random.chance(10) { 86_400 } else { 0 };
        let sign = if self.random.chance(50) { 1 } else { -1 };
        Time::from_unix(seconds + sign * wrong, 0)
    }

    fn begin(&mut self) {
        let run = self.begun;
        self.begun += 1;
        let turn = Turn { memory: Arc::clone(&self.memory), turns: Arc::clone(&self.turns), run };
        self.memory.advance(Duration::from_secs(1));
        if self.random.chance(75) {
            self.pass();
        }
        self.turns.begin(run);
        match self.random.below(100) {
            0..50 => self.begin_push(turn),
            50..93 => self.begin_prune(turn),
            _ => {
                self.begin_run(turn, |turn| {
                    let survey = Survey::read(turn, GRACE, None)?;
                    undelete(turn, &survey, "app", "vm1").map(drop)
                });
            }
        }
    }

    /// Has a run do its work on a thread of its own.
    fn begin_run(
        &mut self,
        turn: Turn,
        work: impl FnOnce(&Turn) -> anyhow::Result<()> + Send + 'static,
    ) {
        self.scope.spawn(move || {
            let _ending = turn.ending();
            // Whoever may be killed may fail; what counts is what is left.
            let _ = work(&turn);
        });
    }

    fn begin_prune(&mut self, turn: Turn) {
        let last = NonZeroU32::new(1);
        let mut options = options(&*self.memory, Rules { last, ..Rules::default() });
        options.policy.now = self.clock();
        self.begin_run(turn, move |turn| prune(turn, "app", &options, &Silent).map(drop));
    }

    fn begin_push(&mut self, turn: Turn) {
        let time = self.clock();
        let id = format!("backup-{}-{:08x}", time.format("%Y%m%d-%H%M%S"), turn.run);
        for name in ["a", "b", "c"] {
            if self.tree.len() < 3 || self.random.chance(50) {
                let content = format!("content {}\n", self.random.below(CONTENTS));
                self.tree.insert(place::join(COMPONENT, name), content.repeat(20).into_bytes());
            }
        }
        let tree = self.tree.clone();
        let keeps_places = self.random.chance(70);
        let layout = if turn.run % 3 < 2 { Layout::Plain } else { Layout::Packed };
        let begun = Pushed { tree: tree.clone(), is_done: None, is_suspended: false };
        self.pushes.lock().unwrap().insert(id.clone(), begun);
        let pushes = Arc::clone(&self.pushes);
        self.begin_run(turn, move |turn| {
            let backup =
                Backup { id: id.clone(), timestamp: time.to_string(), ..Backup::default() };
            let result = push(turn, &backup, &tree, keeps_places, layout);
            pushes.lock().unwrap().get_mut(&id).unwrap().is_done = Some(result.is_ok());
            result
        });
    }

    /// Whether a manifest stands for a whole backup: not while its push is still at work, and not if
    /// that was killed before it could look again after a late commit.
    fn is_answered_for(&self, manifest: &str) -> bool {
        match self.pushes.lock().unwrap()[id_of(manifest)].is_done {
            None => false,
            Some(is_well) => is_well || !self.turns.is_late(manifest),
        }
    }

    /// Every backup that is listed has all its objects.
    fn check_whole(&mut self) {
        let names = self.memory.names();
        if names == self.names {
            return;
        }
        let there: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        for manifest in names.iter().filter(|name| place::is_manifest(name)) {
            if !self.needs.contains_key(manifest) {
                let needs = self.entries(manifest).into_iter().map(|(object, _)| object).collect();
                self.needs.insert(manifest.clone(), needs);
            }
            let id = id_of(manifest);
            if !self.is_answered_for(manifest) {
                continue;
            }
            for object in &self.needs[manifest] {
                assert!(there.contains(object.as_str()), "'{id}' has lost '{object}'");
            }
        }
        self.names = names;
    }

    /// The files of a backup, each with the object that holds it.
    fn entries(&self, manifest: &str) -> Vec<(String, Entry)> {
        let mut reader = Reader::new(self.memory.read(manifest, None).unwrap()).unwrap();
        let folders = Folders::new(reader.header(), place::parent(manifest)).unwrap();
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let at = entry.at.as_ref().unwrap();
            entries.push((folders.object(at.backup.as_deref(), &at.object).unwrap(), entry));
        }
        reader.end().unwrap();
        entries
    }

    /// The files of a backup as they come back.
    fn fetch(&self, manifest: &str) -> Tree {
        let target = tempfile::tempdir().unwrap();
        let options = fetch::Options {
            target: target.path().to_owned(),
            selection: Selection::new::<&str>(&[], &[]).unwrap(),
            occupied: fetch::Occupied::Refuse,
            is_dry: false,
            identities: Identities::default(),
            temporary: std::env::temp_dir(),
            now: Time::now(),
        };
        let mut document = Document::read(self.memory.read(manifest, None).unwrap()).unwrap();
        let exit = fetch::fetch(&mut document, &store_on(&self.memory, GRACE), &options, &Silent);
        assert_eq!(exit.unwrap(), Exit::Done);
        let content = |path: &String| std::fs::read(target.path().join(path)).unwrap();
        let folder = target.path().join(COMPONENT);
        let paths = names(&folder).map(|name| place::join(COMPONENT, &name));
        paths.map(|path| (path.clone(), content(&path))).collect()
    }

    /// Every backup that is listed holds the files that its push was given.
    fn check_restores(&self) {
        let is_whole = |name: &&String| place::is_manifest(name) && self.is_answered_for(name);
        let listed: Vec<&String> = self.names.iter().filter(is_whole).collect();
        let pushes = self.pushes.lock().unwrap();
        for manifest in &listed {
            let id = id_of(manifest);
            assert_eq!(self.fetch(manifest), pushes[id].tree, "{id}");
        }
        let has_pushed = pushes.values().any(|push| push.is_done == Some(true));
        assert!(!has_pushed || !listed.is_empty(), "no backup is left");
    }
}

impl Drop for Round<'_, '_> {
    fn drop(&mut self) {
        // A round that has failed lets nobody wait for ever.
        for run in 0..self.begun {
            self.turns.kill(run);
        }
    }
}

/// The names of the files in a folder.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    let names = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
    names.map(|name| name.into_string().unwrap())
}

/// The id of the backup that a manifest is of.
fn id_of(manifest: &str) -> &str {
    place::parent(manifest).rsplit('/').next().unwrap()
}

/// One backup, from the search for its parent to the commit.
fn push(
    turn: &Turn,
    backup: &Backup,
    tree: &Tree,
    keeps_places: bool,
    layout: Layout,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().join(COMPONENT);
    std::fs::create_dir(&root)?;
    for (path, content) in tree {
        File::create(folder.path().join(path))?.write_all(content)?;
    }
    let (parent, known) = parent(turn, &folder.path().join(".parent.json"))?;
    let source = Source {
        component: COMPONENT.into(),
        kind: SourceKind::Tree,
        root: HostPath(root.as_os_str().as_bytes().to_vec()),
        prefix: HostPath(COMPONENT.into()),
        paths: Vec::new(),
        access: None,
        layout,
    };
    let run = Run { sources: vec![source], parent, ..Run::default() };
    let application = Application { name: "app".into(), version: None };
    let header = Header::new(&application, Some(backup), &run);
    let mut writer = Writer::new(Vec::new(), Format::Json, header)?;
    for (path, content) in tree {
        let mut entry = Entry::new(RelPath::new(path.as_str())?);
        entry.component = Some(COMPONENT.into());
        entry.size = Some(content.len() as u64);
        // Where it lies in the parent, as `add` would claim for an unchanged file.
        let checksum = bk_manifest::digest::Digest::of(content);
        let known = known.iter().find(|known| keeps_places && known.checksum == Some(checksum));
        if let Some(known) = known {
            entry.set_content(checksum, content.len() as u64);
            entry.at.clone_from(&known.at);
        }
        writer.entry(&entry)?;
    }
    let (document, _) = writer.end(Trailer::default())?;
    let marker = Marker { id: "memory".into(), grace_seconds: GRACE.as_secs() };
    let store = Store { destination: Box::new(turn.clone()), marker };
    let options = bk_push::push::Options::default();
    let none: Connect<'_> = &|_, _| anyhow::bail!("no buckets here");
    let document = Reader::new(&document[..])?;
    bk_push::push::push(document, std::io::sink(), &store, &options, none, &Silent)?;
    Ok(())
}

/// The latest backup, written to a file, and its entries as a child refers to them.
fn parent(turn: &Turn, file: &Path) -> anyhow::Result<(Option<ParentFile>, Vec<Entry>)> {
    let catalog = Catalog::read(turn)?;
    let Some(latest) = catalog.backups.last() else { return Ok((None, Vec::new())) };
    let mut bytes = Vec::new();
    match turn.read(&latest.manifest.name, None) {
        Ok(mut manifest) => manifest.read_to_end(&mut bytes)?,
        Err(error) if error.kind == ErrorKind::NotFound => return Ok((None, Vec::new())),
        Err(error) => return Err(error.into()),
    };
    File::create(file)?.write_all(&bytes)?;
    let mut reader = Reader::new(&bytes[..])?;
    let mut entries = Vec::new();
    while let Some(mut entry) = reader.next_entry()? {
        let at = entry.at.as_mut().unwrap();
        at.backup.get_or_insert_with(|| latest.id.clone());
        entries.push(entry);
    }
    Ok((Some(ParentFile { file: file.to_str().unwrap().to_owned() }), entries))
}

#[test]
fn every_listed_backup_restores_whoever_pushes_and_prunes_at_once() {
    let seeds = seeds(300);
    let done = std::thread::scope(|scope| {
        let (one, other) = seeds.split_at(seeds.len() / 2);
        let halves =
            [one, other].map(|half| scope.spawn(|| half.iter().map(|seed| play(*seed)).sum()));
        halves.map(|half| half.join().unwrap()).iter().sum::<usize>()
    });
    println!("{done} pushes were done");
    assert!(done >= seeds.len(), "the rounds do hardly anything: {done}");
}
