//! Decides which backups may go, says why, and removes them without ever breaking one that stays.
//!
//! [`policy`] decides, as a pure function. [`survey`] is what is at the destination, [`plan`] what
//! would be done about it, [`remove`] does it: what is to go is announced by a mark, and deleted by a
//! later run once the mark has stood for the grace time. [`gate`] lets a run in a pipe act only for
//! a backup that this run has stored and proved.

pub mod cli;
mod flow;
pub mod gate;
pub mod needs;
pub mod plan;
pub mod policy;
pub mod prune;
pub mod remove;
pub mod report;
pub mod rules;
pub mod seen;
mod slots;
pub mod survey;
mod table;
pub mod undelete;

#[cfg(test)]
mod copied;
#[cfg(test)]
mod interleaved;
#[cfg(test)]
mod model;
#[cfg(test)]
mod plain;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod turns;
