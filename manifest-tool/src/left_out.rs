//! What a backup does not hold, and why: exact counts, and the first names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::path::{self, RelPath};

/// Names that are kept over all reasons; counts go on beyond.
pub const NAMES_LIMIT: usize = 10_000;

/// Why a path is not in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Grew, shrank or was replaced while it was read, also at the second try. What was read is
    /// stored, unless the file became shorter than it said.
    ChangedWhileRead,
    /// A folder that is a backup destination, or a stage of dumps, or was left behind by fetch.
    Destination,
    /// An exclude pattern matches.
    Excluded,
    /// On another file system than the root.
    OtherFileSystem,
    /// A socket: has no content to keep.
    Socket,
    /// Above the size limit.
    TooLarge,
    /// A bucket's key that can be no path: an empty part, `.` or `..` in it, or that of an object
    /// which would have to be a folder too.
    Unnameable,
    /// Could not be opened or read.
    Unreadable,
    /// Was listed, then gone.
    Vanished,
}

impl Reason {
    /// Whether it is a fault (exit code 3) rather than a rule that was followed.
    pub fn is_fault(self) -> bool {
        matches!(self, Reason::ChangedWhileRead | Reason::Unnameable | Reason::Unreadable)
    }
}

/// Counts and names by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    groups: BTreeMap<Reason, Group>,
    /// Reasons that this version does not know; kept as they came.
    others: Map<String, Value>,
}

/// What was left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// How many paths; a folder counts once, whatever it holds.
    pub count: u64,
    /// The first of them.
    #[serde(default)]
    pub names: Vec<Name>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A path in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// Plain text.
    Path(String),
    /// Standard base64 of anything else.
    PathB64(String),
}

impl Name {
    /// As people see it, whatever bytes it holds.
    pub fn shown(&self) -> String {
        match self {
            Name::Path(text) => text.clone(),
            Name::PathB64(code) => match path::from_base64(code) {
                Some(bytes) => path::escape(&bytes),
                None => code.clone(),
            },
        }
    }
}

impl LeftOut {
    /// Counts a path, and keeps its name while there is room.
    pub fn add(&mut self, reason: Reason, path: &RelPath) {
        self.add_name(reason, path.as_bytes());
    }

    /// Counts what has a name that can be no path.
    pub fn add_name(&mut self, reason: Reason, name: &[u8]) {
        let has_room =
            self.groups.values().map(|group| group.names.len()).sum::<usize>() < NAMES_LIMIT;
        let group = self.groups.entry(reason).or_default();
        group.count += 1;
        if has_room {
            group.names.push(match path::plain_text(name) {
                Some(text) => Name::Path(text.to_owned()),
                None => Name::PathB64(path::to_base64(name)),
            });
        }
    }

    /// Adds what an earlier step left out.
    pub fn merge(&mut self, other: LeftOut) {
        self.others.extend(other.others);
        for (reason, group) in other.groups {
            let kept: usize = self.groups.values().map(|group| group.names.len()).sum();
            let mine = self.groups.entry(reason).or_default();
            mine.count = mine.count.saturating_add(group.count);
            mine.extra.extend(group.extra);
            mine.names.extend(group.names.into_iter().take(NAMES_LIMIT.saturating_sub(kept)));
        }
    }

    /// What was left out for this reason, if anything was.
    pub fn group(&self, reason: Reason) -> Option<&Group> {
        self.groups.get(&reason)
    }

    /// How many paths were left out for this reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.groups.get(&reason).map_or(0, |group| group.count)
    }

    /// The reasons and what they left out.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, &Group)> {
        self.groups.iter().map(|(reason, group)| (*reason, group))
    }

    /// Reasons that this version does not know, and what stands there.
    pub fn others(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.others.iter().map(|(reason, value)| (reason.as_str(), value))
    }

    /// Whether something was left out that should not have been.
    pub fn has_fault(&self) -> bool {
        self.groups.iter().any(|(reason, group)| reason.is_fault() && group.count > 0)
    }
}

impl Serialize for LeftOut {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        for (reason, group) in &self.groups {
            map.serialize_entry(reason, group)?;
        }
        for (reason, value) in &self.others {
            map.serialize_entry(reason, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for LeftOut {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut left_out = LeftOut::default();
        for (name, value) in Map::deserialize(deserializer)? {
            match Reason::deserialize(Value::from(name.as_str())) {
                Ok(reason) => {
                    let group = Group::deserialize(value).map_err(serde::de::Error::custom)?;
                    left_out.groups.insert(reason, group);
                }
                Err(_) => {
                    left_out.others.insert(name, value);
                }
            }
        }
        Ok(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_a_later_version_are_kept() {
        let json = serde_json::json!({"socket":{"count":1,"names":[],"x":2},"too_odd":{"count":3}});
        let mut left_out: LeftOut = serde_json::from_value(json.clone()).unwrap();
        left_out.merge(LeftOut::default());
        assert_eq!(serde_json::to_value(&left_out).unwrap(), json);
    }

    #[test]
    fn counts_go_on_where_names_stop() {
        let mut left_out = LeftOut::default();
        let path = RelPath::new("a\n").unwrap();
        for _ in 0..NAMES_LIMIT + 5 {
            left_out.add(Reason::Socket, &path);
        }
        let group = left_out.groups.get(&Reason::Socket).unwrap();
        assert_eq!((group.count, group.names.len()), (NAMES_LIMIT as u64 + 5, NAMES_LIMIT));
        assert!(!left_out.has_fault());
        let json = serde_json::to_value(&left_out).unwrap();
        assert_eq!(json["socket"]["names"][0]["path_b64"], "YQo=");
        assert_eq!(serde_json::from_value::<LeftOut>(json).unwrap(), left_out);
    }
}
