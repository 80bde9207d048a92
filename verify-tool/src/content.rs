//! Decodes files and compares them with their checksums; reads dumps to their end.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, RwLock};

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, classify};
use bk_manifest::path::RelPath;
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::spool::Entries;
use bk_push::catalog::Folders;
use bk_push::decrypt::Objects;
use bk_push::plain::PlainFiles;
use bk_push::read::{Damage, Plan, Receive};
use tempfile::NamedTempFile;

use crate::dump_folders::DumpFolders;
use crate::dumps::{DumpName, Dumps, Kinds};
use crate::plain::Faulty;
use crate::problem::{Fault, Findings, Names, Problem};
use crate::room::Room;
use crate::wanted::Wanted;

/// Damaged entries, and plain files, that are remembered one by one.
pub const ENTRY_LIMIT: usize = 10_000;

/// What content is read with.
pub struct Content<'a> {
    /// Where the objects are.
    pub objects: &'a Objects<'a>,
    /// Where the manifest's folders are.
    pub folders: &'a Folders,
    /// Which of the objects are plain files.
    pub plain: &'a PlainFiles,
    /// What checks dumps.
    pub dumps: &'a dyn Dumps,
    /// What the components are.
    pub kinds: &'a Kinds,
    /// The folder for temporary copies of dumps.
    pub temporary: &'a Path,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

/// What reading the content came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Entries that were decoded and hashed.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first of those that are damaged, and how.
    pub damaged: Vec<(RelPath, Fault, String)>,
    /// What is wrong in each object.
    objects: BTreeMap<String, Loss>,
    /// How many of `objects` are plain files.
    plain: usize,
    /// More of these, which are not remembered.
    omitted: BTreeMap<Fault, u64>,
}

#[derive(Debug)]
struct Loss {
    fault: Fault,
    detail: String,
    files: Names,
    is_plain: bool,
}

