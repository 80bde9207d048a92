//! Brings a backup, or some of its paths, back into a folder. Every byte that is written is checked;
//! on damage the rest is restored and what is lost is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use bk_manifest::atomic;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::LeftOut;
use bk_manifest::manifest::HostPath;
use bk_manifest::path::{OWN_FOLDER, RelPath};
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::scan::{self, FETCH_MARKER, REPLACED_PREFIX};
use bk_manifest::select::Selection;
use bk_manifest::spool::Document;
use bk_manifest::time::Time;
use bk_manifest::tree_root::TreeRoot;
use rustix::fs::Access;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::catalog::Folders;
use crate::decrypt::{Objects, Sealed};
use crate::identity::Identities;
use crate::locate::{Located, locate};
use crate::read::{Damage, Plan, Receive};
use crate::store::Store;
use crate::target::{Target, UnfinishedFile, is_unfinished};

/// Names of lost files, and of strangers, that are shown one by one.
const NAMES_SHOWN: usize = 50;

/// What to do with a target that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// Refuse it.
    Refuse,
    /// Go on with a fetch of the same backup.
    Resume,
    /// Restore into it; what is replaced is put aside.
    Into,
}

/// What to fetch, and where to.
pub struct Options {
    /// The folder.
    pub target: PathBuf,
    /// Which entries.
    pub selection: Selection,
    /// What to do if the folder is not empty.
    pub occupied: Occupied,
    /// Only find out whether it can be done.
    pub is_dry: bool,
    /// The keys of encrypted objects.
    pub identities: Identities,
    /// The folder for opened copies of encrypted objects.
    pub temporary: PathBuf,
    /// The time, for the name of what is put aside.
    pub now: Time,
}

/// What fetch leaves in the target: which backup it is, and whether all of it is there.
#[derive(Debug, Serialize, Deserialize)]
struct FetchMarker {
    backup: String,
    total_checksum: String,
    is_complete: bool,
    /// Whether the folder was made or was empty when the fetch began, so that its own attributes are
    /// ours to set.
    #[serde(default)]
    is_ours: bool,
}

/// Fetches what the options select, and notes it in the document.
///
/// # Errors
/// [`Exit::Usage`] for a target that is in use, [`Exit::NotFound`] if nothing is selected; a full
/// disk.
pub fn fetch(
    document: &mut Document,
    store: &Store,
    options: &Options,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let folder = find(document, store, progress)?;
    let folders = Folders::new(&document.header, &folder)?;
    let mut sealed = Sealed::new(&document.header, &document.trailer, &folder)?;
    let (mut files, mut bytes) = (0u64, 0u64);
    let mut unseen = options.selection.unseen();
    for entry in document.entries.iter() {
        let entry = entry?;
        refuse_own_names(&entry)?;
        if options.selection.matches(&entry) {
            unseen.see(&entry);
            if has_content(&entry, options) {
                files += 1;
                bytes += entry.size.unwrap_or(0);
                sealed.want(&entry)?;
            }
        }
    }
    unseen.check(&document.trailer)?;
    let objects = Objects::open(
        &*store.destination,
        sealed,
        &options.identities,
        &options.temporary,
        progress,
    )?;
    let tree_root = tree_root(document, options)?;
    let mut marker = FetchMarker {
        backup: document.header.the_backup()?.id,
        total_checksum: document
            .trailer
            .total_checksum()
            .map(|s| s.to_string())
            .unwrap_or_default(),
        is_complete: false,
        is_ours: false,
    };
    if options.is_dry {
        rehearse(document, options, &marker, bytes)?;
        return Ok(document.trailer.worsen(Exit::Done)?);
    }
    let target = prepare(options, &mut marker)?;
    let bytes_there = bytes_there(document, options, &target)?;
    check_space(&target, bytes.saturating_sub(bytes_there))?;
    if !target.sets_owners() {
        progress.warn("not running as root: owners are not restored");
    }
    progress.begin("fetching", Some(bytes));
    let mut plan = Plan::default();
    let mut lost = BTreeMap::new();
    for place in document.entries.places() {
        bk_manifest::signal::check()?;
        let (place, entry) = place?;
        if !options.selection.matches(&entry) {
            continue;
        }
        if entry.kind == Kind::Directory {
            match target.make_folders(entry.path.as_bytes()) {
                Err(error) if is_unnameable(&error) => {
                    lost.insert(entry.path, error.to_string());
                }
                made => drop(made.with_context(|| cannot_write(&entry))?),
            }
        } else if has_content(&entry, options) {
            let at =
                entry.at.as_ref().with_context(|| format!("'{}' is not stored", entry.path))?;
            plan.push(&folders, at, place)?;
        }
    }
    let restore = Restore { target: &target, progress, lost: Mutex::new(lost) };
    plan.run(&objects, &document.entries, &restore)?;
    let mut lost: Vec<_> = restore.lost.into_inner().unwrap_or_default().into_iter().collect();
    // Before folders get their times: sweeping changes them.
    if options.occupied == Occupied::Resume || marker.is_ours {
        sweep_own(&target, progress)?;
    }
    if options.occupied != Occupied::Refuse {
        list_strangers(document, options, &target, progress)?;
    }
    finish(document, options, &target, &mut lost)?;
    // A folder that another user made for us stays as it is: what is in it is all there.
    if let Some(tree_root) = tree_root.filter(|_| marker.is_ours)
        && let Err(error) = target.finish_root(tree_root)
    {
        let shown = options.target.display();
        progress.warn(&format!("'{shown}' itself keeps its mode and owner: {error}"));
    }
    target.sync().context("cannot bring the target to the disk")?;
    write_marker(&target, &FetchMarker { is_complete: lost.is_empty(), ..marker })?;
    progress.end();
    report(document, options, &target, &lost, files, bytes, progress)
}

