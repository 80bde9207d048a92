//! The stage folder: where dumps lie between the step that makes them and the push that stores
//! them.
//!
//! A dump lies at `<stage>/<backup id>/<component>/<file>`. Beside its folder is a record of the
//! pipe that it belongs to (`.<component>.json`): a sweep touches nothing that has none, so a stage
//! folder that was named by mistake loses no file. While a dump is being written its folder is
//! locked. Afterwards the dump's process is gone although push still needs the file; what then
//! tells a running pipe from a dead one is the process group that all steps of a pipe share.

mod owner;

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bk_manifest::atomic::{self, Existing, NewFile};
use bk_manifest::command::Cancel;
use bk_manifest::digest::{Digest, HashWriter};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::manifest::is_name;
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::scan::STAGE_MARKER;
use bk_manifest::time::Time;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use self::owner::Life;
pub use self::owner::Owner;

/// How long a finished dump of a dead pipe is kept: time to push it by hand.
const KEEP_DEAD: Duration = Duration::from_hours(12);
/// How long a finished dump is kept where its pipe cannot be asked, or seems to live.
const KEEP_ANY: Duration = Duration::from_hours(7 * 24);
/// How names of files begin that are not finished.
const UNFINISHED: &[u8] = b".bk-tmp-";

/// The stage folder.
pub struct Stage {
    root: PathBuf,
    lock: File,
}

/// What lies beside the folder of a component.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    owner: Owner,
    /// The dump was admitted, and its document is about to be ended: push may need it.
    is_sealed: bool,
}

/// How eagerly to sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sweep {
    Usual,
    /// Space is short: what a dead pipe left goes at once.
    Thorough,
}

impl Stage {
    /// Opens the folder, and makes it where it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let root = std::path::absolute(root)?;
        let context = || format!("cannot use the stage folder '{}'", root.display());
        atomic::create_folders(&root, 0o700).with_context(context)?;
        let marker = root.join(STAGE_MARKER);
        if !marker.exists() {
            atomic::create(&marker, b"", 0o600, Existing::Replace).with_context(context)?;
        }
        let lock = File::open(&root).with_context(context)?;
        Ok(Stage { root, lock })
    }

    /// Sweeps what dead runs left, and makes the folder of a component.
    ///
    /// # Errors
    /// [`Exit::Busy`] if another run writes this very component of this backup; those of the
    /// file system.
    pub fn reserve(
        &self,
        id: &str,
        component: &str,
        owner: &Owner,
        now: Time,
        progress: &dyn Progress,
    ) -> anyhow::Result<Staging> {
        let folder = self.root.join(id).join(component);
        let context = || format!("cannot make the stage folder '{}'", folder.display());
        let _held = self.lock()?;
        self.sweep(id, owner, now, Sweep::Usual, progress);
        let above = self.root.join(id);
        atomic::create_folders(&above, 0o700).with_context(context)?;
        if let Ok(left) = File::open(&folder) {
            if !is_free(&left) {
                let message = format!("'{}' is being written by another run", folder.display());
                return Err(fail(Exit::Busy, message));
            }
            // A first try of the same step for the same backup: only one of them can be pushed.
            fs::remove_dir_all(&folder).with_context(context)?;
        }
        write_record(&folder, owner, false).with_context(context)?;
        atomic::create_folders(&folder, 0o700).with_context(context)?;
        if !is_own_folder(&folder) {
            let message = format!("'{}' is not a folder of ours", folder.display());
            return Err(fail(Exit::Failed, message));
        }
        let lock = File::open(&folder).with_context(context)?;
        // Where folders cannot be locked (some network file systems) the record alone decides.
        let _ = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        Ok(Staging {
            stage: Stage { root: self.root.clone(), lock: self.lock.try_clone()? },
            id: id.to_owned(),
            owner: owner.clone(),
            now,
            folder,
            _lock: lock,
            is_kept: false,
        })
    }

    /// One sweep or creation at a time.
    fn lock(&self) -> anyhow::Result<File> {
        let lock = File::open(&self.root)
            .with_context(|| format!("cannot open the stage folder '{}'", self.root.display()))?;
        let _ = flock(&lock, FlockOperation::LockExclusive);
        Ok(lock)
    }

    /// Removes what dead runs left. What cannot be looked at or removed stays: no run fails for it.
    fn sweep(&self, id: &str, here: &Owner, now: Time, sweep: Sweep, progress: &dyn Progress) {
        let Ok(runs) = fs::read_dir(&self.root) else { return };
        for run in runs.flatten() {
            let is_other = run.file_name().to_str().is_some_and(|name| is_name(name) && name != id);
            if !is_other || !run.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(records) = fs::read_dir(run.path()) else { continue };
            for record in records.flatten() {
                let name = record.file_name();
                if name.as_encoded_bytes().starts_with(UNFINISHED) {
                    // Records are written under the lock that is held here: its writer is dead.
                    let _ = fs::remove_file(record.path());
                    continue;
                }
                let component = name
                    .to_str()
                    .and_then(|name| name.strip_prefix('.')?.strip_suffix(".json"))
                    .filter(|name| is_name(name));
                let text = fs::read(record.path()).ok();
                let found = text.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
                let (Some(component), Some(found)) = (component, found) else { continue };
                let folder = run.path().join(component);
                if is_left(&folder, &found, found.owner.life(here), now, sweep) {
                    let was_there = folder.exists();
                    let is_gone = !was_there || fs::remove_dir_all(&folder).is_ok();
                    if is_gone && fs::remove_file(record.path()).is_ok() && was_there {
                        progress.note(&format!("removed '{}', left behind", folder.display()));
                    }
                }
            }
            // Only an empty one goes.
            let _ = fs::remove_dir(run.path());
        }
    }
}

