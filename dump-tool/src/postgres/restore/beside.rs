//! The database that a dump is loaded into, beside the one that it will replace: made, known again
//! after a crash, and dropped.

use std::time::Duration;

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::progress::Progress;
use serde_json::{Map, Value};

use super::guard::Guard;
use super::{Job, names};
use crate::postgres::session::{identifier, literal};

/// Begins the comment of a database that was made here, until it takes its final name.
pub const MARK: &str = "bk-dump: unfinished restore, may be dropped: ";
/// Such a database is made closed and with this connection limit, which no one else chooses: so it is
/// known also if its maker died before it could write the comment.
const NEWBORN_LIMIT: u32 = 1_113_288_271;
/// The first version whose databases name the provider of their locale, as the server counts.
const PROVIDERS: u32 = 150_000;
/// How long the sessions of a dead restore may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The database that is loaded, and that nobody else knows of.
pub(super) struct Beside {
    /// Its name.
    pub(super) name: String,
}

impl Beside {
    /// Makes it with the encoding and the locale that were recorded, once what dead restores into the
    /// same database left is gone. [`Exit::Partial`] comes with it if it lacks the locale.
    ///
    /// # Errors
    /// [`Exit::Usage`] if a database of its name is not ours; what the server said.
    pub(super) fn create(
        guard: &mut Guard,
        job: &Job<'_>,
        tablespace: Option<&str>,
        progress: &dyn Progress,
    ) -> anyhow::Result<(Self, Exit)> {
        let (target, backup) = (job.name.as_str(), job.backup);
        let name = names::beside(target, backup);
        for left in left_over(guard, target, &name)? {
            drop_database(guard, &left)?;
            progress.note(&format!("dropped '{left}', which a restore had left unfinished"));
        }
        let has_providers = guard
            .value(&format!("SELECT current_setting('server_version_num')::int >= {PROVIDERS}"))?
            == "t";
        let options = Options { name: &name, tablespace, record: job.record, has_providers };
        let exit = create_closed(guard, &options, progress)?;
        let mark = format!("{MARK}backup {backup}{}", mark_end(target));
        let quoted = identifier(&name);
        guard.run(&format!(
            "BEGIN; COMMENT ON DATABASE {quoted} IS {}; \
             ALTER DATABASE {quoted} ALLOW_CONNECTIONS true; \
             ALTER DATABASE {quoted} CONNECTION LIMIT -1; COMMIT",
            literal(&mark)
        ))?;
        Ok((Beside { name }, exit))
    }

    /// Drops it, and ends what still loads it.
    ///
    /// # Errors
    /// What the server said.
    pub(super) fn drop(&self, guard: &mut Guard) -> anyhow::Result<()> {
        drop_database(guard, &self.name)
    }
}

fn mark_end(target: &str) -> String {
    format!(" for {}", identifier(target))
}

/// Fails if a database of that name is there and was not made here.
///
/// # Errors
/// [`Exit::Usage`]; what the server said.
pub(super) fn check_name(guard: &mut Guard, target: &str, backup: &str) -> anyhow::Result<()> {
    let name = names::beside(target, backup);
    let is_ours = left_over(guard, target, &name)?.contains(&name);
    if is_ours || !guard.has_database(&name)? {
        return Ok(());
    }
    let message = format!("the database '{name}' is in the way, and was not made by bk-dump");
    Err(Failure::new(Exit::Usage, message).hint("rename or drop it first").into())
}

/// The databases that restores into `target` made and did not finish; that of this backup would be
/// called `name`. None is alive: the guard has the lock.
///
/// # Errors
/// What the server said.
pub(super) fn left_over(
    guard: &mut Guard,
    target: &str,
    name: &str,
) -> anyhow::Result<Vec<String>> {
    let end = mark_end(target);
    let mut is_newborn = format!("datname = {}", literal(name));
    if let Some(prefix) = names::beside_prefix(target) {
        let length = prefix.chars().count();
        is_newborn = format!(
            "({is_newborn} OR left(datname::text, {length}) = {} AND length(datname::text) = {})",
            literal(&prefix),
            length + names::ID_END
        );
    }
    let rows = guard.rows(&format!(
        "SELECT datname::text AS name FROM (SELECT d.*, \
         pg_catalog.shobj_description(d.oid, 'pg_database') AS comment \
         FROM pg_catalog.pg_database d) AS databases \
         WHERE left(comment, {}) = {} AND right(comment, {}) = {} \
         OR comment IS NULL AND {is_newborn} AND NOT datallowconn AND datconnlimit = {NEWBORN_LIMIT}",
        MARK.chars().count(),
        literal(MARK),
        end.chars().count(),
        literal(&end),
    ))?;
    let name = |row: &Value| row.get("name").and_then(Value::as_str).map(str::to_owned);
    Ok(rows.iter().filter_map(name).collect())
}

