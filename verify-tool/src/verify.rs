//! The step in the pipe: passes the manifest on, has the backup checked, and ends the document only
//! if it is good.

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::manifest::{Backup, Header, Proof, Trailer};
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::select::Selection;
use bk_manifest::spool::{Entries, Spool};
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use bk_push::catalog::{Folders, needed_objects};
use bk_push::decrypt::{Objects, Sealed};
use bk_push::destination::Destination;
use bk_push::identity::Identities;
use bk_push::locate::{Located, locate};
use bk_push::plain::PlainFiles;
use bk_push::store::Store;

use crate::check::{self, MarkWarnings, Target};
use crate::content::Content;
use crate::dumps::{Dumps, Kinds};
use crate::level::{Level, Scope, Task, tasks};
use crate::locate::problem;
use crate::loss;
use crate::plain::{Looking, PlainTargets};
use crate::problem::{Fault, Findings};
use crate::report::{Case, Checked, Report, ReportFile, is_told_by_entry};
use crate::wanted::{Needs, Wanted};

/// What a verify was asked for.
pub struct Options {
    /// How deep; `None` is what fits the place in the pipe.
    pub level: Option<Level>,
    /// Which entries.
    pub selection: Selection,
    /// Where reports go.
    pub reports: Vec<ReportFile>,
    /// The clock. It is asked once the document is read, which in a pipe can be long after the start:
    /// a proof is about the time behind that.
    pub clock: fn() -> Time,
    /// The machine it runs on.
    pub host: String,
    /// The keys of encrypted objects.
    pub identities: Identities,
    /// The folder for temporary copies of dumps, and of encrypted objects.
    pub temporary: PathBuf,
}

/// Verifies the backup that the document describes, and passes the document on.
///
/// # Errors
/// [`Exit::Damaged`] and the other verdicts, with the reports written; then the document is not
/// ended. [`Exit::NotFound`] if there is no such backup, or nothing in it was selected.
pub fn verify(
    mut reader: Reader<'_>,
    output: impl Write,
    store: &Store,
    options: &Options,
    dumps: &dyn Dumps,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let backup = the_backup(reader.header())?;
    let mut writer = Writer::new(output, Format::Json, reader.header().clone())?;
    let mut intake = Intake::new(options)?;
    while let Some(entry) = reader.next_entry()? {
        bk_manifest::signal::check()?;
        writer.entry(&entry)?;
        intake.take(&entry)?;
    }
    let (header, mut trailer) = reader.end()?;
    let now = (options.clock)();
    let exit = trailer.exit()?;
    intake.wanted.unseen.check(&trailer)?;
    let entries = intake.spool.finish()?;

    let total = trailer.total_checksum().context("the document has no total_checksum")?;
    let located = locate(store, &header.run()?, &backup.id, total)?;
    let folders = Folders::new(&header, located.folder())?;
    // A copy that stored more than the backup's own objects is proved by reading all of them.
    let is_behind_push =
        trailer.run()?.pushed.is_some_and(|pushed| pushed.id == backup.id && pushed.elsewhere == 0);
    let plain = PlainFiles::new(&header, &trailer, located.folder())?;
    let subject = Examined {
        destination: &*store.destination,
        located: &located,
        folders: &folders,
        plain: &plain,
        entries: &entries,
        has_all: intake.keeps_all,
        wanted: &intake.wanted,
        kinds: Kinds::new(trailer.components()?),
        total,
        tasks: tasks(options.level, options.selection.is_all(), is_behind_push),
        progress,
    };
    let targets = subject.targets(&header, &trailer, &mut intake.needs)?;
    let mut findings = Findings::default();
    let sealed = subject.sealed(&header, &trailer)?;
    let (checked, cases) = subject.check(targets, sealed, options, dumps, &mut findings)?;
    subject.name_losses(&backup.id, &mut findings);

    let report = Report {
        backup: &backup.id,
        total_checksum: total,
        tasks: &subject.tasks,
        now,
        options,
        checked: &checked,
        findings: &findings,
        cases,
        strangers: None,
    };
    report.write_all(&options.reports, progress)?;
    findings.tell(progress);
    if !findings.is_empty() {
        return Err(verdict(&backup.id, &findings, &subject.tasks));
    }
    let mut run = trailer.run()?;
    run.proofs.extend(subject.tasks.iter().map(|task| Proof {
        total_checksum: total,
        level: task.level.word().into(),
        scope: task.scope.word().into(),
        time: now,
        host: options.host.clone(),
    }));
    trailer.set_run(&run);
    end(writer, trailer, total)?;
    progress.note(&format!("verified {}: {}", backup.id, checked.summary()));
    Ok(exit)
}

/// The backup of a document that must describe one.
///
/// # Errors
/// [`Exit::NotFound`] for the document that stands for "no backup yet".
pub(crate) fn the_backup(header: &Header) -> anyhow::Result<Backup> {
    header
        .backup()?
        .ok_or_else(|| fail(Exit::NotFound, "the manifest describes no backup: nothing to verify"))
}

