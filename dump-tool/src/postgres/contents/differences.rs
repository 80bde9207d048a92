//! What a database holds beside what was recorded of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::name::Name;
use super::record::{Contents, Extension, Sequence, Table, Until};
use crate::level::Level;

/// Since this version numbers with a fraction have a shorter text form.
const SHORT_FLOATS: u32 = 120_000;

/// What of the record was restored.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Scope {
    /// All of it.
    #[default]
    Everything,
    /// Some of it.
    Chosen {
        /// Tables, sequences and materialized views by name.
        relations: Vec<Name>,
        /// Whole schemas by name, unquoted.
        schemas: Vec<String>,
    },
}

impl Scope {
    fn has(&self, name: &Name) -> bool {
        match self {
            Scope::Everything => true,
            Scope::Chosen { relations, schemas } => {
                relations.contains(name) || schemas.contains(&name.schema)
            }
        }
    }
}

/// Something that is not as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whether something is lost or wrong; otherwise it is for those who want to know.
    pub is_fault: bool,
    message: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Compares what a restored database holds with what was recorded: tables, sequences, large
/// objects, extensions, numbers of objects, in this order.
///
/// Roles are not compared: a restore without owners and rights has others. Nor is what a
/// materialized view, a foreign table or a table of an extension holds.
pub fn differences(recorded: &Contents, found: &Contents, scope: &Scope) -> Vec<Difference> {
    let mut comparison = Comparison { found: Vec::new() };
    comparison.tables(recorded, found, scope);
    comparison.sequences(recorded, found, scope);
    if *scope == Scope::Everything {
        comparison.large_objects(recorded, found);
        comparison.extensions(&recorded.extensions, &found.extensions);
        comparison.object_counts(recorded, found);
    }
    comparison.found
}

struct Comparison {
    found: Vec<Difference>,
}

impl Comparison {
    fn fault(&mut self, message: String) {
        self.found.push(Difference { is_fault: true, message });
    }

    fn note(&mut self, message: String) {
        self.found.push(Difference { is_fault: false, message });
    }

    fn tables(&mut self, recorded: &Contents, found: &Contents, scope: &Scope) {
        let are_comparable = self.are_comparable(recorded, found);
        let there: BTreeMap<&Name, &Table> =
            found.tables.iter().map(|table| (&table.name, table)).collect();
        for table in recorded.tables.iter().filter(|table| scope.has(&table.name)) {
            let name = &table.name;
            match there.get(name) {
                _ if table.table.is_some() => {}
                None if table.kind.is_none() => self.fault(format!("{name}: the table is missing")),
                None => self.note(format!("{name}: it is not there")),
                Some(other) if table.data.is_some() => {
                    if let Some(rows @ 1..) = other.rows {
                        self.note(format!("{name}: its rows were not dumped, {} there", are(rows)));
                    }
                }
                Some(other) => self.table(table, other, are_comparable),
            }
        }
        if *scope == Scope::Everything {
            let known: BTreeSet<&Name> = recorded.tables.iter().map(|table| &table.name).collect();
            for table in found.tables.iter().filter(|table| !known.contains(&table.name)) {
                self.note(format!("{}: the table was not recorded", table.name));
            }
        }
    }

    /// Compares a table with the recorded one.
    fn table(&mut self, recorded: &Table, found: &Table, are_comparable: bool) {
        let name = &recorded.name;
        if !recorded.is_judged() {
            return;
        }
        let Some(rows) = recorded.rows else { return };
        let Some(found_rows) = found.rows else {
            if let Some(why) = &found.unread {
                self.fault(format!("{name}: its rows cannot be read: {why}"));
            }
            return;
        };
        if rows != found_rows {
            let were = were(rows, "row");
            self.fault(format!("{name}: {were} recorded, {} there", are(found_rows)));
            return;
        }
        match (&recorded.fingerprint, &found.fingerprint) {
            (Some(before), Some(now)) if are_comparable && before != now => {
                self.fault(format!("{name}: rows differ from what was recorded"));
            }
            (Some(_), None) if are_comparable => {
                if let Some(why) = &found.unread {
                    self.fault(format!("{name}: its rows cannot be compared: {why}"));
                }
            }
            _ => {}
        }
    }

