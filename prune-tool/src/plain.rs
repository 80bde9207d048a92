//! Backups with plain files: what stands in entries alone is kept and removed file by file.

use std::num::NonZeroU32;

use bk_manifest::exit::{Exit, classify};
use bk_manifest::progress::Silent;
use bk_push::place;

use crate::prune::{Outcome, plan, prune};
use crate::rules::Rules;
use crate::survey::Survey;
use crate::testing::{GRACE, Made, Memory, PLAIN, check_whole, options};
use crate::undelete::undelete;

fn last(count: u32) -> Rules {
    Rules { last: NonZeroU32::new(count), ..Rules::default() }
}

fn run(store: &Memory, count: u32) -> anyhow::Result<Outcome> {
    prune(store, "app", &options(store, last(count)), &Silent)
}

/// Runs until nothing is left to do.
fn settle(store: &Memory, count: u32) {
    for _ in 0..4 {
        run(store, count).unwrap();
        check_whole(store, "settled");
        store.advance(GRACE);
    }
}

fn plain(made: &Made, name: &str) -> String {
    place::join(&made.folder(), &format!("{PLAIN}{name}"))
}

/// The plain files of a backup that are there.
fn there(store: &Memory, made: &Made) -> Vec<String> {
    let folder = plain(made, "");
    let names = store.names();
    names.iter().filter_map(|name| name.strip_prefix(&folder)).map(str::to_owned).collect()
}

/// A full backup of four files, one that needs two of them, and one that needs one of these.
fn chain() -> (Memory, [Made; 3]) {
    let store = Memory::new("2026-05-01T00:00:00Z");
    let first = Made::new("2026-04-26T02:00:00Z").with_plain(&["a", "b", "c/d", "e"]);
    let first = first.store(&store);
    let heir = |time: &str, parent: &Made, names: &[&str]| {
        let mut heir = Made::new(time).with_plain(&["own"]).on(parent);
        heir.inherited.retain(|(id, _, object)| {
            *id == first.id && names.iter().any(|name| *object == format!("{PLAIN}{name}"))
        });
        heir.store(&store)
    };
    let second = heir("2026-04-27T02:00:00Z", &first, &["b", "c/d"]);
    let third = heir("2026-04-28T02:00:00Z", &second, &["c/d"]);
    (store, [first, second, third])
}

#[test]
fn what_a_kept_backup_refers_to_stays_file_by_file() {
    let (store, [first, second, third]) = chain();
    settle(&store, 2);
    assert_eq!(there(&store, &first), ["b", "c/d"]);
    assert!(!store.has(&first.manifest()));
    settle(&store, 1);
    assert_eq!(there(&store, &first), ["c/d"]);
    assert!(there(&store, &second).is_empty());
    assert_eq!(there(&store, &third), ["own"]);
}

#[test]
fn marks_and_reports_count_plain_files() {
    let (store, [first, ..]) = chain();
    let read = plan(&store, "app", &options(&store, last(2)), &Silent).unwrap();
    // The volume, two files, the side files, the manifest.
    assert_eq!(read.marked.objects, 1 + 2 + 3 + 1);
    assert_eq!(read.strangers.count, 0, "{:?}", read.strangers);
    let volume = "files/000001.tar.zst".len() as u64;
    assert_eq!(read.lines[0].backup.stored, volume + 1, "its own plain files are counted");
    let named: Vec<String> = read.mark.unwrap().objects.iter().map(Result::unwrap).collect();
    let mut due = [plain(&first, "a"), plain(&first, "e")].to_vec();
    due.insert(0, first.needs()[0].clone());
    assert_eq!(named, due);
    run(&store, 2).unwrap();
    store.advance(GRACE);
    let freed = run(&store, 2).unwrap().freed;
    assert_eq!((freed.objects, freed.bytes), (read.marked.objects, read.marked.bytes));
}

/// A full backup with plain files, a long one that builds on it and whose entries are damaged in
/// the middle, and one that needs neither.
fn damaged() -> (Memory, Made) {
    let store = Memory::new("2026-05-01T00:00:00Z");
    let first = Made::new("2026-04-26T02:00:00Z").with_plain(&["a", "b"]).store(&store);
    let mut second = Made::new("2026-04-27T02:00:00Z");
    second.inherited = vec![(first.id.clone(), first.folder(), format!("{PLAIN}b")); 9000];
    let second = second.store(&store);
    Made::new("2026-04-28T02:00:00Z").store(&store);
    store.change(&second.manifest(), |bytes| {
        let text = String::from_utf8(std::mem::take(bytes)).unwrap();
        assert!(text.len() > 1 << 20, "header and trailer would not be read alone");
        *bytes = text.replacen("minio/004500", "minio/00450x", 1).into();
        assert_ne!(text.as_bytes(), bytes.as_slice());
    });
    (store, first)
}

