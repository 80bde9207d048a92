//! Settings of the environment and an env file: the known ones, checked before anything is touched.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::destination_settings;
use crate::known_settings::{self, Refused, Setting};
use crate::path::escape;
use crate::setting_value::{normalize, shown};

/// Longest secret that is read from a file, in bytes.
const SECRET_LIMIT: u64 = 64 << 10;

/// What is wrong with a setting. The values of secrets are not repeated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that the setting cannot have.
    #[error("{name} cannot be '{value}': {wanted}")]
    Malformed {
        /// The setting.
        name: String,
        /// Its value, or stars.
        value: String,
        /// What it may be.
        wanted: String,
    },
    /// A value that asks for what this version cannot do.
    #[error("{name}={value} is not yet supported")]
    Later {
        /// The setting.
        name: String,
        /// Its value, or stars.
        value: String,
    },
    /// A setting of another program that has no meaning here.
    #[error("{name} is not supported: {instead}")]
    Unsupported {
        /// The setting.
        name: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// Settings that cannot both be meant: a line that names them.
    #[error("{0}")]
    Contradiction(String),
    /// A secret is given twice.
    #[error("{0} and {0}_FILE are both set")]
    Both(String),
    /// The file that holds a secret cannot be read.
    #[error("{name}_FILE: cannot read '{path}': {error}")]
    SecretFile {
        /// The setting.
        name: String,
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// A setting that is needed has no value.
    #[error("{0} is not set")]
    Missing(String),
    /// A name that is in no table.
    #[error("{0} is no setting of bk")]
    Unknown(String),
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The environment of this process.
    Environment,
    /// The env file.
    EnvFile,
    /// Other settings.
    Derived,
    /// It was not set.
    Default,
}

/// A setting with the value that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its name.
    pub name: String,
    /// Its value: `true` or `false` for a boolean, however it was written.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Whether it is not to be shown.
    pub is_secret: bool,
}

/// Where values are looked up: the environment first, then the env file.
pub struct Sources<'a> {
    /// The environment of this process.
    pub environment: &'a dyn Fn(&str) -> Option<OsString>,
    /// What the env file says.
    pub env_file: &'a BTreeMap<String, String>,
}

impl Sources<'_> {
    /// The value of a setting, and where it comes from. An empty one counts as not set.
    fn find(&self, name: &str) -> Result<Option<(String, Origin)>, Error> {
        if let Some(value) = (self.environment)(name).filter(|value| !value.is_empty()) {
            let value = value.into_string().map_err(|_| Error::Malformed {
                name: name.to_owned(),
                value: "…".into(),
                wanted: "it is not UTF-8".into(),
            })?;
            return Ok(Some((value, Origin::Environment)));
        }
        let value = self.env_file.get(name).filter(|value| !value.is_empty());
        Ok(value.map(|value| (value.clone(), Origin::EnvFile)))
    }

    /// The value of a secret, which may lie in a file of its own.
    fn find_secret(&self, name: &str) -> Result<Option<(String, Origin)>, Error> {
        let (plain, file) = (self.find(name)?, self.find(&format!("{name}_FILE"))?);
        let (path, origin) = match (plain, file) {
            (plain, None) => return Ok(plain),
            (Some(plain), Some(file)) if plain.1 == file.1 => {
                return Err(Error::Both(name.to_owned()));
            }
            // One of each: the environment beats the file.
            (Some(plain), Some(_)) if plain.1 == Origin::Environment => return Ok(Some(plain)),
            (_, Some(file)) => file,
        };
        let value = read_secret(Path::new(&path)).map_err(|error| Error::SecretFile {
            name: name.to_owned(),
            path: escape(path.as_bytes()),
            error,
        })?;
        Ok(Some((value, origin)))
    }
}

fn read_secret(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(SECRET_LIMIT).read_to_string(&mut text)?;
    if read as u64 == SECRET_LIMIT {
        return Err(io::Error::other("the file is too long for a secret"));
    }
    let length = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(length);
    Ok(text)
}

