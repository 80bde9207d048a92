//! What of the command line says how places off this machine are reached, and what opens them.

use std::path::{Path, PathBuf};

use crate::access::{self, Access};
use crate::bucket::{self, Bucket};
use crate::identity::Identities;
use crate::rate::Rate;

/// How a destination off this machine is reached.
#[derive(Debug, clap::Args)]
pub struct AccessArgs {
    /// How the variables begin that say how to reach the destination: `PREFIX_S3_ENDPOINT`, …
    #[arg(long, value_name = "PREFIX", default_value = access::PREFIX)]
    pub(super) access: String,
    /// Bytes a second to and from a destination off this machine at most, with K, M or G
    #[arg(long, value_name = "RATE")]
    limit_rate: Option<Rate>,
}

impl AccessArgs {
    /// What the environment says.
    pub fn read(&self) -> Access {
        let flag = self.limit_rate.map(|rate| {
            (format!("{}_LIMIT_RATE", self.access).into(), rate.bytes().to_string().into())
        });
        Access::new(&self.access, std::env::vars_os().chain(flag))
    }
}

/// The keys of encrypted backups.
#[derive(Debug, clap::Args)]
pub struct IdentityArgs {
    /// File with a key of age, for what is encrypted; gpg has its own keyring (can be repeated)
    #[arg(long, value_name = "FILE", env = "BACKUP_IDENTITY_FILE")]
    identity: Vec<PathBuf>,
}

impl IdentityArgs {
    /// The files; an empty variable names none.
    pub fn read(&self) -> Identities {
        Identities(self.identity.iter().filter(|file| !is_empty(file)).cloned().collect())
    }
}

/// An empty variable names no file.
pub(super) fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// Opens a bucket that variables with this prefix say how to reach.
pub(super) fn connect(name: &str, prefix: &str) -> anyhow::Result<Box<dyn Bucket>> {
    bucket::open(name, &Access::new(prefix, std::env::vars_os()))
}
