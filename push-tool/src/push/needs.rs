//! What the entries of a push need at the destination, and whether it is there.

use std::collections::BTreeSet;

use anyhow::Context;
use bk_manifest::manifest::{ObjectRecord, PlainRecord};
use serde_json::Map;

use super::{Document, Push, Stored};
use crate::base::present;
use crate::catalog::{Folders, NeededObject};
use crate::destination::Destination;
use crate::mark::{self, Marked};
use crate::pack::Contents;
use crate::plain::PlainFiles;

impl Push<'_> {
    /// Takes out what is marked or gone of all that the entries need; returns how much that is.
    pub(super) fn lose_missing(
        &mut self,
        destination: &dyn Destination,
        folder: &str,
        stored: &Stored,
    ) -> anyhow::Result<u64> {
        let marked = Marked::of(&mark::read_all(destination)?)?;
        let objects = self.objects(&stored.contents)?;
        let needed = self.needed(folder, &objects)?;
        let there = present(destination, &needed)?;
        let there: BTreeSet<&str> = there.iter().map(|object| object.name.as_str()).collect();
        let mut missing = 0;
        for NeededObject { name, record } in &needed {
            if marked.contains(name)? || !there.contains(name.as_str()) {
                self.lose(record.backup.as_deref(), &record.object, name)?;
                missing += 1;
            }
        }
        let plain = self.plain_records(&stored.contents);
        let plain = PlainFiles::of(self.folders(folder), &objects, plain);
        plain.each_missing(destination, &stored.entries, &marked, &mut |object| {
            missing += 1;
            self.lose(object.at.backup.as_deref(), &object.at.object, &object.name)
        })?;
        Ok(missing)
    }

    /// Has nothing refer to an object any more: what it holds is stored again.
    fn lose(&mut self, backup: Option<&str>, object: &str, name: &str) -> anyhow::Result<()> {
        if let Some(backup) = backup {
            return self.base.usable.remove(backup, object, name);
        }
        self.own.remove(object);
        self.lost.insert(object.to_owned());
        Ok(())
    }

    /// Where the objects of this backup and of those that it refers to lie.
    fn folders(&self, folder: &str) -> Folders {
        Folders::of(folder, self.base.folders.clone())
    }

    /// The objects that records stand for, by their names at the destination.
    fn needed(&self, folder: &str, objects: &[ObjectRecord]) -> anyhow::Result<Vec<NeededObject>> {
        let folders = self.folders(folder);
        objects
            .iter()
            .map(|record| {
                let name = folders.object(record.backup.as_deref(), &record.object)?;
                Ok(NeededObject { name, record: record.clone() })
            })
            .collect()
    }

    /// What the document that is to be committed needs.
    pub(super) fn needs(
        &self,
        folder: &str,
        document: &Document,
    ) -> anyhow::Result<(Vec<NeededObject>, PlainFiles)> {
        let (objects, plain) = (&document.objects, document.plain.clone());
        let plain = PlainFiles::of(self.folders(folder), objects, plain);
        Ok((self.needed(folder, objects)?, plain))
    }

    /// The records of the objects that entries refer to, in the order of `contents.live`.
    pub(super) fn objects(&self, contents: &Contents) -> anyhow::Result<Vec<ObjectRecord>> {
        contents
            .live
            .iter()
            .map(|((backup, object), live)| {
                let record = match backup {
                    None => self.own.get(object),
                    Some(backup) => self.base.usable.get(backup, object),
                };
                let record = record.with_context(|| format!("'{object}' is not known"))?;
                Ok(ObjectRecord { backup: backup.clone(), live: live.bytes, ..record.clone() })
            })
            .collect()
    }

    /// The records of the plain files that entries refer to, in the order of `contents.plain`.
    pub(super) fn plain_records(&self, contents: &Contents) -> Vec<PlainRecord> {
        contents
            .plain
            .iter()
            .map(|((backup, component), live)| PlainRecord {
                backup: backup.clone(),
                component: component.clone(),
                count: live.count,
                encryption: match backup {
                    None => {
                        let cipher = self.encryption.of(component);
                        cipher.map(|cipher| cipher.method.word().to_owned())
                    }
                    Some(backup) => {
                        self.base.usable.plain_encryption(backup, component).map(str::to_owned)
                    }
                },
                size: live.bytes,
                extra: Map::new(),
            })
            .collect()
    }
}
