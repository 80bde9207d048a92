//! Strict JSON: values without duplicate keys or inexact numbers, cut out of a stream one by one.

use std::fmt;
use std::io::{self, BufRead};

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The largest integer that every JSON reader holds exactly: 2^53.
pub const INTEGER_LIMIT: u64 = 1 << 53;

/// A value in which keys are unique and numbers are integers within ±2^53.
pub struct Strict(pub Value);

impl<'de> de::Deserialize<'de> for Strict {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> DeserializeSeed<'de> for StrictVisitor {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        if value > INTEGER_LIMIT {
            return Err(E::custom(format!("number {value} is beyond 2^53")));
        }
        Ok(Value::from(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > INTEGER_LIMIT {
            return Err(E::custom(format!("number {value} is beyond 2^53")));
        }
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Err(E::custom(format!("number {value} is not an integer")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(StrictVisitor)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(StrictVisitor)?;
            insert(&mut map, key, value)?;
        }
        Ok(Value::Object(map))
    }
}

/// Adds a member; a second one of the same name is an error.
///
/// # Errors
/// The duplicate key.
pub fn insert<E: de::Error>(
    map: &mut Map<String, Value>,
    key: String,
    value: Value,
) -> Result<(), E> {
    if map.contains_key(&key) {
        return Err(E::custom(format!("duplicate key '{}'", key.escape_debug())));
    }
    map.insert(key, value);
    Ok(())
}

/// Parses one value strictly.
///
/// # Errors
/// A syntax error, a duplicate key, or a number that is no integer within ±2^53.
pub fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Strict>(bytes).map(|strict| strict.0)
}

/// The bytes that `jq -cS` prints for a value, without the newline.
///
/// `serde_json` keeps its maps sorted and escapes what jq escapes, but for DEL.
pub fn canonical(value: &Value) -> Vec<u8> {
    let text = value.to_string();
    if text.contains('\u{7f}') { text.replace('\u{7f}', "\\u007f") } else { text }.into_bytes()
}

/// Whether a byte is white space between JSON values (RFC 8259, section 2).
pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Appends a string literal. The text must hold no control characters.
pub fn push_plain_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if text.bytes().any(|byte| byte == b'"' || byte == b'\\') {
        for byte in text.bytes() {
            if byte == b'"' || byte == b'\\' {
                out.push(b'\\');
            }
            out.push(byte);
        }
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

/// Cuts single values and punctuation out of a stream, so that a document need not be held whole.
pub struct Cutter<R> {
    input: R,
    position: u64,
}

/// What cutting can run into.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The stream ended inside the document.
    #[error("the document ends in the middle, at byte {0}")]
    Truncated(u64),
    /// Another byte was due.
    #[error("unexpected byte at {0}")]
    Unexpected(u64),
    /// A value is larger than any that we write.
    #[error("the value at byte {0} is too long")]
    TooLong(u64),
    /// The stream could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<R: BufRead> Cutter<R> {
    /// Starts at the stream's next byte.
    pub fn new(input: R) -> Self {
        Cutter { input, position: 0 }
    }

    /// How many bytes were taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.position += length as u64;
    }

    /// The next byte that is no white space, left in place; `None` at the end of the stream.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn peek(&mut self) -> Result<Option<u8>, CutError> {
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let blank = buffer.iter().take_while(|byte| is_blank(**byte)).count();
            let found = buffer.get(blank).copied();
            self.consume(blank);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Takes the next byte that is no white space.
    ///
    /// # Errors
    /// [`CutError::Truncated`] at the end of the stream.
    pub fn take(&mut self) -> Result<u8, CutError> {
        let byte = self.peek()?.ok_or(CutError::Truncated(self.position))?;
        self.consume(1);
        Ok(byte)
    }

    /// Takes just this punctuation byte.
    ///
    /// # Errors
    /// If anything else comes, or nothing.
    pub fn expect(&mut self, expected: u8) -> Result<(), CutError> {
        let at = self.position;
        if self.take()? == expected { Ok(()) } else { Err(CutError::Unexpected(at)) }
    }

    /// Puts the next value's bytes, as they stand, into `value`.
    ///
    /// They are complete, not yet checked: parse them. `limit` is in bytes.
    ///
    /// # Errors
    /// If the stream ends inside the value, or the value is longer than `limit`.
    pub fn value(&mut self, value: &mut Vec<u8>, limit: usize) -> Result<(), CutError> {
        value.clear();
        let start = self.position;
        let first = self.peek()?.ok_or(CutError::Truncated(self.position))?;
        let is_scalar = !matches!(first, b'{' | b'[' | b'"');
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(CutError::Truncated(self.position));
            }
            let mut used = 0;
            let mut ended = false;
            for byte in buffer {
                if is_scalar {
                    if matches!(byte, b',' | b'}' | b']' | b':') || is_blank(*byte) {
                        ended = true;
                        break;
                    }
                    used += 1;
                    continue;
                }
                used += 1;
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => continue,
                    }
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth = depth.saturating_sub(1),
                        _ => continue,
                    }
                }
                if depth == 0 && !in_string {
                    ended = true;
                    break;
                }
            }
            value.extend_from_slice(&buffer[..used]);
            self.consume(used);
            if value.len() > limit {
                return Err(CutError::TooLong(start));
            }
            if ended {
                return if value.is_empty() { Err(CutError::Unexpected(start)) } else { Ok(()) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_and_inexact_numbers_are_refused() {
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            "1.5",
            "1e3",
            "-0.0",
            "9007199254740993",
            "-9007199254740993",
            "[1,]",
            "{} {}",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(parse(b"9007199254740992").unwrap(), INTEGER_LIMIT);
    }

    #[test]
    fn canonical_sorts_and_escapes_as_jq_does() {
        let value = parse(br#" {"b" : "\u00e4\/\n\u0001\"\u007f", "a":[ 1, null ]} "#).unwrap();
        let expected = r#"{"a":[1,null],"b":"ä/\n\u0001\"\u007f"}"#;
        assert_eq!(canonical(&value), expected.as_bytes());
    }

    #[test]
    fn values_are_cut_at_any_buffer_size() {
        let text = br#" {"a":"}\"{", "b":[1,{}]} , "x\\" ,12, true]"#;
        for size in 1..text.len() {
            let mut cutter = Cutter::new(io::BufReader::with_capacity(size, &text[..]));
            let mut value = Vec::new();
            let mut values = Vec::new();
            loop {
                cutter.value(&mut value, 100).unwrap();
                values.push(String::from_utf8(value.clone()).unwrap());
                if cutter.take().unwrap() == b']' {
                    break;
                }
            }
            assert_eq!(values, [r#"{"a":"}\"{", "b":[1,{}]}"#, r#""x\\""#, "12", "true"]);
        }
    }

    #[test]
    fn a_value_cut_short_or_too_long_is_an_error() {
        let mut value = Vec::new();
        for text in [&b"{\"a\":1"[..], b"\"abc", b"12", b""] {
            assert!(matches!(
                Cutter::new(text).value(&mut value, 100),
                Err(CutError::Truncated(_))
            ));
        }
        assert!(matches!(
            Cutter::new(&b"\"abcdefgh\""[..]).value(&mut value, 4),
            Err(CutError::TooLong(0))
        ));
    }
}
