//! Which backups of a series the rules keep, and why: a pure function of the backups, the rules and
//! the time.
//!
//! Beyond the rules, what the last hope of a restore may be always stays: the newest backup, the
//! newest complete one of each component, and what claims to be from the future.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bk_manifest::manifest::{Component, Status};
use bk_manifest::time::Time;
use bk_push::catalog::BackupInfo;
use jiff::Timestamp;

use crate::rules::{Calendar, Rules, Within};
use crate::slots::{Rule, fill_slots};

/// What the rules look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its id.
    pub id: String,
    /// When it began, by its manifest.
    pub time: Time,
    /// The components and whether each is complete.
    pub components: BTreeMap<String, bool>,
}

impl Backup {
    /// Whether it can take a slot from others: it holds something, and all of that.
    pub(crate) fn is_complete(&self) -> bool {
        !self.components.is_empty() && self.components.values().all(|is_complete| *is_complete)
    }
}

impl From<&BackupInfo> for Backup {
    fn from(info: &BackupInfo) -> Self {
        let components = components(&info.components);
        Backup { id: info.id.clone(), time: info.time, components }
    }
}

/// What a backup holds, and whether all of it. One that was skipped is not in it: an earlier backup
/// that has it stays for it.
fn components(records: &[Component]) -> BTreeMap<String, bool> {
    let mut components = BTreeMap::new();
    for record in records.iter().filter(|record| record.status != Status::Skipped) {
        *components.entry(record.name.clone()).or_insert(true) &= record.status == Status::Complete;
    }
    components
}

/// Why a backup stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is later than now: a clock was wrong, here or there.
    Future,
    /// Nothing is newer.
    Newest,
    /// Nothing newer is complete in these components.
    NewestComplete(Vec<String>),
    /// It is younger than this.
    Within(String),
    /// It fills a slot of a counting rule.
    Slot {
        /// `last`, `daily`, …
        rule: &'static str,
        /// Which slot, from the newest.
        number: u32,
        /// How many there are.
        of: u32,
        /// The day, week, month or year.
        period: String,
        /// What it is there for.
        part: Part,
    },
}

/// What of a slot a backup fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// All that there is, as no complete backup is in that period; it takes no other's place.
    Partial,
    /// A component that the newer one in that slot does not have.
    Component(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Future => f.write_str("in the future"),
            Reason::Newest => f.write_str("newest"),
            Reason::NewestComplete(names) => write!(f, "newest complete {}", names.join(", ")),
            Reason::Within(within) => write!(f, "within {within}"),
            Reason::Slot { rule, number, of, period, part } => {
                write!(f, "{rule} {number} of {of}")?;
                let part = match part {
                    Part::Whole => String::new(),
                    Part::Partial => "partial".into(),
                    Part::Component(name) => format!("for {name}"),
                };
                match (period.is_empty(), part.is_empty()) {
                    (true, true) => Ok(()),
                    (false, true) => write!(f, " ({period})"),
                    (true, false) => write!(f, " ({part})"),
                    (false, false) => write!(f, " ({period}, {part})"),
                }
            }
        }
    }
}

