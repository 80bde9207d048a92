//! The counting rules: periods of the calendar, and which backups fill their slots.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use bk_manifest::time::Time;
use jiff::ToSpan;
use jiff::civil::Date;

use crate::policy::{Backup, Part, Reason};
use crate::rules::{Calendar, WeekStart};

/// A rule that counts periods.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    Last,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl Rule {
    fn name(self) -> &'static str {
        match self {
            Rule::Last => "last",
            Rule::Daily => "daily",
            Rule::Weekly => "weekly",
            Rule::Monthly => "monthly",
            Rule::Yearly => "yearly",
        }
    }

    /// The first day of the period that a time falls into; `None` if every backup has its own.
    fn period(self, time: Time, calendar: &Calendar) -> Option<Date> {
        let date = time.timestamp().to_zoned(calendar.zone.clone()).date();
        let days_into_week = match calendar.week_start {
            WeekStart::Monday => date.weekday().to_monday_zero_offset(),
            WeekStart::Sunday => date.weekday().to_sunday_zero_offset(),
        };
        match self {
            Rule::Last => None,
            Rule::Daily => Some(date),
            Rule::Weekly => Some(date.saturating_sub(days_into_week.days())),
            Rule::Monthly => Some(date.first_of_month()),
            Rule::Yearly => Some(date.first_of_year()),
        }
    }

    fn label(self, period: Option<Date>) -> String {
        match (self, period) {
            (Rule::Last, _) | (_, None) => String::new(),
            (Rule::Daily, Some(date)) => date.to_string(),
            (Rule::Weekly, Some(date)) => format!("week of {date}"),
            (Rule::Monthly, Some(date)) => date.strftime("%Y-%m").to_string(),
            (Rule::Yearly, Some(date)) => date.strftime("%Y").to_string(),
        }
    }
}

/// Gives the backups that fill the slots of one rule their reason.
///
/// The slots go to the newest periods that have a complete backup. A period with partial ones only
/// is kept too while it is among the newest, but uses up no slot: a week of half-failed runs must
/// not push out the last good ones.
pub(crate) fn fill_slots(
    order: &[&Backup],
    past: &[usize],
    rule: Rule,
    count: NonZeroU32,
    calendar: &Calendar,
    reasons: &mut [Vec<Reason>],
) {
    let of = count.get();
    let (mut complete, mut all) = (0, 0);
    let periods = past.chunk_by(|a, b| {
        let period = |index: usize| rule.period(order[index].time, calendar);
        period(*a).is_some() && period(*a) == period(*b)
    });
    for members in periods {
        let is_complete = members.iter().any(|index| order[*index].is_complete());
        complete += u32::from(is_complete);
        all += 1;
        let number = if is_complete { complete } else { all };
        if number <= of {
            let first = members.first().and_then(|index| rule.period(order[*index].time, calendar));
            for (index, part) in cover(order, members) {
                let period = rule.label(first);
                reasons[index].push(Reason::Slot { rule: rule.name(), number, of, period, part });
            }
        }
        if complete >= of {
            return;
        }
    }
}

/// The backups of one period that are needed to have each of its components once.
///
/// Nearly always that is its newest complete one. A backup that was made of the database alone does
/// not push out the one that holds the files.
fn cover(order: &[&Backup], members: &[usize]) -> Vec<(usize, Part)> {
    let (complete, partial): (Vec<usize>, Vec<usize>) =
        members.iter().partition(|index| order[**index].is_complete());
    let mut covered: BTreeSet<&str> = BTreeSet::new();
    let mut kept = Vec::new();
    for index in complete.iter().chain(&partial) {
        let mut added =
            order[*index].components.keys().filter(|name| !covered.contains(name.as_str()));
        let part = match added.next() {
            _ if kept.is_empty() && complete.is_empty() => Part::Partial,
            _ if kept.is_empty() => Part::Whole,
            Some(name) => Part::Component(name.clone()),
            None => continue,
        };
        covered.extend(order[*index].components.keys().map(String::as_str));
        kept.push((*index, part));
    }
    kept
}
