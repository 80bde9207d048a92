//! PostgreSQL: a dump in custom format of one snapshot, and a database made of it again.

pub mod connection;
pub mod restore;
pub mod session;
pub mod toc;

use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::Context;
use bk_manifest::atomic::NewFile;
use bk_manifest::command::{Cancel, Command, Finished};
use bk_manifest::digest::{Digest, HashWriter, Hasher};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::LeftOut;
use bk_manifest::progress::Progress;
use serde_json::{Map, Value, json};

use self::connection::Server;
use self::session::{Session, literal};
use self::toc::Head;
use crate::filter::{Begun, Made, Work};

/// The `kind` of its components.
pub const KIND: &str = "postgresql";
/// Warnings of `pg_dump` that are passed on one by one.
const WARNINGS_LIMIT: usize = 20;
/// Bytes that are read from a program or a file at once.
const CHUNK: usize = 256 << 10;

/// What of the database is dumped.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Leave out who owns what.
    pub no_owner: bool,
    /// Leave out who may do what.
    pub no_acl: bool,
    /// Tables whose rows are left out.
    pub exclude_table_data: Vec<String>,
}

/// The session that holds the snapshot, and what is known of the database.
struct Held {
    /// Keeps the snapshot alive until `pg_dump` has ended.
    session: Session,
    snapshot: String,
    facts: Map<String, Value>,
    size: u64,
}

