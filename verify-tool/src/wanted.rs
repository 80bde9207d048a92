//! Which entries a verify is about, and which objects those need.

use std::collections::HashSet;

use bk_manifest::digest::Digest;
use bk_manifest::entry::{At, Entry, Kind};
use bk_manifest::lookup::Lookup;
use bk_manifest::path::RelPath;
use bk_manifest::select::{Selection, Unseen};
use bk_manifest::stream::Error as FormatError;

/// The entries that were selected, and those whose bytes they share.
pub struct Wanted<'a> {
    selection: &'a Selection,
    /// The first paths of selected hard links: the content is theirs.
    firsts: Lookup,
    /// How many entries were selected.
    pub selected: u64,
    /// What was asked for and has not passed yet.
    pub unseen: Unseen<'a>,
}

impl<'a> Wanted<'a> {
    /// Before any entry was seen.
    pub fn new(selection: &'a Selection) -> Self {
        let unseen = selection.unseen();
        Wanted { selection, firsts: Lookup::default(), selected: 0, unseen }
    }

    /// Looks at an entry as it passes; all of them must have passed before [`Wanted::has`] is asked.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub fn pass(&mut self, entry: &Entry) -> anyhow::Result<()> {
        if !self.selection.matches(entry) {
            return Ok(());
        }
        self.selected += 1;
        self.unseen.see(entry);
        match &entry.kind {
            Kind::Hardlink(first) if !self.selection.is_all() => self.firsts.insert(key(first), 0),
            _ => Ok(()),
        }
    }

    /// Whether the entry was selected, or a selected one is a further name of it.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn has(&self, entry: &Entry) -> anyhow::Result<bool> {
        Ok(self.selection.matches(entry) || self.firsts.get(key(&entry.path))?.is_some())
    }
}

/// A path's key for a [`Lookup`].
pub fn key(path: &RelPath) -> u128 {
    Digest::of(path.as_bytes()).key()
}

/// The objects that entries refer to.
#[derive(Default)]
pub struct Needs {
    objects: HashSet<(Option<String>, String)>,
    last: Option<(Option<String>, String)>,
    unplaced: Option<RelPath>,
}

impl Needs {
    /// Takes what an entry refers to.
    pub fn add(&mut self, entry: &Entry) {
        match &entry.at {
            Some(at) => self.add_place(at),
            None if entry.is_file() && entry.size.unwrap_or(0) > 0 => {
                self.unplaced.get_or_insert_with(|| entry.path.clone());
            }
            None => {}
        }
    }

    fn add_place(&mut self, at: &At) {
        // Neighbours mostly lie in the same object.
        let is_last = self
            .last
            .as_ref()
            .is_some_and(|(backup, object)| (backup, object) == (&at.backup, &at.object));
        if !is_last {
            let object = (at.backup.clone(), at.object.clone());
            self.objects.insert(object.clone());
            self.last = Some(object);
        }
    }

    /// Whether what an entry refers to is known at once: whether an object that is one file is among
    /// those that `objects` names, only that can tell.
    pub fn is_clear(entry: &Entry) -> bool {
        entry.at.as_ref().is_none_or(|at| at.offset.is_some())
    }

    /// Whether an entry lies in this object.
    pub fn has(&self, backup: Option<&String>, object: &str) -> bool {
        self.objects.contains(&(backup.cloned(), object.to_owned()))
    }

    /// Checks that `objects` of the manifest has all of them.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] naming an object that it does not have, or a file that has content
    /// and lies nowhere: what is not listed would be neither checked nor kept.
    pub fn check(&self, listed: &HashSet<(Option<String>, String)>) -> Result<(), FormatError> {
        if let Some(path) = &self.unplaced {
            return Err(FormatError::Malformed(format!(
                "'{path}' has content, but no place ('at')"
            )));
        }
        match self.objects.iter().filter(|object| !listed.contains(object)).min() {
            None => Ok(()),
            Some((_, object)) => Err(FormatError::Malformed(format!(
                "'{}' is missing from 'objects'",
                object.escape_debug()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry::new(RelPath::new(path).unwrap())
    }

    #[test]
    fn a_selected_hard_link_wants_its_first_path() {
        let mut link = entry("b/link");
        link.kind = Kind::Hardlink(RelPath::new("a/first").unwrap());
        let selection = Selection::new(&["b"], &[]).unwrap();
        let mut wanted = Wanted::new(&selection);
        for entry in [&entry("a/first"), &entry("a/other"), &link] {
            wanted.pass(entry).unwrap();
        }
        assert_eq!(wanted.selected, 1);
        assert!(wanted.has(&entry("a/first")).unwrap());
        assert!(!wanted.has(&entry("a/other")).unwrap());
    }

    #[test]
    fn what_is_not_listed_is_named() {
        let mut needs = Needs::default();
        let mut placed = entry("a");
        placed.at = Some(At { object: "files/1".into(), ..At::default() });
        needs.add(&placed);
        assert!(needs.check(&HashSet::new()).is_err());
        let listed = HashSet::from([(None, "files/1".to_owned())]);
        needs.check(&listed).unwrap();
        let mut unplaced = entry("b");
        unplaced.size = Some(1);
        needs.add(&unplaced);
        assert!(needs.check(&listed).unwrap_err().to_string().contains("'b'"));
    }
}