    /// Whether equal rows have equal fingerprints on both sides; says so if not.
    fn are_comparable(&mut self, recorded: &Contents, found: &Contents) -> bool {
        let (before, now) = (&recorded.fingerprints, &found.fingerprints);
        if before.level < Level::Full || now.level < Level::Full {
            return false;
        }
        if before.method != now.method {
            self.note(format!(
                "rows are counted and not compared: fingerprints were recorded by the method '{}', not '{}'",
                before.method, now.method
            ));
            return false;
        }
        let has_short = |version: u32| version >= SHORT_FLOATS;
        if has_short(before.server_version) != has_short(now.server_version) {
            self.note(
                "rows are counted and not compared: PostgreSQL 12 changed how numbers are printed"
                    .to_owned(),
            );
            return false;
        }
        true
    }

    fn sequences(&mut self, recorded: &Contents, found: &Contents, scope: &Scope) {
        let there: BTreeMap<&Name, &Sequence> =
            found.sequences.iter().map(|sequence| (&sequence.name, sequence)).collect();
        let judged =
            |sequence: &&Sequence| sequence.sequence.is_none() && scope.has(&sequence.name);
        for sequence in recorded.sequences.iter().filter(judged) {
            let name = &sequence.name;
            match there.get(name) {
                None => self.fault(format!("the sequence {name} is missing")),
                Some(_) if sequence.data.is_some() => {}
                Some(other) if !is_between(sequence, other) => self.fault(format!(
                    "the sequence {name} stands at {}, recorded was {}",
                    stand(other.last_value, other.is_called),
                    stand_of(sequence),
                )),
                Some(_) => {}
            }
        }
    }

    fn large_objects(&mut self, recorded: &Contents, found: &Contents) {
        let (Some(before), Some(now)) = (&recorded.large_objects, &found.large_objects) else {
            return;
        };
        if before.count != now.count {
            let were = were(before.count, "large object");
            self.fault(format!("{were} recorded, {} there", are(now.count)));
            return;
        }
        let is_same_method = recorded.fingerprints.method == found.fingerprints.method;
        if let (Some(one), Some(other), true) =
            (&before.fingerprint, &now.fingerprint, is_same_method)
            && one != other
        {
            self.fault("large objects differ from what was recorded".to_owned());
        }
    }

    fn extensions(&mut self, recorded: &[Extension], found: &[Extension]) {
        let there: BTreeMap<&str, &Extension> =
            found.iter().map(|extension| (extension.name.as_str(), extension)).collect();
        for Extension { name, schema, version } in recorded {
            match there.get(name.as_str()) {
                None => self.fault(format!("the extension {name} is missing")),
                Some(other) => {
                    if other.version != *version {
                        self.note(format!(
                            "the extension {name} is version {}, recorded was {version}",
                            other.version
                        ));
                    }
                    if other.schema != *schema {
                        self.note(format!(
                            "the extension {name} is in the schema {}, recorded was {schema}",
                            other.schema
                        ));
                    }
                }
            }
        }
    }

    /// Fewer objects than recorded: some were lost. More may be a newer server's way of keeping
    /// them.
    fn object_counts(&mut self, recorded: &Contents, found: &Contents) {
        let (Some(before), Some(now)) = (&recorded.object_counts, &found.object_counts) else {
            return;
        };
        for (kind, count) in before {
            // A kind that the other side does not count is no kind of its server.
            let Some(other) = now.get(kind) else { continue };
            let message = format!("{kind}: {count} were recorded, {other} are there");
            match other.cmp(count) {
                std::cmp::Ordering::Less => self.fault(message),
                std::cmp::Ordering::Greater => self.note(message),
                std::cmp::Ordering::Equal => {}
            }
        }
    }
}

fn were(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what} was") } else { format!("{count} {what}s were") }
}

fn are(count: u64) -> String {
    if count == 1 { "1 is".to_owned() } else { format!("{count} are") }
}

/// Whether a sequence stands where it stood, or, if it moved while it was dumped, between the two.
fn is_between(recorded: &Sequence, found: &Sequence) -> bool {
    let Some(Until { last_value, is_called, increment }) = recorded.until else {
        return (recorded.last_value, recorded.is_called) == (found.last_value, found.is_called);
    };
    // Negated in a wider type: the least value has no counterpart.
    let place = |value: i64, is_called: bool| {
        let value = i128::from(value);
        (if increment < 0 { -value } else { value }, is_called)
    };
    let (from, to) = (place(recorded.last_value, recorded.is_called), place(last_value, is_called));
    // One that was set back or began anew can have stood anywhere meanwhile.
    to < from || (from..=to).contains(&place(found.last_value, found.is_called))
}

