//! Reads and writes the document entry by entry, so that the next step works while this one is
//! still walking, and memory does not grow with the number of files.

use std::io::{self, BufRead, Read, Write};

use serde_json::{Value, json};

use crate::digest::Digest;
use crate::entry::{Entry, Kind};
use crate::exit::Exit;
use crate::json::{self, CutError};
use crate::manifest::{HEADER_ORDER, Header, Members, TRAILER_ORDER, Totals, Trailer, VERSION};
use crate::path::RelPath;
use crate::sums::{self, FilesSum};
use crate::syntax::{JsonSyntax, Syntax};
use crate::yaml::{self, YamlSyntax};

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It ends before its end: its writer failed or was stopped.
    #[error("the manifest is cut short (the step that writes it failed?)")]
    Truncated,
    /// It is not what the format says; the text says where.
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// A sum or a count does not fit: it was changed after it was written.
    #[error("the manifest was altered: {0} does not fit its content")]
    Altered(&'static str),
    /// A newer major version.
    #[error("the manifest has version '{0}', newer than this program can read")]
    TooNew(String),
    /// The input could not be read.
    #[error("cannot read the manifest")]
    Io(#[source] io::Error),
}

impl Error {
    /// The exit code that it stands for.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Io(_) => Exit::Failed,
            _ => Exit::Malformed,
        }
    }
}

impl From<CutError> for Error {
    fn from(error: CutError) -> Self {
        match error {
            CutError::Truncated(_) => Error::Truncated,
            CutError::Io(error) => Error::Io(error),
            other => Error::Malformed(other.to_string()),
        }
    }
}

/// The two forms of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON document, one entry a line.
    #[default]
    Json,
    /// Block style for people, one entry a line.
    Yaml,
}

/// Reads a document: the header at once, then entry by entry, then the trailer.
///
/// Nothing that was read may be acted on before [`Reader::end`] has returned: only then is it known
/// that the document is whole.
pub struct Reader<'a> {
    syntax: Box<dyn Syntax + 'a>,
    header: Header,
    line: Vec<u8>,
    sum: FilesSum,
    last: Option<RelPath>,
    is_last_folder: bool,
    count: u64,
    size: u64,
    has_ended: bool,
}

impl<'a> Reader<'a> {
    /// Reads the header. The form is told by the first byte.
    ///
    /// # Errors
    /// [`Error`], also if the input ends within the header.
    pub fn new(input: impl Read + 'a) -> Result<Self, Error> {
        let mut input = io::BufReader::with_capacity(1 << 17, input);
        let mut syntax: Box<dyn Syntax + 'a> = match first_byte(&mut input).map_err(Error::Io)? {
            None => return Err(Error::Truncated),
            Some(b'{') => Box::new(JsonSyntax::new(input)),
            Some(_) => Box::new(YamlSyntax::new(input)),
        };
        let header = Header(syntax.header()?);
        check_version(&header)?;
        header.0.check_order(&HEADER_ORDER, &TRAILER_ORDER)?;
        Ok(Reader {
            syntax,
            header,
            line: Vec::new(),
            sum: FilesSum::default(),
            last: None,
            is_last_folder: false,
            count: 0,
            size: 0,
            has_ended: false,
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next entry; `None` behind the last.
    ///
    /// # Errors
    /// [`Error`], also for a path that does not come after the one before it.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.has_ended || !self.syntax.entry(&mut self.line)? {
            self.has_ended = true;
            return Ok(None);
        }
        let malformed = |error: serde_json::Error| {
            Error::Malformed(format!("{error}, in entry {}", self.count + 1))
        };
        let entry: Entry = serde_json::from_slice(&self.line).map_err(malformed)?;
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(Error::Malformed(format!(
                "'{}' stands twice or out of order, in entry {}",
                entry.path,
                self.count + 1
            )));
        }
        // What is below a path follows it at once.
        if self.last.as_ref().is_some_and(|last| entry.path.below(last).is_some())
            && !self.is_last_folder
        {
            return Err(Error::Malformed(format!(
                "'{}' lies below what is no folder, in entry {}",
                entry.path,
                self.count + 1
            )));
        }
        self.is_last_folder = entry.kind == Kind::Directory;
        self.count += 1;
        self.size = self.size.saturating_add(entry.size.unwrap_or(0));
        self.line.clear();
        entry.write_canonical(&mut self.line);
        self.sum.add(&self.line);
        self.last = Some(entry.path.clone());
        Ok(Some(entry))
    }

    /// The canonical line of the entry that was read last.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Reads what is left up to the end of the input and compares the sums.
    ///
    /// # Errors
    /// [`Error`]; after it nothing of the document may be used.
    pub fn end(mut self) -> Result<(Header, Trailer), Error> {
        while self.next_entry()?.is_some() {}
        let (files, members) = self.syntax.trailer()?;
        members.check_order(&TRAILER_ORDER, &HEADER_ORDER)?;
        if let Some((name, _)) = members.iter().find(|(name, _)| self.header.0.get(name).is_some())
        {
            return Err(Error::Malformed(format!("duplicate key '{}'", name.escape_debug())));
        }
        let totals = read_totals(files)?;
        if totals.count != self.count {
            return Err(Error::Altered("'files.count'"));
        }
        if totals.size != self.size {
            return Err(Error::Altered("'files.size'"));
        }
        if totals.checksum != Some(self.sum.finish()) {
            return Err(Error::Altered("'files.checksum'"));
        }
        let trailer = Trailer { totals, members };
        check_total(&self.header, &trailer)?;
        Ok((self.header, trailer))
    }
}

