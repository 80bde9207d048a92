//! What belongs to a database and not into its dump: owner, rights, settings, limit, comment.

use anyhow::Context;
use bk_manifest::exit::Exit;
use bk_manifest::progress::Progress;
use serde_json::{Map, Value};

use super::acl::Item;
use super::guard::Guard;
use crate::postgres::session::{identifier, literal};

/// Settings whose value is a list of names, kept in quotes where they need them. Given back as one
/// text they would become one long name. Source: `variable_is_guc_list_quote` of `pg_dump`.
const LISTS_OF_NAMES: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// What a database is given before it takes its final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The role that it belongs to.
    pub(super) owner: Option<String>,
    /// The items of its rights; none: those of every new database.
    pub(super) acl: Option<Vec<String>>,
    /// What sessions in it begin with.
    pub(super) settings: Vec<Setting>,
    /// Sessions at most; below zero: as many as there may be.
    pub(super) connection_limit: i64,
    /// Its comment.
    pub(super) comment: Option<String>,
}

/// One setting of sessions in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Of this role alone.
    pub(super) role: Option<String>,
    /// Its name.
    pub(super) name: String,
    /// Its value, as the server keeps it; none if the backup does not say.
    pub(super) value: Option<String>,
}

impl Attributes {
    /// Those of a database that is there.
    ///
    /// # Errors
    /// What the server said.
    pub(super) fn of_database(guard: &mut Guard, name: &str) -> anyhow::Result<Self> {
        let rows = guard.rows(&format!(
            "SELECT pg_catalog.pg_get_userbyid(datdba) AS owner, datacl::text[] AS acl, \
             datconnlimit AS connection_limit, \
             pg_catalog.shobj_description(oid, 'pg_database') AS comment, \
             (SELECT json_agg(json_build_object('role', \
             CASE WHEN s.setrole <> 0 THEN pg_catalog.pg_get_userbyid(s.setrole) END, \
             'name', split_part(setting, '=', 1), \
             'value', substr(setting, strpos(setting, '=') + 1)) ORDER BY s.setrole, place) \
             FROM pg_catalog.pg_db_role_setting s, \
             unnest(s.setconfig) WITH ORDINALITY AS settings (setting, place) \
             WHERE s.setdatabase = d.oid) AS settings \
             FROM pg_catalog.pg_database d WHERE datname = {}",
            literal(name)
        ))?;
        let row = rows.first().and_then(Value::as_object);
        row.map(Attributes::of_record).with_context(|| format!("the database '{name}' has gone"))
    }

    /// Those that a backup has recorded.
    pub(super) fn of_record(record: &Map<String, Value>) -> Self {
        let text = |name: &str| record.get(name).and_then(Value::as_str).map(str::to_owned);
        let setting = |setting: &Value| {
            let text = |name: &str| setting.get(name).and_then(Value::as_str).map(str::to_owned);
            Some(Setting { role: text("role"), name: text("name")?, value: text("value") })
        };
        let settings = record.get("settings").and_then(Value::as_array).into_iter().flatten();
        Attributes {
            owner: text("owner"),
            acl: record.get("acl").and_then(Value::as_array).map(|acl| {
                acl.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
            }),
            settings: settings.filter_map(setting).collect(),
            connection_limit: record.get("connection_limit").and_then(Value::as_i64).unwrap_or(-1),
            comment: text("comment"),
        }
    }

    /// Gives them to a database, all but the comment; what cannot be given is a warning, and
    /// [`Exit::Partial`].
    pub(super) fn give(&self, guard: &mut Guard, database: &str, progress: &dyn Progress) -> Exit {
        let mut exit = Exit::Done;
        let mut lacks = |text: &str| {
            progress.warn(text);
            exit = Exit::Partial;
        };
        for setting in self.settings.iter().filter(|setting| setting.value.is_none()) {
            lacks(&format!(
                "the value of the setting '{}' is not in the backup: set it yourself",
                setting.name
            ));
        }
        let rights = self.acl.iter().flatten();
        for item in rights.filter(|item| Item::parse(item).is_none()) {
            lacks(&format!("without the right {item}, which is not known here"));
        }
        for (what, statement) in self.statements(database) {
            if let Err(error) = guard.run(&statement) {
                lacks(&format!("without {what}: {error:#}"));
            }
        }
        exit
    }