/// What the target folder itself is to be given: nothing where only some paths are fetched.
fn tree_root(document: &Document, options: &Options) -> anyhow::Result<Option<TreeRoot>> {
    for component in document.trailer.components()? {
        if component.kind == "tree"
            && options.selection.is_whole(&component.name)
            && let Some(root) = TreeRoot::recorded(&component)?
        {
            return Ok(Some(root));
        }
    }
    Ok(None)
}

/// The folder of the backup that the document describes.
///
/// A stored manifest that is damaged stops nothing: the document that came in is whole.
pub(crate) fn find(
    document: &Document,
    store: &Store,
    progress: &dyn Progress,
) -> anyhow::Result<String> {
    let id = document.header.the_backup()?.id;
    let total = document.trailer.total_checksum().context("the manifest has no sum")?;
    let located = locate(store, &document.header.run()?, &id, total)?;
    match &located {
        Located::Same(_) => {}
        Located::Unreadable(manifest, error) => {
            progress.warn(&format!("'{}' is damaged: {error:#}", manifest.name));
        }
        Located::Other(manifest) => {
            let message = format!("'{}' is another manifest than the one given", manifest.name);
            return Err(fail(Exit::Damaged, message));
        }
    }
    Ok(located.folder().to_owned())
}

/// Whether an entry's own content is to be written: a file, or a link whose first path is not
/// fetched with it.
fn has_content(entry: &Entry, options: &Options) -> bool {
    match &entry.kind {
        Kind::File => true,
        Kind::Hardlink(first) => {
            let first = Entry { component: entry.component.clone(), ..Entry::new(first.clone()) };
            !options.selection.matches(&first)
        }
        _ => false,
    }
}

fn cannot_write(entry: &Entry) -> String {
    format!("cannot write '{}'", entry.path)
}

/// Whether a path cannot be on the target's file system, which costs that path alone.
fn is_unnameable(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL))
}

/// Fails where a fetch would fail before it writes a file. Touches nothing: a target that is not
/// there is looked at where it would be made.
fn rehearse(
    document: &Document,
    options: &Options,
    marker: &FetchMarker,
    mut bytes: u64,
) -> anyhow::Result<()> {
    let path = std::path::absolute(&options.target)?;
    let there = path.ancestors().find(|there| std::fs::symlink_metadata(there).is_ok());
    let there = there.unwrap_or(&path);
    let shown = there.display();
    if there == path {
        check_target(options, &marker.backup)?;
    } else {
        refuse_destination(there)?;
    }
    let target = Target::open(there, None).with_context(|| format!("cannot open '{shown}'"))?;
    rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot write to '{shown}'"))?;
    if there == path {
        bytes = bytes.saturating_sub(bytes_there(document, options, &target)?);
    }
    check_space(&target, bytes)
}

