//! What stands around the entries: the header before them and the trailer behind them.
//!
//! Both keep every member as it came, in its order, so that a step passes on what it does not know;
//! the types below are views of the members that bk itself reads and writes.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::exit::Exit;
use crate::left_out::LeftOut;
use crate::path::{BadPath, RelPath};
pub use crate::run::{
    EndRun, HostPath, Layout, ParentFile, Proof, Pushed, Run, Source, SourceKind, is_within,
};
use crate::stream::Error;
use crate::time::Time;

/// The format that this version writes.
pub const VERSION: &str = "2.0";
/// Top-level members before `files`, in their order.
pub const HEADER_ORDER: [&str; 6] =
    ["version", "generator", "application", "backup", "chain", "run"];
/// Top-level members behind `files`, in their order.
pub const TRAILER_ORDER: [&str; 5] =
    ["components", "database", "objects", "left_out", "verification"];

/// Top-level members on one side of `files`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members(Vec<(String, Value)>);

impl Members {
    /// Appends a member that was read.
    pub(crate) fn push(&mut self, name: String, value: Value) {
        self.0.push((name, value));
    }

    /// The member's value.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Refuses members that belong to the other side of `files`, and known ones out of order.
    pub(crate) fn check_order(&self, order: &[&str], other: &[&str]) -> Result<(), Error> {
        let mut last = None;
        for (name, _) in self.iter() {
            if name == "files" || other.contains(&name) {
                let message = format!("'{name}' stands on the wrong side of the entries");
                return Err(Error::Malformed(message));
            }
            let rank = order.iter().position(|known| *known == name);
            if rank.is_some() && rank < last {
                return Err(Error::Malformed(format!("'{name}' stands too late")));
            }
            last = rank.or(last);
        }
        Ok(())
    }

    /// Replaces a member, or puts it where the order has it.
    fn set(&mut self, order: &[&str], name: &str, value: Value) {
        if let Some(known) = self.0.iter_mut().find(|(known, _)| known == name) {
            known.1 = value;
            return;
        }
        let rank = |name: &str| order.iter().position(|known| *known == name);
        let place =
            self.0.iter().position(|(known, _)| rank(known) > rank(name)).unwrap_or(self.0.len());
        self.0.insert(place, (name.to_owned(), value));
    }

    fn view<T: for<'de> Deserialize<'de> + Default>(&self, name: &str) -> Result<T, Error> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(T::default()),
            Some(value) => T::deserialize(value)
                .map_err(|error| Error::Malformed(format!("'{name}' is malformed: {error}"))),
        }
    }
}

/// The name and version of the application that is backed up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Its name, the first part of the series.
    pub name: String,
    /// Its version, if known.
    pub version: Option<String>,
}

/// Which backup this is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// `backup-YYYYMMDD-HHMMSS-` and eight hexadecimal digits, in UTC.
    pub id: String,
    /// `full` or `incremental`; what was stored decides, so it is absent before push.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The backup whose entries unchanged files were taken from.
    pub parent_backup_id: Option<String>,
    /// When it began, RFC 3339 with milliseconds.
    pub timestamp: String,
    /// Name of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The second part of the series, for several of one application.
    pub series: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Backup {
    /// When it began.
    ///
    /// # Errors
    /// If the manifest's text is no time.
    pub fn time(&self) -> Result<Time, Error> {
        self.timestamp.parse().map_err(|_| {
            Error::Malformed(format!(
                "'backup.timestamp' cannot be '{}'",
                self.timestamp.escape_debug()
            ))
        })
    }
}

/// The field of a partial component that says how many of its files were there and could not be
/// stored.
pub const MISSING: &str = "missing";

/// A component's record: one database, tree, archive or bucket of a backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Its name, unique in the backup.
    pub name: String,
    /// `tree`, `archive`, `postgresql`, `sqlite`, …
    pub kind: String,
    /// Whether all of it is there.
    pub status: Status,
    /// What its kind records beyond that.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Whether all of a component is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All that was to be backed up.
    Complete,
    /// Something was unreadable or changed while it was read; `left_out` says what.
    Partial,
    /// Not backed up, as configured: `reason` says why. Neither data nor a fault.
    Skipped,
}

/// A stored file that the backup needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// The backup whose folder holds it; `None` is this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// SHA-256 of it as stored.
    pub checksum: Digest,
    /// The program that opens it: `age` or `gpg`; `None` is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// How many of its content bytes this backup refers to.
    pub live: u64,
    /// Its name in that folder.
    pub object: String,
    /// Bytes as stored.
    pub size: u64,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The files of one component that lie in one backup's folder as an object each: `<component>/…`.
///
/// One line for all of them, so that headers and trailers stay small: entries name them one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlainRecord {
    /// The backup whose folder holds them; `None` is this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// The component that they were stored for, which is the folder that they lie in.
    pub component: String,
    /// How many entries of this backup refer to them.
    pub count: u64,
    /// The program that opens them: `age` or `gpg`; `None` is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// The content bytes of these entries.
    pub size: u64,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What the last lines of `files` say about its entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Number of entries.
    pub count: u64,
    /// Sum of their sizes, in bytes.
    pub size: u64,
    /// The sum over blocks of 1,024 entries (DESIGN 4).
    pub checksum: Option<Digest>,
    /// Fields that this version does not know.
    pub extra: Map<String, Value>,
}

