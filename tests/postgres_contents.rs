//! What is recorded of a PostgreSQL database, and that a restored one is the same.

use serde_json::{Value, json};

use crate::harness::{Ended, Sandbox};
use crate::postgres::spawn_pipe_of;
use crate::server::{APP, ROLE, Server, fake};

pub const NEW: &[&str] = &["bk-manifest", "new", "--app", "app"];
pub const DUMP: &[&str] = &["bk-dump", "postgres", "--database"];

/// A column of every kind of type, with the values at its borders.
const TYPES: &str = r#"
CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('glücklich', 'so la la', 'traurig');
CREATE DOMAIN amount AS numeric(12, 2) CHECK (VALUE >= 0);
CREATE TYPE part AS (a int, "B c" text, m mood);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE TABLE every_type (
    n int GENERATED ALWAYS AS IDENTITY, small smallint, big bigint, num numeric, r real, d double precision,
    cash money, t text, v varchar(20), c char(8), nm name, "char" "char", b bytea, yes boolean,
    day date, tm time, tmz timetz, ts timestamp, tsz timestamptz, iv interval,
    u uuid, j json, jb jsonb, x xml, jp jsonpath, h hstore,
    ip inet, net cidr, mac macaddr, mac8 macaddr8, bits bit(5), vbits varbit,
    pt point, ln line, seg lseg, bx box, pth path, poly polygon, circ circle,
    ir int4range, mr int8multirange, sr span, tsr tstzrange, ia int[], ta text[][], ma mood[], pa part[],
    m mood, am amount, p part, o oid, cls regclass, prc regprocedure, typ regtype, rol regrole,
    lsn pg_lsn, tv tsvector, tq tsquery, xid8 xid8, snap pg_snapshot, acl aclitem,
    doubled int GENERATED ALWAYS AS (small * 2) STORED
);
INSERT INTO every_type (small, big, num, r, d, cash, t, v, c, nm, "char", b, yes, day, tm, tmz, ts, tsz, iv, u, j, jb, x, jp, h,
    ip, net, mac, mac8, bits, vbits, pt, ln, seg, bx, pth, poly, circ, ir, mr, sr, tsr, ia, ta, ma, pa, m, am, p, o, cls, prc, typ, rol,
    lsn, tv, tq, xid8, snap, acl)
VALUES
(-32768, 9223372036854775807, 'NaN', '-0', '4.9e-324', '-12.34', E'tab\t"quote" \\ ''x'' \n日本', 'v  ', 'c', 'n', 'c', '\x00ff5c', true,
    'infinity', '23:59:60', '00:00:00+15:59', '4713-01-01 00:00:00 BC', '2026-04-28 02:21:50.123456+02', '-1 year 2 days -03:04:05.6',
    'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"b": 1,  "a": 2}', '{"b": 1, "a": [null, 1e2]}', '<a>ü</a>', '$.a[*] ? (@ > 1)', 'a=>1, b=>NULL',
    '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '10101', '1', '(1,-0)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)',
    '[(0,0),(1,1)]', '((0,0),(1,1),(1,0))', '<(0,0),1>', '[1,5)', '{[1,2),[5,)}', '[0.1,0.2]', '["2026-01-01 00:00+01",)',
    '[0:1]={1,NULL}', '{{a,"b,c"},{"",NULL}}', '{glücklich,traurig}', ARRAY[ROW(1, 'x', NULL)::part], 'so la la', 1.50, ROW(NULL, '', 'traurig'), 4294967295,
    'pg_class', 'lower(text)', 'mood', 'postgres', '0/16B3748', 'a:1 b:2A', 'a & !b', '42', '10:20:10,14', '=r/postgres'),
