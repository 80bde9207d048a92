//! The step that brings a dump back: the document is read to its end, the file that fetch wrote is
//! compared with it and read to its own end, and only then is a target touched.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bk_manifest::beneath::{Cursor, Root};
use bk_manifest::digest::Digest;
use bk_manifest::entry::Entry;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::manifest::{Component, Status};
use bk_manifest::path::{OWN_FOLDER, RelPath};
use bk_manifest::progress::Progress;
use bk_manifest::spool::Document;
use bk_manifest::stream::Format;
use serde_json::{Value, json};

use crate::check::{self, DumpKind};
use crate::postgres::connection::Server;
use crate::postgres::globals;
use crate::{archive, postgres, sqlite, unpack};

/// What is restored and where to.
pub struct Options<'a> {
    /// The folder that fetch filled.
    pub from: PathBuf,
    /// The component; none: the only one of the target's kind.
    pub component: Option<String>,
    /// Where it goes.
    pub target: Target<'a>,
    /// Whether to look only: at the dump, and whether the target would take it.
    pub is_dry_run: bool,
}

/// Where a component goes; which one it can be depends on its kind.
pub enum Target<'a> {
    /// None was named: an error that says what to name, once the component is known.
    None,
    /// A database on a PostgreSQL server.
    Postgres(postgres::restore::Target<'a>),
    /// A PostgreSQL server, for its roles.
    Cluster(&'a Server),
    /// An SQLite database file.
    Sqlite(sqlite::restore::Target),
    /// A folder for an archive.
    Folder(unpack::Target<'a>),
}

impl Target<'_> {
    fn takes(&self, kind: &str) -> bool {
        match self {
            Target::None => kind == postgres::KIND || kind == sqlite::KIND,
            Target::Postgres(_) => kind == postgres::KIND,
            Target::Cluster(_) => kind == globals::KIND,
            Target::Sqlite(_) => kind == sqlite::KIND,
            Target::Folder(_) => kind == archive::KIND,
        }
    }

    /// The same for a component that was named: a database's server takes roles too.
    fn takes_named(&self, kind: &str) -> bool {
        self.takes(kind) || (matches!(self, Target::Postgres(_)) && kind == globals::KIND)
    }
}

/// Which flag names the target of a kind.
fn target_flag(kind: &str) -> &'static str {
    match kind {
        postgres::KIND => "--database NAME",
        globals::KIND => "--via PLACE, --url-env NAME or --user NAME",
        sqlite::KIND => "--to FILE",
        _ => "--into DIR",
    }
}

fn is_dump(kind: &str) -> bool {
    [postgres::KIND, globals::KIND, sqlite::KIND, archive::KIND].contains(&kind)
}

