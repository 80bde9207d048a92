//! What several settings say together: where the two destinations are, and what cannot be meant.

use crate::known_settings::{BUCKET_PREFIX, COPY_PREFIX, PREFIX};
use crate::location::Location;
use crate::setting_value::normalize;
use crate::settings::{Error, Origin, Resolved};

/// Names of the pairs of keys, the strongest first; the first of each is without its prefix.
const KEYS: [(&str, &str); 3] = [
    ("S3_ACCESS_KEY", "S3_SECRET_KEY"),
    ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
];
/// Names of endpoints as the AWS tools read them, the strongest first.
const AWS_ENDPOINTS: [&str; 2] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];

/// The `S3_ENDPOINT` or `S3_REGION` of a destination: its own, or the application's, if the keys are.
pub fn of_store<'a>(resolved: &'a [Resolved], prefix: &'static str, name: &str) -> Option<&'a str> {
    let found = Group { prefix, resolved }.of_store(name);
    found.map(|setting| &*setting.value)
}

/// Sets the paths of both destinations to what the other settings say, if they say it.
///
/// # Errors
/// What is missing for that; what contradicts itself.
pub fn derive(resolved: &mut Vec<Resolved>) -> Result<(), Error> {
    let first = Group { prefix: PREFIX, resolved }.derived_path()?;
    set(resolved, PREFIX, first);
    let copy = Group { prefix: COPY_PREFIX, resolved };
    let path = match copy.derived_path()? {
        Derived::Nothing if copy.own("DESTINATION_PATH").is_none() => copy.of_geolens()?,
        path => path,
    };
    set(resolved, COPY_PREFIX, path);
    check_copy(resolved)?;
    check_buckets(resolved)?;
    for prefix in [PREFIX, COPY_PREFIX] {
        let group = Group { prefix, resolved };
        if matches!(group.location(), Some(Location::S3 { .. })) {
            group.check_keys()?;
            group.check_endpoint()?;
        }
    }
    check_encryption(&Group { prefix: PREFIX, resolved })
}

/// What the settings beside a destination's path mean for it.
enum Derived {
    /// It stays what it is.
    Nothing,
    /// It is this.
    Path(String),
    /// It stays, for it stands in the environment and beats the kind, which is of the env file.
    WithoutType,
}

fn set(resolved: &mut Vec<Resolved>, prefix: &str, derived: Derived) {
    let [path, kind] = ["PATH", "TYPE"].map(|rest| format!("{prefix}DESTINATION_{rest}"));
    match derived {
        Derived::Nothing => {}
        Derived::WithoutType => resolved.retain(|setting| setting.name != kind),
        Derived::Path(value) => {
            resolved.retain(|setting| setting.name != path);
            // Where it stands in the table: before its kind.
            let place = resolved.iter().position(|setting| setting.name == kind);
            let setting = Resolved { name: path, value, origin: Origin::Derived, is_secret: false };
            resolved.insert(place.unwrap_or(resolved.len()), setting);
        }
    }
}

/// The settings of one destination, or of the buckets, and all others.
#[derive(Clone, Copy)]
struct Group<'a> {
    prefix: &'static str,
    resolved: &'a [Resolved],
}

impl<'a> Group<'a> {
    fn name(self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn plain(self, name: &str) -> Option<&'a Resolved> {
        self.resolved.iter().find(|setting| setting.name == name)
    }

