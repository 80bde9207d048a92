//! One restore at a time into a database: a session that holds the lock, and does all that is done
//! from outside of that database.

use std::time::{Duration, Instant};

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::exit::{Exit, Failure, classify, fail};
use serde_json::Value;

use crate::postgres::connection::Server;
use crate::postgres::pooler;
use crate::postgres::session::{Session, literal};

/// The databases that every server has; renaming one is not possible from within.
const MAINTENANCE: [&str; 2] = ["postgres", "template1"];
/// First half of the advisory lock's key, so that it meets no application's; the second is the name.
const LOCK_CLASS: u32 = 0x626b_7273;
/// How long a dead restore's session may take to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether something has come about.
const TICK: Duration = Duration::from_millis(20);

/// A session in a database beside the one that is restored, with the lock on that one's name.
pub(super) struct Guard {
    /// In the maintenance database.
    server: Server,
    /// The database that is restored.
    name: String,
    session: Option<Session>,
    is_cleanup: bool,
    /// The lock beside the database, for a session that is within it.
    _beside: Option<Box<Guard>>,
}

impl Guard {
    /// Connects to a database that can be left alone, and locks the name of the one to restore.
    ///
    /// # Errors
    /// [`Exit::Busy`] while another restore into it runs; those of connecting.
    pub(super) fn lock(server: &Server, name: &str) -> anyhow::Result<Self> {
        let mut first = None;
        for database in MAINTENANCE.into_iter().filter(|database| *database != name) {
            match open(&server.in_database(database)) {
                Ok(session) => return Guard::of(session, &server.in_database(database), name),
                Err(error) => first = first.or(Some(error)),
            }
        }
        let error =
            first.unwrap_or_else(|| fail(Exit::Usage, format!("'{name}' cannot be replaced")));
        let text = format!("{error:#}");
        if !text.contains("permission denied for database") {
            return Err(error);
        }
        let others = MAINTENANCE.join("' or '");
        Err(Failure::new(classify(&error), text)
            .hint(format!("it is replaced from beside it: let the role connect to '{others}'"))
            .hint("or load into the database that is there: --in-place")
            .into())
    }

    /// The same from within the database. A lock counts only in the database that it is taken in, so
    /// that of [`Guard::lock`] is held too, unless our role is let into no database beside this one.
    ///
    /// # Errors
    /// As [`Guard::lock`].
    pub(super) fn within(server: &Server, name: &str) -> anyhow::Result<Self> {
        let beside = match Guard::lock(server, name) {
            Ok(guard) => Some(Box::new(guard)),
            Err(error) if classify(&error) == Exit::Busy => return Err(error),
            Err(_) => None,
        };
        bk_manifest::signal::check()?;
        let server = server.in_database(name);
        let guard = Guard::of(open(&server)?, &server, name)?;
        Ok(Guard { _beside: beside, ..guard })
    }

    fn of(mut session: Session, server: &Server, name: &str) -> anyhow::Result<Self> {
        acquire(&mut session, name)?;
        Ok(Guard {
            server: server.clone(),
            name: name.to_owned(),
            session: Some(session),
            is_cleanup: false,
            _beside: None,
        })
    }

    /// The same, also after we were told to stop: what is begun is taken back with it.
    pub(super) fn for_cleanup(&self) -> Self {
        Guard {
            server: self.server.clone(),
            name: self.name.clone(),
            session: None,
            is_cleanup: true,
            _beside: None,
        }
    }

    /// The server, and the database that the session is in.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Opens a session in another database.
    ///
    /// # Errors
    /// Those of connecting.
    pub(super) fn within_another(&self, database: &str) -> anyhow::Result<Session> {
        let server = self.server.in_database(database);
        if self.is_cleanup {
            Session::open_for_cleanup(&server)
        } else {
            Session::open(&server, &Cancel::default())
        }
    }

    /// Its session; a new one where the last one has ended.
    fn session(&mut self) -> anyhow::Result<&mut Session> {
        let session = match self.session.take() {
            Some(session) => session,
            None if self.is_cleanup => Session::open_for_cleanup(&self.server)?,
            None => {
                let mut session = Session::open(&self.server, &Cancel::default())?;
                acquire(&mut session, &self.name)?;
                session
            }
        };
        Ok(self.session.insert(session))
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce(&mut Session) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let answer = question(self.session()?);
        if answer.is_err() {
            // psql ends at the first error.
            self.session = None;
        }
        answer
    }

    /// Runs a statement; after an error the next one has a new session.
    ///
    /// # Errors
    /// What the server said.
    pub(super) fn run(&mut self, statement: &str) -> anyhow::Result<()> {
        self.ask(|session| session.query(statement)).map(|_| ())
    }

    /// Runs a statement that answers with one line.
    ///
    /// # Errors
    /// As [`Guard::run`].
    pub(super) fn value(&mut self, statement: &str) -> anyhow::Result<String> {
        self.ask(|session| session.value(statement))
    }

    /// Runs a query.
    ///
    /// # Errors
    /// As [`Guard::run`].
    pub(super) fn rows(&mut self, query: &str) -> anyhow::Result<Vec<Value>> {
        self.ask(|session| session.rows(query))
    }

    /// Makes sure that its session lives, which a long load may have outlasted.
    ///
    /// # Errors
    /// Those of connecting again; [`Exit::Busy`] if another restore has begun meanwhile.
    pub(super) fn refresh(&mut self) -> anyhow::Result<()> {
        self.run("SELECT 1").or_else(|_| {
            bk_manifest::signal::check()?;
            self.run("SELECT 1")
        })
    }

