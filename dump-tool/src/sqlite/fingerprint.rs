//! What a database holds, table by table: how many rows, and a sum over them.
//!
//! A row's digest is the SHA-256 of its values in the order of the columns; a value is a byte for
//! its storage class (0 null, 1 integer, 2 real, 3 text, 4 blob), then eight bytes of an integer or
//! a real (IEEE 754), or the length in eight bytes and the bytes of a text (as UTF-8) or blob; numbers
//! begin with their highest byte. The fingerprint is the sum of these digests modulo 2^256 in hex. A
//! sum does not depend on the order of rows, which VACUUM and a changed page size may change, and
//! unlike with xor two equal rows do not cancel each other out.
//!
//! Left out are views and generated columns that are not stored, which have no content of their
//! own, and virtual tables: what they show lies in ordinary tables (those of FTS5 and R-Tree), or is
//! none of the database's.

use std::collections::BTreeMap;

use bk_manifest::command::Cancel;
use bk_manifest::digest::{Digest, Hasher};
use bk_manifest::progress::Progress;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::level::Level;

use super::{quoted, words};

/// Names the way the sums are made, for who compares with an older record.
pub const METHOD: &str = "sha256-sum-1";
/// Tables that `ANALYZE` fills: what they say is no content.
const STATISTICS: &str = "sqlite_stat";
/// Rows between two looks whether to stop.
const ROWS_BETWEEN_LOOKS: u64 = 1024;

/// What is recorded of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name; escaped where it is not UTF-8.
    pub name: String,
    /// How many rows it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The sum over its rows, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Why nothing but its name is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_judged: Option<String>,
}

/// What is recorded of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// How much of each table.
    pub level: Level,
    method: Option<String>,
    /// By name.
    pub tables: Vec<Table>,
}

/// A sum of digests modulo 2^256; the lowest word comes first.
#[derive(Clone, Copy, Default)]
struct Sum([u64; 4]);

impl Sum {
    fn add(&mut self, digest: &Digest) {
        let mut carry = false;
        for (word, bytes) in self.0.iter_mut().zip(digest.bytes().rchunks_exact(8)) {
            let other = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            (*word, carry) = word.carrying_add(other, carry);
        }
    }

    fn hex(self) -> String {
        let [lowest, low, high, highest] = self.0;
        format!("{highest:016x}{high:016x}{low:016x}{lowest:016x}")
    }
}

impl Contents {
    /// Reads all tables of a database; memory is that of the largest row.
    ///
    /// # Errors
    /// What SQLite says (a [`rusqlite::Error`]); being stopped.
    pub fn of(
        database: &Connection,
        level: Level,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let mut contents = Contents { level, method: None, tables: Vec::new() };
        if level == Level::None {
            return Ok(contents);
        }
        if level == Level::Full {
            contents.method = Some(METHOD.into());
        }
        let mut reader = TableReader { database, level, cancel, progress };
        for (name, is_virtual) in names(database)? {
            contents.tables.push(reader.table(&name, is_virtual)?);
        }
        contents.tables.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(contents)
    }

