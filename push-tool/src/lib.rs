//! Moves objects to a destination and back, and finds the backups that are there.
//!
//! [`destination`] says what a destination promises; [`local`] is one. [`location`] reads the name
//! that a user gives, [`store`] opens what is there. [`catalog`] finds backups, [`read`] gets their content out again.

pub mod access;
pub mod base;
pub mod catalog;
pub mod cli;
pub mod describe;
pub mod destination;
pub mod fetch;
pub mod known;
pub mod links;
pub mod list;
pub mod local;
pub mod locate;
pub mod location;
pub mod mark;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod outer;
pub mod pack;
pub mod partial;
pub mod place;
pub mod push;
pub mod read;
pub mod source;
pub mod store;
#[cfg(test)]
mod suite;
pub mod target;
pub mod upload;
pub mod volume;
