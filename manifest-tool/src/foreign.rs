//! Manifests that other systems wrote: told by their shape, and read as far as a list shows them.
//!
//! PicPeak's are known: as its programs write them (`manifest.generator` names it; three generations,
//! JSON or YAML), and as its documentation shows them (`version`, `backup`, `files.manifest`).

use std::fmt;
use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;
use serde::de::{self, IgnoredAny, SeqAccess, Visitor};

use crate::json::is_blank;
use crate::time::Time;

/// Largest JSON manifest that is read, in bytes: the longest text that PicPeak's runtime can make.
const JSON_LIMIT: u64 = 512 << 20;
/// Largest YAML manifest that is read, in bytes. It is loaded whole.
const YAML_LIMIT: u64 = 16 << 20;
/// How PicPeak's programs call themselves.
const PICPEAK: &str = "PicPeak";
/// What PicPeak sets before the id of a parent: it records the name of the parent's file.
const FILE_PREFIX: &str = "backup-manifest-";

/// What another system's manifest says. Nothing of it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The system that wrote it.
    pub system: &'static str,
    /// The backup's id.
    pub id: String,
    /// When it was made.
    pub time: Option<Time>,
    /// `full` or `incremental`, as it says.
    pub kind: Option<String>,
    /// The id of the backup that it builds on.
    pub parent: Option<String>,
    /// Number of files that it lists.
    pub count: u64,
    /// Their bytes.
    pub size: u64,
}

/// Why a document is no manifest of a known system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be read, or not as JSON or YAML of that shape.
    #[error("it cannot be read as a manifest of another system: {0}")]
    Malformed(String),
    /// It has members that only bk writes, or lacks what a known system writes.
    #[error("it is no manifest of a known system")]
    Unknown,
}

/// Reads a manifest that another system wrote. The form is told by the first byte.
///
/// Memory does not grow with the number of files in a JSON document.
///
/// # Errors
/// [`Error`]; a document that bk may have written is never taken for another's, however damaged.
pub fn read(input: impl Read) -> Result<Foreign, Error> {
    let malformed = |error: &dyn fmt::Display| Error::Malformed(error.to_string());
    let mut input = BufReader::with_capacity(1 << 17, input);
    let first = loop {
        let buffer = input.fill_buf().map_err(|error| malformed(&error))?;
        let Some(byte) = buffer.first().copied() else { return Err(Error::Unknown) };
        if !is_blank(byte) {
            break byte;
        }
        input.consume(1);
    };
    let document = if first == b'{' {
        let mut reader = serde_json::Deserializer::from_reader(input.take(JSON_LIMIT));
        let document = Document::deserialize(&mut reader).map_err(|error| malformed(&error))?;
        reader.end().map_err(|error| malformed(&error))?;
        document
    } else {
        let mut text = Vec::new();
        input.take(YAML_LIMIT).read_to_end(&mut text).map_err(|error| malformed(&error))?;
        if text.len() as u64 >= YAML_LIMIT {
            return Err(Error::Malformed("YAML that bk did not write is read up to 16 MiB".into()));
        }
        serde_yaml::from_slice(&text).map_err(|error| malformed(&error))?
    };
    document.recognised().ok_or(Error::Unknown)
}

/// The members that tell whose a document is, and those that are shown.
#[derive(Deserialize)]
struct Document {
    version: Option<String>,
    manifest: Option<About>,
    backup: Option<Backup>,
    files: Option<Files>,
    incremental: Option<Incremental>,
    // A damaged manifest of ours must stay one: each of these alone shows that it is.
    generator: Option<IgnoredAny>,
    chain: Option<IgnoredAny>,
    components: Option<IgnoredAny>,
    objects: Option<IgnoredAny>,
    left_out: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct About {
    generator: Option<String>,
}

#[derive(Deserialize)]
struct Backup {
    id: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    timestamp: Option<String>,
    parent_backup_id: Option<String>,
}

#[derive(Deserialize)]
struct Incremental {
    parent_backup_id: Option<String>,
}

#[derive(Deserialize)]
struct Files {
    count: Option<u64>,
    total_size: Option<u64>,
    manifest: Option<Entries>,
}

impl Document {
    fn recognised(self) -> Option<Foreign> {
        let ours = [&self.generator, &self.chain, &self.components, &self.objects, &self.left_out];
        let entries = self.files.as_ref()?.manifest.as_ref()?;
        if ours.iter().any(|member| member.is_some()) || entries.has_place {
            return None;
        }
        let is_as_written = self
            .manifest
            .and_then(|about| about.generator)
            .is_some_and(|generator| generator.starts_with(PICPEAK));
        let is_as_documented = self.version.is_some_and(|version| version.starts_with("2."));
        if !is_as_written && !is_as_documented {
            return None;
        }
        let backup = self.backup?;
        let parent = self.incremental.and_then(|incremental| incremental.parent_backup_id);
        let parent = parent
            .or(backup.parent_backup_id)
            .map(|parent| parent.strip_prefix(FILE_PREFIX).map(str::to_owned).unwrap_or(parent));
        let files = self.files?;
        Some(Foreign {
            system: "picpeak",
            id: backup.id,
            time: backup.timestamp.and_then(|timestamp| timestamp.parse().ok()),
            kind: backup.kind,
            parent,
            count: files.count.or(files.manifest.as_ref().map(|entries| entries.count))?,
            size: files.total_size.or(files.manifest.map(|entries| entries.size))?,
        })
    }
}

/// The entries, counted as they pass.
#[derive(Default)]
struct Entries {
    count: u64,
    size: u64,
    /// Whether one says where it is stored, which only ours do.
    has_place: bool,
}

#[derive(Deserialize)]
struct Entry {
    size: Option<u64>,
    at: Option<IgnoredAny>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of files")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while let Some(entry) = list.next_element::<Entry>()? {
                    crate::signal::check().map_err(de::Error::custom)?;
                    entries.count += 1;
                    entries.size = entries.size.saturating_add(entry.size.unwrap_or(0));
                    entries.has_place |= entry.at.is_some();
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_seq(Counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Application, Header, Run, Trailer};
    use crate::stream::{Format, Writer};
    use serde_json::json;

