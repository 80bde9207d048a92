//! What a database holds, and how the component's record says it.

use std::collections::BTreeMap;

use anyhow::Context;
use bk_manifest::exit::{Exit, Failure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::name::Name;
use crate::level::Level;

/// What a database holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Contents {
    /// How fingerprints were made.
    pub fingerprints: Fingerprints,
    /// Sorted by name.
    pub tables: Vec<Table>,
    /// Sorted by name, without those of extensions.
    pub sequences: Vec<Sequence>,
    /// None where the record does not say.
    pub large_objects: Option<LargeObjects>,
    /// Sorted by name.
    pub extensions: Vec<Extension>,
    /// The roles that a restore with owners and rights needs, sorted.
    pub roles: Vec<String>,
    /// The tablespaces that tables or indexes were put into by name, sorted.
    pub tablespaces: Vec<String>,
    /// Schemas of the user's, sorted.
    pub schemas: Vec<String>,
    /// Number of objects by kind; none where only a part of them was dumped.
    pub object_counts: Option<BTreeMap<String, u64>>,
}

/// How fingerprints were made.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprints {
    /// How closely tables were looked at.
    pub level: Level,
    /// Name of the method; fingerprints of another one say nothing about each other.
    pub method: String,
    /// `server_version_num` of the server that gave the rows their text form.
    pub server_version: u32,
}

/// A table or what looks like one.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Table {
    /// Schema and name.
    pub name: Name,
    /// What it is, if it is no table of the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Its rows, those of tables that inherit from it not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The sum over its rows, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Whether the dump has its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Omitted>,
    /// Whether the dump has it at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Omitted>,
    /// Why rows or fingerprint are missing, where they should be here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
    /// Whether the server does not have its rows, though the user's database has them.
    #[serde(skip)]
    pub(super) is_absent: bool,
    /// Its number on the server.
    #[serde(skip)]
    pub(super) oid: u32,
    /// The file that held its rows when the snapshot was taken: another one, and it was emptied or
    /// written anew.
    #[serde(skip)]
    pub(super) filenode: u32,
}

impl Table {
    /// Whether a restore has to bring back its rows.
    pub fn is_judged(&self) -> bool {
        self.kind.is_none() && self.table.is_none() && self.data.is_none()
    }
}

/// What is no table of the user's: recorded, and not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A restore computes it anew.
    #[serde(rename = "materialized view")]
    MaterializedView,
    /// Its rows are on another server, which is never asked.
    #[serde(rename = "foreign table")]
    ForeignTable,
    /// An extension makes it, and mostly fills it.
    #[serde(rename = "extension table")]
    ExtensionTable,
    /// One that a newer version knows.
    #[serde(other, rename = "unknown")]
    Unknown,
}

/// A part that was left out of the dump by the user's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Omitted {
    /// It is not in the dump.
    #[serde(rename = "left out")]
    LeftOut,
}

impl Omitted {
    pub(super) fn when(is_left_out: bool) -> Option<Self> {
        is_left_out.then_some(Omitted::LeftOut)
    }
}

/// Where a sequence stands.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sequence {
    /// Schema and name.
    pub name: Name,
    /// The value that it gave last, or will give first.
    #[serde(with = "whole_number")]
    pub last_value: i64,
    /// Whether it has given that value.
    pub is_called: bool,
    /// Where it stood when the dump had ended, if it moved: what was dumped lies between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
    /// Whether the dump has where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Omitted>,
    /// Whether the dump has it at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<Omitted>,
    /// Its number on the server.
    #[serde(skip)]
    pub(super) oid: u32,
}

/// Where a sequence stood later on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Until {
    /// As in [`Sequence`].
    #[serde(with = "whole_number")]
    pub last_value: i64,
    /// As in [`Sequence`].
    pub is_called: bool,
    /// By how much it moves at a time; below zero, it counts down.
    #[serde(with = "whole_number")]
    pub increment: i64,
}

/// The large objects of a database.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LargeObjects {
    /// How many there are.
    pub count: u64,
    /// The sum over their numbers and contents, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Why the fingerprint is missing, where it should be here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// An extension.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// The schema that holds its objects.
    pub schema: String,
    /// Its version.
    pub version: String,
}

impl Contents {
    /// What should have been read and was not, with the reason.
    pub fn unread(&self) -> impl Iterator<Item = (String, &str)> {
        let tables = self.tables.iter().filter(|table| table.is_judged() || table.is_absent);
        let tables = tables.filter_map(|table| {
            Some((format!("the rows of {}", table.name), table.unread.as_deref()?))
        });
        let objects = self
            .large_objects
            .iter()
            .filter_map(|objects| Some(("large objects".to_owned(), objects.unread.as_deref()?)));
        tables.chain(objects)
    }

    /// Puts it into the component's record.
    pub fn record(&self, facts: &mut Map<String, Value>) {
        let members = [
            ("fingerprints", json!(self.fingerprints)),
            ("tables", json!(self.tables)),
            ("sequences", json!(self.sequences)),
            ("large_objects", json!(self.large_objects)),
            ("extensions", json!(self.extensions)),
            ("roles", json!(self.roles)),
            ("tablespaces", json!(Some(&self.tablespaces).filter(|names| !names.is_empty()))),
            ("schemas", json!(self.schemas)),
            ("object_counts", json!(self.object_counts)),
        ];
        for (name, value) in members {
            if !value.is_null() {
                facts.insert(name.to_owned(), value);
            }
        }
    }

