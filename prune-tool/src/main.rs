//! `bk-prune`: decides which backups may go, says why, removes them.

fn main() -> std::process::ExitCode {
    bk_manifest::shell::main("bk-prune", bk_prune::cli::verbosity, bk_prune::cli::run)
}
