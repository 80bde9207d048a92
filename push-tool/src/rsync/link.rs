//! One ssh connection to a host, which every command to it shares.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bk_manifest::command::{Command, Program, Running};
use bk_manifest::exit::{Exit, Failure, fail};

use super::fault::Fault;
use super::private::Private;
use super::settings::{HostKeys, Names, Settings};
use crate::destination::ErrorKind;

/// How ssh is run: it has no terminal, asks nothing, forwards nothing, and says no more than errors.
const OPTIONS: [&str; 13] = [
    "-T",
    "-a",
    "-x",
    "-oBatchMode=yes",
    "-oLogLevel=ERROR",
    // A line that has gone dead ends the run instead of holding it for hours.
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
    "-oClearAllForwardings=yes",
    "-oRemoteCommand=none",
    "-oRequestTTY=no",
    "-oPermitLocalCommand=no",
    "-oEscapeChar=none",
    "-oVisualHostKey=no",
];
/// The connection ends by itself when nobody has used it for this long: we may have been killed.
const PERSIST: &str = "-oControlPersist=60";
/// The socket's name in its folder.
const SOCKET: &str = "s";
/// Longest path of a socket, with what ssh adds to it while it makes one.
const SOCKET_LIMIT: usize = 104 - 18;
/// What the other host's own shell is asked to run: a script of one line, which comes through its
/// standard input. So nothing that this shell, whichever it is, could take apart is in the command.
const TAKE_SCRIPT: &str = "exec sh -c 'IFS= read -r script && eval \"$script\"'";
/// What every script says first. Words before it come from login scripts.
const GREETING: &str = "bk is here";

/// A connection.
pub(super) struct Link {
    ssh: Program,
    /// What is given to every ssh, the name of the socket too.
    options: Vec<OsString>,
    /// As ssh takes it: `USER@HOST`.
    host: String,
    pub(super) names: Names,
    checks_host: bool,
    /// Holds the socket.
    folder: Private,
    /// One at a time connects; the others then share it.
    connecting: Mutex<()>,
}

