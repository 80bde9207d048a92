//! Whether a database is sound, and whether its rows refer to rows that are there.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bk_manifest::command::Cancel;
use bk_manifest::progress::Progress;
use rusqlite::{Connection, ErrorCode};

use super::{quoted, words};

/// How many tables are named.
const NAMED: usize = 3;
/// How often it is looked whether to stop.
const TICK: Duration = Duration::from_millis(100);

/// Does work that SQLite breaks off once it is time to stop: some statements take minutes before
/// they give a row.
///
/// # Errors
/// Being stopped.
pub(super) fn stoppable<T>(
    database: &Connection,
    cancel: &Cancel,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    let handle = database.get_interrupt_handle();
    let (working, is_working) = mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            while is_working.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if cancel.check().is_err() {
                    handle.interrupt();
                }
            }
        });
        let result = work();
        drop(working);
        result
    });
    cancel.check()?;
    Ok(result)
}

/// What `integrity_check` finds wrong, in one line.
///
/// Where a collation or function of the application's own is needed, the structure is checked; a
/// table that cannot even be walked without it is left out, with a warning.
pub(super) fn fault(database: &Connection, progress: &dyn Progress) -> Option<String> {
    let mut found = check(database, "PRAGMA integrity_check(3)");
    if let Err(error) = &found
        && is_for_the_application(error)
    {
        let why = words(error);
        progress.warn(&format!("only the structure of the copy could be checked: {why}"));
        found = check(database, "PRAGMA quick_check(3)");
    }
    if found.as_ref().is_err_and(is_for_the_application) {
        found = check_each(database, progress);
    }
    match found {
        Ok(lines) if lines.is_empty() => None,
        Ok(lines) => Some(lines.join("; ").replace('\n', " ")),
        Err(error) => Some(words(&error)),
    }
}

fn is_for_the_application(error: &rusqlite::Error) -> bool {
    // A function is unknown only once an index or a constraint needs its value.
    let words = words(error);
    words.starts_with("no such") || words.starts_with("unknown function")
}

/// What a check finds; nothing where all is well.
fn check(database: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = database.prepare(pragma)?;
    let lines: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(if lines == ["ok"] { Vec::new() } else { lines })
}

/// Checks one table after the other, but those that need what only the application has.
fn check_each(database: &Connection, progress: &dyn Progress) -> rusqlite::Result<Vec<String>> {
    let query = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND rootpage <> 0";
    let mut statement = database.prepare(query)?;
    let names: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for name in names {
        match check(database, &format!("PRAGMA main.quick_check({})", quoted(&name))) {
            Err(error) if is_for_the_application(&error) => {
                let (name, why) = (name.escape_debug(), words(&error));
                progress.warn(&format!("the table '{name}' could not be checked: {why}"));
            }
            Ok(lines) if lines.is_empty() => {}
            found => return found,
        }
    }
    Ok(Vec::new())
}

