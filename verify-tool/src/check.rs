//! Looks at objects: are they there, and are their bytes what they were.

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bk_manifest::digest::Digest;
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::progress::Progress;
use bk_manifest::stream::{Error as FormatError, Reader};
use bk_push::destination::{Destination, Error, ErrorKind, ObjectInfo};
use bk_push::mark::{self, Marked};
use bk_push::plain::{Listed, StoredSum};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use crate::problem::{Fault, Findings, NAME_LIMIT, Problem};

/// An object to look at.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name at the destination.
    pub name: String,
    /// What the manifest says of it.
    pub record: ObjectRecord,
    /// Whether its bytes are to be read.
    pub is_read: bool,
}

/// Lists folders; one that lies in another of them is not listed again.
///
/// # Errors
/// Those of the listings and of the temporary files.
pub fn list(destination: &dyn Destination, folders: &BTreeSet<&str>) -> anyhow::Result<Listed> {
    let mut listed = Listed::default();
    for folder in folders {
        let is_above = |above: &str| {
            above.is_empty() || folder.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
        };
        if !folders.iter().any(|other| other != folder && is_above(other)) {
            listed.add(destination, folder)?;
        }
    }
    Ok(listed)
}

/// Looks whether every object is there with its size.
///
/// # Errors
/// Those of the temporary files.
pub fn present(listed: &Listed, targets: &[Target], findings: &mut Findings) -> anyhow::Result<()> {
    for target in targets {
        match listed.size(&target.name)? {
            None => findings.add(Problem::of_object(Fault::Missing, &target.name, "is missing")),
            Some(size) if size != target.record.size => findings.add(Problem::of_object(
                Fault::Size,
                &target.name,
                format!("has {size} bytes instead of {}", target.record.size),
            )),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Tries that objects may be read at all, where only parts of them will be.
///
/// # Errors
/// Denied access.
pub fn accessible(destination: &dyn Destination, targets: &[Target]) -> anyhow::Result<()> {
    for target in targets {
        bk_manifest::signal::check()?;
        is_accessible(destination, &target.name)?;
    }
    Ok(())
}

/// Tries that an object may be read at all.
///
/// # Errors
/// Denied access.
pub fn is_accessible(destination: &dyn Destination, name: &str) -> anyhow::Result<()> {
    match destination.read(name, Some(0..1)) {
        Err(error) if error.kind == ErrorKind::Denied => Err(error.into()),
        _ => Ok(()),
    }
}

/// Warns of objects that a prune has announced to remove.
pub struct MarkWarnings<'a> {
    marked: Marked,
    hits: usize,
    progress: &'a dyn Progress,
}

impl<'a> MarkWarnings<'a> {
    /// Reads what prunes have announced; that it cannot be read is a warning.
    pub fn read(destination: &dyn Destination, progress: &'a dyn Progress) -> Self {
        let marked = mark::read_all(destination).and_then(|marks| Marked::of(&marks));
        let marked = marked.unwrap_or_else(|error| {
            progress.warn(&format!("cannot read the marks of prune: {error:#}"));
            Marked::default()
        });
        MarkWarnings { marked, hits: 0, progress }
    }

    /// Warns if it is one of them.
    pub fn look(&mut self, name: &str) {
        if self.marked.contains(name).unwrap_or_default() {
            self.hits += 1;
            if self.hits <= NAME_LIMIT {
                self.progress.warn(&format!("'{name}' is marked for removal by a prune"));
            }
        }
    }

    /// Says how many more there were.
    pub fn end(self) {
        match self.hits.saturating_sub(NAME_LIMIT) {
            0 => {}
            more => self.progress.warn(&format!("and {more} more are marked for removal")),
        }
    }
}

/// Reads the stored manifest to its end.
///
/// # Errors
/// Denied access, being stopped; what is wrong with the manifest goes into `findings`.
pub fn manifest(
    destination: &dyn Destination,
    object: &ObjectInfo,
    total: Digest,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let stored = match destination.read(&object.name, None) {
        Ok(stored) => stored,
        Err(error) if error.kind == ErrorKind::NotFound => {
            findings.add(Problem::of_object(Fault::BadManifest, &object.name, "is gone"));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let read = Reader::new(stored).and_then(Reader::end);
    bk_manifest::signal::check()?;
    match read {
        Ok((_, trailer)) if trailer.total_checksum() == Some(total) => {}
        Ok(_) => findings.add(Problem::of_object(
            Fault::OtherManifest,
            &object.name,
            "has changed since it was found",
        )),
        Err(FormatError::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(FormatError::Io(error).into());
        }
        Err(error) => findings.add(Problem::of_object(
            Fault::BadManifest,
            &object.name,
            format!("cannot be read to its end: {:#}", anyhow::Error::from(error)),
        )),
    }
    Ok(())
}

/// Reads objects and compares their bytes with their checksums, several at once.
///
/// Those that have a problem of their presence are passed over. Returns how many objects and bytes
/// were read.
///
/// # Errors
/// Denied access, a passing fault, being stopped; what is wrong with an object goes into `findings`.
pub fn stored(
    destination: &dyn Destination,
    targets: &[Target],
    findings: &mut Findings,
    progress: &dyn Progress,
) -> anyhow::Result<(u64, u64)> {
    let faulty: HashSet<String> =
        findings.problems().iter().filter_map(|p| p.object().map(str::to_owned)).collect();
    let due: Vec<&Target> =
        targets.iter().filter(|t| t.is_read && !faulty.contains(&t.name)).collect();
    if due.is_empty() {
        return Ok((0, 0));
    }
    let total = due.iter().fold(0u64, |sum, target| sum.saturating_add(target.record.size));
    let bytes = AtomicU64::new(0);
    let problems = Mutex::new(Vec::new());
    progress.begin("reading objects", Some(total));
    due.par_iter().try_for_each(|target| {
        let stored = StoredSum { checksum: target.record.checksum, size: target.record.size };
        let fault = read_one(destination, &target.name, stored, &bytes, progress)?;
        if let (Some((fault, detail)), Ok(mut problems)) = (fault, problems.lock()) {
            problems.push(Problem::of_object(fault, &target.name, detail));
        }
        anyhow::Ok(())
    })?;
    progress.end();
    let mut problems = problems.into_inner().unwrap_or_default();
    problems.sort_by(|a, b| a.object().cmp(&b.object()));
    for problem in problems {
        findings.add(problem);
    }
    Ok((due.len() as u64, bytes.into_inner()))
}

/// Reads an object and compares its bytes with what was stored; what is wrong with it.
///
/// # Errors
/// Denied access, a passing fault, being stopped.
pub fn read_one(
    destination: &dyn Destination,
    name: &str,
    stored: StoredSum,
    bytes: &AtomicU64,
    progress: &dyn Progress,
) -> anyhow::Result<Option<(Fault, String)>> {
    let problem = |fault, detail: String| Ok(Some((fault, detail)));
    let failed = |error: Error| match error.kind {
        ErrorKind::NotFound => problem(Fault::Missing, "is missing".into()),
        _ if error.is_refusal() => Err(error.into()),
        _ => problem(Fault::Unreadable, format!("cannot be read: {}", error.source)),
    };
    let read = match destination.checksum(name) {
        Err(error) => return failed(error),
        Ok(Some(checksum)) => {
            // The size was compared when the object was found.
            bytes.fetch_add(stored.size, Ordering::Relaxed);
            progress.advance(stored.size, 0);
            Ok((checksum, stored.size))
        }
        Ok(None) => match destination.read(name, None) {
            Err(error) => return failed(error),
            Ok(content) => Digest::of_reader(Counted { inner: content, bytes, progress }),
        },
    };
    bk_manifest::signal::check()?;
    progress.advance(0, 1);
    match read {
        Err(error) if Error::among(&error).is_some_and(Error::is_refusal) => Err(error.into()),
        Err(error) => problem(Fault::Unreadable, format!("cannot be read: {error}")),
        Ok((_, size)) if size != stored.size => {
            problem(Fault::Size, format!("has {size} bytes instead of {}", stored.size))
        }
        Ok((checksum, _)) if checksum != stored.checksum => {
            problem(Fault::Checksum, "does not have its checksum".into())
        }
        Ok(_) => Ok(None),
    }
}

/// Tells the progress how many bytes were read.
pub(crate) struct Counted<'a, R> {
    pub(crate) inner: R,
    pub(crate) bytes: &'a AtomicU64,
    pub(crate) progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        self.progress.advance(read as u64, 0);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use crate::level::Level;
    use crate::sample::{Sample, at_level, path, replace};
    use bk_manifest::entry::Entry;
    use bk_manifest::exit::Exit;

    #[test]
    fn damage_in_the_middle_of_a_long_manifest_is_found_by_reading_it() {
        let sample = Sample::new();
        let mut made = Sample::new().parent;
        let names = (0..20_000).map(|number| format!("x/{number:06}{}", "y".repeat(40)));
        made.entries.extend(names.map(|name| Entry::new(path(&name))));
        made.entries.sort_by(|a, b| a.path.cmp(&b.path));
        let document = made.stored();
        let mut stored = document.clone();
        // Neither end, which is all that finding the backup looks at, has changed.
        let middle = stored.len() / 2;
        let at = stored[middle..].iter().position(|byte| *byte == b'y').unwrap();
        stored[middle + at] = b'z';
        replace(&sample.file(&sample.parent, "manifest.json"), &stored);
        assert_eq!(sample.verify(&document, &at_level(Level::Present)).exit(), Exit::Done);
        let ran = sample.verify(&document, &at_level(Level::Stored));
        assert_eq!(ran.exit(), Exit::Malformed, "{:?}", ran.result);
        assert!(!ran.is_ended());
        assert!(ran.has_said("cannot be read to its end"), "{:?}", ran.said);
    }
}
