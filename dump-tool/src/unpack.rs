//! Unpacking an archive into a folder, whatever it says: no name leads out of the folder, no link
//! is followed, and what is there already is put aside, never lost.

use std::borrow::Cow;
use std::fs::{File, Permissions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use bk_manifest::atomic;
use bk_manifest::beneath::{Cursor, Root, set_node_mode};
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::lookup::Lookup;
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;
use bk_manifest::scan::REPLACED_PREFIX;
use bk_manifest::time::Time;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::EntryType;

use crate::check::DumpKind;

/// Where an archive goes.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The folder; it is made if its own folder is there.
    pub folder: &'a Path,
    /// Whether to put aside files that are there.
    pub replaces: bool,
    /// The clock, for the name of what is put aside.
    pub now: Time,
}

/// One member of an archive, with its name checked.
struct Member<'a, R: Read> {
    path: RelPath,
    kind: EntryType,
    link: Option<Vec<u8>>,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    device: (u32, u32),
    content: tar::Entry<'a, R>,
}

/// Unpacks an archive. Nothing is written before all of it was read and nothing is in the way.
///
/// # Errors
/// [`Exit::Usage`] if files are there and are not to be replaced; [`Exit::Damaged`] for an archive
/// that is cut short or has names that no archive of ours has; those of the file system.
pub fn unpack(
    kind: DumpKind,
    mut archive: File,
    target: &Target<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let root = match Root::open(target.folder) {
        Ok(root) => Some(root),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(fail(
                Exit::Usage,
                format!("cannot unpack into '{}': {error}", target.folder.display()),
            ));
        }
    };
    review(kind, &mut archive, root.as_ref(), target)?;
    let root = if let Some(root) = root {
        root
    } else {
        let context = || format!("cannot make '{}'", target.folder.display());
        std::fs::create_dir(target.folder).with_context(context)?;
        Root::open(target.folder).with_context(context)?
    };
    archive.rewind().context("cannot read the archive")?;
    let aside = [REPLACED_PREFIX, target.now.format("%Y%m%d-%H%M%S").as_bytes()].concat();
    let mut unpacker = Unpacker {
        root: &root,
        aside,
        replaces: target.replaces,
        open: Vec::new(),
        is_owner_refused: false,
    };
    progress.begin("unpacking", None);
    each(kind, &mut archive, &mut |mut member| {
        let path = member.path.clone();
        progress.advance(member.content.size(), 1);
        unpacker
            .member(&mut member)
            .with_context(|| format!("cannot unpack '{}/{path}'", target.folder.display()))
    })?;
    unpacker.close_folders(None)?;
    progress.end();
    if unpacker.is_owner_refused {
        progress.note("the files belong to you: only root can give them to their old owners");
    }
    Ok(())
}

/// What is done with a member.
type Visit<'v> = &'v mut dyn FnMut(Member<'_, Box<dyn Read + '_>>) -> anyhow::Result<()>;

/// Hands every member to `visit`, and reads the archive to its end.
fn each(kind: DumpKind, archive: &mut File, visit: Visit<'_>) -> anyhow::Result<()> {
    let cut = |error: io::Error| fail(Exit::Damaged, format!("the archive is damaged: {error}"));
    let buffered = BufReader::with_capacity(1 << 17, archive);
    let decoder: Box<dyn Read> = match kind {
        DumpKind::TarGz => Box::new(flate2::read::MultiGzDecoder::new(buffered)),
        _ => Box::new(zstd::Decoder::with_buffer(buffered).map_err(cut)?),
    };
    let mut tar = tar::Archive::new(decoder);
    for entry in tar.entries().map_err(cut)? {
        bk_manifest::signal::check()?;
        if let Some(member) = member(entry.map_err(cut)?)? {
            visit(member)?;
        }
    }
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(cut)?;
    Ok(())
}

