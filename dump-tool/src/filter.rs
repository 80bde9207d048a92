//! The step in the pipe that all kinds of dump share: manifest in, manifest with one more entry
//! out.
//!
//! The header goes on only once the point in time is held, so whatever walks files behind us finds
//! every file that the database knows of. Then the document flows past while the dump is written on
//! another thread.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use bk_manifest::command::Cancel;
use bk_manifest::entry::{DEFAULT_COMPONENT, Entry};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::LeftOut;
use bk_manifest::manifest::{
    Component, HostPath, Layout, Source, SourceKind, Status, Trailer, is_name,
};
use bk_manifest::path::{OWN_FOLDER, RelPath};
use bk_manifest::progress::Progress;
use bk_manifest::shrink::MaxShrink;
use bk_manifest::stream::{Format, Reader, Writer, copy_entries};
use bk_manifest::time::Time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Map, Value};

use crate::shrink::{self, Group};
use crate::stage::{Owner, Stage, Staged, Staging};

/// What every dump step is told.
pub struct Options {
    /// The component's name.
    pub component: String,
    /// The stage folder.
    pub stage: PathBuf,
    /// The clock.
    pub now: Time,
    /// Refuses a dump that is much smaller than the parent's.
    pub max_shrink: MaxShrink,
    /// Whether it is not to leave this host in clear.
    pub is_secret: bool,
    /// The paths of this host that it is made of, absolute; for archives.
    pub archived: Vec<PathBuf>,
    /// The databases that are dumped together with this one, and their kind.
    pub group: Option<(&'static str, Group)>,
    /// Ends the dump when the document fails, and the wait for the document when the dump fails.
    pub cancel: Cancel,
}

/// Standard input, or another pipe, that is waited for only as long as there is reason to.
///
/// A plain read sleeps until the step before writes something, whatever happened meanwhile: a
/// signal, or our own dump having failed.
pub struct Patient<R, F = io::Stdin> {
    inner: R,
    /// What is asked whether there is something to read.
    file: F,
    cancel: Cancel,
}

impl<R: Read> Patient<R> {
    /// `inner` must be standard input, and read in pieces that it does not buffer.
    pub fn new(inner: R, cancel: &Cancel) -> Self {
        Patient { inner, file: io::stdin(), cancel: cancel.clone() }
    }
}

impl Patient<io::PipeReader, io::PipeReader> {
    /// The same for a pipe.
    ///
    /// # Errors
    /// If there are too many open files.
    pub fn of_pipe(pipe: io::PipeReader, cancel: &Cancel) -> io::Result<Self> {
        Ok(Patient { file: pipe.try_clone()?, inner: pipe, cancel: cancel.clone() })
    }
}

impl<R: Read, F: AsFd> Read for Patient<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        loop {
            self.cancel.check()?;
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut fds, Some(&tick)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.inner.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What the two halves of a dump work with.
pub struct Work<'a> {
    /// The component's name.
    pub component: &'a str,
    /// Where its file goes.
    pub staging: &'a Staging,
    /// Looked at in every loop: the document may have failed meanwhile.
    pub cancel: &'a Cancel,
    /// Where warnings go.
    pub progress: &'a dyn Progress,
}

/// A dump that was admitted: written, synced and checked to its end.
pub struct Made {
    /// Its files, of which there is at least one.
    pub staged: Vec<Staged>,
    /// `postgresql`, `sqlite` or `archive`.
    pub kind: &'static str,
    /// What the component's record says beyond that.
    pub facts: Map<String, Value>,
    /// The top-level `database` member, for a database.
    pub database: Option<Value>,
    /// The files that are missing in it.
    pub left_out: LeftOut,
    /// Something else may be missing, of which a warning has told.
    pub is_partial: bool,
}

/// Runs the step: `begin` takes the point in time, what it returns makes the files.
///
/// # Errors
/// A malformed document, a name that is taken, those of the dump. On any of them the document is
/// not ended and the staged file is gone.
pub fn run<B, D>(
    input: impl Read,
    output: impl Write,
    options: &Options,
    progress: &dyn Progress,
    begin: B,
) -> anyhow::Result<Exit>
where
    B: FnOnce(&Work<'_>) -> anyhow::Result<D>,
    D: FnOnce(&Work<'_>) -> anyhow::Result<Made> + Send,
{
    let component = &options.component;
    check_name(component)?;
    let mut incoming = Reader::new(input)?;
    let mut header = incoming.header().clone();
    let mut run = header.run()?;
    let parent = run.parent.clone();
    if run.sources.iter().any(|source| source.component == *component) {
        return Err(taken(component));
    }
    if let Some((kind, group)) = &options.group {
        shrink::check_group(options.max_shrink, parent.as_ref(), kind, group)?;
    }
    let id = header.the_backup()?.id;
    let stage = Stage::open(&options.stage)?;
    let staging = stage.reserve(&id, component, &Owner::this(), options.now, progress)?;
    let cancel = &options.cancel;
    let work = Work { component, staging: &staging, cancel, progress };
    let dump = begin(&work)?;

    let folder = RelPath::new([OWN_FOLDER, b"/", component.as_bytes()].concat())?;
    run.sources.push(source(component, &staging, &folder));
    if options.is_secret {
        run.secrets.insert(component.clone());
    }
    run.archived.extend(options.archived.iter().map(|path| host_path(path)));
    header.set_run(&run);
    let mut writer = Writer::new(output, Format::Json, header)?;
    let (made, pending) = std::thread::scope(|scope| {
        let dump = scope.spawn(|| {
            let made = dump(&work);
            if made.is_err() {
                cancel.cancel();
            }
            made
        });
        let passed = pass_until(&folder, &mut incoming, &mut writer, cancel);
        if passed.is_err() {
            cancel.cancel();
        }
        let made = dump.join().map_err(|_| anyhow::anyhow!("the dump's thread ended early"))?;
        match (made, passed) {
            (Ok(made), Ok(pending)) => Ok((made, pending)),
            // Whichever failed first cancelled the other, whose error then says nothing.
            (_, Err(Passing::Failed(error))) | (Err(error), Ok(_) | Err(Passing::Cancelled)) => {
                Err(error)
            }
            (Ok(_), Err(Passing::Cancelled)) => Err(anyhow::anyhow!("stopped")),
        }
    })?;

    let limit = options.max_shrink;
    shrink::check(limit, parent.as_ref(), component, made.kind, &made.facts)?;
    for entry in entries(&folder, component, &made.staged)? {
        writer.entry(&entry)?;
    }
    if let Some(pending) = pending {
        writer.entry(&pending)?;
    }
    copy_entries(&mut incoming, &mut writer)?;
    let (_, mut trailer) = incoming.end()?;
    let exit = record(&mut trailer, component, made)?;
    staging.seal()?;
    writer.end(trailer)?;
    staging.keep();
    Ok(exit)
}

/// Refuses what cannot name a dump's component.
///
/// # Errors
/// [`Exit::Usage`] with the rule.
pub fn check_name(component: &str) -> anyhow::Result<()> {
    if !is_name(component) {
        let message = format!("'{}' cannot be a component's name", component.escape_debug());
        return Err(Failure::new(Exit::Usage, message)
            .hint("use letters, digits, '-', '_' and '.', beginning with a letter or digit")
            .into());
    }
    if component == DEFAULT_COMPONENT {
        let message = format!("'{component}' is the name of the component of the trees");
        return Err(Failure::new(Exit::Usage, message).hint("choose another: --name NAME").into());
    }
    Ok(())
}

fn taken(component: &str) -> anyhow::Error {
    Failure::new(Exit::Usage, format!("the component '{component}' is there already"))
        .hint("give this one a name of its own: --name NAME")
        .into()
}

/// Why the document stopped flowing.
enum Passing {
    Failed(anyhow::Error),
    /// The dump failed, and says why.
    Cancelled,
}

/// Passes on all entries that stand before a component's folder, and returns the one behind it.
fn pass_until(
    folder: &RelPath,
    incoming: &mut Reader<'_>,
    writer: &mut Writer<impl Write>,
    cancel: &Cancel,
) -> Result<Option<Entry>, Passing> {
    let failed = |error: anyhow::Error| {
        if cancel.is_cancelled() { Passing::Cancelled } else { Passing::Failed(error) }
    };
    loop {
        cancel.check().map_err(|error| failed(error.into()))?;
        let Some(entry) = incoming.next_entry().map_err(|error| failed(error.into()))? else {
            return Ok(None);
        };
        if entry.path.below(folder).is_some() {
            let message = format!("'{}' is in the manifest already", entry.path);
            return Err(failed(fail(Exit::Usage, message)));
        }
        if entry.path > *folder {
            return Ok(Some(entry));
        }
        writer.entry(&entry).map_err(|error| failed(error.into()))?;
    }
}

fn host_path(path: &Path) -> HostPath {
    use std::os::unix::ffi::OsStrExt;
    HostPath(path.as_os_str().as_bytes().to_vec())
}

fn source(component: &str, staging: &Staging, folder: &RelPath) -> Source {
    Source {
        component: component.to_owned(),
        kind: SourceKind::Stage,
        root: host_path(staging.folder()),
        prefix: HostPath(folder.as_bytes().to_vec()),
        paths: Vec::new(),
        access: None,
        layout: Layout::Packed,
    }
}

/// The entries of a dump's files, in their order.
fn entries(folder: &RelPath, component: &str, staged: &[Staged]) -> anyhow::Result<Vec<Entry>> {
    let entry = |staged: &Staged| {
        let path = RelPath::new([folder.as_bytes(), b"/", &staged.name].concat())?;
        Ok(Entry {
            component: Some(component.to_owned()),
            checksum: Some(staged.checksum),
            size: Some(staged.size),
            mode: Some(0o600),
            mtime: Some(staged.mtime),
            ..Entry::new(path)
        })
    };
    let mut entries: Vec<Entry> = staged.iter().map(entry).collect::<anyhow::Result<_>>()?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// Adds the component's record; returns the code that the document now carries.
fn record(trailer: &mut Trailer, component: &str, made: Made) -> anyhow::Result<Exit> {
    let (status, mine) = if made.left_out.has_fault() || made.is_partial {
        (Status::Partial, Exit::Partial)
    } else {
        (Status::Complete, Exit::Done)
    };
    let mut components = trailer.components()?;
    if components.iter().any(|known| known.name == component) {
        return Err(taken(component));
    }
    components.push(Component {
        name: component.to_owned(),
        kind: made.kind.into(),
        status,
        extra: made.facts,
    });
    trailer.set_components(&components);
    if let Some(database) = made.database
        && matches!(trailer.members.get("database"), None | Some(Value::Null))
    {
        trailer.set("database", database);
    }
    if made.left_out != LeftOut::default() {
        trailer.leave_out(made.left_out)?;
    }
    Ok(trailer.worsen(mine)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;
    use bk_manifest::manifest::{Application, Backup, EndRun, Header, Run};
    use bk_manifest::progress::Silent;
    use serde_json::json;

    fn incoming(paths: &[&str]) -> Vec<u8> {
        let backup = Backup {
            id: "backup-1".into(),
            timestamp: "2026-04-28T02:21:50Z".into(),
            ..Backup::default()
        };
        let application = Application { name: "app".into(), version: None };
        let header = Header::new(&application, Some(&backup), &Run::default());
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        for path in paths {
            writer.entry(&Entry::new(RelPath::new(*path).unwrap())).unwrap();
        }
        let mut trailer = Trailer::default();
        trailer.set_run(&EndRun::default());
        writer.end(trailer).unwrap().0
    }

    fn step(input: &[u8], output: &mut Vec<u8>, stage: &Path, fails: bool) -> anyhow::Result<Exit> {
        let options = Options {
            component: "db".into(),
            stage: stage.into(),
            now: Time::now(),
            max_shrink: MaxShrink(90),
            is_secret: true,
            archived: vec!["/etc/app".into()],
            group: None,
            cancel: Cancel::default(),
        };
        run(input, output, &options, &Silent, |_| {
            Ok(move |work: &Work<'_>| {
                if fails {
                    return Err(fail(Exit::Denied, "no"));
                }
                let mut file = work.staging.create()?;
                file.write_all(b"dump")?;
                Ok(Made {
                    staged: vec![work.staging.commit(file, b"app.dump")?],
                    kind: "sqlite",
                    facts: Map::new(),
                    database: Some(json!({"type": "sqlite", "schema_version": "7"})),
                    left_out: LeftOut::default(),
                    is_partial: false,
                })
            })
        })
    }

    #[test]
    fn the_entry_goes_in_at_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = Vec::new();
        let input = incoming(&["a", "z", ".bk/a/x", ".bk/zz/x"]);
        assert_eq!(step(&input, &mut output, folder.path(), false).unwrap(), Exit::Done);
        let mut reader = Reader::new(&output[..]).unwrap();
        let mut paths = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            paths.push(entry.path.to_string());
        }
        assert_eq!(paths, ["a", "z", ".bk/a/x", ".bk/db/app.dump", ".bk/zz/x"]);
        let (header, trailer) = reader.end().unwrap();
        let source = &header.run().unwrap().sources[0];
        assert_eq!(source.prefix.0, b".bk/db");
        let root = std::str::from_utf8(&source.root.0).unwrap();
        assert_eq!(std::fs::read(Path::new(root).join("app.dump")).unwrap(), b"dump");
        let run = header.run().unwrap();
        assert!(run.secrets.contains("db"));
        assert_eq!(run.archived, [HostPath(b"/etc/app".to_vec())]);
        assert_eq!(trailer.components().unwrap()[0].kind, "sqlite");
        assert_eq!(trailer.members.get("database").unwrap()["schema_version"], "7");
    }

    #[test]
    fn a_dump_that_fails_ends_no_document() {
        let folder = tempfile::tempdir().unwrap();
        let mut output = Vec::new();
        let error = step(&incoming(&["a"]), &mut output, folder.path(), true).unwrap_err();
        assert_eq!(classify(&error), Exit::Denied);
        let reader = Reader::new(&output[..]).unwrap();
        assert!(reader.end().is_err());
        assert_eq!(crate::stage::holds(folder.path()), [""; 0]);
    }

    #[test]
    fn a_document_that_is_cut_short_ends_no_document() {
        let folder = tempfile::tempdir().unwrap();
        let input = incoming(&["a", "b"]);
        for cut in [input.len() - 3, input.len() / 2, 3] {
            let mut output = Vec::new();
            let error = step(&input[..cut], &mut output, folder.path(), false).unwrap_err();
            assert_eq!(classify(&error), Exit::Malformed, "{error:#}");
            assert_eq!(crate::stage::holds(folder.path()), [""; 0]);
        }
    }

    #[test]
    fn a_name_that_is_taken_is_refused_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Vec::new();
        step(&incoming(&[]), &mut first, folder.path(), false).unwrap();
        let mut second = Vec::new();
        let error = step(&first, &mut second, folder.path(), true).unwrap_err();
        assert_eq!(classify(&error), Exit::Usage);
        assert!(second.is_empty());
        assert!(check_name("files").is_err());
        assert!(check_name("../x").is_err());
    }
}
