//! PostgreSQL: a dump of one snapshot, and a database made of it again.

pub mod connection;
pub mod contents;
pub mod databases;
pub mod directory;
mod dump;
mod facts;
pub mod format;
pub mod globals;
mod pooler;
pub mod reach;
pub mod read;
pub mod restore;
mod schema_version;
pub mod session;
pub mod toc;
pub mod url;
mod whole;

use std::time::Duration;

use bk_manifest::exit::{Exit, Failure};
use serde_json::{Map, Value};

use self::connection::Server;
use self::contents::Excluded;
use self::format::{Form, Format};
use self::session::Session;
use crate::compress::Compression;
use crate::filter::{Made, Work};
use crate::level::Level;

/// The `kind` of its components.
pub const KIND: &str = "postgresql";

/// What of the database is dumped, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format.
    pub format: Format,
    /// The compression; none: the usual one of the format.
    pub compression: Option<Compression>,
    /// Tables that are dumped at once, in directory format.
    pub jobs: usize,
    /// How long to wait for a table that is locked; none: for ever.
    pub lock_timeout: Option<Duration>,
    /// In a plain dump: drop what is there before it is made.
    pub clean: bool,
    /// Leave out who owns what.
    pub no_owner: bool,
    /// Leave out who may do what.
    pub no_acl: bool,
    /// Tables that are left out.
    pub exclude_table: Vec<String>,
    /// Tables whose rows are left out.
    pub exclude_table_data: Vec<String>,
    /// How closely what the database holds is recorded.
    pub level: Level,
    /// Gives the version of the application's schema; none: known migration programs are asked.
    pub schema_version_query: Option<String>,
}

/// The session that holds the snapshot, and what is known of the database.
struct Held {
    /// Keeps the snapshot alive until `pg_dump` has ended.
    session: Session,
    snapshot: String,
    facts: Map<String, Value>,
    /// Bytes of the database on the server.
    size: u64,
    form: Form,
    /// What of the database is not dumped.
    excluded: Excluded,
}

/// Takes a snapshot of the database, and returns what dumps it.
///
/// # Errors
/// [`Exit::Denied`], [`Exit::NotFound`], a client older than the server, too little space.
pub fn begin<'a>(
    server: &'a Server,
    options: &'a Options,
    work: &Work<'_>,
) -> anyhow::Result<impl FnOnce(&Work<'_>) -> anyhow::Result<Made> + Send + use<'a>> {
    let client = client_version(server, "pg_dump")?;
    client_version(server, "pg_restore")?;
    let form =
        Form::new(options.format, options.compression, major(&client), server.is_elsewhere())?;
    pooler::refuse(server, work.cancel)?;
    let mut session = Session::open(server, work.cancel)?;
    if let Some(limit) = options.lock_timeout {
        session.query(&format!("SET lock_timeout = '{}s'", limit.as_secs()))?;
    }
    let (mut facts, size) = facts::take(&mut session)?;
    let text = |name: &str| facts.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (database, server_version) = (text("database"), text("server_version"));
    if major(&client) < major(&server_version) {
        let message = format!(
            "pg_dump {client} cannot dump '{database}': its server is the newer {server_version}"
        );
        return Err(Failure::new(Exit::Failed, message)
            .hint("install the client of that version, or use the server's own: --via docker:NAME")
            .into());
    }
    facts.insert("format".into(), form.format.name().into());
    facts.insert("compression".into(), form.compression.name().into());
    facts.insert("client_version".into(), client.into());
    work.staging.require(size, &format!("a dump of '{database}'"), work.progress)?;
    session.query("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let snapshot = session.value("SELECT pg_catalog.pg_export_snapshot()")?;
    let query = options.schema_version_query.as_deref();
    let schema_version = schema_version::ask(&mut session, query, work.progress)?;
    facts.insert("schema_version".into(), schema_version.into());
    let excluded =
        Excluded::find(&mut session, &options.exclude_table, &options.exclude_table_data)?;
    let held = Held { session, snapshot, facts, size, form, excluded };
    Ok(move |work: &Work<'_>| dump::dump(server, options, held, work))
}

/// The version of one of the programs, such as `15.18`.
///
/// # Errors
/// If it is not there.
pub fn client_version(server: &Server, program: &str) -> anyhow::Result<String> {
    let (output, finished) = server.command(program)?.arg("--version").output()?;
    if !finished.is_success() {
        return Err(connection::failure(&finished));
    }
    let text = String::from_utf8_lossy(&output);
    let version = text.split_once(") ").map_or(text.as_ref(), |(_, version)| version);
    Ok(version.split_whitespace().next().unwrap_or("unknown").to_owned())
}

fn major(version: &str) -> u32 {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_compared_as_numbers() {
        assert_eq!(major("15.18"), 15);
        assert_eq!(major("9.6.24"), 9);
        assert_eq!(major("18beta1"), 18);
        assert!(major("9.6") < major("10.1"));
    }
}
