//! What is wrong: with which object or path, how, and what it costs.

use std::collections::BTreeMap;

use bk_manifest::exit::Exit;
use bk_manifest::path::RelPath;
use bk_manifest::progress::Progress;

/// Names that are kept of each list; the rest is counted.
pub const NAME_LIMIT: usize = 20;
/// Problems of single paths that are kept; the rest is counted.
const PATH_LIMIT: usize = 10_000;

/// How something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The stored manifest cannot be read.
    BadManifest,
    /// The stored manifest is not the one that came in.
    OtherManifest,
    /// It is not there.
    Missing,
    /// An object has another size.
    Size,
    /// An object's bytes do not have their checksum.
    Checksum,
    /// It is there but cannot be read.
    Unreadable,
    /// Content is not what the manifest says.
    Content,
    /// A dump cannot be read to its end.
    Dump,
    /// It is something else: a folder instead of a file.
    Type,
    /// Mode, owner, time or links differ.
    Metadata,
    /// Access was denied, so it could not be judged.
    Denied,
    /// The manifest has no checksum to judge it by.
    Unhashed,
    /// A dump could not be checked.
    Unchecked,
}

impl Fault {
    /// The word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Fault::BadManifest => "manifest-unreadable",
            Fault::OtherManifest => "manifest-differs",
            Fault::Missing => "missing",
            Fault::Size => "size",
            Fault::Checksum => "checksum",
            Fault::Unreadable => "unreadable",
            Fault::Content => "content",
            Fault::Dump => "dump",
            Fault::Type => "type",
            Fault::Metadata => "metadata",
            Fault::Denied => "denied",
            Fault::Unhashed => "not-hashed",
            Fault::Unchecked => "not-checked",
        }
    }

    /// How a verify ends because of it.
    pub fn exit(self) -> Exit {
        match self {
            Fault::BadManifest => Exit::Malformed,
            Fault::Denied => Exit::Denied,
            Fault::Unhashed | Fault::Unchecked => Exit::Unmet,
            _ => Exit::Damaged,
        }
    }
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An object, by its name at the destination.
    Object(String),
    /// The same, of one of the many that are one file each.
    Plain(String),
    /// A path of the manifest.
    Path(RelPath),
}

/// The first names of a list that may be long, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The first of them.
    pub first: Vec<RelPath>,
    /// All of them, counted.
    pub count: u64,
}

impl Names {
    /// Adds a name.
    pub fn add(&mut self, name: &RelPath) {
        self.count += 1;
        if self.first.len() < NAME_LIMIT {
            self.first.push(name.clone());
        }
    }

    /// How many are not among the first.
    pub fn more(&self) -> u64 {
        self.count - self.first.len() as u64
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How.
    pub fault: Fault,
    /// With what.
    pub subject: Subject,
    /// A phrase that goes behind the name: `has 3 bytes instead of 4`.
    pub detail: String,
    /// The files in an object that are lost with it.
    pub files: Names,
    /// Other backups that need the object.
    pub shared_with: Vec<String>,
}

impl Problem {
    fn new(fault: Fault, subject: Subject, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Problem { fault, subject, detail, files: Names::default(), shared_with: Vec::new() }
    }

    /// A problem of an object.
    pub fn of_object(fault: Fault, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Problem::new(fault, Subject::Object(name.into()), detail)
    }

    /// A problem of an object that is one file.
    pub fn of_plain(fault: Fault, name: &str, detail: impl Into<String>) -> Self {
        Problem::new(fault, Subject::Plain(name.to_owned()), detail)
    }

    /// A problem of a path.
    pub fn of_path(fault: Fault, path: &RelPath, detail: impl Into<String>) -> Self {
        Problem::new(fault, Subject::Path(path.clone()), detail)
    }

    /// The object's name, if it is about one.
    pub fn object(&self) -> Option<&str> {
        match &self.subject {
            Subject::Object(name) | Subject::Plain(name) => Some(name),
            Subject::Path(_) => None,
        }
    }

    /// Whether it is about something of which there may be millions.
    fn is_of_many(&self) -> bool {
        !matches!(self.subject, Subject::Object(_))
    }
}

/// All that is wrong, bounded: as many problems of objects as `objects` names, and the first
/// thousands of those of paths and of plain files.
#[derive(Debug, Default)]
pub struct Findings {
    problems: Vec<Problem>,
    counts: BTreeMap<Fault, u64>,
    /// Those of paths and of plain files, kept or not.
    many_counts: BTreeMap<Fault, u64>,
    kept_of_many: usize,
    omitted: u64,
}

impl Findings {
    /// Takes a problem.
    pub fn add(&mut self, problem: Problem) {
        if problem.is_of_many() {
            if self.kept_of_many == PATH_LIMIT {
                self.omit(problem.fault, 1);
                return;
            }
            *self.many_counts.entry(problem.fault).or_default() += 1;
            self.kept_of_many += 1;
        }
        *self.counts.entry(problem.fault).or_default() += 1;
        self.problems.push(problem);
    }

