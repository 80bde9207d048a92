//! SQLite: a copy of one state of a database in use, and a database file put in its place again.
//!
//! A read transaction on the source comes first; the backup API then copies what that transaction
//! sees. Without it every commit of another process would restart the copy. The source is opened
//! for reading only: nothing is written into it and no checkpoint is run. A database in WAL mode
//! needs its `-shm` file even for that, so SQLite makes an absent one (for root with the owner and
//! mode of the database): where the folder cannot be written, a WAL database that nobody has open
//! cannot be read.

pub mod fingerprint;
mod health;
mod holders;
pub mod restore;
mod swap;
mod version;

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::LeftOut;
use bk_manifest::progress::Progress;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde_json::{Map, Value, json};
use zstd::zstd_safe::CParameter;

use crate::filter::{Made, Work};
use crate::level::Level;
use fingerprint::Contents;

/// The `kind` of its components.
pub const KIND: &str = "sqlite";
/// Bytes copied before it is looked whether to stop.
const STEP_BYTES: i64 = 8 << 20;
/// How long SQLite itself waits for a lock before it is looked whether to stop.
const BUSY_TICK: Duration = Duration::from_millis(100);
/// zstd level of the staged file.
const LEVEL: i32 = 3;
/// What one thread compresses at a time: memory is some of these for each.
const JOB_BYTES: u32 = 2 << 20;
/// What SQLite puts beside a database.
const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What is dumped, and how patiently.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file.
    pub path: PathBuf,
    /// How long to wait for a lock that another process holds.
    pub busy_timeout: Duration,
    /// How much of each table is recorded.
    pub level: Level,
    /// What to ask for the schema's version; without it, what is known of migration programs.
    pub version_query: Option<String>,
}

/// Opens a read transaction, and returns what copies the state that it sees.
///
/// # Errors
/// [`Exit::NotFound`] for a missing file; [`Exit::Failed`] for one that is locked or no database;
/// [`Exit::Usage`] if the query for the version fails.
pub fn begin(
    options: &Options,
    work: &Work<'_>,
) -> anyhow::Result<impl FnOnce(&Work<'_>) -> anyhow::Result<Made> + Send + use<>> {
    let path = options.path.clone();
    let unreadable = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            io::ErrorKind::PermissionDenied => Exit::Denied,
            _ => Exit::Failed,
        };
        fail(exit, format!("cannot open the database '{}': {error}", path.display()))
    };
    let metadata = fs::metadata(&path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(fail(Exit::Failed, format!("'{}' is no database file", path.display())));
    }
    // To SQLite ':memory:' and 'file:x' are no file names. And its own files lie beside the real one.
    let real = fs::canonicalize(&path).map_err(unreadable)?;
    let wal = fs::metadata(beside(&real, "-wal")).map_or(0, |wal| wal.len());
    let size = metadata.len().saturating_add(wal);
    // The copy, and what it is compressed to while it still lies there.
    let needed = size.saturating_add(size / 4);
    work.staging.require(needed, &format!("a copy of '{}'", path.display()), work.progress)?;

    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let explain = |error: rusqlite::Error| explained(&error, &path);
    let source = Connection::open_with_flags(&real, flags).map_err(explain)?;
    source.busy_timeout(BUSY_TICK).map_err(explain)?;
    let patience = Patience::new(options.busy_timeout, work.cancel);
    patience.with(&path, || source.execute_batch("BEGIN"))?;
    // BEGIN alone takes nothing: the first read does.
    let is_empty: bool = patience.with(&path, || {
        source.query_row("SELECT count(*) = 0 FROM sqlite_master", [], |row| row.get(0))
    })?;
    if is_empty {
        // A file that somebody made for SQLite to fill, or of an application that lost its own.
        work.progress.warn(&format!("the database '{}' holds nothing", path.display()));
    }
    let user_version =
        source.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(explain)?;
    let query = options.version_query.as_deref();
    let version =
        health::stoppable(&source, work.cancel, || version::ask(&source, user_version, query))??;
    let mut facts = facts(&source).map_err(explain)?;
    facts.insert("schema_version".into(), json!(version.as_ref().map(|told| &told.version)));
    facts.insert("schema_version_from".into(), json!(version.as_ref().map(|told| told.told_by)));
    facts.insert("file_mode".into(), format!("{:04o}", metadata.mode() & 0o7777).into());
    facts.insert("file_owner".into(), format!("{}:{}", metadata.uid(), metadata.gid()).into());
    let name = path.file_name().context("the database has no file name")?.as_bytes();
    facts.insert("file_name".into(), shown(name).into());
    let name = format!("{}.zst", file_stem(name)).into_bytes();
    let (busy_timeout, level) = (options.busy_timeout, options.level);
    Ok(move |work: &Work<'_>| {
        let copy = work.staging.scratch();
        let database = copy_database(&path, source, &copy, busy_timeout, work)?;
        health::stoppable(&database, work.cancel, || {
            examine(&path, &database, level, &mut facts, work)
        })??;
        database.close().map_err(|(_, error)| unwritable(&error, &copy))?;
        compress(&path, &copy, &name, facts, work)
    })
}