/// The first byte that is no white space; it and the rest stay unread.
fn first_byte(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let buffer = input.fill_buf()?;
        let blank = buffer.iter().take_while(|byte| json::is_blank(**byte)).count();
        let (found, is_empty) = (buffer.get(blank).copied(), buffer.is_empty());
        input.consume(blank);
        if found.is_some() || is_empty {
            return Ok(found);
        }
    }
}

/// Refuses a document of a newer major version, and one without any.
pub(crate) fn check_version(header: &Header) -> Result<(), Error> {
    let Some(Value::String(version)) = header.0.get("version") else {
        return Err(Error::Malformed("'version' is missing: is this a manifest of bk?".into()));
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let major = |text: &str| {
        let first = text.split('.').next().filter(|_| text.split('.').all(is_number))?;
        first.parse::<u32>().ok()
    };
    match (major(version), major(VERSION)) {
        (Some(theirs), Some(ours)) if theirs > ours => Err(Error::TooNew(version.clone())),
        (Some(theirs), Some(ours)) if theirs == ours => Ok(()),
        _ => Err(Error::Malformed(format!("'version' cannot be '{}'", version.escape_debug()))),
    }
}

/// Reads count, size and checksum out of what stood in `files` beside the entries.
pub(crate) fn read_totals(mut files: serde_json::Map<String, Value>) -> Result<Totals, Error> {
    let mut number = |key: &'static str| match files.remove(key) {
        Some(Value::Number(number)) => number.as_u64(),
        _ => None,
    };
    let missing = |key: &str| Error::Malformed(format!("'files.{key}' is missing or no number"));
    let count = number("count").ok_or_else(|| missing("count"))?;
    let size = number("size").ok_or_else(|| missing("size"))?;
    let written = files.remove("checksum");
    let checksum: Digest = written
        .as_ref()
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::Malformed("'files.checksum' is missing or no digest".into()))?;
    if let Some(written) = written
        && written != json!(checksum)
    {
        // Without its prefix: kept as it stands, so that the total stays the same.
        files.insert("checksum".into(), written);
    }
    Ok(Totals { count, size, checksum: Some(checksum), extra: files })
}

/// Reads a document whose entries were cut out of its middle: header and trailer are checked
/// against `total_checksum`, which covers the entries through `files.checksum`.
///
/// # Errors
/// [`Error`], also if there are entries after all.
pub(crate) fn read_outer(bytes: &[u8]) -> Result<(Header, Trailer), Error> {
    let mut reader = Reader::new(bytes)?;
    if reader.syntax.entry(&mut reader.line)? {
        return Err(Error::Malformed("an entry where none was due".into()));
    }
    let (files, members) = reader.syntax.trailer()?;
    let trailer = Trailer { totals: read_totals(files)?, members };
    check_total(&reader.header, &trailer)?;
    Ok((reader.header, trailer))
}

/// Compares `verification.total_checksum` with the content.
pub(crate) fn check_total(header: &Header, trailer: &Trailer) -> Result<(), Error> {
    match trailer.total_checksum() {
        None => Err(Error::Malformed("'verification.total_checksum' is missing".into())),
        Some(total) if total != sums::total_checksum(header, trailer) => {
            Err(Error::Altered("'verification.total_checksum'"))
        }
        Some(_) => Ok(()),
    }
}

