//! A dump that is much smaller than the last one is refused: an empty new cluster must not become
//! the backup that all good ones are pruned for.

use std::fs::File;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::Component;
use bk_manifest::outer;
use bk_manifest::progress::human_bytes;
use bk_manifest::run::ParentFile;
use serde_json::{Map, Value};

/// How much smaller a dump may be than the parent's, in percent; 100: however small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxShrink(pub u8);

impl MaxShrink {
    /// Everything passes.
    pub const NO_LIMIT: Self = MaxShrink(100);

    /// Compares the record of a new dump with that of the same component in the parent.
    ///
    /// Rows are compared where both know them; bytes where both dumps have the same form.
    ///
    /// # Errors
    /// [`Exit::Unmet`] naming both figures; a parent that cannot be read.
    pub fn check(
        self,
        parent: Option<&ParentFile>,
        component: &str,
        kind: &str,
        facts: &Map<String, Value>,
    ) -> anyhow::Result<()> {
        let Some(parent) = parent.filter(|_| self.0 < 100) else { return Ok(()) };
        let context = || format!("the parent's manifest '{}'", parent.file);
        let file = File::open(&parent.file).with_context(context)?;
        let (_, trailer) = outer::read_file(&file).with_context(context)?;
        let components = trailer.components().with_context(context)?;
        match components.iter().find(|known| known.name == component && known.kind == kind) {
            Some(last) => self.compare(last, facts),
            None => Ok(()),
        }
    }

    fn compare(self, last: &Component, facts: &Map<String, Value>) -> anyhow::Result<()> {
        if let (Some(before), Some(now)) = (rows(&last.extra), rows(facts))
            && self.is_beyond(before, now)
        {
            return Err(self.refused(last, &format!("{now} rows"), &before.to_string()));
        }
        let has_same_form =
            ["format", "compression"].iter().all(|fact| last.extra.get(*fact) == facts.get(*fact));
        if let (true, Some(before), Some(now)) = (has_same_form, size(&last.extra), size(facts))
            && self.is_beyond(before, now)
        {
            return Err(self.refused(last, &human_bytes(now), &human_bytes(before)));
        }
        Ok(())
    }

    fn is_beyond(self, before: u64, now: u64) -> bool {
        let allowed = u128::from(100 - self.0.min(100));
        u128::from(now) * 100 < u128::from(before) * allowed
    }

    fn refused(self, last: &Component, now: &str, before: &str) -> anyhow::Error {
        let message = format!(
            "the dump of '{}' holds {now}, the last one {before}: it shrank by more than {} %",
            last.name, self.0
        );
        Failure::new(Exit::Unmet, message)
            .hint("is this the right database? If so, say it once with --max-shrink 100")
            .into()
    }
}

/// The rows of all tables, where the record counts them.
fn rows(facts: &Map<String, Value>) -> Option<u64> {
    let tables = facts.get("tables")?.as_array()?;
    let mut counted = tables.iter().filter_map(|table| table.get("rows")?.as_u64()).peekable();
    counted.peek()?;
    Some(counted.sum())
}

fn size(facts: &Map<String, Value>) -> Option<u64> {
    facts.get("size")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;
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
        MaxShrink(percent).compare(&last, &facts(now))
    }

    fn table(rows: u64) -> Value {
        json!({"tables": [{"name": "a", "rows": rows}, {"name": "b"}]})
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
        assert!(compare(90, table(5), json!({"tables": []})).is_ok(), "nothing was counted");
    }

    #[test]
    fn bytes_are_compared_where_the_form_is_the_same() {
        let made = |format: &str, size: u64| json!({"format": format, "size": size});
        assert!(compare(90, made("custom", 1000), made("custom", 99)).is_err());
        assert!(compare(90, made("custom", 1000), made("plain", 99)).is_ok());
    }
}
