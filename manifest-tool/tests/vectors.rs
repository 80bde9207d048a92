//! tests/data/vectors: one file, one reason to be accepted or refused.

use std::path::PathBuf;

use bk_manifest::check::check;
use bk_manifest::stream::{Error, Format, Reader, Writer, copy_entries};

use crate::harness::{run, tool, workspace};

struct Vector {
    name: String,
    path: PathBuf,
    expect: String,
    reason: String,
    document: Vec<u8>,
}

fn vectors() -> Vec<Vector> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(workspace().join("tests/data/vectors"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "manifest"))
        .collect();
    files.sort();
    assert!(files.len() > 200, "the vectors are where they belong");
    files.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Vector {
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap();
    let header = std::str::from_utf8(&bytes[..end]).unwrap();
    let field = |name: &str| {
        let line = header.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{} has no '{name}'", path.display())).to_owned()
    };
    let (expect, reason) = (field("expect: "), field("reason: "));
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    Vector { name, path, expect, reason, document: bytes[end + 2..].to_vec() }
}

fn word(result: &Result<(), Error>) -> &'static str {
    match result {
        Ok(()) => "success",
        Err(Error::Truncated) => "truncated",
        Err(Error::Altered(_)) => "altered",
        Err(Error::TooNew(_)) => "too-new",
        Err(Error::Malformed(_)) => "malformed",
        Err(_) => "another error",
    }
}

#[test]
fn the_library_accepts_and_refuses_what_it_should() {
    let mut wrong = Vec::new();
    for vector in vectors() {
        let result = check(&vector.document[..]).map(drop);
        if word(&result) != vector.expect {
            wrong.push(format!("{} ({}): {result:?}", vector.name, vector.reason));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_command_says_so_in_one_line() {
    for vector in vectors() {
        let ran = run(&["check"], &vector.document);
        if vector.expect == "success" {
            assert_eq!((ran.code, &*ran.stderr), (0, ""), "{}", vector.name);
        } else {
            assert_eq!(ran.code, 21, "{}: {}", vector.name, ran.stderr);
            ran.failure(21, "standard input: the manifest ");
        }
    }
}

/// What is accepted is passed on with the same sums, in both forms.
#[test]
fn what_is_accepted_is_passed_on_with_the_same_sums() {
    fn convert(document: &[u8], format: Format) -> Vec<u8> {
        let mut reader = Reader::new(document).unwrap();
        let mut writer = Writer::new(Vec::new(), format, reader.header().clone()).unwrap();
        copy_entries(&mut reader, &mut writer).unwrap();
        let (_, trailer) = reader.end().unwrap();
        writer.end(trailer).unwrap().0
    }
    for vector in vectors().into_iter().filter(|vector| vector.expect == "success") {
        let (_, before) = check(&vector.document[..]).unwrap();
        let yaml = convert(&vector.document, Format::Yaml);
        let json = convert(&yaml, Format::Json);
        for document in [&yaml, &json, &convert(&vector.document, Format::Json)] {
            let (_, after) = check(&document[..]).unwrap();
            assert_eq!(after.total_checksum(), before.total_checksum(), "{}", vector.name);
            assert_eq!(after.totals, before.totals, "{}", vector.name);
        }
    }
}

/// However an accepted document is cut or a byte of it changed: never a panic, never another
/// content accepted.
#[test]
fn damage_to_a_good_document_is_never_accepted_as_another() {
    let mut random = crate::harness::Random::new();
    for vector in vectors().into_iter().filter(|vector| vector.expect == "success") {
        let (header, trailer) = check(&vector.document[..]).unwrap();
        let length = vector.document.trim_ascii_end().len() as u64;
        for _ in 0..200 {
            let mut document = vector.document.clone();
            let place = usize::try_from(random.below(length)).unwrap();
            match random.below(3) {
                0 => document.truncate(place),
                1 => document[place] = random.next().to_le_bytes()[0],
                _ => drop(document.remove(place)),
            }
            if let Ok((other_header, other_trailer)) = check(&document[..]) {
                // What stands in `verification` beside the sum is not covered by it.
                let covered = |trailer: &bk_manifest::manifest::Trailer| {
                    let members =
                        trailer.members.iter().filter(|(name, _)| *name != "verification");
                    let members = members.map(|(name, value)| (name.to_owned(), value.clone()));
                    (trailer.totals.clone(), members.collect::<Vec<_>>())
                };
                assert_eq!(other_header.stored(), header.stored(), "{}", vector.name);
                assert_eq!(covered(&other_trailer), covered(&trailer), "{}", vector.name);
            }
        }
    }
}

#[test]
fn several_files_are_all_looked_at() {
    let all = vectors();
    let find = |name: &str| all.iter().find(|vector| vector.name == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["check".to_owned()];
    for name in ["full", "cut-in-entry", "yaml", "path-dotdot"] {
        let path = folder.path().join(name);
        crate::harness::write(&path, &find(name).document);
        args.push(path.to_str().unwrap().to_owned());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ran = run(&args, b"");
    assert_eq!(ran.code, 21);
    assert_eq!(ran.stderr.matches("warning: ").count(), 2, "{}", ran.stderr);
    assert!(ran.stderr.ends_with("error: 2 of 4 are at fault\n"), "{}", ran.stderr);
    let missing = tool(&["check", "/nowhere"]).output().unwrap();
    crate::harness::Ran::from(missing).failure(2, "cannot open the manifest '/nowhere'");
    assert!(find("full").path.exists());
}