/// Writes a document: header, entries, trailer.
///
/// One that is dropped before [`Writer::end`] leaves a document that every reader refuses, which is
/// how a step tells the next one that it failed.
pub struct Writer<W> {
    output: W,
    format: Format,
    header: Header,
    line: Vec<u8>,
    sum: FilesSum,
    last: Option<RelPath>,
    count: u64,
    size: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header and flushes it, so that the next step can begin.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(mut output: W, format: Format, header: Header) -> io::Result<Self> {
        match format {
            Format::Json => {
                output.write_all(b"{")?;
                for (name, value) in header.0.iter() {
                    writeln!(output, "{}:{value},", Value::from(name))?;
                }
                output.write_all(b"\"files\":{\"manifest\":[")?;
            }
            Format::Yaml => yaml::write_header(&mut output, &header.0)?,
        }
        output.flush()?;
        Ok(Writer {
            output,
            format,
            header,
            line: Vec::new(),
            sum: FilesSum::default(),
            last: None,
            count: 0,
            size: 0,
        })
    }

    /// Writes an entry; it must come after all before it.
    ///
    /// # Errors
    /// Those of the output; [`io::ErrorKind::InvalidInput`] for a path that is out of order.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("'{}' stands twice or out of order", entry.path),
            ));
        }
        let size = self.size.saturating_add(entry.size.unwrap_or(0));
        if size > json::INTEGER_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "'{}' makes it more than 2^53 bytes, which no manifest can hold",
                    entry.path
                ),
            ));
        }
        self.last = Some(entry.path.clone());
        self.line.clear();
        entry.write_canonical(&mut self.line);
        self.sum.add(&self.line);
        match self.format {
            Format::Json => {
                self.output.write_all(if self.count == 0 { b"\n" } else { b",\n" })?;
                self.output.write_all(&self.line)?;
            }
            Format::Yaml => yaml::write_entry(&mut self.output, &self.line)?,
        }
        self.count += 1;
        self.size = size;
        Ok(())
    }

    /// Writes the trailer with the sums, and flushes. Returns it as it was written.
    ///
    /// Counts and sums in `trailer` are replaced by those of what was written.
    ///
    /// # Errors
    /// Those of the output.
    pub fn end(mut self, mut trailer: Trailer) -> io::Result<(W, Trailer)> {
        trailer.totals.count = self.count;
        trailer.totals.size = self.size;
        trailer.totals.checksum = Some(self.sum.finish());
        let total = sums::total_checksum(&self.header, &trailer);
        let mut verification = match trailer.members.get("verification") {
            Some(Value::Object(map)) => map.clone(),
            _ => serde_json::Map::new(),
        };
        verification.insert("total_checksum".into(), total.to_string().into());
        trailer.set("verification", Value::Object(verification));
        let files = sums::totals_value(&trailer.totals);
        match self.format {
            Format::Json => {
                self.output.write_all(b"\n]")?;
                for (name, value) in files {
                    write!(self.output, ",{}:{value}", Value::from(name))?;
                }
                self.output.write_all(b"}")?;
                write_members(&mut self.output, &trailer.members)?;
                self.output.write_all(b"}\n")?;
            }
            Format::Yaml => yaml::write_trailer(&mut self.output, &files, &trailer.members)?,
        }
        self.output.flush()?;
        Ok((self.output, trailer))
    }
}

/// Writes trailer members, one a line, and lists one element a line.
fn write_members(output: &mut impl Write, members: &Members) -> io::Result<()> {
    for (name, value) in members.iter() {
        write!(output, ",\n{}:", Value::from(name))?;
        match value {
            Value::Array(list) if !list.is_empty() => {
                let mut separator = "[";
                for element in list {
                    write!(output, "{separator}\n{element}")?;
                    separator = ",";
                }
                output.write_all(b"]")?;
            }
            other => output.write_all(&json::canonical(other))?,
        }
    }
    Ok(())
}

