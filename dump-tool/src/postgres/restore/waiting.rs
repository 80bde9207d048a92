//! A load in one transaction that waits for somebody else's lock, ended before it waits for ever.
//!
//! `lock_timeout` would be the server's own way, but every dump begins with switching that off.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::guard::Guard;

/// How long a load may wait for others without a break.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it waits.
const TICK: Duration = Duration::from_secs(1);
/// The session of this restore that waits, and whom for; no row if none does.
const WAITING: &str = "\
    SELECT a.pid::text AS pid, (SELECT string_agg(format('%s ''%s'' (%s)', \
        b.pid, b.application_name, b.state), ', ') FROM pg_catalog.pg_stat_activity b \
        WHERE b.pid = ANY (pg_catalog.pg_blocking_pids(a.pid))) AS holders \
    FROM pg_catalog.pg_stat_activity a \
    WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.datname = current_database() \
    AND a.application_name = current_setting('application_name') AND a.wait_event_type = 'Lock'";

/// Runs a load while `guard` looks whether it waits; says by whom it was held up if it was ended for
/// that.
pub(super) fn watched<T>(guard: &mut Guard, load: impl FnOnce() -> T) -> (T, Option<String>) {
    let (end, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || watch(guard, &ended));
        let loaded = load();
        drop(end);
        (loaded, watcher.join().ok().flatten())
    })
}

/// Looks until the load has `ended`. Whatever cannot be asked says nothing against the load.
fn watch(guard: &mut Guard, ended: &Receiver<()>) -> Option<String> {
    let mut since = None;
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        let rows = guard.rows(WAITING).unwrap_or_default();
        let Some(row) = rows.first() else {
            since = None;
            continue;
        };
        let text = |member: &str| row.get(member).and_then(serde_json::Value::as_str);
        if since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            continue;
        }
        let pid = text("pid").unwrap_or_default();
        if guard.run(&format!("SELECT pg_catalog.pg_cancel_backend({pid})")).is_ok() {
            return Some(text("holders").unwrap_or("a session that is gone by now").to_owned());
        }
    }
    None
}
