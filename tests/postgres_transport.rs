//! The ways to a PostgreSQL server that is not this host's, and what of it is no database: over ssh
//! to a real sshd of the test's own; roles.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Sandbox, files_below, run};
use crate::server::{APP, ENCODED_PASSWORD, PASSWORD, PATIENCE, ROLE, Server};

const NEW: &[&str] = &["bk-manifest", "new", "--app", "app"];
const PUSH: &[&str] = &["bk-push", "--to", "dest"];

/// What is run as `ssh`: the real one with a configuration of the test's own. Its arguments are kept.
const SSH: &str = "#!/bin/sh\nprintf '%s\\n' \"$*\" >> \"${0%/*}/args\"\nexec /usr/bin/ssh -F \"${0%/*}/config\" \"$@\"\n";
/// What the far user's session begins with: where the programs are, and variables that must not hold.
const FAR: &str = "PATH=@BIN@:/usr/bin:/bin PGHOST=192.0.2.1 PGHOSTADDR=192.0.2.1 TMPDIR=@TMP@";

/// An ssh server of the test's own, on a free port; its only user is the one that runs the tests.
struct Sshd {
    process: Child,
    folder: PathBuf,
}

impl Sshd {
    /// Starts it in a sandbox, where it is known by the name `far`.
    fn start(server: &Server, sandbox: &mut Sandbox) -> Self {
        let folder = sandbox.path("ssh");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        for key in ["host", "user", "other"] {
            let file = folder.join(key);
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file);
            run(&mut keygen, b"").expect(0);
        }
        // It insists on this folder, and keeps nothing in it.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let mut left = 10;
        let (process, port) = loop {
            match try_start(server, &folder) {
                Ok(started) => break started,
                // Another process may have been given the port meanwhile.
                Err(log) if log.contains("already in use") && left > 0 => left -= 1,
                Err(log) => panic!("the private ssh server did not start: {log}"),
            }
        };
        let host_key = fs::read_to_string(folder.join("host.pub")).unwrap();
        let known = format!("[127.0.0.1]:{port} {host_key}");
        fs::write(folder.join("known_hosts"), known).unwrap();
        let config = |key: &str, known: &str| {
            let folder = folder.display();
            format!(
                " HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/{key}\n \
                 IdentitiesOnly yes\n UserKnownHostsFile {folder}/{known}\n \
                 GlobalKnownHostsFile /dev/null\n"
            )
        };
        let config = [
            // What a user may have set, and must not disturb us.
            "Host far\n RequestTTY force\n RemoteCommand id\n",
            &config("user", "known_hosts"),
            "Host unlocked\n",
            &config("other", "known_hosts"),
            "Host stranger\n",
            &config("user", "no_hosts"),
            "Host nobody\n HostName 127.0.0.1\n Port 1\n",
        ]
        .concat();
        fs::write(folder.join("config"), config).unwrap();
        let bin = sandbox.path("far-bin");
        fs::create_dir(&bin).unwrap();
        fs::rename(folder.join("config"), bin.join("config")).unwrap();
        // Not written by us: a child of another test could hold it open, and it could not be run.
        let ssh = bin.join("ssh");
        run(Command::new("tee").arg(&ssh), SSH.as_bytes()).expect(0);
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        let path =
            format!("{}:{}:/usr/bin:/bin", bin.display(), crate::harness::bin_dir().display());
        sandbox.set("PATH", path);
        Sshd { process, folder }
    }

    /// The arguments of every ssh so far.
    fn arguments(&self) -> String {
        fs::read_to_string(self.folder.with_file_name("far-bin").join("args")).unwrap()
    }
}

