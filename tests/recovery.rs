//! The host is lost: the recovery sheet, what it calls secret, and the place with the backups bring all back.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Ended, Node, Sandbox, assert_same_tree, bin_dir, noise, run, snapshot};
use crate::keys::age_key;
use crate::places::Place;

/// Settings that name files of the old host; the sheet says that they must be there again.
const KEY: &str = "BACKUP_RSYNC_SSH_KEY";
const KNOWN_HOSTS: &str = "BACKUP_SSH_KNOWN_HOSTS";

/// A host that was lost, with all but its backups, its sheet and its secrets.
struct Lost {
    place: Place,
    sandbox: Sandbox,
    sheet: String,
    files: BTreeMap<OsString, Node>,
    secrets: BTreeMap<OsString, Node>,
    database: String,
}

impl Lost {
    /// Backs an application up twice, by backup.sh; keeps what the first run printed. Then all is removed.
    fn new(place: Place) -> Self {
        let sandbox = Sandbox::with_destination(&place.name);
        fs::create_dir(sandbox.path("safe")).unwrap();
        let recipient = age_key(&sandbox, "safe/age");
        let mut settings = settings(&place, &sandbox);
        settings.insert("BACKUP_ENCRYPT".into(), format!("age:{recipient}"));
        let text = settings.iter().map(|(name, value)| format!("{name}='{value}'\n"));
        make_application(&sandbox, &text.collect::<String>());
        let mut init = sandbox.command("bk-push");
        init.args(["init", "--to", &place.name]).envs(&settings);
        run(&mut init, b"").ok();
        let script = scripts().join("backup.sh");
        let back_up = || {
            let mut command = sandbox.command(&script);
            run(command.args(["--env-file", "srv/app/app.env"]), b"").ok().text()
        };
        let first = back_up();
        change_application(&sandbox);
        let second = back_up();
        assert!(
            second.starts_with("backup.sh: ok ") && second.contains("(incremental)"),
            "{second}"
        );
        let (sheet, last) = first.rsplit_once("backup.sh: ok ").unwrap();
        assert!(last.contains("(full)"), "{last}");
        let app = sandbox.path("srv/app");
        let lost = Lost {
            sheet: sheet.to_owned(),
            files: snapshot(&app.join("files")),
            secrets: snapshot(&app.join("secrets")),
            database: dump(&sandbox, &app.join("app.db")),
            place,
            sandbox,
        };
        for folder in ["srv", "home", "stage"] {
            let _ = fs::remove_dir_all(lost.sandbox.path(folder));
        }
        lost
    }

    /// A bare host: nothing but our programs, the sheet as it was printed, and a folder of its own.
    fn bare(&self) -> PathBuf {
        let folder = self.sandbox.path("bare");
        fs::create_dir_all(folder.join("home")).unwrap();
        symlink(scripts(), folder.join("scripts")).unwrap();
        fs::write(folder.join("recovery.env"), &self.sheet).unwrap();
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(folder.join("recovery.env"), mode).unwrap();
        folder
    }