#[test]
fn entries_are_read_only_where_plain_files_are_to_go() {
    let (store, first) = damaged();
    let before = store.names();
    let error = run(&store, 2).unwrap_err();
    assert_eq!(classify(&error), Exit::Malformed, "{error:#}");
    assert_eq!(store.names(), before);
    // Nothing is to go; or nothing that it could need.
    run(&store, 3).unwrap();
    let mut other = Made::new("2026-01-01T02:00:00Z").with_plain(&["x"]);
    other.series = "other".into();
    other.store(&store);
    let mut newest = Made::new("2026-01-02T02:00:00Z");
    newest.series = "other".into();
    newest.store(&store);
    let outcome = prune(&store, "other", &options(&store, last(1)), &Silent).unwrap();
    assert_eq!(outcome.marked.len(), 1);
    assert_eq!(there(&store, &first).len(), 2);
}

#[test]
fn what_a_dead_push_left_goes_but_for_what_was_taken_over() {
    let (store, [_, _, third]) = chain();
    let dead = Made::new("2026-04-29T02:00:00Z").with_plain(&["x", "y"]);
    dead.begin_list(&store);
    dead.put_objects(&store);
    let mut heir = Made::new("2026-04-30T02:00:00Z").on(&dead);
    heir.inherited.retain(|(.., object)| object == "minio/y");
    let heir = heir.store(&store);
    let survey = plan(&store, "app", &options(&store, last(9)), &Silent).unwrap();
    assert_eq!(survey.strangers.count, 0);
    settle(&store, 9);
    assert_eq!(there(&store, &dead), ["y"]);
    assert!(store.has(&heir.manifest()) && store.has(&third.manifest()));
    Made::new("2026-05-01T02:00:00Z").store(&store);
    settle(&store, 1);
    assert!(there(&store, &dead).is_empty());
}

#[test]
fn the_newest_complete_backup_must_have_its_plain_files() {
    let (store, [first, _, third]) = chain();
    for (lost, bytes) in [(plain(&first, "c/d"), None), (plain(&third, "own"), Some("short"))] {
        let (store, _) = chain();
        store.drop_object(&lost);
        if let Some(bytes) = bytes {
            store.store(&lost, bytes.as_bytes());
        }
        let before = store.names();
        let error = run(&store, 1).unwrap_err();
        assert_eq!(classify(&error), Exit::Unmet, "{error:#}");
        assert!(error.to_string().contains(&lost), "{error:#}");
        assert_eq!(store.names(), before);
    }
    run(&store, 1).unwrap();
}

#[test]
fn plain_files_that_nothing_names_are_strangers() {
    let (store, [first, ..]) = chain();
    store.store(&plain(&first, "mine"), b"mine");
    store.store(&place::join(&first.folder(), "mine/a"), b"mine");
    for _ in 0..3 {
        // Once entries were read, it is known which files nothing names.
        let read = plan(&store, "app", &options(&store, last(2)), &Silent).unwrap();
        assert!(read.strangers.count >= 1);
        run(&store, 2).unwrap();
        store.advance(GRACE);
    }
    assert!(store.has(&plain(&first, "mine")) && store.has(&format!("{}/mine/a", first.folder())));
    assert_eq!(there(&store, &first), ["b", "c/d", "mine"]);
}

/// Where one backup's files lie below what another one calls its own.
#[test]
fn a_lying_manifest_takes_no_plain_files_with_it() {
    let (store, [first, _, third]) = chain();
    let mut liar = Made::new("2026-04-20T02:00:00Z");
    let claim = |name: &&str| ("x".into(), String::new(), plain(&first, name));
    liar.inherited = ["c/d", "b"].iter().map(claim).collect();
    let liar = liar.store(&store);
    settle(&store, 1);
    assert!(!store.has(&liar.manifest()) && store.has(&third.manifest()));
    assert_eq!(there(&store, &first), ["c/d"]);
}

#[test]
fn what_was_marked_comes_back_with_its_plain_files() {
    let (store, [first, second, _]) = chain();
    run(&store, 1).unwrap();
    store.advance(GRACE);
    // One manifest is gone, and all else is there.
    store.die_after(Some(1));
    run(&store, 1).unwrap_err();
    store.die_after(None);
    let gone: Vec<&Made> =
        [&first, &second].into_iter().filter(|made| !store.has(&made.manifest())).collect();
    assert_eq!(gone.len(), 1, "{:?}", store.names());
    let survey = Survey::read(&store, GRACE, None).unwrap();
    let back = undelete(&store, &survey, "app", "vm1").unwrap().back;
    assert_eq!(back.len(), 1);
    check_whole(&store, "taken back");
    let is_first = gone[0].id == first.id;
    settle(&store, 9);
    let of_first = there(&store, &first);
    assert_eq!(of_first, if is_first { vec!["b", "c/d"] } else { vec!["a", "b", "c/d", "e"] });
    assert_eq!(there(&store, &second).is_empty(), !is_first);
}
