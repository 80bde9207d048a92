//! What belongs to a PostgreSQL server and to none of its databases: roles with their passwords,
//! settings and memberships, and the names of tablespaces.

mod restore;
mod script;

use std::io::Write;

use anyhow::Context;
use bk_manifest::command::Finished;
use bk_manifest::exit::{Exit, Failure, classify, fail};
use bk_manifest::left_out::LeftOut;
use serde_json::{Map, Value, json};

pub use self::restore::restore;
use self::script::{Script, What};
use super::connection::{self, Server};
use super::pooler;
use super::session::Session;
use super::{client_version, major};
use crate::check::{self, DumpKind};
use crate::compress::{Compression, Compressor};
use crate::filter::{Made, Work};

/// The `kind` of its components.
pub const KIND: &str = "globals";
/// The file: SQL for psql.
const FILE: &[u8] = b"globals.sql.zst";
/// How `pg_dumpall` ends what it writes.
const TRAILER: &str = "-- PostgreSQL database cluster dump complete";
/// The first `pg_dumpall` that can be told an encoding.
const ENCODING_SINCE: u32 = 11;

/// What is dumped.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave out the passwords of roles, which only a superuser may read.
    pub no_role_passwords: bool,
}

/// Looks at the server, and returns what dumps its roles.
///
/// # Errors
/// [`Exit::Denied`], a client older than the server.
pub fn begin<'a>(
    server: &'a Server,
    options: Options,
    work: &Work<'_>,
) -> anyhow::Result<impl FnOnce(&Work<'_>) -> anyhow::Result<Made> + Send + use<'a>> {
    let client = client_version(server, "pg_dumpall")?;
    let version = "SELECT pg_catalog.split_part(current_setting('server_version'), ' ', 1)";
    let any = server.in_some_database();
    pooler::refuse(&any, work.cancel)?;
    let server_version = Session::open(&any, work.cancel)?.value(version)?;
    if major(&client) < major(&server_version) {
        let message = format!("pg_dumpall {client} cannot dump a server of {server_version}");
        return Err(Failure::new(Exit::Failed, message)
            .hint("install the client of that version, or use the server's own: --via docker:NAME")
            .into());
    }
    let mut facts = Map::new();
    facts.insert("server_version".into(), server_version.into());
    facts.insert("client_version".into(), client.into());
    facts.insert("role_passwords".into(), json!(!options.no_role_passwords));
    Ok(move |work: &Work<'_>| dump(server, options, facts, work))
}

fn dump(
    server: &Server,
    options: Options,
    mut facts: Map<String, Value>,
    work: &Work<'_>,
) -> anyhow::Result<Made> {
    let client = facts.get("client_version").and_then(Value::as_str).map_or(0, major);
    let mut command = server
        .command("pg_dumpall")?
        .cancelled_by(work.cancel)
        .args(["--globals-only", "--no-password"]);
    if client >= ENCODING_SINCE {
        command = command.arg("--encoding=UTF8");
    }
    if options.no_role_passwords {
        command = command.arg("--no-role-passwords");
    }
    let (text, finished) = command.output()?;
    if !finished.is_success() {
        return Err(refusal(&finished)).context("dumping the roles");
    }
    for line in finished.lines() {
        work.progress.warn(line);
    }
    let odd = |why: &str| fail(Exit::Failed, format!("the dump of the roles {why}"));
    let text = String::from_utf8(text).map_err(|_| odd("is not in UTF-8"))?;
    if !text.lines().rev().any(|line| line == TRAILER) {
        return Err(odd("has no end"));
    }
    let script = Script::parse(&text).map_err(|why| odd(&format!("cannot be read: {why}")))?;
    let names = |wanted: fn(&What) -> Option<&str>| -> Vec<&str> {
        script.statements.iter().filter_map(|statement| wanted(&statement.what)).collect()
    };
    let roles = names(|what| match what {
        What::CreateRole(role) => Some(role),
        _ => None,
    });
    let tablespaces = names(|what| match what {
        What::Tablespace(name) => Some(name),
        _ => None,
    });
    facts.insert("roles".into(), json!(roles));
    facts.insert("tablespaces".into(), json!(tablespaces));

    let context = || format!("cannot write the roles to '{}'", work.staging.folder().display());
    let mut output =
        Compressor::new(work.staging.create()?, Compression::Zstd).with_context(context)?;
    output.write_all(text.as_bytes()).with_context(context)?;
    let staged = work.staging.commit(output.finish().with_context(context)?, FILE)?;
    let (checksum, size) = check::read_to_end(DumpKind::SqlZst, staged.open()?, work.cancel)
        .context("the dump of the roles cannot be read again")?;
    staged.compare(checksum, size)?;
    facts.insert("size".into(), json!(size));
    let left_out = LeftOut::default();
    Ok(Made {
        staged: vec![staged],
        kind: KIND,
        facts,
        database: None,
        left_out,
        is_partial: false,
    })
}

/// Only a superuser may read the passwords.
fn refusal(finished: &Finished) -> anyhow::Error {
    let error = connection::failure(finished);
    if classify(&error) == Exit::Denied && finished.stderr.contains("pg_authid") {
        return Failure::new(Exit::Denied, error.to_string())
            .hint("passwords of roles are for superusers: name one (--user), or leave them out")
            .hint("bk-dump globals --no-role-passwords, or BACKUP_GLOBALS=without-passwords")
            .into();
    }
    error
}