/// Refuses a folder of a destination as the target.
fn refuse_destination(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let absolute = std::fs::canonicalize(path).with_context(|| format!("cannot open '{shown}'"))?;
    match absolute.ancestors().find(|above| above.join(scan::DESTINATION_MARKER).exists()) {
        None => Ok(()),
        Some(above) => {
            let above = above.display();
            let message = format!("'{shown}' lies in the backup destination '{above}'");
            Err(fail(Exit::Usage, message))
        }
    }
}

/// Makes sure that a target that is there may be written to; returns whether its own attributes are
/// ours to set.
fn check_target(options: &Options, backup: &str) -> anyhow::Result<bool> {
    let path = &options.target;
    let shown = path.display();
    let refuse = |message: String| Failure::new(Exit::Usage, message);
    refuse_destination(path)?;
    let own = path.join(".bk");
    let has_only = |folder: &Path, is_nothing: &dyn Fn(&OsStr) -> bool| -> io::Result<bool> {
        let mut names = std::fs::read_dir(folder)?;
        Ok(names.all(|entry| entry.is_ok_and(|entry| is_nothing(&entry.file_name()))))
    };
    // One without a marker is left by a fetch that was killed at once.
    let has_own = has_only(&own, &|name| is_unfinished(name.as_bytes())).is_ok_and(|is| is);
    let is_free = has_only(path, &|name| has_own && name == ".bk")
        .with_context(|| format!("cannot read '{shown}'"))?;
    let opened = Target::open(path, None).with_context(|| format!("cannot open '{shown}'"))?;
    let found: Option<FetchMarker> =
        opened.read_own(FETCH_MARKER).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match (options.occupied, found) {
        _ if is_free => Ok(true),
        (Occupied::Refuse, _) => Err(refuse(format!("'{shown}' is not empty"))
            .hint("to go on with a fetch that was stopped: --resume")
            .hint("to restore into what is there, which is put aside where replaced: --into")
            .into()),
        (Occupied::Resume, Some(found)) if found.backup == backup => Ok(found.is_ours),
        (Occupied::Resume, _) => {
            Err(refuse(format!("'{shown}' holds no stopped fetch of '{backup}'")).into())
        }
        (Occupied::Into, None) if !has_own && std::fs::symlink_metadata(&own).is_ok() => {
            Err(refuse(format!("'{shown}/.bk' has a name that bk keeps for itself")).into())
        }
        // One that was stopped is run again.
        (Occupied::Into, Some(found)) if found.backup == backup && !found.is_complete => {
            Ok(found.is_ours)
        }
        (Occupied::Into, _) => Ok(false),
    }
}

/// Makes sure that the target is there and may be written to, and leaves the marker in it.
fn prepare(options: &Options, marker: &mut FetchMarker) -> anyhow::Result<Target> {
    let path = &options.target;
    let shown = path.display();
    atomic::create_folders(path, 0o700).with_context(|| format!("cannot make '{shown}'"))?;
    marker.is_ours = check_target(options, &marker.backup)?;
    let aside = match options.occupied {
        Occupied::Refuse => None,
        Occupied::Resume | Occupied::Into => {
            let name = [REPLACED_PREFIX, options.now.format("%Y%m%dT%H%M%SZ").as_bytes()].concat();
            Some(RelPath::new(name)?)
        }
    };
    let target = Target::open(path, aside).with_context(|| format!("cannot open '{shown}'"))?;
    target.make_folders(OWN_FOLDER).with_context(|| format!("cannot make '{shown}/.bk'"))?;
    write_marker(&target, marker)?;
    Ok(target)
}

fn write_marker(target: &Target, marker: &FetchMarker) -> anyhow::Result<()> {
    let text = serde_json::to_string(marker)? + "\n";
    let path = target.root().path().display();
    target
        .write_own(FETCH_MARKER, text.as_bytes())
        .with_context(|| format!("cannot write '{path}/.bk/{FETCH_MARKER}'"))
}

