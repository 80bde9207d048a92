//! Restores that something in the dump or on the server hinders: subscriptions, triggers, tablespaces,
//! settings.

use crate::postgres::{DUMP, NEW, PUSH, bench};
use crate::postgres_restore::{Backup, FORMS, attributes, back_up, databases};
use crate::postgres_restore_cut::killing_ground;
use crate::server::{APP, Server, fake};

#[test]
fn a_subscription_does_not_keep_what_was_loaded() {
    let (server, sandbox) = bench(
        "CREATE SUBSCRIPTION \"odd \"\"sub\" CONNECTION 'host=/nowhere dbname=x' PUBLICATION p \
         WITH (connect = false, slot_name = 'slot');
         CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE 'no changes'; END $$;
         CREATE TABLE t (n int);
         CREATE FUNCTION of_t() RETURNS int LANGUAGE sql AS 'SELECT n FROM t';
         CREATE MATERIALIZED VIEW bad AS SELECT public.of_t();
         CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION refuse();",
    );
    let backup = back_up(&sandbox, APP, &["--format", "plain"]);
    let ended = backup.restore(&sandbox, &["--database", "other"]).expect(1);
    assert!(!ended.stderr.contains("still there"), "{}", ended.stderr);
    assert_eq!(databases(&server), [APP]);
}

