//! The arguments that say which PostgreSQL server and database are meant.

use bk_manifest::exit::{Exit, Failure, fail};

use crate::postgres::connection::Request;
use crate::postgres::reach::Via;
use crate::postgres::url;

/// The variable of a connection URL, where no other is named.
const DEFAULT_URL_VARIABLE: &str = "DATABASE_URL";

#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "help texts: backticks would be printed")]
pub(super) struct ConnectionArgs {
    /// Run the PostgreSQL programs elsewhere: docker:CONTAINER, compose:SERVICE or ssh:HOST
    #[arg(long, value_name = "PLACE", hide_possible_values = true)]
    pub(super) via: Option<String>,
    /// Take the connection URL from this environment variable [default: DATABASE_URL, if set]
    ///
    /// Without a URL the variables of libpq hold: PGHOST, PGPORT, PGUSER, PGPASSWORD, PGPASSFILE…
    /// With --via only a variable that is named here is read.
    #[arg(long, value_name = "NAME")]
    pub(super) url_env: Option<String>,
    /// Role to connect as
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Database
    #[arg(long, value_name = "NAME")]
    pub(super) database: Vec<String>,
    /// Caught, so that a password in it is not repeated by the message about an unknown argument.
    #[arg(hide = true, value_name = "URL", value_parser = clap::builder::OsStringValueParser::new())]
    pub(super) stray: Vec<std::ffi::OsString>,
}

/// Where the programs run.
pub(super) fn via(text: Option<&str>) -> anyhow::Result<Via> {
    match text {
        None => Ok(Via::Host),
        Some(text) => {
            text.parse().map_err(|why: &str| fail(Exit::Usage, format!("malformed --via: {why}")))
        }
    }
}

/// Takes the connection from arguments and environment; flags come before variables.
///
/// # Errors
/// [`Exit::Usage`] for a connection string among the arguments, or more than one database.
pub(super) fn request(args: &ConnectionArgs) -> anyhow::Result<Request> {
    let request = server_request(args)?;
    if args.database.len() > 1 {
        return Err(fail(Exit::Usage, "only one --database can be named here"));
    }
    Ok(request)
}

/// The same, with the first of the databases that were named.
///
/// # Errors
/// [`Exit::Usage`] for a connection string among the arguments, or an empty name.
pub(super) fn server_request(args: &ConnectionArgs) -> anyhow::Result<Request> {
    let typed = [&args.via, &args.url_env, &args.user].into_iter().flatten();
    let is_exposed = typed.chain(&args.database).map(String::as_str).any(url::is_connection_string);
    if is_exposed || !args.stray.is_empty() {
        // What it was is not repeated: it may hold a password.
        return Err(Failure::new(
            Exit::Usage,
            "an argument that belongs to no option, or a connection string among the arguments",
        )
        .hint("arguments are seen by every user of this machine: put the URL into a variable")
        .hint("and name that: --url-env NAME; the database goes into --database NAME")
        .into());
    }
    // libpq takes an empty name for none, and would connect to another database without a word.
    let databases = args.database.iter().map(|name| ("--database", name));
    let named = databases.chain(args.user.iter().map(|name| ("--user", name)));
    if let Some((flag, _)) = named.into_iter().find(|(_, name)| name.is_empty()) {
        return Err(Failure::new(Exit::Usage, format!("the name behind {flag} is empty"))
            .hint("a variable that is not set?")
            .into());
    }
    let variable = |name: &str| std::env::var(name).ok();
    let url = match &args.url_env {
        Some(name) => Some(url::url_of(name, variable(name))?),
        None if args.via.is_some() => None,
        None => variable(DEFAULT_URL_VARIABLE).filter(|url| !url.trim().is_empty()),
    };
    Ok(Request {
        via: via(args.via.as_deref())?,
        url,
        user: args.user.clone(),
        database: args.database.first().cloned(),
        default_database: variable("PGDATABASE").filter(|name| !name.is_empty()),
        default_password: variable("PGPASSWORD").filter(|password| !password.is_empty()),
    })
}
