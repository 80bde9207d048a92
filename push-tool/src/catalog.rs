//! Finds the backups at a destination.

use std::collections::BTreeMap;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::foreign::{self, Foreign};
use bk_manifest::manifest::{Component, Header, ObjectRecord, Status, Trailer};
use bk_manifest::path::escape;
use bk_manifest::time::Time;

use crate::borders::Borders;
use crate::destination::{Destination, ObjectInfo};
use crate::walk::Manifests;
use crate::{outer, parallel, place};

/// A backup that is there: what its header and trailer say, but for the objects.
#[derive(Clone, Debug)]
pub struct BackupInfo {
    /// Its manifest.
    pub manifest: ObjectInfo,
    /// Its id.
    pub id: String,
    /// Application name, and `/series` if it has one.
    pub series: String,
    /// When it began.
    pub time: Time,
    /// `full` or `incremental`.
    pub kind: String,
    /// The backup that it builds on.
    pub parent: Option<String>,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of content.
    pub size: u64,
    /// Bytes as stored in its own folder; of plain files those of their content.
    pub stored: u64,
    /// Its components.
    pub components: Vec<Component>,
    /// The manifest's own sum.
    pub total_checksum: String,
}

impl BackupInfo {
    /// Takes from a manifest what a listing shows.
    ///
    /// # Errors
    /// A malformed header or trailer.
    pub fn new(manifest: ObjectInfo, header: &Header, trailer: &Trailer) -> anyhow::Result<Self> {
        let backup = header.the_backup()?;
        let (objects, plain) = (trailer.objects()?, trailer.plain()?);
        let sizes = objects.iter().filter(|object| object.backup.is_none()).map(|own| own.size);
        let plain = plain.iter().filter(|record| record.backup.is_none()).map(|own| own.size);
        Ok(BackupInfo {
            manifest,
            series: header.series()?,
            time: backup.time()?,
            kind: backup.kind.unwrap_or_default(),
            parent: backup.parent_backup_id,
            id: backup.id,
            entries: trailer.totals.count,
            size: trailer.totals.size,
            stored: sizes.chain(plain).fold(0, u64::saturating_add),
            components: trailer.components()?,
            total_checksum: trailer.total_checksum().map(|sum| sum.to_string()).unwrap_or_default(),
        })
    }

    /// The folder that holds the manifest.
    pub fn folder(&self) -> &str {
        place::parent(&self.manifest.name)
    }

    /// Whether all its components are complete, but for those that were to be skipped.
    pub fn is_complete(&self) -> bool {
        self.components.iter().all(|component| component.status != Status::Partial)
    }
}

/// A backup that another system made: listed, and nothing else.
#[derive(Clone, Debug)]
pub struct ForeignBackup {
    /// Its manifest.
    pub manifest: ObjectInfo,
    /// What that says.
    pub says: Foreign,
}

/// What a listing of a destination found.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The backups, oldest first.
    pub backups: Vec<BackupInfo>,
    /// Backups of other systems, which are nothing to build on, to count or to remove.
    pub foreign: Vec<ForeignBackup>,
    /// Manifests, and markers of other destinations, that could not be read, and why.
    pub unreadable: Vec<(ObjectInfo, anyhow::Error)>,
    /// Other destinations inside this one, whose backups are not here.
    pub borders: Borders,
}

/// An object that a backup needs, by its name at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededObject {
    /// Its name at the destination.
    pub name: String,
    /// What the manifest says of it.
    pub record: ObjectRecord,
}

impl Catalog {
    /// Reads header and trailer of every manifest at the destination.
    ///
    /// # Errors
    /// Those of the listing; a manifest that cannot be read is in [`Catalog::unreadable`].
    pub fn read(destination: &dyn Destination) -> anyhow::Result<Self> {
        let mut manifests = Manifests::default();
        for object in destination.list("")? {
            bk_manifest::signal::check()?;
            let object = object?;
            manifests.candidates.note(&object);
            if place::is_manifest(&object.name) {
                manifests.objects.push(object);
            }
        }
        Catalog::of(destination, manifests)
    }