    /// The statements, each with what it is about. Everyone's rights are taken first, the owner's
    /// too: what is given then is all there is.
    fn statements(&self, database: &str) -> Vec<(String, String)> {
        let quoted = identifier(database);
        let mut list = Vec::new();
        if let Some(owner) = &self.owner {
            let statement = format!("ALTER DATABASE {quoted} OWNER TO {}", identifier(owner));
            list.push((format!("the owner '{owner}'"), statement));
        }
        if let Some(acl) = &self.acl {
            let revoke = format!("REVOKE ALL ON DATABASE {quoted} FROM PUBLIC");
            list.push(("the rights of the database".to_owned(), revoke));
            let owner = self.owner.as_deref().map_or_else(|| "CURRENT_USER".into(), identifier);
            let revoke = format!("REVOKE ALL ON DATABASE {quoted} FROM {owner}");
            list.push(("the rights of the database".to_owned(), revoke));
            for item in acl {
                let grants = Item::parse(item).map(|item| item.grants(database));
                list.extend(
                    grants.into_iter().flatten().map(|grant| (format!("the right {item}"), grant)),
                );
            }
        }
        if self.connection_limit >= 0 {
            let limit =
                format!("ALTER DATABASE {quoted} CONNECTION LIMIT {}", self.connection_limit);
            list.push(("the connection limit".to_owned(), limit));
        }
        list.extend(self.settings.iter().filter_map(|setting| {
            Some((format!("the setting '{}'", setting.name), setting.statement(&quoted)?))
        }));
        list
    }
}

impl Setting {
    fn statement(&self, database: &str) -> Option<String> {
        let value = self.value.as_deref()?;
        let value = if LISTS_OF_NAMES.contains(&self.name.to_ascii_lowercase().as_str()) {
            let items: Vec<String> = list_items(value)?.iter().map(|item| literal(item)).collect();
            if items.is_empty() { literal("") } else { items.join(", ") }
        } else {
            literal(value)
        };
        // An application's own settings have a dot in their names.
        let name = self.name.split('.').map(identifier).collect::<Vec<_>>().join(".");
        let whose = match &self.role {
            None => format!("ALTER DATABASE {database}"),
            Some(role) => format!("ALTER ROLE {} IN DATABASE {database}", identifier(role)),
        };
        Some(format!("{whose} SET {name} TO {value}"))
    }
}

/// The names of a list such as `"$user", public`; `None` if it is malformed.
fn list_items(list: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = list.trim_start();
    while !rest.is_empty() {
        let (item, behind) = if let Some(quoted) = rest.strip_prefix('"') {
            until_quote(quoted)?
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            (rest[..end].trim_end().to_owned(), &rest[end..])
        };
        items.push(item);
        let behind = behind.trim_start();
        rest = match behind.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if behind.is_empty() => behind,
            None => return None,
        };
    }
    Some(items)
}

/// A name up to its closing quote, with doubled ones undone, and what follows.
fn until_quote(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (part, behind) = rest.split_once('"')?;
        name.push_str(part);
        let Some(more) = behind.strip_prefix('"') else { return Some((name, behind)) };
        name.push('"');
        rest = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_are_taken_apart() {
        for (list, items) in [
            ("\"$user\", public", &["$user", "public"][..]),
            ("public", &["public"]),
            ("\"a, b\",\"c\"\"d\" , e", &["a, b", "c\"d", "e"]),
            ("\"\"", &[""]),
            ("", &[]),
        ] {
            assert_eq!(list_items(list).unwrap(), items, "{list}");
        }
        assert_eq!(list_items("\"open"), None);
        assert_eq!(list_items("\"a\" b"), None);
    }

    #[test]
    fn settings_become_statements() {
        for (role, name, value, statement) in [
            (None, "work_mem", "64MB", "ALTER DATABASE \"d\" SET \"work_mem\" TO '64MB'"),
            (
                None,
                "search_path",
                "\"$user\", app",
                "ALTER DATABASE \"d\" SET \"search_path\" TO '$user', 'app'",
            ),
            (None, "DateStyle", "ISO, DMY", "ALTER DATABASE \"d\" SET \"DateStyle\" TO 'ISO, DMY'"),
            (
                Some("r"),
                "app.key",
                "a=b'c",
                "ALTER ROLE \"r\" IN DATABASE \"d\" SET \"app\".\"key\" TO 'a=b''c'",
            ),
        ] {
            let role = role.map(str::to_owned);
            let setting = Setting { role, name: name.to_owned(), value: Some(value.to_owned()) };
            assert_eq!(setting.statement("\"d\"").unwrap(), statement);
        }
    }

    #[test]
    fn a_record_without_them_changes_nothing() {
        let attributes = Attributes::of_record(&Map::new());
        assert!(attributes.statements("d").is_empty());
        let record = json!({"owner": "o", "acl": [], "connection_limit": 5});
        let attributes = Attributes::of_record(record.as_object().unwrap());
        assert_eq!(attributes.statements("d").len(), 4);
    }
}