/// Checks a member's name and takes its attributes; `None` for the root itself.
fn member<R: Read>(mut entry: tar::Entry<'_, R>) -> anyhow::Result<Option<Member<'_, R>>> {
    let bytes = entry.path_bytes().into_owned();
    let trimmed: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    let refused = |why: &str| {
        let name = bk_manifest::path::escape(&bytes);
        fail(Exit::Damaged, format!("the archive holds the name '{name}': {why}"))
    };
    if bytes.starts_with(b"/") {
        return Err(refused("absolute path"));
    }
    if trimmed.is_empty() {
        return Ok(None);
    }
    let path = RelPath::new(trimmed.join(&b'/')).map_err(|error| refused(&error.to_string()))?;
    let mut fraction = 0;
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions.flatten() {
            if extension.key_bytes() == b"mtime" {
                fraction = extension.value().ok().and_then(nanoseconds).unwrap_or(0);
            }
        }
    }
    let header = entry.header();
    let unreadable = |error: io::Error| {
        fail(Exit::Damaged, format!("the archive's header of '{path}' is damaged: {error}"))
    };
    let id = |id: u64| u32::try_from(id).unwrap_or(u32::MAX);
    let mode = header.mode().map_err(unreadable)? & 0o7777;
    let owner = (id(header.uid().map_err(unreadable)?), id(header.gid().map_err(unreadable)?));
    let seconds = i64::try_from(header.mtime().map_err(unreadable)?).unwrap_or(0);
    let device = (
        header.device_major().ok().flatten().unwrap_or(0),
        header.device_minor().ok().flatten().unwrap_or(0),
    );
    Ok(Some(Member {
        kind: header.entry_type(),
        link: entry.link_name_bytes().map(Cow::into_owned),
        mode,
        owner,
        mtime: (seconds, fraction),
        device,
        path,
        content: entry,
    }))
}

/// The decimals of a time stamp, as nanoseconds.
fn nanoseconds(text: &str) -> Option<i64> {
    let (_, decimals) = text.split_once('.')?;
    format!("{decimals:0<9}").get(..9)?.parse().ok()
}

/// Reads all of it, and looks for what is in the way.
fn review(
    kind: DumpKind,
    archive: &mut File,
    root: Option<&Root>,
    target: &Target<'_>,
) -> anyhow::Result<()> {
    let mut names = Lookup::default();
    let mut cursor = root.map(Cursor::new);
    each(kind, archive, &mut |member| {
        let path = &member.path;
        if !is_known(member.kind) {
            let kind = char::from(member.kind.as_byte()).escape_default();
            let message =
                format!("the archive holds '{path}' of a kind that is not known: '{kind}'");
            return Err(fail(Exit::Damaged, message));
        }
        let is_folder = member.kind == EntryType::Directory;
        let key = Digest::of(path.as_bytes()).key();
        if names.get(key)?.is_some() {
            let message = format!("the archive holds '{path}' twice");
            return Err(fail(Exit::Damaged, message));
        }
        names.insert(key, u64::from(is_folder))?;
        // A member below something that is no folder could only be written through a link.
        let mut above = path.parent();
        while let Some(folder) = above {
            if names.get(Digest::of(folder.as_bytes()).key())? == Some(0) {
                let message = format!("the archive holds '{path}' below what is no folder");
                return Err(fail(Exit::Damaged, message));
            }
            above = folder.parent();
        }
        if member.kind == EntryType::Link {
            let first = member.link.as_deref().and_then(|link| RelPath::new(link).ok());
            let is_there = match &first {
                Some(first) => names.get(Digest::of(first.as_bytes()).key())? == Some(0),
                None => false,
            };
            if !is_there {
                let message = format!("the archive links '{path}' to what it does not hold");
                return Err(fail(Exit::Damaged, message));
            }
        }
        if path.as_bytes().starts_with(REPLACED_PREFIX) {
            let message = format!("the archive holds the name '{path}', which is kept for us");
            return Err(fail(Exit::Damaged, message));
        }
        match &mut cursor {
            Some(cursor) => check_free(cursor, path, is_folder, target),
            None => Ok(()),
        }
    })
}

/// Whether members of this kind can be unpacked.
fn is_known(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link
            | EntryType::Fifo
            | EntryType::Block
            | EntryType::Char
    )
}

