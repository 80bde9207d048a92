//! Real servers for tests: an ssh server and an rsync daemon, each on a free port of this machine.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "only tests use it: they want to end where it breaks, and restore nothing after a crash"
)]

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::access::Access;
use crate::destination::Destination;
use crate::location::Location;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the daemon asks for.
const PASSWORD: &str = "it's secret";

/// As whom one logs in: by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// With a shell.
    Shell,
    /// With nothing but rsync, bound to the folder of backups.
    Rrsync,
    /// The same, one request at a time.
    Locked,
    /// With a shell that greets, whoever it is.
    Noisy,
    /// With a shell on a system whose `find` prints no times.
    Plain,
    /// With a shell, and a home that is not there.
    Homeless,
    /// Not let in.
    Stranger,
}

impl Account {
    const ALL: [Account; 7] = [
        Account::Shell,
        Account::Rrsync,
        Account::Locked,
        Account::Noisy,
        Account::Plain,
        Account::Homeless,
        Account::Stranger,
    ];

    pub(super) fn key(self) -> &'static str {
        match self {
            Account::Shell => "shell",
            Account::Rrsync => "rrsync",
            Account::Locked => "locked",
            Account::Noisy => "noisy",
            Account::Plain => "plain",
            Account::Homeless => "homeless",
            Account::Stranger => "stranger",
        }
    }

    /// What stands before its key among those that are let in.
    fn options(self, folder: &Path) -> Option<String> {
        let folder = folder.display();
        match self {
            Account::Shell => Some(String::new()),
            Account::Rrsync => {
                Some(format!("command=\"/usr/bin/rrsync -no-lock {folder}/backups\",restrict "))
            }
            Account::Locked => {
                Some(format!("command=\"/usr/bin/rrsync {folder}/backups\",restrict "))
            }
            Account::Noisy => {
                Some("command=\"echo Welcome; eval \\\"$SSH_ORIGINAL_COMMAND\\\"\" ".into())
            }
            Account::Plain => Some(format!(
                "command=\"PATH={folder}/bin:$PATH; eval \\\"$SSH_ORIGINAL_COMMAND\\\"\" "
            )),
            Account::Homeless => Some(
                "command=\"HOME=/no/such/home; export HOME; eval \\\"$SSH_ORIGINAL_COMMAND\\\"\" "
                    .into(),
            ),
            Account::Stranger => None,
        }
    }
}

/// An ssh server whose only user is the one that runs the tests.
pub struct Sshd {
    process: Child,
    folder: TempDir,
    port: u16,
}

