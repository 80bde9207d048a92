//! A database under Docker Compose, reached by the programs inside its container.
//!
//! No image is pulled: one is made of this machine's own PostgreSQL, and kept for the next run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::harness::{Ended, Sandbox, assert_same_tree, noise, run, snapshot};
use crate::server;

/// The first two pipes of DESIGN.md, section 3; only the application's folder is another.
const BACKUP: &str = r#"
bk-push manifest latest --from "$DEST" --app piprio --or-none > parent.json
bk-manifest new --app piprio --app-version "$VERSION" --parent parent.json |
bk-dump postgres --via compose:db --database app |
bk-dump archive --name config .env secrets certs |
bk-manifest add --root "$APP" events thumbnails |
bk-push --to "$DEST" |
bk-verify --from "$DEST" |
bk-prune --from "$DEST" --keep-daily 7 --keep-weekly 4 > run.json
"#;
const RESTORE: &str = r#"
bk-push manifest latest --from "$DEST" --app piprio |
bk-push fetch --from "$DEST" --target ./restored |
bk-dump restore --from ./restored --via compose:db --database app > restored.json
"#;

const PASSWORD: &str = "im container geheim";

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
struct Deployment {
    sandbox: Sandbox,
    project: String,
    compose: &'static [&'static str],
    container: String,
}

