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
use bk_push::destination::Destination;
use bk_push::locate::{Located, locate};
use bk_push::store::Store;

use crate::check::{self, Target};
use crate::content::Content;
use crate::dumps::{Dumps, Kinds};
use crate::level::{Level, Scope, Task, tasks};
use crate::locate::problem;
use crate::loss;
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
    /// The folder for temporary copies of dumps.
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
    check_selection(&options.selection, intake.wanted.selected, &trailer)?;
    let entries = intake.spool.take().map(Spool::finish).transpose()?;

    let total = trailer.total_checksum().context("the document has no total_checksum")?;
    let located = locate(store, &header.run()?, &backup.id, total)?;
    let folders = Folders::new(&header, located.folder())?;
    let is_behind_push = trailer.run()?.pushed.is_some_and(|pushed| pushed.id == backup.id);
    let subject = Examined {
        destination: &*store.destination,
        located: &located,
        folders: &folders,
        entries: entries.as_ref(),
        wanted: &intake.wanted,
        kinds: Kinds::new(trailer.components()?),
        total,
        tasks: tasks(options.level, options.selection.is_all(), is_behind_push),
        progress,
    };
    let targets = subject.targets(&header, &trailer, &mut intake.needs)?;
    let mut findings = Findings::default();
    let (checked, cases) = subject.check(&targets, options, dumps, &mut findings)?;
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

/// Refuses a selection that selected nothing: it would prove nothing and look good.
pub(crate) fn check_selection(
    selection: &Selection,
    selected: u64,
    trailer: &Trailer,
) -> anyhow::Result<()> {
    if selection.is_all() || selected > 0 {
        return Ok(());
    }
    let names: Vec<String> =
        trailer.components()?.into_iter().map(|component| component.name).collect();
    Err(Failure::new(Exit::NotFound, "nothing in the backup matches --path and --component")
        .hint(format!("its components: {}", names.join(", ")))
        .into())
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
    /// All of them, where they will be looked at again.
    spool: Option<Spool>,
    is_all: bool,
}

impl<'a> Intake<'a> {
    fn new(options: &'a Options) -> anyhow::Result<Self> {
        let is_all = options.selection.is_all();
        let keeps = !is_all || options.level == Some(Level::Content);
        Ok(Intake {
            wanted: Wanted::new(&options.selection),
            needs: Needs::default(),
            spool: if keeps { Some(Spool::new()?) } else { None },
            is_all,
        })
    }

    fn take(&mut self, entry: &Entry) -> anyhow::Result<()> {
        self.wanted.pass(entry)?;
        if self.is_all {
            self.needs.add(entry);
        }
        if let Some(spool) = &mut self.spool {
            spool.push(entry)?;
        }
        Ok(())
    }
}

/// The backup that is verified, and how.
struct Examined<'a> {
    destination: &'a dyn Destination,
    located: &'a Located,
    folders: &'a Folders,
    entries: Option<&'a Entries>,
    wanted: &'a Wanted<'a>,
    kinds: Kinds,
    total: Digest,
    tasks: Vec<Task>,
    progress: &'a dyn Progress,
}

