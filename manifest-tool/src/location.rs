//! The name of a destination, as a user gives it: a folder, a bucket, a host.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use crate::exit::{Exit, Failure};
use crate::path::escape;

/// Where a destination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine.
    Local(PathBuf),
    /// `s3://BUCKET/PREFIX`: below a prefix, which may be empty, of a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// What stands before every key, without a slash at either end.
        prefix: String,
    },
    /// `USER@HOST:/PATH`: rsync through ssh.
    Ssh {
        /// Who logs in; `None` leaves it to ssh.
        user: Option<String>,
        /// The host, as ssh takes it: an address of IPv6 without brackets.
        host: String,
        /// The folder there.
        path: String,
    },
    /// `rsync://USER@HOST:PORT/MODULE/PATH`: an rsync daemon.
    Daemon {
        /// Who logs in, if anybody.
        user: Option<String>,
        /// The host, and `:PORT` where one is given.
        host: String,
        /// The module, and the path in it.
        path: String,
    },
}

impl Location {
    /// Reads a name. What has neither a scheme nor `HOST:` in front is a folder; `./a:b` is one too.
    ///
    /// # Errors
    /// [`Exit::Usage`] for what names nothing, or begins with `-` where a program would take that
    /// for an option.
    pub fn parse(name: &str) -> anyhow::Result<Self> {
        let malformed = |why: &str| {
            // Before the host somebody may have put a password.
            let hidden = name.rsplit_once('@').filter(|_| name.contains("://"));
            let name = hidden.map_or_else(
                || escape(name.as_bytes()),
                |(_, rest)| format!("…@{}", escape(rest.as_bytes())),
            );
            Failure::new(Exit::Usage, format!("'{name}' is no destination: {why}")).hint(
                "it is a folder, s3://BUCKET/PREFIX, USER@HOST:/PATH or rsync://HOST/MODULE/PATH",
            )
        };
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(malformed("its name is empty or has control characters").into());
        }
        let is_safe = |part: &str| !part.is_empty() && !part.starts_with('-');
        if let Some(rest) = name.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            if bucket.is_empty() || bucket.contains([':', '@', '?', '#']) {
                return Err(malformed("it names no bucket").into());
            }
            if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
                return Err(malformed("its prefix has an empty part, '.' or '..'").into());
            }
            return Ok(Location::S3 { bucket: bucket.into(), prefix: prefix.into() });
        }
        if let Some(rest) = name.strip_prefix("rsync://") {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let (user, host) = split_user(host);
            if !is_safe(host) || user.as_deref().is_some_and(|user| !is_safe(user)) {
                return Err(malformed("it names no host").into());
            }
            if user.as_deref().is_some_and(|user| user.contains(':')) {
                return Err(malformed("a password does not belong into it").into());
            }
            let path = path.trim_end_matches('/');
            if !is_safe(path) {
                return Err(malformed("it names no module").into());
            }
            return Ok(Location::Daemon { user, host: host.into(), path: path.into() });
        }
        if name.contains("://") {
            return Err(malformed("its scheme is unknown").into());
        }
        match split_address(name).or_else(|| name.split_once(':')) {
            Some((host, path)) if !host.is_empty() && !host.contains('/') => {
                let (user, host) = split_user(host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                if !is_safe(host) || user.as_deref().is_some_and(|user| !is_safe(user)) {
                    return Err(malformed("it names no host").into());
                }
                // Other programs write a bucket so; ssh would look for a host of that name.
                if user.is_none() && matches!(host, "s3" | "rsync" | "ssh" | "sftp" | "file") {
                    return Err(malformed("'//' is missing behind its scheme").into());
                }
                if path.is_empty() {
                    return Err(malformed("it names no folder").into());
                }
                Ok(Location::Ssh { user, host: host.into(), path: path.into() })
            }
            _ => Ok(Location::Local(PathBuf::from(name))),
        }
    }

    /// Whether what is stored there leaves this host.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Location::Local(_))
    }
}

/// The parts of `USER@[ADDRESS]:PATH`: the colons in an address of IPv6 end no host.
fn split_address(name: &str) -> Option<(&str, &str)> {
    let (host, path) = name.split_once("]:")?;
    let (user, address) = host.split_once('[')?;
    let address = address.split_once('%').map_or(address, |(address, _)| address);
    let is_address = address.parse::<Ipv6Addr>().is_ok();
    let split = (is_address && (user.is_empty() || user.ends_with('@')))
        .then(|| name.split_at(name.len() - path.len() - 1))?;
    Some((split.0, path))
}

fn split_user(host: &str) -> (Option<String>, &str) {
    match host.rsplit_once('@') {
        Some((user, host)) => (Some(user.to_owned()), host),
        None => (None, host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn every_kind_of_name_is_told() {
        let s3 = |bucket: &str, prefix: &str| Location::S3 {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        let ssh = |user: Option<&str>, host: &str, path: &str| Location::Ssh {
            user: user.map(owned),
            host: host.into(),
            path: path.into(),
        };
        let daemon = |user: Option<&str>, host: &str, path: &str| Location::Daemon {
            user: user.map(owned),
            host: host.into(),
            path: path.into(),
        };
        for (name, location) in [
            ("/mnt/nas", Location::Local("/mnt/nas".into())),
            ("backups", Location::Local("backups".into())),
            ("./a:b", Location::Local("./a:b".into())),
            ("s3://photos", s3("photos", "")),
            ("s3://photos/a/b/", s3("photos", "a/b")),
            (
                "backup@nas.example.org:/volume1/b",
                ssh(Some("backup"), "nas.example.org", "/volume1/b"),
            ),
            ("nas:backups", ssh(None, "nas", "backups")),
            ("[::1]:/b", ssh(None, "::1", "/b")),
            ("me@[fe80::1%eth0]:b:c", ssh(Some("me"), "fe80::1%eth0", "b:c")),
            ("/mnt/[::1]:/b", Location::Local("/mnt/[::1]:/b".into())),
            ("rsync://nas/backups/app/", daemon(None, "nas", "backups/app")),
            ("rsync://me@nas:8730/backups", daemon(Some("me"), "nas:8730", "backups")),
        ] {
            assert_eq!(Location::parse(name).unwrap(), location, "{name}");
        }
    }

    #[test]
    fn names_that_lead_astray_are_refused() {
        for name in [
            "",
            "a\nb",
            "s3://",
            "s3:///prefix",
            "s3://bucket/a/../b",
            "s3://bucket/a//b",
            "s3://key:secret@bucket/x",
            "ftp://host/x",
            "s3:bucket/x",
            "s3:/bucket",
            "-oProxyCommand=touch x:/path",
            "user@-oProxyCommand=x:/path",
            "-l@host:/path",
            "host:",
            "rsync://host",
            "rsync://-x/module",
            "rsync://me:secret@host/module",
        ] {
            let error = Location::parse(name).unwrap_err();
            assert_eq!(crate::exit::classify(&error), Exit::Usage, "{name}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
