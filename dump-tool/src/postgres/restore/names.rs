//! The names of the databases that a restore makes and keeps.

use bk_manifest::time::Time;

/// Bytes that PostgreSQL keeps of a name (`NAMEDATALEN - 1`); of a longer one it drops the rest.
pub(super) const NAME_LIMIT: usize = 63;

/// Stands between the two parts of such a name.
const BESIDE: &str = "__bk_";
/// Characters of a backup's id that end such a name.
pub(super) const ID_END: usize = 8;

/// The database that a backup is loaded into before it becomes `name`.
pub(super) fn beside(name: &str, backup: &str) -> String {
    let start = backup.char_indices().rev().nth(ID_END - 1).map_or(0, |(start, _)| start);
    with_suffix(name, &format!("{BESIDE}{}", &backup[start..]))
}

/// What all names by [`beside`] for `name` begin with, whatever the backup; none if they are cut, when
/// others' may begin with the same.
pub(super) fn beside_prefix(name: &str) -> Option<String> {
    let prefix = format!("{name}{BESIDE}");
    (prefix.len() + ID_END <= NAME_LIMIT).then_some(prefix)
}

/// Stands between the name of a database that was replaced and the time.
const BEFORE: &str = "__before_";

/// What the database that was called `name` is called once it was replaced.
pub(super) fn before(name: &str, now: Time) -> String {
    with_suffix(name, &format!("{BEFORE}{}", now.format("%Y%m%dT%H%M%SZ")))
}

/// Whether that is the name of a database that was replaced, by a restore.
pub fn is_before(name: &str) -> bool {
    let is_stamp = |(at, c): (usize, char)| match at {
        8 => c == 'T',
        15 => c == 'Z',
        _ => c.is_ascii_digit(),
    };
    let time = name.rsplit_once(BEFORE).map(|(_, time)| time);
    time.is_some_and(|time| time.len() == 16 && time.chars().enumerate().all(is_stamp))
}

/// Cuts the name between two characters, so that all of the suffix fits.
fn with_suffix(name: &str, suffix: &str) -> String {
    let kept = name.floor_char_boundary(NAME_LIMIT.saturating_sub(suffix.len()));
    format!("{}{suffix}", &name[..kept])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_where_they_come_from() {
        let now = Time::from_unix(1_777_342_910, 5);
        assert_eq!(beside("app", "backup-20260428-022150-a1b2c3d4"), "app__bk_a1b2c3d4");
        assert_eq!(beside("app", "b"), "app__bk_b");
        assert_eq!(beside_prefix("app").unwrap(), "app__bk_");
        assert_eq!(beside_prefix(&"n".repeat(50)).unwrap().len(), 55);
        assert_eq!(beside_prefix(&"n".repeat(51)), None);
        assert_eq!(before("app", now), "app__before_20260428T022150Z");
        assert!(is_before(&before("app", now)) && is_before(&before(&"n".repeat(63), now)));
        assert!(!is_before("app__before_launch"));
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let now = Time::from_unix(0, 0);
        for name in ["n".repeat(63), "ü".repeat(31) + "x", "日".repeat(21), "🙂".repeat(15)] {
            for other in [beside(&name, "backup-a1b2c3d4"), before(&name, now)] {
                assert!(other.len() <= NAME_LIMIT && other.len() > NAME_LIMIT - 4, "{other}");
                assert!(other.contains("__b"), "{other}");
            }
        }
    }
}
