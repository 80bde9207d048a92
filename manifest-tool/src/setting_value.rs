//! What the value of a setting may be, and the form in which scripts get it.

use crate::known_settings::Kind;
use crate::location::Location;
use crate::path::escape;
use crate::schedule;

/// The other components of a backup that a script makes.
const OTHER_COMPONENTS: [&str; 5] = ["database", "sqlite-database", "globals", "config", "files"];

/// The value as scripts get it.
///
/// # Errors
/// What it should be.
pub fn normalize(kind: Kind, value: &str) -> Result<String, String> {
    if value.chars().any(char::is_control) {
        return Err("it has a control character".into());
    }
    let same = |is_good: bool, wanted: &str| {
        if is_good { Ok(value.to_owned()) } else { Err(wanted.to_owned()) }
    };
    match kind {
        Kind::Text => Ok(value.to_owned()),
        Kind::Reason => same(!value.trim().is_empty(), "a text that says why is wanted"),
        Kind::Name => same(
            crate::manifest::is_name(value),
            "a name has letters, digits, '-', '_' and '.', and begins with a letter or digit",
        ),
        Kind::Boolean => match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok("true".into()),
            "false" | "0" | "no" | "off" => Ok("false".into()),
            _ => Err("true or false is wanted".into()),
        },
        Kind::Integer(least, most) => {
            let number = Some(value).filter(|value| value.bytes().all(|b| b.is_ascii_digit()));
            let number = number.and_then(|value| value.parse::<u32>().ok());
            match number.filter(|number| (least..=most).contains(number)) {
                Some(number) => Ok(number.to_string()),
                None => Err(format!("a whole number from {least} to {most} is wanted")),
            }
        }
        Kind::Choice(words) => {
            same(words.contains(&value), &format!("one of {} is wanted", words.join(", ")))
        }
        Kind::Schedule => same(
            schedule::is_schedule(value),
            "hourly, daily, weekly, monthly or five fields of cron are wanted",
        ),
        Kind::Trees => same(
            value
                .split(':')
                .all(|path| matches!(crate::scan::relative(path.as_bytes()), Ok(Some(_)))),
            "paths below BACKUP_ROOT, separated by ':', are wanted",
        ),
        Kind::Paths => same(
            // One at the end ends the last of them.
            value.strip_suffix(':').unwrap_or(value).split(':').all(|path| !path.is_empty()),
            "paths, separated by ':', are wanted, and none of them empty",
        ),
        Kind::Patterns => {
            let patterns: Vec<&str> = value.split(':').filter(|part| !part.is_empty()).collect();
            match crate::scan::Excludes::new(&patterns) {
                Ok(_) => Ok(patterns.join(":")),
                Err(error) => Err(error.to_string()),
            }
        }
        Kind::Words => {
            let words: Vec<&str> =
                value.split([' ', '\t', ',']).filter(|word| !word.is_empty()).collect();
            let is_good = !words.is_empty() && words.iter().all(|word| is_service(word));
            if is_good { Ok(words.join(" ")) } else { Err("names are wanted".into()) }
        }
        Kind::Postgres => same(
            is_postgres(value),
            "compose:SERVICE/DATABASE, docker:CONTAINER/DATABASE, ssh:HOST/DATABASE or url:NAME is wanted",
        ),
        Kind::Buckets => buckets(value),
        Kind::Destination => match Location::parse(value) {
            Ok(_) => Ok(value.to_owned()),
            Err(error) => Err(error.to_string()),
        },
        Kind::Host => same(
            value.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c)),
            "a name of letters, digits, '-', '_', '.' and '+' is wanted, and no '-' at its front",
        ),
        Kind::Recipients => {
            let recipients: Vec<&str> = value.split_ascii_whitespace().collect();
            let is_good = !recipients.is_empty() && recipients.iter().all(|one| is_recipient(one));
            if is_good {
                return Ok(recipients.join(" "));
            }
            Err("age:RECIPIENT or gpg:KEY is wanted, several separated by blanks".into())
        }
        Kind::Rate => {
            let number = value.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']).unwrap_or(value);
            let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
            // Far more than any network, and no multiple of it overflows.
            let is_good = is_number && number.parse().is_ok_and(|n: u32| n > 0);
            same(is_good, "a number of bytes a second is wanted, with K, M or G")
        }
    }
}

/// The value for a message, if it is not secret: a destination without what stands before its host,
/// which may be a password, and no private key.
pub fn shown(kind: Kind, value: &str) -> String {
    let is_hidden = match kind {
        Kind::Destination | Kind::Buckets => value.contains("://") && value.contains('@'),
        Kind::Recipients => value.to_ascii_uppercase().contains("AGE-SECRET-KEY"),
        _ => false,
    };
    if is_hidden { "***".into() } else { escape(value.as_bytes()) }
}

/// Each bucket as `NAME=s3://BUCKET/PREFIX`, separated by one blank.
fn buckets(value: &str) -> Result<String, String> {
    let mut names = Vec::new();
    let mut words = Vec::new();
    for word in value.split([' ', '\t']).filter(|word| !word.is_empty()) {
        let (name, place) = match word.split_once('=') {
            Some((name, place)) if !name.contains(':') => (Some(name), place),
            _ => (None, word),
        };
        let Ok(Location::S3 { bucket, .. }) = Location::parse(place) else {
            return Err(
                "s3://BUCKET or NAME=s3://BUCKET is wanted, several separated by blanks".into()
            );
        };
        let name = name.unwrap_or(&bucket).to_owned();
        if !crate::manifest::is_name(&name) {
            return Err("a bucket's name here has letters, digits, '-', '_' and '.'".into());
        }
        if OTHER_COMPONENTS.contains(&&*name) || names.contains(&name) {
            return Err(format!("another component is called '{name}': write OTHERNAME={place}"));
        }
        words.push(format!("{name}={place}"));
        names.push(name);
    }
    if words.is_empty() { Err("s3://BUCKET is wanted".into()) } else { Ok(words.join(" ")) }
}

fn is_service(word: &str) -> bool {
    crate::manifest::is_name(word)
}

fn is_recipient(word: &str) -> bool {
    let is_safe = |rest: &str| !rest.is_empty() && !rest.starts_with('-');
    match word.split_once(':') {
        Some(("age", rest)) => {
            is_safe(rest) && !rest.to_ascii_uppercase().starts_with("AGE-SECRET-KEY")
        }
        Some(("gpg", rest)) => is_safe(rest),
        _ => false,
    }
}

fn is_postgres(value: &str) -> bool {
    let Some((kind, rest)) = value.split_once(':') else { return false };
    match kind {
        "compose" | "docker" => rest.split_once('/').is_some_and(|(service, database)| {
            is_service(service) && !database.is_empty() && !database.starts_with('-')
        }),
        "ssh" => rest.split_once('/').is_some_and(|(host, database)| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
            host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && host.chars().all(is_plain)
                && !database.is_empty()
                && !database.starts_with('-')
        }),
        "url" => {
            let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
            rest.starts_with(is_first)
                && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        }
        _ => false,
    }
}
