//! The base of bk: the manifest format and what every tool needs.
//!
//! A manifest is one JSON document that flows through the pipe: a header, one line for each path,
//! a trailer with the sums. [`stream`] reads and writes it, [`manifest`] and [`entry`] are its
//! parts, [`scan`] makes entries of a tree.

pub mod add;
pub mod atomic;
pub mod beneath;
pub mod check;
pub mod cli;
pub mod command;
pub mod destination_settings;
pub mod diff;
pub mod digest;
pub mod entry;
mod entry_read;
pub mod env_file;
pub mod exit;
pub mod foreign;
pub mod json;
pub mod known_settings;
pub mod left_out;
pub mod location;
pub mod lock;
pub mod lookup;
pub mod ls;
pub mod manifest;
pub mod merge;
pub mod outer;
pub mod parent;
pub mod path;
pub mod progress;
pub mod run;
pub mod scan;
pub mod schedule;
pub mod select;
pub mod setting_value;
pub mod settings;
pub mod settings_example;
pub mod sheet;
pub mod sheet_facts;
pub mod shell;
pub mod show;
pub mod shrink;
pub mod signal;
pub mod sort;
pub mod spool;
pub mod stream;
pub mod sums;
mod syntax;
pub mod time;
pub mod tree_root;
mod yaml;
