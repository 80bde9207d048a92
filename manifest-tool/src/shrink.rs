//! A source that holds much less than at the last backup is refused: a mistyped prefix or a folder
//! that is not mounted must not become the backup that all good ones are pruned for.

use std::fs::File;

use anyhow::Context;

use crate::entry::{Entry, Kind};
use crate::exit::{Exit, Failure};
use crate::manifest::Component;
use crate::outer;
use crate::progress::human_bytes;
use crate::run::ParentFile;

/// With fewer files than this one of them may be most of the bytes: the number of files tells then.
const FEW_FILES: u64 = 10;

/// How much less a source may hold than in the parent, in percent; 100: however little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxShrink(pub u8);

/// How much a source holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// How many things that are no folders.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Extent {
    /// Counts an entry.
    pub fn add(&mut self, entry: &Entry) {
        if entry.kind != Kind::Directory {
            self.files += 1;
        }
        if entry.is_file() {
            self.bytes = self.bytes.saturating_add(entry.size.unwrap_or(0));
        }
    }
}

impl Default for MaxShrink {
    fn default() -> Self {
        MaxShrink::NO_LIMIT
    }
}

impl MaxShrink {
    /// Everything passes.
    pub const NO_LIMIT: Self = MaxShrink(100);

    /// Compares what the source of a component holds with what the parent has of it.
    ///
    /// # Errors
    /// [`Exit::Unmet`] naming both figures.
    pub fn check(self, component: &str, before: Extent, now: Extent) -> anyhow::Result<()> {
        let (held, holds) = if self.is_beyond(before.files, now.files) {
            (before.files.to_string(), format!("{} files", now.files))
        } else if before.files >= FEW_FILES && self.is_beyond(before.bytes, now.bytes) {
            (human_bytes(before.bytes), human_bytes(now.bytes))
        } else {
            return Ok(());
        };
        let message = format!(
            "'{component}' holds {holds}, in the last backup {held}: it shrank by more than {} %",
            self.0
        );
        Err(refusal(message, "is this the right place, and all of it there?"))
    }

    /// The components of the parent that a new backup is judged by; none without a parent or a limit.
    ///
    /// # Errors
    /// A parent that cannot be read.
    pub fn components(self, parent: Option<&ParentFile>) -> anyhow::Result<Vec<Component>> {
        let Some(parent) = parent.filter(|_| self != MaxShrink::NO_LIMIT) else {
            return Ok(Vec::new());
        };
        let context = || format!("the parent's manifest '{}'", parent.file);
        let file = File::open(&parent.file).with_context(context)?;
        let (_, trailer) = outer::read_file(&file).with_context(context)?;
        trailer.components().with_context(context)
    }

    /// Whether one figure is too small beside another.
    pub fn is_beyond(self, before: u64, now: u64) -> bool {
        let allowed = u128::from(100 - self.0.min(100));
        u128::from(now) * 100 < u128::from(before) * allowed
    }
}

/// The refusal of what shrank, with what to ask oneself and what to say if it is meant.
pub fn refusal(message: String, question: &str) -> anyhow::Error {
    let hint = format!("{question} If so, say it once: --max-shrink 100, BACKUP_MAX_SHRINK=100");
    Failure::new(Exit::Unmet, message).hint(hint).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::classify;

    fn extent(files: u64, bytes: u64) -> Extent {
        Extent { files, bytes }
    }

    #[test]
    fn files_that_are_gone_are_noticed_at_the_border() {
        let before = extent(1000, 1000);
        assert!(MaxShrink(90).check("minio", before, extent(100, 100)).is_ok());
        let error = MaxShrink(90).check("minio", before, extent(99, 1000)).unwrap_err();
        assert_eq!(classify(&error), Exit::Unmet);
        assert!(error.to_string().contains("99 files, in the last backup 1000"), "{error}");
        let error = MaxShrink(90).check("minio", before, extent(1000, 99)).unwrap_err();
        assert!(error.to_string().contains("99 B, in the last backup 1000 B"), "{error}");
        assert!(MaxShrink::NO_LIMIT.check("minio", before, extent(0, 0)).is_ok());
        assert!(MaxShrink(90).check("minio", extent(0, 0), extent(0, 0)).is_ok());
    }

    #[test]
    fn one_of_few_files_may_become_small_but_not_all_of_them_may_go() {
        assert!(MaxShrink(90).check("files", extent(9, 1000), extent(9, 1)).is_ok());
        assert!(MaxShrink(90).check("files", extent(10, 1000), extent(10, 1)).is_err());
        assert!(MaxShrink(90).check("files", extent(5, 10), extent(1, 2)).is_ok());
        assert!(MaxShrink(90).check("files", extent(1, 10), extent(0, 0)).is_err());
    }
}