fn check_free(
    cursor: &mut Cursor<'_>,
    path: &RelPath,
    is_folder: bool,
    target: &Target<'_>,
) -> anyhow::Result<()> {
    let shown = || format!("'{}/{path}'", target.folder.display());
    let (parent, name) = match cursor.parent(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let message = format!("cannot unpack {}: {error}", shown());
            return Err(Failure::new(Exit::Usage, message)
                .hint("a part of its path is no folder, or a link that is not followed")
                .into());
        }
    };
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(io::Error::from(error)).with_context(shown),
        Ok(stat) => {
            let is_there_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            match (is_folder, is_there_folder) {
                (true, true) => Ok(()),
                (false, false) if target.replaces => Ok(()),
                (false, false) => {
                    Err(Failure::new(Exit::Usage, format!("{} is there already", shown()))
                        .hint("unpack into an empty folder, or put files aside with --replace")
                        .into())
                }
                _ => Err(fail(
                    Exit::Usage,
                    format!("{} is a folder on one side and none on the other", shown()),
                )),
            }
        }
    }
}

struct Unpacker<'a> {
    root: &'a Root,
    /// Name of the folder that replaced files go into.
    aside: Vec<u8>,
    replaces: bool,
    /// Folders that we made and are still in: their attributes come last.
    open: Vec<(RelPath, Attributes)>,
    is_owner_refused: bool,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    times: (i64, i64),
}