impl Content<'_> {
    /// Reads all wanted entries; those in objects that are missing count as damaged, and so do those
    /// in plain files that are faulty.
    ///
    /// # Errors
    /// Denied access, a full disk under the temporary files, being stopped; damage goes into
    /// `findings`.
    pub fn read(
        &self,
        entries: &Entries,
        wanted: &Wanted<'_>,
        faulty: &Faulty,
        findings: &mut Findings,
    ) -> anyhow::Result<Outcome> {
        let missing: HashSet<String> = findings
            .problems()
            .iter()
            .filter(|problem| problem.fault == Fault::Missing)
            .filter_map(|problem| problem.object().map(str::to_owned))
            .collect();
        let mut outcome = Outcome::default();
        let mut plan = Plan::default();
        let (mut total, mut has_dumps) = (0, false);
        let (mut folders, mut wanted_files) = (DumpFolders::default(), BTreeMap::new());
        for place in entries.places() {
            bk_manifest::signal::check()?;
            let (start, entry) = place?;
            let folder = entry.path.parent().filter(|_| entry.is_file());
            let folder = folder.and_then(|path| {
                let dump = self.kinds.folder(&entry, &path, self.dumps)?;
                folders.expect(path.clone(), dump, &entry);
                Some(path)
            });
            if !entry.is_file() || !wanted.has(&entry)? {
                continue;
            }
            let Some(at) = &entry.at else {
                // Without a place it is empty: the manifest was checked for that.
                if entry.checksum.is_some_and(|checksum| checksum != Digest::of(b"")) {
                    let detail = "is empty, but has another checksum";
                    outcome.name(&entry, Fault::Content, detail);
                    findings.add(Problem::of_path(Fault::Content, &entry.path, detail));
                }
                continue;
            };
            let object = self.folders.object(at.backup.as_deref(), &at.object)?;
            if self.plain.at(at).is_some() {
                // Its files were named when it was looked at.
                if let Some(fault) = faulty.get(&object)? {
                    outcome.name(&entry, fault, "is lost with its object");
                    continue;
                }
            } else if missing.contains(&object) {
                outcome.damage(&entry, (object, false), Fault::Missing, "is missing");
                continue;
            }
            has_dumps |= self.dump(&entry).is_some();
            if let Some(folder) = folder {
                *wanted_files.entry(folder).or_insert(0) += 1;
            }
            total += entry.size.unwrap_or(0);
            plan.push(self.folders, at, start)?;
        }
        let mut folders = folders.wanted_whole(&wanted_files);
        let needs_room = has_dumps || !folders.is_empty();
        let room = if needs_room { Some(Room::new(self.temporary)?) } else { None };
        if let Some(room) = &room {
            for (entry, bytes) in folders.make_room(room)? {
                outcome.damage(
                    &entry,
                    self.object(&entry)?,
                    Fault::Unchecked,
                    &self.no_room(bytes),
                );
            }
        }
        self.progress.begin("reading files", Some(total));
        let folders = RwLock::new(folders);
        let judge = Judge { content: self, room, folders, outcome: Mutex::new(outcome) };
        plan.run(self.objects, entries, &judge)?;
        judge.check_folders()?;
        self.progress.end();
        let mut outcome = judge.outcome.into_inner().unwrap_or_default();
        for (object, loss) in std::mem::take(&mut outcome.objects) {
            if loss.is_plain {
                let mut problem = Problem::of_plain(loss.fault, &object, loss.detail);
                problem.files = loss.files;
                findings.add(problem);
            } else if let Some(known) = findings.of_object(&object) {
                known.files = loss.files;
            } else {
                let mut problem = Problem::of_object(loss.fault, object, loss.detail);
                problem.files = loss.files;
                findings.add(problem);
            }
        }
        for (fault, count) in std::mem::take(&mut outcome.omitted) {
            findings.omit(fault, count);
        }
        for problem in findings.problems_mut() {
            let is_of_bytes = matches!(problem.fault, Fault::Size | Fault::Checksum);
            if is_of_bytes && problem.files.count == 0 {
                problem.detail.push_str(", but all files asked for could be read");
            }
        }
        outcome.damaged.sort();
        Ok(outcome)
    }

    fn dump<'e>(&'e self, entry: &'e Entry) -> Option<DumpName<'e>> {
        self.kinds.dump(entry, self.dumps)
    }

    fn no_room(&self, bytes: u64) -> String {
        format!(
            "could not be checked to its end: no room for {} in '{}' (set TMPDIR)",
            human_bytes(bytes),
            self.temporary.display()
        )
    }

    /// The object of an entry, and whether it is a plain file.
    fn object(&self, entry: &Entry) -> anyhow::Result<(String, bool)> {
        let at = entry.at.as_ref().context("an entry without a place")?;
        let name = self.folders.object(at.backup.as_deref(), &at.object)?;
        Ok((name, self.plain.at(at).is_some()))
    }
}

impl Outcome {
    fn name(&mut self, entry: &Entry, fault: Fault, detail: &str) {
        if self.damaged.len() < ENTRY_LIMIT {
            self.damaged.push((entry.path.clone(), fault, detail.to_owned()));
        }
    }

    fn damage(&mut self, entry: &Entry, object: (String, bool), fault: Fault, detail: &str) {
        self.name(entry, fault, detail);
        let (object, is_plain) = object;
        if is_plain && !self.objects.contains_key(&object) {
            if self.plain == ENTRY_LIMIT {
                *self.omitted.entry(fault).or_default() += 1;
                return;
            }
            self.plain += 1;
        }
        let loss = self.objects.entry(object).or_insert_with(|| Loss {
            is_plain,
            fault,
            detail: match fault {
                Fault::Missing => detail.to_owned(),
                Fault::Unchecked => format!("holds '{}', which {detail}", entry.path),
                _ => format!("is damaged: '{}' {detail}", entry.path),
            },
            files: Names::default(),
        });
        // What was judged outweighs what could not be.
        if loss.fault == Fault::Unchecked && fault != Fault::Unchecked {
            loss.fault = fault;
            loss.detail = format!("is damaged: '{}' {detail}", entry.path);
        }
        loss.files.add(&entry.path);
    }
}

/// Takes content as it is decoded.
struct Judge<'a> {
    content: &'a Content<'a>,
    room: Option<Room>,
    folders: RwLock<DumpFolders>,
    outcome: Mutex<Outcome>,
}

