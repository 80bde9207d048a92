//! `bk-push`: moves objects to a destination and back; finds backups.

fn main() -> std::process::ExitCode {
    bk_manifest::shell::main("bk-push", bk_push::cli::verbosity, bk_push::cli::run)
}
