//! Names of tables and sequences, as the record has them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::postgres::session::identifier;

/// A relation with its schema.
///
/// Its text form is `schema.name`, each part quoted as SQL would have it unless it is made of
/// lower-case letters, digits and underscores. The server's own `quote_ident` would not do: it
/// quotes keywords, of which every version has others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name {
    /// The schema, unquoted.
    pub schema: String,
    /// The relation's own name, unquoted.
    pub name: String,
}

impl Name {
    /// As SQL takes it, whatever the words are.
    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

fn write_part(f: &mut fmt::Formatter<'_>, part: &str) -> fmt::Result {
    let is_plain = part.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { f.write_str(part) } else { f.write_str(&identifier(part)) }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_part(f, &self.schema)?;
        f.write_str(".")?;
        write_part(f, &self.name)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (schema, rest) = take_part(text)?;
            let (name, rest) = take_part(rest.strip_prefix('.')?)?;
            rest.is_empty().then_some(Name { schema, name })
        };
        parse().ok_or_else(|| format!("'{text}' is no name of the form schema.name"))
    }
}

/// Takes a part off the beginning, quoted or not.
fn take_part(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(['.', '"']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut part = String::new();
    let mut rest = quoted;
    loop {
        let (before, behind) = rest.split_once('"')?;
        part += before;
        match behind.strip_prefix('"') {
            Some(behind) => {
                part.push('"');
                rest = behind;
            }
            None => return (!part.is_empty()).then_some((part, behind)),
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printed_and_parsed() {
        for (schema, name, text) in [
            ("public", "events", "public.events"),
            ("public", "order", "public.order"),
            ("Odd \"one\"", "a.b", "\"Odd \"\"one\"\"\".\"a.b\""),
            ("ü", "1st", "\"ü\".\"1st\""),
        ] {
            let both = Name { schema: schema.into(), name: name.into() };
            assert_eq!(both.to_string(), text);
            assert_eq!(text.parse(), Ok(both));
        }
        assert_eq!("public.\"order\"".parse::<Name>().unwrap().to_string(), "public.order");
        for bad in ["", "events", ".", "a.", ".a", "a.b.c", "\"a.b", "a.\"b\"c", "\"\".a"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
