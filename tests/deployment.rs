//! A deployment under Docker Compose: PostgreSQL in a container, for the tests that reach it there.
//!
//! No image is pulled: one is made of this machine's own PostgreSQL, and kept for the next run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::harness::{Ended, Sandbox, noise, run};
use crate::server;

pub const PASSWORD: &str = "im container geheim";

/// What the container runs: a fresh server that asks for the password even on its socket.
const ENTRY: &str = r#"set -eu
umask 077
printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
initdb --no-sync -D /tmp/data -U "$POSTGRES_USER" -A scram-sha-256 --pwfile=/tmp/password -E UTF8 --locale=C.UTF-8 > /tmp/initdb.log
echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D /tmp/data postgres > /tmp/single.log
exec postgres -D /tmp/data -c fsync=off -c listen_addresses= -c shared_buffers=16MB
"#;

/// Collects the files of the image: programs, the libraries that they need, PostgreSQL's own data.
const COLLECT: &str = r#"set -eu
bin=$1
share=$("$bin/pg_config" --sharedir)
lib=$("$bin/pg_config" --pkglibdir)
with_libraries() {
  for file in "$@"; do
    printf '%s\n' "$file"
    ldd "$file" | grep -o '/[^ ]*' || true
  done
}
{
  for program in postgres initdb psql pg_dump pg_dumpall pg_restore; do with_libraries "$bin/$program"; done
  with_libraries /bin/sh
  for program in env sleep tar mktemp rm; do with_libraries "$(command -v "$program")"; done
  with_libraries "$lib/plpgsql.so" "$lib/dict_snowball.so"
  find -L "$share" -type f ! -path '*/man/*' ! -path '*/extension/*'
  find -L "$share/extension" -type f -name 'plpgsql*'
  for folder in /usr/lib/locale/C.utf8 /usr/lib/locale/C.UTF-8; do
    [ ! -d "$folder" ] || find "$folder" -type f
  done
} | sort -u
"#;

fn docker() -> Command {
    let mut command = Command::new("docker");
    command.stdin(Stdio::null());
    command
}

/// The image's name; made where it is not there. A change of PostgreSQL or of this file makes
/// another one.
fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let info = docker().args(["info", "--format", "{{.ServerVersion}}"]).output();
        let runs = info.as_ref().is_ok_and(|output| output.status.success());
        assert!(
            runs,
            "the Docker Engine does not run here; scripts/test.sh installs docker.io and \
             docker-compose where they are missing, `service docker start` starts it"
        );
        // One test makes it, the others wait.
        fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres-image.lock");
        let lock = fs::File::create(lock).unwrap();
        lock.lock().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let bin = server::bin_dir();
        let collect = ["-c", COLLECT, "collect", bin.to_str().unwrap()];
        let list = run(Command::new("sh").args(collect), b"").expect(0).stdout;
        let mut facts = format!("{ENTRY}\n{COLLECT}\n");
        for file in std::str::from_utf8(&list).unwrap().lines() {
            let metadata = fs::metadata(file).unwrap();
            facts += &format!("{file} {} {:?}\n", metadata.len(), metadata.modified().unwrap());
        }
        let sum = run(&mut Command::new("sha256sum"), facts.as_bytes()).expect(0).text();
        let name = format!("bk-test-postgres:{}", &sum[..16]);
        let known = docker()
            .args(["image", "inspect", &name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if known.unwrap().success() {
            return name;
        }
        let root = folder.path().join("root");
        for path in ["etc", "tmp", "var/run/postgresql", "var/lib/postgresql"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let users = "root:x:0:0:root:/root:/bin/sh\n\
            postgres:x:999:999::/var/lib/postgresql:/bin/sh\n";
        fs::write(root.join("etc/passwd"), users).unwrap();
        fs::write(root.join("entry.sh"), ENTRY).unwrap();
        fs::write(folder.path().join("list"), list).unwrap();
        let pack = "set -eu; tar -chPf image.tar --hard-dereference -T list
            tar -rf image.tar -C root --owner=999 --group=999 .";
        run(Command::new("sh").current_dir(folder.path()).args(["-c", pack]), b"").expect(0);
        let path = format!("ENV PATH={}:/usr/bin:/bin", bin.display());
        let import = docker()
            .args(["import", "--change", &path, "image.tar", &name])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
        name
    })
}

