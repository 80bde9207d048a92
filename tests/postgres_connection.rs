//! The ways to name a PostgreSQL server and to log in; what it says when it refuses; and that the
//! password is in no argument and no file.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::harness::{Sandbox, files_below, run};
use crate::postgres::{NEW, bench, lines, spawn_pipe, staged};
use crate::server::{APP, ENCODED_PASSWORD, PASSWORD, PATIENCE, ROLE};

#[test]
fn every_way_to_name_the_server_is_understood() {
    let (server, mut sandbox) = bench("");
    for (name, _) in server.variables() {
        sandbox.set(name, "");
    }
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let (port, socket) = (server.port(), server.socket().display().to_string());
    let login = format!("app%20owner:{ENCODED_PASSWORD}");
    let passfile = sandbox.path("pgpass");
    let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    fs::write(&passfile, format!("127.0.0.1:{port}:*:{ROLE}:{escaped}\n")).unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let passfile = passfile.to_str().unwrap().to_owned();
    let url = |url: String| vec![("DATABASE_URL", url)];
    let port_text = port.to_string();
    let ways: Vec<Vec<(&str, String)>> = vec![
        url(server.url()),
        url(format!("postgres://{login}@localhost:{port}/{APP}")),
        url(format!("postgresql+psycopg2://{login}@127.0.0.1:{port}/{APP}")),
        url(format!("postgresql+asyncpg://{login}@127.0.0.1:{port}/{APP}?ssl=prefer")),
        url(format!(
            "postgresql://{login}@127.0.0.1:{port}/{APP}?schema=public&connection_limit=5&pool_timeout=2&pgbouncer=true&sslmode=prefer&connect_timeout=9"
        )),
        url(format!(
            "jdbc:postgresql://127.0.0.1:{port}/{APP}?user=app%20owner&password={ENCODED_PASSWORD}"
        )),
        url(format!("postgresql://postgres@/{APP}?host={socket}&port={port}")),
        url(format!("postgresql://postgres@{}:{port}/{APP}", socket.replace('/', "%2F"))),
        vec![
            ("PGHOST", "127.0.0.1".into()),
            ("PGPORT", port_text.clone()),
            ("PGUSER", ROLE.into()),
            ("PGDATABASE", APP.into()),
            ("PGPASSWORD", PASSWORD.into()),
        ],
        vec![
            ("PGHOST", "127.0.0.1".into()),
            ("PGPORT", port_text),
            ("PGUSER", ROLE.into()),
            ("PGDATABASE", APP.into()),
            ("PGPASSFILE", passfile),
        ],
        // A URL holds as a whole: nothing of libpq's own variables is mixed into it.
        vec![
            ("DATABASE_URL", server.url()),
            ("PGHOST", "192.0.2.1".into()),
            ("PGUSER", "nobody".into()),
            ("PGPASSWORD", "wrong".into()),
            ("PGDATABASE", "other".into()),
        ],
    ];
    for way in &ways {
        let mut command = sandbox.command("bk-dump");
        let ended = run(command.arg("postgres").envs(way.iter().cloned()), &new);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{way:?}");
        assert_eq!(ended.json()["components"][0]["database"], APP, "{way:?}");
        assert!(!ended.text().contains("ge:he"), "the password is in the document");
    }
    // A variable by another name; a flag beats what the URL says.
    let other = server.url_of("no-such");
    let args = ["postgres", "--url-env", "APP_DB", "--database", APP];
    run(sandbox.command("bk-dump").args(args).env("APP_DB", other), &new).ok();
    let unset = run(sandbox.command("bk-dump").args(args), &new).expect(2);
    assert!(unset.stderr.contains("APP_DB"), "{}", unset.stderr);
}

