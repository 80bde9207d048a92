//! PostgreSQL databases brought back: beside the old one, with what a dump does not hold.

use std::fs;
use std::path::PathBuf;

use crate::harness::{Ended, Sandbox, files_below, run};
use crate::postgres::{EVERYTHING, NEW, PUSH, all_ok, bench, lines};
use crate::server::{APP, ROLE, Server, fake};

/// Every form that a dump can have.
pub const FORMS: [&[&str]; 5] = [
    &["--format", "custom"],
    &["--format", "directory"],
    &["--format", "plain", "--compress", "none"],
    &["--format", "plain", "--compress", "gzip"],
    &["--format", "plain", "--compress", "zstd"],
];

/// Tables that refer to each other, with names that stumble over each other.
pub const RELATED: &str = r#"
CREATE SCHEMA catalog;
CREATE TABLE catalog.owners (id serial PRIMARY KEY, name text);
INSERT INTO catalog.owners (name) VALUES ('a'), ('b');
CREATE TABLE catalog.datasets (id serial PRIMARY KEY, owner int REFERENCES catalog.owners (id), name text UNIQUE);
INSERT INTO catalog.datasets (owner, name) SELECT 1 + n % 2, 'set ' || n FROM generate_series(1, 100) n;
CREATE INDEX ON catalog.datasets (owner);
COMMENT ON TABLE catalog.datasets IS 'sets';
COMMENT ON COLUMN catalog.datasets.name IS 'of a set';
GRANT SELECT ON catalog.datasets TO PUBLIC;
CREATE FUNCTION catalog.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touched BEFORE UPDATE ON catalog.datasets FOR EACH ROW EXECUTE FUNCTION catalog.touch();
CREATE TABLE catalog."datasets old" (id int REFERENCES catalog.datasets (id));
INSERT INTO catalog."datasets old" VALUES (1);
CREATE TABLE catalog."Odd.""name"" ü
x" (a text);
INSERT INTO catalog."Odd.""name"" ü
x" VALUES ('odd');
CREATE TABLE catalog.parts (id int, day date) PARTITION BY RANGE (day);
CREATE TABLE catalog.parts_2026 PARTITION OF catalog.parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO catalog.parts VALUES (1, '2026-02-03');
CREATE TABLE other AS SELECT 1 AS a;
"#;

/// A backup that was fetched: what restores start from.
pub struct Backup {
    pub document: Vec<u8>,
    pub target: String,
}

/// Backs a database up and fetches it into a folder of its own.
#[track_caller]
pub fn back_up(sandbox: &Sandbox, database: &str, form: &[&str]) -> Backup {
    let dump = [&["bk-dump", "postgres", "--database", database][..], form].concat();
    let document = all_ok(sandbox.pipe(&[NEW, &dump, PUSH])).stdout;
    let mut number = 0;
    while sandbox.path(&format!("back{number}")).exists() {
        number += 1;
    }
    let target = format!("back{number}");
    sandbox.fetch(&document, &target);
    Backup { document, target }
}

impl Backup {
    pub fn command(&self, sandbox: &Sandbox, args: &[&str]) -> std::process::Command {
        let mut command = sandbox.command("bk-dump");
        command.args(["restore", "--from", &self.target]).args(args);
        command
    }

    pub fn restore(&self, sandbox: &Sandbox, args: &[&str]) -> Ended {
        run(&mut self.command(sandbox, args), &self.document)
    }

    /// The files of the dump.
    pub fn files(&self, sandbox: &Sandbox) -> Vec<PathBuf> {
        files_below(&sandbox.path(&self.target).join(".bk/database"))
    }
}

/// The names of the databases that are no part of every server.
pub fn databases(server: &Server) -> Vec<String> {
    let names = server.sql(
        "postgres",
        "SELECT datname FROM pg_database WHERE datname NOT IN \
         ('postgres', 'template0', 'template1') ORDER BY datname",
    );
    names.lines().map(str::to_owned).collect()
}

/// The databases that were put aside.
pub fn before(server: &Server) -> Vec<String> {
    databases(server).into_iter().filter(|name| name.contains("__before_")).collect()
}

