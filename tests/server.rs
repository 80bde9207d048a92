//! A PostgreSQL server of a test's own: in a temporary folder, on a free port, gone with its test.
//! A server that is on the machine already is never spoken to.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Ended, Sandbox, bin_dir as tools_dir, run};

/// A role that has to give its password, and owns [`APP`].
pub const ROLE: &str = "app owner";
/// Its password, with what a URL and a shell would stumble over.
pub const PASSWORD: &str = "ge:he/im@%'\"\\ ü";
/// The same for a URL.
pub const ENCODED_PASSWORD: &str = "ge%3Ahe%2Fim%40%25%27%22%5C%20%C3%BC";
/// The database that is dumped.
pub const APP: &str = "app";
/// How the data of every server is made.
const INITDB: [&str; 5] =
    ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"];
/// Who is let in.
const HBA: &str =
    "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
/// What the tests wait for at most.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running server; dropped, it is stopped at once and removed.
pub struct Server {
    folder: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    process: Child,
}

impl Server {
    /// Starts one with the empty database [`APP`].
    pub fn start() -> Self {
        Server::start_with_disk(None)
    }

    /// The same, with a file system of its own of so many KiB in [`Server::small_disk`], which only the
    /// server sees.
    pub fn start_with_small_disk(kilobytes: u32) -> Self {
        Server::start_with_disk(Some(kilobytes))
    }

    fn start_with_disk(small: Option<u32>) -> Self {
        let (bin, user) = (bin_dir(), unprivileged());
        let made = made_data(&bin, user);
        let folder = private_folder(user);
        copy(&made, &folder.path().join("data"));
        let (process, port) = launch(&bin, folder.path(), user, small);
        Server { folder, bin, port, process }
    }

    /// Starts one on what `initdb` has made, and gives it [`ROLE`] and [`APP`].
    fn make(bin: &Path, user: Option<(u32, u32)>) -> Self {
        let folder = private_folder(user);
        let data = folder.path().join("data");
        let mut initdb = server_command(&bin.join("initdb"), folder.path(), user);
        run(initdb.args(INITDB).arg("-D").arg(&data), b"").expect(0);
        fs::write(data.join("pg_hba.conf"), HBA).unwrap();
        let (process, port) = launch(bin, folder.path(), user, None);
        let server = Server { folder, bin: bin.to_owned(), port, process };
        let password = PASSWORD.replace('\'', "''");
        server.sql(
            "postgres",
            &format!("CREATE ROLE \"{ROLE}\" LOGIN PASSWORD E'{}'", password.replace('\\', "\\\\")),
        );
        server.sql("postgres", &format!("CREATE DATABASE {APP} OWNER \"{ROLE}\""));
        server
    }

    /// Has it shut down as it should, so that its data is whole.
    fn shut_down(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert!(self.process.wait().unwrap().success());
    }

    /// Starts a standby of it, and waits until that has all there is now.
    pub fn standby(&self) -> Self {
        let user = unprivileged();
        let folder = private_folder(user);
        let mut copy = server_command(&self.bin.join("pg_basebackup"), folder.path(), user);
        copy.envs(self.variables()).args(["-R", "--checkpoint=fast", "--no-sync", "-D"]);
        run(copy.arg(folder.path().join("data")), b"").expect(0);
        let (process, port) = launch(&self.bin, folder.path(), user, None);
        let standby = Server { folder, bin: self.bin.clone(), port, process };
        let end = self.sql("postgres", "SELECT pg_current_wal_lsn()");
        standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t");
        standby
    }

    /// The folder of its socket.
    pub fn socket(&self) -> &Path {
        self.folder.path()
    }

    /// The place of the small file system.
    pub fn small_disk(&self) -> PathBuf {
        self.folder.path().join("small")
    }

    /// Its TCP port, where [`ROLE`] needs the password.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder with its programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The URL by which an application would reach [`APP`].
    pub fn url(&self) -> String {
        self.url_of(APP)
    }

