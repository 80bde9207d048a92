//! How deep a verify looks, and how much it covers.

/// How deep to look; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every object needed is there with its size.
    Present,
    /// Its bytes have their checksum.
    Stored,
    /// Every file is decoded and hashed, every dump read to its end.
    Content,
}

impl Level {
    /// The word in proofs and reports.
    pub fn word(self) -> &'static str {
        match self {
            Level::Present => "present",
            Level::Stored => "stored",
            Level::Content => "content",
        }
    }
}

/// How much is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that the backup needs, wherever it lies.
    All,
    /// What lies in the backup's own folder: what its push stored.
    Own,
    /// What the selected entries need; proof of nothing else.
    Selected,
}

impl Scope {
    /// The word in proofs and reports.
    pub fn word(self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Own => "own",
            Scope::Selected => "selected",
        }
    }
}

/// One thing to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// How deep.
    pub level: Level,
    /// How much.
    pub scope: Scope,
}

impl Task {
    /// Whether the bytes of an object are to be read and hashed as a whole.
    ///
    /// Selected entries at [`Level::Content`] are decoded by themselves: the rest of a volume that
    /// holds one of them is not read.
    pub fn reads(self, is_own: bool) -> bool {
        match (self.level, self.scope) {
            (Level::Present, _) | (Level::Content, Scope::Selected) => false,
            (_, Scope::Own) => is_own,
            (_, Scope::All | Scope::Selected) => true,
        }
    }
}

/// What to prove: what was asked for, or else what fits the place in the pipe.
///
/// Behind the push of this very backup that is `present` for all and `stored` for what the push
/// stored (what prune asks for); elsewhere it is `stored`.
pub fn tasks(asked: Option<Level>, is_all: bool, is_behind_push: bool) -> Vec<Task> {
    let task = |level, scope| Task { level, scope };
    let scope = if is_all { Scope::All } else { Scope::Selected };
    match asked {
        Some(level) => vec![task(level, scope)],
        None if is_behind_push && is_all => {
            vec![task(Level::Present, Scope::All), task(Level::Stored, Scope::Own)]
        }
        None => vec![task(Level::Stored, scope)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_depends_on_the_pipe() {
        let words = |tasks: Vec<Task>| -> Vec<_> {
            tasks.iter().map(|task| (task.level.word(), task.scope.word())).collect()
        };
        assert_eq!(words(tasks(None, true, true)), [("present", "all"), ("stored", "own")]);
        assert_eq!(words(tasks(None, true, false)), [("stored", "all")]);
        assert_eq!(words(tasks(None, false, true)), [("stored", "selected")]);
        assert_eq!(words(tasks(Some(Level::Content), true, true)), [("content", "all")]);
    }

    #[test]
    fn content_of_all_reads_whole_objects_and_content_of_some_does_not() {
        let reads = |level, scope, is_own| Task { level, scope }.reads(is_own);
        assert!(!reads(Level::Present, Scope::All, true));
        assert!(reads(Level::Stored, Scope::Own, true));
        assert!(!reads(Level::Stored, Scope::Own, false));
        assert!(reads(Level::Content, Scope::All, false));
        assert!(!reads(Level::Content, Scope::Selected, true));
    }
}
