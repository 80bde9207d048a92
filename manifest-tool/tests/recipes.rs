//! The two checksums, computed by hand as README says, and printing as the inverse of parsing.

use std::process::{Command, Stdio};

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry, Kind};
use bk_manifest::manifest::{Application, Backup, Header, Run, Trailer};
use bk_manifest::path::RelPath;
use bk_manifest::stream::{Format, Reader, Writer};
use bk_manifest::time::Time;
use serde_json::{Value, json};

use crate::harness::{Random, write};

/// Names that have broken programs, and some of everything else.
const PARTS: [&[u8]; 16] = [
    b"a",
    b"-rf",
    b" ",
    b"$(reboot)",
    b"a\nb",
    b"\xff\xfe",
    b"\"quoted\"",
    b"back\\slash",
    b"\x7f",
    "\u{85}".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{1f600}".as_bytes(),
    b"\x1b[31m",
    b".hidden",
    b"NUL",
    b"\xed\xa0\x80",
];

fn random_entry(random: &mut Random, path: RelPath) -> Entry {
    let text = String::from_utf8_lossy(random.pick(&PARTS)).into_owned();
    let kind = match random.below(8) {
        0 => Kind::Directory,
        1 => Kind::Symlink(random.pick(&PARTS).to_vec()),
        2 => Kind::Hardlink(RelPath::new("!").unwrap()),
        3 => Kind::Fifo,
        4 => Kind::Char(1, 3),
        _ => Kind::File,
    };
    let mut entry = Entry { kind, ..Entry::new(path) };
    let mut some = || random.below(3) > 0;
    let has = [some(), some(), some(), some(), some(), some(), some(), some()];
    let time = Time::from_unix(
        i64::try_from(random.below(4_000_000_000)).unwrap() - 1_000_000_000,
        u32::try_from(random.below(1_000_000_000)).unwrap(),
    );
    let small = u32::try_from(random.below(70_000)).unwrap();
    let large = random.below(1 << 40);
    entry.checksum = has[0].then(|| Digest::of(&large.to_le_bytes()));
    entry.ctime = has[1].then_some(time);
    entry.mtime = has[2].then_some(time);
    entry.mode = has[3].then_some(small & 0o7777);
    entry.inode = has[4].then_some(random.next());
    entry.owner = has[5].then_some((small, small / 2));
    entry.size = has[6].then_some(large);
    entry.component = has[7].then(|| "photos-2.x".to_owned());
    if random.below(2) == 0 {
        entry.at = Some(At {
            backup: has[0].then(|| "backup-1".to_owned()),
            object: "files/000001.tar.zst".into(),
            offset: has[1].then_some(large),
            length: has[1].then_some(7),
            skip: has[1].then_some(512),
            member: has[2].then(|| random.pick(&PARTS).to_vec()),
            ..At::default()
        });
    }
    if random.below(4) == 0 {
        entry.extra.insert("x-".to_owned() + &text, json!([{ "z": text, "a": null }, -5, true]));
    }
    entry
}

