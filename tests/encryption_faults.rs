//! Encryption where programs are missing or die, keys are lost, wrong or locked, and objects damaged.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::encryption::instead;
use crate::harness::{Ended, Sandbox, assert_same_tree, files_below, noise, run, snapshot};
use crate::interrupt::with_small_disk;
use crate::keys::{Keyring, age_key};

/// Lets the first call, which only tries the recipients, through to the real age.
const SECOND_CALL: &str =
    "[ -e ${0%/*}/called ] || { : > ${0%/*}/called; exec /usr/bin/age \"$@\"; }\n";

fn sandbox() -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    let recipient = age_key(&sandbox, "key");
    sandbox.write("f", noise(1, 1 << 20));
    (sandbox, format!("age:{recipient}"))
}

#[track_caller]
fn back_up(sandbox: &Sandbox, push: &[&str]) -> Vec<u8> {
    sandbox.try_back_up(push).pop().unwrap().ok().stdout
}

fn fetch(sandbox: &Sandbox, document: &[u8], args: &[&str]) -> Ended {
    let fetch = ["fetch", "--from", "dest", "--target", "back"];
    sandbox.run("bk-push", &[&fetch[..], args].concat(), document)
}

/// Every file at the destination but the lock.
fn stored(sandbox: &Sandbox) -> Vec<String> {
    let dest = sandbox.path("dest");
    let names = files_below(&dest).into_iter();
    let names = names.map(|path| path.strip_prefix(&dest).unwrap().display().to_string());
    names.filter(|name| !name.contains("lock")).collect()
}

#[test]
fn a_program_that_dies_or_ends_early_in_an_object_makes_no_backup() {
    for (end, said) in [
        ("kill -9 $$", "signal: 9"),
        ("exit 5", "exit status: 5"),
        // It has written all of the object, and only its end tells.
        ("/usr/bin/age \"$@\"; exit 6", "exit status: 6"),
        ("/usr/bin/age \"$@\"; kill -9 $$", "signal: 9"),
        // It even says that all was well.
        ("exit 0", "ended early"),
        ("/usr/bin/age \"$@\" | head -c 70000; exit 1", "exit status: 1"),
    ] {
        let (mut sandbox, age) = sandbox();
        sandbox.write("f", "small");
        let earlier = back_up(&sandbox, &["--encrypt", &age]);
        sandbox.write("f", noise(2, 6 << 20));
        let script = format!("{SECOND_CALL}head -c 1 > ${{0%/*}}/byte; {end}");
        instead(&mut sandbox, "age", &script);
        let ended = sandbox.try_back_up(&["--encrypt", &age]).pop().unwrap().expect(1);
        assert!(ended.stderr.contains(said), "{end}: {}", ended.stderr);
        assert!(ended.stderr.contains("000001.tar.zst.age"), "{end}: {}", ended.stderr);
        assert_eq!(sandbox.backups().len(), 1);
        let objects = stored(&sandbox).iter().filter(|name| name.ends_with(".age")).count();
        assert_eq!(objects, 1, "{end}: {:?}", stored(&sandbox));
        fs::remove_dir_all(sandbox.path("instead")).unwrap();
        fetch(&sandbox, &earlier, &["--identity", "key"]).expect(0);
        back_up(&sandbox, &["--encrypt", &age]);
    }
}

#[test]
fn what_cannot_encrypt_is_told_before_anything_is_stored() {
    let (mut sandbox, age) = sandbox();
    let _keyring = Keyring::new(&mut sandbox);
    fs::write(sandbox.path("empty"), "").unwrap();
    fs::write(sandbox.path("bad"), "age1 is none\n").unwrap();
    let before = stored(&sandbox);
    let two_words = format!("{age} gpg:x");
    for (args, said) in [
        (&["--recipients-file", "empty"][..], "no recipients found"),
        (&["--recipients-file", "bad"], "malformed recipient"),
        (&["--recipients-file", "not there"], "no such file"),
        (&["--encrypt", "age:age1none"], "cannot encrypt"),
        (&["--encrypt", "gpg:nobody@example.org"], "no public key"),
        (&["--encrypt", &two_words], "age and gpg cannot both"),
        (&["--encrypt", "konfig=age:age1none"], "cannot encrypt"),
        (&["--encrypt", &format!("konfig={age}")], "'konfig' is to be encrypted"),
        (&["--encrypt", "secret"], "does not say how to encrypt"),
    ] {
        let ended = sandbox.try_back_up(args).pop().unwrap().expect(2);
        assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
        assert_eq!(stored(&sandbox), before, "{args:?}");
    }
    sandbox.set("PATH", crate::harness::bin_dir());
    let ended = sandbox.try_back_up(&["--encrypt", &age]).pop().unwrap().expect(1);
    assert!(ended.stderr.contains("hint: install age"), "{}", ended.stderr);
    assert_eq!(stored(&sandbox), before);
}

