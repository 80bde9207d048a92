//! Entries on disk instead of in memory: an unnamed temporary file of canonical lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use anyhow::Context;

use crate::entry::Entry;
use crate::manifest::{Header, Trailer};
use crate::stream::Reader;

/// Entries being put aside, one canonical line each.
///
/// The file has no name, so nothing is left whatever ends the process.
pub struct Spool {
    file: BufWriter<File>,
    length: u64,
    count: u64,
    line: Vec<u8>,
}

impl Spool {
    /// An empty one, in `TMPDIR`.
    ///
    /// # Errors
    /// If no temporary file can be made there.
    pub fn new() -> anyhow::Result<Self> {
        let file = tempfile::tempfile().context("cannot create a temporary file")?;
        let file = BufWriter::with_capacity(1 << 17, file);
        Ok(Spool { file, length: 0, count: 0, line: Vec::new() })
    }

    /// Appends an entry and returns where its line begins.
    ///
    /// # Errors
    /// A full disk.
    pub fn push(&mut self, entry: &Entry) -> anyhow::Result<u64> {
        self.line.clear();
        entry.write_canonical(&mut self.line);
        self.line.push(b'\n');
        self.file.write_all(&self.line).context("cannot write a temporary file")?;
        let start = self.length;
        self.length += self.line.len() as u64;
        self.count += 1;
        Ok(start)
    }

    /// Reads the entry whose line begins at `start`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn at(&mut self, start: u64) -> anyhow::Result<Entry> {
        self.file.flush().context("cannot write a temporary file")?;
        read_entry_at(self.file.get_ref(), start)
    }

    /// Closes it for reading.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(self) -> anyhow::Result<Entries> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error);
        let file = file.context("cannot write a temporary file")?;
        Ok(Entries { file, bytes: self.length, count: self.count })
    }
}

/// Entries that were put aside; can be read several times.
pub struct Entries {
    file: File,
    bytes: u64,
    count: u64,
}

impl Entries {
    /// Bytes of their canonical lines.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them, in the order they were put aside; an error is one of the file.
    pub fn iter(&self) -> impl Iterator<Item = anyhow::Result<Entry>> + '_ {
        self.places().map(|place| place.map(|(_, entry)| entry))
    }

    /// All of them with the place that [`Entries::at`] finds them by.
    pub fn places(&self) -> impl Iterator<Item = anyhow::Result<(u64, Entry)>> + '_ {
        let mut lines = BufReader::with_capacity(1 << 17, ReadFrom::new(&self.file));
        let (mut line, mut next) = (Vec::new(), 0);
        std::iter::from_fn(move || {
            line.clear();
            match lines.read_until(b'\n', &mut line) {
                Ok(0) => None,
                Ok(read) => {
                    let start = next;
                    next += read as u64;
                    let entry = serde_json::from_slice(&line).context("temporary file");
                    Some(entry.map(|entry| (start, entry)))
                }
                Err(error) => Some(Err(error).context("cannot read a temporary file")),
            }
        })
    }

    /// The entry whose line begins at `start`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn at(&self, start: u64) -> anyhow::Result<Entry> {
        read_entry_at(&self.file, start)
    }
}

/// A file read from a place of its own, so that several readers do not disturb each other.
pub struct ReadFrom<'a> {
    file: &'a File,
    next: u64,
}

impl<'a> ReadFrom<'a> {
    /// Reads a file from its begin.
    pub fn new(file: &'a File) -> Self {
        ReadFrom { file, next: 0 }
    }
}

impl Read for ReadFrom<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.next)?;
        self.next += read as u64;
        Ok(read)
    }
}

/// Reads the canonical line at `start` of a file that holds one entry a line.
///
/// # Errors
/// Those of the file, or a line that is no entry.
pub fn read_entry_at(file: &File, start: u64) -> anyhow::Result<Entry> {
    let mut line = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let read = file
            .read_at(&mut chunk, start + line.len() as u64)
            .context("cannot read a temporary file")?;
        let end = chunk[..read].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&chunk[..end.unwrap_or(read)]);
        if end.is_some() || read == 0 {
            return serde_json::from_slice(&line).context("temporary file");
        }
    }
}

/// A whole document, read to its end and found good, with its entries on disk.
pub struct Document {
    /// What stands before the entries.
    pub header: Header,
    /// The entries.
    pub entries: Entries,
    /// What stands behind them.
    pub trailer: Trailer,
}

impl Document {
    /// Reads a document to its end; what acts on one does so only after this.
    ///
    /// # Errors
    /// Any fault of the document, and a full disk.
    pub fn read(input: impl Read) -> anyhow::Result<Self> {
        let mut reader = Reader::new(input)?;
        let mut spool = Spool::new()?;
        while let Some(entry) = reader.next_entry()? {
            crate::signal::check()?;
            spool.push(&entry)?;
        }
        let (header, trailer) = reader.end()?;
        Ok(Document { header, entries: spool.finish()?, trailer })
    }

    /// Writes the document again, with whatever was changed in header and trailer.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write(
        &self,
        output: impl Write,
        format: crate::stream::Format,
    ) -> anyhow::Result<Trailer> {
        let mut writer = crate::stream::Writer::new(output, format, self.header.clone())?;
        for entry in self.entries.iter() {
            crate::signal::check()?;
            writer.entry(&entry?)?;
        }
        Ok(writer.end(self.trailer.clone())?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RelPath;

    #[test]
    fn entries_come_back_in_order_and_by_place() {
        let mut spool = Spool::new().unwrap();
        let entries: Vec<Entry> = (0..2000)
            .map(|n| Entry::new(RelPath::new(format!("{n:05}{}", "x".repeat(n))).unwrap()))
            .collect();
        let starts: Vec<u64> = entries.iter().map(|entry| spool.push(entry).unwrap()).collect();
        assert_eq!(spool.at(starts[1999]).unwrap(), entries[1999]);
        let spooled = spool.finish().unwrap();
        assert_eq!(spooled.at(starts[7]).unwrap(), entries[7]);
        let read: Vec<Entry> = spooled.iter().map(Result::unwrap).collect();
        assert_eq!(read, entries);
    }
}
