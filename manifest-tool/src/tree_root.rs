//! Mode and owner of the folder that a tree was taken from. It has no path of its own, hence no
//! entry: the component's record tells them.

use std::io;
use std::os::fd::BorrowedFd;

use serde::Deserialize;
use serde_json::json;

use crate::entry_read::{octal_mode, user_and_group};
use crate::manifest::Component;
use crate::stream::Error;

const FIELD: &str = "root";

/// Mode and owner of a tree's own folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRoot {
    /// Permission bits with set-uid, set-gid and sticky.
    pub mode: u32,
    /// Numeric user and group.
    pub owner: (u32, u32),
}

impl TreeRoot {
    /// Those of an open folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of_folder(folder: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(folder)?;
        Ok(TreeRoot { mode: stat.st_mode & 0o7777, owner: (stat.st_uid, stat.st_gid) })
    }

    /// Those that a component records; `None` if it records none, as the ones of older versions.
    ///
    /// # Errors
    /// If the record is malformed.
    pub fn recorded(component: &Component) -> Result<Option<Self>, Error> {
        #[derive(Deserialize)]
        struct Record {
            mode: String,
            owner: String,
        }
        let Some(value) = component.extra.get(FIELD) else { return Ok(None) };
        let root = Record::deserialize(value).ok().and_then(|record| {
            Some(TreeRoot {
                mode: octal_mode(&record.mode)?,
                owner: user_and_group(&record.owner)?,
            })
        });
        root.map(Some).ok_or_else(|| {
            Error::Malformed(format!("'root' of the component '{}' is malformed", component.name))
        })
    }

    /// Has a component record them, unless an earlier tree already did.
    pub fn record(self, component: &mut Component) {
        let (user, group) = self.owner;
        component.extra.entry(FIELD).or_insert_with(
            || json!({"mode": format!("{:04o}", self.mode), "owner": format!("{user}:{group}")}),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(root: &serde_json::Value) -> Component {
        let text = json!({"name": "files", "kind": "tree", "status": "complete", "root": root});
        Component::deserialize(text).unwrap()
    }

    #[test]
    fn the_first_record_is_kept_and_read_back() {
        let first = TreeRoot { mode: 0o2750, owner: (1000, 33) };
        let mut files = component(&json!(null));
        files.extra.clear();
        assert_eq!(TreeRoot::recorded(&files).unwrap(), None);
        first.record(&mut files);
        TreeRoot { mode: 0o700, owner: (0, 0) }.record(&mut files);
        assert_eq!(TreeRoot::recorded(&files).unwrap(), Some(first));
    }

    #[test]
    fn a_malformed_record_is_refused() {
        for bad in [
            json!(null),
            json!("0755"),
            json!({"mode": "0755"}),
            json!({"mode": "755", "owner": "0:0"}),
            json!({"mode": "0755", "owner": "root:root"}),
            json!({"mode": "177777", "owner": "0:0"}),
            json!({"mode": "0755", "owner": "0:4294967295"}),
        ] {
            assert!(TreeRoot::recorded(&component(&bad)).is_err(), "{bad}");
        }
    }
}
