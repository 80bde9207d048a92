//! The table of settings: every name that scripts take from the environment or an env file.

use std::borrow::Cow;

/// What the names of the first destination's settings begin with.
pub const PREFIX: &str = "BACKUP_";
/// What those of the second one's begin with; the rest is as in the table.
pub const COPY_PREFIX: &str = "BACKUP_COPY_";
/// What those begin with that say how the application's own buckets are reached; likewise.
pub const BUCKET_PREFIX: &str = "BACKUP_BUCKET_";

/// What a setting's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text without control characters.
    Text,
    /// Such a text for people, that says something.
    Reason,
    /// What can be a name of an application: see [`crate::manifest::is_name`].
    Name,
    /// `true` or `false`, also `1`, `0`, `yes`, `no`, `on` and `off`.
    Boolean,
    /// A whole number, from the first to the second of these.
    Integer(u32, u32),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `hourly`, `daily`, `weekly`, `monthly`, or the five fields of cron.
    Schedule,
    /// Paths below the root, separated by `:`.
    Trees,
    /// Paths of this host, separated by `:`.
    Paths,
    /// Patterns of what to leave out, separated by `:`.
    Patterns,
    /// Names separated by blanks or commas; blanks are printed.
    Words,
    /// `compose:SERVICE/DATABASE`, `docker:CONTAINER/DATABASE` or `url:NAME`.
    Postgres,
    /// `s3://BUCKET/PREFIX` or `NAME=s3://BUCKET/PREFIX`, several separated by blanks.
    Buckets,
    /// A folder, a bucket or a host: see [`crate::location::Location`].
    Destination,
    /// A host or a user there, as ssh takes them.
    Host,
    /// `age:RECIPIENT` or `gpg:KEY`, separated by blanks.
    Recipients,
    /// Bytes a second, with K, M or G.
    Rate,
}

/// Values that a setting of another program had, and that ours cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// None.
    Nothing,
    /// These are not there yet.
    Later(&'static [&'static str]),
    /// Any at all, with what to do instead.
    Everything(&'static str),
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in the environment.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// The value that an unset or empty one stands for.
    pub default: Option<&'static str>,
    /// Whether it is masked when shown, and also read from the file that `NAME_FILE` names.
    pub is_secret: bool,
    /// What cannot be asked for.
    pub refused: Refused,
    /// What the names begin with of those that are like it: [`COPY_PREFIX`], [`BUCKET_PREFIX`].
    pub twins: &'static [&'static str],
    /// A value for the example, where there is no default.
    pub example: &'static str,
    /// What it is, in lines for the example.
    pub help: &'static str,
}

const fn setting(name: &'static str, kind: Kind, help: &'static str) -> Setting {
    Setting {
        name,
        kind,
        default: None,
        is_secret: false,
        refused: Refused::Nothing,
        twins: &[],
        example: "",
        help,
    }
}

const fn text(name: &'static str, help: &'static str) -> Setting {
    setting(name, Kind::Text, help)
}

const fn secret(name: &'static str, help: &'static str) -> Setting {
    Setting { is_secret: true, ..setting(name, Kind::Text, help) }
}

impl Setting {
    const fn default(self, value: &'static str) -> Self {
        Setting { default: Some(value), ..self }
    }

    const fn example(self, value: &'static str) -> Self {
        Setting { example: value, ..self }
    }

    const fn later(self, values: &'static [&'static str]) -> Self {
        Setting { refused: Refused::Later(values), ..self }
    }

    const fn also_for_copy(self) -> Self {
        Setting { twins: &[COPY_PREFIX], ..self }
    }

    const fn for_any_store(self) -> Self {
        Setting { twins: &[COPY_PREFIX, BUCKET_PREFIX], ..self }
    }
}

const BOOLEAN: Kind = Kind::Boolean;
const COUNT: Kind = Kind::Integer(1, MILLION);
const PORT: Kind = Kind::Integer(1, 65_535);
const MILLION: u32 = 1_000_000;

