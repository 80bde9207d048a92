//! Running `pg_dump` into the stage folder.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::Context;
use bk_manifest::atomic::NewFile;
use bk_manifest::command::{Command, Finished};
use bk_manifest::digest::HashWriter;
use bk_manifest::exit::{Exit, fail};
use bk_manifest::left_out::LeftOut;
use bk_manifest::progress::Progress;
use serde_json::{Value, json};

use super::connection::{self, Server};
use super::contents::{self, Contents, Excluded};
use super::format::{Form, Format};
use super::session::{Session, literal};
use super::{Held, KIND, Options, directory, read};
use crate::check;
use crate::compress::{Compression, Compressor};
use crate::filter::{Made, Work};
use crate::level::Level;
use crate::stage::Staged;

/// Bytes that are read from a program at once.
const CHUNK: usize = 256 << 10;

/// Dumps what the held snapshot sees, and admits it: the program's status, the archive read to its
/// end, the digest taken while it was written.
///
/// # Errors
/// What the programs said, in one line; a full disk; a dump that cannot be read again.
pub(super) fn dump(
    server: &Server,
    options: &Options,
    held: Held,
    work: &Work<'_>,
) -> anyhow::Result<Made> {
    let Held { mut session, snapshot, mut facts, size, form, excluded } = held;
    let database = facts.get("database").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut server = server.in_database(&database);
    let tag = server.is_elsewhere().then(|| format!("bk-dump {snapshot}"));
    if let Some(tag) = &tag {
        server = server.with("PGAPPNAME", tag);
        session.query(&format!("SET application_name = {}", literal(tag)))?;
    }
    let mut command = pg_dump(&server, options, &snapshot)?.cancelled_by(work.cancel);
    if let Some(encoding) = facts.get("encoding").and_then(Value::as_str) {
        // Not the one that the database or the environment sets for clients: that may lack characters.
        command = command.arg(format!("--encoding={encoding}"));
    }
    work.progress.begin(&format!("dumping '{database}'"), Some(size));
    let output = Output { server: &server, form, options, work };
    let reading = Reading { session: &mut session, level: options.level, excluded: &excluded };
    let (written, contents) = reading.beside(work, || {
        let written = output.write(command, file_stem(&database))?;
        // Reading the tables may take longer; what happens to them from here on is not the dump's.
        let files =
            Session::open(&server, work.cancel).and_then(|mut now| contents::files(&mut now));
        Ok((written, files))
    });
    if let (Err(_), Some(tag)) = (&written, &tag) {
        // The error that is told is the first one.
        let _ = end_session(&server, tag);
    }
    let (written, files) = written.with_context(|| format!("dumping '{database}'"))?;
    let mut contents = contents?;
    let is_partial = contents.settle(&mut session, &files?)?;
    // The server cannot clean up behind a snapshot: it is held no longer than needed.
    drop(session);
    let staged = output.commit(written)?;
    for (what, why) in contents.unread() {
        work.progress
            .warn(&format!("a restore of '{database}' cannot be compared with {what}: {why}"));
    }
    let size = staged.iter().map(|staged| staged.size).sum();
    work.progress.begin("checking the dump", Some(size));
    output.check(&staged).map_err(|error| {
        fail(Exit::Failed, format!("the dump of '{database}' cannot be read again: {error:#}"))
    })?;
    work.progress.end();
    facts.insert("size".into(), json!(size));
    contents.record(&mut facts);
    let database = json!({"type": KIND, "schema_version": facts.get("schema_version")});
    let database = Some(database);
    Ok(Made { staged, kind: KIND, facts, database, left_out: LeftOut::default(), is_partial })
}

/// Takes down what the held snapshot sees, while the dump is written.
struct Reading<'a> {
    session: &'a mut Session,
    level: Level,
    excluded: &'a Excluded,
}

