//! Moves objects to a destination and back, and finds the backups that are there.
//!
//! [`destination`] says what a destination promises; [`local`] is one. [`store`] opens one by the
//! name a user gives. [`catalog`] finds backups, [`read`] gets their content out again.

pub mod catalog;
pub mod destination;
pub mod local;
pub mod mark;
pub mod outer;
pub mod partial;
pub mod place;
pub mod read;
pub mod store;