fn record_path(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.json"))
}

fn write_record(folder: &Path, owner: &Owner, is_sealed: bool) -> anyhow::Result<()> {
    let record = Record { owner: owner.clone(), is_sealed };
    let text = serde_json::to_vec(&record).context("cannot write the stage record")?;
    atomic::create(&record_path(folder), &text, 0o600, Existing::Replace)?;
    Ok(())
}

fn is_own_folder(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|metadata| {
        metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw()
    })
}

fn is_free(folder: &File) -> bool {
    flock(folder, FlockOperation::NonBlockingLockExclusive) != Err(rustix::io::Errno::WOULDBLOCK)
}

/// Whether a component's folder is of no more use to anyone.
fn is_left(folder: &Path, record: &Record, life: Life, now: Time, sweep: Sweep) -> bool {
    let Ok(metadata) = fs::symlink_metadata(folder) else { return true };
    let (Ok(open), Ok(mut names)) = (File::open(folder), fs::read_dir(folder)) else {
        return false;
    };
    if !metadata.is_dir() || !is_free(&open) {
        return false;
    }
    let has_dump = names.any(|name| {
        use std::os::unix::ffi::OsStrExt;
        name.map_or(true, |name| !name.file_name().as_bytes().starts_with(UNFINISHED))
    });
    // Without its seal no document can name it.
    let is_finished = has_dump && record.is_sealed;
    let changed = Time::from_unix(metadata.mtime(), 0);
    let age = now.since(changed);
    match life {
        _ if !is_finished => true,
        Life::Dead => sweep == Sweep::Thorough || age > KEEP_DEAD,
        Life::Perhaps => age > KEEP_ANY,
    }
}

/// The folder of one component, locked. Dropped before [`Staging::keep`], all of it is removed.
pub struct Staging {
    stage: Stage,
    id: String,
    owner: Owner,
    now: Time,
    folder: PathBuf,
    _lock: File,
    is_kept: bool,
}

impl Staging {
    /// Its absolute path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fails unless `bytes` fit; `what` is what they are for.
    ///
    /// # Errors
    /// [`Exit::Failed`] naming both figures.
    pub fn require(&self, bytes: u64, what: &str, progress: &dyn Progress) -> anyhow::Result<()> {
        if free_bytes(&self.folder)? < bytes {
            let _held = self.stage.lock()?;
            self.stage.sweep(&self.id, &self.owner, self.now, Sweep::Thorough, progress);
        }
        let free = free_bytes(&self.folder)?;
        if free >= bytes {
            return Ok(());
        }
        let message = format!(
            "too little space in '{}' for {what}: {} are needed, {} are free",
            self.stage.root.display(),
            human_bytes(bytes),
            human_bytes(free),
        );
        Err(Failure::new(Exit::Failed, message)
            .hint("name a folder with more space: --stage DIR or BK_STAGE")
            .into())
    }