/// The name of one of the files that SQLite keeps beside a database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The database's file name where it is plain everywhere.
fn file_stem(name: &[u8]) -> &str {
    let text = std::str::from_utf8(name).unwrap_or_default();
    if bk_manifest::manifest::is_name(text) { text } else { "database" }
}

/// A file name as text: what no terminal should get is escaped.
fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => name.escape_ascii().to_string(),
    }
}

fn facts(source: &Connection) -> rusqlite::Result<Map<String, Value>> {
    let number = |name: &str| source.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let text = |name: &str| source.pragma_query_value(None, name, |row| row.get::<_, String>(0));
    let mut facts = Map::new();
    facts.insert("sqlite_version".into(), rusqlite::version().into());
    for name in ["page_count", "page_size", "user_version", "application_id"] {
        facts.insert(name.into(), number(name)?.into());
    }
    for name in ["journal_mode", "encoding"] {
        facts.insert(name.into(), text(name)?.into());
    }
    Ok(facts)
}

/// How long a lock is waited for, while looking whether to stop.
struct Patience<'a> {
    limit: Duration,
    until: Instant,
    cancel: &'a Cancel,
}

impl<'a> Patience<'a> {
    fn new(limit: Duration, cancel: &'a Cancel) -> Self {
        Patience { limit, until: Instant::now() + limit, cancel }
    }

    fn with<T>(
        &self,
        path: &Path,
        mut attempt: impl FnMut() -> rusqlite::Result<T>,
    ) -> anyhow::Result<T> {
        loop {
            self.cancel.check()?;
            match attempt() {
                Err(error) if is_busy(&error) && Instant::now() < self.until => {
                    // Some locks are answered for at once, without SQLite's own waiting.
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) if is_busy(&error) => return Err(self.exceeded(path)),
                result => return result.map_err(|error| explained(&error, path)),
            }
        }
    }

    fn exceeded(&self, path: &Path) -> anyhow::Error {
        let message = format!(
            "the database '{}' was locked for longer than {} s",
            path.display(),
            self.limit.as_secs(),
        );
        Failure::new(Exit::Failed, message)
            .hint("wait longer with --busy-timeout, or find out which process holds the lock")
            .into()
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// One line for what SQLite says.
fn explained(error: &rusqlite::Error, path: &Path) -> anyhow::Error {
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => fail(
            Exit::Failed,
            format!("'{path}' is not an SQLite database, or it is encrypted or damaged"),
        ),
        Some(ErrorCode::DatabaseCorrupt) => {
            fail(Exit::Failed, format!("the database '{path}' is corrupt: {error}"))
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) => {
            Failure::new(Exit::Failed, format!("cannot read the database '{path}': {error}"))
                .hint(
                    "in WAL mode, or after a crash, SQLite must be able to write to the folder: \
                     run as the application's user or as root",
                )
                .into()
        }
        _ => fail(Exit::Failed, format!("cannot read the database '{path}': {error}")),
    }
}

fn unwritable(error: &rusqlite::Error, copy: &Path) -> anyhow::Error {
    fail(Exit::Failed, format!("cannot write the copy '{}': {error}", copy.display()))
}

/// What SQLite says, without the statement that it says it of.
fn words(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    }
}

/// A name as SQL takes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Copies what the source's transaction sees into a file by itself.
fn copy_database(
    path: &Path,
    source: Connection,
    copy: &Path,
    busy_timeout: Duration,
    work: &Work<'_>,
) -> anyhow::Result<Connection> {
    let written = |error: rusqlite::Error| unwritable(&error, copy);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(copy)
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write '{}'", copy.display()))?;
    let mut target = Connection::open(copy).map_err(written)?;
    // Nothing of it counts before it is synced as a whole.
    target.execute_batch("PRAGMA synchronous = OFF").map_err(written)?;
    let page_size: i64 = source
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .map_err(|error| explained(&error, path))?;
    let pages = i32::try_from(STEP_BYTES / page_size.max(512)).unwrap_or(2048);
    {
        let backup = Backup::new(&source, &mut target).map_err(written)?;
        let mut patience = Patience::new(busy_timeout, work.cancel);
        let mut done = 0;
        work.progress.begin(&format!("copying '{}'", path.display()), None);
        loop {
            work.cancel.check()?;
            match backup.step(pages).map_err(|error| {
                if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
                    written(error)
                } else {
                    explained(&error, path)
                }
            })? {
                StepResult::Done => break,
                StepResult::More => patience = Patience::new(busy_timeout, work.cancel),
                _ if Instant::now() < patience.until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return Err(patience.exceeded(path)),
            }
            let progress = backup.progress();
            let copied = i64::from(progress.pagecount - progress.remaining) * page_size;
            work.progress.advance(u64::try_from(copied - done).unwrap_or(0), 0);
            done = copied;
        }
        work.progress.end();
    }
    drop(source);
    // The copy is to be one file: a WAL database would be opened with files beside it.
    target.pragma_update(None, "journal_mode", "DELETE").map_err(written)?;
    Ok(target)
}