/// All known settings that have a value, in the order of the table.
///
/// # Errors
/// The first that is malformed, or asks for what is not there yet; those that contradict each other.
pub fn resolve(sources: &Sources<'_>, required: &[String]) -> Result<Vec<Resolved>, Error> {
    let mut resolved = Vec::new();
    for (name, setting) in known_settings::all() {
        let found =
            if setting.is_secret { sources.find_secret(&name)? } else { sources.find(&name)? };
        let (value, origin) = match (found, setting.default) {
            (Some((value, origin)), _) => (check(&name, setting, &value)?, origin),
            // What is not set for the second destination is left to the tools.
            (None, Some(default)) if name == setting.name => (default.into(), Origin::Default),
            (None, _) => continue,
        };
        let is_secret = setting.is_secret;
        resolved.push(Resolved { name: name.into_owned(), value, origin, is_secret });
    }
    destination_settings::derive(&mut resolved)?;
    let value = |name: &str| resolved.iter().find(|known| known.name == name);
    if value("BACKUP_TREES").is_some() && value("BACKUP_ROOT").is_none() {
        return Err(Error::Missing("BACKUP_ROOT (BACKUP_TREES lie below it)".into()));
    }
    let url = value("BACKUP_POSTGRES").and_then(|known| known.value.strip_prefix("url:"));
    if let Some(name) = url.map(str::to_owned)
        && value(&name).is_none()
    {
        resolved.push(named_url(sources, &name)?);
    }
    for name in required {
        if known_settings::find(name).is_none() {
            return Err(Error::Unknown(escape(name.as_bytes())));
        }
        if !resolved.iter().any(|known| known.name == *name) {
            return Err(Error::Missing(name.clone()));
        }
    }
    Ok(resolved)
}

/// The URL in the variable that `BACKUP_POSTGRES` names.
fn named_url(sources: &Sources<'_>, name: &str) -> Result<Resolved, Error> {
    let missing = || Error::Missing(format!("{name} (BACKUP_POSTGRES names it)"));
    let (value, origin) = sources.find_secret(name)?.ok_or_else(missing)?;
    // Whatever the name, only a URL goes on to the tools' environment.
    if !value.starts_with("postgres")
        || !value.contains("://")
        || value.chars().any(char::is_control)
    {
        let wanted = "it must begin with postgresql://".into();
        return Err(Error::Malformed { name: name.to_owned(), value: "***".into(), wanted });
    }
    Ok(Resolved { name: name.to_owned(), value, origin, is_secret: true })
}

/// Names in the env file that look like ours and are none: most likely misspelled.
pub fn misspelled(env_file: &BTreeMap<String, String>) -> Vec<&str> {
    let is_known = |name: &str| {
        let of_file = name.strip_suffix("_FILE").and_then(known_settings::find);
        known_settings::find(name).is_some() || of_file.is_some_and(|setting| setting.is_secret)
    };
    let is_ours = |name: &str| name.starts_with("BACKUP_") || name.starts_with("BK_");
    env_file.keys().map(String::as_str).filter(|name| is_ours(name) && !is_known(name)).collect()
}

/// The value in the form that scripts get, if it is one that the setting can have.
fn check(name: &str, setting: &Setting, value: &str) -> Result<String, Error> {
    let name = name.to_owned();
    if let Refused::Everything(instead) = setting.refused {
        return Err(Error::Unsupported { name, instead });
    }
    let shown = || if setting.is_secret { "***".into() } else { shown(setting.kind, value) };
    match normalize(setting.kind, value) {
        Err(wanted) => Err(Error::Malformed { name, value: shown(), wanted }),
        Ok(text) => match setting.refused {
            Refused::Later(values) if values.contains(&text.as_str()) => {
                Err(Error::Later { name, value: shown() })
            }
            _ => Ok(text),
        },
    }
}

/// Prints `NAME=VALUE` and a NUL for each, for a script to export.
///
/// The tools take a secret from `NAME` or from the file that `NAME_FILE` names, never from both: so
/// that is emptied, which counts as not set.
///
/// # Errors
/// Those of the output.
pub fn write_pairs(output: &mut impl Write, settings: &[Resolved]) -> io::Result<()> {
    for setting in settings {
        write!(output, "{}={}\0", setting.name, setting.value)?;
        if setting.is_secret {
            write!(output, "{}_FILE=\0", setting.name)?;
        }
    }
    output.flush()
}