fn random_path(random: &mut Random, number: usize) -> RelPath {
    let mut bytes = format!("{number:05}").into_bytes();
    for _ in 0..random.below(4) {
        if random.below(3) == 0 {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(random.pick(&PARTS));
    }
    RelPath::new(bytes).unwrap()
}

fn header() -> Header {
    let application = Application { name: "app \u{7f}\u{85}\u{2028}\"\\/".into(), version: None };
    let backup = Backup {
        id: "backup-20260428-022150-a1b2c3d4".into(),
        timestamp: "2026-04-28T02:21:50.000Z".into(),
        ..Backup::default()
    };
    Header::new(&application, Some(&backup), &Run { place: Some("x".into()), ..Run::default() })
}

fn document(random: &mut Random, entries: usize, format: Format) -> (Vec<u8>, Trailer) {
    let mut writer = Writer::new(Vec::new(), format, header()).unwrap();
    for number in 0..entries {
        let path = random_path(random, number);
        let entry = random_entry(random, path);
        writer.entry(&Entry { path: entry.path.clone(), ..entry }).unwrap();
    }
    let mut trailer = Trailer::default();
    trailer.set(
        "components",
        json!([{"name":"files","kind":"tree","status":"complete","\u{7f}":"\u{0}"}]),
    );
    trailer
        .set("later", json!({"b":[1,-9_007_199_254_740_992_i64],"a":{"\u{1f600}":1,"\u{ffff}":2}}));
    writer.end(trailer).unwrap()
}

fn shell(recipe: &str, file: &str) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", recipe, "bash", file])
        .stderr(Stdio::inherit())
        .output()
        .expect("bash, jq, split and sha256sum are there");
    assert!(output.status.success(), "{recipe}");
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

#[test]
fn jq_split_and_sha256sum_compute_the_same_sums() {
    let mut random = Random::new();
    let folder = tempfile::tempdir().unwrap();
    for entries in [0, 1, 1024, 1025, 3000] {
        let (bytes, trailer) = document(&mut random, entries, Format::Json);
        let path = folder.path().join(format!("{entries}.json"));
        write(&path, &bytes);
        let file = path.to_str().unwrap();
        let files = shell(
            "jq -cS '.files.manifest[]' \"$1\" | split -l 1024 --filter=sha256sum | sha256sum",
            file,
        );
        let total =
            shell("jq -cS 'del(.run,.verification,.files.manifest)' \"$1\" | sha256sum", file);
        assert_eq!(trailer.totals.checksum.unwrap().hex(), files, "{entries} entries");
        assert_eq!(trailer.total_checksum().unwrap().hex(), total, "{entries} entries");
        let (_, again) = Reader::new(&bytes[..]).unwrap().end().unwrap();
        assert_eq!(again.total_checksum(), trailer.total_checksum());
    }
}

/// Each entry is a line as `jq -cS` prints it, whatever the name.
#[test]
fn jq_prints_entries_as_we_do() {
    let mut random = Random::new();
    let mut lines = Vec::new();
    for number in 0..2000 {
        let path = random_path(&mut random, number);
        random_entry(&mut random, path).write_canonical(&mut lines);
        lines.push(b'\n');
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines");
    write(&path, &lines);
    let output = Command::new("jq").args(["-cS", "."]).arg(&path).output().unwrap();
    assert!(output.status.success());
    for (ours, theirs) in lines.split(|b| *b == b'\n').zip(output.stdout.split(|b| *b == b'\n')) {
        assert_eq!(String::from_utf8_lossy(ours), String::from_utf8_lossy(theirs));
    }
    assert_eq!(lines.len(), output.stdout.len());
}

#[test]
fn printing_and_parsing_are_inverse() {
    let mut random = Random::new();
    for number in 0..20_000 {
        let path = random_path(&mut random, number);
        let entry = random_entry(&mut random, path);
        let mut line = Vec::new();
        entry.write_canonical(&mut line);
        let parsed: Entry = serde_json::from_slice(&line)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&line)));
        assert_eq!(parsed, entry);
        let mut again = Vec::new();
        parsed.write_canonical(&mut again);
        assert_eq!(again, line);
    }
}

#[test]
fn documents_come_back_whole_in_both_forms() {
    let mut random = Random::new();
    for format in [Format::Json, Format::Yaml] {
        for entries in [0, 1, 7, 1500] {
            let (bytes, written) = document(&mut random, entries, format);
            let (read_header, read) = Reader::new(&bytes[..]).unwrap().end().unwrap();
            assert_eq!(read_header, header(), "{format:?}");
            assert_eq!(read, written, "{format:?}");
            let value: Option<&Value> = read.members.get("later");
            assert_eq!(value.unwrap()["b"][1], -9_007_199_254_740_992_i64);
        }
    }
}
