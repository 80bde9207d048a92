//! PostgreSQL's own regression database, every type and object that its authors thought of, through
//! backup and restore.
//!
//! scripts/regress-files.sh fetches what makes it, from the source package of the server that is
//! installed; none of it is part of this repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Sandbox, run};
use crate::postgres::restore;
use crate::postgres_cut::{FORMATS, back_up_as, component, tables};
use crate::server::Server;

/// The name that the scripts want.
const REGRESSION: &str = "regression";

/// Tables whose columns `pg_dump` cannot bring back in their order: they became children only once
/// they were there, and a child that is made anew has its parent's columns first.
const REORDERED: [&str; 3] =
    ["public.gtestxx_4", "public.test_type_diff2_c1", "public.test_type_diff2_c2"];

/// Prints every table's rows as a sum, with its columns in the order of their names, the sequences
/// and the large objects. Materialized views are left out: a restore computes them anew.
const SUMS: &str = r#"
SELECT format('SELECT %L, count(*), md5(string_agg(md5(r::text), '''' ORDER BY md5(r::text))) FROM (SELECT %s FROM ONLY %s) r',
  c.oid::regclass, (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname COLLATE "C") FROM pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped), c.oid::regclass)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY c.oid::regclass::text COLLATE "C" \gexec
SELECT format('SELECT %L, last_value, is_called FROM %s', oid::regclass, oid::regclass)
FROM pg_class WHERE relkind = 'S' ORDER BY oid::regclass::text COLLATE "C" \gexec
SELECT 'large object', oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid;
"#;

/// The folder with the regression tests, fetched once for each version of the server.
fn fetched(server: &Server) -> PathBuf {
    let version = server.sql("postgres", "SHOW server_version_num");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pg-regress-{version}"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/regress-files.sh");
    run(Command::new(script).arg(server.bin()).arg(&folder), b"").expect(0);
    folder
}

/// Makes the regression database, as `make installcheck` does.
fn make_regression(server: &Server) {
    let folder = server.socket().join("regress");
    run(Command::new("cp").arg("-r").arg(fetched(server)).arg(&folder), b"").ok();
    let reference = format!("--reference={}", server.socket().display());
    run(Command::new("chown").args(["-R", &reference]).arg(&folder), b"").ok();
    let program = server.bin().join("../lib/pgxs/src/test/regress/pg_regress");
    let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
    let ended = run(
        server
            .as_its_user(&program)
            .arg(option("bindir", server.bin()))
            .args(["dlpath", "inputdir", "outputdir"].map(|name| option(name, &folder)))
            .arg(option("schedule", &folder.join("parallel_schedule")))
            .arg(option("host", server.socket()))
            .args([&format!("--port={}", server.port()), "--user=postgres"]),
        b"",
    );
    // What a script prints may differ here and there by machine; the database is there all the same.
    // Before PostgreSQL 16: "test boolean ... ok", then: "ok 2 + boolean".
    let has_passed = |line: &&str| line.starts_with("ok ") || line.contains("... ok");
    let passed = ended.text().lines().filter(has_passed).count();
    assert!(passed > 200, "{}\n{}", ended.text(), ended.stderr);
}

/// The schema as `pg_dump` prints it, a statement each, without what is new with every dump.
fn schema(server: &Server, database: &str) -> BTreeMap<String, usize> {
    let dump = run(server.command("pg_dump").args(["--schema-only", database]), b"").ok().text();
    let mut statements = BTreeMap::new();
    for statement in dump.split("\n\n") {
        let is_of_this_dump =
            |line: &&str| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ");
        let mut lines: Vec<&str> =
            statement.lines().filter(|line| !is_of_this_dump(line)).collect();
        let name = lines.first().and_then(|line| line.strip_prefix("CREATE TABLE "));
        if name.is_some_and(|name| REORDERED.contains(&name.trim_end_matches(" ("))) {
            lines = lines.into_iter().map(|line| line.trim_end_matches(',')).collect();
            lines.sort_unstable();
        }
        *statements.entry(lines.join("\n")).or_default() += 1;
    }
    statements
}

/// The kinds of objects in a database, as `pg_dump` counts them.
fn kinds(server: &Server, sandbox: &Sandbox) -> BTreeMap<String, usize> {
    let dump = sandbox.path("list.dump");
    let custom = ["--format=custom", "--schema-only", "--file"];
    run(server.command("pg_dump").args(custom).arg(&dump).arg(REGRESSION), b"").ok();
    let list = run(server.command("pg_restore").arg("--list").arg(&dump), b"").ok().text();
    let mut kinds = BTreeMap::new();
    for line in list.lines().filter(|line| !line.starts_with(';')) {
        // 215; 1259 16385 TABLE public t postgres
        let words = line.split(' ').skip(3);
        let is_kind = |word: &&str| word.bytes().all(|byte| byte.is_ascii_uppercase());
        let kind: Vec<&str> = words.take_while(is_kind).collect();
        *kinds.entry(kind.join(" ")).or_default() += 1;
    }
    kinds
}

#[test]
fn the_regression_database_comes_back_the_same_in_every_format() {
    let server = Server::start();
    make_regression(&server);
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    sandbox.write("file", "");
    let kinds = kinds(&server, &sandbox);
    assert!(kinds.values().sum::<usize>() > 1800 && kinds.len() > 35, "{kinds:?}");
    assert!(kinds["TABLE"] > 600 && kinds["FUNCTION"] > 250, "{kinds:?}");

    let (expected, sums) = (schema(&server, REGRESSION), server.sql(REGRESSION, SUMS));
    for (name, format) in FORMATS {
        // The restore compares with the record by itself; here it is done in another way.
        let document = back_up_as(&sandbox, REGRESSION, format);
        let record = component(&document, name);
        let restored = format!("{name} again");
        restore(&sandbox, &document, &restored);
        let found = schema(&server, &restored);
        let differing: Vec<_> = expected
            .iter()
            .filter(|(statement, count)| found.get(*statement) != Some(count))
            .chain(found.iter().filter(|(statement, _)| !expected.contains_key(*statement)))
            .collect();
        assert_eq!(differing, Vec::new(), "{name}");
        assert_eq!(server.sql(&restored, SUMS), sums, "{name}");
        assert_every_table_is_recorded(&server, &tables(&record), name);
        server.sql("postgres", &format!("DROP DATABASE \"{restored}\""));
    }
    server.wait_until_idle();
}

/// The record has each table with its rows, as the server counts them, and a fingerprint.
#[track_caller]
fn assert_every_table_is_recorded(server: &Server, recorded: &[(String, u64, String)], name: &str) {
    let rows = r#"
        SELECT format('SELECT %L, count(*) FROM ONLY %s',
          (SELECT string_agg(CASE WHEN part ~ '^[a-z_][a-z0-9_]*$' THEN part
            ELSE '"' || replace(part, '"', '""') || '"' END, '.') FROM unnest(ARRAY[nspname, relname]) part),
          c.oid::regclass)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \gexec"#;
    let rows = server.sql(REGRESSION, rows);
    let expected: BTreeMap<String, u64> = rows
        .lines()
        .map(|line| line.rsplit_once('|').unwrap())
        .map(|(table, rows)| (table.to_owned(), rows.parse().unwrap()))
        .collect();
    let found: BTreeMap<String, u64> = recorded
        .iter()
        .filter(|(_, _, fingerprint)| !fingerprint.is_empty())
        .map(|(table, rows, _)| (table.clone(), *rows))
        .collect();
    assert_eq!(found, expected, "{name}");
}
