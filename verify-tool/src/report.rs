//! What was found, for machines: a JSON or `JUnit` file.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bk_manifest::atomic::{self, Existing};
use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::path::{RelPath, plain_text, to_base64};
use bk_manifest::progress::Progress;
use bk_manifest::time::Time;
use serde_json::{Map, Value, json};

use crate::junit;
use crate::level::Task;
use crate::problem::{Fault, Findings, Names, Problem, Subject};
use crate::strangers::Strangers;
use crate::verify::Options;

/// Up to so many entries have a test case each.
const CASE_LIMIT: u64 = 10_000;

/// The form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// One JSON object.
    Json,
    /// What CI servers read.
    Junit,
}

/// A report that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFile {
    /// Its form.
    pub format: ReportFormat,
    /// Where it goes.
    pub file: PathBuf,
}

impl std::str::FromStr for ReportFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, file) = text.split_once('=').ok_or("a report is json=FILE or junit=FILE")?;
        let format = match format {
            "json" => ReportFormat::Json,
            "junit" => ReportFormat::Junit,
            _ => return Err("a report is json=FILE or junit=FILE".into()),
        };
        if file.is_empty() || file.ends_with('/') {
            return Err("the report's file has no name".into());
        }
        Ok(ReportFile { format, file: file.into() })
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Objects whose presence was checked.
    pub objects: u64,
    /// Of them those whose bytes were read.
    pub read: u64,
    /// Entries that were decoded, or compared.
    pub entries: u64,
    /// Bytes that were read or decoded.
    pub bytes: u64,
}

/// A test case: something that is good or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What was tested.
    pub name: String,
    /// How it failed.
    pub failure: Option<Failed>,
}

/// How a test case failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// A word for the kind.
    pub kind: &'static str,
    /// Whether it was judged at all.
    pub is_judged: bool,
    /// What is wrong.
    pub detail: String,
}

/// Whether a fault is known damage, and not merely something that could not be looked at.
fn is_judged(fault: Fault) -> bool {
    !matches!(fault.exit(), Exit::Unmet | Exit::Denied)
}

impl Failed {
    fn new(problem: &Problem) -> Self {
        let mut detail = problem.detail.clone();
        for path in &problem.files.first {
            // A string takes everything that is written to it.
            let _ = write!(detail, "\naffected: '{path}'");
        }
        if problem.files.more() > 0 {
            let _ = write!(detail, "\nand {} more", problem.files.more());
        }
        Failed { kind: problem.fault.word(), is_judged: is_judged(problem.fault), detail }
    }
}

impl Case {
    /// One for each object.
    pub fn of_objects(names: &[impl AsRef<str>], findings: &Findings) -> Vec<Case> {
        let failed: HashMap<&str, &Problem> = findings
            .problems()
            .iter()
            .rev()
            .filter_map(|problem| Some((problem.object()?, problem)))
            .collect();
        names
            .iter()
            .map(|name| Case {
                name: name.as_ref().to_owned(),
                failure: failed.get(name.as_ref()).map(|problem| Failed::new(problem)),
            })
            .collect()
    }

    /// One for each entry.
    pub fn of_paths(paths: &[RelPath], damaged: &[(RelPath, Fault, String)]) -> Vec<Case> {
        let failed: HashMap<&RelPath, (Fault, &String)> =
            damaged.iter().map(|(path, fault, detail)| (path, (*fault, detail))).collect();
        paths
            .iter()
            .map(|path| Case {
                name: path.to_string(),
                failure: failed.get(path).map(|(fault, detail)| Failed {
                    kind: fault.word(),
                    is_judged: is_judged(*fault),
                    detail: (*detail).clone(),
                }),
            })
            .collect()
    }

    /// One for each path that was compared with a folder.
    pub fn of_compared(paths: &[RelPath], findings: &Findings) -> Vec<Case> {
        let failed: HashMap<&RelPath, &Problem> = findings
            .problems()
            .iter()
            .rev()
            .filter_map(|problem| match &problem.subject {
                Subject::Path(path) => Some((path, problem)),
                Subject::Object(_) | Subject::Plain(_) => None,
            })
            .collect();
        paths
            .iter()
            .map(|path| Case {
                name: path.to_string(),
                failure: failed.get(path).map(|problem| Failed::new(problem)),
            })
            .collect()
    }

    /// Adds one for each problem that none of them tells of: a report must not look good where the
    /// verdict is not.
    pub fn add_untold(cases: &mut Vec<Case>, findings: &Findings) {
        let told: HashSet<String> = cases
            .iter()
            .filter(|case| case.failure.is_some())
            .map(|case| case.name.clone())
            .collect();
        let untold = findings.problems().iter().zip(Case::of_problems(findings)).filter(
            |(problem, case)| {
                let is_told_by_file =
                    || problem.files.first.iter().any(|path| told.contains(&path.to_string()));
                !told.contains(&case.name) && !is_told_by_file()
            },
        );
        cases.extend(untold.map(|(_, case)| case));
    }

