//! What there is besides rows: extensions, roles, schemas, and how many objects of which kind.

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::record::Contents;
use crate::postgres::session::Session;

/// Numbers of objects that no user made are smaller.
pub const FIRST_OF_USERS: u32 = 16_384;
/// The schemas of the user's.
const OWN: &str = "SELECT oid FROM pg_catalog.pg_namespace \
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'";
const EXTENSIONS: &str = "SELECT e.extname AS name, n.nspname AS schema, e.extversion AS version \
    FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
    ORDER BY e.extname::text COLLATE \"C\"";
/// Zero is where the database itself lies, whatever that is called.
fn tablespaces() -> String {
    format!(
        "SELECT spcname AS name FROM pg_catalog.pg_tablespace \
         WHERE oid IN (SELECT o.reltablespace FROM pg_catalog.pg_class o \
             WHERE o.relpersistence <> 't' AND o.oid >= {FIRST_OF_USERS})"
    )
}

/// A kind of objects: a catalog, and which of its rows are meant (`o` is a row).
struct Counted {
    kind: &'static str,
    class: &'static str,
    /// `server_version_num` since which there are such.
    since: u32,
    is_meant: String,
}

/// Takes all of it down.
///
/// # Errors
/// What the server said; the session is at its end then.
pub(super) fn take(
    session: &mut Session,
    server_version: u32,
    contents: &mut Contents,
) -> anyhow::Result<()> {
    let rows = session.rows(EXTENSIONS)?.into_iter();
    contents.extensions = rows
        .map(|row| Deserialize::deserialize(row).context("an unexpected list of extensions"))
        .collect::<anyhow::Result<_>>()?;
    contents.roles = names(session, &roles())?;
    contents.tablespaces = names(session, &tablespaces())?;
    contents.schemas = names(
        session,
        &format!(
            "SELECT o.nspname AS name FROM pg_catalog.pg_namespace o \
             WHERE o.oid IN ({OWN}) AND {}",
            is_of_no_extension("pg_namespace", "o.oid")
        ),
    )?;
    let counts: Vec<String> = kinds(server_version)
        .iter()
        .filter(|counted| counted.since <= server_version)
        .map(|Counted { kind, class, is_meant, .. }| {
            format!(
                "SELECT '{kind}' AS kind, count(*) AS count FROM pg_catalog.{class} o \
                 WHERE {is_meant} AND {}",
                is_of_no_extension(class, "o.oid")
            )
        })
        .collect();
    let rows = session.rows(&counts.join(" UNION ALL "))?.into_iter();
    let count =
        |row: Value| Some((row.get("kind")?.as_str()?.to_owned(), row.get("count")?.as_u64()?));
    contents.object_counts = rows.map(count).collect();
    Ok(())
}

/// Sorted by their bytes, whatever the server's locale.
fn names(session: &mut Session, query: &str) -> anyhow::Result<Vec<String>> {
    let rows = session.rows(query)?;
    let name = |row: &Value| Some(row.get("name")?.as_str()?.to_owned());
    let mut names: Vec<String> =
        rows.iter().map(name).collect::<Option<_>>().context("an unexpected list of names")?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether an object was made by itself, not by an extension or as a part of another object.
fn is_of_no_extension(class: &str, oid: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
         WHERE d.classid = 'pg_catalog.{class}'::regclass AND d.objid = {oid} AND d.deptype = 'e')"
    )
}

/// Owners, and those who were granted something. The server does not note where its first superuser
/// is meant, and a role of its own is on every server of its version.
fn roles() -> String {
    let owned: Vec<String> = [
        ("pg_class", "relowner"),
        ("pg_namespace", "nspowner"),
        ("pg_proc", "proowner"),
        ("pg_type", "typowner"),
        ("pg_largeobject_metadata", "lomowner"),
    ]
    .iter()
    .map(|(class, owner)| {
        format!(
            "SELECT o.{owner} FROM pg_catalog.{class} o WHERE o.oid >= {FIRST_OF_USERS} AND {}",
            is_of_no_extension(class, "o.oid")
        )
    })
    .collect();
    format!(
        "SELECT r.rolname AS name FROM pg_catalog.pg_roles r WHERE r.rolname !~ '^pg_' AND r.oid IN (\
             SELECT s.refobjid FROM pg_catalog.pg_shdepend s, pg_catalog.pg_database me \
             WHERE me.datname = current_database() \
                 AND s.refclassid = 'pg_catalog.pg_authid'::regclass \
                 AND (s.dbid = me.oid OR (s.dbid = 0 AND s.objid = me.oid \
                     AND s.classid = 'pg_catalog.pg_database'::regclass)) \
             UNION ALL SELECT me.datdba FROM pg_catalog.pg_database me \
             WHERE me.datname = current_database() \
             UNION ALL {})",
        owned.join(" UNION ALL ")
    )
}

