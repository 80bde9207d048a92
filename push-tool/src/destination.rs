//! What a destination promises, whatever kind it is.

use std::io::{Read, Write};
use std::ops::Range;

use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::time::Time;

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name below the destination's root, `/` between parts.
    pub name: String,
    /// Bytes as stored.
    pub size: u64,
    /// When it was stored, by the store's own clock.
    pub modified: Time,
}

/// What kind of error it is; this decides whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such object.
    NotFound,
    /// The name is taken.
    Exists,
    /// Access was denied.
    Denied,
    /// No space is left.
    Full,
    /// A passing fault: trying again may help.
    Transient,
    /// It is there, but in an archive that must bring it back before it can be read.
    Archived,
    /// Anything else.
    Other,
}

/// An operation on an object failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}'{place}'", at(name))]
pub struct Error {
    /// What kind it is.
    pub kind: ErrorKind,
    /// What was being done: `read`, `store`, …
    pub verb: &'static str,
    /// The object; empty for the destination as a whole.
    pub name: String,
    /// The destination.
    pub place: String,
    /// Why; a [`Failure`] where the kind has an exit code of its own.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

fn at(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("'{name}' at ") }
}

impl Error {
    /// Says what was being stored, unless a destination has: some store while they are written to.
    pub(crate) fn name_once(
        error: impl Into<anyhow::Error>,
        storing: impl FnOnce() -> String,
    ) -> anyhow::Error {
        let error = error.into();
        if Error::among(error.as_ref()).is_some() { error } else { error.context(storing()) }
    }

    /// Whether trying the same again may help.
    pub fn may_retry(&self) -> bool {
        self.kind == ErrorKind::Transient
    }

    /// Whether the destination does not let the object be judged: what it holds is not known.
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind, ErrorKind::Denied | ErrorKind::Transient)
    }

    /// Whether one object is there and not to be read, whatever else is.
    pub fn is_withheld(&self) -> bool {
        matches!(self.kind, ErrorKind::Denied | ErrorKind::Archived)
    }

    /// The destination's error among an error and its causes, also inside of an [`std::io::Error`].
    pub fn among<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            let found = error.downcast_ref().or_else(|| inner?.downcast_ref());
            if found.is_some() {
                return found;
            }
            next = error.source();
        }
        None
    }
}

/// The cause of an [`Error`] of this kind, with its exit code where it has one.
pub fn cause(
    kind: ErrorKind,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Box<dyn std::error::Error + Send + Sync> {
    let error = error.into();
    match kind {
        ErrorKind::Denied => Failure::new(Exit::Denied, error.to_string()).into(),
        _ => error,
    }
}

/// Result of an operation on an object.
pub type Result<T> = std::result::Result<T, Error>;

/// Objects of a listing, one by one.
pub type Listing<'a> = Box<dyn Iterator<Item = Result<ObjectInfo>> + 'a>;

/// What became of a create-only put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object is new and ours.
    New,
    /// The name was taken; the object there was left alone.
    Taken,
}

/// What a push does to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stores an object of `size` bytes that was announced with `bound`.
    Put {
        /// What [`Destination::put`] is told.
        bound: u64,
        /// Bytes.
        size: u64,
    },
    /// It stores a small object unless its name is taken.
    Create,
    /// It removes so many.
    Delete(u64),
    /// It reads the clock.
    Clock,
}

/// An object being stored: written, then committed.
///
/// Dropped before [`Upload::commit`], it leaves nothing under its name.
pub trait Upload: Write + Send {
    /// Gives the object its name, all at once, once its bytes are safe.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] for a taken name: nothing stored is ever overwritten.
    fn commit(self: Box<Self>) -> Result<()>;
}

/// A place where objects are kept.
///
/// Names are relative paths of plain text. An object appears whole or not at all, and is not
/// changed once it is there. All calls may come from several threads.
pub trait Destination: Send + Sync {
    /// How it is called in messages.
    fn describe(&self) -> String;

    /// All objects below a folder (`""` for the root), in no particular order, as a stream.
    ///
    /// A folder that is not there is empty. Unfinished uploads are not objects.
    fn list(&self, folder: &str) -> Result<Listing<'_>>;

    /// The object's size and time; `None` if there is none of that name.
    fn stat(&self, name: &str) -> Result<Option<ObjectInfo>>;

    /// Opens an object, or a range of its bytes, for reading.
    ///
    /// An object that ends before the range does gives a short read, which is not an error here:
    /// who asked knows how many bytes were due.
    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Box<dyn Read + Send + '_>>;

    /// Begins to store an object of about `bound` bytes at most: what stores that take an object in
    /// parts need to know before the first one.
    fn put(&self, name: &str, bound: u64) -> Result<Box<dyn Upload + '_>>;

    /// Stores a small object unless its name is taken. Of several at once, one gets [`Created::New`].
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Created>;

    /// Removes objects, as many as it can; one that is not there counts as removed.
    ///
    /// Returns those that could not be removed.
    fn delete(&self, names: &[String]) -> Vec<Error>;

    /// The store's own clock: what [`ObjectInfo::modified`] of an object stored now would be.
    fn now(&self) -> Result<Time>;

    /// The object's checksum as the store itself computes it now, where it can: the bytes need not come
    /// here.
    fn checksum(&self, name: &str) -> Result<Option<Digest>> {
        let _ = name;
        Ok(None)
    }

    /// Removes what uploads that died left behind, if begun before `before`; returns how many.
    fn sweep(&self, before: Time) -> Result<u64>;

    /// Takes a series for one run, where the kind of destination has such a lock. Only a courtesy:
    /// several series are pushed at once.
    ///
    /// # Errors
    /// [`Exit::Busy`] if another run has it.
    fn lock(&self, series: &str, holder: &str) -> anyhow::Result<Option<bk_manifest::lock::Lock>>;

    /// What this destination cannot do that others can, or threatens to do with what is stored: a line
    /// each for the user. May take a few requests, so it is asked once a run.
    fn limits(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether what is removed goes on taking space as an old version, until the store's own rules remove
    /// it. May take a request; one that may not be asked counts as no.
    fn keeps_versions(&self) -> bool {
        false
    }

    /// How many small requests are worth sending at once: many where each mostly waits for an answer.
    fn at_once(&self) -> usize {
        1
    }

    /// Requests that were sent so far, where they are counted: some stores charge for each.
    fn requests(&self) -> Option<u64> {
        None
    }

    /// About how many requests a change takes, where they are counted.
    fn requests_of(&self, change: Change) -> u64 {
        let _ = change;
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_object_or_else_the_destination() {
        let text = |verb, name: &str| {
            let (kind, source) = (ErrorKind::Other, "broken".into());
            let (name, place) = (name.to_owned(), "s3://b".to_owned());
            Error { kind, verb, name, place, source }.to_string()
        };
        assert_eq!(text("read", "a/b"), "cannot read 'a/b' at 's3://b'");
        assert_eq!(text("list", ""), "cannot list 's3://b'");
    }
}
