//! Getting a dump into a database, by the program that its form needs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context;
use bk_manifest::command::{Cancel, Command, Finished, Running};
use bk_manifest::exit::{Exit, Failure, classify, fail};
use bk_manifest::progress::Progress;
use flate2::read::MultiGzDecoder;

use super::{Without, plain};
use crate::check::DumpKind;
use crate::compress::Compression;
use crate::postgres::connection::{self, Server};
use crate::postgres::directory;
use crate::restore::Dump;

/// Bytes that are read or written at once.
const CHUNK: usize = 256 << 10;
/// Where a program finds its standard input as a file that it can open again.
const STDIN: &str = "/dev/stdin";
/// Unpacks what comes in, restores it, and leaves nothing: inside a container there is no other way
/// to give `pg_restore` a list beside the archive.
const UNPACK_AND_RESTORE: &str = "\
    set -eu
    umask 077
    folder=$(mktemp -d)
    trap 'rm -rf -- \"$folder\"' EXIT
    trap 'exit 143' HUP INT TERM
    tar -x -f - -C \"$folder\"
    cd \"$folder\"
    pg_restore \"$@\" archive </dev/null";

/// How a dump is loaded.
#[derive(Clone, Copy, Default)]
pub(super) struct Loading<'a> {
    /// Sessions at once, where the form of the dump allows it.
    pub(super) jobs: usize,
    /// All of it or nothing.
    pub(super) is_transaction: bool,
    /// Drop first what the dump is going to make.
    pub(super) cleans: bool,
    /// What is left out.
    pub(super) without: Without,
    /// Only these entries of its table of contents, as `pg_restore --use-list` reads them.
    pub(super) list: Option<&'a str>,
}

/// Loads a dump into the database of `server`.
///
/// # Errors
/// What the program said.
pub(super) fn load(
    dump: &Dump,
    server: &Server,
    loading: &Loading<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let name = server.database().unwrap_or_default().to_owned();
    progress.begin(&format!("loading '{name}'"), None);
    let is_selected_inside = server.is_elsewhere() && loading.list.is_some();
    let finished = match dump.kind {
        DumpKind::PostgresCustom | DumpKind::PostgresDirectory if is_selected_inside => {
            restore_unpacked(dump, server, loading)?
        }
        DumpKind::PostgresCustom => restore_file(dump.open()?, server, loading)?,
        DumpKind::PostgresDirectory => restore_folder(&dump.path, server, loading, progress)?,
        kind => {
            let compression = compression(kind).context("a dump that is none of PostgreSQL")?;
            feed(dump.open()?, compression, server, loading)?
        }
    };
    progress.end();
    if finished.is_success() {
        connection::warn_of(&finished, progress);
        return Ok(());
    }
    Err(explained(&finished, dump, loading))
}

/// What a plain dump is compressed by; none for any other kind.
pub(super) fn compression(kind: DumpKind) -> Option<Compression> {
    match kind {
        DumpKind::Sql => Some(Compression::None),
        DumpKind::SqlGz => Some(Compression::Gzip),
        DumpKind::SqlZst => Some(Compression::Zstd),
        _ => None,
    }
}

/// An archive in one file. Several sessions each open it again, by a name that leads to the very
/// file that was checked, whatever its path leads to by now; into a container it comes as a stream.
fn restore_file(file: File, server: &Server, loading: &Loading<'_>) -> anyhow::Result<Finished> {
    let (list, _kept) = list_file(loading)?;
    let can_be_opened = !server.is_elsewhere() && Path::new(STDIN).exists();
    let jobs = if can_be_opened { loading.jobs } else { 1 };
    let command = server.command("pg_restore")?.args(arguments(server, loading, jobs)).args(list);
    let command = if jobs > 1 { command.arg(STDIN) } else { command };
    Ok(command.input(file).output()?.1)
}