/// What stands before the entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header(pub Members);

impl Header {
    /// The header that begins a pipe.
    pub fn new(application: &Application, backup: Option<&Backup>, run: &Run) -> Self {
        let mut header = Header::default();
        let generator = concat!("bk ", env!("CARGO_PKG_VERSION"));
        for (name, value) in [
            ("version", json!(VERSION)),
            ("generator", json!(generator)),
            ("application", json!(application)),
            ("backup", json!(backup)),
        ] {
            header.set(name, value);
        }
        header.set_run(run);
        header
    }

    /// Replaces a member or adds it in its place.
    pub fn set(&mut self, name: &str, value: Value) {
        self.0.set(&HEADER_ORDER, name, value);
    }

    /// Name and version of the application.
    ///
    /// # Errors
    /// If the member is malformed, as all views.
    pub fn application(&self) -> Result<Application, Error> {
        self.0.view("application")
    }

    /// Which backup it is; `None` for the empty document that stands for "no backup yet".
    ///
    /// # Errors
    /// If the member is malformed, or its id could not be one.
    pub fn backup(&self) -> Result<Option<Backup>, Error> {
        let backup: Option<Backup> = self.0.view("backup")?;
        if let Some(backup) = &backup
            && !is_name(&backup.id)
        {
            return Err(Error::Malformed(format!(
                "'backup.id' cannot be '{}'",
                backup.id.escape_debug()
            )));
        }
        Ok(backup)
    }

    /// The backup, where a document must describe one.
    ///
    /// # Errors
    /// If it describes none.
    pub fn the_backup(&self) -> Result<Backup, Error> {
        self.backup()?.ok_or_else(|| Error::Malformed("the manifest describes no backup".into()))
    }

    /// The series that it belongs to: application name, and `/series` if it has one.
    ///
    /// # Errors
    /// If the members are malformed.
    pub fn series(&self) -> Result<String, Error> {
        let name = self.application()?.name;
        Ok(match self.backup()?.and_then(|backup| backup.series) {
            Some(series) => format!("{name}/{series}"),
            None => name,
        })
    }

    /// Where the backups referred to lie, relative to this manifest's folder.
    ///
    /// # Errors
    /// If the member is malformed.
    pub fn chain(&self) -> Result<BTreeMap<String, String>, Error> {
        let chain: BTreeMap<String, String> = self.0.view("chain")?;
        for (id, folder) in &chain {
            let mut parts = folder.split('/').skip_while(|part| matches!(*part, "." | ".."));
            let leads_out = parts.any(|part| part == "..");
            if !is_name(id) || leads_out || folder.starts_with('/') || folder.contains('\0') {
                return Err(Error::Malformed(format!(
                    "'chain' cannot hold '{}': '{}'",
                    id.escape_debug(),
                    folder.escape_debug()
                )));
            }
        }
        Ok(chain)
    }

    /// Facts of this run.
    ///
    /// # Errors
    /// If the member is malformed.
    pub fn run(&self) -> Result<Run, Error> {
        self.0.view("run")
    }

    /// Replaces the facts of this run.
    pub fn set_run(&mut self, run: &Run) {
        self.set("run", json!(run));
    }

    /// The header as it is stored: without what is true of this run only.
    #[must_use]
    pub fn stored(&self) -> Header {
        Header(Members(self.0.0.iter().filter(|(name, _)| name != "run").cloned().collect()))
    }
}

/// What stands behind the entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trailer {
    /// Number, size and sum of the entries; computed by the writer.
    pub totals: Totals,
    /// The members behind `files`.
    pub members: Members,
}

impl Trailer {
    /// Replaces a member or adds it in its place.
    pub fn set(&mut self, name: &str, value: Value) {
        self.members.set(&TRAILER_ORDER, name, value);
    }

    /// The components, in pipe order.
    ///
    /// # Errors
    /// If the member is malformed, as all views.
    pub fn components(&self) -> Result<Vec<Component>, Error> {
        let components: Vec<Component> = self.members.view("components")?;
        for (number, Component { name, .. }) in components.iter().enumerate() {
            let is_double = components[..number].iter().any(|earlier| earlier.name == *name);
            if is_double || !is_name(name) {
                let name = name.escape_debug();
                let what = if is_double { "two of the name" } else { "one of the name" };
                return Err(Error::Malformed(format!("'components' cannot hold {what} '{name}'")));
            }
        }
        Ok(components)
    }

    /// Replaces the components.
    pub fn set_components(&mut self, components: &[Component]) {
        self.set("components", json!(components));
    }

