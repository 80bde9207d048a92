//! Tables: their rows, counted and summed up.

use std::collections::BTreeMap;

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::progress::Progress;
use serde::Deserialize;
use serde_json::Value;

use super::excluded::Excluded;
use super::fingerprint;
use super::name::Name;
use super::record::{Kind, Omitted, Table};
use crate::level::Level;
use crate::postgres::session::{Session, identifier};

/// All that has rows of its own, those of partitioned tables being their partitions'.
///
/// The file is asked for as the snapshot has it and as it is now: TRUNCATE heeds no snapshot.
/// The size is an estimate, for which no table has to be locked.
const LIST: &str = "\
    SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind, \
        c.relfilenode::int8 AS filenode, \
        coalesce(pg_catalog.pg_relation_filenode(c.oid), 0)::int8 AS filenode_now, \
        greatest(c.relpages, 0)::int8 * current_setting('block_size')::int8 AS size, \
        c.relkind <> 'm' OR c.relispopulated AS is_populated, \
        c.relpersistence = 'u' AND pg_catalog.pg_is_in_recovery() AS is_absent, \
        EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass \
            AND d.objid = c.oid AND d.deptype = 'e') AS is_of_extension, \
        ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid \
            AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname::text COLLATE \"C\") AS columns \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'm', 'f') AND c.relpersistence <> 't' \
        AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// Why the rows of an unlogged table are missing; `pg_dump` leaves them out without a word.
const ABSENT: &str = "it is unlogged and the server a standby, which has no rows of it: they are not \
    in the dump (--exclude-table-data, if that is meant)";

/// Follows the server's words where something is not found without a search path.
const FINDS_NO_NAME: &str = ". A function in an index of it finds names by search_path only, which is \
    empty while a dump is loaded: a restore will fail at it. Index one that has SET search_path";

/// A row of [`LIST`].
#[derive(Deserialize)]
struct Row {
    oid: u32,
    schema: String,
    name: String,
    kind: String,
    filenode: u32,
    filenode_now: u32,
    size: u64,
    is_populated: bool,
    is_absent: bool,
    is_of_extension: bool,
    columns: Vec<String>,
}

/// Lists the tables of the user's and those of extensions, and reads them as closely as asked.
///
/// A table that cannot be read stays without rows, and says why: whether that matters, `pg_dump`
/// will tell. One whose rows have no text form (of more than 1 GB, mostly) is counted.
///
/// # Errors
/// If the session is at its end, or we were told to stop.
pub(super) fn take(
    session: &mut Session,
    level: Level,
    excluded: &Excluded,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<Table>> {
    let rows = list(session)?;
    progress.begin("reading tables", Some(rows.iter().map(|row| row.size).sum()));
    let mut tables = Vec::with_capacity(rows.len());
    for row in rows {
        cancel.check()?;
        let is_excluded = excluded.data.contains(&row.oid);
        let is_absent = row.is_absent && !is_excluded;
        let is_read = row.is_populated && !is_excluded && !is_absent;
        let level = if is_read { level } else { Level::None };
        let mut table = Table {
            name: Name { schema: row.schema, name: row.name },
            kind: kind(&row.kind, row.is_of_extension),
            data: Omitted::when(is_excluded || is_absent),
            table: Omitted::when(excluded.relations.contains(&row.oid)),
            unread: is_absent.then(|| ABSENT.to_owned()),
            is_absent,
            oid: row.oid,
            filenode: row.filenode,
            ..Table::default()
        };
        read(session, &mut table, &row.columns, level)?;
        progress.advance(row.size, 1);
        tables.push(table);
    }
    progress.end();
    tables.sort_by_cached_key(|table| table.name.to_string());
    Ok(tables)
}

fn list(session: &mut Session) -> anyhow::Result<Vec<Row>> {
    let parse = |row: Value| Row::deserialize(row).context("an unexpected list of tables");
    session.rows(LIST)?.into_iter().map(parse).collect()
}

fn kind(relkind: &str, is_of_extension: bool) -> Option<Kind> {
    match relkind {
        _ if is_of_extension => Some(Kind::ExtensionTable),
        "m" => Some(Kind::MaterializedView),
        "f" => Some(Kind::ForeignTable),
        _ => None,
    }
}

fn read(
    session: &mut Session,
    table: &mut Table,
    columns: &[String],
    level: Level,
) -> anyhow::Result<()> {
    let from = format!("ONLY {} AS t", table.name.quoted());
    // What is not judged needs no fingerprint.
    let level = match table.kind {
        None => level,
        Some(Kind::ExtensionTable) => level.min(Level::Count),
        // pg_dump does not wait for a materialised view that is being refreshed, nor do we.
        Some(Kind::MaterializedView | Kind::ForeignTable | Kind::Unknown) => Level::None,
    };
    if level == Level::None {
        return Ok(());
    }
    if level == Level::Full {
        // A column that is named with its table cannot be taken for anything else.
        let row: Vec<String> =
            columns.iter().map(|column| format!("t.{}", identifier(column))).collect();
        let text = format!("ROW({})::text", row.join(", "));
        match fingerprint::run(session, &text, &from)? {
            Ok((rows, fingerprint)) => {
                (table.rows, table.fingerprint) = (Some(rows), Some(fingerprint));
                return Ok(());
            }
            Err(why) => table.unread = Some(why),
        }
    }
    match session.attempt(&format!("SELECT count(*) AS count FROM {from}"))? {
        Ok(rows) => {
            table.rows = rows.first().and_then(|row| row.get("count")).and_then(Value::as_u64);
        }
        Err(why) => {
            // The search path is the one that a restore has, too.
            let is_gone = why.contains(&table.name.to_string());
            let is_unnamed = why.contains("does not exist") && !is_gone;
            let end = if is_unnamed { FINDS_NO_NAME } else { "" };
            table.unread = Some(format!("{why}{end}"));
        }
    }
    Ok(())
}

/// The number of each table's file as it is now, by the table's number.
///
/// # Errors
/// If the session is at its end.
pub fn files(session: &mut Session) -> anyhow::Result<BTreeMap<u32, u32>> {
    Ok(list(session)?.into_iter().map(|row| (row.oid, row.filenode_now)).collect())
}

/// Forgets what was read of tables that have another file now.
///
/// They were emptied by TRUNCATE, which no snapshot sees, or written anew, by VACUUM FULL for
/// instance: what was read and what was dumped need not be the same. Returns whether that had
/// happened to any when the dump had ended, as `files` tells, or whether rows were absent.
pub(super) fn look_again(
    session: &mut Session,
    tables: &mut [Table],
    files: &BTreeMap<u32, u32>,
) -> anyhow::Result<bool> {
    let now = self::files(session)?;
    let mut has_any = tables.iter().any(|table| table.is_absent);
    for table in tables.iter_mut().filter(|table| table.is_judged()) {
        let is_another =
            |files: &BTreeMap<u32, u32>| files.get(&table.oid) != Some(&table.filenode);
        let (in_dump, in_reading) = (is_another(files), is_another(&now));
        if in_dump || in_reading {
            (table.rows, table.fingerprint) = (None, None);
            let end = if in_dump { ", and the dump may lack them" } else { "" };
            table.unread = Some(format!("it was emptied, rewritten or dropped meanwhile{end}"));
        }
        has_any |= in_dump;
    }
    Ok(has_any)
}