/// Passes the rest of the entries on unchanged.
///
/// # Errors
/// Those of either side.
pub fn copy_entries(
    reader: &mut Reader<'_>,
    writer: &mut Writer<impl Write>,
) -> anyhow::Result<()> {
    while let Some(entry) = reader.next_entry()? {
        crate::signal::check()?;
        writer.entry(&entry)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Application, Backup, Run};

    pub(crate) fn document(format: Format, entries: usize) -> Vec<u8> {
        let backup = Backup {
            id: "backup-20260428-022150-a1b2c3d4".into(),
            timestamp: "2026-04-28T02:21:50.000Z".into(),
            ..Backup::default()
        };
        let application = Application { name: "app".into(), version: None };
        let header = Header::new(&application, Some(&backup), &Run::default());
        let mut writer = Writer::new(Vec::new(), format, header).unwrap();
        for number in 0..entries {
            let mut entry = Entry::new(RelPath::new(format!("file {number:06}\n")).unwrap());
            entry.size = Some(number as u64);
            writer.entry(&entry).unwrap();
        }
        let mut trailer = Trailer::default();
        trailer.set(
            "components",
            serde_json::json!([{"name":"files","kind":"tree","status":"complete"}]),
        );
        writer.end(trailer).unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<(Header, Trailer), Error> {
        Reader::new(bytes)?.end()
    }

    #[test]
    fn what_is_written_is_read_in_both_forms() {
        for format in [Format::Json, Format::Yaml] {
            for entries in [0, 1, 2, 1024, 1025, 3000] {
                let bytes = document(format, entries);
                let (_, trailer) = read(&bytes).unwrap();
                assert_eq!(trailer.totals.count, entries as u64);
            }
        }
    }

    #[test]
    fn both_forms_have_the_same_sums() {
        let json = read(&document(Format::Json, 10)).unwrap();
        let yaml = read(&document(Format::Yaml, 10)).unwrap();
        assert_eq!(json, yaml);
    }

    #[test]
    fn a_document_cut_at_any_byte_is_refused() {
        for format in [Format::Json, Format::Yaml] {
            let bytes = document(format, 3);
            for cut in 0..bytes.len() - 1 {
                let error = read(&bytes[..cut]).unwrap_err();
                assert_eq!(error.exit(), Exit::Malformed, "{format:?} cut at {cut}: {error}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_refused_or_means_the_same() {
        for format in [Format::Json, Format::Yaml] {
            let bytes = document(format, 3);
            let whole = read(&bytes).unwrap();
            for position in 0..bytes.len() {
                for bit in 0..8 {
                    let mut flipped = bytes.clone();
                    flipped[position] ^= 1 << bit;
                    if let Ok(read) = read(&flipped) {
                        assert_eq!(
                            read.0.stored(),
                            whole.0.stored(),
                            "{format:?} byte {position} bit {bit}"
                        );
                        assert_eq!(
                            read.1.stored(),
                            whole.1.stored(),
                            "{format:?} byte {position} bit {bit}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn entries_that_are_swapped_doubled_or_dropped_are_refused() {
        let text = String::from_utf8(document(Format::Json, 3)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.iter().position(|line| line.starts_with("{\"path_b64\"")).unwrap();
        let mut swapped = lines.clone();
        swapped.swap(first, first + 1);
        let mut doubled = lines.clone();
        doubled.insert(first, lines[first]);
        let mut dropped = lines.clone();
        dropped.remove(first);
        for bad in [swapped, doubled, dropped] {
            assert_eq!(read(bad.join("\n").as_bytes()).unwrap_err().exit(), Exit::Malformed);
        }
    }

    #[test]
    fn spacing_and_key_order_inside_a_member_do_not_matter() {
        let text = String::from_utf8(document(Format::Json, 2)).unwrap();
        let count = text.find(",\"count\":2").unwrap();
        let reordered = format!(
            "{}{}",
            text[..count].replacen("{\"manifest\":[", "{ \"count\" : 2 ,\n\"manifest\" :\t[ ", 1),
            text[count + ",\"count\":2".len()..].replace("],", " ] ,"),
        );
        let checksum = text.find(",\"checksum\":").unwrap();
        assert!(checksum > 0);
        assert_eq!(read(reordered.as_bytes()).unwrap(), read(text.as_bytes()).unwrap());
    }

    #[test]
    fn a_newer_major_version_is_refused_by_name() {
        let text = String::from_utf8(document(Format::Json, 0)).unwrap();
        let newer = text.replacen("\"2.0\"", "\"3.0\"", 1);
        assert!(matches!(read(newer.as_bytes()), Err(Error::TooNew(_))));
        let minor = text.replacen("\"2.0\"", "\"2.9\"", 1);
        assert!(matches!(read(minor.as_bytes()), Err(Error::Altered(_))));
    }

    #[test]
    fn a_writer_refuses_what_a_reader_would() {
        let mut writer = Writer::new(Vec::new(), Format::Json, Header::default()).unwrap();
        writer.entry(&Entry::new(RelPath::new("b").unwrap())).unwrap();
        assert!(writer.entry(&Entry::new(RelPath::new("a").unwrap())).is_err());
        assert!(writer.entry(&Entry::new(RelPath::new("b").unwrap())).is_err());
        let mut huge = Entry::new(RelPath::new("c").unwrap());
        huge.size = Some(json::INTEGER_LIMIT + 1);
        assert!(writer.entry(&huge).is_err());
    }
}
