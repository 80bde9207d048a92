//! The tools together, through the real binaries.

mod buckets;
mod compose;
mod contract;
mod copy;
mod damage;
mod deployment;
mod durability;
mod encryption;
mod encryption_faults;
mod gateway;
mod harness;
mod help;
mod interrupt;
mod keys;
mod pipeline;
mod places;
mod plain;
mod postgres;
mod postgres_connection;
mod postgres_contents;
mod postgres_cut;
mod postgres_faults;
mod postgres_formats;
mod postgres_moving;
mod postgres_pooler;
mod postgres_regress;
mod postgres_restore;
mod postgres_restore_cut;
mod postgres_restore_hindered;
mod postgres_restore_in_place;
mod postgres_restore_refused;
mod postgres_transport;
mod proxy;
mod recovery;
mod rsync;
mod s3;
mod s3_faults;
mod server;
mod source_changes;
mod sqlite;
mod sqlite_killed;
mod target_folder;

#[test]
fn every_file_here_is_a_module() {
    let main = include_str!("main.rs");
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(name == "main" || main.contains(&format!("mod {name};")), "{name} is not run");
        }
    }
}
