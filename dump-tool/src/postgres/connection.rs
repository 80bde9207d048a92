//! How a PostgreSQL server is reached: from this host, or by the programs inside its container.
//!
//! Every setting, the password first of all, reaches a program through its environment; nothing of
//! it is an argument that other users of the machine could see.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::Context;
use bk_manifest::command::{Command, Finished, Program};
use bk_manifest::exit::{Exit, Failure, fail};

/// Where the PostgreSQL programs run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Via {
    /// Here.
    #[default]
    Host,
    /// In this running container.
    Docker(String),
    /// In the running container of this Compose service.
    Compose(String),
}

impl FromStr for Via {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |name: &str| {
            name.starts_with(|first: char| first.is_ascii_alphanumeric())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match text.split_once(':') {
            Some(("docker", name)) if is_plain(name) => Ok(Via::Docker(name.to_owned())),
            Some(("compose", name)) if is_plain(name) => Ok(Via::Compose(name.to_owned())),
            // The text is not repeated: it may be a URL with a password.
            _ => Err("it is docker:CONTAINER or compose:SERVICE"),
        }
    }
}

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
    /// `PGPASSWORD` of our own environment; a container does not see it by itself.
    pub default_password: Option<String>,
}

/// What libpq knows as `sslmode`.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
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

#[derive(Clone)]
enum Reach {
    Host,
    /// The program and its arguments up to the variables; the name comes behind them.
    Inside {
        program: Program,
        args: Vec<String>,
        name: String,
    },
}