/// What a database has that is in no dump.
pub fn attributes(server: &Server, database: &str) -> String {
    server.sql(
        "postgres",
        &format!(
            "SELECT pg_get_userbyid(datdba), datacl, datconnlimit, datallowconn, \
             shobj_description(d.oid, 'pg_database'), \
             (SELECT string_agg(setrole::regrole || ': ' || setconfig::text, '; ' ORDER BY setrole) \
             FROM pg_db_role_setting WHERE setdatabase = d.oid) \
             FROM pg_database d WHERE datname = '{}'",
            database.replace('\'', "''")
        ),
    )
}

/// What `pg_dump -s` prints, without the key that is another one each time.
pub fn schema(server: &Server, database: &str) -> String {
    let conninfo = format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"));
    let ended = run(server.command("pg_dump").args(["-s", "-d", &conninfo]), b"").expect(0);
    let text = ended.text();
    let kept = text.lines().filter(|line| !line.contains("restrict "));
    kept.collect::<Vec<_>>().join("\n")
}

/// Gives [`APP`] everything that a dump does not hold.
pub fn adorn(server: &Server) {
    server.sql(
        "postgres",
        r#"CREATE ROLE "odd ""role"" ü" LOGIN; CREATE ROLE reader;
        COMMENT ON DATABASE app IS 'it''s the "app" \ ü';
        ALTER DATABASE app CONNECTION LIMIT 77;
        ALTER DATABASE app SET search_path = "$user", 'odd, schema', public;
        ALTER DATABASE app SET work_mem = '7MB';
        ALTER DATABASE app SET DateStyle = 'German, DMY';
        ALTER DATABASE app SET app.custom = 'a=b, ''c''';
        ALTER ROLE reader IN DATABASE app SET default_transaction_read_only = on;
        REVOKE ALL ON DATABASE app FROM PUBLIC;
        GRANT CONNECT ON DATABASE app TO reader WITH GRANT OPTION;
        GRANT CREATE, TEMPORARY ON DATABASE app TO "odd ""role"" ü""#,
    );
}

#[test]
fn a_database_in_use_is_replaced_and_kept_under_another_name() {
    let (server, sandbox) = bench(EVERYTHING);
    adorn(&server);
    let (content, adorned, made) =
        (server.content(APP), attributes(&server, APP), schema(&server, APP));
    assert!(adorned.contains("search_path=") && adorned.contains("reader"), "{adorned}");
    for (number, form) in FORMS.into_iter().enumerate() {
        let backup = back_up(&sandbox, APP, form);
        server.sql(APP, "DELETE FROM events WHERE id = 7; CREATE TABLE newer AS SELECT 1 AS a");
        let newer = server.content(APP);
        let mut session = server.session(APP);
        session.sql("BEGIN; INSERT INTO newer VALUES (2)");
        let plan = backup
            .restore(&sandbox, &["--database", APP, "--replace", "--dry-run", "-v"])
            .expect(0);
        assert!(plan.stderr.contains("1 open sessions, which are ended"), "{}", plan.stderr);
        assert_eq!(server.content(APP), newer);
        backup.restore(&sandbox, &["--database", APP, "--replace"]).ok();
        assert_eq!(server.content(APP), content, "{form:?}");
        assert_eq!(attributes(&server, APP), adorned, "{form:?}");
        assert_eq!(schema(&server, APP), made, "{form:?}");
        let kept = before(&server);
        assert_eq!(kept.len(), number + 1);
        assert_eq!(server.content(kept.last().unwrap()), newer);
        assert_eq!(databases(&server).len(), number + 2, "{:?}", databases(&server));
    }
    server.wait_until_idle();
    let backup = back_up(&sandbox, APP, FORMS[0]);
    let kept = before(&server);
    backup.restore(&sandbox, &["--database", APP, "--replace", "--drop-old"]).ok();
    assert_eq!(before(&server), kept);
    assert_eq!(server.content(APP), content);
}

