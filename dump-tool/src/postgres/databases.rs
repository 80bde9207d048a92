//! Several databases of one server, each a component of its own.

use std::collections::BTreeMap;

use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::progress::Progress;
use serde_json::Value;

use super::connection::Server;
use super::pooler;
use super::restore;
use super::session::Session;
use crate::filter;

/// The databases of a server; templates and those that let nobody in are left out.
///
/// # Errors
/// As [`Session::open`].
pub fn all(
    server: &Server,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<String>> {
    let server = server.in_some_database();
    pooler::refuse(&server, cancel)?;
    let rows = Session::open(&server, cancel)?.rows(
        "SELECT datname::text AS name, datallowconn AND NOT datistemplate AS is_taken, \
         pg_catalog.shobj_description(oid, 'pg_database') AS comment \
         FROM pg_catalog.pg_database ORDER BY datname",
    )?;
    let (mut taken, mut left, mut aside) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let text = |column: &str| row.get(column).and_then(Value::as_str);
        let Some(name) = text("name") else { continue };
        let is_taken = row.get("is_taken").and_then(Value::as_bool).unwrap_or(false);
        let names = if !is_taken {
            &mut left
        } else if is_of_restore(name, text("comment")) {
            &mut aside
        } else {
            &mut taken
        };
        names.push(name.to_owned());
    }
    if !aside.is_empty() {
        let aside = aside.join(", ");
        progress.warn(&format!("what restores have left is not dumped: {aside} (--database can)"));
    }
    if !left.is_empty() {
        let left = left.join(", ");
        progress.note(&format!("templates and closed databases are left out: {left}"));
    }
    Ok(taken)
}

/// Whether a restore has loaded it and not finished, or has put it aside.
fn is_of_restore(name: &str, comment: Option<&str>) -> bool {
    comment.is_some_and(|comment| comment.starts_with(restore::MARK)) || restore::is_before(name)
}

/// Names a component for each database: `NAME-<database>`, with '-' for what a component's name
/// cannot hold.
///
/// # Errors
/// [`Exit::Usage`] for two databases that would have the same name, or a name that is too long.
pub fn components<'a>(
    name: &str,
    databases: &'a [String],
) -> anyhow::Result<BTreeMap<String, &'a str>> {
    let mut components: BTreeMap<String, &str> = BTreeMap::new();
    for database in databases {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        let component = format!("{name}-{}", database.chars().map(plain).collect::<String>());
        filter::check_name(&component)?;
        if let Some(other) = components.insert(component.clone(), database) {
            let message = format!("'{other}' and '{database}' would both be '{component}'");
            return Err(Failure::new(Exit::Usage, message)
                .hint("dump them in two steps, each with its --name")
                .into());
        }
    }
    Ok(components)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_database_has_a_name_of_its_own() {
        let databases = ["app", "Ödd name", "a.b"].map(str::to_owned);
        let components = components("database", &databases).unwrap();
        let names: Vec<&str> = components.keys().map(String::as_str).collect();
        assert_eq!(names, ["database--dd-name", "database-a.b", "database-app"]);
        for (name, comment, is_left) in [
            ("app__before_20261121T130400Z", None, true),
            ("app__before_launch", None, false),
            (
                "app__bk_a1b2c3d4",
                Some("bk-dump: unfinished restore, may be dropped: backup x"),
                true,
            ),
            ("app", Some("our application"), false),
        ] {
            assert_eq!(is_of_restore(name, comment), is_left, "{name}");
        }
        let alike = ["a b", "a-b"].map(str::to_owned);
        assert!(super::components("database", &alike).is_err());
        assert!(super::components("database", &["x".repeat(200)]).is_err());
    }
}