    fn own(self, suffix: &str) -> Option<&'a Resolved> {
        self.plain(&self.name(suffix))
    }

    fn needed(self, suffix: &str, who: &str) -> Result<&'a str, Error> {
        let missing = || Error::Missing(format!("{} ({who} needs it)", self.name(suffix)));
        self.own(suffix).map(|setting| &*setting.value).ok_or_else(missing)
    }

    fn location(self) -> Option<Location> {
        Location::parse(&self.own("DESTINATION_PATH")?.value).ok()
    }

    /// What the kind of destination makes of its path. `PicPeak` sets both: the path is then the
    /// local folder, which only counts if the kind is local.
    fn derived_path(self) -> Result<Derived, Error> {
        let Some(kind) = self.own("DESTINATION_TYPE") else { return Ok(Derived::Nothing) };
        let path = self.own("DESTINATION_PATH");
        if let Some(path) = path
            && (path.origin, kind.origin) == (Origin::Environment, Origin::EnvFile)
        {
            return Ok(Derived::WithoutType);
        }
        match (&*kind.value, self.location()) {
            ("s3", None | Some(Location::Local(_))) => self.bucket(),
            ("rsync", None | Some(Location::Local(_))) => self.host(),
            ("local", None | Some(Location::Local(_)))
            | ("s3", Some(Location::S3 { .. }))
            | ("rsync", Some(Location::Ssh { .. } | Location::Daemon { .. })) => {
                Ok(Derived::Nothing)
            }
            _ => Err(Error::Contradiction(format!(
                "{}={} contradicts {}, which names another kind of destination",
                kind.name,
                kind.value,
                self.name("DESTINATION_PATH")
            ))),
        }
    }

    fn bucket(self) -> Result<Derived, Error> {
        let who = format!("{}=s3", self.name("DESTINATION_TYPE"));
        let bucket = self.needed("S3_BUCKET", &who)?;
        let prefix = self.own("S3_PREFIX").map_or("backups", |setting| &setting.value);
        let path = format!("s3://{bucket}/{}", prefix.trim_matches('/'));
        match Location::parse(&path) {
            Ok(Location::S3 { bucket: read, .. }) if read == bucket => Ok(Derived::Path(path)),
            _ => Err(Error::Contradiction(format!(
                "{} and {} name no place in a bucket: '{path}'",
                self.name("S3_BUCKET"),
                self.name("S3_PREFIX")
            ))),
        }
    }

    fn host(self) -> Result<Derived, Error> {
        let who = format!("{}=rsync", self.name("DESTINATION_TYPE"));
        let (host, path) = (self.needed("RSYNC_HOST", &who)?, self.needed("RSYNC_PATH", &who)?);
        let user = self.own("RSYNC_USER").map(|user| format!("{}@", user.value));
        Ok(Derived::Path(format!("{}{host}:{path}", user.unwrap_or_default())))
    }

    /// `GeoLens` keeps its backups in a folder and uploads each of them too.
    fn of_geolens(self) -> Result<Derived, Error> {
        if self.plain("BACKUP_S3_ENABLED").is_none_or(|enabled| enabled.value != "true") {
            return Ok(Derived::Nothing);
        }
        let bucket = self.plain("S3_BUCKET").ok_or_else(|| {
            Error::Missing("S3_BUCKET (BACKUP_S3_ENABLED=true copies backups there)".into())
        })?;
        let path = format!("s3://{}/backups", bucket.value);
        let malformed = |wanted| Error::Malformed {
            name: bucket.name.clone(),
            value: bucket.value.clone(),
            wanted,
        };
        normalize(crate::known_settings::Kind::Destination, &path).map_err(malformed)?;
        Ok(Derived::Path(path))
    }

    /// Fails if any setting of the group is set, which all are for one that is not.
    fn check_unused(self, needed: &str) -> Result<(), Error> {
        let stray = self.resolved.iter().find(|setting| setting.name.starts_with(self.prefix));
        stray.map_or(Ok(()), |stray| {
            Err(Error::Missing(format!("{needed} ({} is for it)", stray.name)))
        })
    }

    /// A pair of keys is taken from one group of names, never one half from each. Says whether it
    /// is that of the application, which has its own endpoint.
    fn check_keys(self) -> Result<bool, Error> {
        let [(access, secret), rest @ ..] = KEYS;
        let own = (self.name(access), self.name(secret));
        let others = rest.map(|(access, secret)| (access.to_owned(), secret.to_owned()));
        for (access, secret) in [own].into_iter().chain(others) {
            let (here, missing) = match (self.plain(&access), self.plain(&secret)) {
                (Some(_), Some(_)) => return Ok(access == KEYS[1].0),
                (None, None) => continue,
                (Some(_), None) => (access, secret),
                (None, Some(_)) => (secret, access),
            };
            return Err(Error::Missing(format!(
                "{missing} ({here} is, and both must come from one pair of names)"
            )));
        }
        Ok(false)
    }

    fn of_store(self, name: &str) -> Option<&'a Resolved> {
        let application = || self.plain(name).filter(|_| matches!(self.check_keys(), Ok(true)));
        self.own(name).or_else(application)
    }

    fn check_endpoint(self) -> Result<(), Error> {
        let others = || AWS_ENDPOINTS.iter().find_map(|name| self.plain(name));
        let Some(endpoint) = self.of_store("S3_ENDPOINT").or_else(others) else { return Ok(()) };
        let Some((scheme, _)) = endpoint.value.split_once("://") else { return Ok(()) };
        let is_plain = self.own("S3_SSL_ENABLED").is_some_and(|enabled| enabled.value == "false");
        match scheme.to_ascii_lowercase().as_str() {
            "https" => Ok(()),
            "http" if is_plain => Ok(()),
            "http" => Err(Error::Contradiction(format!(
                "{} is http://, which everyone on the way can read: use https://, or say {}=false",
                endpoint.name,
                self.name("S3_SSL_ENABLED")
            ))),
            _ => Err(Error::Contradiction(format!(
                "{} is neither http:// nor https://",
                endpoint.name
            ))),
        }
    }
}

