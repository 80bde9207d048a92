//! What a dump needs of the server that it goes to.

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::progress::Progress;
use serde_json::{Map, Value};

use super::guard::Guard;
use super::{Job, Options, Way, load};
use crate::postgres::connection::Server;
use crate::postgres::contents::Contents;
use crate::postgres::session::{identifier, literal};
use crate::postgres::{client_version, major};

/// Fails if the client is older than the one that made the dump: it could not read it.
///
/// # Errors
/// [`Exit::Usage`] with both versions; a client that is missing.
pub(super) fn check_client(server: &Server, record: &Map<String, Value>) -> anyhow::Result<()> {
    if record.get("format").and_then(Value::as_str) == Some("plain") {
        return Ok(());
    }
    let client = client_version(server, "pg_restore")?;
    let Some(made) = record.get("client_version").and_then(Value::as_str) else { return Ok(()) };
    if major(&client) >= major(made) {
        return Ok(());
    }
    let message = format!("pg_restore {client} cannot read a dump of pg_dump {made}");
    Err(Failure::new(Exit::Usage, message)
        .hint("install the client of that version, or use the server's own: --via docker:NAME")
        .into())
}

/// Fails if the server is older than the dumped one, or lacks an extension, a tablespace or a role;
/// roles that are missing are made if that was asked for.
///
/// # Errors
/// [`Exit::Usage`] naming what is missing.
pub(super) fn check_server(
    guard: &mut Guard,
    job: &Job<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<String>> {
    let (record, options) = (job.record, job.options);
    if load::compression(job.dump.kind).is_some() {
        load::check_psql(guard.server())?;
    }
    let version = guard.value("SHOW server_version")?;
    if let Some(dumped) = record.get("server_version").and_then(Value::as_str) {
        if major(dumped) > major(&version) {
            let message =
                format!("the dump is of the newer PostgreSQL {dumped}, this server is {version}");
            return Err(Failure::new(Exit::Usage, message)
                .hint("restore into a server of that version, or a newer one")
                .into());
        }
        progress.note(&format!("plan: a dump of PostgreSQL {dumped} into {version}"));
    }
    let Some(recorded) = &job.recorded else { return Ok(Vec::new()) };
    check_extensions(guard, recorded)?;
    if !matches!(options.way, Way::Selected(_)) {
        check_tablespaces(guard, recorded)?;
    }
    let missing = missing_roles(guard, recorded, options)?;
    if missing.is_empty() || options.creates_roles {
        if !missing.is_empty() {
            progress.warn(&format!("roles are made that cannot log in: {}", missing.join(", ")));
        }
        return Ok(missing);
    }
    let message = format!("the server lacks roles that the dump needs: {}", missing.join(", "));
    Err(Failure::new(Exit::Usage, message)
        .hint("make them first, or let them be made without login: --create-missing-roles")
        .hint("or restore without owners and rights: --no-owner --no-acl")
        .into())
}

fn check_extensions(guard: &mut Guard, recorded: &Contents) -> anyhow::Result<()> {
    if recorded.extensions.is_empty() {
        return Ok(());
    }
    let wanted = recorded.extensions.iter().map(|extension| extension.name.as_str());
    let missing = guard.value(&format!(
        "SELECT coalesce(string_agg(name, ', ' ORDER BY name), '') FROM unnest({}) AS name \
         WHERE name NOT IN (SELECT name FROM pg_catalog.pg_available_extensions)",
        array(wanted)
    ))?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, format!("the server lacks extensions: {missing}"))
        .hint("install their packages on the database's host, or use an image that has them")
        .into())
}

fn check_tablespaces(guard: &mut Guard, recorded: &Contents) -> anyhow::Result<()> {
    if recorded.tablespaces.is_empty() {
        return Ok(());
    }
    let missing = guard.rows(&format!(
        "SELECT name FROM unnest({}) AS name \
         WHERE name NOT IN (SELECT spcname::text FROM pg_catalog.pg_tablespace) ORDER BY name",
        array(recorded.tablespaces.iter().map(String::as_str))
    ))?;
    let missing: Vec<&str> =
        missing.iter().filter_map(|row| row.get("name").and_then(Value::as_str)).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let message = format!("the server lacks tablespaces: {}", missing.join(", "));
    let statement =
        format!("CREATE TABLESPACE {} LOCATION '/some/empty/folder'", identifier(first));
    Err(Failure::new(Exit::Usage, message)
        .hint(format!("make them, in folders of the server's own user: {statement}"))
        .into())
}

fn missing_roles(
    guard: &mut Guard,
    recorded: &Contents,
    options: &Options,
) -> anyhow::Result<Vec<String>> {
    if recorded.roles.is_empty() || options.without.owners && options.without.rights {
        return Ok(Vec::new());
    }
    let rows = guard.rows(&format!(
        "SELECT name FROM unnest({}) AS name \
         WHERE name NOT IN (SELECT rolname::text FROM pg_catalog.pg_roles) ORDER BY name",
        array(recorded.roles.iter().map(String::as_str))
    ))?;
    let name = |row: &Value| row.get("name").and_then(Value::as_str).map(str::to_owned);
    Ok(rows.iter().filter_map(name).collect())
}

/// Makes roles that can own things, and nothing else.
///
/// # Errors
/// What the server said.
pub(super) fn make_roles(guard: &mut Guard, roles: &[String]) -> anyhow::Result<()> {
    for role in roles {
        guard.run(&format!("CREATE ROLE {} NOLOGIN", identifier(role)))?;
    }
    Ok(())
}

fn array<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let items: Vec<String> = names.map(literal).collect();
    format!("ARRAY[{}]::text[]", items.join(", "))
}