#[test]
fn a_file_of_recipients_has_any_of_their_keys_open_it() {
    let (sandbox, _) = sandbox();
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(sandbox.path("ssh"));
    run(&mut keygen, b"").expect(0);
    let other = age_key(&sandbox, "other");
    let ssh = fs::read_to_string(sandbox.path("ssh.pub")).unwrap();
    fs::write(sandbox.path("recipients"), format!("# the two of us\n{other}\n{ssh}")).unwrap();
    let document = back_up(&sandbox, &["--recipients-file", "recipients"]);
    for (number, key) in ["other", "ssh"].into_iter().enumerate() {
        let args = ["--identity", "key", "--identity", key];
        let target = ["fetch", "--from", "dest", "--target", &format!("back{number}")];
        sandbox.run("bk-push", &[&target[..], &args].concat(), &document).expect(0);
    }
    let refused = fetch(&sandbox, &document, &["--identity", "key"]).expect(12);
    assert!(refused.stderr.contains("a key of ssh (ssh-ed25519)"), "{}", refused.stderr);
    // The same by its own text, which has blanks in it.
    let ssh = format!("age:{}", ssh.trim());
    let document = back_up(&sandbox, &["--encrypt", &ssh, "--full"]);
    fetch(&sandbox, &document, &["--identity", "ssh"]).expect(0);
}

#[test]
fn a_key_that_is_lost_wrong_or_locked_is_told_before_anything_is_written() {
    let (mut sandbox, age) = sandbox();
    let document = back_up(&sandbox, &["--encrypt", &age]);
    age_key(&sandbox, "wrong");
    fs::write(sandbox.path("no key"), "AGE-SECRET-KEY-1NONE\n").unwrap();
    let armored = ["-a", "-e", "-r", &age[4..], "-o", "locked", "key"];
    sandbox.run("age", &armored, b"").expect(0);
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "a passphrase", "-f"]).arg(sandbox.path("ssh"));
    run(&mut keygen, b"").expect(0);
    for (identity, said) in [
        (&[][..], "no key was given"),
        (&["--identity", "wrong"], "no identity matched"),
        (&["--identity", "lost"], "cannot read the key 'lost'"),
        (&["--identity", "no key"], "cannot be opened"),
        (&["--identity", "locked"], "locked with a passphrase"),
        // It is none of its recipients, so it is not asked for.
        (&["--identity", "ssh"], "no identity matched"),
    ] {
        let ended = fetch(&sandbox, &document, identity).expect(12);
        assert!(ended.stderr.contains(said), "{identity:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("hint: "), "{identity:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("SECRET-KEY-1"), "{}", ended.stderr);
        assert!(!sandbox.path("back").exists(), "{identity:?}");
        let content = ["--from", "dest", "--level", "content"];
        sandbox.run("bk-verify", &[&content[..], identity].concat(), &document).expect(12);
    }
    let ssh = fs::read_to_string(sandbox.path("ssh.pub")).unwrap();
    let document = back_up(&sandbox, &["--encrypt", &format!("age:{}", ssh.trim()), "--full"]);
    let ended = fetch(&sandbox, &document, &["--identity", "ssh"]).expect(12);
    assert!(ended.stderr.contains("a key with a passphrase"), "{}", ended.stderr);
    let keyring = Keyring::new(&mut sandbox);
    keyring.add(&sandbox, "locked@example.org", "a passphrase");
    let document = back_up(&sandbox, &["--encrypt", "gpg:locked@example.org", "--full"]);
    keyring.end_agent();
    let ended = fetch(&sandbox, &document, &[]).expect(12);
    assert!(ended.stderr.contains("must be open in gpg-agent"), "{}", ended.stderr);
    assert!(!sandbox.path("back").exists());
}