/// Checks the copy, and records what it holds.
fn examine(
    path: &Path,
    copy: &Connection,
    level: Level,
    facts: &mut Map<String, Value>,
    work: &Work<'_>,
) -> anyhow::Result<()> {
    let Work { cancel, progress, .. } = *work;
    progress.begin(&format!("checking the copy of '{}'", path.display()), None);
    if let Some(fault) = health::fault(copy, progress) {
        let message = format!("the database '{}' is corrupt: {fault}", path.display());
        return Err(Failure::new(Exit::Failed, message)
            .hint("older backups may hold it whole; see also sqlite3's .recover")
            .into());
    }
    let told = |error: anyhow::Error| match error.downcast::<rusqlite::Error>() {
        Ok(error) => explained(&error, path),
        Err(error) => error,
    };
    let violations = health::foreign_key_violations(copy, cancel, progress).map_err(told)?;
    progress.end();
    facts.insert("foreign_key_violations".into(), json!(violations));
    progress.begin(&format!("reading the tables of '{}'", path.display()), None);
    let contents = Contents::of(copy, level, cancel, progress).map_err(told)?;
    progress.end();
    contents.record(facts).context("cannot record the tables")
}

fn compress(
    path: &Path,
    copy: &Path,
    name: &[u8],
    mut facts: Map<String, Value>,
    work: &Work<'_>,
) -> anyhow::Result<Made> {
    let mut plain = File::open(copy).context("cannot read the copy")?;
    let size = plain.metadata().context("cannot read the copy")?.len();
    work.progress.begin(&format!("compressing '{}'", path.display()), Some(size));
    let file = work.staging.create()?;
    let context = || format!("cannot write to '{}'", work.staging.folder().display());
    let mut encoder = zstd::Encoder::new(file, LEVEL).with_context(context)?;
    encoder.include_checksum(true).with_context(context)?;
    encoder.set_pledged_src_size(Some(size)).with_context(context)?;
    if size > 8 << 20 {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        encoder.multithread(u32::try_from(threads).unwrap_or(1)).with_context(context)?;
        encoder.set_parameter(CParameter::JobSize(JOB_BYTES)).with_context(context)?;
    }
    copy_bytes(&mut plain, &mut encoder, work.cancel, work.progress).with_context(context)?;
    let file = encoder.finish().with_context(context)?;
    fs::remove_file(copy).context("cannot remove the copy")?;
    let staged = work.staging.commit(file, name)?;
    let (checksum, read) = Digest::of_reader(staged.open()?)
        .with_context(|| format!("cannot read '{}'", staged.path.display()))?;
    staged.compare(checksum, read)?;
    work.progress.end();
    facts.insert("format".into(), "sqlite.zst".into());
    facts.insert("database_size".into(), json!(size));
    facts.insert("size".into(), json!(staged.size));
    let database = json!({"type": KIND, "schema_version": facts.get("schema_version")});
    Ok(Made {
        staged: vec![staged],
        kind: KIND,
        facts,
        database: Some(database),
        left_out: LeftOut::default(),
        is_partial: false,
    })
}

/// Copies to the end, looking now and then whether to stop.
pub(crate) fn copy_bytes(
    from: &mut impl Read,
    to: &mut impl Write,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut copied = 0;
    loop {
        cancel.check()?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                copied += read as u64;
                progress.advance(read as u64, 0);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_of_databases_do_not_become_file_names() {
        for (name, stem, text) in [
            (&b"app.db"[..], "app.db", "app.db"),
            (b":memory:", "database", ":memory:"),
            (b"a\nb.db", "database", "a\\nb.db"),
            (b"\x1b[31m", "database", "\\u{1b}[31m"),
            (b"a\xff.db", "database", "a\\xff.db"),
        ] {
            assert_eq!((file_stem(name), shown(name).as_str()), (stem, text));
        }
    }
}
