//! Loading a dump of PostgreSQL into a database that is new or empty.

use std::fs::File;

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure, classify, fail};
use bk_manifest::progress::Progress;
use serde_json::{Map, Value};

use super::client_version;
use super::connection::{self, Server};
use super::session::{Session, identifier, literal};
use crate::restore::Dump;

/// What is dumped into where.
pub struct Target<'a> {
    /// The server; its database is the one to be filled.
    pub server: &'a Server,
    /// Leave out who owns what: everything belongs to the role that restores.
    pub no_owner: bool,
    /// Leave out who may do what.
    pub no_acl: bool,
}

/// Counts what is in a database beside what every new one has and what extensions put there.
const USER_OBJECTS: &str = "\
    WITH own AS (SELECT oid FROM pg_catalog.pg_namespace \
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'), \
    objects AS ( \
        SELECT 'pg_class'::regclass AS class, oid, relname AS name FROM pg_catalog.pg_class \
            WHERE relnamespace IN (SELECT oid FROM own) AND relkind NOT IN ('i', 'I', 't') \
        UNION ALL SELECT 'pg_proc'::regclass, oid, proname FROM pg_catalog.pg_proc \
            WHERE pronamespace IN (SELECT oid FROM own) \
        UNION ALL SELECT 'pg_type'::regclass, oid, typname FROM pg_catalog.pg_type \
            WHERE typnamespace IN (SELECT oid FROM own) AND typtype IN ('d', 'e', 'r') \
        UNION ALL SELECT 'pg_namespace'::regclass, oid, nspname FROM pg_catalog.pg_namespace \
            WHERE oid IN (SELECT oid FROM own) AND nspname <> 'public' \
        UNION ALL SELECT 'pg_largeobject'::regclass, oid, oid::text \
            FROM pg_catalog.pg_largeobject_metadata) \
    SELECT name::text FROM objects WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
        WHERE d.classid = objects.class AND d.objid = objects.oid AND d.deptype = 'e') \
    ORDER BY name LIMIT 3";

/// Loads a dump; a database that is not there is made first, with the locale that was recorded.
///
/// All of it goes in in one transaction: on an error a database that was made here is gone again,
/// and one that was there is as empty as before.
///
/// # Errors
/// [`Exit::Usage`] for a database that is not empty, which is not touched; what the programs said.
pub fn restore(
    dump: &Dump,
    facts: &Map<String, Value>,
    target: &Target<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let name = target.server.database().context("no database was named")?.to_owned();
    client_version(target.server, "pg_restore")?;
    let tag = format!("bk-dump restore {}", std::process::id());
    let server = target.server.with("PGAPPNAME", &tag);
    let is_new = prepare(&server, &name, facts, progress)?;
    let loaded = load(dump.open()?, &server, &name, target, progress);
    if loaded.is_err() {
        let undone = undo(&server, &name, is_new, &tag);
        if let Err(error) = undone {
            progress.warn(&format!("the database '{name}' could not be cleaned up: {error:#}"));
        }
    }
    loaded.with_context(|| format!("cannot restore into the database '{name}'"))
}

/// Looks whether the database could be restored into: it is empty, or not there.
///
/// # Errors
/// As [`restore`], before anything was touched.
pub fn check_target(target: &Target<'_>) -> anyhow::Result<()> {
    let name = target.server.database().context("no database was named")?;
    client_version(target.server, "pg_restore")?;
    open_empty(target.server, name).map(|_| ())
}

/// A session in an empty database; `None` if there is no such database.
fn open_empty(server: &Server, name: &str) -> anyhow::Result<Option<Session>> {
    let mut session = match Session::open(server, &Cancel::default()) {
        Ok(session) => session,
        Err(error) => {
            bk_manifest::signal::check()?;
            // Only the server's list is believed: its messages may be in any language.
            let is_missing = maintenance(server).and_then(|mut session| {
                let list = "SELECT count(*) FROM pg_catalog.pg_database WHERE datname = ";
                Ok(session.value(&format!("{list}{}", literal(name)))? == "0")
            });
            return if is_missing.unwrap_or(false) { Ok(None) } else { Err(error) };
        }
    };
    let found: Vec<String> = session
        .rows(USER_OBJECTS)?
        .iter()
        .filter_map(|row| row.get("name").and_then(Value::as_str).map(str::to_owned))
        .collect();
    if !found.is_empty() {
        let message =
            format!("the database '{name}' is not empty: it holds {}, …", found.join(", "));
        return Err(Failure::new(Exit::Usage, message)
            .hint("name a new one (--database NAME): it will be made")
            .into());
    }
    Ok(Some(session))
}

