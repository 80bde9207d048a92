//! How destinations off this machine are reached: the variables that name keys, endpoints and hosts.
//!
//! Each kind of destination reads its own; here is only how they are found. Keys are never
//! arguments, which every user of a machine can see.

use std::collections::BTreeMap;
use std::ffi::OsString;

use bk_manifest::exit::{Exit, fail};

use crate::rate::Rate;

/// What the names of our own variables begin with, unless said otherwise.
pub const PREFIX: &str = "BACKUP";

/// What the names of those begin with that say how a second destination is reached.
pub const COPY_PREFIX: &str = "BACKUP_COPY";

/// Variables, and how the names of our own begin.
#[derive(Clone, Default)]
pub struct Access {
    prefix: String,
    variables: BTreeMap<String, String>,
}

impl Access {
    /// Takes the variables of an environment; empty ones count as unset.
    pub fn new(prefix: &str, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let variables =
            environment.into_iter().filter_map(text).filter(|(_, value)| !value.is_empty());
        Access { prefix: prefix.to_owned(), variables: variables.collect() }
    }

    /// The full name of one of our own, for messages: `BACKUP_S3_ENDPOINT` for `S3_ENDPOINT`.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}_{suffix}", self.prefix)
    }

    /// The value of one of our own, by the rest of its name.
    pub fn own(&self, suffix: &str) -> Option<&str> {
        self.plain(&self.name(suffix))
    }

    /// Whether any of our own says how a destination is reached.
    pub fn is_given(&self) -> bool {
        let kinds = ["S3_", "RSYNC_", "SSH_"].map(|kind| self.name(kind));
        self.variables.keys().any(|name| kinds.iter().any(|kind| name.starts_with(kind)))
    }

    /// The value of any variable.
    pub fn plain(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The value of a variable that may be in a file instead, which `NAME_FILE` names.
    ///
    /// # Errors
    /// A file that cannot be read; both are set.
    pub fn secret(&self, name: &str) -> anyhow::Result<Option<String>> {
        let file = self.plain(&format!("{name}_FILE"));
        match (self.plain(name), file) {
            (None, None) => Ok(None),
            (Some(value), None) => Ok(Some(value.to_owned())),
            (Some(_), Some(_)) => {
                Err(fail(Exit::Usage, format!("{name} and {name}_FILE are both set")))
            }
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file).map_err(|error| {
                    fail(Exit::Usage, format!("{name}_FILE: cannot read '{file}': {error}"))
                })?;
                Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
        }
    }

    /// How many bytes a second may go to and come from a destination off this machine.
    ///
    /// # Errors
    /// [`Exit::Usage`] for what is no rate.
    pub fn rate(&self) -> anyhow::Result<Option<Rate>> {
        let rate = self.own("LIMIT_RATE").map(str::parse).transpose();
        rate.map_err(|error| fail(Exit::Usage, format!("{}: {error}", self.name("LIMIT_RATE"))))
    }

    /// A switch among our own: `true` or `false`.
    ///
    /// # Errors
    /// [`Exit::Usage`] for any other value.
    pub fn switch(&self, suffix: &str) -> anyhow::Result<Option<bool>> {
        match self.own(suffix).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(None),
            Some("true" | "1" | "yes" | "on") => Ok(Some(true)),
            Some("false" | "0" | "no" | "off") => Ok(Some(false)),
            Some(_) => {
                Err(fail(Exit::Usage, format!("{} is neither true nor false", self.name(suffix))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_how_to_reach_it_makes_a_second_access() {
        let given = |name: &str, value: &str| {
            Access::new(COPY_PREFIX, [(name.into(), value.into())]).is_given()
        };
        for name in ["BACKUP_COPY_S3_ENDPOINT", "BACKUP_COPY_RSYNC_PORT"] {
            assert!(given(name, "x"), "{name}");
            assert!(!given(name, ""), "{name}");
        }
        for name in ["BACKUP_COPY_DESTINATION_PATH", "BACKUP_COPY_KEEP_DAILY", "BACKUP_S3_REGION"] {
            assert!(!given(name, "x"), "{name}");
        }
    }
}
