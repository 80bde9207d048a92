//! The files beside a manifest, for people and for the programs that every system has.

use std::fmt::Write;

use bk_manifest::manifest::{Header, ObjectRecord, Status, Trailer};
use bk_manifest::path::escape;
use bk_manifest::progress::human_bytes;

use crate::place::SIDE_FILES;

/// The script that restores without bk; at most 40 lines.
const RESTORE_SCRIPT: &str = include_str!("restore.txt");

/// Names and texts of the side files.
///
/// # Errors
/// A malformed header or trailer.
pub fn side_files(
    header: &Header,
    trailer: &Trailer,
    objects: &[ObjectRecord],
    manifest: &str,
) -> anyhow::Result<[(&'static str, String); 3]> {
    let [summary, sums, restore] = SIDE_FILES;
    Ok([
        (summary, describe(header, trailer, objects)?),
        (sums, checksums(header, objects)?),
        (restore, RESTORE_SCRIPT.replace("@MANIFEST@", manifest)),
    ])
}

/// `MANIFEST.txt`: what the backup is and holds.
fn describe(
    header: &Header,
    trailer: &Trailer,
    objects: &[ObjectRecord],
) -> anyhow::Result<String> {
    let backup = header.the_backup()?;
    let application = header.application()?;
    let line = |text: &str| escape(text.as_bytes());
    let mut text = String::new();
    writeln!(text, "Backup:      {}", line(&backup.id))?;
    writeln!(text, "Time:        {}", line(&backup.timestamp))?;
    writeln!(text, "Host:        {}", line(backup.host.as_deref().unwrap_or("unknown")))?;
    let version = application.version.as_deref().unwrap_or("unknown version");
    writeln!(text, "Application: {} ({})", line(&application.name), line(version))?;
    writeln!(text, "Type:        {}", line(backup.kind.as_deref().unwrap_or("full")))?;
    let builds_on: std::collections::BTreeSet<_> =
        objects.iter().filter_map(|object| object.backup.as_deref()).collect();
    for other in builds_on {
        writeln!(text, "Builds on:   {}", line(other))?;
    }
    writeln!(text, "\nComponents:")?;
    for component in trailer.components()? {
        let number = |name: &str| component.extra.get(name).and_then(serde_json::Value::as_u64);
        let text_of = |name: &str| component.extra.get(name).and_then(serde_json::Value::as_str);
        let encryption = text_of("encryption").map(|how| format!(", encrypted: {}", line(how)));
        let encryption = encryption.unwrap_or_default();
        let reason = text_of("reason").unwrap_or("no reason given");
        let status = match component.status {
            Status::Complete => String::new(),
            Status::Partial => ", PARTIAL".into(),
            Status::Skipped => format!(", SKIPPED: {}", line(reason)),
        };
        writeln!(
            text,
            "  {:<16} {:<12} {:>10} in {} entries{status}{encryption}",
            line(&component.name),
            line(&component.kind),
            human_bytes(number("size").unwrap_or(0)),
            number("count").unwrap_or(0),
        )?;
    }
    let own = objects.iter().filter(|object| object.backup.is_none());
    let stored: u64 = own.clone().map(|object| object.size).sum();
    writeln!(text, "\nStored here: {} in {} objects", human_bytes(stored), own.count())?;
    writeln!(text, "\nTo check the stored objects: sha256sum -c SHA256SUMS")?;
    writeln!(text, "To restore by hand: see RESTORE.txt")?;
    Ok(text)
}

/// `SHA256SUMS`: every object that the backup needs, by its way from this folder.
fn checksums(header: &Header, objects: &[ObjectRecord]) -> anyhow::Result<String> {
    let chain = header.chain()?;
    let mut text = String::new();
    for object in objects {
        let folder = object.backup.as_ref().and_then(|backup| chain.get(backup));
        let name = match folder {
            Some(folder) => format!("{folder}/{}", object.object),
            None => object.object.clone(),
        };
        writeln!(text, "{}  {name}", object.checksum.hex())?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restore_script_is_short_enough_to_read() {
        assert!(RESTORE_SCRIPT.lines().count() <= 40);
    }
}
