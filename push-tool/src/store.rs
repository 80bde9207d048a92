//! A destination that was marked as one: opened by the name that a user gives.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::path::escape;
use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::borders::MARKER_LIMIT;
use crate::destination::{Created, Destination, ErrorKind};
use crate::local::{FOLDER_MODE, Local};
use crate::location::Location;
use crate::place::MARKER;
use crate::rsync;
use crate::s3::S3;

/// How long a mark must have stood before prune deletes, unless `init` said otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_hours(24);

/// What the marker of a destination holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Tells this destination from every other.
    pub id: String,
    /// Seconds between prune's mark and its deletion.
    pub grace_seconds: u64,
}

/// An open destination and its marker.
pub struct Store {
    /// Where objects are kept.
    pub destination: Box<dyn Destination>,
    /// What its marker says.
    pub marker: Marker,
}

impl Store {
    /// Opens a destination.
    ///
    /// # Errors
    /// [`Exit::NoDestination`] if it or its marker is not there: an unmounted disk must not become a
    /// folder on the root disk.
    pub fn open(name: &str, access: &Access) -> anyhow::Result<Self> {
        let (destination, marker) = Store::find(name, access)?;
        let marker = marker
            .ok_or_else(|| no_destination(name, "is not there, or is no backup destination"))?;
        Ok(Store { destination, marker })
    }

    /// Opens what is there for reading only; without a marker it is no destination of ours.
    ///
    /// # Errors
    /// As [`Store::open`], for a marker that is malformed.
    pub fn find(
        name: &str,
        access: &Access,
    ) -> anyhow::Result<(Box<dyn Destination>, Option<Marker>)> {
        let destination = connect(&Location::parse(name)?, access)?;
        let text = match destination.read(MARKER, Some(0..MARKER_LIMIT)) {
            Ok(marker) => Some(
                std::io::read_to_string(marker).context("cannot read the destination's marker")?,
            ),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
        let marker: Option<Marker> = parsed.map_err(|error| {
            no_destination(name, &format!("has a marker that is malformed: {error}"))
        })?;
        Ok((destination, marker))
    }

    /// Makes a destination: a folder with a marker.
    ///
    /// # Errors
    /// [`Exit::NoDestination`] if the folder is not there (the one above it must be), those of the
    /// file system.
    pub fn init(name: &str, access: &Access, grace: Duration) -> anyhow::Result<(Self, Created)> {
        let location = Location::parse(name)?;
        if let Location::Local(path) = &location
            && !path.is_dir()
        {
            // Who has no business with the backups need not see when they were made.
            DirBuilder::new().mode(FOLDER_MODE).create(path).map_err(|error| {
                fail(Exit::NoDestination, format!("cannot make '{}': {error}", path.display()))
            })?;
        }
        let destination = connect(&location, access)?;
        let mut id = [0u8; 8];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes")?;
        let marker = Marker {
            id: format!("{:016x}", u64::from_be_bytes(id)),
            grace_seconds: grace.as_secs(),
        };
        let text = serde_json::to_string(&marker)? + "\n";
        let created = destination.create(MARKER, text.as_bytes())?;
        Ok((Store::open(name, access)?, created))
    }

    /// How long a mark must have stood before prune deletes.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.marker.grace_seconds)
    }
}

/// What is said where no destination is.
pub fn no_destination(name: &str, what: &str) -> Failure {
    let name = escape(name.as_bytes());
    Failure::new(Exit::NoDestination, format!("'{name}' {what}"))
        .hint("is the disk mounted? is the name right?")
        .hint(format!("for a new destination: bk-push init --to {name}"))
}

/// The destination at a location, not yet looked at.
fn connect(location: &Location, access: &Access) -> anyhow::Result<Box<dyn Destination>> {
    match location {
        Location::Local(path) => Ok(Box::new(Local::new(path))),
        Location::S3 { bucket, prefix } => Ok(Box::new(S3::open(bucket, prefix, access)?)),
        Location::Ssh { user, host, path } => rsync::ssh(user.as_deref(), host, path, access),
        Location::Daemon { user, host, path } => rsync::daemon(user.as_deref(), host, path, access),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_destination_that_init_makes_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dest");
        Store::init(path.to_str().unwrap(), &Access::default(), DEFAULT_GRACE).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        // One that is there is its owner's matter.
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        Store::init(open.to_str().unwrap(), &Access::default(), DEFAULT_GRACE).unwrap();
        assert_eq!(open.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
