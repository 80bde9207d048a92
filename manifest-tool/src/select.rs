//! Which entries of a manifest a command is about: by path and by component.

use std::path::Path;

use anyhow::Context;
use globset::{Glob, GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

use crate::entry::Entry;
use crate::exit::{Exit, Failure};
use crate::manifest::Trailer;
use crate::path::{RelPath, escape};

/// Patterns of paths and names of components; without any, everything is selected.
///
/// A pattern is compared with the whole path: `*` and `?` stay within a part, `**` does not. What
/// lies below a folder that matches is selected with it, so that `events` means `events/**` too.
#[derive(Default)]
pub struct Selection {
    paths: Option<GlobSet>,
    globs: Vec<Glob>,
    components: Vec<String>,
}

/// What was asked for and not seen yet.
pub struct Unseen<'a> {
    globs: Vec<GlobMatcher>,
    components: &'a [String],
}

impl Selection {
    /// Compiles patterns.
    ///
    /// # Errors
    /// [`Exit::Usage`] naming the one that is malformed.
    pub fn new<S: AsRef<str>>(patterns: &[S], components: &[String]) -> anyhow::Result<Self> {
        let (mut paths, mut globs) = (GlobSetBuilder::new(), Vec::new());
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let body = pattern.trim_start_matches("./").trim_end_matches('/');
            let glob = GlobBuilder::new(body).literal_separator(true).build().map_err(|error| {
                Failure::new(
                    Exit::Usage,
                    format!("malformed pattern '{pattern}': {}", error.kind()),
                )
            })?;
            paths.add(glob.clone());
            globs.push(glob);
        }
        let paths = match patterns {
            [] => None,
            _ => Some(paths.build().context("cannot compile the patterns")?),
        };
        Ok(Selection { paths, globs, components: components.to_vec() })
    }

    /// Whether nothing was asked for in particular.
    pub fn is_all(&self) -> bool {
        self.paths.is_none() && self.components.is_empty()
    }

    /// Whether a component is among what was asked for, and all of it.
    pub fn is_whole(&self, component: &str) -> bool {
        self.paths.is_none()
            && (self.components.is_empty() || self.components.iter().any(|name| name == component))
    }

    /// Whether the entry is among what was asked for.
    pub fn matches(&self, entry: &Entry) -> bool {
        let is_component = |name: &String| name == entry.component();
        (self.components.is_empty() || self.components.iter().any(is_component))
            && self
                .paths
                .as_ref()
                .is_none_or(|paths| matches(&|path| paths.is_match(path), &entry.path))
    }

    /// All that was asked for, before anything is seen.
    pub fn unseen(&self) -> Unseen<'_> {
        let globs = self.globs.iter().map(Glob::compile_matcher).collect();
        Unseen { globs, components: &self.components }
    }
}

impl Unseen<'_> {
    /// Notes an entry that is selected.
    pub fn see(&mut self, entry: &Entry) {
        self.globs.retain(|glob| !matches(&|path| glob.is_match(path), &entry.path));
    }

    /// Refuses what a backup does not have, once all of it was seen: a mistyped name must look neither
    /// restored nor proved. A component may hold nothing.
    ///
    /// # Errors
    /// [`Exit::NotFound`] naming it; a malformed trailer.
    pub fn check(&self, trailer: &Trailer) -> anyhow::Result<()> {
        let known: Vec<String> =
            trailer.components()?.into_iter().map(|component| component.name).collect();
        let hint = format!("its components: {}", known.join(", "));
        let missing = self.components.iter().find(|name| !known.contains(name));
        let message = match (missing, self.globs.first()) {
            (None, None) => return Ok(()),
            (Some(name), _) => {
                format!("the backup has no component '{}'", escape(name.as_bytes()))
            }
            (None, Some(glob)) => {
                let pattern = escape(glob.glob().glob().as_bytes());
                format!("no path of the backup matches '{pattern}'")
            }
        };
        Err(Failure::new(Exit::NotFound, message).hint(hint).into())
    }
}

fn matches(is_match: &dyn Fn(&Path) -> bool, path: &RelPath) -> bool {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_bytes();
    let folders = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    folders.chain([bytes.len()]).any(|end| is_match(Path::new(OsStr::from_bytes(&bytes[..end]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(pattern: &str, path: &[u8]) -> bool {
        let entry = Entry::new(RelPath::new(path).unwrap());
        Selection::new(&[pattern], &[]).unwrap().matches(&entry)
    }

    #[test]
    fn a_pattern_selects_paths_and_what_is_below_them() {
        for (pattern, path) in [
            ("events", "events"),
            ("events", "events/a/b"),
            ("events/", "events/a"),
            ("events/**", "events/a/b"),
            ("*.jpg", "a.jpg"),
            ("**/*.jpg", "a/b/c.jpg"),
            ("./a", "a"),
        ] {
            assert!(selects(pattern, path.as_bytes()), "{pattern} {path}");
        }
        for (pattern, path) in
            [("events", "events2"), ("*.jpg", "a/b.jpg"), ("events/*", "events"), ("b", "a/b")]
        {
            assert!(!selects(pattern, path.as_bytes()), "{pattern} {path}");
        }
        assert!(selects("a/*", b"a/\xff\n"));
        assert!(Selection::new(&["a[b"], &[]).is_err());
    }

    #[test]
    fn a_pattern_that_matched_nothing_is_known() {
        let selection = Selection::new(&["a/*", "typo/", "b"], &[]).unwrap();
        let mut unseen = selection.unseen();
        for path in ["a/x", "a/y", "b/deep/below"] {
            unseen.see(&Entry::new(RelPath::new(path.as_bytes()).unwrap()));
        }
        let trailer = Trailer::default();
        let error = unseen.check(&trailer).unwrap_err();
        assert_eq!(error.to_string(), "no path of the backup matches 'typo'");
        unseen.see(&Entry::new(RelPath::new(b"typo").unwrap()));
        unseen.check(&trailer).unwrap();
        let other = Selection::new::<&str>(&[], &["other".into()]).unwrap();
        let error = other.unseen().check(&trailer).unwrap_err();
        assert_eq!(error.to_string(), "the backup has no component 'other'");
    }

    #[test]
    fn components_narrow_it_further() {
        let mut entry = Entry::new(RelPath::new("a").unwrap());
        let files = Selection::new::<&str>(&[], &["files".into()]).unwrap();
        assert!(files.matches(&entry));
        entry.component = Some("db".into());
        assert!(!files.matches(&entry));
        assert!(Selection::default().is_all() && !files.is_all());
    }
}
