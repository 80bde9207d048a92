//! Servers for tests that answer by a script: what real ones seldom do, and never when it is wanted.

mod bucket;
mod http;
mod signature;

pub mod server;
