//! Connection URLs as applications write them, taken apart into the variables of libpq.

use std::collections::BTreeMap;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure, fail};

/// What libpq knows as `sslmode`.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Whether a text could be a connection string, which has no place among arguments.
pub fn is_connection_string(text: &str) -> bool {
    text.contains("://") || text.contains("password=") || text.contains("host=")
}

/// Splits a URL into the variables of libpq.
///
/// What other programs decorate it with is taken off: a driver in the scheme (SQLAlchemy's
/// `postgresql+psycopg2`), parameters that libpq does not know (Prisma's `schema`).
///
/// # Errors
/// [`Exit::Usage`], with nothing of the URL in its words.
pub(super) fn parse(url: &str) -> anyhow::Result<BTreeMap<String, String>> {
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
        parse(url).unwrap().into_iter().collect()
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
            let error = parse(url).unwrap_err();
            assert!(!format!("{error:#} {error:?}").contains("secret"), "{error:#}");
        }
    }

    #[test]
    fn connection_strings_are_told_from_names() {
        assert!(is_connection_string("postgresql://x") && is_connection_string("password=x"));
        assert!(!is_connection_string("compose:db") && !is_connection_string("me@nas"));
    }
}
