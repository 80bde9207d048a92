//! What scripts rely on: the shapes that go to standard output.

use std::collections::BTreeSet;

use crate::harness::Sandbox;

fn keys(value: &serde_json::Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[test]
fn a_stored_manifest_has_the_documented_members() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "x");
    sandbox.back_up();
    let text = std::fs::read_to_string(sandbox.backups()[0].join("manifest.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let members = [
        "version",
        "generator",
        "application",
        "backup",
        "chain",
        "files",
        "components",
        "objects",
        "left_out",
        "verification",
    ];
    assert_eq!(keys(&json), set(&members));
    let backup = ["id", "type", "parent_backup_id", "timestamp", "host", "series"];
    assert_eq!(keys(&json["backup"]), set(&backup));
    assert_eq!(keys(&json["files"]), set(&["manifest", "count", "size", "checksum"]));
    let entry = ["at", "checksum", "ctime", "inode", "mode", "mtime", "owner", "path", "size"];
    assert_eq!(keys(&json["files"]["manifest"][0]), set(&entry));
    assert_eq!(keys(&json["objects"][0]), set(&["checksum", "live", "object", "size"]));
    let entries = text.lines().filter(|line| line.contains("\"path\":")).count();
    assert_eq!(entries, 1, "one entry a line");
}

#[test]
fn the_order_of_members_is_the_documented_one() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "x");
    let text = String::from_utf8(sandbox.back_up()).unwrap();
    let places: Vec<usize> = [
        "\"version\":",
        "\"generator\":",
        "\"application\":",
        "\"backup\":",
        "\"chain\":",
        "\"run\":",
        "\"files\":",
        "\"components\":",
        "\"objects\":",
        "\"left_out\":",
        "\"verification\":",
    ]
    .iter()
    .map(|member| text.find(&format!("\n{member}")).or_else(|| text.find(member)).unwrap())
    .collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn list_prints_one_json_object_a_line() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "x");
    sandbox.back_up();
    sandbox.back_up();
    let list = sandbox.run("bk-push", &["list", "--from", "dest", "--json"], b"").ok().text();
    assert_eq!(list.lines().count(), 2);
    let line: serde_json::Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    let known = [
        "id",
        "origin",
        "series",
        "timestamp",
        "type",
        "parent_backup_id",
        "count",
        "size",
        "stored",
        "status",
        "components",
        "manifest",
        "total_checksum",
        "marked",
    ];
    assert_eq!(keys(&line), set(&known));
    let table = sandbox.run("bk-push", &["list", "--from", "dest"], b"").ok().text();
    assert_eq!(table.lines().count(), 3);
}