#[test]
fn names_of_every_kind_are_restored_to() {
    let (server, sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    let names = [
        "n".repeat(63),
        "日".repeat(21),
        "ü".repeat(31) + "x",
        "Odd \"name\" 'x'".to_owned(),
        "back\\slash %s $1 = a".to_owned(),
        "-d".to_owned(),
    ];
    for name in &names {
        let database = format!("--database={name}");
        let args = [database.as_str(), "--replace"];
        backup.restore(&sandbox, &args).ok();
        let conninfo = name.replace('\\', "\\\\").replace('\'', "\\'");
        let conninfo = format!("dbname='{conninfo}'");
        server.sql(&conninfo, "INSERT INTO t VALUES (8)");
        backup.restore(&sandbox, &args).ok();
        assert_eq!(server.sql(&conninfo, "SELECT a FROM t"), "7", "{name}");
        let kept = before(&server);
        assert_eq!(kept.len(), 1, "{kept:?}");
        let quoted = kept[0].replace('"', "\"\"");
        server.sql("postgres", &format!("DROP DATABASE \"{quoted}\""));
    }
    let mut expected = names.to_vec();
    expected.push(APP.to_owned());
    expected.sort();
    let mut found = databases(&server);
    found.sort();
    assert_eq!(found, expected);
    let long = "n".repeat(64);
    backup.restore(&sandbox, &["--database", &long]).expect(2);
}

#[test]
fn what_is_in_the_way_is_named_before_anything_is_touched() {
    let (server, mut sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    let args = ["--database", APP, "--replace"];
    for (template, hint) in [("template0", "--database NAME"), ("template1", "--in-place")] {
        let ended = backup.restore(&sandbox, &["--database", template, "--replace"]).expect(2);
        assert!(ended.stderr.contains("is a template"), "{}", ended.stderr);
        assert!(ended.stderr.contains(hint), "{}", ended.stderr);
    }
    let mut session = server.session(APP);
    session.sql("SELECT 1");
    let refused = |code: i32, words: &str| {
        let before = databases(&server);
        let ended = backup.restore(&sandbox, &args).expect(code);
        assert_eq!((ended.stdout.as_slice(), lines(&ended.stderr).len()), (&b""[..], 1));
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
        assert_eq!(databases(&server), before);
        assert_eq!(server.sql(APP, "SELECT a FROM t"), "7");
    };
    server.sql(
        APP,
        "CREATE SUBSCRIPTION sub CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false)",
    );
    refused(2, "the subscription 'sub'");
    server.sql(APP, "ALTER SUBSCRIPTION sub SET (slot_name = NONE)");
    server.sql(APP, "DROP SUBSCRIPTION sub");
    server.sql(APP, "SELECT pg_create_logical_replication_slot('slot', 'pgoutput')");
    refused(2, "the replication slot 'slot'");
    server.sql(APP, "SELECT pg_drop_replication_slot('slot')");
    server.sql(APP, "BEGIN; CREATE TABLE u (); PREPARE TRANSACTION 'two'");
    refused(2, "the prepared transaction 'two'");
    server.sql(APP, "ROLLBACK PREPARED 'two'");
    // A database that someone else made under our name.
    let id = backup.document.windows(8).position(|part| part == b"\"backup-").unwrap();
    let id = std::str::from_utf8(&backup.document[id + 1..]).unwrap().split('"').next().unwrap();
    let beside = format!("app__bk_{}", &id[id.len() - 8..]);
    server.sql("postgres", &format!("CREATE DATABASE {beside}"));
    refused(2, "was not made by bk-dump");
    server.sql("postgres", &format!("DROP DATABASE {beside}"));
    server.sql("postgres", "ALTER DATABASE app ALLOW_CONNECTIONS false");
    let closed = backup.restore(&sandbox, &args).expect(2);
    assert!(closed.stderr.contains("does not accept connections"), "{}", closed.stderr);
    server.sql("postgres", "ALTER DATABASE app ALLOW_CONNECTIONS true");
    // Another restore that runs.
    let mut other = server.session("postgres");
    other.sql("SET application_name = 'bk-dump restore 7'; SELECT pg_advisory_lock(1651208819, hashtext('app'))");
    refused(11, "'bk-dump restore 7' since");
    // Which lock counts for every way, though it is held in another database.
    let in_place = [&args[..], &["--in-place"]].concat();
    let ended = backup.restore(&sandbox, &in_place).expect(11);
    assert!(ended.stderr.contains("'bk-dump restore 7' since"), "{}", ended.stderr);
    drop(other);
    // The programs are too old.
    fake(&server, &mut sandbox, "pg_restore", "echo 'pg_restore (PostgreSQL) 9.6.24'");
    let old = backup.restore(&sandbox, &args).expect(2);
    assert!(old.stderr.contains("9.6.24"), "{}", old.stderr);
    session.sql("SELECT 1");
}

#[test]
fn a_role_without_rights_is_told_the_way_in_place() {
    let (server, mut sandbox) = bench("SET ROLE \"app owner\"; CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    for (name, _) in server.variables() {
        sandbox.set(name, "");
    }
    sandbox.set("DATABASE_URL", server.url().replace("%3A", "x"));
    let args = ["--database", APP, "--replace"];
    let wrong = backup.restore(&sandbox, &args).expect(12);
    assert!(wrong.stderr.contains("password authentication failed"), "{}", wrong.stderr);
    sandbox.set("DATABASE_URL", server.url());
    let refused = backup.restore(&sandbox, &args).expect(12);
    assert!(refused.stderr.contains("may not make databases"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--in-place"), "{}", refused.stderr);
    server.sql(APP, "INSERT INTO t VALUES (8)");
    backup.restore(&sandbox, &["--database", APP, "--in-place", "--replace"]).ok();
    assert_eq!(server.sql(APP, "SELECT a FROM t"), "7");
    // With the right, all of it works for an owner who is no superuser.
    server.sql("postgres", &format!("ALTER ROLE \"{ROLE}\" CREATEDB"));
    let mut session = server.session(APP);
    session.sql("SELECT 1");
    drop(session);
    for database in ["postgres", "template1"] {
        server.sql("postgres", &format!("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC"));
    }
    let refused = backup.restore(&sandbox, &args).expect(12);
    assert!(refused.stderr.contains("connect to 'postgres' or 'template1'"), "{}", refused.stderr);
    server.sql("postgres", "GRANT CONNECT ON DATABASE template1 TO PUBLIC");
    backup.restore(&sandbox, &args).ok();
    assert_eq!(server.sql(APP, "SELECT a FROM t"), "7");
    assert!(attributes(&server, APP).starts_with(ROLE));
    // Somebody else's database.
    server.sql("postgres", "CREATE DATABASE other");
    server.sql("other", "CREATE TABLE mine ()");
    let other = backup.restore(&sandbox, &["--database", "other", "--replace"]).expect(12);
    assert!(other.stderr.contains("belongs to another role"), "{}", other.stderr);
}

#[test]
fn a_session_that_may_not_be_ended_keeps_its_database() {
    let (server, mut sandbox) = bench("SET ROLE \"app owner\"; CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    server.sql("postgres", &format!("ALTER ROLE \"{ROLE}\" CREATEDB"));
    for (name, _) in server.variables() {
        sandbox.set(name, "");
    }
    sandbox.set("DATABASE_URL", server.url());
    // The superuser's.
    let mut session = server.session(APP);
    session.sql("SELECT 1");
    let ended = backup.restore(&sandbox, &["--database", APP, "--replace"]).expect(12);
    assert!(ended.stderr.contains("in use by 1 sessions"), "{}", ended.stderr);
    session.sql("SELECT 1");
    assert_eq!(server.sql(APP, "SELECT a FROM t"), "7");
    assert_eq!(databases(&server), [APP]);
}

#[test]
fn a_missing_database_gets_what_was_recorded() {
    let (server, sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    adorn(&server);
    let backup = back_up(&sandbox, APP, FORMS[0]);
    // An application's own settings may be secret.
    server.sql("postgres", "ALTER DATABASE app RESET app.custom");
    let adorned = attributes(&server, APP);
    server.sql("postgres", "DROP DATABASE app");
    let ended = backup.restore(&sandbox, &["--database", APP]).expect(3);
    assert_eq!(lines(&ended.stderr).len(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("'app.custom'"), "{}", ended.stderr);
    assert!(String::from_utf8_lossy(&ended.stdout).contains("\"code\":3"));
    assert_eq!(sorted(&attributes(&server, APP)), sorted(&adorned));
}

#[test]
fn a_server_that_lacks_roles_is_told_before_anything_is_touched() {
    let (server, sandbox) = bench(EVERYTHING);
    let backup = back_up(&sandbox, APP, FORMS[0]);
    let content = server.content(APP);
    let other = Server::start();
    let mut elsewhere = Sandbox::new();
    other.known_to(&mut elsewhere);
    other.sql("postgres", &format!("DROP DATABASE {APP}"));
    other.sql("postgres", &format!("DROP ROLE \"{ROLE}\""));
    let target = sandbox.path(&backup.target).to_str().unwrap().to_owned();
    let backup = Backup { document: backup.document, target };
    let args = ["--database", "new"];
    let ended = backup.restore(&elsewhere, &args).expect(2);
    assert!(
        ended.stderr.contains("lacks roles that the dump needs: app owner"),
        "{}",
        ended.stderr
    );
    assert_eq!(databases(&other), Vec::<String>::new());
    let made = [&args[..], &["--create-missing-roles"]].concat();
    let ended = backup.restore(&elsewhere, &made).expect(0);
    assert!(ended.stderr.contains("cannot log in: app owner"), "{}", ended.stderr);
    assert_eq!(other.content("new"), content);
    backup.restore(&elsewhere, &["--database", "bare", "--no-owner", "--no-acl"]).ok();
    let rows = "SELECT count(*), md5(string_agg(e::text, '' ORDER BY id)) FROM events e";
    assert_eq!(other.sql("bare", rows), server.sql(APP, rows));
    assert_eq!(databases(&other), ["bare", "new"]);
}

#[test]
fn a_load_that_differs_from_the_record_replaces_nothing() {
    let (server, mut sandbox) = bench(EVERYTHING);
    let content = server.content(APP);
    let backup = back_up(&sandbox, APP, FORMS[0]);
    for (change, words) in [
        ("DELETE FROM events WHERE id = 7", "public.events"),
        ("UPDATE events SET name = 'x' WHERE id = 7", "public.events"),
        ("DROP TABLE other.parts_2026", "other.parts_2026"),
        ("SELECT setval('unused', 9)", "public.unused"),
        ("SELECT lo_unlink(4711)", "large object"),
        ("DROP FUNCTION twice(int)", "functions"),
    ] {
        let script = format!(
            "\"$real\" \"$@\" || exit; for arg; do case \"$arg\" in --dbname=*) \
             '{}' -X -q -o /dev/null -d \"${{arg#--dbname=}}\" -c \"{change}\";; esac; done",
            server.bin().join("psql").display()
        );
        fake(&server, &mut sandbox, "pg_restore", &script);
        let ended = backup.restore(&sandbox, &["--database", APP, "--replace"]).expect(20);
        assert!(ended.stderr.contains(words), "{change}: {}", ended.stderr);
        assert!(ended.stderr.contains("hint: to drop it: DROP DATABASE"), "{}", ended.stderr);
        assert_eq!(ended.stdout, b"");
        assert_eq!(server.content(APP), content);
        // It is kept to be looked at, until the next restore.
        let names = databases(&server);
        assert_eq!(names.len(), 2, "{names:?}");
        assert_ne!(server.content(&names[1]), content, "{change}");
    }
    fake(&server, &mut sandbox, "pg_restore", "exec \"$real\" \"$@\"");
    backup.restore(&sandbox, &["--database", APP, "--replace", "--drop-old"]).ok();
    assert_eq!((server.content(APP), databases(&server)), (content, vec![APP.to_owned()]));
}

/// Has the programs run "inside a container": here, by a `docker` that passes on what it is told.
fn inside(server: &Server, sandbox: &mut Sandbox) {
    let script = "[ \"$1 $2\" = 'exec -i' ] || exit 1; shift 2
        while [ \"$1\" = -e ]; do shift 2; done
        [ \"$1\" = db ] || exit 1; shift; exec \"$@\"";
    fake(server, sandbox, "docker", script);
}

#[test]
fn inside_a_container_every_form_comes_back() {
    let (server, mut sandbox) = bench(RELATED);
    let content = server.content(APP);
    inside(&server, &mut sandbox);
    let via = ["--via", "docker:db", "--user", "postgres", "--database"];
    for form in FORMS {
        let backup = back_up(&sandbox, APP, form);
        backup.restore(&sandbox, &[&via[..], &["new", "--replace", "--drop-old"]].concat()).ok();
        assert_eq!(server.content("new"), content, "{form:?}");
        if form[1] != "plain" {
            server.sql("new", "UPDATE other SET a = 2");
            let table = [&via[..], &["new", "--table", "other", "--replace"]].concat();
            backup.restore(&sandbox, &table).ok();
            assert_eq!(server.content("new"), content, "{form:?}");
        }
    }
    let left = fs::read_dir(sandbox.path("tmp")).unwrap().flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_str().unwrap().starts_with("tmp.")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_empty_database_gets_what_was_recorded() {
    let (server, sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    adorn(&server);
    server.sql("postgres", "ALTER DATABASE app RESET app.custom");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    let adorned = attributes(&server, APP);
    // As the image of PostgreSQL makes it when it is started for the first time.
    let empty = |owner: &str| {
        server.sql("postgres", "DROP DATABASE IF EXISTS app");
        server.sql("postgres", &format!("CREATE DATABASE app OWNER \"{owner}\""));
    };
    empty("postgres");
    backup.restore(&sandbox, &["--database", APP]).ok();
    let found = attributes(&server, APP);
    assert_eq!(sorted(&found), sorted(&adorned), "{found} is not {adorned}");
    assert_eq!(databases(&server), [APP]);
    // What is left out stays as it is there.
    empty("reader");
    server.sql("postgres", "REVOKE CONNECT ON DATABASE app FROM PUBLIC");
    backup.restore(&sandbox, &["--database", APP, "--no-owner", "--no-acl"]).ok();
    let found = attributes(&server, APP);
    assert!(found.starts_with("reader|{=T/reader,reader=CTc/reader}|77|"), "{found}");
}

/// The characters of a text; the order of a database's settings is that in which they were made.
fn sorted(text: &str) -> Vec<char> {
    let mut characters: Vec<char> = text.chars().collect();
    characters.sort_unstable();
    characters
}

#[test]
fn what_cannot_be_given_back_to_the_database_is_told_by_the_code() {
    let (server, mut sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    adorn(&server);
    server.sql("postgres", "ALTER DATABASE app RESET app.custom");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    server.sql(
        "postgres",
        "DROP DATABASE app; ALTER ROLE reader RENAME TO other; CREATE DATABASE app",
    );
    let bare = ["--database", APP, "--no-owner", "--no-acl"];
    let ended = backup.restore(&sandbox, &bare).expect(3);
    assert!(ended.stderr.contains("role \"reader\" does not exist"), "{}", ended.stderr);
    assert_eq!(server.sql(APP, "SELECT a FROM t"), "7");
    // A locale that this server lacks.
    server.sql("postgres", "DROP DATABASE app");
    // The program itself is what ends at an error, not the loop before it.
    let script = "pipe=$(mktemp -u) && mkfifo \"$pipe\" && exec 3<&0
        while IFS= read -r line; do
            printf '%s\\n' \"$line\" | sed \"s/LC_CTYPE 'C.UTF-8'/LC_CTYPE 'nowhere'/\"
        done <&3 >\"$pipe\" 2>/dev/null &
        exec \"$real\" \"$@\" <\"$pipe\" 3<&-";
    fake(&server, &mut sandbox, "psql", script);
    server.sql("postgres", "ALTER ROLE other RENAME TO reader");
    let ended = backup.restore(&sandbox, &["--database", APP]).expect(3);
    assert!(ended.stderr.contains("text may sort otherwise"), "{}", ended.stderr);
    assert_eq!(server.sql(APP, "SELECT a FROM t"), "7");
}

#[test]
fn the_locale_provider_is_the_recorded_one() {
    let (server, sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let provider = "SELECT datlocprovider FROM pg_database WHERE datname = ";
    let backup = back_up(&sandbox, APP, FORMS[0]);
    // As on a server whose databases have another one by themselves.
    let column = "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_database'::regclass \
                  AND attname IN ('daticulocale', 'datlocale')";
    let column = server.sql("postgres", column);
    let server_is_icu = format!(
        "UPDATE pg_database SET datlocprovider = 'i', {column} = 'en-US' WHERE datname = 'template0'"
    );
    server.sql("postgres", &server_is_icu);
    backup.restore(&sandbox, &["--database", "new"]).ok();
    assert_eq!(server.sql("postgres", &format!("{provider}'new'")), "c");
}

#[test]
fn what_another_restore_left_newborn_is_dropped() {
    let (server, sandbox) = bench("CREATE TABLE t AS SELECT 7 AS a");
    let backup = back_up(&sandbox, APP, FORMS[0]);
    let newborn = |name: &str| {
        let closed = "ALLOW_CONNECTIONS false CONNECTION LIMIT 1113288271";
        server.sql("postgres", &format!("CREATE DATABASE {name} {closed}"));
    };
    // Of this database; of another one; of another one with a name like that of ours.
    let others = ["app__bk_c__bk_01234567", "other__bk_01234567"];
    newborn("app__bk_01234567");
    others.into_iter().for_each(newborn);
    backup.restore(&sandbox, &["--database", APP, "--replace", "--drop-old"]).ok();
    assert_eq!(databases(&server), [APP, others[0], others[1]]);
}
