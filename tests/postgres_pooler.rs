//! A dump through PgBouncer: refused where sessions are shared, done where they are not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::harness::{Sandbox, run};
use crate::postgres::{DUMP, NEW, PUSH};
use crate::postgres_contents::{bench, record, try_dump};
use crate::server::{APP, PATIENCE, Server};

/// A PgBouncer before the server, on a port of its own.
struct Pooler {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    fn start(server: &Server, mode: &str, pool_size: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("bk-pgb-").tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let config = folder.path().join("pgbouncer.ini");
        let path = folder.path().display();
        fs::write(
            &config,
            format!(
                "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir = \nauth_type = trust\nauth_file = {path}/users\npool_mode = {mode}\n\
                 default_pool_size = {pool_size}\nignore_startup_parameters = extra_float_digits,options\n\
                 logfile = {path}/log\n",
                server.socket().display(),
                server.port(),
            ),
        )
        .unwrap();
        fs::write(folder.path().join("users"), "\"postgres\" \"\"\n").unwrap();
        // It does not run as root.
        let owner = fs::metadata(server.socket()).unwrap();
        for path in [folder.path(), &config, &folder.path().join("users")] {
            chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            let (uid, gid) =
                (format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid()));
            command.args([uid, gid, "--clear-groups".to_owned()]);
        }
        let process = command
            .args(["--pdeathsig=KILL", "/usr/sbin/pgbouncer", "-q"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pooler = Pooler { process, port, _folder: folder };
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(since.elapsed() < PATIENCE, "pgbouncer does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        pooler
    }

    fn known_to(&self, sandbox: &mut Sandbox) {
        sandbox.set("PGHOST", "127.0.0.1");
        sandbox.set("PGPORT", self.port.to_string());
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_pooler_that_shares_sessions_is_refused() {
    let (server, mut sandbox) =
        bench("CREATE TABLE t AS SELECT 1 AS n; ALTER DATABASE app SET statement_timeout = '7min'");
    let document = crate::postgres::all_ok(sandbox.pipe(&[NEW, DUMP, PUSH])).stdout;
    sandbox.fetch(&document, "back");
    let new = sandbox.run(NEW[0], &NEW[1..], b"").expect(0).stdout;
    for pool_size in [1, 2, 20] {
        let pooler = Pooler::start(&server, "transaction", pool_size);
        pooler.known_to(&mut sandbox);
        // Others have left sessions behind, in whatever order.
        let port = pooler.port.to_string();
        for _ in 0..3 {
            let mut others: Vec<Child> = (0..4)
                .map(|_| {
                    let query = "SELECT pg_sleep(0.02)";
                    server
                        .command("psql")
                        .args(["-h", "127.0.0.1", "-p", &port, "-XAtq", "-c", query, APP])
                        .stdout(Stdio::null())
                        .spawn()
                        .unwrap()
                })
                .collect();
            for other in &mut others {
                assert!(other.wait().unwrap().success());
            }
        }
        let ended = try_dump(&sandbox, APP, &[]).expect(2);
        assert!(ended.stderr.contains("pooler in transaction mode"), "{}", ended.stderr);
        assert_eq!(ended.stdout, b"");
        let restore = ["restore", "--from", "back", "--database", APP, "--replace", "--dry-run"];
        let globals = ["globals"];
        let all = ["postgres", "--all-databases"];
        for (args, input) in [(&restore[..], &document), (&globals, &new), (&all, &new)] {
            let ended = sandbox.run("bk-dump", args, input).expect(2);
            assert!(
                ended.stderr.contains("pooler in transaction mode"),
                "{args:?}: {}",
                ended.stderr
            );
        }
        // Nothing of ours is left to whoever comes next.
        for (setting, value) in
            [("statement_timeout", "7min\n"), ("search_path", "\"$user\", public\n")]
        {
            let show = format!("SHOW {setting}");
            let query = ["-h", "127.0.0.1", "-p", &port, "-XAtq", "-c", &show, APP];
            assert_eq!(run(server.command("psql").args(query), b"").expect(0).text(), value);
        }
    }
    let pooler = Pooler::start(&server, "session", 5);
    pooler.known_to(&mut sandbox);
    assert_eq!(record(&sandbox, APP, &[])["tables"][0]["rows"], 1);
}