impl Examined<'_> {
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
    ) -> anyhow::Result<Vec<Target>> {
        if self.is_selected() {
            self.each_wanted(&mut |entry| {
                needs.add(entry);
                Ok(())
            })?;
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
        let reads = |is_own| self.tasks.iter().any(|task| task.reads(is_own));
        Ok(needed
            .into_iter()
            .filter(|object| is_due(&object.record))
            .map(|object| Target {
                is_read: reads(object.record.backup.is_none()),
                name: object.name,
                record: object.record,
            })
            .collect())
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
        if let Some(entries) = self.entries {
            return entries.iter().try_for_each(|entry| one(&entry?));
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
        targets: &[Target],
        options: &Options,
        dumps: &dyn Dumps,
        findings: &mut Findings,
    ) -> anyhow::Result<(Checked, Vec<Case>)> {
        if let Some(problem) = problem(self.located) {
            findings.add(problem);
        } else if self.level() >= Level::Stored && !self.is_selected() {
            check::manifest(self.destination, self.located.manifest(), self.total, findings)?;
        }
        let used: BTreeSet<&str> = targets
            .iter()
            .filter_map(|target| self.folders.folder(target.record.backup.as_deref()))
            .collect();
        check::present(self.destination, &used, targets, findings)?;
        let mut names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        names.push(&self.located.manifest().name);
        check::warn_of_marks(self.destination, &names, self.progress);
        let (read, mut bytes) = check::stored(self.destination, targets, findings, self.progress)?;
        let mut checked = Checked { objects: targets.len() as u64, read, ..Checked::default() };
        let mut cases = None;
        if self.level() == Level::Content
            && let Some(entries) = self.entries
        {
            check::accessible(self.destination, targets)?;
            let content = Content {
                destination: self.destination,
                folders: self.folders,
                dumps,
                kinds: &self.kinds,
                temporary: &options.temporary,
                progress: self.progress,
            };
            let outcome = content.read(entries, self.wanted, findings)?;
            checked.entries = outcome.entries;
            bytes += outcome.bytes;
            if self.is_selected() && is_told_by_entry(self.wanted.selected) {
                let mut paths = Vec::new();
                self.each_wanted(&mut |entry| {
                    paths.push(entry.path.clone());
                    Ok(())
                })?;
                cases = Some(Case::of_paths(&paths, &outcome.damaged));
            }
        }
        checked.bytes = bytes;
        let cases = cases.unwrap_or_else(|| Case::of_objects(&names, findings));
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
mod tests {
    use super::*;
    use crate::sample::{CHILD, DUMP, PARENT, Ran, Sample, VOLUME, at_level, options};
    use bk_manifest::manifest::{EndRun, Run};
    use std::fs;

    const LEVELS: [Level; 3] = [Level::Present, Level::Stored, Level::Content];

    fn assert_damaged(ran: &Ran) {
        assert_eq!(ran.exit(), Exit::Damaged, "{:?}", ran.result);
        assert!(!ran.is_ended(), "the document was ended on damage");
    }

    fn selected(level: Level, pattern: &str) -> Options {
        let selection = Selection::new(&[pattern], &[]).unwrap();
        Options { level: Some(level), selection, ..options() }
    }

    #[test]
    fn a_good_backup_is_good_at_each_level_and_passed_on() {
        let sample = Sample::new();
        for level in LEVELS {
            let document = sample.child.stored();
            let ran = sample.verify(&document, &at_level(level));
            assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.result);
            let before = Reader::new(&document[..]).unwrap().end().unwrap();
            let after = Reader::new(&ran.output[..]).unwrap().end().unwrap();
            assert_eq!(after.1.stored(), before.1.stored());
            assert_eq!(ran.proofs(), [(level.word().to_owned(), "all".to_owned())]);
        }
    }

    #[test]
    fn behind_its_push_two_things_are_proved() {
        let sample = Sample::new();
        let pushed = sample.child.pushed(&sample);
        let proofs = sample.verify(&pushed, &options()).proofs();
        let expected = [("present", "all"), ("stored", "own")];
        assert_eq!(proofs, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        // The push of another backup says nothing about this one.
        let other = Some(bk_manifest::manifest::Pushed { id: PARENT.into(), ..Default::default() });
        let document =
            sample.child.document(&Run::default(), &EndRun { pushed: other, ..EndRun::default() });
        let proofs = sample.verify(&document, &options()).proofs();
        assert_eq!(proofs, [("stored".to_owned(), "all".to_owned())]);
    }

    #[test]
    fn behind_its_push_own_objects_are_read_and_inherited_ones_are_not() {
        let sample = Sample::new();
        let pushed = sample.child.pushed(&sample);
        sample.alter(&sample.parent, VOLUME, |bytes| bytes[100] ^= 1);
        assert_eq!(sample.verify(&pushed, &options()).exit(), Exit::Done);
        sample.alter(&sample.child, VOLUME, |bytes| bytes[20] ^= 1);
        assert_damaged(&sample.verify(&pushed, &options()));
    }

    #[test]
    fn the_code_that_came_in_is_carried_on() {
        let sample = Sample::new();
        let end = EndRun { code: 3, ..EndRun::default() };
        let document = sample.child.document(&Run::default(), &end);
        let ran = sample.verify(&document, &options());
        assert_eq!(ran.exit(), Exit::Partial);
        let (_, trailer) = Reader::new(&ran.output[..]).unwrap().end().unwrap();
        assert_eq!(trailer.exit().unwrap(), Exit::Partial);
    }

    #[test]
    fn every_kind_of_damage_to_a_volume_is_found() {
        type Damage = fn(&Sample);
        let damages: [(&str, Damage, Level); 5] = [
            ("missing", |s| fs::remove_file(s.file(&s.child, VOLUME)).unwrap(), Level::Present),
            ("truncated", |s| s.alter(&s.child, VOLUME, |b| b.truncate(10)), Level::Present),
            ("grown", |s| s.alter(&s.child, VOLUME, |b| b.push(0)), Level::Present),
            ("flipped", |s| s.alter(&s.child, VOLUME, |b| b[0] ^= 1), Level::Stored),
            (
                "swapped",
                |s| {
                    let other = fs::read(s.file(&s.parent, VOLUME)).unwrap();
                    s.alter(&s.child, VOLUME, |b| {
                        let length = b.len();
                        b.copy_from_slice(&other[..length]);
                    });
                },
                Level::Stored,
            ),
        ];
        for (name, damage, found_at) in damages {
            let sample = Sample::new();
            damage(&sample);
            for level in LEVELS {
                let ran = sample.verify_child(&at_level(level));
                if level < found_at {
                    assert_eq!(ran.exit(), Exit::Done, "{name} at {level:?}");
                    continue;
                }
                assert_damaged(&ran);
                let object = format!("{}/{VOLUME}", sample.child.folder);
                assert!(ran.has_said(&object), "{name} at {level:?}: {:?}", ran.said);
                // What was only grown can be read to the last file.
                let is_whole = name == "grown" && level == Level::Content;
                let expected = if is_whole { "could be read" } else { "'c/new'" };
                assert!(ran.has_said(expected), "{name} at {level:?}: {:?}", ran.said);
                assert!(!ran.has_said("'a.txt'"), "{name} at {level:?}: {:?}", ran.said);
            }
        }
    }

    #[test]
    fn damage_of_an_inherited_object_names_the_backups_that_share_it() {
        let sample = Sample::new();
        sample.alter(&sample.parent, VOLUME, |bytes| bytes[100] ^= 1);
        let ran = sample.verify_child(&at_level(Level::Stored));
        assert_damaged(&ran);
        assert!(ran.has_said(&format!("{}/{VOLUME}", sample.parent.folder)));
        assert!(ran.has_said(&format!("also needed by: {PARENT}")), "{:?}", ran.said);
        for file in ["'a.txt'", "'b/beta'", "'big'"] {
            assert!(ran.has_said(file), "{:?}", ran.said);
        }
        let ran = sample.verify(&sample.parent.stored(), &at_level(Level::Stored));
        assert!(ran.has_said(&format!("also needed by: {CHILD}")), "{:?}", ran.said);
    }

    #[test]
    fn content_tells_which_files_are_lost_in_a_damaged_volume() {
        let sample = Sample::new();
        // The last frame is that of the large file; the small ones before it are whole.
        sample.alter(&sample.parent, VOLUME, |bytes| {
            let near_end = bytes.len() - 1000;
            bytes[near_end] ^= 1;
        });
        let ran = sample.verify_child(&at_level(Level::Content));
        assert_damaged(&ran);
        assert!(ran.has_said("'big'") && !ran.has_said("'a.txt'"), "{:?}", ran.said);
    }

    #[test]
    fn a_wrong_range_or_skip_is_found_by_content_alone() {
        let sample = Sample::new();
        let mut made = Sample::new().parent;
        for (field, object) in [("skip", "a.txt"), ("offset", "big")] {
            let at = made.entries.iter_mut().find(|e| e.path.to_string() == object).unwrap();
            let at = at.at.as_mut().unwrap();
            match field {
                "skip" => at.skip = Some(500),
                _ => at.offset = at.offset.map(|offset| offset + 3),
            }
        }
        let stored = sample.folder.path().join(&made.folder).join("manifest.json");
        crate::sample::replace(&stored, &made.stored());
        assert_eq!(sample.verify(&made.stored(), &at_level(Level::Stored)).exit(), Exit::Done);
        let ran = sample.verify(&made.stored(), &at_level(Level::Content));
        assert_damaged(&ran);
        assert!(ran.has_said("'a.txt'") && ran.has_said("'big'"), "{:?}", ran.said);
        assert!(!ran.has_said("'b/beta'"), "{:?}", ran.said);
    }

    #[test]
    fn a_dump_is_checked_to_its_end() {
        let short = Sample::with_dump(b"rows");
        assert_eq!(short.verify_child(&at_level(Level::Stored)).exit(), Exit::Done);
        let ran = short.verify_child(&at_level(Level::Content));
        assert_damaged(&ran);
        assert!(ran.has_said("it ends early") && ran.has_said(DUMP), "{:?}", ran.said);
        let unknown = Sample::with_dump(b"rows UNKNOWN");
        let ran = unknown.verify_child(&at_level(Level::Content));
        assert_eq!(ran.exit(), Exit::Unmet, "{:?}", ran.result);
        assert!(!ran.is_ended());
    }

    #[test]
    fn a_selection_looks_at_what_it_needs_only() {
        let sample = Sample::new();
        fs::remove_file(sample.file(&sample.child, VOLUME)).unwrap();
        for level in LEVELS {
            let ran = sample.verify_child(&selected(level, "b"));
            assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.result);
            assert_eq!(ran.proofs(), [(level.word().to_owned(), "selected".to_owned())]);
            assert_damaged(&sample.verify_child(&selected(level, "c/**")));
        }
        assert_eq!(sample.verify_child(&selected(Level::Present, "x")).exit(), Exit::NotFound);
        let database = Selection::new::<&str>(&[], &["database".into()]).unwrap();
        let options = Options { level: None, selection: database, ..options() };
        assert_eq!(sample.verify_child(&options).exit(), Exit::Done);
    }

    #[test]
    fn a_bad_document_proves_nothing() {
        let sample = Sample::new();
        let document = sample.child.stored();
        let cut = sample.verify(&document[..document.len() - 20], &options());
        assert_eq!(cut.exit(), Exit::Malformed);
        assert!(!cut.is_ended());
        let mut unlisted = Sample::new().child;
        unlisted.trailer.set("objects", serde_json::json!([]));
        let manifest = sample.file(&sample.child, "manifest.json");
        crate::sample::replace(&manifest, &unlisted.stored());
        let ran = sample.verify(&unlisted.stored(), &options());
        assert_eq!(ran.exit(), Exit::Malformed, "{:?}", ran.result);
    }

    #[test]
    fn what_prune_has_marked_is_a_warning() {
        let sample = Sample::new();
        let object = format!("{}/{VOLUME}", sample.parent.folder);
        let mark = bk_push::mark::Mark { objects: vec![object.clone()], ..Default::default() };
        let text = serde_json::to_string(&mark_json(&mark)).unwrap();
        sample
            .store
            .destination
            .create(".bk/marks/20260501T000000Z-00000000.json", text.as_bytes())
            .unwrap();
        let ran = sample.verify_child(&options());
        assert_eq!(ran.exit(), Exit::Done);
        assert!(ran.has_said(&format!("'{object}' is marked")), "{:?}", ran.said);
    }

    fn mark_json(mark: &bk_push::mark::Mark) -> serde_json::Value {
        serde_json::json!({
            "host": mark.host, "series": mark.series, "backups": mark.backups,
            "manifests": mark.manifests, "objects": mark.objects,
        })
    }
}
