//! The forms that a dump of PostgreSQL can have.

use std::str::FromStr;

use bk_manifest::exit::{Exit, Failure};

use crate::check::DumpKind;
use crate::compress::Compression;

/// The formats of `pg_dump`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// One file of SQL, for psql.
    Plain,
    /// One archive, for `pg_restore`.
    #[default]
    Custom,
    /// A folder with a file for each table, dumped and restored by several jobs.
    Directory,
}

impl Format {
    /// What `pg_dump`, our flags and the record call it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Plain => "plain",
            Format::Custom => "custom",
            Format::Directory => "directory",
        }
    }
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Format::Plain, Format::Custom, Format::Directory]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or("it is plain, custom or directory")
    }
}

/// A format with the compression that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The format.
    pub format: Format,
    /// The compression.
    pub compression: Compression,
}

/// The first `pg_dump` that knows Zstandard.
const ZSTD_SINCE: u32 = 16;

impl Form {
    /// Takes what was asked for; without a wish a plain dump is compressed by Zstandard, an archive
    /// so that every `pg_restore` can read it.
    ///
    /// # Errors
    /// [`Exit::Usage`] for an archive in Zstandard where `pg_dump` of this major version has none,
    /// or where a directory comes through a pipe (`is_piped`) and is compressed here.
    pub fn new(
        format: Format,
        asked: Option<Compression>,
        client: u32,
        is_piped: bool,
    ) -> anyhow::Result<Self> {
        let compression = asked.unwrap_or(match format {
            Format::Plain => Compression::Zstd,
            Format::Custom | Format::Directory => Compression::Gzip,
        });
        if compression == Compression::Zstd && format != Format::Plain {
            let refused = |message: String| {
                Failure::new(Exit::Usage, message)
                    .hint("use --compress gzip or none, or --format plain")
            };
            if client < ZSTD_SINCE {
                let message = format!("pg_dump {client} cannot compress an archive by zstd");
                return Err(refused(message).into());
            }
            if format == Format::Directory && is_piped {
                let message = "a directory that comes out of --via is not compressed by zstd";
                return Err(refused(message.into()).into());
            }
        }
        Ok(Form { format, compression })
    }

    /// How its file or folder is read again.
    pub fn kind(self) -> DumpKind {
        match (self.format, self.compression) {
            (Format::Custom, _) => DumpKind::PostgresCustom,
            (Format::Directory, _) => DumpKind::PostgresDirectory,
            (Format::Plain, Compression::None) => DumpKind::Sql,
            (Format::Plain, Compression::Gzip) => DumpKind::SqlGz,
            (Format::Plain, Compression::Zstd) => DumpKind::SqlZst,
        }
    }

    /// How the name of its file or folder ends.
    pub fn suffix(self) -> &'static str {
        match (self.format, self.compression) {
            (Format::Custom, _) => ".dump",
            (Format::Directory, _) => ".dir",
            (Format::Plain, Compression::None) => ".sql",
            (Format::Plain, Compression::Gzip) => ".sql.gz",
            (Format::Plain, Compression::Zstd) => ".sql.zst",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;

    #[test]
    fn a_form_is_told_by_the_name_that_it_gives() {
        for format in [Format::Plain, Format::Custom, Format::Directory] {
            for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                let form = Form { format, compression };
                let name = format!("app{}", form.suffix());
                assert_eq!(DumpKind::of_name(&name), Some(form.kind()), "{name}");
            }
        }
    }

    #[test]
    fn archives_in_zstd_need_a_program_that_writes_them() {
        let zstd = Some(Compression::Zstd);
        for (format, client, is_piped) in [
            (Format::Custom, 15, false),
            (Format::Directory, 15, false),
            (Format::Directory, 17, true),
        ] {
            let error = Form::new(format, zstd, client, is_piped).unwrap_err();
            assert_eq!(classify(&error), Exit::Usage);
        }
        assert!(Form::new(Format::Plain, zstd, 12, true).is_ok());
        assert!(Form::new(Format::Custom, zstd, 16, true).is_ok());
    }
}