/// Where the bytes of an entry go, while the reading hashes them.
enum Output<'a> {
    /// Nowhere.
    Hashed(&'a dyn Progress),
    /// Into a file that will be checked as a dump.
    Dump(NamedTempFile, &'a dyn Progress),
    /// Into a folder that will be checked as a dump.
    Part(File, &'a dyn Progress),
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (written, progress) = match self {
            Output::Hashed(progress) => (bytes.len(), progress),
            Output::Dump(file, progress) => (file.write(bytes)?, progress),
            Output::Part(file, progress) => (file.write(bytes)?, progress),
        };
        progress.advance(written as u64, 0);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Judge<'_> {
    fn damage(&self, entry: &Entry, fault: Fault, detail: &str) -> anyhow::Result<()> {
        let object = self.content.object(entry)?;
        if let Ok(mut outcome) = self.outcome.lock() {
            outcome.damage(entry, object, fault, detail);
        }
        Ok(())
    }

    /// Reads a dump to its end; what is wrong with it is put down to `entry`.
    fn check(&self, dump: DumpName<'_>, path: &Path, entry: &Entry) -> anyhow::Result<()> {
        let Err(error) = self.content.dumps.check(dump, path) else { return Ok(()) };
        bk_manifest::signal::check()?;
        // The copy's own name tells nobody anything.
        let copy = format!("'{}': ", path.display());
        let why = format!("{error:#}").replace(&copy, "");
        if classify(&error) == Exit::Damaged {
            let detail = format!("is no dump that could be restored: {why}");
            self.damage(entry, Fault::Dump, &detail)
        } else {
            let detail = format!("could not be checked to its end: {why}");
            self.damage(entry, Fault::Unchecked, &detail)
        }
    }

    /// Reads the dumps that are folders to their ends.
    fn check_folders(&self) -> anyhow::Result<()> {
        let Ok(folders) = self.folders.read() else { return Ok(()) };
        for folder in folders.complete() {
            self.check(folder.dump(), folder.place()?, folder.first())?;
        }
        Ok(())
    }
}

impl<'a> Receive for Judge<'a> {
    type Output = Output<'a>;

    fn begin(&self, entry: &Entry) -> anyhow::Result<Option<Output<'a>>> {
        let progress = self.content.progress;
        let folders = self.folders.read().ok();
        if let Some(file) = folders.map(|folders| folders.create(entry)).transpose()?.flatten() {
            return Ok(Some(Output::Part(file, progress)));
        }
        let is_dump = self.content.dump(entry).is_some();
        let Some(room) = self.room.as_ref().filter(|_| is_dump) else {
            return Ok(Some(Output::Hashed(progress)));
        };
        let size = entry.size.unwrap_or(0);
        if room.take(size) {
            return Ok(Some(Output::Dump(room.file()?, progress)));
        }
        self.damage(entry, Fault::Unchecked, &self.content.no_room(size))?;
        Ok(Some(Output::Hashed(progress)))
    }

    fn end(
        &self,
        entry: &Entry,
        output: Output<'a>,
        damage: Option<&Damage>,
    ) -> anyhow::Result<()> {
        if let Some(damage) = damage {
            let fault = if damage.is_refused { Fault::Unchecked } else { Fault::Content };
            self.damage(entry, fault, &damage.detail)?;
        } else if let Output::Dump(file, _) = &output
            && let Some(dump) = self.content.dump(entry)
        {
            self.check(dump, file.path(), entry)?;
        } else if let (Output::Part(..), Ok(mut folders)) = (&output, self.folders.write()) {
            folders.have(entry);
        }
        if let (Output::Dump(..), Some(room)) = (&output, &self.room) {
            room.give_back(entry.size.unwrap_or(0));
        }
        self.content.progress.advance(0, 1);
        if let Ok(mut outcome) = self.outcome.lock() {
            outcome.entries += 1;
            outcome.bytes += entry.size.unwrap_or(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bk_manifest::digest::Digest;
    use bk_manifest::entry::Entry;
    use bk_manifest::exit::Exit;
    use bk_manifest::select::Selection;

    use super::{ENTRY_LIMIT, Outcome};
    use crate::level::Level;
    use crate::problem::Fault;
    use crate::report::{ReportFile, ReportFormat};
    use crate::sample::{Sample, VOLUME, at_level, noise, path, volume};
    use crate::verify::Options;

    #[test]
    fn copies_of_a_large_file_are_read_whole() {
        // They lie in the same few bytes, and decode to more than is kept in memory.
        let zeros = vec![0; 70 << 20];
        let (bytes, mut entries) = volume(&[&[("zeros", &zeros)]]);
        let mut copy = entries[0].clone();
        copy.path = path("zeros2");
        entries.push(copy);
        let sample = Sample::with_volume(&bytes, entries);
        let ran = sample.verify(&sample.parent.stored(), &at_level(Level::Content));
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.said);
    }

    #[test]
    fn files_before_the_damage_in_a_shared_frame_are_not_lost() {
        let noise = noise(600_000);
        let (first, second) = noise.split_at(300_000);
        let (bytes, entries) = volume(&[&[("first", first), ("second", second)]]);
        let sample = Sample::with_volume(&bytes, entries);
        sample.alter(&sample.parent, VOLUME, |bytes| bytes.truncate(500_000));
        let ran = sample.verify(&sample.parent.stored(), &at_level(Level::Content));
        assert_eq!(ran.exit(), Exit::Damaged);
        assert!(ran.has_said("'second'") && !ran.has_said("'first'"), "{:?}", ran.said);
    }

    #[test]
    fn an_empty_file_with_another_checksum_fails_in_every_report() {
        let (bytes, mut entries) = volume(&[&[("a", b"x")]]);
        let mut empty = Entry::new(path("empty"));
        empty.set_content(Digest::of(b"something"), 0);
        entries.push(empty);
        let sample = Sample::with_volume(&bytes, entries);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.xml");
        let reports = vec![ReportFile { format: ReportFormat::Junit, file: file.clone() }];
        // All of it: the volume and the manifest are good.
        for (patterns, tests) in [(&["empty"][..], 1), (&[], 3)] {
            let selection = Selection::new(patterns, &[]).unwrap();
            let reports = reports.clone();
            let options = Options { selection, reports, ..at_level(Level::Content) };
            let ran = sample.verify(&sample.parent.stored(), &options);
            assert_eq!(ran.exit(), Exit::Damaged, "{:?}", ran.said);
            let xml = std::fs::read_to_string(&file).unwrap();
            assert!(xml.contains(&format!("tests=\"{tests}\" failures=\"1\"")), "{xml}");
        }
    }

    #[test]
    fn a_damaged_object_whose_files_are_whole_fails_in_every_report() {
        let (mut bytes, entries) = volume(&[&[("a", b"x")], &[("b", b"y")]]);
        bytes.extend_from_slice(b"tail");
        let sample = Sample::with_volume(&bytes, entries);
        sample.alter(&sample.parent, VOLUME, |bytes| bytes.truncate(bytes.len() - 1));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.xml");
        let reports = vec![ReportFile { format: ReportFormat::Junit, file: file.clone() }];
        let selection = Selection::new(&["a"], &[]).unwrap();
        let options = Options { selection, reports, ..at_level(Level::Content) };
        let ran = sample.verify(&sample.parent.stored(), &options);
        assert_eq!(ran.exit(), Exit::Damaged, "{:?}", ran.said);
        let xml = std::fs::read_to_string(file).unwrap();
        assert!(xml.contains("tests=\"2\" failures=\"1\""), "{xml}");
    }

    #[test]
    fn however_many_are_damaged_few_are_kept() {
        let mut outcome = Outcome::default();
        for number in 0..=ENTRY_LIMIT {
            let entry = Entry::new(path(&number.to_string()));
            outcome.name(&entry, Fault::Content, "is empty, but has another checksum");
        }
        assert_eq!(outcome.damaged.len(), ENTRY_LIMIT);
    }

    #[test]
    fn without_a_temporary_folder_nothing_is_proved() {
        let sample = Sample::new();
        let options = at_level(Level::Content);
        let nowhere = std::path::PathBuf::from("/no/such/folder");
        let ran = sample.verify_child(&Options { temporary: nowhere, ..options });
        assert_eq!(ran.exit(), Exit::Failed, "{:?}", ran.result);
        assert!(!ran.is_ended());
    }
}
