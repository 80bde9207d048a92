//! Merges the entries of a source into the document that flows by.

use std::io::Write;

use crate::entry::{Entry, Kind};
use crate::exit::{Exit, Failure, fail};
use crate::left_out::LeftOut;
use crate::manifest::{Component, Header, Run, Source, SourceKind, Status, Trailer, is_within};
use crate::stream::{Format, Reader, Writer, copy_entries};

/// A document on its way, into which a source's entries are merged in their order.
pub struct Merge<'r, W> {
    writer: Writer<W>,
    incoming: Reader<'r>,
    /// The incoming entry that is due next, where incoming ones are waited for.
    pending: Option<Entry>,
    waits: bool,
    /// Where a bucket's objects go, which are no place for incoming entries.
    taken_by_us: Vec<Vec<u8>>,
    /// Where the objects of earlier buckets are, which are no place for ours.
    taken_by_others: Vec<Vec<u8>>,
}

impl<'r, W: Write> Merge<'r, W> {
    /// Passes on the header with the source in it, and the run that it names.
    ///
    /// # Errors
    /// [`Exit::Usage`] for the manifest of a stored backup, for a component's name that is taken, for
    /// paths that would meet those of an earlier source.
    pub fn begin(
        mut incoming: Reader<'r>,
        output: W,
        source: Source,
    ) -> anyhow::Result<(Self, Run)> {
        let mut header = incoming.header().clone();
        refuse_stored(&header)?;
        let mut run = header.run()?;
        check_overlap(&run, &source)?;
        let is_listed = |source: &&Source| source.kind != SourceKind::Stage;
        // Before a first listed source there are only dumps, which come last: no need to wait for
        // them.
        let waits = run.sources.iter().any(|source| is_listed(&source));
        let buckets = run.sources.iter().filter(|earlier| earlier.kind == SourceKind::Bucket);
        let taken_by_others = buckets.flat_map(Source::areas).collect();
        let taken_by_us = match source.kind {
            SourceKind::Bucket => source.areas(),
            SourceKind::Tree | SourceKind::Stage => Vec::new(),
        };
        run.sources.push(source);
        header.set_run(&run);
        let writer = Writer::new(output, Format::Json, header)?;
        let pending = if waits { incoming.next_entry()? } else { None };
        let merge = Merge { writer, incoming, pending, waits, taken_by_us, taken_by_others };
        Ok((merge, run))
    }

    /// Passes on what comes before an entry of the source, then that.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a path that is there already, or lies among the objects of a bucket.
    pub fn entry(&mut self, entry: &Entry) -> anyhow::Result<()> {
        refuse_among(&self.taken_by_others, entry)?;
        while let Some(pending) = &self.pending {
            if pending.path > entry.path {
                break;
            }
            let is_same = pending.path == entry.path;
            if is_same && !(pending.kind == Kind::Directory && entry.kind == Kind::Directory) {
                let message = format!("'{}' is in the manifest already", entry.path);
                return Err(fail(Exit::Usage, message));
            }
            refuse_among(&self.taken_by_us, pending)?;
            self.writer.entry(pending)?;
            self.pending = self.incoming.next_entry()?;
            if is_same {
                return Ok(());
            }
        }
        Ok(self.writer.entry(entry)?)
    }

    /// Passes on the rest, records the component and what was left out, and ends the document;
    /// returns the code that it now carries.
    ///
    /// `describe` adds to the component's record what its kind has to say.
    ///
    /// # Errors
    /// A malformed document; [`Exit::Usage`] for a component that is there and of another kind.
    pub fn end(
        mut self,
        component: &str,
        kind: &str,
        left_out: LeftOut,
        describe: impl FnOnce(&mut Component),
    ) -> anyhow::Result<Exit> {
        if self.waits {
            while let Some(pending) = self.pending.take() {
                refuse_among(&self.taken_by_us, &pending)?;
                self.writer.entry(&pending)?;
                self.pending = self.incoming.next_entry()?;
            }
        }
        copy_entries(&mut self.incoming, &mut self.writer)?;
        let (_, mut trailer) = self.incoming.end()?;
        let mine = if left_out.has_fault() { Exit::Partial } else { Exit::Done };
        let status = if left_out.has_fault() { Status::Partial } else { Status::Complete };
        record(&mut trailer, component, kind, status, describe)?;
        trailer.leave_out(left_out)?;
        let exit = trailer.worsen(mine)?;
        self.writer.end(trailer)?;
        Ok(exit)
    }
}

/// Refuses to add to what lies at a destination already.
///
/// # Errors
/// [`Exit::Usage`].
pub fn refuse_stored(header: &Header) -> anyhow::Result<()> {
    if header.backup()?.is_some_and(|backup| backup.kind.is_some()) {
        return Err(Failure::new(Exit::Usage, "the manifest is that of a stored backup")
            .hint("begin a new one: bk-manifest new --app NAME | bk-manifest add --root DIR | …")
            .into());
    }
    Ok(())
}

