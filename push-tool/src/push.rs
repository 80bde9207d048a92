//! Stores a backup: objects first, its manifest last.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;

use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::left_out::LeftOut;
use bk_manifest::manifest::{
    Backup, Component, EndRun, Header, MISSING, ObjectRecord, PlainRecord, Pushed, Run, Status,
    Trailer,
};
use bk_manifest::progress::{Progress, human_bytes};
use bk_manifest::shrink::MaxShrink;
use bk_manifest::spool::Entries;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use serde_json::json;

use crate::base::Base;
use crate::bucket::Connect;
use crate::commit::Needs;
use crate::describe::SideFiles;
use crate::destination::{Destination, Error, Upload};
use crate::encrypt::Choice;
use crate::known::KnownContent;
use crate::pack::{Contents, LARGE_BYTES, Live, Packed, Packer, Tools, Totals};
use crate::partial::Begun;
use crate::plain::StoredSum;
use crate::source::Sources;
use crate::store::Store;
use crate::upload::{PartialWriter, StoppedStoring, Uploader};
use crate::{links, place, secrets, vanished};

/// How often what turned out to be marked or gone is stored again before the push gives up.
const PASSES: usize = 4;

/// How a backup is pushed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Store everything, whatever the parent has.
    pub full: bool,
    /// The form of the stored manifest.
    pub format: Format,
    /// How components are encrypted.
    pub encryption: Choice,
    /// Refuse a backup that lacks a component of its parent, unless there is no limit.
    pub max_shrink: MaxShrink,
    /// Refuse components that hold secrets and are not encrypted.
    pub refuses_plain_secrets: bool,
    /// Store nothing, and only say what would be stored; the destination is to be a
    /// [`DryRun`](crate::dry_run::DryRun).
    pub is_dry: bool,
    /// The file with the key that opens encrypted backups, where this host has it.
    pub identity: Option<PathBuf>,
}

/// Reads a document, stores what it lists, commits it, and writes the document as it was stored.
///
/// `connect` opens the buckets that the document's entries come from.
///
/// # Errors
/// A malformed document, a destination that is busy, gone or full: no backup exists then, and
/// earlier ones are as they were.
pub fn push(
    mut incoming: Reader<'_>,
    mut output: impl Write,
    store: &Store,
    options: &Options,
    connect: Connect<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let destination = &*store.destination;
    let header = incoming.header().clone();
    let run = header.run()?;
    secrets::check(&run, options, progress)?;
    let backup = header.the_backup()?;
    let folder = place::folder_of(&backup)?;
    let host = backup.host.clone().unwrap_or_default();
    let series = header.series()?;
    let lock = destination
        .lock(&series, &format!("bk-push {} from {host}, since {}", backup.id, Time::now()))?;
    if destination.list(&folder)?.next().transpose()?.is_some() {
        let message = format!("this manifest was pushed before: '{folder}' is there already");
        return Err(Failure::new(Exit::Failed, message)
            .hint("begin again with bk-manifest new; what that push stored is used")
            .into());
    }
    for limit in destination.limits() {
        progress.warn(&limit);
    }
    let mut base = Base::default();
    let parent_file = if options.full {
        None
    } else {
        base.add_parent(store, &run, &options.encryption, progress)?
    };
    let mut known = KnownContent::new(LARGE_BYTES, parent_file.filter(|_| base.has_parent))?;
    base.add_dead_pushes(destination, &series, &mut known, progress)?;
    base.drop_marked(destination)?;

    let begun =
        Begun { id: backup.id.clone(), series: header.series()?, folder: folder.clone(), host };
    let partial = PartialWriter::begin(destination, &begun, store.grace())?;
    let mut push = Push {
        sources: Sources::open(&run, connect)?,
        encryption: &options.encryption,
        base,
        known,
        partial,
        last_volume: 0,
        own: BTreeMap::new(),
        own_plain: (0, 0),
        lost: BTreeSet::new(),
        left_out: LeftOut::default(),
        faults: BTreeSet::new(),
        missing: BTreeMap::new(),
        totals: Totals::default(),
        progress,
    };
    progress.begin("storing", None);
    let mut next = || -> anyhow::Result<Option<Entry>> {
        let Some(mut entry) = incoming.next_entry()? else { return Ok(None) };
        // A place in "this" backup is one at another destination: this one has stored nothing yet.
        if options.full || entry.at.as_ref().is_some_and(|at| at.backup.is_none()) {
            entry.at = None;
        }
        Ok(Some(entry))
    };
    let mut packed = push.pass(&mut next)?;
    let (_, trailer) = incoming.end()?;
    vanished::check(options.max_shrink, &run, &trailer)?;
    let looked = push.settle_all(destination, &folder, &mut packed)?;
    progress.end();
    let Stored { entries, contents } = packed;
    push.sources.check_stored(&entries)?;
    push.blame_missing(&contents);
    let mut document = push.document(header, trailer, &folder, &contents, options)?;
    let (objects, plain) = push.needs(&folder, &document)?;
    let needs = Needs { objects, plain: &plain, entries: &entries };
    let (place, upload) = put_manifest(store, &folder, &entries, &mut document, options.format)?;
    let looked = needs.look_again(store, looked)?;
    upload.commit()?;
    needs.confirm(store, &place, looked, false)?;

    let (objects, stored) = push.stored();
    for error in push.partial.remove() {
        progress.warn(&format!("{:#}", anyhow::Error::from(error)));
    }
    let requests = destination.requests().map(|count| format!(", {count} requests"));
    let requests = requests.unwrap_or_default();
    let (id, read) = (&backup.id, human_bytes(push.totals.stored));
    if options.is_dry {
        let there = human_bytes(push.totals.inherited);
        writeln!(
            output,
            "would store {id} of {series}: {objects} objects, {}, for {read} of content; {there} are \
             there already{requests}",
            human_bytes(stored)
        )?;
        output.flush()?;
        return Ok(document.trailer.exit()?);
    }
    push.sources.remove_staged(&entries, progress)?;
    drop(lock);
    progress.note(&format!("stored {id} of {series} ({read}{requests})"));
    let pushed = Pushed {
        id: backup.id,
        objects,
        elsewhere: 0,
        stored,
        read: push.totals.stored,
        inherited: push.totals.inherited,
    };
    print(output, document, &entries, run, pushed, place, &store.marker.id)
}