fn check_copy(resolved: &[Resolved]) -> Result<(), Error> {
    let group = |prefix| Group { prefix, resolved };
    let (first, copy) = (group(PREFIX), group(COPY_PREFIX));
    let Some(path) = copy.own("DESTINATION_PATH") else {
        return copy.check_unused(&copy.name("DESTINATION_PATH"));
    };
    // One name can be two places, if something else tells them apart.
    let tells_apart = |suffix: &&str| {
        let value = |group: Group<'_>| group.own(suffix).map(|setting| setting.value.clone());
        value(copy).is_some() && value(copy) != value(first)
    };
    let is_inside = match (first.location(), copy.location()) {
        (Some(Location::Local(one)), Some(Location::Local(other))) => {
            one.starts_with(&other) || other.starts_with(&one)
        }
        (one, other) => {
            one == other && !["S3_ENDPOINT", "S3_REGION", "RSYNC_PORT"].iter().any(tells_apart)
        }
    };
    if is_inside {
        return Err(Error::Contradiction(format!(
            "{} is the first destination, or in it: a copy belongs elsewhere",
            path.name
        )));
    }
    Ok(())
}

/// What is skipped is not connected to.
fn check_buckets(resolved: &[Resolved]) -> Result<(), Error> {
    let group = Group { prefix: BUCKET_PREFIX, resolved };
    if group.plain("BACKUP_BUCKET").is_none() {
        return group.check_unused("BACKUP_BUCKET");
    }
    if group.own("SKIP").is_none() {
        group.check_keys()?;
        group.check_endpoint()?;
    }
    Ok(())
}

