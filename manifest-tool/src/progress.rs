//! What libraries tell people: warnings, notes, and how far long work has come.

/// Where warnings, notes and progress go. Libraries get one; only `shell` knows the terminal.
pub trait Progress: Sync {
    /// Something that the user should know; it changes no exit code by itself.
    fn warn(&self, message: &str);
    /// What was done, for a user who watches.
    fn note(&self, message: &str);
    /// Long work begins: what it is, and how many bytes it will be, if known.
    fn begin(&self, what: &str, total_bytes: Option<u64>);
    /// Bytes and items that were done since the last call.
    fn advance(&self, bytes: u64, items: u64);
    /// The long work has ended.
    fn end(&self);
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn warn(&self, _: &str) {}
    fn note(&self, _: &str) {}
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64, _: u64) {}
    fn end(&self) {}
}

/// Bytes for people: three digits and a binary unit.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (bytes.saturating_mul(10) / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths < 1000 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", tenths / 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes_are_shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (150 * 1024, "150 KiB"),
            (4_523_894, "4.3 MiB"),
            (u64::MAX, "1.5 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