/// A push under way.
struct Push<'a> {
    sources: Sources,
    encryption: &'a Choice,
    base: Base,
    known: KnownContent,
    partial: PartialWriter<'a>,
    last_volume: u32,
    /// What this push has stored, by name in the backup's folder.
    own: BTreeMap<String, ObjectRecord>,
    /// How many plain files it has stored, and their bytes as stored.
    own_plain: (u64, u64),
    /// Those of both that were found marked or gone.
    lost: BTreeSet<String>,
    left_out: LeftOut,
    /// Components of which something is missing.
    faults: BTreeSet<String>,
    /// How many files of each component were there and are not stored.
    missing: BTreeMap<String, u64>,
    totals: Totals,
    progress: &'a dyn Progress,
}

/// Entries whose content is at the destination.
struct Stored {
    entries: Entries,
    contents: Contents,
}

/// The document that is to be committed.
struct Document {
    header: Header,
    trailer: Trailer,
    objects: Vec<ObjectRecord>,
    plain: Vec<PlainRecord>,
}

impl Document {
    /// The entries as they are to be stored: those whose object is this one file, encrypted, say what
    /// is stored.
    fn entries<'a>(
        &self,
        entries: &'a Entries,
    ) -> impl Iterator<Item = anyhow::Result<Entry>> + use<'a> {
        let sums: BTreeMap<(Option<String>, String), Option<StoredSum>> = self
            .objects
            .iter()
            .map(|object| {
                let sum = StoredSum { checksum: object.checksum, size: object.size };
                let key = (object.backup.clone(), object.object.clone());
                (key, object.encryption.is_some().then_some(sum))
            })
            .collect();
        entries.iter().map(move |entry| {
            let mut entry = entry?;
            if let Some(at) = entry.at.as_mut().filter(|at| at.offset.is_none()) {
                match sums.get(&(at.backup.clone(), at.object.clone())) {
                    Some(Some(sum)) => sum.record(at),
                    Some(None) => StoredSum::forget(at),
                    // That of a plain file was recorded when it was stored.
                    None => {}
                }
            }
            Ok(entry)
        })
    }
}

/// How the objects are encrypted that a component's entries refer to: `age`, or `age, none` where some
/// are not; `None` if none is.
fn encryption(
    component: &str,
    contents: &Contents,
    objects: &[ObjectRecord],
    plain: &[PlainRecord],
) -> Option<String> {
    let objects = objects.iter().map(|object| object.encryption.as_deref());
    let plain = plain.iter().map(|record| record.encryption.as_deref());
    let is_of = |(live, _): &(&Live, Option<&str>)| live.components.contains(component);
    let objects = contents.live.values().zip(objects).filter(is_of);
    let plain = contents.plain.values().zip(plain).filter(is_of);
    let words: BTreeSet<&str> =
        objects.chain(plain).map(|(_, encryption)| encryption.unwrap_or("none")).collect();
    let is_plain = words.iter().all(|word| *word == "none");
    (!is_plain).then(|| words.into_iter().collect::<Vec<_>>().join(", "))
}

