//! The keys that open encrypted objects, as the programs take them, and what their failures mean.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bk_manifest::command::{Command, Finished, Program};
use bk_manifest::exit::{Exit, Failure};
use bk_manifest::progress::Progress;

use crate::encrypt::{Method, said};

/// Files with identities of age; keys of gpg are in its keyring.
#[derive(Clone, Debug, Default)]
pub struct Identities(pub Vec<PathBuf>);

/// A program with the keys that it opens objects with.
#[derive(Clone, Debug)]
pub struct Opener {
    /// How the objects are encrypted.
    pub method: Method,
    program: Program,
    args: Vec<PathBuf>,
    /// Takes age's terminal away.
    detacher: Option<Program>,
}

impl Identities {
    /// What opens objects of a method.
    ///
    /// # Errors
    /// [`Exit::Denied`] if there is no identity for it, or one that cannot be used;
    /// [`Exit::Failed`] for a program that is not installed.
    pub fn opener(&self, method: Method, progress: &dyn Progress) -> anyhow::Result<Opener> {
        let mut args = Vec::new();
        if method == Method::Age {
            for file in &self.0 {
                check(file, progress)?;
                // Absolute: a name of its own meaning, such as `-`, is a file here.
                args.push(std::path::absolute(file)?);
            }
        }
        let detacher = Program::find_optional("setsid").filter(|_| method == Method::Age);
        Ok(Opener { method, program: method.program()?, args, detacher })
    }
}

impl Opener {
    /// Whether there is a key to try.
    pub fn has_key(&self) -> bool {
        self.method == Method::Gpg || !self.args.is_empty()
    }

    /// The program, to be given an object.
    pub fn command(&self) -> Command {
        match self.method {
            Method::Age => {
                // age asks for the passphrase of a key on the terminal, where it might wait for ever.
                let command = match &self.detacher {
                    None => Command::new(&self.program),
                    Some(detacher) => {
                        Command::new(detacher).named("age").arg("--").arg(self.program.name())
                    }
                };
                let keys = self.args.iter().flat_map(|file| [Path::new("--identity"), file]);
                command.arg("--decrypt").args(keys)
            }
            Method::Gpg => Command::new(&self.program).args([
                "--batch",
                "--no-tty",
                "--pinentry-mode",
                "error",
                "--status-fd",
                "2",
                "--decrypt",
            ]),
        }
    }

    /// Whether it failed for want of the right key, as far as it can tell: an object whose header is
    /// damaged looks the same to it.
    pub fn lacks_key(&self, finished: &Finished) -> bool {
        let has = |text: &str| finished.lines().any(|line| line.contains(text));
        match self.method {
            Method::Age => [
                "no identity matched",
                "did not match any of the recipients",
                "failed to obtain passphrase",
                "error: reading \"",
            ]
            .into_iter()
            .any(has),
            Method::Gpg => has("[GNUPG:] ENC_TO") && !has("[GNUPG:] DECRYPTION_INFO"),
        }
    }

    /// The error of an object that no key here opens; `header` is its beginning.
    pub fn locked(&self, object: &str, header: &[u8], finished: Option<&Finished>) -> Failure {
        let why = match finished {
            None => "no key was given".to_owned(),
            Some(finished) => said(finished),
        };
        let message = format!("'{object}' is encrypted and cannot be opened: {why}");
        let failure = Failure::new(Exit::Denied, message);
        let has = |text: &str| {
            finished.is_some_and(|finished| finished.lines().any(|line| line.contains(text)))
        };
        let failure = match self.method {
            Method::Age if has("failed to obtain passphrase") => failure
                .hint("a key with a passphrase is not asked for it here: ssh-keygen -p -f COPY takes it off a copy"),
            Method::Gpg if has("ERROR pkdecrypt_failed") => failure
                .hint("a key with a passphrase must be open in gpg-agent: gpg -d any file of this key first"),
            Method::Age => failure.hint("give the file with the key: --identity FILE (BACKUP_IDENTITY_FILE)"),
            Method::Gpg => failure.hint("put the secret key into gpg's keyring: gpg --import FILE"),
        };
        match self.recipients(header, finished) {
            Some(recipients) => failure.hint(format!("it was encrypted for {recipients}")),
            None => failure,
        }
    }

    /// For whom an object was encrypted, as far as it says.
    fn recipients(&self, header: &[u8], finished: Option<&Finished>) -> Option<String> {
        let recipients: Vec<String> = match self.method {
            Method::Age => String::from_utf8_lossy(header)
                .lines()
                .take_while(|line| !line.starts_with("---"))
                .filter_map(|line| line.strip_prefix("-> "))
                .map(|stanza| match stanza.split(' ').next() {
                    Some("X25519") => "a key of age (age1…)".to_owned(),
                    Some(word) if word.starts_with("ssh-") => format!("a key of ssh ({word})"),
                    word => format!("a key of the kind '{}'", word.unwrap_or_default()),
                })
                .filter(|text| !text.chars().any(char::is_control))
                .collect(),
            Method::Gpg => finished?
                .lines()
                .filter_map(|line| line.strip_prefix("[GNUPG:] ENC_TO "))
                .filter_map(|rest| rest.split(' ').next())
                .map(|key| format!("the key {key}"))
                .collect(),
        };
        Some(recipients.join(", ")).filter(|text| !text.is_empty())
    }
}

/// Refuses a file that cannot be used, and warns of one that others can read.
fn check(file: &Path, progress: &dyn Progress) -> anyhow::Result<()> {
    let shown = file.display();
    let mut begin = Vec::new();
    let read = |begin: &mut Vec<u8>| -> io::Result<u32> {
        let opened = File::open(file)?;
        let mode = opened.metadata()?.mode();
        opened.take(64).read_to_end(begin)?;
        Ok(mode)
    };
    let mode = read(&mut begin).map_err(|error| {
        Failure::new(Exit::Denied, format!("cannot read the key '{shown}': {error}"))
            .hint("it is not in the backup unless you put it there: where is its copy?")
    })?;
    let has_passphrase = [&b"-----BEGIN AGE ENCRYPTED FILE-----"[..], b"age-encryption.org/"]
        .iter()
        .any(|mark| begin.starts_with(mark));
    if has_passphrase {
        let message = format!("the key '{shown}' is locked with a passphrase");
        return Err(Failure::new(Exit::Denied, message)
            .hint(format!("open it first: age --decrypt '{shown}' > KEY, and give KEY"))
            .into());
    }
    if mode & 0o077 != 0 {
        progress.warn(&format!("others can read the key '{shown}': chmod 600"));
    }
    Ok(())
}
