//! Whether each file of a dump in directory format is whole, where `pg_restore` does not notice: it
//! takes an empty file for an empty table, a list of large objects as far as it goes, text without its
//! end mark for whole, and since PostgreSQL 18 what is left of a gzip file, too.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, fail};
use flate2::read::MultiGzDecoder;

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// No compressed file is shorter: the mark at its beginning is as long. In bytes.
const COMPRESSED_MIN: usize = 4;
/// How much of a file's end is looked at: more than a line of a list of large objects, in bytes.
const END: usize = 64;

/// Reads what is compressed to its end, and looks at the end of everything.
///
/// # Errors
/// [`Exit::Damaged`] with the file that is cut short; if one cannot be read, or we are told to stop.
pub(super) fn check(folder: &Path, cancel: &Cancel) -> anyhow::Result<()> {
    let context = || format!("cannot read '{}'", folder.display());
    for found in fs::read_dir(folder).with_context(context)? {
        let found = found.with_context(context)?;
        if !found.file_type().with_context(context)?.is_file() {
            continue;
        }
        let name = found.file_name().to_string_lossy().into_owned();
        let end = match end_of(&found.path(), cancel)? {
            Ok(end) => Some(end),
            // That is the disk's fault.
            Err(error) if error.raw_os_error().is_some() => {
                return Err(error)
                    .with_context(|| format!("cannot read '{}'", name.escape_debug()));
            }
            Err(_) => None,
        };
        if !end.is_some_and(|end| is_whole(&name, &end)) {
            return Err(fail(Exit::Damaged, format!("'{}' is cut short", name.escape_debug())));
        }
    }
    Ok(())
}

/// Whether the file of that name may end so, behind its compression.
fn is_whole(name: &str, end: &[u8]) -> bool {
    match name.split_once('.') {
        Some((_, "toc")) => end.ends_with(b"\n"),
        Some(("toc", "dat")) => true,
        // Nothing says how long a large object is.
        Some((stem, "dat" | "dat.gz" | "dat.zst")) if stem.starts_with("blob_") => true,
        Some((_, "dat" | "dat.gz" | "dat.zst")) => end.ends_with(b"\n\n") || is_end_of_list(end),
        Some((_, rest)) if rest.starts_with("dat.") => end.len() >= COMPRESSED_MIN,
        _ => true,
    }
}

/// Whether a file ends as a list of large objects does, which out of a tar has the name of a table's
/// data.
fn is_end_of_list(end: &[u8]) -> bool {
    let line = end.strip_suffix(b"\n").and_then(|end| end.rsplit(|byte| *byte == b'\n').next());
    // 4711 blob_4711.dat
    let words = line.and_then(|line| std::str::from_utf8(line).ok()?.split_once(" blob_"));
    words.is_some_and(|(number, file)| file.strip_suffix(".dat") == Some(number))
}

/// The last bytes of a file behind its compression, all of them if it has no more; or why it cannot be
/// read, an error of the file system or of the decoder.
fn end_of(path: &Path, cancel: &Cancel) -> anyhow::Result<io::Result<Vec<u8>>> {
    let extension = path.extension().and_then(std::ffi::OsStr::to_str);
    let opened = File::open(path).and_then(|mut file| {
        let size = file.metadata()?.len();
        Ok(match extension {
            // To a decoder that is no file at all, which ends well.
            Some("gz" | "zst") if size == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some("gz") => Box::new(MultiGzDecoder::new(BufReader::with_capacity(CHUNK, file))),
            Some("zst") => Box::new(zstd::Decoder::new(file)?) as Box<dyn Read>,
            _ => {
                file.seek(io::SeekFrom::Start(size.saturating_sub(END as u64)))?;
                Box::new(file)
            }
        })
    });
    let mut content = match opened {
        Ok(content) => content,
        Err(error) => return Ok(Err(error)),
    };
    let (mut end, mut buffer) = (Vec::new(), vec![0; CHUNK]);
    loop {
        cancel.check()?;
        let read = match content.read(&mut buffer) {
            Ok(0) => return Ok(Ok(end)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Err(error)),
        };
        end.extend_from_slice(&buffer[read.saturating_sub(END)..read]);
        end.drain(..end.len().saturating_sub(END));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bk_manifest::exit::classify;
    use flate2::write::GzEncoder;

    use super::*;

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

    fn put(path: &Path, content: &[u8]) {
        File::create(path).unwrap().write_all(content).unwrap();
    }

    /// A folder with one file passes as a whole, and no part of the file does.
    #[track_caller]
    fn is_refused_cut(name: &str, content: &[u8]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        put(&path, content);
        check(folder.path(), &Cancel::default()).unwrap();
        for length in [0, 1, 5, content.len() / 2, content.len() - 9, content.len() - 1] {
            put(&path, &content[..length]);
            let error = check(folder.path(), &Cancel::default()).unwrap_err();
            assert_eq!(classify(&error), Exit::Damaged, "{name} cut to {length}: {error:#}");
        }
    }

    #[test]
    fn a_cut_file_is_found_in_every_compression() {
        let rows = "4711\ta row\n".repeat(50_000);
        let data = format!("{rows}\\.\n\n\n");
        // An empty line at the end is no loss.
        is_refused_cut("3416.dat", &data.as_bytes()[..data.len() - 1]);
        let gzip = |content: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        };
        is_refused_cut("3416.dat.gz", &gzip(data.as_bytes()));
        is_refused_cut("blob_7.dat.gz", &gzip(rows.as_bytes()));
        is_refused_cut("3416.dat.zst", &zstd::encode_all(data.as_bytes(), 3).unwrap());
        is_refused_cut("blobs.toc", b"4711 blob_4711.dat\n47112 blob_47112.dat\n");
    }

    #[test]
    fn data_without_its_end_mark_is_cut_in_every_compression() {
        let folder = tempfile::tempdir().unwrap();
        let packed = zstd::encode_all(&b"1\trow\n2\tro"[..], 3).unwrap();
        put(&folder.path().join("1.dat.zst"), &packed);
        assert!(check(folder.path(), &Cancel::default()).is_err());
    }
}
