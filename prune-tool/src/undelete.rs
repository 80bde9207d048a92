//! Takes marks back, as long as what they name is still there.

use std::collections::BTreeSet;

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::path::escape;
use bk_push::destination::Destination;
use bk_push::mark::{Mark, PlacedMark};
use bk_push::names::Names;
use bk_push::place;

use crate::needs::{Needs, Sets};
use crate::remove;
use crate::survey::Survey;
use crate::table::{DUE, KEPT, Table};

/// What taking marks back brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undeleted {
    /// Ids of the backups that are back.
    pub back: Vec<String>,
    /// Ids of those that were named but are gone.
    pub gone: Vec<String>,
}

/// The series whose marks are meant: the named one, or the only one that has any.
///
/// # Errors
/// [`Exit::Usage`] if several have and none was named.
pub fn series(survey: &Survey, name: Option<&str>) -> anyhow::Result<Option<String>> {
    if let Some(name) = name {
        return Ok(Some(name.to_owned()));
    }
    let all: BTreeSet<&str> =
        survey.marks.iter().map(|placed| placed.mark.series.as_str()).collect();
    if all.len() > 1 {
        let names: Vec<String> = all.iter().map(|name| escape(name.as_bytes())).collect();
        return Err(Failure::new(Exit::Usage, "several series have marked backups")
            .hint(format!("say which with --app (and --series): {}", names.join(", ")))
            .into());
    }
    Ok(all.first().map(|name| (*name).to_owned()))
}

/// What taking back the marks of a series would bring.
pub fn preview(survey: &Survey, series: &str) -> Undeleted {
    let marks = marks_of(survey, series);
    let here: BTreeSet<&str> =
        survey.catalog.backups.iter().map(|backup| backup.id.as_str()).collect();
    let ids: BTreeSet<&str> =
        marks.iter().flat_map(|placed| &placed.mark.backups).map(String::as_str).collect();
    let (back, gone) =
        ids.into_iter().map(str::to_owned).partition(|id| here.contains(id.as_str()));
    Undeleted { back, gone }
}

/// Takes back the marks of a series. The lock is the caller's.
///
/// Manifests are deleted before any object, so a backup whose manifest is there has all it needs.
/// What no backup needs (a deletion that did not end, what dead pushes left) is marked anew first,
/// for it must not be forgotten; it waits the grace time again.
///
/// # Errors
/// Those of the destination, and any manifest that cannot be read.
pub fn undelete(
    destination: &dyn Destination,
    survey: &Survey,
    series: &str,
    host: &str,
) -> anyhow::Result<Undeleted> {
    let result = preview(survey, series);
    let marks = marks_of(survey, series);
    if result.back.is_empty() {
        return Ok(result);
    }
    let rest = rest(destination, survey, &marks, &result)?;
    if !rest.manifests.is_empty() || !rest.objects.is_empty() {
        let rest = Mark { host: host.to_owned(), series: series.to_owned(), ..rest };
        remove::put_mark(destination, &rest, survey.now)?;
    }
    let names: Vec<String> = marks.iter().map(|placed| placed.object.name.clone()).collect();
    remove::delete(destination, &names)?;
    Ok(result)
}

fn marks_of<'a>(survey: &'a Survey, series: &str) -> Vec<&'a PlacedMark> {
    survey.marks.iter().filter(|placed| placed.mark.series == series).collect()
}

