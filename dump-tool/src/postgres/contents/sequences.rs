//! Where sequences stand. They heed no snapshot: what is read is what is so now.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::excluded::Excluded;
use super::name::Name;
use super::record::{Omitted, Sequence, Until};
use crate::postgres::session::Session;

/// Sequences that are read by one statement.
const BATCH: usize = 200;
/// Since this version the increment is in a catalog of its own.
const HAS_CATALOG: u32 = 100_000;

const LIST: &str = "\
    SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS name \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'S' AND c.relpersistence <> 't' \
        AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass \
            AND d.objid = c.oid AND d.deptype = 'e')";

#[derive(Deserialize)]
struct Listed {
    oid: u32,
    schema: String,
    name: String,
}

/// A sequence as it stands. Numbers are texts: JSON's readers may round them.
#[derive(Deserialize)]
struct State {
    oid: u32,
    last_value: String,
    is_called: bool,
    increment: String,
}

/// Takes down where every sequence stands that the role may read; what it may not read, `pg_dump`
/// will fail on.
///
/// # Errors
/// What the server said; the session is at its end then.
pub(super) fn take(
    session: &mut Session,
    server_version: u32,
    excluded: &Excluded,
) -> anyhow::Result<Vec<Sequence>> {
    let listed: Vec<(u32, Name)> = session
        .rows(LIST)?
        .into_iter()
        .map(|row| {
            let Listed { oid, schema, name } =
                Listed::deserialize(row).context("an unexpected list of sequences")?;
            Ok((oid, Name { schema, name }))
        })
        .collect::<anyhow::Result<_>>()?;
    let states = read(session, server_version, listed.iter().map(|(oid, name)| (*oid, name)))?;
    let mut sequences: Vec<Sequence> = listed
        .into_iter()
        .filter_map(|(oid, name)| {
            let Until { last_value, is_called, .. } = *states.get(&oid)?;
            Some(Sequence {
                name,
                last_value,
                is_called,
                until: None,
                data: Omitted::when(excluded.data.contains(&oid)),
                sequence: Omitted::when(excluded.relations.contains(&oid)),
                oid,
            })
        })
        .collect();
    sequences.sort_by_cached_key(|sequence| sequence.name.to_string());
    Ok(sequences)
}

/// Takes down where they stand now, if they moved.
///
/// # Errors
/// As [`take`].
pub(super) fn read_again(
    session: &mut Session,
    server_version: u32,
    sequences: &mut [Sequence],
) -> anyhow::Result<()> {
    let named = sequences.iter().map(|sequence| (sequence.oid, &sequence.name));
    let mut states = read(session, server_version, named)?;
    for sequence in sequences {
        sequence.until = states.remove(&sequence.oid).filter(|now| {
            (now.last_value, now.is_called) != (sequence.last_value, sequence.is_called)
        });
    }
    Ok(())
}

fn read<'a>(
    session: &mut Session,
    server_version: u32,
    sequences: impl Iterator<Item = (u32, &'a Name)>,
) -> anyhow::Result<BTreeMap<u32, Until>> {
    let queries: Vec<String> = sequences
        .map(|(oid, name)| {
            let increment = if server_version < HAS_CATALOG {
                "increment_by".to_owned()
            } else {
                format!("(SELECT seqincrement FROM pg_catalog.pg_sequence WHERE seqrelid = {oid})")
            };
            format!(
                "SELECT {oid}::int8 AS oid, last_value::text AS last_value, is_called, \
                 coalesce({increment}, 1)::text AS increment FROM {}",
                name.quoted()
            )
        })
        .collect();
    let mut states = BTreeMap::new();
    for batch in queries.chunks(BATCH) {
        let rows = match session.attempt(&batch.join(" UNION ALL "))? {
            Ok(rows) => rows,
            // One of them cannot be read, or was dropped meanwhile.
            Err(_) => read_singly(session, batch)?,
        };
        for row in rows {
            let state = State::deserialize(row).context("an unexpected state of a sequence")?;
            states.insert(state.oid, state.parse().context("a sequence without a number")?);
        }
    }
    Ok(states)
}

fn read_singly(session: &mut Session, queries: &[String]) -> anyhow::Result<Vec<Value>> {
    let mut rows = Vec::new();
    for query in queries {
        rows.extend(session.attempt(query)?.unwrap_or_default());
    }
    Ok(rows)
}

impl State {
    fn parse(&self) -> Result<Until, std::num::ParseIntError> {
        Ok(Until {
            last_value: self.last_value.parse()?,
            is_called: self.is_called,
            increment: self.increment.parse()?,
        })
    }
}
