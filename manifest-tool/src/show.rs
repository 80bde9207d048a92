//! `bk-manifest show`: what a backup is and holds, on one screen.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::Value;

use crate::entry::{Entry, Kind};
use crate::left_out::Name;
use crate::manifest::{Component, Header, ObjectRecord, Status, Trailer};
use crate::path::escape;
use crate::progress::human_bytes;
use crate::stream::{Error, Reader};
use crate::sums;

/// Components that are counted apart; the format allows any number, memory does not.
const COMPONENTS_LIMIT: usize = 1000;
/// Names that are shown for each reason to leave something out.
const NAMES_SHOWN: usize = 3;

/// A whole manifest, counted.
pub struct Summary {
    header: Header,
    trailer: Trailer,
    kinds: Kinds,
    components: BTreeMap<String, Count>,
}

/// Entries by what they are.
#[derive(Default)]
struct Kinds {
    files: u64,
    folders: u64,
    symlinks: u64,
    hardlinks: u64,
    special: u64,
    bytes: u64,
}

/// Plain files that several backups may hold.
#[derive(Default)]
struct PlainCount {
    files: u64,
    bytes: u64,
    backups: u64,
}

#[derive(Default)]
struct Count {
    entries: u64,
    bytes: u64,
}

impl Summary {
    /// Reads a document to its end.
    ///
    /// # Errors
    /// Any fault of the document.
    pub fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        let mut kinds = Kinds::default();
        let mut components: BTreeMap<String, Count> = BTreeMap::new();
        while let Some(entry) = reader.next_entry()? {
            crate::signal::check().map_err(Error::Io)?;
            kinds.add(&entry);
            let name = entry.component();
            if !components.contains_key(name) && components.len() < COMPONENTS_LIMIT {
                components.insert(name.to_owned(), Count::default());
            }
            if let Some(count) = components.get_mut(name) {
                count.entries += 1;
                count.bytes = count.bytes.saturating_add(entry.size.unwrap_or(0));
            }
        }
        let (header, trailer) = reader.end()?;
        Ok(Summary { header, trailer, kinds, components })
    }

    /// Prints header and trailer as one JSON object, in the order of the document.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_json(&self, output: &mut impl Write) -> io::Result<()> {
        let files = Value::Object(sums::totals_value(&self.trailer.totals));
        let members = self.header.0.iter().chain([("files", &files)]);
        let mut separator = '{';
        for (name, value) in members.chain(self.trailer.members.iter()) {
            write!(output, "{separator}{}:{value}", Value::from(name))?;
            separator = ',';
        }
        output.write_all(b"}\n")?;
        output.flush()
    }

    /// Prints it for people.
    ///
    /// # Errors
    /// Those of the output; a member that is malformed.
    pub fn write_text(&self, output: &mut impl Write) -> anyhow::Result<()> {
        self.write_backup(output)?;
        let size = human_bytes(self.trailer.totals.size);
        line(output, "entries", &format!("{}, {size}", self.kinds.describe()))?;
        self.write_components(output)?;
        self.write_left_out(output)?;
        self.write_objects(output)?;
        if let Some(pushed) = self.trailer.run()?.pushed {
            let stored = human_bytes(pushed.stored);
            line(output, "stored", &format!("{stored} by this run, {} objects", pushed.objects))?;
        }
        if let Some(checksum) = self.trailer.total_checksum() {
            line(output, "sums", &format!("all hold; total {checksum}"))?;
        }
        Ok(output.flush()?)
    }

    fn write_backup(&self, output: &mut impl Write) -> anyhow::Result<()> {
        let application = self.header.application()?;
        let version = application.version.map(|version| format!(" {version}")).unwrap_or_default();
        let application = format!("{}{version}", application.name);
        let Some(backup) = self.header.backup()? else {
            line(output, "backup", "none: this stands for \"no backup yet\"")?;
            return Ok(line(output, "application", &application)?);
        };
        let kind = match &backup.kind {
            Some(kind) => format!("{} ({kind})", backup.id),
            None => format!("{} (not stored yet)", backup.id),
        };
        line(output, "backup", &kind)?;
        line(output, "application", &application)?;
        if let Some(series) = &backup.series {
            line(output, "series", series)?;
        }
        line(output, "time", &backup.timestamp)?;
        if let Some(host) = &backup.host {
            line(output, "host", host)?;
        }
        if let Some(parent) = &backup.parent_backup_id {
            line(output, "parent", parent)?;
        }
        Ok(())
    }

    fn write_components(&self, output: &mut impl Write) -> anyhow::Result<()> {
        let known = self.trailer.components()?;
        let unlisted = self.components.keys().filter(|name| known.iter().all(|k| k.name != **name));
        let rows = known
            .iter()
            .map(|known| {
                (known.name.as_str(), known.kind.as_str(), status(known.status), remark(known))
            })
            .chain(unlisted.map(|name| (name.as_str(), "?", "not listed", String::new())));
        let none = Count::default();
        for (number, (name, kind, status, remark)) in rows.enumerate() {
            let count = self.components.get(name).unwrap_or(&none);
            let text = format!(
                "{name:<16} {kind:<11} {status:<9} {:>9} entries {:>10}{remark}",
                count.entries,
                human_bytes(count.bytes)
            );
            line(output, if number == 0 { "components" } else { "" }, &text)?;
        }
        Ok(())
    }

    fn write_left_out(&self, output: &mut impl Write) -> anyhow::Result<()> {
        let left_out = self.trailer.left_out()?;
        let mut title = "left out";
        for (reason, group) in left_out.iter().filter(|(_, group)| group.count > 0) {
            let names: Vec<String> =
                group.names.iter().take(NAMES_SHOWN).map(Name::shown).collect();
            let more = if group.count > names.len() as u64 { ", …" } else { "" };
            let reason = serde_json::to_value(reason)?;
            let reason = reason.as_str().unwrap_or_default().replace('_', " ");
            let text = format!("{} {reason}: {}{more}", group.count, names.join(", "));
            line(output, std::mem::take(&mut title), &text)?;
        }
        for (reason, group) in left_out.others() {
            let count = group.get("count").map_or_else(|| "?".into(), Value::to_string);
            line(output, std::mem::take(&mut title), &format!("{count} {reason}"))?;
        }
        Ok(())
    }

    fn write_objects(&self, output: &mut impl Write) -> anyhow::Result<()> {
        if self.trailer.members.get("objects").is_none() {
            return Ok(());
        }
        let objects = self.trailer.objects()?;
        let (inherited, own): (Vec<_>, Vec<_>) =
            objects.iter().partition(|object| object.backup.is_some());
        let bytes = |objects: &[&ObjectRecord]| {
            human_bytes(objects.iter().fold(0, |sum, object| object.size.saturating_add(sum)))
        };
        let mut earlier: Vec<_> = inherited.iter().map(|object| &object.backup).collect();
        earlier.sort_unstable();
        earlier.dedup();
        let text = match earlier.len() {
            0 => String::new(),
            backups => {
                format!("; {} in {backups} earlier, {}", inherited.len(), bytes(&inherited))
            }
        };
        let text = format!("{} in this backup, {}{text}", own.len(), bytes(&own));
        line(output, "objects", &text)?;
        self.write_plain(output)
    }

    /// The plain files, a line for each component that they were stored for.
    fn write_plain(&self, output: &mut impl Write) -> anyhow::Result<()> {
        let mut components: BTreeMap<String, (PlainCount, PlainCount)> = BTreeMap::new();
        for record in self.trailer.plain()? {
            let (own, inherited) = components.entry(record.component).or_default();
            let of = if record.backup.is_some() { inherited } else { own };
            of.files = of.files.saturating_add(record.count);
            of.bytes = of.bytes.saturating_add(record.size);
            of.backups += 1;
        }
        for (component, (own, inherited)) in components {
            let text = match inherited.backups {
                0 => String::new(),
                backups => format!(
                    "; {} in {backups} earlier, {}",
                    inherited.files,
                    human_bytes(inherited.bytes)
                ),
            };
            let text = format!(
                "{} files one by one in {component}/, {}{text}",
                own.files,
                human_bytes(own.bytes)
            );
            line(output, "", &text)?;
        }
        Ok(())
    }
}

