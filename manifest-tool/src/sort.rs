//! Sorting more records than memory should hold, through temporary files.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};

use anyhow::Context;

/// Sorts records (bytes, in byte order) within a memory budget.
pub struct Sorter {
    budget: usize,
    bytes: Vec<u8>,
    records: Vec<(usize, usize)>,
    runs: Vec<File>,
}

/// What a record costs beside its bytes.
const RECORD_COST: usize = size_of::<(usize, usize)>();
/// Buffer of each run while merging, in bytes.
const RUN_BUFFER: usize = 32 << 10;

impl Sorter {
    /// Sorts in about `budget` bytes of memory.
    pub fn new(budget: usize) -> Self {
        Sorter { budget, bytes: Vec::new(), records: Vec::new(), runs: Vec::new() }
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.runs.is_empty()
    }

    /// Takes a record.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub fn push(&mut self, record: &[u8]) -> anyhow::Result<()> {
        let used = self.bytes.len() + self.records.len() * RECORD_COST;
        if used + record.len() + RECORD_COST > self.budget && !self.records.is_empty() {
            self.spill()?;
        }
        self.records.push((self.bytes.len(), record.len()));
        self.bytes.extend_from_slice(record);
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.records.sort_by(|a, b| bytes[a.0..a.0 + a.1].cmp(&bytes[b.0..b.0 + b.1]));
    }

    fn spill(&mut self) -> anyhow::Result<()> {
        self.sort();
        let file = tempfile::tempfile().context("cannot create a temporary file")?;
        let mut run = BufWriter::with_capacity(1 << 17, file);
        let mut write = || -> std::io::Result<()> {
            for (start, length) in &self.records {
                run.write_all(&u32::try_from(*length).unwrap_or(u32::MAX).to_le_bytes())?;
                run.write_all(&self.bytes[*start..start + length])?;
            }
            run.flush()
        };
        write().context("cannot write a temporary file")?;
        let mut file = run.into_inner().context("cannot write a temporary file")?;
        file.rewind().context("cannot read a temporary file")?;
        self.runs.push(file);
        self.bytes.clear();
        self.records.clear();
        Ok(())
    }

    /// All records in order.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub fn finish(mut self) -> anyhow::Result<Sorted> {
        if self.runs.is_empty() {
            self.sort();
            return Ok(Sorted::Memory { bytes: self.bytes, records: self.records.into_iter() });
        }
        self.spill()?;
        self.bytes = Vec::new();
        let mut runs: Vec<_> =
            self.runs.into_iter().map(|file| BufReader::with_capacity(RUN_BUFFER, file)).collect();
        let mut heads = BinaryHeap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            if let Some(record) = read_record(run)? {
                heads.push(Reverse((record, number)));
            }
        }
        Ok(Sorted::Merge { runs, heads })
    }
}

fn read_record(run: &mut impl Read) -> anyhow::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match run.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result.context("cannot read a temporary file")?,
    }
    let mut record = vec![0; usize::try_from(u32::from_le_bytes(length))?];
    run.read_exact(&mut record).context("cannot read a temporary file")?;
    Ok(Some(record))
}

/// Sorted records.
pub enum Sorted {
    /// They fitted into the budget.
    Memory {
        /// The records' bytes, one behind the other.
        bytes: Vec<u8>,
        /// Start and length of each, in order.
        records: std::vec::IntoIter<(usize, usize)>,
    },
    /// They are merged from temporary files.
    Merge {
        /// The sorted files.
        runs: Vec<BufReader<File>>,
        /// The next record of each.
        heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
    },
}

impl Iterator for Sorted {
    type Item = anyhow::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Sorted::Memory { bytes, records } => {
                let (start, length) = records.next()?;
                Some(Ok(bytes[start..start + length].to_vec()))
            }
            Sorted::Merge { runs, heads } => {
                let Reverse((record, number)) = heads.pop()?;
                match read_record(&mut runs[number]) {
                    Ok(Some(next)) => heads.push(Reverse((next, number))),
                    Ok(None) => {}
                    Err(error) => return Some(Err(error)),
                }
                Some(Ok(record))
            }
        }
    }
}

/// A record that is sorted by `key`, which holds no two zero bytes in a row and does not end with
/// one: as [`crate::path::RelPath::sort_key`]. The key's length leads back.
pub fn pair(key: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut record = key.to_vec();
    record.extend_from_slice(&[0, 0]);
    record.extend_from_slice(rest);
    record.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes());
    record
}

/// Key and rest of a [`pair`].
pub fn unpair(record: &[u8]) -> (&[u8], &[u8]) {
    let (body, length) = record.split_at(record.len().saturating_sub(4));
    let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)).min(body.len());
    (&body[..length], body.get(length + 2..).unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_depend_on_the_budget() {
        let mut state = 1u32;
        let records: Vec<Vec<u8>> = (0..5000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let length = (state >> 20) as usize % 40;
                (0..length).map(|i| (state >> (i % 24)).to_le_bytes()[0]).collect()
            })
            .collect();
        let mut expected = records.clone();
        expected.sort();
        for budget in [0, 100, 5000, 1 << 20] {
            let mut sorter = Sorter::new(budget);
            for record in &records {
                sorter.push(record).unwrap();
            }
            let found: Vec<_> = sorter.finish().unwrap().map(Result::unwrap).collect();
            assert_eq!(found, expected, "budget {budget}");
        }
        assert_eq!(Sorter::new(0).finish().unwrap().count(), 0);
    }
}