fn restore_folder(
    folder: &Path,
    server: &Server,
    loading: &Loading<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Finished> {
    let (list, _kept) = list_file(loading)?;
    let mut arguments = arguments(server, loading, loading.jobs);
    arguments.extend(list);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    directory::pg_restore(server, folder, &arguments, &Cancel::default(), progress)
}

/// The list of entries in a file, and the argument that names it.
fn list_file(
    loading: &Loading<'_>,
) -> anyhow::Result<(Option<String>, Option<tempfile::NamedTempFile>)> {
    let Some(list) = loading.list else { return Ok((None, None)) };
    let mut file = tempfile::NamedTempFile::new().context("cannot write a temporary file")?;
    file.write_all(list.as_bytes()).context("cannot write a temporary file")?;
    Ok((Some(format!("--use-list={}", file.path().display())), Some(file)))
}

fn arguments(server: &Server, loading: &Loading<'_>, jobs: usize) -> Vec<String> {
    let name = server.database().unwrap_or_default();
    let mut arguments = vec![
        "--exit-on-error".to_owned(),
        "--no-password".to_owned(),
        format!("--dbname={}", conninfo(name)),
    ];
    for (is_wanted, argument) in [
        (loading.is_transaction, "--single-transaction"),
        (loading.cleans, "--clean"),
        (loading.cleans, "--if-exists"),
        (loading.without.owners, "--no-owner"),
        (loading.without.rights, "--no-acl"),
    ] {
        if is_wanted {
            arguments.push(argument.to_owned());
        }
    }
    if jobs > 1 && !loading.is_transaction {
        arguments.push(format!("--jobs={jobs}"));
    }
    arguments
}

/// A database's name where libpq would take a connection string.
fn conninfo(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Sends dump and list as a tar to a container, and has them restored there.
fn restore_unpacked(
    dump: &Dump,
    server: &Server,
    loading: &Loading<'_>,
) -> anyhow::Result<Finished> {
    let mut arguments = arguments(server, loading, loading.jobs);
    if loading.list.is_some() {
        arguments.push("--use-list=list".to_owned());
    }
    let is_folder = dump.kind == DumpKind::PostgresDirectory;
    let mut file = if is_folder { None } else { Some(dump.open()?) };
    let command = server.command("sh")?.named("pg_restore");
    let running = command.args(["-c", UNPACK_AND_RESTORE, "sh"]).args(arguments).start()?;
    talk(running, |stdin| {
        let mut tar = tar::Builder::new(stdin);
        if let Some(list) = loading.list {
            let mut header = tar::Header::new_ustar();
            header.set_size(list.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, "list", list.as_bytes())?;
        }
        match &mut file {
            Some(file) => tar.append_file("archive", file)?,
            None => tar.append_dir_all("archive", &dump.path)?,
        }
        tar.into_inner()?.flush()
    })
    .map(|(_, finished)| finished)
}

/// Feeds a plain dump to psql.
fn feed(
    file: File,
    compression: Compression,
    server: &Server,
    loading: &Loading<'_>,
) -> anyhow::Result<Finished> {
    let key = plain::key()?;
    let (printed, finished) = talk(psql(server)?.start()?, |stdin| {
        plain::feed(decoded(file, compression)?, &key, loading.is_transaction, stdin)
    })?;
    if finished.is_success() && printed.trim_ascii() != key.as_bytes() {
        return Err(fail(
            Exit::Damaged,
            "the dump ends inside a statement, and was not loaded whole",
        ));
    }
    Ok(finished)
}

fn psql(server: &Server) -> anyhow::Result<Command> {
    let fixed = ["-X", "-q", "--no-password", "--set=ON_ERROR_STOP=1", "--output=/dev/null"];
    Ok(server.command("psql")?.args(fixed).args(["--file", "-"]))
}

/// Fails if psql does not know `\restrict`; nothing is done in the database.
///
/// # Errors
/// [`Exit::Usage`] with what to install; those of connecting.
pub(super) fn check_psql(server: &Server) -> anyhow::Result<()> {
    let (_, finished) =
        talk(psql(server)?.start()?, |stdin| writeln!(stdin, "\\restrict a\n\\unrestrict a"))?;
    if finished.is_success() {
        return Ok(());
    }
    if finished.stderr.contains("restrict") {
        return Err(Failure::new(
            Exit::Usage,
            "this psql cannot be kept from running programs that a plain dump names",
        )
        .hint("it has to know \\restrict: 13.22, 14.19, 15.14, 16.10, 17.6, 18 or newer")
        .hint("update the PostgreSQL client, or use the server's own: --via docker:NAME")
        .into());
    }
    Err(connection::failure(&finished))
}

/// The text of a plain dump.
///
/// # Errors
/// If there is no memory for the decoder.
pub(super) fn decoded(file: File, compression: Compression) -> io::Result<Box<dyn BufRead>> {
    Ok(match compression {
        Compression::None => Box::new(BufReader::with_capacity(CHUNK, file)),
        Compression::Gzip => {
            let packed = BufReader::with_capacity(CHUNK, file);
            Box::new(BufReader::with_capacity(CHUNK, MultiGzDecoder::new(packed)))
        }
        Compression::Zstd => Box::new(BufReader::with_capacity(CHUNK, zstd::Decoder::new(file)?)),
    })
}

/// Writes to a program while its output is read; its own words come before a broken pipe.
fn talk(
    mut running: Running,
    write: impl FnOnce(&mut BufWriter<io::PipeWriter>) -> io::Result<()>,
) -> anyhow::Result<(Vec<u8>, Finished)> {
    let stdin = running.stdin.take().context("a program without an input")?;
    let stdout = running.stdout.take().context("a program without an output")?;
    let (written, printed) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut printed = Vec::new();
            stdout.take(CHUNK as u64).read_to_end(&mut printed).map(|_| printed)
        });
        let mut stdin = BufWriter::with_capacity(CHUNK, stdin);
        let written = write(&mut stdin).and_then(|()| stdin.flush());
        drop(stdin.into_parts().0);
        (written, reader.join())
    });
    let finished = running.wait()?;
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).context("cannot read the dump");
        }
        Err(error) if finished.is_success() => return Err(error).context("it was not read whole"),
        _ => {}
    }
    let printed = printed.ok().context("the reader of a program has ended")?;
    Ok((printed.context("cannot read what a program prints")?, finished))
}

