//! Walks a tree in the order of the manifest. Opens folders, never files; follows no link.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::Context;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use crate::beneath::{Cursor, Root};
use crate::entry::{Entry, Kind};
use crate::exit::{Exit, Failure, fail};
use crate::left_out::{LeftOut, Reason};
use crate::lookup::Lookup;
use crate::path::{OWN_FOLDER, RelPath, escape};
use crate::progress::Progress;
use crate::sort::Sorter;
use crate::spool::Spool;
use crate::time::Time;

/// The file that makes a folder a backup destination.
pub const DESTINATION_MARKER: &str = ".bk-destination";
/// The file in the folder where dumps and archives wait, in clear, to be stored: no tree holds them a
/// second time.
pub const STAGE_MARKER: &str = ".bk-stage";
/// The file, inside `.bk/`, that fetch leaves in what it restored.
pub const FETCH_MARKER: &str = "fetched.json";
/// How the folders begin into which fetch puts aside what it replaces.
pub const REPLACED_PREFIX: &[u8] = b".bk-replaced-";

/// Memory for the names of one folder; more of them go through temporary files.
const NAMES_BUDGET: usize = 8 << 20;

/// Folders in folders beyond this are left out, as unreadable: each holds a descriptor and a piece of
/// the stack. No path of ordinary length gets there.
const DEPTH_LIMIT: usize = 1000;

/// What to walk below a root, and what to leave out.
#[derive(Default)]
pub struct Options {
    /// The paths below the root; empty for all of it.
    pub paths: Vec<RelPath>,
    /// What to put before every path; the root itself is recorded under this name.
    pub prefix: Option<RelPath>,
    /// What to leave out.
    pub excludes: Excludes,
    /// Largest file that is taken, in bytes.
    pub size_limit: Option<u64>,
    /// Whether to leave out what lies on another file system than the root.
    pub one_file_system: bool,
}

/// Patterns of what to leave out.
///
/// A pattern without `/` matches the last part of a path at any depth; one with `/` matches from
/// the root. `*` stays within a part, `**` does not. A trailing `/` matches folders only. What is
/// below an excluded folder is excluded with it.
#[derive(Default)]
pub struct Excludes {
    any: GlobSet,
    folders: GlobSet,
}

impl Excludes {
    /// Compiles patterns.
    ///
    /// # Errors
    /// [`Exit::Usage`] naming the one that is malformed.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> anyhow::Result<Self> {
        let (mut any, mut folders) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let malformed = |error: globset::Error| {
                Failure::new(
                    Exit::Usage,
                    format!("malformed pattern '{pattern}': {}", error.kind()),
                )
            };
            let body = pattern.trim_end_matches('/');
            let anchored = body.strip_prefix('/').unwrap_or(body);
            let glob = if body.contains('/') { anchored.to_owned() } else { format!("**/{body}") };
            let glob =
                GlobBuilder::new(&glob).literal_separator(true).build().map_err(malformed)?;
            if body.len() < pattern.len() {
                folders.add(glob)
            } else {
                any.add(glob)
            };
        }
        Ok(Excludes {
            any: any.build().context("cannot compile the exclude patterns")?,
            folders: folders.build().context("cannot compile the exclude patterns")?,
        })
    }

    fn matches(&self, path: &Path, is_folder: bool) -> bool {
        self.any.is_match(path) || (is_folder && self.folders.is_match(path))
    }
}

