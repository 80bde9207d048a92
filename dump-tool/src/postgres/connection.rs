//! A PostgreSQL server and how its programs are run: on this host, inside its container, on another
//! host.
//!
//! Every setting, the password first of all, reaches a program through its environment; nothing of
//! it is an argument that other users of the machine could see.

use std::collections::BTreeMap;

use bk_manifest::command::{Command, Finished, Program};
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::progress::Progress;

use super::reach::{self, Reach, Via};
use super::url;

/// What the user said about the connection.
#[derive(Clone, Default)]
pub struct Request {
    /// Where the programs run.
    pub via: Via,
    /// A `postgresql://` URL, out of an environment variable.
    pub url: Option<String>,
    /// The role, where the URL or the environment is not to decide.
    pub user: Option<String>,
    /// The database, where the URL or the environment is not to decide.
    pub database: Option<String>,
    /// `PGDATABASE` of our own environment.
    pub default_database: Option<String>,
    /// `PGPASSWORD` of our own environment; a container or another host does not see it by itself.
    pub default_password: Option<String>,
}

/// Warnings of a program that are passed on one by one.
const WARNINGS_LIMIT: usize = 20;
/// The variables of libpq that a URL replaces as a whole.
const REPLACED: [&str; 7] =
    ["PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE"];

/// A server and a database on it, ready to be given programs.
#[derive(Clone)]
pub struct Server {
    reach: Reach,
    /// Variables of libpq for every program.
    settings: BTreeMap<String, String>,
    has_url: bool,
}

impl Server {
    /// Finds the way to the server; in a container also its image's own settings.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a malformed URL; [`Exit::NotFound`] if there is no such container.
    pub fn new(request: &Request) -> anyhow::Result<Self> {
        let mut settings = match &request.url {
            Some(url) => url::parse(url)?,
            None => BTreeMap::new(),
        };
        let reach = Reach::find(&request.via)?;
        if let Reach::Container { .. } = &reach {
            // Inside the container the server is at its default place, whatever the application
            // outside calls it.
            for name in ["PGHOST", "PGHOSTADDR", "PGPORT", "PGPASSFILE", "PGSERVICE"] {
                settings.remove(name);
            }
            settings.retain(|name, _| !name.starts_with("PGSSL"));
        }
        for (name, value) in [("PGUSER", &request.user), ("PGDATABASE", &request.database)] {
            if let Some(value) = value {
                settings.insert(name.into(), value.clone());
            }
        }
        let mut server = Server { reach, settings, has_url: request.url.is_some() };
        let image = server.image_settings()?;
        let password = match &server.reach {
            Reach::Host => {
                if let (false, Some(database)) = (server.has_url, &request.default_database) {
                    server.default_to("PGDATABASE", database);
                }
                None
            }
            Reach::Container { .. } => {
                let image_user = image.get("POSTGRES_USER").map_or("postgres", String::as_str);
                server.default_to("PGUSER", image_user);
                let user = server.settings["PGUSER"].clone();
                server.default_to("PGDATABASE", image.get("POSTGRES_DB").unwrap_or(&user));
                let image_password = image.get("POSTGRES_PASSWORD").filter(|_| image_user == user);
                request.default_password.as_ref().or(image_password)
            }
            Reach::FarHost { .. } => request.default_password.as_ref(),
        };
        if let Some(password) = password {
            server.default_to("PGPASSWORD", password);
        }
        Ok(server)
    }

    fn default_to(&mut self, name: &str, value: &str) {
        self.settings.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }

    /// The database that was named, if one was.
    pub fn database(&self) -> Option<&str> {
        self.settings.get("PGDATABASE").map(String::as_str)
    }

    /// The same server, another database.
    #[must_use]
    pub fn in_database(&self, name: &str) -> Self {
        self.with("PGDATABASE", name)
    }

    /// The same server, with a database that every server has where none was named.
    #[must_use]
    pub fn in_some_database(&self) -> Self {
        if self.database().is_some() { self.clone() } else { self.in_database("postgres") }
    }