impl Unpacker<'_> {
    fn member<R: Read>(&mut self, member: &mut Member<'_, R>) -> anyhow::Result<()> {
        let path = member.path.clone();
        self.close_folders(Some(&path))?;
        let attributes = Attributes { mode: member.mode, owner: member.owner, times: member.mtime };
        let root = self.root;
        let mut cursor = Cursor::new(root);
        let parent = self.make_parents(&path)?;
        let name = path.file_name();
        if member.kind == EntryType::Directory {
            if make_folder(parent.as_fd(), name)? {
                self.open.push((path, attributes));
            }
            return Ok(());
        }
        // Under a name of its own first: the old file is there until the new one is complete.
        let temporary = temporary_name()?;
        let mode = Mode::from_raw_mode(0o600);
        match member.kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, temporary.as_slice(), flags, mode)
                    .map_err(io::Error::from)?;
                let mut file = File::from(file);
                let written = fill(&mut file, &mut member.content)
                    .and_then(|()| self.finish_file(&file, attributes));
                if let Err(error) = written {
                    let _ = rustix::fs::unlinkat(&parent, temporary.as_slice(), AtFlags::empty());
                    return Err(error.into());
                }
            }
            EntryType::Symlink => {
                let text = member.link.as_deref().unwrap_or_default();
                rustix::fs::symlinkat(text, &parent, temporary.as_slice())
                    .map_err(io::Error::from)?;
            }
            EntryType::Link => {
                let first = RelPath::new(member.link.as_deref().unwrap_or_default())?;
                let (folder, first) = cursor.parent(&first)?;
                rustix::fs::linkat(folder, first, &parent, temporary.as_slice(), AtFlags::empty())
                    .map_err(io::Error::from)?;
            }
            EntryType::Fifo | EntryType::Block | EntryType::Char => {
                let kind = match member.kind {
                    EntryType::Fifo => FileType::Fifo,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                let device = rustix::fs::makedev(member.device.0, member.device.1);
                rustix::fs::mknodat(&parent, temporary.as_slice(), kind, mode, device)
                    .map_err(io::Error::from)?;
                set_node_mode(parent.as_fd(), &temporary, kind, attributes.mode)?;
            }
            kind => anyhow::bail!("a member of the kind {kind:?} cannot be unpacked"),
        }
        if !matches!(member.kind, EntryType::Regular | EntryType::Link) {
            self.own(parent.as_fd(), &temporary, attributes);
        }
        self.put_in_place(&path, parent.as_fd(), &temporary)
    }

    fn finish_file(&mut self, file: &File, attributes: Attributes) -> io::Result<()> {
        let (user, group) = attributes.owner;
        if std::os::unix::fs::fchown(file, Some(user), Some(group)).is_err() {
            self.is_owner_refused = true;
        }
        // After the owner: giving a file away takes the set-uid bit off it.
        file.set_permissions(Permissions::from_mode(self.permitted(attributes)))?;
        rustix::fs::futimens(file, &times(attributes))?;
        file.sync_all()
    }

    /// Set-uid and set-gid are only for files that have their owner.
    fn permitted(&self, attributes: Attributes) -> u32 {
        if self.is_owner_refused { attributes.mode & 0o1777 } else { attributes.mode }
    }

    /// Gives owner and time to what cannot be opened.
    fn own(&mut self, parent: BorrowedFd<'_>, name: &[u8], attributes: Attributes) {
        let (user, group) = attributes.owner;
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if rustix::fs::chownat(parent, name, Some(user), Some(group), flags).is_err() {
            self.is_owner_refused = true;
        }
        // Some file systems keep no times of links.
        let _ = rustix::fs::utimensat(parent, name, &times(attributes), flags);
    }

    /// Gives the finished file its name, the old one being put aside first where that is asked for.
    fn put_in_place(
        &self,
        path: &RelPath,
        parent: BorrowedFd<'_>,
        temporary: &[u8],
    ) -> anyhow::Result<()> {
        let name = path.file_name();
        let place = || atomic::rename_to_free((parent, temporary), (parent, name));
        let placed = match place() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.replaces => {
                let aside = RelPath::new([&self.aside, path.as_bytes()].join(&b'/'))?;
                let mut folder = self.root.as_fd().try_clone_to_owned()?;
                for part in
                    aside.parent().iter().flat_map(|above| above.as_bytes().split(|b| *b == b'/'))
                {
                    make_folder(folder.as_fd(), part)?;
                    folder = open_folder(folder.as_fd(), part)?;
                }
                atomic::rename_to_free((parent, name), (folder.as_fd(), aside.file_name()))
                    .and_then(|()| place())
            }
            placed => placed,
        };
        if let Err(error) = placed {
            let _ = rustix::fs::unlinkat(parent, temporary, AtFlags::empty());
            return Err(error.into());
        }
        Ok(())
    }

    /// The folder that holds `path`; folders that the archive does not hold itself are 0700.
    fn make_parents(&self, path: &RelPath) -> anyhow::Result<std::os::fd::OwnedFd> {
        let mut folder = self.root.as_fd().try_clone_to_owned()?;
        if let Some(above) = path.parent() {
            for part in above.as_bytes().split(|byte| *byte == b'/') {
                make_folder(folder.as_fd(), part)?;
                folder = open_folder(folder.as_fd(), part)?;
            }
        }
        Ok(folder)
    }

    /// Gives the folders that `next` does not lie in their attributes.
    fn close_folders(&mut self, next: Option<&RelPath>) -> anyhow::Result<()> {
        while let Some((path, attributes)) = self.open.last().cloned() {
            if next.is_some_and(|next| next.below(&path).is_some()) {
                break;
            }
            self.open.pop();
            let mut cursor = Cursor::new(self.root);
            let folder = File::from(cursor.folder(path.as_bytes())?.try_clone_to_owned()?);
            self.finish_file(&folder, attributes)
                .with_context(|| format!("cannot finish the folder '{path}'"))?;
        }
        Ok(())
    }
}

fn times(attributes: Attributes) -> Timestamps {
    let (seconds, nanoseconds) = attributes.times;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}

fn fill(file: &mut File, content: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        bk_manifest::signal::check()?;
        let read = content.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..read])?;
    }
}

/// Makes a folder; `false` if one was there.
fn make_folder(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open_folder(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn temporary_name() -> io::Result<Vec<u8>> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let number = u64::from_be_bytes(random);
    Ok(std::ffi::OsString::from(format!(".bk-tmp-{number:016x}")).as_bytes().to_vec())
}
