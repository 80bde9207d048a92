//! Encryption by the programs that users have: each object by itself, so that it opens by hand.

mod choice;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use bk_manifest::command::{Command, Finished, Program};
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::path::escape;

pub use self::choice::Choice;
use crate::piped::{Piped, Step};

/// The program that encrypts and opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// age.
    Age,
    /// `GnuPG`.
    Gpg,
}

impl Method {
    /// The word in manifests and on command lines; also what an object's name ends with.
    pub fn word(self) -> &'static str {
        match self {
            Method::Age => "age",
            Method::Gpg => "gpg",
        }
    }

    /// The method of a word.
    pub fn of_word(word: &str) -> Option<Self> {
        [Method::Age, Method::Gpg].into_iter().find(|method| method.word() == word)
    }

    /// The program, where it is installed.
    ///
    /// # Errors
    /// [`Exit::Failed`] with the hint to install it.
    pub fn program(self) -> anyhow::Result<Program> {
        match self {
            Method::Age => Program::find("age", "age"),
            Method::Gpg => Program::find("gpg", "gnupg"),
        }
    }
}

/// What a failed program said first, without its own name.
pub fn said(finished: &Finished) -> String {
    let first = finished.lines().find(|line| !line.starts_with("[GNUPG:]"));
    let Some(first) = first else { return finished.message() };
    let text = ["age: error: ", "gpg: "].iter().find_map(|name| first.strip_prefix(name));
    let text: String = text.unwrap_or(first).chars().take(200).collect();
    escape(text.as_bytes())
}

/// For whom objects are encrypted, and by which program.
#[derive(Clone, Debug)]
pub struct Cipher {
    /// How.
    pub method: Method,
    program: Program,
    args: Vec<OsString>,
}

impl Cipher {
    /// For these recipients: at least one, or a file of them (age only).
    ///
    /// # Errors
    /// A program that is not installed; [`Exit::Usage`] for what it takes for no recipient: it is
    /// asked, before anything is stored.
    fn new(method: Method, recipients: &[String], file: Option<&PathBuf>) -> anyhow::Result<Self> {
        let program = method.program()?;
        let mut args: Vec<OsString> = Vec::new();
        match method {
            Method::Age => {
                args.push("--encrypt".into());
                for recipient in recipients {
                    args.extend(["--recipient".into(), recipient.into()]);
                }
                if let Some(file) = file {
                    // Absolute: a name of its own meaning, such as `-`, is a file here.
                    let file = std::path::absolute(file)?;
                    args.extend(["--recipients-file".into(), file.into()]);
                }
            }
            Method::Gpg => {
                // The key was named by the user of this command; that is all the trust there is to
                // be had on a host without a person at it. It must be in the keyring: nothing is
                // looked for in the network.
                let fixed = "--batch --no-tty --yes --no-auto-key-locate --trust-model always \
                             --no-armor --compress-algo none --encrypt";
                args.extend(fixed.split_ascii_whitespace().map(OsString::from));
                for recipient in recipients {
                    one_key(&program, recipient)?;
                    args.extend(["--recipient".into(), recipient.into()]);
                }
            }
        }
        let cipher = Cipher { method, program, args };
        let (_, finished) = cipher.command().output()?;
        if !finished.is_success() {
            let message = format!("'{}' cannot encrypt: {}", method.word(), said(&finished));
            return Err(fail(Exit::Usage, message));
        }
        Ok(cipher)
    }

    fn command(&self) -> Command {
        Command::new(&self.program).args(&self.args)
    }

    /// An object's name once it is encrypted.
    pub fn name(&self, object: &str) -> String {
        format!("{object}.{}", self.method.word())
    }

    /// About how many bytes at most an object of `bound` bytes has once it is encrypted.
    pub fn bound(bound: u64) -> u64 {
        // age adds 16 bytes to each 64 KiB, gpg less; a header has some hundred bytes a recipient.
        bound.saturating_add(bound / 1024).saturating_add(1 << 20)
    }

    /// Begins an object.
    ///
    /// # Errors
    /// If the system cannot start the program.
    pub fn begin(&self) -> anyhow::Result<Encrypting> {
        Ok(Encrypting { piped: Piped::start(self.command())?, buffer: vec![0; 1 << 16] })
    }
}

/// Refuses a name that stands for no key of the keyring, or for several.
fn one_key(program: &Program, name: &str) -> anyhow::Result<()> {
    let command = Command::new(program)
        .args(["--batch", "--no-tty", "--with-colons", "--no-auto-key-locate", "--list-keys", "--"])
        .arg(name);
    let (output, _) = command.output()?;
    let shown = escape(name.as_bytes());
    match String::from_utf8_lossy(&output).lines().filter(|line| line.starts_with("pub:")).count() {
        1 => Ok(()),
        0 => Err(Failure::new(Exit::Usage, format!("gpg has no public key '{shown}'"))
            .hint("gpg --import FILE puts one into the keyring")
            .into()),
        several => {
            let message = format!("'{shown}' names {several} keys of gpg's keyring");
            Err(Failure::new(Exit::Usage, message).hint("name one by its fingerprint").into())
        }
    }
}

/// An object on its way through the program.
pub struct Encrypting {
    piped: Piped,
    buffer: Vec<u8>,
}

impl Encrypting {
    /// Encrypts more of the object; what comes out goes to `sink`.
    ///
    /// # Errors
    /// Those of the sink; a program that ends early.
    pub fn write(&mut self, mut bytes: &[u8], sink: &mut dyn Write) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            match self.piped.step(bytes, &mut self.buffer)? {
                Step::Took(taken) => bytes = &bytes[taken..],
                Step::Gave(given) => sink.write_all(&self.buffer[..given])?,
                Step::Refused | Step::Ended => bail!(Refused),
            }
        }
        Ok(())
    }

    /// Ends the object.
    ///
    /// # Errors
    /// Those of the sink; a program that did not end well: what it wrote is no object then.
    pub fn finish(mut self, sink: &mut dyn Write) -> anyhow::Result<()> {
        self.piped.end_input();
        loop {
            match self.piped.step(&[], &mut self.buffer)? {
                Step::Gave(given) => sink.write_all(&self.buffer[..given])?,
                Step::Took(_) | Step::Refused => {}
                Step::Ended => break,
            }
        }
        self.piped.wait()?.check()
    }

    /// What the program has to say about an error of [`Encrypting::write`].
    pub fn explain(self, error: anyhow::Error) -> anyhow::Error {
        if !error.is::<Refused>() {
            return error;
        }
        match self.piped.wait().and_then(|finished| finished.check()) {
            Err(cause) => cause,
            Ok(()) => error,
        }
    }
}

/// The program ended before it had everything.
#[derive(Debug, thiserror::Error)]
#[error("the program that encrypts ended early")]
struct Refused;