/// Names at the root that are bk's own; no backup that bk made has them.
fn refuse_own_names(entry: &Entry) -> anyhow::Result<()> {
    let bytes = entry.path.as_bytes();
    let is_own = match bytes.iter().position(|byte| *byte == b'/') {
        None => {
            bytes == scan::DESTINATION_MARKER.as_bytes()
                || bytes.starts_with(REPLACED_PREFIX)
                || (bytes == OWN_FOLDER && entry.kind != Kind::Directory)
        }
        Some(slash) => {
            bytes[..slash].starts_with(REPLACED_PREFIX)
                || (&bytes[..slash] == OWN_FOLDER && &bytes[slash + 1..] == FETCH_MARKER.as_bytes())
        }
    };
    if is_own {
        let message =
            format!("the manifest lists '{}', a name that bk keeps for itself", entry.path);
        return Err(fail(Exit::Malformed, message));
    }
    Ok(())
}

/// How much of what is to be fetched is at its place already.
fn bytes_there(document: &Document, options: &Options, target: &Target) -> anyhow::Result<u64> {
    let mut bytes = 0u64;
    if options.occupied != Occupied::Refuse {
        for entry in document.entries.iter() {
            let entry = entry?;
            if options.selection.matches(&entry) && has_content(&entry, options) {
                bytes = bytes.saturating_add(target.size_there(&entry));
            }
        }
    }
    Ok(bytes)
}

fn check_space(target: &Target, bytes: u64) -> anyhow::Result<()> {
    let space = rustix::fs::fstatvfs(target.root().as_fd()).map_err(io::Error::from)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < bytes {
        let message = format!(
            "'{}' has {} free, {} are needed",
            target.root().path().display(),
            human_bytes(free),
            human_bytes(bytes)
        );
        return Err(fail(Exit::Failed, message));
    }
    Ok(())
}

/// Writes files as they are read.
struct Restore<'a> {
    target: &'a Target,
    progress: &'a dyn Progress,
    lost: Mutex<BTreeMap<RelPath, String>>,
}

impl Restore<'_> {
    fn lose(&self, entry: &Entry, why: String) {
        if let Ok(mut lost) = self.lost.lock() {
            lost.insert(entry.path.clone(), why);
        }
        self.progress.advance(entry.size.unwrap_or(0), 1);
    }
}

impl<'a> Receive for Restore<'a> {
    type Output = UnfinishedFile<'a>;

    fn begin(&self, entry: &Entry) -> anyhow::Result<Option<UnfinishedFile<'a>>> {
        if self.target.has_content(entry) {
            self.target.finish(entry).with_context(|| cannot_write(entry))?;
            self.progress.advance(entry.size.unwrap_or(0), 1);
            return Ok(None);
        }
        match self.target.create(&entry.path) {
            Err(error) if is_unnameable(&error) => {
                self.lose(entry, error.to_string());
                Ok(None)
            }
            file => file.map(Some).with_context(|| cannot_write(entry)),
        }
    }

    fn end(
        &self,
        entry: &Entry,
        output: UnfinishedFile<'a>,
        damage: Option<&Damage>,
    ) -> anyhow::Result<()> {
        match damage {
            None => match output.commit(entry) {
                Err(error) if is_unnameable(&error) => self.lose(entry, error.to_string()),
                done => {
                    done.with_context(|| cannot_write(entry))?;
                    self.progress.advance(entry.size.unwrap_or(0), 1);
                }
            },
            Some(damage) => self.lose(entry, damage.detail.clone()),
        }
        Ok(())
    }
}

/// Makes what is no file, and gives folders their attributes once nothing changes below them.
fn finish(
    document: &Document,
    options: &Options,
    target: &Target,
    lost: &mut Vec<(RelPath, String)>,
) -> anyhow::Result<()> {
    let lost_paths: BTreeSet<RelPath> = lost.iter().map(|(path, _)| path.clone()).collect();
    let mut open: Vec<Entry> = Vec::new();
    for entry in document.entries.iter() {
        bk_manifest::signal::check()?;
        let entry = entry?;
        if !options.selection.matches(&entry) {
            continue;
        }
        while let Some(folder) = open.pop_if(|folder| entry.path.below(&folder.path).is_none()) {
            target.finish(&folder).with_context(|| cannot_write(&folder))?;
        }
        if entry.kind == Kind::Directory {
            if !lost_paths.contains(&entry.path) {
                open.push(entry);
            }
        } else if !has_content(&entry, options) {
            // What stands at a lost file's path is not what a link is to be linked to.
            let made = match &entry.kind {
                Kind::Hardlink(first) if lost_paths.contains(first) => {
                    Err(io::Error::other("is a link to a lost file"))
                }
                _ => target.make_special(&entry),
            };
            if let Err(error) = made {
                lost.push((entry.path, error.to_string()));
            }
        }
    }
    while let Some(folder) = open.pop() {
        target.finish(&folder).with_context(|| cannot_write(&folder))?;
    }
    Ok(())
}