    /// The stored files that the backup needs, but for those of [`Trailer::plain`].
    ///
    /// # Errors
    /// If the member is malformed.
    pub fn objects(&self) -> Result<Vec<ObjectRecord>, Error> {
        let objects: Vec<ObjectRecord> = self.lines(true)?;
        for object in &objects {
            RelPath::new(object.object.as_bytes()).map_err(|error: BadPath| {
                Error::Malformed(format!(
                    "{error} in 'objects': '{}'",
                    object.object.escape_debug()
                ))
            })?;
        }
        Ok(objects)
    }

    /// The plain files that the backup needs, by backup and component.
    ///
    /// # Errors
    /// If the member is malformed.
    pub fn plain(&self) -> Result<Vec<PlainRecord>, Error> {
        let records: Vec<PlainRecord> = self.lines(false)?;
        match records.iter().find(|record| !is_name(&record.component)) {
            None => Ok(records),
            Some(record) => {
                let name = record.component.escape_debug();
                Err(Error::Malformed(format!("'{name}' in 'objects' is no component's name")))
            }
        }
    }

    /// The lines of `objects` that name one object, or the others.
    fn lines<T: DeserializeOwned>(&self, of_one: bool) -> Result<Vec<T>, Error> {
        let lines: Vec<Value> = self.members.view("objects")?;
        let is_due = |line: &Value| line.get("object").is_some() == of_one;
        let malformed = |error| Error::Malformed(format!("'objects' is malformed: {error}"));
        lines
            .into_iter()
            .filter(is_due)
            .map(|line| serde_json::from_value(line).map_err(malformed))
            .collect()
    }

    /// What was left out, by reason.
    ///
    /// # Errors
    /// If the member is malformed.
    pub fn left_out(&self) -> Result<LeftOut, Error> {
        self.members.view("left_out")
    }

    /// What is known at this run's end: the code so far, what was pushed, proofs.
    ///
    /// # Errors
    /// If the member is malformed.
    pub fn run(&self) -> Result<EndRun, Error> {
        match self.members.get("verification").and_then(|value| value.get("run")) {
            None => Ok(EndRun::default()),
            Some(run) => EndRun::deserialize(run).map_err(|error| {
                Error::Malformed(format!("'verification.run' is malformed: {error}"))
            }),
        }
    }

    /// Replaces what is known at this run's end.
    pub fn set_run(&mut self, run: &EndRun) {
        let mut verification = match self.members.get("verification") {
            Some(Value::Object(map)) => map.clone(),
            _ => Map::new(),
        };
        verification.insert("run".into(), json!(run));
        self.set("verification", Value::Object(verification));
    }

    /// The document's sum, as it was read or written.
    pub fn total_checksum(&self) -> Option<Digest> {
        self.members.get("verification")?.get("total_checksum")?.as_str()?.parse().ok()
    }

    /// The code that the steps before this one have left.
    ///
    /// # Errors
    /// If the member is malformed, or carries a code that no document may.
    pub fn exit(&self) -> Result<Exit, Error> {
        match self.run()?.code {
            0 => Ok(Exit::Done),
            3 => Ok(Exit::Partial),
            code => Err(Error::Malformed(format!("the document carries the code {code}"))),
        }
    }

    /// Has the document carry the worse of its code and this step's own; returns it.
    ///
    /// # Errors
    /// As [`Trailer::exit`].
    pub fn worsen(&mut self, mine: Exit) -> Result<Exit, Error> {
        let exit = self.exit()?.worse(mine);
        let mut run = self.run()?;
        run.code = exit.code();
        self.set_run(&run);
        Ok(exit)
    }

    /// Adds what a step left out.
    ///
    /// # Errors
    /// If the member is malformed.
    pub fn leave_out(&mut self, left_out: LeftOut) -> Result<(), Error> {
        let mut all = self.left_out()?;
        all.merge(left_out);
        self.set("left_out", json!(all));
        Ok(())
    }

    /// The trailer as it is stored: without what is true of this run only.
    #[must_use]
    pub fn stored(&self) -> Trailer {
        let mut stored = self.clone();
        if let Some(Value::Object(mut verification)) = self.members.get("verification").cloned() {
            verification.remove("run");
            stored.set("verification", Value::Object(verification));
        }
        stored
    }
}

/// Whether a text can name a backup or a component: what is safe in a file name, a URL and a shell.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_put_where_the_order_has_them() {
        let mut header = Header::default();
        header.0.push("version".into(), json!("2.0"));
        header.0.push("later".into(), json!(1));
        header.0.push("run".into(), json!({}));
        header.set("chain", json!({}));
        header.set("run", json!({"x": 1}));
        let names: Vec<_> = header.0.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["version", "later", "chain", "run"]);
        assert_eq!(header.0.get("run"), Some(&json!({"x": 1})));
    }

    #[test]
    fn names_are_safe_everywhere() {
        for good in ["db", "backup-20260428-022150-a1b2c3d4", "a.b_c"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".x", "-x", "a/b", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_stored_has_no_run() {
        let mut trailer = Trailer::default();
        trailer.set_run(&EndRun { code: 3, ..EndRun::default() });
        assert_eq!(trailer.exit().unwrap(), Exit::Partial);
        assert_eq!(trailer.stored().members.get("verification"), Some(&json!({})));
    }
}
