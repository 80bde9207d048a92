//! The JSON form of the document: cuts it into header members, entries and trailer members.

use std::io::BufRead;

use serde_json::{Map, Value};

use crate::json::{self, Cutter};
use crate::manifest::Members;
use crate::stream::Error;

/// Longest entry that is read, in bytes: a path of 4 KiB a dozen times over.
pub(crate) const ENTRY_LIMIT: usize = 1 << 20;
/// Longest header or trailer that is read, in bytes: `objects` of a hundred thousand volumes.
pub(crate) const MEMBER_LIMIT: usize = 64 << 20;
/// What a member counts against [`MEMBER_LIMIT`] beside its value, so that their number has an end.
const MEMBER_COST: usize = 64 << 10;

/// A form of the document. The calls come in this order, `entry` until it says that there are none.
pub(crate) trait Syntax {
    /// The members before `files`.
    fn header(&mut self) -> Result<Members, Error>;
    /// Puts the next entry, as JSON, into `line`; false at the end of the entries.
    fn entry(&mut self, line: &mut Vec<u8>) -> Result<bool, Error>;
    /// What else stood in `files`, and the members behind it, up to the end of the input.
    fn trailer(&mut self) -> Result<(Map<String, Value>, Members), Error>;
}

/// The document as JSON.
pub(crate) struct JsonSyntax<R> {
    cutter: Cutter<R>,
    buffer: Vec<u8>,
    files: Map<String, Value>,
    files_limit: usize,
    entries_read: u64,
    has_entries: bool,
}

impl<R: BufRead> JsonSyntax<R> {
    pub(crate) fn new(input: R) -> Self {
        JsonSyntax {
            cutter: Cutter::new(input),
            buffer: Vec::new(),
            files: Map::new(),
            files_limit: MEMBER_LIMIT,
            entries_read: 0,
            has_entries: false,
        }
    }

    fn key(&mut self) -> Result<String, Error> {
        self.cutter.value(&mut self.buffer, ENTRY_LIMIT)?;
        let key = serde_json::from_slice(&self.buffer).map_err(|error| self.syntax(&error))?;
        self.cutter.expect(b':')?;
        Ok(key)
    }

    fn value(&mut self, limit: usize) -> Result<Value, Error> {
        self.cutter.value(&mut self.buffer, limit)?;
        json::parse(&self.buffer).map_err(|error| self.syntax(&error))
    }

    fn syntax(&self, error: &serde_json::Error) -> Error {
        Error::Malformed(format!("{error}, before byte {}", self.cutter.position()))
    }

    fn unexpected(&self) -> Error {
        Error::Malformed(format!("unexpected byte at {}", self.cutter.position()))
    }

    /// Reads members of `files` up to the entries, or to its end (true).
    fn files_members(&mut self) -> Result<bool, Error> {
        loop {
            match self.cutter.take()? {
                b'}' => return Ok(true),
                b',' => {}
                _ => return Err(self.unexpected()),
            }
            if self.files_member()? {
                return Ok(false);
            }
        }
    }

    /// Reads one member of `files`; true if it is the entries, of which only the bracket is taken.
    fn files_member(&mut self) -> Result<bool, Error> {
        let key = self.key()?;
        if key == "manifest" {
            if std::mem::replace(&mut self.has_entries, true) {
                return Err(Error::Malformed("duplicate key 'manifest'".into()));
            }
            self.cutter.expect(b'[')?;
            return Ok(true);
        }
        let value = self.value(ENTRY_LIMIT.min(self.files_limit))?;
        self.files_limit = self.files_limit.saturating_sub(self.buffer.len() + MEMBER_COST);
        json::insert::<serde_json::Error>(&mut self.files, key, value)
            .map_err(|error| Error::Malformed(error.to_string()))?;
        Ok(false)
    }
}

impl<R: BufRead> Syntax for JsonSyntax<R> {
    fn header(&mut self) -> Result<Members, Error> {
        let mut members = Members::default();
        let mut limit = MEMBER_LIMIT;
        self.cutter.expect(b'{')?;
        loop {
            let key = self.key()?;
            if key == "files" {
                break;
            }
            if members.get(&key).is_some() {
                return Err(Error::Malformed(format!("duplicate key '{}'", key.escape_debug())));
            }
            let value = self.value(limit)?;
            limit = limit.saturating_sub(self.buffer.len() + MEMBER_COST);
            members.push(key, value);
            if self.cutter.peek()? == Some(b'}') {
                return Err(Error::Malformed("'files' is missing".into()));
            }
            self.cutter.expect(b',')?;
        }
        self.cutter.expect(b'{')?;
        if self.cutter.peek()? == Some(b'}') || (!self.files_member()? && self.files_members()?) {
            return Err(Error::Malformed("'files' has no 'manifest'".into()));
        }
        Ok(members)
    }

    fn entry(&mut self, line: &mut Vec<u8>) -> Result<bool, Error> {
        if self.entries_read == 0 {
            if self.cutter.peek()? == Some(b']') {
                self.cutter.expect(b']')?;
                return Ok(false);
            }
        } else {
            match self.cutter.take()? {
                b',' => {}
                b']' => return Ok(false),
                _ => return Err(self.unexpected()),
            }
        }
        self.cutter.value(line, ENTRY_LIMIT)?;
        self.entries_read += 1;
        Ok(true)
    }

    fn trailer(&mut self) -> Result<(Map<String, Value>, Members), Error> {
        if !self.files_members()? {
            return Err(Error::Malformed("duplicate key 'manifest'".into()));
        }
        let mut members = Members::default();
        let mut limit = MEMBER_LIMIT;
        loop {
            match self.cutter.take()? {
                b'}' => break,
                b',' => {}
                _ => return Err(self.unexpected()),
            }
            let key = self.key()?;
            if members.get(&key).is_some() || key == "files" {
                return Err(Error::Malformed(format!("duplicate key '{}'", key.escape_debug())));
            }
            let value = self.value(limit)?;
            limit = limit.saturating_sub(self.buffer.len() + MEMBER_COST);
            members.push(key, value);
        }
        if self.cutter.peek()?.is_some() {
            return Err(Error::Malformed("something follows the document".into()));
        }
        Ok((std::mem::take(&mut self.files), members))
    }
}
