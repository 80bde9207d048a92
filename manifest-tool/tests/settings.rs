//! `bk-manifest settings`: what scripts get, and scripts/env.example.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Ran, run, run_command, tool, workspace, write};

fn env_file(folder: &Path, text: &str, mode: u32) -> String {
    let path = folder.join("backup.env");
    write(&path, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn settings(text: &str, environment: &[(&str, &str)], more: &[&str]) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let file = env_file(folder.path(), text, 0o600);
    let mut command = tool(&["settings", "--env-file", &file]);
    command.args(more).envs(environment.iter().copied());
    run_command(command, b"")
}

fn pairs(ran: &Ran) -> Vec<&str> {
    ran.text().split_terminator('\0').collect()
}

#[test]
fn scripts_env_example_is_what_the_program_prints() {
    let file = std::fs::read_to_string(workspace().join("scripts/env.example")).unwrap();
    let printed = run(&["settings", "--example"], b"").success();
    assert_eq!(printed.text(), file, "bk-manifest settings --example > scripts/env.example");
}

#[test]
fn a_script_gets_known_names_with_their_values() {
    let text = "BACKUP_APP=picpeak\nTZ=Europe/Berlin\nLD_PRELOAD=/evil.so\nBACKUP_INCREMENTAL=NO\n\
                export BACKUP_ROOT=\"${BASE:-/srv}/app\"\nBACKUP_RETENTION_DAILY=7 # a week\n";
    let ran =
        settings(text, &[("BACKUP_APP", "other"), ("BASE", "/data"), ("HOME", "/")], &[]).success();
    let found = pairs(&ran);
    for wanted in [
        "BACKUP_APP=other",
        "BACKUP_INCREMENTAL=false",
        "BACKUP_ROOT=/data/app",
        "BACKUP_RETENTION_DAILY=7",
        "BACKUP_ENABLED=true",
    ] {
        assert!(found.contains(&wanted), "{wanted} in {found:?}");
    }
    assert!(
        found
            .iter()
            .all(|pair| !["TZ", "LD_PR", "HOME", "BASE"].iter().any(|n| pair.starts_with(n)))
    );
}

#[test]
fn bash_exports_what_is_printed_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = env_file(
        folder.path(),
        "BACKUP_APP_VERSION='$(touch pwned) `touch pwned` \"x\" ;'\nPGPASSWORD=\"two  blanks\"\n",
        0o600,
    );
    let script = "set -eu; while IFS= read -r -d '' pair; do export \"${pair?}\"; done \
                  < <(\"$1\" settings --env-file \"$2\"); printf '%s|%s' \"$BACKUP_APP_VERSION\" \"$PGPASSWORD\"";
    let output = std::process::Command::new("bash")
        .args(["-c", script, "bash", env!("CARGO_BIN_EXE_bk-manifest"), &file])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "$(touch pwned) `touch pwned` \"x\" ;|two  blanks"
    );
    assert!(!folder.path().join("pwned").exists());
}

#[test]
fn faults_are_named_before_anything_is_touched() {
    for (text, message) in [
        ("BACKUP_RETENTION_DAYS=soon", "BACKUP_RETENTION_DAYS cannot be 'soon': a whole number"),
        ("BACKUP_DESTINATION_TYPE=s3", "BACKUP_S3_BUCKET (BACKUP_DESTINATION_TYPE=s3 needs it)"),
        ("BACKUP_EMAIL_ON_SUCCESS=true", "BACKUP_EMAIL_ON_SUCCESS=true is not yet supported"),
        ("BACKUP_ENCRYPTION_PASSPHRASE=hush", "name its recipient in BACKUP_ENCRYPT"),
        ("A=1\nnonsense here", "line 2: not a comment and not NAME=VALUE"),
        ("BACKUP_APP=\"x", "line 1: the quote is not closed"),
    ] {
        let ran = settings(text, &[], &[]).failure(2, message);
        assert!(ran.stdout.is_empty() && !ran.stderr.contains("hush"));
    }
    settings("", &[], &["--require", "BACKUP_APP"]).failure(2, "BACKUP_APP is not set");
    settings("", &[], &["--require", "BACKUP_APPP"]).failure(2, "BACKUP_APPP is no setting");
    settings("", &[("BACKUP_KEEP_LAST", "x")], &[]).failure(2, "BACKUP_KEEP_LAST cannot be 'x'");
    run(&["settings", "--env-file", "/nowhere"], b"").failure(2, "cannot read '/nowhere'");
}

