//! What rsync, ssh and the programs on the other host say when they fail, and what it means here.

use bk_manifest::command::Finished;
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::path::escape;
use bk_manifest::progress::human_bytes;

use super::settings::Names;
use crate::destination::{Error, ErrorKind};

/// Why something could not be done over there.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Words of a failure, its kind, and the exit code if it ends the run.
const WORDS: &[(&str, ErrorKind, Option<Exit>)] = &[
    ("No space left on device", ErrorKind::Full, None),
    ("isk quota exceeded", ErrorKind::Full, None),
    ("Host key verification failed", ErrorKind::Denied, Some(Exit::Denied)),
    ("Permission denied", ErrorKind::Denied, Some(Exit::Denied)),
    ("Operation not permitted", ErrorKind::Denied, Some(Exit::Denied)),
    ("Too many authentication failures", ErrorKind::Denied, Some(Exit::Denied)),
    ("auth failed on module", ErrorKind::Denied, Some(Exit::Denied)),
    ("access denied to", ErrorKind::Denied, Some(Exit::Denied)),
    ("ead-only file system", ErrorKind::Denied, Some(Exit::Denied)),
    ("module is read only", ErrorKind::Denied, Some(Exit::Denied)),
    ("module is write only", ErrorKind::Denied, Some(Exit::Denied)),
    ("sending to read-only server", ErrorKind::Denied, Some(Exit::Denied)),
    ("reading from write-only server", ErrorKind::Denied, Some(Exit::Denied)),
    ("nknown module", ErrorKind::Other, Some(Exit::NoDestination)),
    ("is your shell clean", ErrorKind::Other, Some(Exit::NoDestination)),
    ("Could not resolve hostname", ErrorKind::Other, Some(Exit::NoDestination)),
    ("Name or service not known", ErrorKind::Other, Some(Exit::NoDestination)),
    ("Connection refused", ErrorKind::Transient, Some(Exit::NoDestination)),
    ("No route to host", ErrorKind::Transient, Some(Exit::NoDestination)),
    ("Network is unreachable", ErrorKind::Transient, Some(Exit::NoDestination)),
    ("timed out", ErrorKind::Transient, Some(Exit::NoDestination)),
    ("timeout", ErrorKind::Transient, Some(Exit::NoDestination)),
    (ONE_AT_A_TIME, ErrorKind::Transient, Some(Exit::Busy)),
    ("connection was cut", ErrorKind::Transient, None),
    ("No such file or directory", ErrorKind::NotFound, None),
];
/// What `rrsync` says while it serves another request, unless it was told not to care.
const ONE_AT_A_TIME: &str = "nother instance of rrsync is already accessing";
/// What ssh exits with when it has no connection, or lost it.
const SSH_FAILED: i32 = 255;
/// What to do about a connection that ended without a word.
const CUT: &str =
    "is it an ssh server, and does it let so many in at once (MaxStartups)? its log says more";
/// What rsync exits with when the connection broke: in a socket, in the protocol, by waiting.
const CONNECTION_LOST: [i32; 4] = [10, 12, 30, 35];

impl Fault {
    /// Of a program that failed.
    pub(super) fn of(finished: &Finished, names: &Names) -> Self {
        let said = &finished.stderr;
        let lost = finished
            .code()
            .is_some_and(|code| code == SSH_FAILED || CONNECTION_LOST.contains(&code));
        let (kind, exit) = match known(said) {
            Some(known) => known,
            None if lost => (ErrorKind::Transient, Some(Exit::NoDestination)),
            None => (ErrorKind::Other, None),
        };
        let message = if lost && finished.lines().next().is_none() {
            format!("the connection of '{}' was cut", finished.name())
        } else {
            changed_host_key(said).unwrap_or_else(|| finished.message())
        };
        let message = escape(message.as_bytes());
        let mut failure = Failure::new(exit.unwrap_or(Exit::Failed), message);
        for hint in hints(said, names) {
            failure = failure.hint(hint);
        }
        if lost && finished.lines().next().is_none() {
            failure = failure.hint(CUT);
        }
        Fault { kind, source: failure.into() }
    }

    /// One that ends the run with this code.
    pub(super) fn failure(kind: ErrorKind, failure: Failure) -> Self {
        Fault { kind, source: failure.into() }
    }

    /// The name is taken.
    pub(super) fn taken() -> Self {
        Fault { kind: ErrorKind::Exists, source: "an object of that name is there".into() }
    }

    /// There is no such object.
    pub(super) fn missing() -> Self {
        Fault { kind: ErrorKind::NotFound, source: "no such object".into() }
    }

    /// The destination's folder is not there.
    pub(super) fn no_root() -> Self {
        let failure = Failure::new(Exit::NoDestination, "the destination's folder is not there");
        Fault { kind: ErrorKind::NotFound, source: failure.into() }
    }