    /// The same for another database.
    pub fn url_of(&self, database: &str) -> String {
        let role = ROLE.replace(' ', "%20");
        format!("postgresql://{role}:{ENCODED_PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// libpq's variables for its socket, where everyone is let in.
    pub fn variables(&self) -> [(&'static str, OsString); 3] {
        [
            ("PGHOST", self.socket().into()),
            ("PGPORT", self.port.to_string().into()),
            ("PGUSER", "postgres".into()),
        ]
    }

    /// Lets all programs of a sandbox find the server.
    pub fn known_to(&self, sandbox: &mut Sandbox) {
        for (name, value) in self.variables() {
            sandbox.set(name, value);
        }
    }

    /// One of its programs, connecting as the superuser.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").envs(self.variables());
        command
    }

    /// Any program as the server's own user, who may write where the server may.
    pub fn as_its_user(&self, program: &Path) -> Command {
        server_command(program, self.socket(), unprivileged())
    }

    /// Kills it with all its sessions, as a power cut does.
    pub fn crash(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        // Stopped, it makes no more of them.
        kill_process(Pid::from_child(&self.process), Signal::STOP).unwrap();
        let pid = self.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        for child in children.split_whitespace() {
            // It may have seen that its parent is gone, and be gone, too.
            let _ = kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), Signal::KILL);
            let stat = format!("/proc/{child}/stat");
            let is_there = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
            let since = Instant::now();
            while is_there() {
                assert!(since.elapsed() < PATIENCE, "{child} does not die");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Starts it again after [`Server::crash`], on another port.
    pub fn restart(&mut self) {
        // Nobody writes that any more, but it would be read before it is written anew.
        fs::remove_file(self.folder.path().join("data/postmaster.pid")).unwrap();
        (self.process, self.port) = launch(&self.bin, self.folder.path(), unprivileged(), None);
    }

    /// Runs statements, and returns what they answer, a row a line.
    #[track_caller]
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let ended = self.try_sql(database, statements).expect(0);
        ended.text().trim_end().to_owned()
    }

    /// As [`Server::sql`], where it may fail.
    pub fn try_sql(&self, database: &str, statements: &str) -> Ended {
        let args = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database];
        run(self.command("psql").args(args), statements.as_bytes())
    }

    /// Opens a session that lasts.
    pub fn session(&self, database: &str) -> Session {
        let args = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database];
        let mut process = self
            .command("psql")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Session { process, answers }
    }

