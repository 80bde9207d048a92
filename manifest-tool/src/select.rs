//! Which entries of a manifest a command is about: by path and by component.

use std::path::Path;

use anyhow::Context;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::entry::Entry;
use crate::exit::{Exit, Failure};
use crate::path::RelPath;

/// Patterns of paths and names of components; without any, everything is selected.
///
/// A pattern is compared with the whole path: `*` and `?` stay within a part, `**` does not. What
/// lies below a folder that matches is selected with it, so that `events` means `events/**` too.
#[derive(Default)]
pub struct Selection {
    paths: Option<GlobSet>,
    components: Vec<String>,
}

impl Selection {
    /// Compiles patterns.
    ///
    /// # Errors
    /// [`Exit::Usage`] naming the one that is malformed.
    pub fn new<S: AsRef<str>>(patterns: &[S], components: &[String]) -> anyhow::Result<Self> {
        let mut paths = GlobSetBuilder::new();
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let body = pattern.trim_start_matches("./").trim_end_matches('/');
            let glob = GlobBuilder::new(body).literal_separator(true).build().map_err(|error| {
                Failure::new(
                    Exit::Usage,
                    format!("malformed pattern '{pattern}': {}", error.kind()),
                )
            })?;
            paths.add(glob);
        }
        let paths = match patterns {
            [] => None,
            _ => Some(paths.build().context("cannot compile the patterns")?),
        };
        Ok(Selection { paths, components: components.to_vec() })
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
            && self.paths.as_ref().is_none_or(|paths| matches(paths, &entry.path))
    }
}

fn matches(paths: &GlobSet, path: &RelPath) -> bool {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_bytes();
    let folders = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    folders
        .chain([bytes.len()])
        .any(|end| paths.is_match(Path::new(OsStr::from_bytes(&bytes[..end]))))
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
    fn components_narrow_it_further() {
        let mut entry = Entry::new(RelPath::new("a").unwrap());
        let files = Selection::new::<&str>(&[], &["files".into()]).unwrap();
        assert!(files.matches(&entry));
        entry.component = Some("db".into());
        assert!(!files.matches(&entry));
        assert!(Selection::default().is_all() && !files.is_all());
    }
}