#[test]
fn a_host_that_only_knows_the_public_key_pushes_on() {
    let (mut sandbox, _) = sandbox();
    let owner = Keyring::new(&mut sandbox);
    owner.add(&sandbox, "owner@example.org", "");
    let export = ["--batch", "--export", "owner@example.org"];
    let public = sandbox.run("gpg", &export, b"").expect(0).stdout;
    let _host = Keyring::new(&mut sandbox);
    sandbox.run("gpg", &["--batch", "--quiet", "--import"], &public).expect(0);
    for content in ["first", "second"] {
        sandbox.write("g", content);
        back_up(&sandbox, &["--encrypt", "gpg:owner@example.org"]);
    }
    let document = sandbox.latest();
    fetch(&sandbox, &document, &[]).expect(12);
    owner.use_in(&mut sandbox);
    fetch(&sandbox, &document, &[]).expect(0);
    assert_same_tree(&snapshot(&sandbox.path("src")), &snapshot(&sandbox.path("back")));
}

#[test]
fn a_key_that_others_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let (sandbox, age) = sandbox();
    let document = back_up(&sandbox, &["--encrypt", &age]);
    fs::set_permissions(sandbox.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let ended = fetch(&sandbox, &document, &["--identity", "key"]).expect(0);
    assert!(ended.stderr.contains("others can read the key"), "{}", ended.stderr);
}

/// Two backups whose volumes hold a file each, and a good one behind them.
fn damaged(how: &[&str], damage: fn(&Path, &Path)) -> (Sandbox, Vec<u8>) {
    let (mut sandbox, age) = sandbox();
    let keyring = Keyring::new(&mut sandbox);
    keyring.add(&sandbox, "me@example.org", "");
    let how = if how.is_empty() { vec!["--encrypt", &age] } else { how.to_vec() };
    sandbox.write("f", noise(1, 400_000));
    back_up(&sandbox, &how);
    sandbox.write("g", noise(2, 400_000));
    back_up(&sandbox, &how);
    sandbox.write("good", "good");
    let document = back_up(&sandbox, &how);
    let volumes: Vec<_> = sandbox
        .backups()
        .iter()
        .map(|folder| files_below(&folder.join("files")).pop().unwrap())
        .collect();
    damage(&volumes[0], &volumes[1]);
    // The keyring ends with this function.
    let verified = sandbox.run(
        "bk-verify",
        &["--from", "dest", "--level", "content", "--identity", "key"],
        &document,
    );
    assert_eq!(verified.code, 20, "{}", verified.stderr);
    let ended = fetch(&sandbox, &document, &["--identity", "key"]).expect(3);
    assert!(ended.stderr.contains("lost: 'f'"), "{}", ended.stderr);
    assert!(!sandbox.path("back/f").exists());
    assert_eq!(fs::read(sandbox.path("back/good")).unwrap(), b"good");
    (sandbox, document)
}