#[test]
fn a_server_that_says_no_is_quoted_in_one_line() {
    let (server, mut sandbox) = bench("");
    for (name, _) in server.variables() {
        sandbox.set(name, "");
    }
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap().port().to_string();
    drop(free);
    let own = server.port().to_string();
    for (url, code, words) in [
        (
            server.url().replace("%3A", "x"),
            12,
            "password authentication failed for user \"app owner\"",
        ),
        (
            server.url().replace("app%20owner", "stranger"),
            12,
            "password authentication failed for user \"stranger\"",
        ),
        (server.url_of("no-such"), 13, "database \"no-such\" does not exist"),
        (server.url().replace(&own, &nobody), 1, "Connection refused"),
        (
            format!("postgresql://stranger@/app?host={}&port={own}", server.socket().display()),
            12,
            "role \"stranger\" does not exist",
        ),
        (
            server.url().replace("127.0.0.1", "no-such-host.invalid"),
            1,
            "could not translate host name",
        ),
        (format!("postgresql://app%20owner@127.0.0.1:{own}/app"), 12, "no password supplied"),
    ] {
        let mut command = sandbox.command("bk-dump");
        let ended = run(command.arg("postgres").env("DATABASE_URL", &url), &new);
        assert_eq!(ended.code, code, "{}", ended.stderr);
        assert_eq!(ended.stdout, b"", "nothing goes on without a snapshot");
        assert_eq!(lines(&ended.stderr).len(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
        assert!(
            !ended.stderr.contains("he/im") && !ended.stderr.contains("he%2Fim"),
            "{}",
            ended.stderr
        );
        assert_eq!(staged(&sandbox), Vec::<PathBuf>::new());
    }
    // The same where a dump is brought back.
    let document =
        run(sandbox.command("bk-dump").arg("postgres").env("DATABASE_URL", server.url()), &new)
            .ok();
    let ended = document.json();
    let root = ended["run"]["sources"][0]["root"].as_str().unwrap().to_owned();
    fs::create_dir_all(sandbox.path("back/.bk/database")).unwrap();
    fs::copy(Path::new(&root).join("app.dump"), sandbox.path("back/.bk/database/app.dump"))
        .unwrap();
    let mut command = sandbox.command("bk-dump");
    command.args(["restore", "--from", "back", "--database", "new", "--url-env", "DB"]);
    let wrong =
        run(command.env("DB", server.url().replace("%3A", "x")), &document.stdout).expect(12);
    assert_eq!(lines(&wrong.stderr).len(), 1, "{}", wrong.stderr);
    // And a role that may not make databases.
    let refused = run(command.env("DB", server.url()), &document.stdout).expect(12);
    assert!(refused.stderr.contains("may not make databases"), "{}", refused.stderr);
    assert_eq!(
        server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'new'"),
        "0"
    );
}

#[test]
fn a_password_among_the_arguments_is_refused_and_not_repeated() {
    let sandbox = Sandbox::new();
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    let url = "postgresql://me:geheim@127.0.0.1:1/app";
    for args in [
        &["postgres", url][..],
        &["postgres", "--database", url],
        &["postgres", "--database", "host=db password=geheim"],
        &["postgres", "--user", url],
        &["postgres", "--via", url],
        &["postgres", "--url-env", url],
        &["postgres", "--url", url],
        &["postgres", "--password=geheim"],
        &["postgres", "--password", "geheim"],
        &["postgres", "-pgeheim"],
        &["postgres", "--dbname=postgresql://me:geheim@h/app"],
        &["restore", "--from", "back", url],
        &["restore", "--from", "back", "--database", url],
        &["restore", "--from", "back", "--password=geheim"],
        &["check", "--via", url, "x.dump"],
    ] {
        let ended = sandbox.run("bk-dump", args, &new);
        assert_eq!(ended.code, 2, "{args:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("geheim"), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, b"");
    }
    assert_eq!(staged(&sandbox), Vec::<PathBuf>::new());
}

#[test]
fn the_password_is_in_no_argument_and_in_no_file() {
    let (server, mut sandbox) = bench("SET ROLE \"app owner\"; CREATE TABLE t AS SELECT 1 AS a");
    for (name, _) in server.variables() {
        sandbox.set(name, "");
    }
    server.sql("postgres", &format!("ALTER ROLE \"{ROLE}\" CREATEDB"));
    sandbox.set("DATABASE_URL", server.url());
    let watched = AtomicBool::new(true);
    let mut lock = server.session(APP);
    lock.sql("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE");
    let (seen, document) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            // A test that failed meanwhile does not end it.
            let until = Instant::now() + 2 * PATIENCE;
            while watched.load(Ordering::Relaxed) && Instant::now() < until {
                for process in fs::read_dir("/proc").unwrap().flatten() {
                    let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    if line.contains(PASSWORD) || line.contains(ENCODED_PASSWORD) {
                        return Err(line);
                    }
                    for program in ["psql", "pg_dump"] {
                        if line.contains(program) && line.contains("--no-password") {
                            seen.insert(program);
                        }
                    }
                }
            }
            Ok(seen)
        });
        let (mut dump, mut push) = spawn_pipe(&sandbox);
        server.wait_for(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' \
             AND wait_event_type = 'Lock'",
            "1",
        );
        drop(lock);
        assert_eq!(dump.end(), (Some(0), String::new()));
        assert!(push.wait().unwrap().success());
        let document = sandbox.latest();
        sandbox.fetch(&document, "back");
        let restore = ["restore", "--from", "back", "--database", "again"];
        sandbox.run("bk-dump", &restore, &document).ok();
        watched.store(false, Ordering::Relaxed);
        (watcher.join().unwrap(), document)
    });
    assert_eq!(seen, Ok(BTreeSet::from(["pg_dump", "psql"])));
    assert!(!String::from_utf8(document).unwrap().contains("he/im"));
    for file in
        files_below(&sandbox.path("dest")).into_iter().chain(files_below(&sandbox.path("home")))
    {
        let text = fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains("he/im") && !text.contains("he%2Fim"), "{}", file.display());
    }
    assert_eq!(server.content("again"), server.content(APP));
}
