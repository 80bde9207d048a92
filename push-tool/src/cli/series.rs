//! Which series is meant, and what of it prune has marked.

use std::collections::BTreeSet;

use bk_manifest::exit::{Exit, fail};

use crate::destination::Destination;
use crate::mark;

#[derive(Debug, clap::Args)]
pub(super) struct SeriesArgs {
    /// Name of the application
    #[arg(long, env = "BACKUP_APP")]
    app: Option<String>,
    /// Name of the series, where the application has several
    #[arg(long)]
    series: Option<String>,
}

impl SeriesArgs {
    /// The application that is named; an empty variable names none.
    pub(super) fn app(&self) -> Option<&str> {
        self.app.as_deref().filter(|app| !app.is_empty())
    }

    /// The series that was named; none if no application was.
    pub(super) fn name(&self) -> anyhow::Result<Option<String>> {
        match (self.app(), &self.series) {
            (Some(app), Some(series)) => Ok(Some(format!("{app}/{series}"))),
            (Some(app), None) => Ok(Some(app.to_owned())),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(fail(Exit::Usage, "--series needs --app")),
        }
    }
}

/// Ids of the backups that prune has marked.
pub(super) fn marked_ids(destination: &dyn Destination) -> anyhow::Result<BTreeSet<String>> {
    Ok(mark::read_all(destination)?.into_iter().flat_map(|placed| placed.mark.backups).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_names_no_application() {
        let name = |app: Option<&str>, series: Option<&str>| {
            let args =
                SeriesArgs { app: app.map(str::to_owned), series: series.map(str::to_owned) };
            args.name().ok()
        };
        assert_eq!(name(Some(""), None), Some(None));
        assert_eq!(name(Some(""), Some("s")), None);
        assert_eq!(name(Some("a"), Some("s")), Some(Some("a/s".into())));
    }
}