/// Drops a database of ours, also while something still loads it.
fn drop_database(guard: &mut Guard, name: &str) -> anyhow::Result<()> {
    guard.end_sessions(name, PATIENCE)?;
    drop_subscriptions(guard, name)?;
    guard.run(&format!("DROP DATABASE IF EXISTS {}", identifier(name)))
}

/// Drops the subscriptions that a dump has made in it, with which it could not be dropped. Their slots
/// at the publisher are those of the dumped database, and stay.
fn drop_subscriptions(guard: &mut Guard, name: &str) -> anyhow::Result<()> {
    let subscriptions = guard.rows(&format!(
        "SELECT s.subname::text AS name FROM pg_catalog.pg_subscription s \
         JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = {}",
        literal(name)
    ))?;
    if subscriptions.is_empty() {
        return Ok(());
    }
    let mut session = guard.within_another(name)?;
    // No event trigger of the dump has a say.
    session.query(
        "SELECT set_config('session_replication_role', 'replica', false) \
         WHERE current_setting('is_superuser') = 'on'",
    )?;
    for row in &subscriptions {
        let Some(subscription) = row.get("name").and_then(Value::as_str).map(identifier) else {
            continue;
        };
        session.query(&format!(
            "ALTER SUBSCRIPTION {subscription} DISABLE; \
             ALTER SUBSCRIPTION {subscription} SET (slot_name = NONE); \
             DROP SUBSCRIPTION {subscription}"
        ))?;
    }
    drop(session);
    guard.end_sessions(name, PATIENCE)
}

struct Options<'a> {
    name: &'a str,
    tablespace: Option<&'a str>,
    record: &'a Map<String, Value>,
    /// Whether the server knows providers of locales.
    has_providers: bool,
}

impl Options<'_> {
    fn text(&self, fact: &str) -> Option<&str> {
        self.record.get(fact).and_then(Value::as_str)
    }

    /// Without what another server may not have.
    fn plain(&self) -> String {
        let mut statement = format!(
            "CREATE DATABASE {} TEMPLATE template0 ALLOW_CONNECTIONS false \
             CONNECTION LIMIT {NEWBORN_LIMIT}",
            identifier(self.name)
        );
        if let Some(tablespace) = self.tablespace {
            statement.extend([" TABLESPACE ", &identifier(tablespace)]);
        }
        if let Some(encoding) = self.text("encoding") {
            statement.extend([" ENCODING ", &literal(encoding)]);
        }
        statement
    }

    /// With the locale that was recorded.
    fn exact(&self) -> String {
        let mut statement = self.plain();
        for (fact, option) in [("collate", "LC_COLLATE"), ("ctype", "LC_CTYPE")] {
            if let Some(value) = self.text(fact) {
                statement.extend([" ", option, " ", &literal(value)]);
            }
        }
        let provider = match self.text("locale_provider") {
            // Without a word it would be that of template0; an older server's can only be this one.
            Some("c") | None if self.has_providers && self.text("collate").is_some() => {
                return statement + " LOCALE_PROVIDER libc";
            }
            Some("i") => " LOCALE_PROVIDER icu ICU_LOCALE ",
            Some("b") => " LOCALE_PROVIDER builtin BUILTIN_LOCALE ",
            _ => return statement,
        };
        if let Some(locale) = self.text("locale") {
            statement.extend([provider, &literal(locale)]);
        }
        if let Some(rules) = self.text("icu_rules") {
            statement.extend([" ICU_RULES ", &literal(rules)]);
        }
        statement
    }
}

fn create_closed(
    guard: &mut Guard,
    options: &Options<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let context = |error: anyhow::Error| {
        error.context(format!("cannot make the database '{}'", options.name))
    };
    let (exact, plain) = (options.exact(), options.plain());
    let Err(error) = guard.run(&exact) else { return Ok(Exit::Done) };
    let said = format!("{error:#}").to_lowercase();
    if exact == plain || !["locale", "collat", "icu"].iter().any(|word| said.contains(word)) {
        return Err(context(error));
    }
    progress.warn(&format!(
        "this server does not have the locale of the dumped database ({}): text may sort otherwise",
        options.text("locale").or_else(|| options.text("collate")).unwrap_or("unknown"),
    ));
    guard.run(&plain).map_err(context)?;
    Ok(Exit::Partial)
}