fn stand(last_value: i64, is_called: bool) -> String {
    if is_called { last_value.to_string() } else { format!("{last_value} (not given yet)") }
}

fn stand_of(sequence: &Sequence) -> String {
    let from = stand(sequence.last_value, sequence.is_called);
    match &sequence.until {
        Some(until) => format!("{from} to {}", stand(until.last_value, until.is_called)),
        None => from,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Fingerprints, Kind, LargeObjects, Omitted};
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn table(text: &str, rows: u64, fingerprint: &str) -> Table {
        Table {
            name: name(text),
            rows: Some(rows),
            fingerprint: Some(fingerprint.into()),
            ..Table::default()
        }
    }

    fn sequence(text: &str, last_value: i64) -> Sequence {
        Sequence { name: name(text), last_value, is_called: true, ..Sequence::default() }
    }

    fn extension(name: &str, schema: &str, version: &str) -> Extension {
        Extension { name: name.into(), schema: schema.into(), version: version.into() }
    }

    fn contents() -> Contents {
        let view = Table { kind: Some(Kind::MaterializedView), ..table("public.view", 5, "ee") };
        Contents {
            fingerprints: Fingerprints {
                level: Level::Full,
                method: "m".into(),
                server_version: 150_000,
            },
            tables: vec![table("public.events", 12, "aa"), table("other.logs", 1, "bb"), view],
            sequences: vec![sequence("public.ids", 7)],
            large_objects: Some(LargeObjects {
                count: 2,
                fingerprint: Some("cc".into()),
                unread: None,
            }),
            extensions: vec![extension("hstore", "public", "1.8")],
            object_counts: Some([("constraints".to_owned(), 3)].into()),
            ..Contents::default()
        }
    }

    /// Faults begin with `!`.
    fn told(recorded: &Contents, found: &Contents, scope: &Scope) -> Vec<String> {
        let mark = |difference: &Difference| if difference.is_fault { "!" } else { "" };
        differences(recorded, found, scope)
            .iter()
            .map(|difference| format!("{}{difference}", mark(difference)))
            .collect()
    }

    /// What is told when the found contents have been changed.
    fn told_of(change: impl FnOnce(&mut Contents)) -> Vec<String> {
        let mut found = contents();
        change(&mut found);
        told(&contents(), &found, &Scope::Everything)
    }

    #[test]
    fn what_is_the_same_is_no_difference() {
        assert_eq!(told_of(|_| ()), [""; 0]);
        let of_others = |found: &mut Contents| {
            found.roles.push("another".into());
            found.tables[2].rows = Some(6);
            found.extensions.push(extension("more", "public", "1"));
        };
        assert_eq!(told_of(of_others), [""; 0]);
    }

    #[test]
    fn each_loss_is_a_fault_in_a_line() {
        for (change, line) in [
            (
                (|found| found.tables[0].rows = Some(11)) as fn(&mut Contents),
                "!public.events: 12 rows were recorded, 11 are there",
            ),
            (
                |found| found.tables[1].rows = Some(0),
                "!other.logs: 1 row was recorded, 0 are there",
            ),
            (
                |found| found.tables[0].fingerprint = Some("ff".into()),
                "!public.events: rows differ from what was recorded",
            ),
            (
                |found| {
                    found.tables[0].fingerprint = None;
                    found.tables[0].unread = Some("why".into());
                },
                "!public.events: its rows cannot be compared: why",
            ),
            (|found| drop(found.tables.remove(0)), "!public.events: the table is missing"),
            (|found| drop(found.tables.remove(2)), "public.view: it is not there"),
            (
                |found| found.tables.push(table("public.more", 1, "dd")),
                "public.more: the table was not recorded",
            ),
            (
                |found| found.sequences[0].last_value = 6,
                "!the sequence public.ids stands at 6, recorded was 7",
            ),
            (
                |found| found.sequences[0].is_called = false,
                "!the sequence public.ids stands at 7 (not given yet), recorded was 7",
            ),
            (|found| found.sequences.clear(), "!the sequence public.ids is missing"),
            (
                |found| found.large_objects = Some(LargeObjects::default()),
                "!2 large objects were recorded, 0 are there",
            ),
            (
                |found| {
                    found.large_objects.as_mut().unwrap().fingerprint = Some("dd".into());
                },
                "!large objects differ from what was recorded",
            ),
            (|found| found.extensions.clear(), "!the extension hstore is missing"),
            (
                |found| found.extensions[0].version = "1.9".into(),
                "the extension hstore is version 1.9, recorded was 1.8",
            ),
            (
                |found| found.extensions[0].schema = "other".into(),
                "the extension hstore is in the schema other, recorded was public",
            ),
            (
                |found| found.object_counts = Some([("constraints".to_owned(), 2)].into()),
                "!constraints: 3 were recorded, 2 are there",
            ),
            (
                |found| found.object_counts = Some([("constraints".to_owned(), 4)].into()),
                "constraints: 3 were recorded, 4 are there",
            ),
        ] {
            assert_eq!(told_of(change), [line]);
        }
    }

    #[test]
    fn fingerprints_of_another_kind_are_not_compared() {
        let other = |change: fn(&mut Fingerprints)| {
            told_of(|found| {
                change(&mut found.fingerprints);
                found.tables[0].fingerprint = Some("ff".into());
                found.tables[1].rows = Some(2);
            })
        };
        let rows = "!other.logs: 1 row was recorded, 2 are there";
        assert_eq!(other(|found| found.level = Level::Count), [rows]);
        let lines = other(|found| found.method = "n".into());
        assert!(lines[0].contains("the method 'm', not 'n'"), "{lines:?}");
        assert_eq!(lines[1..], [rows]);
        let lines = other(|found| found.server_version = 110_000);
        assert!(lines[0].contains("PostgreSQL 12"), "{lines:?}");
        assert_eq!(lines[1..], [rows]);
    }

    #[test]
    fn what_was_left_out_is_not_missed() {
        let (mut recorded, mut found) = (contents(), contents());
        recorded.tables[0] =
            Table { data: Some(Omitted::LeftOut), ..table("public.events", 0, "") };
        recorded.tables[1].table = Some(Omitted::LeftOut);
        recorded.sequences[0].sequence = Some(Omitted::LeftOut);
        recorded.object_counts = None;
        found.tables[0].rows = Some(0);
        found.tables.remove(1);
        found.sequences.clear();
        assert_eq!(told(&recorded, &found, &Scope::Everything), [""; 0]);
        found.tables[0].rows = Some(5);
        assert_eq!(
            told(&recorded, &found, &Scope::Everything),
            ["public.events: its rows were not dumped, 5 are there"]
        );
    }

    #[test]
    fn only_what_was_chosen_is_compared() {
        let empty = Contents { fingerprints: contents().fingerprints, ..Contents::default() };
        let scope = |relations: &[&str], schemas: &[&str]| Scope::Chosen {
            relations: relations.iter().copied().map(name).collect(),
            schemas: schemas.iter().map(|&schema| schema.to_owned()).collect(),
        };
        assert_eq!(
            told(&contents(), &empty, &scope(&["public.events"], &["other"])),
            ["!public.events: the table is missing", "!other.logs: the table is missing"]
        );
        assert_eq!(
            told(&contents(), &empty, &scope(&["public.ids"], &[])),
            ["!the sequence public.ids is missing"]
        );
    }

    #[test]
    fn a_sequence_that_moved_lies_between() {
        let moved = |from: i64, to: i64, increment: i64, found: i64| {
            let until = Some(Until { last_value: to, is_called: true, increment });
            let recorded = Sequence { until, ..sequence("public.s", from) };
            is_between(&recorded, &sequence("public.s", found))
        };
        for (from, to, increment, inside, outside) in
            [(5, 9, 1, &[5, 7, 9][..], &[4, 10][..]), (9, 5, -2, &[9, 7, 5], &[11, 4])]
        {
            for found in inside {
                assert!(moved(from, to, increment, *found), "{from} to {to}: {found}");
            }
            for found in outside {
                assert!(!moved(from, to, increment, *found), "{from} to {to}: {found}");
            }
        }
        assert!(moved(9, 2, 1, 10), "it began anew");
        assert!(moved(i64::MIN, i64::MIN, -1, i64::MIN));
    }
}