/// Ends the document, which must be the one that came in.
pub(crate) fn end(
    writer: Writer<impl Write>,
    trailer: Trailer,
    total: Digest,
) -> anyhow::Result<()> {
    let (_, written) = writer.end(trailer)?;
    ensure!(
        written.total_checksum() == Some(total),
        "the document that was passed on is not the one that came in"
    );
    Ok(())
}

/// What is kept of the entries as they pass.
struct Intake<'a> {
    wanted: Wanted<'a>,
    /// What all of them refer to; filled later where only some are wanted.
    needs: Needs,
    /// All of them, where they will be looked at again; else those whose object is one file.
    spool: Spool,
    keeps_all: bool,
    is_all: bool,
}

impl<'a> Intake<'a> {
    fn new(options: &'a Options) -> anyhow::Result<Self> {
        let is_all = options.selection.is_all();
        Ok(Intake {
            wanted: Wanted::new(&options.selection),
            needs: Needs::default(),
            spool: Spool::new()?,
            keeps_all: !is_all || options.level == Some(Level::Content),
            is_all,
        })
    }

    fn take(&mut self, entry: &Entry) -> anyhow::Result<()> {
        self.wanted.pass(entry)?;
        let is_clear = Needs::is_clear(entry);
        if self.is_all && is_clear {
            self.needs.add(entry);
        }
        if self.keeps_all || !is_clear {
            self.spool.push(entry)?;
        }
        Ok(())
    }
}

/// The backup that is verified, and how.
struct Examined<'a> {
    destination: &'a dyn Destination,
    located: &'a Located,
    folders: &'a Folders,
    plain: &'a PlainFiles,
    entries: &'a Entries,
    /// Whether `entries` are all, and not only those whose object is one file.
    has_all: bool,
    wanted: &'a Wanted<'a>,
    kinds: Kinds,
    total: Digest,
    tasks: Vec<Task>,
    progress: &'a dyn Progress,
}

/// The objects to look at.
struct Targets<'a> {
    named: Vec<Target>,
    plain: PlainTargets<'a>,
}

impl<'a> Examined<'a> {
    fn level(&self) -> Level {
        self.tasks.iter().map(|task| task.level).max().unwrap_or(Level::Present)
    }

    fn is_selected(&self) -> bool {
        self.tasks.iter().any(|task| task.scope == Scope::Selected)
    }