/// The error of a program, with what can be done about it.
fn explained(finished: &Finished, dump: &Dump, loading: &Loading<'_>) -> anyhow::Error {
    let error = connection::failure(finished);
    let hints = hints(&finished.stderr, dump.kind, &dump.path, loading);
    if hints.is_empty() {
        return error;
    }
    let failure = Failure::new(classify(&error), error.to_string());
    hints.into_iter().fold(failure, Failure::hint).into()
}

fn hints(said: &str, kind: DumpKind, path: &Path, loading: &Loading<'_>) -> Vec<String> {
    let has = |part: &str| said.contains(part);
    let hint = if has("role \"") && has("does not exist")
        || has("must be member of")
        || has("to SET ROLE")
    {
        "make the role first (--create-missing-roles), or leave owners out: --no-owner --no-acl"
    } else if has("backslash commands are restricted") || has("\\unrestrict") {
        "the dump holds a command for psql, which bk-dump does not let it run"
    } else if has("already exists") && compression(kind).is_some() {
        "a plain dump drops nothing unless it was made with --clean: restore without --in-place"
    } else if has("because other objects depend on it") {
        "what depends on it is not restored with it: choose that, too, drop it yourself, or restore \
         into a database of its own (--database NAME)"
    } else if has("CONTEXT:") && has(" function ") && has("does not exist") {
        return vec![
            "a function finds names by search_path only, which is empty while a dump is loaded: \
             SET search_path belongs to it, before the database is dumped"
                .to_owned(),
            "this dump by hand: pg_restore -f - DUMP | \
             sed \"s/'search_path', ''/'search_path', 'public'/\" | psql -d NEW"
                .to_owned(),
        ];
    } else if (has("Command was:") || has("COPY failed")) && !is_of_server(said) {
        if loading.is_transaction {
            return Vec::new();
        }
        let place = path.display();
        let by_hand = format!(
            "all but that can be loaded by hand: createdb NEW; pg_restore -d NEW '{place}'"
        );
        // That of PostgreSQL 18 adds a NOT VALID constraint while rows are loaded that break it.
        let slowly = "pg_restore may have loaded in a wrong order: --jobs 1".to_owned();
        let is_parallel = loading.jobs > 1;
        return is_parallel.then_some(slowly).into_iter().chain([by_hand]).collect();
    } else {
        return Vec::new();
    };
    vec![hint.to_owned()]
}

/// Whether the server itself stood in the way, not what the dump holds.
fn is_of_server(said: &str) -> bool {
    ["could not extend", "No space left", "server closed the connection"]
        .iter()
        .any(|words| said.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parallel_load_that_fails_may_be_done_in_order() {
        let said = "COPY failed for table \"t\": ERROR: null value in column \"a\"";
        let hints_of = |jobs| {
            let loading = Loading { jobs, ..Loading::default() };
            hints(said, DumpKind::PostgresCustom, Path::new("app.dump"), &loading)
        };
        assert!(hints_of(2)[0].ends_with("--jobs 1"));
        assert_eq!(hints_of(1).len(), 1);
    }

    #[test]
    fn a_database_name_is_no_connection_string() {
        assert_eq!(conninfo("app"), "dbname='app'");
        assert_eq!(conninfo("x' host='evil"), "dbname='x\\' host=\\'evil'");
    }
}
