//! What people read: the plan as a table, and one line about what was done.

use std::fmt::Write;
use std::time::Duration;

use bk_manifest::path::escape;
use bk_manifest::progress::human_bytes;
use bk_manifest::time::Time;
use jiff::tz::TimeZone;

use crate::plan::{Amount, Fate, Line, Plan, Policy};
use crate::policy::Reason;
use crate::prune::Outcome;
use crate::undelete::Undeleted;

/// The plan as a table, newest backup last, and what it adds up to.
pub fn table(plan: &Plan, policy: &Policy) -> String {
    let mut text = String::new();
    let rows: Vec<[String; 5]> = plan.lines.iter().map(|line| row(line, policy)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [ids, times, kinds, sizes] = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
    for [id, time, kind, stored, fate] in &rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{id:ids$}  {time:times$}  {kind:kinds$}  {stored:>sizes$}  {fate}");
    }
    let count = |is: fn(&Fate) -> bool| plan.lines.iter().filter(|line| is(&line.fate)).count();
    let mut parts = vec![format!("keep {}", count(|fate| matches!(fate, Fate::Keep(_))))];
    let (marked, deleted) = (count(|fate| *fate == Fate::Mark), count(|f| *f == Fate::Delete));
    if marked > 0 || plan.marked.objects > 0 {
        parts.push(format!("mark {marked} ({}, {})", amount(plan.marked), wait(policy.grace)));
    }
    if deleted > 0 || plan.deletion.amount.objects > 0 {
        parts.push(format!("delete {deleted} now ({})", amount(plan.deletion.amount)));
    }
    let _ = writeln!(text, "would {}", parts.join(", "));
    let waiting = count(|fate| matches!(fate, Fate::Marked(_)));
    if waiting > 0 {
        let _ = writeln!(text, "{waiting} marked already; bk-prune --undelete takes marks back");
    }
    text
}

/// What was done, in a line.
pub fn summary(outcome: &Outcome, grace: Duration) -> String {
    let marked = outcome.marked.len();
    let when = if marked > 0 { format!(" ({})", wait(grace)) } else { String::new() };
    let freed = if outcome.old_versions.objects > 0 {
        format!(
            "nothing: the bucket keeps {} as old versions until a lifecycle rule removes them",
            amount(outcome.old_versions)
        )
    } else {
        amount(outcome.freed)
    };
    let removed = outcome.removed.len();
    format!("kept {}, marked {marked}{when}, removed {removed}, freed {freed}", outcome.kept)
}

fn amount(amount: Amount) -> String {
    match amount.objects {
        0 => human_bytes(amount.bytes),
        1 => format!("{} in 1 object", human_bytes(amount.bytes)),
        count => format!("{} in {count} objects", human_bytes(amount.bytes)),
    }
}

/// What came back, a line each.
pub fn undeleted(result: &Undeleted) -> String {
    let mut text = String::new();
    for id in &result.back {
        let _ = writeln!(text, "{}  back", escape(id.as_bytes()));
    }
    for id in &result.gone {
        let _ = writeln!(text, "{}  gone already", escape(id.as_bytes()));
    }
    text
}

fn row(line: &Line, policy: &Policy) -> [String; 5] {
    let backup = &line.backup;
    let mut kind = if backup.kind.is_empty() { "-".to_owned() } else { backup.kind.clone() };
    if !backup.is_complete() {
        kind.push_str(", partial");
    }
    [
        escape(backup.id.as_bytes()),
        when(backup.time, &policy.calendar.zone),
        escape(kind.as_bytes()),
        human_bytes(backup.stored),
        escape(fate(&line.fate, policy).as_bytes()),
    ]
}

fn fate(fate: &Fate, policy: &Policy) -> String {
    match fate {
        Fate::Keep(reasons) => {
            let reasons: Vec<String> = reasons.iter().map(Reason::to_string).collect();
            format!("keep: {}", reasons.join(", "))
        }
        Fate::Mark => format!("remove: no rule keeps it; {}", wait(policy.grace)),
        Fate::Marked(since) => {
            let left = policy.grace.saturating_sub(policy.now.since(*since));
            format!(
                "remove: marked {}; {}",
                when(*since, &policy.calendar.zone),
                if left.is_zero() { "deleted by the next run".into() } else { wait(left) }
            )
        }
        Fate::Delete => "remove: its mark has stood long enough; deleted now".into(),
    }
}

/// When what is marked now will be deleted.
fn wait(grace: Duration) -> String {
    if grace.is_zero() {
        return "deleted at once".into();
    }
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    let length = match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    };
    format!("deleted by the first run after {length}")
}

fn when(time: Time, zone: &TimeZone) -> String {
    time.timestamp().to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_one_line() {
        let mut outcome = Outcome {
            kept: 12,
            freed: Amount { objects: 1234, bytes: 1 << 30 },
            ..Outcome::default()
        };
        outcome.removed.push("a".into());
        assert_eq!(
            summary(&outcome, Duration::from_hours(24)),
            "kept 12, marked 0, removed 1, freed 1.0 GiB in 1234 objects"
        );
        let versions = Outcome {
            freed: Amount::default(),
            old_versions: Amount { objects: 10, bytes: 140 << 10 },
            ..outcome.clone()
        };
        assert_eq!(
            summary(&versions, Duration::from_hours(24)),
            "kept 12, marked 0, removed 1, freed nothing: the bucket keeps 140 KiB in 10 objects as \
             old versions until a lifecycle rule removes them"
        );
        outcome.marked = vec!["b".into(), "c".into()];
        assert_eq!(
            summary(&outcome, Duration::from_hours(24)),
            "kept 12, marked 2 (deleted by the first run after 24 h), removed 1, freed 1.0 GiB in 1234 objects"
        );
    }

    #[test]
    fn waits_are_rounded_up() {
        for (seconds, text) in [
            (0, "deleted at once"),
            (1, "deleted by the first run after 1 s"),
            (121, "deleted by the first run after 3 min"),
            (86_400, "deleted by the first run after 24 h"),
        ] {
            assert_eq!(wait(Duration::from_secs(seconds)), text);
        }
    }
}