    /// The objects to look at: all that the backup needs, or those that the wanted entries need.
    fn targets(
        &self,
        header: &Header,
        trailer: &Trailer,
        needs: &mut Needs,
    ) -> anyhow::Result<Targets<'a>> {
        let mut plain = PlainTargets::new(self.plain);
        for place in self.entries.places() {
            bk_manifest::signal::check()?;
            let (place, entry) = place?;
            let is_plain = entry.at.as_ref().is_some_and(|at| self.plain.at(at).is_some());
            if !self.wanted.has(&entry)? {
                continue;
            }
            if is_plain {
                plain.take(&entry, place, self.folders)?;
            } else if self.is_selected() || !Needs::is_clear(&entry) {
                needs.add(&entry);
            }
        }
        let needed = needed_objects(header, trailer, self.located.folder())?;
        let listed: HashSet<_> = needed
            .iter()
            .map(|object| (object.record.backup.clone(), object.record.object.clone()))
            .collect();
        needs.check(&listed)?;
        let is_due = |record: &bk_manifest::manifest::ObjectRecord| {
            !self.is_selected() || needs.has(record.backup.as_ref(), &record.object)
        };
        let named = needed
            .into_iter()
            .filter(|object| is_due(&object.record))
            .map(|object| Target {
                is_read: self.reads(object.record.backup.is_none()),
                name: object.name,
                record: object.record,
            })
            .collect();
        Ok(Targets { named, plain })
    }

    /// Whether the bytes of an object are to be read as a whole.
    fn reads(&self, is_own: bool) -> bool {
        self.tasks.iter().any(|task| task.reads(is_own))
    }

    /// The encrypted objects, where content is to be read.
    fn sealed(&self, header: &Header, trailer: &Trailer) -> anyhow::Result<Option<Sealed>> {
        if self.level() < Level::Content {
            return Ok(None);
        }
        let mut sealed = Sealed::new(header, trailer, self.located.folder())?;
        self.each_wanted(&mut |entry| sealed.want(entry))?;
        Ok(Some(sealed))
    }

    /// Hands every wanted entry to `sink`; reads the stored manifest where none were kept.
    fn each_wanted(
        &self,
        sink: &mut dyn FnMut(&Entry) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut one = |entry: &Entry| -> anyhow::Result<()> {
            bk_manifest::signal::check()?;
            if self.wanted.has(entry)? { sink(entry) } else { Ok(()) }
        };
        if self.has_all {
            return self.entries.iter().try_for_each(|entry| one(&entry?));
        }
        let stored = self.destination.read(&self.located.manifest().name, None)?;
        let mut reader = Reader::new(stored)?;
        while let Some(entry) = reader.next_entry()? {
            one(&entry)?;
        }
        Ok(())
    }

    fn check(
        &self,
        targets: Targets<'_>,
        sealed: Option<Sealed>,
        options: &Options,
        dumps: &dyn Dumps,
        findings: &mut Findings,
    ) -> anyhow::Result<(Checked, Vec<Case>)> {
        if let Some(problem) = problem(self.located) {
            findings.add(problem);
        } else if self.level() >= Level::Stored && !self.is_selected() {
            check::manifest(self.destination, self.located.manifest(), self.total, findings)?;
        }
        let Targets { named: targets, plain } = targets;
        let used: BTreeSet<&str> = targets
            .iter()
            .filter_map(|target| self.folders.folder(target.record.backup.as_deref()))
            .chain(plain.folders())
            .collect();
        let listed = check::list(self.destination, &used)?;
        check::present(&listed, &targets, findings)?;
        let mut names: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
        names.push(self.located.manifest().name.clone());
        let mut marked = MarkWarnings::read(self.destination, self.progress);
        for name in &names {
            marked.look(name);
        }
        let (read, bytes) = check::stored(self.destination, &targets, findings, self.progress)?;
        let looking = Looking {
            destination: self.destination,
            listed: &listed,
            entries: self.entries,
            reads: &|is_own| self.reads(is_own),
            reads_content: self.level() == Level::Content,
            progress: self.progress,
        };
        let looked = plain.check(&looking, &mut marked, findings)?;
        marked.end();
        let mut checked = Checked {
            objects: targets.len() as u64 + looked.objects,
            read: read + looked.read,
            bytes: bytes + looked.bytes,
            entries: 0,
        };
        let mut cases = None;
        if let Some(sealed) = sealed {
            check::accessible(self.destination, &targets)?;
            let objects = Objects::open(
                self.destination,
                sealed,
                &options.identities,
                &options.temporary,
                self.progress,
            )?;
            let content = Content {
                objects: &objects,
                folders: self.folders,
                plain: self.plain,
                dumps,
                kinds: &self.kinds,
                temporary: &options.temporary,
                progress: self.progress,
            };
            let outcome = content.read(self.entries, self.wanted, &looked.faulty, findings)?;
            checked.entries = outcome.entries;
            checked.bytes += outcome.bytes;
            if self.is_selected() && is_told_by_entry(self.wanted.selected) {
                let mut paths = Vec::new();
                self.each_wanted(&mut |entry| {
                    paths.push(entry.path.clone());
                    Ok(())
                })?;
                cases = Some(Case::of_paths(&paths, &outcome.damaged));
            }
        }
        names.extend(looked.into_names());
        let mut cases = cases.unwrap_or_else(|| Case::of_objects(&names, findings));
        Case::add_untold(&mut cases, findings);
        Ok((checked, cases))
    }

    /// Names what is lost. That this fails must not hide the damage itself.
    fn name_losses(&self, id: &str, findings: &mut Findings) {
        let has_read_content = self.level() == Level::Content;
        let named = loss::name_files(findings, self.folders, has_read_content, &mut |sink| {
            self.each_wanted(sink)
        })
        .and_then(|()| loss::name_backups(findings, self.destination, id, self.progress));
        if let Err(error) = named {
            self.progress.warn(&format!("cannot name all that the damage costs: {error:#}"));
        }
    }
}

/// The error that stands for what was found.
pub(crate) fn verdict(subject: &str, findings: &Findings, tasks: &[Task]) -> anyhow::Error {
    let exit = findings.exit();
    let what = match exit {
        Exit::Unmet | Exit::Denied => "could not be verified",
        _ => "is damaged",
    };
    let counts: Vec<String> =
        findings.counts().map(|(fault, count)| format!("{count} {}", fault.word())).collect();
    let mut failure = Failure::new(exit, format!("{subject} {what}: {}", counts.join(", ")));
    let is_of_bytes = findings.counts().any(|(f, _)| matches!(f, Fault::Size | Fault::Checksum));
    if is_of_bytes && tasks.iter().any(|task| task.level < Level::Content) {
        failure = failure.hint("--level content tells which files can still be read");
    }
    failure.into()
}

impl Checked {
    /// What was done, for a line to people.
    fn summary(&self) -> String {
        let mut parts = vec![format!("{} objects present", self.objects)];
        if self.read > 0 {
            parts.push(format!("{} read", self.read));
        }
        if self.entries > 0 {
            parts.push(format!("{} files decoded", self.entries));
        }
        if self.bytes > 0 {
            parts.push(human_bytes(self.bytes));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests;
