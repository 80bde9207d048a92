//! What the planner knows of the rows, which no dump before PostgreSQL 18 holds: without it the
//! application's first queries may take hours.

use bk_manifest::command::Cancel;
use bk_manifest::progress::Progress;

use crate::postgres::connection::Server;
use crate::postgres::session::Session;

/// Has the server look at every table of the database of `server`. That it cannot is a warning: no
/// row depends on it.
pub(super) fn analyze(server: &Server, progress: &dyn Progress) {
    let name = server.database().unwrap_or_default();
    progress.begin(&format!("analyzing '{name}'"), None);
    let analyzed =
        Session::open(server, &Cancel::default()).and_then(|mut session| session.query("ANALYZE"));
    progress.end();
    if let Err(error) = analyzed {
        progress.warn(&format!("queries may be slow until ANALYZE has run in '{name}': {error:#}"));
    }
}