fn try_start(server: &Server, folder: &Path) -> Result<(Child, u16), String> {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let public = fs::read_to_string(folder.join("user.pub")).unwrap();
    fs::write(folder.join("authorized_keys"), public).unwrap();
    let far_tmp = folder.join("far-tmp");
    fs::create_dir_all(&far_tmp).unwrap();
    let far = FAR
        .replace("@BIN@", server.bin().to_str().unwrap())
        .replace("@TMP@", far_tmp.to_str().unwrap());
    let folder_text = folder.display();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder_text}/host\n\
         AuthorizedKeysFile {folder_text}/authorized_keys\nPidFile none\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\n\
         KbdInteractiveAuthentication no\nPrintMotd no\nBanner {folder_text}/banner\nSetEnv {far}\n"
    );
    fs::write(folder.join("sshd_config"), config).unwrap();
    fs::write(folder.join("banner"), "Welcome. Nobody should warn of this.\n").unwrap();
    let log = folder.join("log");
    let mut process = Command::new("setpriv")
        .args(["--pdeathsig=TERM", "/usr/sbin/sshd", "-D", "-e", "-f"])
        .arg(folder.join("sshd_config"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let since = Instant::now();
    loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if text.contains("Server listening on") {
            return Ok((process, port));
        }
        if process.try_wait().unwrap().is_some() || since.elapsed() > PATIENCE {
            let _ = process.kill();
            let _ = process.wait();
            return Err(text);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server that is reached through ssh only: no variable of libpq leads to it.
fn bench(statements: &str) -> (Server, Sandbox, Sshd) {
    let server = Server::start();
    server.sql(APP, statements);
    let mut sandbox = Sandbox::new();
    let sshd = Sshd::start(&server, &mut sandbox);
    (server, sandbox, sshd)
}

const ROWS: &str = "SET ROLE \"app owner\"; CREATE TABLE events (id serial PRIMARY KEY, name text);
    INSERT INTO events (name) SELECT E'ü\\r\\n' || n FROM generate_series(1, 5000) n;
    CREATE TABLE other AS SELECT n FROM generate_series(1, 100) n;
    SELECT lo_from_bytea(7, '\\x0a0d0a0d00ff');";

#[test]
fn a_database_on_another_host_comes_out_and_back_in() {
    let (server, mut sandbox, sshd) = bench(ROWS);
    server.sql("postgres", &format!("ALTER ROLE \"{ROLE}\" CREATEDB"));
    sandbox.set("FAR_URL", server.url());
    let via = ["--via", "ssh:far", "--url-env", "FAR_URL"];
    for (name, format) in [("custom", "custom"), ("plain", "plain"), ("folder", "directory")] {
        let dump = [&["bk-dump", "postgres"], &via[..], &["--format", format]].concat();
        let ended = sandbox.pipe(&[NEW, &dump, PUSH]);
        for step in &ended {
            assert_eq!((step.code, step.stderr.as_str()), (0, ""), "{format}");
        }
        let document = &ended[2].stdout;
        sandbox.fetch(document, name);
        let check = ["check", "--from", name, "--via", "ssh:far"];
        sandbox.run("bk-dump", &check, document).ok();
        if format == "custom" {
            let restore = [&["restore", "--from", name], &via[..], &["--database", "It's ü"]];
            sandbox.run("bk-dump", &restore.concat(), document).ok();
            assert_eq!(server.content("It's ü"), server.content(APP));
        }
    }
    server.wait_until_idle();
    assert_eq!(files_below(&sshd.folder.join("far-tmp")), Vec::<PathBuf>::new());
    let arguments = sshd.arguments();
    for line in arguments.lines() {
        assert!(line.starts_with("-T ") && line.contains("BatchMode=yes"), "{line}");
        for secret in [PASSWORD, ENCODED_PASSWORD, "127.0.0.1", "PGPASS"] {
            assert!(!line.contains(secret), "{line}");
        }
    }
    assert!(!fs::read_to_string(sshd.folder.join("log")).unwrap().contains("he/im"));
}

#[test]
fn a_host_that_cannot_be_reached_is_named_in_one_line() {
    let (server, mut sandbox, sshd) = bench("");
    sandbox.set("FAR_URL", server.url());
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let refused = |sandbox: &Sandbox, host: &str, code: i32, words: &str| {
        let via = format!("ssh:{host}");
        let args = ["postgres", "--via", &via, "--url-env", "FAR_URL"];
        let ended = sandbox.run("bk-dump", &args, &new);
        assert_eq!(ended.code, code, "{host}: {}", ended.stderr);
        let lines = ended.stderr.lines().filter(|line| !line.contains("hint:")).count();
        assert_eq!(lines, 1, "{host}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{host}: {}", ended.stderr);
        assert!(!ended.stderr.contains("he/im") && ended.stdout.is_empty(), "{}", ended.stderr);
    };
    refused(&sandbox, "unlocked", 12, "Permission denied");
    refused(&sandbox, "stranger", 12, "Host key verification failed");
    refused(&sandbox, "nobody", 1, "Connection refused");
    refused(&sandbox, "-oProxyCommand=id", 2, "malformed --via");
    refused(&sandbox, "me@-oProxyCommand=id", 2, "malformed --via");
    sandbox.set("FAR_URL", server.url_of("no-such"));
    refused(&sandbox, "far", 13, "database \"no-such\" does not exist");
    sandbox.set("FAR_URL", server.url().replace(ENCODED_PASSWORD, "wrong"));
    refused(&sandbox, "far", 12, "password authentication failed");
    sandbox.set("FAR_URL", server.url().replace(ENCODED_PASSWORD, "two%0Alines"));
    refused(&sandbox, "far", 2, "line break");
    // Programs that are not there are named by the shell over there.
    let config = sshd.folder.join("sshd_config");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains(server.bin().to_str().unwrap()));
    let empty = sandbox.path("empty");
    fs::create_dir(&empty).unwrap();
    std::os::unix::fs::symlink("/bin/sh", empty.join("sh")).unwrap();
    let path = format!("{}:/usr/bin:/bin", server.bin().display());
    fs::write(&config, text.replace(&path, empty.to_str().unwrap())).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&sshd.process),
        rustix::process::Signal::HUP,
    )
    .unwrap();
    let since = Instant::now();
    let listens =
        || fs::read_to_string(sshd.folder.join("log")).unwrap().matches("listening").count();
    while listens() < 2 {
        assert!(since.elapsed() < PATIENCE, "it does not read its configuration again");
        std::thread::sleep(Duration::from_millis(5));
    }
    sandbox.set("FAR_URL", server.url());
    refused(&sandbox, "far", 1, "pg_dump: not found");
    server.wait_until_idle();
}

