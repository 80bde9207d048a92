//! Which components are encrypted, and for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bk_manifest::exit::{Exit, Failure, fail};
use bk_manifest::manifest::is_name;
use bk_manifest::path::escape;

use super::{Cipher, Method};

/// What was chosen for the whole backup, and for some components instead.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    all: Option<Arc<Cipher>>,
    components: BTreeMap<String, Arc<Cipher>>,
}

/// One recipient as it was given: `age:RECIPIENT`, `config=gpg:KEY`.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    component: Option<String>,
    method: Method,
    recipient: String,
}

/// What is known of one component, or of all, while items are read.
#[derive(Default)]
struct Group {
    method: Option<Method>,
    recipients: Vec<String>,
}

impl Choice {
    /// Reads what was given, each one or more of `[COMPONENT=]age:RECIPIENT` and
    /// `[COMPONENT=]gpg:KEY` with blanks between them; and a file of recipients for age, which is for
    /// the whole backup.
    ///
    /// # Errors
    /// [`Exit::Usage`] for what is none of these, for two programs for one component, and for what
    /// the program does not take; [`Exit::Failed`] for a program that is not installed.
    pub fn new(given: &[String], file: Option<&PathBuf>) -> anyhow::Result<Self> {
        let mut groups: BTreeMap<Option<String>, Group> = BTreeMap::new();
        if file.is_some() {
            groups.entry(None).or_default().method = Some(Method::Age);
        }
        for text in given {
            for item in items(text)? {
                let group = groups.entry(item.component).or_default();
                if group.method.is_some_and(|method| method != item.method) {
                    let message = "age and gpg cannot both encrypt one component";
                    return Err(fail(Exit::Usage, message));
                }
                group.method = Some(item.method);
                group.recipients.push(item.recipient);
            }
        }
        let mut choice = Choice::default();
        for (component, Group { method, recipients }) in groups {
            let Some(method) = method else { continue };
            let file = file.filter(|_| component.is_none());
            let cipher = Arc::new(Cipher::new(method, &recipients, file)?);
            match component {
                None => choice.all = Some(cipher),
                Some(component) => drop(choice.components.insert(component, cipher)),
            }
        }
        Ok(choice)
    }

    /// How a component is encrypted.
    pub fn of(&self, component: &str) -> Option<&Arc<Cipher>> {
        self.components.get(component).or(self.all.as_ref())
    }

    /// Whether the objects of one component may hold content of the other: who can open them is the
    /// same.
    pub fn is_same(&self, component: &str, other: &str) -> bool {
        match (self.of(component), self.of(other)) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Refuses a name that is no component's: what it was meant for would be stored in clear.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub fn check(&self, components: &BTreeSet<&str>) -> anyhow::Result<()> {
        match self.components.keys().find(|name| !components.contains(name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let names: Vec<&str> = components.iter().copied().collect();
                Err(Failure::new(
                    Exit::Usage,
                    format!("'{name}' is to be encrypted, but is no component"),
                )
                .hint(format!("the components of this backup: {}", names.join(", ")))
                .into())
            }
        }
    }
}

fn items(text: &str) -> anyhow::Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    for word in text.split_whitespace() {
        match (begin(word), items.last_mut()) {
            (Some(item), _) => items.push(item),
            // Keys of ssh, and names of keys of gpg, have blanks in them.
            (None, Some(item)) => {
                item.recipient.push(' ');
                item.recipient.push_str(word);
            }
            (None, None) => return Err(malformed(word)),
        }
    }
    for item in &items {
        if item.recipient.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
            let message = "a secret key was given to encrypt with; it belongs to no command line";
            return Err(Failure::new(Exit::Usage, message)
                .hint("give the public one: age-keygen -y FILE prints it")
                .into());
        }
        if item.recipient.is_empty() {
            return Err(malformed(text));
        }
    }
    Ok(items)
}

fn malformed(text: &str) -> anyhow::Error {
    let shown = escape(text.as_bytes());
    Failure::new(Exit::Usage, format!("'{shown}' does not say how to encrypt"))
        .hint("it is age:RECIPIENT or gpg:KEY, or for one component NAME=age:RECIPIENT")
        .into()
}

fn begin(word: &str) -> Option<Item> {
    let (head, recipient) = word.split_once(':')?;
    let (component, method) = match head.split_once('=') {
        None => (None, head),
        Some((component, method)) => (Some(component), method),
    };
    if component.is_some_and(|component| !is_name(component)) {
        return None;
    }
    Some(Item {
        component: component.map(str::to_owned),
        method: Method::of_word(method)?,
        recipient: recipient.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;

    fn item(component: Option<&str>, method: Method, recipient: &str) -> Item {
        Item { component: component.map(str::to_owned), method, recipient: recipient.to_owned() }
    }

    #[test]
    fn recipients_may_have_blanks() {
        let read =
            items("age:ssh-ed25519 AAAA me@host  config=gpg:Me <me@host> age:age1x").unwrap();
        let expected = [
            item(None, Method::Age, "ssh-ed25519 AAAA me@host"),
            item(Some("config"), Method::Gpg, "Me <me@host>"),
            item(None, Method::Age, "age1x"),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_no_recipient_is_refused() {
        for bad in ["age1x", "rot13:x", "age:", "a/b=age:x", "age:AGE-SECRET-KEY-1X", "=age:x"] {
            let error = items(bad).unwrap_err();
            assert_eq!(classify(&error), Exit::Usage, "{bad}");
            assert!(!format!("{error:#}").contains("SECRET-KEY-1X"), "{error:#}");
        }
    }

    #[test]
    fn two_programs_for_one_component_are_refused_before_either_is_asked() {
        for given in [&["age:x gpg:y"][..], &["c=age:x", "c=gpg:y"]] {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            let error = Choice::new(&given, None).unwrap_err();
            assert!(error.to_string().contains("cannot both"), "{error:#}");
        }
        let error = Choice::new(&["gpg:y".into()], Some(&"recipients".into())).unwrap_err();
        assert!(error.to_string().contains("cannot both"), "{error:#}");
    }
}
