//! The two checksums of a manifest; README has their recipes in shell.

use std::collections::VecDeque;
use std::sync::mpsc;

use serde_json::{Map, Value, json};

use crate::digest::{Digest, Hasher};
use crate::json;
use crate::manifest::{Header, Totals, Trailer};

/// Entries in a block of the files checksum.
pub const BLOCK_ENTRIES: usize = 1024;

/// `files.checksum`: what `split -l 1024 --filter=sha256sum` prints for the entries, hashed.
///
/// Blocks are hashed on other threads while the next one is filled.
#[derive(Default)]
pub struct FilesSum {
    block: Vec<u8>,
    /// What of the block did not fit into its buffer.
    begun: Hasher,
    entries: usize,
    pending: VecDeque<mpsc::Receiver<Digest>>,
    sum: Hasher,
}

/// Blocks under way at once: enough for all cores, bounded in memory.
const PENDING_LIMIT: usize = 16;
/// Bytes of a block that are held; an ordinary one is far smaller, however many entries there are.
const BLOCK_BYTES: usize = 2 << 20;

impl FilesSum {
    /// Takes the next entry's canonical line, without its newline.
    pub fn add(&mut self, line: &[u8]) {
        self.block.extend_from_slice(line);
        self.block.push(b'\n');
        self.entries += 1;
        if self.entries == BLOCK_ENTRIES {
            self.close_block();
        } else if self.block.len() >= BLOCK_BYTES {
            self.begun.update(&self.block);
            self.block.clear();
        }
    }

    fn close_block(&mut self) {
        let capacity = self.block.len();
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(capacity));
        let mut hasher = std::mem::take(&mut self.begun);
        self.entries = 0;
        let (sender, receiver) = mpsc::sync_channel(1);
        rayon::spawn(move || {
            hasher.update(&block);
            // A receiver that is gone belongs to a document that was given up.
            let _ = sender.send(hasher.finish().0);
        });
        self.pending.push_back(receiver);
        if self.pending.len() > PENDING_LIMIT {
            self.take_one();
        }
    }

    fn take_one(&mut self) {
        if let Some(digest) = self.pending.pop_front().and_then(|receiver| receiver.recv().ok()) {
            self.sum.update(digest.hex().as_bytes());
            self.sum.update(b"  -\n");
        }
    }

    /// The checksum of all entries.
    pub fn finish(mut self) -> Digest {
        if self.entries > 0 {
            self.close_block();
        }
        while !self.pending.is_empty() {
            self.take_one();
        }
        self.sum.finish().0
    }
}

/// `files` without its entries, as a value.
pub(crate) fn totals_value(totals: &Totals) -> Map<String, Value> {
    let mut files = totals.extra.clone();
    files.insert("count".into(), json!(totals.count));
    files.insert("size".into(), json!(totals.size));
    if let Some(checksum) = totals.checksum {
        let written = files.get("checksum").and_then(Value::as_str);
        if written.and_then(|text| text.parse::<Digest>().ok()) != Some(checksum) {
            files.insert("checksum".into(), json!(checksum));
        }
    }
    files
}

/// `verification.total_checksum`: header, totals and trailer without `run` and `verification`.
pub fn total_checksum(header: &Header, trailer: &Trailer) -> Digest {
    let mut document: Map<String, Value> = header
        .0
        .iter()
        .chain(trailer.members.iter())
        .filter(|(name, _)| !matches!(*name, "run" | "verification"))
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect();
    document.insert("files".into(), Value::Object(totals_value(&trailer.totals)));
    let mut line = json::canonical(&Value::Object(document));
    line.push(b'\n');
    Digest::of(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_entries_hash_like_no_output() {
        assert_eq!(FilesSum::default().finish(), Digest::of(b""));
    }

    #[test]
    fn blocks_are_hashed_as_split_and_sha256sum_do() {
        let mut sum = FilesSum::default();
        let mut blocks = [Vec::new(), Vec::new()];
        for number in 0..1025 {
            let line = format!("{{\"path\":\"{number}\"}}");
            sum.add(line.as_bytes());
            blocks[number / 1024].extend_from_slice(line.as_bytes());
            blocks[number / 1024].push(b'\n');
        }
        let printed: Vec<String> =
            blocks.iter().map(|block| format!("{}  -\n", Digest::of(block).hex())).collect();
        assert_eq!(sum.finish(), Digest::of(printed.concat().as_bytes()));
    }

    #[test]
    fn long_lines_are_hashed_as_they_come() {
        let line = vec![b'x'; 1 << 20];
        let (mut sum, mut block) = (FilesSum::default(), Hasher::default());
        for _ in 0..20 {
            sum.add(&line);
            assert!(sum.block.len() <= BLOCK_BYTES + line.len(), "{} bytes", sum.block.len());
            block.update(&line);
            block.update(b"\n");
        }
        let printed = format!("{}  -\n", block.finish().0.hex());
        assert_eq!(sum.finish(), Digest::of(printed.as_bytes()));
    }
}
