//! `bk-manifest`: makes, reads and compares manifests; walks trees.

fn main() -> std::process::ExitCode {
    bk_manifest::shell::main("bk-manifest", bk_manifest::cli::verbosity, bk_manifest::cli::run)
}