/// The error of a component's name that another component has.
pub fn taken(component: &str) -> anyhow::Error {
    fail(Exit::Usage, format!("the component '{component}' is there already"))
}

fn refuse_among(areas: &[Vec<u8>], entry: &Entry) -> anyhow::Result<()> {
    if areas.iter().any(|area| is_within(entry.path.as_bytes(), area)) {
        let message = format!("'{}' would lie among the objects of a bucket", entry.path);
        return Err(Failure::new(Exit::Usage, message)
            .hint("give the bucket another name: bk-push add --as NAME")
            .into());
    }
    Ok(())
}

/// Refuses a source whose paths would meet those of an earlier one, and a component's name that is
/// taken: several trees may be one component, nothing else may.
fn check_overlap(run: &Run, source: &Source) -> anyhow::Result<()> {
    for earlier in &run.sources {
        let are_trees = earlier.kind == SourceKind::Tree && source.kind == SourceKind::Tree;
        if !are_trees && earlier.component == source.component {
            return Err(taken(&source.component));
        }
        if earlier.kind == SourceKind::Stage {
            continue;
        }
        for (mine, theirs) in source
            .areas()
            .iter()
            .flat_map(|mine| earlier.areas().into_iter().map(move |t| (mine, t)))
        {
            // A tree taken as a whole may have nothing where a bucket's objects go: its entries tell.
            let is_told_by_entries = !are_trees && (mine.is_empty() || theirs.is_empty());
            if !is_told_by_entries && (is_within(mine, &theirs) || is_within(&theirs, mine)) {
                return Err(Failure::new(
                    Exit::Usage,
                    "the paths of this source meet those of an earlier one",
                )
                .hint("give one of them a name of its own: --as PREFIX")
                .into());
            }
        }
    }
    Ok(())
}

/// Records a component; a further source of one that is there changes its status only.
fn record(
    trailer: &mut Trailer,
    component: &str,
    kind: &str,
    status: Status,
    describe: impl FnOnce(&mut Component),
) -> anyhow::Result<()> {
    let mut components = trailer.components()?;
    if components.iter().all(|known| known.name != component) {
        components.push(Component {
            name: component.to_owned(),
            kind: kind.to_owned(),
            status,
            extra: serde_json::Map::new(),
        });
    }
    if let Some(known) = components.iter_mut().find(|known| known.name == component) {
        if known.kind != kind || known.status == Status::Skipped {
            return Err(taken(component));
        }
        if status == Status::Partial {
            known.status = status;
        }
        describe(known);
    }
    trailer.set_components(&components);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{HostPath, Layout};

    fn source(kind: SourceKind, component: &str, prefix: &str, paths: &[&str]) -> Source {
        Source {
            component: component.into(),
            kind,
            root: HostPath(b"/x".to_vec()),
            prefix: HostPath(prefix.into()),
            paths: paths.iter().map(|path| HostPath(path.as_bytes().to_vec())).collect(),
            access: None,
            layout: Layout::Packed,
        }
    }

    fn meets(first: &Source, second: &Source) -> bool {
        let run = Run { sources: vec![first.clone()], ..Run::default() };
        check_overlap(&run, second).is_err()
    }

    #[test]
    fn trees_that_meet_are_refused() {
        let tree = |prefix, paths: &[_]| source(SourceKind::Tree, "files", prefix, paths);
        for (first, second, is_refused) in [
            (tree("", &[]), tree("", &["a"]), true),
            (tree("", &["a"]), tree("", &["b"]), false),
            (tree("", &["a"]), tree("", &["a/b"]), true),
            (tree("", &["a"]), tree("", &["ab"]), false),
            (tree("p", &[]), tree("q", &[]), false),
            (tree("p", &["a"]), tree("p/a", &[]), true),
        ] {
            assert_eq!(meets(&first, &second), is_refused, "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_bucket_has_a_name_and_a_place_of_its_own() {
        let bucket = |name| source(SourceKind::Bucket, name, name, &[]);
        for (first, second, is_refused) in [
            (source(SourceKind::Tree, "files", "", &[]), bucket("minio"), false),
            (source(SourceKind::Tree, "files", "", &["minio"]), bucket("minio"), true),
            (source(SourceKind::Tree, "minio", "", &[]), bucket("minio"), true),
            (source(SourceKind::Stage, "minio", ".bk/minio", &[]), bucket("minio"), true),
            (bucket("minio"), bucket("minio"), true),
            (bucket("minio"), bucket("other"), false),
            (bucket("minio"), source(SourceKind::Tree, "files", "", &["minio/x"]), true),
            (bucket("minio"), source(SourceKind::Tree, "files", "", &[]), false),
        ] {
            assert_eq!(meets(&first, &second), is_refused, "{first:?} {second:?}");
        }
    }
}
