//! Archives: a few paths, secrets often, as one tar file that any tar opens.
//!
//! Names are relative: to the root that was given, or to `/` for absolute ones, as tar itself
//! does it. The same files give the same bytes: names are sorted and no time of ours goes in.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use bk_manifest::atomic::NewFile;
use bk_manifest::beneath::{Cursor, Root};
use bk_manifest::digest::HashWriter;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::{LeftOut, Reason};
use bk_manifest::path::RelPath;
use bk_manifest::scan::{self, scan};
use bk_manifest::time::Time;
use rustix::fs::{AtFlags, FileType, statat};
use serde_json::{Map, Value, json};

use crate::check::{self, DumpKind};
use crate::compress::{Compression, Compressor};
use crate::filter::{Made, Work};

/// The `kind` of its components.
pub const KIND: &str = "archive";
/// Files up to this size are read whole before they are written, and again if they changed.
const WHOLE_LIMIT: u64 = 8 << 20;

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `.tar.zst`.
    #[default]
    Zstd,
    /// `.tar.gz`.
    Gzip,
}

impl Format {
    /// How its file's name ends.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Zstd => "tar.zst",
            Format::Gzip => "tar.gz",
        }
    }

    fn compression(self) -> Compression {
        match self {
            Format::Zstd => Compression::Zstd,
            Format::Gzip => Compression::Gzip,
        }
    }
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tar.zst" => Ok(Format::Zstd),
            "tar.gz" => Ok(Format::Gzip),
            _ => Err("it is tar.zst or tar.gz"),
        }
    }
}

/// What goes into an archive.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that the paths are relative to.
    pub root: PathBuf,
    /// The paths below it; empty for all of it.
    pub paths: Vec<RelPath>,
    /// How it is compressed.
    pub format: Format,
    /// Whether it holds no secrets.
    pub is_public: bool,
}

impl Options {
    /// Takes the paths as they were typed.
    ///
    /// # Errors
    /// [`Exit::Usage`] for `..`, and for absolute paths beside relative ones.
    pub fn new(root: Option<&Path>, paths: &[PathBuf], format: Format) -> anyhow::Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let absolute = paths.iter().filter(|path| path.is_absolute()).count();
        if absolute > 0 && (absolute < paths.len() || root.is_some()) {
            return Err(Failure::new(
                Exit::Usage,
                "absolute paths cannot be mixed with relative ones or a root",
            )
            .hint("give all of them relative to one folder: --root DIR")
            .into());
        }
        let mut relative = Vec::new();
        let mut is_whole = false;
        for path in paths {
            let bytes = path.as_os_str().as_bytes();
            let start = bytes.iter().position(|byte| *byte != b'/').unwrap_or(0);
            match scan::relative(&bytes[start..])? {
                Some(path) => relative.push(path),
                None => is_whole = true,
            }
        }
        let root = match root {
            Some(root) => root.to_owned(),
            None if absolute > 0 => PathBuf::from("/"),
            None => PathBuf::from("."),
        };
        let paths = if is_whole { Vec::new() } else { relative };
        Ok(Options { root, paths, format, is_public: false })
    }

    /// The paths of this host that it holds, absolute.
    ///
    /// # Errors
    /// If the current folder is gone.
    pub fn host_paths(&self) -> io::Result<Vec<PathBuf>> {
        let root = std::path::absolute(&self.root)?;
        if self.paths.is_empty() {
            return Ok(vec![root]);
        }
        Ok(self.paths.iter().map(|path| root.join(path.as_path())).collect())
    }
}

/// Looks whether all paths are there, and returns what reads them.
///
/// # Errors
/// [`Exit::NotFound`] for a path that is not there; [`Exit::Usage`] for a symbolic link, which
/// would be all that the archive holds.
pub fn begin(
    options: &Options,
) -> anyhow::Result<impl FnOnce(&Work<'_>) -> anyhow::Result<Made> + Send> {
    let not_there = |path: &dyn std::fmt::Display, error: io::Error| {
        fail(Exit::NotFound, format!("cannot read '{path}': {error}"))
    };
    let root =
        Root::open(&options.root).map_err(|error| not_there(&options.root.display(), error))?;
    let mut cursor = Cursor::new(&root);
    for path in &options.paths {
        let shown = options.root.join(path.as_path());
        let (parent, name) =
            cursor.parent(path).map_err(|error| not_there(&shown.display(), error))?;
        let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| not_there(&shown.display(), error.into()))?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
            let message = format!("'{}' is a symbolic link", shown.display());
            return Err(Failure::new(Exit::Usage, message)
                .hint("name the file or folder that it points to")
                .into());
        }
    }
    Ok(move |work: &Work<'_>| {
        let root = Root::open(&options.root)
            .with_context(|| format!("cannot open '{}'", options.root.display()))?;
        dump(&root, options, work)
    })
}

/// What was put into an archive.
#[derive(Default)]
struct Content {
    files: u64,
    bytes: u64,
}