impl Deployment {
    fn start() -> Self {
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

    fn compose(&self, args: &[&str]) -> Ended {
        let mut command = self.sandbox.command(self.compose[0]);
        run(command.args(&self.compose[1..]).args(args), b"")
    }

    /// Writes the file that Compose reads.
    fn write_file(&self) {
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

    fn try_sql(&self, database: &str, statements: &str) -> Ended {
        let mut command = self.sandbox.command("docker");
        let password = format!("PGPASSWORD={PASSWORD}");
        command.args(["exec", "-i", "-e", &password, &self.container, "psql", "-XAtq"]);
        command.args(["-v", "ON_ERROR_STOP=1", "-U", "piprio", "-d", database]);
        run(&mut command, statements.as_bytes())
    }

    #[track_caller]
    fn sql(&self, database: &str, statements: &str) -> String {
        self.try_sql(database, statements).expect(0).text().trim_end().to_owned()
    }

    /// Runs a script in the application's folder; returns it with the codes of its last pipe.
    #[track_caller]
    fn shell(&self, script: &str) -> Ended {
        let script = format!("{script}echo \"${{PIPESTATUS[@]}}\"");
        self.sandbox.run("bash", &["-c", &script], b"").expect(0)
    }

    /// Locks a table until it is dropped.
    fn lock(&self, table: &str) -> Locker {
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
    fn wait_until_idle(&self) {
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
struct Locker(Child);

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

const ROWS: &str = "CREATE TABLE events (id serial PRIMARY KEY, name text, bytes bytea);
    INSERT INTO events (name, bytes) SELECT E'line\\nünïcödé\\r\\n' || n, decode(string_agg(md5(n || ' ' || m), ''), 'hex')
    FROM generate_series(1, 3000) n, generate_series(1, 10) m GROUP BY n;
    SELECT lo_from_bytea(7, '\\x0a0d0a0d00ff');";
const SUM: &str = "SELECT count(*), md5(string_agg(e::text, '|' ORDER BY id)) FROM events e;
    SELECT last_value FROM events_id_seq; SELECT lo_get(7);";

fn lines(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| !line.contains("hint:")).collect()
}

fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn the_pipes_of_the_design_run_as_printed() {
    let deployment = Deployment::start();
    let sandbox = &deployment.sandbox;
    deployment.sql("app", ROWS);
    write(&sandbox.path(".env"), b"SECRET_KEY=geheim\n");
    fs::set_permissions(sandbox.path(".env"), fs::Permissions::from_mode(0o600)).unwrap();
    write(&sandbox.path("secrets/key"), b"key");
    write(&sandbox.path("certs/site.pem"), b"certificate");
    for number in 0..30 {
        write(&sandbox.path(&format!("srv/app/events/{number}.jpg")), &noise(number, 5000));
    }
    write(&sandbox.path("srv/app/thumbnails/0.jpg"), b"small");
    write(&sandbox.path("srv/app/cache/junk"), b"not asked for");
    for kind in ["full", "incremental"] {
        let ended = deployment.shell(BACKUP);
        assert_eq!(ended.text(), "0 0 0 0 0 0 0\n", "{}", ended.stderr);
        let document = fs::read(sandbox.path("run.json")).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["backup"]["type"], kind);
        assert_eq!(document["application"]["version"], "1.2.3");
        let kinds: Vec<_> =
            document["components"].as_array().unwrap().iter().map(|one| &one["kind"]).collect();
        assert_eq!(kinds, ["postgresql", "archive", "tree"]);
        assert!(!document.to_string().contains(PASSWORD));
    }
    let sum = deployment.sql("app", SUM);
    let files = snapshot(&sandbox.path("srv/app"));
    deployment.sql("postgres", "DROP DATABASE app");
    fs::remove_dir_all(sandbox.path("srv")).unwrap();
    let ended = deployment.shell(RESTORE);
    assert_eq!(ended.text(), "0 0 0\n", "{}", ended.stderr);
    assert_eq!(deployment.sql("app", SUM), sum);
    let mut restored = snapshot(&sandbox.path("restored"));
    for path in ["cache", "cache/junk"] {
        let mut files = files.clone();
        assert!(files.remove(std::ffi::OsStr::new(path)).is_some());
        assert!(restored.remove(std::ffi::OsStr::new(path)).is_none());
    }
    let mut asked = files;
    asked.retain(|path, _| !path.to_str().unwrap().starts_with("cache"));
    assert_same_tree(&asked, &restored);
    let latest = sandbox.run("bk-push", &["manifest", "latest", "--from", "dest"], b"").ok().stdout;
    let config = ["restore", "--from", "restored", "--component", "config", "--into", "config"];
    sandbox.run("bk-dump", &config, &latest).ok();
    assert_eq!(fs::read(sandbox.path("config/.env")).unwrap(), b"SECRET_KEY=geheim\n");
    assert_eq!(fs::read(sandbox.path("config/certs/site.pem")).unwrap(), b"certificate");
    // A second restore finds the database in use.
    let again = ["restore", "--from", "restored", "--via", "compose:db", "--database", "app"];
    let refused = sandbox.run("bk-dump", &again, &latest).expect(2);
    assert!(refused.stderr.contains("is not empty"), "{}", refused.stderr);
    assert_eq!(deployment.sql("app", SUM), sum);
    deployment.wait_until_idle();
}

#[test]
fn a_container_is_reached_by_its_name() {
    let deployment = Deployment::start();
    let sandbox = &deployment.sandbox;
    deployment.sql("app", ROWS);
    let via = format!("docker:{}", deployment.container);
    let dump = ["bk-dump", "postgres", "--via", &via];
    let new = ["bk-manifest", "new", "--app", "piprio"];
    // User, database and password are the image's own.
    let mut ended = sandbox.pipe(&[&new, &dump, &["bk-push", "--to", "dest"]]);
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""));
    }
    let document = ended.pop().unwrap().stdout;
    sandbox.fetch(&document, "back");
    let dump = sandbox.path("back/.bk/database/app.dump");
    let mut list = server_command("pg_restore");
    run(list.arg("--list").arg(&dump), b"").expect(0);
    let check = ["check", "--via", &via, dump.to_str().unwrap()];
    sandbox.run("bk-dump", &check, b"").expect(0);
    let restore = ["restore", "--from", "back", "--via", &via, "--database", "Ödd name"];
    sandbox.run("bk-dump", &restore, &document).ok();
    assert_eq!(deployment.sql("Ödd name", SUM), deployment.sql("app", SUM));
    deployment.wait_until_idle();
}

fn server_command(program: &str) -> Command {
    Command::new(server::bin_dir().join(program))
}

