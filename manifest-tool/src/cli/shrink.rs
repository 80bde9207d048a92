//! The option that says how much less a source may hold than at the last backup.

use crate::shrink::MaxShrink;

/// How much less than the parent is too little.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ShrinkArgs {
    /// Refuse (22) what has lost more than so much of its rows, files or bytes since the parent
    ///
    /// In percent; 100 lets everything pass. An empty new server, a mistyped prefix or a folder that is not mounted is
    /// told so; bk-push so refuses a backup that lacks a whole component.
    #[arg(
        long,
        value_name = "PERCENT",
        default_value = "90",
        env = "BACKUP_MAX_SHRINK",
        value_parser = clap::value_parser!(u8).range(..=100)
    )]
    max_shrink: u8,
}

impl ShrinkArgs {
    /// The limit that was asked for.
    pub fn limit(self) -> MaxShrink {
        MaxShrink(self.max_shrink)
    }
}
