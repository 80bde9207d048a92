//! Reading a dump to its end: whether it could be restored, without restoring it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::digest::{Digest, Hasher};
use bk_manifest::exit::{Exit, fail};
use bk_manifest::progress::{Progress, Silent};
use flate2::read::MultiGzDecoder;

use crate::postgres::connection::{Request, Server};
use crate::{postgres, sqlite};

/// Longest line of a plain dump that is looked at; the rest of it is skipped.
const LINE_LIMIT: usize = 4096;
/// How many of the last lines the end mark is looked for in; `\unrestrict` comes behind it.
const LAST_LINES: usize = 12;

/// The forms of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DumpKind {
    /// PostgreSQL's custom format.
    PostgresCustom,
    /// PostgreSQL's directory format: a folder.
    PostgresDirectory,
    /// An SQLite database in a zstd frame.
    Sqlite,
    /// A tar in zstd.
    TarZst,
    /// A tar in gzip.
    TarGz,
    /// A plain dump of PostgreSQL.
    Sql,
    /// The same in gzip.
    SqlGz,
    /// The same in zstd.
    SqlZst,
}

impl DumpKind {
    /// Tells the form by the file's name; `None` for one that is no dump.
    pub fn of_name(name: &str) -> Option<DumpKind> {
        let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
        [
            (".tar.zst", DumpKind::TarZst),
            (".tar.gz", DumpKind::TarGz),
            (".tgz", DumpKind::TarGz),
            (".sql.gz", DumpKind::SqlGz),
            (".sql.zst", DumpKind::SqlZst),
            (".sql", DumpKind::Sql),
            (".dump", DumpKind::PostgresCustom),
            (".pgdump", DumpKind::PostgresCustom),
            (".dir", DumpKind::PostgresDirectory),
            (".zst", DumpKind::Sqlite),
        ]
        .into_iter()
        .find(|(end, _)| name.ends_with(end))
        .map(|(_, kind)| kind)
    }

    /// Tells the form by the kind of the component first: a database may be called `x.tar`.
    pub fn of_component(component: &str, name: &str) -> Option<DumpKind> {
        match component {
            sqlite::KIND => Some(DumpKind::Sqlite),
            _ => DumpKind::of_name(name),
        }
    }
}

/// Reads a dump to its end, with the programs of this host.
///
/// # Errors
/// [`Exit::Damaged`] if it could not be restored whole; [`Exit::NotFound`] if it is not there; a
/// program that is not installed, no space for a temporary copy.
pub fn check(kind: DumpKind, file: &Path) -> anyhow::Result<()> {
    check_with(kind, file, &Server::new(&Request::default())?, &Silent)
}

/// As [`check`], with the PostgreSQL programs of `server`.
///
/// # Errors
/// As [`check`].
pub fn check_with(
    kind: DumpKind,
    file: &Path,
    server: &Server,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let context = || format!("'{}'", file.display());
    if kind == DumpKind::PostgresDirectory {
        let cancel = Cancel::default();
        return postgres::read::read_folder(server, file, &cancel, progress).with_context(context);
    }
    let open = File::open(file).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            io::ErrorKind::PermissionDenied => Exit::Denied,
            _ => Exit::Failed,
        };
        fail(exit, format!("cannot open the dump: {error}"))
    });
    open.and_then(|open| check_open(kind, open, &scratch_beside(file), server, progress))
        .map(|_| ())
        .with_context(context)
}

/// A folder for a temporary copy: the dump's own, which is as private as the dump; else the
/// system's.
pub fn scratch_beside(file: &Path) -> PathBuf {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let is_writable = tempfile::tempfile_in(folder).is_ok();
    if is_writable { folder.to_owned() } else { std::env::temp_dir() }
}

