//! The version of the application's schema that a database has.

use bk_manifest::exit::{Exit, fail};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::words;
use crate::schema_version::{PRESETS, Preset};

/// A version, and what told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SchemaVersion {
    /// As the application writes it.
    pub(super) version: String,
    /// `query`, `user_version`, or the name of a migration program.
    pub(super) told_by: &'static str,
}

/// Asks the user's query; without one `user_version`, where it is used, then the tables of known
/// migration programs.
///
/// # Errors
/// [`Exit::Usage`] with SQLite's words if the query fails or does not give one value.
pub(super) fn ask(
    database: &Connection,
    user_version: i64,
    query: Option<&str>,
) -> anyhow::Result<Option<SchemaVersion>> {
    if let Some(query) = query {
        let version = ask_query(database, query)?;
        return Ok(version.map(|version| SchemaVersion { version, told_by: "query" }));
    }
    if user_version != 0 {
        let version = user_version.to_string();
        return Ok(Some(SchemaVersion { version, told_by: "user_version" }));
    }
    Ok(PRESETS.iter().find_map(|preset| {
        // An error means that the table is another program's.
        let version = ask_preset(database, preset).ok().flatten()?;
        Some(SchemaVersion { version, told_by: preset.name })
    }))
}

fn ask_preset(database: &Connection, preset: &Preset) -> rusqlite::Result<Option<String>> {
    let is_there: bool = database.query_row(
        "SELECT count(*) > 0 FROM main.sqlite_schema WHERE type = 'table' AND name = ?1",
        [preset.table],
        |row| row.get(0),
    )?;
    if !is_there {
        return Ok(None);
    }
    let mut statement = database.prepare(preset.query)?;
    let mut rows = statement.query([])?;
    rows.next()?.map_or(Ok(None), |row| Ok(text(row.get_ref(0)?)))
}

fn ask_query(database: &Connection, query: &str) -> anyhow::Result<Option<String>> {
    let refused =
        |why: &str| fail(Exit::Usage, format!("the query of --schema-version-query fails: {why}"));
    let failed = |error: rusqlite::Error| refused(&words(&error));
    let mut statement = database.prepare(query).map_err(failed)?;
    if statement.column_count() != 1 {
        let columns = statement.column_count();
        return Err(refused(&format!("it gives {columns} columns, and one is wanted")));
    }
    let mut rows = statement.query([]).map_err(failed)?;
    let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
    let value = row.get_ref(0).map_err(failed)?;
    let version = text(value);
    if version.is_none() && !matches!(value, ValueRef::Null) {
        return Err(refused("its value is no text"));
    }
    if rows.next().map_err(failed)?.is_some() {
        return Err(refused("it gives several rows, and one is wanted"));
    }
    Ok(version)
}

/// A value that can be written as a line.
fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        ValueRef::Null | ValueRef::Blob(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;

    fn filled(statements: &str) -> Connection {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch(statements).unwrap();
        database
    }

    #[test]
    fn the_first_that_knows_is_believed() {
        let knex = "CREATE TABLE knex_migrations (id INTEGER PRIMARY KEY, name TEXT);
            INSERT INTO knex_migrations VALUES (1, '001_init.js');";
        let stranger = "CREATE TABLE _prisma_migrations (other);
            INSERT INTO _prisma_migrations VALUES ('x');";
        let both = filled(&format!("{stranger} {knex}"));
        let version =
            |version: &str, told_by| Some(SchemaVersion { version: version.into(), told_by });
        assert_eq!(ask(&both, 0, None).unwrap(), version("001_init.js", "Knex"));
        assert_eq!(ask(&both, 7, None).unwrap(), version("7", "user_version"));
        assert_eq!(ask(&both, 7, Some("SELECT 1.5")).unwrap(), version("1.5", "query"));
        assert_eq!(ask(&both, 7, Some("SELECT NULL")).unwrap(), None);
        assert_eq!(ask(&both, 7, Some("SELECT 1 WHERE 0")).unwrap(), None);
        assert_eq!(ask(&filled(stranger), 0, None).unwrap(), None);
    }

    #[test]
    fn a_query_that_gives_no_version_is_refused() {
        let database = filled("CREATE TABLE t (a)");
        for (query, says) in [
            ("SELECT v FROM settings", "no such table: settings"),
            ("SELEKT", "syntax error"),
            ("", "0 columns"),
            ("DELETE FROM t", "0 columns"),
            ("SELECT 1, 2", "2 columns"),
            ("SELECT 1 UNION SELECT 2", "several rows"),
            ("SELECT x'00'", "no text"),
        ] {
            let error = ask(&database, 1, Some(query)).unwrap_err();
            assert_eq!(classify(&error), Exit::Usage);
            assert!(error.to_string().contains(says), "{query}: {error}");
        }
    }
}
