//! Copies a backup to another destination as it is stored, with what it needs of its chain.
//!
//! Everything keeps its name, so that one manifest serves at both. Keys are not needed: the bytes are
//! those that are stored. An object is copied once: what is there already with its size and is vouched
//! for by a manifest or a partial list there is taken as it is, anything else is read and compared.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bk_manifest::digest::{Digest, HashWriter};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::manifest::{EndRun, ObjectRecord, Pushed};
use bk_manifest::path::escape;
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::spool::{Document, Spool};
use bk_manifest::stream::{Error as FormatError, Reader};
use bk_manifest::time::Time;

use crate::base::sizes;
use crate::catalog::{Catalog, NeededObject, needed_objects, reread};
use crate::destination::{Destination, ErrorKind, ObjectInfo};
use crate::locate::{Located, locate};
use crate::partial::{Begun, Closed};
use crate::store::Store;
use crate::upload::{ClosedPiece, PartialWriter};
use crate::{commit, describe, mark, partial, place};

/// Objects that are copied at once.
const WORKERS: usize = 3;
/// Bytes of each that are held.
const BUFFER: usize = 256 << 10;
/// How often what vanished meanwhile is copied again before the copy gives up.
const PASSES: usize = 4;

/// Copies the backup that the document describes, and notes in it where it lies now.
///
/// # Errors
/// [`Exit::Usage`] if both are one destination, [`Exit::Damaged`] for what is not at the source as
/// recorded, [`Exit::Busy`] where a prune is at work on what is needed, [`Exit::Failed`] for a name
/// that is taken by other content. No backup exists at the destination then that was not there.
pub fn copy(
    document: &mut Document,
    from: &Store,
    to: &Store,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    if from.marker.id == to.marker.id {
        return Err(Failure::new(Exit::Usage, "source and destination are the same destination")
            .hint("or one is a copy of the other, made by other means, with its marker")
            .into());
    }
    let Some(backup) = document.header.backup()? else {
        return Err(fail(Exit::NotFound, "the manifest describes no backup: nothing to copy"));
    };
    let total = document.trailer.total_checksum().context("the manifest has no sum")?;
    let series = document.header.series()?;
    let manifest = find_source(document, from, &backup.id, total)?;
    let destination = &*to.destination;
    let holder = format!("bk-push copy of {}, since {}", backup.id, Time::now());
    let _lock = destination.lock(&series, &holder)?;
    let catalog = Catalog::read(destination)?;
    let there = find(&catalog, destination, &backup.id, total, &manifest.name)?;
    if let Some(elsewhere) = there.as_ref().filter(|name| **name != manifest.name) {
        progress.note(&format!("{} is at '{elsewhere}' already", backup.id));
        return note(
            document,
            to,
            elsewhere.clone(),
            Pushed { id: backup.id, ..Pushed::default() },
        );
    }
    let needed = needed(document, &manifest)?;
    let copy = Copy { from: &*from.destination, to, needed: &needed, progress };
    let mut look = copy.look()?;
    copy.vouch(&catalog, &look)?;
    let mut pushed = Pushed { id: backup.id.clone(), ..Pushed::default() };
    pushed.inherited = bytes(&look.present);
    if there.is_some() && look.missing.is_empty() {
        progress.note(&format!("{} is there already", backup.id));
        return note(document, to, manifest.name, pushed);
    }
    // Its objects lie in several folders, so they are named from the root.
    let begun = Begun {
        id: format!("{}.copy", backup.id),
        series: series.clone(),
        folder: String::new(),
        host: backup.host.unwrap_or_default(),
    };
    let list = Mutex::new(PartialWriter::resume(destination, &begun, to.grace())?);
    progress.begin("copying", Some(bytes(&look.missing)));
    let mut passes = 0..PASSES;
    while !look.missing.is_empty() {
        if passes.next().is_none() {
            let message = "objects vanish at the destination as fast as they are stored";
            return Err(fail(Exit::Failed, message));
        }
        copy.check_source(&look.missing)?;
        copy.store_all(&look.missing, &list)?;
        let elsewhere = look.missing.iter().filter(|object| object.record.backup.is_some()).count();
        pushed.elsewhere += elsewhere as u64;
        pushed.objects += look.missing.len() as u64;
        pushed.stored = pushed.stored.saturating_add(bytes(&look.missing));
        look = copy.look()?;
    }
    progress.end();
    pushed.read = pushed.stored;
    let mut list = list.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if there.is_none() {
        copy.put_side_files(document, &manifest.name, &mut list)?;
        copy.put_manifest(&manifest, total)?;
        let is_late =
            to.grace() == Duration::ZERO || destination.now()?.since(look.began) > to.grace() / 2;
        if is_late || look.is_marked {
            commit::confirm(to, &manifest.name, &needed)?;
        }
    }
    for error in list.remove() {
        progress.warn(&format!("{:#}", anyhow::Error::from(error)));
    }
    progress.note(&format!("copied {} ({})", backup.id, human_bytes(pushed.stored)));
    note(document, to, manifest.name, pushed)
}

