//! `bk-dump`: gets a database or an archive out consistently, and back in.

fn main() -> std::process::ExitCode {
    bk_manifest::shell::main("bk-dump", bk_dump::cli::verbosity, bk_dump::cli::run)
}
