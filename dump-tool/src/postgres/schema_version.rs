//! The version of the application's schema that a database has.

use bk_manifest::exit::{Exit, classify, fail};
use bk_manifest::progress::Progress;
use serde_json::Value;

use super::contents::FIRST_OF_USERS;
use super::session::{self, Session, identifier, literal};
use crate::schema_version::{PRESETS, Preset};

/// Asks the user's query; without one the tables of known migration programs. The transaction of
/// the session stays open.
///
/// # Errors
/// [`Exit::Usage`] with the server's words if the query fails or does not give one value.
pub(super) fn ask(
    session: &mut Session,
    query: Option<&str>,
    progress: &dyn Progress,
) -> anyhow::Result<Option<String>> {
    match query {
        Some(query) => ask_query(session, query),
        None => ask_presets(session, progress),
    }
}

fn ask_query(session: &mut Session, query: &str) -> anyhow::Result<Option<String>> {
    let refused =
        |why: &str| fail(Exit::Usage, format!("the query of --schema-version-query fails: {why}"));
    let answer = session.in_usual_schemas(|session| session.typed_rows(query));
    let rows = answer.map_err(|error| match classify(&error) {
        Exit::Failed => refused(&format!("{error:#}")),
        _ => error,
    })?;
    if rows.len() > 1 {
        return Err(refused("it gives several rows, and one is wanted"));
    }
    let Some(row) = rows.first().and_then(Value::as_object) else { return Ok(None) };
    if row.len() != 1 {
        return Err(refused(&format!("it gives {} columns, and one is wanted", row.len())));
    }
    row.values().map(text).next().flatten().map_or(Ok(None), |version| match version {
        Ok(version) => Ok(Some(version)),
        Err(why) => Err(refused(why)),
    })
}

/// A value as a text; `None` for null.
fn text(value: &Value) -> Option<Result<String, &'static str>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(Ok(text.clone())),
        Value::Number(number) => Some(Ok(number.to_string())),
        _ => Some(Err("its value is no text")),
    }
}

/// The first migration program that gives a version. Where there is none, tables that could not be
/// asked are warned of: they may be another program's, or the role may not read them.
fn ask_presets(session: &mut Session, progress: &dyn Progress) -> anyhow::Result<Option<String>> {
    let mut failures = Vec::new();
    for preset in PRESETS {
        for schema in schemas(session, preset)? {
            match ask_preset(session, preset, &schema)? {
                Ok(Some(version)) => return Ok(Some(version)),
                Ok(None) => {}
                Err(why) => failures.push((preset, schema, why)),
            }
        }
    }
    for (Preset { name, table, .. }, schema, why) in failures {
        progress.warn(&format!(
            "the schema version cannot be read from {name}'s table '{schema}.{table}': {why}"
        ));
    }
    Ok(None)
}

/// The schemas with a program's table: those of the search path first, then public.
///
/// A column of a type that somebody made may turn to text by a function of theirs: such a table is
/// no program's.
fn schemas(session: &mut Session, preset: &Preset) -> anyhow::Result<Vec<String>> {
    let usual: Vec<String> = session.schemas().iter().map(|schema| literal(schema)).collect();
    let rows = session.rows(&format!(
        "SELECT n.nspname AS name FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN unnest(ARRAY[{}]::text[]) WITH ORDINALITY AS path (name, place) \
             ON path.name = n.nspname \
         WHERE c.relname = {} AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' \
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid \
                 AND a.attnum > 0 AND a.atttypid >= {FIRST_OF_USERS}) \
         ORDER BY path.place NULLS LAST, n.nspname <> 'public', n.nspname",
        usual.join(", "),
        literal(preset.table)
    ))?;
    let name = |row: &Value| row.get("name").and_then(Value::as_str).map(str::to_owned);
    Ok(rows.iter().filter_map(name).collect())
}

/// Asks it of the table in that schema. The schema is not searched, for it may hold functions and
/// operators that fit the query better than the server's own.
fn ask_preset(
    session: &mut Session,
    preset: &Preset,
    schema: &str,
) -> anyhow::Result<Result<Option<String>, String>> {
    let table = identifier(preset.table);
    let query = preset
        .query
        .replace(&format!("FROM {table} "), &format!("FROM {}.{table} ", identifier(schema)));
    session.query("SAVEPOINT bk_schema_version")?;
    session.query(session::TABLES_ONLY)?;
    let answer = session.attempt(&query)?;
    session
        .query("ROLLBACK TO SAVEPOINT bk_schema_version; RELEASE SAVEPOINT bk_schema_version")?;
    let version = |row: &Value| {
        let value = row.as_object()?.values().next()?;
        text(value)?.ok()
    };
    Ok(answer.map(|rows| rows.first().and_then(version)))
}
