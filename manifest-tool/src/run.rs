//! What is true of one run of a pipe only: where its sources are, what was pushed and proved.
//!
//! It travels in `run` and `verification.run`, is outside the checksums, and is dropped before a
//! manifest is stored.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::time::Time;

/// Facts of this run that later steps need before the first entry; never stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Where the parent's manifest is to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentFile>,
    /// Where the entries' bytes are on this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// Components that hold secrets: they are not to leave this host in clear.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<String>,
    /// The paths of this host that went into archives, absolute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archived: Vec<HostPath>,
    /// Where this manifest lies at the destination: the folder and file below its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The id in the destination's marker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The parent's manifest on this host, as `bk-push manifest` printed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentFile {
    /// Absolute path of the file.
    pub file: String,
}

/// A place that entries come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The component.
    pub component: String,
    /// What it is.
    pub kind: SourceKind,
    /// Absolute path of the folder, as [`HostPath`] writes it; for a bucket its `s3://` name.
    pub root: HostPath,
    /// What stands before the paths below the root; empty for none.
    #[serde(default)]
    pub prefix: HostPath,
    /// The paths below the root that were asked for; none: all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<HostPath>,
    /// How the variables begin that say how a bucket is reached; never what they hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// How its files are stored.
    #[serde(default, skip_serializing_if = "Layout::is_packed")]
    pub layout: Layout,
}

/// How the files of a source are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Many in one volume.
    #[default]
    Packed,
    /// Each an object of its own.
    Plain,
}

impl Layout {
    /// Whether it is [`Layout::Packed`].
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    fn is_packed(&self) -> bool {
        *self == Layout::Packed
    }
}

impl Source {
    /// The recorded paths that it covers with all that is below them; an empty one is everything.
    pub fn areas(&self) -> Vec<Vec<u8>> {
        let joined = |path: &[u8]| match (self.prefix.0.is_empty(), path.is_empty()) {
            (true, _) => path.to_vec(),
            (false, true) => self.prefix.0.clone(),
            (false, false) => [&self.prefix.0, &b"/"[..], path].concat(),
        };
        if self.paths.is_empty() {
            vec![joined(b"")]
        } else {
            self.paths.iter().map(|path| joined(&path.0)).collect()
        }
    }
}

/// Whether a recorded path lies in an area of [`Source::areas`].
pub fn is_within(path: &[u8], area: &[u8]) -> bool {
    area.is_empty()
        || path.strip_prefix(area).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}

/// How a source's entries came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A walked tree: stays where it is.
    Tree,
    /// Files that a dump step made for this run: push removes them once stored.
    Stage,
    /// A listed bucket: stays where it is.
    Bucket,
}

/// Bytes of a path of this host inside JSON: text, or `base64:` and the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPath(pub Vec<u8>);

impl Serialize for HostPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match crate::path::plain_text(&self.0) {
            Some(text) if !text.starts_with("base64:") => serializer.serialize_str(text),
            _ => serializer.serialize_str(&format!("base64:{}", crate::path::to_base64(&self.0))),
        }
    }
}

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix("base64:") {
            None => Ok(HostPath(text.into_bytes())),
            Some(code) => crate::path::from_base64(code)
                .map(HostPath)
                .ok_or_else(|| serde::de::Error::custom("path that is no base64")),
        }
    }
}

/// What is known only at a run's end; never stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndRun {
    /// The worst exit code so far: 0 or 3.
    #[serde(default)]
    pub code: u8,
    /// What push stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Pushed>,
    /// What verify found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proofs: Vec<Proof>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a push or a copy of this run stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The backup's id: proof that the commit was made by this run.
    pub id: String,
    /// Objects that it stored; those of a push are all in the backup's own folder.
    pub objects: u64,
    /// How many of them a copy stored in the folders of backups that this one builds on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub elsewhere: u64,
    /// Their bytes as stored.
    pub stored: u64,
    /// Bytes of content that were read and stored.
    pub read: u64,
    /// Bytes of content that were already at the destination.
    pub inherited: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a verify proved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The manifest that it is about.
    pub total_checksum: Digest,
    /// `present`, `stored`, `content` or `restored`.
    pub level: String,
    /// `all`; `own` for what this run stored; `selected` for a part, which is proof of nothing else.
    pub scope: String,
    /// When.
    pub time: Time,
    /// Where.
    pub host: String,
}