#[test]
fn a_function_that_needs_the_search_path_is_told_before_and_after() {
    let (server, sandbox) = bench(
        "CREATE FUNCTION two() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2';
         CREATE TABLE t (n int); INSERT INTO t VALUES (1);
         CREATE FUNCTION doubled(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * two()';
         CREATE INDEX ON t (doubled(n))",
    );
    let mut steps = sandbox.pipe(&[NEW, DUMP, PUSH]);
    let (document, said) = (steps.pop().unwrap().expect(0).stdout, &steps[1].stderr);
    assert!(said.contains("a restore will fail at it"), "{said}");
    sandbox.fetch(&document, "back");
    let backup = Backup { document, target: "back".to_owned() };
    let ended = backup.restore(&sandbox, &["--database", "other"]).expect(1);
    assert!(ended.stderr.contains("this dump by hand: pg_restore"), "{}", ended.stderr);
    assert_eq!(databases(&server), [APP]);
}

#[test]
fn a_database_that_is_only_read_is_told_the_way() {
    let (server, mut sandbox) = bench("CREATE TABLE t (n int)");
    let backup = back_up(&sandbox, APP, &[]);
    server.sql("postgres", "ALTER DATABASE app SET default_transaction_read_only = on");
    let args = ["--database", APP, "--in-place", "--replace"];
    let ended = backup.restore(&sandbox, &args).expect(1);
    assert!(ended.stderr.contains("PGOPTIONS"), "{}", ended.stderr);
    sandbox.set("PGOPTIONS", "-c default_transaction_read_only=off");
    backup.restore(&sandbox, &args).expect(0);
}

#[test]
fn a_session_that_waits_for_the_others_outlasts_the_load() {
    let (server, sandbox) = bench(
        "CREATE FUNCTION slow() RETURNS int LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_sleep(1); RETURN 1; END $$;
         CREATE MATERIALIZED VIEW at_once AS SELECT 1;
         CREATE MATERIALIZED VIEW in_a_while AS SELECT public.slow();
         CREATE MATERIALIZED VIEW thereafter AS SELECT * FROM in_a_while",
    );
    let backup = back_up(&sandbox, APP, &["--format", "directory"]);
    server.sql("postgres", "ALTER ROLE postgres SET idle_session_timeout = '300ms'");
    let ended = backup.restore(&sandbox, &["--database", "other", "--jobs", "2"]).expect(0);
    assert_eq!(ended.stderr, "");
    assert!(!attributes(&server, "other").contains("timeout"), "{}", attributes(&server, "other"));
}

#[test]
fn a_server_that_lacks_tablespaces_is_told_before_anything_is_touched() {
    let (server, sandbox) = bench("");
    let make = |name: &str, server: &Server| {
        let folder = server.socket().join(name);
        let mut mkdir = server.as_its_user("/bin/mkdir".as_ref());
        assert!(mkdir.arg(&folder).status().unwrap().success());
        let statement = format!("CREATE TABLESPACE \"{name}\" LOCATION '{}'", folder.display());
        server.sql("postgres", &statement);
    };
    make("fast disk", &server);
    make("unused", &server);
    server.sql(
        APP,
        "CREATE TABLE t (n int); INSERT INTO t VALUES (1); CREATE TABLE u (n int);
         CREATE INDEX ON t (n) TABLESPACE \"fast disk\"",
    );
    let backup = back_up(&sandbox, APP, &[]);
    server.sql("postgres", "ALTER TABLESPACE \"fast disk\" RENAME TO away");
    let args = ["--database", "new"];
    for args in [&args[..], &["--database", "new", "--dry-run"]] {
        let ended = backup.restore(&sandbox, args).expect(2);
        assert!(ended.stderr.contains("lacks tablespaces: fast disk\n"), "{}", ended.stderr);
        assert!(ended.stderr.contains("CREATE TABLESPACE \"fast disk\""), "{}", ended.stderr);
    }
    assert_eq!(databases(&server), [APP]);
    backup.restore(&sandbox, &["--database", APP, "--table", "u", "--replace"]).ok();
    server.sql("postgres", "ALTER TABLESPACE away RENAME TO \"fast disk\"");
    backup.restore(&sandbox, &args).ok();
}

#[test]
fn what_cannot_be_loaded_is_told_with_the_way_to_the_rest() {
    let (server, sandbox) = bench("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    server.sql("postgres", "CREATE DATABASE far");
    server.sql("far", "CREATE TABLE ft (n int)");
    server.sql(
        APP,
        &format!(
            "CREATE EXTENSION postgres_fdw;
             CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
                 OPTIONS (host '{}', port '{}', dbname 'far');
             CREATE USER MAPPING FOR postgres SERVER far;
             CREATE FOREIGN TABLE ft (n int) SERVER far;
             CREATE MATERIALIZED VIEW mv AS SELECT * FROM ft",
            server.socket().display(),
            server.port()
        ),
    );
    let backup = back_up(&sandbox, APP, &[]);
    server.sql("postgres", "DROP DATABASE far");
    // It is not our database that does not exist: that would be 13.
    let ended = backup.restore(&sandbox, &["--database", "new"]).expect(1);
    assert!(ended.stderr.contains("REFRESH MATERIALIZED VIEW public.mv"), "{}", ended.stderr);
    assert!(ended.stderr.contains("pg_restore -d NEW"), "{}", ended.stderr);
    assert_eq!(databases(&server), [APP]);
}

#[test]
fn what_is_set_during_the_load_is_carried_over() {
    let (server, mut sandbox, backup, _) = killing_ground(FORMS[0], 10);
    let script = "case \"$*\" in *--dbname*) psql -X -q -d postgres \
        -c \"ALTER DATABASE app SET work_mem = '3MB'\" -c 'ALTER DATABASE app CONNECTION LIMIT 9';; esac
        exec \"$real\" \"$@\"";
    fake(&server, &mut sandbox, "pg_restore", script);
    backup.restore(&sandbox, &["--database", APP, "--replace"]).ok();
    let attributes = attributes(&server, APP);
    assert!(attributes.contains("|9|") && attributes.contains("work_mem=3MB"), "{attributes}");
}

#[test]
fn the_encoding_of_clients_is_not_that_of_the_dump() {
    let (server, mut sandbox) =
        bench("CREATE TABLE \"tä€\" (a text); INSERT INTO \"tä€\" VALUES ('日本')");
    server.sql("postgres", "ALTER DATABASE app SET client_encoding = 'LATIN1'");
    let rows = "SET client_encoding = 'UTF8'; SELECT * FROM \"tä€\"";
    for form in FORMS {
        let backup = back_up(&sandbox, APP, form);
        backup.restore(&sandbox, &["--database", APP, "--replace", "--drop-old"]).ok();
        assert_eq!(server.sql(APP, rows), "日本", "{form:?}");
    }
    server.sql("postgres", "ALTER DATABASE app RESET client_encoding");
    sandbox.set("PGCLIENTENCODING", "LATIN1");
    let backup = back_up(&sandbox, APP, &[]);
    backup.restore(&sandbox, &["--database", APP, "--in-place", "--replace"]).ok();
    assert_eq!(server.sql(APP, rows), "日本");
}

#[test]
fn event_triggers_do_not_fire_while_their_dump_is_loaded() {
    let (server, sandbox) = bench(
        "CREATE TABLE log (tag text);
         CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.log VALUES (tg_tag); END $$;
         CREATE MATERIALIZED VIEW one AS SELECT 1;
         CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note();",
    );
    for form in FORMS {
        let backup = back_up(&sandbox, APP, form);
        let args = ["--database", APP, "--replace", "--drop-old", "--jobs", "1"];
        backup.restore(&sandbox, &args).ok();
    }
    assert!(!attributes(&server, APP).contains("replica"), "{}", attributes(&server, APP));
    server.sql(APP, "CREATE TABLE t (n int)");
    assert_eq!(server.sql(APP, "SELECT * FROM log"), "CREATE TABLE");
}

#[test]
fn event_triggers_do_not_fire_while_a_dump_is_loaded_in_place() {
    let (server, sandbox) = bench(
        "CREATE TABLE log (tag text);
         CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO public.log VALUES (tg_tag); END $$;
         CREATE TABLE t (n int); INSERT INTO t VALUES (1);
         CREATE MATERIALIZED VIEW one AS SELECT 1;
         CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note();",
    );
    for form in [FORMS[0], FORMS[1], &["--format", "plain", "--clean"]] {
        let backup = back_up(&sandbox, APP, form);
        backup.restore(&sandbox, &["--database", APP, "--in-place", "--replace"]).ok();
    }
    server.sql(APP, "CREATE TABLE u (n int)");
    assert_eq!(server.sql(APP, "SELECT * FROM log"), "CREATE TABLE");
}
