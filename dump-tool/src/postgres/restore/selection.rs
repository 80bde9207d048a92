//! Some tables or schemas of a dump: which entries of its table of contents belong to them.

use std::collections::{BTreeMap, BTreeSet};

use super::archive::Entry;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One table with all that belongs to it; also a view or a sequence.
    Table {
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// All that is in a schema.
    Schema(String),
}

impl Wanted {
    /// Reads `SCHEMA.TABLE`, without a dot a table of `public`. A name stands for itself, upper and
    /// lower case apart; one with a dot in it is put into double quotes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn table(text: &str) -> Result<Self, &'static str> {
        let (first, rest) = name(text)?;
        let (schema, name) = match rest.strip_prefix('.') {
            None if rest.is_empty() => ("public".to_owned(), first),
            None => return Err("it is SCHEMA.TABLE"),
            Some(rest) => match name(rest)? {
                (name, "") => (first, name),
                _ => return Err("it is SCHEMA.TABLE; a name with a dot in it is put into \"…\""),
            },
        };
        Ok(Wanted::Table { schema, name })
    }

    /// Reads the name of a schema, in double quotes or not.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn schema(text: &str) -> Result<Self, &'static str> {
        match name(text)? {
            (name, "") => Ok(Wanted::Schema(name)),
            _ => Err("it is the name of a schema; one with a dot in it is put into \"…\""),
        }
    }
}

/// For messages.
impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Table { schema, name } => write!(f, "the table '{schema}.{name}'"),
            Wanted::Schema(name) => write!(f, "the schema '{name}'"),
        }
    }
}

/// A name and what follows it.
fn name(text: &str) -> Result<(String, &str), &'static str> {
    let (name, rest) = if let Some(mut rest) = text.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let (part, behind) = rest.split_once('"').ok_or("a quote is not closed")?;
            name.push_str(part);
            match behind.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
                None => break (name, behind),
            }
        }
    } else {
        let end = text.find('.').unwrap_or(text.len());
        (text[..end].to_owned(), &text[end..])
    };
    if name.is_empty() { Err("a name is empty") } else { Ok((name, rest)) }
}

/// Kinds of entries that are what a table's name stands for.
const RELATIONS: [&str; 5] = ["TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE"];
/// Kinds that belong to what they need: they say nothing without it.
const PARTS: [&str; 13] = [
    "TABLE DATA",
    "INDEX",
    "COMMENT",
    "ACL",
    "SECURITY LABEL",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "STATISTICS",
    "STATISTICS DATA",
    "INDEX ATTACH",
    "MATERIALIZED VIEW DATA",
    "ROW SECURITY",
];
/// Kinds that belong to one table, whose name begins their tag, and may need others.
const PARTS_OF_NAMED: [&str; 7] =
    ["CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "DEFAULT", "TRIGGER", "RULE", "POLICY"];

/// What was chosen of a dump.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// Numbers of entries, in the order of the dump.
    pub(super) ids: Vec<i64>,
    /// The relations among them, by schema and name.
    pub(super) relations: Vec<(String, String)>,
    /// The schemas that they are in.
    pub(super) schemas: BTreeSet<String>,
}

impl Selection {
    /// Chooses what is wanted; entries that make a schema only where `lacks_schema` says so.
    ///
    /// # Errors
    /// The first that the dump does not hold.
    pub(super) fn of<'a>(
        entries: &[Entry],
        wanted: &'a [Wanted],
        lacks_schema: impl Fn(&str) -> bool,
    ) -> Result<Self, &'a Wanted> {
        let by_id: BTreeMap<i64, &Entry> = entries.iter().map(|entry| (entry.id, entry)).collect();
        let mut chosen = BTreeSet::new();
        for one in wanted {
            let found: Vec<i64> =
                entries.iter().filter(|entry| one.names(entry)).map(|entry| entry.id).collect();
            if found.is_empty() {
                return Err(one);
            }
            chosen.extend(found);
        }
        // What belongs to something chosen may be chosen for others, such as the comment on an index.
        loop {
            let before = chosen.len();
            for entry in entries {
                if !chosen.contains(&entry.id) && belongs(entry, &chosen, &by_id) {
                    chosen.insert(entry.id);
                }
                chosen.extend(attached(entry, &chosen, &by_id));
            }
            if chosen.len() == before {
                break;
            }
        }
        let schemas: BTreeSet<String> = entries
            .iter()
            .filter(|entry| chosen.contains(&entry.id) && !entry.schema.is_empty())
            .map(|entry| entry.schema.clone())
            .collect();
        let is_schema_wanted = |entry: &Entry| match schema_of(entry) {
            Some(schema) => schemas.contains(schema) && lacks_schema(schema),
            None => chosen.contains(&entry.id),
        };
        let taken: Vec<&Entry> = entries.iter().filter(|entry| is_schema_wanted(entry)).collect();
        Ok(Selection {
            ids: taken.iter().map(|entry| entry.id).collect(),
            relations: taken
                .iter()
                .filter(|entry| RELATIONS.contains(&entry.kind.as_str()))
                .map(|entry| (entry.schema.clone(), entry.tag.clone()))
                .collect(),
            schemas,
        })
    }

    /// The list as `pg_restore --use-list` reads it.
    pub(super) fn list(&self) -> String {
        self.ids.iter().flat_map(|id| [id.to_string(), ";\n".to_owned()]).collect()
    }
}

