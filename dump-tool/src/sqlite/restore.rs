//! An SQLite database file put in its place again.

use std::fs::{self, File, Permissions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::progress::{Progress, Silent};
use bk_manifest::time::Time;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value};
use tempfile::NamedTempFile;

use super::fingerprint::Contents;
use super::health;
use super::holders::Holders;
use super::swap::{Place, UNFINISHED, folder_of, names_of};

/// How many differences are named.
const NAMED: usize = 5;

/// Decompresses a dump into `folder` and checks the database; the file has no final name.
///
/// # Errors
/// [`Exit::Damaged`] if it cannot be decompressed or is no sound database; a full disk.
pub fn decode(dump: File, folder: &Path, progress: &dyn Progress) -> anyhow::Result<NamedTempFile> {
    decode_as(".bk-tmp-", dump, folder, progress)
}

/// The same, with a name that begins in this way.
fn decode_as(
    prefix: &str,
    dump: File,
    folder: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<NamedTempFile> {
    let context = || format!("cannot write to '{}'", folder.display());
    // Absolute: SQLite takes a path that begins with 'file:' for a URI.
    let mut plain = tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(std::path::absolute(folder).with_context(context)?)
        .with_context(context)?;
    let mut decoder = zstd::Decoder::new(BufReader::new(dump)).context("cannot read the dump")?;
    let cancel = Cancel::default();
    progress.begin("decompressing", None);
    let mut buffer = vec![0; 256 << 10];
    loop {
        cancel.check()?;
        let read = decoder.read(&mut buffer).map_err(|error| {
            fail(Exit::Damaged, format!("the dump cannot be decompressed: {error}"))
        })?;
        if read == 0 {
            break;
        }
        plain.write_all(&buffer[..read]).with_context(context)?;
        progress.advance(read as u64, 0);
    }
    progress.end();
    let database = open(&plain)?;
    match health::stoppable(&database, &cancel, || health::fault(&database, progress))? {
        Some(fault) => Err(unsound(&fault)),
        None => Ok(plain),
    }
}

fn unsound(why: &str) -> anyhow::Error {
    fail(Exit::Damaged, format!("the dump does not hold a sound SQLite database: {why}"))
}

fn open(plain: &NamedTempFile) -> anyhow::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(plain.path(), flags).map_err(|error| unsound(&error.to_string()))
}

/// Compares a decoded database with what was recorded when it was dumped; older dumps have no record.
fn compare(
    database: &Connection,
    facts: &Map<String, Value>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let told = |error: anyhow::Error| match error.downcast::<rusqlite::Error>() {
        Ok(error) => unsound(&error.to_string()),
        Err(error) => error,
    };
    let mut differences = Vec::new();
    let recorded = Contents::from_record(facts).map_err(|error| {
        fail(Exit::Malformed, format!("the record of the tables makes no sense: {error}"))
    })?;
    progress.begin("comparing tables with the record", None);
    if let Some(recorded) = recorded {
        let found = Contents::of(database, recorded.level, cancel, progress).map_err(told)?;
        differences = recorded.differences(&found);
    }
    if let Some(recorded) = facts.get("foreign_key_violations").and_then(Value::as_u64) {
        let found = health::foreign_key_violations(database, cancel, &Silent).map_err(told)?;
        if found != Some(recorded) {
            let found = found.map_or("unknown".into(), |count| count.to_string());
            differences.push(format!("violations of foreign keys: {found} instead of {recorded}"));
        }
    }
    progress.end();
    if differences.is_empty() {
        return Ok(());
    }
    let more = match differences.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    differences.truncate(NAMED);
    let named = differences.join(", ");
    let message = format!("the database is not what was recorded: {named}{more}");
    Err(Failure::new(Exit::Damaged, message)
        .hint("nothing was touched; another backup may hold it whole")
        .into())
}