/// Restores one component, then passes the document on.
///
/// # Errors
/// A document that is damaged (21) or does not hold the component (13), a dump that differs from it
/// (20), those of the target.
pub fn restore(
    input: impl Read,
    output: impl Write,
    options: &Options<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let mut document = Document::read(input)?;
    let components = document.trailer.components()?;
    let component = choose(&components, options)?;
    let entries = dump_entries(&document, &component.name)?;
    if component.status == Status::Partial {
        progress.warn(&format!("the component '{}' was backed up in part", component.name));
    }
    let nowhere = Server::new(&postgres::connection::Request::default())?;
    let server = match &options.target {
        Target::Postgres(target) => target.server,
        Target::Cluster(server) => server,
        _ => &nowhere,
    };
    // What can be told before a large dump is read.
    match &options.target {
        Target::Sqlite(target) => sqlite::restore::check_target(target)?,
        Target::Postgres(target) => postgres::restore::check_client(target, &component.extra)?,
        Target::None | Target::Cluster(_) | Target::Folder(_) => {}
    }
    let dump = checked(&options.from, component, &entries, server, progress)?;
    let backup = document.header.the_backup()?.id;
    let step = Step::plan(&dump, component, &backup, options, progress)?;
    if options.is_dry_run {
        progress.note(&format!("the component '{}' can be restored", component.name));
        let exit = document.trailer.exit()?;
        document.write(output, Format::Json)?;
        return Ok(exit);
    }
    let restored = step.carry_out(&dump, component, progress)?;
    progress.note(&format!("restored the component '{}'", component.name));
    let exit = document.trailer.worsen(restored)?;
    let mut run = document.trailer.run()?;
    let mut list = match run.extra.remove("restored") {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    list.push(json!(component.name));
    run.extra.insert("restored".into(), Value::Array(list));
    document.trailer.set_run(&run);
    document.write(output, Format::Json)?;
    Ok(exit)
}

/// What is going to be done with a dump; nothing has been yet.
enum Step<'a> {
    Database(Box<postgres::restore::Plan<'a>>),
    Roles(&'a Server),
    File(&'a sqlite::restore::Target),
    Folder(&'a unpack::Target<'a>),
}

impl<'a> Step<'a> {
    fn plan(
        dump: &'a Dump,
        component: &'a Component,
        backup: &'a str,
        options: &'a Options<'_>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let is_globals = component.kind == globals::KIND;
        let roles = |server: &'a Server| {
            if options.is_dry_run {
                globals::restore(dump.kind, dump.open()?, server, true, progress)?;
            }
            Ok(Step::Roles(server))
        };
        match &options.target {
            Target::Postgres(target) if is_globals => roles(target.server),
            Target::Cluster(server) if is_globals => roles(server),
            Target::Postgres(target) => {
                let (record, is_dry_run) = (&component.extra, options.is_dry_run);
                postgres::restore::plan(dump, record, backup, target, is_dry_run, progress)
                    .map(|plan| Step::Database(Box::new(plan)))
            }
            Target::Sqlite(target) => Ok(Step::File(target)),
            Target::Folder(target) => Ok(Step::Folder(target)),
            Target::None | Target::Cluster(_) => Err(no_target(component)),
        }
    }

    fn carry_out(
        self,
        dump: &Dump,
        component: &Component,
        progress: &dyn Progress,
    ) -> anyhow::Result<Exit> {
        match self {
            Step::Database(plan) => return plan.carry_out(progress),
            Step::Roles(server) => {
                globals::restore(dump.kind, dump.open()?, server, false, progress)
            }
            Step::File(target) => {
                sqlite::restore::restore(dump.open()?, &component.extra, target, progress)
            }
            Step::Folder(target) => unpack::unpack(dump.kind, dump.open()?, target, progress),
        }
        .map(|()| Exit::Done)
    }
}

fn no_target(component: &Component) -> anyhow::Error {
    let message = format!("the component '{}' ({}) needs a target", component.name, component.kind);
    Failure::new(Exit::Usage, message)
        .hint(format!("name it with {}", target_flag(&component.kind)))
        .into()
}

fn choose<'a>(components: &'a [Component], options: &Options<'_>) -> anyhow::Result<&'a Component> {
    if let Some(name) = &options.component {
        let component = components
            .iter()
            .find(|component| component.name == *name)
            .ok_or_else(|| no_component(&format!("no component '{}'", name.escape_debug())))?;
        if !is_dump(&component.kind) {
            let message =
                format!("the component '{name}' is of the kind '{}', not a dump", component.kind);
            return Err(Failure::new(Exit::Usage, message)
                .hint("bk-push fetch has put its files where they belong")
                .into());
        }
        if !options.target.takes_named(&component.kind) || matches!(options.target, Target::None) {
            return Err(no_target(component));
        }
        return Ok(component);
    }
    if matches!(options.target, Target::Cluster(_)) {
        return Err(Failure::new(Exit::Usage, "which database to restore into? --database NAME")
            .hint("roles go into a server: --component NAME names theirs")
            .into());
    }
    let mut fitting = components.iter().filter(|component| options.target.takes(&component.kind));
    let Some(first) = fitting.next() else {
        return Err(no_component(match &options.target {
            Target::None => "no database",
            Target::Postgres(_) | Target::Cluster(_) => "no PostgreSQL database",
            Target::Sqlite(_) => "no SQLite database",
            Target::Folder(_) => "no archive",
        }));
    };
    let others: Vec<&str> = fitting.map(|component| component.name.as_str()).collect();
    if !others.is_empty() {
        let message = format!("several components fit: {}, {}", first.name, others.join(", "));
        return Err(Failure::new(Exit::Usage, message).hint("choose one: --component NAME").into());
    }
    if matches!(options.target, Target::None) { Err(no_target(first)) } else { Ok(first) }
}

fn no_component(what: &str) -> anyhow::Error {
    fail(Exit::NotFound, format!("the backup holds {what}"))
}

/// The files of a dump: several in PostgreSQL's directory format, else one.
fn dump_entries(document: &Document, component: &str) -> anyhow::Result<Vec<Entry>> {
    let folder = RelPath::new([OWN_FOLDER, b"/", component.as_bytes()].concat())?;
    let mut found = Vec::new();
    for entry in document.entries.iter() {
        let entry = entry?;
        if entry.component() == component && entry.is_file() && entry.path.below(&folder).is_some()
        {
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(fail(Exit::NotFound, format!("the component '{component}' has no dump")));
    }
    Ok(found)
}

/// A dump that fetch wrote, once it is what the manifest says and can be read to its end.
#[derive(Debug)]
pub struct Dump {
    /// Its form.
    pub kind: DumpKind,
    /// Where it lies: a file, or the folder of PostgreSQL's directory format.
    pub path: PathBuf,
    file: Option<File>,
}

impl Dump {
    /// Its file, at the beginning.
    ///
    /// # Errors
    /// [`Exit::Usage`] for a folder.
    pub fn open(&self) -> anyhow::Result<File> {
        let Some(file) = &self.file else {
            return Err(fail(Exit::Usage, format!("'{}' is a folder", self.path.display())));
        };
        let mut file = file.try_clone().context("cannot read the dump")?;
        file.rewind().context("cannot read the dump")?;
        Ok(file)
    }
}

/// Opens a dump that fetch wrote, once it is what the manifest says and can be read to its end.
fn checked(
    from: &Path,
    component: &Component,
    entries: &[Entry],
    server: &Server,
    progress: &dyn Progress,
) -> anyhow::Result<Dump> {
    let root = Root::open(from).map_err(|error| {
        fail(Exit::NotFound, format!("cannot open the folder '{}': {error}", from.display()))
    })?;
    let fetched = Fetched { from, root: &root, server, progress };
    let unknown = |path: &RelPath| {
        format!("'{path}' is no kind of dump that this version knows: use a newer one")
    };
    let (first, rest) = entries.split_first().context("a dump without a file")?;
    let kind = DumpKind::of_component(&component.kind, &first.path.to_string());
    match (kind, first.path.parent()) {
        (Some(kind), _) if rest.is_empty() && kind != DumpKind::PostgresDirectory => {
            fetched.file(kind, first)
        }
        (None, Some(folder)) if component.kind == postgres::KIND => {
            let kind = DumpKind::of_name(&folder.to_string());
            let is_one_folder =
                rest.iter().all(|entry| entry.path.parent().as_ref() == Some(&folder));
            if kind != Some(DumpKind::PostgresDirectory) || !is_one_folder {
                return Err(fail(Exit::Malformed, unknown(&first.path)));
            }
            fetched.folder(&folder, entries)
        }
        _ => Err(fail(Exit::Malformed, unknown(&first.path))),
    }
}

/// The folder that fetch filled.
struct Fetched<'a> {
    from: &'a Path,
    root: &'a Root,
    server: &'a Server,
    progress: &'a dyn Progress,
}

impl Fetched<'_> {
    fn open(&self, cursor: &mut Cursor<'_>, path: &RelPath) -> anyhow::Result<File> {
        cursor.open_file(path).map_err(|error| {
            let from = self.from.display();
            Failure::new(Exit::NotFound, format!("cannot open '{from}/{path}': {error}"))
                .hint("has bk-push fetch been given this folder as its --target?")
                .into()
        })
    }

    fn differs(&self, path: &RelPath) -> anyhow::Error {
        let message = format!("'{}/{path}' is not what the manifest says", self.from.display());
        Failure::new(Exit::Damaged, message).hint("fetch it again").into()
    }

    fn file(&self, kind: DumpKind, entry: &Entry) -> anyhow::Result<Dump> {
        let path = &entry.path;
        let file = self.open(&mut Cursor::new(self.root), path)?;
        let copy = file.try_clone().context("cannot read the dump")?;
        self.progress.begin(&format!("checking '{path}'"), entry.size);
        let place = self.from.join(path.as_path());
        let scratch = check::scratch_beside(&place);
        let read = check::check_open(kind, copy, &scratch, self.server, self.progress);
        self.progress.end();
        let (checksum, size) = read.with_context(|| format!("'{}/{path}'", self.from.display()))?;
        if entry.checksum != Some(checksum) || entry.size != Some(size) {
            return Err(self.differs(path));
        }
        Ok(Dump { kind, path: place, file: Some(file) })
    }

    fn folder(&self, folder: &RelPath, entries: &[Entry]) -> anyhow::Result<Dump> {
        let place = self.from.join(folder.as_path());
        let context = || format!("'{}'", place.display());
        // pg_restore would take a file that is not compressed before one that is.
        let found = std::fs::read_dir(&place).with_context(context)?.count();
        if found > entries.len() {
            let message = format!("'{}' holds more than the dump", place.display());
            return Err(Failure::new(Exit::Damaged, message)
                .hint("fetch it into a new one")
                .into());
        }
        let total = entries.iter().filter_map(|entry| entry.size).sum();
        self.progress.begin(&format!("checking '{folder}'"), Some(total));
        let mut cursor = Cursor::new(self.root);
        for entry in entries {
            bk_manifest::signal::check()?;
            let file = self.open(&mut cursor, &entry.path)?;
            let (checksum, size) = Digest::of_reader(file).with_context(context)?;
            if entry.checksum != Some(checksum) || entry.size != Some(size) {
                return Err(self.differs(&entry.path));
            }
            self.progress.advance(size, 0);
        }
        self.progress.end();
        check::check_with(DumpKind::PostgresDirectory, &place, self.server, self.progress)?;
        Ok(Dump { kind: DumpKind::PostgresDirectory, path: place, file: None })
    }
}

/// Reads every dump of a document to its end, then passes the document on.
///
/// # Errors
/// As [`restore`], for the first dump that is damaged.
pub fn check_all(
    input: impl Read,
    output: impl Write,
    from: &Path,
    server: &Server,
    progress: &dyn Progress,
) -> anyhow::Result<Exit> {
    let document = Document::read(input)?;
    let components = document.trailer.components()?;
    for component in components.iter().filter(|component| is_dump(&component.kind)) {
        let entries = dump_entries(&document, &component.name)?;
        let dump = checked(from, component, &entries, server, progress)?;
        progress.note(&format!("'{}' can be read to its end", dump.path.display()));
    }
    let exit = document.trailer.exit()?;
    document.write(output, Format::Json)?;
    Ok(exit)
}
