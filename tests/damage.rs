//! Objects that are flipped, cut, swapped or gone: named by verify, survived by fetch.

use std::fs;
use std::path::Path;

use crate::harness::{Sandbox, noise, snapshot};

/// A way to damage an object, and its name.
type Damage = (&'static str, fn(&Path));

fn damages() -> [Damage; 4] {
    [
        ("flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(path, bytes).unwrap();
        }),
        ("cut", |path| {
            let length = fs::metadata(path).unwrap().len();
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length / 2).unwrap();
        }),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| fs::write(path, b"").unwrap()),
    ]
}

fn sandbox_with_two_backups() -> (Sandbox, Vec<u8>) {
    let sandbox = Sandbox::new();
    sandbox.write("first", noise(1, 4 << 20));
    sandbox.write("small/a", "a");
    sandbox.back_up();
    sandbox.write("second", noise(2, 4 << 20));
    let document = sandbox.back_up();
    (sandbox, document)
}

#[test]
fn verify_names_the_damage_and_fetch_restores_the_rest() {
    for (name, damage) in damages() {
        let (sandbox, document) = sandbox_with_two_backups();
        let volumes = sandbox.volumes();
        damage(&volumes[0]);
        for level in ["stored", "content"] {
            let verify = ["--from", "dest", "--level", level];
            let ended = sandbox.run("bk-verify", &verify, &document).expect(20);
            assert!(ended.stderr.contains("000001.tar.zst"), "{name}: {}", ended.stderr);
            let reader = ended.stdout;
            let read = sandbox.run("bk-manifest", &["check"], &reader);
            assert_eq!(read.code, 21, "{name}: the document must not be ended");
        }
        let fetch = ["fetch", "--from", "dest", "--target", "back"];
        let ended = sandbox.run("bk-push", &fetch, &document).expect(3);
        assert!(ended.stderr.contains("lost: 'first'"), "{name}: {}", ended.stderr);
        let tree = snapshot(&sandbox.path("back"));
        assert!(!tree.contains_key(std::ffi::OsStr::new("first")), "{name}");
        assert!(tree.contains_key(std::ffi::OsStr::new("second")), "{name}");
        assert_eq!(ended.json()["verification"]["run"]["code"], 3);
    }
}

#[test]
fn swapped_volumes_are_told() {
    let (sandbox, document) = sandbox_with_two_backups();
    let volumes = sandbox.volumes();
    fs::rename(&volumes[0], sandbox.path("swap")).unwrap();
    fs::rename(&volumes[1], &volumes[0]).unwrap();
    fs::rename(sandbox.path("swap"), &volumes[1]).unwrap();
    sandbox.run("bk-verify", &["--from", "dest"], &document).expect(20);
    let fetch = ["fetch", "--from", "dest", "--target", "back"];
    sandbox.run("bk-push", &fetch, &document).expect(3);
}

#[test]
fn a_good_backup_passes_at_every_level() {
    let (sandbox, document) = sandbox_with_two_backups();
    for level in ["present", "stored", "content"] {
        let verify = ["--from", "dest", "--level", level];
        let ended = sandbox.run("bk-verify", &verify, &document).expect(0);
        assert_eq!(ended.json()["verification"]["run"]["proofs"][0]["level"], level);
    }
    sandbox.fetch(&document, "back");
    sandbox.run("bk-verify", &["--against", "back"], &document).expect(0);
    fs::write(sandbox.path("back/small/a"), "b").unwrap();
    sandbox.run("bk-verify", &["--against", "back"], &document).expect(20);
}

#[test]
fn a_manifest_that_was_cut_or_altered_is_refused_by_every_step() {
    let (sandbox, document) = sandbox_with_two_backups();
    sandbox.init("other", "24h");
    let cut = &document[..document.len() - 2];
    let mut altered = document.clone();
    let place = document.windows(10).position(|window| window == b"\"size\":419").unwrap();
    altered[place + 9] = b'8';
    let new = sandbox.run("bk-manifest", &["new", "--app", "app"], b"").ok().stdout;
    let new_cut = &new[..new.len() - 2];
    let new_altered = String::from_utf8(new.clone()).unwrap().replace("\"app\"", "\"apq\"");
    let stored_steps: [&[&str]; 4] = [
        &["bk-push", "--to", "other"],
        &["bk-push", "fetch", "--from", "dest", "--target", "back"],
        &["bk-verify", "--from", "dest"],
        &["bk-prune", "--from", "dest", "--keep-last", "1"],
    ];
    let first_steps: [&[&str]; 2] = [
        &["bk-manifest", "add", "--root", "src"],
        &["bk-dump", "archive", "--name", "config", "src/small"],
    ];
    let nonsense: [&[u8]; 3] = [b"", b"{}", b"not a manifest"];
    for (steps, documents) in [
        (&stored_steps[..], [cut, &altered[..]]),
        (&first_steps[..], [new_cut, new_altered.as_bytes()]),
    ] {
        for (step, bad) in steps
            .iter()
            .flat_map(|step| documents.iter().chain(&nonsense).map(move |bad| (step, bad)))
        {
            // A push that was refused has stored files, which the next one of that id would meet.
            fs::remove_dir_all(sandbox.path("other")).unwrap();
            sandbox.init("other", "24h");
            let ended = sandbox.run(step[0], &step[1..], bad);
            assert_eq!(ended.code, 21, "{step:?}: {}", ended.stderr);
            let errors = ended.stderr.lines().filter(|line| line.contains("error: ")).count();
            assert_eq!(errors, 1, "{step:?}: {}", ended.stderr);
        }
        assert!(!sandbox.path("back").exists());
    }
    assert_eq!(sandbox.backups().len(), 2);
}

#[test]
fn a_chain_that_leads_out_of_the_destination_is_refused() {
    let (sandbox, document) = sandbox_with_two_backups();
    let text = String::from_utf8(document).unwrap();
    let stored = sandbox.backups().pop().unwrap().join("manifest.json");
    for way in ["../../../../../../etc", "/etc"] {
        let start = text.find("\"chain\":{").unwrap();
        let end = start + text[start..].find('\n').unwrap();
        let id = text[start..].split('"').nth(3).unwrap();
        let hostile =
            format!("{}\"chain\":{{\"{id}\":\"{way}\"}},{}", &text[..start], &text[end..]);
        let hostile = with_sums(&sandbox, &hostile);
        fs::write(&stored, &hostile).unwrap();
        for step in [
            &["bk-push", "fetch", "--from", "dest", "--target", "back"][..],
            &["bk-verify", "--from", "dest"],
        ] {
            let ended = sandbox.run(step[0], &step[1..], &hostile);
            assert_eq!(ended.code, 21, "{step:?}: {}", ended.stderr);
        }
    }
}

/// The document with its total checksum made right again, by the recipe in README.
fn with_sums(sandbox: &Sandbox, text: &str) -> Vec<u8> {
    let filter = "del(.run,.verification,.files.manifest)";
    let canonical = sandbox.run("jq", &["-cS", filter], text.as_bytes()).ok();
    let sum = sandbox.run("sha256sum", &[], &canonical.stdout).ok().text();
    let place = text.rfind("\"total_checksum\":\"sha256:").unwrap() + 25;
    [&text[..place], &sum[..64], &text[place + 64..]].concat().into_bytes()
}
