//! What damage costs: the files in an object, and the other backups that need it.

use std::collections::{HashMap, HashSet};

use bk_manifest::entry::Entry;
use bk_manifest::progress::Progress;
use bk_manifest::stream::Reader;
use bk_push::catalog::{BackupInfo, Catalog, Folders, needed_objects, reread};
use bk_push::destination::Destination;
use bk_push::plain::PlainFiles;

use crate::problem::{Fault, Findings, Problem, Subject};

/// A pass over the entries of the manifest.
pub type EntryPass<'a> =
    dyn FnMut(&mut dyn FnMut(&Entry) -> anyhow::Result<()>) -> anyhow::Result<()> + 'a;

/// Names the files in damaged objects, where reading their content has not named them already.
///
/// # Errors
/// Those of the pass.
pub fn name_files(
    findings: &mut Findings,
    folders: &Folders,
    has_read_content: bool,
    entries: &mut EntryPass<'_>,
) -> anyhow::Result<()> {
    let is_due = |problem: &Problem| match (problem.fault, &problem.subject) {
        // Those of plain files were named when these were looked at.
        (_, Subject::Plain(_)) => false,
        (Fault::Missing | Fault::Size | Fault::Checksum | Fault::Unreadable, _) => {
            !has_read_content
        }
        _ => false,
    };
    let problems = findings.problems_mut();
    let places: HashMap<String, usize> = problems
        .iter()
        .enumerate()
        .filter(|(_, problem)| is_due(problem))
        .filter_map(|(number, problem)| Some((problem.object()?.to_owned(), number)))
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    entries(&mut |entry| {
        let Some(at) = &entry.at else { return Ok(()) };
        let object = folders.object(at.backup.as_deref(), &at.object)?;
        if let Some(number) = places.get(&object) {
            problems[*number].files.add(&entry.path);
        }
        Ok(())
    })
}

/// Names the other backups at the destination that need damaged objects.
///
/// # Errors
/// Those of the listing. A manifest that cannot be read is a warning.
pub fn name_backups(
    findings: &mut Findings,
    destination: &dyn Destination,
    own_id: &str,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let damaged: HashSet<String> =
        findings.problems().iter().filter_map(|p| p.object().map(str::to_owned)).collect();
    if damaged.is_empty() {
        return Ok(());
    }
    let is_plain = |problem: &&Problem| matches!(problem.subject, Subject::Plain(_));
    let plain: HashSet<String> = findings
        .problems()
        .iter()
        .filter(is_plain)
        .filter_map(|problem| problem.object().map(str::to_owned))
        .collect();
    let catalog = Catalog::read(destination)?;
    let mut unreadable: Vec<String> =
        catalog.unreadable.iter().map(|(object, _)| object.name.clone()).collect();
    for backup in catalog.backups.iter().filter(|backup| backup.id != own_id) {
        bk_manifest::signal::check()?;
        let shared = shared(destination, backup, &damaged, &plain);
        bk_manifest::signal::check()?;
        let Ok(shared) = shared else {
            unreadable.push(backup.manifest.name.clone());
            continue;
        };
        for problem in findings.problems_mut() {
            if problem.object().is_some_and(|name| shared.contains(name)) {
                problem.shared_with.push(backup.id.clone());
            }
        }
    }
    for name in unreadable.iter().filter(|name| !damaged.contains(*name)) {
        progress.warn(&format!("'{name}' cannot be read: whether it shares damage is not known"));
    }
    Ok(())
}

/// What a backup needs of damaged objects; of the plain ones among them its entries tell.
fn shared<'d>(
    destination: &dyn Destination,
    backup: &BackupInfo,
    damaged: &'d HashSet<String>,
    plain: &'d HashSet<String>,
) -> anyhow::Result<HashSet<&'d str>> {
    let (header, trailer) = reread(destination, backup)?;
    let needed = needed_objects(&header, &trailer, backup.folder())?;
    let mut shared: HashSet<&str> =
        needed.iter().filter_map(|object| damaged.get(&object.name)).map(String::as_str).collect();
    let files = PlainFiles::new(&header, &trailer, backup.folder())?;
    let folders = files.folders().collect::<anyhow::Result<Vec<String>>>()?;
    let is_in = |name: &String, folder: &String| {
        name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    };
    if !plain.iter().any(|name| folders.iter().any(|folder| is_in(name, folder))) {
        return Ok(shared);
    }
    let mut reader = Reader::new(destination.read(&backup.manifest.name, None)?)?;
    while let Some(entry) = reader.next_entry()? {
        bk_manifest::signal::check()?;
        if let Some(object) = files.object(&entry)?
            && let Some(name) = plain.get(&object.name)
        {
            shared.insert(name);
        }
    }
    Ok(shared)
}