/// The same for an open file (so not for a folder), with the PostgreSQL programs of `server`; a temporary copy goes into
/// `scratch`. Returns what was read.
///
/// # Errors
/// As [`check`].
pub fn check_open(
    kind: DumpKind,
    file: File,
    scratch: &Path,
    server: &Server,
    progress: &dyn Progress,
) -> anyhow::Result<(Digest, u64)> {
    let cancel = Cancel::default();
    match kind {
        DumpKind::PostgresCustom => postgres::read::read_archive(server, file, &cancel, progress),
        DumpKind::Sqlite => {
            let mut copy = file.try_clone().context("cannot read the dump")?;
            let hashed = Digest::of_reader(file).context("cannot read the dump")?;
            io::Seek::rewind(&mut copy).context("cannot read the dump")?;
            sqlite::restore::decode(copy, scratch, progress)?;
            Ok(hashed)
        }
        _ => read_to_end(kind, file, &cancel),
    }
}

/// Reads a tar or a plain dump to its end, and hashes the file meanwhile.
///
/// # Errors
/// [`Exit::Damaged`] with what is wrong.
pub fn read_to_end(kind: DumpKind, file: File, cancel: &Cancel) -> anyhow::Result<(Digest, u64)> {
    let mut input = Hashed { file, hasher: Hasher::default(), cancel };
    let damaged = |error: io::Error| {
        cancel.check()?;
        Err(fail(Exit::Damaged, format!("it cannot be read to its end: {error}")))
    };
    let read = {
        let buffered = BufReader::with_capacity(1 << 17, &mut input);
        match kind {
            DumpKind::TarZst => zstd::Decoder::with_buffer(buffered).and_then(read_tar),
            DumpKind::TarGz => read_tar(MultiGzDecoder::new(buffered)),
            DumpKind::SqlGz => read_sql(MultiGzDecoder::new(buffered)),
            DumpKind::SqlZst => zstd::Decoder::with_buffer(buffered).and_then(read_sql),
            DumpKind::Sql => read_sql(buffered),
            DumpKind::PostgresCustom | DumpKind::PostgresDirectory | DumpKind::Sqlite => {
                return Err(anyhow::anyhow!("this kind of dump needs a program to be read"));
            }
        }
    };
    match read.and_then(|()| io::copy(&mut input, &mut io::sink())) {
        Ok(_) => Ok(input.hasher.finish()),
        Err(error) => damaged(error),
    }
}

struct Hashed<'a> {
    file: File,
    hasher: Hasher,
    cancel: &'a Cancel,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        let read = self.file.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

fn read_tar(decoder: impl Read) -> io::Result<()> {
    let mut tar = tar::Archive::new(decoder);
    let mut names = 0u64;
    for entry in tar.entries()? {
        io::copy(&mut entry?, &mut io::sink())?;
        names += 1;
    }
    // Behind tar's own end stand the sums of the compression.
    io::copy(&mut tar.into_inner(), &mut io::sink())?;
    if names == 0 {
        return Err(io::Error::other("the archive is empty"));
    }
    Ok(())
}

/// Looks for the end mark that every plain dump has, and for both halves of its lock.
fn read_sql(input: impl Read) -> io::Result<()> {
    let mut input = BufReader::with_capacity(1 << 17, input);
    let mut last: VecDeque<Vec<u8>> = VecDeque::with_capacity(LAST_LINES + 1);
    let mut key: Option<Vec<u8>> = None;
    let mut line = Vec::new();
    while read_line(&mut input, &mut line)? {
        if key.is_none()
            && let Some(found) = line.strip_prefix(b"\\restrict ")
        {
            key = Some(found.to_vec());
        }
        if !line.is_empty() {
            last.push_back(line.clone());
            if last.len() > LAST_LINES {
                last.pop_front();
            }
        }
    }
    let ends = [
        &b"-- PostgreSQL database dump complete"[..],
        b"-- PostgreSQL database cluster dump complete",
    ];
    if !last.iter().any(|line| ends.contains(&&line[..])) {
        return Err(io::Error::other("its last lines are missing ('… dump complete')"));
    }
    if let Some(key) = key {
        let unlocked = [&b"\\unrestrict "[..], &key].concat();
        if !last.contains(&unlocked) {
            return Err(io::Error::other("its last line is missing ('\\unrestrict …')"));
        }
    }
    Ok(())
}

