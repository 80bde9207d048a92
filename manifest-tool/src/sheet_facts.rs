//! What other programs know of the keys and hosts that settings name; without them the sheet says less.

use std::collections::BTreeMap;
use std::path::Path;

use crate::command::{Command, Program};
use crate::known_settings::{COPY_PREFIX, PREFIX};
use crate::location::Location;
use crate::settings::Resolved;

/// Largest recipients file that is read, in bytes.
const RECIPIENTS_LIMIT: u64 = 1 << 20;

/// Fingerprints of ssh's keys and hosts and the recipient of age's private key, by setting.
pub fn notes(settings: &[Resolved]) -> BTreeMap<String, String> {
    let value = |name: &str| find(settings, name);
    let mut notes = BTreeMap::new();
    for prefix in [PREFIX, COPY_PREFIX] {
        let own = |suffix: &str| value(&format!("{prefix}{suffix}"));
        let path = own("DESTINATION_PATH");
        if let Some(Ok(Location::Ssh { host, .. })) = path.map(Location::parse) {
            let keys = host_keys(&host, own("RSYNC_PORT"), own("SSH_KNOWN_HOSTS"));
            if !keys.is_empty() {
                let note = format!("the host's key is {}", keys.join(" or "));
                notes.insert(format!("{prefix}DESTINATION_PATH"), note);
            }
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

/// Whom backups are encrypted for: age's recipients, and the fingerprints of gpg's keys.
pub fn recipients(settings: &[Resolved]) -> Vec<String> {
    let named = find(settings, "BACKUP_ENCRYPT").unwrap_or_default().split(' ');
    let named = named.filter(|recipient| !recipient.is_empty()).map(|recipient| {
        let key = recipient.strip_prefix("gpg:");
        let known =
            key.and_then(|key| ask("gpg", &["--batch", "--with-colons", "--list-keys", "--", key]));
        let line = known.as_deref().and_then(|text| text.lines().find(|l| l.starts_with("fpr:")));
        match line.and_then(|line| line.trim_end_matches(':').rsplit(':').next()) {
            Some(fingerprint) => format!("{recipient}, fingerprint {fingerprint}"),
            None => recipient.to_owned(),
        }
    });
    let file =
        find(settings, "BACKUP_ENCRYPT_RECIPIENTS_FILE").and_then(|file| read(Path::new(file)));
    let file = file.unwrap_or_default();
    // What begins otherwise is a comment, or a private key that does not belong there.
    let is_recipient = |line: &&str| line.starts_with("age1") || line.starts_with("ssh-");
    named.chain(file.lines().filter(is_recipient).map(|line| format!("age:{line}"))).collect()
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

fn host_keys(host: &str, port: Option<&str>, known_hosts: Option<&str>) -> Vec<String> {
    let host = match port {
        Some(port) if port != "22" => format!("[{host}]:{port}"),
        _ => host.to_owned(),
    };
    let mut arguments = vec!["-l", "-F", &host];
    arguments.extend(known_hosts.iter().flat_map(|file| ["-f", *file]));
    let Some(text) = ask("ssh-keygen", &arguments) else { return Vec::new() };
    text.lines().filter_map(|line| word(line, "SHA256:")).collect()
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
