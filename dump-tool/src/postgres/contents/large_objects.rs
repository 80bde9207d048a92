//! Large objects: how many, and the sum over their contents.

use anyhow::Context;

use super::fingerprint;
use super::record::LargeObjects;
use crate::level::Level;
use crate::postgres::session::Session;

/// Bytes of an object that are hashed at once: an object may be larger than any value.
const CHUNK: usize = 1 << 20;

/// Counts them and sums them up, where the role may read them.
///
/// # Errors
/// What the server said; the session is at its end then.
pub(super) fn take(session: &mut Session, level: Level) -> anyhow::Result<LargeObjects> {
    let count = session.value("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata")?;
    let count = count.parse().context("a count that is no number")?;
    let mut objects = LargeObjects { count, ..LargeObjects::default() };
    if level == Level::Full && count > 0 {
        match fingerprint::run(session, &chunk(), &chunks())? {
            Ok((_, fingerprint)) => objects.fingerprint = Some(fingerprint),
            Err(why) => objects.unread = Some(why),
        }
    }
    Ok(objects)
}

/// Each chunk's hash with its object's number and its place; holes read as zeros, however the object
/// is stored.
fn chunk() -> String {
    format!(
        "o.oid || ' ' || n || ' ' || encode(sha256(lo_get(o.oid, n * {CHUNK}, {CHUNK})), 'hex')"
    )
}

/// All chunks that there are.
fn chunks() -> String {
    // Opened for reading (INV_READ), the end looked for (SEEK_END), closed: each step once an object.
    format!(
        "(SELECT oid, lo_lseek64(fd, 0, 2) AS size, lo_close(fd) AS closed FROM \
             (SELECT oid, lo_open(oid, 262144) AS fd FROM pg_largeobject_metadata OFFSET 0) AS opened \
             OFFSET 0) AS o, \
         LATERAL generate_series(0, greatest(o.size - 1, 0) / {CHUNK}) AS n"
    )
}
