//! Connection poolers that give every transaction another session, such as `PgBouncer` in
//! transaction mode. There is no snapshot to be held through one, and settings made there are other
//! clients'.

use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure};

use super::connection::Server;
use super::session::Session;

/// How often it is tried: other clients may take the session that would tell.
const ROUNDS: u32 = 3;
const PID: &str = "SELECT pg_catalog.pg_backend_pid()";

/// Refuses a connection through such a pooler.
///
/// Of two connections, one is idle while the other is in a transaction. If both have the same
/// session of the server, or the first one has another by then, sessions are shared.
///
/// # Errors
/// [`Exit::Usage`]; what the server said.
pub(super) fn refuse(server: &Server, cancel: &Cancel) -> anyhow::Result<()> {
    if server.is_elsewhere() {
        // The programs are beside the server itself.
        return Ok(());
    }
    let mut idle = Session::probe(server, cancel)?;
    let mut busy = Session::probe(server, cancel)?;
    for _ in 0..ROUNDS {
        let before = idle.value(PID)?;
        busy.query("BEGIN")?;
        let other = busy.value(PID)?;
        // Not asked where both are the same: with a single session it would wait for ever.
        let is_shared = before == other || before != idle.value(PID)?;
        busy.query("ROLLBACK")?;
        if is_shared {
            let message =
                "the connection goes through a pooler in transaction mode, which holds no snapshot";
            return Err(Failure::new(Exit::Usage, message)
                .hint("connect to the PostgreSQL server itself: its own host and port, or --via")
                .into());
        }
    }
    Ok(())
}
