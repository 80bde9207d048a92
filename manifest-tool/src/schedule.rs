//! When a backup is to run: a preset, or five fields as cron has them.

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const RANGES: [(u32, u32); 5] = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];

/// Whether a text is `hourly`, `daily`, `weekly`, `monthly`, or has the five fields of crontab(5).
pub fn is_schedule(value: &str) -> bool {
    if matches!(value, "hourly" | "daily" | "weekly" | "monthly") {
        return true;
    }
    let fields: Vec<&str> = value.split_whitespace().collect();
    if fields.len() != RANGES.len() {
        return false;
    }
    fields.iter().zip(RANGES).enumerate().all(|(place, (field, (least, most)))| {
        let number = |text: &str| {
            let lower = text.to_ascii_lowercase();
            let names: &[&str] = match place {
                3 => &MONTHS,
                4 => &DAYS,
                _ => &[],
            };
            let place = names.iter().position(|name| *name == lower);
            let spelled = place.and_then(|at| u32::try_from(at).ok()).map(|at| at + least);
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            spelled
                .or_else(|| text.parse().ok().filter(|_| digits))
                .filter(|number| (least..=most).contains(number))
        };
        field.split(',').all(|part| {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(step)),
                None => (part, None),
            };
            let is_step =
                |step: &str| step.parse::<u32>().is_ok_and(|step| (1..=59).contains(&step));
            let is_range = match range.split_once('-') {
                Some((from, to)) => number(from).zip(number(to)).is_some_and(|(a, b)| a <= b),
                None => range == "*" || (number(range).is_some() && step.is_none()),
            };
            is_range && step.is_none_or(is_step)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_presets_or_cron() {
        for good in ["daily", "0 2 * * *", "*/15 0-5,7 1 jan-mar Sun", "0 0 1-7/2 * 7"] {
            assert!(is_schedule(good), "{good}");
        }
        for bad in [
            "",
            "yearly",
            "0 2 * *",
            "0 24 * * *",
            "0 2 0 * *",
            "a * * * *",
            "5-1 * * * *",
            "5/2 * * * *",
            "*/0 * * * *",
            "+1 * * * *",
            ", * * * *",
        ] {
            assert!(!is_schedule(bad), "{bad}");
        }
    }
}
