//! The recovery sheet: what to keep elsewhere, so that everything comes back on a bare host.
//!
//! It is an env file, so that it can be used as it is once the secrets are filled in.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::command::quoted;
use crate::destination_settings::of_store;
use crate::env_file;
use crate::known_settings::{self, COPY_PREFIX, PREFIX};
use crate::location::Location;
use crate::settings::Resolved;
use crate::time::Time;

/// Settings that name files with private keys, but for what stands before these names.
const KEY_FILES: [&str; 3] = ["RSYNC_SSH_KEY", "BACKUP_IDENTITY_FILE", "PGSSLKEY"];
/// What is said of them: such a file is in no backup.
const KEEP_FILE: &str = "secret: keep the file too";

/// What the sheet says beside the settings.
pub struct Facts {
    /// What relative paths are relative to.
    pub folder: PathBuf,
    /// What those of configuration files are relative to: where the env file lies.
    pub config_folder: PathBuf,
    /// The name of this host.
    pub host: String,
    /// When the sheet is made.
    pub now: Time,
    /// What is known of the file or host that a setting names, such as a key's fingerprint.
    pub notes: BTreeMap<String, String>,
    /// Whom backups are encrypted for.
    pub recipients: Vec<String>,
    /// Lines for a file of known hosts.
    pub host_keys: Vec<String>,
}

/// Its text; the values of secrets are left out.
pub fn sheet(settings: &[Resolved], facts: &Facts) -> String {
    let value = |name: &str| {
        settings.iter().find(|setting| setting.name == name).map(|setting| &*setting.value)
    };
    let app = value("BACKUP_APP").unwrap_or("APP");
    let is_encrypted = !facts.recipients.is_empty();
    // gpg has its keys in a keyring.
    let needs_key_file = facts
        .recipients
        .iter()
        .any(|recipient| program_of(recipient).is_none_or(|(program, _)| program == "age"));
    let mut text = format!(
        "# RECOVERY SHEET for '{app}': made {now} on host {host} by bk {version}\n\
         #\n\
         # With this sheet, what is named below as secret, and a bare host, all comes back. Keep it where\n\
         # neither this host nor its backups are. To print it again, and after every change of the settings:\n\
         #   bk-manifest settings --env-file FILE --sheet\n\
         #\n\
         # 1. Save it as recovery.env, chmod 600 it, and fill in what is empty.\n\
         # 2. Install bk {version}: its five programs on PATH, its folder scripts/. Then:\n\
         #   scripts/restore.sh --env-file recovery.env                            lists the backups\n\
         #   scripts/restore.sh --env-file recovery.env latest --target restored   only fetches all of it\n\
         #   scripts/restore.sh --env-file recovery.env latest                     puts it back, and asks first\n",
        now = facts.now.format("%Y-%m-%d %H:%M UTC"),
        host = facts.host,
        version = env!("CARGO_PKG_VERSION"),
    );
    if value("BACKUP_COPY_DESTINATION_PATH").is_some() {
        text += "#   With --copy each of them takes the second destination.\n";
    }
    text +=
        "# 3. Or without bk; RESTORE.txt says what it needs, and how databases go on from there:\n";
    for (prefix, folder) in [(PREFIX, "backups"), (COPY_PREFIX, "copies")] {
        let own = |suffix: &str| value(&format!("{prefix}{suffix}"));
        let Some(path) = own("DESTINATION_PATH") else { continue };
        let scheme = if own("S3_SSL_ENABLED") == Some("false") { "http" } else { "https" };
        let endpoint = of_store(settings, prefix, "S3_ENDPOINT").map(|endpoint| {
            if endpoint.contains("://") {
                endpoint.into()
            } else {
                format!("{scheme}://{endpoint}")
            }
        });
        let place = Place {
            path,
            root: &facts.folder,
            folder,
            endpoint: endpoint.as_deref(),
            region: of_store(settings, prefix, "S3_REGION"),
            authorities: own("S3_CA_FILE").or_else(|| value("AWS_CA_BUNDLE")),
            port: own("RSYNC_PORT"),
            key: own("RSYNC_SSH_KEY"),
            known_hosts: own("SSH_KNOWN_HOSTS").map(|file| format!("UserKnownHostsFile={file}")),
            identity: needs_key_file.then(|| value("BACKUP_IDENTITY_FILE").unwrap_or("KEYFILE")),
        };
        text += &by_hand(&place, app);
    }
    if is_encrypted {
        text += "#\n# Encrypted for these; the private key of any one opens it, and must be kept too:\n";
        for recipient in &facts.recipients {
            let _ = writeln!(text, "#   {recipient}");
        }
    }
    if !facts.host_keys.is_empty() {
        text += "#\n# What belongs into the file of known hosts, ~/.ssh/known_hosts if no setting names it:\n";
        for line in &facts.host_keys {
            let _ = writeln!(text, "#   {line}");
        }
    }
    let _ = writeln!(
        text,
        "#\n# The settings; where one names a file, that must be there too. Relative paths begin at {},\n\
         # those of BACKUP_CONFIG_FILES at the folder that this file is saved in: it was {}",
        shown(&facts.folder),
        shown(&facts.config_folder)
    );
    // By value, for scripts export what they were told as default.
    let is_default = |setting: &&Resolved| {
        known_settings::find(&setting.name)
            .is_some_and(|known| known.default == Some(&setting.value))
    };
    for setting in settings.iter().filter(|setting| !is_default(setting)) {
        if setting.is_secret {
            let _ = writeln!(text, "{}=  # secret: fill it in", setting.name);
            continue;
        }
        text += &env_file::line(&setting.name, &setting.value);
        let note = facts.notes.get(&setting.name).map(String::as_str);
        let is_key = KEY_FILES.iter().any(|name| setting.name.ends_with(name));
        let said: Vec<&str> = note.into_iter().chain(is_key.then_some(KEEP_FILE)).collect();
        if !said.is_empty() {
            let _ = write!(text, "  # {}", said.join("; "));
        }
        text.push('\n');
    }
    if needs_key_file && value("BACKUP_IDENTITY_FILE").is_none() {
        text +=
            "BACKUP_IDENTITY_FILE=  # secret: the file with age's private key; gpg has a keyring\n";
    }
    text
}