/// Walks and hands every entry to `sink`, in the order of the manifest.
///
/// What cannot be read goes into `left_out` with a warning; the walk goes on.
///
/// # Errors
/// [`Exit::NotFound`] for a path asked for that is not there; [`Exit::Usage`] for a root that must
/// not be walked; those of `sink`.
pub fn scan(
    root: &Root,
    options: &Options,
    left_out: &mut LeftOut,
    progress: &dyn Progress,
    sink: &mut dyn FnMut(Entry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    refuse_own_names(options)?;
    let root_stat = rustix::fs::fstat(root.as_fd())
        .map_err(io::Error::from)
        .with_context(|| format!("cannot read '{}'", root.path().display()))?;
    let mut walk = Walk {
        root,
        options,
        device: root_stat.st_dev,
        left_out,
        progress,
        sink,
        first_links: Lookup::default(),
        first_paths: Spool::new()?,
    };
    if exists(root.as_fd(), DESTINATION_MARKER.as_bytes()) {
        return Err(is_destination(root.path()));
    }
    if let Some(prefix) = &options.prefix {
        (walk.sink)(describe(prefix.clone(), Kind::Directory, &root_stat))?;
    }
    if options.paths.is_empty() { walk.children(root.as_fd(), None) } else { walk.named_paths() }
}

fn is_destination(folder: &Path) -> anyhow::Error {
    fail(Exit::Usage, format!("'{}' is a backup destination, not a source", folder.display()))
}

/// Refuses what would be recorded at the root under a name of bk's own: no fetch restores a backup
/// that has one.
fn refuse_own_names(options: &Options) -> anyhow::Result<()> {
    let recorded = match &options.prefix {
        Some(prefix) => std::slice::from_ref(prefix),
        None => &options.paths,
    };
    for path in recorded {
        let first = path.as_bytes().split(|byte| *byte == b'/').next().unwrap_or_default();
        if first.starts_with(REPLACED_PREFIX) || first == DESTINATION_MARKER.as_bytes() {
            let message = format!("'{}' is a name that bk keeps for itself", escape(first));
            return Err(Failure::new(Exit::Usage, message)
                .hint("rename it, or have bk-manifest add record it below a prefix: --as PREFIX")
                .into());
        }
    }
    Ok(())
}

struct Walk<'a> {
    root: &'a Root,
    options: &'a Options,
    device: u64,
    left_out: &'a mut LeftOut,
    progress: &'a dyn Progress,
    sink: &'a mut dyn FnMut(Entry) -> anyhow::Result<()>,
    /// Device and inode of files with several names, to their first path in `first_paths`.
    first_links: Lookup,
    first_paths: Spool,
}

