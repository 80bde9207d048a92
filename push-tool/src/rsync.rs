//! Destinations that rsync reaches: a host by ssh, or a daemon.
//!
//! A host that gives us a shell is a `far::Far`: rsync carries large objects, the shell does what rsync
//! cannot. Where there is none, as with `rrsync` or a daemon, `alone::Alone` does with rsync what it can.

mod alone;
mod far;
mod fault;
mod link;
mod listing;
mod private;
mod scripts;
#[cfg(any(test, feature = "testing"))]
pub mod servers;
mod settings;
mod stage;
#[cfg(test)]
mod tests;
mod transfer;
mod turns;

use std::sync::Arc;

use alone::Alone;
use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::path::RelPath;
use far::Far;
use link::Link;
use settings::Settings;
use transfer::{Rsync, Way};

use crate::access::Access;
use crate::destination::Destination;

/// The destination in a folder of a host that ssh reaches.
///
/// # Errors
/// [`Exit::NoDestination`] if the host does not answer or cannot be used, [`Exit::Denied`] if it does
/// not let us in or its key is not the known one, [`Exit::Usage`] for malformed variables.
pub fn ssh(
    user: Option<&str>,
    host: &str,
    path: &str,
    access: &Access,
) -> anyhow::Result<Box<dyn Destination>> {
    by_ssh(user, host, path, &Settings::read(access)?)
}

fn by_ssh(
    user: Option<&str>,
    host: &str,
    path: &str,
    settings: &Settings,
) -> anyhow::Result<Box<dyn Destination>> {
    let link = Arc::new(Link::open(user, host, settings)?);
    let place = link.at(path);
    let alone = |root: &str| {
        let target = link.at(root);
        let way = Way::Ssh(Arc::clone(&link));
        anyhow::Ok(Alone::new(Rsync::new(way, &target, "", root, place.clone(), settings)?))
    };
    match far::probe(&link).map_err(fault::Fault::into_error)? {
        Some(offer) => {
            let root = absolute(path, offer.home.as_deref()).ok_or_else(|| {
                let message = format!("'{place}' begins at a home that is missing or closed there");
                Failure::new(Exit::NoDestination, message).hint("name the folder from '/' on")
            })?;
            Ok(Box::new(Far::new(Arc::clone(&link), root.clone(), offer, alone(&root)?)))
        }
        None if path.starts_with('/') => Ok(Box::new(alone(path)?)),
        None => {
            let message =
                format!("'{place}' gives no shell, and its folder does not begin with '/'");
            Err(Failure::new(Exit::Usage, message)
                .hint(
                    "behind 'rrsync -no-lock FOLDER' it is '/', the folder that the account is bound to",
                )
                .into())
        }
    }
}

/// The destination in a module of an rsync daemon.
///
/// # Errors
/// [`Exit::Usage`] for malformed variables; what the daemon has against us is said when it is used.
pub fn daemon(
    user: Option<&str>,
    host: &str,
    path: &str,
    access: &Access,
) -> anyhow::Result<Box<dyn Destination>> {
    by_daemon(user, host, path, Settings::read(access)?)
}

fn by_daemon(
    user: Option<&str>,
    host: &str,
    path: &str,
    mut settings: Settings,
) -> anyhow::Result<Box<dyn Destination>> {
    let (module, below) = path.split_once('/').unwrap_or((path, ""));
    if !below.is_empty() {
        RelPath::new(below).map_err(|error| fail(Exit::Usage, format!("{error} in a module")))?;
    }
    let host = user.map_or(host.to_owned(), |user| format!("{user}@{host}"));
    let place = format!("rsync://{host}/{path}");
    // All names begin at the module: rsync 3.5's daemon finds none that begins at a folder in it, and
    // takes a folder that begins with '-' for an option.
    let target = format!("rsync://{host}/{module}");
    let (prefix, root) = match below {
        "" => (String::new(), String::new()),
        below => (format!("{below}/"), format!("/{below}")),
    };
    let password = settings.password.take();
    let way = Way::Daemon { password, patience: settings.patience };
    let rsync = Rsync::new(way, &target, &prefix, &root, place, &settings)?;
    Ok(Box::new(Alone::new(rsync)))
}

/// A folder there, from the login's home where it does not begin with a slash.
fn absolute(path: &str, home: Option<&str>) -> Option<String> {
    let path = path.strip_prefix("~/").unwrap_or(path);
    if path.starts_with('/') {
        return Some(path.to_owned());
    }
    let home = home?.trim_end_matches('/');
    Some(if path == "~" { home.to_owned() } else { format!("{home}/{path}") })
}