#[test]
fn a_dump_that_is_stopped_leaves_no_session_on_the_other_host() {
    use rustix::process::{Pid, Signal, kill_process};
    let heavy = "CREATE TABLE heavy AS SELECT n, (SELECT string_agg(md5(n || ' ' || m), '') \
         FROM generate_series(1, 100) m) FROM generate_series(1, 10000) n; \
         ALTER TABLE heavy OWNER TO \"app owner\"";
    let (server, mut sandbox, sshd) = bench(heavy);
    sandbox.set("FAR_URL", server.url());
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    fs::write(sandbox.path("new"), &new).unwrap();
    // A lock keeps pg_dump waiting; only after KILL nobody is left who could end it then.
    for (signal, format, is_locked) in [
        (Signal::TERM, "custom", true),
        (Signal::TERM, "directory", true),
        (Signal::TERM, "directory", false),
        (Signal::KILL, "custom", false),
    ] {
        let lock = is_locked.then(|| {
            let mut lock = server.session(APP);
            lock.sql("BEGIN; LOCK TABLE heavy IN ACCESS EXCLUSIVE MODE");
            lock
        });
        let mut dump = sandbox
            .command("bk-dump")
            .args(["postgres", "--via", "ssh:far", "--url-env", "FAR_URL", "--format", format])
            .stdin(fs::File::open(sandbox.path("new")).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let since = Instant::now();
        let is_dumping = "SELECT count(*) FROM pg_stat_activity \
            WHERE application_name LIKE 'bk-dump%' \
            AND (query LIKE 'COPY%' OR wait_event_type = 'Lock')";
        while server.sql("postgres", is_dumping) == "0" {
            assert!(dump.try_wait().unwrap().is_none(), "it ended before it could be stopped");
            assert!(since.elapsed() < PATIENCE, "it does not dump");
        }
        kill_process(Pid::from_child(&dump), signal).unwrap();
        assert!(!dump.wait().unwrap().success());
        // The lock is held until then: it is not what ends it.
        server.wait_for(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'bk-dump%'",
            "0",
        );
        drop(lock);
        server.wait_until_idle();
    }
    assert_eq!(files_below(&sshd.folder.join("far-tmp")), Vec::<PathBuf>::new());
    let dump = ["postgres", "--via", "ssh:far", "--url-env", "FAR_URL"];
    sandbox.run("bk-dump", &dump, &new).ok();
}

#[test]
fn a_service_and_a_password_file_are_libpq_s_own_matter() {
    let server = Server::start();
    let mut sandbox = Sandbox::new();
    sandbox.set("HOME", sandbox.path("home"));
    let port = server.port();
    let service = sandbox.path("services");
    let text = format!("[app]\nhost=127.0.0.1\nport={port}\nuser={ROLE}\ndbname={APP}\n");
    fs::write(&service, text).unwrap();
    let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    let passfile = sandbox.path("passwords");
    fs::write(&passfile, format!("127.0.0.1:{port}:{APP}:{ROLE}:{escaped}\n")).unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    sandbox.set("PGSERVICEFILE", &service);
    sandbox.set("PGSERVICE", "app");
    sandbox.set("PGPASSFILE", &passfile);
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let document = sandbox.run("bk-dump", &["postgres"], &new).ok();
    assert_eq!(document.json()["components"][0]["database"], APP);
    sandbox.set("PGPASSFILE", "/no/such");
    let refused = sandbox.run("bk-dump", &["postgres"], &new).expect(12);
    assert!(refused.stderr.contains("no password supplied"), "{}", refused.stderr);
}

const ROLES: &str = "CREATE ROLE readers; COMMENT ON ROLE readers IS E'it''s; \\\\! for\n-- reading';
    CREATE ROLE \"O'dd \"\"role\"\"; ü\" LOGIN PASSWORD 'geheim' CONNECTION LIMIT 3 VALID UNTIL '2030-01-01';
    ALTER ROLE \"O'dd \"\"role\"\"; ü\" SET search_path TO 'a b', public;
    GRANT readers TO \"O'dd \"\"role\"\"; ü\"; GRANT readers TO \"app owner\" WITH ADMIN OPTION;";
const ROLES_SUM: &str = "SELECT rolname, rolsuper, rolcanlogin, rolconnlimit, rolpassword, \
    rolvaliduntil AT TIME ZONE 'UTC', shobj_description(oid, 'pg_authid') FROM pg_authid \
    WHERE rolname !~ '^pg_' ORDER BY 1; \
    SELECT roleid::regrole, member::regrole, grantor::regrole, admin_option FROM pg_auth_members \
    WHERE roleid::regrole::text !~ '^pg_' ORDER BY 1, 2; \
    SELECT setrole::regrole, setdatabase <> 0, setconfig FROM pg_db_role_setting ORDER BY 1, 2";

#[test]
fn roles_come_back_where_they_are_missing_and_nowhere_else() {
    let server = Server::start();
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    server.sql("postgres", ROLES);
    let before = server.sql("postgres", ROLES_SUM);
    let globals = ["bk-dump", "globals"];
    let ended = sandbox.pipe(&[
        NEW,
        &globals,
        PUSH,
        &["bk-verify", "--from", "dest", "--level", "content"],
    ]);
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""));
    }
    let document = ended[3].stdout.clone();
    let json = ended[3].json();
    let component = &json["components"][0];
    assert_eq!((&component["kind"], &component["name"]), (&"globals".into(), &"globals".into()));
    assert_eq!(
        component["roles"],
        serde_json::json!(["O'dd \"role\"; ü", ROLE, "postgres", "readers"])
    );
    assert!(!ended[3].text().contains("SCRAM"));
    sandbox.fetch(&document, "back");
    let file = sandbox.path("back/.bk/globals/globals.sql.zst");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    sandbox.run("bk-dump", &["check", "--from", "back"], &document).ok();

    // Another server, with a role of the same name and another password.
    let other = Server::start();
    other.sql("postgres", &format!("ALTER ROLE \"{ROLE}\" PASSWORD 'changed since'"));
    let owner = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{ROLE}'");
    let changed = other.sql("postgres", &owner);
    let mut target = Sandbox::new();
    other.known_to(&mut target);
    let back = sandbox.path("back");
    let restore = [
        "restore",
        "--from",
        back.to_str().unwrap(),
        "--component",
        "globals",
        "--user",
        "postgres",
    ];
    let untouched = other.sql("postgres", ROLES_SUM);
    target.run("bk-dump", &[&restore[..], &["--dry-run"]].concat(), &document).ok();
    assert_eq!(other.sql("postgres", ROLES_SUM), untouched);
    target.run("bk-dump", &restore, &document).ok();
    assert_eq!(other.sql("postgres", &owner), changed);
    other.sql("postgres", &format!("ALTER ROLE \"{ROLE}\" PASSWORD 'x'"));
    server.sql("postgres", &format!("ALTER ROLE \"{ROLE}\" PASSWORD 'x'"));
    let strip = |sum: String| -> Vec<String> {
        let is_owner = |line: &&str| !line.starts_with(&format!("{ROLE}|"));
        sum.lines().filter(is_owner).map(str::to_owned).collect()
    };
    assert_eq!(strip(other.sql("postgres", ROLES_SUM)), strip(before));
    // Again: nothing is missing.
    let sum = other.sql("postgres", ROLES_SUM);
    target.run("bk-dump", &restore, &document).ok();
    assert_eq!(other.sql("postgres", ROLES_SUM), sum);
    // A server alone is no place for a database.
    let no_database = ["restore", "--from", back.to_str().unwrap(), "--user", "postgres"];
    let refused = target.run("bk-dump", &no_database, &document).expect(2);
    assert!(refused.stderr.contains("--database NAME"), "{}", refused.stderr);
}

