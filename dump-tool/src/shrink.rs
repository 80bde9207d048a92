//! A dump that is much smaller than the last one is refused: an empty new cluster must not become
//! the backup that all good ones are pruned for.

use std::collections::BTreeMap;

use bk_manifest::manifest::Component;
use bk_manifest::progress::human_bytes;
use bk_manifest::run::ParentFile;
use bk_manifest::shrink::{MaxShrink, refusal};
use serde_json::{Map, Value};

/// What whoever reads a refusal may ask.
const QUESTION: &str = "is this the right database?";

/// Databases that are dumped together, each as a component: one that the parent has and the server
/// has not is looked for.
#[derive(Clone, Debug)]
pub struct Group {
    /// How the names of their components begin.
    pub prefix: String,
    /// The names of the components that are dumped.
    pub components: Vec<String>,
}

/// Compares the record of a new dump with that of the same component in the parent.
///
/// Rows are compared where both were counted; bytes where both dumps have the same form.
///
/// # Errors
/// [`Exit::Unmet`](bk_manifest::exit::Exit::Unmet) naming both figures; a parent that cannot be read.
pub fn check(
    limit: MaxShrink,
    parent: Option<&ParentFile>,
    component: &str,
    kind: &str,
    facts: &Map<String, Value>,
) -> anyhow::Result<()> {
    let components = limit.components(parent)?;
    match components.iter().find(|known| known.name == component && known.kind == kind) {
        Some(last) => compare(limit, last, facts),
        None => Ok(()),
    }
}

/// Fails if the parent has a component of the group that is not dumped any more.
///
/// # Errors
/// [`Exit::Unmet`](bk_manifest::exit::Exit::Unmet) naming it; a parent that cannot be read.
pub fn check_group(
    limit: MaxShrink,
    parent: Option<&ParentFile>,
    kind: &str,
    group: &Group,
) -> anyhow::Result<()> {
    let components = limit.components(parent)?;
    let gone = components.iter().find(|known| {
        known.kind == kind
            && known.name.starts_with(&group.prefix)
            && !group.components.contains(&known.name)
    });
    let Some(gone) = gone else { return Ok(()) };
    let message =
        format!("the last backup has '{}', and the server has no such database", gone.name);
    Err(refusal(message, QUESTION))
}

fn compare(limit: MaxShrink, last: &Component, facts: &Map<String, Value>) -> anyhow::Result<()> {
    let refused = |now: &str, before: &str| {
        let message = format!(
            "the dump of '{}' holds {now}, the last one {before}: it shrank by more than {} %",
            last.name, limit.0
        );
        Err(refusal(message, QUESTION))
    };
    if let Some((before, now)) = rows(&last.extra, facts)
        && limit.is_beyond(before, now)
    {
        return refused(&format!("{now} rows"), &before.to_string());
    }
    let has_same_form =
        ["format", "compression"].iter().all(|fact| last.extra.get(*fact) == facts.get(*fact));
    if let (true, Some(before), Some(now)) = (has_same_form, size(&last.extra), size(facts))
        && limit.is_beyond(before, now)
    {
        return refused(&human_bytes(now), &human_bytes(before));
    }
    Ok(())
}

/// The rows of all tables before and now, where both records count them. A table that could not be
/// counted now is not counted before either.
fn rows(before: &Map<String, Value>, now: &Map<String, Value>) -> Option<(u64, u64)> {
    let (before, now) = (counts(before)?, counts(now)?);
    let is_unknown = |name: &str| now.get(name).is_some_and(Option::is_none);
    let known = before.iter().filter(|(name, _)| !is_unknown(name));
    Some((known.filter_map(|(_, rows)| *rows).sum(), now.values().flatten().sum()))
}

/// The rows of each table of the user's; of one that could not be counted none. `None` for a record
/// that counts nothing.
fn counts(facts: &Map<String, Value>) -> Option<BTreeMap<&str, Option<u64>>> {
    let level = facts.get("fingerprints")?.get("level")?.as_str()?;
    let tables = facts.get("tables")?.as_array().filter(|_| level != "none")?;
    // What an extension brings, and what a view has computed, is there in an empty database too.
    let own = tables.iter().filter(|table| table.get("kind").is_none());
    let count = |table: &'_ Value| table.get("rows").and_then(Value::as_u64);
    Some(own.filter_map(|table| Some((table.get("name")?.as_str()?, count(table)))).collect())
}

fn size(facts: &Map<String, Value>) -> Option<u64> {
    facts.get("size")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::{Exit, classify};
    use bk_manifest::manifest::Status;
    use serde_json::json;

    fn facts(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    fn compare(percent: u8, last: Value, now: Value) -> anyhow::Result<()> {
        let last = Component {
            name: "database".into(),
            kind: "sqlite".into(),
            status: Status::Complete,
            extra: facts(last),
        };
        super::compare(MaxShrink(percent), &last, &facts(now))
    }

    fn tables(tables: &Value) -> Value {
        json!({"fingerprints": {"level": "count"}, "tables": tables})
    }

    fn table(rows: u64) -> Value {
        tables(&json!([{"name": "a", "rows": rows}, {"name": "b"}]))
    }

    #[test]
    fn rows_that_are_gone_are_noticed_at_the_border() {
        assert!(compare(90, table(1000), table(100)).is_ok());
        let error = compare(90, table(1000), table(99)).unwrap_err();
        assert_eq!(classify(&error), Exit::Unmet);
        assert!(error.to_string().contains("99 rows, the last one 1000"), "{error}");
        assert!(compare(0, table(1000), table(999)).is_err());
        assert!(compare(0, table(1000), table(1000)).is_ok());
        assert!(compare(90, table(0), table(0)).is_ok());
    }

    #[test]
    fn only_what_was_counted_on_both_sides_is_compared() {
        assert!(compare(90, table(5), tables(&json!([]))).is_err(), "all tables are gone");
        let uncounted = json!({"fingerprints": {"level": "none"}, "tables": [{"name": "a"}]});
        assert!(compare(90, table(5), uncounted).is_ok());
        let unread = tables(&json!([{"name": "a"}, {"name": "b", "rows": 1}]));
        assert!(compare(90, table(1000), unread).is_ok(), "'a' could not be read");
        let extension = json!({"name": "spatial_ref_sys", "kind": "extension table", "rows": 8500});
        let before = tables(&json!([{"name": "a", "rows": 20000}, extension]));
        let emptied = tables(&json!([{"name": "a", "rows": 0}, extension]));
        assert!(compare(90, before, emptied).is_err());
    }

    #[test]
    fn bytes_are_compared_where_the_form_is_the_same() {
        let made = |format: &str, size: u64| json!({"format": format, "size": size});
        assert!(compare(90, made("custom", 1000), made("custom", 99)).is_err());
        assert!(compare(90, made("custom", 1000), made("plain", 99)).is_ok());
    }
}
