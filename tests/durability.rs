//! The order in which bytes reach the disk, seen by strace: what a power cut may and may not take.

use std::collections::HashMap;

use crate::harness::Sandbox;

/// System calls of a traced program, in order.
fn trace(sandbox: &Sandbox, calls: &str, script: &str) -> Vec<String> {
    let log = sandbox.path("tmp/trace");
    let log = log.to_str().unwrap();
    let filter = format!("trace={calls}");
    let args = ["-f", "-y", "-s", "300", "-e", &filter, "-o", log, "sh", "-c", script];
    sandbox.run("strace", &args, b"").expect(0);
    std::fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn objects_are_on_the_disk_before_their_names_and_the_manifest_is_last() {
    let sandbox = Sandbox::new();
    sandbox.write("f", "content");
    let script = "bk-manifest new --app app | bk-manifest add --root src > document";
    sandbox.run("sh", &["-c", script], b"").ok();
    let calls = trace(
        &sandbox,
        "fsync,renameat2,rename,renameat,linkat",
        "bk-push --to \"$PWD/dest\" < document > out.json",
    );
    let mut synced: HashMap<String, usize> = HashMap::new();
    let mut names = Vec::new();
    for (number, call) in calls.iter().enumerate() {
        // `fsync(5</path>) = 0`, `renameat2(6</folder>, "old", 7</other>, "new", …) = 0`
        if call.contains("fsync(") {
            let path = call.split('<').nth(1).and_then(|rest| rest.split('>').next()).unwrap();
            synced.insert(path.to_owned(), number);
        } else if call.contains("rename") && call.contains("/dest/") {
            assert!(call.trim_end().ends_with("= 0"), "{call}");
            let parts: Vec<&str> = call.split(['<', '>', '"']).collect();
            let (old, new) =
                (format!("{}/{}", parts[1], parts[3]), format!("{}/{}", parts[5], parts[7]));
            assert!(synced.contains_key(&old), "{old} was renamed before it was synced: {call}");
            names.push((number, new));
        }
    }
    assert!(names.iter().any(|(_, name)| name.ends_with("000001.tar.zst")), "{calls:#?}");
    let (manifest, name) =
        names.iter().rfind(|(_, name)| !name.contains("/.bk/")).cloned().unwrap();
    assert!(name.ends_with("manifest.json"), "{name} comes after the manifest");
    for (number, name) in names.iter().filter(|(_, name)| !name.contains("/.bk/")) {
        let folder = std::path::Path::new(name).parent().unwrap().to_str().unwrap();
        let after = synced[folder];
        assert!(after > *number, "the folder of {name} was not synced after it");
        // Everything but the manifest itself is safe before the manifest has its name.
        let must_be_before = calls[*number..manifest]
            .iter()
            .any(|call| call.contains("fsync(") && call.contains(&format!("<{folder}>")));
        assert!(*number == manifest || must_be_before, "{name} was not safe at the commit");
    }
    // So are the names of the folders that are new, up to the destination.
    for folder in std::path::Path::new(&name).ancestors().skip(1) {
        let folder = folder.to_str().unwrap();
        let is_synced = calls[..manifest]
            .iter()
            .any(|call| call.contains("fsync(") && call.contains(&format!("<{folder}>")));
        assert!(is_synced, "{folder} was not safe at the commit");
        if folder.ends_with("/dest") {
            break;
        }
    }
}

#[test]
fn a_walk_opens_folders_only() {
    let sandbox = Sandbox::new();
    sandbox.write("folder/file", "content");
    let calls = trace(
        &sandbox,
        "open,openat,openat2",
        "bk-manifest new --app app | bk-manifest add --root src > document",
    );
    assert!(calls.iter().any(|call| call.contains("\"folder\"")));
    for call in calls {
        assert!(!call.contains("\"file\""), "{call}");
    }
}

#[test]
fn unchanged_files_are_not_opened_by_push() {
    let sandbox = Sandbox::new();
    sandbox.write("settled file", "content");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    sandbox.back_up();
    sandbox.write("new file", "new");
    let script = "bk-push manifest latest --from dest > parent.json
        bk-manifest new --app app --parent parent.json | bk-manifest add --root src |
        bk-push --to dest > out.json";
    let calls = trace(&sandbox, "open,openat,openat2", script);
    assert!(calls.iter().any(|call| call.contains("\"new file\"")));
    for call in calls {
        assert!(!call.contains("\"settled file\""), "{call}");
    }
}

#[test]
fn stored_files_are_private_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    sandbox.write("f", "content");
    let script = "umask 000; bk-manifest new --app app | bk-manifest add --root src | bk-push --to dest > out.json";
    sandbox.run("sh", &["-c", script], b"").ok();
    let mut folder = sandbox.backups().pop().unwrap();
    for file in crate::harness::files_below(&folder) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    while folder != sandbox.path("dest") {
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{folder:?}");
        folder.pop();
    }
}