impl Sshd {
    /// Starts it.
    pub fn start() -> Self {
        let folder = private_folder();
        let path = folder.path();
        for key in Account::ALL.iter().map(|account| account.key()).chain(["host"]) {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path.join(key))
                .status();
            assert!(made.unwrap().success());
        }
        let keys: String = Account::ALL
            .iter()
            .filter_map(|account| {
                let key = fs::read_to_string(path.join(account.key()).with_extension("pub"));
                Some(account.options(path)? + &key.unwrap())
            })
            .collect();
        fs::write(path.join("authorized_keys"), keys).unwrap();
        fs::create_dir(path.join("backups")).unwrap();
        // As busybox and BSD have it.
        fs::create_dir(path.join("bin")).unwrap();
        let find = "#!/bin/sh\ncase $* in *-printf*) exit 1 ;; esac\nexec /usr/bin/find \"$@\"\n";
        executable(&path.join("bin/find"), find);
        // It insists on this folder, and keeps nothing in it.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let (process, port) = started(|port| Sshd::command(path, port), &path.join("log"));
        let host = fs::read_to_string(path.join("host.pub")).unwrap();
        fs::write(path.join("known_hosts"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        Sshd { process, folder, port }
    }

    fn command(folder: &Path, port: u16) -> (Command, &'static str) {
        let text = folder.display();
        // The home is its own: what the user's shell does when it starts is no part of a test.
        let config = format!(
            "SetEnv HOME={text}\nListenAddress 127.0.0.1\nPort {port}\nHostKey {text}/host\n\
             AuthorizedKeysFile {text}/authorized_keys\nPidFile none\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nStrictModes no\n\
             KbdInteractiveAuthentication no\nPrintMotd no\nMaxStartups 100\n"
        );
        fs::write(folder.join("sshd_config"), config).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=TERM", "/usr/sbin/sshd", "-D", "-e", "-f"]);
        command.arg(folder.join("sshd_config"));
        (command, "Server listening on")
    }

    /// The folder of backups.
    pub fn backups(&self) -> PathBuf {
        self.folder.path().join("backups")
    }

    /// A file of its own: a key, `known_hosts`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How a folder of backups is called as a destination.
    pub fn location(&self, account: Account, folder: &str) -> String {
        match account {
            Account::Rrsync | Account::Locked => format!("127.0.0.1:/{folder}"),
            _ => format!("127.0.0.1:{}/{folder}", self.backups().display()),
        }
    }

    /// The variables by which it is reached.
    pub fn variables(&self, account: Account) -> Vec<(String, String)> {
        let file = |name: &str| self.file(name).into_os_string().into_string().unwrap();
        vec![
            ("BACKUP_RSYNC_SSH_KEY".into(), file(account.key())),
            ("BACKUP_RSYNC_PORT".into(), self.port.to_string()),
            ("BACKUP_SSH_KNOWN_HOSTS".into(), file("known_hosts")),
        ]
    }

    /// A destination in the account's folder, which is new or emptied.
    pub fn destination(&self, account: Account) -> Box<dyn Destination> {
        renew(&self.backups().join(account.key()));
        self.open(account, account.key()).unwrap()
    }

    /// The destination in a folder of backups.
    ///
    /// # Errors
    /// Those of [`super::ssh`].
    pub fn open(&self, account: Account, folder: &str) -> anyhow::Result<Box<dyn Destination>> {
        open(&self.location(account, folder), self.variables(account))
    }

    /// Cuts every connection, as a network does: what runs behind them is left to notice.
    pub fn cut(&self) {
        let mut parents = vec![self.process.id()];
        while let Some(parent) = parents.pop() {
            for child in children(parent) {
                let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
                if name.starts_with("sshd") {
                    parents.push(child);
                    let pid = i32::try_from(child).ok().and_then(Pid::from_raw).unwrap();
                    // It may have ended by itself.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
    }

    /// Whether anybody is connected.
    pub fn is_connected(&self) -> bool {
        !children(self.process.id()).is_empty()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.cut();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An rsync daemon with a module `backups` that asks for a password.
pub struct RsyncDaemon {
    process: Child,
    folder: TempDir,
    port: u16,
}

impl RsyncDaemon {
    /// Starts it.
    pub fn start() -> Self {
        let folder = private_folder();
        let path = folder.path();
        fs::create_dir(path.join("backups")).unwrap();
        fs::write(path.join("secrets"), format!("me:{PASSWORD}\n")).unwrap();
        fs::set_permissions(path.join("secrets"), Permissions::from_mode(0o600)).unwrap();
        fs::write(path.join("motd"), "-rw------- 1 2026/01/01 00:00:00 no object\n").unwrap();
        let (process, port) = started(|port| RsyncDaemon::command(path, port), &path.join("log"));
        RsyncDaemon { process, folder, port }
    }

    fn command(folder: &Path, port: u16) -> (Command, &'static str) {
        let text = folder.display();
        let mut config = format!(
            "address = 127.0.0.1\nport = {port}\nuse chroot = no\nmotd file = {text}/motd\n\
             log file = {text}/log\n"
        );
        if rustix::process::geteuid().is_root() {
            config += "uid = 0\ngid = 0\n";
        }
        let module = |name: &str, read_only: &str| {
            format!(
                "[{name}]\npath = {text}/backups\nread only = {read_only}\nauth users = me\n\
                 secrets file = {text}/secrets\n"
            )
        };
        config += &module("backups", "no");
        config += &module("closed", "yes");
        fs::write(folder.join("rsyncd.conf"), config).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=TERM", "rsync", "--daemon", "--no-detach"]);
        command.arg(format!("--config={text}/rsyncd.conf"));
        (command, "listening on port")
    }

    /// The folder of backups.
    pub fn backups(&self) -> PathBuf {
        self.folder.path().join("backups")
    }

    /// How a folder in a module is called as a destination.
    pub fn location(&self, module: &str) -> String {
        format!("rsync://me@127.0.0.1:{}/{module}", self.port)
    }

    /// The variables by which it is reached.
    pub fn variables(&self) -> Vec<(String, String)> {
        vec![("BACKUP_RSYNC_PASSWORD".into(), PASSWORD.into())]
    }

    /// The destination that is its module, emptied.
    pub fn destination(&self) -> Box<dyn Destination> {
        renew(&self.backups());
        open(&self.location("backups"), self.variables()).unwrap()
    }
}

impl Drop for RsyncDaemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The destination of a name, reached by these variables.
///
/// # Errors
/// Those of [`super::ssh`] and [`super::daemon`].
pub fn open(
    location: &str,
    variables: Vec<(String, String)>,
) -> anyhow::Result<Box<dyn Destination>> {
    let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
    let access = Access::new("BACKUP", variables);
    match Location::parse(location)? {
        Location::Ssh { user, host, path } => super::ssh(user.as_deref(), &host, &path, &access),
        Location::Daemon { user, host, path } => {
            super::daemon(user.as_deref(), &host, &path, &access)
        }
        _ => panic!("'{location}' is not reached by rsync"),
    }
}

/// Makes a folder, or empties it.
fn renew(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
}

fn private_folder() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("bk-test-").permissions(Permissions::from_mode(0o700)).tempdir().unwrap()
}

/// A script, written by another program: a child of another test could hold the file open for writing,
/// and then it could not be run.
fn executable(path: &Path, script: &str) {
    let mut tee =
        Command::new("tee").arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut tee.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(tee.wait().unwrap().success());
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Starts a server on a free port and waits for what it then says in its log.
fn started(command: impl Fn(u16) -> (Command, &'static str), log: &Path) -> (Child, u16) {
    for _ in 0..10 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (mut command, words) = command(port);
        let errors = File::create(log).unwrap();
        let mut process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
        let since = Instant::now();
        loop {
            let mut said = String::new();
            File::open(log).unwrap().read_to_string(&mut said).unwrap();
            if said.contains(words) && !said.contains("in use") {
                return (process, port);
            }
            if said.contains("in use") || process.try_wait().unwrap().is_some() {
                let _ = process.kill();
                let _ = process.wait();
                // Another process may have been given the port meanwhile.
                assert!(said.contains("in use"), "the server did not start: {said}");
                break;
            }
            assert!(since.elapsed() < PATIENCE, "the server does not start: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("no port was free");
}

/// The children of a process.
fn children(parent: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in brackets, may hold anything.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        rest.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let numbers = fs::read_dir("/proc").unwrap();
    numbers
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(is_child)
        .collect()
}
