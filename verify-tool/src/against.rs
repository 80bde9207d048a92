//! Compares the manifest with a folder: what was restored, or what was to be backed up.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use bk_manifest::beneath::{Cursor, Root};
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::exit::{Exit, fail};
use bk_manifest::path::{OWN_FOLDER, RelPath};
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::stream::{Format, Reader, Writer};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use rustix::fs::{AtFlags, FileType, statat};

use crate::compare::{Comparing, Rules};
use crate::problem::{Findings, Problem};
use crate::report::{Case, Checked, Report, is_told_by_entry};
use crate::strangers::{Known, Strangers};
use crate::verify::{Options, end, the_backup, verdict};

/// Entries that are compared at once.
const BATCH: usize = 1024;

/// Compares the entries of the document with what lies in `folder`, and passes the document on.
///
/// # Errors
/// [`Exit::Damaged`] if something is missing or differs, [`Exit::Unmet`] if something could not be
/// judged, with the reports written; then the document is not ended.
pub fn against(
    mut reader: Reader<'_>,
    output: impl Write,
    folder: &Path,
    options: &Options,
    rules: Rules,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let root = Root::open(folder).map_err(|error| {
        let exit = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Denied,
            _ => Exit::NotFound,
        };
        fail(exit, format!("cannot open '{}': {error}", folder.display()))
    })?;
    let backup = the_backup(reader.header())?;
    let mut writer = Writer::new(output, Format::Json, reader.header().clone())?;
    let rules = Rules { reads_links: !options.selection.is_all(), ..rules };
    let bytes = AtomicU64::new(0);
    let mut comparison = Comparison {
        comparing: Comparing { rules, bytes: &bytes, progress },
        has_own: has_own_folder(&root),
        root: &root,
        known: options.selection.is_all().then(Known::default),
        batch: Vec::new(),
        findings: Findings::default(),
        compared: 0,
        paths: Vec::new(),
        passed_over: 0,
    };
    progress.begin("comparing", None);
    let (mut selected, mut has_owner) = (0, false);
    let mut unseen = options.selection.unseen();
    while let Some(entry) = reader.next_entry()? {
        bk_manifest::signal::check()?;
        writer.entry(&entry)?;
        has_owner |= entry.owner.is_some();
        let is_selected = options.selection.matches(&entry);
        if is_selected {
            selected += 1;
            unseen.see(&entry);
        }
        comparison.take(entry, is_selected)?;
    }
    comparison.flush()?;
    progress.end();
    let (_, trailer) = reader.end()?;
    let exit = trailer.exit()?;
    unseen.check(&trailer)?;
    let total = trailer.total_checksum().context("the document has no total_checksum")?;
    if has_owner && rules.metadata && !rules.owners {
        progress.note("owners are not compared: only root can set them");
    }
    let strangers = comparison.strangers(progress)?;
    let Comparison { findings, compared, paths, .. } = comparison;
    if compared == 0 && selected > 0 {
        let message =
            format!("nothing that was selected is compared: '{}' has no .bk", folder.display());
        return Err(fail(Exit::NotFound, message));
    }
    let checked = Checked { entries: compared, bytes: bytes.into_inner(), ..Checked::default() };
    let report = Report {
        backup: &backup.id,
        total_checksum: total,
        tasks: &[],
        now: (options.clock)(),
        options,
        checked: &checked,
        findings: &findings,
        cases: cases(compared, &paths, &findings),
        strangers: strangers.as_ref(),
    };
    report.write_all(&options.reports, progress)?;
    findings.tell(progress);
    if !findings.is_empty() {
        let subject = format!("'{}', compared with {},", folder.display(), backup.id);
        return Err(verdict(&subject, &findings, &[]));
    }
    end(writer, trailer, total)?;
    progress.note(&format!(
        "'{}' is what {} says: {} entries, {}",
        folder.display(),
        backup.id,
        checked.entries,
        human_bytes(checked.bytes)
    ));
    Ok(exit)
}