/// All settings, by headings.
pub const SETTINGS: &[(&str, &[Setting])] = &[
    (
        "What to back up",
        &[
            setting("BACKUP_APP", Kind::Name, "Name of the application, in every manifest")
                .example("picpeak"),
            text("BACKUP_APP_VERSION", "Version of the application, if known").example("2.4.0"),
            setting(
                "BACKUP_POSTGRES",
                Kind::Postgres,
                "PostgreSQL database: compose:SERVICE/DATABASE, docker:CONTAINER/DATABASE, ssh:HOST/DATABASE, or\n\
                 url:NAME, where the variable NAME (DATABASE_URL, say) holds the connection URL",
            )
            .example("compose:db/picpeak"),
            text("BACKUP_POSTGRES_FLAGS", "Flags for bk-dump postgres: format, tables to leave out, …")
                .example("--format directory --exclude-table-data public.sessions"),
            setting(
                "BACKUP_GLOBALS",
                Kind::Choice(&["true", "without-passwords", "false"]),
                "Back up the server's roles and tablespaces too; passwords of roles only a superuser can read.\n\
                 Unset means true for containers, without-passwords for others",
            )
            .example("true"),
            text("BACKUP_SQLITE", "SQLite database: its file").example("/srv/app/data/app.db"),
            text("BACKUP_SQLITE_FLAGS", "Flags for bk-dump sqlite").example("--busy-timeout 300"),
            text("BACKUP_ROOT", "Folder of the application's files").example("/srv/app/storage"),
            setting("BACKUP_TREES", Kind::Trees, "Paths below BACKUP_ROOT, separated by ':'; unset means all of it")
                .example("events:thumbnails:uploads"),
            setting(
                "BACKUP_EXCLUDE",
                Kind::Patterns,
                "What to leave out, separated by ':': NAME anywhere, or a PATH from the root; '*' and '**'",
            )
            .example("*.tmp:.DS_Store:Thumbs.db"),
            setting(
                "BACKUP_BUCKET",
                Kind::Buckets,
                "Buckets of the application's own: s3://BUCKET or s3://BUCKET/PREFIX, several separated by blanks. Each is a\n\
                 component of the bucket's name, or of another: NAME=s3://BUCKET",
            )
            .example("minio=s3://documents"),
            setting(
                "BACKUP_BUCKET_SKIP",
                Kind::Reason,
                "Why these are not backed up, as where a provider does it: nobody connects to them, each backup tells it",
            )
            .example("the provider keeps versions of it"),
            setting(
                "BACKUP_BUCKET_LAYOUT",
                Kind::Choice(&["plain", "packed"]),
                "How their objects are stored: each as one (plain), or many in one volume (packed), which takes far fewer\n\
                 requests where they are small; unset means plain",
            )
            .example("packed"),
            setting(
                "BACKUP_CONFIG_FILES",
                Kind::Paths,
                "Configuration to keep in an archive, separated by ':': env file, secrets, certificates",
            )
            .example(".env:secrets:certs"),
            setting("BACKUP_MAX_FILE_SIZE_MB", COUNT, "Leave out larger files, and record them; unset means no limit")
                .example("5000"),
            setting(
                "BACKUP_MAX_SHRINK",
                Kind::Integer(0, 100),
                "Refuse (22) a database, folder or bucket that has lost more than so many percent of its rows, files or\n\
                 bytes since the last backup; 100 lets everything pass, unset means 90",
            )
            .example("90"),
            setting("BACKUP_INCLUDE_DATABASE", BOOLEAN, "Back up the databases").default("true"),
            setting("BACKUP_INCLUDE_ARCHIVED", BOOLEAN, "Back up events/archived (PicPeak)").default("true"),
            setting("BACKUP_STOP_SERVICES", Kind::Words, "Compose services to stop during a backup and a restore")
                .example("api worker"),
            text("BACKUP_MIGRATE", "Command to run once all is restored: the application's migrations")
                .example("docker compose run --rm backend npx prisma migrate deploy"),
        ],
    ),
    (
        "When, and where to",
        &[
            setting("BACKUP_ENABLED", BOOLEAN, "Whether the script does anything; false is for pausing it")
                .default("true"),
            setting(
                "BACKUP_SCHEDULE",
                Kind::Schedule,
                "hourly, daily, weekly, monthly, or five fields of cron: for the timer or cron line that runs the\n\
                 script; bk itself has no scheduler",
            )
            .example("0 2 * * *"),
            setting(
                "BACKUP_DESTINATION_PATH",
                Kind::Destination,
                "What holds the backups: a folder, s3://BUCKET/PREFIX, USER@HOST:/PATH (rsync through ssh) or\n\
                 rsync://HOST/MODULE/PATH (an rsync daemon)",
            )
            .example("/mnt/nas/backups")
            .also_for_copy(),
            setting(
                "BACKUP_DESTINATION_TYPE",
                Kind::Choice(&["local", "rsync", "s3"]),
                "Kind of destination; unset, BACKUP_DESTINATION_PATH says it. Where that is a folder, or not set, s3 means\n\
                 s3://BACKUP_S3_BUCKET/BACKUP_S3_PREFIX, rsync BACKUP_RSYNC_USER@BACKUP_RSYNC_HOST:BACKUP_RSYNC_PATH",
            )
            .example("local")
            .also_for_copy(),
            setting("BACKUP_LIMIT_RATE", Kind::Rate, "Bytes a second to send and receive at most, with K, M or G")
                .example("10M")
                .for_any_store(),
            setting("BACKUP_INCREMENTAL", BOOLEAN, "Store only what the backup before does not hold").default("true"),
            setting("BACKUP_MANIFEST_FORMAT", Kind::Choice(&["json", "yaml"]), "Form of the stored manifest")
                .default("json"),
            setting("BACKUP_COMPRESSION", BOOLEAN, "Compress what is stored").default("true").later(&["false"]),
            text("BK_STAGE", "Folder for dumps until they are stored, or restored; unset means one in the state folder, or,\nfor a restore, one beside BACKUP_ROOT")
                .example("/var/tmp/bk"),
        ],
    ),
    (
        "How long to keep backups; without any of these none is removed",
        &[
            setting("BACKUP_RETENTION_DAYS", COUNT, "All of this many days").example("30").also_for_copy(),
            setting("BACKUP_RETENTION_DAILY", COUNT, "The newest of each day, for this many days").example("7").also_for_copy(),
            setting("BACKUP_RETENTION_WEEKLY", COUNT, "The newest of each week, for this many weeks").example("4").also_for_copy(),
            setting("BACKUP_KEEP_LAST", COUNT, "This many, the newest").example("3").also_for_copy(),
            setting("BACKUP_KEEP_MONTHLY", COUNT, "The newest of each month, for this many months").example("12").also_for_copy(),
            setting("BACKUP_KEEP_YEARLY", COUNT, "The newest of each year, for this many years").example("5").also_for_copy(),
        ],
    ),
    (
        "Databases and Docker Compose",
        &[
            secret("DATABASE_URL", "Connection URL, for BACKUP_POSTGRES=url:DATABASE_URL")
                .example("postgresql://app:password@localhost/app"),
            text("PGHOST", "Server, as libpq reads it, like all that begin with PG"),
            text("PGHOSTADDR", "Its address"),
            setting("PGPORT", COUNT, "Its port").example("5432"),
            text("PGUSER", "User"),
            secret("PGPASSWORD", "Password"),
            text("PGPASSFILE", "File with passwords"),
            text("PGDATABASE", "Database"),
            text("PGSERVICE", "Service"),
            text("PGSERVICEFILE", "File with services"),
            text("PGOPTIONS", "Options for the server"),
            text("PGSSLMODE", "Whether and how TLS is used"),
            text("PGSSLROOTCERT", "Certificates to trust"),
            text("PGSSLCERT", "Certificate of the client"),
            text("PGSSLKEY", "Its key"),
            text("PGCHANNELBINDING", "Whether channel binding is used"),
            text("PGREQUIREAUTH", "Methods of authentication to accept"),
            text("PGGSSENCMODE", "Whether GSS encryption is used"),
            text("PGTARGETSESSIONATTRS", "Kind of server to look for among several"),
            setting("PGCONNECT_TIMEOUT", Kind::Integer(0, MILLION), "Seconds to wait for a connection").example("10"),
            text("COMPOSE_FILE", "Compose file of the application").example("/srv/app/docker-compose.yml"),
            text("COMPOSE_PROJECT_NAME", "Compose project of the application").example("app"),
        ],
    ),
    (
        "Encryption, by age or gpg; the private key need not be on this host",
        &[
            setting(
                "BACKUP_ENCRYPT",
                Kind::Recipients,
                "Whom to encrypt for: age:RECIPIENT or gpg:KEY, several separated by blanks",
            )
            .example("age:age1…"),
            text("BACKUP_ENCRYPT_RECIPIENTS_FILE", "File with age's recipients, one a line; also SSH keys")
                .example("/etc/bk/recipients.txt"),
            text(
                "BACKUP_IDENTITY_FILE",
                "File with age's private key, to restore with; a backup does not need it. gpg has a keyring",
            )
            .example("/root/bk-identity.txt"),
            setting(
                "BACKUP_PLAINTEXT_SECRETS",
                BOOLEAN,
                "Let configuration and roles leave this host although they are not encrypted",
            )
            .default("false")
            .also_for_copy(),
            setting(
                "BACKUP_ENCRYPTION_ENABLED",
                BOOLEAN,
                "Whether to encrypt (PicPeak): true is an error where nothing says for whom, false where something does",
            )
            .example("true"),
            Setting {
                refused: Refused::Everything(
                    "a run at night cannot type a passphrase: make a key with age-keygen and name its recipient in \
                     BACKUP_ENCRYPT",
                ),
                ..secret("BACKUP_ENCRYPTION_PASSPHRASE", "Passphrase (PicPeak): an error, for age takes one from a terminal alone")
            },
        ],
    ),
    (
        "Mail: not yet supported, an error when asked for",
        &[
            setting("BACKUP_EMAIL_ON_SUCCESS", BOOLEAN, "Tell of every backup").default("false").later(&["true"]),
            setting("BACKUP_EMAIL_ON_FAILURE", BOOLEAN, "Tell of failures").default("false").later(&["true"]),
            text("BACKUP_EMAIL_TO", "Whom to tell").example("admin@example.org"),
            text("SMTP_HOST", "Mail server").example("mail.example.org"),
            setting("SMTP_PORT", PORT, "Its port").example("587"),
            text("SMTP_USER", "User there"),
            secret("SMTP_PASSWORD", "Password there"),
            text("SMTP_FROM", "Sender").example("backup@example.org"),
        ],
    ),
    (
        "S3: any store that speaks it",
        &[
            text("BACKUP_S3_BUCKET", "Bucket, for BACKUP_DESTINATION_TYPE=s3").example("my-backups").also_for_copy(),
            text("BACKUP_S3_PREFIX", "What stands before every key there; unset means backups")
                .example("backups")
                .also_for_copy(),
            text("BACKUP_S3_ENDPOINT", "Endpoint; unset means that of AWS")
                .example("https://s3.example.org")
                .for_any_store(),
            text("BACKUP_S3_REGION", "Region; unset means us-east-1").example("us-east-1").for_any_store(),
            secret("BACKUP_S3_ACCESS_KEY", "Name of the key").for_any_store(),
            secret("BACKUP_S3_SECRET_KEY", "The key").for_any_store(),
            setting(
                "BACKUP_S3_FORCE_PATH_STYLE",
                BOOLEAN,
                "Put the bucket into the path, not the host name; unset means true where an endpoint is given",
            )
            .example("true")
            .for_any_store(),
            setting("BACKUP_S3_SSL_ENABLED", BOOLEAN, "Use TLS; unset means true, and an endpoint with http:// needs false")
                .example("true")
                .for_any_store(),
            text("BACKUP_S3_CA_FILE", "File with the certificates to trust, for a store with its own")
                .example("/etc/ssl/my-ca.pem")
                .for_any_store(),
            setting("BACKUP_S3_MAX_RETRIES", Kind::Integer(0, MILLION), "How often a request is tried again; unset means 3")
                .example("3")
                .for_any_store(),
            setting("BACKUP_S3_RETRY_DELAY", COUNT, "Milliseconds before the first of these, doubled each time; unset means 1000")
                .example("1000")
                .for_any_store(),
            setting(
                "BACKUP_S3_ENABLED",
                BOOLEAN,
                "Copy each backup to backups/ in S3_BUCKET (GeoLens), as BACKUP_COPY_DESTINATION_PATH would",
            )
            .default("false"),
            text("S3_ENDPOINT", "Endpoint (GeoLens)"),
            text("S3_BUCKET", "Bucket (GeoLens)"),
            text("S3_REGION", "Region (GeoLens)"),
            setting("S3_ADDRESSING_STYLE", Kind::Choice(&["auto", "path", "virtual"]), "Where the bucket stands (GeoLens)"),
            secret("S3_ACCESS_KEY_ID", "Name of the key (GeoLens)"),
            secret("S3_SECRET_ACCESS_KEY", "The key (GeoLens)"),
            secret("AWS_ACCESS_KEY_ID", "Name of the key, as the AWS tools read it"),
            secret("AWS_SECRET_ACCESS_KEY", "The key, as the AWS tools read it"),
            secret("AWS_SESSION_TOKEN", "Token of temporary keys, as the AWS tools read it"),
            text("AWS_ENDPOINT_URL_S3", "Endpoint, as the AWS tools read it"),
            text("AWS_ENDPOINT_URL", "Endpoint, as the AWS tools read it"),
            text("AWS_REGION", "Region, as the AWS tools read it"),
            text("AWS_DEFAULT_REGION", "Region, as the AWS tools read it"),
            text("AWS_CA_BUNDLE", "File with the certificates to trust, as the AWS tools read it"),
        ],
    ),
    (
        "rsync, through ssh or to a daemon",
        &[
            setting("BACKUP_RSYNC_HOST", Kind::Host, "Server, for BACKUP_DESTINATION_TYPE=rsync")
                .example("nas.example.org")
                .also_for_copy(),
            setting("BACKUP_RSYNC_USER", Kind::Host, "User there; unset leaves it to ssh").example("backup").also_for_copy(),
            text("BACKUP_RSYNC_PATH", "Folder there").example("/volume1/backups").also_for_copy(),
            setting("BACKUP_RSYNC_PORT", PORT, "Its SSH port").example("22").also_for_copy(),
            text("BACKUP_RSYNC_SSH_KEY", "File of the SSH key").example("/root/.ssh/id_ed25519").also_for_copy(),
            text("BACKUP_SSH_KNOWN_HOSTS", "File of the host keys to trust; unset means that of ssh")
                .example("/etc/bk/known_hosts")
                .also_for_copy(),
            setting(
                "BACKUP_RSYNC_HOST_KEYS",
                Kind::Choice(&["check", "accept-new", "no"]),
                "Host keys: check (what unset means) takes known ones alone, accept-new learns those of new hosts, no\n\
                 takes any, so that whoever is in between can read and write",
            )
            .example("check")
            .also_for_copy(),
            secret("BACKUP_RSYNC_PASSWORD", "Password of an rsync daemon").also_for_copy(),
        ],
    ),
];

