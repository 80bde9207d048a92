//! The YAML form of the document: block style for people, each entry one JSON flow line.
//!
//! What we write is read line by line, so that it streams; YAML from elsewhere is size-capped and
//! loaded whole.

use std::io::{self, BufRead, Read, Write};

use serde_json::{Map, Value};

use crate::json;
use crate::manifest::Members;
use crate::stream::Error;
use crate::syntax::{ENTRY_LIMIT, MEMBER_LIMIT, Syntax};

const ENTRIES: &[u8] = b"  manifest:";
const ENTRY: &[u8] = b"  - ";

/// The document as YAML.
pub(crate) struct YamlSyntax<R> {
    input: R,
    /// A line that was read to see what it is, and is still due.
    ahead: Option<Vec<u8>>,
    state: State,
}

enum State {
    /// In our own form: the entries are still in the input; holds the line that follows them.
    Streamed(Vec<u8>),
    /// From elsewhere: loaded whole.
    Loaded { entries: std::vec::IntoIter<Value>, files: Map<String, Value>, trailer: Members },
}

impl<R: BufRead> YamlSyntax<R> {
    pub(crate) fn new(input: R) -> Self {
        YamlSyntax { input, ahead: None, state: State::Streamed(Vec::new()) }
    }

    /// Reads a line with its newline; false at the end of the input.
    fn line(&mut self, line: &mut Vec<u8>) -> Result<bool, Error> {
        line.clear();
        if let Some(ahead) = self.ahead.take() {
            *line = ahead;
            return Ok(true);
        }
        let limit = ENTRY_LIMIT as u64;
        let read = self.input.by_ref().take(limit).read_until(b'\n', line).map_err(Error::Io)?;
        if read as u64 == limit {
            return Err(Error::Malformed("a line is too long".into()));
        }
        Ok(read > 0)
    }

    fn load(&mut self, head: Vec<u8>) -> Result<Members, Error> {
        let mut text = head;
        let limit = MEMBER_LIMIT as u64;
        self.input.by_ref().take(limit).read_to_end(&mut text).map_err(Error::Io)?;
        if text.len() >= MEMBER_LIMIT {
            return Err(Error::Malformed("YAML that bk did not write is read up to 64 MiB".into()));
        }
        let (mut header, mut trailer) = (Members::default(), Members::default());
        let mut files = None;
        for (name, value) in parse(&text)? {
            match (name.as_str(), &mut files) {
                ("files", None) => files = Some(value),
                (_, None) => header.push(name, value),
                (_, Some(_)) => trailer.push(name, value),
            }
        }
        let Some(Value::Object(mut files)) = files else {
            return Err(Error::Truncated);
        };
        let entries = match files.remove("manifest") {
            Some(Value::Array(entries)) => entries,
            // Our own form without entries, as another program wrote it again.
            Some(Value::Null) => Vec::new(),
            _ => return Err(Error::Malformed("'files' has no 'manifest'".into())),
        };
        self.state = State::Loaded { entries: entries.into_iter(), files, trailer };
        Ok(header)
    }
}

/// Whether the line below `manifest:` is one that we write: an entry, or the member that follows.
fn is_ours(line: &[u8]) -> bool {
    line.starts_with(b"  - {\"")
        || line
            .strip_prefix(b"  ")
            .is_some_and(|rest| !matches!(rest.first(), None | Some(b' ' | b'-')))
}

/// Refuses what JSON has no word for, and would be given another.
fn check_plain(value: &serde_yaml::Value) -> Result<(), Error> {
    use serde_yaml::Value as Yaml;
    match value {
        Yaml::Number(number) if number.is_f64() => {
            Err(Error::Malformed(format!("number {number} is not an integer")))
        }
        Yaml::Tagged(tagged) => Err(Error::Malformed(format!("tag '{}'", tagged.tag))),
        Yaml::Sequence(values) => values.iter().try_for_each(check_plain),
        Yaml::Mapping(mapping) => mapping.iter().try_for_each(|(key, value)| {
            if !key.is_string() {
                return Err(Error::Malformed("a key is no string".into()));
            }
            check_plain(value)
        }),
        _ => Ok(()),
    }
}

