//! The gate of a run in a pipe: it acts only for a backup that this very run has stored and proved.

use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::Proof;
use bk_manifest::path::escape;
use bk_manifest::spool::Document;
use bk_push::store::Store;
use bk_push::{outer, place};

/// What the pipe has proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The backup's id.
    pub id: String,
    /// Its series.
    pub series: String,
}

/// Lets a document through that was pushed and verified by this run and lies at the destination.
///
/// # Errors
/// [`Exit::Unmet`] with what is missing; those of the destination.
pub fn check(document: &Document, store: &Store) -> anyhow::Result<Passed> {
    let (header, trailer) = (&document.header, &document.trailer);
    let run = header.run()?;
    let end = trailer.run()?;
    let backup = header.backup()?;
    let (Some(backup), Some(pushed)) = (backup, &end.pushed) else {
        return Err(unpushed("the document was not pushed by this run"));
    };
    if pushed.id != backup.id {
        return Err(unpushed("the document is not the one that this run pushed"));
    }
    if run.destination.is_some_and(|id| id != store.marker.id) {
        return Err(unpushed("the backup was pushed to another destination"));
    }
    let Some(place) = run.place else {
        return Err(unpushed("the document does not say where its manifest lies"));
    };
    let total = trailer.total_checksum().ok_or_else(|| unpushed("the document has no checksum"))?;
    check_stored(store, &place, &backup.id, total)?;
    check_proofs(&end.proofs, total)?;
    Ok(Passed { id: backup.id, series: header.series()? })
}

fn unpushed(message: &str) -> anyhow::Error {
    Failure::new(Exit::Unmet, message)
        .hint("nothing was removed; in a pipe, prune stands behind bk-push and bk-verify:")
        .hint("… | bk-push --to DEST | bk-verify --from DEST | bk-prune --from DEST --keep-daily 7")
        .hint("to prune by itself: bk-prune --standalone")
        .into()
}

/// The manifest must really lie where this run put it, and be the one in the pipe.
fn check_stored(store: &Store, place: &str, id: &str, total: Digest) -> anyhow::Result<()> {
    let name = place::object("", place)?;
    let shown = escape(name.as_bytes());
    let object = match store.destination.stat(&name)? {
        Some(object) if place::is_manifest(&name) => object,
        _ => return Err(unpushed(&format!("the manifest '{shown}' is not at the destination"))),
    };
    let (header, trailer) = outer::read(store.destination.as_ref(), &object)?;
    if header.the_backup()?.id != id || trailer.total_checksum() != Some(total) {
        return Err(unpushed(&format!("the manifest '{shown}' is another than the pipe's")));
    }
    Ok(())
}

fn check_proofs(proofs: &[Proof], total: Digest) -> anyhow::Result<()> {
    let has = |least: Level, scopes: &[&str]| {
        proofs.iter().any(|proof| {
            proof.total_checksum == total
                && level(&proof.level) >= Some(least)
                && scopes.contains(&proof.scope.as_str())
        })
    };
    let missing = if !has(Level::Present, &["all"]) {
        "that all its objects are present"
    } else if !has(Level::Stored, &["all", "own"]) {
        "that what this run stored has its checksums"
    } else {
        return Ok(());
    };
    Err(Failure::new(Exit::Unmet, format!("this run has not verified {missing}"))
        .hint("nothing was removed; put bk-verify between: … | bk-verify --from DEST | bk-prune …")
        .hint("to prune without a proof: bk-prune --standalone")
        .into())
}

/// What a proof shows; a higher one shows the lower ones too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Present,
    Stored,
    Content,
    Restored,
}

fn level(word: &str) -> Option<Level> {
    match word {
        "present" => Some(Level::Present),
        "stored" => Some(Level::Stored),
        "content" => Some(Level::Content),
        "restored" => Some(Level::Restored),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;
    use bk_manifest::time::Time;

    fn proof(level: &str, scope: &str, of: &str) -> Proof {
        Proof {
            total_checksum: Digest::of(of.as_bytes()),
            level: level.into(),
            scope: scope.into(),
            time: Time::from_unix(0, 0),
            host: "vm1".into(),
        }
    }

    #[test]
    fn proofs_must_be_of_this_manifest_whole_and_high_enough() {
        /// Level, scope and the manifest.
        type Words = (&'static str, &'static str, &'static str);
        let cases: [(&[Words], bool); 11] = [
            (&[], false),
            (&[("present", "all", "a")], false),
            (&[("present", "all", "a"), ("stored", "own", "a")], true),
            (&[("present", "own", "a"), ("stored", "own", "a")], false),
            (&[("stored", "all", "a")], true),
            (&[("content", "all", "a")], true),
            (&[("content", "own", "a")], false),
            (&[("content", "selected", "a"), ("present", "all", "a")], false),
            (&[("stored", "all", "b")], false),
            (&[("present", "all", "b"), ("stored", "own", "a")], false),
            (&[("glance", "all", "a")], false),
        ];
        for (proofs, passes) in cases {
            let list: Vec<Proof> = proofs.iter().map(|(l, s, of)| proof(l, s, of)).collect();
            let result = check_proofs(&list, Digest::of(b"a"));
            assert_eq!(result.is_ok(), passes, "{proofs:?}");
            if let Err(error) = result {
                assert_eq!(classify(&error), Exit::Unmet);
            }
        }
    }
}