    /// Reads header and trailer of these manifests, but for those of other destinations.
    ///
    /// # Errors
    /// As [`Catalog::read`].
    pub fn of(destination: &dyn Destination, manifests: Manifests) -> anyhow::Result<Self> {
        let Manifests { mut objects, candidates } = manifests;
        let mut borders = candidates.confirm(destination);
        objects.retain(|object| !borders.is_beyond(&object.name));
        let read = parallel::map(destination.at_once(), objects, |object| -> anyhow::Result<_> {
            bk_manifest::signal::check()?;
            let read = read_manifest(destination, &object);
            // Gone since the listing: prune or a withdrawn commit.
            let is_gone = read.is_err() && destination.stat(&object.name)?.is_none();
            Ok((!is_gone).then_some((object, read)))
        });
        let unreadable = std::mem::take(&mut borders.unreadable);
        let mut catalog = Catalog { unreadable, borders, ..Catalog::default() };
        for read in read {
            match read? {
                None => {}
                Some((_, Ok(Found::Ours(backup)))) => catalog.backups.push(backup),
                Some((manifest, Ok(Found::Foreign(says)))) => {
                    catalog.foreign.push(ForeignBackup { manifest, says });
                }
                Some((object, Err(error))) => catalog.unreadable.push((object, error)),
            }
        }
        catalog.backups.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        catalog.foreign.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
        catalog.unreadable.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        Ok(catalog)
    }

    /// The backup with this id.
    pub fn find(&self, id: &str) -> Option<&BackupInfo> {
        self.backups.iter().find(|backup| backup.id == id)
    }

    /// The backups of one series, oldest first: the named one, or the only one there is.
    ///
    /// `app` alone means the series without a second part.
    ///
    /// # Errors
    /// [`Exit::Usage`] if several are there and none was named.
    pub fn series(&self, name: Option<&str>) -> anyhow::Result<Vec<&BackupInfo>> {
        let mut by_series: BTreeMap<&str, Vec<&BackupInfo>> = BTreeMap::new();
        for backup in &self.backups {
            by_series.entry(&backup.series).or_default().push(backup);
        }
        match name {
            Some(name) => Ok(by_series.remove(name).unwrap_or_default()),
            None if by_series.len() > 1 => {
                let names: Vec<_> = by_series.keys().map(|name| escape(name.as_bytes())).collect();
                Err(Failure::new(Exit::Usage, "several series are at the destination")
                    .hint(format!("say which with --app (and --series): {}", names.join(", ")))
                    .into())
            }
            None => Ok(by_series.into_values().next().unwrap_or_default()),
        }
    }
}

/// Whose manifest an object is.
enum Found {
    Ours(BackupInfo),
    Foreign(Foreign),
}

/// Reads a manifest of ours, or one of a system that is known.
fn read_manifest(destination: &dyn Destination, object: &ObjectInfo) -> anyhow::Result<Found> {
    let read_foreign = || anyhow::Ok(foreign::read(destination.read(&object.name, None)?)?);
    if !place::is_manifest(&object.name) {
        return read_foreign().map(Found::Foreign);
    }
    outer::read(destination, object)
        .and_then(|(header, trailer)| BackupInfo::new(object.clone(), &header, &trailer))
        .map(Found::Ours)
        // What is wrong with it as one of ours is what there is to say, if it is nobody else's.
        .or_else(|error| read_foreign().map(Found::Foreign).map_err(|_| error))
}

/// Reads header and trailer of a backup's manifest again, for what a listing does not keep.
///
/// # Errors
/// Those of the destination, and any fault of the document.
pub fn reread(
    destination: &dyn Destination,
    backup: &BackupInfo,
) -> anyhow::Result<(Header, Trailer)> {
    outer::read(destination, &backup.manifest)
}