/// A deployment of its own; dropped, it is gone with its volumes.
pub struct Deployment {
    pub sandbox: Sandbox,
    pub project: String,
    pub compose: &'static [&'static str],
    pub container: String,
}

impl Deployment {
    pub fn start() -> Self {
        image();
        let has_plugin = docker()
            .args(["compose", "version"])
            .output()
            .is_ok_and(|output| output.status.success());
        let compose: &[&str] =
            if has_plugin { &["docker", "compose"] } else { &["docker-compose"] };
        let mut sandbox = Sandbox::new();
        let random = noise(jiff::Timestamp::now().as_nanosecond() as u64, 4);
        let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let project = format!("bktest{}{random}", std::process::id());
        sandbox.set("COMPOSE_PROJECT_NAME", &project);
        for name in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"] {
            if let Some(value) = std::env::var_os(name) {
                sandbox.set(name, value);
            }
        }
        sandbox.set("DEST", sandbox.path("dest"));
        sandbox.set("APP", sandbox.path("srv/app"));
        sandbox.set("VERSION", "1.2.3");
        let mut deployment = Deployment { sandbox, project, compose, container: String::new() };
        deployment.write_file();
        deployment.compose(&["up", "-d"]).expect(0);
        let container = deployment.compose(&["ps", "-q", "db"]).expect(0).text();
        container.trim().clone_into(&mut deployment.container);
        let since = Instant::now();
        while deployment.try_sql("app", "SELECT 1").code != 0 {
            assert!(
                since.elapsed() < server::PATIENCE,
                "the container does not answer: {}",
                deployment.compose(&["logs", "db"]).text()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        deployment
    }

    pub fn compose(&self, args: &[&str]) -> Ended {
        let mut command = self.sandbox.command(self.compose[0]);
        run(command.args(&self.compose[1..]).args(args), b"")
    }

    /// Writes the file that Compose reads.
    pub fn write_file(&self) {
        let image = image();
        let text = format!(
            "version: '2.4'
services:
  db:
    image: {image}
    user: '999:999'
    network_mode: none
    stop_grace_period: 1s
    command: [sh, /entry.sh]
    environment:
      POSTGRES_USER: piprio
      POSTGRES_PASSWORD: '{PASSWORD}'
      POSTGRES_DB: app
"
        );
        fs::write(self.sandbox.path("docker-compose.yml"), text).unwrap();
    }

    pub fn try_sql(&self, database: &str, statements: &str) -> Ended {
        let mut command = self.sandbox.command("docker");
        let password = format!("PGPASSWORD={PASSWORD}");
        command.args(["exec", "-i", "-e", &password, &self.container, "psql", "-XAtq"]);
        command.args(["-v", "ON_ERROR_STOP=1", "-U", "piprio", "-d", database]);
        run(&mut command, statements.as_bytes())
    }

    #[track_caller]
    pub fn sql(&self, database: &str, statements: &str) -> String {
        self.try_sql(database, statements).expect(0).text().trim_end().to_owned()
    }

    /// Runs a script in the application's folder; returns it with the codes of its last pipe.
    #[track_caller]
    pub fn shell(&self, script: &str) -> Ended {
        let script = format!("{script}echo \"${{PIPESTATUS[@]}}\"");
        self.sandbox.run("bash", &["-c", &script], b"").expect(0)
    }

    /// Locks a table until it is dropped.
    pub fn lock(&self, table: &str) -> Locker {
        let mut command = self.sandbox.command("docker");
        let password = format!("PGPASSWORD={PASSWORD}");
        command.args(["exec", "-i", "-e", &password, "-e", "PGAPPNAME=locker", &self.container]);
        command.args(["psql", "-XAtq", "-U", "piprio", "-d", "app"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.as_mut().unwrap();
        writeln!(stdin, "BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT 'locked';")
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        Locker(child)
    }

    /// Waits until no session but the question's own is left in the container.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        let since = Instant::now();
        loop {
            let left = self.sql(
                "postgres",
                "SELECT application_name, left(query, 60) FROM pg_stat_activity \
                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> 'locker'",
            );
            if left.is_empty() {
                return;
            }
            assert!(since.elapsed() < server::PATIENCE, "left in the container: {left}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A session that holds a lock.
pub struct Locker(Child);

impl Drop for Locker {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let down = self.compose(&["down", "-v", "-t", "0"]);
        if down.code != 0 && !std::thread::panicking() {
            panic!("the deployment '{}' is not gone: {}", self.project, down.stderr);
        }
    }
}
