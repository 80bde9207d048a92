//! Which tables a dump leaves out: the patterns of `pg_dump`, asked of the server beforehand. So no
//! time goes into rows that are not dumped, and it holds for every format.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::Value;

use crate::postgres::session::{Session, literal};

/// What is not in the dump, by number (`pg_class.oid`).
#[derive(Clone, Debug, Default)]
pub struct Excluded {
    /// Tables and sequences.
    pub relations: BTreeSet<u32>,
    /// Tables whose rows are left out, and sequences whose place is.
    pub data: BTreeSet<u32>,
}

impl Excluded {
    /// Resolves `--exclude-table` and `--exclude-table-data` as `pg_dump` does.
    ///
    /// # Errors
    /// What the server said, of a malformed pattern for instance.
    pub fn find(session: &mut Session, tables: &[String], data: &[String]) -> anyhow::Result<Self> {
        let relations = matching(session, tables)?;
        let mut data = matching(session, data)?;
        data.extend(&relations);
        let mut excluded = Excluded { relations, data };
        let columns = identity_sequences(session, &excluded.relations)?;
        excluded.relations.extend(&columns);
        Ok(excluded)
    }
}

/// The relations that one of the patterns means.
fn matching(session: &mut Session, patterns: &[String]) -> anyhow::Result<BTreeSet<u32>> {
    let conditions: Vec<String> = patterns.iter().map(|pattern| condition(pattern)).collect();
    if conditions.is_empty() {
        return Ok(BTreeSet::new());
    }
    let query = format!(
        "SELECT c.oid::int8 AS oid FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'm', 'f', 'v', 'S') AND ({})",
        conditions.join(" OR ")
    );
    session.in_usual_schemas(|session| numbers(session, &query))
}

/// A sequence that is part of a column goes with its table.
fn identity_sequences(
    session: &mut Session,
    tables: &BTreeSet<u32>,
) -> anyhow::Result<BTreeSet<u32>> {
    if tables.is_empty() {
        return Ok(BTreeSet::new());
    }
    let tables: Vec<String> = tables.iter().map(u32::to_string).collect();
    numbers(
        session,
        &format!(
            "SELECT d.objid::int8 AS oid FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S' \
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
                 AND d.deptype = 'i' AND d.refobjid IN ({})",
            tables.join(", ")
        ),
    )
}

fn numbers(session: &mut Session, query: &str) -> anyhow::Result<BTreeSet<u32>> {
    let number = |row: &Value| u32::try_from(row.get("oid")?.as_u64()?).ok();
    let rows = session.rows(query)?;
    rows.iter().map(number).collect::<Option<_>>().context("an unexpected list of tables")
}

/// A pattern as a condition: a name without a schema means what the search path finds.
fn condition(pattern: &str) -> String {
    let mut parts = expressions(pattern);
    let name = parts.pop().unwrap_or_default();
    let matches = |column: &str, expression: &str| {
        format!("{column}::text ~ {}", literal(&format!("^({expression})$")))
    };
    let name = matches("c.relname", &name);
    match parts.pop() {
        Some(schema) => format!("({} AND {name})", matches("n.nspname", &schema)),
        None => format!("({name} AND pg_catalog.pg_table_is_visible(c.oid))"),
    }
}

/// The parts of a pattern as regular expressions, by the rules of `psql`: `*` and `?` as in a
/// shell, no case unless in double quotes, everything else as in a regular expression; in quotes
/// nothing is special.
fn expressions(pattern: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut is_quoted = false;
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        let mut add = |text: &str| {
            if let Some(part) = parts.last_mut() {
                *part += text;
            }
        };
        match character {
            '"' if is_quoted && characters.next_if_eq(&'"').is_some() => add("\""),
            '"' => is_quoted = !is_quoted,
            '.' if !is_quoted => parts.push(String::new()),
            '*' if !is_quoted => add(".*"),
            '?' if !is_quoted => add("."),
            '[' if characters.peek() == Some(&']') => add("\\["),
            '$' => add("\\$"),
            special if is_quoted && "|*+?()[]{}.^\\".contains(special) => {
                add(&format!("\\{special}"));
            }
            plain if is_quoted => add(plain.encode_utf8(&mut [0; 4])),
            plain => add(&plain.to_lowercase().to_string()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_psql() {
        for (pattern, parts) in [
            ("events", &["events"][..]),
            ("Public.Ev*_?", &["public", "ev.*_."]),
            ("\"Odd.Name\".\"a\"\"b*\"", &["Odd\\.Name", "a\"b\\*"]),
            ("(a|b)[0-9]+", &["(a|b)[0-9]+"]),
            ("a$b[]", &["a\\$b\\[]"]),
        ] {
            assert_eq!(expressions(pattern), parts, "{pattern}");
        }
    }
}