fn dump(root: &Root, options: &Options, work: &Work<'_>) -> anyhow::Result<Made> {
    let context = || format!("cannot write to '{}'", work.staging.folder().display());
    let compressor = Compressor::new(work.staging.create()?, options.format.compression())
        .with_context(context)?;
    let scan_options = scan::Options { paths: options.paths.clone(), ..scan::Options::default() };
    let mut archive = Archive {
        tar: tar::Builder::new(compressor),
        cursor: Cursor::new(root),
        unread: LeftOut::default(),
        content: Content::default(),
        work,
    };
    let mut left_out = LeftOut::default();
    work.progress.begin(&format!("archiving '{}'", work.component), None);
    scan(root, &scan_options, &mut left_out, work.progress, &mut |entry| {
        work.cancel.check()?;
        archive.add(&entry).with_context(context)
    })?;
    left_out.merge(archive.unread);
    let Content { files, bytes } = archive.content;
    let compressor = archive.tar.into_inner().with_context(context)?;
    let name = format!("{}.{}", work.component, options.format.extension());
    let file = compressor.finish().with_context(context)?;
    let staged = work.staging.commit(file, name.as_bytes())?;
    let kind = match options.format {
        Format::Zstd => DumpKind::TarZst,
        Format::Gzip => DumpKind::TarGz,
    };
    let read = check::read_to_end(kind, staged.open()?, work.cancel);
    let (checksum, size) = read.map_err(|error| {
        fail(Exit::Failed, format!("the archive cannot be read again: {error:#}"))
    })?;
    staged.compare(checksum, size)?;
    work.progress.end();
    let mut facts = Map::new();
    facts.insert("format".into(), options.format.extension().into());
    facts.insert("files".into(), json!(files));
    facts.insert("content_size".into(), json!(bytes));
    facts.insert("size".into(), json!(staged.size));
    if options.is_public {
        facts.insert("public".into(), json!(true));
    }
    Ok(Made {
        staged: vec![staged],
        kind: KIND,
        facts,
        database: None::<Value>,
        left_out,
        is_partial: false,
    })
}

struct Archive<'a, 'w> {
    tar: tar::Builder<Compressor<HashWriter<NewFile>>>,
    cursor: Cursor<'a>,
    /// What could not be read as it was listed.
    unread: LeftOut,
    content: Content,
    work: &'a Work<'w>,
}

impl Archive<'_, '_> {
    fn add(&mut self, entry: &Entry) -> anyhow::Result<()> {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let mut header = header(entry);
        let path = entry.path.as_path();
        let kind = match &entry.kind {
            Kind::Directory => tar::EntryType::Directory,
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                self.exact_time(entry)?;
                self.tar.append_link(&mut header, path, OsStr::from_bytes(target))?;
                return Ok(());
            }
            Kind::Hardlink(first) if self.holds(first) => {
                header.set_entry_type(tar::EntryType::Link);
                self.tar.append_link(&mut header, path, first.as_path())?;
                return Ok(());
            }
            // Also a further name of a file whose first one could not be read.
            Kind::File | Kind::Hardlink(_) => return self.file(entry, header),
            Kind::Fifo => tar::EntryType::Fifo,
            Kind::Block(major, minor) | Kind::Char(major, minor) => {
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                if matches!(entry.kind, Kind::Block(..)) {
                    tar::EntryType::Block
                } else {
                    tar::EntryType::Char
                }
            }
        };
        header.set_entry_type(kind);
        self.exact_time(entry)?;
        Ok(self.tar.append_data(&mut header, path, io::empty())?)
    }

    /// Whether a file that was listed went in.
    fn holds(&self, path: &RelPath) -> bool {
        let is_missing = |name: &bk_manifest::left_out::Name| match name {
            bk_manifest::left_out::Name::Path(text) => text.as_bytes() == path.as_bytes(),
            bk_manifest::left_out::Name::PathB64(code) => {
                bk_manifest::path::from_base64(code).as_deref() == Some(path.as_bytes())
            }
        };
        !self
            .unread
            .iter()
            .filter(|(reason, _)| *reason != Reason::ChangedWhileRead)
            .any(|(_, group)| group.names.iter().any(is_missing))
    }

    /// Says the part of the time stamp that tar's own header has no room for.
    fn exact_time(&mut self, entry: &Entry) -> io::Result<()> {
        match entry.mtime.map(Time::unix) {
            Some((seconds, nanoseconds)) if nanoseconds > 0 && seconds >= 0 => {
                let text = format!("{seconds}.{nanoseconds:09}");
                self.tar.append_pax_extensions([("mtime", text.as_bytes())])
            }
            _ => Ok(()),
        }
    }

    fn leave_out(&mut self, reason: Reason, path: &RelPath, why: &dyn std::fmt::Display) {
        self.work.progress.warn(&format!("cannot read '{path}': {why}"));
        self.unread.add(reason, path);
    }

    fn file(&mut self, entry: &Entry, mut header: tar::Header) -> anyhow::Result<()> {
        let opened = self.cursor.open_file(&entry.path).and_then(|file| {
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        let (mut file, size) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.unread.add(Reason::Vanished, &entry.path);
                return Ok(());
            }
            Err(error) => {
                self.leave_out(Reason::Unreadable, &entry.path, &error);
                return Ok(());
            }
        };
        self.content.files += 1;
        header.set_entry_type(tar::EntryType::Regular);
        if size <= WHOLE_LIMIT {
            let bytes = match read_whole(&mut file) {
                Ok((bytes, is_same)) => {
                    if !is_same {
                        self.leave_out(
                            Reason::ChangedWhileRead,
                            &entry.path,
                            &"it changed twice while it was read; the last state is kept",
                        );
                    }
                    bytes
                }
                Err(error) => {
                    self.content.files -= 1;
                    self.leave_out(Reason::Unreadable, &entry.path, &error);
                    return Ok(());
                }
            };
            self.content.bytes += bytes.len() as u64;
            header.set_size(bytes.len() as u64);
            self.exact_time(entry)?;
            self.tar.append_data(&mut header, entry.path.as_path(), &bytes[..])?;
            self.work.progress.advance(bytes.len() as u64, 1);
            return Ok(());
        }
        self.content.bytes += size;
        header.set_size(size);
        self.exact_time(entry)?;
        let before = file.metadata()?;
        let mut padded = Padded { file, left: size, fault: None, work: self.work };
        self.tar.append_data(&mut header, entry.path.as_path(), &mut padded)?;
        let Padded { file, fault, .. } = padded;
        if let Some(error) = fault {
            self.leave_out(Reason::Unreadable, &entry.path, &error);
        } else if !is_same_state(&before, &file.metadata()?) {
            self.leave_out(
                Reason::ChangedWhileRead,
                &entry.path,
                &"it changed while it was read; the archive holds a mixture",
            );
        }
        Ok(())
    }
}

