//! The exit codes, the same in all five tools, and the error that carries one.

use std::fmt;

/// How a tool ends, as scripts see it (DESIGN 9). An unknown code is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// All done.
    Done = 0,
    /// Failed; the output must not be used.
    Failed = 1,
    /// Wrong command line or configuration; nothing was touched.
    Usage = 2,
    /// Done and usable, but some items were left out or are lost; they are listed.
    Partial = 3,
    /// The destination or its marker is not there.
    NoDestination = 10,
    /// Another run is busy.
    Busy = 11,
    /// Wrong key or password, or access denied.
    Denied = 12,
    /// No such backup, component, table or path.
    NotFound = 13,
    /// Data differs from the manifest.
    Damaged = 20,
    /// The manifest is malformed, cut short, altered or too new.
    Malformed = 21,
    /// A verdict asked for was not met.
    Unmet = 22,
}

impl Exit {
    /// Every code with its meaning, in numeric order; README's table is tested against it.
    pub const ALL: [(Exit, &'static str); 11] = [
        (Exit::Done, "all done"),
        (Exit::Failed, "failed; the output must not be used"),
        (Exit::Usage, "wrong command line or configuration; nothing was touched"),
        (Exit::Partial, "done and usable, but items were left out or lost; they are listed"),
        (Exit::NoDestination, "destination or its marker not there"),
        (Exit::Busy, "another run is busy"),
        (Exit::Denied, "wrong key or password, or access denied"),
        (Exit::NotFound, "no such backup, component, table or path"),
        (Exit::Damaged, "data differs from the manifest"),
        (Exit::Malformed, "manifest malformed, cut short, altered or too new"),
        (Exit::Unmet, "a verdict asked for was not met"),
    ];

    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The worse of two codes that a document may carry ([`Exit::Done`] and [`Exit::Partial`]).
    #[must_use]
    pub fn worse(self, other: Exit) -> Exit {
        if self.code() >= other.code() { self } else { other }
    }
}

/// An error whose exit code is part of what it says.
#[derive(Debug)]
pub struct Failure {
    /// How the tool ends because of it.
    pub exit: Exit,
    /// What failed, on what and why: one lower-case line without a full stop.
    pub message: String,
    /// What to do about it, a line each.
    pub hints: Vec<String>,
}

impl Failure {
    /// A failure without hints.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into(), hints: Vec::new() }
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Shorthand for an [`anyhow::Error`] made of a [`Failure`].
pub fn fail(exit: Exit, message: impl Into<String>) -> anyhow::Error {
    Failure::new(exit, message).into()
}

/// The code of an error: that of the outermost [`Failure`], format error or I/O error in its chain.
///
/// A full disk, a permission or a closed pipe is an ordinary failure (1) unless the code that met it
/// said otherwise.
pub fn classify(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.exit;
        }
        if let Some(format) = cause.downcast_ref::<crate::stream::Error>() {
            return format.exit();
        }
    }
    Exit::Failed
}

/// Whether an error is a closed pipe on our own output; it is a failure without a message.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        // An I/O error's source is that of the error inside it, which so is in no chain.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<ClosedPipe>());
        inner.is_some() || cause.is::<ClosedPipe>()
    })
}

/// The reader of our standard output has gone.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed by its reader")]
pub struct ClosedPipe;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_failure_decides_the_code() {
        let error = fail(Exit::NotFound, "no backup").context("looking for the parent");
        assert_eq!(classify(&error), Exit::NotFound);
        assert_eq!(classify(&anyhow::anyhow!("disk full")), Exit::Failed);
    }

    #[test]
    fn a_closed_pipe_is_found_inside_an_io_error() {
        let error = std::io::Error::new(std::io::ErrorKind::BrokenPipe, ClosedPipe);
        assert!(is_closed_pipe(&anyhow::Error::from(error).context("writing")));
        assert!(!is_closed_pipe(&std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()));
    }

    #[test]
    fn the_worse_code_wins() {
        assert_eq!(Exit::Done.worse(Exit::Partial), Exit::Partial);
        assert_eq!(Exit::Partial.worse(Exit::Done), Exit::Partial);
    }
}