#[test]
fn a_file_that_others_can_read_and_a_misspelled_name_are_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let file = env_file(folder.path(), "BACKUP_RETENTON_DAYS=3\n", 0o666);
    let ran = run(&["settings", "--env-file", &file], b"");
    assert_eq!(ran.code, 0);
    for message in
        ["others can read '", "others can write '", "'BACKUP_RETENTON_DAYS' is no setting"]
    {
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
    }
}

#[test]
fn secrets_are_masked_for_people() {
    let ran = settings("PGPASSWORD=hush\nBACKUP_APP=a\n", &[], &["--show"]).success();
    assert!(ran.text().contains("PGPASSWORD=***\n") && !ran.text().contains("hush"));
    assert!(ran.text().contains("BACKUP_APP=a\n"));
    assert!(ran.text().contains("BACKUP_ENABLED=true  (default)\n"));
}

#[test]
fn scripts_get_the_paths_of_both_destinations() {
    let text = "BACKUP_DESTINATION_TYPE=s3\nBACKUP_S3_BUCKET=photos\nBACKUP_DESTINATION_PATH=/backup\n\
                BACKUP_COPY_DESTINATION_TYPE=rsync\nBACKUP_COPY_RSYNC_HOST=nas\n\
                BACKUP_COPY_RSYNC_PATH=/v\n";
    let ran = settings(text, &[], &["--require", "BACKUP_DESTINATION_PATH"]).success();
    let found = pairs(&ran);
    assert!(found.contains(&"BACKUP_DESTINATION_PATH=s3://photos/backups"), "{found:?}");
    assert!(found.contains(&"BACKUP_COPY_DESTINATION_PATH=nas:/v"), "{found:?}");
    let ran = settings(text, &[], &["--show"]).success();
    assert!(ran.text().contains("=s3://photos/backups  (from other settings)\n"), "{}", ran.text());
}

#[test]
fn a_secret_of_a_file_reaches_the_tools_once() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    let path = secret.path().to_str().unwrap();
    let ran = settings("", &[("BACKUP_RSYNC_PASSWORD_FILE", path)], &[]).success();
    let found = pairs(&ran);
    assert!(
        found.contains(&"BACKUP_RSYNC_PASSWORD=") && found.contains(&"BACKUP_RSYNC_PASSWORD_FILE=")
    );
}

#[test]
fn the_recovery_sheet_names_keys_by_their_fingerprints() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, identity) = (path("key"), path("identity"));
    let made = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}");
        String::from_utf8(output.stdout).unwrap()
    };
    made("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]);
    made("age-keygen", &["-o", &identity]);
    let recipient = made("age-keygen", &["-y", &identity]);
    let public = std::fs::read_to_string(path("key.pub")).unwrap();
    let public = public.split(' ').take(2).collect::<Vec<_>>().join(" ");
    write(&folder.path().join("known"), format!("[nas]:2222 {public}\nother {public}\n"));
    write(&folder.path().join("recipients"), format!("# ours\n{recipient}AGE-SECRET-KEY-1X\n"));
    let text = format!(
        "BACKUP_APP=a\nBACKUP_DESTINATION_PATH=me@nas:/v\nBACKUP_RSYNC_PORT=2222\n\
         BACKUP_RSYNC_SSH_KEY={key}\nBACKUP_SSH_KNOWN_HOSTS={}\nBACKUP_IDENTITY_FILE={identity}\n\
         BACKUP_ENCRYPT_RECIPIENTS_FILE={}\n",
        path("known"),
        path("recipients")
    );
    let ran = settings(&text, &[], &["--sheet"]).success();
    let fingerprint = made("ssh-keygen", &["-l", "-f", &key]);
    let fingerprint = fingerprint.split(' ').nth(1).unwrap();
    for line in [
        format!("BACKUP_DESTINATION_PATH=me@nas:/v  # the host's key is {fingerprint}\n"),
        format!("#   [nas]:2222 {public}\n"),
        format!("BACKUP_RSYNC_SSH_KEY={key}  # {fingerprint}; secret: keep the file too\n"),
        format!(
            "BACKUP_IDENTITY_FILE={identity}  # opens what is for {}; secret: keep the file too\n",
            recipient.trim()
        ),
        format!("#   age:{recipient}"),
    ] {
        assert!(ran.text().contains(&line), "{line} in\n{}", ran.text());
    }
    assert!(!ran.text().contains("SECRET-KEY") && !ran.text().contains("other "));
}
