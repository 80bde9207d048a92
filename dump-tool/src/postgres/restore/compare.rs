//! What was loaded against what was recorded.

use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::progress::Progress;

use super::Job;
use super::selection::Selection;
use crate::postgres::connection::Server;
use crate::postgres::contents::{self, Difference, Name, Scope};
use crate::postgres::session::Session;

/// Differences that are told one by one.
const TOLD_LIMIT: usize = 20;

/// Compares the database of `server` with the record, as closely as that was made; what belongs to no
/// `selection`, if there is one, is not looked at. Each difference is a warning.
///
/// # Errors
/// [`Exit::Damaged`] if something is missing or not as it was; what the server said.
pub(super) fn compare(
    server: &Server,
    job: &Job<'_>,
    selection: Option<&Selection>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let name = server.database().unwrap_or_default();
    let Some(recorded) = &job.recorded else {
        progress
            .note(&format!("'{name}' is not compared: the backup has no record to compare with"));
        return Ok(());
    };
    let cancel = Cancel::default();
    let mut session = Session::open(server, &cancel)?;
    progress.begin(&format!("comparing '{name}' with the record"), None);
    let found = contents::take_alone(&mut session, recorded.fingerprints.level, &cancel, progress)?;
    progress.end();
    let scope = selection.map_or(Scope::Everything, |selection| Scope::Chosen {
        relations: selection
            .relations
            .iter()
            .map(|(schema, name)| Name { schema: schema.clone(), name: name.clone() })
            .collect(),
        schemas: Vec::new(),
    });
    judge(&contents::differences(recorded, &found, &scope), progress)
}

/// Tells the differences, those that count first.
fn judge(differences: &[Difference], progress: &dyn Progress) -> anyhow::Result<()> {
    let (faults, others): (Vec<_>, Vec<_>) =
        differences.iter().partition(|difference| difference.is_fault);
    for part in [&faults, &others] {
        for difference in part.iter().take(TOLD_LIMIT) {
            progress.warn(&difference.to_string());
        }
        if part.len() > TOLD_LIMIT {
            progress.warn(&format!("and {} more", part.len() - TOLD_LIMIT));
        }
    }
    match faults.len() {
        0 => Ok(()),
        count => Err(fail(
            Exit::Damaged,
            format!("what was loaded differs from the record {count} times"),
        )),
    }
}
