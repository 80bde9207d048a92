//! A session with the server, held through `psql`.

use std::io::{BufRead, BufReader, PipeReader, Write};

use anyhow::Context;
use bk_manifest::command::{Cancel, Running};
use bk_manifest::exit::{Failure, classify};
use serde_json::Value;

use super::connection::{self, Server};

/// What psql is told to print behind every answer.
const MARK: &str = "-- bk: end of answer";
/// What it prints before the words of the last error.
const SAID: &str = "-- bk: the last error was:";
/// What the server answers while the transaction is not aborted.
const WELL: &str = "-- bk: all is well";
/// The schemas that unqualified names are looked for in, asked so that none of them has a say.
const USUAL_SCHEMAS: &str = "SELECT pg_catalog.array_to_json(pg_catalog.current_schemas(false))";
/// Until the transaction or a savepoint is rolled back: a table that was listed, and is a view of its
/// owner's by the time it is read, is an error (CVE-2024-7348). Older servers do not have that.
pub const TABLES_ONLY: &str = "SELECT count(set_config(name, 'view, foreign-table', true)) \
    FROM pg_catalog.pg_settings WHERE name = 'restrict_nonsystem_relation_kind'";
/// What the server says of text that it keeps in an encoding it does not know, and cannot send.
const NOT_UTF8: &str = "invalid byte sequence for encoding \"UTF8\"";

/// An open session. Dropped, it ends, and the server rolls back what it had begun.
pub struct Session {
    running: Option<Running>,
    answers: BufReader<PipeReader>,
    /// The schemas that names were looked for in before we changed that.
    schemas: Vec<String>,
}

impl Session {
    /// Connects, with every timeout of the server switched off, and with no schema to look for names in
    /// but the server's own.
    ///
    /// # Errors
    /// [`bk_manifest::exit::Exit::Denied`], [`bk_manifest::exit::Exit::NotFound`], or what psql
    /// said.
    pub fn open(server: &Server, cancel: &Cancel) -> anyhow::Result<Self> {
        Session::begin(server.command("psql")?.cancelled_by(cancel))
    }

    /// As [`Session::open`], also after we were told to stop: for cleaning up.
    ///
    /// # Errors
    /// The same.
    pub fn open_for_cleanup(server: &Server) -> anyhow::Result<Self> {
        Session::begin(server.command("psql")?.despite_signals())
    }

    /// Connects, and leaves every setting as it is: through a pooler it may be another client's.
    ///
    /// # Errors
    /// As [`Session::open`], once something is asked.
    pub(super) fn probe(server: &Server, cancel: &Cancel) -> anyhow::Result<Self> {
        Session::start(server.command("psql")?.cancelled_by(cancel))
    }

    fn begin(command: bk_manifest::command::Command) -> anyhow::Result<Self> {
        let mut session = Session::start(command)?;
        session.query("SET client_encoding = 'UTF8'")?;
        // Who owns the database may have it look into a schema of theirs first, and have functions
        // there named as the server's are: they would run with our rights (CVE-2018-1058).
        let schemas = session.value(USUAL_SCHEMAS)?;
        session.schemas =
            serde_json::from_str(&schemas).context("an unexpected list of schemas")?;
        session.look_in("")?;
        // A server that ends long statements or idle transactions would end ours; which of these
        // settings there are depends on its version.
        session.query(
            "SELECT count(set_config(name, '0', false)) FROM pg_settings WHERE name IN \
             ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', \
             'transaction_timeout', 'idle_session_timeout')",
        )?;
        Ok(session)
    }

    fn start(command: bk_manifest::command::Command) -> anyhow::Result<Self> {
        let mut running = command
            .args(["-X", "-A", "-t", "-q", "--no-password", "--set=ON_ERROR_STOP=1"])
            .start()?;
        let answers = running.stdout.take().context("psql has no output")?;
        let answers = BufReader::new(answers);
        Ok(Session { running: Some(running), answers, schemas: Vec::new() })
    }

    fn look_in(&mut self, path: &str) -> anyhow::Result<()> {
        let path = literal(path);
        self.query(&format!("SELECT pg_catalog.set_config('search_path', {path}, false)"))?;
        Ok(())
    }

    /// The schemas that the database or the role has unqualified names looked for in.
    pub fn schemas(&self) -> &[String] {
        &self.schemas
    }