/// Parses a YAML mapping into strict JSON members, in order.
fn parse(text: &[u8]) -> Result<Vec<(String, Value)>, Error> {
    let malformed = |error: &dyn std::fmt::Display| Error::Malformed(error.to_string());
    let mapping: serde_yaml::Mapping =
        serde_yaml::from_slice(text).map_err(|error| malformed(&error))?;
    mapping
        .into_iter()
        .map(|(key, value)| {
            let serde_yaml::Value::String(key) = key else {
                return Err(Error::Malformed("a top-level key is no string".into()));
            };
            check_plain(&value)?;
            // Through JSON text, so that the same rules for numbers hold in both forms.
            let text = serde_json::to_vec(&value).map_err(|error| malformed(&error))?;
            Ok((key, json::parse(&text).map_err(|error| malformed(&error))?))
        })
        .collect()
}

impl<R: BufRead> Syntax for YamlSyntax<R> {
    fn header(&mut self) -> Result<Members, Error> {
        let (mut head, mut line) = (Vec::new(), Vec::new());
        while self.line(&mut line)? {
            if line.trim_ascii_end() == ENTRIES && head.ends_with(b"\nfiles:\n") {
                let mut first = Vec::new();
                if !self.line(&mut first)? {
                    return Err(Error::Truncated);
                }
                if !is_ours(&first) {
                    head.extend_from_slice(&line);
                    head.extend_from_slice(&first);
                    return self.load(head);
                }
                self.ahead = Some(first);
                head.truncate(head.len() - b"files:\n".len());
                let mut header = Members::default();
                for (name, value) in parse(&head)? {
                    header.push(name, value);
                }
                return Ok(header);
            }
            head.extend_from_slice(&line);
            if head.len() > MEMBER_LIMIT {
                return Err(Error::Malformed("the header is too long".into()));
            }
            if line.starts_with(b"files:") && line != b"files:\n" {
                break;
            }
        }
        self.load(head)
    }

    fn entry(&mut self, line: &mut Vec<u8>) -> Result<bool, Error> {
        match &mut self.state {
            State::Loaded { entries, .. } => match entries.next() {
                None => Ok(false),
                Some(entry) => {
                    *line = json::canonical(&entry);
                    Ok(true)
                }
            },
            State::Streamed(_) => {
                if !self.line(line)? {
                    return Err(Error::Truncated);
                }
                if let Some(entry) = line.strip_prefix(ENTRY) {
                    if entry.last() != Some(&b'\n') {
                        return Err(Error::Truncated);
                    }
                    line.drain(..ENTRY.len());
                    return Ok(true);
                }
                self.state = State::Streamed(std::mem::take(line));
                Ok(false)
            }
        }
    }

    fn trailer(&mut self) -> Result<(Map<String, Value>, Members), Error> {
        match &mut self.state {
            State::Loaded { files, trailer, .. } => {
                Ok((std::mem::take(files), std::mem::take(trailer)))
            }
            State::Streamed(first) => {
                let mut text = b"files:\n".to_vec();
                text.append(first);
                let limit = MEMBER_LIMIT as u64;
                self.input.by_ref().take(limit).read_to_end(&mut text).map_err(Error::Io)?;
                if text.len() >= MEMBER_LIMIT {
                    return Err(Error::Malformed("the trailer is too long".into()));
                }
                if text.last() != Some(&b'\n') {
                    return Err(Error::Truncated);
                }
                let mut members = Members::default();
                let mut files = Map::new();
                for (name, value) in parse(&text)? {
                    match (name.as_str(), value) {
                        ("files", Value::Object(map)) => files = map,
                        (_, value) => members.push(name, value),
                    }
                }
                if members.get("verification").is_none() {
                    return Err(Error::Truncated);
                }
                Ok((files, members))
            }
        }
    }
}

/// Writes the members before the entries, and the line that the entries follow.
pub(crate) fn write_header(output: &mut impl Write, header: &Members) -> io::Result<()> {
    for (name, value) in header.iter() {
        write_member(output, 0, name, value)?;
    }
    output.write_all(b"files:\n  manifest:\n")
}

/// Writes what follows the entries.
pub(crate) fn write_trailer(
    output: &mut impl Write,
    files: &Map<String, Value>,
    trailer: &Members,
) -> io::Result<()> {
    for (name, value) in files {
        write_member(output, 1, name, value)?;
    }
    for (name, value) in trailer.iter() {
        write_member(output, 0, name, value)?;
    }
    Ok(())
}

