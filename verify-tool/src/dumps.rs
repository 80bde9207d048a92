//! Which entries are dumps, and whether one can be read to its end.

use std::collections::BTreeMap;
use std::path::Path;

use bk_dump::check::DumpKind;
use bk_dump::postgres::KIND as POSTGRES;
use bk_manifest::entry::Entry;
use bk_manifest::manifest::Component;
use bk_manifest::path::RelPath;

/// What tells how a dump is to be read.
#[derive(Clone, Copy, Debug)]
pub struct DumpName<'a> {
    /// The kind of its component: `postgresql`, `sqlite`, `archive`.
    pub component: &'a str,
    /// The file's name.
    pub name: &'a str,
}

/// Reads dumps; a parameter, so that tests need no database program.
pub trait Dumps: Sync {
    /// Whether this is a dump of a kind that can be checked.
    fn knows(&self, dump: DumpName<'_>) -> bool;

    /// Reads a dump to its end; `file` holds it.
    ///
    /// # Errors
    /// [`bk_manifest::exit::Exit::Damaged`] for a dump that is broken; anything else means that it
    /// could not be checked.
    fn check(&self, dump: DumpName<'_>, file: &Path) -> anyhow::Result<()>;
}

/// The kinds of a backup's components, by their names.
#[derive(Clone, Debug, Default)]
pub struct Kinds(BTreeMap<String, String>);

impl Kinds {
    /// From the manifest's components.
    pub fn new(components: Vec<Component>) -> Self {
        Kinds(components.into_iter().map(|component| (component.name, component.kind)).collect())
    }

    /// What tells how an entry is to be read; `None` if it is no dump that `dumps` can check.
    pub fn dump<'a>(&'a self, entry: &'a Entry, dumps: &dyn Dumps) -> Option<DumpName<'a>> {
        if !entry.is_file() || !entry.path.is_own() {
            return None;
        }
        let name = std::str::from_utf8(entry.path.file_name()).ok()?;
        let component = self.0.get(entry.component()).map_or("", String::as_str);
        Some(DumpName { component, name }).filter(|dump| dumps.knows(*dump))
    }

    /// What tells how the folder is to be read that an entry lies in; `None` if it is no dump.
    pub fn folder<'a>(
        &'a self,
        entry: &Entry,
        folder: &'a RelPath,
        dumps: &dyn Dumps,
    ) -> Option<DumpName<'a>> {
        let name = std::str::from_utf8(folder.file_name()).ok()?;
        let component = self.0.get(entry.component()).map_or("", String::as_str);
        let is_named =
            folder.is_own() && DumpKind::of_name(name) == Some(DumpKind::PostgresDirectory);
        let dump = DumpName { component, name };
        Some(dump).filter(|dump| is_named && component == POSTGRES && dumps.knows(*dump))
    }
}

/// The dumps of `bk-dump`, read with the programs of this host.
pub struct HostDumps;

impl Dumps for HostDumps {
    fn knows(&self, dump: DumpName<'_>) -> bool {
        DumpKind::of_component(dump.component, dump.name).is_some()
    }

    fn check(&self, dump: DumpName<'_>, file: &Path) -> anyhow::Result<()> {
        match DumpKind::of_component(dump.component, dump.name) {
            Some(kind) => bk_dump::check::check(kind, file),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::path;
    use bk_manifest::manifest::Status;

    #[test]
    fn only_files_below_bk_are_dumps() {
        let component = |name: &str, kind: &str| Component {
            name: name.into(),
            kind: kind.into(),
            status: Status::Complete,
            extra: serde_json::Map::new(),
        };
        let kinds = Kinds::new(vec![component("database", "sqlite"), component("conf", "archive")]);
        let is_dump = |name: &str, component: Option<&str>| {
            let mut entry = Entry::new(path(name));
            entry.component = component.map(str::to_owned);
            kinds.dump(&entry, &HostDumps).is_some()
        };
        assert!(is_dump(".bk/conf/conf.tar.zst", Some("conf")));
        assert!(is_dump(".bk/database/app", Some("database")));
        assert!(!is_dump("conf.tar.zst", Some("conf")));
        assert!(!is_dump(".bk/conf/notes.txt", Some("conf")));
    }

    #[test]
    fn a_broken_archive_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        tar.append_data(&mut header, "a", &b"abc"[..]).unwrap();
        let bytes = zstd::encode_all(&tar.into_inner().unwrap()[..], 3).unwrap();
        let dump = DumpName { component: "archive", name: "conf.tar.zst" };
        crate::sample::replace(&file, &bytes);
        HostDumps.check(dump, &file).unwrap();
        crate::sample::replace(&file, &bytes[..bytes.len() - 3]);
        let error = HostDumps.check(dump, &file).unwrap_err();
        let exit = bk_manifest::exit::classify(&error);
        assert_eq!(exit, bk_manifest::exit::Exit::Damaged, "{error:#}");
    }
}