/// Reads a line without its end; of a long one only the beginning is kept.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut has_read = false;
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(has_read);
        }
        has_read = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let room = LINE_LIMIT.saturating_sub(line.len());
        line.extend_from_slice(&part[..part.len().min(room)]);
        let taken = end.map_or(buffer.len(), |end| end + 1);
        input.consume(taken);
        if end.is_some() {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;
    use std::io::Write;

    const PLAIN: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\nSELECT 1;\n\n--\n\
        -- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n\n";

    fn read(kind: DumpKind, bytes: &[u8]) -> anyhow::Result<(Digest, u64)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        read_to_end(kind, file, &Cancel::default())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn tarball() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        tar.append_data(&mut header, "a", &b"abc"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn kinds_are_told_by_the_name() {
        for (name, kind) in [
            ("app.dump", Some(DumpKind::PostgresCustom)),
            (".bk/database/APP.DUMP", Some(DumpKind::PostgresCustom)),
            ("app.db.zst", Some(DumpKind::Sqlite)),
            ("config.tar.zst", Some(DumpKind::TarZst)),
            ("config.tar.gz", Some(DumpKind::TarGz)),
            ("x.sql", Some(DumpKind::Sql)),
            ("x.sql.gz", Some(DumpKind::SqlGz)),
            ("photo.jpg", None),
        ] {
            assert_eq!(DumpKind::of_name(name), kind, "{name}");
        }
    }

    #[test]
    fn a_plain_dump_without_its_end_is_damaged() {
        assert!(read(DumpKind::Sql, PLAIN.as_bytes()).is_ok());
        assert!(read(DumpKind::SqlGz, &gzip(PLAIN.as_bytes())).is_ok());
        let older = PLAIN.replace("\\restrict abc\n", "").replace("\\unrestrict abc\n", "");
        assert!(read(DumpKind::Sql, older.as_bytes()).is_ok());
        for bad in [
            "",
            &PLAIN[..PLAIN.find("SELECT").unwrap()],
            &PLAIN[..PLAIN.find("\\unrestrict").unwrap()],
            &PLAIN.replace("\\unrestrict abc", "\\unrestrict xyz"),
        ] {
            let error = read(DumpKind::Sql, bad.as_bytes()).unwrap_err();
            assert_eq!(classify(&error), Exit::Damaged, "{bad:?}");
        }
    }

    #[test]
    fn the_twenty_bytes_of_a_failed_pipe_are_damaged() {
        assert_eq!(gzip(b"").len(), 20);
        assert!(read(DumpKind::SqlGz, &gzip(b"")).is_err());
        assert!(read(DumpKind::TarGz, &gzip(b"")).is_err());
    }

    #[test]
    fn archives_that_are_cut_or_flipped_are_damaged() {
        let zst = {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(&tarball()).unwrap();
            encoder.finish().unwrap()
        };
        for (kind, bytes) in [(DumpKind::TarZst, zst), (DumpKind::TarGz, gzip(&tarball()))] {
            let (digest, size) = read(kind, &bytes).unwrap();
            assert_eq!((digest, size), (Digest::of(&bytes), bytes.len() as u64));
            for cut in 0..bytes.len() {
                let error = read(kind, &bytes[..cut]).unwrap_err();
                assert_eq!(classify(&error), Exit::Damaged, "{kind:?} cut at {cut}");
            }
            let mut flipped = bytes.clone();
            let middle = bytes.len() - 10;
            flipped[middle] ^= 1;
            assert!(read(kind, &flipped).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn long_lines_are_passed_over() {
        let long = format!("{}\n{}", "x".repeat(3 * LINE_LIMIT), PLAIN);
        assert!(read(DumpKind::Sql, long.as_bytes()).is_ok());
    }
}