#[test]
fn what_cannot_be_reached_is_named_in_one_line() {
    let deployment = Deployment::start();
    let sandbox = &deployment.sandbox;
    let there = format!("docker:{}", deployment.container);
    let not_there = format!("docker:{}-no-such", deployment.project);
    let new = sandbox.run("bk-manifest", &["new", "--app", "piprio"], b"").ok().stdout;
    let refused = |args: &[&str], code: i32, words: &str| {
        let ended = sandbox.run("bk-dump", &[&["postgres", "--via"], args].concat(), &new);
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        assert_eq!(lines(&ended.stderr).len(), 1, "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{args:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains(PASSWORD) && ended.stdout.is_empty(), "{}", ended.stderr);
    };
    refused(&[&not_there], 13, "No such container");
    // In the words of Compose 2, or in ours where docker-compose 1 has none.
    refused(&["compose:no-such"], 13, "no");
    refused(&[&there, "--database", "no-such"], 13, "database \"no-such\" does not exist");
    refused(&[&there, "--user", "stranger"], 12, "no password supplied");
    refused(&["compose:db", "--database", "no-such"], 13, "database \"no-such\" does not exist");
    let mut wrong = sandbox.command("bk-dump");
    wrong.args(["postgres", "--via", &there]).env("PGPASSWORD", "wrong");
    let wrong = run(&mut wrong, &new).expect(12);
    assert!(wrong.stderr.contains("password authentication failed"), "{}", wrong.stderr);
    let mut no_daemon = sandbox.command("bk-dump");
    no_daemon.args(["postgres", "--via", &there]).env("DOCKER_HOST", "unix:///no/such.sock");
    let no_daemon = run(&mut no_daemon, &new).expect(1);
    assert_eq!(lines(&no_daemon.stderr).len(), 1, "{}", no_daemon.stderr);
    assert!(no_daemon.stderr.contains("/no/such.sock"), "{}", no_daemon.stderr);
    deployment.compose(&["stop", "-t", "1"]).expect(0);
    refused(&[&there], 1, "is not running");
    refused(&["compose:db"], 1, "running");
    fs::remove_file(sandbox.path("docker-compose.yml")).unwrap();
    refused(&["compose:db"], 1, "onfiguration file");
    deployment.write_file();
}

/// The paths of a manifest's entries whose bytes this backup stored itself.
fn stored_anew(document: &serde_json::Value) -> Vec<&str> {
    let entries = document["files"]["manifest"].as_array().unwrap().iter();
    entries
        .filter(|entry| entry["at"].is_object() && entry["at"].get("backup").is_none())
        .map(|entry| entry["path"].as_str().unwrap())
        .collect()
}

#[test]
fn a_directory_comes_out_of_the_container_table_by_table() {
    let deployment = Deployment::start();
    let sandbox = &deployment.sandbox;
    deployment.sql("app", ROWS);
    deployment.sql("app", "CREATE TABLE other AS SELECT n FROM generate_series(1, 1000) n");
    let pipe = r#"
bk-push manifest latest --from "$DEST" --app piprio --or-none > parent.json
bk-manifest new --app piprio --parent parent.json |
bk-dump globals --via compose:db |
bk-dump postgres --via compose:db --format directory |
bk-push --to "$DEST" |
bk-verify --from "$DEST" --level content > run.json
"#;
    let mut folders = Vec::new();
    for round in ["all", "no table", "one table"] {
        if round == "one table" {
            deployment.sql("app", "INSERT INTO other VALUES (0)");
        }
        let ended = deployment.shell(pipe);
        assert_eq!((ended.text().as_str(), ended.stderr.as_str()), ("0 0 0 0 0\n", ""), "{round}");
        let run = fs::read(sandbox.path("run.json")).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&run).unwrap();
        let stored = stored_anew(&document);
        let tables = stored.iter().filter(|path| path.ends_with(".dat.gz")).count();
        let is_table = |path: &&&str| path.contains("app.dir/") && !path.ends_with("toc.dat");
        match round {
            "all" => assert!(tables >= 3, "{stored:?}"),
            "no table" => assert_eq!(stored.iter().find(is_table), None, "{stored:?}"),
            _ => assert_eq!(tables, 1, "{stored:?}"),
        }
        sandbox.fetch(&run, round);
        let check = ["check", "--from", round, "--via", "compose:db"];
        sandbox.run("bk-dump", &check, &run).ok();
        folders.push(sandbox.path(round).join(".bk/database/app.dir"));
    }
    let content = |folder: &Path| -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap())
            .filter(|file| file.file_name() != "toc.dat")
            .map(|file| (file.file_name(), fs::read(file.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    assert_eq!(content(&folders[0]), content(&folders[1]));
    // The programs of this host read it too.
    let mut list = server_command("pg_restore");
    run(list.args(["--file", "/dev/null"]).arg(&folders[2]), b"").expect(0);
    // A dump that lacks a table's file is damaged, and the container says so.
    let missing = content(&folders[2]).into_iter().find(|(name, _)| name != "blobs.toc").unwrap().0;
    fs::remove_file(folders[2].join(missing)).unwrap();
    let via = format!("docker:{}", deployment.container);
    let check = ["check", "--via", &via, folders[2].to_str().unwrap()];
    let refused = sandbox.run("bk-dump", &check, b"").expect(20);
    assert!(refused.stderr.contains("pg_restore"), "{}", refused.stderr);
    deployment.wait_until_idle();
}

#[test]
fn both_kinds_of_compose_work_from_any_folder_and_without_a_terminal() {
    let deployment = Deployment::start();
    let sandbox = &deployment.sandbox;
    deployment.sql("app", ROWS);
    let new = sandbox.run("bk-manifest", &["new", "--app", "piprio"], b"").ok().stdout;
    let place = |program: &str| {
        let asked = format!("command -v {program}");
        sandbox.run("sh", &["-c", &asked], b"").ok().text().trim_end().to_owned()
    };
    let docker = place("docker");
    let compose = match deployment.compose {
        [program] => place(program),
        _ => format!("{docker} compose"),
    };
    for is_plugin in [true, false] {
        let folder = sandbox.path(if is_plugin { "plugin" } else { "program" });
        fs::create_dir(&folder).unwrap();
        let calls = folder.join("calls");
        let plugin = if is_plugin {
            format!("shift; [ \"$1\" = version ] || exec {compose} \"$@\"; exit 0")
        } else {
            "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1".to_owned()
        };
        let head = format!("#!/bin/sh\necho \"${{0##*/}} $*\" >> {}\n", calls.display());
        let scripts = [
            (
                "docker",
                format!("{head}if [ \"$1\" = compose ]; then {plugin}; fi\nexec {docker} \"$@\"\n"),
            ),
            ("docker-compose", format!("{head}exec {compose} \"$@\"\n")),
        ];
        for (name, script) in scripts {
            let program = folder.join(name);
            // Not written by us: a child of another test could hold it open.
            run(Command::new("tee").arg(&program), script.as_bytes()).expect(0);
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // As cron would: another folder, hardly a variable, no terminal.
        let program = crate::harness::bin_dir().join("bk-dump");
        let variables = std::env::vars_os()
            .filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("DOCKER_")));
        let mut cron = Command::new("setsid");
        cron.arg("--wait").arg(program).args(["postgres", "--via", "compose:db"]);
        cron.current_dir("/").env_clear().envs(variables);
        cron.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", folder.display()));
        cron.env("BK_STAGE", sandbox.path("stage"));
        let file = sandbox.path("docker-compose.yml");
        cron.env("COMPOSE_FILE", file).env("COMPOSE_PROJECT_NAME", &deployment.project);
        let ended = run(&mut cron, &new).ok();
        assert_eq!(ended.json()["components"][0]["database"], "app");
        let calls = fs::read_to_string(calls).unwrap();
        let asked = if is_plugin { "docker compose ps -q db" } else { "docker-compose ps -q db" };
        assert!(calls.contains(asked), "{calls}");
        for call in calls.lines().filter(|call| call.contains("exec")) {
            assert!(call.starts_with("docker exec -i "), "{call}");
            let flags = call.split(&deployment.container).next().unwrap();
            let has_terminal =
                flags.split(' ').any(|arg| ["-t", "-it", "-ti", "--tty"].contains(&arg));
            assert!(!has_terminal, "{call}");
            assert!(!call.contains(PASSWORD), "{call}");
        }
    }
    deployment.wait_until_idle();
}

#[test]
fn a_check_that_is_stopped_leaves_no_folder_in_the_container() {
    use rustix::process::{Pid, Signal, kill_process};
    let deployment = Deployment::start();
    let sandbox = &deployment.sandbox;
    deployment.sql(
        "app",
        "CREATE TABLE heavy AS SELECT n, (SELECT string_agg(md5(n || ' ' || m), '') \
         FROM generate_series(1, 100) m) FROM generate_series(1, 10000) n",
    );
    let dump = ["bk-dump", "postgres", "--via", "compose:db", "--format", "directory"];
    let new = ["bk-manifest", "new", "--app", "piprio"];
    let document = sandbox.pipe(&[&new, &dump, &["bk-push", "--to", "dest"]]).pop().unwrap();
    sandbox.fetch(&document.expect(0).stdout, "back");
    let folder = sandbox.path("back/.bk/database/app.dir");
    let until = |condition: &str| {
        let script = format!("while set -- /tmp/tmp.*; {condition} [ -e \"$1\" ]; do :; done");
        let mut command = sandbox.command("docker");
        command.args(["exec", "-i", &deployment.container, "sh", "-c", &script]);
        command
    };
    for signal in [Signal::TERM, Signal::KILL] {
        let mut appears = until("!").spawn().unwrap();
        let mut check = sandbox
            .command("bk-dump")
            .args(["check", "--via", "compose:db"])
            .arg(&folder)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(appears.wait().unwrap().success());
        kill_process(Pid::from_child(&check), signal).unwrap();
        check.wait().unwrap();
        run(&mut until(""), b"").expect(0);
    }
}

#[test]
fn a_dump_that_is_stopped_leaves_no_session_in_the_container() {
    use rustix::process::{Pid, Signal, kill_process};
    let deployment = Deployment::start();
    let sandbox = &deployment.sandbox;
    deployment.sql(
        "app",
        "CREATE TABLE heavy AS SELECT n, (SELECT string_agg(md5(n || ' ' || m), '') \
         FROM generate_series(1, 100) m) FROM generate_series(1, 10000) n",
    );
    let new = sandbox.run("bk-manifest", &["new", "--app", "piprio"], b"").ok().stdout;
    fs::write(sandbox.path("new"), &new).unwrap();
    // A lock keeps pg_dump waiting; only after KILL nobody is left who could end it then.
    for (signal, format, is_locked) in [
        (Signal::TERM, "custom", true),
        (Signal::TERM, "directory", true),
        (Signal::TERM, "custom", false),
        (Signal::KILL, "custom", false),
        (Signal::KILL, "directory", false),
    ] {
        let lock = is_locked.then(|| deployment.lock("heavy"));
        let mut dump = sandbox
            .command("bk-dump")
            .args(["postgres", "--via", "compose:db", "--format", format])
            .stdin(fs::File::open(sandbox.path("new")).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let since = Instant::now();
        let is_dumping = "SELECT count(*) FROM pg_stat_activity \
            WHERE application_name LIKE 'bk-dump%' \
            AND (query LIKE 'COPY%' OR wait_event_type = 'Lock')";
        while deployment.sql("postgres", is_dumping) == "0" {
            assert!(dump.try_wait().unwrap().is_none(), "it ended before it could be stopped");
            assert!(since.elapsed() < server::PATIENCE, "it does not dump");
        }
        kill_process(Pid::from_child(&dump), signal).unwrap();
        assert!(!dump.wait().unwrap().success());
        deployment.wait_until_idle();
        drop(lock);
    }
    let args = ["postgres", "--via", "compose:db"];
    sandbox.run("bk-dump", &args, &new).expect(0);
}
