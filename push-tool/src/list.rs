//! `bk-push list`: the backups at a destination, as a table or as JSON lines.

use std::collections::BTreeSet;
use std::io::{self, Write};

use bk_manifest::manifest::{Component, Status};
use bk_manifest::path::escape;
use bk_manifest::progress::human_bytes;
use bk_manifest::time::Time;
use serde_json::json;

use crate::catalog::{BackupInfo, Catalog, ForeignBackup};

/// Who made a backup of ours.
const OWN: &str = "bk";

/// A backup as it is listed, whoever made it.
pub struct Listed<'a> {
    id: &'a str,
    /// The system that made it.
    origin: &'static str,
    series: Option<&'a str>,
    time: Option<Time>,
    kind: &'a str,
    parent: Option<&'a str>,
    count: u64,
    size: u64,
    stored: Option<u64>,
    status: Option<Status>,
    components: &'a [Component],
    manifest: &'a str,
    total_checksum: Option<&'a str>,
    is_marked: bool,
}

impl<'a> Listed<'a> {
    fn ours(backup: &'a BackupInfo, marked: &BTreeSet<String>) -> Self {
        let status = if backup.is_complete() { Status::Complete } else { Status::Partial };
        Listed {
            id: &backup.id,
            origin: OWN,
            series: Some(&backup.series),
            time: Some(backup.time),
            kind: &backup.kind,
            parent: backup.parent.as_deref(),
            count: backup.entries,
            size: backup.size,
            stored: Some(backup.stored),
            status: Some(status),
            components: &backup.components,
            manifest: &backup.manifest.name,
            total_checksum: Some(&backup.total_checksum),
            is_marked: marked.contains(&backup.id),
        }
    }

    fn foreign(backup: &'a ForeignBackup) -> Self {
        let says = &backup.says;
        Listed {
            id: &says.id,
            origin: says.system,
            series: None,
            time: says.time,
            kind: says.kind.as_deref().unwrap_or_default(),
            parent: says.parent.as_deref(),
            count: says.count,
            size: says.size,
            stored: None,
            status: None,
            components: &[],
            manifest: &backup.manifest.name,
            total_checksum: None,
            is_marked: false,
        }
    }

    fn state(&self) -> &'static str {
        match (self.is_marked, self.status) {
            (true, _) => "marked",
            (false, Some(Status::Complete | Status::Skipped)) => "complete",
            (false, Some(Status::Partial)) => "partial",
            (false, None) => "foreign",
        }
    }

    fn component_names(&self) -> String {
        let name = |component: &Component| match component.status {
            Status::Complete => component.name.clone(),
            Status::Partial => format!("{} (partial)", component.name),
            Status::Skipped => format!("{} (skipped)", component.name),
        };
        self.components.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// What is to be listed, oldest first: the backups of one series, or all of them and those of other
/// systems. `marked` are the ids that prune has marked.
pub fn select<'a>(
    catalog: &'a Catalog,
    series: Option<&str>,
    marked: &BTreeSet<String>,
) -> Vec<Listed<'a>> {
    let ours = catalog
        .backups
        .iter()
        .filter(|backup| series.is_none_or(|series| backup.series == series))
        .map(|backup| Listed::ours(backup, marked));
    let foreign = catalog.foreign.iter().filter(|_| series.is_none()).map(Listed::foreign);
    let mut listed: Vec<_> = ours.chain(foreign).collect();
    listed.sort_by_key(|backup| (backup.time, backup.id, backup.manifest));
    listed
}

