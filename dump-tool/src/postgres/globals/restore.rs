//! Making the roles of a dump that a server lacks. Those that it has are left as they are: their
//! passwords may have been changed since.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::progress::Progress;
use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::script::{Script, Statement, What};
use crate::check::DumpKind;
use crate::postgres::connection::Server;
use crate::postgres::pooler;
use crate::postgres::session::Session;

/// Largest dump that is taken, decompressed.
const LIMIT: u64 = 64 << 20;

/// Makes the roles that the server lacks, in one transaction; says which before it does.
///
/// # Errors
/// A dump that is none of `pg_dumpall`; [`Exit::Denied`] for a role that may not make others.
pub fn restore(
    kind: DumpKind,
    dump: File,
    server: &Server,
    is_dry_run: bool,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let text = read(kind, dump)?;
    let script = Script::parse(&text)
        .map_err(|why| fail(Exit::Damaged, format!("no dump of roles by pg_dumpall: {why}")))?;
    let (server, cancel) = (server.in_some_database(), Cancel::default());
    pooler::refuse(&server, &cancel)?;
    let mut session = Session::open(&server, &cancel)?;
    let present = roles(&mut session)?;
    let plan = Plan::new(&script, &present);
    plan.say(progress);
    if is_dry_run || plan.missing.is_empty() {
        return Ok(());
    }
    session.query("SET standard_conforming_strings = on")?;
    session.query("BEGIN")?;
    for statement in &plan.statements {
        session.query(statement).context("making the roles that are missing")?;
    }
    session.query("COMMIT")?;
    for right in &plan.rights {
        // Each in a session of its own, which an error ends.
        if let Err(error) = Session::open(&server, &cancel)?.query(right) {
            progress.warn(&format!("without the right '{right}': {error:#}"));
        }
    }
    Ok(())
}

fn read(kind: DumpKind, file: File) -> anyhow::Result<String> {
    let file = BufReader::new(file);
    let mut text = String::new();
    let read = match kind {
        DumpKind::SqlZst => zstd::Decoder::with_buffer(file)?.take(LIMIT).read_to_string(&mut text),
        DumpKind::SqlGz => MultiGzDecoder::new(file).take(LIMIT).read_to_string(&mut text),
        DumpKind::Sql => file.take(LIMIT).read_to_string(&mut text),
        _ => return Err(fail(Exit::Malformed, "a dump of roles is plain SQL")),
    };
    read.context("cannot read the dump of the roles")?;
    Ok(text)
}

fn roles(session: &mut Session) -> anyhow::Result<BTreeSet<String>> {
    let rows = session.rows("SELECT rolname::text AS name FROM pg_catalog.pg_roles")?;
    let name = |row: &Value| row.get("name").and_then(Value::as_str).map(str::to_owned);
    Ok(rows.iter().filter_map(name).collect())
}

/// What is to be done.
#[derive(Debug, Default)]
struct Plan {
    missing: BTreeSet<String>,
    kept: BTreeSet<String>,
    statements: Vec<String>,
    /// What another version of the server may not know, and only a superuser may give.
    rights: Vec<String>,
    tablespaces: Vec<String>,
}

impl Plan {
    fn new(script: &Script, present: &BTreeSet<String>) -> Self {
        let mut plan = Plan::default();
        for Statement { what, .. } in &script.statements {
            if let What::CreateRole(role) = what {
                let is_there = present.contains(role);
                let roles = if is_there { &mut plan.kept } else { &mut plan.missing };
                roles.insert(role.clone());
            }
        }
        for Statement { what, text } in &script.statements {
            let is_new = |role: &String| plan.missing.contains(role);
            let text = match what {
                What::CreateRole(role) | What::OfRole(role) if is_new(role) => text.as_str(),
                What::Member { role, member, grantor } if is_new(role) || is_new(member) => {
                    match grantor {
                        // Then it is granted by whoever restores.
                        Some((grantor, at)) if !present.contains(grantor) && !is_new(grantor) => {
                            &text[..*at]
                        }
                        _ => text,
                    }
                }
                What::Parameter(role) => {
                    if is_new(role) {
                        plan.rights.push(text.clone());
                    }
                    continue;
                }
                What::Tablespace(name) => {
                    plan.tablespaces.push(name.clone());
                    continue;
                }
                _ => continue,
            };
            plan.statements.push(text.to_owned());
        }
        plan
    }

    fn say(&self, progress: &dyn Progress) {
        for (what, names) in [
            ("roles that are there are left as they are", &self.kept),
            ("roles to be made", &self.missing),
        ] {
            if !names.is_empty() {
                progress.note(&format!("{what}: {}", listed(names)));
            }
        }
        if !self.tablespaces.is_empty() {
            let names = listed(&self.tablespaces);
            progress
                .note(&format!("tablespaces are not made, as their folders are yours: {names}"));
        }
    }
}

fn listed<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_missing_roles_is_done() {
        let script = Script::parse(
            "CREATE ROLE old;\nALTER ROLE old WITH PASSWORD 'x';\nCREATE ROLE new;\n\
             ALTER ROLE new WITH PASSWORD 'y';\nALTER ROLE new SET a TO 'b';\nGRANT old TO new GRANTED BY stranger;\n\
             GRANT old TO older GRANTED BY old;\nGRANT new TO old GRANTED BY old;\n\
             CREATE TABLESPACE fast LOCATION '/f';\nGRANT SET ON PARAMETER work_mem TO new;\n\
             GRANT SET ON PARAMETER work_mem TO old;\n",
        )
        .unwrap();
        let present = ["old".to_owned(), "older".to_owned()].into();
        let plan = Plan::new(&script, &present);
        let expected = [
            "CREATE ROLE new",
            "ALTER ROLE new WITH PASSWORD 'y'",
            "ALTER ROLE new SET a TO 'b'",
            "GRANT old TO new ",
            "GRANT new TO old GRANTED BY old",
        ];
        assert_eq!(plan.statements, expected);
        assert_eq!(listed(&plan.kept), "old");
        assert_eq!(plan.tablespaces, ["fast"]);
        assert_eq!(plan.rights, ["GRANT SET ON PARAMETER work_mem TO new"]);
    }
}