/// Makes sure that the database is there and empty; says whether it was made.
fn prepare(
    server: &Server,
    name: &str,
    facts: &Map<String, Value>,
    progress: &dyn Progress,
) -> anyhow::Result<bool> {
    let Some(mut session) = open_empty(server, name)? else {
        create(server, name, facts, progress)?;
        progress.note(&format!("made the database '{name}'"));
        return Ok(true);
    };
    let encoding = session.value("SHOW server_encoding")?;
    let recorded = facts.get("encoding").and_then(Value::as_str).unwrap_or(&encoding);
    if encoding != recorded {
        progress.warn(&format!(
            "the database '{name}' has the encoding {encoding}, the dump {recorded}"
        ));
    }
    Ok(false)
}

/// A session in a database that every server has.
fn maintenance(server: &Server) -> anyhow::Result<Session> {
    let cancel = Cancel::default();
    Session::open(&server.in_database("postgres"), &cancel)
        .or_else(|_| Session::open(&server.in_database("template1"), &cancel))
}

fn create(
    server: &Server,
    name: &str,
    facts: &Map<String, Value>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let text = |fact: &str| facts.get(fact).and_then(Value::as_str);
    let mut plain = format!("CREATE DATABASE {} TEMPLATE template0", identifier(name));
    if let Some(encoding) = text("encoding") {
        plain += " ENCODING ";
        plain += &literal(encoding);
    }
    let mut exact = plain.clone();
    for (fact, option) in [("collate", "LC_COLLATE"), ("ctype", "LC_CTYPE")] {
        if let Some(value) = text(fact) {
            exact.extend([" ", option, " ", &literal(value)]);
        }
    }
    if let Some(locale) = text("locale") {
        let option = match text("locale_provider") {
            Some("i") => " LOCALE_PROVIDER icu ICU_LOCALE ",
            Some("b") => " LOCALE_PROVIDER builtin BUILTIN_LOCALE ",
            _ => "",
        };
        if !option.is_empty() {
            exact.extend([option, &literal(locale)]);
        }
    }
    let first = maintenance(server)?.query(&exact);
    let Err(error) = first else { return Ok(()) };
    let said = format!("{error:#}").to_lowercase();
    if exact == plain || !["locale", "collat", "icu"].iter().any(|word| said.contains(word)) {
        return Err(error.context(format!("cannot make the database '{name}'")));
    }
    progress.warn(&format!(
        "this server does not have the locale of the dumped database ({}): text may sort otherwise",
        text("locale").or_else(|| text("collate")).unwrap_or("unknown"),
    ));
    maintenance(server)?
        .query(&plain)
        .with_context(|| format!("cannot make the database '{name}'"))?;
    Ok(())
}

fn load(
    dump: File,
    server: &Server,
    name: &str,
    target: &Target<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    progress.begin(&format!("restoring into '{name}'"), None);
    let mut command = server.command("pg_restore")?.args([
        "--exit-on-error",
        "--single-transaction",
        "--no-password",
    ]);
    if target.no_owner {
        command = command.arg("--no-owner");
    }
    if target.no_acl {
        command = command.arg("--no-acl");
    }
    let command = command.arg(format!("--dbname={}", conninfo(name))).input(dump);
    let (_, finished) = command.output()?;
    progress.end();
    if finished.is_success() {
        for line in finished.lines() {
            progress.warn(line);
        }
        return Ok(());
    }
    let error = connection::failure(&finished);
    let said = &finished.stderr;
    let lacks_role = said.contains("role \"") && said.contains("does not exist");
    if lacks_role || said.contains("must be member of") || said.contains("to SET ROLE") {
        return Err(Failure::new(classify(&error), error.to_string())
            .hint("make the role first, or restore without owners: --no-owner --no-acl")
            .into());
    }
    Err(error)
}

/// A database's name where libpq would take a connection string.
fn conninfo(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Takes back what a failed load began, also after we were told to stop.
///
/// Inside a container the load may go on without us, so its sessions are ended first.
fn undo(server: &Server, name: &str, is_new: bool, tag: &str) -> anyhow::Result<()> {
    let mut session = Session::open_for_cleanup(&server.in_database("postgres"))
        .or_else(|_| Session::open_for_cleanup(&server.in_database("template1")))
        .or_else(|_| Session::open_for_cleanup(server))?;
    session.query(&format!(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
         WHERE pid <> pg_backend_pid() AND datname = {} AND application_name = {}",
        literal(name),
        literal(tag),
    ))?;
    if is_new {
        let mut left = 50;
        while session.value(&format!(
            "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE pid <> pg_backend_pid() \
             AND datname = {}",
            literal(name),
        ))? != "0"
        {
            if left == 0 {
                return Err(fail(Exit::Failed, "it is in use"));
            }
            left -= 1;
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        session.query(&format!("DROP DATABASE {}", identifier(name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::conninfo;

    #[test]
    fn a_database_name_is_no_connection_string() {
        assert_eq!(conninfo("app"), "dbname='app'");
        assert_eq!(conninfo("x' host='evil"), "dbname='x\\' host=\\'evil'");
    }
}