fn has_own_folder(root: &Root) -> bool {
    statat(root.as_fd(), OWN_FOLDER, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// A case for each entry while they are few, else one for all and one for each problem.
fn cases(compared: u64, paths: &[RelPath], findings: &Findings) -> Vec<Case> {
    if is_told_by_entry(compared) {
        return Case::of_compared(paths, findings);
    }
    let mut cases = Case::of_problems(findings);
    if cases.is_empty() {
        cases.push(Case { name: format!("{compared} entries"), failure: None });
    }
    cases
}

struct Comparison<'a> {
    comparing: Comparing<'a>,
    root: &'a Root,
    /// Whether the folder holds dumps, or could.
    has_own: bool,
    /// The manifest's paths, where strangers are looked for.
    known: Option<Known>,
    batch: Vec<Entry>,
    findings: Findings,
    compared: u64,
    /// The paths that were compared, while they are few.
    paths: Vec<RelPath>,
    /// Entries of `.bk/` where the folder has none.
    passed_over: u64,
}

impl Comparison<'_> {
    fn take(&mut self, entry: Entry, is_selected: bool) -> anyhow::Result<()> {
        if let Some(known) = &mut self.known {
            known.add(&entry.path)?;
        }
        if !is_selected {
            return Ok(());
        }
        if entry.path.is_own() && !self.has_own {
            self.passed_over += 1;
            return Ok(());
        }
        self.compared += 1;
        if is_told_by_entry(self.compared) {
            self.paths.push(entry.path.clone());
        }
        self.batch.push(entry);
        if self.batch.len() < BATCH { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let (root, comparing) = (self.root, &self.comparing);
        let compare = |cursor: &mut Cursor<'_>, entry: &Entry| {
            let problems = comparing.compare(cursor, entry);
            comparing.progress.advance(0, u64::from(entry.kind == Kind::File));
            problems
        };
        let problems: Vec<Vec<Problem>> = self
            .batch
            .par_iter()
            .map_init(|| Cursor::new(root), compare)
            .collect::<std::io::Result<_>>()?;
        for problem in problems.into_iter().flatten() {
            self.findings.add(problem);
        }
        self.batch.clear();
        Ok(())
    }

    /// Looks for strangers, and says what else was seen.
    fn strangers(&mut self, progress: &dyn Progress) -> anyhow::Result<Option<Strangers>> {
        if self.passed_over > 0 {
            let count = self.passed_over;
            progress.note(&format!("not compared, as the folder has no .bk: {count} entries"));
        }
        let Some(known) = &self.known else { return Ok(None) };
        let strangers = Strangers::find(self.root, known)?;
        for path in &strangers.names.first {
            progress.note(&format!("not in the manifest: '{path}'"));
        }
        if strangers.names.more() > 0 {
            progress.note(&format!("and {} more that are not", strangers.names.more()));
        }
        for path in &strangers.unread.first {
            progress.note(&format!("cannot look into '{path}' for more"));
        }
        Ok(Some(strangers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Heard, Ran, options, path, replace};
    use bk_manifest::digest::Digest;
    use bk_manifest::manifest::{Application, Backup, Header, Run, Trailer};
    use bk_manifest::select::Selection;
    use bk_manifest::time::Time;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use tempfile::TempDir;

    const RULES: Rules = Rules { metadata: true, owners: true, reads_links: false };

    /// A tree of every kind, and the entries that describe it.
    fn tree() -> (TempDir, Vec<Entry>) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("d/e")).unwrap();
        for (name, content) in [("d/e/one", "one"), ("d/first", "same"), ("z", "")] {
            replace(&at(name), content.as_bytes());
        }
        fs::hard_link(at("d/first"), at("d/second")).unwrap();
        symlink("../nowhere", at("d/link")).unwrap();
        let mut entries = Vec::new();
        for name in ["d", "d/e", "d/e/one", "d/first", "d/link", "d/second", "z"] {
            entries.push(describe(folder.path(), name));
        }
        (folder, entries)
    }

    fn describe(folder: &Path, name: &str) -> Entry {
        let metadata = fs::symlink_metadata(folder.join(name)).unwrap();
        let mut entry = Entry::new(path(name));
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap();
        entry.mtime = Some(Time::from_unix(metadata.mtime(), nanoseconds));
        entry.mode = Some(metadata.mode() & 0o7777);
        entry.owner = Some((metadata.uid(), metadata.gid()));
        if metadata.is_dir() {
            entry.kind = Kind::Directory;
        } else if metadata.is_symlink() {
            entry.kind = Kind::Symlink(b"../nowhere".to_vec());
        } else {
            let content = fs::read(folder.join(name)).unwrap();
            entry.checksum = Some(Digest::of(&content));
            entry.size = Some(content.len() as u64);
        }
        if name == "d/second" {
            entry.kind = Kind::Hardlink(path("d/first"));
            entry.size = None;
        }
        entry
    }

    fn document(entries: &[Entry]) -> Vec<u8> {
        let backup = Backup {
            id: "backup-1".into(),
            timestamp: "2026-04-28T00:00:00.000Z".into(),
            ..Backup::default()
        };
        let header = Header::new(&Application::default(), Some(&backup), &Run::default());
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        for entry in entries {
            writer.entry(entry).unwrap();
        }
        writer.end(Trailer::default()).unwrap().0
    }

    fn compare(folder: &Path, entries: &[Entry], rules: Rules, options: &Options) -> Ran {
        let document = document(entries);
        let (mut output, heard) = (Vec::new(), Heard::default());
        let reader = Reader::new(&document[..]).unwrap();
        let result = against(reader, &mut output, folder, options, rules, &heard);
        Ran { result, output, said: heard.0.into_inner().unwrap() }
    }

    /// Changes a tree and expects this exit code and line.
    fn expect(change: impl FnOnce(&Path), exit: Exit, line: &str) {
        let (folder, entries) = tree();
        change(folder.path());
        let ran = compare(folder.path(), &entries, RULES, &options());
        assert_eq!(ran.exit(), exit, "{line}: {:?}", ran.said);
        assert_eq!(ran.is_ended(), exit == Exit::Done, "{line}");
        assert!(ran.has_said(line), "{line}: {:?}", ran.said);
    }

    #[test]
    fn a_tree_is_what_its_manifest_says() {
        expect(|_| {}, Exit::Done, "7 entries");
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        expect(|at| fs::remove_file(at.join("z")).unwrap(), Exit::Damaged, "'z' is missing");
        expect(|at| replace(&at.join("z"), b"more"), Exit::Damaged, "'z' has 4 bytes instead of 0");
        expect(
            |at| replace(&at.join("d/e/one"), b"eno"),
            Exit::Damaged,
            "'d/e/one' has other content",
        );
        expect(
            |at| fs::set_permissions(at.join("z"), fs::Permissions::from_mode(0o640)).unwrap(),
            Exit::Damaged,
            "'z' has mode 0640 instead of 0600",
        );
        expect(
            |at| {
                let file = fs::File::options().write(true).open(at.join("z")).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            },
            Exit::Damaged,
            "'z' was changed at 1970-01-01T00:00:00Z instead of",
        );
        expect(
            |at| {
                fs::remove_file(at.join("d/link")).unwrap();
                symlink("else\n", at.join("d/link")).unwrap();
            },
            Exit::Damaged,
            "'d/link' points to 'else\\n' instead of '../nowhere'",
        );
        expect(
            |at| {
                fs::remove_file(at.join("d/second")).unwrap();
                replace(&at.join("d/second"), b"same");
            },
            Exit::Damaged,
            "'d/second' is no hard link to 'd/first'",
        );
        expect(
            |at| {
                fs::remove_file(at.join("z")).unwrap();
                fs::create_dir(at.join("z")).unwrap();
            },
            Exit::Damaged,
            "'z' is a folder instead of a file",
        );
    }

    #[test]
    fn links_that_stand_in_the_place_of_folders_are_not_followed() {
        let elsewhere = tempfile::tempdir().unwrap();
        expect(
            |at| {
                fs::rename(at.join("d/e"), elsewhere.path().join("e")).unwrap();
                symlink(elsewhere.path().join("e"), at.join("d/e")).unwrap();
            },
            Exit::Damaged,
            "'d/e/one' is missing: something else",
        );
    }

    #[test]
    fn metadata_can_be_ignored_and_owners_need_root() {
        let (folder, mut entries) = tree();
        entries[6].mode = Some(0o777);
        entries[3].owner = Some((12345, 12345));
        let lax = Rules { metadata: false, ..RULES };
        assert_eq!(compare(folder.path(), &entries, lax, &options()).exit(), Exit::Done);
        let ran = compare(folder.path(), &entries, RULES, &options());
        assert!(ran.has_said("instead of 12345:12345"), "{:?}", ran.said);
        entries[6].mode = Some(0o600);
        let unprivileged = Rules { owners: false, ..RULES };
        let ran = compare(folder.path(), &entries, unprivileged, &options());
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.said);
        assert_eq!(ran.said.iter().filter(|line| line.contains("owners are not")).count(), 1);
    }

    #[test]
    fn what_has_no_checksum_is_not_judged() {
        let (folder, mut entries) = tree();
        entries[2].checksum = None;
        let ran = compare(folder.path(), &entries, RULES, &options());
        assert_eq!(ran.exit(), Exit::Unmet);
        assert!(ran.has_said("'d/e/one' has no checksum"), "{:?}", ran.said);
    }

    #[test]
    fn strangers_are_named_and_are_no_failure() {
        let (folder, entries) = tree();
        let at = |name: &str| folder.path().join(name);
        let times = fs::metadata(at("d")).unwrap().modified().unwrap();
        replace(&at("d/stranger"), b"");
        fs::File::open(at("d")).unwrap().set_modified(times).unwrap();
        fs::create_dir_all(at("strange/below")).unwrap();
        fs::create_dir_all(at(".bk-replaced-20260101T000000Z/x")).unwrap();
        fs::create_dir_all(at(".bk")).unwrap();
        replace(&at(".bk/fetched.json"), b"{}");
        replace(&at(".bk/odd"), b"");
        let ran = compare(folder.path(), &entries, RULES, &options());
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.said);
        let mut strangers: Vec<_> =
            ran.said.iter().filter_map(|line| line.strip_prefix("not in the manifest: ")).collect();
        strangers.sort_unstable();
        assert_eq!(strangers, ["'.bk/odd'", "'d/stranger'", "'strange'"]);
    }

    #[test]
    fn dumps_are_compared_where_they_are() {
        let (folder, mut entries) = tree();
        let mut dump = Entry::new(path(".bk/database/app.dump"));
        dump.set_content(Digest::of(b"rows"), 4);
        entries.push(dump);
        let ran = compare(folder.path(), &entries, RULES, &options());
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.said);
        assert!(ran.has_said("the folder has no .bk: 1 entries"), "{:?}", ran.said);
        fs::create_dir_all(folder.path().join(".bk/database")).unwrap();
        assert_eq!(compare(folder.path(), &entries, RULES, &options()).exit(), Exit::Damaged);
        replace(&folder.path().join(".bk/database/app.dump"), b"rows");
        assert_eq!(compare(folder.path(), &entries, RULES, &options()).exit(), Exit::Done);
    }

    #[test]
    fn a_selection_compares_what_it_names_only() {
        let (folder, entries) = tree();
        fs::remove_file(folder.path().join("z")).unwrap();
        replace(&folder.path().join("stranger"), b"");
        let selection = Selection::new(&["d/e"], &[]).unwrap();
        let ran = compare(folder.path(), &entries, RULES, &Options { selection, ..options() });
        assert_eq!(ran.exit(), Exit::Done, "{:?}", ran.said);
        assert!(!ran.has_said("stranger"), "{:?}", ran.said);
        let selection = Selection::new(&["nothing"], &[]).unwrap();
        let ran = compare(folder.path(), &entries, RULES, &Options { selection, ..options() });
        assert_eq!(ran.exit(), Exit::NotFound);
    }

    #[test]
    fn a_selected_hard_link_is_read_although_its_first_name_is_not() {
        let (folder, entries) = tree();
        let first = fs::File::options().write(true).open(folder.path().join("d/first")).unwrap();
        (&first).write_all(b"emas").unwrap();
        let selection = Selection::new(&["d/second"], &[]).unwrap();
        let lax = Rules { metadata: false, ..RULES };
        let ran = compare(folder.path(), &entries, lax, &Options { selection, ..options() });
        assert!(ran.has_said("'d/second' has other content"), "{:?}", ran.said);
    }
}
