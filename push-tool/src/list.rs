//! `bk-push list`: the backups at a destination, as a table or as JSON lines.

use std::collections::BTreeSet;
use std::io::{self, Write};

use bk_manifest::manifest::Status;
use bk_manifest::path::escape;
use bk_manifest::progress::human_bytes;
use serde_json::json;

use crate::catalog::BackupInfo;

/// Prints a line for each backup, newest last, below a line of headings.
///
/// # Errors
/// Those of the output.
pub fn table(
    output: &mut impl Write,
    backups: &[&BackupInfo],
    marked: &BTreeSet<String>,
) -> io::Result<()> {
    let mut rows = vec![
        ["ID", "TIME", "SERIES", "TYPE", "FILES", "SIZE", "STORED", "STATE"].map(str::to_owned),
    ];
    for backup in backups {
        let state = match (marked.contains(&backup.id), backup.is_complete()) {
            (true, _) => "marked",
            (false, true) => "complete",
            (false, false) => "partial",
        };
        rows.push([
            escape(backup.id.as_bytes()),
            backup.time.format("%Y-%m-%d %H:%M:%S"),
            escape(backup.series.as_bytes()),
            escape(backup.kind.as_bytes()),
            backup.entries.to_string(),
            human_bytes(backup.size),
            human_bytes(backup.stored),
            state.to_owned(),
        ]);
    }
    let widths: Vec<usize> = (0..8)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            // Numbers are right-aligned.
            if (4..7).contains(&column) {
                line += &(pad + cell);
            } else {
                line += &(cell.clone() + &pad);
            }
            line += "  ";
        }
        writeln!(output, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Prints one JSON object a line for each backup.
///
/// # Errors
/// Those of the output.
pub fn json_lines(
    output: &mut impl Write,
    backups: &[&BackupInfo],
    marked: &BTreeSet<String>,
) -> io::Result<()> {
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
        let status = if backup.is_complete() { Status::Complete } else { Status::Partial };
        let line = json!({
            "id": backup.id,
            "series": backup.series,
            "timestamp": backup.time,
            "type": backup.kind,
            "parent_backup_id": backup.parent,
            "count": backup.entries,
            "size": backup.size,
            "stored": backup.stored,
            "status": status,
            "components": components,
            "manifest": backup.manifest.name,
            "total_checksum": backup.total_checksum,
            "marked": marked.contains(&backup.id),
        });
        writeln!(output, "{line}")?;
    }
    Ok(())
}
