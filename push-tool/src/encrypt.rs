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
    match first_reason(finished.lines()) {
        Some(reason) => escape(reason.chars().take(200).collect::<String>().as_bytes()),
        None => finished.message(),
    }
}

/// The first line that gives a reason; gpg tells before it for whom an object was encrypted.
fn first_reason<'a>(lines: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let is_told = |line: &&str| line.starts_with("gpg: encrypted with ") || line.starts_with('"');
    let mut lines = lines.filter(|line| !line.starts_with("[GNUPG:]")).skip_while(is_told);
    let line = lines.next()?;
    let text = ["age: error: ", "gpg: "].iter().find_map(|name| line.strip_prefix(name));
    Some(text.unwrap_or(line))
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
    usable(&String::from_utf8_lossy(&output), &escape(name.as_bytes())).map_err(Into::into)
}

/// Looks at the keys of a name in the lines of `gpg --with-colons` (doc/DETAILS of `GnuPG`).
fn usable(listed: &str, name: &str) -> Result<(), Failure> {
    let refused = |message: String, hint: &str| Failure::new(Exit::Usage, message).hint(hint);
    let keys: Vec<&str> = listed.lines().filter(|line| line.starts_with("pub:")).collect();
    let key = match keys.as_slice() {
        [key] => key,
        [] => {
            let message = format!("gpg has no public key '{name}'");
            return Err(refused(message, "gpg --import FILE puts one into the keyring"));
        }
        several => {
            let message = format!("'{name}' names {} keys of gpg's keyring", several.len());
            return Err(refused(message, "name one by its fingerprint"));
        }
    };
    let mut fields = key.split(':');
    let validity = fields.nth(1).unwrap_or_default();
    // In capitals stands what the whole key is good for now: its parts expire by themselves.
    let good_for = fields.nth(9).unwrap_or_default();
    let why = match validity {
        "r" => "is revoked",
        "e" => "has expired",
        _ if good_for.contains('D') => "is disabled",
        _ if !good_for.contains('E') => "has no part to encrypt for that is valid now",
        _ => return Ok(()),
    };
    let hint = "gpg --import FILE brings a key that was renewed; or name another one";
    Err(refused(format!("gpg's public key '{name}' {why}"), hint))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_used_is_told_why() {
        let key = |validity: &str, good_for: &str| {
            format!(
                "tru::1:1\npub:{validity}:255:22:AB12:1:2::-:::{good_for}:::::ed25519::0:\nfpr:::\n"
            )
        };
        let said = |listed: &str| usable(listed, "x").err().map(|failure| failure.message);
        assert_eq!(said(&key("u", "scESC")), None);
        assert_eq!(said(&key("-", "scESC")), None);
        for (listed, words) in [
            (String::new(), "no public key 'x'"),
            (key("u", "scESC").repeat(2), "names 2 keys"),
            (key("r", "sc"), "'x' is revoked"),
            (key("e", "sc"), "'x' has expired"),
            (key("u", "scESCD"), "'x' is disabled"),
            (key("u", "scSC"), "'x' has no part"),
        ] {
            assert!(said(&listed).unwrap().contains(words), "{listed}");
        }
    }

    #[test]
    fn whom_it_was_encrypted_for_is_no_reason() {
        let gpg = "[GNUPG:] ENC_TO 12 1 0\ngpg: encrypted with 3072-bit RSA key, ID 12, created 2026\n\
                   \"me\"\ngpg: decryption failed: No secret key\n[GNUPG:] END_DECRYPTION\n";
        assert_eq!(first_reason(gpg.lines()), Some("decryption failed: No secret key"));
        let age = "age: error: no identity matched any of the recipients\nage: report at\n";
        assert_eq!(first_reason(age.lines()), Some("no identity matched any of the recipients"));
    }
}