    /// One for each problem that was kept.
    pub fn of_problems(findings: &Findings) -> Vec<Case> {
        findings
            .problems()
            .iter()
            .map(|problem| Case {
                name: match &problem.subject {
                    Subject::Object(name) | Subject::Plain(name) => name.clone(),
                    Subject::Path(path) => path.to_string(),
                },
                failure: Some(Failed::new(problem)),
            })
            .collect()
    }
}

/// Whether so many entries get a test case each.
pub fn is_told_by_entry(entries: u64) -> bool {
    entries < CASE_LIMIT
}

/// All that a report says.
pub struct Report<'a> {
    /// The backup's id.
    pub backup: &'a str,
    /// Its manifest's sum.
    pub total_checksum: Digest,
    /// What was to be proved; none in a comparison with a folder.
    pub tasks: &'a [Task],
    /// When the checks began; those of a folder, when they ended.
    pub now: Time,
    /// What was asked for.
    pub options: &'a Options,
    /// How much was looked at.
    pub checked: &'a Checked,
    /// What is wrong.
    pub findings: &'a Findings,
    /// Test cases for `JUnit`.
    pub cases: Vec<Case>,
    /// What a folder holds that the manifest does not.
    pub strangers: Option<&'a Strangers>,
}

impl Report<'_> {
    /// Writes the reports. Where damage was found, one that cannot be written is only a warning:
    /// the damage must be told.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_all(&self, files: &[ReportFile], progress: &dyn Progress) -> anyhow::Result<()> {
        for ReportFile { format, file } in files {
            let text = match format {
                ReportFormat::Json => self.json().to_string() + "\n",
                ReportFormat::Junit => junit::document(self),
            };
            let written = write(file, text.as_bytes())
                .with_context(|| format!("cannot write the report '{}'", file.display()));
            match written {
                Err(error) if !self.findings.is_empty() => progress.warn(&format!("{error:#}")),
                written => written?,
            }
        }
        Ok(())
    }

    /// The level of the first task.
    pub fn level(&self) -> &'static str {
        self.tasks.first().map_or("against", |task| task.level.word())
    }

    /// The scope of the first task.
    pub fn scope(&self) -> &'static str {
        match self.tasks.first() {
            Some(task) => task.scope.word(),
            None if self.options.selection.is_all() => "all",
            None => "selected",
        }
    }

    fn verdict(&self) -> &'static str {
        match self.findings.exit() {
            Exit::Done => "good",
            Exit::Unmet | Exit::Denied => "unproved",
            _ => "damaged",
        }
    }

    fn json(&self) -> Value {
        let mut report = json!({
            "backup": self.backup,
            "total_checksum": self.total_checksum,
            "level": self.level(),
            "scope": self.scope(),
            "asked": self.tasks.iter().map(|task| json!({
                "level": task.level.word(),
                "scope": task.scope.word(),
            })).collect::<Vec<_>>(),
            "time": self.now,
            "host": self.options.host,
            "checked": {
                "objects": self.checked.objects,
                "read": self.checked.read,
                "entries": self.checked.entries,
                "bytes": self.checked.bytes,
            },
            "problems": self.findings.problems().iter().map(problem_json).collect::<Vec<_>>(),
            "problems_omitted": self.findings.omitted(),
            "verdict": self.verdict(),
        });
        if let Some(strangers) = self.strangers {
            report["strangers"] =
                json!({ "count": strangers.names.count, "files": names_json(&strangers.names) });
        }
        report
    }
}

fn problem_json(problem: &Problem) -> Value {
    let mut map = Map::new();
    map.insert("kind".into(), problem.fault.word().into());
    match &problem.subject {
        Subject::Object(name) | Subject::Plain(name) => {
            map.insert("object".into(), name.as_str().into());
        }
        Subject::Path(path) => match plain_text(path.as_bytes()) {
            Some(text) => {
                map.insert("path".into(), text.into());
            }
            None => {
                map.insert("path_b64".into(), to_base64(path.as_bytes()).into());
            }
        },
    }
    map.insert("detail".into(), problem.detail.as_str().into());
    if problem.object().is_some() {
        map.insert("files".into(), names_json(&problem.files));
        map.insert("files_count".into(), problem.files.count.into());
        map.insert("shared_with".into(), json!(problem.shared_with));
    }
    map.into()
}

/// Names as strings; one that is not plain text as `{"path_b64": …}`.
fn names_json(names: &Names) -> Value {
    let name = |path: &RelPath| match plain_text(path.as_bytes()) {
        Some(text) => json!(text),
        None => json!({ "path_b64": to_base64(path.as_bytes()) }),
    };
    names.first.iter().map(name).collect::<Vec<_>>().into()
}