/// A destination for who works by hand.
struct Place<'a> {
    /// Its name.
    path: &'a str,
    /// What relative ones are relative to.
    root: &'a Path,
    /// Where to copy the backups, if it is elsewhere.
    folder: &'a str,
    /// The URL of a store of buckets.
    endpoint: Option<&'a str>,
    /// Its region.
    region: Option<&'a str>,
    /// The file of the certificates to trust there.
    authorities: Option<&'a str>,
    /// The port of a host's ssh.
    port: Option<&'a str>,
    /// The file of the key for it.
    key: Option<&'a str>,
    /// The option that names the file of known hosts.
    known_hosts: Option<String>,
    /// The file of age's private key, or what stands for it.
    identity: Option<&'a str>,
}

/// Commands that get the backups here, if need be, and restore the newest.
fn by_hand(place: &Place<'_>, app: &str) -> String {
    let word = |text: &str| quoted(OsStr::new(text)).to_string_lossy().into_owned();
    let option = |name: &str, value: Option<&str>| {
        value.map(|value| format!(" {name} {}", word(value))).unwrap_or_default()
    };
    let mut folder = place.folder.to_owned();
    let from = word(&format!("{}/", place.path.trim_end_matches('/')));
    let get = match Location::parse(place.path) {
        Ok(Location::S3 { bucket, prefix }) => format!(
            "#   export AWS_ACCESS_KEY_ID= AWS_SECRET_ACCESS_KEY=   # fill in the keys of the store\n\
             #   rclone copy --s3-env-auth --s3-provider {}{}{}{} {} {folder}\n",
            if place.endpoint.is_some() { "Other" } else { "AWS" },
            option("--s3-endpoint", place.endpoint),
            option("--s3-region", place.region),
            option("--ca-cert", place.authorities),
            word(format!(":s3:{bucket}/{prefix}").trim_end_matches('/'))
        ),
        Ok(Location::Ssh { .. }) => {
            let known_hosts = option("-o", place.known_hosts.as_deref());
            let (port, key) = (option("-p", place.port), option("-i", place.key));
            let ssh = format!("ssh{port}{key}{known_hosts}");
            format!("#   rsync -a{} {from} {folder}/\n", option("-e", Some(&ssh)))
        }
        Ok(Location::Daemon { .. }) => format!("#   rsync -a {from} {folder}/\n"),
        Ok(Location::Local(path)) => {
            folder = quoted(place.root.join(path).as_os_str()).to_string_lossy().into_owned();
            String::new()
        }
        Err(_) => String::new(),
    };
    // A push that died may have left the other files; a backup is what has a manifest.
    format!(
        "{get}\
         #   newest=$(for file in {folder}/*/*/*/*/manifest.*; do grep -q '^Application: {app} (' \
         \"${{file%/*}}/MANIFEST.txt\" && echo \"$file\"; done | tail -n 1)\n\
         #   bash \"${{newest%/*}}/RESTORE.txt\" restored{}\n",
        place.identity.map(|file| format!(" {}", word(file))).unwrap_or_default(),
        app = app.replace('.', "[.]"),
    )
}