    /// Whether the server has a database of that name.
    ///
    /// # Errors
    /// As [`Guard::run`].
    pub(super) fn has_database(&mut self, name: &str) -> anyhow::Result<bool> {
        let count = "SELECT count(*) FROM pg_catalog.pg_database WHERE datname = ";
        Ok(self.value(&format!("{count}{}", literal(name)))? != "0")
    }

    /// Whether the server has a role of that name.
    ///
    /// # Errors
    /// As [`Guard::run`].
    pub(super) fn has_role(&mut self, name: &str) -> anyhow::Result<bool> {
        let count = "SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname = ";
        Ok(self.value(&format!("{count}{}", literal(name)))? != "0")
    }

    /// How many sessions are in the database beside those of this restore.
    ///
    /// # Errors
    /// As [`Guard::run`].
    pub(super) fn count_others(&mut self) -> anyhow::Result<String> {
        self.value(
            "SELECT count(*) FROM pg_catalog.pg_stat_activity \
             WHERE datname = current_database() AND usesysid IS NOT NULL \
             AND application_name <> current_setting('application_name')",
        )
    }

    /// Ends every other session of this restore in the database.
    ///
    /// # Errors
    /// As [`Guard::run`].
    pub(super) fn end_our_sessions(&mut self) -> anyhow::Result<()> {
        self.run(
            "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
             WHERE pid <> pg_catalog.pg_backend_pid() AND datname = current_database() \
             AND application_name = current_setting('application_name')",
        )
    }

    /// Ends the sessions in a database, and waits until they are gone.
    ///
    /// # Errors
    /// [`Exit::Denied`] if they are those of roles that ours may not end; [`Exit::Failed`] if they
    /// come again and again.
    pub(super) fn end_sessions(
        &mut self,
        database: &str,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            // What the server does by itself, as no role, gives way by itself.
            let row = self.rows(&format!(
                "SELECT count(*)::int AS all_of_them, count(*) FILTER (WHERE is_ours)::int AS ours, \
                 count(pg_catalog.pg_terminate_backend(CASE WHEN is_ours THEN pid END)) AS ended \
                 FROM (SELECT a.pid, {MAY_END} AS is_ours FROM pg_catalog.pg_stat_activity a \
                 LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid \
                 WHERE a.datname = {} AND a.pid <> pg_catalog.pg_backend_pid() \
                 AND a.usesysid IS NOT NULL) AS sessions",
                literal(database)
            ))?;
            let number = |name: &str| row.first().and_then(|row| row.get(name)?.as_i64());
            let (all, ours) = (number("all_of_them").unwrap_or(0), number("ours").unwrap_or(0));
            if all == 0 {
                return Ok(());
            }
            if since.elapsed() > patience {
                let message = format!("the database '{database}' is in use by {all} sessions");
                return Err(if ours == 0 {
                    Failure::new(Exit::Denied, message)
                        .hint("this role may not end them: stop the application, or be a superuser")
                } else {
                    Failure::new(Exit::Failed, message).hint("stop the application first")
                }
                .into());
            }
            std::thread::sleep(TICK);
        }
    }
}

/// Whether our role may end a session `a` of the role `r`; asking in vain would be an error.
pub(super) const MAY_END: &str = "\
    coalesce((SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) \
    OR NOT r.rolsuper AND (pg_catalog.pg_has_role(a.usesysid, 'MEMBER') \
    OR pg_catalog.pg_has_role('pg_signal_backend', 'MEMBER')), false)";

/// Connects, not through a pooler that would give what is set here to the application.
fn open(server: &Server) -> anyhow::Result<Session> {
    let cancel = Cancel::default();
    pooler::refuse(server, &cancel)?;
    Session::open(server, &cancel)
}

/// Takes the lock; that of a restore that was killed is let go of as soon as the server notices.
fn acquire(session: &mut Session, name: &str) -> anyhow::Result<()> {
    let key = format!("{LOCK_CLASS}, pg_catalog.hashtext({})", literal(name));
    let since = Instant::now();
    while session.value(&format!("SELECT pg_catalog.pg_try_advisory_lock({key})"))? != "t" {
        if since.elapsed() > PATIENCE {
            let holder = session.rows(&format!(
                "SELECT a.pid::text, a.application_name AS who, \
                 to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS since \
                 FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid) \
                 WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {LOCK_CLASS} \
                 AND l.database = (SELECT oid FROM pg_catalog.pg_database \
                 WHERE datname = current_database()) \
                 AND l.objid = pg_catalog.hashtext({})::bit(32)::bigint::oid",
                literal(name)
            ))?;
            let text = |member: &str| holder.first().and_then(|row| row.get(member)?.as_str());
            let message = format!(
                "another restore into '{name}' is running: '{}' since {} UTC",
                text("who").unwrap_or("unknown"),
                text("since").unwrap_or("an unknown time"),
            );
            let mut failure = Failure::new(Exit::Busy, message);
            if let Some(pid) = text("pid") {
                failure = failure.hint(format!("to end it: SELECT pg_terminate_backend({pid})"));
            }
            return Err(failure.into());
        }
        bk_manifest::signal::check().context("waiting for another restore")?;
        std::thread::sleep(TICK);
    }
    Ok(())
}
