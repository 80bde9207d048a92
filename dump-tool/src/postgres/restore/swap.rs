//! The loaded database takes the place of the old one.
//!
//! The old one is closed to connections first, and that is committed: otherwise the application would
//! be back before the renames. Killed behind that, it is there under its own name and takes
//! connections again after [`reopening`]; a rerun does that by itself. Both renames, and what goes
//! with them, are one transaction.

use std::time::Duration;

use bk_manifest::progress::Progress;

use super::guard::Guard;
use crate::postgres::session::{identifier, literal};

/// How long the sessions of the application may take to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the renames are tried, should somebody look into the new database meanwhile.
const TRIES: u32 = 3;

/// The databases that change places.
pub(super) struct Swap<'a> {
    /// The name of the database.
    pub(super) name: &'a str,
    /// What the one that has this name now will be called; none if there is none.
    pub(super) before: Option<&'a str>,
    /// What the loaded one is called as yet.
    pub(super) beside: &'a str,
    /// The comment that it gets.
    pub(super) comment: Option<&'a str>,
}

/// The statement that lets connections into a database again.
pub(super) fn reopening(name: &str) -> String {
    format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", identifier(name))
}

impl Swap<'_> {
    /// Ends all sessions in the two databases and renames them.
    ///
    /// # Errors
    /// What the server said. Both databases are then as they were, unless the way to the server is
    /// lost.
    pub(super) fn commit(&self, guard: &mut Guard, progress: &dyn Progress) -> anyhow::Result<()> {
        let Err(error) = self.try_commit(guard) else { return Ok(()) };
        let mut guard = guard.for_cleanup();
        // The answer to the commit may have been lost, not the commit.
        let is_done = guard.has_database(self.beside).map(|is_there| !is_there);
        if let Ok(true) = is_done {
            return Ok(());
        }
        if self.before.is_some() && guard.run(&reopening(self.name)).is_err() {
            progress.warn(&format!(
                "'{}' may still be closed to connections: {}",
                self.name,
                reopening(self.name)
            ));
        }
        Err(error.context(format!("the database '{}' could not be replaced", self.name)))
    }

    fn try_commit(&self, guard: &mut Guard) -> anyhow::Result<()> {
        if self.before.is_some() {
            guard.run(&format!(
                "ALTER DATABASE {} ALLOW_CONNECTIONS false",
                identifier(self.name)
            ))?;
            guard.end_sessions(self.name, PATIENCE)?;
        }
        let mut left = TRIES;
        loop {
            guard.end_sessions(self.beside, PATIENCE)?;
            let Err(error) = guard.run(&self.renames()) else { return Ok(()) };
            left -= 1;
            bk_manifest::signal::check()?;
            if left == 0 {
                return Err(error);
            }
        }
    }

    fn renames(&self) -> String {
        let (name, beside) = (identifier(self.name), identifier(self.beside));
        let old = self.before.map(identifier).map(|before| {
            format!(
                "ALTER DATABASE {name} RENAME TO {before}; \
                 ALTER DATABASE {before} ALLOW_CONNECTIONS true; "
            )
        });
        let comment = self.comment.map_or_else(|| "NULL".to_owned(), literal);
        format!(
            "BEGIN; {}ALTER DATABASE {beside} RENAME TO {name}; \
             COMMENT ON DATABASE {name} IS {comment}; COMMIT",
            old.unwrap_or_default()
        )
    }
}