impl Wanted {
    fn names(&self, entry: &Entry) -> bool {
        match self {
            Wanted::Table { schema, name } => {
                RELATIONS.contains(&entry.kind.as_str())
                    && entry.schema == *schema
                    && entry.tag == *name
            }
            Wanted::Schema(name) => entry.schema == *name || schema_of(entry) == Some(name),
        }
    }
}

/// The schema that an entry makes, or says something about.
fn schema_of(entry: &Entry) -> Option<&str> {
    match entry.kind.as_str() {
        "SCHEMA" => Some(&entry.tag),
        "COMMENT" | "ACL" | "SECURITY LABEL" if entry.schema.is_empty() => {
            entry.tag.strip_prefix("SCHEMA ")
        }
        _ => None,
    }
}

/// Whether an entry is part of one that was chosen.
fn belongs(entry: &Entry, chosen: &BTreeSet<i64>, by_id: &BTreeMap<i64, &Entry>) -> bool {
    let kind = entry.kind.as_str();
    if PARTS.contains(&kind) {
        return entry.needs.iter().any(|id| {
            chosen.contains(id) && by_id.get(id).is_some_and(|needed| is_owner(needed, kind))
        });
    }
    if kind == "TABLE ATTACH" {
        return entry.needs.iter().any(|id| {
            let child = by_id.get(id).filter(|_| chosen.contains(id));
            child.is_some_and(|child| child.schema == entry.schema && child.tag == entry.tag)
        });
    }
    PARTS_OF_NAMED.contains(&kind)
        && named_table(entry, by_id).is_some_and(|table| chosen.contains(&table.id))
}

/// Whether what is of this kind can be a part of an entry: a sequence is one of a table, but no part
/// of a schema, a type or a function that it needs.
fn is_owner(needed: &Entry, kind: &str) -> bool {
    let is_relation = RELATIONS.contains(&needed.kind.as_str());
    match kind {
        "SEQUENCE" | "INDEX" | "STATISTICS" => is_relation && needed.kind != "SEQUENCE",
        _ => true,
    }
}

/// The table whose name begins an entry's tag; of several that fit the longest one, as `a b` does for
/// `a b c` where there is an `a` too.
fn named_table<'a>(entry: &Entry, by_id: &BTreeMap<i64, &'a Entry>) -> Option<&'a Entry> {
    let needed = entry.needs.iter().filter_map(|id| by_id.get(id).copied());
    needed
        .filter(|table| {
            RELATIONS.contains(&table.kind.as_str()) && table.schema == entry.schema && {
                let rest = entry.tag.strip_prefix(table.tag.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            }
        })
        .max_by_key(|table| table.tag.len())
}