    /// Opens a new file that is hashed while it is written.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(&self) -> anyhow::Result<HashWriter<NewFile>> {
        let file = NewFile::create_in(&self.folder, 0o600)
            .with_context(|| format!("cannot write to '{}'", self.folder.display()))?;
        Ok(HashWriter::new(file))
    }

    /// Gives a file its name once its bytes are on the disk. It is to be read again before it is
    /// trusted: [`Staged::open`], [`Staged::compare`].
    ///
    /// # Errors
    /// A full disk.
    pub fn commit(&self, file: HashWriter<NewFile>, name: &[u8]) -> anyhow::Result<Staged> {
        use std::os::unix::ffi::OsStrExt;
        let (mut file, checksum, size) = file.finish();
        let path = self.folder.join(std::ffi::OsStr::from_bytes(name));
        let context = || format!("cannot write '{}'", path.display());
        file.flush().with_context(context)?;
        file.commit(&path, Existing::Keep).with_context(context)?;
        let mtime = modified(&fs::metadata(&path).with_context(context)?);
        Ok(Staged { name: name.to_vec(), path, checksum, size, mtime })
    }

    /// Gives a folder of finished files its name, once all of them were hashed and are on the disk.
    ///
    /// # Errors
    /// A full disk; something in it that is no file; no file at all.
    pub fn commit_folder(
        &self,
        unfinished: &Path,
        name: &[u8],
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> anyhow::Result<Vec<Staged>> {
        use std::os::unix::ffi::OsStrExt;
        let folder = self.folder.join(std::ffi::OsStr::from_bytes(name));
        let context = || format!("cannot write '{}'", folder.display());
        let mut staged = Vec::new();
        for found in fs::read_dir(unfinished).with_context(context)? {
            cancel.check()?;
            let found = found.with_context(context)?;
            let file = File::open(found.path()).with_context(context)?;
            let metadata = file.metadata().with_context(context)?;
            if !found.file_type().with_context(context)?.is_file() {
                let message = format!("'{}' is no file", found.path().display());
                return Err(fail(Exit::Failed, message));
            }
            file.set_permissions(Permissions::from_mode(0o600)).with_context(context)?;
            file.sync_all().with_context(context)?;
            let (checksum, size) = Digest::of_reader(file).with_context(context)?;
            if size != metadata.len() {
                let message = format!("'{}' changed while it was read", found.path().display());
                return Err(fail(Exit::Failed, message));
            }
            progress.advance(size, 0);
            let file_name = found.file_name();
            staged.push(Staged {
                name: [name, b"/", file_name.as_bytes()].concat(),
                path: folder.join(file_name),
                checksum,
                size,
                mtime: modified(&metadata),
            });
        }
        if staged.is_empty() {
            return Err(fail(Exit::Failed, format!("'{}' is empty", unfinished.display())));
        }
        atomic::sync_folder(unfinished).with_context(context)?;
        fs::rename(unfinished, &folder).with_context(context)?;
        atomic::sync_folder(&self.folder).with_context(context)?;
        Ok(staged)
    }

    /// A name for a file or folder that does not stay under it; it counts as unfinished.
    pub fn scratch(&self) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let name = [UNFINISHED, &b"copy"[..]].concat();
        self.folder.join(std::ffi::OsStr::from_bytes(&name))
    }

    /// Says on the disk that the dump was admitted; just before its document is ended.
    ///
    /// # Errors
    /// A full disk.
    pub fn seal(&self) -> anyhow::Result<()> {
        let _held = self.stage.lock()?;
        write_record(&self.folder, &self.owner, true)
            .with_context(|| format!("cannot write beside '{}'", self.folder.display()))
    }

    /// Leaves the folder to push.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.is_kept {
            // What stays because of an error here is swept later.
            let _ = fs::remove_dir_all(&self.folder);
            let _ = fs::remove_file(record_path(&self.folder));
            if let Some(run) = self.folder.parent() {
                let _ = fs::remove_dir(run);
            }
        }
    }
}

/// A finished file in the stage folder.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Its name below the component's folder.
    pub name: Vec<u8>,
    /// Where it lies.
    pub path: PathBuf,
    /// Its digest, taken while it was written.
    pub checksum: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written.
    pub mtime: Time,
}

impl Staged {
    /// Opens it so that its bytes come from the disk, where the system can be told so.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(&self) -> anyhow::Result<File> {
        let file = File::open(&self.path)
            .with_context(|| format!("cannot read '{}'", self.path.display()))?;
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(file)
    }

    /// Fails unless what was read again is what was written.
    ///
    /// # Errors
    /// [`Exit::Failed`] naming the file.
    pub fn compare(&self, digest: Digest, size: u64) -> anyhow::Result<()> {
        if digest == self.checksum && size == self.size {
            return Ok(());
        }
        let message = format!("'{}' does not read back as it was written", self.path.display());
        Err(Failure::new(Exit::Failed, message).hint("check the disk and the memory").into())
    }
}

fn modified(metadata: &fs::Metadata) -> Time {
    Time::from_unix(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0))
}

