//! The files beside a manifest, for people and for the programs that every system has.

use std::io::{BufWriter, Write};

use bk_manifest::digest::Digest;
use bk_manifest::manifest::{Header, ObjectRecord, PlainRecord, Status, Trailer};
use bk_manifest::path::escape;
use bk_manifest::progress::human_bytes;
use bk_manifest::spool::Entries;

use crate::catalog::Folders;
use crate::destination::{Error, Upload};
use crate::place::SIDE_FILES;
use crate::plain::{PlainFiles, StoredSum};

/// The script that restores without bk; at most 40 lines.
const RESTORE_SCRIPT: &str = include_str!("restore.txt");

/// The side files of a manifest.
pub struct SideFiles<'a> {
    header: &'a Header,
    trailer: &'a Trailer,
    /// The name of the manifest's file.
    manifest: &'a str,
    entries: &'a Entries,
    objects: Vec<ObjectRecord>,
    plain: PlainFiles,
    stored_plain: Vec<PlainRecord>,
}

impl<'a> SideFiles<'a> {
    /// Those of a manifest with these entries.
    ///
    /// # Errors
    /// A malformed header or trailer.
    pub fn new(
        header: &'a Header,
        trailer: &'a Trailer,
        manifest: &'a str,
        entries: &'a Entries,
    ) -> anyhow::Result<Self> {
        let (objects, stored_plain) = (trailer.objects()?, trailer.plain()?);
        let folders = Folders::of("", header.chain()?);
        let plain = PlainFiles::of(folders, &objects, stored_plain.clone());
        Ok(SideFiles { header, trailer, manifest, entries, objects, plain, stored_plain })
    }

    /// About how many bytes each has at most.
    pub fn bound(&self) -> u64 {
        let plain = if self.plain.is_empty() { 0 } else { self.entries.bytes() };
        (1 << 20) + self.objects.len() as u64 * 1024 + plain
    }

    /// Writes the one of [`SIDE_FILES`] with this name.
    ///
    /// # Errors
    /// A malformed header or trailer; those of the output.
    pub fn write(&self, name: &str, output: &mut dyn Write) -> anyhow::Result<()> {
        let [summary, sums, _] = SIDE_FILES;
        if name == summary {
            self.describe(output)
        } else if name == sums {
            self.checksums(output)
        } else {
            Ok(output.write_all(RESTORE_SCRIPT.replace("@MANIFEST@", self.manifest).as_bytes())?)
        }
    }

    /// Stores the one of [`SIDE_FILES`] with this name; `place` is the name of the upload.
    ///
    /// # Errors
    /// As [`SideFiles::write`]; those of the destination.
    pub fn put(
        &self,
        name: &str,
        mut upload: Box<dyn Upload + '_>,
        place: &str,
    ) -> anyhow::Result<()> {
        let mut output = BufWriter::with_capacity(1 << 17, &mut upload);
        let written = self.write(name, &mut output).and_then(|()| Ok(output.flush()?));
        drop(output);
        let storing = || format!("cannot store '{place}'");
        written.map_err(|error| Error::name_once(error, storing))?;
        Ok(upload.commit()?)
    }

    /// `MANIFEST.txt`: what the backup is and holds.
    fn describe(&self, text: &mut dyn Write) -> anyhow::Result<()> {
        let SideFiles { header, trailer, objects, stored_plain, .. } = self;
        let backup = header.the_backup()?;
        let application = header.application()?;
        let line = |text: &str| escape(text.as_bytes());
        writeln!(text, "Backup:      {}", line(&backup.id))?;
        writeln!(text, "Time:        {}", line(&backup.timestamp))?;
        writeln!(text, "Host:        {}", line(backup.host.as_deref().unwrap_or("unknown")))?;
        let version = application.version.as_deref().unwrap_or("unknown version");
        writeln!(text, "Application: {} ({})", line(&application.name), line(version))?;
        writeln!(text, "Type:        {}", line(backup.kind.as_deref().unwrap_or("full")))?;
        let builds_on: std::collections::BTreeSet<_> = objects
            .iter()
            .filter_map(|object| object.backup.as_deref())
            .chain(stored_plain.iter().filter_map(|record| record.backup.as_deref()))
            .collect();
        for other in builds_on {
            writeln!(text, "Builds on:   {}", line(other))?;
        }
        writeln!(text, "\nComponents:")?;
        for component in trailer.components()? {
            let number = |name: &str| component.extra.get(name).and_then(serde_json::Value::as_u64);
            let text_of =
                |name: &str| component.extra.get(name).and_then(serde_json::Value::as_str);
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
        for record in stored_plain.iter().filter(|record| record.backup.is_none()) {
            let PlainRecord { component, count, size, .. } = record;
            writeln!(
                text,
                "             {} in {component}/, {count} files one by one",
                human_bytes(*size)
            )?;
        }
        writeln!(text, "\nTo check the stored objects: sha256sum -c SHA256SUMS")?;
        writeln!(text, "To restore by hand: see RESTORE.txt")?;
        Ok(())
    }

    /// `SHA256SUMS`: every object that the backup needs, by its way from this folder.
    fn checksums(&self, text: &mut dyn Write) -> anyhow::Result<()> {
        let chain = self.header.chain()?;
        let mut line = |backup: Option<&String>, object: &str, checksum: Digest| {
            let folder = backup.and_then(|backup| chain.get(backup));
            let folder = folder.map(|folder| format!("{folder}/")).unwrap_or_default();
            writeln!(text, "{}  {folder}{object}", checksum.hex())
        };
        for object in &self.objects {
            line(object.backup.as_ref(), &object.object, object.checksum)?;
        }
        if !self.plain.is_empty() {
            for entry in self.entries.iter() {
                let entry = entry?;
                if let Some((at, _)) = self.plain.record(&entry)? {
                    line(at.backup.as_ref(), &at.object, StoredSum::of(&entry, at)?.checksum)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restore_script_is_short_enough_to_read() {
        assert!(RESTORE_SCRIPT.lines().count() <= 40);
    }
}