/// What the marks name and no backup needs, as far as it is there.
fn rest(
    destination: &dyn Destination,
    survey: &Survey,
    marks: &[&PlacedMark],
    result: &Undeleted,
) -> anyhow::Result<Mark<Names>> {
    let mut manifests: BTreeSet<&str> =
        marks.iter().flat_map(|placed| &placed.mark.manifests).map(String::as_str).collect();
    let (mut table, mut sets) = (Table::default(), Sets::default());
    let mut with_plain = Vec::new();
    for backup in &survey.catalog.backups {
        bk_manifest::signal::check()?;
        let manifest = backup.manifest.name.as_str();
        manifests.remove(manifest);
        for side in place::side_files(manifest) {
            manifests.remove(side.as_str());
        }
        let needs = Needs::read(destination, backup)?;
        for object in &needs.objects {
            table.add(&object.name, KEPT)?;
        }
        sets.add(&needs.sets);
        if !needs.sets.is_empty() {
            with_plain.push((backup, needs.sets));
        }
    }
    for name in marks.iter().flat_map(|placed| placed.mark.objects.iter()) {
        bk_manifest::signal::check()?;
        let name = name?;
        table.add(&name, DUE)?;
        sets.shrink(&name);
    }
    for (backup, folders) in with_plain {
        if sets.shrinks(&folders) {
            let needs = Needs::read(destination, backup)?;
            needs
                .each_plain(destination, backup, &mut |name, _| table.add(name, KEPT).map(drop))?;
        }
    }
    let borders = &survey.catalog.borders;
    let mut objects = Names::default();
    for object in destination.list("")? {
        bk_manifest::signal::check()?;
        let name = object?.name;
        let state = table.get(&name)?;
        if state.has(DUE) && !state.has(KEPT) && !borders.is_beyond(&name) {
            objects.add(&name)?;
        }
    }
    let mut left = Vec::new();
    for name in manifests {
        if !borders.is_beyond(name) && destination.stat(name)?.is_some() {
            left.push(name.to_owned());
        }
    }
    Ok(Mark { backups: result.gone.clone(), manifests: left, objects, ..Mark::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::prune;
    use crate::rules::Rules;
    use crate::testing::{GRACE, Made, Memory, check_whole, options};
    use bk_manifest::progress::Silent;
    use std::num::NonZeroU32;

    fn marked() -> (Memory, Vec<Made>) {
        let store = Memory::new("2026-05-01T00:00:00Z");
        let made: Vec<Made> = (26..=29)
            .map(|day| Made::new(&format!("2026-04-{day}T02:00:00Z")))
            .map(|made| made.with_plain(&["a", "b"]).store(&store))
            .collect();
        run(&store, 1);
        (store, made)
    }

    fn run(store: &Memory, last: u32) -> Vec<String> {
        let rules = Rules { last: NonZeroU32::new(last), ..Rules::default() };
        prune(store, "app", &options(store, rules), &Silent)
            .map_or_else(|_| Vec::new(), |o| o.removed)
    }

    fn take_back(store: &Memory) -> Undeleted {
        let survey = Survey::read(store, GRACE, None).unwrap();
        assert_eq!(series(&survey, None).unwrap().as_deref(), Some("app"));
        let preview = preview(&survey, "app");
        let result = undelete(store, &survey, "app", "vm1").unwrap();
        assert_eq!(result, preview);
        result
    }

    #[test]
    fn what_was_marked_comes_back() {
        let (store, made) = marked();
        let result = take_back(&store);
        assert_eq!(result.back, made[..3].iter().map(|m| m.id.clone()).collect::<Vec<_>>());
        assert!(!store.names().iter().any(|name| name.starts_with(".bk/marks/")));
        store.advance(GRACE);
        assert_eq!(run(&store, 4), [""; 0]);
        assert!(made.iter().all(|made| store.has(&made.manifest())));
    }

    #[test]
    fn after_a_deletion_that_died_what_is_there_comes_back_and_the_rest_still_goes() {
        for changes in 0..30 {
            let (store, made) = marked();
            store.advance(GRACE);
            store.die_after(Some(changes));
            run(&store, 1);
            store.die_after(None);
            let survey = Survey::read(&store, GRACE, None).unwrap();
            if survey.marks.is_empty() {
                return;
            }
            let here: Vec<String> = made[..3]
                .iter()
                .filter(|made| store.has(&made.manifest()))
                .map(|made| made.id.clone())
                .collect();
            assert_eq!(take_back(&store).back, here, "{changes}");
            check_whole(&store, &changes.to_string());
            store.advance(GRACE);
            run(&store, 9);
            store.advance(GRACE);
            run(&store, 9);
            for made in &made[..3] {
                let is_back = here.contains(&made.id);
                for name in made.needs().into_iter().chain([made.manifest()]) {
                    assert_eq!(store.has(&name), is_back, "{name} {changes}");
                }
            }
        }
        panic!("the deletion never ended");
    }

    #[test]
    fn several_series_are_told_apart() {
        let (store, _) = marked();
        let mark: Mark = Mark { series: "other".into(), ..Mark::default() };
        remove::put_mark(&store, &mark, store.now().unwrap()).unwrap();
        let survey = Survey::read(&store, GRACE, None).unwrap();
        let error = series(&survey, None).unwrap_err();
        assert_eq!(bk_manifest::exit::classify(&error), Exit::Usage);
        assert_eq!(series(&survey, Some("app")).unwrap().as_deref(), Some("app"));
    }
}