/// The objects that a backup needs, its own and inherited ones, by their names at the destination: all
/// but its plain files ([`crate::plain`]).
///
/// `folder` is the one that holds the manifest.
///
/// # Errors
/// A manifest that refers to a backup missing from its chain, or leads out of the destination.
pub fn needed_objects(
    header: &Header,
    trailer: &Trailer,
    folder: &str,
) -> anyhow::Result<Vec<NeededObject>> {
    let folders = Folders::new(header, folder)?;
    let objects = trailer.objects()?;
    objects
        .into_iter()
        .map(|record| {
            let name = folders.object(record.backup.as_deref(), &record.object)?;
            Ok(NeededObject { name, record })
        })
        .collect()
}

/// The folders of a backup and of those that it refers to.
#[derive(Clone, Debug)]
pub struct Folders {
    own: String,
    chain: BTreeMap<String, String>,
}

impl Folders {
    /// Resolves the chain of a manifest that lies in `folder`.
    ///
    /// # Errors
    /// A chain that leads out of the destination.
    pub fn new(header: &Header, folder: &str) -> anyhow::Result<Self> {
        let mut chain = BTreeMap::new();
        for (backup, way) in header.chain()? {
            let folder = place::resolve(folder, &way).context("the manifest's chain")?;
            chain.insert(backup, folder);
        }
        Ok(Folders { own: folder.to_owned(), chain })
    }

    /// Those of a backup that is not stored yet.
    pub fn of(own: &str, chain: BTreeMap<String, String>) -> Self {
        Folders { own: own.to_owned(), chain }
    }

    /// The folder of a backup; `None` is the manifest's own.
    pub fn folder(&self, backup: Option<&str>) -> Option<&str> {
        match backup {
            None => Some(&self.own),
            Some(backup) => self.chain.get(backup).map(String::as_str),
        }
    }

    /// Every folder, each once.
    pub fn all(&self) -> std::collections::BTreeSet<&str> {
        self.chain.values().map(String::as_str).chain([self.own.as_str()]).collect()
    }

    /// The backups referred to and their folders.
    pub fn chain(&self) -> impl Iterator<Item = (&str, &str)> {
        self.chain.iter().map(|(backup, folder)| (backup.as_str(), folder.as_str()))
    }

    /// An object's name at the destination.
    ///
    /// # Errors
    /// A backup that is not in the chain, an object's name that is no relative path.
    pub fn object(&self, backup: Option<&str>, object: &str) -> anyhow::Result<String> {
        let folder = self.folder(backup).ok_or_else(|| {
            let backup = escape(backup.unwrap_or_default().as_bytes());
            bk_manifest::stream::Error::Malformed(format!("'{backup}' is missing from 'chain'"))
        })?;
        Ok(place::object(folder, object)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::digest::Digest;
    use bk_manifest::json::INTEGER_LIMIT;
    use bk_manifest::manifest::{Application, Backup, Run};
    use serde_json::json;

    #[test]
    fn sizes_that_no_disk_has_stop_no_listing() {
        let backup = Backup {
            id: "b".into(),
            timestamp: "2026-04-28T02:21:50.000Z".into(),
            ..Backup::default()
        };
        let header = Header::new(&Application::default(), Some(&backup), &Run::default());
        let mut trailer = Trailer::default();
        let objects = (0..3000).map(|number| {
            json!({"object": format!("o{number}"), "size": INTEGER_LIMIT, "live": 0,
                "checksum": Digest::of(b"")})
        });
        trailer.set("objects", objects.collect());
        let manifest =
            ObjectInfo { name: "b/manifest.json".into(), size: 1, modified: Time::from_unix(0, 0) };
        let info = BackupInfo::new(manifest, &header, &trailer).unwrap();
        assert_eq!(info.stored, u64::MAX);
    }
}
