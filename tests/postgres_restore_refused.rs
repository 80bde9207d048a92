//! Dumps that are not restored: foreign ones that would run programs, and damaged ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::{Random, Sandbox};
use crate::postgres::{EVERYTHING, bench, lines};
use crate::postgres_restore::{FORMS, back_up, databases};
use crate::server::{APP, Server, fake};

/// A plain dump with these lines in it.
fn plain_dump(body: &str) -> String {
    format!(
        "--\n-- PostgreSQL database dump\n--\n\n\\restrict theirkey\n\nSET client_encoding = 'UTF8';\n\
         {body}\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict theirkey\n\n"
    )
}

#[test]
fn a_foreign_dump_runs_no_program() {
    let (server, mut sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let content = server.content(APP);
    let touched = sandbox.path("touched");
    let touch = format!("\\! touch {}", touched.display());
    let program = format!("\\copy t from program 'touch {}'", touched.display());
    let script = format!("cat '{}'", sandbox.path("script").display());
    fake_dump(&server, &mut sandbox, &script);
    for body in [
        touch.clone(),
        format!("SELECT 1 {touch}\n;"),
        format!("\\unrestrict theirkey\n{touch}\n\\restrict theirkey"),
        format!("\\unrestrict wrong\n{touch}"),
        format!("\\restrict theirkey\n{touch}"),
        format!("CREATE TABLE t (a text);\n{program}"),
        format!("\\o |touch {}\nSELECT 1;", touched.display()),
        format!("SELECT 1 \\g |touch {}", touched.display()),
        format!("\\connect postgres\n{touch}"),
        format!("CREATE TABLE u (a text);\nCOPY u FROM stdin;\n1\n\\.\n{touch}"),
        format!("SELECT 'open;\n{touch}"),
        format!("CREATE TABLE u (a text);\nCOPY u FROM stdin;\n{touch}"),
    ] {
        fs::write(sandbox.path("script"), plain_dump(&body)).unwrap();
        let backup = back_up(&sandbox, APP, FORMS[2]);
        server.sql("postgres", "CREATE DATABASE empty");
        for args in [
            &["--database", "new"][..],
            &["--database", APP, "--replace"],
            &["--database", "empty", "--in-place"],
        ] {
            let ended = backup.restore(&sandbox, args);
            assert!(!touched.exists(), "{body}");
            assert!([1, 20].contains(&ended.code), "{body}: {}", ended.stderr);
            assert_eq!(lines(&ended.stderr).len(), 1, "{}", ended.stderr);
            assert_eq!(server.content(APP), content, "{body}");
            let count = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
            assert_eq!(server.sql("empty", count), "0", "{body}");
            assert_eq!(databases(&server), [APP, "empty"], "{body}");
        }
        server.sql("postgres", "DROP DATABASE empty");
    }
}

#[test]
fn what_only_looks_like_a_command_is_restored() {
    let commands = "\\! touch touched\n\\unrestrict k\n\\restrict k\n\\connect x\n\\.\n";
    let (server, sandbox) = bench(&format!(
        "CREATE TABLE t AS SELECT '\n{commands}'::text AS a;
        CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $f$SELECT '\n{commands}'::text$f$;
        COMMENT ON TABLE t IS '\n{commands}'"
    ));
    let content = server.content(APP);
    for form in FORMS {
        let backup = back_up(&sandbox, APP, form);
        backup.restore(&sandbox, &["--database", "new", "--replace", "--drop-old"]).ok();
        assert_eq!(server.content("new"), content, "{form:?}");
        assert_eq!(server.sql("new", "SELECT f() = a FROM t"), "t");
    }
    assert!(!sandbox.path("touched").exists());
}

/// As [`fake`] for `pg_dump`, which still tells its version.
fn fake_dump(server: &Server, sandbox: &mut Sandbox, script: &str) {
    let script = format!("[ \"$1\" = --version ] && exec \"$real\" --version\n{script}");
    fake(server, sandbox, "pg_dump", &script);
}

#[test]
fn a_psql_that_cannot_be_restricted_gets_no_plain_dump() {
    let (server, mut sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[2]);
    // As an older one answers.
    let script = "case \"$*\" in *--file*) printf '%s\\n' 'invalid command \\restrict' >&2; exit 3;; esac\nexec \"$real\" \"$@\"";
    fake(&server, &mut sandbox, "psql", script);
    let ended = backup.restore(&sandbox, &["--database", "new"]).expect(2);
    assert!(ended.stderr.contains("15.14"), "{}", ended.stderr);
    assert_eq!(databases(&server), [APP]);
}

#[test]
fn a_damaged_dump_touches_nothing() {
    let mut random = Random::from_run();
    let (server, sandbox) = bench(EVERYTHING);
    let mut session = server.session(APP);
    session.sql("SELECT 1");
    for form in FORMS {
        let backup = back_up(&sandbox, APP, form);
        for file in backup.files(&sandbox) {
            let bytes = fs::read(&file).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let mut flipped = bytes.clone();
            let place = usize::try_from(random.below(bytes.len() as u64)).unwrap();
            flipped[place] ^= 1 << random.below(8);
            for damaged in
                [&flipped[..], &bytes[..bytes.len() / 2], &[&bytes[..], b"x"].concat(), b""]
            {
                if damaged == bytes {
                    continue;
                }
                fs::write(&file, damaged).unwrap();
                for way in [&["--replace"][..], &["--replace", "--in-place"]] {
                    let args = [&["--database", APP][..], way].concat();
                    let ended = backup.restore(&sandbox, &args).expect(20);
                    assert_eq!(ended.stdout, b"");
                }
            }
            fs::write(&file, &bytes).unwrap();
        }
        backup.restore(&sandbox, &["--database", "whole"]).ok();
        server.sql("postgres", "DROP DATABASE whole");
    }
    session.sql("SELECT 1");
    assert_eq!(databases(&server), [APP]);
}