/// `PicPeak` has a switch and a passphrase; ours is whom to encrypt for.
fn check_encryption(group: &Group<'_>) -> Result<(), Error> {
    let Some(enabled) = group.own("ENCRYPTION_ENABLED") else { return Ok(()) };
    let whom = ["ENCRYPT", "ENCRYPT_RECIPIENTS_FILE"].iter().find_map(|name| group.own(name));
    match (&*enabled.value, whom) {
        ("true", None) => Err(Error::Missing(format!(
            "BACKUP_ENCRYPT ({}=true needs to know for whom)",
            enabled.name
        ))),
        ("false", Some(whom)) => {
            Err(Error::Contradiction(format!("{}=false contradicts {}", enabled.name, whom.name)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use super::*;
    use crate::settings::{Sources, resolve};

    fn resolve_both(environment: &str, env_file: &str) -> Result<Vec<Resolved>, Error> {
        let map = |text: &str| -> BTreeMap<String, String> {
            let pair = |pair: &str| pair.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
            text.split_whitespace().filter_map(pair).collect()
        };
        let (environment, env_file) = (map(environment), map(env_file));
        let environment = |name: &str| environment.get(name).map(OsString::from);
        resolve(&Sources { environment: &environment, env_file: &env_file }, &[])
    }

    fn path_of(settings: &[Resolved], prefix: &'static str) -> Option<String> {
        let path = Group { prefix, resolved: settings }.own("DESTINATION_PATH");
        path.map(|path| path.value.clone())
    }

    #[test]
    fn the_path_follows_from_the_kind_unless_it_names_a_place_itself() {
        let bucket = "BACKUP_DESTINATION_TYPE=s3 BACKUP_S3_BUCKET=b";
        let host = "BACKUP_DESTINATION_TYPE=rsync BACKUP_RSYNC_HOST=nas BACKUP_RSYNC_PATH=/v:1";
        for (env_file, wanted) in [
            (bucket.to_owned(), "s3://b/backups"),
            (format!("{bucket} BACKUP_S3_PREFIX=/x/y/"), "s3://b/x/y"),
            (format!("{bucket} BACKUP_S3_PREFIX=/"), "s3://b/"),
            (format!("{bucket} BACKUP_DESTINATION_PATH=/backup/picpeak"), "s3://b/backups"),
            (format!("{bucket} BACKUP_DESTINATION_PATH=s3://other"), "s3://other"),
            (host.to_owned(), "nas:/v:1"),
            (format!("{host} BACKUP_RSYNC_USER=me BACKUP_DESTINATION_PATH=/x"), "me@nas:/v:1"),
            (format!("{host} BACKUP_DESTINATION_PATH=rsync://nas/m"), "rsync://nas/m"),
            ("BACKUP_S3_BUCKET=b BACKUP_DESTINATION_PATH=/x".to_owned(), "/x"),
            ("BACKUP_DESTINATION_PATH=me@nas:x".to_owned(), "me@nas:x"),
        ] {
            let settings = resolve_both("", &env_file).unwrap();
            assert_eq!(path_of(&settings, PREFIX).as_deref(), Some(wanted), "{env_file}");
            assert_eq!(path_of(&settings, COPY_PREFIX), None, "{env_file}");
            // The second destination has the same names.
            let env_file = env_file.replace("BACKUP_", "BACKUP_COPY_");
            let settings = resolve_both("", &env_file).unwrap();
            assert_eq!(path_of(&settings, COPY_PREFIX).as_deref(), Some(wanted), "{env_file}");
            assert_eq!(path_of(&settings, PREFIX), None, "{env_file}");
        }
    }

    #[test]
    fn a_path_in_the_environment_beats_a_kind_in_the_env_file() {
        let env_file = "BACKUP_DESTINATION_TYPE=s3 BACKUP_S3_BUCKET=b BACKUP_DESTINATION_PATH=/x";
        let settings = resolve_both("BACKUP_DESTINATION_PATH=/mnt/usb", env_file).unwrap();
        assert_eq!(path_of(&settings, PREFIX).as_deref(), Some("/mnt/usb"));
        assert!(settings.iter().all(|setting| setting.name != "BACKUP_DESTINATION_TYPE"));
        let settings = resolve_both("BACKUP_DESTINATION_TYPE=s3", env_file).unwrap();
        assert_eq!(path_of(&settings, PREFIX).as_deref(), Some("s3://b/backups"));
    }

    #[test]
    fn what_was_resolved_resolves_to_itself() {
        for env_file in [
            "BACKUP_DESTINATION_TYPE=s3 BACKUP_S3_BUCKET=b BACKUP_DESTINATION_PATH=/x",
            "BACKUP_DESTINATION_PATH=/x BACKUP_S3_ENABLED=true S3_BUCKET=g",
            "BACKUP_COPY_DESTINATION_TYPE=rsync BACKUP_COPY_RSYNC_HOST=h BACKUP_COPY_RSYNC_PATH=p",
        ] {
            let once = resolve_both("", env_file).unwrap();
            let exported = once.iter().map(|setting| format!("{}={}", setting.name, setting.value));
            let twice = resolve_both(&exported.collect::<Vec<_>>().join(" "), env_file).unwrap();
            for prefix in [PREFIX, COPY_PREFIX] {
                assert_eq!(path_of(&once, prefix), path_of(&twice, prefix), "{env_file}");
            }
        }
    }

    #[test]
    fn geolens_uploads_become_a_second_destination() {
        let env_file = "BACKUP_DESTINATION_PATH=/backups BACKUP_S3_ENABLED=true S3_BUCKET=geo";
        let settings = resolve_both("", env_file).unwrap();
        assert_eq!(path_of(&settings, PREFIX).as_deref(), Some("/backups"));
        assert_eq!(path_of(&settings, COPY_PREFIX).as_deref(), Some("s3://geo/backups"));
        let other = format!("{env_file} BACKUP_COPY_DESTINATION_PATH=nas:/x");
        let settings = resolve_both("", &other).unwrap();
        assert_eq!(path_of(&settings, COPY_PREFIX).as_deref(), Some("nas:/x"));
        let off = env_file.replace("true", "false");
        assert_eq!(path_of(&resolve_both("", &off).unwrap(), COPY_PREFIX), None);
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let s3 = "BACKUP_DESTINATION_PATH=s3://b/x";
        for (env_file, named) in [
            ("BACKUP_DESTINATION_TYPE=s3", "BACKUP_S3_BUCKET "),
            ("BACKUP_DESTINATION_TYPE=s3 S3_BUCKET=b", "BACKUP_S3_BUCKET "),
            ("BACKUP_DESTINATION_TYPE=s3 BACKUP_S3_BUCKET=b/c", "BACKUP_S3_BUCKET and"),
            (
                "BACKUP_DESTINATION_TYPE=s3 BACKUP_S3_BUCKET=b BACKUP_S3_PREFIX=a/../b",
                "BACKUP_S3_BUCKET and BACKUP_S3_PREFIX ",
            ),
            ("BACKUP_DESTINATION_TYPE=rsync BACKUP_RSYNC_PATH=/x", "BACKUP_RSYNC_HOST "),
            ("BACKUP_DESTINATION_TYPE=rsync BACKUP_RSYNC_HOST=h", "BACKUP_RSYNC_PATH "),
            (
                "BACKUP_DESTINATION_TYPE=local BACKUP_DESTINATION_PATH=s3://b",
                "BACKUP_DESTINATION_TYPE=local ",
            ),
            (
                "BACKUP_DESTINATION_TYPE=s3 BACKUP_DESTINATION_PATH=h:/x",
                "BACKUP_DESTINATION_TYPE=s3 ",
            ),
            (&format!("{s3} BACKUP_S3_ACCESS_KEY=a"), "BACKUP_S3_SECRET_KEY "),
            (&format!("{s3} BACKUP_S3_SECRET_KEY=a"), "BACKUP_S3_ACCESS_KEY "),
            (
                &format!("{s3} BACKUP_S3_ACCESS_KEY=a AWS_ACCESS_KEY_ID=b AWS_SECRET_ACCESS_KEY=c"),
                "BACKUP_S3_SECRET_KEY ",
            ),
            (&format!("{s3} S3_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=c"), "S3_SECRET_ACCESS_KEY "),
            (&format!("{s3} AWS_SECRET_ACCESS_KEY=c"), "AWS_ACCESS_KEY_ID "),
            (&format!("{s3} BACKUP_S3_ENDPOINT=HTTP://minio:9000"), "BACKUP_S3_ENDPOINT "),
            (&format!("{s3} AWS_ENDPOINT_URL=http://minio:9000"), "AWS_ENDPOINT_URL "),
            (
                &format!("{s3} S3_ENDPOINT=ftp://minio S3_ACCESS_KEY_ID=a S3_SECRET_ACCESS_KEY=b"),
                "S3_ENDPOINT ",
            ),
            ("BACKUP_S3_ENABLED=true", "S3_BUCKET "),
            ("BACKUP_S3_ENABLED=true S3_BUCKET=k:s@b", "S3_BUCKET "),
            (
                "BACKUP_S3_ENABLED=true S3_BUCKET=b S3_ENDPOINT=http://minio S3_ACCESS_KEY_ID=a \
                 S3_SECRET_ACCESS_KEY=b",
                "S3_ENDPOINT ",
            ),
            ("BACKUP_COPY_KEEP_LAST=3", "BACKUP_COPY_DESTINATION_PATH "),
            ("BACKUP_COPY_DESTINATION_TYPE=local", "BACKUP_COPY_DESTINATION_PATH "),
            (
                &format!("{s3} BACKUP_COPY_DESTINATION_PATH=s3://b/x/"),
                "BACKUP_COPY_DESTINATION_PATH ",
            ),
            (
                "BACKUP_DESTINATION_PATH=/a BACKUP_COPY_DESTINATION_PATH=/a/copy",
                "BACKUP_COPY_DESTINATION_PATH ",
            ),
            ("BACKUP_BUCKET_SKIP=x", "BACKUP_BUCKET "),
            ("BACKUP_BUCKET_S3_ENDPOINT=https://x", "BACKUP_BUCKET "),
            ("BACKUP_BUCKET=s3://b BACKUP_BUCKET_S3_ACCESS_KEY=a", "BACKUP_BUCKET_S3_SECRET_KEY "),
            (
                "BACKUP_BUCKET=s3://b BACKUP_BUCKET_S3_ENDPOINT=http://h",
                "BACKUP_BUCKET_S3_ENDPOINT ",
            ),
            ("BACKUP_BUCKET=s3://b AWS_ENDPOINT_URL=http://h", "AWS_ENDPOINT_URL "),
            ("BACKUP_ENCRYPTION_ENABLED=true", "BACKUP_ENCRYPT "),
            (
                "BACKUP_ENCRYPTION_ENABLED=false BACKUP_ENCRYPT=age:age1x",
                "BACKUP_ENCRYPTION_ENABLED=",
            ),
            ("BACKUP_ENCRYPTION_PASSPHRASE=x", "BACKUP_ENCRYPTION_PASSPHRASE "),
        ] {
            let error = resolve_both("", env_file).unwrap_err().to_string();
            assert!(error.starts_with(named), "{env_file}: {error}");
        }
        for env_file in [
            "BACKUP_S3_ACCESS_KEY=a",
            "AWS_SECRET_ACCESS_KEY=c BACKUP_DESTINATION_PATH=/x",
            "BACKUP_DESTINATION_PATH=s3://b BACKUP_S3_ACCESS_KEY=a BACKUP_S3_SECRET_KEY=b AWS_ACCESS_KEY_ID=c",
            "BACKUP_DESTINATION_PATH=s3://b BACKUP_S3_ENDPOINT=http://h BACKUP_S3_SSL_ENABLED=no",
            "BACKUP_DESTINATION_PATH=s3://b BACKUP_S3_ENDPOINT=minio:9000",
            "BACKUP_DESTINATION_PATH=s3://b S3_ENDPOINT=http://minio BACKUP_S3_ACCESS_KEY=a BACKUP_S3_SECRET_KEY=b",
            "BACKUP_DESTINATION_PATH=s3://b BACKUP_COPY_DESTINATION_PATH=s3://b BACKUP_COPY_S3_ENDPOINT=https://h",
            "BACKUP_DESTINATION_PATH=/a BACKUP_COPY_DESTINATION_PATH=/ab",
            "BACKUP_ENCRYPTION_ENABLED=true BACKUP_ENCRYPT=age:age1x",
            "BACKUP_BUCKET=s3://b BACKUP_BUCKET_SKIP=x BACKUP_BUCKET_S3_ENDPOINT=http://h",
            "BACKUP_BUCKET=s3://b BACKUP_BUCKET_S3_ENDPOINT=http://h BACKUP_BUCKET_S3_SSL_ENABLED=no",
        ] {
            resolve_both("", env_file).unwrap();
        }
    }
}