/// The kinds that are counted. Left out is what a restore makes or leaves by itself: what belongs
/// to roles, parts of other objects, NOT NULL constraints, which are objects in newer versions
/// only.
fn kinds(server_version: u32) -> Vec<Counted> {
    let mut kinds = Vec::new();
    let mut add = |kind, class, since, is_meant: String| {
        kinds.push(Counted { kind, class, since, is_meant });
    };
    let relation = |relkinds: &str| {
        format!(
            "o.relkind IN ({relkinds}) AND o.relpersistence <> 't' AND o.relnamespace IN ({OWN})"
        )
    };
    // A part of a table: the table is the user's.
    let of_table = |table: &str| {
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_class t WHERE t.oid = {table} \
             AND t.relpersistence <> 't' AND t.relnamespace IN ({OWN}) AND {})",
            is_of_no_extension("pg_class", "t.oid")
        )
    };
    let not_internal = |class: &str| {
        format!(
            "NOT EXISTS (SELECT FROM pg_catalog.pg_depend i \
             WHERE i.classid = 'pg_catalog.{class}'::regclass AND i.objid = o.oid AND i.deptype = 'i')"
        )
    };
    let of_users = || format!("o.oid >= {FIRST_OF_USERS}");
    add("tables", "pg_class", 0, relation("'r', 'p'"));
    add("views", "pg_class", 0, relation("'v'"));
    add("materialized_views", "pg_class", 0, relation("'m'"));
    add("foreign_tables", "pg_class", 0, relation("'f'"));
    add("sequences", "pg_class", 0, relation("'S'"));
    // pg_dump leaves out what a failed CREATE INDEX CONCURRENTLY has left behind.
    let index = format!(
        "EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indexrelid = o.oid AND i.indisready \
         AND (i.indisvalid OR o.relkind = 'I') AND {})",
        of_table("i.indrelid")
    );
    add("indexes", "pg_class", 0, format!("o.relkind IN ('i', 'I') AND {index}"));
    let whole = if server_version >= 110_000 { "o.conparentid = 0 AND" } else { "" };
    add(
        "constraints",
        "pg_constraint",
        0,
        format!(
            "(o.contype IN ('c', 'p', 'u', 'x') OR {whole} o.contype = 'f') AND {}",
            of_table("o.conrelid")
        ),
    );
    let whole = if server_version >= 130_000 { "o.tgparentid = 0 AND" } else { "" };
    let trigger = format!("{whole} NOT o.tgisinternal AND {}", of_table("o.tgrelid"));
    add("triggers", "pg_trigger", 0, trigger);
    let rule = format!("o.rulename <> '_RETURN' AND {}", of_table("o.ev_class"));
    add("rules", "pg_rewrite", 0, rule);
    add("policies", "pg_policy", 90_500, of_table("o.polrelid"));
    add(
        "functions",
        "pg_proc",
        0,
        format!("o.pronamespace IN ({OWN}) AND {}", not_internal("pg_proc")),
    );
    add(
        "types",
        "pg_type",
        0,
        format!(
            "o.typnamespace IN ({OWN}) AND (o.typtype IN ('d', 'e', 'r') \
             OR (o.typtype = 'b' AND NOT EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.typarray = o.oid)) \
             OR (o.typtype = 'c' AND EXISTS (SELECT FROM pg_catalog.pg_class c \
                 WHERE c.oid = o.typrelid AND c.relkind = 'c')))"
        ),
    );
    for (kind, class, since, schema) in [
        ("operator_classes", "pg_opclass", 0, "opcnamespace"),
        ("operator_families", "pg_opfamily", 0, "opfnamespace"),
        ("collations", "pg_collation", 0, "collnamespace"),
        ("conversions", "pg_conversion", 0, "connamespace"),
        ("statistics", "pg_statistic_ext", 100_000, "stxnamespace"),
        ("text_search_configurations", "pg_ts_config", 0, "cfgnamespace"),
        ("text_search_dictionaries", "pg_ts_dict", 0, "dictnamespace"),
        ("text_search_parsers", "pg_ts_parser", 0, "prsnamespace"),
        ("text_search_templates", "pg_ts_template", 0, "tmplnamespace"),
    ] {
        add(kind, class, since, format!("o.{schema} IN ({OWN})"));
    }
    // An operator that was only announced has no function.
    let operator = format!("o.oprnamespace IN ({OWN}) AND o.oprcode <> 0");
    add("operators", "pg_operator", 0, operator);
    add("casts", "pg_cast", 0, format!("{} AND {}", of_users(), not_internal("pg_cast")));
    for (kind, class, since) in [
        ("access_methods", "pg_am", 90_600),
        ("event_triggers", "pg_event_trigger", 0),
        ("foreign_data_wrappers", "pg_foreign_data_wrapper", 0),
        ("languages", "pg_language", 0),
        ("publications", "pg_publication", 100_000),
        ("servers", "pg_foreign_server", 0),
        ("transforms", "pg_transform", 90_500),
    ] {
        add(kind, class, since, of_users());
    }
    kinds
}
