//! What a database holds: rows and fingerprints of its tables, where sequences stand, large
//! objects, extensions, roles, numbers of objects. Recorded with a dump, and compared after a
//! restore.
//!
//! A fingerprint is the sum over a table's rows of a hash of each row's text form. So
//! it does not depend on the order of rows, and rows that are there twice count twice. Columns are
//! taken in the order of their names: `pg_dump` does not keep the order of columns that were
//! inherited. What decides about the text form is pinned for as long as it takes (`PINNED`).

mod differences;
mod excluded;
mod fingerprint;
mod inventory;
mod large_objects;
mod name;
mod record;
mod sequences;
mod tables;

use std::collections::BTreeMap;

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::progress::Progress;

pub use self::differences::{Difference, Scope, differences};
pub use self::excluded::Excluded;
pub use self::inventory::FIRST_OF_USERS;
pub use self::name::Name;
pub use self::record::{
    Contents, Extension, Fingerprints, Kind, LargeObjects, Omitted, Sequence, Table, Until,
};
pub use self::tables::files;
use super::session::{self, Session, literal};
use crate::level::Level;

/// What decides about the text form of a row, and what would hide rows.
const PINNED: &[(&str, &str)] = &[
    ("search_path", ""),
    ("DateStyle", "ISO, YMD"),
    // The one that a server without a time zone database knows, too.
    ("TimeZone", "GMT"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("row_security", "off"),
    ("client_encoding", "UTF8"),
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
];

/// Takes down what the database holds, in a session whose transaction has taken its snapshot.
///
/// It only reads, leaves the transaction open and every setting as it was. Once the dump has ended,
/// [`Contents::settle`] has to follow.
///
/// # Errors
/// What the server said; the session is at its end then.
pub fn take(
    session: &mut Session,
    level: Level,
    excluded: &Excluded,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<Contents> {
    pinned(session, |session| {
        let server_version = session.value("SHOW server_version_num")?;
        let server_version = server_version.parse().context("a server without a version")?;
        let (level, method) = if server_version < fingerprint::HAS_HASHES {
            (level.min(Level::Count), String::new())
        } else {
            (level, fingerprint::method(session)?)
        };
        let sequences = sequences::take(session, server_version, excluded)?;
        let mut contents = Contents {
            fingerprints: Fingerprints { level, method, server_version },
            sequences,
            ..Contents::default()
        };
        inventory::take(session, server_version, &mut contents)?;
        if !excluded.relations.is_empty() {
            // With a table goes what hangs on it.
            contents.object_counts = None;
        }
        contents.large_objects = Some(large_objects::take(session, level)?);
        contents.tables = tables::take(session, level, excluded, cancel, progress)?;
        Ok(contents)
    })
}

/// As [`take`], in a session that is in no transaction: a database that nobody dumps.
///
/// # Errors
/// The same.
pub fn take_alone(
    session: &mut Session,
    level: Level,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<Contents> {
    session.query("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let contents = take(session, level, &Excluded::default(), cancel, progress)?;
    session.query("COMMIT")?;
    Ok(contents)
}

impl Contents {
    /// Looks again at what is not under the snapshot, once the dump has ended: where sequences
    /// stand, and which tables were emptied by TRUNCATE or written anew meanwhile. `files` is how
    /// [`files`] found them when the dump had ended: returns whether any had changed by then, so
    /// that the dump may lack its rows.
    ///
    /// # Errors
    /// As [`take`].
    pub fn settle(
        &mut self,
        session: &mut Session,
        files: &BTreeMap<u32, u32>,
    ) -> anyhow::Result<bool> {
        let server_version = self.fingerprints.server_version;
        pinned(session, |session| {
            sequences::read_again(session, server_version, &mut self.sequences)?;
            tables::look_again(session, &mut self.tables, files)
        })
    }
}

/// Runs something under the pinned settings, which are gone behind it.
fn pinned<T>(
    session: &mut Session,
    work: impl FnOnce(&mut Session) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    session.query("SAVEPOINT bk_contents")?;
    let settings: Vec<String> = PINNED
        .iter()
        .map(|(name, value)| {
            format!("pg_catalog.set_config({}, {}, true)", literal(name), literal(value))
        })
        .collect();
    session.query(&format!("SELECT {}", settings.join(", ")))?;
    // A statement of minutes ends when we do. Older servers do not have that.
    session.query(
        "SELECT count(pg_catalog.set_config(name, '1000', true)) FROM pg_catalog.pg_settings \
         WHERE name = 'client_connection_check_interval'",
    )?;
    session.query(session::TABLES_ONLY)?;
    let done = work(session)?;
    session.query("ROLLBACK TO SAVEPOINT bk_contents")?;
    session.query("RELEASE SAVEPOINT bk_contents")?;
    Ok(done)
}