/// How a database is put in its place.
#[derive(Clone, Debug)]
pub struct Target {
    /// The database file to be.
    pub path: PathBuf,
    /// Whether to put aside what is there.
    pub replaces: bool,
    /// Whether to do so while a process has it open.
    pub even_if_open: bool,
    /// The clock, for the name of what is put aside.
    pub now: Time,
}

/// Fails if something or somebody is in the way.
///
/// # Errors
/// [`Exit::Usage`] naming the file; [`Exit::Busy`] naming the process that has it open;
/// [`Exit::NotFound`] if there is no such folder.
pub fn check_target(target: &Target) -> anyhow::Result<()> {
    let folder = folder_of(&target.path);
    if !folder.is_dir() {
        let message = format!("the folder '{}' is not there", folder.display());
        return Err(fail(Exit::NotFound, message));
    }
    if target.path.file_name().is_none() || target.path.is_dir() {
        let message = format!("'{}' cannot be a database file", target.path.display());
        return Err(fail(Exit::Usage, message));
    }
    // A stale -wal or -journal beside the new file would be played into it.
    match names_of(&target.path).find(|name| fs::symlink_metadata(name).is_ok()) {
        Some(name) if !target.replaces => {
            Err(Failure::new(Exit::Usage, format!("'{}' is there already", name.display()))
                .hint("stop the application, then put the old one aside with --replace")
                .into())
        }
        Some(_) if !target.even_if_open => check_unused(&target.path),
        _ => Ok(()),
    }
}

/// Fails while a process has the database open: it would go on writing into the old one.
fn check_unused(path: &Path) -> anyhow::Result<()> {
    // SQLite's own files lie beside the real one.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let holders = Holders::of(&names_of(&real).collect::<Vec<_>>());
    if holders.is_empty() {
        return Ok(());
    }
    let message = format!("the database '{}' is open in {holders}", path.display());
    Err(Failure::new(Exit::Busy, message)
        .hint("stop the application first; --even-if-open leaves the old file to it")
        .into())
}

/// Puts a dump in place of a database; what was there is kept as `<name>.before-<time>`.
///
/// Everything is decoded, checked, compared with the record and on the disk before the old database
/// is touched.
///
/// # Errors
/// As [`check_target`] and [`decode`]; [`Exit::Damaged`] naming the tables that are not as they were
/// recorded; [`Exit::Busy`] if another restore works in that folder; those of the file system.
pub fn restore(
    dump: File,
    facts: &Map<String, Value>,
    target: &Target,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    check_target(target)?;
    let path = &target.path;
    let context = || format!("cannot write '{}'", path.display());
    let place = Place::lock(path, progress)?;
    let plain = decode_as(UNFINISHED, dump, folder_of(path), progress)?;
    let database = open(&plain)?;
    let cancel = Cancel::default();
    health::stoppable(&database, &cancel, || compare(&database, facts, &cancel, progress))??;
    drop(database);
    if facts.get("journal_mode").and_then(Value::as_str) == Some("wal") {
        let database = Connection::open(plain.path()).with_context(context)?;
        database.pragma_update(None, "journal_mode", "WAL").with_context(context)?;
        database.close().map_err(|(_, error)| error).with_context(context)?;
    }
    let text = |name: &str| facts.get(name).and_then(Value::as_str).unwrap_or_default();
    let (mode, owner) = match fs::metadata(path) {
        Ok(old) => (old.mode() & 0o777, Some((old.uid(), old.gid()))),
        Err(_) => (
            u32::from_str_radix(text("file_mode"), 8).unwrap_or(0o600) & 0o777,
            text("file_owner")
                .split_once(':')
                .and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?))),
        ),
    };
    if let Some((user, group)) = owner
        && std::os::unix::fs::fchown(plain.as_file(), Some(user), Some(group)).is_err()
    {
        progress.note("the database belongs to you: only root can give it to its old owner");
    }
    plain.as_file().set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    plain.as_file().sync_all().with_context(context)?;
    // Decoding took its time.
    check_target(target)?;
    place.fill(plain, target.replaces, target.now, progress)
}