impl Reading<'_> {
    /// Does both at once. When one fails the other is stopped, and the first failure is the dump's.
    fn beside<T>(
        self,
        work: &Work<'_>,
        write: impl FnOnce() -> anyhow::Result<T>,
    ) -> (anyhow::Result<T>, anyhow::Result<Contents>) {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let Reading { session, level, excluded } = self;
                let progress = Quiet(work.progress);
                let contents = contents::take(session, level, excluded, work.cancel, &progress);
                let has_failed_first = contents.is_err() && !work.cancel.is_cancelled();
                if has_failed_first {
                    work.cancel.cancel();
                }
                (contents, has_failed_first)
            });
            let written = write();
            if written.is_err() {
                work.cancel.cancel();
            }
            let (contents, has_failed_first) = reading
                .join()
                .unwrap_or_else(|_| (Err(anyhow::anyhow!("the reading of tables panicked")), true));
            match contents {
                // That the dump was stopped is not what failed.
                Err(error) if has_failed_first => {
                    (Err(error), Err(fail(Exit::Failed, "no contents")))
                }
                contents => (written, contents),
            }
        })
    }
}

/// Shows no progress: the line is the dump's.
struct Quiet<'a>(&'a dyn Progress);

impl Progress for Quiet<'_> {
    fn warn(&self, message: &str) {
        self.0.warn(message);
    }

    fn note(&self, message: &str) {
        self.0.note(message);
    }

    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64, _: u64) {}
    fn end(&self) {}
}

/// The database's name where it can name a file that is plain everywhere.
fn file_stem(database: &str) -> &str {
    if bk_manifest::manifest::is_name(database) { database } else { "database" }
}

/// `pg_dump` with all but its format and output.
fn pg_dump(server: &Server, options: &Options, snapshot: &str) -> anyhow::Result<Command> {
    let mut command = server
        .command("pg_dump")?
        .args(["--no-password".to_owned(), format!("--snapshot={snapshot}")]);
    for (is_asked, flags) in [
        (options.no_owner, &["--no-owner"][..]),
        (options.no_acl, &["--no-acl"]),
        (options.clean, &["--clean", "--if-exists"]),
    ] {
        command = command.args(flags.iter().filter(|_| is_asked));
    }
    if let Some(seconds) = options.lock_timeout {
        command = command.arg(format!("--lock-wait-timeout={}s", seconds.as_secs()));
    }
    for (flag, patterns) in [
        ("--exclude-table", &options.exclude_table),
        ("--exclude-table-data", &options.exclude_table_data),
    ] {
        command = command.args(patterns.iter().map(|pattern| format!("{flag}={pattern}")));
    }
    Ok(command)
}

/// What `pg_dump` made, without its name yet.
enum Written {
    File(Box<HashWriter<NewFile>>, String),
    Folder(PathBuf, String),
}

/// Where and how a dump is written.
struct Output<'a> {
    server: &'a Server,
    form: Form,
    options: &'a Options,
    work: &'a Work<'a>,
}

