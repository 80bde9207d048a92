//! The pipe that a staged dump belongs to, and whether it still runs.

use std::fs;

use serde::{Deserialize, Serialize};

/// Who made a staged dump: enough to find out whether its pipe still runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The process group, which all steps of a pipe have in common.
    group: i32,
    /// The start of the system that the group belongs to.
    pub(super) boot: String,
    /// The namespace that its number belongs to; containers have their own.
    namespace: String,
    /// The machine.
    host: String,
}

/// What is known about the pipe that made a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It has ended.
    Dead,
    /// It runs, or its number was given to another, or it cannot be seen from here.
    Perhaps,
}

impl Owner {
    /// The pipe that this process belongs to.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Owner {
            group: own_group(),
            boot: read("/proc/sys/kernel/random/boot_id"),
            namespace: fs::read_link("/proc/self/ns/pid")
                .map(|link| link.to_string_lossy().into_owned())
                .unwrap_or_default(),
            host: bk_manifest::cli::host_name(),
        }
    }

    /// What can be told of it by a process of `here`.
    pub(super) fn life(&self, here: &Owner) -> Life {
        if self.host != here.host || self.boot.is_empty() {
            return Life::Perhaps;
        }
        if self.boot != here.boot {
            return Life::Dead;
        }
        if self.namespace != here.namespace {
            return Life::Perhaps;
        }
        let group = rustix::process::Pid::from_raw(self.group);
        match group.map(rustix::process::test_kill_process_group) {
            Some(Err(rustix::io::Errno::SRCH)) => Life::Dead,
            _ => Life::Perhaps,
        }
    }
}

/// The number of our process group; 0 if it began outside of our namespace, where it has none.
fn own_group() -> i32 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program stands in brackets, and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(2).and_then(|group| group.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_group_is_what_the_system_says() {
        assert_eq!(own_group(), rustix::process::getpgrp().as_raw_nonzero().get());
    }
}