/// What is to become of a backup: it stays if there is any reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The backup's id.
    pub id: String,
    /// Why it stays; none: it may go.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Whether it stays.
    pub fn keeps(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// Decides on the backups of one series, whatever their order. Returns them newest first.
pub fn decide(backups: &[Backup], rules: &Rules, calendar: &Calendar, now: Time) -> Vec<Decision> {
    let order = newest_first(backups);
    let mut reasons = always(&order, now);
    let past: Vec<usize> = (0..order.len()).filter(|index| order[*index].time <= now).collect();
    if let (Some(within), Some(newest)) = (&rules.within, past.first()) {
        let limit = limit(order[*newest].time, within, calendar);
        for index in past.iter().filter(|index| order[**index].time.timestamp() >= limit) {
            reasons[*index].push(Reason::Within(within.to_string()));
        }
    }
    for (rule, count) in [
        (Rule::Last, rules.last),
        (Rule::Daily, rules.daily),
        (Rule::Weekly, rules.weekly),
        (Rule::Monthly, rules.monthly),
        (Rule::Yearly, rules.yearly),
    ] {
        if let Some(count) = count {
            fill_slots(&order, &past, rule, count, calendar, &mut reasons);
        }
    }
    order
        .iter()
        .zip(reasons)
        .map(|(backup, reasons)| Decision { id: backup.id.clone(), reasons })
        .collect()
}

/// The ids of the backups that stay whatever the rules say.
pub fn indispensable(backups: &[Backup], now: Time) -> BTreeSet<String> {
    let order = newest_first(backups);
    let reasons = always(&order, now);
    order
        .iter()
        .zip(reasons)
        .filter(|(_, reasons)| !reasons.is_empty())
        .map(|(backup, _)| backup.id.clone())
        .collect()
}

fn newest_first(backups: &[Backup]) -> Vec<&Backup> {
    let mut order: Vec<&Backup> = backups.iter().collect();
    order.sort_by(|a, b| (b.time, &b.id).cmp(&(a.time, &a.id)));
    order
}

/// The reasons that need no rule, for backups that are sorted newest first.
///
/// One from the future stays, but stands for nothing: if its clock was wrong, it is older than it
/// says, and must not cost the one that really is the newest.
fn always(order: &[&Backup], now: Time) -> Vec<Vec<Reason>> {
    let mut found = BTreeSet::new();
    let mut has_newest = false;
    order
        .iter()
        .map(|backup| {
            if backup.time > now {
                return vec![Reason::Future];
            }
            let mut reasons = Vec::new();
            if !has_newest {
                has_newest = true;
                reasons.push(Reason::Newest);
            }
            let first: Vec<String> = backup
                .components
                .iter()
                .filter(|(name, is_complete)| **is_complete && found.insert((*name).clone()))
                .map(|(name, _)| name.clone())
                .collect();
            if !first.is_empty() {
                reasons.push(Reason::NewestComplete(first));
            }
            reasons
        })
        .collect()
}

/// The oldest time that is within the length of time before `newest`.
fn limit(newest: Time, within: &Within, calendar: &Calendar) -> Timestamp {
    let newest = newest.timestamp().to_zoned(calendar.zone.clone());
    // Further back than a calendar goes: all of them.
    newest.checked_sub(within.span()).map_or(Timestamp::MIN, |limit| limit.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::WeekStart;
    use crate::testing::{Random, seeds};
    use jiff::ToSpan;
    use jiff::civil::Date;
    use jiff::tz::TimeZone;
    use std::num::NonZeroU32;

    /// `2026-04-28 02` with letters behind it: `p` all partial; `files`, `db`: only that component;
    /// `db!`: that one partial beside a complete `files`.
    fn backup(text: &str) -> Backup {
        let mut words = text.split(' ');
        let (day, hour) = (words.next().unwrap(), words.next().unwrap());
        let components: &[(&str, bool)] = match words.next() {
            None => &[("db", true), ("files", true)],
            Some("p") => &[("db", false), ("files", false)],
            Some("db!") => &[("db", false), ("files", true)],
            Some("db") => &[("db", true)],
            Some("files") => &[("files", true)],
            Some("empty") => &[],
            Some(other) => panic!("{other}"),
        };
        Backup {
            id: text.to_owned(),
            time: format!("{day}T{hour}:00:00Z").parse().unwrap(),
            components: components.iter().map(|(name, is)| ((*name).to_owned(), *is)).collect(),
        }
    }

    #[test]
    fn what_was_skipped_is_not_held_and_makes_nothing_partial() {
        let record = |name: &str, status| Component {
            name: name.into(),
            kind: "bucket".into(),
            status,
            extra: serde_json::Map::new(),
        };
        let skipped = record("minio", Status::Skipped);
        let (files, half) = (record("files", Status::Complete), record("db", Status::Partial));
        let held = |records: &[Component]| {
            let time = "2026-04-28T00:00:00Z".parse().unwrap();
            Backup { id: "b".into(), time, components: components(records) }
        };
        let backup = held(&[files.clone(), skipped.clone()]);
        assert!(backup.is_complete() && !backup.components.contains_key("minio"));
        assert!(!held(&[files, half]).is_complete());
        // Nothing but what was skipped is nothing.
        assert!(!held(&[skipped]).is_complete());
    }

    fn rules(text: &str) -> Rules {
        let mut rules = Rules::default();
        for word in text.split(' ') {
            let (name, value) = word.split_once('=').unwrap();
            let count = value.parse().ok();
            match name {
                "last" => rules.last = count,
                "daily" => rules.daily = count,
                "weekly" => rules.weekly = count,
                "monthly" => rules.monthly = count,
                "yearly" => rules.yearly = count,
                "within" => rules.within = Some(value.parse().unwrap()),
                _ => panic!("{name}"),
            }
        }
        rules
    }

    fn calendar(zone: &str, week_start: WeekStart) -> Calendar {
        Calendar { zone: TimeZone::get(zone).unwrap(), week_start }
    }

    /// Ids of those that stay, and why, newest first.
    fn kept(backups: &[&str], text: &str, calendar: &Calendar, now: &str) -> Vec<String> {
        let backups: Vec<Backup> = backups.iter().map(|text| backup(text)).collect();
        decide(&backups, &rules(text), calendar, now.parse().unwrap())
            .into_iter()
            .filter(Decision::keeps)
            .map(|decision| {
                let reasons: Vec<String> = decision.reasons.iter().map(Reason::to_string).collect();
                format!("{}: {}", decision.id, reasons.join("; "))
            })
            .collect()
    }

    const NOW: &str = "2026-05-01T00:00:00Z";

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        let all = [
            "2024-12-31 23",
            "2025-12-31 23",
            "2026-01-01 00",
            "2026-03-31 02",
            "2026-04-19 02",
            "2026-04-20 02",
            "2026-04-26 02",
            "2026-04-27 02",
            "2026-04-28 02",
            "2026-04-28 14",
        ];
        let newest = "2026-04-28 14: newest; newest complete db, files";
        let utc = Calendar::default();
        let cases: &[(&str, &[&str])] = &[
            ("last=1", &["last 1 of 1"]),
            ("last=2", &["last 1 of 2", "2026-04-28 02: last 2 of 2"]),
            (
                "daily=3",
                &[
                    "daily 1 of 3 (2026-04-28)",
                    "2026-04-27 02: daily 2 of 3 (2026-04-27)",
                    "2026-04-26 02: daily 3 of 3 (2026-04-26)",
                ],
            ),
            (
                "weekly=3",
                &[
                    "weekly 1 of 3 (week of 2026-04-27)",
                    "2026-04-26 02: weekly 2 of 3 (week of 2026-04-20)",
                    "2026-04-19 02: weekly 3 of 3 (week of 2026-04-13)",
                ],
            ),
            (
                "monthly=3",
                &[
                    "monthly 1 of 3 (2026-04)",
                    "2026-03-31 02: monthly 2 of 3 (2026-03)",
                    "2026-01-01 00: monthly 3 of 3 (2026-01)",
                ],
            ),
            (
                "yearly=9",
                &[
                    "yearly 1 of 9 (2026)",
                    "2025-12-31 23: yearly 2 of 9 (2025)",
                    "2024-12-31 23: yearly 3 of 9 (2024)",
                ],
            ),
            ("within=2d", &["within 2d", "2026-04-28 02: within 2d", "2026-04-27 02: within 2d"]),
            ("within=12h", &["within 12h", "2026-04-28 02: within 12h"]),
            ("within=11h", &["within 11h"]),
            (
                "within=1m last=1",
                &[
                    "within 1m; last 1 of 1",
                    "2026-04-28 02: within 1m",
                    "2026-04-27 02: within 1m",
                    "2026-04-26 02: within 1m",
                    "2026-04-20 02: within 1m",
                    "2026-04-19 02: within 1m",
                    "2026-03-31 02: within 1m",
                ],
            ),
        ];
        for (rules, expected) in cases {
            let mut expected: Vec<String> = expected.iter().map(|s| (*s).to_owned()).collect();
            expected[0] = format!("{newest}; {}", expected[0]);
            assert_eq!(kept(&all, rules, &utc, NOW), expected, "{rules}");
        }
    }

    #[test]
    fn weeks_and_days_begin_where_the_calendar_says() {
        // Saturday, Sunday, Monday.
        let all = ["2026-04-25 12", "2026-04-26 12", "2026-04-27 12"];
        let monday = kept(&all, "weekly=2", &Calendar::default(), NOW);
        assert_eq!(monday.len(), 2);
        assert!(monday[1].starts_with("2026-04-26 12"));
        let sunday = kept(&all, "weekly=2", &calendar("UTC", WeekStart::Sunday), NOW);
        assert!(sunday[1].starts_with("2026-04-25 12"), "{sunday:?}");
        // 22:00 and 23:00 UTC are two days in Berlin, and one in UTC and in New York.
        let all = ["2026-04-27 21", "2026-04-27 22"];
        for (zone, count) in [("Europe/Berlin", 2), ("UTC", 1), ("America/New_York", 1)] {
            let calendar = calendar(zone, WeekStart::Monday);
            assert_eq!(kept(&all, "daily=7", &calendar, NOW).len(), count, "{zone}");
        }
    }

    #[test]
    fn a_partial_backup_costs_no_complete_one() {
        let utc = Calendar::default();
        // A week of failures leaves the last good days where they were.
        let all = [
            "2026-04-20 02",
            "2026-04-21 02",
            "2026-04-22 02 p",
            "2026-04-23 02 p",
            "2026-04-24 02 p",
        ];
        assert_eq!(
            kept(&all, "daily=2", &utc, NOW),
            [
                "2026-04-24 02 p: newest; daily 1 of 2 (2026-04-24, partial)",
                "2026-04-23 02 p: daily 2 of 2 (2026-04-23, partial)",
                "2026-04-21 02: newest complete db, files; daily 1 of 2 (2026-04-21)",
                "2026-04-20 02: daily 2 of 2 (2026-04-20)",
            ]
        );
        // On one day, the complete one is the day's, although it is older.
        let all = ["2026-04-20 02", "2026-04-20 14 p", "2026-04-21 02"];
        assert_eq!(
            kept(&all, "daily=2", &utc, NOW)[1..],
            ["2026-04-20 02: daily 2 of 2 (2026-04-20)"]
        );
        // One that holds nothing is not complete.
        let all = ["2026-04-20 02", "2026-04-20 14 empty", "2026-04-21 02"];
        assert_eq!(
            kept(&all, "daily=2", &utc, NOW)[1..],
            ["2026-04-20 02: daily 2 of 2 (2026-04-20)"]
        );
    }

    #[test]
    fn the_newest_complete_one_of_each_component_stays() {
        let all = ["2026-04-20 02 db", "2026-04-21 02", "2026-04-22 02 db!", "2026-04-23 02 p"];
        assert_eq!(
            kept(&all, "last=1", &Calendar::default(), NOW),
            [
                "2026-04-23 02 p: newest; last 1 of 1 (partial)",
                "2026-04-22 02 db!: newest complete files",
                "2026-04-21 02: newest complete db; last 1 of 1",
            ]
        );
    }

    #[test]
    fn a_backup_of_one_component_does_not_push_out_the_day_of_the_other() {
        let all = ["2026-04-20 02", "2026-04-20 14 db", "2026-04-21 02"];
        assert_eq!(
            kept(&all, "daily=2", &Calendar::default(), NOW)[1..],
            [
                "2026-04-20 14 db: daily 2 of 2 (2026-04-20)",
                "2026-04-20 02: daily 2 of 2 (2026-04-20, for files)",
            ]
        );
    }

    #[test]
    fn what_is_from_the_future_stays_and_stands_for_nothing() {
        let all = ["2026-04-28 02", "2026-04-29 02", "2027-01-01 00"];
        assert_eq!(
            kept(&all, "last=1", &Calendar::default(), NOW),
            [
                "2027-01-01 00: in the future",
                "2026-04-29 02: newest; newest complete db, files; last 1 of 1",
            ]
        );
        assert_eq!(
            kept(&all, "within=36h", &Calendar::default(), NOW)[2..],
            ["2026-04-28 02: within 36h"]
        );
    }

    /// A year with both changes of the clock, a prune after each backup, as sanoid tests it.
    #[test]
    fn a_year_in_berlin_keeps_every_day_week_and_month_once() {
        let calendar = calendar("Europe/Berlin", WeekStart::Monday);
        let rules = rules("daily=7 weekly=4 monthly=12");
        let mut there: Vec<Backup> = Vec::new();
        let mut hour = "2026-01-01T00:30:00Z".parse::<Time>().unwrap().unix().0;
        // Every six hours and seventeen minutes, so that they drift over midnight.
        for _ in 0..1400 {
            let time = Time::from_unix(hour, 0);
            let components = [("db".to_owned(), true)].into();
            there.push(Backup { id: time.to_string(), time, components });
            let kept: BTreeSet<String> = decide(&there, &rules, &calendar, time)
                .into_iter()
                .filter(Decision::keeps)
                .map(|decision| decision.id)
                .collect();
            there.retain(|backup| kept.contains(&backup.id));
            assert!(there.len() <= 7 + 4 + 12, "{}", there.len());
            hour += 6 * 3600 + 17 * 60;
        }
        let dates: Vec<Date> = there
            .iter()
            .map(|backup| backup.time.timestamp().to_zoned(calendar.zone.clone()).date())
            .collect();
        let last = *dates.last().unwrap();
        let expected_days: Vec<Date> = (0..7).rev().map(|days| last - days.days()).collect();
        assert_eq!(dates[dates.len() - 7..], expected_days, "the last seven days, one each");
        let mut months: Vec<String> =
            dates.iter().map(|date| date.strftime("%Y-%m").to_string()).collect();
        months.dedup();
        assert_eq!(months.len(), 12, "{months:?}");
        // The newest of a month is one of its last day.
        for month in dates.iter().filter(|date| **date < last - 40.days()) {
            assert_eq!(*month, month.last_of_month());
        }
    }

    #[test]
    fn the_order_of_input_does_not_matter_and_the_newest_always_stays() {
        for seed in seeds(300) {
            let random = &mut Random(seed);
            let names = ["db", "files", "config"];
            let mut backups: Vec<Backup> = (0..random.below(40))
                .map(|number| Backup {
                    id: format!("b{number}"),
                    // Some at the same time, some in the future.
                    time: Time::from_unix(
                        1_770_000_000 + i64::try_from(random.below(400)).unwrap() * 21_600,
                        0,
                    ),
                    components: (0..random.below(4))
                        .map(|_| {
                            let name = names[usize::try_from(random.below(3)).unwrap()];
                            (name.to_owned(), random.chance(70))
                        })
                        .collect(),
                })
                .collect();
            let count =
                |random: &mut Random| NonZeroU32::new(u32::try_from(random.below(6)).unwrap());
            let rules = Rules {
                last: count(random),
                daily: count(random),
                weekly: count(random),
                monthly: count(random),
                yearly: count(random),
                within: random.chance(30).then(|| "9d".parse().unwrap()),
            };
            let calendar = calendar("America/New_York", WeekStart::Sunday);
            let now = Time::from_unix(1_770_000_000 + 300 * 21_600, 0);
            let first = decide(&backups, &rules, &calendar, now);
            for index in (1..backups.len()).rev() {
                let other = usize::try_from(random.below(index as u64 + 1)).unwrap();
                backups.swap(index, other);
            }
            assert_eq!(decide(&backups, &rules, &calendar, now), first, "BK_TEST_SEED={seed}");
            let kept: BTreeSet<&str> =
                first.iter().filter(|d| d.keeps()).map(|d| d.id.as_str()).collect();
            let newest = |is: &dyn Fn(&Backup) -> bool| {
                backups
                    .iter()
                    .filter(|backup| backup.time <= now && is(backup))
                    .max_by_key(|backup| (backup.time, backup.id.clone()))
            };
            let mut must: Vec<&Backup> = newest(&|_| true).into_iter().collect();
            for name in names {
                must.extend(newest(&|backup| backup.components.get(name) == Some(&true)));
            }
            must.extend(backups.iter().filter(|backup| backup.time > now));
            for backup in must {
                assert!(kept.contains(backup.id.as_str()), "{} BK_TEST_SEED={seed}", backup.id);
            }
            // Pruning again what is left changes nothing.
            let left: Vec<Backup> =
                backups.into_iter().filter(|b| kept.contains(b.id.as_str())).collect();
            let again = decide(&left, &rules, &calendar, now);
            assert!(again.iter().all(Decision::keeps), "BK_TEST_SEED={seed}");
        }
    }
}
