//! `bk-manifest` through its binary, and the format through its vectors and recipes.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed"
)]

mod add;
mod commands;
mod harness;
mod recipes;
mod settings;
mod vectors;

/// A module that is not listed above would never run.
#[test]
fn no_test_file_is_forgotten() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    for file in std::fs::read_dir(folder).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "cli") else {
            continue;
        };
        assert!(include_str!("cli.rs").contains(&format!("mod {module};")), "{name}");
    }
}