fn bytes(objects: &[NeededObject]) -> u64 {
    objects.iter().fold(0, |sum, object| sum.saturating_add(object.record.size))
}

/// Notes where the backup lies now. What was proved elsewhere proves nothing here.
fn note(
    document: &mut Document,
    to: &Store,
    place: String,
    pushed: Pushed,
) -> anyhow::Result<Exit> {
    let mut run = document.header.run()?;
    run.place = Some(place);
    run.destination = Some(to.marker.id.clone());
    document.header.set_run(&run);
    let end = document.trailer.run()?;
    let end = EndRun { pushed: Some(pushed), proofs: Vec::new(), ..end };
    document.trailer.set_run(&end);
    Ok(document.trailer.worsen(Exit::Done)?)
}

/// The stored manifest that the document came from.
fn find_source(
    document: &Document,
    from: &Store,
    id: &str,
    total: Digest,
) -> anyhow::Result<ObjectInfo> {
    match locate(from, &document.header.run()?, id, total)? {
        Located::Same(manifest) => Ok(manifest),
        Located::Other(manifest) => {
            let message = format!("'{}' is another manifest than the one given", manifest.name);
            Err(fail(Exit::Damaged, message))
        }
        Located::Unreadable(manifest, error) => {
            Err(fail(Exit::Damaged, format!("'{}' is damaged: {error:#}", manifest.name)))
        }
    }
}

/// Where the backup's manifest lies at the destination, if it is there already.
fn find(
    catalog: &Catalog,
    destination: &dyn Destination,
    id: &str,
    total: Digest,
    name: &str,
) -> anyhow::Result<Option<String>> {
    let total = total.to_string();
    let mut with_id = catalog.backups.iter().filter(|backup| backup.id == id).peekable();
    if let Some(other) = with_id.peek().map(|backup| backup.manifest.name.clone()) {
        // A copy in the very place comes first: what it lacks can be copied again.
        let same: Vec<&str> = with_id
            .filter(|backup| backup.total_checksum == total)
            .map(|backup| backup.manifest.name.as_str())
            .collect();
        let same = same.iter().find(|same| **same == name).or(same.first());
        return match same {
            Some(same) => Ok(Some((*same).to_owned())),
            None => {
                let place = destination.describe();
                let message = format!("another backup '{id}' is at '{place}': '{other}'");
                Err(Failure::new(Exit::Failed, message)
                    .hint("a manifest that is pushed twice becomes two backups")
                    .into())
            }
        };
    }
    if destination.stat(name)?.is_some() {
        let reason = catalog.unreadable.iter().find(|(object, _)| object.name == name);
        let reason = reason.map(|(_, error)| format!(", which cannot be read: {error:#}"));
        let message = format!(
            "'{}' is taken at '{}' by another manifest{}",
            escape(name.as_bytes()),
            destination.describe(),
            reason.unwrap_or_default()
        );
        return Err(fail(Exit::Failed, message));
    }
    Ok(None)
}

/// All objects that the backup needs, each once.
fn needed(document: &Document, manifest: &ObjectInfo) -> anyhow::Result<Vec<NeededObject>> {
    let folder = place::parent(&manifest.name);
    let mut needed: BTreeMap<String, ObjectRecord> = BTreeMap::new();
    for object in needed_objects(&document.header, &document.trailer, folder)? {
        let record = object.record;
        // What a manifest says must not become a mark, a marker or a manifest of ours.
        let is_double = needed
            .get(&object.name)
            .is_some_and(|other| (other.checksum, other.size) != (record.checksum, record.size));
        if is_double || !place::may_be_object(&object.name) {
            let name = escape(object.name.as_bytes());
            let message = format!("'objects' cannot hold '{name}'");
            return Err(FormatError::Malformed(message).into());
        }
        needed.insert(object.name, record);
    }
    Ok(needed.into_iter().map(|(name, record)| NeededObject { name, record }).collect())
}

/// A copy under way.
struct Copy<'a> {
    from: &'a dyn Destination,
    to: &'a Store,
    needed: &'a [NeededObject],
    progress: &'a dyn Progress,
}

/// What is at the destination of what is needed.
struct Look {
    /// When the look began, by the store's clock.
    began: Time,
    present: Vec<NeededObject>,
    missing: Vec<NeededObject>,
    /// Whether marks that are not due yet name any of it.
    is_marked: bool,
}