fn is_same_state(before: &std::fs::Metadata, after: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let state =
        |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    state(before) == state(after)
}

/// Reads a file to its end, once more if it changed meanwhile; says whether it then held still.
fn read_whole(file: &mut File) -> io::Result<(Vec<u8>, bool)> {
    use std::io::Seek;
    let mut is_second = false;
    loop {
        let before = file.metadata()?;
        let mut bytes = Vec::new();
        file.rewind()?;
        // Beyond the limit it has grown so much that the rest is left to the next backup.
        Read::by_ref(file).take(2 * WHOLE_LIMIT).read_to_end(&mut bytes)?;
        let is_same =
            is_same_state(&before, &file.metadata()?) && bytes.len() as u64 == before.len();
        if is_same || is_second {
            return Ok((bytes, is_same));
        }
        is_second = true;
    }
}

/// A file that gives exactly as many bytes as were promised in tar's header.
struct Padded<'a, 'w> {
    file: File,
    left: u64,
    fault: Option<io::Error>,
    work: &'a Work<'w>,
}

impl Read for Padded<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.work.cancel.check()?;
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..room];
        let mut read = 0;
        if self.fault.is_none() {
            match self.file.read(buffer) {
                Ok(taken) => read = taken,
                Err(error) => self.fault = Some(error),
            }
        }
        if read == 0 {
            buffer.fill(0);
            read = room;
        }
        self.left -= read as u64;
        self.work.progress.advance(read as u64, 0);
        Ok(read)
    }
}

fn header(entry: &Entry) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(entry.mode.unwrap_or(0o600));
    let (user, group) = entry.owner.unwrap_or((0, 0));
    header.set_uid(user.into());
    header.set_gid(group.into());
    let seconds = entry.mtime.map_or(0, |mtime| mtime.unix().0);
    // Before 1970 there is no tar that agrees with another.
    header.set_mtime(u64::try_from(seconds).unwrap_or(0));
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;

    fn typed(root: Option<&str>, paths: &[&str]) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let options = Options::new(root.map(Path::new), &paths, Format::Zstd)?;
        Ok((options.root, options.paths.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn names_are_relative_whatever_was_typed() {
        for (root, paths, expected_root, expected) in [
            (None, &[".env", "./certs/"][..], ".", &[".env", "certs"][..]),
            (Some("/srv"), &["a/b"], "/srv", &["a/b"]),
            (None, &["/etc/app", "//opt/x"], "/", &["etc/app", "opt/x"]),
            (None, &["a", "."], ".", &[]),
        ] {
            let (root, paths) = typed(root, paths).unwrap();
            assert_eq!(
                (root.to_str().unwrap(), &paths[..]),
                (expected_root, &expected.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..])
            );
        }
        for (root, paths) in [
            (None, &["../x"][..]),
            (None, &["/a", "b"]),
            (Some("/srv"), &["/srv/a"]),
            (None, &["a/../b"]),
        ] {
            assert_eq!(classify(&typed(root, paths).unwrap_err()), Exit::Usage, "{paths:?}");
        }
    }

    #[test]
    fn a_file_that_shrinks_is_filled_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        bk_manifest::atomic::create(&path, b"abc", 0o600, bk_manifest::atomic::Existing::Keep)
            .unwrap();
        let (bytes, is_same) = read_whole(&mut File::open(&path).unwrap()).unwrap();
        assert_eq!((&bytes[..], is_same), (&b"abc"[..], true));
    }
}
