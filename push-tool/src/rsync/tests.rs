//! What is particular to destinations that rsync reaches; the rest is in `suite.rs`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use bk_manifest::digest::Digest;
use bk_manifest::exit::{Exit, classify};
use bk_manifest::time::Time;

use super::servers::{Account, RsyncDaemon, Sshd, open};
use super::settings::Settings;
use crate::access::Access;
use crate::destination::{Created, Destination, ErrorKind};
use crate::suite::{names, read};

const PATIENCE: Duration = Duration::from_secs(30);

fn put(destination: &dyn Destination, name: &str, bytes: &[u8]) -> crate::destination::Result<()> {
    let mut upload = destination.put(name, bytes.len() as u64)?;
    upload.write_all(bytes).unwrap();
    upload.commit()
}

/// More than goes through a shell at once; no two blocks of it are alike.
fn large() -> Vec<u8> {
    (0..3u32 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn no_name_is_taken_for_anything_else() {
    const FOLDER: &str = "-e 'x' \"y\" $(touch z) `z` ; * [a] \\ ~ # ü %h";
    const NAMES: [&str; 8] =
        ["-rf", "a b/ c", "$(id)/`id`", "it's/\"quoted\"", "*", "x\\#101", "~", "ü/#; !"];
    let sshd = Sshd::start();
    let daemon = RsyncDaemon::start();
    for folder in [sshd.backups().join(FOLDER), daemon.backups().join(FOLDER)] {
        std::fs::create_dir(folder).unwrap();
    }
    let in_module = daemon.location(&format!("backups/{FOLDER}"));
    for destination in [
        sshd.open(Account::Shell, FOLDER).unwrap(),
        sshd.open(Account::Rrsync, FOLDER).unwrap(),
        open(&in_module, daemon.variables()).unwrap(),
    ] {
        let mut sorted = NAMES.map(str::to_owned);
        sorted.sort();
        for name in NAMES {
            assert_eq!(destination.create(name, name.as_bytes()).unwrap(), Created::New, "{name}");
        }
        assert_eq!(names(&*destination, ""), sorted);
        for name in NAMES {
            assert_eq!(destination.stat(name).unwrap().unwrap().size, name.len() as u64, "{name}");
            assert_eq!(read(&*destination, name, None), name.as_bytes());
        }
        assert_eq!(names(&*destination, "it's"), ["it's/\"quoted\""]);
        assert!(destination.delete(&sorted).is_empty());
        assert!(names(&*destination, "").is_empty());
        for bad in ["../x", "/etc/x", "a\nb", ""] {
            assert!(destination.create(bad, b"").is_err(), "{bad}");
            assert!(destination.read(bad, None).is_err(), "{bad}");
            assert!(!destination.delete(&[bad.to_owned()]).is_empty(), "{bad}");
        }
    }
    for root in [sshd.backups(), daemon.backups()] {
        assert_eq!(std::fs::read_dir(root).unwrap().count(), 1);
    }
}

#[test]
fn large_objects_come_back_and_are_for_their_owner_alone() {
    let sshd = Sshd::start();
    let daemon = RsyncDaemon::start();
    let content = large();
    for (destination, folder) in [
        (sshd.destination(Account::Shell), sshd.backups().join("shell")),
        (sshd.destination(Account::Rrsync), sshd.backups().join("rrsync")),
        (daemon.destination(), daemon.backups()),
    ] {
        put(&*destination, "a/b/large", &content).unwrap();
        assert_eq!(put(&*destination, "a/b/large", b"x").unwrap_err().kind, ErrorKind::Exists);
        assert_eq!(put(&*destination, "a/b/large", &large()).unwrap_err().kind, ErrorKind::Exists);
        assert!(read(&*destination, "a/b/large", None) == content);
        let mut part = Vec::new();
        let range = Some(1_500_000..1_500_007);
        destination.read("a/b/large", range).unwrap().read_to_end(&mut part).unwrap();
        assert_eq!(part, &content[1_500_000..1_500_007]);
        destination.create("a/small", b"x").unwrap();
        for (path, expected) in
            [("a", 0o700), ("a/b", 0o700), ("a/b/large", 0o600), ("a/small", 0o600), (".bk", 0o700)]
        {
            assert_eq!(mode(&folder.join(path)), expected, "{}: {path}", destination.describe());
        }
        assert_eq!(names(&*destination, ""), ["a/b/large", "a/small"]);
        // Nothing is left of how they got there.
        let left: Vec<_> = walkdir::WalkDir::new(folder.join(".bk/tmp"))
            .into_iter()
            .filter(|entry| entry.as_ref().unwrap().file_type().is_file())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn the_host_computes_checksums_where_it_has_a_shell() {
    let sshd = Sshd::start();
    let far = sshd.destination(Account::Shell);
    far.create("a", b"content").unwrap();
    assert_eq!(far.checksum("a").unwrap(), Some(Digest::of(b"content")));
    assert_eq!(far.checksum("b").unwrap_err().kind, ErrorKind::NotFound);
    assert!(far.limits().is_empty());
    let alone = sshd.destination(Account::Rrsync);
    alone.create("a", b"content").unwrap();
    assert_eq!(alone.checksum("a").unwrap(), None);
    assert_eq!(alone.limits().len(), 1);
}

#[test]
fn what_the_system_there_lacks_is_done_by_rsync() {
    let sshd = Sshd::start();
    let plain = sshd.destination(Account::Plain);
    let before = plain.now().unwrap();
    plain.create("a/b", b"12345").unwrap();
    let stored = plain.stat("a/b").unwrap().unwrap();
    assert_eq!((stored.size, stored.modified.unix().1), (5, 0));
    assert!(before <= stored.modified && stored.modified <= plain.now().unwrap());
    assert_eq!(names(&*plain, "a"), ["a/b"]);
    assert_eq!(plain.create("a/b", b"other").unwrap(), Created::Taken);
}

#[test]
fn links_inside_the_destination_lead_nowhere() {
    let sshd = Sshd::start();
    let far = sshd.destination(Account::Shell);
    let root = sshd.backups().join("shell");
    let outside = sshd.backups().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::File::create(outside.join("victim")).unwrap().write_all(b"mine").unwrap();
    symlink("../outside", root.join("link")).unwrap();
    symlink("../outside/victim", root.join("file")).unwrap();
    for name in ["link/victim", "file"] {
        assert!(far.read(name, None).is_err(), "{name}");
        assert_eq!(far.stat(name).unwrap(), None, "{name}");
        assert!(far.checksum(name).is_err(), "{name}");
    }
    assert!(!far.delete(&["link/victim".to_owned()]).is_empty());
    assert!(far.list("link").is_err());
    assert!(names(&*far, "").is_empty());
    assert!(far.create("link/new", b"x").is_err());
    assert!(far.create("link/deeper/new", b"x").is_err());
    assert!(put(&*far, "link/large", &large()).is_err());
    assert_eq!(far.create("file", b"x").unwrap(), Created::Taken);
    assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn who_is_not_let_in_is_told_why() {
    let sshd = Sshd::start();
    let refused = |account: Account, set: &[(&str, &str)], exit: Exit, words: &str| {
        let mut variables = sshd.variables(account);
        for (name, value) in set {
            variables.retain(|(known, _)| known != name);
            variables.push(((*name).to_owned(), (*value).to_owned()));
        }
        let error = open(&sshd.location(account, "x"), variables).err().unwrap();
        assert_eq!(classify(&error), exit, "{error:#}");
        let said = format!("{error:#}");
        assert!(said.contains(words) && !said.contains('\n'), "{said}");
    };
    refused(Account::Stranger, &[], Exit::Denied, "Permission denied (publickey)");
    let empty = sshd.file("empty");
    std::fs::File::create(&empty).unwrap();
    let empty = [("BACKUP_SSH_KNOWN_HOSTS", empty.to_str().unwrap())];
    refused(Account::Shell, &empty, Exit::Denied, "Host key verification failed");
    let other = std::fs::read_to_string(sshd.file("stranger.pub")).unwrap();
    let changed = sshd.file("changed");
    let mut file = std::fs::File::create(&changed).unwrap();
    write!(file, "[127.0.0.1]:{} {other}", sshd.port()).unwrap();
    let changed = changed.to_str().unwrap();
    let known = ("BACKUP_SSH_KNOWN_HOSTS", changed);
    let told = format!("has changed: line 1 of '{changed}' has another one");
    refused(Account::Shell, &[known], Exit::Denied, &told);
    // A host that has another key now is not accepted for new.
    let accept = [known, ("BACKUP_RSYNC_HOST_KEYS", "accept-new")];
    refused(Account::Shell, &accept, Exit::Denied, &told);
    let nobody = [("BACKUP_RSYNC_PORT", "1")];
    refused(Account::Shell, &nobody, Exit::NoDestination, "Connection refused");
    refused(Account::Noisy, &[], Exit::NoDestination, "'Welcome'");
}

#[test]
fn a_home_is_needed_only_where_the_folder_begins_there() {
    let sshd = Sshd::start();
    let destination = sshd.destination(Account::Homeless);
    assert_eq!(destination.create("a", b"x").unwrap(), Created::New);
    let error = open("127.0.0.1:backups", sshd.variables(Account::Homeless)).err().unwrap();
    assert_eq!(classify(&error), Exit::NoDestination);
    assert!(error.to_string().contains("home that is missing"), "{error:#}");
    // Where there is one, it is found.
    let homely = open("127.0.0.1:backups/homeless", sshd.variables(Account::Shell)).unwrap();
    assert_eq!(names(&*homely, ""), ["a"]);
}

#[test]
fn a_new_host_is_accepted_when_that_is_said_and_any_only_by_that_name() {
    let sshd = Sshd::start();
    std::fs::create_dir(sshd.backups().join("shell")).unwrap();
    let known = sshd.file("written");
    let with = |keys: &str| {
        let mut variables = sshd.variables(Account::Shell);
        variables.retain(|(name, _)| name != "BACKUP_SSH_KNOWN_HOSTS");
        variables.push(("BACKUP_SSH_KNOWN_HOSTS".into(), known.to_str().unwrap().into()));
        variables.push(("BACKUP_RSYNC_HOST_KEYS".into(), keys.into()));
        open(&sshd.location(Account::Shell, "shell"), variables)
    };
    with("accept-new").unwrap();
    with("check").unwrap();
    let mut file = std::fs::File::create(&known).unwrap();
    file.write_all(b"").unwrap();
    assert!(with("check").is_err());
    let limits = with("no").unwrap().limits();
    assert!(limits[0].contains("BACKUP_RSYNC_HOST_KEYS"), "{limits:?}");
}

#[test]
fn a_host_that_says_nothing_is_not_waited_for() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let variables = [("BACKUP_RSYNC_PORT".into(), port.to_string().into())];
    let mut settings = Settings::read(&Access::new("BACKUP", variables)).unwrap();
    settings.patience = Duration::from_secs(1);
    let error = super::by_ssh(None, "127.0.0.1", "/x", &settings).err().unwrap();
    assert_eq!(classify(&error), Exit::NoDestination, "{error:#}");
}

#[test]
fn a_host_that_hangs_up_is_told_with_what_to_do() {
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let variables =
        vec![("BACKUP_RSYNC_PORT".into(), deaf.local_addr().unwrap().port().to_string())];
    let server = std::thread::spawn(move || {
        // It speaks as an sshd does, and is gone once it is spoken to.
        let (mut connection, _) = deaf.accept().unwrap();
        connection.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        let _ = connection.read(&mut [0; 512]);
    });
    let error = open("127.0.0.1:/x", variables).err().unwrap();
    server.join().unwrap();
    assert_eq!(classify(&error), Exit::NoDestination);
    assert!(!error.to_string().contains("said nothing"), "{error:#}");
}

#[test]
fn what_a_daemon_has_against_us_is_said() {
    let daemon = RsyncDaemon::start();
    let failed = |location: &str, password: &str, exit: Exit| {
        let variables = vec![("BACKUP_RSYNC_PASSWORD".to_owned(), password.to_owned())];
        let destination = open(location, variables).unwrap();
        let error = destination.create("a", b"x").unwrap_err();
        let kind = error.kind;
        let error = anyhow::Error::from(error);
        assert_eq!(classify(&error), exit, "{error:#}");
        assert!(!format!("{error:#?}").contains("secret"), "{error:#?}");
        kind
    };
    let own = daemon.variables().remove(0).1;
    assert_eq!(failed(&daemon.location("backups"), "wrong", Exit::Denied), ErrorKind::Denied);
    assert_eq!(failed(&daemon.location("closed"), &own, Exit::Denied), ErrorKind::Denied);
    failed(&daemon.location("nothing"), &own, Exit::NoDestination);
    failed("rsync://127.0.0.1:1/backups", &own, Exit::NoDestination);
    assert_eq!(daemon.destination().create("a", b"x").unwrap(), Created::New);
}

#[test]
fn a_transfer_that_is_cut_goes_on() {
    let sshd = Sshd::start();
    for account in [Account::Shell, Account::Rrsync] {
        std::fs::create_dir(sshd.backups().join(account.key())).unwrap();
        let mut variables = sshd.variables(account);
        variables.push(("BACKUP_LIMIT_RATE".into(), "1M".into()));
        let destination = open(&sshd.location(account, account.key()), variables).unwrap();
        let content = large();
        let unfinished = sshd.backups().join(account.key()).join(".bk/tmp");
        let files = |is_partial: bool| {
            walkdir::WalkDir::new(&unfinished)
                .into_iter()
                .filter_map(Result::ok)
                .filter(|entry| entry.metadata().is_ok_and(|file| file.is_file() && file.len() > 0))
                .any(|entry| entry.path().to_string_lossy().contains("-partial/") == is_partial)
        };
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| put(&*destination, "a/large", &content));
            wait_until("it is being sent", || files(false));
            sshd.cut();
            // rsync 3.5 behind rrsync keeps nothing, and begins again.
            if account == Account::Shell {
                wait_until("what came is kept", || files(true));
            }
            sending.join().unwrap().unwrap();
        });
        assert!(read(&*destination, "a/large", None) == content);
        assert!(!files(true) && !files(false));
    }
}

#[test]
fn a_read_that_is_cut_goes_on_where_it_was() {
    let sshd = Sshd::start();
    let far = sshd.destination(Account::Shell);
    let content = large();
    put(&*far, "a", &content).unwrap();
    for range in [None, Some(100..content.len() as u64 - 100)] {
        let expected = range.clone().map_or(&content[..], |_| &content[100..content.len() - 100]);
        let mut reader = far.read("a", range).unwrap();
        let mut read = vec![0; 1000];
        reader.read_exact(&mut read).unwrap();
        sshd.cut();
        reader.read_to_end(&mut read).unwrap();
        assert!(read == expected);
        assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
    }
    assert!(sshd.is_connected(), "what comes next shares a connection, too");
}

#[test]
fn a_connection_that_stays_broken_is_not_the_end_of_an_object() {
    let sshd = Sshd::start();
    let far = sshd.destination(Account::Shell);
    put(&*far, "a", &large()).unwrap();
    let mut reader = far.read("a", None).unwrap();
    reader.read_exact(&mut [0; 1000]).unwrap();
    drop(sshd);
    assert!(reader.read_to_end(&mut Vec::new()).is_err());
    for _ in 0..2 {
        let error = reader.read(&mut [0; 10]).unwrap_err();
        let error = error.downcast::<crate::destination::Error>().unwrap();
        assert_eq!(error.kind, ErrorKind::Transient, "{error:#}");
    }
}

#[test]
fn an_account_that_serves_one_at_a_time_is_waited_for() {
    let sshd = Sshd::start();
    std::fs::create_dir(sshd.backups().join("locked")).unwrap();
    // Two runs, each with several requests at once.
    let runs = ["a", "b"].map(|run| (run, sshd.open(Account::Locked, "locked").unwrap()));
    std::thread::scope(|scope| {
        for (run, destination) in &runs {
            for number in 0..3 {
                let name = format!("{run}/{number}");
                scope.spawn(move || {
                    put(&**destination, &name, name.as_bytes()).unwrap();
                    assert_eq!(read(&**destination, &name, None), name.as_bytes());
                });
            }
        }
    });
    assert_eq!(names(&*runs[0].1, "").len(), 6);
}

/// Runs a test of this file again, where the folder of temporary files is a disk of so many KiB.
fn with_small_disk(test: &str, kilobytes: u32, location: &str, variables: &[(String, String)]) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size={kilobytes}k none \"$TMPDIR\" && exec \"$@\"");
    // Root may mount by itself; anybody else as root of a user namespace.
    let space = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let again = std::process::Command::new("unshare")
        .args([space, "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("rsync::tests::{test}")])
        .env("TMPDIR", folder.path())
        .env("BK_TEST_LOCATION", location)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
}

#[test]
fn a_full_disk_here_says_nothing_of_the_object() {
    if let Ok(location) = std::env::var("BK_TEST_LOCATION") {
        let variables = std::env::vars().filter(|(name, _)| name.starts_with("BACKUP_")).collect();
        let destination = open(&location, variables).unwrap();
        let error = destination.read("a", None).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Transient, "{error:#}");
        let failure = error.source.downcast::<bk_manifest::exit::Failure>().unwrap();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("here: "), "{failure}");
        assert_eq!(failure.hints, ["TMPDIR names a folder with more room"]);
        return;
    }
    let test = "a_full_disk_here_says_nothing_of_the_object";
    let sshd = Sshd::start();
    put(&*sshd.destination(Account::Rrsync), "a", &large()).unwrap();
    let daemon = RsyncDaemon::start();
    put(&*daemon.destination(), "a", &large()).unwrap();
    let location = sshd.location(Account::Rrsync, "rrsync");
    with_small_disk(test, 1000, &location, &sshd.variables(Account::Rrsync));
    // Too little for the object, which is 3 MiB, and for anything at all.
    for kilobytes in [1000, 4] {
        with_small_disk(test, kilobytes, &daemon.location("backups"), &daemon.variables());
    }
}