/// Writes an entry, given as JSON.
pub(crate) fn write_entry(output: &mut impl Write, line: &[u8]) -> io::Result<()> {
    output.write_all(ENTRY)?;
    // All that is escaped begins with one of these bytes.
    let is_plain = !line.iter().any(|byte| matches!(byte, 0x7f | 0xc2 | 0xe2 | 0xef));
    match std::str::from_utf8(line) {
        Ok(text) if !is_plain => output.write_all(literal(text).as_bytes())?,
        _ => output.write_all(line)?,
    }
    output.write_all(b"\n")
}

/// A member in block style; strings are JSON literals, which YAML reads as double-quoted.
fn write_member(
    output: &mut impl Write,
    depth: usize,
    name: &str,
    value: &Value,
) -> io::Result<()> {
    let indent = "  ".repeat(depth);
    let key = if crate::manifest::is_name(name) && !is_yaml_word(name) {
        name.to_owned()
    } else {
        literal(&Value::from(name).to_string())
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            writeln!(output, "{indent}{key}:")?;
            map.iter().try_for_each(|(name, value)| write_member(output, depth + 1, name, value))
        }
        Value::Array(list) if !list.is_empty() => {
            writeln!(output, "{indent}{key}:")?;
            list.iter()
                .try_for_each(|value| writeln!(output, "{indent}- {}", literal(&value.to_string())))
        }
        scalar => writeln!(output, "{indent}{key}: {}", literal(&scalar.to_string())),
    }
}

/// JSON that YAML reads the same: what it takes for a line break or refuses is escaped.
fn literal(json: &str) -> String {
    json.chars().fold(String::new(), |mut text, character| {
        use std::fmt::Write;
        match character {
            '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            other => text.push(other),
        }
        text
    })
}

/// Whether YAML would read the word as something else than a string.
fn is_yaml_word(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_digit())
        || matches!(
            word.to_ascii_lowercase().as_str(),
            "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null" | "nan"
        )
}

/// A document that would take up all memory, were its aliases followed; it lacks its files.
#[cfg(test)]
pub(crate) fn alias_bomb() -> String {
    use std::fmt::Write;
    let mut bomb = String::from("version: '2.0'\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let alias = format!("*a{},", level - 1).repeat(10);
        writeln!(bomb, "a{level}: &a{level} [{alias}]").unwrap();
    }
    bomb
}

#[cfg(test)]
mod tests {
    use crate::stream::{Format, Reader, Writer};

    #[test]
    fn yaml_of_another_writer_is_loaded_whole() {
        let yaml = "version: '2.0'\napplication: {name: app}\nfiles:\n    manifest:\n    - path: a\n      size: 1\n";
        let mut reader = Reader::new(yaml.as_bytes()).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().size, Some(1));
        assert!(reader.next_entry().unwrap().is_none());
        assert!(reader.end().is_err(), "it has no sums");
    }

    #[test]
    fn what_json_has_no_word_for_is_refused() {
        for bad in [".nan", "-.inf", "1.5", "!x y", "{1: a}", "{true: a}"] {
            let yaml = format!("version: '2.0'\nx: {bad}\nfiles: {{manifest: []}}\n");
            let error = Reader::new(yaml.as_bytes()).err().unwrap();
            assert!(matches!(error, crate::stream::Error::Malformed(_)), "{bad}");
        }
    }

    #[test]
    fn values_that_yaml_would_misread_come_back() {
        let mut header = crate::manifest::Header::default();
        header.set("version", "2.0".into());
        let value = serde_json::json!({
            "no": "no", "012": "0x1f", "a b": "x: y # z", "e": [], "m": {}, "u": "\u{2028}\u{85}\u{7f}",
            "\u{ffff}\u{7f}": 1, "list": [{"\u{feff}": 1}, "b", null, true, -5], "nested": {"deep": {"er": "\\ \" \n"}},
        });
        header.set("application", value.clone());
        let writer = Writer::new(Vec::new(), Format::Yaml, header).unwrap();
        let (bytes, _) = writer.end(crate::manifest::Trailer::default()).unwrap();
        let (header, _) = Reader::new(&bytes[..]).unwrap().end().unwrap();
        assert_eq!(header.0.get("application"), Some(&value));
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let bomb = super::alias_bomb() + "files: {manifest: []}\n";
        assert!(Reader::new(bomb.as_bytes()).is_err());
    }
}
