//! A database under Docker Compose, reached by the programs inside its container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::deployment::{Deployment, PASSWORD};
use crate::harness::{assert_same_tree, noise, run, snapshot};
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