/// Prints them for people; secrets are masked.
///
/// # Errors
/// Those of the output.
pub fn write_shown(output: &mut impl Write, settings: &[Resolved]) -> io::Result<()> {
    for setting in settings {
        let value = if setting.is_secret { "***".into() } else { escape(setting.value.as_bytes()) };
        let origin = match setting.origin {
            Origin::Environment => "  (environment)",
            Origin::EnvFile => "",
            Origin::Derived => "  (from other settings)",
            Origin::Default => "  (default)",
        };
        writeln!(output, "{}={value}{origin}", setting.name)?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve_both(
        environment: &[(&str, &str)],
        env_file: &[(&str, &str)],
    ) -> Result<Vec<Resolved>, Error> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env_file = env_file.iter().map(owned).collect();
        let environment: BTreeMap<String, String> = environment.iter().map(owned).collect();
        let environment = |name: &str| environment.get(name).map(OsString::from);
        resolve(&Sources { environment: &environment, env_file: &env_file }, &[])
    }

    fn value(settings: &[Resolved], name: &str) -> Option<(String, Origin)> {
        let found = settings.iter().find(|setting| setting.name == name);
        found.map(|setting| (setting.value.clone(), setting.origin))
    }

    #[test]
    fn the_environment_beats_the_file_and_the_file_the_default() {
        let settings = resolve_both(
            &[("BACKUP_APP", "one"), ("PGHOST", ""), ("UNKNOWN", "x"), ("PATH", "/")],
            &[("BACKUP_APP", "two"), ("PGHOST", "db"), ("BACKUP_INCREMENTAL", "No"), ("X", "y")],
        )
        .unwrap();
        for (name, wanted, origin) in [
            ("BACKUP_APP", "one", Origin::Environment),
            ("PGHOST", "db", Origin::EnvFile),
            ("BACKUP_INCREMENTAL", "false", Origin::EnvFile),
            ("BACKUP_ENABLED", "true", Origin::Default),
        ] {
            assert_eq!(value(&settings, name), Some((wanted.into(), origin)), "{name}");
        }
        assert!(settings.iter().all(|known| !["UNKNOWN", "X", "PATH"].contains(&&*known.name)));
        assert_eq!(value(&settings, "BACKUP_RETENTION_DAYS"), None);
    }

    #[test]
    fn malformed_values_and_what_is_not_there_yet_are_named() {
        for (name, bad) in [
            ("BACKUP_RETENTION_DAYS", "thirty"),
            ("BACKUP_RETENTION_DAYS", "0"),
            ("BACKUP_RETENTION_DAILY", "-1"),
            ("BACKUP_RETENTION_WEEKLY", "1.5"),
            ("BACKUP_KEEP_LAST", "+3"),
            ("BACKUP_INCREMENTAL", "maybe"),
            ("BACKUP_MAX_FILE_SIZE_MB", "5G"),
            ("BACKUP_DESTINATION_TYPE", "ftp"),
            ("BACKUP_EMAIL_ON_SUCCESS", "true"),
            ("BACKUP_EMAIL_ON_FAILURE", "1"),
            ("BACKUP_MANIFEST_FORMAT", "xml"),
            ("BACKUP_COMPRESSION", "off"),
            ("BACKUP_ENCRYPTION_PASSPHRASE", "x"),
            ("BACKUP_SCHEDULE", "sometimes"),
            ("BACKUP_SCHEDULE", "60 2 * * *"),
            ("BACKUP_APP", "a/b"),
            ("BACKUP_BUCKET_SKIP", " "),
            ("BACKUP_MAX_SHRINK", "101"),
            ("BACKUP_TREES", "../x"),
            ("BACKUP_TREES", "a::b"),
            ("BACKUP_CONFIG_FILES", ".env::"),
            ("BACKUP_EXCLUDE", "a[b"),
            ("BACKUP_POSTGRES", "db/app"),
            ("BACKUP_POSTGRES", "compose:db"),
            ("BACKUP_POSTGRES", "url:A B"),
            ("BACKUP_POSTGRES", "ssh:-oProxyCommand=x/app"),
            ("BACKUP_GLOBALS", "maybe"),
            ("BACKUP_STOP_SERVICES", "a;reboot"),
            ("PGHOST", "a\nb"),
            ("BACKUP_DESTINATION_PATH", "ftp://host/x"),
            ("BACKUP_DESTINATION_PATH", "-oProxyCommand=x:/path"),
            ("BACKUP_COPY_DESTINATION_PATH", "s3://"),
            ("BACKUP_COPY_KEEP_LAST", "0"),
            ("BACKUP_LIMIT_RATE", "fast"),
            ("BACKUP_LIMIT_RATE", "0K"),
            ("BACKUP_LIMIT_RATE", "+1"),
            ("BACKUP_LIMIT_RATE", "1KM"),
            ("BACKUP_RSYNC_HOST", "-oProxyCommand=x"),
            ("BACKUP_RSYNC_HOST", "a:b"),
            ("BACKUP_RSYNC_USER", "-l"),
            ("BACKUP_RSYNC_PORT", "65536"),
            ("BACKUP_RSYNC_HOST_KEYS", "yes"),
            ("BACKUP_S3_FORCE_PATH_STYLE", "auto"),
            ("BACKUP_ENCRYPT", "age1x"),
            ("BACKUP_ENCRYPT", "gpg:--output=x"),
            ("BACKUP_ENCRYPT", "age:"),
            ("BACKUP_BUCKET", "documents"),
            ("BACKUP_BUCKET", "minio=documents"),
            ("BACKUP_BUCKET", "s3://"),
            ("BACKUP_BUCKET", "=s3://b"),
            ("BACKUP_BUCKET", "a/b=s3://b"),
            ("BACKUP_BUCKET", "s3://b/../c"),
            ("BACKUP_BUCKET", "s3://config"),
            ("BACKUP_BUCKET", "s3://b s3://b/c"),
            ("BACKUP_BUCKET", "s3://a=b"),
            ("BACKUP_BUCKET", " "),
        ] {
            let error = resolve_both(&[], &[("BACKUP_ROOT", "/x"), (name, bad)]).unwrap_err();
            assert!(error.to_string().starts_with(name), "{name}={bad}: {error}");
        }
        for (name, good) in [
            ("BACKUP_EMAIL_ON_SUCCESS", "false"),
            ("BACKUP_CONFIG_FILES", ".env:certs:"),
            ("BACKUP_EMAIL_TO", "a@b"),
            ("S3_BUCKET", "b"),
            ("BACKUP_ENCRYPT", "age:age1x  gpg:me@example.org"),
            ("BACKUP_LIMIT_RATE", "10M"),
            ("BACKUP_DESTINATION_PATH", "backup@nas:/volume1/b"),
            ("BACKUP_POSTGRES", "compose:db/my app"),
            ("BACKUP_POSTGRES", "ssh:me@db.example/app"),
            ("BACKUP_STOP_SERVICES", "api,worker"),
        ] {
            assert!(resolve_both(&[], &[(name, good)]).is_ok(), "{name}={good}");
        }
        assert!(resolve_both(&[], &[("BACKUP_TREES", "a")]).is_err(), "it has no root");
    }

    #[test]
    fn a_bucket_is_called_as_it_is_unless_it_has_another_name() {
        for (given, wanted) in [
            ("s3://documents", "documents=s3://documents"),
            (" minio=s3://documents/up=a ", "minio=s3://documents/up=a"),
            ("s3://c/d=e  e=s3://c", "c=s3://c/d=e e=s3://c"),
        ] {
            let settings = resolve_both(&[], &[("BACKUP_BUCKET", given)]).unwrap();
            let (found, _) = value(&settings, "BACKUP_BUCKET").unwrap();
            assert_eq!(found, wanted);
            let again = resolve_both(&[], &[("BACKUP_BUCKET", &found)]).unwrap();
            assert_eq!(value(&again, "BACKUP_BUCKET").unwrap().0, wanted);
        }
    }

    #[test]
    fn secrets_come_from_files_too_and_are_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all(b"s3cret\n").unwrap();
        let path = file.path().to_str().unwrap();
        let settings = resolve_both(&[], &[("PGPASSWORD_FILE", path)]).unwrap();
        assert_eq!(value(&settings, "PGPASSWORD"), Some(("s3cret".into(), Origin::EnvFile)));
        let mut shown = Vec::new();
        write_shown(&mut shown, &settings).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("PGPASSWORD=***\n") && !shown.contains("s3cret"));

        let both = [("PGPASSWORD_FILE", path), ("PGPASSWORD", "x")];
        assert!(matches!(resolve_both(&both, &[]), Err(Error::Both(_))));
        let settings = resolve_both(&both[1..], &both[..1]).unwrap();
        assert_eq!(value(&settings, "PGPASSWORD"), Some(("x".into(), Origin::Environment)));
        let error = resolve_both(&[], &[("PGPASSWORD_FILE", "/nope")]).unwrap_err();
        assert!(error.to_string().starts_with("PGPASSWORD_FILE: cannot read '/nope'"));
        for (name, bad) in [
            ("PGPASSWORD", "top\tsecret"),
            ("BACKUP_ENCRYPT", "age:AGE-SECRET-KEY-1TOP"),
            ("BACKUP_DESTINATION_PATH", "s3://key:top@bucket/x"),
            ("BACKUP_BUCKET", "s3://b minio=s3://key:top@bucket"),
            ("BACKUP_DESTINATION_PATH", "rsync://me:top@host/module"),
            ("BACKUP_ENCRYPTION_PASSPHRASE", "top"),
        ] {
            let error = resolve_both(&[], &[(name, bad)]).unwrap_err().to_string();
            assert!(error.starts_with(name) && !error.to_lowercase().contains("top"), "{error}");
        }
    }

    #[test]
    fn the_url_that_is_named_goes_along_if_it_is_one() {
        let named = ("BACKUP_POSTGRES", "url:IMMICH_URL");
        let settings =
            resolve_both(&[], &[named, ("IMMICH_URL", "postgresql+asyncpg://u:p@h/d")]).unwrap();
        assert!(settings.iter().any(|known| known.name == "IMMICH_URL" && known.is_secret));
        assert!(resolve_both(&[], &[named]).is_err());
        assert!(resolve_both(&[], &[named, ("IMMICH_URL", "/evil.so")]).is_err());
    }

    #[test]
    fn names_that_look_misspelled_are_told() {
        let file = ["BACKUP_APP", "BACKUP_RETENTON_DAYS", "TZ", "BACKUP_COPY_S3_SECRET_KEY_FILE"];
        let file = file.iter().map(|name| ((*name).to_owned(), String::new())).collect();
        assert_eq!(misspelled(&file), ["BACKUP_RETENTON_DAYS"]);
    }
}
