//! What the variables say about reaching a host by rsync: keys, ports, whom to trust, how fast.

use std::fmt;
use std::fs::File;
use std::time::Duration;

use bk_manifest::exit::{Exit, fail};

use crate::access::Access;
use crate::rate::Rate;

/// Which host keys are taken for those of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostKeys {
    /// Those that the file of known hosts has.
    Known,
    /// Those, and that of a host seen for the first time.
    AcceptNew,
    /// Any.
    Any,
}

/// How a host is reached by rsync.
pub(super) struct Settings {
    /// The private key; ssh chooses where none is given.
    pub(super) key: Option<String>,
    pub(super) port: Option<u16>,
    /// The file of known hosts; the user's own where none is given.
    pub(super) known_hosts: Option<String>,
    pub(super) host_keys: HostKeys,
    /// For a daemon.
    pub(super) password: Option<String>,
    /// Most bytes a second that rsync sends.
    pub(super) rate: Option<u64>,
    /// How long a host may take to answer.
    pub(super) patience: Duration,
    /// How the variables' names begin, for hints.
    pub(super) names: Names,
}

/// The full names of variables that hints speak of.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) key: String,
    pub(super) known_hosts: String,
    pub(super) host_keys: String,
    pub(super) password: String,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a malformed value or a file that cannot be read.
    pub(super) fn read(access: &Access) -> anyhow::Result<Self> {
        let malformed = |suffix: &str, why: &str| {
            fail(Exit::Usage, format!("malformed {}: {why}", access.name(suffix)))
        };
        let file = |suffix: &str| -> anyhow::Result<Option<String>> {
            let Some(path) = access.own(suffix) else { return Ok(None) };
            if path.chars().any(|c| c.is_control() || c == '"') {
                return Err(malformed(suffix, "ssh takes no such name of a file"));
            }
            File::open(path).map_err(|error| {
                let name = access.name(suffix);
                fail(Exit::Usage, format!("{name}: cannot read '{path}': {error}"))
            })?;
            let path = std::path::absolute(path)?;
            Ok(path.into_os_string().into_string().ok())
        };
        let port = match access.own("RSYNC_PORT").map(str::parse::<u16>) {
            None => None,
            Some(Ok(port @ 1..)) => Some(port),
            Some(_) => return Err(malformed("RSYNC_PORT", "a port is a number up to 65535")),
        };
        let host_keys = match access.own("RSYNC_HOST_KEYS") {
            None | Some("check") => HostKeys::Known,
            Some("accept-new") => HostKeys::AcceptNew,
            Some("no") => HostKeys::Any,
            Some(_) => return Err(malformed("RSYNC_HOST_KEYS", "it is check, accept-new or no")),
        };
        let password = access.name("RSYNC_PASSWORD");
        Ok(Settings {
            key: file("RSYNC_SSH_KEY")?,
            port,
            // A file that is not there yet is one to be written to.
            known_hosts: match host_keys {
                HostKeys::AcceptNew => access.own("SSH_KNOWN_HOSTS").map(str::to_owned),
                _ => file("SSH_KNOWN_HOSTS")?,
            },
            host_keys,
            rate: access.rate()?.map(Rate::bytes),
            patience: Duration::from_secs(30),
            names: Names {
                key: access.name("RSYNC_SSH_KEY"),
                known_hosts: access.name("SSH_KNOWN_HOSTS"),
                host_keys: access.name("RSYNC_HOST_KEYS"),
                password: password.clone(),
            },
            password: access.secret(&password)?,
        })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settings")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Settings::read(&Access::new("BACKUP", variables))
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (name, value) in [
            ("BACKUP_RSYNC_PORT", "0"),
            ("BACKUP_RSYNC_PORT", "ssh"),
            ("BACKUP_RSYNC_HOST_KEYS", "yes"),
            ("BACKUP_RSYNC_SSH_KEY", "/no/such/key"),
            ("BACKUP_SSH_KNOWN_HOSTS", "/no/such/file"),
            ("BACKUP_LIMIT_RATE", "fast"),
            ("BACKUP_LIMIT_RATE", "1KM"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert_eq!(bk_manifest::exit::classify(&error), Exit::Usage, "{name}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn host_keys_are_checked_unless_said_otherwise() {
        assert_eq!(read(&[]).unwrap().host_keys, HostKeys::Known);
        let said = read(&[("BACKUP_RSYNC_HOST_KEYS", "no")]).unwrap();
        assert_eq!(said.host_keys, HostKeys::Any);
    }
}
