//! What is recorded of a PostgreSQL database that changes while it is dumped.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::harness::Sandbox;
use crate::postgres_contents::{DUMP, NEW, bench, record, restore_as, table};
use crate::server::{APP, Server};

/// A dump step that waits for a lock on `door`, with the session that holds it.
struct AtTheDoor {
    dump: Child,
    door: crate::server::Session,
}

fn dump_at_the_door(server: &Server, sandbox: &Sandbox) -> AtTheDoor {
    let mut door = server.session(APP);
    door.sql("BEGIN; LOCK TABLE door IN ACCESS EXCLUSIVE MODE");
    let new = sandbox.run(NEW[0], &NEW[1..], b"").ok().stdout;
    fs::write(sandbox.path("new.json"), new).unwrap();
    let dump = sandbox
        .command(DUMP[0])
        .args(&DUMP[1..])
        .arg(APP)
        .stdin(fs::File::open(sandbox.path("new.json")).unwrap())
        .stdout(fs::File::create(sandbox.path("dumped.json")).unwrap())
        .stderr(fs::File::create(sandbox.path("dump.err")).unwrap())
        .spawn()
        .unwrap();
    // Both the dump and the reading of tables.
    server.wait_for(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
         AND application_name IN ('pg_dump', 'psql')",
        "2",
    );
    AtTheDoor { dump, door }
}

impl AtTheDoor {
    /// Lets it pass; returns the record and what was said.
    #[track_caller]
    fn pass(mut self, sandbox: &Sandbox, code: i32) -> (Value, String) {
        self.door.sql("COMMIT");
        let status = self.dump.wait().unwrap();
        let said = fs::read_to_string(sandbox.path("dump.err")).unwrap();
        assert_eq!(status.code(), Some(code), "{said}");
        let document = fs::read(sandbox.path("dumped.json")).unwrap();
        (serde_json::from_slice::<Value>(&document).unwrap()["components"][0].clone(), said)
    }
}

#[test]
fn what_moves_during_a_dump_is_recorded_as_it_was_or_as_moved() {
    let (server, sandbox) = bench(
        "CREATE TABLE door (n int); CREATE TABLE grows AS SELECT 1 AS n; CREATE SEQUENCE up; CREATE SEQUENCE still;
         CREATE SEQUENCE down INCREMENT -2; SELECT nextval('up'), nextval('down')",
    );
    let before = record(&sandbox, APP, &[]);
    let waiting = dump_at_the_door(&server, &sandbox);
    server.sql(APP, "INSERT INTO grows SELECT n FROM generate_series(2, 100) n; SELECT nextval('up'), nextval('up'), nextval('down')");
    let (during, said) = waiting.pass(&sandbox, 0);
    assert_eq!(said, "");
    assert_eq!(during["tables"], before["tables"], "rows are those of the snapshot");
    assert_eq!(
        during["sequences"],
        json!([
            {"name": "public.down", "last_value": -1, "is_called": true,
                "until": {"last_value": -3, "is_called": true, "increment": -2}},
            {"name": "public.still", "last_value": 1, "is_called": false},
            {"name": "public.up", "last_value": 1, "is_called": true,
                "until": {"last_value": 3, "is_called": true, "increment": 1}},
        ])
    );
    server.wait_until_idle();
}

#[test]
fn a_table_that_was_truncated_during_a_dump_is_not_compared() {
    let (server, sandbox) = bench(
        "CREATE TABLE door (n int); CREATE TABLE emptied AS SELECT 1 AS n; CREATE TABLE other AS SELECT 1 AS n",
    );
    let waiting = dump_at_the_door(&server, &sandbox);
    server.sql(APP, "TRUNCATE emptied");
    let (recorded, said) = waiting.pass(&sandbox, 3);
    assert_eq!(recorded["status"], "partial");
    assert!(said.contains("public.emptied: it was emptied"), "{said}");
    assert_eq!(table(&recorded, "public.emptied").get("rows"), None);
    assert_eq!(table(&recorded, "public.other")["rows"], 1);
}

#[test]
fn a_writer_at_work_changes_nothing_of_what_is_recorded() {
    let (server, sandbox) = bench(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance int);
         INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 20000) n;
         CREATE TABLE history (id bigserial PRIMARY KEY, account int, amount int)",
    );
    let script = sandbox.path("write.sql");
    fs::write(
        &script,
        "\\set account random(1, 20000)\n\\set amount random(-100, 100)\nBEGIN;\n\
         UPDATE accounts SET balance = balance + :amount WHERE id = :account;\n\
         INSERT INTO history (account, amount) VALUES (:account, :amount);\nCOMMIT;\n",
    )
    .unwrap();
    let mut writer = server
        .command("pgbench")
        .args(["-n", "-c", "2", "-T", "600", "-f"])
        .arg(&script)
        .arg(APP)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    server
        .wait_for("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'", "2");
    let recorded = restore_as(&sandbox, APP, "again");
    assert!(writer.try_wait().unwrap().is_none(), "the writer has written all through");
    writer.kill().unwrap();
    writer.wait().unwrap();
    let sums = "SELECT (SELECT sum(balance) FROM accounts) = (SELECT coalesce(sum(amount), 0) FROM history)";
    assert_eq!(server.sql("again", sums), "t");
    let again = record(&sandbox, "again", &[]);
    assert_eq!(again["tables"], recorded["tables"]);
    assert_eq!(again["object_counts"], recorded["object_counts"]);
    let place = |sequence: &Value| sequence["last_value"].as_i64().unwrap();
    let (from, restored) = (&recorded["sequences"][0], place(&again["sequences"][0]));
    let until = from.get("until").map_or(place(from), place);
    assert!((place(from)..=until).contains(&restored), "{from} {restored}");
}
