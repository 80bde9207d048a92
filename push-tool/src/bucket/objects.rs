//! What a bucket holds, as entries in the order of paths.

use std::collections::BTreeSet;

use anyhow::Context;
use bk_manifest::entry::{Entry, Kind};
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::left_out::{LeftOut, Reason};
use bk_manifest::manifest::is_within;
use bk_manifest::path::{RelPath, escape};
use bk_manifest::progress::Progress;
use bk_manifest::scan::DESTINATION_MARKER;
use bk_manifest::sort::{Sorter, pair, unpair};

use super::{Bucket, Listed, describe};
use crate::destination::ErrorKind;
use crate::store::Marker;

/// Memory for the order of the keys; more goes through temporary files.
const ORDER_BUDGET: usize = 32 << 20;
/// Backup destinations in one bucket that are told apart.
const DESTINATIONS_LIMIT: usize = 1000;

/// Whether an object is a destination's marker, by what it holds.
fn is_marker(bucket: &dyn Bucket, key: &str) -> anyhow::Result<bool> {
    let content = match bucket.get(key, None) {
        Ok(content) => content,
        // What becomes of it is told when it is to be read as any other.
        Err(error) if error.kind == ErrorKind::NotFound || error.is_withheld() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    Marker::is_in(content.bytes)
        .with_context(|| format!("cannot read '{}'", escape(key.as_bytes())))
}

/// What a bucket holds, on the way into the order of paths.
pub(super) struct Objects {
    sorter: Sorter,
    /// Keys that can be no paths.
    pub(super) left_out: LeftOut,
    /// Folders that are backup destinations, as recorded paths.
    destinations: BTreeSet<Vec<u8>>,
}

impl Objects {
    /// Reads the whole listing; paths begin with the component's name.
    ///
    /// # Errors
    /// Those of the bucket; [`Exit::Usage`] for one that is a backup destination, or lies in one.
    pub(super) fn list(
        bucket: &dyn Bucket,
        component: &str,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let mut objects = Objects {
            sorter: Sorter::new(ORDER_BUDGET),
            left_out: LeftOut::default(),
            destinations: BTreeSet::new(),
        };
        if let Some(above) = bucket.destination_above()? {
            let message =
                format!("'{}' lies in the backup destination '{above}'", bucket.describe());
            return Err(Failure::new(Exit::Usage, message)
                .hint(format!("that is one by its '{DESTINATION_MARKER}'"))
                .into());
        }
        progress.begin("listing", None);
        for listed in bucket.list()? {
            bk_manifest::signal::check()?;
            let listed = listed?;
            objects.take(bucket, component, &listed, progress)?;
            progress.advance(0, 1);
        }
        progress.end();
        Ok(objects)
    }

    fn take(
        &mut self,
        bucket: &dyn Bucket,
        component: &str,
        listed: &Listed,
        progress: &dyn Progress,
    ) -> anyhow::Result<()> {
        // A key that ends with a slash and holds nothing is what consoles make for an empty folder.
        let folder = listed.key.strip_suffix('/').filter(|_| listed.size == 0);
        let below = folder.unwrap_or(&listed.key);
        let Ok(path) = RelPath::new(format!("{component}/{below}").into_bytes()) else {
            self.left_out.add_name(Reason::Unnameable, listed.key.as_bytes());
            return Ok(());
        };
        let has_name = folder.is_none() && path.file_name() == DESTINATION_MARKER.as_bytes();
        if has_name && is_marker(bucket, &listed.key)? {
            let above = below.rsplit_once('/').map(|(above, _)| above);
            let Some(above) = above.filter(|_| self.destinations.len() < DESTINATIONS_LIMIT) else {
                let (bucket, key) = (bucket.describe(), escape(listed.key.as_bytes()));
                let message =
                    format!("'{bucket}' is a backup destination, or full of them: it has '{key}'");
                return Err(Failure::new(Exit::Usage, message)
                    .hint("name the application's own bucket; if it is that one, remove the object")
                    .into());
            };
            let shown = escape(above.as_bytes());
            progress.warn(&format!("left out '{shown}/': it is a backup destination"));
            self.destinations.insert(format!("{component}/{above}").into_bytes());
        }
        let mut entry = Entry::new(path);
        entry.component = Some(component.to_owned());
        let mut rest = vec![u8::from(folder.is_some())];
        if folder.is_some() {
            entry.kind = Kind::Directory;
        } else {
            describe(listed, &mut entry);
        }
        entry.write_canonical(&mut rest);
        self.sorter.push(&pair(&entry.path.sort_key(), &rest))
    }

    /// Whether the bucket holds nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        self.sorter.is_empty() && self.left_out.count(Reason::Unnameable) == 0
    }

    /// Hands out the entries in their order, and counts what cannot be one.
    ///
    /// # Errors
    /// Those of `entry` and of the temporary files.
    pub(super) fn each(
        self,
        left_out: &mut LeftOut,
        entry: &mut dyn FnMut(Entry) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut told: Option<&Vec<u8>> = None;
        let mut pending: Option<Entry> = None;
        for record in self.sorter.finish()? {
            bk_manifest::signal::check()?;
            let record = record?;
            // Behind a byte that has files come before folders.
            let line = unpair(&record).1.get(1..).unwrap_or_default();
            let next: Entry = serde_json::from_slice(line).context("temporary file")?;
            let is_in = |folder: &&Vec<u8>| is_within(next.path.as_bytes(), folder);
            if let Some(folder) = self.destinations.iter().find(is_in) {
                if told.replace(folder) != Some(folder) {
                    left_out.add_name(Reason::Destination, folder);
                }
                continue;
            }
            pending = match pending {
                None => Some(next),
                // The listing has shown a key twice: it was changed meanwhile.
                Some(before) if next.path == before.path && next.kind == before.kind => {
                    Some(if next.mtime < before.mtime { before } else { next })
                }
                Some(before) if next.path == before.path => {
                    left_out.add(Reason::Unnameable, &next.path);
                    Some(before)
                }
                Some(before) if before.is_file() && next.path.below(&before.path).is_some() => {
                    left_out.add(Reason::Unnameable, &before.path);
                    Some(next)
                }
                Some(before) => {
                    entry(before)?;
                    Some(next)
                }
            };
        }
        pending.map_or(Ok(()), entry)
    }
}