#[test]
fn only_what_we_left_unfinished_is_swept() {
    let sshd = Sshd::start();
    let daemon = RsyncDaemon::start();
    for (destination, folder) in [
        (sshd.destination(Account::Shell), sshd.backups().join("shell")),
        (daemon.destination(), daemon.backups()),
    ] {
        let unfinished = folder.join(".bk/tmp");
        std::fs::create_dir_all(unfinished.join(".bk-tmp-2")).unwrap();
        for name in ["stranger", ".bk-tmp-1", ".bk-tmp-2/x", "000001.tar.zst.a1B2c3"] {
            std::fs::File::create(unfinished.join(name)).unwrap();
        }
        assert!(names(&*destination, "").is_empty());
        assert_eq!(destination.sweep(Time::from_unix(1, 0)).unwrap(), 0);
        assert_eq!(destination.sweep(Time::from_unix(i64::from(i32::MAX), 0)).unwrap(), 3);
        assert!(unfinished.join("stranger").exists());
    }
}

#[test]
fn no_connection_stays_when_the_destination_is_closed() {
    let sshd = Sshd::start();
    let far = sshd.destination(Account::Shell);
    assert!(sshd.is_connected());
    drop(far);
    wait_until("the connection is closed", || !sshd.is_connected());
}

#[test]
fn only_the_marker_makes_the_folder() {
    let sshd = Sshd::start();
    let daemon = RsyncDaemon::start();
    let in_module = open(&daemon.location("backups/new"), daemon.variables()).unwrap();
    for destination in [
        sshd.open(Account::Shell, "new").unwrap(),
        sshd.open(Account::Rrsync, "other").unwrap(),
        in_module,
    ] {
        assert_eq!(destination.stat("a").unwrap(), None);
        assert!(names(&*destination, "").is_empty());
        assert!(destination.read("a", None).is_err());
        assert_eq!(destination.create("a", b"x").unwrap_err().kind, ErrorKind::NotFound);
    }
    let far = sshd.open(Account::Shell, "new").unwrap();
    assert!(put(&*far, "a", &large()).is_err());
    for folder in [sshd.backups().join("other"), daemon.backups().join("new")] {
        assert!(!folder.exists());
    }
    assert!(!sshd.backups().join("new").exists());
    assert_eq!(far.create(crate::place::MARKER, b"x").unwrap(), Created::New);
    assert_eq!(mode(&sshd.backups().join("new")), 0o700);
}
