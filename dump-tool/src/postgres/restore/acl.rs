//! Rights on a database, from the form that PostgreSQL keeps them in to statements that give them.
//!
//! An item reads `grantee=rights/grantor`; no grantee is everyone, a name in quotes doubles the
//! quotes in it, a `*` behind a right lets the grantee pass it on. Source: the PostgreSQL manual,
//! "Privileges".

use crate::postgres::session::identifier;

/// One item: what one grantee may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The role; none: everyone.
    pub(super) grantee: Option<String>,
    /// Names of rights, and whether they may be passed on.
    rights: Vec<(&'static str, bool)>,
}

impl Item {
    /// Reads one item; `None` if it is not one that we know.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (grantee, rest) = role(text)?;
        let (letters, _grantor) = rest.strip_prefix('=')?.split_once('/')?;
        let mut rights: Vec<(&'static str, bool)> = Vec::new();
        for letter in letters.chars() {
            let right = match letter {
                'C' => "CREATE",
                'T' => "TEMPORARY",
                'c' => "CONNECT",
                '*' => {
                    rights.last_mut()?.1 = true;
                    continue;
                }
                _ => return None,
            };
            rights.push((right, false));
        }
        Some(Item { grantee: Some(grantee).filter(|name| !name.is_empty()), rights })
    }

    /// The statements that give it.
    pub(super) fn grants(&self, database: &str) -> Vec<String> {
        let to = self.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), identifier);
        let grant = |(right, may_pass_on): &(&str, bool)| {
            let option = if *may_pass_on { " WITH GRANT OPTION" } else { "" };
            format!("GRANT {right} ON DATABASE {} TO {to}{option}", identifier(database))
        };
        self.rights.iter().map(grant).collect()
    }
}

/// A role's name, in quotes or not, and what follows it.
fn role(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find('=')?;
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_grants() {
        for (text, expected) in [
            ("=c/postgres", &["GRANT CONNECT ON DATABASE \"d\" TO PUBLIC"][..]),
            (
                "app=C*T/postgres",
                &[
                    "GRANT CREATE ON DATABASE \"d\" TO \"app\" WITH GRANT OPTION",
                    "GRANT TEMPORARY ON DATABASE \"d\" TO \"app\"",
                ],
            ),
            (
                "\"odd \"\"=/ name\"=c/\"x=/\"",
                &["GRANT CONNECT ON DATABASE \"d\" TO \"odd \"\"=/ name\""],
            ),
            ("app=/postgres", &[]),
        ] {
            assert_eq!(Item::parse(text).unwrap().grants("d"), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_item_is_refused() {
        for text in ["", "app", "app=c", "\"app=c/x", "app=*c/x", "app=Z/x"] {
            assert_eq!(Item::parse(text), None, "{text}");
        }
    }
}
