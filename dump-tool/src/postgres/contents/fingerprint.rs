//! The sum over hashes, in SQL.

use anyhow::Context;
use serde::Deserialize;

use crate::postgres::session::Session;

/// Bytes of a hash in each of the two sums.
const HALF: usize = 8;

/// What a query of [`query`] answers.
#[derive(Deserialize)]
struct Sums {
    count: u64,
    one: String,
    two: String,
}

/// Makes a query of one that gives a hash (`bytea`) a row, as column `h`.
///
/// Two 64-bit integers of each hash are summed up without overflow. Taking the bytes one by one is
/// a fifth cheaper than going through hexadecimal digits.
pub(super) fn query(hashes: &str) -> String {
    let sum = |from: usize| {
        let bytes: Vec<String> = (0..HALF)
            .map(|byte| {
                format!("(get_byte(h, {})::int8 << {})", from + byte, 8 * (HALF - 1 - byte))
            })
            .collect();
        format!("coalesce(sum({}), 0)::text", bytes.join(" | "))
    };
    // The offset keeps the planner from computing the hash once for every byte.
    format!(
        "SELECT count(*) AS count, {} AS one, {} AS two FROM ({hashes} OFFSET 0) AS hashes",
        sum(0),
        sum(HALF)
    )
}

/// Runs such a query; the fingerprint is each sum modulo 2^64 as 16 hexadecimal digits. Otherwise
/// returns why the server refused.
///
/// # Errors
/// If the session is at its end.
pub(super) fn run(
    session: &mut Session,
    hashes: &str,
) -> anyhow::Result<Result<(u64, String), String>> {
    let rows = match session.attempt(&query(hashes))? {
        Ok(rows) => rows,
        Err(why) => return Ok(Err(why)),
    };
    let row = rows.into_iter().next().context("an answer without a row")?;
    let sums = Sums::deserialize(row).context("an unexpected answer from the server")?;
    Ok(Ok((sums.count, format!("{}{}", digits(&sums.one)?, digits(&sums.two)?))))
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
