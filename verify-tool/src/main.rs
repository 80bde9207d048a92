//! `bk-verify`: proves that a backup, or a copy of what it holds, is what its manifest says.

fn main() -> std::process::ExitCode {
    bk_manifest::shell::main("bk-verify", bk_verify::cli::verbosity, bk_verify::cli::run)
}