    /// As PicPeak's programs write it.
    fn written(version: &str) -> serde_json::Value {
        json!({
            "manifest": {"version": version, "created": "2026-04-28T02:21:50.123Z",
                "generator": "PicPeak Backup Manifest Generator", "format": "json"},
            "backup": {"id": "backup-20260428-022150-a1b2c3d4", "type": "incremental",
                "timestamp": "2026-04-28T02:21:50.123Z", "path": "/backup/picpeak",
                "parent_backup_id": "backup-manifest-backup-20260427-022150-0f0e0d0c",
                "retention_days": 30},
            "system": {"hostname": "h", "uptime": 99.5},
            "application": {"name": "PicPeak", "version": "2.4.0"},
            "files": {"count": 2, "total_size": 4_523_894, "checksums": {"a": "9f", "b": "9f"},
                "manifest": [
                    {"path": "a", "size": 4_523_894, "checksum": "9f", "type": "image"},
                    {"path": "b", "size": null, "checksum": "9f", "type": "other"}]},
            "database": {"type": "postgresql", "backup_file": null, "row_counts": {}},
            "verification": {"total_checksum": "9f", "file_count_check": 2},
            "metadata": {"backup_settings": {"backup_s3_secret_key": "hunter2"}},
        })
    }

    const DOCUMENTED: &str = "version: '2.0'
backup:
  id: backup-20260428-022150-a1b2c3d4
  type: incremental
  parent_backup_id: backup-20260427-022150-0f0e0d0c
  timestamp: 2026-04-28T02:21:50.000Z
files:
  count: 1245
  manifest:
    - path: events/active/wedding-smith/DSC_0001.jpg
      size: 4523894
      checksum: sha256:00
database:
  type: postgresql
  schema_version: 097_add_customer_phone
verification:
  total_checksum: sha256:00
";

    #[test]
    fn every_generation_is_read_in_both_forms() {
        for version in ["2.0", "3.0"] {
            let document = written(version);
            let yaml = serde_yaml::to_string(&document).unwrap();
            for text in [document.to_string(), format!(" \n{document:#}\n"), yaml] {
                let foreign = read(text.as_bytes()).unwrap();
                assert_eq!(foreign.id, "backup-20260428-022150-a1b2c3d4");
                assert_eq!(foreign.parent.as_deref(), Some("backup-20260427-022150-0f0e0d0c"));
                assert_eq!((foreign.count, foreign.size), (2, 4_523_894));
                assert_eq!(foreign.time, "2026-04-28T02:21:50.123Z".parse().ok());
                assert!(!format!("{foreign:?}").contains("hunter2"));
            }
        }
    }

    #[test]
    fn the_documented_shape_is_read() {
        let foreign = read(DOCUMENTED.as_bytes()).unwrap();
        assert_eq!(foreign.kind.as_deref(), Some("incremental"));
        assert_eq!(foreign.parent.as_deref(), Some("backup-20260427-022150-0f0e0d0c"));
        assert_eq!((foreign.count, foreign.size), (1245, 4_523_894));
        assert_eq!(foreign.time, "2026-04-28T02:21:50Z".parse().ok());
    }

    #[test]
    fn the_bare_id_of_the_parent_wins() {
        let mut document = written("2.0");
        document["incremental"] = json!({"parent_backup_id": "backup-bare", "changes": {}});
        assert_eq!(read(document.to_string().as_bytes()).unwrap().parent.unwrap(), "backup-bare");
    }

    #[test]
    fn a_cut_document_is_nobodys() {
        let text = written("2.0").to_string();
        for end in [0, 1, text.len() / 2, text.len() - 1] {
            assert!(read(&text.as_bytes()[..end]).is_err(), "{end}");
        }
        assert!(read([text.as_bytes(), b"x"].concat().as_slice()).is_err());
    }

    /// However one byte of it is damaged: prune would go on without it.
    #[test]
    fn a_damaged_manifest_of_ours_is_never_taken_for_anothers() {
        let backup = crate::manifest::Backup {
            id: "b".into(),
            timestamp: "2026-04-28T02:21:50.000Z".into(),
            ..crate::manifest::Backup::default()
        };
        let header = Header::new(&Application::default(), Some(&backup), &Run::default());
        let mut header = header.stored();
        header.set("chain", json!({}));
        let mut trailer = Trailer::default();
        trailer.set_components(&[]);
        trailer.set("objects", json!([]));
        for format in [Format::Json, Format::Yaml] {
            let writer = Writer::new(Vec::new(), format, header.clone()).unwrap();
            let (good, _) = writer.end(trailer.clone()).unwrap();
            assert!(read(&good[..]).is_err());
            for place in 0..good.len() {
                for flip in [0x01, 0x02, 0x20, 0x80] {
                    let mut bad = good.clone();
                    bad[place] ^= flip;
                    assert!(read(&bad[..]).is_err(), "byte {place} ^ {flip:x}");
                }
            }
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let bomb =
            crate::yaml::alias_bomb() + "backup: {id: b}\nfiles: {count: 0, manifest: [*a11]}\n";
        assert!(read(bomb.as_bytes()).is_err());
    }
}