impl Copy<'_> {
    fn destination(&self) -> &dyn Destination {
        &*self.to.destination
    }

    /// Looks at the marks, then at what is there.
    ///
    /// A mark that is not due yet does no harm: no prune deletes by it before it has read all
    /// manifests again, this one among them, if that is committed by then.
    fn look(&self) -> anyhow::Result<Look> {
        let destination = self.destination();
        let began = destination.now()?;
        let marks = mark::read_all(destination)?;
        let now = destination.now()?;
        let mut is_marked = false;
        for placed in &marks {
            let names = mark::marked_names(std::slice::from_ref(placed));
            let Some(hit) = self.needed.iter().find(|object| names.contains(&*object.name)) else {
                continue;
            };
            if now.since(placed.object.modified) >= self.to.grace() {
                let name = escape(hit.name.as_bytes());
                let message = format!("a prune from {} removes '{name}'", placed.mark.host);
                return Err(Failure::new(Exit::Busy, escape(message.as_bytes()))
                    .hint(
                        "copy again once it has ended; one that died is ended by the next bk-prune",
                    )
                    .into());
            }
            is_marked = true;
        }
        let sizes = sizes(destination, self.needed)?;
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        for object in self.needed {
            match sizes.get(object.name.as_str()).copied().flatten() {
                None => missing.push(object.clone()),
                Some(size) if size == object.record.size => present.push(object.clone()),
                Some(size) => {
                    let why = format!("has {size} bytes instead of {}", object.record.size);
                    return Err(self.taken(&object.name, &why));
                }
            }
        }
        Ok(Look { began, present, missing, is_marked })
    }

    /// Makes sure that what is there is what is needed: something there says so, or it is read.
    fn vouch(&self, catalog: &Catalog, look: &Look) -> anyhow::Result<()> {
        let destination = self.destination();
        let mut open: BTreeMap<&str, &ObjectRecord> =
            look.present.iter().map(|object| (object.name.as_str(), &object.record)).collect();
        let vouch = |open: &mut BTreeMap<&str, &ObjectRecord>, name: &str, checksum: Digest| {
            if open.get(name).is_some_and(|record| record.checksum == checksum) {
                open.remove(name);
            }
        };
        if !open.is_empty() {
            for list in partial::read_all(destination)? {
                let Some(begun) = &list.begun else { continue };
                for piece in list.closed() {
                    // One that is cut or gone vouches for nothing.
                    let Ok(piece) = ClosedPiece::open(destination, piece) else { continue };
                    let name = place::join(&begun.folder, &piece.closed.object);
                    vouch(&mut open, &name, piece.closed.checksum);
                }
            }
            for backup in catalog.backups.iter().rev() {
                bk_manifest::signal::check()?;
                if open.is_empty() {
                    break;
                }
                // One that is malformed vouches for nothing either.
                let Ok((header, trailer)) = reread(destination, backup) else { continue };
                let objects = needed_objects(&header, &trailer, backup.folder());
                for object in objects.unwrap_or_default() {
                    vouch(&mut open, &object.name, object.record.checksum);
                }
            }
        }
        for (name, record) in open {
            self.compare(name, record)?;
        }
        Ok(())
    }

    /// Reads an object at the destination and compares it with its record.
    fn compare(&self, name: &str, record: &ObjectRecord) -> anyhow::Result<()> {
        let read = Digest::of_reader(self.destination().read(name, None)?);
        let (checksum, _) = read.with_context(|| format!("cannot read '{name}'"))?;
        if checksum == record.checksum {
            return Ok(());
        }
        Err(self.taken(name, "has another checksum"))
    }

    fn taken(&self, name: &str, why: &str) -> anyhow::Error {
        let place = self.destination().describe();
        let name = escape(name.as_bytes());
        Failure::new(Exit::Failed, format!("'{name}' is at '{place}' with other content: it {why}"))
            .hint("nothing is overwritten; what a push left that died is removed by bk-prune")
            .into()
    }

    /// Refuses a source that lacks what is to be copied.
    fn check_source(&self, missing: &[NeededObject]) -> anyhow::Result<()> {
        let sizes = sizes(self.from, missing)?;
        for object in missing {
            match sizes.get(object.name.as_str()).copied().flatten() {
                Some(size) if size == object.record.size => {}
                Some(size) => {
                    let why = format!("has {size} bytes instead of {}", object.record.size);
                    return Err(self.damaged(&object.name, &why));
                }
                None => return Err(self.damaged(&object.name, "is missing")),
            }
        }
        Ok(())
    }

    fn damaged(&self, name: &str, why: &str) -> anyhow::Error {
        let message = format!("'{}' at '{}' {why}", escape(name.as_bytes()), self.from.describe());
        Failure::new(Exit::Damaged, message)
            .hint("nothing was committed; bk-verify says what else is damaged at the source")
            .into()
    }

    /// Copies objects, several at once; the first failure stops all.
    fn store_all(
        &self,
        missing: &[NeededObject],
        list: &Mutex<PartialWriter<'_>>,
    ) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let work = || {
            while let Some(object) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.store(object, list) {
                    next.store(missing.len(), Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(missing.len()) {
                scope.spawn(work);
            }
        });
        match failure.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(_) => anyhow::bail!("copying failed"),
        }
    }

    fn store(&self, object: &NeededObject, list: &Mutex<PartialWriter<'_>>) -> anyhow::Result<()> {
        let NeededObject { name, record } = object;
        let list = || list.lock().map_err(|_| anyhow::anyhow!("copying failed"));
        list()?.name(name)?;
        let mut reader = match self.from.read(name, None) {
            Err(error) if error.kind == ErrorKind::NotFound => {
                return Err(self.damaged(name, "is missing"));
            }
            reader => reader?,
        };
        let mut upload = HashWriter::new(self.destination().put(name, record.size)?);
        let mut buffer = vec![0; BUFFER];
        let mut length = 0u64;
        loop {
            bk_manifest::signal::check()?;
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let place = self.from.describe();
                    return Err(error)
                        .with_context(|| format!("cannot read '{name}' at '{place}'"));
                }
            };
            length += read as u64;
            if length > record.size {
                return Err(self.damaged(name, "is longer than it was"));
            }
            upload.write_all(buffer.get(..read).unwrap_or_default()).with_context(|| {
                format!("cannot store '{name}' at '{}'", self.destination().describe())
            })?;
            self.progress.advance(read as u64, 0);
            list()?.renew()?;
        }
        let (upload, checksum, size) = upload.finish();
        if size != record.size {
            return Err(self.damaged(name, &format!("has {size} bytes instead of {}", record.size)));
        }
        if checksum != record.checksum {
            return Err(self.damaged(name, "does not have its checksum"));
        }
        match upload.commit() {
            // Somebody else was faster.
            Err(error) if error.kind == ErrorKind::Exists => self.compare(name, record)?,
            committed => committed?,
        }
        self.progress.advance(0, 1);
        let record = Closed { object: name.clone(), ..Closed::of(record) }.record();
        list()?.closed(&record, Spool::new()?)
    }

    /// Puts the side files, made anew from the manifest: there is no checksum of those at the source.
    fn put_side_files(
        &self,
        document: &Document,
        manifest: &str,
        list: &mut PartialWriter<'_>,
    ) -> anyhow::Result<()> {
        let destination = self.destination();
        let (folder, stem) = (place::parent(manifest), place::stem(manifest));
        let file = manifest.rsplit('/').next().unwrap_or(manifest);
        let objects = document.trailer.objects()?;
        let files = describe::side_files(&document.header, &document.trailer, &objects, file)?;
        for (name, text) in files {
            let name = place::join(folder, &format!("{stem}{name}"));
            if destination.stat(&name)?.is_some() {
                let (there, _) = Digest::of_reader(destination.read(&name, None)?)?;
                if there != Digest::of(text.as_bytes()) {
                    return Err(self.taken(&name, "differs from what is to be there"));
                }
                continue;
            }
            list.name(&name)?;
            let mut upload = destination.put(&name, text.len() as u64)?;
            upload.write_all(text.as_bytes()).with_context(|| format!("cannot store '{name}'"))?;
            upload.commit()?;
        }
        Ok(())
    }

    /// Puts the manifest byte for byte as it is stored at the source: the commit. It has been read to
    /// its end by then and found to be the one that came in.
    fn put_manifest(&self, manifest: &ObjectInfo, total: Digest) -> anyhow::Result<()> {
        let name = &manifest.name;
        let mut upload = self.destination().put(name, manifest.size)?;
        let context = || format!("cannot copy '{name}'");
        let mut tee = Tee { input: self.from.read(name, None)?, output: &mut upload };
        let read = Reader::new(&mut tee).and_then(Reader::end);
        match read {
            Ok((_, trailer)) if trailer.total_checksum() == Some(total) => {}
            Ok(_) => return Err(self.damaged(name, "has changed since it was found")),
            Err(error @ FormatError::Io(_)) => return Err(error).with_context(context),
            Err(error) => return Err(self.damaged(name, &format!("is damaged: {error}"))),
        }
        std::io::copy(&mut tee, &mut std::io::sink()).with_context(context)?;
        Ok(upload.commit()?)
    }
}

/// Writes what is read from it.
struct Tee<R, W> {
    input: R,
    output: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        bk_manifest::signal::check()?;
        let read = self.input.read(buffer)?;
        self.output.write_all(buffer.get(..read).unwrap_or_default())?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