(0, -9223372036854775808, 1e-20, 'Infinity', '1.7976931348623157e308', '0', '', '', '', '', '', '', false, '-infinity', '00:00', '24:00:00-12', '-infinity', 'infinity', '0',
    '00000000-0000-0000-0000-000000000000', 'null', 'null', '', '$', '', '0.0.0.0', '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', '00000', '', '(Infinity,NaN)', '{0,1,0}',
    '[(0,0),(0,0)]', '(0,0),(0,0)', '((0,0))', '((0,0))', '<(0,0),0>', 'empty', '{}', 'empty', 'empty', '{}', '{}', '{}', '{}', 'traurig', 0, ROW(NULL, NULL, NULL), 0,
    '-', '-', '-', '-', '0/0', '', '', '0', '10:10:', '=/postgres');
INSERT INTO every_type DEFAULT VALUES;
INSERT INTO every_type (r, d, tsz) SELECT random(), random() * 1e10, now() - random() * interval '1000 days' FROM generate_series(1, 500);
"#;

/// The other things that a database holds.
const OBJECTS: &str = r#"
CREATE TABLE parent (id int PRIMARY KEY, "a b" text UNIQUE);
INSERT INTO parent VALUES (1, 'of the parent');
CREATE TABLE child (own int) INHERITS (parent);
ALTER TABLE parent ADD COLUMN later int DEFAULT 7;
INSERT INTO child VALUES (2, 'of the child', 3, 4);
CREATE SCHEMA "Odd ""one""" CREATE TABLE parts (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE "Odd ""one""".parts_2026 PARTITION OF "Odd ""one""".parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE "Odd ""one""".rest (day date NOT NULL, id int NOT NULL);
ALTER TABLE "Odd ""one""".parts ATTACH PARTITION "Odd ""one""".rest DEFAULT;
INSERT INTO "Odd ""one""".parts SELECT n, date '2026-06-01' + n FROM generate_series(1, 400) n;
CREATE TABLE refers (id int REFERENCES parent, day date, FOREIGN KEY (id, day) REFERENCES "Odd ""one""".parts);
CREATE TABLE "t" ("t" int, "T" text, "select" int CHECK ("select" > 0));
INSERT INTO t VALUES (1, 'a', 2), (1, 'a', 2);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n;
CREATE MATERIALIZED VIEW summary AS SELECT day, count(*) FROM "Odd ""one""".parts GROUP BY day;
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS n WITH NO DATA;
CREATE VIEW v AS SELECT * FROM parent;
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE never_read (line text) SERVER files OPTIONS (filename '/no/such/file');
CREATE EXTENSION pg_trgm;
CREATE TABLE of_extension (n int);
INSERT INTO of_extension VALUES (1);
ALTER EXTENSION pg_trgm ADD TABLE of_extension;
CREATE INDEX ON parent USING gin ("a b" gin_trgm_ops);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touched BEFORE INSERT ON "Odd ""one""".parts FOR EACH ROW EXECUTE FUNCTION touch();
CREATE RULE nothing AS ON DELETE TO t DO INSTEAD NOTHING;
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
ALTER TABLE t FORCE ROW LEVEL SECURITY;
CREATE POLICY mine ON t USING (t > 1);
CREATE STATISTICS both_columns ON id, "a b" FROM parent;
CREATE PUBLICATION news FOR TABLE parent;
CREATE CAST (part AS text) WITH INOUT;
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE TEXT SEARCH CONFIGURATION ours (COPY = german);
CREATE SEQUENCE down INCREMENT -3 MINVALUE -9223372036854775807 MAXVALUE 10;
SELECT setval('down', -9223372036854775000);
CREATE SEQUENCE untouched START 42;
SELECT lo_from_bytea(4711, decode(repeat('00ff0a0d', 600000), 'hex'));
SELECT lo_from_bytea(4712, '');
SELECT lo_put(lo_create(4713), 5000000, 'behind a hole');
GRANT SELECT ON parent TO "app owner";
"#;

pub fn bench(statements: &str) -> (Server, Sandbox) {
    let server = Server::start();
    server.sql(APP, statements);
    let mut sandbox = Sandbox::new();
    server.known_to(&mut sandbox);
    (server, sandbox)
}

/// Dumps a database, and returns how the step ended.
pub fn try_dump(sandbox: &Sandbox, database: &str, flags: &[&str]) -> Ended {
    let dump = [DUMP, &[database], flags].concat();
    sandbox.pipe(&[NEW, &dump]).pop().unwrap()
}

/// The record of a database's component.
#[track_caller]
pub fn record(sandbox: &Sandbox, database: &str, flags: &[&str]) -> Value {
    try_dump(sandbox, database, flags).ok().json()["components"][0].clone()
}

/// What is compared: all that the record says of contents.
pub fn contents(record: &Value) -> Value {
    let members =
        ["tables", "sequences", "large_objects", "extensions", "schemas", "object_counts"];
    members.iter().map(|name| ((*name).to_owned(), record[name].clone())).collect()
}

/// What the record says of one table.
#[track_caller]
pub fn table<'a>(record: &'a Value, name: &str) -> &'a Value {
    let tables = record["tables"].as_array().unwrap();
    tables
        .iter()
        .find(|table| table["name"] == name)
        .unwrap_or_else(|| panic!("{name}: {record:#}"))
}