impl Push<'_> {
    /// How many objects it has stored, and their bytes as stored.
    fn stored(&self) -> (u64, u64) {
        let bytes: u64 = self.own.values().map(|object| object.size).sum();
        (self.own.len() as u64 + self.own_plain.0, bytes + self.own_plain.1)
    }

    /// Stores what entries need that is not there yet.
    fn pass(
        &mut self,
        next: &mut dyn FnMut() -> anyhow::Result<Option<Entry>>,
    ) -> anyhow::Result<Stored> {
        let (uploader, queue) = Uploader::channel();
        let partial = &mut self.partial;
        let (packed, stored) = std::thread::scope(|scope| {
            let storing = scope.spawn(move || partial.run(queue));
            let tools = Tools {
                sources: &self.sources,
                usable: &self.base.usable,
                lost: &self.lost,
                encryption: self.encryption,
                uploader: &uploader,
                progress: self.progress,
            };
            let pack = || -> anyhow::Result<Packed> {
                let mut packer = Packer::new(tools, &mut self.known, &mut self.last_volume)?;
                while let Some(entry) = next()? {
                    packer.entry(entry)?;
                }
                packer.finish()
            };
            let packed = pack();
            drop(uploader);
            let stored = storing.join().unwrap_or_else(|_| Err(anyhow::anyhow!("storing failed")));
            (packed, stored)
        });
        let packed = match (packed, stored) {
            (Err(error), Err(cause)) if error.is::<StoppedStoring>() => return Err(cause),
            (Err(error), _) => return Err(error),
            (Ok(_), Err(cause)) => return Err(cause),
            (Ok(packed), Ok(stored)) => {
                let objects = stored.objects.into_iter();
                self.own.extend(objects.map(|record| (record.object.clone(), record)));
                self.own_plain.0 += stored.plain.0;
                self.own_plain.1 += stored.plain.1;
                packed
            }
        };
        self.left_out.merge(packed.left_out);
        self.faults.extend(packed.partial);
        for (component, missing) in packed.missing {
            *self.missing.entry(component).or_default() += missing;
        }
        self.totals.stored += packed.totals.stored;
        // A further pass sees all entries again.
        self.totals.inherited = packed.totals.inherited;
        Ok(Stored { entries: packed.entries, contents: packed.contents })
    }

    /// Has everything settled, and gives hard links their places. Returns when it looked, by the store's
    /// clock.
    fn settle_all(
        &mut self,
        destination: &dyn Destination,
        folder: &str,
        stored: &mut Stored,
    ) -> anyhow::Result<Time> {
        loop {
            let looked = self.settle(destination, folder, stored)?;
            if !stored.contents.has_links {
                return Ok(looked);
            }
            let (resolved, has_orphans) = links::resolve(&stored.entries)?;
            if !has_orphans {
                stored.entries = resolved;
                return Ok(looked);
            }
            let mut again = resolved.iter();
            *stored = self.pass(&mut || again.next().transpose())?;
        }
    }

    /// Looks at the marks, then at the presence of every object that the entries need, and stores
    /// again what is marked or gone, until nothing is. Returns when it looked, by the store's clock.
    fn settle(
        &mut self,
        destination: &dyn Destination,
        folder: &str,
        stored: &mut Stored,
    ) -> anyhow::Result<Time> {
        for _ in 0..PASSES {
            let looked = destination.now()?;
            let missing = self.lose_missing(destination, folder, stored)?;
            if missing == 0 {
                return Ok(looked);
            }
            self.progress.warn(&format!(
                "{missing} objects are marked for removal or gone: storing their files again"
            ));
            let mut again = stored.entries.iter();
            let next = self.pass(&mut || again.next().transpose())?;
            drop(again);
            *stored = next;
        }
        Err(fail(Exit::Failed, "objects vanish at the destination as fast as they are stored"))
    }

    /// Counts a component as partial that is mostly gone: a file that vanishes is none's fault, but most
    /// of them do not go by chance between a listing and its reading.
    fn blame_missing(&mut self, contents: &Contents) {
        for (component, missing) in &self.missing {
            let there = contents.components.get(component).map_or(0, |held| held.files);
            if *missing > there && self.faults.insert(component.clone()) {
                self.progress.warn(&format!(
                    "{missing} of the {} files of '{component}' were gone when they were to be read",
                    missing + there
                ));
            }
        }
    }

    /// Header and trailer as they are to be stored.
    fn document(
        &self,
        mut header: Header,
        mut trailer: Trailer,
        folder: &str,
        contents: &Contents,
        options: &Options,
    ) -> anyhow::Result<Document> {
        let objects = self.objects(contents)?;
        let plain = self.plain_records(contents);
        let referred: BTreeSet<&String> = objects
            .iter()
            .filter_map(|object| object.backup.as_ref())
            .chain(plain.iter().filter_map(|record| record.backup.as_ref()))
            .collect();
        let chain: BTreeMap<&String, String> = referred
            .iter()
            .filter_map(|backup| {
                Some((*backup, place::relative(folder, self.base.folders.get(*backup)?)))
            })
            .collect();
        let kind = if referred.is_empty() { "full" } else { "incremental" };
        let mut backup: Backup = header.the_backup()?;
        backup.kind = Some(kind.into());
        if options.full || !self.base.has_parent {
            backup.parent_backup_id = None;
        }
        header.set("backup", json!(backup));
        header.set("chain", json!(chain));
        let mut components = trailer.components()?;
        for name in contents.components.keys() {
            if !components.iter().any(|component| component.name == *name) {
                components.push(Component {
                    name: name.clone(),
                    kind: "tree".into(),
                    status: Status::Complete,
                    extra: serde_json::Map::new(),
                });
            }
        }
        for component in &mut components {
            let held = contents.components.get(&component.name).copied().unwrap_or_default();
            component.extra.insert("count".into(), held.entries.into());
            component.extra.insert("size".into(), held.bytes.into());
            component.extra.remove(MISSING);
            if self.faults.contains(&component.name) {
                component.status = Status::Partial;
            }
            // What the next backup is compared with is what was there.
            let missing = self.missing.get(&component.name);
            if let Some(missing) = missing.filter(|_| component.status == Status::Partial) {
                component.extra.insert(MISSING.into(), (*missing).into());
            }
            component.extra.remove("encryption");
            if let Some(how) = encryption(&component.name, contents, &objects, &plain) {
                component.extra.insert("encryption".into(), how.into());
            }
        }
        trailer.set_components(&components);
        trailer.leave_out(self.left_out.clone())?;
        let lines = objects.iter().map(|object| json!(object));
        trailer.set("objects", lines.chain(plain.iter().map(|record| json!(record))).collect());
        trailer.worsen(if self.faults.is_empty() { Exit::Done } else { Exit::Partial })?;
        Ok(Document { header, trailer, objects, plain })
    }
}

