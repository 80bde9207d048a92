//! Keys for the tests of encryption: age's in files, gpg's in a keyring of the test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Sandbox, run};

/// Makes a key of age in the file `name`; returns the recipient.
pub fn age_key(sandbox: &Sandbox, name: &str) -> String {
    sandbox.run("age-keygen", &["-o", name], b"").expect(0);
    sandbox.run("age-keygen", &["-y", name], b"").expect(0).text().trim().to_owned()
}

/// A keyring; the agent that gpg starts for it ends with it.
pub struct Keyring {
    /// In a short place: the agent's socket allows no long one.
    home: tempfile::TempDir,
}

impl Keyring {
    /// An empty one, which the sandbox's commands use from now on.
    pub fn new(sandbox: &mut Sandbox) -> Self {
        let home = tempfile::Builder::new().prefix("bk").tempdir_in("/tmp").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let keyring = Keyring { home };
        keyring.use_in(sandbox);
        keyring
    }

    /// Has the sandbox's commands use it.
    pub fn use_in(&self, sandbox: &mut Sandbox) {
        sandbox.set("GNUPGHOME", self.home.path());
    }

    /// Its folder.
    pub fn home(&self) -> &std::path::Path {
        self.home.path()
    }

    /// Makes a key, with a passphrase or without.
    pub fn add(&self, sandbox: &Sandbox, user: &str, passphrase: &str) {
        let mode =
            ["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", passphrase];
        let make = ["--quick-generate-key", user, "future-default", "default", "never"];
        sandbox.run("gpg", &[&mode[..], &make].concat(), b"").expect(0);
    }

    /// Forgets passphrases that were typed.
    pub fn end_agent(&self) {
        let mut command = std::process::Command::new("gpgconf");
        run(command.env("GNUPGHOME", self.home.path()).args(["--kill", "all"]), b"");
    }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        self.end_agent();
    }
}
