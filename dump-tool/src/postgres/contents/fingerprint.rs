//! The sum over hashes, in SQL.

use anyhow::Context;
use serde::Deserialize;

use crate::postgres::session::Session;

/// Since this version the server has `hashtextextended()`.
pub(super) const HAS_HASHES: u32 = 110_000;
/// Name of the way to sum up. One that gives another sum for the same rows must have another name.
const WAY: &str = "hashtextextended-sum-1";

/// What a query of [`query`] answers.
#[derive(Deserialize)]
struct Sum {
    count: u64,
    sum: String,
}

/// Name of the method: the way, the encoding whose bytes are hashed, and what the server makes of a
/// fixed text, for hashes need not be the same on every machine.
///
/// # Errors
/// If the session is at its end.
pub(super) fn method(session: &mut Session) -> anyhow::Result<String> {
    let made = "current_setting('server_encoding') || ' ' || to_hex(hashtextextended('bk' COLLATE \"C\", 0))";
    Ok(format!("{WAY} {}", session.value(&format!("SELECT {made}"))?))
}

/// Makes a query that sums up a hash of each `text` there is in `from`.
///
/// It is the server's own 64-bit hash, as for hash partitions: a sum is there to find what a restore
/// lost or changed, and would be no proof against a forger with SHA-256 either, which takes four
/// times as long. In one expression, without a subquery, the server can do it in parallel.
fn query(text: &str, from: &str) -> String {
    format!(
        "SELECT count(*) AS count, \
         coalesce(sum(hashtextextended(({text}) COLLATE \"C\", 0)), 0)::text AS sum FROM {from}"
    )
}

/// Runs such a query; the fingerprint is the sum modulo 2^64 as 16 hexadecimal digits. Otherwise
/// returns why the server refused.
///
/// # Errors
/// If the session is at its end.
pub(super) fn run(
    session: &mut Session,
    text: &str,
    from: &str,
) -> anyhow::Result<Result<(u64, String), String>> {
    let rows = match session.attempt(&query(text, from))? {
        Ok(rows) => rows,
        Err(why) => return Ok(Err(why)),
    };
    let row = rows.into_iter().next().context("an answer without a row")?;
    let Sum { count, sum } =
        Sum::deserialize(row).context("an unexpected answer from the server")?;
    Ok(Ok((count, digits(&sum)?)))
}

fn digits(sum: &str) -> anyhow::Result<String> {
    let sum: i128 = sum.parse().context("a sum that is no number")?;
    Ok(format!("{:016x}", sum.rem_euclid(1 << 64)))
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn sums_are_printed_modulo_two_to_the_64() {
        assert_eq!(digits("0").unwrap(), "0000000000000000");
        assert_eq!(digits("-1").unwrap(), "ffffffffffffffff");
        assert_eq!(digits("18446744073709551621").unwrap(), "0000000000000005");
        assert_eq!(digits("-92233720368547758080").unwrap(), "0000000000000000");
        assert!(digits("1.5").is_err());
    }
}