/// Takes a snapshot of the database, and returns what dumps it.
///
/// # Errors
/// [`Exit::Denied`], [`Exit::NotFound`], a client older than the server, too little space.
pub fn begin<'a>(
    server: &'a Server,
    options: &'a Options,
    work: &Work<'_>,
) -> anyhow::Result<Begun<impl FnOnce(&Work<'_>) -> anyhow::Result<Made> + Send + use<'a>>> {
    let client = client_version(server, "pg_dump")?;
    client_version(server, "pg_restore")?;
    let mut session = Session::open(server, work.cancel)?;
    let (mut facts, size) = facts(&mut session)?;
    let text = |name: &str| facts.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (database, server_version) = (text("database"), text("server_version"));
    if major(&client) < major(&server_version) {
        let message = format!(
            "pg_dump {client} cannot dump '{database}': its server is the newer {server_version}"
        );
        return Err(Failure::new(Exit::Failed, message)
            .hint("install the client of that version, or use the server's own: --via docker:NAME")
            .into());
    }
    facts.insert("client_version".into(), client.into());
    work.staging.require(size, &format!("a dump of '{database}'"), work.progress)?;
    session.query("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let snapshot = session.value("SELECT pg_catalog.pg_export_snapshot()")?;
    let file = format!("{}.dump", file_stem(&database)).into_bytes();
    let held = Held { session, snapshot, facts, size };
    let name = file.clone();
    Ok(Begun { file, dump: move |work: &Work<'_>| dump(server, options, held, &name, work) })
}

/// The database's name where it can name a file that is plain everywhere.
fn file_stem(database: &str) -> &str {
    if bk_manifest::manifest::is_name(database) { database } else { "database" }
}

/// What the component's record says of the database, and its size in bytes.
fn facts(session: &mut Session) -> anyhow::Result<(Map<String, Value>, u64)> {
    let rows = session.rows(
        "SELECT current_database() AS database, split_part(current_setting('server_version'), ' ', 1) AS version, \
         pg_catalog.pg_encoding_to_char(d.encoding) AS encoding_name, \
         pg_catalog.pg_database_size(d.oid)::text AS size, d.* \
         FROM pg_catalog.pg_database d WHERE datname = current_database()",
    )?;
    let row = rows.into_iter().next().context("the server does not know its own database")?;
    let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
    let size = text("size").and_then(|size| size.parse().ok()).unwrap_or(0);
    let mut facts = Map::new();
    facts.insert("format".into(), "custom".into());
    facts.insert("database_size".into(), json!(size));
    // Of the locale's columns each version of PostgreSQL has others.
    for (fact, columns) in [
        ("database", &["database"][..]),
        ("server_version", &["version"]),
        ("encoding", &["encoding_name"]),
        ("collate", &["datcollate"]),
        ("ctype", &["datctype"]),
        ("locale_provider", &["datlocprovider"]),
        ("locale", &["datlocale", "daticulocale"]),
    ] {
        if let Some(value) = columns.iter().find_map(|column| text(column)) {
            facts.insert(fact.into(), value.into());
        }
    }
    Ok((facts, size))
}

/// The version of one of the programs, such as `15.18`.
///
/// # Errors
/// If it is not there.
pub fn client_version(server: &Server, program: &str) -> anyhow::Result<String> {
    let (output, finished) = server.command(program)?.arg("--version").output()?;
    if !finished.is_success() {
        return Err(connection::failure(&finished));
    }
    let text = String::from_utf8_lossy(&output);
    let version = text.split_once(") ").map_or(text.as_ref(), |(_, version)| version);
    Ok(version.split_whitespace().next().unwrap_or("unknown").to_owned())
}

fn major(version: &str) -> u32 {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().unwrap_or(0)
}

fn dump(
    server: &Server,
    options: &Options,
    held: Held,
    name: &[u8],
    work: &Work<'_>,
) -> anyhow::Result<Made> {
    let database = held.facts.get("database").and_then(Value::as_str).unwrap_or_default();
    let mut server = server.in_database(database);
    let tag = server.is_inside().then(|| format!("bk-dump {}", held.snapshot));
    if let Some(tag) = &tag {
        server = server.with("PGAPPNAME", tag);
    }
    let server = &server;
    let mut command = server
        .command("pg_dump")?
        .cancelled_by(work.cancel)
        .args(["--format=custom", "--no-password"])
        .arg(format!("--snapshot={}", held.snapshot));
    if options.no_owner {
        command = command.arg("--no-owner");
    }
    if options.no_acl {
        command = command.arg("--no-acl");
    }
    for pattern in &options.exclude_table_data {
        command = command.arg(format!("--exclude-table-data={pattern}"));
    }
    work.progress.begin(&format!("dumping '{database}'"), Some(held.size));
    let written = write_output(command, work);
    if let (Err(_), Some(tag)) = (&written, &tag) {
        // The error that is told is the first one.
        let _ = end_session(server, tag);
    }
    let (file, finished) = written?;
    // The server cannot clean up behind a snapshot: no longer than needed.
    drop(held.session);
    if !finished.is_success() {
        return Err(connection::failure(&finished).context(format!("dumping '{database}'")));
    }
    warn_of(&finished, work.progress);
    let staged = work.staging.commit(file, name)?;
    work.progress.begin("checking the dump", Some(staged.size));
    let read = read_archive(server, staged.open()?, work.cancel, work.progress);
    let (checksum, size) = read.map_err(|error| {
        fail(Exit::Failed, format!("the dump of '{database}' cannot be read again: {error:#}"))
    })?;
    staged.compare(checksum, size)?;
    work.progress.end();
    let mut facts = held.facts;
    facts.insert("size".into(), json!(staged.size));
    let database = json!({"type": KIND, "schema_version": null});
    Ok(Made { staged, kind: KIND, facts, database: Some(database), left_out: LeftOut::default() })
}

/// Runs `pg_dump` with its output into a new file in the stage folder.
fn write_output(
    command: Command,
    work: &Work<'_>,
) -> anyhow::Result<(HashWriter<NewFile>, Finished)> {
    let mut file = work.staging.create()?;
    let mut running = command.start()?;
    drop(running.stdin.take());
    let mut output = running.stdout.take().context("pg_dump has no output")?;
    let mut buffer = vec![0; CHUNK];
    loop {
        work.cancel.check()?;
        let read = output.read(&mut buffer).context("cannot read what pg_dump prints")?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).with_context(|| {
            format!("cannot write a dump to '{}'", work.staging.folder().display())
        })?;
        work.progress.advance(read as u64, 0);
    }
    drop(output);
    Ok((file, running.wait()?))
}

/// Ends a `pg_dump` inside a container: Docker does not, whatever becomes of `docker exec`
/// (<https://github.com/moby/moby/issues/9098>).
fn end_session(server: &Server, tag: &str) -> anyhow::Result<()> {
    let list =
        "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity";
    let condition = format!("WHERE application_name = {}", literal(tag));
    Session::open_for_cleanup(server)?
        .query(&format!("SET application_name = ''; {list} {condition}"))?;
    Ok(())
}

/// Passes on what a successful program wrote to standard error.
fn warn_of(finished: &Finished, progress: &dyn Progress) {
    let mut lines = finished.lines();
    for line in lines.by_ref().take(WARNINGS_LIMIT) {
        progress.warn(line);
    }
    let more = lines.count();
    if more > 0 {
        progress.warn(&format!("pg_dump wrote {more} more lines"));
    }
}

/// Has `pg_restore` read an archive to its end, as it would to restore it, and hashes it meanwhile.
///
/// # Errors
/// [`Exit::Damaged`] if it cannot be read; a program that is missing.
pub fn read_archive(
    server: &Server,
    mut file: File,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<(Digest, u64)> {
    let mut running =
        server.command("pg_restore")?.cancelled_by(cancel).arg("--file=/dev/null").start()?;
    let mut stdin = running.stdin.take();
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK];
    let mut head = None;
    let mut is_read_whole = true;
    loop {
        cancel.check()?;
        let read = file.read(&mut buffer).context("cannot read the dump")?;
        if read == 0 {
            break;
        }
        head.get_or_insert_with(|| toc::read(&buffer[..read]));
        hasher.update(&buffer[..read]);
        progress.advance(read as u64, 0);
        match stdin.as_mut().map(|stdin| stdin.write_all(&buffer[..read])) {
            // It has ended; whether content or not, its status says.
            Some(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                stdin = None;
                is_read_whole = false;
            }
            Some(Err(error)) => return Err(error).context("cannot write to pg_restore"),
            Some(Ok(())) | None => {}
        }
    }
    drop(stdin);
    let finished = running.wait()?;
    if !finished.is_success() {
        return Err(fail(Exit::Damaged, finished.message()));
    }
    if !matches!(head, Some(Head::Entries(1..) | Head::Unknown)) || !is_read_whole {
        return Err(fail(Exit::Damaged, "its table of contents is empty or damaged"));
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_compared_as_numbers() {
        assert_eq!(major("15.18"), 15);
        assert_eq!(major("9.6.24"), 9);
        assert_eq!(major("18beta1"), 18);
        assert!(major("9.6") < major("10.1"));
    }

    #[test]
    fn odd_database_names_do_not_become_file_names() {
        assert_eq!(file_stem("app"), "app");
        assert_eq!(file_stem("../x"), "database");
        assert_eq!(file_stem("über"), "database");
    }
}