/// Removes what an earlier run has reported: a run that fails must not leave its predecessor's verdict.
///
/// # Errors
/// [`Exit::Usage`] for a report that would replace a device, a pipe or a folder.
pub fn clear(files: &[ReportFile]) -> anyhow::Result<()> {
    for ReportFile { file, .. } in files {
        let shown = file.display();
        match std::fs::symlink_metadata(file) {
            Ok(metadata) if metadata.is_file() => std::fs::remove_file(file)
                .with_context(|| format!("cannot remove the old report '{shown}'"))?,
            Ok(_) => {
                return Err(fail(Exit::Usage, format!("the report '{shown}' is no regular file")));
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// Writes a file whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = std::path::absolute(file)?;
    Ok(atomic::create(&file, bytes, 0o600, Existing::Replace)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;
    use crate::sample::{CHILD, PARENT, Sample, VOLUME, at_level, options};
    use bk_manifest::select::Selection;
    use std::os::unix::fs::PermissionsExt;

    fn reports(folder: &Path) -> Vec<ReportFile> {
        let file = |format, name: &str| ReportFile { format, file: folder.join(name) };
        vec![file(ReportFormat::Json, "r.json"), file(ReportFormat::Junit, "r.xml")]
    }

    fn read_json(folder: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("r.json")).unwrap()).unwrap()
    }

    #[test]
    fn a_report_is_asked_for_by_form_and_file() {
        let parse = |text: &str| text.parse::<ReportFile>();
        let file = "a=b.xml".into();
        assert_eq!(parse("junit=a=b.xml"), Ok(ReportFile { format: ReportFormat::Junit, file }));
        for bad in ["x", "json", "json=", "xml=a", "json=a/"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_good_verify_is_reported() {
        let sample = Sample::new();
        let folder = tempfile::tempdir().unwrap();
        let options = Options { reports: reports(folder.path()), ..at_level(Level::Content) };
        sample.verify_child(&options).result.unwrap();
        let report = read_json(folder.path());
        assert_eq!(report["backup"], CHILD);
        assert_eq!((&report["level"], &report["scope"]), (&json!("content"), &json!("all")));
        assert_eq!(report["verdict"], "good");
        assert_eq!(report["problems"], json!([]));
        assert_eq!(
            (&report["checked"]["objects"], &report["checked"]["entries"]),
            (&json!(3), &json!(5))
        );
        let mode = std::fs::metadata(folder.path().join("r.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn damage_is_reported_with_what_it_costs() {
        let sample = Sample::new();
        sample.alter(&sample.parent, VOLUME, |bytes| bytes.truncate(9));
        let folder = tempfile::tempdir().unwrap();
        let options = Options { reports: reports(folder.path()), ..at_level(Level::Present) };
        assert_eq!(sample.verify_child(&options).exit(), Exit::Damaged);
        let report = read_json(folder.path());
        assert_eq!(report["verdict"], "damaged");
        let problem = &report["problems"][0];
        assert_eq!(problem["kind"], "size");
        assert_eq!(problem["object"], format!("{}/{VOLUME}", sample.parent.folder));
        assert_eq!(problem["files"], json!(["a.txt", "b/beta", "big"]));
        assert_eq!(problem["shared_with"], json!([PARENT]));
        let xml = std::fs::read_to_string(folder.path().join("r.xml")).unwrap();
        // Three objects and the manifest.
        assert!(xml.contains("tests=\"4\" failures=\"1\" errors=\"0\""), "{xml}");
        assert!(xml.contains("<failure type=\"size\" message=\"has 9 bytes instead of"), "{xml}");
    }

    #[test]
    fn selected_content_has_a_case_for_each_entry() {
        let sample = Sample::new();
        let folder = tempfile::tempdir().unwrap();
        let selection = Selection::new(&["{a*,b}"], &[]).unwrap();
        let reports = reports(folder.path());
        let options = Options { reports, selection, level: Some(Level::Content), ..options() };
        sample.verify_child(&options).result.unwrap();
        let xml = std::fs::read_to_string(folder.path().join("r.xml")).unwrap();
        assert!(xml.contains("tests=\"2\" failures=\"0\""), "{xml}");
        assert!(xml.contains("name=\"b/beta\""), "{xml}");
    }

    #[test]
    fn a_case_that_could_not_be_judged_is_no_failure() {
        let paths: Vec<RelPath> = ["a", "b", "c"].map(|name| RelPath::new(name).unwrap()).into();
        let damaged = [
            (paths[0].clone(), Fault::Unchecked, "no room".to_owned()),
            (paths[1].clone(), Fault::Dump, "no dump".to_owned()),
        ];
        let cases = Case::of_paths(&paths, &damaged).into_iter().map(|case| case.failure);
        let found: Vec<_> = cases.map(|f| f.map(|f| (f.kind, f.is_judged))).collect();
        let unchecked = (Fault::Unchecked.word(), false);
        assert_eq!(found, [Some(unchecked), Some((Fault::Dump.word(), true)), None]);
    }

    #[test]
    fn names_that_are_not_text_are_encoded() {
        let mut names = Names::default();
        names.add(&RelPath::new(&b"a\n"[..]).unwrap());
        names.add(&RelPath::new("b").unwrap());
        assert_eq!(names_json(&names), json!([{ "path_b64": "YQo=" }, "b"]));
    }
}
