//! The ways to where the PostgreSQL programs are: this host, a container, another host.

use std::collections::BTreeMap;
use std::str::FromStr;

use bk_manifest::command::{Command, Program};
use bk_manifest::exit::{Exit, Failure, fail};

use super::connection::failure;

/// Where the PostgreSQL programs run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Via {
    /// Here.
    #[default]
    Host,
    /// In this running container.
    Docker(String),
    /// In the running container of this Compose service.
    Compose(String),
    /// On another host: a name that the user's own `ssh` knows, perhaps with `user@` before it.
    Ssh(String),
}

impl FromStr for Via {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_made_of = |name: &str, others: &str| {
            name.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        let is_container = |name: &str| {
            name.starts_with(|first: char| first.is_ascii_alphanumeric()) && is_made_of(name, "-_.")
        };
        // ssh would take what begins with '-' for an option.
        let is_host = |name: &str| {
            let parts = name.split_once('@').map_or([name, name], |(user, host)| [user, host]);
            is_made_of(name, "-_.@:%")
                && parts.iter().all(|part| !part.is_empty() && !part.starts_with('-'))
        };
        match text.split_once(':') {
            Some(("docker", name)) if is_container(name) => Ok(Via::Docker(name.to_owned())),
            Some(("compose", name)) if is_container(name) => Ok(Via::Compose(name.to_owned())),
            Some(("ssh", name)) if is_host(name) => Ok(Via::Ssh(name.to_owned())),
            // The text is not repeated: it may be a URL with a password.
            _ => Err("it is docker:CONTAINER, compose:SERVICE or ssh:HOST"),
        }
    }
}

/// The same, with the programs that lead there.
#[derive(Clone)]
pub(super) enum Reach {
    Host,
    Container { docker: Program, name: String },
    FarHost { ssh: Program, name: String },
}

impl Reach {
    /// Finds the way.
    ///
    /// # Errors
    /// [`Exit::NotFound`] if there is no such service; a program that is not installed.
    pub(super) fn find(via: &Via) -> anyhow::Result<Self> {
        let in_container = |name: String| {
            Ok(Reach::Container { docker: Program::find("docker", "Docker")?, name })
        };
        match via {
            Via::Host => Ok(Reach::Host),
            Via::Docker(name) => in_container(name.clone()),
            Via::Compose(service) => in_container(container_of(service)?),
            Via::Ssh(name) => {
                let ssh = Program::find("ssh", "the OpenSSH client (openssh-client)")?;
                Ok(Reach::FarHost { ssh, name: name.clone() })
            }
        }
    }
}

/// A program inside a container. The variables have their values from the environment of `docker`,
/// where no other user sees them.
pub(super) fn in_container(
    docker: &Program,
    name: &str,
    program: &str,
    settings: &BTreeMap<String, String>,
) -> Command {
    // Never with a terminal: it would change bytes.
    let mut command = Command::new(docker).named(program).args(["exec", "-i"]);
    for setting in settings.keys().map(String::as_str).chain(["LC_ALL"]) {
        command = command.args(["-e", setting]);
    }
    for (setting, value) in settings {
        command = command.env(setting, value);
    }
    command.args([name, program])
}

/// How ssh is run. Whom to trust and how to log in is what the user's own configuration says; the
/// rest is about having no terminal, asking nothing, and leaving nothing behind.
const SSH_OPTIONS: [&str; 15] = [
    "-T",
    "-a",
    "-x",
    "-o",
    "BatchMode=yes",
    // A line that has gone dead ends the run instead of holding it for hours.
    "-o",
    "ServerAliveInterval=30",
    // A banner is no warning about a dump.
    "-o",
    "LogLevel=ERROR",
    // A master started by us would stay, with our standard error in its hands.
    "-o",
    "ControlMaster=no",
    "-o",
    "ClearAllForwardings=yes",
    "-o",
    "RemoteCommand=none",
];