/// Backs a database up and restores it under another name; returns the record.
#[track_caller]
pub fn restore_as(sandbox: &Sandbox, database: &str, restored: &str) -> Value {
    let dump = [DUMP, &[database]].concat();
    let ended = sandbox.pipe(&[NEW, &dump, &["bk-push", "--to", "dest"]]);
    for step in &ended {
        assert_eq!((step.code, step.stderr.as_str()), (0, ""));
    }
    let document = &ended.last().unwrap().stdout;
    let target = format!("back-{restored}");
    sandbox.fetch(document, &target);
    let restore = ["restore", "--from", &target, "--database", restored];
    sandbox.run("bk-dump", &restore, document).expect(0);
    serde_json::from_slice::<Value>(document).unwrap()["components"][0].clone()
}

#[test]
fn a_restored_database_holds_what_was_recorded() {
    let (server, sandbox) = bench(&[TYPES, OBJECTS].concat());
    let recorded = restore_as(&sandbox, APP, "again");
    assert_eq!(recorded["fingerprints"]["level"], "full");
    assert_eq!(table(&recorded, "public.every_type")["rows"], 503);
    assert_eq!(table(&recorded, "public.parent")["rows"], 1, "without the child's");
    assert_eq!(table(&recorded, "public.child")["rows"], 1);
    assert_eq!(table(&recorded, "public.no_columns")["rows"], 2);
    assert_eq!(table(&recorded, "\"Odd \"\"one\"\"\".parts_2026")["rows"], 213);
    assert_eq!(
        table(&recorded, "public.never_read"),
        &json!({"name": "public.never_read", "kind": "foreign table"})
    );
    assert_eq!(
        table(&recorded, "public.of_extension"),
        &json!({"name": "public.of_extension", "kind": "extension table", "rows": 1})
    );
    assert_eq!(table(&recorded, "public.summary")["kind"], "materialized view");
    assert_eq!(table(&recorded, "public.unfilled").get("rows"), None);
    let names: Vec<&str> = recorded["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| table["name"].as_str().unwrap())
        .collect();
    assert!(names.is_sorted() && !names.contains(&"public.v"), "{names:?}");
    assert!(
        !names.contains(&"\"Odd \"\"one\"\"\".parts"),
        "its rows are its partitions': {names:?}"
    );
    assert_eq!(recorded["large_objects"]["count"], 3);
    assert_eq!(
        recorded["sequences"][0],
        json!({"name": "public.down", "last_value": "-9223372036854775000", "is_called": true})
    );
    for (kind, count) in [
        ("tables", 10),
        ("views", 1),
        ("foreign_tables", 1),
        ("functions", 1),
        ("triggers", 1),
        ("types", 4),
        ("policies", 1),
        ("rules", 1),
        ("statistics", 1),
        ("publications", 1),
        ("casts", 1),
        ("operators", 1),
        ("text_search_configurations", 1),
        ("constraints", 8),
    ] {
        assert_eq!(
            recorded["object_counts"][kind], count,
            "{kind} {:#}",
            recorded["object_counts"]
        );
    }
    assert_eq!(recorded["roles"], json!(["app owner", "postgres"]));

    // The extension makes no table: it was put under it by hand.
    let mut expected = contents(&recorded);
    expected["tables"]
        .as_array_mut()
        .unwrap()
        .retain(|table| table["name"] != "public.of_extension");
    let mut found = contents(&record(&sandbox, "again", &[]));
    found["tables"].as_array_mut().unwrap().retain(|table| table["name"] != "public.of_extension");
    assert_eq!(found, expected);

    // What is lost shows.
    server.sql(
        "again",
        "ALTER TABLE refers DROP CONSTRAINT refers_id_fkey; SELECT lo_put(4711, 2000000, '\\x01')",
    );
    let damaged = record(&sandbox, "again", &[]);
    assert_eq!(damaged["object_counts"]["constraints"], 7);
    assert_eq!(damaged["large_objects"]["count"], 3);
    assert_ne!(damaged["large_objects"], recorded["large_objects"]);
}

#[test]
fn settings_do_not_show_in_a_fingerprint() {
    let (server, mut sandbox) = bench(TYPES);
    let before = contents(&record(&sandbox, APP, &[]));
    server.sql(
        APP,
        "ALTER DATABASE app SET TimeZone = 'Asia/Kathmandu';
         ALTER DATABASE app SET DateStyle = 'German, DMY';
         ALTER DATABASE app SET bytea_output = 'escape';
         ALTER DATABASE app SET xmloption = 'document';
         ALTER DATABASE app SET quote_all_identifiers = on;
         ALTER ROLE postgres SET IntervalStyle = 'iso_8601';
         ALTER ROLE postgres SET extra_float_digits = -3;
         ALTER ROLE postgres SET search_path = pg_catalog;
         ALTER ROLE postgres IN DATABASE app SET standard_conforming_strings = off;",
    );
    assert_eq!(contents(&record(&sandbox, APP, &[])), before);
    sandbox.set("PGOPTIONS", "-c datestyle=sql -c timezone=Asia/Tokyo -c extra_float_digits=0");
    assert_eq!(contents(&record(&sandbox, APP, &[])), before);
}

#[test]
fn a_fingerprint_depends_on_rows_alone() {
    let (server, sandbox) = bench("");
    // Two tables are made each; whether they hold the same.
    let pairs = [
        (
            true,
            "(a int, b text); INSERT INTO @ VALUES (1, 'x'), (2, 'y')",
            "(a int, b text); INSERT INTO @ VALUES (2, 'y'), (1, 'x')",
        ),
        (
            true,
            "(a int, b text); INSERT INTO @ VALUES (1, 'x')",
            "(gone int, b text, a int); INSERT INTO @ VALUES (7, 'x', 1); ALTER TABLE @ DROP COLUMN gone",
        ),
        (
            true,
            "AS SELECT n FROM generate_series(1, 1000) n",
            "AS SELECT n FROM generate_series(1, 2000) n; DELETE FROM @ WHERE n > 1000; VACUUM FULL @",
        ),
        (
            true,
            "(a char(5)); INSERT INTO @ VALUES ('x')",
            "(a char(5)); INSERT INTO @ VALUES ('x  ')",
        ),
        (
            false,
            "(a int, b int); INSERT INTO @ VALUES (1, 2)",
            "(a int, b int); INSERT INTO @ VALUES (2, 1)",
        ),
        (
            false,
            "(a int, b int); INSERT INTO @ VALUES (1, 2), (3, 4)",
            "(a int, b int); INSERT INTO @ VALUES (1, 4), (3, 2)",
        ),
        (false, "(a int); INSERT INTO @ VALUES (1), (1)", "(a int); INSERT INTO @ VALUES (2), (2)"),
        (
            false,
            "(a int); INSERT INTO @ VALUES (1), (1), (2)",
            "(a int); INSERT INTO @ VALUES (1), (2), (2)",
        ),
        (false, "(a text); INSERT INTO @ VALUES ('')", "(a text); INSERT INTO @ VALUES (NULL)"),
        (
            false,
            "(a text, b text); INSERT INTO @ VALUES ('a,b', 'c')",
            "(a text, b text); INSERT INTO @ VALUES ('a', 'b,c')",
        ),
        (false, "(a text); INSERT INTO @ VALUES ('x ')", "(a text); INSERT INTO @ VALUES ('x')"),
        (
            false,
            "(a char(3)); INSERT INTO @ VALUES ('x')",
            "(a char(5)); INSERT INTO @ VALUES ('x')",
        ),
        (false, "(a float8); INSERT INTO @ VALUES (0)", "(a float8); INSERT INTO @ VALUES ('-0')"),
        (
            false,
            "(a float8); INSERT INTO @ VALUES (0.1)",
            "(a float8); INSERT INTO @ VALUES (0.1::float8 + 1e-17::float8 * 2)",
        ),
        (
            false,
            "(a float8); INSERT INTO @ VALUES ('NaN')",
            "(a float8); INSERT INTO @ VALUES (NULL)",
        ),
        (
            false,
            "(a numeric); INSERT INTO @ VALUES (1.0)",
            "(a numeric); INSERT INTO @ VALUES (1.00)",
        ),
        (
            false,
            "(a timestamptz); INSERT INTO @ VALUES ('2026-01-01 00:00:00Z')",
            "(a timestamptz); INSERT INTO @ VALUES ('2026-01-01 00:00:00.000001Z')",
        ),
        (
            false,
            "(a json); INSERT INTO @ VALUES ('{\"a\": 1}')",
            "(a json); INSERT INTO @ VALUES ('{\"a\":1}')",
        ),
        (false, "(); INSERT INTO @ DEFAULT VALUES", "()"),
        (
            false,
            "(a int[]); INSERT INTO @ VALUES ('{1,2}')",
            "(a int[]); INSERT INTO @ VALUES ('[0:1]={1,2}')",
        ),
        (
            false,
            "(t int, a int); INSERT INTO @ VALUES (1, 2)",
            "(t int, a int); INSERT INTO @ VALUES (1, 3)",
        ),
    ];
    let mut script = String::new();
    for (number, (_, left, right)) in pairs.iter().enumerate() {
        for (side, definition) in [("left", left), ("right", right)] {
            let name = format!("{side}_{number}");
            script += &format!("CREATE TABLE {name} {};\n", definition.replace('@', &name));
        }
    }
    server.sql(APP, &script);
    let recorded = record(&sandbox, APP, &[]);
    // One row, as anybody can compute it.
    let row = "SELECT lpad(to_hex(hashtextextended('(a,\"b,c\")', 0)), 16, '0')";
    assert_eq!(table(&recorded, "public.right_9")["fingerprint"], server.sql(APP, row));
    for (number, (is_same, left, right)) in pairs.iter().enumerate() {
        let one = table(&recorded, &format!("public.left_{number}"));
        let other = table(&recorded, &format!("public.right_{number}"));
        let fingerprint = |table: &Value| table["fingerprint"].as_str().unwrap().to_owned();
        assert_eq!(fingerprint(one).len(), 16);
        assert_eq!(fingerprint(one) == fingerprint(other), *is_same, "{left} and {right}");
    }
}

/// Hashes are those of the bytes that the database keeps.
#[test]
fn fingerprints_of_two_encodings_are_told_apart() {
    let (server, sandbox) = bench("CREATE TABLE t AS SELECT U&'caf\\00E9' AS name");
    server.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    server.sql("latin", "CREATE TABLE t AS SELECT U&'caf\\00E9' AS name");
    let [utf8, latin] = [APP, "latin"].map(|database| record(&sandbox, database, &[]));
    assert_ne!(utf8["tables"], latin["tables"]);
    let [utf8, latin] = [utf8, latin].map(|facts| facts["fingerprints"]["method"].to_string());
    assert!(utf8.contains("UTF8") && latin.contains("LATIN1"), "{utf8} and {latin}");
}

#[test]
fn each_level_records_what_it_says() {
    let (_server, sandbox) = bench("CREATE TABLE t AS SELECT 1 AS n; SELECT lo_create(1)");
    let recorded = record(&sandbox, APP, &["--fingerprint", "count"]);
    assert_eq!(recorded["tables"], json!([{"name": "public.t", "rows": 1}]));
    assert_eq!(recorded["large_objects"], json!({"count": 1}));
    let recorded = record(&sandbox, APP, &["--fingerprint", "none"]);
    assert_eq!(recorded["tables"], json!([{"name": "public.t"}]));
    assert_eq!(recorded["object_counts"]["tables"], 1);
    try_dump(&sandbox, APP, &["--fingerprint", "some"]).expect(2);
}

#[test]
fn what_is_left_out_is_not_read_and_says_so() {
    let (_server, sandbox) = bench(&format!(
        "CREATE TABLE kept (n serial); CREATE TABLE logs_1 (n int); CREATE TABLE \"Logs.2\" (n int);
         CREATE SCHEMA other CREATE TABLE secret (n int GENERATED ALWAYS AS IDENTITY);
         INSERT INTO logs_1 VALUES (1); GRANT USAGE ON SCHEMA other TO \"{ROLE}\";
         GRANT SELECT ON kept, kept_n_seq, logs_1, \"Logs.2\" TO \"{ROLE}\";"
    ));
    // A role that may not read what is left out.
    let tables = ["--user", ROLE, "--exclude-table", "other.*"];
    let data = ["--exclude-table-data", "LOGS_*", "--exclude-table-data", "\"Logs.2\""];
    let recorded = record(&sandbox, APP, &[tables, data].concat());
    assert_eq!(table(&recorded, "public.kept")["rows"], 0);
    let left_out = json!({"name": "public.logs_1", "data": "left out"});
    assert_eq!(table(&recorded, "public.logs_1"), &left_out);
    assert_eq!(table(&recorded, "public.\"Logs.2\"")["data"], "left out");
    assert_eq!(table(&recorded, "other.secret")["table"], "left out");
    assert_eq!(recorded.get("object_counts"), None);
    // One that it may not read and that is not left out is pg_dump's to refuse.
    let ended = try_dump(&sandbox, APP, &["--user", ROLE]).expect(12);
    assert!(ended.stderr.contains("permission denied for table secret"), "{}", ended.stderr);
}

#[test]
fn the_record_says_what_the_dump_does_not_hold() {
    let (server, sandbox) = bench("CREATE EXTENSION pg_trgm");
    server.sql(
        APP,
        "COMMENT ON DATABASE app IS 'the ''app''';
         ALTER DATABASE app CONNECTION LIMIT 17;
         GRANT CONNECT ON DATABASE app TO \"app owner\";
         ALTER DATABASE app SET search_path = \"$user\", 'odd, name', public;
         ALTER DATABASE app SET app.jwt_secret = 'geheim';
         ALTER DATABASE app SET pg_trgm.similarity_threshold = 0.4;
         ALTER ROLE \"app owner\" IN DATABASE app SET work_mem = '7MB';
         ALTER ROLE \"app owner\" SET work_mem = '8MB';",
    );
    let recorded = record(&sandbox, APP, &[]);
    assert_eq!(recorded["owner"], "app owner");
    assert_eq!(recorded["comment"], "the 'app'");
    assert_eq!(recorded["connection_limit"], 17);
    let acl = ["=Tc/\"app owner\"", "\"app owner\"=CTc/\"app owner\""];
    assert_eq!(recorded["acl"], json!(acl));
    assert_eq!(
        recorded["settings"],
        json!([
            {"name": "app.jwt_secret"},
            {"name": "pg_trgm.similarity_threshold", "value": "0.4"},
            {"name": "search_path", "value": "\"$user\", \"odd, name\", public"},
            {"role": "app owner", "name": "work_mem", "value": "7MB"},
        ])
    );
    assert!(!recorded.to_string().contains("geheim"));
    server.sql("postgres", "CREATE DATABASE plain");
    let plain = record(&sandbox, "plain", &[]);
    for usual in ["comment", "connection_limit", "acl", "settings", "tablespace"] {
        assert_eq!(plain.get(usual), None, "{usual}");
    }
}

#[test]
fn the_schema_version_is_told_by_the_applications_own_tables() {
    let (server, sandbox) = bench("");
    let version = |flags: &[&str]| {
        let ended = try_dump(&sandbox, APP, flags);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let document = ended.json();
        let version = document["database"]["schema_version"].clone();
        assert_eq!(document["components"][0]["schema_version"], version);
        (version, ended.stderr)
    };
    assert_eq!(version(&[]), (Value::Null, String::new()));
    let knex = "(id serial, name text); INSERT INTO";
    server.sql(
        APP,
        &format!(
            "CREATE SCHEMA a; CREATE TABLE a.knex_migrations {knex} a.knex_migrations (name) VALUES ('in a');
             CREATE TABLE public.knex_migrations {knex} public.knex_migrations (name) VALUES ('001'), ('in public');"
        ),
    );
    assert_eq!(version(&[]).0, "in public");
    server.sql(APP, "ALTER DATABASE app SET search_path = a, public");
    assert_eq!(version(&[]).0, "in a");
    assert_eq!(version(&["--schema-version-query", "SELECT 'v' || 7 -- own"]).0, "v7");
    assert_eq!(
        version(&["--schema-version-query", "SELECT max(id) FROM public.knex_migrations;"]).0,
        "2"
    );
    for (query, says) in [
        ("SELECT v FROM nowhere", "relation \"nowhere\" does not exist"),
        ("SELECT 'unclosed", "unterminated quoted string"),
        ("SELECT 1, 2", "columns"),
        ("VALUES (1), (2)", "several rows"),
        ("DROP TABLE public.knex_migrations", "syntax error"),
    ] {
        let ended = try_dump(&sandbox, APP, &["--schema-version-query", query]).expect(2);
        assert!(ended.stderr.contains(says), "{query}: {}", ended.stderr);
        assert_eq!(ended.stdout, b"");
    }
    // A table of that name that is another program's.
    server.sql(APP, "DROP TABLE a.knex_migrations, public.knex_migrations; CREATE TABLE alembic_version (x int)");
    let (none, said) = version(&[]);
    assert_eq!(none, Value::Null);
    assert!(said.contains("Alembic") && said.contains("version_num"), "{said}");
}

#[test]
fn rows_that_a_standby_does_not_have_make_the_backup_partial() {
    let (server, mut sandbox) = bench(
        "CREATE TABLE kept AS SELECT generate_series(1, 10) AS n;
         CREATE UNLOGGED TABLE absent (n int); INSERT INTO absent VALUES (1)",
    );
    let primary = record(&sandbox, APP, &[]);
    let standby = server.standby();
    standby.known_to(&mut sandbox);
    let ended = try_dump(&sandbox, APP, &["--format", "directory"]).expect(3);
    assert!(ended.stderr.contains("the rows of public.absent: it is unlogged"), "{}", ended.stderr);
    let recorded = &ended.json()["components"][0];
    assert_eq!(recorded["status"], "partial");
    assert_eq!(table(recorded, "public.absent")["data"], "left out");
    assert_eq!(table(recorded, "public.kept"), table(&primary, "public.kept"));
    let wanted = try_dump(&sandbox, APP, &["--exclude-table-data", "absent"]).expect(0);
    assert_eq!(wanted.stderr, "");
}

#[test]
fn nothing_that_the_owner_of_a_database_made_is_run() {
    let raises = "LANGUAGE plpgsql AS $$ BEGIN RAISE 'run as %', current_user; END $$";
    let functions = [
        "split_part(text, text, int) RETURNS text",
        "strpos(text, text) RETURNS int",
        "unnest(text[]) RETURNS SETOF text",
        "current_setting(text) RETURNS text",
        "row_to_json(record) RETURNS json",
        "same(oid, regclass) RETURNS bool",
        "joined(varchar, varchar) RETURNS varchar",
        "told(hostile) RETURNS json",
        "hashtext(text) RETURNS int",
    ];
    let (server, sandbox) = bench("");
    server.sql(
        APP,
        &format!(
            "SET SESSION AUTHORIZATION \"{ROLE}\";
             CREATE SCHEMA hostile;
             CREATE TYPE hostile AS ENUM ('a');
             SET search_path = hostile, pg_catalog, public;
             {}
             CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = same);
             CREATE OPERATOR || (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = joined);
             CREATE CAST (hostile AS json) WITH FUNCTION told (hostile);
             CREATE TABLE knex_migrations (id int, name hostile);
             INSERT INTO knex_migrations VALUES (1, 'a');
             CREATE TABLE django_migrations (id int, app varchar, name varchar);
             INSERT INTO django_migrations VALUES (1, 'app', '0001');
             CREATE TABLE left_out (id int GENERATED ALWAYS AS IDENTITY);
             ALTER DATABASE app SET search_path = hostile, public, pg_catalog;",
            functions.map(|function| format!("CREATE FUNCTION {function} {raises};")).join("\n"),
        ),
    );
    let ended = try_dump(&sandbox, APP, &["--exclude-table", "left_out"]).expect(0);
    assert_eq!(ended.stderr, "");
    let document = ended.json();
    assert_eq!(document["database"]["schema_version"], "app.0001");
    assert_eq!(table(&document["components"][0], "hostile.left_out")["table"], "left out");
    // The next one that is asked: what it raised would be a warning.
    server.sql(APP, "DROP TABLE hostile.django_migrations");
    let ended = try_dump(&sandbox, APP, &["--exclude-table", "left_out"]).expect(0);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_view_in_the_place_of_a_listed_table_is_not_run() {
    let (server, mut sandbox) = bench("CREATE TABLE a (n int); CREATE TABLE b (n int)");
    fake(&server, &mut sandbox, "pg_dump", "sleep 3; exec \"$real\" \"$@\"");
    let mut witness = server.session(APP);
    witness.sql("SET application_name = 'witness'");
    let witnesses = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'witness'";
    let mut owner = server.session(APP);
    owner.sql("BEGIN; LOCK TABLE a");
    let (mut dump, _push) = spawn_pipe_of(&sandbox, &[DUMP, &[APP]].concat());
    server.wait_for("SELECT count(*) FROM pg_locks WHERE NOT granted", "1");
    owner.sql(
        "CREATE FUNCTION run() RETURNS bool LANGUAGE sql AS
         $$ SELECT bool_and(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE application_name = 'witness' $$;
         DROP TABLE b; CREATE VIEW b AS SELECT 1 AS n WHERE run(); COMMIT",
    );
    assert_eq!(dump.end().0, Some(1));
    assert_eq!(server.sql("postgres", witnesses), "1");
}
