//! An SQLite database file put in its place again.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bk_manifest::atomic;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::progress::Progress;
use bk_manifest::time::Time;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value};

use super::{SIDE_FILES, beside, fault};

/// Decompresses a dump into `folder` and checks the database; the file has no final name.
///
/// # Errors
/// [`Exit::Damaged`] if it cannot be decompressed or is no sound database; a full disk.
pub fn decode(
    dump: File,
    folder: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<tempfile::NamedTempFile> {
    let context = || format!("cannot write to '{}'", folder.display());
    // Absolute: SQLite takes a path that begins with 'file:' for a URI.
    let mut plain = tempfile::Builder::new()
        .prefix(".bk-tmp-")
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
    let damaged = |why: String| {
        fail(Exit::Damaged, format!("the dump does not hold a sound SQLite database: {why}"))
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(plain.path(), flags)
        .map_err(|error| damaged(error.to_string()))?;
    match fault(&database, progress) {
        Some(fault) => Err(damaged(fault)),
        None => Ok(plain),
    }
}

/// How a database is put in its place.
#[derive(Clone, Debug)]
pub struct Target {
    /// The database file to be.
    pub path: PathBuf,
    /// Whether to put aside what is there.
    pub replaces: bool,
    /// The clock, for the name of what is put aside.
    pub now: Time,
}

/// Fails if something is in the way.
///
/// # Errors
/// [`Exit::Usage`] naming it; [`Exit::NotFound`] if there is no such folder.
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
    let names = [""].into_iter().chain(SIDE_FILES).map(|suffix| beside(&target.path, suffix));
    match names.into_iter().find(|name| fs::symlink_metadata(name).is_ok()) {
        Some(name) if !target.replaces => {
            Err(Failure::new(Exit::Usage, format!("'{}' is there already", name.display()))
                .hint("stop the application, then put the old one aside with --replace")
                .into())
        }
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Puts a dump in place of a database; what was there is kept as `<name>.before-<time>`.
///
/// Everything is decoded, checked and on the disk before the old database is touched.
///
/// # Errors
/// As [`check_target`] and [`decode`]; those of the file system.
pub fn restore(
    dump: File,
    facts: &Map<String, Value>,
    target: &Target,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    check_target(target)?;
    let path = &target.path;
    let context = || format!("cannot write '{}'", path.display());
    let plain = decode(dump, folder_of(path), progress)?;
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
    let kept = aside(path, target.now);
    let names = [""].into_iter().chain(SIDE_FILES);
    let moves: Vec<_> = names
        .map(|suffix| (beside(path, suffix), beside(&kept, suffix)))
        .filter(|(old, _)| target.replaces && fs::symlink_metadata(old).is_ok())
        .collect();
    if let Some((_, aside)) = moves.iter().find(|(_, aside)| fs::symlink_metadata(aside).is_ok()) {
        return Err(fail(Exit::Usage, format!("'{}' is there already", aside.display())));
    }
    for (old, aside) in &moves {
        fs::rename(old, aside).with_context(|| format!("cannot put '{}' aside", old.display()))?;
        progress.note(&format!("the old '{}' is now '{}'", old.display(), aside.display()));
    }
    plain.persist_noclobber(path).map_err(|error| error.error).with_context(context)?;
    atomic::sync_folder(folder_of(path)).with_context(context)
}

fn aside(path: &Path, now: Time) -> PathBuf {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.extend(now.format(".before-%Y%m%d-%H%M%S").into_bytes());
    OsString::from_vec(name).into()
}