    /// The same server, with one more variable for its programs.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.settings.insert(name.to_owned(), value.to_owned());
        other
    }

    /// The same server, with one more option for every session, such as `-c jit=off`.
    #[must_use]
    pub fn with_option(&self, option: &str) -> Self {
        const NAME: &str = "PGOPTIONS";
        let of_ours = || std::env::var(NAME).ok().filter(|_| !self.is_elsewhere());
        let before = self.settings.get(NAME).cloned().or_else(of_ours).unwrap_or_default();
        self.with(NAME, format!("{before} {option}").trim_start())
    }

    /// Whether the programs run in a container or on another host: they do not see our files, and
    /// ending them here does not end them there.
    pub fn is_elsewhere(&self) -> bool {
        !matches!(self.reach, Reach::Host)
    }

    /// One of PostgreSQL's programs, with everything that it needs to connect.
    ///
    /// # Errors
    /// If it is not installed here. Elsewhere that shows only when it is run.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
        let removed: &[&str] = if self.has_url { &REPLACED } else { &[] };
        match &self.reach {
            Reach::Host => {
                let found = Program::find(program, "the PostgreSQL client (postgresql-client)")?;
                let mut command = Command::new(&found);
                for name in removed {
                    command = command.env_remove(name);
                }
                for (name, value) in &self.settings {
                    command = command.env(name, value);
                }
                Ok(command)
            }
            Reach::Container { docker, name } => {
                Ok(reach::in_container(docker, name, program, &self.settings))
            }
            Reach::FarHost { ssh, name } => {
                reach::on_far_host(ssh, name, program, &self.settings, removed)
            }
        }
    }

    /// The variables that the official image of PostgreSQL was started with; none elsewhere.
    fn image_settings(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let Reach::Container { docker, name } = &self.reach else {
            return Ok(BTreeMap::new());
        };
        let asked = Command::new(docker).args(["exec", "-i", name.as_str(), "env"]);
        let (output, finished) = asked.output()?;
        if !finished.is_success() {
            return Err(failure(&finished));
        }
        let text = String::from_utf8_lossy(&output);
        let settings = text.lines().filter_map(|line| line.split_once('='));
        Ok(settings
            .filter(|(name, _)| name.starts_with("POSTGRES_"))
            .map(|(name, value)| (name.to_owned(), value.trim_end_matches('\r').to_owned()))
            .collect())
    }
}

/// Passes on what a successful program wrote to standard error: warnings, not errors.
pub fn warn_of(finished: &Finished, progress: &dyn Progress) {
    let mut lines = finished.lines();
    for line in lines.by_ref().take(WARNINGS_LIMIT) {
        progress.warn(line);
    }
    let more = lines.count();
    if more > 0 {
        progress.warn(&format!("and {more} more lines"));
    }
}

/// The error of a PostgreSQL program, with the code that its last words stand for.
pub fn failure(finished: &Finished) -> anyhow::Error {
    // A detail may be the words of another server, or what a row holds.
    let is_own = |line: &&str| !["DETAIL:", "CONTEXT:"].iter().any(|word| line.starts_with(word));
    let text: String =
        finished.stderr.lines().filter(is_own).flat_map(|line| [line, "\n"]).collect();
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let is_fatal = has(&["FATAL:"]);
    let failure = |exit| Failure::new(exit, finished.message());
    if has(&["authentication failed", "no password supplied", "no pg_hba.conf entry"]) {
        failure(Exit::Denied).hint("give the password in PGPASSWORD, ~/.pgpass or a URL variable")
    } else if has(&["Permission denied (", "Host key verification failed"]) {
        failure(Exit::Denied)
            .hint("ssh must get there without a question: ssh -o BatchMode=yes HOST true")
    } else if has(&["permission denied", "must be owner of", "must be superuser"])
        || (is_fatal && text.contains("role \"") && text.contains("does not exist"))
    {
        failure(Exit::Denied)
    } else if is_fatal && text.contains("database \"") && text.contains("does not exist") {
        failure(Exit::NotFound)
    } else if has(&["in a read-only transaction", "during recovery"]) {
        failure(Exit::Failed).hint(
            "the server is a standby, or the database or role is set to only read: \
             PGOPTIONS='-c default_transaction_read_only=off' overrides that",
        )
    } else if has(&["unsupported startup parameter"]) {
        failure(Exit::Failed)
            .hint("connect to the PostgreSQL server itself, or let PgBouncer ignore 'options'")
    } else if has(&["No such container", "no such service", "No such service"]) {
        failure(Exit::NotFound).hint("see what runs: docker ps, docker compose ps")
    } else if has(&["is not running", "No container found"]) {
        failure(Exit::Failed).hint("start the container of the database first")
    } else if has(&[": not found", "executable file not found"]) {
        failure(Exit::Failed).hint("the PostgreSQL client (postgresql-client) must be there")
    } else {
        failure(Exit::Failed)
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_an_argument() {
        let url = Some("postgresql://me:geheim@db/app".to_owned());
        let server = Server::new(&Request { url, ..Request::default() }).unwrap();
        assert_eq!(server.settings["PGPASSWORD"], "geheim");
        assert_eq!(server.in_database("x").database(), Some("x"));
    }
}