    /// Does something while names are also looked for where the database or the role has them looked
    /// for, the server's own being found first.
    ///
    /// # Errors
    /// As [`Session::query`], and those of what is done.
    pub fn in_usual_schemas<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut path = vec!["pg_catalog".to_owned()];
        path.extend(self.schemas.iter().map(|schema| identifier(schema)));
        self.look_in(&path.join(", "))?;
        let done = work(self)?;
        self.look_in("")?;
        Ok(done)
    }

    /// Runs a statement and returns the lines of its answer.
    ///
    /// # Errors
    /// What psql said; the session is at its end then.
    pub fn query(&mut self, statement: &str) -> anyhow::Result<Vec<String>> {
        let is_sent = self.send(statement);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).context("cannot read from psql")?;
            if read == 0 || !is_sent {
                return Err(self.failed());
            }
            let line = line.trim_end_matches('\n');
            if line == MARK {
                return Ok(lines);
            }
            lines.push(line.to_owned());
        }
    }

    fn send(&mut self, statement: &str) -> bool {
        let stdin = self.running.as_mut().and_then(|running| running.stdin.as_mut());
        stdin.is_some_and(|stdin| {
            writeln!(stdin, "{statement};\n\\echo '{MARK}'").and_then(|()| stdin.flush()).is_ok()
        })
    }

    fn failed(&mut self) -> anyhow::Error {
        match self.running.take().map(Running::wait) {
            Some(Ok(finished)) => explained(connection::failure(&finished)),
            Some(Err(error)) => error,
            None => anyhow::anyhow!("the session with the server has ended"),
        }
    }

    /// Runs a statement that answers with one line.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn value(&mut self, statement: &str) -> anyhow::Result<String> {
        let mut lines = self.query(statement)?;
        lines.pop().filter(|_| lines.is_empty()).context("an unexpected answer from the server")
    }

    /// Runs a query and returns its rows as JSON.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn rows(&mut self, query: &str) -> anyhow::Result<Vec<Value>> {
        parse_rows(&self.query(&as_json(query))?)
    }

    /// As [`Session::rows`], for a query that somebody typed: psql does not look at it, for which a
    /// quote that nobody closed would have no end.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn typed_rows(&mut self, query: &str) -> anyhow::Result<Vec<Value>> {
        let query = query.trim_end().trim_end_matches(';');
        // Columns that have one name would be one in JSON: the first one gets another.
        let query = format!("{} (bk_first_column)", as_json(query));
        parse_rows(&self.query(&format!("SELECT {} \\gexec\n", literal(&query)))?)
    }

    /// Runs a query inside the open transaction, which goes on if it fails: then returns what the
    /// server said.
    ///
    /// # Errors
    /// If the session itself is at its end.
    pub fn attempt(&mut self, query: &str) -> anyhow::Result<Result<Vec<Value>, String>> {
        // Whether it failed is asked of the server: psql knows it since version 11 only, which has
        // the error's words, too.
        let mut lines = self.query(&format!(
            "SAVEPOINT bk_attempt;\n\\set ON_ERROR_STOP 0\n{};\n\
             \\echo '{SAID}' :LAST_ERROR_MESSAGE\nSELECT '{WELL}';\n\\set ON_ERROR_STOP 1\n\
             ROLLBACK TO SAVEPOINT bk_attempt; RELEASE SAVEPOINT bk_attempt",
            as_json(query)
        ))?;
        let said = lines.iter().position(|line| line.starts_with(SAID));
        let said = lines.split_off(said.context("an unexpected answer from psql")?);
        if said.last().is_some_and(|line| line == WELL) {
            return parse_rows(&lines).map(Ok);
        }
        let words = said.join(" ");
        Ok(Err(words.trim_start_matches(SAID).trim().to_owned()))
    }
}

/// The error for what the server cannot send, with what that is.
fn explained(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    if !text.contains(NOT_UTF8) {
        return error;
    }
    Failure::new(classify(&error), format!("{text}: a name, comment or setting is not UTF-8"))
        .hint("a database with the encoding SQL_ASCII takes any bytes: rename what holds others")
        .into()
}

fn as_json(query: &str) -> String {
    // The line's end: a comment may stand last.
    format!("SELECT row_to_json(rows) FROM ({query}\n) AS rows")
}

fn parse_rows(lines: &[String]) -> anyhow::Result<Vec<Value>> {
    let parse = |line: &String| serde_json::from_str(line).context("an answer that is no JSON");
    lines.iter().map(parse).collect()
}

/// A name as an identifier of SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as a literal of SQL, whatever the server takes backslashes for.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(identifier("a\"; DROP"), "\"a\"\"; DROP\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }
}