/// The setting of that name; for one of the second destination or of a bucket, the one that it is like.
pub fn find(name: &str) -> Option<&'static Setting> {
    let named = |name: &str| table().find(|setting| setting.name == name);
    let like = |prefix: &&'static str| {
        let rest = name.strip_prefix(*prefix)?;
        named(&format!("{PREFIX}{rest}")).filter(|setting| setting.twins.contains(prefix))
    };
    named(name).or_else(|| PREFIXES.iter().find_map(like))
}

/// The names of all settings: those of the table in its order, then those that are like some of them.
pub fn all() -> impl Iterator<Item = (Cow<'static, str>, &'static Setting)> {
    let named = |setting: &'static Setting| (Cow::Borrowed(setting.name), setting);
    let twins = PREFIXES.iter().flat_map(|prefix| twins(prefix));
    table().map(named).chain(twins.map(|(name, setting)| (name.into(), setting)))
}

/// The settings whose names begin with this prefix, and the one that each is like.
pub fn twins(prefix: &'static str) -> impl Iterator<Item = (String, &'static Setting)> {
    table()
        .filter(move |setting| setting.twins.contains(&prefix))
        .map(move |setting| (setting.name.replacen(PREFIX, prefix, 1), setting))
}

const PREFIXES: [&str; 2] = [COPY_PREFIX, BUCKET_PREFIX];

