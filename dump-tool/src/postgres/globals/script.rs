//! What `pg_dumpall --globals-only` writes, taken apart into statements.
//!
//! Only what that program writes is understood: one of these statements given to psql is one
//! statement there too, and nothing in it is a command to psql.

/// A part of a statement.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    /// A keyword, a number, or a name without quotes.
    Word(String),
    /// A name in quotes.
    Name(String),
    /// A text.
    Literal,
    Symbol,
}

/// What a statement does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    CreateRole(String),
    /// Its attributes, password, settings or comment.
    OfRole(String),
    /// Its right on a parameter of the server.
    Parameter(String),
    /// A membership; where there is one, the grantor and the byte where its clause begins.
    Member {
        role: String,
        member: String,
        grantor: Option<(String, usize)>,
    },
    Tablespace(String),
    /// What psql is told about itself.
    Setting,
    Other,
}

/// A statement, without its semicolon.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) text: String,
    pub(super) what: What,
}

/// All of a dump.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) statements: Vec<Statement>,
}

impl Script {
    /// Takes a dump apart.
    ///
    /// # Errors
    /// What in it `pg_dumpall` would not have written.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut statements = Vec::new();
        let mut rest = text;
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                return Ok(Script { statements });
            }
            // Comments, and what locks psql against commands.
            let is_passed = ["--", "\\restrict ", "\\unrestrict ", "\\connect "];
            if is_passed.iter().any(|start| rest.starts_with(start)) {
                rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
                continue;
            }
            let (tokens, length) = tokens(rest)?;
            let text = rest[..length].to_owned();
            statements.push(Statement { what: what(&tokens), text });
            rest = &rest[length + 1..];
        }
    }
}

/// The tokens of the first statement with the bytes where they begin, and its length.
fn tokens(text: &str) -> Result<(Vec<(usize, Token)>, usize), String> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (token, length) = match first {
            ';' => return Ok((tokens, at)),
            c if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '\'' => (Token::Literal, quoted(rest, '\'', false)?),
            'E' if rest.starts_with("E'") => (Token::Literal, 1 + quoted(&rest[1..], '\'', true)?),
            '"' => {
                let length = quoted(rest, '"', false)?;
                (Token::Name(rest[1..length - 1].replace("\"\"", "\"")), length)
            }
            c if word(c) => {
                let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
                if rest[length..].starts_with('\'') {
                    return Err("a text with a prefix".to_owned());
                }
                (Token::Word(rest[..length].to_owned()), length)
            }
            '-' if rest.starts_with("--") => return Err("a comment in a statement".to_owned()),
            '(' | ')' | ',' | '=' | '.' | '-' | '*' => (Token::Symbol, 1),
            other => return Err(format!("'{}' outside of quotes", other.escape_debug())),
        };
        tokens.push((at, token));
        at += length;
    }
    Err("a statement without its end".to_owned())
}

/// The length of what is in quotes, with them.
fn quoted(text: &str, quote: char, has_escapes: bool) -> Result<usize, String> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if c == '\\' && has_escapes {
            characters.next();
        } else if c == quote && characters.next_if(|(_, next)| *next == quote).is_none() {
            return Ok(at + c.len_utf8());
        }
    }
    Err("quotes that do not end".to_owned())
}

fn what(tokens: &[(usize, Token)]) -> What {
    let is = |at: usize, word: &str| matches!(tokens.get(at), Some((_, Token::Word(found))) if found == word);
    let find = |words: &[&str]| {
        (0..tokens.len()).find(|first| words.iter().zip(*first..).all(|(word, at)| is(at, word)))
    };
    let name = |at: usize| match tokens.get(at) {
        Some((_, Token::Word(name) | Token::Name(name))) => Some(name.clone()),
        _ => None,
    };
    let begins = |words: &[&str]| words.iter().enumerate().all(|(at, word)| is(at, word));
    let found = if begins(&["CREATE", "ROLE"]) && tokens.len() == 3 {
        name(2).map(What::CreateRole)
    } else if begins(&["ALTER", "ROLE"]) && (is(3, "WITH") || is(3, "SET")) {
        name(2).map(What::OfRole)
    } else if begins(&["COMMENT", "ON", "ROLE"]) {
        name(3).map(What::OfRole)
    } else if begins(&["GRANT"]) && is(2, "TO") {
        let by = find(&["GRANTED", "BY"]);
        let grantor = by.and_then(|at| Some((name(at + 2)?, tokens[at].0)));
        name(1).zip(name(3)).map(|(role, member)| What::Member { role, member, grantor })
    } else if begins(&["GRANT"]) && find(&["ON", "PARAMETER"]).is_some() {
        find(&["TO"]).and_then(|at| name(at + 1)).map(What::Parameter)
    } else if begins(&["CREATE", "TABLESPACE"]) {
        name(2).map(What::Tablespace)
    } else if begins(&["SET"]) {
        Some(What::Setting)
    } else {
        None
    };
    found.unwrap_or(What::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "--\n-- PostgreSQL database cluster dump\n--\n\n\\restrict abc\n\n\
        SET default_transaction_read_only = off;\n\n\
        CREATE ROLE app;\nALTER ROLE app WITH NOSUPERUSER CONNECTION LIMIT -1 PASSWORD 'SCRAM$x;--';\n\
        CREATE ROLE \"O'dd \"\"name\"\"; x\";\n\
        COMMENT ON ROLE app IS 'it''s; \\! \n--two lines';\n\
        ALTER ROLE app SET search_path TO 'a', E'b\\'; c';\n\
        ALTER ROLE app IN DATABASE \"My db\" SET work_mem TO '1MB';\n\
        GRANT readers TO app WITH INHERIT TRUE GRANTED BY postgres;\n\
        CREATE TABLESPACE fast OWNER app LOCATION '/fast';\n\
        GRANT SET ON PARAMETER work_mem TO app;\n\
        --\n-- PostgreSQL database cluster dump complete\n--\n\n\\unrestrict abc\n\n";

    #[test]
    fn a_dump_is_taken_apart() {
        let script = Script::parse(DUMP).unwrap();
        let app = || "app".to_owned();
        let found: Vec<&What> = script.statements.iter().map(|one| &one.what).collect();
        let expected = [
            What::Setting,
            What::CreateRole(app()),
            What::OfRole(app()),
            What::CreateRole("O'dd \"name\"; x".into()),
            What::OfRole(app()),
            What::OfRole(app()),
            What::Other,
            What::Member {
                role: "readers".into(),
                member: app(),
                grantor: Some(("postgres".into(), 39)),
            },
            What::Tablespace("fast".into()),
            What::Parameter(app()),
        ];
        assert_eq!(found, expected.iter().collect::<Vec<_>>());
        assert!(script.statements[4].text.ends_with("--two lines'"));
    }

    #[test]
    fn what_psql_could_take_for_a_command_is_refused() {
        for bad in [
            "CREATE ROLE a \\! id\n;",
            "\\! id\n",
            "CREATE ROLE $$'$$ \\! id ';",
            "CREATE ROLE a /* ' */ ;",
            "CREATE ROLE :a;",
            "CREATE ROLE a -- '\n;",
            "COMMENT ON ROLE a IS U&'\\';",
            "COMMENT ON ROLE a IS e'\\' \\! id';",
            "CREATE ROLE `id`;",
            "CREATE ROLE a",
            "CREATE ROLE \"a;",
        ] {
            assert!(Script::parse(bad).is_err(), "{bad}");
        }
    }
}