    /// Takes it from the record of a component; `None` where a dump has none.
    ///
    /// # Errors
    /// A record that is there and makes no sense.
    pub fn from_record(facts: &Map<String, Value>) -> serde_json::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Header {
            level: Level,
            method: Option<String>,
        }
        let (Some(header), Some(tables)) = (facts.get("fingerprints"), facts.get("tables")) else {
            return Ok(None);
        };
        let Header { level, method } = Header::deserialize(header)?;
        Ok(Some(Contents { level, method, tables: Vec::deserialize(tables)? }))
    }

    /// Puts it into the record of a component.
    ///
    /// # Errors
    /// None that is known: the record is made of texts and numbers.
    pub fn record(&self, facts: &mut Map<String, Value>) -> serde_json::Result<()> {
        let mut header = json!({"level": self.level});
        if let Some(method) = &self.method {
            header["method"] = method.as_str().into();
        }
        facts.insert("fingerprints".into(), header);
        if self.level != Level::None {
            facts.insert("tables".into(), serde_json::to_value(&self.tables)?);
        }
        Ok(())
    }

    /// What `found` has that is not as it was recorded here, one line for each table.
    pub fn differences(&self, found: &Contents) -> Vec<String> {
        let judges_sums = self.method == found.method;
        let mut others: BTreeMap<&str, &Table> =
            found.tables.iter().map(|table| (table.name.as_str(), table)).collect();
        let mut differences = Vec::new();
        for table in &self.tables {
            let name = table.name.escape_debug();
            let Some(other) = others.remove(table.name.as_str()) else {
                differences.push(format!("the table '{name}' is missing"));
                continue;
            };
            if table.not_judged.is_some() || table.name.starts_with(STATISTICS) {
                continue;
            }
            let count = |rows: Option<u64>| rows.map_or("none".into(), |rows| rows.to_string());
            if table.rows != other.rows {
                let (now, then) = (count(other.rows), count(table.rows));
                differences.push(format!("the table '{name}' has {now} rows instead of {then}"));
            } else if judges_sums && table.fingerprint != other.fingerprint {
                differences.push(format!("the rows of the table '{name}' differ"));
            }
        }
        let new = others.keys().map(|name| format!("the table '{}' is new", name.escape_debug()));
        differences.extend(new);
        differences
    }
}

/// Names of all tables, and whether they are virtual.
fn names(database: &Connection) -> rusqlite::Result<Vec<(Vec<u8>, bool)>> {
    // Virtual tables have no page of their own.
    let query = "SELECT name, coalesce(rootpage, 0) = 0 FROM main.sqlite_schema \
        WHERE type = 'table'";
    let mut statement = database.prepare(query)?;
    statement
        .query_map([], |row| {
            let name = match row.get_ref(0)? {
                ValueRef::Text(bytes) => bytes.to_vec(),
                _ => Vec::new(),
            };
            Ok((name, row.get(1)?))
        })?
        .collect()
}

struct TableReader<'a> {
    database: &'a Connection,
    level: Level,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
}

impl TableReader<'_> {
    fn table(&mut self, name: &[u8], is_virtual: bool) -> anyhow::Result<Table> {
        let Ok(name) = std::str::from_utf8(name) else {
            let name = name.escape_ascii().to_string();
            return Ok(self.unjudged(name, "its name is not UTF-8"));
        };
        let mut table = Table { name: name.to_owned(), ..Table::default() };
        if is_virtual {
            table.not_judged = Some("a virtual table".into());
            return Ok(table);
        }
        // Without an index: one may need a collation that only the application has.
        let from = format!("FROM main.{} NOT INDEXED", quoted(name));
        let read = if self.level == Level::Full {
            columns(self.database, name).and_then(|columns| {
                self.database.prepare(&format!("SELECT {} {from}", columns.join(", ")))
            })
        } else {
            self.database.prepare(&format!("SELECT count(*) {from}"))
        };
        let mut statement = match read {
            Ok(statement) => statement,
            Err(error) if is_beyond_us(&error) => {
                let why = format!("SQLite cannot read it by itself: {}", words(&error));
                return Ok(self.unjudged(table.name, &why));
            }
            Err(error) => return Err(error.into()),
        };
        if self.level == Level::Full {
            let (rows, sum) = self.sum(&mut statement)?;
            (table.rows, table.fingerprint) = (Some(rows), Some(sum.hex()));
        } else {
            self.cancel.check()?;
            let rows: i64 = statement.query_row([], |row| row.get(0))?;
            table.rows = Some(u64::try_from(rows).unwrap_or(0));
        }
        Ok(table)
    }

    fn unjudged(&self, name: String, why: &str) -> Table {
        self.progress.warn(&format!(
            "the rows of the table '{}' cannot be counted: {why}",
            name.escape_debug()
        ));
        Table { name, not_judged: Some(why.into()), ..Table::default() }
    }

    fn sum(&self, statement: &mut rusqlite::Statement<'_>) -> anyhow::Result<(u64, Sum)> {
        let columns = statement.column_count();
        let mut found = statement.query([])?;
        let (mut rows, mut sum) = (0, Sum::default());
        while let Some(row) = found.next()? {
            let mut hasher = Hasher::default();
            for column in 0..columns {
                feed(&mut hasher, row.get_ref(column)?);
            }
            let (digest, bytes) = hasher.finish();
            sum.add(&digest);
            rows += 1;
            self.progress.advance(bytes, 0);
            if rows % ROWS_BETWEEN_LOOKS == 0 || bytes > 1 << 20 {
                self.cancel.check()?;
            }
        }
        self.cancel.check()?;
        Ok((rows, sum))
    }
}

