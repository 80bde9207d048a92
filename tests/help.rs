//! What the programs say of themselves, and what README says of them.

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
