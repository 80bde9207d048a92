//! What the component's record says of the database itself, which no dump holds: its encoding and
//! locale, owner, rights, settings.

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::session::Session;

/// `d.*`: of the locale's columns each version of PostgreSQL has others.
const DATABASE: &str = "\
    SELECT current_database() AS database, \
        split_part(current_setting('server_version'), ' ', 1) AS version, \
        pg_catalog.pg_encoding_to_char(d.encoding) AS encoding_name, \
        pg_catalog.pg_database_size(d.oid)::text AS size, \
        pg_catalog.pg_get_userbyid(d.datdba) AS owner, d.datacl::text[] AS acl, \
        pg_catalog.shobj_description(d.oid, 'pg_database') AS comment, \
        (SELECT t.spcname FROM pg_catalog.pg_tablespace t \
            WHERE t.oid = d.dattablespace AND t.spcname <> 'pg_default') AS tablespace, d.* \
    FROM pg_catalog.pg_database d WHERE datname = current_database()";
/// What `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET` have set for this database.
const SETTINGS: &str = "\
    SELECT r.rolname AS role, split_part(setting, '=', 1) AS name, \
        substr(setting, strpos(setting, '=') + 1) AS value, \
        EXISTS (SELECT FROM pg_catalog.pg_extension e \
            WHERE e.extname = split_part(setting, '.', 1)) AS is_of_extension \
    FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase \
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) AS setting \
    WHERE d.datname = current_database() \
    ORDER BY r.rolname NULLS FIRST, setting";
/// Parts of names whose values are not for a manifest.
const SECRETIVE: [&str; 6] = ["secret", "password", "passwd", "token", "key", "credential"];

/// Asks for all of it; also returns the database's size in bytes.
///
/// Members that have their usual value (no rights granted, no limit, no comment…) are absent.
/// Values of settings stand as the server keeps them: those of a list, such as `search_path`, are a
/// list already quoted, not one text.
///
/// # Errors
/// What the server said.
pub(super) fn take(session: &mut Session) -> anyhow::Result<(Map<String, Value>, u64)> {
    let rows = session.rows(DATABASE)?;
    let row = rows.into_iter().next().context("the server does not know its own database")?;
    let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
    let size = text("size").and_then(|size| size.parse().ok()).unwrap_or(0);
    let mut facts = Map::new();
    facts.insert("database_size".into(), json!(size));
    for (fact, columns) in [
        ("database", &["database"][..]),
        ("server_version", &["version"]),
        ("encoding", &["encoding_name"]),
        ("collate", &["datcollate"]),
        ("ctype", &["datctype"]),
        ("locale_provider", &["datlocprovider"]),
        ("locale", &["datlocale", "daticulocale"]),
        ("icu_rules", &["daticurules"]),
        ("owner", &["owner"]),
        ("comment", &["comment"]),
        ("tablespace", &["tablespace"]),
    ] {
        if let Some(value) = columns.iter().find_map(|column| text(column)) {
            facts.insert(fact.into(), value.into());
        }
    }
    if let Some(acl @ Value::Array(_)) = row.get("acl") {
        facts.insert("acl".into(), acl.clone());
    }
    if let Some(limit) = row.get("datconnlimit").and_then(Value::as_i64).filter(|limit| *limit >= 0)
    {
        facts.insert("connection_limit".into(), limit.into());
    }
    let settings: Vec<Value> = session.rows(SETTINGS)?.iter().map(setting).collect();
    if !settings.is_empty() {
        facts.insert("settings".into(), settings.into());
    }
    Ok((facts, size))
}

/// A setting for the record: role (absent: everyone), name and value.
///
/// The value of one that PostgreSQL does not know itself is left out: applications keep secrets
/// there (`app.jwt_secret`), and a manifest is no place for these. Those of an extension that is
/// installed are known by it, and recorded unless their name speaks against it. Who restores is
/// told by the missing value what is to be set by hand.
fn setting(row: &Value) -> Value {
    let text = |name: &str| row.get(name).and_then(Value::as_str);
    let name = text("name").unwrap_or_default();
    let is_of_extension = row.get("is_of_extension").and_then(Value::as_bool).unwrap_or(false);
    let is_public = !name.contains('.')
        || (is_of_extension && {
            let lower = name.to_lowercase();
            !SECRETIVE.iter().any(|part| lower.contains(part))
        });
    let members = [
        ("role", text("role")),
        ("name", Some(name)),
        ("value", text("value").filter(|_| is_public)),
    ];
    let members =
        members.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
    Value::Object(members.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_may_be_secret_are_not_recorded() {
        let recorded = |name: &str, is_of_extension: bool| {
            setting(
                &json!({"role": null, "name": name, "value": "v", "is_of_extension": is_of_extension}),
            )
        };
        for (name, is_of_extension) in [("search_path", false), ("pg_trgm.similarity", true)] {
            assert_eq!(recorded(name, is_of_extension), json!({"name": name, "value": "v"}));
        }
        for (name, is_of_extension) in
            [("app.jwt_secret", false), ("app.mode", false), ("x.Key", true)]
        {
            assert_eq!(recorded(name, is_of_extension), json!({"name": name}));
        }
    }
}
