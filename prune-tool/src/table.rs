//! What is known of each name at the destination, and what becomes of it. Names may be millions, so
//! the table is outside of memory.

use bk_manifest::lookup::Lookup;
use bk_push::names;
use bk_push::partial;
use bk_push::place::may_be_object;

/// A due mark names it.
pub(crate) const DUE: u64 = 1;
/// A mark that is not due names it.
pub(crate) const PENDING: u64 = 1 << 1;
/// A backup that goes needs it, or a dead push left it.
pub(crate) const LEFT: u64 = 1 << 2;
/// A partial list names it, or has it as its piece, that is let be.
pub(crate) const HELD: u64 = 1 << 3;
/// A backup that is kept needs it.
pub(crate) const KEPT: u64 = 1 << 4;
/// A backup that is marked needs it until it goes itself.
pub(crate) const STAYS: u64 = 1 << 5;
/// It is a side file of a backup that is listed.
pub(crate) const SIDE: u64 = 1 << 6;
/// The newest complete backup needs it; its size stands above the bits.
pub(crate) const REQUIRED: u64 = 1 << 7;
/// It is required, and was found with its size.
pub(crate) const FOUND: u64 = 1 << 8;
/// Where the size begins: no size has more than 53 bits.
const SIZE_SHIFT: u32 = 9;

/// What is known of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State(u64);

/// What becomes of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is deleted now.
    Deleted,
    /// It is marked now.
    Marked,
    /// It is let be.
    Stays,
}

impl State {
    pub(crate) fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// Whether anything accounts for the name.
    pub(crate) fn is_known(self) -> bool {
        self.0 != 0
    }

    /// Whether the name is required to have this size.
    pub(crate) fn requires(self, size: u64) -> bool {
        self.has(REQUIRED) && self.0 >> SIZE_SHIFT == size
    }

    /// What becomes of the name that it is known of.
    ///
    /// An object that a due mark names and a live list holds is marked anew: the push behind the
    /// list has slept, may have stored its content again under another name, and forgets it with
    /// its list. So is what a due mark names and a marked backup needs: it would be forgotten with
    /// the mark.
    pub(crate) fn verdict(self, name: &str) -> Verdict {
        let is_object = may_be_object(name);
        if !is_object && partial_list_of(name).is_none() {
            return Verdict::Stays;
        }
        let is_due = self.has(DUE) && !self.has(KEPT | STAYS);
        let is_held = self.has(HELD);
        if is_due && !is_held {
            return Verdict::Deleted;
        }
        let is_needless = self.has(DUE | LEFT) && !self.has(KEPT | SIDE | PENDING);
        if is_needless && (!is_held || (is_due && is_object)) {
            Verdict::Marked
        } else {
            Verdict::Stays
        }
    }
}

/// Names and what is known of them.
#[derive(Default)]
pub(crate) struct Table(Lookup);

impl Table {
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<State> {
        if self.0.is_empty() {
            return Ok(State::default());
        }
        Ok(State(self.0.get(names::key(name))?.unwrap_or_default()))
    }

    /// Adds to what is known of a name; returns what was known before.
    pub(crate) fn add(&mut self, name: &str, flags: u64) -> anyhow::Result<State> {
        let key = names::key(name);
        let before = self.0.get(key)?.unwrap_or_default();
        if before | flags != before {
            self.0.insert(key, before | flags)?;
        }
        Ok(State(before))
    }

    /// Notes that a name must be there with this size; returns what was known before.
    pub(crate) fn require(&mut self, name: &str, size: u64) -> anyhow::Result<State> {
        let flags = if self.get(name)?.has(REQUIRED) { 0 } else { size << SIZE_SHIFT };
        self.add(name, flags | REQUIRED)
    }
}

/// The backup's id if the name is that of a piece of a partial list.
pub(crate) fn partial_list_of(name: &str) -> Option<&str> {
    let (id, piece) = name.strip_prefix(partial::FOLDER)?.strip_prefix('/')?.split_once('/')?;
    (!id.is_empty() && !piece.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_partial_lists_are_told_by_name() {
        assert_eq!(partial_list_of(".bk/partial/b1/begun.json"), Some("b1"));
        for name in [".bk/partial/b1", ".bk/partial//x", ".bk/partialx/b/c", ".bk/marks/x.json"] {
            assert_eq!(partial_list_of(name), None, "{name}");
        }
    }

    #[test]
    fn what_anything_needs_stays() {
        use Verdict::{Deleted, Marked, Stays};
        let cases = [
            (0, Stays),
            (DUE, Deleted),
            (LEFT, Marked),
            (DUE | LEFT, Deleted),
            (LEFT | PENDING, Stays),
            (DUE | PENDING, Deleted),
            (DUE | KEPT, Stays),
            (LEFT | KEPT, Stays),
            (DUE | LEFT | KEPT | STAYS, Stays),
            (LEFT | STAYS, Marked),
            (DUE | STAYS, Marked),
            (DUE | STAYS | PENDING, Stays),
            (LEFT | HELD, Stays),
            (DUE | HELD, Marked),
            (DUE | HELD | STAYS, Stays),
            (DUE | SIDE, Deleted),
            (DUE | SIDE | STAYS, Stays),
            (LEFT | SIDE, Stays),
        ];
        for (flags, verdict) in cases {
            assert_eq!(State(flags).verdict("b/minio/a"), verdict, "{flags:b}");
            for own in [".bk-destination", ".bk/lock", "b/manifest.json"] {
                assert_eq!(State(flags).verdict(own), Stays, "{own}");
            }
        }
        // A live list's pieces are not marked anew.
        assert_eq!(State(DUE | HELD).verdict(".bk/partial/b/begun.json"), Stays);
        assert_eq!(State(DUE).verdict(".bk/partial/b/begun.json"), Deleted);
    }

    #[test]
    fn what_is_required_keeps_its_size() {
        let mut table = Table::default();
        table.add("a", KEPT).unwrap();
        assert!(!table.require("a", 1 << 53).unwrap().has(REQUIRED));
        assert!(table.require("a", 7).unwrap().has(REQUIRED), "the first one counts");
        table.add("a", LEFT).unwrap();
        let state = table.get("a").unwrap();
        assert!(state.requires(1 << 53) && !state.requires(7) && state.has(KEPT));
        assert!(!table.get("b").unwrap().is_known());
    }
}