/// Puts the side files, then the manifest, but for its commit. Returns the manifest's name.
fn put_manifest<'a>(
    store: &'a Store,
    folder: &str,
    entries: &Entries,
    document: &mut Document,
    format: Format,
) -> anyhow::Result<(String, Box<dyn Upload + 'a>)> {
    let destination = &*store.destination;
    let [json, yaml] = place::MANIFEST_NAMES;
    let manifest = match format {
        Format::Json => json,
        Format::Yaml => yaml,
    };
    let side_files = SideFiles::new(&document.header, &document.trailer, manifest, entries)?;
    for side in place::SIDE_FILES {
        let name = place::join(folder, side);
        side_files.put(side, destination.put(&name, side_files.bound())?, &name)?;
    }
    let name = place::join(folder, manifest);
    let ends = (1 << 20) + document.objects.len() as u64 * 512;
    let mut upload = destination.put(&name, entries.bytes() + ends)?;
    let storing = || format!("cannot store '{name}' at '{}'", destination.describe());
    let output = std::io::BufWriter::with_capacity(1 << 17, &mut upload);
    let mut writer = Writer::new(output, format, document.header.stored())
        .map_err(|error| Error::name_once(error, storing))?;
    for entry in document.entries(entries) {
        bk_manifest::signal::check()?;
        writer.entry(&entry?).map_err(|error| Error::name_once(error, storing))?;
    }
    let (output, stored) =
        writer.end(document.trailer.stored()).map_err(|error| Error::name_once(error, storing))?;
    output.into_inner().map_err(|error| Error::name_once(error.into_error(), storing))?;
    document.trailer.totals = stored.totals.clone();
    if let Some(sum) = stored.total_checksum() {
        document.trailer.set("verification", {
            let mut verification =
                document.trailer.members.get("verification").cloned().unwrap_or(json!({}));
            verification["total_checksum"] = json!(sum);
            verification
        });
    }
    Ok((name, upload))
}

/// Prints the document as it was stored, with what this run did added.
fn print(
    output: impl Write,
    mut document: Document,
    entries: &Entries,
    mut run: Run,
    pushed: Pushed,
    place: String,
    destination: &str,
) -> anyhow::Result<Exit> {
    run.place = Some(place);
    run.destination = Some(destination.to_owned());
    document.header.set_run(&run);
    let stored = document.trailer.total_checksum();
    let end_run = EndRun { pushed: Some(pushed), ..document.trailer.run()? };
    document.trailer.set_run(&end_run);
    let exit = document.trailer.exit()?;
    let stored_entries = document.entries(entries);
    let mut writer = Writer::new(output, Format::Json, document.header)?;
    for entry in stored_entries {
        writer.entry(&entry?)?;
    }
    let (_, printed) = writer.end(document.trailer)?;
    anyhow::ensure!(
        printed.total_checksum() == stored,
        "the printed manifest is not the stored one"
    );
    Ok(exit)
}

mod needs;
#[cfg(test)]
mod tests;
