//! What the programs say of themselves, and what the documents say of them.

use crate::harness::Sandbox;

const TOOLS: [&str; 5] = ["bk-manifest", "bk-dump", "bk-push", "bk-prune", "bk-verify"];

#[test]
fn every_tool_has_help_and_a_version() {
    let sandbox = Sandbox::new();
    for tool in TOOLS {
        let help = sandbox.run(tool, &["--help"], b"").ok().text();
        assert!(help.contains("Exit codes:"), "{tool}: {help}");
        let version = sandbox.run(tool, &["--version"], b"").ok().text();
        assert_eq!(version.trim(), format!("{tool} {}", env!("CARGO_PKG_VERSION")));
        sandbox.run(tool, &["--no-such-flag"], b"").expect(2);
    }
}

#[test]
fn the_table_of_exit_codes_is_the_programs_own() {
    let readme = include_str!("../README.md");
    for (exit, meaning) in bk_manifest::exit::Exit::ALL {
        let row = format!("| {} | {meaning} |", exit.code());
        assert!(readme.contains(&row), "README lacks: {row}");
    }
}

/// Every test file that ARCHITECTURE.md names is there, with the tests that are named behind it.
#[test]
fn the_tests_that_guard_the_promises_are_where_architecture_says() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = include_str!("../ARCHITECTURE.md").lines().filter(|line| line.starts_with("| P"));
    let mut found = 0;
    for row in rows {
        let guards = row.split('|').nth(3).unwrap();
        let mut source = None;
        for word in guards.split([' ', ',', ';', ':', '(', ')']).filter(|word| !word.is_empty()) {
            let name = word.trim_matches('`');
            if name.contains("/") {
                let text = std::fs::read_to_string(root.join(name));
                source = Some(text.unwrap_or_else(|error| panic!("{name}: {error}")));
            } else if name.contains('.') {
                // A module, whose tests are not named.
                source = None;
            } else if name != word
                && let Some(source) = &source
            {
                assert!(source.contains(&format!("fn {name}(")), "{name} is not where {row} says");
                found += 1;
            }
        }
    }
    assert!(found > 10, "only {found} tests are named");
}