/// What runs on the other host: takes variables from standard input up to an empty line, one in each
/// line (a bare name is unset), and becomes the program, which has the rest. `read` takes no byte
/// beyond its line. Without the empty line nothing is run.
const TAKE_SETTINGS: &str = "while IFS= read -r line || exit 1; do case $line in '') break ;; \
    *=*) export \"$line\" ;; *) unset \"$line\" ;; esac; done; exec \"$@\"";

/// A program on another host. The variables go first through its standard input: no user of either
/// host sees them.
///
/// # Errors
/// [`Exit::Usage`] for a value of two lines.
pub(super) fn on_far_host(
    ssh: &Program,
    name: &str,
    program: &str,
    settings: &BTreeMap<String, String>,
    removed: &[&str],
) -> anyhow::Result<Command> {
    let mut lines: String = removed.iter().flat_map(|name| [*name, "\n"]).collect();
    for (setting, value) in settings {
        if value.contains('\n') {
            let message = format!("the value of {setting} has a line break: ssh cannot take it");
            return Err(fail(Exit::Usage, message));
        }
        lines.extend([setting.as_str(), "=", value, "\n"]);
    }
    lines.push_str("LC_ALL=C\n\n");
    Ok(Command::new(ssh)
        .named(&format!("ssh {name} {program}"))
        .preface(lines)
        .args(SSH_OPTIONS)
        .arg(name)
        .for_shell()
        .args(["exec", "sh", "-c", TAKE_SETTINGS, program, program]))
}

/// Asks Compose for the container of a service.
///
/// The programs are then run by Docker itself: `docker-compose exec` leaves a child behind when it
/// is told to stop, which keeps our pipes open, and version 1 does not say what is wrong.
fn container_of(service: &str) -> anyhow::Result<String> {
    let (program, args) = compose()?;
    let ask = |question: &[&str]| Command::new(&program).args(&args).args(question).output();
    let (containers, listed) = ask(&["ps", "-q", service])?;
    let containers = String::from_utf8_lossy(&containers);
    if let (true, Some(container)) = (listed.is_success(), containers.split_whitespace().next()) {
        return Ok(container.to_owned());
    }
    let (services, finished) = ask(&["config", "--services"])?;
    if !finished.is_success() {
        return Err(failure(&finished));
    }
    let services = String::from_utf8_lossy(&services);
    let services: Vec<&str> = services.split_whitespace().collect();
    if !services.contains(&service) {
        let message = format!("no such service in the Compose project: '{service}'");
        return Err(Failure::new(Exit::NotFound, message)
            .hint(format!("it has: {}", services.join(", ")))
            .into());
    }
    if !listed.is_success() {
        return Err(failure(&listed));
    }
    let message = format!("no container of the Compose service '{service}' is running");
    Err(Failure::new(Exit::Failed, message)
        .hint("start the container of the database first")
        .into())
}

/// Docker's plugin, or the program of its own that came before it.
fn compose() -> anyhow::Result<(Program, Vec<&'static str>)> {
    if let Some(docker) = Program::find_optional("docker") {
        let (_, finished) = Command::new(&docker).args(["compose", "version"]).output()?;
        if finished.is_success() {
            return Ok((docker, vec!["compose"]));
        }
    }
    Ok((Program::find("docker-compose", "Docker Compose")?, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parsed() {
        assert_eq!("docker:db-1".parse(), Ok(Via::Docker("db-1".into())));
        assert_eq!("compose:db".parse(), Ok(Via::Compose("db".into())));
        assert_eq!("ssh:nas".parse(), Ok(Via::Ssh("nas".into())));
        assert_eq!("ssh:me@nas.lan".parse(), Ok(Via::Ssh("me@nas.lan".into())));
        assert_eq!("ssh:fe80::1%eth0".parse(), Ok(Via::Ssh("fe80::1%eth0".into())));
        for bad in [
            "",
            "db",
            "docker:",
            "docker:-it",
            "compose:a b",
            "ssh:",
            "ssh:-oProxyCommand=x",
            "ssh:me@-oProxyCommand",
            "ssh:@nas",
            "ssh:me@",
            "ssh:nas;id",
            "ssh:n as",
            "nas:host",
        ] {
            assert!(bad.parse::<Via>().is_err(), "{bad}");
        }
    }
}