    /// Waits until a query answers with this.
    #[track_caller]
    pub fn wait_for(&self, query: &str, answer: &str) {
        let since = Instant::now();
        loop {
            let found = self.sql("postgres", query);
            if found == answer {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{query}: {found}, not {answer}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the tools have left the server: no session, no snapshot.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        self.wait_for(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            "0",
        );
    }

    /// All that a database holds, as text: its tables row by row as sums, its sequences, large
    /// objects, extensions, owners and rights.
    #[track_caller]
    pub fn content(&self, database: &str) -> String {
        self.sql(database, CONTENT)
    }
}

/// An open session, for what has to happen while a tool is at work; dropped, it is rolled back.
pub struct Session {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Session {
    /// Runs statements, and waits until they have been run.
    #[track_caller]
    pub fn sql(&mut self, statements: &str) {
        let stdin = self.process.stdin.as_mut().unwrap();
        writeln!(stdin, "{statements};\n\\echo done").unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        while line != "done\n" {
            line.clear();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the session has ended");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

const CONTENT: &str = r#"
SELECT format('SELECT %L, count(*), md5(coalesce(string_agg(t::text, E''\n'' ORDER BY t::text), '''')) FROM %s t', c.oid::regclass, c.oid::regclass)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'v') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY c.oid::regclass::text \gexec
SELECT format('SELECT %L, last_value, is_called FROM %s', c.oid::regclass, c.oid::regclass)
FROM pg_class c WHERE c.relkind = 'S' ORDER BY c.oid::regclass::text \gexec
SELECT 'large object', oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid;
SELECT 'extension', extname FROM pg_extension ORDER BY extname;
SELECT 'object', c.oid::regclass, c.relkind, pg_get_userbyid(c.relowner), c.relacl, obj_description(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY c.oid::regclass::text;
SELECT 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid <> 0 AND connamespace = 'public'::regnamespace ORDER BY conrelid::regclass::text, conname;
SELECT 'function', p.oid::regprocedure, md5(p.prosrc) FROM pg_proc p
WHERE pronamespace = 'public'::regnamespace ORDER BY p.oid::regprocedure::text;
SELECT 'encoding', pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database();
"#;

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate: the data is thrown away with it.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        let since = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) {
            if since.elapsed() > Duration::from_secs(10) {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Puts a script before a program of PostgreSQL; `$real` is the program.
pub fn fake(server: &Server, sandbox: &mut Sandbox, program: &str, script: &str) {
    let folder = sandbox.path("fake");
    fs::create_dir_all(&folder).unwrap();
    let real = server.bin().join(program);
    let text = format!("#!/bin/sh\nreal='{}'\n{script}\n", real.display());
    // Not written by us: a child of another test could hold it open, and it could not be run.
    let write = ["-c", "cat > \"$0\" && chmod 755 \"$0\""];
    let path = folder.join(program);
    run(Command::new("sh").args(write).arg(&path), text.as_bytes()).expect(0);
    let paths = [folder.as_path(), tools_dir(), server.bin(), Path::new("/usr/bin:/bin")];
    let paths: Vec<OsString> = paths.iter().map(|path| path.as_os_str().to_owned()).collect();
    sandbox.set("PATH", paths.join(std::ffi::OsStr::new(":")));
}

/// The programs of the newest PostgreSQL on this machine.
pub fn bin_dir() -> PathBuf {
    let version = |path: &Path| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let packaged = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = packaged
        .map(|entry| entry.path())
        .filter(|path| version(path).is_some() && path.join("bin/initdb").exists())
        .max_by_key(|path| version(path))
        .map(|path| path.join("bin"));
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        let folder = std::env::split_paths(&path).find(|folder| folder.join("initdb").exists())?;
        fs::canonicalize(folder.join("initdb")).ok()?.parent().map(Path::to_owned)
    };
    newest.or_else(in_path).filter(|bin| bin.join("postgres").exists()).unwrap_or_else(|| {
        panic!(
            "the PostgreSQL server is not installed; scripts/test.sh installs what the tests need"
        )
    })
}

/// Whom the server runs as where we are root, which it refuses.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| -> Option<(u32, u32)> {
        let line = users.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).unwrap())
}

/// A program of the server, as its user, with no variable of ours; it dies with the test.
fn server_command(program: &Path, folder: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new("setpriv");
    if let Some((uid, gid)) = user {
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
    }
    command
        .arg("--pdeathsig=QUIT")
        .arg(program)
        .current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC");
    command
}

/// Has a command run with a small file system in `small` that nobody else sees.
fn on_small_disk(
    command: &Command,
    folder: &Path,
    user: Option<(u32, u32)>,
    kilobytes: u32,
) -> Command {
    fs::create_dir_all(folder.join("small")).unwrap();
    let (uid, gid) = user.unwrap_or((0, 0));
    let mount = format!(
        "mount -t tmpfs -o size={kilobytes}k,uid={uid},gid={gid},mode=0700 none small && exec \"$@\""
    );
    // Root may mount by itself; anybody else as root of a user namespace.
    let space = if user.is_some() { "-m" } else { "-rm" };
    let mut wrapped = Command::new("unshare");
    wrapped.args([space, "sh", "-c", &mount, "sh"]).arg(command.get_program());
    wrapped.args(command.get_args()).current_dir(folder).env_clear();
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    wrapped.envs(variables);
    wrapped
}

/// The data of a server with [`ROLE`] and [`APP`]: made by the first test that asks, copied by all.
fn made_data(bin: &Path, user: Option<(u32, u32)>) -> PathBuf {
    let version = run(Command::new(bin.join("postgres")).arg("--version"), b"").expect(0).text();
    let what = format!("{version}{user:?}{INITDB:?}{HBA}{ROLE}{PASSWORD}{APP}");
    let key = bk_manifest::digest::Digest::of(what.as_bytes()).key();
    let targets = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let made = targets.join(format!("pg-data-{key:032x}"));
    if !made.exists() {
        let mut server = Server::make(bin, user);
        server.shut_down();
        let whole = tempfile::Builder::new().prefix("pg-data-").tempdir_in(targets).unwrap();
        copy(&server.folder.path().join("data"), &whole.path().join("data"));
        // Another test may have been faster: then a folder that is not empty is in the way.
        let _ = fs::rename(whole.path().join("data"), &made);
    }
    made
}

/// Copies a folder with its owners and modes.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to), b"").expect(0);
}

/// A folder of the server's user alone.
fn private_folder(user: Option<(u32, u32)>) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("bk-pg-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    if let Some((uid, gid)) = user {
        chown(folder.path(), Some(uid), Some(gid)).unwrap();
    }
    folder
}

/// Starts the server on a port that is free.
fn launch(bin: &Path, folder: &Path, user: Option<(u32, u32)>, small: Option<u32>) -> (Child, u16) {
    let mut left = 10;
    loop {
        match try_start(bin, folder, user, small) {
            Ok(started) => return started,
            // Another process may have been given the port meanwhile.
            Err(log) if log.contains("could not bind") && left > 0 => left -= 1,
            Err(log) => panic!("the private PostgreSQL server did not start: {log}"),
        }
    }
}

/// Starts the server on a free port; otherwise returns what it wrote.
fn try_start(
    bin: &Path,
    folder: &Path,
    user: Option<(u32, u32)>,
    small: Option<u32>,
) -> Result<(Child, u16), String> {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let (log, data) = (folder.join("log"), folder.join("data"));
    let mut command = server_command(&bin.join("postgres"), folder, user);
    if let Some(kilobytes) = small {
        command = on_small_disk(&command, folder, user, kilobytes);
    }
    let mut process = command
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k"])
        .arg(folder)
        .args(["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=16MB"])
        .args(["-c", "wal_level=logical", "-c", "max_prepared_transactions=2"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let since = Instant::now();
    loop {
        let state = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        if state.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
            return Ok((process, port));
        }
        let has_ended = process.try_wait().unwrap().is_some();
        if has_ended || since.elapsed() > PATIENCE {
            let _ = process.kill();
            let _ = process.wait();
            return Err(fs::read_to_string(&log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