/// Tells what is in the target and not in the backup; sweeps what a dead fetch left.
fn list_strangers(
    document: &Document,
    options: &Options,
    target: &Target,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let is_resumed = options.occupied == Occupied::Resume;
    let mut entries = document.entries.iter().peekable();
    let mut strangers = 0usize;
    let mut swept = Vec::new();
    let mut last: Option<RelPath> = None;
    let options = scan::Options::default();
    scan::scan(target.root(), &options, &mut LeftOut::default(), progress, &mut |found| {
        while entries.next_if(|e| e.as_ref().is_ok_and(|e| e.path < found.path)).is_some() {}
        if entries.peek().is_some_and(|e| e.as_ref().is_ok_and(|e| e.path == found.path)) {
            return Ok(());
        }
        if is_resumed && found.is_file() && is_unfinished(found.path.file_name()) {
            swept.push(found.path);
        } else if last.as_ref().is_none_or(|last| found.path.below(last).is_none()) {
            strangers += 1;
            if strangers <= NAMES_SHOWN {
                progress.warn(&format!("'{}' is not in the backup; it was left", found.path));
            }
            last = Some(found.path);
        }
        Ok(())
    })?;
    if strangers > NAMES_SHOWN {
        progress.warn(&format!("{} more are not in the backup", strangers - NAMES_SHOWN));
    }
    sweep(target, swept, progress);
    Ok(())
}

/// Sweeps what a dead fetch left among the dumps: a walk of the target passes them over.
fn sweep_own(target: &Target, progress: &dyn Progress) -> anyhow::Result<()> {
    let options =
        scan::Options { paths: vec![RelPath::new(OWN_FOLDER)?], ..scan::Options::default() };
    let mut swept = Vec::new();
    scan::scan(target.root(), &options, &mut LeftOut::default(), progress, &mut |found| {
        if found.is_file() && is_unfinished(found.path.file_name()) {
            swept.push(found.path);
        }
        Ok(())
    })?;
    sweep(target, swept, progress);
    Ok(())
}

fn sweep(target: &Target, unfinished: Vec<RelPath>, progress: &dyn Progress) {
    for path in unfinished {
        if let Err(error) = target.remove_unfinished(&path) {
            progress.warn(&format!("cannot remove the unfinished '{path}': {error}"));
        }
    }
}

fn report(
    document: &mut Document,
    options: &Options,
    target: &Target,
    lost: &[(RelPath, String)],
    files: u64,
    bytes: u64,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    for (path, why) in lost.iter().take(NAMES_SHOWN) {
        progress.warn(&format!("lost: '{path}' {why}"));
    }
    if !lost.is_empty() {
        progress.warn(&format!("{} of {files} files could not be restored", lost.len()));
    }
    if target.replaced() > 0 {
        progress
            .warn(&format!("{} paths that were replaced are in .bk-replaced-*", target.replaced()));
    }
    if target.unowned() > 0 {
        let count = target.unowned();
        progress.warn(&format!("{count} paths did not get their owner: it cannot be set here"));
    }
    let shown = options.target.display();
    progress.note(&format!("fetched {files} files, {}, into '{shown}'", human_bytes(bytes)));
    let path = std::path::absolute(&options.target)?;
    let mut run = document.header.run()?;
    run.extra.insert("fetched".into(), json!(HostPath(path.as_os_str().as_bytes().to_vec())));
    document.header.set_run(&run);
    let mine = if lost.is_empty() && target.unowned() == 0 { Exit::Done } else { Exit::Partial };
    Ok(document.trailer.worsen(mine)?)
}
