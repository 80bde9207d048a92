//! Dumps in directory format: a folder with a table of contents and a file for each table and large
//! object.
//!
//! Out of a container, or from another host, such a dump comes as the tar that `pg_dump` can write
//! into a pipe, and is split into the same files on its way: an unpacked tar is a dump in directory
//! format. Back it goes as a tar that is unpacked there.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use bk_manifest::command::{Cancel, Finished};
use bk_manifest::exit::{Exit, fail};
use bk_manifest::progress::Progress;

use super::connection::Server;
use crate::compress::{Compression, Compressor};
use crate::filter::Work;

/// The table of contents.
pub const CONTENTS: &str = "toc.dat";
/// SQL for people, which only the tar has.
const SCRIPT: &str = "restore.sql";
/// Unpacks a dump where `pg_restore` is, and runs it with its arguments on the folder. However our end
/// of the pipe is lost, the folder goes; only a shell that is killed there leaves it.
const UNPACK: &str = "set -e; folder=$(mktemp -d); trap 'rm -rf -- \"$folder\"' EXIT; \
    trap 'exit 143' HUP INT TERM; tar -xf - -C \"$folder\"; pg_restore \"$@\" \"$folder\"";

/// The tar ended too early: whoever wrote it says why.
#[derive(Debug)]
struct Cut(io::Error);

impl std::fmt::Display for Cut {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "the tar of pg_dump was cut short: {}", self.0)
    }
}

impl std::error::Error for Cut {}

/// Whether splitting failed because the tar ended too early.
pub(super) fn is_cut(error: &anyhow::Error) -> bool {
    error.is::<Cut>()
}

/// Splits the tar that `pg_dump` prints into the files of a new folder.
///
/// # Errors
/// A full disk; a tar that is none of `pg_dump`, or is cut short ([`is_cut`]).
pub(super) fn split(
    tar: &mut impl Read,
    folder: &Path,
    compression: Compression,
    work: &Work<'_>,
) -> anyhow::Result<()> {
    fs::create_dir(folder).with_context(|| format!("cannot make '{}'", folder.display()))?;
    let mut archive = tar::Archive::new(tar);
    let mut has_contents = false;
    for member in archive.entries().map_err(Cut)? {
        let mut member = member.map_err(Cut)?;
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        if name == SCRIPT {
            continue;
        }
        if !bk_manifest::manifest::is_name(&name) || !member.header().entry_type().is_file() {
            let message = format!("pg_dump wrote an odd member: '{}'", name.escape_debug());
            return Err(fail(Exit::Failed, message));
        }
        has_contents |= name == CONTENTS;
        let is_data = name.strip_suffix(".dat").is_some() && name != CONTENTS;
        let (compression, name) = match compression {
            Compression::Gzip if is_data => (Compression::Gzip, format!("{name}.gz")),
            _ => (Compression::None, in_folder(&name)),
        };
        copy(&mut member, &folder.join(name), compression, work)?;
    }
    if has_contents { Ok(()) } else { Err(Cut(io::ErrorKind::UnexpectedEof.into()).into()) }
}

/// The name under which `pg_restore` looks for a file of the tar: since PostgreSQL 17 the lists of large
/// objects have numbers, and the table of contents calls them otherwise than the tar does.
fn in_folder(name: &str) -> String {
    let number = name.strip_prefix("blobs_").and_then(|name| name.strip_suffix(".toc"));
    number.map_or_else(|| name.to_owned(), |number| format!("{number}.dat"))
}

fn copy(
    member: &mut impl Read,
    path: &Path,
    compression: Compression,
    work: &Work<'_>,
) -> anyhow::Result<()> {
    let context = || format!("cannot write '{}'", path.display());
    let file = File::create_new(path).with_context(context)?;
    let mut output = Compressor::new(file, compression).with_context(context)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        work.cancel.check()?;
        let read = member.read(&mut buffer).map_err(Cut)?;
        if read == 0 {
            break;
        }
        io::Write::write_all(&mut output, &buffer[..read]).with_context(context)?;
        work.progress.advance(read as u64, 0);
    }
    output.finish().with_context(context)?;
    Ok(())
}

/// Runs `pg_restore` on the folder of a dump, wherever the server's programs are.
///
/// Elsewhere it is unpacked first, into the temporary folder there; a container's image must have
/// `sh`, `tar`, `mktemp` and `rm`.
///
/// # Errors
/// If it cannot be started or we are told to stop. Its own failure is in [`Finished`].
pub fn pg_restore(
    server: &Server,
    folder: &Path,
    args: &[&str],
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<Finished> {
    if !server.is_elsewhere() {
        let command = server.command("pg_restore")?.cancelled_by(cancel).args(args).arg(folder);
        return Ok(command.output()?.1);
    }
    let command = server.command("sh")?.named("pg_restore").cancelled_by(cancel);
    let mut running = command.args(["-c", UNPACK, "pg_restore"]).args(args).start()?;
    let sent = match running.stdin.take() {
        Some(stdin) => send(folder, stdin, progress),
        None => Ok(()),
    };
    let finished = running.wait()?;
    match sent {
        // It has ended early: its own words say why.
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => Ok(finished),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn send(folder: &Path, stdin: impl io::Write, progress: &dyn Progress) -> anyhow::Result<()> {
    let context = || format!("cannot read '{}'", folder.display());
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, stdin));
    for found in fs::read_dir(folder).with_context(context)? {
        let found = found.with_context(context)?;
        let file = File::open(found.path()).with_context(context)?;
        let size = file.metadata().with_context(context)?.len();
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        tar.append_data(&mut header, found.file_name(), BufReader::new(file).take(size))
            .context("cannot send the dump")?;
        progress.advance(size, 0);
    }
    tar.into_inner()
        .and_then(|mut output| io::Write::flush(&mut output))
        .context("cannot send the dump")
}
