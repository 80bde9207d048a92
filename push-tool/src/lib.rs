//! Moves objects to a destination and back, and finds the backups that are there.
//!
//! [`destination`] says what a destination promises; [`local`] is one. [`location`] reads the name
//! that a user gives, [`store`] opens what is there. [`catalog`] finds backups, [`read`] gets their content out again.

pub use bk_manifest::location;

pub mod access;
pub mod base;
pub mod borders;
pub mod bucket;
pub mod catalog;
pub mod cli;
pub mod commit;
pub mod copy;
pub mod decrypt;
pub mod describe;
pub mod destination;
pub mod dry_run;
pub mod encrypt;
pub mod fetch;
pub mod identity;
pub mod known;
pub mod links;
pub mod list;
pub mod local;
pub mod locate;
pub mod mark;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod names;
pub mod outer;
pub mod pack;
pub mod parallel;
pub mod partial;
pub mod piped;
pub mod place;
pub mod plain;
pub mod push;
pub mod rate;
pub mod read;
pub mod rsync;
pub mod s3;
pub mod secrets;
pub mod source;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
pub mod target;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod upload;
mod vanished;
pub mod volume;
pub mod walk;