/// A title and what belongs to it, whatever characters a manifest holds.
fn line(output: &mut impl Write, title: &str, text: &str) -> io::Result<()> {
    writeln!(output, "{title:<12} {}", escape(text.as_bytes()))
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Complete => "complete",
        Status::Partial => "partial",
        Status::Skipped => "skipped",
    }
}

/// What a component's record says that a person wants to see at once.
fn remark(component: &Component) -> String {
    let text = |name: &str| component.extra.get(name).and_then(Value::as_str);
    let tables = component.extra.get("tables").and_then(Value::as_array);
    let tables = tables.map(|tables| format!("  {} tables", tables.len()));
    let encryption =
        text("encryption").map(|how| format!("  encrypted: {}", escape(how.as_bytes())));
    let reason = (component.status == Status::Skipped)
        .then(|| format!("  {}", escape(text("reason").unwrap_or("no reason given").as_bytes())));
    [tables, encryption, reason].into_iter().flatten().collect()
}

impl Kinds {
    fn add(&mut self, entry: &Entry) {
        *match entry.kind {
            Kind::File => &mut self.files,
            Kind::Directory => &mut self.folders,
            Kind::Symlink(_) => &mut self.symlinks,
            Kind::Hardlink(_) => &mut self.hardlinks,
            Kind::Fifo | Kind::Block(..) | Kind::Char(..) => &mut self.special,
        } += 1;
        self.bytes = self.bytes.saturating_add(entry.size.unwrap_or(0));
    }

