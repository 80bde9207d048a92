//! Free space where the server keeps its data, where that can be known.

use std::fs;
use std::path::Path;

use bk_manifest::progress::human_bytes;

use super::guard::Guard;
use crate::postgres::connection::Server;
use crate::postgres::session::literal;

/// What is free for a new database, and what one needs.
pub(super) struct Space {
    /// Bytes that the dumped database took.
    pub(super) database: u64,
    /// Free bytes; none if it cannot be known from here.
    pub(super) free: Option<u64>,
}

impl Space {
    /// Looks where the databases of `tablespace`, or the server's data, lie.
    ///
    /// # Errors
    /// Those of asking the server.
    pub(super) fn find(
        guard: &mut Guard,
        server: &Server,
        tablespace: Option<&str>,
        database: u64,
    ) -> anyhow::Result<Self> {
        let folder = match tablespace {
            Some(name) => format!(
                "(SELECT pg_catalog.pg_tablespace_location(oid) FROM pg_catalog.pg_tablespace \
                 WHERE spcname = {})",
                literal(name)
            ),
            None => "s.setting".to_owned(),
        };
        let rows = guard.rows(&format!(
            "SELECT s.setting AS data, {folder} AS folder, current_setting('port') AS port \
             FROM pg_catalog.pg_settings s WHERE s.name = 'data_directory'"
        ))?;
        let text = |member: &str| rows.first().and_then(|row| row.get(member)?.as_str());
        let free = match (text("data"), text("folder"), text("port")) {
            (Some(_), Some(folder), _) if server.is_elsewhere() => free_inside(server, folder),
            (Some(data), Some(folder), Some(port)) if is_here(Path::new(data), port) => {
                free_here(Path::new(folder))
            }
            _ => None,
        };
        Ok(Space { database, free })
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let free = self.free.map_or_else(|| "unknown".to_owned(), human_bytes);
        format!(
            "the dumped database took {}, free at the server: {free}",
            human_bytes(self.database)
        )
    }
}

/// Whether the server with this data folder and port is one of this host: its own record says so.
/// Another machine may have the same folder.
fn is_here(data: &Path, port: &str) -> bool {
    let record = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = record.lines().skip(1);
    lines.next().is_some_and(|folder| Path::new(folder) == data) && lines.nth(1) == Some(port)
}

fn free_here(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Asks `df`, whose fourth column is what is free, in KiB.
fn free_inside(server: &Server, folder: &str) -> Option<u64> {
    let (output, finished) =
        server.command("df").ok()?.args(["-P", "-k"]).arg(folder).output().ok()?;
    let text = String::from_utf8_lossy(&output);
    let kilobytes: u64 = text.lines().last()?.split_whitespace().nth(3)?.parse().ok()?;
    finished.is_success().then(|| kilobytes.saturating_mul(1024))
}