    /// Fills in what the sheet leaves empty, and puts the files that it names where it names them.
    fn fill_in(&self, sheet: &Path) {
        let mut text = fs::read_to_string(sheet).unwrap();
        for (name, value) in &self.place.variables {
            text =
                text.replace(&format!("{name}=  # secret: fill it in"), &format!("{name}={value}"));
        }
        let identity = self.sandbox.path("safe/age").display().to_string();
        let empty = "BACKUP_IDENTITY_FILE=  #";
        text = text.replace(empty, &format!("BACKUP_IDENTITY_FILE={identity}  #"));
        fs::write(sheet, &text).unwrap();
        fs::create_dir(self.sandbox.path("home")).unwrap();
        for (name, content) in [
            (KEY, fs::read(self.sandbox.path("safe/ssh")).ok()),
            (KNOWN_HOSTS, Some(below(&text, "# What belongs into the file of known hosts"))),
        ] {
            let Some(line) = text.lines().find(|line| line.starts_with(&format!("{name}="))) else {
                continue;
            };
            let file = line[name.len() + 1..].split("  #").next().unwrap();
            assert!(name != KEY || line.ends_with("; secret: keep the file too"), "{line}");
            fs::write(file, content.unwrap()).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    /// Runs a command of the sheet there, with nothing of the old environment.
    fn shell(&self, path: &str, script: &str) -> Ended {
        let bare = self.sandbox.path("bare");
        let mut command = Command::new("bash");
        command.env_clear().env("PATH", path).env("HOME", bare.join("home")).current_dir(bare);
        run(command.args(["-ec", script]), b"")
    }

    /// Compares files, and the database and the archive as they lie behind a fetch.
    #[track_caller]
    fn assert_fetched(&self, folder: &Path) {
        assert_same_tree(&self.files, &snapshot(folder));
        let (stored, database) = (folder.join(".bk/database/app.db.zst"), folder.join("app.db"));
        let open = ["-dq", stored.to_str().unwrap(), "-o", database.to_str().unwrap()];
        self.sandbox.run("zstd", &open, b"").ok();
        assert_eq!(dump(&self.sandbox, &database), self.database);
        let archive = folder.join(".bk/config/config.tar.zst");
        let into = ["-xf", archive.to_str().unwrap(), "-C", folder.to_str().unwrap()];
        self.sandbox.run("tar", &into, b"").ok();
        assert_same_tree(&self.secrets, &snapshot(&folder.join("secrets")));
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

/// What the application's env file says of backups. The files that it names are the host's own, with
/// copies where the secrets are kept.
fn settings(place: &Place, sandbox: &Sandbox) -> BTreeMap<String, String> {
    let mut settings: BTreeMap<String, String> = place.variables.iter().cloned().collect();
    for (name, kept) in [(KEY, "ssh"), (KNOWN_HOSTS, "hosts")] {
        let Some(file) = settings.get_mut(name) else { continue };
        let own = sandbox.path("home").join(kept);
        fs::copy(&*file, &own).unwrap();
        fs::copy(&*file, sandbox.path("safe").join(kept)).unwrap();
        *file = own.to_str().unwrap().to_owned();
    }
    let app = sandbox.path("srv/app").display().to_string();
    for (name, value) in [
        ("APP", "app".to_owned()),
        ("DESTINATION_PATH", place.name.clone()),
        ("ROOT", format!("{app}/files")),
        ("SQLITE", format!("{app}/app.db")),
        ("CONFIG_FILES", "app.env:secrets".to_owned()),
    ] {
        settings.insert(format!("BACKUP_{name}"), value);
    }
    settings
}

fn make_application(sandbox: &Sandbox, settings: &str) {
    let app = sandbox.path("srv/app");
    fs::create_dir_all(app.join("files/deep/er")).unwrap();
    fs::create_dir(app.join("secrets")).unwrap();
    for (name, content) in [
        ("app.env", settings.into()),
        ("secrets/key", noise(1, 1000)),
        ("files/deep/er/one", noise(2, 1 << 20)),
        ("files/deep/two", b"two".to_vec()),
        ("files/changed", b"first".to_vec()),
    ] {
        fs::write(app.join(name), content).unwrap();
        fs::set_permissions(app.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    symlink("deep/two", app.join("files/link")).unwrap();
    sql(sandbox, "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'one'), (2, x'00ff')");
}

fn change_application(sandbox: &Sandbox) {
    let files = sandbox.path("srv/app/files");
    fs::write(files.join("changed"), "second").unwrap();
    fs::write(files.join("new"), "new").unwrap();
    fs::rename(files.join("deep/two"), files.join("deep/renamed")).unwrap();
    sql(sandbox, "UPDATE t SET b = 'changed' WHERE a = 1");
}

fn sql(sandbox: &Sandbox, statements: &str) {
    sandbox.run("sqlite3", &["srv/app/app.db", statements], b"").ok();
}

fn dump(sandbox: &Sandbox, database: &Path) -> String {
    sandbox.run("sqlite3", &[database.to_str().unwrap(), ".dump"], b"").ok().text()
}

/// The indented lines of the sheet that stand below the one that begins like this.
fn below(sheet: &str, heading: &str) -> Vec<u8> {
    let lines = sheet.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
    let lines = lines.map_while(|line| line.strip_prefix("#   "));
    lines.flat_map(|line| [line, "\n"]).collect::<String>().into()
}

/// The command of the sheet that ends like this, but for what is said of it.
fn command(sheet: &str, end: &str) -> String {
    let lines = sheet.lines().filter_map(|line| line.strip_prefix("#   "));
    let mut commands = lines.map(|line| line.split("   ").next().unwrap());
    commands.find(|command| command.ends_with(end)).unwrap().to_owned()
}

/// The scripts list, fetch and put back, by what the sheet says.
fn assert_the_scripts_bring_it_back(place: Place) {
    let lost = Lost::new(place);
    let bare = lost.bare();
    let path = format!("{}:/usr/bin:/bin", bin_dir().display());
    let list = command(&lost.sheet, " recovery.env");
    let refused = lost.shell(&path, &list);
    assert!([2, 12].contains(&refused.code), "nothing is filled in: {}", refused.stderr);
    lost.fill_in(&bare.join("recovery.env"));
    let listed = lost.shell(&path, &list).ok().text();
    assert_eq!(listed.matches("\nbackup-").count(), 2, "{listed}");
    lost.shell(&path, &command(&lost.sheet, " --target restored")).expect(0);
    lost.assert_fetched(&bare.join("restored"));

    let latest = command(&lost.sheet, "recovery.env latest");
    let asked = lost.shell(&path, &format!("setsid -w {latest} < /dev/null"));
    assert_eq!(asked.code, 2, "nobody confirms it: {}", asked.stderr);
    lost.shell(&path, &format!("{latest} --confirm app --secrets yes")).ok();
    let app = lost.sandbox.path("srv/app");
    assert_same_tree(&lost.files, &snapshot(&app.join("files")));
    assert_eq!(dump(&lost.sandbox, &app.join("app.db")), lost.database);
    // Names of configuration are relative to the folder of the env file, which is this one now.
    assert_same_tree(&lost.secrets, &snapshot(&bare.join("secrets")));
    assert!(fs::read_to_string(bare.join("app.env")).unwrap().contains("BACKUP_CONFIG_FILES="));
}

/// Other programs bring it back, by what the sheet says; a push that died leaves no backup to take.
fn assert_it_comes_back_by_hand(place: Place) {
    let lost = Lost::new(place);
    for (name, content) in lost.place.objects() {
        let (_, file) = name.rsplit_once('/').unwrap();
        if ["MANIFEST.txt", "SHA256SUMS", "RESTORE.txt"].contains(&file) {
            lost.place
                .write(&format!("2099/01/01/backup-20990101-000000-00000000/{file}"), &content);
        }
    }
    let bare = lost.bare();
    lost.fill_in(&bare.join("recovery.env"));
    let key = lost.sandbox.path("safe/age").display().to_string();
    let mut script = String::from_utf8(below(&lost.sheet, "# 3. ")).unwrap();
    script = script.replace("KEYFILE", &key);
    for (name, variable) in [
        ("BACKUP_S3_ACCESS_KEY", "AWS_ACCESS_KEY_ID="),
        ("BACKUP_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY="),
    ] {
        if let Some((_, value)) = lost.place.variables.iter().find(|(known, _)| known == name) {
            script = script.replace(variable, &format!("{variable}{value}"));
        }
    }
    lost.shell("/usr/bin:/bin", &script).expect(0);
    lost.assert_fetched(&bare.join("restored"));
}

#[test]
fn the_sheet_brings_a_host_back_from_a_bucket() {
    assert_the_scripts_bring_it_back(Place::bucket());
}

#[test]
fn the_sheet_brings_a_host_back_through_ssh() {
    assert_the_scripts_bring_it_back(Place::host());
}

#[test]
fn the_sheet_brings_a_host_back_from_a_bucket_by_hand() {
    assert_it_comes_back_by_hand(Place::bucket());
}

#[test]
fn the_sheet_brings_a_host_back_through_ssh_by_hand() {
    assert_it_comes_back_by_hand(Place::host());
}