    /// An object is larger than what is free here, in bytes.
    pub(super) fn larger_than(free: u64) -> Self {
        let source = format!("it is larger than the {} that are free", human_bytes(free)).into();
        Fault { kind: ErrorKind::Full, source }
    }

    /// Our own disk is full: it says nothing of the object, which so is neither damaged nor lost.
    pub(super) fn no_room_here(fault: &Fault) -> Self {
        let folder = std::env::temp_dir();
        let folder = escape(folder.as_os_str().as_encoded_bytes());
        let failure = Failure::new(
            Exit::Failed,
            format!("no room in the folder of temporary files '{folder}' here: {}", fault.source),
        );
        let hint = "TMPDIR names a folder with more room";
        Fault { kind: ErrorKind::Transient, source: failure.hint(hint).into() }
    }

    /// What a program over there said of one object.
    pub(super) fn said(cause: &str) -> Self {
        let (kind, exit) = known(cause).unwrap_or((ErrorKind::Other, None));
        let failure = Failure::new(exit.unwrap_or(Exit::Failed), escape(cause.as_bytes()));
        Fault { kind, source: failure.into() }
    }

    /// Whether the host cannot be used at all.
    pub(super) fn is_of_host(&self) -> bool {
        let failure = self.source.downcast_ref::<Failure>();
        failure.is_some_and(|failure| failure.exit == Exit::NoDestination)
    }

    /// Whether trying again soon may help.
    pub(super) fn is_passing(&self) -> bool {
        self.kind == ErrorKind::Transient && !self.is_busy()
    }

    /// Whether it was refused because another request is under way.
    pub(super) fn is_busy(&self) -> bool {
        let failure = self.source.downcast_ref::<Failure>();
        failure.is_some_and(|failure| failure.exit == Exit::Busy)
    }

    /// Whether a disk is full, over there or here.
    pub(super) fn is_full(&self) -> bool {
        let local = self.source.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        self.kind == ErrorKind::Full
            || matches!(
                local,
                Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            )
    }

    /// The same for another object.
    pub(super) fn again(&self) -> Self {
        let source = match self.source.downcast_ref::<Failure>() {
            Some(Failure { exit, message, hints }) => {
                Failure { exit: *exit, message: message.clone(), hints: hints.clone() }.into()
            }
            None => self.source.to_string().into(),
        };
        Fault { kind: self.kind, source }
    }

    /// The error of an operation.
    pub(super) fn on(self, verb: &'static str, name: &str, place: &str) -> Error {
        let name = escape(name.as_bytes());
        Error { kind: self.kind, verb, name, place: place.to_owned(), source: self.source }
    }

    /// As an error without an object.
    pub(super) fn into_error(self) -> anyhow::Error {
        match self.source.downcast::<Failure>() {
            Ok(failure) => (*failure).into(),
            Err(source) => anyhow::anyhow!(source),
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        // Of this machine's own files: trying again over there does not help.
        Fault { kind: ErrorKind::Other, source: error.into() }
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        let source = match error.downcast::<Failure>() {
            Ok(failure) => failure.into(),
            Err(error) => error.into(),
        };
        Fault { kind: ErrorKind::Other, source }
    }
}

/// What ssh says, in many lines, of a host that has another key now.
fn changed_host_key(said: &str) -> Option<String> {
    let behind = |words: &str| said.lines().find_map(|line| line.trim().strip_prefix(words));
    let host = behind("Host key for ")?.split_once(" has changed")?.0;
    let (file, line) = behind("Offending ")?.split_once(" key in ")?.1.rsplit_once(':')?;
    Some(format!("the host key of '{host}' has changed: line {line} of '{file}' has another one"))
}

fn known(said: &str) -> Option<(ErrorKind, Option<Exit>)> {
    let (_, kind, exit) = WORDS.iter().find(|(words, ..)| said.contains(words))?;
    Some((*kind, *exit))
}

/// What to do about it.
fn hints(said: &str, names: &Names) -> Vec<String> {
    let mut hints = Vec::new();
    if said.contains("IDENTIFICATION HAS CHANGED") {
        hints.push(
            "find out why before all else; ssh-keygen -R takes the old one out of that file".into(),
        );
    } else if said.contains("Host key verification failed") {
        hints.push(format!(
            "compare its key with ssh-keyscan, then put it into the file of known hosts \
             ({})",
            names.known_hosts
        ));
        hints.push(format!("or take the first key seen: {}=accept-new", names.host_keys));
    } else if said.contains("Permission denied (") {
        hints.push(format!(
            "the key is that of {}, or ssh's own choice; is it in authorized_keys there?",
            names.key
        ));
    } else if said.contains("auth failed on module") {
        hints.push(format!("the password is {}", names.password));
    } else if said.contains(ONE_AT_A_TIME) {
        hints.push("bind the account there by 'rrsync -no-lock FOLDER'".into());
    } else if said.contains("is your shell clean") {
        hints.push(
            "the login scripts there print something: have them do so for terminals only".into(),
        );
    }
    hints
}
