//! Reading an archive to its end with `pg_restore`: whether it could be restored.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::digest::{Digest, Hasher};
use bk_manifest::exit::{Exit, fail};
use bk_manifest::progress::Progress;

use super::connection::Server;
use super::directory;
use super::toc::{self, Head};
use super::whole;

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// How much of a table of contents is looked at here.
const HEAD_LIMIT: u64 = 4096;

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

/// The same for the folder of a dump in directory format.
///
/// # Errors
/// As [`read_archive`].
pub fn read_folder(
    server: &Server,
    folder: &Path,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let mut head = Vec::new();
    let contents = folder.join(directory::CONTENTS);
    File::open(&contents).and_then(|file| file.take(HEAD_LIMIT).read_to_end(&mut head)).map_err(
        |error| fail(Exit::Damaged, format!("cannot read '{}': {error}", contents.display())),
    )?;
    if !matches!(toc::read(&head), Head::Entries(1..) | Head::Unknown) {
        return Err(fail(Exit::Damaged, "its table of contents is empty or damaged"));
    }
    let (whole, finished) = std::thread::scope(|scope| {
        let whole = scope.spawn(|| whole::check(folder, cancel));
        let args = ["--file=/dev/null"];
        let finished = directory::pg_restore(server, folder, &args, cancel, progress);
        (whole.join().unwrap_or_else(|_| Err(anyhow::anyhow!("reading it panicked"))), finished)
    });
    whole?;
    let finished = finished?;
    if finished.is_success() { Ok(()) } else { Err(fail(Exit::Damaged, finished.message())) }
}