/// The partitions of a chosen table: its rows are in them.
fn attached(entry: &Entry, chosen: &BTreeSet<i64>, by_id: &BTreeMap<i64, &Entry>) -> Vec<i64> {
    if entry.kind != "TABLE ATTACH" {
        return Vec::new();
    }
    let is_child = |id: &i64| {
        by_id.get(id).is_some_and(|child| child.schema == entry.schema && child.tag == entry.tag)
    };
    let parent = entry.needs.iter().find(|id| !is_child(id));
    if parent.is_some_and(|id| chosen.contains(id)) {
        entry.needs.iter().copied().filter(is_child).collect()
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(schema: &str, name: &str) -> Wanted {
        Wanted::Table { schema: schema.into(), name: name.into() }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (text, expected) in [
            ("catalog.datasets", Ok(table("catalog", "datasets"))),
            ("datasets", Ok(table("public", "datasets"))),
            ("Odd name.\"a.b\"", Ok(table("Odd name", "a.b"))),
            ("\"x\"\"y\".z", Ok(table("x\"y", "z"))),
        ] {
            assert_eq!(Wanted::table(text), expected, "{text}");
        }
        for bad in ["", ".", "a.", ".a", "a.b.c", "\"a", "\"a\"b"] {
            assert!(Wanted::table(bad).is_err(), "{bad}");
        }
        assert_eq!(Wanted::schema("\"a.b\""), Ok(Wanted::Schema("a.b".into())));
        assert!(Wanted::schema("a.b").is_err());
    }

    fn entry(id: i64, kind: &str, schema: &str, tag: &str, needs: &[i64]) -> Entry {
        let needs = needs.to_vec();
        Entry { id, kind: kind.into(), schema: schema.into(), tag: tag.into(), needs }
    }

    /// Two tables whose names begin alike, a partitioned one, and what refers to them.
    fn dump() -> Vec<Entry> {
        vec![
            entry(1, "SCHEMA", "", "s", &[]),
            entry(2, "COMMENT", "", "SCHEMA s", &[1]),
            entry(10, "TABLE", "s", "a", &[1]),
            entry(11, "TABLE", "s", "a b", &[1]),
            entry(12, "SEQUENCE", "s", "a_id_seq", &[10, 1]),
            entry(13, "SEQUENCE OWNED BY", "s", "a_id_seq", &[12]),
            entry(14, "VIEW", "s", "v", &[10]),
            entry(15, "TABLE", "s", "parted", &[1]),
            entry(16, "TABLE", "s", "part", &[1]),
            entry(17, "TABLE ATTACH", "s", "part", &[15, 16]),
            entry(20, "DEFAULT", "s", "a id", &[10, 12]),
            entry(30, "TABLE DATA", "s", "a", &[10]),
            entry(31, "TABLE DATA", "s", "a b", &[11]),
            entry(32, "SEQUENCE SET", "s", "a_id_seq", &[12]),
            entry(33, "TABLE DATA", "s", "part", &[16]),
            entry(40, "CONSTRAINT", "s", "a a_pkey", &[10]),
            entry(41, "INDEX", "s", "a_name", &[10]),
            entry(42, "COMMENT", "s", "INDEX a_name", &[41]),
            entry(43, "FK CONSTRAINT", "s", "a b b_fkey", &[11, 10, 40]),
            entry(44, "TRIGGER", "s", "a touched", &[10, 99]),
            entry(45, "ACL", "s", "TABLE a", &[10]),
        ]
    }

    fn ids(wanted: &[Wanted]) -> Vec<i64> {
        Selection::of(&dump(), wanted, |_| false).unwrap().ids
    }

    #[test]
    fn a_table_comes_with_what_belongs_to_it_and_nothing_else() {
        let a = [10, 12, 13, 20, 30, 32, 40, 41, 42, 44, 45];
        assert_eq!(ids(&[table("s", "a")]), a);
        assert_eq!(ids(&[table("s", "a b")]), [11, 31, 43]);
        assert_eq!(ids(&[table("s", "v")]), [14]);
        assert_eq!(ids(&[table("s", "part")]), [16, 17, 33]);
        assert_eq!(ids(&[table("s", "parted")]), [15, 16, 17, 33]);
        let everything: Vec<i64> = dump().iter().map(|entry| entry.id).skip(2).collect();
        assert_eq!(ids(&[Wanted::Schema("s".into())]), everything);
    }

    #[test]
    fn a_schema_that_is_missing_is_made() {
        let found = Selection::of(&dump(), &[table("s", "v")], |_| true).unwrap();
        assert_eq!(found.ids, [1, 2, 14]);
        assert_eq!(found.relations, [("s".to_owned(), "v".to_owned())]);
        assert_eq!(found.list(), "1;\n2;\n14;\n");
    }

    #[test]
    fn what_the_dump_does_not_hold_is_named() {
        let wanted = [table("s", "a"), table("s", "none")];
        assert_eq!(Selection::of(&dump(), &wanted, |_| false).unwrap_err(), &wanted[1]);
    }
}
