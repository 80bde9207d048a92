//! Looks at objects: are they there, and are their bytes what they were.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bk_manifest::digest::Digest;
use bk_manifest::manifest::ObjectRecord;
use bk_manifest::progress::Progress;
use bk_manifest::stream::{Error as FormatError, Reader};
use bk_push::destination::{Destination, Error, ErrorKind, ObjectInfo};
use bk_push::mark;
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

/// Looks whether every object is there with its size; one listing for each folder.
///
/// # Errors
/// Those of the listings.
pub fn present(
    destination: &dyn Destination,
    folders: &BTreeSet<&str>,
    targets: &[Target],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut sizes: HashMap<&str, Option<u64>> =
        targets.iter().map(|target| (target.name.as_str(), None)).collect();
    for folder in folders {
        for object in destination.list(folder)? {
            bk_manifest::signal::check()?;
            let object = object?;
            if let Some(size) = sizes.get_mut(object.name.as_str()) {
                *size = Some(object.size);
            }
        }
    }
    for target in targets {
        match sizes.get(target.name.as_str()).copied().flatten() {
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
        match destination.read(&target.name, Some(0..1)) {
            Err(error) if error.kind == ErrorKind::Denied => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Warns of objects that a prune has announced to remove.
pub fn warn_of_marks(destination: &dyn Destination, names: &[&str], progress: &dyn Progress) {
    let marks = match mark::read_all(destination) {
        Ok(marks) => marks,
        Err(error) => {
            progress.warn(&format!("cannot read the marks of prune: {error:#}"));
            return;
        }
    };
    let marked = mark::marked_names(&marks);
    let mut hits = names.iter().filter(|name| marked.contains(*name));
    for name in hits.by_ref().take(NAME_LIMIT) {
        progress.warn(&format!("'{name}' is marked for removal by a prune"));
    }
    match hits.count() {
        0 => {}
        more => progress.warn(&format!("and {more} more are marked for removal")),
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
        let problem = read_one(destination, target, &bytes, progress)?;
        if let (Some(problem), Ok(mut problems)) = (problem, problems.lock()) {
            problems.push(problem);
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

fn read_one(
    destination: &dyn Destination,
    target: &Target,
    bytes: &AtomicU64,
    progress: &dyn Progress,
) -> anyhow::Result<Option<Problem>> {
    let problem = |fault, detail: String| Ok(Some(Problem::of_object(fault, &target.name, detail)));
    let failed = |error: Error| match error.kind {
        ErrorKind::NotFound => problem(Fault::Missing, "is missing".into()),
        ErrorKind::Denied | ErrorKind::Transient => Err(error.into()),
        _ => problem(Fault::Unreadable, format!("cannot be read: {}", error.source)),
    };
    let read = match destination.checksum(&target.name) {
        Err(error) => return failed(error),
        Ok(Some(checksum)) => {
            // The size was compared when the object was found.
            bytes.fetch_add(target.record.size, Ordering::Relaxed);
            progress.advance(target.record.size, 0);
            Ok((checksum, target.record.size))
        }
        Ok(None) => match destination.read(&target.name, None) {
            Err(error) => return failed(error),
            Ok(stored) => Digest::of_reader(Counted { inner: stored, bytes, progress }),
        },
    };
    bk_manifest::signal::check()?;
    progress.advance(0, 1);
    match read {
        Err(error) => problem(Fault::Unreadable, format!("cannot be read: {error}")),
        Ok((_, size)) if size != target.record.size => {
            problem(Fault::Size, format!("has {size} bytes instead of {}", target.record.size))
        }
        Ok((checksum, _)) if checksum != target.record.checksum => {
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