    /// Counts problems of paths or of plain files that are not kept.
    pub fn omit(&mut self, fault: Fault, count: u64) {
        *self.counts.entry(fault).or_default() += count;
        *self.many_counts.entry(fault).or_default() += count;
        self.omitted += count;
    }

    /// The problems that were kept.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The same, to be completed.
    pub fn problems_mut(&mut self) -> &mut [Problem] {
        &mut self.problems
    }

    /// The first problem of an object.
    pub fn of_object(&mut self, name: &str) -> Option<&mut Problem> {
        self.problems.iter_mut().find(|problem| problem.object() == Some(name))
    }

    /// How many more there were.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// How many there are of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (Fault, u64)> {
        self.counts.iter().map(|(fault, count)| (*fault, *count))
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How the verify ends: damage tells more than a manifest that is lost, and that more than what
    /// could not be judged.
    pub fn exit(&self) -> Exit {
        [Exit::Damaged, Exit::Malformed, Exit::Denied, Exit::Unmet]
            .into_iter()
            .find(|exit| self.counts.keys().any(|fault| fault.exit() == *exit))
            .unwrap_or(Exit::Done)
    }

    /// Says every problem in a line; of those of paths and of plain files the first of each kind.
    pub fn tell(&self, progress: &dyn Progress) {
        let mut told: BTreeMap<Fault, u64> = BTreeMap::new();
        for problem in &self.problems {
            if problem.is_of_many() {
                let told = told.entry(problem.fault).or_default();
                if *told == NAME_LIMIT as u64 {
                    continue;
                }
                *told += 1;
            }
            match &problem.subject {
                Subject::Object(name) | Subject::Plain(name) => {
                    progress.warn(&format!("object '{name}' {}", problem.detail));
                }
                Subject::Path(path) => progress.warn(&format!("'{path}' {}", problem.detail)),
            }
            for path in &problem.files.first {
                progress.warn(&format!("  affected: '{path}'"));
            }
            if problem.files.more() > 0 {
                progress.warn(&format!("  and {} more files in it", problem.files.more()));
            }
            if !problem.shared_with.is_empty() {
                let backups = problem.shared_with.join(", ");
                progress.warn(&format!("  also needed by: {backups}"));
            }
        }
        for (fault, count) in &self.many_counts {
            let more = count - told.get(fault).copied().unwrap_or_default().min(*count);
            if more > 0 {
                progress.warn(&format!("and {more} more: {}", fault.word()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_outweighs_what_could_not_be_judged() {
        let path = RelPath::new("a").unwrap();
        let mut findings = Findings::default();
        assert_eq!(findings.exit(), Exit::Done);
        for (fault, exit) in [
            (Fault::Unhashed, Exit::Unmet),
            (Fault::Denied, Exit::Denied),
            (Fault::BadManifest, Exit::Malformed),
            (Fault::Metadata, Exit::Damaged),
            (Fault::Unchecked, Exit::Damaged),
        ] {
            findings.add(Problem::of_path(fault, &path, ""));
            assert_eq!(findings.exit(), exit);
        }
    }

    #[test]
    fn long_lists_are_counted_not_kept() {
        let path = RelPath::new("a").unwrap();
        let mut findings = Findings::default();
        let mut names = Names::default();
        for number in 0..PATH_LIMIT + 5 {
            findings.add(match number % 2 {
                0 => Problem::of_path(Fault::Missing, &path, ""),
                _ => Problem::of_plain(Fault::Missing, "o", ""),
            });
            names.add(&path);
        }
        assert_eq!((findings.problems().len(), findings.omitted()), (PATH_LIMIT, 5));
        assert_eq!(
            findings.counts().collect::<Vec<_>>(),
            [(Fault::Missing, PATH_LIMIT as u64 + 5)]
        );
        // A volume is kept whatever else is lost.
        findings.add(Problem::of_object(Fault::Missing, "volume", ""));
        assert_eq!(findings.problems().len(), PATH_LIMIT + 1);
        assert_eq!((names.first.len(), names.more()), (NAME_LIMIT, PATH_LIMIT as u64 + 5 - 20));
    }
}
