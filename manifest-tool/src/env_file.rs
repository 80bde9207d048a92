//! Reads an env file by the rules of Docker Compose, and executes nothing.
//!
//! Source: docs.docker.com/compose/how-tos/environment-variables/variable-interpolation, "env file
//! syntax", and what compose-go's `dotenv` package does where that says nothing.

use std::collections::BTreeMap;

/// Where in the file, and what is wrong there. Values are not repeated: they may be secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {what}")]
pub struct Error {
    /// Counted from one.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Defaults nested deeper than this are refused.
const DEPTH_LIMIT: usize = 16;

/// Parses `text`; a name that stands twice has its last value.
///
/// `environment` beats what the file says, where one value refers to another (`$NAME`, `${NAME}`)
/// and for a line that is a name alone.
///
/// # Errors
/// The first line that is no comment and no `NAME=VALUE`, or a reference that cannot be resolved.
pub fn parse(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, Error> {
    let mut parser = Parser {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
        values: BTreeMap::new(),
        environment,
    };
    while parser.statement()? {}
    Ok(parser.values)
}

/// `NAME=VALUE` as [`parse`] reads it back; the value has no control characters.
pub fn line(name: &str, value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:@%+*".contains(c);
    if value.chars().all(is_plain) {
        format!("{name}={value}")
    } else if value.contains(['\'', '\\']) {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$");
        format!("{name}=\"{value}\"")
    } else {
        format!("{name}='{value}'")
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    values: BTreeMap<String, String>,
    environment: &'a dyn Fn(&str) -> Option<String>,
}

impl Parser<'_> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error { line: self.line, what: what.into() }
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\u{b}', '\u{c}']);
    }

    /// Goes behind the end of the line; returns what was left of it.
    fn take_line(&mut self) -> &str {
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.line += 1;
        line
    }

    /// One line, or one value that spans lines; false at the end.
    fn statement(&mut self) -> Result<bool, Error> {
        self.skip_blanks();
        match self.rest.chars().next() {
            None => return Ok(false),
            Some('\n' | '#') => {
                self.take_line();
                return Ok(true);
            }
            Some(_) => {}
        }
        if let Some(rest) = self.rest.strip_prefix("export")
            && rest.starts_with([' ', '\t'])
        {
            self.rest = rest;
            self.skip_blanks();
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return Err(self.error("not a comment and not NAME=VALUE"));
        }
        self.rest = rest;
        self.skip_blanks();
        match self.rest.chars().next() {
            Some('=' | ':') => self.rest = &self.rest[1..],
            None | Some('\n' | '#') => {
                if let Some(value) = (self.environment)(name) {
                    self.values.insert(name.to_owned(), value);
                }
                self.take_line();
                return Ok(true);
            }
            Some(_) => return Err(self.error("not a comment and not NAME=VALUE")),
        }
        let is_spaced = self.rest.starts_with([' ', '\t']);
        self.skip_blanks();
        let first = self.rest.chars().next();
        let value = if let Some(quote @ ('"' | '\'')) = first {
            self.quoted(quote)?
        } else {
            self.unquoted(is_spaced)?
        };
        self.values.insert(name.to_owned(), value);
        Ok(true)
    }

    /// A value up to the end of the line, or to a comment that a blank sets off.
    fn unquoted(&mut self, is_spaced: bool) -> Result<String, Error> {
        let start = self.line;
        let line = self.take_line().to_owned();
        let comment = line.find(" #").or_else(|| line.find("\t#"));
        let value = if is_spaced && line.starts_with('#') {
            ""
        } else {
            comment.map_or(&*line, |comment| &line[..comment])
        };
        self.expand(value.trim_end(), 0).map_err(|error| Error { line: start, ..error })
    }

    /// A quoted value, also over several lines; behind it only a comment may stand.
    fn quoted(&mut self, quote: char) -> Result<String, Error> {
        let start = self.line;
        let (mut text, mut is_escaped, mut end) = (String::new(), false, None);
        for (at, character) in self.rest.char_indices().skip(1) {
            if is_escaped {
                // Only the quote is unescaped here; the other escapes are those of double quotes.
                if character != quote {
                    text.push('\\');
                }
                text.push(character);
                is_escaped = false;
            } else if character == '\\' {
                is_escaped = true;
            } else if character == quote {
                end = Some(at + 1);
                break;
            } else {
                text.push(character);
            }
        }
        let Some(end) = end else { return Err(self.error("the quote is not closed")) };
        self.line += self.rest[..end].matches('\n').count();
        self.rest = &self.rest[end..];
        self.skip_blanks();
        if !matches!(self.rest.chars().next(), None | Some('\n' | '#')) {
            return Err(self.error("something follows the closing quote"));
        }
        self.take_line();
        if quote == '\'' {
            return Ok(text);
        }
        let at_start = |error: Error| Error { line: start, ..error };
        self.expand(&unescape(&text), 0).map_err(at_start)
    }

    /// Puts in the values that `$NAME`, `${NAME}` and `${NAME:-default}` refer to; `$$` is `$`.
    fn expand(&self, text: &str, depth: usize) -> Result<String, Error> {
        if depth > DEPTH_LIMIT {
            return Err(self.error("references are nested too deep"));
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            out.push_str(&rest[..dollar]);
            rest = &rest[dollar + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let end = closing_brace(after)
                    .ok_or_else(|| self.error("a reference '${' is not closed"))?;
                out.push_str(&self.reference(&after[..end], depth)?);
                rest = &after[end + 1..];
            } else {
                let (name, after) = split_name(rest);
                if name.is_empty() {
                    out.push('$');
                } else {
                    out.push_str(&self.value(name).unwrap_or_default());
                }
                rest = after;
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, name: &str) -> Option<String> {
        (self.environment)(name).or_else(|| self.values.get(name).cloned())
    }

    /// What stands between `${` and `}`.
    fn reference(&self, text: &str, depth: usize) -> Result<String, Error> {
        let (name, operation) = split_name(text);
        if name.is_empty() {
            return Err(self.error("a reference '${…}' has no name"));
        }
        let (is_strict, operation) = match operation.strip_prefix(':') {
            Some(operation) => (true, operation),
            None => (false, operation),
        };
        let value = self.value(name).filter(|value| !is_strict || !value.is_empty());
        let Some(sign) = operation.chars().next() else {
            if is_strict {
                return Err(self.error(format!("a reference to '{name}' cannot be read")));
            }
            return Ok(value.unwrap_or_default());
        };
        let word = &operation[sign.len_utf8()..];
        match (sign, value) {
            ('-' | '?', Some(value)) => Ok(value),
            ('-', None) | ('+', Some(_)) => self.expand(word, depth + 1),
            ('+', None) => Ok(String::new()),
            ('?', None) => {
                let why = if word.is_empty() { "it has no value" } else { word };
                Err(self.error(format!("'{name}' is needed: {why}")))
            }
            _ => Err(self.error(format!("a reference to '{name}' cannot be read"))),
        }
    }
}

/// The name that `text` begins with, and what follows it.
fn split_name(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { ("", text) } else { text.split_at(end) }
}

/// Where the brace is that closes what was opened before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, character) in text.char_indices() {
        match character {
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            '{' if text[..at].ends_with('$') => depth += 1,
            _ => {}
        }
    }
    None
}

/// The escapes of double quotes; `\$` becomes `$$`, which [`Parser::expand`] reads as `$`.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('v') => out.push('\u{b}'),
            Some('$') => out.push_str("$$"),
            Some(same @ ('\\' | '"')) => out.push(same),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/root".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn value(text: &str) -> String {
        let values = parse(text, &environment).unwrap();
        values.get("A").cloned().unwrap_or_else(|| "(none)".into())
    }

    #[test]
    fn the_examples_of_the_compose_documentation_hold() {
        for (text, expected) in [
            ("A=VAL", "VAL"),
            ("A=\"VAL\"", "VAL"),
            ("A='VAL'", "VAL"),
            ("A=VAL # comment", "VAL"),
            ("A=VAL# not a comment", "VAL# not a comment"),
            ("A=\"VAL # not a comment\"", "VAL # not a comment"),
            ("A=\"VAL\" # comment", "VAL"),
            ("A='$OTHER'", "$OTHER"),
            ("A='${OTHER}'", "${OTHER}"),
            ("A='Let\\'s go!'", "Let's go!"),
            (r#"A="{\"hello\": \"json\"}""#, r#"{"hello": "json"}"#),
            (r#"A="some\tvalue""#, "some\tvalue"),
            (r"A='some\tvalue'", r"some\tvalue"),
            (r"A=some\tvalue", r"some\tvalue"),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_are_read_as_compose_reads_them() {
        for (text, expected) in [
            ("\u{feff}A=1", "1"),
            ("# c\n\n  export A = x y \r\n", "x y"),
            ("export\tA=2", "2"),
            ("A: yaml=like", "yaml=like"),
            ("A=1\nA=2", "2"),
            ("A=", ""),
            ("A=#secret # c", "#secret"),
            ("A= # c", ""),
            ("A=foobar=", "foobar="),
            ("A=\"a\nb\"\nB=1", "a\nb"),
            ("A=\"'d'\"", "'d'"),
            (r#"A="a\\""#, r"a\"),
            (r#"A="\x""#, r"\x"),
            ("HOME\nA=$HOME", "/root"),
            ("A\nB=1", "(none)"),
            ("exportA=1\nA=2", "2"),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn references_are_replaced_outside_single_quotes() {
        for (text, expected) in [
            ("B=b\nA=$B-${B}c", "b-bc"),
            ("B=b\nA=\"quote ${B}\"", "quote b"),
            ("A=$NONE.", "."),
            ("HOME=x\nA=$HOME", "/root"),
            ("A=${NONE:-d}", "d"),
            ("A=${EMPTY:-d}", "d"),
            ("A=${EMPTY-d}", ""),
            ("A=${NONE-d}", "d"),
            ("A=${NONE:-${NONE2:-e}f}", "ef"),
            ("A=${HOME:+yes}${NONE:+no}${EMPTY+e}", "yese"),
            ("A=${HOME:?x}", "/root"),
            ("A=$$HOME a$ 5$5", "$HOME a$ 5$5"),
            (r#"A="\$HOME \${HOME}""#, "$HOME ${HOME}"),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_with_its_line() {
        for (text, line) in [
            ("A=1\nlol wut", 2),
            ("=1", 1),
            ("A=\"x", 1),
            ("\nA='x' y", 2),
            ("A=${B", 1),
            ("A=${}", 1),
            ("A=${B/x/y}", 1),
            ("B=1\nA=${NONE:?is needed}", 2),
            ("A=${NONE?}", 1),
            ("A=\"1\n2\"\n$(rm -rf /)", 3),
            ("A=${EMPTY:}", 1),
        ] {
            assert_eq!(parse(text, &environment).unwrap_err().line, line, "{text}");
        }
        let deep = format!("A={}{}", "${X:-".repeat(50), "}".repeat(50));
        assert!(parse(&deep, &environment).is_err());
    }

    #[test]
    fn commands_are_text() {
        assert_eq!(value("A=$(reboot)`reboot`"), "$(reboot)`reboot`");
    }

    #[test]
    fn a_line_that_is_written_is_read_back() {
        for value in [
            "",
            "/srv/app",
            "two  words",
            " # no comment",
            "it's",
            "a\\",
            "\\'",
            "'\\n\"$HOME${X}$$'",
            "$(x)`y`",
            "\\$X'",
            "café…",
            "\"",
            "=",
            "\\\\",
            "'",
        ] {
            let text = format!("A=1\n{}  # note\nB=2\n", line("NAME", value));
            let values = parse(&text, &|_| Some("wrong".into())).unwrap();
            assert_eq!(values.get("NAME").map(String::as_str), Some(value), "{text}");
            assert_eq!(values.len(), 3);
        }
    }
}
