//! Reading an archive to its end with `pg_restore`: whether it could be restored.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::digest::{Digest, Hasher};
use bk_manifest::exit::{Exit, fail};
use bk_manifest::progress::Progress;

use super::connection::Server;
use super::directory;
use super::toc::{self, Head};

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// How much of a table of contents is looked at here.
const HEAD_LIMIT: u64 = 4096;
/// No compressed file is shorter: the mark at its beginning is as long. In bytes.
const COMPRESSED_MIN: usize = 4;
/// How much of a file's end is looked at: more than a line of a list of large objects, in bytes.
const END: usize = 64;

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
    refuse_cut_files(folder)?;
    let finished = directory::pg_restore(server, folder, &["--file=/dev/null"], cancel, progress)?;
    if finished.is_success() { Ok(()) } else { Err(fail(Exit::Damaged, finished.message())) }
}

/// Refuses a folder with a file that is cut short where `pg_restore` would not notice: it takes an
/// empty file for an empty table, a list of large objects as far as it goes, and text without its end
/// mark for whole.
fn refuse_cut_files(folder: &Path) -> anyhow::Result<()> {
    let context = || format!("cannot read '{}'", folder.display());
    for found in fs::read_dir(folder).with_context(context)? {
        let found = found.with_context(context)?;
        if !found.file_type().with_context(context)?.is_file() {
            continue;
        }
        let name = found.file_name().to_string_lossy().into_owned();
        let end = last_bytes(&found.path(), END).with_context(context)?;
        let is_whole = match name.split_once('.') {
            Some((_, "toc")) => end.ends_with(b"\n"),
            // Nothing says how long a large object is that is not compressed.
            Some((stem, "dat")) if stem == "toc" || stem.starts_with("blob_") => true,
            Some((_, "dat")) => end.ends_with(b"\n\n") || is_end_of_list(&end),
            Some((_, rest)) if rest.starts_with("dat.") => end.len() >= COMPRESSED_MIN,
            _ => true,
        };
        if !is_whole {
            return Err(fail(Exit::Damaged, format!("'{}' is cut short", name.escape_debug())));
        }
    }
    Ok(())
}

/// Whether a file ends as a list of large objects does, which out of a tar has the name of a table's
/// data.
fn is_end_of_list(end: &[u8]) -> bool {
    let line = end.strip_suffix(b"\n").and_then(|end| end.rsplit(|byte| *byte == b'\n').next());
    // 4711 blob_4711.dat
    let words = line.and_then(|line| std::str::from_utf8(line).ok()?.split_once(" blob_"));
    words.is_some_and(|(number, file)| file.strip_suffix(".dat") == Some(number))
}

/// The last bytes of a file, all of them if it has no more.
fn last_bytes(path: &Path, count: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(len.saturating_sub(count as u64)))?;
    let mut bytes = Vec::with_capacity(count);
    file.take(count as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::is_end_of_list;

    #[test]
    fn the_end_of_a_list_of_large_objects_is_known() {
        assert!(is_end_of_list(b"4711 blob_4711.dat\n"));
        assert!(is_end_of_list(b"1 blob_1.dat\n4711 blob_4711.dat\n"));
        for cut in
            ["", "\n", "4711 blob_4711.dat", "4711 blob_47\n", "4711 blob_4712.dat\n", "4711\tx\n"]
        {
            assert!(!is_end_of_list(cut.as_bytes()), "{cut:?}");
        }
    }
}