/// What a script's first line said, and the rest of its output.
pub(super) struct Reply {
    pub(super) word: String,
    pub(super) output: BufReader<PipeReader>,
    pub(super) running: Running,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// [`Exit::NoDestination`] for a host that does not answer, [`Exit::Denied`] for one that does not
    /// let us in or is not the one it was.
    pub(super) fn open(
        user: Option<&str>,
        host: &str,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let host = user.map_or(host.to_owned(), |user| format!("{user}@{host}"));
        if host.starts_with('-') || host.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(fail(Exit::Usage, "the host's name has a blank, or begins with '-'"));
        }
        let ssh = Program::find("ssh", "the OpenSSH client (openssh-client)")?;
        let folder = socket_folder()?;
        let socket = folder.path().join(SOCKET);
        let mut options: Vec<OsString> = OPTIONS.iter().map(Into::into).collect();
        let seconds = settings.patience.as_secs().max(1);
        options.push(format!("-oConnectTimeout={seconds}").into());
        options.push(option("ControlPath", &socket.to_string_lossy()));
        options.push(
            match settings.host_keys {
                HostKeys::Known => "-oStrictHostKeyChecking=yes",
                HostKeys::AcceptNew => "-oStrictHostKeyChecking=accept-new",
                HostKeys::Any => "-oStrictHostKeyChecking=no",
            }
            .into(),
        );
        if let Some(file) = &settings.known_hosts {
            options.push(option("UserKnownHostsFile", file));
            options.push("-oGlobalKnownHostsFile=/dev/null".into());
        }
        if let Some(file) = &settings.key {
            options.push(option("IdentityFile", file));
            options.push("-oIdentitiesOnly=yes".into());
        }
        if let Some(port) = settings.port {
            options.push(format!("-oPort={port}").into());
        }
        let link = Link {
            ssh,
            options,
            host,
            names: settings.names.clone(),
            checks_host: settings.host_keys != HostKeys::Any,
            folder,
            connecting: Mutex::new(()),
        };
        link.connect().map_err(Fault::into_error)?;
        Ok(link)
    }

    /// Connects again where the connection is gone: it was cut, or was idle for too long. Without it
    /// every command would make its own.
    ///
    /// # Errors
    /// Those of ssh.
    pub(super) fn connect(&self) -> Result<(), Fault> {
        let _connecting = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        // ssh takes it away when its connection ends.
        if self.folder.path().join(SOCKET).exists() {
            return Ok(());
        }
        // It goes into the background once it is connected.
        let (_, finished) = Command::new(&self.ssh)
            .named(&format!("ssh {}", self.host))
            .args(&self.options)
            .args(["-f", "-N", "-oControlMaster=yes", PERSIST, "--"])
            .arg(&self.host)
            .output()?;
        if finished.is_success() { Ok(()) } else { Err(Fault::of(&finished, &self.names)) }
    }

    /// What it does not do, for people.
    pub(super) fn limits(&self) -> Vec<String> {
        if self.checks_host {
            return Vec::new();
        }
        let why = format!("{} is no", self.names.host_keys);
        vec![format!("the host's key is not checked, for {why}: any host may pose as this one")]
    }

    /// The host as ssh takes it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// A path there as rsync takes it.
    pub(super) fn at(&self, path: &str) -> String {
        let (user, host) = self.host.rsplit_once('@').unwrap_or(("", &self.host));
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        // An address of IPv6.
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("{user}{host}:{path}")
    }

    /// The command by which rsync reaches the host, in the form that its `-e` takes apart.
    pub(super) fn for_rsync(&self) -> OsString {
        let mut text = OsString::new();
        for word in [self.ssh.path().as_os_str()]
            .into_iter()
            .chain(self.options.iter().map(OsString::as_os_str))
            .chain(["-oControlMaster=no".as_ref()])
        {
            if !text.is_empty() {
                text.push(" ");
            }
            text.push("'");
            text.push(word.to_string_lossy().replace('\'', "''"));
            text.push("'");
        }
        text
    }

    /// Starts a script over there; `lines` and then `bytes` are what it reads.
    ///
    /// # Errors
    /// Those of ssh, and what the script says on its standard error.
    pub(super) fn run(&self, script: &str, lines: &[&str], bytes: &[u8]) -> Result<Reply, Fault> {
        let mut running = self.command(script, lines)?.start()?;
        if let Some(mut stdin) = running.stdin.take() {
            match stdin.write_all(bytes) {
                // What it thinks of that is in its reply.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        self.reply(running)
    }

    /// The same with what a file holds.
    ///
    /// # Errors
    /// Those of [`Link::run`].
    pub(super) fn run_on_file(
        &self,
        script: &str,
        lines: &[&str],
        file: std::fs::File,
    ) -> Result<Reply, Fault> {
        let running = self.command(script, lines)?.input(file).start()?;
        self.reply(running)
    }

    fn command(&self, script: &str, lines: &[&str]) -> Result<Command, Fault> {
        let mut text = format!("echo '{GREETING}'; {script}\n");
        for line in lines {
            if line.contains(['\n', '\0']) {
                let error = std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    "a name with a line break cannot be used there",
                );
                return Err(error.into());
            }
            text.push_str(line);
            text.push('\n');
        }
        self.connect()?;
        Ok(Command::new(&self.ssh)
            .named(&format!("ssh {}", self.host))
            .args(&self.options)
            .args(["-oControlMaster=no", "--"])
            .arg(&self.host)
            .arg(TAKE_SCRIPT)
            .preface(text))
    }

    fn reply(&self, mut running: Running) -> Result<Reply, Fault> {
        let Some(stdout) = running.stdout.take() else {
            return Err(std::io::Error::other("ssh has no output").into());
        };
        let mut output = BufReader::new(stdout);
        let mut noise = String::new();
        loop {
            let line = line(&mut output)?;
            match line.strip_suffix('\n') {
                Some(GREETING) => break,
                Some(said) => said.clone_into(&mut noise),
                None => {
                    drop(output);
                    let finished = running.wait()?;
                    return Err(Fault::of(&finished, &self.names));
                }
            }
        }
        if !noise.is_empty() {
            return Err(noisy(&noise, &self.host));
        }
        let word = line(&mut output)?;
        if let Some(word) = word.strip_suffix('\n') {
            return Ok(Reply { word: word.to_owned(), output, running });
        }
        drop(output);
        Err(Fault::of(&running.wait()?, &self.names))
    }

    /// Waits for the end of a script whose output is read.
    ///
    /// # Errors
    /// What it says on its standard error, if it failed.
    pub(super) fn end(&self, reply: Reply) -> Result<(), Fault> {
        drop(reply.output);
        let finished = reply.running.wait()?;
        if finished.is_success() { Ok(()) } else { Err(Fault::of(&finished, &self.names)) }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may be gone already; left alone, it ends by itself.
        let _ = Command::new(&self.ssh)
            .args(&self.options)
            .args(["-O", "exit", "--"])
            .arg(&self.host)
            .despite_signals()
            .output();
    }
}

/// Longest line of words that is taken from the other host.
const LINE_LIMIT: u64 = 64 << 10;

fn line(output: &mut impl BufRead) -> Result<String, Fault> {
    let mut line = Vec::new();
    std::io::Read::take(output, LINE_LIMIT).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Output that was there before a script's own: it would be in the middle of our data.
fn noisy(said: &str, host: &str) -> Fault {
    let said: String = bk_manifest::path::escape(said.as_bytes()).chars().take(80).collect();
    let message = format!("the login scripts at '{host}' print something: '{said}'");
    Fault::failure(
        ErrorKind::Other,
        Failure::new(Exit::NoDestination, message)
            .hint("have them print for terminals only: it would end up in the data"),
    )
}

/// An option of ssh whose value is the name of a file, whatever is in it.
fn option(name: &str, path: &str) -> OsString {
    format!("-o{name}=\"{}\"", path.replace('%', "%%")).into()
}

/// A private folder whose name is short enough for a socket in it.
fn socket_folder() -> std::io::Result<Private> {
    let folder = Private::new()?;
    let path = folder.path().to_string_lossy();
    if path.len() <= SOCKET_LIMIT && !path.contains(['"', '\n', '\u{fffd}']) {
        return Ok(folder);
    }
    Private::new_in(Path::new("/tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_socket_is_one_that_is_swept() {
        let folder = socket_folder().unwrap();
        let name = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("bk-private-"), "{name}");
        assert!(folder.path().join(SOCKET).as_os_str().len() < SOCKET_LIMIT);
    }
}
