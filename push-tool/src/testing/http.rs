//! HTTP/1.1, as much of it as the test server needs.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};

/// A request as it came.
pub(super) struct Request {
    pub(super) method: String,
    /// The path as it stands in the request, percent-encoded.
    pub(super) path: String,
    /// Parameters as they stand there, in order.
    pub(super) query: Vec<(String, String)>,
    /// By lower-case name.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// Reads one; `None` once the other side has closed.
    pub(super) fn read(input: &mut impl BufRead) -> io::Result<Option<Self>> {
        let odd = || io::Error::from(io::ErrorKind::InvalidData);
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = words.next().zip(words.next()).ok_or_else(odd)?;
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            input.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(Ok(0), |length| length.parse());
        let mut body = Vec::new();
        input.take(length.map_err(|_| odd())?).read_to_end(&mut body)?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), value.to_owned())
        };
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect();
        Ok(Some(Request { method, path: path.to_owned(), query, headers, body }))
    }

    /// A parameter's value, decoded.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| decode(value))
    }

    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Headers beside those that every answer has.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply { status, headers: Vec::new(), body: body.into() }
    }

    pub(super) fn refusal(status: u16, code: &str) -> Self {
        Reply::new(status, format!("<Error><Code>{code}</Code><Message>test</Message></Error>"))
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Sends the body in chunks, without saying how long it is.
    pub fn chunk(&mut self) {
        self.headers.push(("transfer-encoding".into(), "chunked".into()));
    }

    /// Writes it; `None` of the body for HEAD. Of the body only `most` bytes are sent.
    pub(super) fn write(
        &self,
        output: &mut impl Write,
        date: &str,
        is_head: bool,
        most: usize,
    ) -> io::Result<()> {
        write!(output, "HTTP/1.1 {} Test\r\ndate: {date}\r\n", self.status)?;
        let is_chunked = self.headers.iter().any(|(name, _)| name == "transfer-encoding");
        let mut has_length = is_chunked;
        for (name, value) in &self.headers {
            has_length |= name == "content-length";
            write!(output, "{name}: {value}\r\n")?;
        }
        if !has_length && self.status != 204 {
            write!(output, "content-length: {}\r\n", self.body.len())?;
        }
        output.write_all(b"\r\n")?;
        let length = self.body.len();
        if !is_head {
            if is_chunked {
                write!(output, "{length:x}\r\n")?;
            }
            output.write_all(&self.body[..length.min(most)])?;
            if is_chunked && most > length {
                output.write_all(b"\r\n0\r\n\r\n")?;
            }
        }
        output.flush()
    }
}

/// Text that was percent-encoded.
pub(super) fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
            let value = digit().unwrap_or(0) << 4 | digit().unwrap_or(0);
            bytes.push(u8::try_from(value).unwrap_or(0));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The same the other way round.
pub(super) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}