impl Output<'_> {
    /// Runs `pg_dump` to its good end.
    fn write(&self, command: Command, stem: &str) -> anyhow::Result<Written> {
        let name = format!("{stem}{}", self.form.suffix());
        match self.form.format {
            Format::Plain => {
                // In the text there is nothing but its compression.
                self.write_file(command.arg("--format=plain"), self.form.compression, name)
            }
            Format::Custom => {
                let command = command.arg("--format=custom").args(self.archive_compression());
                self.write_file(command, Compression::None, name)
            }
            Format::Directory => self.write_folder(command, name),
        }
    }

    /// How `pg_dump` is told to compress an archive.
    fn archive_compression(&self) -> Option<&'static str> {
        match self.form.compression {
            Compression::None => Some("--compress=0"),
            // It is what every version does by itself.
            Compression::Gzip => None,
            Compression::Zstd => Some("--compress=zstd"),
        }
    }

    fn write_file(
        &self,
        command: Command,
        compression: Compression,
        name: String,
    ) -> anyhow::Result<Written> {
        let context =
            || format!("cannot write a dump to '{}'", self.work.staging.folder().display());
        let file = self.work.staging.create()?;
        let mut output = Compressor::new(file, compression).with_context(context)?;
        let finished = read_output(command, |stdout| {
            let mut buffer = vec![0; CHUNK];
            loop {
                self.work.cancel.check()?;
                let read = stdout.read(&mut buffer).context("cannot read what pg_dump prints")?;
                if read == 0 {
                    return Ok(());
                }
                output.write_all(&buffer[..read]).with_context(context)?;
                self.work.progress.advance(read as u64, 0);
            }
        })?;
        self.judge(&finished)?;
        Ok(Written::File(Box::new(output.finish().with_context(context)?), name))
    }

    fn write_folder(&self, command: Command, name: String) -> anyhow::Result<Written> {
        let folder = self.work.staging.scratch();
        let finished = if self.server.is_elsewhere() {
            let command = command.arg("--format=tar");
            read_output(command, |stdout| {
                directory::split(stdout, &folder, self.form.compression, self.work)
            })?
        } else {
            let command = command
                .args(["--format=directory", "--no-sync"])
                .arg(format!("--jobs={}", self.options.jobs))
                .args(self.archive_compression())
                .arg("--file")
                .arg(&folder);
            read_output(command, |_| Ok(()))?
        };
        self.judge(&finished)?;
        Ok(Written::Folder(folder, name))
    }

    /// Gives what was written its name, once it is on the disk.
    fn commit(&self, written: Written) -> anyhow::Result<Vec<Staged>> {
        let (cancel, progress) = (self.work.cancel, self.work.progress);
        match written {
            Written::File(file, name) => {
                Ok(vec![self.work.staging.commit(*file, name.as_bytes())?])
            }
            Written::Folder(folder, name) => {
                progress.begin("reading the dump", None);
                self.work.staging.commit_folder(&folder, name.as_bytes(), cancel, progress)
            }
        }
    }

    fn judge(&self, finished: &Finished) -> anyhow::Result<()> {
        if !finished.is_success() {
            return Err(connection::failure(finished));
        }
        connection::warn_of(finished, self.work.progress);
        Ok(())
    }

    /// Reads what was staged to its end, as a restore would.
    fn check(&self, staged: &[Staged]) -> anyhow::Result<()> {
        let (cancel, progress) = (self.work.cancel, self.work.progress);
        let [first, ..] = staged else { return Err(fail(Exit::Failed, "it has no file")) };
        let (checksum, size) = match self.form.format {
            Format::Directory => {
                let folder = first.path.parent().context("a file without a folder")?;
                return read::read_folder(self.server, folder, cancel, progress);
            }
            Format::Custom => read::read_archive(self.server, first.open()?, cancel, progress)?,
            Format::Plain => check::read_to_end(self.form.kind(), first.open()?, cancel)?,
        };
        first.compare(checksum, size)
    }
}

/// Runs `pg_dump` while its output is taken.
fn read_output(
    command: Command,
    take: impl FnOnce(&mut io::PipeReader) -> anyhow::Result<()>,
) -> anyhow::Result<Finished> {
    let mut running = command.start()?;
    drop(running.stdin.take());
    let mut stdout = running.stdout.take().context("pg_dump has no output")?;
    let taken = take(&mut stdout);
    if taken.is_ok() {
        // What is behind the end of an archive would make the program wait for ever.
        io::copy(&mut stdout, &mut io::sink()).context("cannot read what pg_dump prints")?;
    }
    drop(stdout);
    let is_cut = taken.as_ref().err().is_some_and(directory::is_cut);
    if let (Err(error), false) = (taken, is_cut) {
        return Err(error);
    }
    // An archive that was cut short is pg_dump's failure, and its words say why.
    let finished = running.wait()?;
    if is_cut && finished.is_success() {
        return Err(fail(Exit::Failed, "the output of pg_dump was cut short"));
    }
    Ok(finished)
}

/// Ends a `pg_dump` and the reading of tables inside a container or on another host: neither Docker nor
/// ssh does, whatever becomes of our end (<https://github.com/moby/moby/issues/9098>).
fn end_session(server: &Server, tag: &str) -> anyhow::Result<()> {
    let list =
        "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity";
    let condition = format!("WHERE application_name = {}", literal(tag));
    Session::open_for_cleanup(server)?
        .query(&format!("SET application_name = ''; {list} {condition}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::file_stem;

    #[test]
    fn odd_database_names_do_not_become_file_names() {
        assert_eq!(file_stem("app"), "app");
        assert_eq!(file_stem("../x"), "database");
        assert_eq!(file_stem("über"), "database");
    }
}
