//! What the database holds that is to be restored: whether it is there, empty, in use.

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure};
use serde_json::Value;

use super::attributes::Attributes;
use super::guard::Guard;
use super::swap::reopening;
use crate::postgres::connection::Server;
use crate::postgres::session::{Session, literal};

/// Counts what is in a database beside what every new one has and what extensions put there.
const USER_OBJECTS: &str = "\
    WITH own AS (SELECT oid FROM pg_catalog.pg_namespace \
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'), \
    objects AS ( \
        SELECT 'pg_class'::regclass AS class, oid, relname AS name FROM pg_catalog.pg_class \
            WHERE relnamespace IN (SELECT oid FROM own) AND relkind NOT IN ('i', 'I', 't') \
        UNION ALL SELECT 'pg_proc'::regclass, oid, proname FROM pg_catalog.pg_proc \
            WHERE pronamespace IN (SELECT oid FROM own) \
        UNION ALL SELECT 'pg_type'::regclass, oid, typname FROM pg_catalog.pg_type \
            WHERE typnamespace IN (SELECT oid FROM own) AND typtype IN ('d', 'e', 'r') \
        UNION ALL SELECT 'pg_namespace'::regclass, oid, nspname FROM pg_catalog.pg_namespace \
            WHERE oid IN (SELECT oid FROM own) AND nspname <> 'public' \
        UNION ALL SELECT 'pg_largeobject'::regclass, oid, oid::text \
            FROM pg_catalog.pg_largeobject_metadata) \
    SELECT name::text FROM objects WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
        WHERE d.classid = objects.class AND d.objid = objects.oid AND d.deptype = 'e') \
    ORDER BY name LIMIT 3";

/// Names of some objects in a database that are no part of every new one.
///
/// # Errors
/// Those of connecting to it.
pub(super) fn some_objects(server: &Server, name: &str) -> anyhow::Result<Vec<String>> {
    let mut session = Session::open(&server.in_database(name), &Cancel::default())?;
    names(&session.rows(USER_OBJECTS)?).collect::<Option<_>>().context("an object without a name")
}

fn names(rows: &[Value]) -> impl Iterator<Item = Option<String>> {
    rows.iter().map(|row| row.get("name").and_then(Value::as_str).map(str::to_owned))
}

/// The error for a database that holds something, and that nobody said to replace; a hint says what
/// that would be.
pub(super) fn not_empty(name: &str, objects: &[String], hint: &str) -> anyhow::Error {
    let message = format!("the database '{name}' is not empty: it holds {}, …", objects.join(", "));
    Failure::new(Exit::Usage, message)
        .hint(hint)
        .hint("or name a new one (--database NAME): it will be made")
        .into()
}

/// A database that is there, as it is seen from beside.
pub(super) struct Old {
    /// What it has that no dump holds.
    pub(super) attributes: Attributes,
    /// Bytes, if our role may know.
    pub(super) size: Option<u64>,
    /// Where it lies, if that is not the server's default place.
    pub(super) tablespace: Option<String>,
    /// Whether it takes connections.
    pub(super) is_open: bool,
    /// Sessions in it.
    pub(super) sessions: u64,
    /// Some of what it holds; empty if it holds nothing.
    pub(super) objects: Vec<String>,
}

impl Old {
    /// Looks at a database; `None` if it is not there.
    ///
    /// # Errors
    /// [`Exit::Usage`] for one that cannot be renamed or that someone has closed to connections.
    pub(super) fn find(
        guard: &mut Guard,
        server: &Server,
        name: &str,
    ) -> anyhow::Result<Option<Self>> {
        let rows = guard.rows(&format!(
            "SELECT CASE WHEN pg_catalog.has_database_privilege(d.oid, 'CONNECT') \
             THEN pg_catalog.pg_database_size(d.oid) END AS size, \
             d.datallowconn AS is_open, d.datistemplate AS is_template, t.spcname AS tablespace, \
             pg_catalog.pg_has_role(d.datdba, 'MEMBER') AS is_ours, \
             (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid \
             AND a.usesysid IS NOT NULL) AS sessions \
             FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t \
             ON t.oid = d.dattablespace WHERE d.datname = {}",
            literal(name)
        ))?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let is = |member: &str| row.get(member) == Some(&Value::Bool(true));
        if is("is_template") {
            let message = format!("the database '{name}' is a template, which is not replaced");
            let hint = if is("is_open") {
                "load into it: --in-place"
            } else {
                "make a new one of it: --database NAME"
            };
            return Err(Failure::new(Exit::Usage, message).hint(hint).into());
        }
        if !is("is_ours") {
            let message = format!("the database '{name}' belongs to another role");
            return Err(Failure::new(Exit::Denied, message)
                .hint("connect as its owner, or load into it: --in-place --replace")
                .into());
        }
        let is_open = is("is_open");
        let tablespace = row.get("tablespace").and_then(Value::as_str).map(str::to_owned);
        Ok(Some(Old {
            attributes: Attributes::of_database(guard, name)?,
            size: row.get("size").and_then(Value::as_u64),
            tablespace: tablespace.filter(|name| name != "pg_default"),
            is_open,
            sessions: row.get("sessions").and_then(Value::as_u64).unwrap_or(0),
            // One that lets nobody in, for want of free connections too, is taken for full.
            objects: some_objects(server, name).or_else(|_| {
                bk_manifest::signal::check().map(|()| vec!["what cannot be seen".into()])
            })?,
        }))
    }

    /// Fails if the database is closed, and not by a restore that was killed.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub(super) fn check_closed(&self, name: &str, was_restoring: bool) -> anyhow::Result<()> {
        if self.is_open || was_restoring {
            return Ok(());
        }
        let message = format!("the database '{name}' does not accept connections");
        Err(Failure::new(Exit::Usage, message)
            .hint(format!("if it should: {}", reopening(name)))
            .into())
    }

    /// Fails for what holds on to a database by its number, whatever its name is.
    ///
    /// # Errors
    /// [`Exit::Usage`] naming it.
    pub(super) fn check_ties(guard: &mut Guard, name: &str) -> anyhow::Result<()> {
        let database = literal(name);
        let rows = guard.rows(&format!(
            "SELECT format('the prepared transaction %L', gid) AS name \
             FROM pg_catalog.pg_prepared_xacts WHERE database = {database} \
             UNION ALL SELECT format('the replication slot %L', slot_name) \
             FROM pg_catalog.pg_replication_slots WHERE database = {database} \
             UNION ALL SELECT format('the subscription %L', s.subname) \
             FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid \
             WHERE d.datname = {database}"
        ))?;
        let ties: Vec<String> = names(&rows).flatten().collect();
        if ties.is_empty() {
            return Ok(());
        }
        let message = format!("the database '{name}' cannot be replaced: {}", ties.join(", "));
        Err(Failure::new(Exit::Usage, message)
            .hint("end or drop it first; it would stay with the old database, or be broken")
            .into())
    }
}