/// The program that `age:RECIPIENT`, `gpg:KEY` or `NAME=age:RECIPIENT` is for, and the rest.
pub(crate) fn program_of(recipient: &str) -> Option<(&str, &str)> {
    let (how, key) = recipient.split_once(':')?;
    let program = how.rsplit_once('=').map_or(how, |(_, program)| program);
    matches!(program, "age" | "gpg").then_some((program, key))
}

fn shown(path: &Path) -> String {
    crate::path::escape(path.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::settings::{Origin, Sources, resolve};

    fn made(env_file: &str, recipients: &[&str]) -> (Vec<Resolved>, String) {
        let env_file = env_file::parse(env_file, &|_| None).unwrap();
        let environment = |_: &str| None::<OsString>;
        let sources = Sources { environment: &environment, env_file: &env_file };
        let settings = resolve(&sources, &[]).unwrap();
        let note = ("BACKUP_RSYNC_SSH_KEY".to_owned(), "SHA256:abc".to_owned());
        let facts = Facts {
            folder: "/srv/now".into(),
            config_folder: "/srv/app".into(),
            host: "vm1".into(),
            now: Time::from_unix(1_777_342_910, 0),
            notes: BTreeMap::from([note]),
            host_keys: vec!["nas ssh-ed25519 AAAA".into()],
            recipients: recipients.iter().map(|&recipient| recipient.to_owned()).collect(),
        };
        let text = sheet(&settings, &facts);
        (settings, text)
    }

    const REMOTE: &str = "BACKUP_APP=picpeak\nBACKUP_DESTINATION_TYPE=rsync\nBACKUP_RSYNC_HOST=nas\n\
        BACKUP_RSYNC_PATH='/v/my backups'\nBACKUP_RSYNC_PORT=2222\nBACKUP_RSYNC_SSH_KEY=/root/key\n\
        BACKUP_SSH_KNOWN_HOSTS=/root/hosts\n\
        BACKUP_COPY_DESTINATION_PATH=s3://b/x\nBACKUP_COPY_S3_ENDPOINT=https://s3.example.org\n\
        BACKUP_COPY_S3_ACCESS_KEY=hush1\nBACKUP_COPY_S3_SECRET_KEY=hush2\n\
        BACKUP_MIGRATE=\"it's $$HOME \\\"x\\\"\"\nBACKUP_ENCRYPT=age:age1x\n";

    #[test]
    fn the_sheet_is_an_env_file_with_all_that_was_set_and_no_secret() {
        let (settings, text) = made(REMOTE, &["age:age1x"]);
        assert!(!text.contains("hush"));
        let values = env_file::parse(&text, &|_| None).unwrap();
        for setting in settings.iter().filter(|setting| setting.origin != Origin::Default) {
            let wanted = if setting.is_secret { "" } else { &setting.value };
            assert_eq!(values.get(&setting.name).map(String::as_str), Some(wanted), "{text}");
        }
        assert_eq!(values.get("BACKUP_IDENTITY_FILE").map(String::as_str), Some(""), "{text}");
        // And it means the same.
        let filled = text.replace("=  # secret: fill it in", "=x");
        let (again, _) = made(&filled, &[]);
        let paths = |settings: &[Resolved]| -> Vec<String> {
            let paths = settings.iter().filter(|s| s.name.ends_with("_DESTINATION_PATH"));
            paths.map(|setting| setting.value.clone()).collect()
        };
        assert_eq!(paths(&settings), paths(&again));
    }

    #[test]
    fn the_sheet_names_what_is_needed_and_how_it_is_got_by_hand() {
        let (_, text) = made(REMOTE, &["age:age1x"]);
        for line in [
            "#   rsync -a -e 'ssh -p 2222 -i /root/key -o UserKnownHostsFile=/root/hosts' 'nas:/v/my backups/' backups/\n",
            "#   rclone copy --s3-env-auth --s3-provider Other --s3-endpoint https://s3.example.org :s3:b/x copies\n",
            "#   newest=$(for file in backups/*/*/*/*/manifest.*; do grep -q '^Application: picpeak (' \"${file%/*}/MANIFEST.txt\" && echo \"$file\"; done | tail -n 1)\n",
            "BACKUP_COPY_S3_SECRET_KEY=  # secret: fill it in\n",
            "BACKUP_RSYNC_SSH_KEY=/root/key  # SHA256:abc; secret: keep the file too\n",
            "#   bash \"${newest%/*}/RESTORE.txt\" restored KEYFILE\n",
            "#   age:age1x\n",
            "#   nas ssh-ed25519 AAAA\n",
            "# those of BACKUP_CONFIG_FILES at the folder that this file is saved in: it was /srv/app\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let geolens = "BACKUP_DESTINATION_PATH=/b\nBACKUP_S3_ENABLED=true\nS3_BUCKET=geo\nS3_ENDPOINT=minio:9000\n\
                       S3_ACCESS_KEY_ID=hush\nS3_SECRET_ACCESS_KEY=hush\nBACKUP_COPY_S3_SSL_ENABLED=false";
        let (_, text) = made(geolens, &[]);
        let command =
            "--s3-provider Other --s3-endpoint http://minio:9000 :s3:geo/backups copies\n";
        assert!(text.contains(command), "{text}");
        let (_, text) = made("BACKUP_APP=a\nBACKUP_DESTINATION_PATH=it's here\n", &[]);
        assert!(
            text.contains("for file in '/srv/now/it'\\''s here'/*/*/*/*/manifest.*;"),
            "{text}"
        );
        assert!(!text.contains("--copy") && !text.contains("IDENTITY"), "{text}");
    }
    #[test]
    fn a_store_is_reached_by_hand_as_it_is_by_us() {
        let aws = "BACKUP_APP=a.b\nBACKUP_DESTINATION_PATH=s3://my-backups\nBACKUP_S3_REGION=eu-central-1\n\
                   BACKUP_S3_CA_FILE=/etc/ca.pem\n";
        let (_, text) = made(aws, &[]);
        for part in [
            "--s3-provider AWS --s3-region eu-central-1 --ca-cert /etc/ca.pem :s3:my-backups backups\n",
            "'^Application: a[.]b ('",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_key_of_gpg_is_in_no_file() {
        let local = "BACKUP_APP=a\nBACKUP_DESTINATION_PATH=/b\n";
        let (_, text) = made(local, &["gpg:me", "config=gpg:me"]);
        assert!(!text.contains("KEYFILE") && !text.contains("IDENTITY"), "{text}");
        let (_, text) = made(local, &["gpg:me", "config=age:age1x"]);
        assert!(text.contains("KEYFILE") && text.contains("BACKUP_IDENTITY_FILE=  #"), "{text}");
    }
}
