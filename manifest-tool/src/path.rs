//! A relative path as bytes: what may be one, how paths are ordered, and their form in JSON.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The folder of what bk adds to a tree: dumps, archives, fetch's marker.
pub const OWN_FOLDER: &[u8] = b".bk";

/// A path below some root: relative, `/` between its parts, none of them empty, `.` or `..`.
///
/// Checked once, where it enters; nothing behind that door sees a path that leads out of its root.
/// The order is that of a walk (raw bytes with `/` below every other), all of `.bk/` last.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Vec<u8>);

/// Why bytes are no [`RelPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadPath {
    /// No bytes at all.
    #[error("empty path")]
    Empty,
    /// Begins with `/`.
    #[error("absolute path")]
    Absolute,
    /// An empty part, `.` or `..`.
    #[error("path with an empty part, '.' or '..'")]
    Part,
    /// A NUL byte, which no file name can hold.
    #[error("path with a NUL byte")]
    Nul,
}

impl RelPath {
    /// Takes bytes that are a relative path.
    ///
    /// # Errors
    /// [`BadPath`] says what is wrong with them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, BadPath> {
        let bytes = bytes.into();
        match bytes.first() {
            None => return Err(BadPath::Empty),
            Some(b'/') => return Err(BadPath::Absolute),
            Some(_) => {}
        }
        if bytes.contains(&0) {
            return Err(BadPath::Nul);
        }
        if bytes.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
            return Err(BadPath::Part);
        }
        Ok(RelPath(bytes))
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path of this system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The text, where it is UTF-8 without control characters.
    pub fn as_text(&self) -> Option<&str> {
        plain_text(&self.0)
    }

    /// The path of `name` below this one.
    ///
    /// # Errors
    /// If `name` is no single part or relative path.
    pub fn join(&self, name: &[u8]) -> Result<Self, BadPath> {
        let mut bytes = self.0.clone();
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        RelPath::new(bytes)
    }

    /// The part after the last `/`.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or(&self.0)
    }

    /// The folder that holds it; `None` at the top.
    pub fn parent(&self) -> Option<RelPath> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(RelPath(self.0[..slash].to_vec()))
    }

    /// What is left below `folder`; `None` if this is neither below it nor the folder itself.
    pub fn below(&self, folder: &RelPath) -> Option<&[u8]> {
        let rest = self.0.strip_prefix(folder.as_bytes())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
    }

    /// Whether it lies in `.bk/`, or is it.
    pub fn is_own(&self) -> bool {
        is_own(&self.0)
    }

    /// Bytes whose plain order is the order of paths; for sorting through temporary files.
    pub fn sort_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.0.len() + 1);
        key.push(u8::from(self.is_own()));
        key.extend(self.0.iter().map(|byte| rank(*byte)));
        key
    }
}

fn is_own(path: &[u8]) -> bool {
    path.strip_prefix(OWN_FOLDER).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}

/// No path holds a NUL, so its place is free for `/`, the lowest byte of the order.
fn rank(byte: u8) -> u8 {
    if byte == b'/' { 0 } else { byte }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.is_own().cmp(&other.is_own()).then_with(|| {
            let same = self.0.iter().zip(&other.0).position(|(a, b)| a != b);
            match same {
                Some(at) => rank(self.0[at]).cmp(&rank(other.0[at])),
                None => self.0.len().cmp(&other.0.len()),
            }
        })
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RelPath {
    /// For people: control characters and bytes that are not UTF-8 are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{self}'")
    }
}

/// Bytes as one line of text that a terminal can be shown, whatever they are.
pub fn escape(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || is_misleading(character) {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Characters that reorder or hide the text around them.
fn is_misleading(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The bytes as text, if they are UTF-8 without control characters: what JSON may hold as they are.
pub fn plain_text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f || byte == 0xc2)
        && text.chars().any(char::is_control)
    {
        return None;
    }
    Some(text)
}

/// Standard base64 with padding: the form of a string that is not plain text.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of standard, padded base64; `None` for anything else.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &[u8]) -> RelPath {
        RelPath::new(text).unwrap()
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for (bytes, error) in [
            (&b""[..], BadPath::Empty),
            (b"/etc/passwd", BadPath::Absolute),
            (b"..", BadPath::Part),
            (b"a/../b", BadPath::Part),
            (b"a//b", BadPath::Part),
            (b"a/", BadPath::Part),
            (b"./a", BadPath::Part),
            (b"a\0b", BadPath::Nul),
        ] {
            assert_eq!(RelPath::new(bytes).unwrap_err(), error);
        }
        for bytes in [&b"..."[..], b"a/..b", b"a/b..", b"\xff", b"-rf", b" "] {
            assert!(RelPath::new(bytes).is_ok());
        }
    }

    #[test]
    fn the_order_is_that_of_a_walk_with_bk_last() {
        let mut paths =
            ["b", "a.txt", "a/b", ".bk/x", "a", "a b", "a/b/c", ".bkx", ".bk", "a/b.d", "zz"]
                .map(|text| path(text.as_bytes()));
        paths.sort();
        let sorted: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(
            sorted,
            [".bkx", "a", "a/b", "a/b/c", "a/b.d", "a b", "a.txt", "b", "zz", ".bk", ".bk/x"]
        );
        let mut by_key = paths.clone();
        by_key.sort_by_key(RelPath::sort_key);
        assert_eq!(by_key, paths);
    }

    #[test]
    fn names_are_shown_without_control_characters() {
        assert_eq!(escape(b"a\nb\x1b[31m\xffc"), "a\\nb\\u{1b}[31m\\xffc");
        assert_eq!(escape("x\u{202e}y".as_bytes()), "x\\u{202e}y");
    }

    #[test]
    fn plain_text_has_no_control_characters() {
        assert_eq!(plain_text("Ä b".as_bytes()), Some("Ä b"));
        for bytes in [&b"a\nb"[..], b"\x7f", "\u{85}".as_bytes(), b"\xff"] {
            assert_eq!(plain_text(bytes), None);
        }
    }

    #[test]
    fn below_respects_part_borders() {
        assert_eq!(path(b"a/b").below(&path(b"a")), Some(&b"b"[..]));
        assert_eq!(path(b"a").below(&path(b"a")), Some(&b""[..]));
        assert_eq!(path(b"ab").below(&path(b"a")), None);
    }
}
