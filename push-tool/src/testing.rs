//! Servers for tests that answer by a script: what real ones seldom do, and never when it is wanted.

mod bucket;
mod http;
mod signature;

pub mod server;

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