/// Bytes that an ordinary user can still write to the file system of `folder`.
///
/// # Errors
/// Those of the file system.
pub fn free_bytes(folder: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(folder)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot ask for the free space of '{}'", folder.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The names of what a stage folder holds beside its marker.
#[cfg(test)]
pub(crate) fn holds(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root).unwrap().map(|found| found.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| name != STAGE_MARKER).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::progress::Silent;

    const ID: &str = "backup-20260428-022150-a1b2c3d4";
    const NEXT: &str = "backup-20260429-022150-a1b2c3d4";

    fn dead() -> Owner {
        let mut owner = Owner::this();
        owner.boot = "another".into();
        owner
    }

    fn staged(stage: &Stage, owner: &Owner) -> PathBuf {
        let staging = stage.reserve(ID, "db", owner, Time::now(), &Silent).unwrap();
        let mut file = staging.create().unwrap();
        file.write_all(b"dump").unwrap();
        let staged = staging.commit(file, b"app.dump").unwrap();
        staging.seal().unwrap();
        staging.keep();
        staged.path
    }

    fn later(hours: u64) -> Time {
        let (seconds, _) = Time::now().unix();
        Time::from_unix(seconds + i64::try_from(hours * 3600).unwrap(), 0)
    }

    #[test]
    fn a_record_that_was_never_finished_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(ID).join(".bk-tmp-u4U7mU");
        fs::create_dir(folder.path().join(ID)).unwrap();
        atomic::create(&left, b"{", 0o600, Existing::Keep).unwrap();
        let stage = Stage::open(folder.path()).unwrap();
        drop(stage.reserve(NEXT, "db", &Owner::this(), Time::now(), &Silent).unwrap());
        assert!(!left.exists() && !folder.path().join(ID).exists());
    }

    #[test]
    fn a_dump_that_failed_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(&folder.path().join("s")).unwrap();
        let staging = stage.reserve(ID, "db", &Owner::this(), Time::now(), &Silent).unwrap();
        staging.create().unwrap().write_all(b"half").unwrap();
        drop(staging);
        assert_eq!(holds(&folder.path().join("s")), [""; 0]);
    }

    #[test]
    fn nobody_else_can_read_what_is_staged() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(&folder.path().join("s")).unwrap();
        let path = staged(&stage, &Owner::this());
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        for folder in path.ancestors().skip(1).take(3) {
            assert_eq!(mode(folder), 0o700, "{}", folder.display());
        }
    }

    #[test]
    fn what_a_dead_pipe_left_goes_after_half_a_day_or_when_space_is_short() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(folder.path()).unwrap();
        let path = staged(&stage, &dead());
        stage.sweep(NEXT, &Owner::this(), later(11), Sweep::Usual, &Silent);
        assert!(path.exists());
        stage.sweep(NEXT, &Owner::this(), later(13), Sweep::Usual, &Silent);
        assert!(!path.exists());
        assert_eq!(holds(folder.path()), [""; 0]);
        let path = staged(&stage, &dead());
        stage.sweep(NEXT, &Owner::this(), later(0), Sweep::Thorough, &Silent);
        assert!(!path.exists());
    }

    #[test]
    fn a_dump_that_was_never_admitted_goes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(folder.path()).unwrap();
        let staging = stage.reserve(ID, "db", &Owner::this(), Time::now(), &Silent).unwrap();
        let path = staging.commit(staging.create().unwrap(), b"app.dump").unwrap().path;
        // As a kill leaves it.
        staging.keep();
        stage.sweep(NEXT, &Owner::this(), later(0), Sweep::Usual, &Silent);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_running_pipe_needs_stays() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(folder.path()).unwrap();
        let path = staged(&stage, &Owner::this());
        stage.sweep(NEXT, &Owner::this(), later(6 * 24), Sweep::Thorough, &Silent);
        assert!(path.exists());
        stage.sweep(NEXT, &Owner::this(), later(8 * 24), Sweep::Usual, &Silent);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_being_written_stays_whatever_its_record_says() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(folder.path()).unwrap();
        let staging = stage.reserve(ID, "db", &dead(), Time::now(), &Silent).unwrap();
        stage.sweep(NEXT, &Owner::this(), later(999), Sweep::Thorough, &Silent);
        assert!(staging.folder().exists());
        let error = stage.reserve(ID, "db", &dead(), Time::now(), &Silent).err().unwrap();
        assert_eq!(bk_manifest::exit::classify(&error), Exit::Busy);
    }

    #[test]
    fn unfinished_dumps_go_at_once_and_strangers_stay() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(folder.path()).unwrap();
        let path = staged(&stage, &Owner::this());
        fs::rename(&path, path.with_file_name(".bk-tmp-x")).unwrap();
        let strange = folder.path().join("photos").join("2026");
        fs::create_dir_all(&strange).unwrap();
        stage.sweep(NEXT, &Owner::this(), later(999), Sweep::Thorough, &Silent);
        assert!(!path.parent().unwrap().exists());
        assert!(strange.exists());
    }

    #[test]
    fn too_little_space_is_said_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let stage = Stage::open(folder.path()).unwrap();
        let staging = stage.reserve(ID, "db", &Owner::this(), Time::now(), &Silent).unwrap();
        staging.require(1, "a dump", &Silent).unwrap();
        let error = staging.require(u64::MAX, "the dump", &Silent).unwrap_err().to_string();
        assert!(error.starts_with("too little space in "), "{error}");
    }
}