/// Counts the rows that refer to rows that are not there, with a warning that names the first
/// tables. That is no damage: SQLite does not look at foreign keys unless the application asks for
/// it. `None` where it cannot be told.
///
/// # Errors
/// What SQLite says of a database that cannot be read (a [`rusqlite::Error`]); being stopped.
pub(super) fn foreign_key_violations(
    database: &Connection,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<Option<u64>> {
    match violations(database, cancel) {
        Ok((0, _)) => Ok(Some(0)),
        Ok((count, tables)) => {
            let dots = if tables.len() > NAMED { ", …" } else { "" };
            let named = tables[..tables.len().min(NAMED)].join("', '");
            progress.warn(&format!(
                "foreign keys: {count} rows refer to rows that are not there, in '{named}'{dots}"
            ));
            Ok(Some(count))
        }
        Err(error) => match error.downcast::<rusqlite::Error>() {
            // A key that fits no column, or a collation of the application's own.
            Ok(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                progress.warn(&format!("foreign keys cannot be checked: {}", words(&error)));
                Ok(None)
            }
            Ok(error) => Err(error.into()),
            Err(error) => Err(error),
        },
    }
}

/// How many, and the first tables by name: one more than is shown.
fn violations(database: &Connection, cancel: &Cancel) -> anyhow::Result<(u64, Vec<String>)> {
    let mut statement = database.prepare("PRAGMA main.foreign_key_check")?;
    let mut rows = statement.query([])?;
    let (mut count, mut tables) = (0, Vec::new());
    while let Some(row) = rows.next()? {
        count += 1;
        if count % 1024 == 0 {
            cancel.check()?;
        }
        if tables.len() <= NAMED {
            let name = String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default())
                .escape_debug()
                .to_string();
            if !tables.contains(&name) {
                tables.push(name);
            }
        }
    }
    Ok((count, tables))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Progress for Warnings {
        fn warn(&self, message: &str) {
            self.0.lock().unwrap().push(message.to_owned());
        }
        fn note(&self, _: &str) {}
        fn begin(&self, _: &str, _: Option<u64>) {}
        fn advance(&self, _: u64, _: u64) {}
        fn end(&self) {}
    }

    fn count(statements: &str) -> (Option<u64>, Vec<String>) {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        database.execute_batch(statements).unwrap();
        let warnings = Warnings::default();
        let count = foreign_key_violations(&database, &Cancel::default(), &warnings).unwrap();
        (count, warnings.0.into_inner().unwrap())
    }

    #[test]
    fn rows_without_their_parents_are_counted_and_their_tables_named() {
        let parent = "CREATE TABLE p (id INTEGER PRIMARY KEY); INSERT INTO p VALUES (1);";
        let child = |name: &str, rows: &str| {
            format!(
                "CREATE TABLE {name} (p INT REFERENCES p (id)); INSERT INTO {name} VALUES {rows};"
            )
        };
        assert_eq!(count(&[parent, &child("c", "(1), (NULL)")].concat()), (Some(0), vec![]));
        let (found, warnings) = count(&[parent, &child("c", "(1), (2), (3)")].concat());
        assert_eq!(found, Some(2));
        assert_eq!(warnings, ["foreign keys: 2 rows refer to rows that are not there, in 'c'"]);
        let five: String = ["a", "b", "c", "d", "e"].map(|name| child(name, "(7)")).concat();
        let (found, warnings) = count(&[parent, &five].concat());
        assert_eq!(found, Some(5));
        assert_eq!(warnings[0].matches('\'').count(), 2 * NAMED);
        assert!(warnings[0].ends_with('…'), "{warnings:?}");
    }

    #[test]
    fn what_only_the_application_has_is_no_damage() {
        let own = |of: &str, with: &str| {
            let database = Connection::open_in_memory().unwrap();
            database
                .execute_batch(&format!(
                    "CREATE TABLE t (a, b); CREATE INDEX i ON t (a); INSERT INTO t VALUES (1, 2);
                     PRAGMA writable_schema = ON;
                     UPDATE sqlite_schema SET sql = '{with}' WHERE name = '{of}';
                     PRAGMA writable_schema = RESET"
                ))
                .unwrap();
            let warnings = Warnings::default();
            let fault = fault(&database, &warnings);
            (fault, warnings.0.into_inner().unwrap().concat())
        };
        for (of, with) in [
            ("i", "CREATE INDEX i ON t (own(a))"),
            ("i", "CREATE INDEX i ON t (a COLLATE own)"),
            ("i", "CREATE INDEX i ON t (a) WHERE own(b)"),
            ("t", "CREATE TABLE t (a, b CHECK (own(b)))"),
        ] {
            let (fault, warnings) = own(of, with);
            assert_eq!(fault, None, "{with}");
            assert!(warnings.contains("own"), "{with}: {warnings}");
        }
    }

    #[test]
    fn a_statement_without_an_end_is_stopped() {
        let database = Connection::open_in_memory().unwrap();
        let endless = "WITH RECURSIVE n (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
        let cancel = Cancel::default();
        let stopped = std::thread::scope(|scope| {
            let other = cancel.clone();
            scope.spawn(move || other.cancel());
            stoppable(&database, &cancel, || {
                database.query_row(endless, [], |row| row.get::<_, i64>(0))
            })
        });
        assert!(stopped.is_err());
        let cancel = Cancel::default();
        assert_eq!(stoppable(&database, &cancel, || 7).unwrap(), 7);
    }

    #[test]
    fn keys_that_fit_no_column_are_told() {
        let (found, warnings) = count(
            "CREATE TABLE p (a); CREATE TABLE c (p REFERENCES p (a)); INSERT INTO c VALUES (1)",
        );
        assert_eq!(found, None);
        assert!(warnings[0].contains("mismatch"), "{warnings:?}");
    }
}