/// Where the text of a column stands in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// Prints a line for each backup below a line of headings.
///
/// What matters most comes first, so that a narrow terminal shows it. Columns that would say nothing
/// are left out: the series where there is one only, parents and components where there are none.
///
/// # Errors
/// Those of the output.
pub fn table(output: &mut impl Write, backups: &[Listed<'_>]) -> io::Result<()> {
    let bytes = |bytes: Option<u64>| bytes.map(human_bytes).unwrap_or_default();
    let cells = |cell: &dyn Fn(&Listed<'_>) -> String| -> Vec<String> {
        backups.iter().map(|backup| escape(cell(backup).as_bytes())).collect()
    };
    let time = |backup: &Listed<'_>| {
        backup.time.map(|time| time.format("%Y-%m-%d %H:%M")).unwrap_or_default()
    };
    let series = |backup: &Listed<'_>| backup.series.unwrap_or(backup.origin).to_owned();
    let parent = |backup: &Listed<'_>| backup.parent.unwrap_or_default().to_owned();
    let all_series: BTreeSet<String> = backups.iter().map(series).collect();
    let mut columns = vec![
        ("ID", Align::Left, cells(&|backup| backup.id.to_owned())),
        ("TIME (UTC)", Align::Left, cells(&time)),
        ("STATE", Align::Left, cells(&|backup| backup.state().to_owned())),
        ("FILES", Align::Right, cells(&|backup| backup.count.to_string())),
        ("SIZE", Align::Right, cells(&|backup| human_bytes(backup.size))),
        ("STORED", Align::Right, cells(&|backup| bytes(backup.stored))),
        ("TYPE", Align::Left, cells(&|backup| backup.kind.to_owned())),
        ("COMPONENTS", Align::Left, cells(&|backup| backup.component_names())),
        ("PARENT", Align::Left, cells(&parent)),
    ];
    columns.retain(|(_, _, cells)| backups.is_empty() || cells.iter().any(|cell| !cell.is_empty()));
    if all_series.len() > 1 {
        columns.insert(2, ("SERIES", Align::Left, cells(&series)));
    }
    let widths: Vec<usize> = columns
        .iter()
        .map(|(heading, _, cells)| {
            let cells = cells.iter().map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(heading.len())
        })
        .collect();
    for row in 0..=backups.len() {
        let mut line = String::new();
        for ((heading, align, cells), width) in columns.iter().zip(&widths) {
            let cell = match row.checked_sub(1) {
                None => *heading,
                Some(row) => cells.get(row).map(String::as_str).unwrap_or_default(),
            };
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            match align {
                Align::Left => line.extend([cell, &pad]),
                Align::Right => line.extend([&pad, cell]),
            }
            line += "  ";
        }
        writeln!(output, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Prints one JSON object a line for each backup; members that are not known are null.
///
/// # Errors
/// Those of the output.
pub fn json_lines(output: &mut impl Write, backups: &[Listed<'_>]) -> io::Result<()> {
    for backup in backups {
        let components: Vec<_> = backup
            .components
            .iter()
            .map(|component| {
                json!({
                    "name": component.name,
                    "kind": component.kind,
                    "status": component.status,
                    "size": component.extra.get("size"),
                })
            })
            .collect();
        let line = json!({
            "id": backup.id,
            "origin": backup.origin,
            "series": backup.series,
            "timestamp": backup.time,
            "type": backup.kind,
            "parent_backup_id": backup.parent,
            "count": backup.count,
            "size": backup.size,
            "stored": backup.stored,
            "status": backup.status,
            "components": components,
            "manifest": backup.manifest,
            "total_checksum": backup.total_checksum,
            "marked": backup.is_marked,
        });
        writeln!(output, "{line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::ObjectInfo;
    use bk_manifest::foreign::Foreign;
    use serde_json::Map;

    fn object(name: &str) -> ObjectInfo {
        ObjectInfo { name: name.into(), size: 1, modified: Time::from_unix(0, 0) }
    }

    fn backup(id: &str, time: &str, series: &str) -> BackupInfo {
        let component = Component {
            name: "files".into(),
            kind: "tree".into(),
            status: Status::Complete,
            extra: Map::new(),
        };
        BackupInfo {
            manifest: object(&format!("{id}/manifest.json")),
            id: id.into(),
            series: series.into(),
            time: time.parse().unwrap(),
            kind: "full".into(),
            parent: None,
            entries: 1245,
            size: 1 << 20,
            stored: 1 << 10,
            components: vec![component],
            total_checksum: String::new(),
        }
    }

    fn foreign(id: &str, time: Option<&str>) -> ForeignBackup {
        let says = Foreign {
            system: "picpeak",
            id: id.into(),
            time: time.map(|time| time.parse().unwrap()),
            kind: Some("incremental".into()),
            parent: Some("backup-0".into()),
            count: 7,
            size: 10,
        };
        ForeignBackup { manifest: object("x/manifest.json"), says }
    }

    fn shown(catalog: &Catalog, series: Option<&str>, marked: &[&str]) -> String {
        let marked = marked.iter().map(|id| (*id).to_owned()).collect();
        let mut text = Vec::new();
        table(&mut text, &select(catalog, series, &marked)).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn one_series_fits_into_eighty_columns_but_for_its_last() {
        let mut second =
            backup("backup-20260429-022150-a1b2c3d4", "2026-04-29T02:21:50Z", "picpeak");
        second.components[0].status = Status::Partial;
        second.parent = Some("backup-20260428-022150-a1b2c3d4".into());
        let first = backup("backup-20260428-022150-a1b2c3d4", "2026-04-28T02:21:50Z", "picpeak");
        let catalog = Catalog { backups: vec![first, second], ..Catalog::default() };
        let expected = "\
ID                               TIME (UTC)        STATE     FILES     SIZE   STORED  TYPE  COMPONENTS       PARENT
backup-20260428-022150-a1b2c3d4  2026-04-28 02:21  complete   1245  1.0 MiB  1.0 KiB  full  files
backup-20260429-022150-a1b2c3d4  2026-04-29 02:21  partial    1245  1.0 MiB  1.0 KiB  full  files (partial)  backup-20260428-022150-a1b2c3d4
";
        assert_eq!(shown(&catalog, None, &[]), expected);
        let of_first = expected.lines().nth(1).unwrap();
        assert!(of_first.find("STORED").is_none() && of_first.find("1.0 KiB").unwrap() < 80);
    }

    #[test]
    fn foreign_and_marked_ones_are_told_and_control_characters_escaped() {
        let ours = backup("b1", "2026-04-28T02:21:50Z", "app");
        let catalog = Catalog {
            backups: vec![ours],
            foreign: vec![foreign("b\x1b[31m", Some("2026-04-27T02:21:50Z")), foreign("b0", None)],
            ..Catalog::default()
        };
        let expected = "\
ID           TIME (UTC)        SERIES   STATE    FILES     SIZE   STORED  TYPE         COMPONENTS  PARENT
b0                             picpeak  foreign      7     10 B           incremental              backup-0
b\\u{1b}[31m  2026-04-27 02:21  picpeak  foreign      7     10 B           incremental              backup-0
b1           2026-04-28 02:21  app      marked    1245  1.0 MiB  1.0 KiB  full         files
";
        assert_eq!(shown(&catalog, None, &["b1"]), expected);
    }

    #[test]
    fn a_series_that_is_named_is_shown_alone() {
        let catalog = Catalog {
            backups: vec![
                backup("b1", "2026-04-28T02:21:50Z", "app"),
                backup("b2", "2026-04-28T02:21:51Z", "app/second"),
            ],
            foreign: vec![foreign("b0", None)],
            ..Catalog::default()
        };
        let table = shown(&catalog, Some("app"), &[]);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(table.contains("b1"), "{table}");
    }

    #[test]
    fn nothing_is_a_line_of_headings() {
        let table = shown(&Catalog::default(), None, &[]);
        assert!(table.starts_with("ID  TIME (UTC)  STATE"), "{table}");
        assert_eq!(table.lines().count(), 1);
    }
}