impl Walk<'_> {
    /// The paths that were asked for, with an entry for each folder above them.
    fn named_paths(&mut self) -> anyhow::Result<()> {
        let mut paths = self.options.paths.clone();
        paths.sort();
        let mut last: Option<RelPath> = None;
        let mut cursor = Cursor::new(self.root);
        for path in paths {
            if last.as_ref().is_some_and(|last| path.below(last).is_some()) {
                continue;
            }
            let not_there = |error: io::Error| {
                Failure::new(
                    Exit::NotFound,
                    format!("cannot read '{}/{path}': {error}", self.root.path().display()),
                )
            };
            let mut above = Vec::new();
            while let Some(folder) = above.last().unwrap_or(&path).parent() {
                if last.as_ref().is_some_and(|last| last.below(&folder).is_some()) {
                    break;
                }
                above.push(folder);
            }
            for folder in above.into_iter().rev() {
                let (parent, name) = cursor.parent(&folder).map_err(not_there)?;
                let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| not_there(error.into()))?;
                let opened = cursor.folder(folder.as_bytes()).map_err(not_there)?;
                if exists(opened, DESTINATION_MARKER.as_bytes()) {
                    let shown = self.root.path().join(folder.as_path());
                    return Err(is_destination(&shown));
                }
                let path = self.recorded(&folder)?;
                (self.sink)(describe(path, Kind::Directory, &stat))?;
            }
            let (parent, name) = cursor.parent(&path).map_err(not_there)?;
            let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| not_there(error.into()))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                let root = self.root.path().display();
                let message = format!("'{root}/{path}' is a symbolic link, which is not followed");
                return Err(Failure::new(Exit::Usage, message)
                    .hint("name what it points to, as a tree of its own: --root DIR --as PREFIX")
                    .into());
            }
            let parent = parent.try_clone_to_owned().context("cannot keep a folder open")?;
            self.visit(parent.as_fd(), name, &path)?;
            last = Some(path);
        }
        Ok(())
    }

    fn recorded(&self, path: &RelPath) -> anyhow::Result<RelPath> {
        Ok(match &self.options.prefix {
            Some(prefix) => prefix.join(path.as_bytes())?,
            None => path.clone(),
        })
    }

    fn leave_out(
        &mut self,
        reason: Reason,
        path: &RelPath,
        why: Option<&io::Error>,
    ) -> anyhow::Result<()> {
        let path = self.recorded(path)?;
        if let Some(error) = why {
            self.progress.warn(&format!("cannot read '{path}': {error}"));
        }
        self.left_out.add(reason, &path);
        Ok(())
    }

    /// Everything in an open folder; `folder` is its path, `None` for the root.
    fn children(&mut self, fd: BorrowedFd<'_>, folder: Option<&RelPath>) -> anyhow::Result<()> {
        let names = match list(fd) {
            Ok(names) => names,
            Err(error) => {
                let Some(folder) = folder else {
                    return Err(error)
                        .with_context(|| format!("cannot list '{}'", self.root.path().display()));
                };
                let error = io::Error::other(format!("{error:#}"));
                return self.leave_out(Reason::Unreadable, folder, Some(&error));
            }
        };
        for name in names {
            let name = name?;
            let path = match folder {
                Some(folder) => folder.join(&name)?,
                None => RelPath::new(name.clone())?,
            };
            if folder.is_none() && self.is_our_own(fd, &name, &path)? {
                continue;
            }
            self.visit(fd, &name, &path)?;
        }
        Ok(())
    }

    /// Whether a name at the root is one that bk itself put there.
    fn is_our_own(
        &mut self,
        fd: BorrowedFd<'_>,
        name: &[u8],
        path: &RelPath,
    ) -> anyhow::Result<bool> {
        if name.starts_with(REPLACED_PREFIX) {
            self.leave_out(Reason::Destination, path, None)?;
            return Ok(true);
        }
        if name != OWN_FOLDER {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let is_fetched = openat(fd, name, flags, Mode::empty())
            .is_ok_and(|own| exists(own.as_fd(), FETCH_MARKER.as_bytes()));
        if !is_fetched {
            return Err(Failure::new(
                Exit::Usage,
                format!("'{}/.bk' has a name that bk keeps for itself", self.root.path().display()),
            )
            .hint("rename it, or exclude it and name the other paths")
            .into());
        }
        self.leave_out(Reason::Destination, path, None)?;
        Ok(true)
    }

    fn visit(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &RelPath) -> anyhow::Result<()> {
        crate::signal::check()?;
        if path.as_bytes().split(|byte| *byte == b'/').count() > DEPTH_LIMIT {
            let error = io::Error::other("it is nested too deeply");
            return self.leave_out(Reason::Unreadable, path, Some(&error));
        }
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return self.leave_out(Reason::Vanished, path, None),
            Err(error) => return self.leave_out(Reason::Unreadable, path, Some(&error.into())),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if self.options.excludes.matches(path.as_path(), kind == FileType::Directory) {
            return self.leave_out(Reason::Excluded, path, None);
        }
        if self.options.one_file_system && stat.st_dev != self.device {
            return self.leave_out(Reason::OtherFileSystem, path, None);
        }
        let device = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match kind {
            FileType::Directory => return self.folder(parent, name, path, &stat),
            FileType::RegularFile => return self.file(path, &stat),
            FileType::Symlink => match rustix::fs::readlinkat(parent, name, Vec::new()) {
                Ok(target) => Kind::Symlink(target.into_bytes()),
                Err(Errno::NOENT | Errno::INVAL) => {
                    return self.leave_out(Reason::Vanished, path, None);
                }
                Err(error) => {
                    return self.leave_out(Reason::Unreadable, path, Some(&error.into()));
                }
            },
            FileType::Fifo => Kind::Fifo,
            FileType::BlockDevice => Kind::Block(device().0, device().1),
            FileType::CharacterDevice => Kind::Char(device().0, device().1),
            _ => return self.leave_out(Reason::Socket, path, None),
        };
        let path = self.recorded(path)?;
        (self.sink)(describe(path, kind, &stat))
    }

    fn folder(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &RelPath,
        stat: &Stat,
    ) -> anyhow::Result<()> {
        let entry = describe(self.recorded(path)?, Kind::Directory, stat);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(parent, name, flags, Mode::empty()) {
            Ok(fd) if exists(fd.as_fd(), DESTINATION_MARKER.as_bytes()) => {
                self.progress.note(&format!("left out '{path}': it is a backup destination"));
                self.leave_out(Reason::Destination, path, None)
            }
            Ok(fd) if exists(fd.as_fd(), STAGE_MARKER.as_bytes()) => {
                self.progress.note(&format!("left out '{path}': dumps wait there to be stored"));
                self.leave_out(Reason::Destination, path, None)
            }
            Ok(fd) => {
                (self.sink)(entry)?;
                self.children(fd.as_fd(), Some(path))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.leave_out(Reason::Vanished, path, None)
            }
            Err(error) => {
                (self.sink)(entry)?;
                self.leave_out(Reason::Unreadable, path, Some(&error.into()))
            }
        }
    }

    fn file(&mut self, path: &RelPath, stat: &Stat) -> anyhow::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if self.options.size_limit.is_some_and(|limit| size > limit) {
            self.progress.warn(&format!("left out '{path}': {size} bytes are above the limit"));
            return self.leave_out(Reason::TooLarge, path, None);
        }
        let path = self.recorded(path)?;
        if stat.st_nlink > 1 {
            let key = u128::from(stat.st_dev) << 64 | u128::from(stat.st_ino);
            if let Some(line) = self.first_links.get(key)? {
                let first = self.first_paths.at(line)?.path;
                return (self.sink)(describe(path, Kind::Hardlink(first), stat));
            }
            let line = self.first_paths.push(&Entry::new(path.clone()))?;
            self.first_links.insert(key, line)?;
        }
        let mut entry = describe(path, Kind::File, stat);
        entry.size = Some(size);
        (self.sink)(entry)
    }
}