    fn describe(&self) -> String {
        let counted = |count, one, many| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        };
        let parts: Vec<String> = [
            counted(self.files, "file", "files"),
            counted(self.folders, "folder", "folders"),
            counted(self.symlinks, "symbolic link", "symbolic links"),
            counted(self.hardlinks, "hard link", "hard links"),
            counted(self.special, "special file", "special files"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() { "none".into() } else { parts.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{EndRun, Pushed};
    use crate::stream::{Format, Writer};
    use serde_json::json;

    fn summary() -> Summary {
        let mut header = Header::default();
        header.set("version", json!("2.0"));
        header.set("application", json!({"name": "app", "version": "1\u{202e}2"}));
        header.set(
            "backup",
            json!({
                "id": "b-1", "type": "full", "timestamp": "2026-04-28T02:21:50.000Z",
                "parent_backup_id": "b-0", "host": "vm1"
            }),
        );
        let mut writer = Writer::new(Vec::new(), Format::Json, header).unwrap();
        for entry in [
            r#"{"path":"a","type":"directory"}"#,
            r#"{"path":"a/b","size":1536}"#,
            r#"{"component":"db","path":".bk/db/x","size":10}"#,
        ] {
            writer.entry(&serde_json::from_str(entry).unwrap()).unwrap();
        }
        let mut trailer = Trailer::default();
        trailer.set(
            "components",
            json!([{"name":"db","kind":"sqlite","status":"partial","encryption":"age","tables":[1,2]}]),
        );
        trailer.set(
            "left_out",
            json!({"unreadable":{"count":5,"names":[{"path":"x"},{"path_b64":"YQo="}]}}),
        );
        let digest = "0".repeat(64);
        trailer.set(
            "objects",
            json!([
                {"backup":"b-0","checksum":digest,"live":1,"object":"o","size":2048},
                {"checksum":digest,"live":1,"object":"p","size":1},
                {"component":"minio","count":3,"size":3072},
                {"backup":"b-0","component":"minio","count":4,"size":1024},
                {"backup":"b-1","component":"minio","count":5,"size":1024}
            ]),
        );
        let pushed = Pushed { objects: 4, stored: 3073, ..Pushed::default() };
        trailer.set_run(&EndRun { pushed: Some(pushed), ..EndRun::default() });
        let (bytes, _) = writer.end(trailer).unwrap();
        Summary::read(Reader::new(&bytes[..]).unwrap()).unwrap()
    }

    #[test]
    fn a_person_sees_all_that_counts() {
        let mut text = Vec::new();
        summary().write_text(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for wanted in [
            "backup       b-1 (full)\n",
            "application  app 1\\u{202e}2\n",
            "parent       b-0\n",
            "entries      2 files, 1 folder, 1.5 KiB\n",
            "components   db               sqlite      partial           1 entries       10 B  2 tables  encrypted: age\n",
            "             files            ?           not listed         2 entries    1.5 KiB\n",
            "left out     5 unreadable: x, a\\n, …\n",
            "objects      1 in this backup, 1 B; 1 in 1 earlier, 2.0 KiB\n",
            "             3 files one by one in minio/, 3.0 KiB; 9 in 2 earlier, 2.0 KiB\n",
            "stored       3.0 KiB by this run, 4 objects\n",
            "sums         all hold; total sha256:",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in\n{text}");
        }
    }

    #[test]
    fn json_has_all_but_the_entries_in_order() {
        let mut json = Vec::new();
        summary().write_json(&mut json).unwrap();
        let text = String::from_utf8(json).unwrap();
        assert!(text.starts_with("{\"version\":\"2.0\",\"application\":"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["files"]["count"], 3);
        assert!(value["files"]["manifest"].is_null());
        assert!(value["verification"]["total_checksum"].is_string());
    }
}
