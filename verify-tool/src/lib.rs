//! Proves that a backup at a destination, or a local copy, is what its manifest says.
//!
//! [`verify`] passes the manifest on and puts the checks in order: [`locate`] finds the backup,
//! [`check`] looks at its objects, [`content`] decodes every file, [`dumps`] reads dumps to their
//! end, [`loss`] names what damage costs. [`against`] compares with a folder instead. What is found
//! is a [`problem`]; [`report`] tells it to people and machines.

pub mod against;
pub mod check;
pub mod cli;
pub mod compare;
pub mod content;
mod dump_folders;
pub mod dumps;
pub mod junit;
pub mod level;
pub mod locate;
pub mod loss;
pub mod plain;
pub mod problem;
pub mod report;
mod room;
#[cfg(test)]
mod sample;
pub mod strangers;
pub mod verify;
pub mod wanted;