/// The names in a folder, sorted.
fn list(folder: BorrowedFd<'_>) -> anyhow::Result<crate::sort::Sorted> {
    let mut names = Sorter::new(NAMES_BUDGET);
    for entry in Dir::read_from(folder).map_err(io::Error::from)? {
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name)?;
        }
    }
    names.finish()
}

fn exists(folder: BorrowedFd<'_>, name: &[u8]) -> bool {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// The entry of what was found: all but size and checksum.
fn describe(path: RelPath, kind: Kind, stat: &Stat) -> Entry {
    let time = |seconds, nanoseconds| {
        Some(Time::from_unix(seconds, u32::try_from(nanoseconds).unwrap_or(0)))
    };
    Entry {
        kind,
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        inode: Some(stat.st_ino),
        mode: Some(stat.st_mode & 0o7777),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        owner: Some((stat.st_uid, stat.st_gid)),
        ..Entry::new(path)
    }
}

/// A path on the command line as one below a root: `./a/` is `a`, `.` is none.
///
/// # Errors
/// [`Exit::Usage`] for one that leads out.
pub fn relative(path: &[u8]) -> anyhow::Result<Option<RelPath>> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if path.starts_with(b"/") || path.is_empty() {
        let message = format!("'{}' must be a path below the root", escape(path));
        return Err(Failure::new(Exit::Usage, message).into());
    }
    if parts.is_empty() {
        return Ok(None);
    }
    RelPath::new(parts.join(&b'/'))
        .map(Some)
        .map_err(|error| Failure::new(Exit::Usage, format!("'{}': {error}", escape(path))).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn touch(path: &Path) {
        crate::atomic::create(path, b"x", 0o600, crate::atomic::Existing::Keep).unwrap();
    }

    fn walk(root: &Path, options: &Options) -> (Vec<Entry>, LeftOut) {
        let (mut entries, mut left_out) = (Vec::new(), LeftOut::default());
        let root = Root::open(root).unwrap();
        scan(&root, options, &mut left_out, &Silent, &mut |entry| {
            entries.push(entry);
            Ok(())
        })
        .unwrap();
        (entries, left_out)
    }

    fn paths(entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|entry| entry.path.to_string()).collect()
    }

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for folder in ["a/b", "a.d", "empty", "backups"] {
            fs::create_dir_all(tree.path().join(folder)).unwrap();
        }
        for file in ["a/b/c", "a/x.tmp", "a.d/y", "z", "backups/.bk-destination"] {
            touch(&tree.path().join(file));
        }
        fs::hard_link(tree.path().join("a/b/c"), tree.path().join("z2")).unwrap();
        symlink("nowhere", tree.path().join("dangling")).unwrap();
        tree
    }

    #[test]
    fn what_no_fetch_would_restore_is_refused() {
        let tree = tree();
        for folder in [".bk-replaced-1/x", "backups/2026"] {
            fs::create_dir_all(tree.path().join(folder)).unwrap();
        }
        let path = |text: &str| RelPath::new(text).unwrap();
        let root = Root::open(tree.path()).unwrap();
        let code = |options: &Options| {
            let walked = scan(&root, options, &mut LeftOut::default(), &Silent, &mut |_| Ok(()));
            walked.map_or_else(|error| crate::exit::classify(&error), |()| Exit::Done)
        };
        let paths = |text: &str| Options { paths: vec![path(text)], ..Options::default() };
        for name in [".bk-replaced-1", ".bk-replaced-1/x", ".bk-destination", "backups/2026"] {
            assert_eq!(code(&paths(name)), Exit::Usage, "{name}");
        }
        for prefix in [".bk-replaced-1", ".bk-destination"] {
            let options = Options { prefix: Some(path(prefix)), ..paths("a") };
            assert_eq!(code(&options), Exit::Usage, "{prefix}");
        }
        let elsewhere = Options { prefix: Some(path("old")), ..paths(".bk-replaced-1/x") };
        assert_eq!(code(&elsewhere), Exit::Done);
    }

    #[test]
    fn a_walk_is_in_order_and_leaves_destinations_out() {
        let tree = tree();
        let _socket = UnixListener::bind(tree.path().join("socket")).unwrap();
        let (entries, left_out) = walk(tree.path(), &Options::default());
        assert_eq!(
            paths(&entries),
            ["a", "a/b", "a/b/c", "a/x.tmp", "a.d", "a.d/y", "dangling", "empty", "z", "z2"]
        );
        assert!(entries.windows(2).all(|pair| pair[0].path < pair[1].path));
        assert_eq!(entries[9].kind, Kind::Hardlink(RelPath::new("a/b/c").unwrap()));
        assert_eq!(entries[6].kind, Kind::Symlink(b"nowhere".to_vec()));
        assert_eq!(left_out.count(Reason::Destination), 1);
        assert_eq!(left_out.count(Reason::Socket), 1);
    }

    #[test]
    fn named_paths_bring_the_folders_above_them() {
        let tree = tree();
        let options = Options {
            paths: ["a/b", "a/b/c", "a.d/y"].map(|path| RelPath::new(path).unwrap()).to_vec(),
            prefix: Some(RelPath::new("p").unwrap()),
            ..Options::default()
        };
        let (entries, _) = walk(tree.path(), &options);
        assert_eq!(paths(&entries), ["p", "p/a", "p/a/b", "p/a/b/c", "p/a.d", "p/a.d/y"]);
    }

    #[test]
    fn excludes_match_names_anywhere_and_paths_from_the_root() {
        let tree = tree();
        for (pattern, gone) in [
            ("*.tmp", "a/x.tmp"),
            ("a/b/", "a/b"),
            ("/z", "z"),
            ("a/*/c", "a/b/c"),
            ("**/y", "a.d/y"),
        ] {
            let excludes = Excludes::new(&[pattern]).unwrap();
            let (entries, left_out) =
                walk(tree.path(), &Options { excludes, ..Options::default() });
            assert!(!paths(&entries).contains(&gone.to_owned()), "{pattern}");
            assert_eq!(left_out.count(Reason::Excluded), 1, "{pattern}");
        }
        assert!(Excludes::new(&["a[b"]).is_err());
    }

    #[test]
    fn a_foreign_bk_folder_is_refused_and_a_fetched_one_left_out() {
        let tree = tree();
        fs::create_dir(tree.path().join(".bk")).unwrap();
        let root = Root::open(tree.path()).unwrap();
        let options = Options::default();
        let mut left_out = LeftOut::default();
        let result = scan(&root, &options, &mut left_out, &Silent, &mut |_| Ok(()));
        assert_eq!(crate::exit::classify(&result.unwrap_err()), Exit::Usage);
        touch(&tree.path().join(".bk/fetched.json"));
        fs::create_dir(tree.path().join(".bk-replaced-1")).unwrap();
        let (entries, left_out) = walk(tree.path(), &options);
        assert!(paths(&entries).iter().all(|path| !path.starts_with(".bk")));
        assert_eq!(left_out.count(Reason::Destination), 3);
    }

    #[test]
    fn a_path_that_is_not_there_is_an_error() {
        let tree = tree();
        let options = Options { paths: vec![RelPath::new("nope").unwrap()], ..Options::default() };
        let root = Root::open(tree.path()).unwrap();
        let result = scan(&root, &options, &mut LeftOut::default(), &Silent, &mut |_| Ok(()));
        assert_eq!(crate::exit::classify(&result.unwrap_err()), Exit::NotFound);
    }

    #[test]
    fn command_line_paths_are_cleaned_and_kept_inside() {
        assert_eq!(relative(b"./a//b/").unwrap(), Some(RelPath::new("a/b").unwrap()));
        assert_eq!(relative(b".").unwrap(), None);
        for bad in [&b"/a"[..], b"a/../b", b"..", b""] {
            assert!(relative(bad).is_err());
        }
    }
}
