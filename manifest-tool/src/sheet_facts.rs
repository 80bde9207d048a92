//! What other programs know of the keys and hosts that settings name; without them the sheet says less.

use std::collections::BTreeMap;
use std::path::Path;

use crate::command::{Command, Program};
use crate::known_settings::{COPY_PREFIX, PREFIX};
use crate::location::Location;
use crate::settings::Resolved;
use crate::sheet;

/// Largest recipients file that is read, in bytes.
const RECIPIENTS_LIMIT: u64 = 1 << 20;

/// Fingerprints of ssh's keys and hosts and the recipient of age's private key, by setting.
pub fn notes(settings: &[Resolved]) -> BTreeMap<String, String> {
    let value = |name: &str| find(settings, name);
    let mut notes = BTreeMap::new();
    for prefix in [PREFIX, COPY_PREFIX] {
        let own = |suffix: &str| value(&format!("{prefix}{suffix}"));
        let keys = known_hosts(settings, prefix, &["-l"]);
        let keys: Vec<String> = keys.lines().filter_map(|line| word(line, "SHA256:")).collect();
        if !keys.is_empty() {
            let note = format!("the host's key is {}", keys.join(" or "));
            notes.insert(format!("{prefix}DESTINATION_PATH"), note);
        }
        let key = own("RSYNC_SSH_KEY").and_then(|file| ask("ssh-keygen", &["-l", "-f", file]));
        if let Some(fingerprint) = key.and_then(|text| word(&text, "SHA256:")) {
            notes.insert(format!("{prefix}RSYNC_SSH_KEY"), fingerprint);
        }
    }
    let identity = value("BACKUP_IDENTITY_FILE").and_then(|file| ask("age-keygen", &["-y", file]));
    if let Some(recipient) = identity.and_then(|text| word(&text, "age1")) {
        notes.insert("BACKUP_IDENTITY_FILE".into(), format!("opens what is for {recipient}"));
    }
    notes
}

/// The lines of the files of known hosts that are about the destinations.
pub fn host_keys(settings: &[Resolved]) -> Vec<String> {
    let text = [PREFIX, COPY_PREFIX].map(|prefix| known_hosts(settings, prefix, &[])).concat();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// Whom backups are encrypted for: age's recipients, and the fingerprints of gpg's keys.
pub fn recipients(settings: &[Resolved]) -> Vec<String> {
    let named = split(find(settings, "BACKUP_ENCRYPT").unwrap_or_default());
    let named = named.into_iter().map(|recipient| {
        let key = sheet::program_of(&recipient).filter(|(program, _)| *program == "gpg");
        let known = key.and_then(|(_, key)| {
            ask("gpg", &["--batch", "--with-colons", "--list-keys", "--", key])
        });
        let line = known.as_deref().and_then(|text| text.lines().find(|l| l.starts_with("fpr:")));
        match line.and_then(|line| line.trim_end_matches(':').rsplit(':').next()) {
            Some(fingerprint) => format!("{recipient}, fingerprint {fingerprint}"),
            None => recipient,
        }
    });
    let file =
        find(settings, "BACKUP_ENCRYPT_RECIPIENTS_FILE").and_then(|file| read(Path::new(file)));
    let file = file.unwrap_or_default();
    // What begins otherwise is a comment, or a private key that does not belong there.
    let is_recipient = |line: &&str| line.starts_with("age1") || line.starts_with("ssh-");
    named.chain(file.lines().filter(is_recipient).map(|line| format!("age:{line}"))).collect()
}

/// One recipient each; keys of ssh, and names of keys of gpg, have blanks in them.
fn split(text: &str) -> Vec<String> {
    let mut recipients: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match recipients.last_mut() {
            Some(last) if sheet::program_of(word).is_none() => {
                last.push(' ');
                last.push_str(word);
            }
            _ => recipients.push(word.to_owned()),
        }
    }
    recipients
}

fn find<'a>(settings: &'a [Resolved], name: &str) -> Option<&'a str> {
    settings.iter().find(|setting| setting.name == name).map(|setting| &*setting.value)
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(RECIPIENTS_LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What `ssh-keygen -F` finds of a destination's host.
fn known_hosts(settings: &[Resolved], prefix: &str, more: &[&str]) -> String {
    let own = |suffix: &str| find(settings, &format!("{prefix}{suffix}"));
    let Some(Ok(Location::Ssh { host, .. })) = own("DESTINATION_PATH").map(Location::parse) else {
        return String::new();
    };
    let host = match own("RSYNC_PORT") {
        Some(port) if port != "22" => format!("[{host}]:{port}"),
        _ => host,
    };
    let file = own("SSH_KNOWN_HOSTS").map(|file| ["-f", file]);
    let arguments = [more, &["-F", &host], file.as_ref().map_or(&[], |file| &file[..])].concat();
    ask("ssh-keygen", &arguments).unwrap_or_default()
}

/// What a program prints, if it is there and knows.
fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let program = Program::find_optional(program)?;
    let (text, finished) = Command::new(&program).args(arguments).output().ok()?;
    String::from_utf8(text).ok().filter(|_| finished.is_success())
}

fn word(text: &str, prefix: &str) -> Option<String> {
    text.split_whitespace().find(|word| word.starts_with(prefix)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipient_with_blanks_is_one() {
        assert_eq!(
            split("age:ssh-ed25519 AAAA me@host  config=gpg:Me <me@host> age:age1x"),
            ["age:ssh-ed25519 AAAA me@host", "config=gpg:Me <me@host>", "age:age1x"]
        );
        assert!(split("").is_empty());
    }
}
