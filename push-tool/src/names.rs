//! Names of objects, outside of memory: a backup may have millions of plain files.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};

use anyhow::Context;
use bk_manifest::digest::Digest;
use bk_manifest::spool::ReadFrom;
use serde::ser::{Error as _, Serialize, SerializeSeq, Serializer};

/// Bytes that are held before they go to the file.
const BUFFER: usize = 1 << 16;
/// What ends a name in the file: no path holds it.
const END: u8 = 0;

/// A name's key for a [`bk_manifest::lookup::Lookup`].
pub fn key(name: &str) -> u128 {
    Digest::of(name.as_bytes()).key()
}

/// Names of objects in the order in which they came; they can be read several times.
#[derive(Debug, Default)]
pub struct Names {
    /// All but the last ones.
    file: Option<File>,
    tail: Vec<u8>,
    count: u64,
}

impl Names {
    /// Appends a name, which is a path.
    ///
    /// # Errors
    /// A full disk under the temporary files.
    pub fn add(&mut self, name: &str) -> anyhow::Result<()> {
        self.tail.extend_from_slice(name.as_bytes());
        self.tail.push(END);
        self.count += 1;
        if self.tail.len() < BUFFER {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().context("cannot create a temporary file")?),
        };
        file.write_all(&self.tail).context("cannot write a temporary file")?;
        self.tail.clear();
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them; an error is one of the temporary file.
    pub fn iter(&self) -> impl Iterator<Item = anyhow::Result<String>> + '_ {
        let file: Box<dyn Read> = match &self.file {
            Some(file) => Box::new(ReadFrom::new(file)),
            None => Box::new(std::io::empty()),
        };
        let mut names = BufReader::with_capacity(BUFFER, file.chain(&self.tail[..]));
        std::iter::from_fn(move || {
            let mut name = Vec::new();
            let read = names.read_until(END, &mut name).context("cannot read a temporary file");
            match read {
                Ok(0) => None,
                Ok(_) => {
                    name.pop();
                    Some(String::from_utf8(name).context("temporary file"))
                }
                Err(error) => Some(Err(error)),
            }
        })
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut names = serializer.serialize_seq(None)?;
        for name in self.iter() {
            names.serialize_element(&name.map_err(S::Error::custom)?)?;
        }
        names.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_in_order_and_twice() {
        let mut names = Names::default();
        assert!(names.is_empty() && names.iter().next().is_none());
        let all: Vec<String> =
            (0..5000).map(|n| format!("a\n{n}/{}", "x".repeat(n % 97))).collect();
        for (count, name) in (1..).zip(&all) {
            names.add(name).unwrap();
            assert_eq!(names.count(), count);
        }
        assert!(names.file.is_some() && !names.tail.is_empty());
        for _ in 0..2 {
            assert_eq!(names.iter().map(Result::unwrap).collect::<Vec<_>>(), all);
        }
        assert_eq!(serde_json::to_value(&names).unwrap(), serde_json::json!(all));
    }
}
