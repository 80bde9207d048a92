//! A map from 128-bit keys to numbers that grows beyond memory: recent keys in a table, older ones
//! in sorted temporary files behind a Bloom filter.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use anyhow::Context;

/// Keys held in memory before they go to a file; about 10 MB.
const TABLE_LIMIT: usize = 200_000;
/// Records between two samples of a file's keys.
const SAMPLE: usize = 128;
/// Bits of the filter for each key; with three hashes one lookup in thirty reads for nothing.
const FILTER_BITS: u64 = 8;
const RECORD: usize = 24;

/// Keys are remembered, not compared in full: a caller confirms what it finds.
#[derive(Default)]
pub struct Lookup {
    table: HashMap<u128, u64>,
    files: Vec<SortedFile>,
    table_limit: Option<usize>,
}

impl Lookup {
    /// Remembers a key; the newest value wins.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub fn insert(&mut self, key: u128, value: u64) -> anyhow::Result<()> {
        self.table.insert(key, value);
        if self.table.len() >= self.table_limit.unwrap_or(TABLE_LIMIT) {
            let mut records: Vec<_> = self.table.drain().collect();
            records.sort_unstable();
            self.files.push(SortedFile::write(&records)?);
        }
        Ok(())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Those of the temporary files.
    pub fn get(&self, key: u128) -> anyhow::Result<Option<u64>> {
        if let Some(value) = self.table.get(&key) {
            return Ok(Some(*value));
        }
        for file in self.files.iter().rev() {
            if let Some(value) = file.get(key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Whether no key was inserted.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty() && self.files.is_empty()
    }
}

struct SortedFile {
    file: File,
    records: usize,
    /// The first key of every [`SAMPLE`] records.
    samples: Vec<u128>,
    filter: Vec<u64>,
}

impl SortedFile {
    fn write(records: &[(u128, u64)]) -> anyhow::Result<Self> {
        let file = tempfile::tempfile().context("cannot create a temporary file")?;
        let mut output = BufWriter::new(file);
        let words = (records.len() as u64 * FILTER_BITS).div_ceil(64).max(1);
        let mut filter = vec![0; usize::try_from(words)?];
        let mut write = || -> std::io::Result<()> {
            for (key, value) in records {
                output.write_all(&key.to_be_bytes())?;
                output.write_all(&value.to_be_bytes())?;
                for (word, bit) in filter_bits(*key, words) {
                    filter[word] |= bit;
                }
            }
            output.flush()
        };
        write().context("cannot write a temporary file")?;
        let file = output.into_inner().context("cannot write a temporary file")?;
        let samples = records.iter().step_by(SAMPLE).map(|(key, _)| *key).collect();
        Ok(SortedFile { file, records: records.len(), samples, filter })
    }

    fn get(&self, key: u128) -> anyhow::Result<Option<u64>> {
        if filter_bits(key, self.filter.len() as u64)
            .any(|(word, bit)| self.filter[word] & bit == 0)
        {
            return Ok(None);
        }
        let block = self.samples.partition_point(|sample| *sample <= key);
        let Some(first) = block.checked_sub(1).map(|block| block * SAMPLE) else {
            return Ok(None);
        };
        let mut bytes = [0; SAMPLE * RECORD];
        let bytes = &mut bytes[..SAMPLE.min(self.records - first) * RECORD];
        self.file
            .read_exact_at(bytes, (first * RECORD) as u64)
            .context("cannot read a temporary file")?;
        let wanted = key.to_be_bytes();
        Ok(bytes
            .chunks_exact(RECORD)
            .find(|record| record[..16] == wanted)
            .map(|record| record[16..].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))))
    }
}

/// Three places of a key in a filter of so many words: word and bit.
fn filter_bits(key: u128, words: u64) -> impl Iterator<Item = (usize, u64)> {
    #[expect(clippy::cast_possible_truncation, reason = "halves of the key are what is wanted")]
    let (high, low) = ((key >> 64) as u64, key as u64);
    let first = mix(low);
    let second = mix(high ^ first) | 1;
    (0..3u64).map(move |number| {
        let bit = first.wrapping_add(second.wrapping_mul(number)) % (words * 64);
        // Less than the filter's length, which is one of a Vec.
        (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
    })
}

/// Spreads keys that are no digests (inodes) over all bits: the finalizer of splitmix64.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_memory_and_on_disk() {
        for limit in [1, 7, 300, 100_000] {
            let mut lookup = Lookup { table_limit: Some(limit), ..Lookup::default() };
            assert!(lookup.is_empty());
            for number in 0..2000u64 {
                lookup.insert(u128::from(number) << 70 | u128::from(number), number * 3).unwrap();
            }
            for number in 0..2000u64 {
                let key = u128::from(number) << 70 | u128::from(number);
                assert_eq!(lookup.get(key).unwrap(), Some(number * 3), "limit {limit}");
                assert_eq!(lookup.get(key + 1).unwrap(), None, "limit {limit}");
            }
        }
    }

    #[test]
    fn the_newest_value_wins() {
        let mut lookup = Lookup { table_limit: Some(1), ..Lookup::default() };
        lookup.insert(5, 1).unwrap();
        lookup.insert(5, 2).unwrap();
        assert_eq!(lookup.get(5).unwrap(), Some(2));
    }
}