#[test]
fn passwords_of_roles_need_a_superuser() {
    let server = Server::start();
    server.sql("postgres", ROLES);
    let mut sandbox = Sandbox::new();
    sandbox.set("DATABASE_URL", server.url());
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let refused = sandbox.run("bk-dump", &["globals"], &new).expect(12);
    assert!(refused.stderr.contains("permission denied for table pg_authid"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--no-role-passwords"), "{}", refused.stderr);
    assert!(
        refused.stdout.is_empty()
            || serde_json::from_slice::<serde_json::Value>(&refused.stdout).is_err()
    );
    let document = sandbox.run("bk-dump", &["globals", "--no-role-passwords"], &new).ok();
    assert_eq!(document.json()["components"][0]["role_passwords"], false);
}

#[test]
fn several_databases_are_components_of_one_backup() {
    let server = Server::start();
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    server.sql("postgres", "CREATE DATABASE \"Ödd name\"");
    server.sql("postgres", "CREATE DATABASE closed ALLOW_CONNECTIONS false");
    server.sql(APP, "CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n");
    server.sql("Ödd name", "CREATE TABLE u AS SELECT n FROM generate_series(1, 200) n");
    let dump = ["bk-dump", "postgres", "--all-databases"];
    let add = ["bk-manifest", "add", "--root", "src"];
    let verify = ["bk-verify", "--from", "dest", "--level", "content"];
    let ended = sandbox.pipe(&[NEW, &dump, &add, PUSH, &verify]);
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""));
    }
    let json = ended[4].json();
    let components: Vec<_> = json["components"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["kind"] == "postgresql")
        .map(|one| (one["name"].as_str().unwrap(), one["database"].as_str().unwrap()))
        .collect();
    assert_eq!(
        components,
        [
            ("database--dd-name", "Ödd name"),
            ("database-app", APP),
            ("database-postgres", "postgres")
        ]
    );
    let document = &ended[4].stdout;
    sandbox.fetch(document, "back");
    for (component, source) in [("database--dd-name", "Ödd name"), ("database-app", APP)] {
        let into = format!("again {source}");
        let restore = ["restore", "--from", "back", "--component", component, "--database", &into];
        sandbox.run("bk-dump", &restore, document).ok();
        assert_eq!(server.content(&into), server.content(source));
    }
    let two = ["bk-dump", "postgres", "--name", "db", "--database", APP, "--database", "Ödd name"];
    let ended = sandbox.pipe(&[NEW, &two, PUSH]);
    assert_eq!((ended[1].code, ended[1].stderr.as_str()), (0, ""));
    assert_eq!(ended[2].json()["components"][1]["name"], "db-app");
    // One that fails fails the step, with its own words; no dump stays.
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    for databases in [[APP, "no-such"], ["no-such", APP], ["no-such", "zz"]] {
        let args = ["postgres", "--database", databases[0], "--database", databases[1]];
        let refused = sandbox.run("bk-dump", &args, &new).expect(13);
        assert!(refused.stderr.contains("\"no-such\" does not exist"), "{}", refused.stderr);
        assert_eq!(refused.stderr.lines().filter(|line| !line.contains("hint:")).count(), 1);
    }
    let left = files_below(&sandbox.path("stage"));
    assert!(left.iter().all(|file| !file.to_str().unwrap().contains(".dump")), "{left:?}");
    server.wait_until_idle();
    let several = ["globals", "--database", "a", "--database", "b"];
    sandbox.run("bk-dump", &several, &new).expect(2);
}

