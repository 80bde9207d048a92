//! What the sessions of a load begin with, so that nothing on the server or in the dump disturbs it.
//!
//! It is asked for when they connect: a setting of the role or the database would have to be taken
//! back, and `pg_restore` has no word for it.

use serde_json::Value;

use super::guard::Guard;
use super::{Job, Way};
use crate::postgres::connection::Server;

/// What ends a session of our role that waits while others load, or loads for long; `pg_restore`
/// does not know it, or not in each version.
const TIMEOUTS: &str = "SELECT name, '0' AS value FROM pg_catalog.pg_settings \
    WHERE name IN ('idle_session_timeout', 'transaction_timeout') AND reset_val <> '0'";
/// What keeps event triggers of the dump from firing while the rest of it is loaded, in the words of
/// the server's version: `pg_restore` refreshes materialised views behind them. Others than a
/// superuser can neither set that nor make event triggers.
const NO_EVENT_TRIGGERS: &str = "SELECT name, \
        CASE name WHEN 'event_triggers' THEN 'off' ELSE 'replica' END AS value \
    FROM pg_catalog.pg_settings \
    WHERE name IN ('event_triggers', 'session_replication_role') \
        AND current_setting('is_superuser') = 'on' ORDER BY name LIMIT 1";

/// `server` with these settings for every session.
///
/// # Errors
/// What the server said.
pub(super) fn undisturbed(
    guard: &mut Guard,
    job: &Job<'_>,
    server: &Server,
) -> anyhow::Result<Server> {
    let mut settings = guard.rows(TIMEOUTS)?;
    // Of a part, the triggers that fire are those of the database that it goes into.
    if has_event_triggers(job) && !matches!(job.options.way, Way::Selected(_)) {
        settings.extend(guard.rows(NO_EVENT_TRIGGERS)?);
    }
    let text = |row: &Value, name: &str| Some(row.get(name)?.as_str()?.to_owned());
    let options = settings
        .iter()
        .filter_map(|row| Some(format!("-c {}={}", text(row, "name")?, text(row, "value")?)));
    Ok(options.fold(server.clone(), |server, option| server.with_option(&option)))
}

/// Whether the dump may hold some.
fn has_event_triggers(job: &Job<'_>) -> bool {
    let counts = job.recorded.as_ref().and_then(|recorded| recorded.object_counts.as_ref());
    counts.is_none_or(|counts| counts.get("event_triggers").is_none_or(|count| *count > 0))
}
