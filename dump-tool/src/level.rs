//! How closely the tables of a dumped database are looked at, for a restore to compare.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is recorded of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Its name.
    None,
    /// The number of its rows.
    Count,
    /// The number of its rows, and a sum over every column of them.
    #[default]
    Full,
}

impl FromStr for Level {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Level::None),
            "count" => Ok(Level::Count),
            "full" => Ok(Level::Full),
            _ => Err("it is none, count or full"),
        }
    }
}