/// The columns that hold something, quoted.
fn columns(database: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = database.prepare(&format!("PRAGMA main.table_xinfo({})", quoted(table)))?;
    let mut rows = statement.query([])?;
    let mut columns = Vec::new();
    while let Some(row) = rows.next()? {
        let is_virtual = row.get::<_, i64>("hidden")? == 2;
        if !is_virtual {
            columns.push(quoted(&row.get::<_, String>("name")?));
        }
    }
    Ok(columns)
}

/// Whether the table is sound, but needs what only the application has; or cannot be named.
fn is_beyond_us(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::Utf8Error(..))
        || error.sqlite_error_code() == Some(ErrorCode::Unknown)
}

fn feed(hasher: &mut Hasher, value: ValueRef<'_>) {
    let mut head = [0; 9];
    let (class, number, bytes): (u8, u64, &[u8]) = match value {
        ValueRef::Null => return hasher.update(&[0]),
        ValueRef::Integer(number) => (1, number.cast_unsigned(), &[]),
        ValueRef::Real(number) => (2, number.to_bits(), &[]),
        ValueRef::Text(bytes) => (3, bytes.len() as u64, bytes),
        ValueRef::Blob(bytes) => (4, bytes.len() as u64, bytes),
    };
    head[0] = class;
    head[1..].copy_from_slice(&number.to_be_bytes());
    hasher.update(&head);
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::progress::Silent;

    fn contents(database: &Connection) -> Contents {
        Contents::of(database, Level::Full, &Cancel::default(), &Silent).unwrap()
    }

    fn filled(statements: &str) -> Connection {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        database.execute_batch(statements).unwrap();
        database
    }

    fn table<'a>(contents: &'a Contents, name: &str) -> &'a Table {
        contents.tables.iter().find(|table| table.name == name).unwrap()
    }

    #[test]
    fn a_fingerprint_can_be_had_by_hand() {
        // The recipe: SHA-256 of 01 00…07 03 00…02 'ab' 00, twice, added.
        let row =
            [&[1, 0, 0, 0, 0, 0, 0, 0, 7][..], &[3, 0, 0, 0, 0, 0, 0, 0, 2], b"ab", &[0]].concat();
        let database = filled("CREATE TABLE t (a, b, c); INSERT INTO t VALUES (7, 'ab', NULL)");
        let once = Digest::of(&row).hex();
        assert_eq!(table(&contents(&database), "t").fingerprint.as_deref(), Some(once.as_str()));
        database.execute_batch("INSERT INTO t SELECT * FROM t").unwrap();
        let mut twice = Sum::default();
        twice.add(&Digest::of(&row));
        twice.add(&Digest::of(&row));
        let found = contents(&database);
        assert_eq!(table(&found, "t").fingerprint.as_deref(), Some(twice.hex().as_str()));
        assert_eq!(table(&found, "t").rows, Some(2));
    }

    #[test]
    fn a_sum_carries_and_wraps() {
        let digest = |hex: String| hex.parse::<Digest>().unwrap();
        let mut sum = Sum::default();
        sum.add(&digest("f".repeat(64)));
        sum.add(&digest(format!("{:0>64}", 1)));
        assert_eq!(sum.hex(), "0".repeat(64));
        sum.add(&digest(format!("{:0>64}", "f".repeat(16))));
        sum.add(&digest(format!("{:0>64}", 2)));
        assert_eq!(sum.hex(), format!("{:0>64}", format!("1{:0>16}", 1)));
    }

    #[test]
    fn each_change_of_content_is_noticed_and_no_other() {
        let setup = "CREATE TABLE t (a, b);
            INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'y'), (3, x'00'), (4, NULL), (5, 1);";
        let before = contents(&filled(setup));
        for change in [
            "UPDATE t SET b = 'z' WHERE a = 1",
            "UPDATE t SET b = CASE a WHEN 1 THEN 'y' ELSE 'x' END WHERE rowid IN (1, 2)",
            "INSERT INTO t VALUES (1, 'x')",
            "DELETE FROM t WHERE rowid = 2",
            "DELETE FROM t WHERE a = 2",
            "UPDATE t SET b = 1.0 WHERE a = 5",
            "UPDATE t SET b = '1' WHERE a = 5",
            "UPDATE t SET b = x'31' WHERE a = 5",
            "UPDATE t SET b = CAST(b AS text) WHERE a = 3",
            "UPDATE t SET b = '' WHERE a = 4",
            "UPDATE t SET b = 'x' || char(0) WHERE a = 1",
            "UPDATE t SET a = b, b = a WHERE a = 1",
            // Two equal rows become two other equal ones: with xor neither pair would count.
            "UPDATE t SET b = 'w' WHERE a = 2",
        ] {
            let database = filled(setup);
            database.execute_batch(change).unwrap();
            let differences = before.differences(&contents(&database));
            assert_eq!(differences.len(), 1, "{change}: {differences:?}");
            assert!(differences[0].contains("'t'"), "{differences:?}");
        }
        for same in [
            "CREATE TABLE u AS SELECT * FROM t ORDER BY a DESC, b; DELETE FROM t; \
             INSERT INTO t SELECT * FROM u; DROP TABLE u",
            "CREATE INDEX i ON t (b); CREATE VIEW v AS SELECT * FROM t",
            "UPDATE t SET rowid = rowid + 100; PRAGMA page_size = 512; VACUUM",
        ] {
            let database = filled(setup);
            database.execute_batch(same).unwrap();
            assert_eq!(before.differences(&contents(&database)), Vec::<String>::new(), "{same}");
        }
    }

    #[test]
    fn tables_that_come_and_go_are_named() {
        let before = contents(&filled("CREATE TABLE a (x); CREATE TABLE b (x)"));
        let after = contents(&filled("CREATE TABLE b (x); CREATE TABLE \"c'\n\" (x)"));
        assert_eq!(
            before.differences(&after),
            ["the table 'a' is missing", "the table 'c\\'\\n' is new"]
        );
    }

    #[test]
    fn odd_tables_are_read_whole() {
        let found = contents(&filled(
            "CREATE TABLE \"a\"\"b c\" (\"x\"\"y\", \"select\", \"rowid\");
             INSERT INTO \"a\"\"b c\" VALUES (1, CAST(x'ff00fe' AS text), 'a' || char(0) || 'b');
             CREATE TABLE w (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
             INSERT INTO w VALUES ('k', 1), ('l', 2);
             CREATE TABLE g (a INT, s AS (a * 2) STORED, v AS (a * 3));
             INSERT INTO g VALUES (1), (2);
             CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT);
             INSERT INTO counted VALUES (41); DELETE FROM counted;
             CREATE TABLE pragma_table_xinfo (name);
             CREATE VIRTUAL TABLE f USING fts5 (body); INSERT INTO f VALUES ('some words');
             CREATE VIRTUAL TABLE r USING rtree (id, x0, x1); INSERT INTO r VALUES (1, 2, 3);
             CREATE INDEX i ON g (a); ANALYZE;
             CREATE VIEW view AS SELECT no FROM such_table;",
        ));
        let rows = |name: &str| table(&found, name).rows;
        for (name, expected) in [
            ("a\"b c", 1),
            ("w", 2),
            ("g", 2),
            ("counted", 0),
            ("sqlite_sequence", 1),
            ("f_content", 1),
            ("r_rowid", 1),
        ] {
            assert_eq!(rows(name), Some(expected), "{name}");
            assert!(table(&found, name).fingerprint.is_some());
        }
        for name in ["f", "r"] {
            assert_eq!((rows(name), table(&found, name).not_judged.is_some()), (None, true));
        }
        assert!(rows("sqlite_stat1").is_some());
        assert!(found.tables.iter().all(|table| table.name != "view"));
        assert!(found.tables.is_sorted_by(|a, b| a.name < b.name));
    }

    #[test]
    fn what_cannot_be_read_is_recorded_by_name() {
        let database = filled("CREATE TABLE t (a); INSERT INTO t VALUES (1);");
        database
            .execute_batch(
                "PRAGMA writable_schema = ON;
                 INSERT INTO sqlite_schema VALUES
                    ('table', 'geo', 'geo', 0, 'CREATE VIRTUAL TABLE geo USING no_such_module(x)');
                 UPDATE sqlite_schema SET sql = 'CREATE TABLE t (a, b AS (own(a)) STORED)';",
            )
            .unwrap();
        let found = contents(&database);
        assert_eq!(table(&found, "geo").rows, None);
        assert_eq!(found.differences(&found), Vec::<String>::new());
    }

    #[test]
    fn the_sequence_is_judged_and_statistics_are_not() {
        let setup = "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a);
            CREATE INDEX i ON t (a); INSERT INTO t (a) VALUES (1), (2); ANALYZE;";
        let before = contents(&filled(setup));
        for (change, expected) in
            [("UPDATE sqlite_stat1 SET stat = '9 9'", 0), ("UPDATE sqlite_sequence SET seq = 1", 1)]
        {
            let database = filled(setup);
            database.execute_batch(change).unwrap();
            assert_eq!(before.differences(&contents(&database)).len(), expected, "{change}");
        }
    }

    #[test]
    fn a_record_is_read_back() {
        let database = filled("CREATE TABLE t (a); INSERT INTO t VALUES (1)");
        for level in [Level::Count, Level::Full] {
            let found = Contents::of(&database, level, &Cancel::default(), &Silent).unwrap();
            let mut facts = Map::new();
            found.record(&mut facts).unwrap();
            assert_eq!(Contents::from_record(&facts).unwrap(), Some(found));
        }
        let mut facts = Map::new();
        Contents::of(&database, Level::None, &Cancel::default(), &Silent)
            .unwrap()
            .record(&mut facts)
            .unwrap();
        assert_eq!(facts["fingerprints"], json!({"level": "none"}));
        assert_eq!(Contents::from_record(&facts).unwrap(), None);
        facts.insert("tables".into(), json!("none"));
        assert!(Contents::from_record(&facts).is_err());
    }

    #[test]
    fn sums_of_another_method_are_not_compared() {
        let found = contents(&filled("CREATE TABLE t (a); INSERT INTO t VALUES (1)"));
        let mut other = contents(&filled("CREATE TABLE t (a); INSERT INTO t VALUES (2)"));
        assert_eq!(other.differences(&found).len(), 1);
        other.method = Some("of the future".into());
        assert_eq!(other.differences(&found).len(), 0);
        other.tables[0].rows = Some(2);
        assert_eq!(other.differences(&found).len(), 1);
    }
}