fn flip(path: &Path, place: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[place] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_object_is_damage_and_the_rest_comes_back() {
    let cut = |first: &Path, _: &Path| {
        let file = fs::OpenOptions::new().write(true).open(first).unwrap();
        file.set_len(200_000).unwrap();
    };
    let swap = |first: &Path, second: &Path| {
        let bytes = fs::read(first).unwrap();
        fs::copy(second, first).unwrap();
        fs::write(second, bytes).unwrap();
    };
    let gpg = &["--encrypt", "gpg:me@example.org"][..];
    for how in [&[][..], gpg] {
        damaged(how, cut);
        damaged(how, swap);
        damaged(how, |first, _| flip(first, 100_000));
        // In the header this looks like a wrong key.
        damaged(how, |first, _| flip(first, 60));
    }
}

#[test]
fn what_lies_before_the_damage_is_not_lost() {
    let (sandbox, age) = sandbox();
    for number in 0..8 {
        sandbox.write(&format!("d/f{number}"), noise(number, 1 << 20));
    }
    let document = back_up(&sandbox, &["--encrypt", &age]);
    let volume = files_below(&sandbox.backups()[0].join("files")).pop().unwrap();
    flip(&volume, usize::try_from(fs::metadata(&volume).unwrap().len()).unwrap() - 3_000_000);
    let ended = fetch(&sandbox, &document, &["--identity", "key"]).expect(3);
    assert_eq!(fs::read(sandbox.path("back/d/f0")).unwrap(), noise(0, 1 << 20));
    assert!(ended.stderr.contains("cannot be decrypted"), "{}", ended.stderr);
}

#[test]
fn an_object_for_another_recipient_is_told_by_its_name() {
    let (sandbox, age) = sandbox();
    back_up(&sandbox, &["--encrypt", &age]);
    let other = format!("age:{}", age_key(&sandbox, "other"));
    sandbox.write("g", noise(3, 1000));
    let document = back_up(&sandbox, &["--encrypt", &other]);
    let ended = fetch(&sandbox, &document, &["--identity", "key"]).expect(12);
    assert!(ended.stderr.contains("000001.tar.zst.age' is encrypted"), "{}", ended.stderr);
    assert!(!sandbox.path("back").exists());
    fetch(&sandbox, &document, &["--identity", "key", "--path", "f"]).expect(0);
    assert!(sandbox.path("back/f").exists());
}

#[test]
fn no_room_for_an_opened_object_is_told_and_no_damage() {
    let (sandbox, age) = sandbox();
    for number in 0..6 {
        sandbox.write(&format!("f{number}"), noise(number, 1 << 20));
    }
    let document = back_up(&sandbox, &["--encrypt", &age]);
    fs::write(sandbox.path("document"), document).unwrap();
    let fetch = "TMPDIR=small bk-push fetch --from dest --identity key";
    let script = format!(
        "{fetch} --target back < document > out; echo $?
        {fetch} --target one --path f3 < document > out; echo $?"
    );
    let ended = with_small_disk(&sandbox, 2000, &script).expect(0);
    assert_eq!(ended.text(), "1\n0\n", "{}", ended.stderr);
    assert!(ended.stderr.contains("TMPDIR names a folder with more room"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("lost"), "{}", ended.stderr);
}

#[test]
fn one_file_of_an_encrypted_object_takes_no_room_whatever_is_read_behind_it() {
    let (sandbox, age) = sandbox();
    sandbox.write("clear/g", noise(2, 1 << 20));
    sandbox.write("sealed/f", noise(3, 6 << 20));
    let mut pipe = sandbox.run("bk-manifest", &["new", "--app", "app"], b"").ok().stdout;
    for (component, root) in [("aa", "src/sealed"), ("bb", "src/clear")] {
        let add = ["add", "--component", component, "--as", component, "--root", root];
        pipe = sandbox.run("bk-manifest", &add, &pipe).ok().stdout;
    }
    let push = ["--to", "dest", "--encrypt", &format!("aa={age}")];
    let document = sandbox.run("bk-push", &push, &pipe).expect(0).stdout;
    fs::write(sandbox.path("document"), document).unwrap();
    let script =
        "TMPDIR=small bk-verify --from dest --level content --identity key < document > out";
    with_small_disk(&sandbox, 2000, script).expect(0);
}

#[test]
fn a_program_that_dies_while_it_opens_an_object_is_no_damage() {
    let (mut sandbox, age) = sandbox();
    sandbox.write("g", noise(7, 1 << 20));
    let document = back_up(&sandbox, &["--encrypt", &age]);
    let script = format!("{SECOND_CALL}/usr/bin/age \"$@\" | head -c 300000; kill -9 $$");
    instead(&mut sandbox, "age", &script);
    let ended = fetch(&sandbox, &document, &["--identity", "key"]).expect(1);
    assert!(ended.stderr.contains("signal: 9"), "{}", ended.stderr);
}
