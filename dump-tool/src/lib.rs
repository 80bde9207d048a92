//! Dumps and archives: files made from something that cannot be copied as it lies there,
//! put into a stage folder for push, and brought back from what fetch wrote.
//!
//! [`filter`] is the step in the pipe that all kinds share. Each kind gives it two halves: taking
//! the point in time, and writing the files. [`check`] reads a dump to its end.

pub mod archive;
pub mod check;
pub mod cli;
pub mod compress;
pub mod filter;
pub mod level;
pub mod postgres;
pub mod restore;
pub mod schema_version;
pub mod several;
pub mod shrink;
pub mod sqlite;
pub mod stage;
pub mod unpack;
