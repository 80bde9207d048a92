//! What a backup does not hold, and why: exact counts, and the first names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::path::{self, RelPath};

/// Names that are kept over all reasons; counts go on beyond.
pub const NAMES_LIMIT: usize = 10_000;

/// Why a path is not in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Grew, shrank or was replaced while it was read, also at the second try.
    ChangedWhileRead,
    /// A folder that is a backup destination, or was left behind by fetch.
    Destination,
    /// An exclude pattern matches.
    Excluded,
    /// On another file system than the root.
    OtherFileSystem,
    /// A socket: has no content to keep.
    Socket,
    /// Above the size limit.
    TooLarge,
    /// Could not be opened or read.
    Unreadable,
    /// Was listed, then gone.
    Vanished,
}

impl Reason {
    /// Whether it is a fault (exit code 3) rather than a rule that was followed.
    pub fn is_fault(self) -> bool {
        matches!(self, Reason::ChangedWhileRead | Reason::Unreadable)
    }
}

/// Counts and names by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeftOut(BTreeMap<Reason, Group>);

/// What was left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// How many paths; a folder counts once, whatever it holds.
    pub count: u64,
    /// The first of them.
    pub names: Vec<Name>,
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

impl LeftOut {
    /// Counts a path, and keeps its name while there is room.
    pub fn add(&mut self, reason: Reason, path: &RelPath) {
        let has_room = self.0.values().map(|group| group.names.len()).sum::<usize>() < NAMES_LIMIT;
        let group = self.0.entry(reason).or_default();
        group.count += 1;
        if has_room {
            group.names.push(match path.as_text() {
                Some(text) => Name::Path(text.to_owned()),
                None => Name::PathB64(path::to_base64(path.as_bytes())),
            });
        }
    }

    /// Adds what an earlier step left out.
    pub fn merge(&mut self, other: LeftOut) {
        for (reason, group) in other.0 {
            let kept: usize = self.0.values().map(|group| group.names.len()).sum();
            let mine = self.0.entry(reason).or_default();
            mine.count += group.count;
            mine.names.extend(group.names.into_iter().take(NAMES_LIMIT.saturating_sub(kept)));
        }
    }

    /// How many paths were left out for this reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.0.get(&reason).map_or(0, |group| group.count)
    }

    /// The reasons and what they left out.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, &Group)> {
        self.0.iter().map(|(reason, group)| (*reason, group))
    }

    /// Whether something was left out that should not have been.
    pub fn has_fault(&self) -> bool {
        self.0.iter().any(|(reason, group)| reason.is_fault() && group.count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_where_names_stop() {
        let mut left_out = LeftOut::default();
        let path = RelPath::new("a\n").unwrap();
        for _ in 0..NAMES_LIMIT + 5 {
            left_out.add(Reason::Socket, &path);
        }
        let group = left_out.0.get(&Reason::Socket).unwrap();
        assert_eq!((group.count, group.names.len()), (NAMES_LIMIT as u64 + 5, NAMES_LIMIT));
        assert!(!left_out.has_fault());
        let json = serde_json::to_value(&left_out).unwrap();
        assert_eq!(json["socket"]["names"][0]["path_b64"], "YQo=");
        assert_eq!(serde_json::from_value::<LeftOut>(json).unwrap(), left_out);
    }
}