impl Server {
    /// Finds the way to the server; in a container also its image's own settings.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a malformed URL; [`Exit::NotFound`] if there is no such container.
    pub fn new(request: &Request) -> anyhow::Result<Self> {
        let mut settings = match &request.url {
            Some(url) => parse_url(url)?,
            None => BTreeMap::new(),
        };
        let reach = reach(&request.via)?;
        if let Reach::Inside { .. } = &reach {
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
        let has_url = request.url.is_some();
        let mut server = Server { reach, settings, has_url };
        if let Reach::Inside { .. } = &server.reach {
            let image = server.image_settings()?;
            let user = image.get("POSTGRES_USER").map_or("postgres", String::as_str).to_owned();
            let user = server.settings.entry("PGUSER".into()).or_insert(user).clone();
            let database = image.get("POSTGRES_DB").unwrap_or(&user).clone();
            server.settings.entry("PGDATABASE".into()).or_insert(database);
            let is_image_user =
                image.get("POSTGRES_USER").map_or("postgres", String::as_str) == user;
            let image_password = image.get("POSTGRES_PASSWORD").filter(|_| is_image_user);
            if let Some(password) = request.default_password.as_ref().or(image_password) {
                server.settings.entry("PGPASSWORD".into()).or_insert_with(|| password.clone());
            }
        } else if let (false, Some(database)) = (has_url, &request.default_database) {
            server.settings.entry("PGDATABASE".into()).or_insert_with(|| database.clone());
        }
        Ok(server)
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

    /// The same server, with one more variable for its programs.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.settings.insert(name.to_owned(), value.to_owned());
        other
    }

    /// Whether the programs run in a container.
    pub fn is_inside(&self) -> bool {
        matches!(self.reach, Reach::Inside { .. })
    }

    /// One of PostgreSQL's programs, with everything that it needs to connect.
    ///
    /// # Errors
    /// If it is not installed here. Inside a container that shows only when it is run.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = match &self.reach {
            Reach::Host => {
                let found = Program::find(program, "the PostgreSQL client (postgresql-client)")?;
                let mut command = Command::new(&found);
                if self.has_url {
                    for name in REPLACED {
                        command = command.env_remove(name);
                    }
                }
                command
            }
            Reach::Inside { program: found, args, name } => {
                let mut command = Command::new(found).named(program).args(args);
                for setting in self.settings.keys().map(String::as_str).chain(["LC_ALL"]) {
                    // Named without a value, so that the value comes from the environment.
                    command = command.args(["-e", setting]);
                }
                command.args([name.as_str(), program])
            }
        };
        for (name, value) in &self.settings {
            command = command.env(name, value);
        }
        Ok(command)
    }

    /// The variables that the official image of PostgreSQL was started with.
    fn image_settings(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let Reach::Inside { program, args, name } = &self.reach else {
            return Ok(BTreeMap::new());
        };
        let (output, finished) =
            Command::new(program).args(args).args([name.as_str(), "env"]).output()?;
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

fn reach(via: &Via) -> anyhow::Result<Reach> {
    let name = match via {
        Via::Host => return Ok(Reach::Host),
        Via::Docker(name) => name.clone(),
        Via::Compose(service) => container_of(service)?,
    };
    let program = Program::find("docker", "Docker")?;
    Ok(Reach::Inside { program, args: vec!["exec".to_owned(), "-i".to_owned()], name })
}

/// Asks Compose for the container of a service.
///
/// The programs are then run by Docker itself: `docker-compose exec` leaves a child behind when it
/// is told to stop, which keeps our pipes open, and version 1 does not say what is wrong.
fn container_of(service: &str) -> anyhow::Result<String> {
    let (program, args) = compose()?;
    let ask = |question: &[&str]| Command::new(&program).args(&args).args(question).output();
    let (containers, listed) = ask(&["ps", "-q", service])?;
    let containers = String::from_utf8_lossy(&containers);
    if let (true, Some(container)) = (listed.is_success(), containers.split_whitespace().next()) {
        return Ok(container.to_owned());
    }
    let (services, finished) = ask(&["config", "--services"])?;
    if !finished.is_success() {
        return Err(failure(&finished));
    }
    let services = String::from_utf8_lossy(&services);
    let services: Vec<&str> = services.split_whitespace().collect();
    if !services.contains(&service) {
        let message = format!("no such service in the Compose project: '{service}'");
        return Err(Failure::new(Exit::NotFound, message)
            .hint(format!("it has: {}", services.join(", ")))
            .into());
    }
    if !listed.is_success() {
        return Err(failure(&listed));
    }
    let message = format!("no container of the Compose service '{service}' is running");
    Err(Failure::new(Exit::Failed, message)
        .hint("start the container of the database first")
        .into())
}

/// Docker's plugin, or the program of its own that came before it.
fn compose() -> anyhow::Result<(Program, Vec<&'static str>)> {
    if let Some(docker) = Program::find_optional("docker") {
        let (_, finished) = Command::new(&docker).args(["compose", "version"]).output()?;
        if finished.is_success() {
            return Ok((docker, vec!["compose"]));
        }
    }
    Ok((Program::find("docker-compose", "Docker Compose")?, Vec::new()))
}

/// The error of a PostgreSQL program, with the code that its last words stand for.
pub fn failure(finished: &Finished) -> anyhow::Error {
    let text = finished.stderr.as_str();
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let is_fatal = has(&["FATAL:"]);
    let failure = |exit| Failure::new(exit, finished.message());
    if has(&["authentication failed", "no password supplied", "no pg_hba.conf entry"]) {
        failure(Exit::Denied).hint("give the password in PGPASSWORD, ~/.pgpass or a URL variable")
    } else if has(&["permission denied", "must be owner of", "must be superuser"])
        || (is_fatal && text.contains("role \"") && text.contains("does not exist"))
    {
        failure(Exit::Denied)
    } else if is_fatal && text.contains("database \"") && text.contains("does not exist") {
        failure(Exit::NotFound)
    } else if has(&["No such container", "no such service", "No such service"]) {
        failure(Exit::NotFound).hint("see what runs: docker ps, docker compose ps")
    } else if has(&["is not running", "No container found"]) {
        failure(Exit::Failed).hint("start the container of the database first")
    } else {
        failure(Exit::Failed)
    }
    .into()
}

/// Whether a text could be a connection string, which has no place among arguments.
pub fn is_connection_string(text: &str) -> bool {
    text.contains("://") || text.contains("password=") || text.contains("host=")
}

/// Splits a URL into the variables of libpq.
///
/// What other programs decorate it with is taken off: a driver in the scheme (SQLAlchemy's
/// `postgresql+psycopg2`), parameters that libpq does not know (Prisma's `schema`).
fn parse_url(url: &str) -> anyhow::Result<BTreeMap<String, String>> {
    // Never says what the URL is: it holds a password.
    let bad = |why: &str| {
        Failure::new(Exit::Usage, format!("the connection URL {why}"))
            .hint("it looks like postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    };
    let url = url.trim();
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("has no scheme"))?;
    let scheme = scheme.strip_prefix("jdbc:").unwrap_or(scheme);
    let scheme = scheme.split('+').next().unwrap_or(scheme).to_ascii_lowercase();
    if !["postgresql", "postgres", "postgis", "pgsql", "psql"].contains(&scheme.as_str()) {
        return Err(bad("is not one of PostgreSQL").into());
    }
    let rest = rest.split('#').next().unwrap_or(rest);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, text: &str| -> anyhow::Result<()> {
        if !text.is_empty() {
            let value = percent_decoded(text).ok_or_else(|| bad("is malformed"))?;
            settings.insert(name.to_owned(), value);
        }
        Ok(())
    };
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',').filter(|host| !host.is_empty()) {
        let end = host.find(']').unwrap_or(0);
        let (name, port) = match host[end..].find(':') {
            Some(colon) => (&host[..end + colon], &host[end + colon + 1..]),
            None => (host, ""),
        };
        if !port.chars().all(|c| c.is_ascii_digit()) {
            return Err(bad("has a port that is no number").into());
        }
        names.push(name.trim_start_matches('[').trim_end_matches(']'));
        ports.push(port);
    }
    set("PGHOST", &names.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        set("PGPORT", &ports.join(","))?;
    }
    set("PGUSER", user)?;
    set("PGPASSWORD", password)?;
    set("PGDATABASE", path)?;
    let parameters: BTreeMap<&str, &str> =
        query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    for (name, value) in &parameters {
        let variable = match *name {
            "host" => "PGHOST",
            "hostaddr" => "PGHOSTADDR",
            "port" => "PGPORT",
            "user" => "PGUSER",
            "password" => "PGPASSWORD",
            "dbname" => "PGDATABASE",
            "sslmode" => "PGSSLMODE",
            "sslrootcert" => "PGSSLROOTCERT",
            // Prisma calls the server's certificate so; a client's comes with a key.
            "sslcert" if parameters.contains_key("sslkey") => "PGSSLCERT",
            "sslkey" => "PGSSLKEY",
            "channel_binding" => "PGCHANNELBINDING",
            "connect_timeout" => "PGCONNECT_TIMEOUT",
            "options" => "PGOPTIONS",
            "service" => "PGSERVICE",
            "passfile" => "PGPASSFILE",
            "target_session_attrs" => "PGTARGETSESSIONATTRS",
            // asyncpg's name for it.
            "ssl" if !parameters.contains_key("sslmode") => {
                let mode = if *value == "true" { "require" } else { value };
                if SSL_MODES.contains(&mode) {
                    set("PGSSLMODE", mode)?;
                }
                continue;
            }
            _ => continue,
        };
        set(variable, value)?;
    }
    Ok(settings)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Reads a URL out of a variable's value.
///
/// # Errors
/// [`Exit::Usage`] if the variable is not set.
pub fn url_of(variable: &str, value: Option<String>) -> anyhow::Result<String> {
    value
        .filter(|value| !value.trim().is_empty())
        .ok_or_else(|| fail(Exit::Usage, format!("the variable '{variable}' is not set")))
        .context("--url-env")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Vec<(String, String)> {
        parse_url(url).unwrap().into_iter().collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn urls_as_applications_write_them_are_understood() {
        let plain = pairs(&[
            ("PGDATABASE", "app"),
            ("PGHOST", "db"),
            ("PGPASSWORD", "p@ss/w:rd"),
            ("PGPORT", "5433"),
            ("PGUSER", "me"),
        ]);
        for url in [
            "postgresql://me:p%40ss%2Fw%3Ard@db:5433/app",
            "postgres://me:p%40ss%2Fw:rd@db:5433/app",
            "postgresql+psycopg2://me:p%40ss%2Fw%3Ard@db:5433/app",
            "postgresql+asyncpg://me:p%40ss%2Fw%3Ard@db:5433/app?ssl=no-such-mode",
            "postgresql://me:p%40ss%2Fw%3Ard@db:5433/app?schema=public&connection_limit=5&pgbouncer=true",
            "jdbc:postgresql://db:5433/app?user=me&password=p%40ss%2Fw%3Ard",
        ] {
            assert_eq!(parsed(url), plain, "{url}");
        }
        for (url, expected) in [
            (
                "postgresql:///app?host=/run/postgresql",
                &[("PGDATABASE", "app"), ("PGHOST", "/run/postgresql")][..],
            ),
            ("postgresql://%2Frun%2Fpg/app", &[("PGDATABASE", "app"), ("PGHOST", "/run/pg")]),
            (
                "postgresql://[::1]:5433/app",
                &[("PGDATABASE", "app"), ("PGHOST", "::1"), ("PGPORT", "5433")],
            ),
            (
                "postgresql://a:1,b:2/app",
                &[("PGDATABASE", "app"), ("PGHOST", "a,b"), ("PGPORT", "1,2")],
            ),
            (
                "postgresql://h/app?sslmode=require&sslcert=x",
                &[("PGDATABASE", "app"), ("PGHOST", "h"), ("PGSSLMODE", "require")],
            ),
        ] {
            assert_eq!(parsed(url), pairs(expected), "{url}");
        }
    }

    #[test]
    fn a_bad_url_is_refused_and_not_repeated() {
        for url in [
            "secret",
            "mysql://u:secret@h/db",
            "postgresql://u:secret@h:port/db",
            "postgres://u:secret%zz@h/",
        ] {
            let error = parse_url(url).unwrap_err();
            assert!(!format!("{error:#} {error:?}").contains("secret"), "{error:#}");
        }
    }

    #[test]
    fn places_are_parsed() {
        assert_eq!("docker:db-1".parse(), Ok(Via::Docker("db-1".into())));
        assert_eq!("compose:db".parse(), Ok(Via::Compose("db".into())));
        for bad in ["", "db", "docker:", "docker:-it", "ssh:host", "compose:a b"] {
            assert!(bad.parse::<Via>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_never_an_argument() {
        let url = Some("postgresql://me:geheim@db/app".to_owned());
        let server = Server::new(&Request { url, ..Request::default() }).unwrap();
        assert_eq!(server.settings["PGPASSWORD"], "geheim");
        assert_eq!(server.in_database("x").database(), Some("x"));
        assert!(is_connection_string("postgresql://x") && is_connection_string("password=x"));
    }
}