    /// Takes it out of the component's record; `None` if that has nothing of the kind.
    ///
    /// # Errors
    /// [`Exit::Malformed`].
    pub fn of_record(facts: &Map<String, Value>) -> anyhow::Result<Option<Self>> {
        if !facts.contains_key("fingerprints") {
            return Ok(None);
        }
        let read = || {
            anyhow::Ok(Contents {
                fingerprints: member(facts, "fingerprints")?.unwrap_or_default(),
                tables: member(facts, "tables")?.unwrap_or_default(),
                sequences: member(facts, "sequences")?.unwrap_or_default(),
                large_objects: member(facts, "large_objects")?,
                extensions: member(facts, "extensions")?.unwrap_or_default(),
                roles: member(facts, "roles")?.unwrap_or_default(),
                tablespaces: member(facts, "tablespaces")?.unwrap_or_default(),
                schemas: member(facts, "schemas")?.unwrap_or_default(),
                object_counts: member(facts, "object_counts")?,
            })
        };
        read().map(Some).map_err(|error| {
            let message = format!("the record of what the database held is malformed: {error:#}");
            Failure::new(Exit::Malformed, message).into()
        })
    }
}

/// A member of the record; `None` if it is not there.
fn member<T: for<'de> Deserialize<'de>>(
    facts: &Map<String, Value>,
    name: &str,
) -> anyhow::Result<Option<T>> {
    let Some(value) = facts.get(name) else { return Ok(None) };
    T::deserialize(value).map(Some).with_context(|| format!("'{name}'"))
}

/// Integers beyond ±2^53, which not every reader of JSON takes, are texts.
mod whole_number {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::Value;

    const LIMIT: u64 = 1 << 53;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
    pub(super) fn serialize<S: Serializer>(number: &i64, to: S) -> Result<S::Ok, S::Error> {
        if number.unsigned_abs() <= LIMIT {
            to.serialize_i64(*number)
        } else {
            to.collect_str(number)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let number = match Value::deserialize(from)? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| D::Error::custom("an integer was expected"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;

    fn name(name: &str) -> Name {
        Name { schema: "public".into(), name: name.into() }
    }

    fn contents() -> Contents {
        let table = |text: &str, oid: u32| Table {
            name: name(text),
            rows: Some(12),
            fingerprint: Some("00ff".into()),
            oid,
            ..Table::default()
        };
        let view = Table { kind: Some(Kind::MaterializedView), ..table("view", 3) };
        Contents {
            fingerprints: Fingerprints {
                level: Level::Full,
                method: "m".into(),
                server_version: 150_018,
            },
            tables: vec![table("events", 1), table("logs", 2), view],
            sequences: vec![
                Sequence { name: name("far"), last_value: i64::MIN, oid: 4, ..Sequence::default() },
                Sequence {
                    name: name("moved"),
                    last_value: 1 << 53,
                    until: Some(Until { last_value: i64::MAX, is_called: true, increment: 1 }),
                    oid: 5,
                    ..Sequence::default()
                },
            ],
            large_objects: Some(LargeObjects { count: 1, ..LargeObjects::default() }),
            extensions: vec![Extension {
                name: "pg_trgm".into(),
                schema: "public".into(),
                version: "1.6".into(),
            }],
            roles: vec!["app owner".into()],
            tablespaces: vec!["fast disk".into()],
            schemas: vec!["public".into()],
            object_counts: Some([("tables".to_owned(), 2)].into()),
        }
    }

    fn recorded(contents: &Contents) -> Map<String, Value> {
        let mut facts = Map::new();
        contents.record(&mut facts);
        facts
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let facts = recorded(&contents());
        assert_eq!(
            facts["tables"][0],
            json!({"name": "public.events", "rows": 12, "fingerprint": "00ff"})
        );
        assert_eq!(facts["tables"][2]["kind"], "materialized view");
        assert_eq!(facts["sequences"][0]["last_value"], "-9223372036854775808");
        assert_eq!(facts["sequences"][1]["last_value"], 1_i64 << 53);
        assert_eq!(facts["sequences"][1]["until"]["last_value"], "9223372036854775807");
        assert_eq!(recorded(&Contents::of_record(&facts).unwrap().unwrap()), facts);
        assert_eq!(Contents::of_record(&Map::new()).unwrap(), None);
    }

    #[test]
    fn a_malformed_record_is_refused() {
        for (member, value) in [
            ("tables", json!({})),
            ("tables", json!([{"name": "no schema", "rows": 1}])),
            ("tables", json!([{"name": "public.t", "rows": -1}])),
            ("tables", json!([{"name": "public.t", "rows": 1.5}])),
            ("sequences", json!([{"name": "public.s", "last_value": 1.5, "is_called": true}])),
            ("fingerprints", json!({"level": "sloppy", "method": "m", "server_version": 1})),
        ] {
            let mut facts = recorded(&contents());
            facts.insert(member.into(), value.clone());
            let error = Contents::of_record(&facts).unwrap_err();
            assert_eq!(classify(&error), Exit::Malformed, "{member}: {value}");
        }
    }

    #[test]
    fn what_newer_versions_record_is_read() {
        let mut facts = recorded(&contents());
        facts["tables"][0]["kind"] = "hologram".into();
        facts["tables"][1]["more"] = 1.into();
        let tables = Contents::of_record(&facts).unwrap().unwrap().tables;
        assert_eq!(tables[0].kind, Some(Kind::Unknown));
    }
}