#[test]
fn a_server_that_has_lost_a_database_is_noticed() {
    let server = Server::start();
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    server.sql(APP, "CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n");
    // What a restore has put aside is not dumped every night.
    server.sql("postgres", "CREATE DATABASE \"app__before_20261121T130400Z\"");
    let dump = ["bk-dump", "postgres", "--all-databases"];
    let ended = sandbox.pipe(&[NEW, &dump, PUSH]);
    assert_eq!(ended[1].code, 0);
    assert!(ended[1].stderr.contains("app__before_20261121T130400Z"), "{}", ended[1].stderr);
    let names = |document: &serde_json::Value| -> Vec<String> {
        let components = document["components"].as_array().unwrap().iter();
        components.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&ended[2].json()), ["database-app", "database-postgres"]);
    fs::write(sandbox.path("parent.json"), &ended[2].stdout).unwrap();
    server.sql("postgres", &format!("DROP DATABASE {APP}"));
    let new = [NEW, &["--parent", "parent.json"]].concat();
    let refused = sandbox.pipe(&[&new, &dump, PUSH]);
    assert_eq!((refused[1].code, refused[2].code), (22, 21), "{}", refused[1].stderr);
    assert!(refused[1].stderr.contains("the last backup has 'database-app'"));
    let on_purpose = [&dump[..], &["--max-shrink", "100"]].concat();
    let push = [PUSH, &["--max-shrink", "100"]].concat();
    let ended = sandbox.pipe(&[&new, &on_purpose, &push]);
    assert_eq!(names(&ended[2].json()), ["database-postgres"], "{}", ended[1].stderr);
}
