//! What is loaded into the database that is there: all of a dump, or tables of it.

use crate::postgres::{EVERYTHING, bench, lines};
use crate::postgres_restore::{FORMS, RELATED, back_up, databases, schema};
use crate::server::{APP, fake};

#[test]
fn in_place_is_all_or_nothing() {
    let (server, sandbox) = bench(EVERYTHING);
    let mut content = server.content(APP);
    for form in FORMS {
        let plain = form[1] == "plain";
        if plain && server.sql(APP, "SELECT count(*) FROM pg_largeobject_metadata") == "1" {
            let backup = back_up(&sandbox, APP, form);
            let ended = backup.restore(&sandbox, &["--database", APP, "--in-place"]).expect(2);
            assert!(ended.stderr.contains("large objects"), "{}", ended.stderr);
            server.sql(APP, "SELECT lo_unlink(4711)");
            content = server.content(APP);
        }
        let backup =
            back_up(&sandbox, APP, if plain { &["--format", "plain", "--clean"] } else { form });
        let args = ["--database", APP, "--in-place"];
        let refused = backup.restore(&sandbox, &args).expect(2);
        assert!(refused.stderr.contains("is not empty"), "{}", refused.stderr);
        backup.restore(&sandbox, &["--database", "missing", "--in-place"]).expect(13);
        let args = [&args[..], &["--replace"]].concat();
        server.sql(APP, "DELETE FROM events WHERE id = 7; DROP VIEW recent");
        let mut session = server.session(APP);
        session.sql("SELECT 1");
        let ended = backup.restore(&sandbox, &args).expect(0);
        assert_eq!(lines(&ended.stderr).len(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("1 other sessions are open"), "{}", ended.stderr);
        assert_eq!(server.content(APP), content, "{form:?}");
        session.sql("SELECT 1");
        if plain {
            let without_clean = back_up(&sandbox, APP, form);
            let ended = without_clean.restore(&sandbox, &args).expect(1);
            assert!(ended.stderr.contains("made with --clean"), "{}", ended.stderr);
            assert_eq!(server.content(APP), content);
        }
        // What is newer and needs what is old.
        server.sql(APP, "CREATE VIEW newer AS SELECT name FROM events");
        let newer = server.content(APP);
        let ended = backup.restore(&sandbox, &args).expect(1);
        assert!(ended.stderr.contains("other objects depend on it"), "{}", ended.stderr);
        assert_eq!(server.content(APP), newer);
        server.sql(APP, "DROP VIEW newer");
        assert_eq!(databases(&server), [APP]);
    }
    let backup = back_up(&sandbox, APP, FORMS[1]);
    server.sql("postgres", "CREATE DATABASE empty TEMPLATE template0");
    backup.restore(&sandbox, &["--database", "empty", "--in-place"]).ok();
    assert_eq!(server.content("empty"), content);
    let known = server.sql("empty", "SELECT count(*) FROM pg_stats WHERE tablename = 'events'");
    assert_ne!(known, "0", "what the planner knows");
}

#[test]
fn a_table_comes_back_with_all_that_belongs_to_it() {
    let (server, sandbox) = bench(RELATED);
    let (content, made) = (server.content(APP), schema(&server, APP));
    for form in [FORMS[0], FORMS[1]] {
        let backup = back_up(&sandbox, APP, form);
        let restore =
            |args: &[&str]| backup.restore(&sandbox, &[&["--database", APP][..], args].concat());
        let odd = "catalog.\"Odd.\"\"name\"\" ü\nx\"";
        for missing in ["catalog.none", "datasets", "catalog.DATASETS", "public.datasets"] {
            let ended = restore(&["--table", missing]).expect(13);
            assert!(ended.stderr.contains("the dump does not hold the table"), "{}", ended.stderr);
        }
        restore(&["--schema", "none"]).expect(13);
        let ended = restore(&["--table", "catalog.datasets"]).expect(2);
        assert!(ended.stderr.contains("holds catalog.datasets, "), "{}", ended.stderr);
        // Something else needs it.
        let ended = restore(&["--table", "catalog.datasets", "--replace"]).expect(1);
        assert!(ended.stderr.contains("other objects depend on it"), "{}", ended.stderr);
        assert_eq!(server.content(APP), content);
        // Gone, both that need each other; the other one's rows are newer.
        server.sql(
            APP,
            "DROP TABLE catalog.\"datasets old\", catalog.datasets; UPDATE other SET a = 2",
        );
        restore(&["--table", "catalog.datasets"]).ok();
        assert_eq!(server.sql(APP, "SELECT nextval('catalog.datasets_id_seq')"), "101");
        server.sql(APP, "SELECT setval('catalog.datasets_id_seq', 100)");
        restore(&["--table", "catalog.datasets old", "--table", "other", "--replace"]).ok();
        assert_eq!(server.content(APP), content, "{form:?}");
        assert_eq!(schema(&server, APP), made, "{form:?}");
        // One that is there, with newer rows; with a name that no list could be parsed by.
        server.sql(APP, &format!("INSERT INTO {odd} VALUES ('newer')"));
        restore(&["--table", odd, "--replace"]).ok();
        server.sql(APP, "INSERT INTO catalog.parts VALUES (2, '2026-02-04')");
        restore(&["--table", "catalog.parts", "--replace"]).ok();
        server.sql(APP, "INSERT INTO catalog.parts VALUES (2, '2026-02-04')");
        restore(&["--table", "catalog.parts_2026", "--replace"]).ok();
        assert_eq!(server.content(APP), content, "{form:?}");
        // All of a schema: over what is there, and where nothing is.
        server.sql(
            APP,
            "DELETE FROM catalog.\"datasets old\"; DELETE FROM catalog.datasets WHERE id = 3",
        );
        restore(&["--schema", "catalog"]).expect(2);
        restore(&["--schema", "catalog", "--replace"]).ok();
        assert_eq!(server.content(APP), content, "{form:?}");
        server.sql("postgres", "DROP DATABASE IF EXISTS elsewhere");
        server.sql("postgres", "CREATE DATABASE elsewhere");
        backup.restore(&sandbox, &["--database", "elsewhere", "--schema", "catalog"]).ok();
        assert_eq!(
            server.content("elsewhere").replace("public.", ""),
            content.lines().filter(|line| !line.contains("other")).collect::<Vec<_>>().join("\n")
        );
        backup.restore(&sandbox, &["--database", "missing", "--table", "other"]).expect(13);
    }
    let plain = back_up(&sandbox, APP, FORMS[2]);
    let ended = plain.restore(&sandbox, &["--database", APP, "--table", "other"]).expect(2);
    assert!(ended.stderr.contains("plain dump"), "{}", ended.stderr);
}

#[test]
fn a_load_in_place_does_not_wait_for_ever() {
    let (server, sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    let content = server.content(APP);
    let mut session = server.session(APP);
    session.sql("SET application_name = 'gunicorn'; BEGIN; SELECT * FROM t");
    let ended = backup.restore(&sandbox, &["--database", APP, "--in-place", "--replace"]).expect(1);
    for words in ["'gunicorn' (idle in transaction)", "hint: stop the application first"] {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    session.sql("SELECT * FROM t");
    assert_eq!(server.content(APP), content);
}

#[test]
fn a_load_in_place_that_differs_is_a_failure_that_tells_it_is_committed() {
    let (server, mut sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    // The application writes between the commit and the comparison.
    let script = format!(
        "\"$real\" \"$@\" || exit; for arg; do case \"$arg\" in --dbname=*) \
         '{}' -X -q -d \"${{arg#--dbname=}}\" -c 'INSERT INTO t VALUES (8)';; esac; done",
        server.bin().join("psql").display()
    );
    fake(&server, &mut sandbox, "pg_restore", &script);
    for way in [&["--in-place", "--replace"][..], &["--table", "t", "--replace"]] {
        let args = [&["--database", APP][..], way].concat();
        let ended = backup.restore(&sandbox, &args).expect(1);
        for words in ["public.t", "loaded and committed in 'app'", "stop it first"] {
            assert!(ended.stderr.contains(words), "{}", ended.stderr);
        }
        assert_eq!(ended.stdout, b"");
        assert_eq!(server.sql(APP, "SELECT sum(a) FROM t"), "15");
    }
}
