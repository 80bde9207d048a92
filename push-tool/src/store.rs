//! A destination that was marked as one: opened by the name that a user gives.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::path::escape;
use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::destination::{Created, Destination, ErrorKind};
use crate::local::{FOLDER_MODE, Local};
use crate::location::Location;
use crate::place::MARKER;
use crate::rsync;
use crate::s3::S3;

/// How long a mark must have stood before prune deletes, unless `init` said otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_hours(24);

/// Largest marker that is read, in bytes.
pub(crate) const MARKER_LIMIT: u64 = 1 << 16;

/// What the marker of a destination holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Tells this destination from every other.
    pub id: String,
    /// Seconds between prune's mark and its deletion.
    pub grace_seconds: u64,
}

impl Marker {
    /// Whether something that is called as a marker holds one: whoever may choose the name of a file must
    /// not hide backups by it.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn is_in(content: impl Read) -> io::Result<bool> {
        let mut text = Vec::new();
        content.take(MARKER_LIMIT).read_to_end(&mut text)?;
        Ok(serde_json::from_slice::<Marker>(&text).is_ok())
    }
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
            Ok(marker) => {
                Some(io::read_to_string(marker).context("cannot read the destination's marker")?)
            }
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
    /// file system; [`Exit::Usage`] for a new one inside another.
    pub fn init(name: &str, access: &Access, grace: Duration) -> anyhow::Result<(Self, Created)> {
        let location = Location::parse(name)?;
        refuse_inside(name, &location, access)?;
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

/// Refuses to make a destination inside another: who looks after the outer one would not see it.
///
/// One that is there already is let be. On another host nobody looks: each folder would be a connection.
fn refuse_inside(name: &str, location: &Location, access: &Access) -> anyhow::Result<()> {
    let above = match location {
        Location::Local(path) => destination_above(path),
        Location::S3 { bucket, prefix } => {
            let s3 = S3::open(bucket, prefix, access)?;
            match s3.destination_above()? {
                Some(above) if s3.stat(MARKER)?.is_none() => Some(above),
                _ => None,
            }
        }
        Location::Ssh { .. } | Location::Daemon { .. } => None,
    };
    let Some(above) = above else { return Ok(()) };
    let name = escape(name.as_bytes());
    Err(Failure::new(Exit::Usage, format!("'{name}' lies in the backup destination '{above}'"))
        .hint(format!("that is one by its '{MARKER}'"))
        .hint("several applications share one destination; or take a place beside it")
        .into())
}

/// The destination that a folder lies in, unless it is one itself.
fn destination_above(path: &Path) -> Option<String> {
    if path.join(MARKER).exists() {
        return None;
    }
    // It may not be there yet; the one above it must be.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let path = std::fs::canonicalize(path)
        .or_else(|_| std::fs::canonicalize(parent.unwrap_or(Path::new("."))))
        .ok()?;
    let is_destination =
        |above: &&Path| File::open(above.join(MARKER)).and_then(Marker::is_in).unwrap_or(false);
    let above = path.ancestors().find(is_destination)?;
    Some(above.display().to_string())
}

/// What is said where no destination is.
pub fn no_destination(name: &str, what: &str) -> Failure {
    let hint = match Location::parse(name) {
        Ok(Location::S3 { .. }) => "are the names of the bucket and its prefix right?",
        Ok(Location::Ssh { .. }) => "are the names of the host and the folder there right?",
        Ok(Location::Daemon { .. }) => "are the names of the host and the module there right?",
        Ok(Location::Local(_)) | Err(_) => "is the disk mounted? is the name right?",
    };
    let name = escape(name.as_bytes());
    Failure::new(Exit::NoDestination, format!("'{name}' {what}"))
        .hint(hint)
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
    use crate::testing::server::Server;
    use bk_manifest::exit::classify;

    #[test]
    fn no_destination_is_made_inside_another() {
        let folder = tempfile::tempdir().unwrap();
        let init = |path: &Path| {
            Store::init(path.to_str().unwrap(), &Access::default(), DEFAULT_GRACE).map(drop)
        };
        let (inner, outer) = (folder.path().join("d/inner"), folder.path().join("d"));
        std::fs::create_dir_all(&inner).unwrap();
        init(&inner).unwrap();
        // From above it is not looked for: it is left alone by whoever lists the outer one.
        init(&outer).unwrap();
        for new in [outer.join("new"), inner.join("new")] {
            let error = init(&new).unwrap_err();
            assert_eq!(classify(&error), Exit::Usage);
            assert!(error.to_string().contains("lies in the backup destination"), "{error}");
            assert!(!new.exists());
        }
        // What is there already goes on.
        init(&inner).unwrap();
        // A file of that name makes no destination.
        File::create(outer.join(MARKER)).unwrap();
        init(&outer.join("new")).unwrap();
    }

    #[test]
    fn no_destination_is_made_below_a_prefix_that_is_one() {
        let server = Server::start();
        let init = |prefix: &str| {
            let name = format!("s3://{}/{prefix}", server.bucket_name());
            Store::init(&name, &server.access(&[]), DEFAULT_GRACE).map(drop)
        };
        init("a/b").unwrap();
        assert_eq!(classify(&init("a/b/c").unwrap_err()), Exit::Usage);
        init("a").unwrap();
        init("a/b").unwrap();
        init("ab").unwrap();
        // An object of that name makes no destination.
        let x = S3::open(server.bucket_name(), "x", &server.access(&[])).unwrap();
        x.create(MARKER, b"not ours").unwrap();
        init("x/y").unwrap();
    }

    #[test]
    fn the_hint_fits_the_kind_of_place() {
        for (name, part) in [
            ("/mnt/nas", "disk mounted"),
            ("s3://backups/a", "bucket and its prefix"),
            ("nas:/volume1", "host and the folder"),
            ("rsync://nas/module", "host and the module"),
        ] {
            let hints = no_destination(name, "is not there").hints;
            assert!(hints[0].contains(part), "{name}: {hints:?}");
        }
    }

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