fn table() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().flat_map(|(_, settings)| settings.iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_help_is_one_kind_of_text() {
        let mut names: Vec<_> = all().map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for (_, setting) in all() {
            assert!(!setting.help.ends_with('.') && !setting.help.is_empty(), "{}", setting.name);
            assert!(setting.help.lines().all(|line| line.len() <= 110), "{}", setting.name);
            assert!(!setting.name.ends_with("_FILE") || !setting.is_secret);
            assert!(
                setting.twins.is_empty() || setting.name.starts_with(PREFIX),
                "{}",
                setting.name
            );
        }
    }

    #[test]
    fn the_second_destination_has_settings_of_its_own_and_no_others() {
        for name in
            ["DESTINATION_PATH", "KEEP_LAST", "RETENTION_DAYS", "S3_SECRET_KEY", "RSYNC_PORT"]
        {
            let like = find(&format!("BACKUP_COPY_{name}")).unwrap();
            assert_eq!(like.name, format!("BACKUP_{name}"));
        }
        for name in
            ["BACKUP_COPY_APP", "BACKUP_COPY_ENCRYPT", "BACKUP_COPY_COPY_KEEP_LAST", "BACKUP_COPY_"]
        {
            assert!(find(name).is_none(), "{name}");
        }
    }

    #[test]
    fn buckets_have_what_reaches_a_store_and_no_destination() {
        for name in ["S3_ENDPOINT", "S3_SECRET_KEY", "S3_CA_FILE", "S3_SSL_ENABLED", "LIMIT_RATE"] {
            let like = find(&format!("BACKUP_BUCKET_{name}")).unwrap();
            assert_eq!(like.name, format!("BACKUP_{name}"));
        }
        for name in ["DESTINATION_PATH", "S3_BUCKET", "S3_PREFIX", "KEEP_LAST", "RSYNC_HOST"] {
            assert!(find(&format!("BACKUP_BUCKET_{name}")).is_none(), "{name}");
        }
    }

    #[test]
    fn every_name_that_the_design_lists_is_there() {
        for name in [
            "BACKUP_ENABLED",
            "BACKUP_SCHEDULE",
            "BACKUP_DESTINATION_TYPE",
            "BACKUP_DESTINATION_PATH",
            "BACKUP_MANIFEST_FORMAT",
            "BACKUP_RETENTION_DAYS",
            "BACKUP_RETENTION_DAILY",
            "BACKUP_RETENTION_WEEKLY",
            "BACKUP_INCREMENTAL",
            "BACKUP_INCLUDE_ARCHIVED",
            "BACKUP_INCLUDE_DATABASE",
            "BACKUP_MAX_FILE_SIZE_MB",
            "BACKUP_EMAIL_ON_SUCCESS",
            "BACKUP_EMAIL_ON_FAILURE",
            "BACKUP_S3_ENABLED",
            "BACKUP_APP",
            "BACKUP_POSTGRES",
            "BACKUP_SQLITE",
            "BACKUP_ROOT",
            "BACKUP_TREES",
            "BACKUP_CONFIG_FILES",
            "BACKUP_STOP_SERVICES",
            "BACKUP_EMAIL_TO",
            "COMPOSE_FILE",
            "COMPOSE_PROJECT_NAME",
        ] {
            assert!(find(name).is_some(), "{name}");
        }
    }
}
