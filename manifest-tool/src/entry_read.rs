//! Reads an entry: strictly, field by field, and back to the same bytes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::entry::{At, Entry, Kind};
use crate::json::{self, Strict};
use crate::path::{self, RelPath};
use crate::time::{self, Time};

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

/// Sets a field once.
fn set<T, E: de::Error>(field: &mut Option<T>, key: &str, value: T) -> Result<(), E> {
    if field.replace(value).is_some() {
        return Err(E::custom(format!("duplicate key '{key}'")));
    }
    Ok(())
}

/// A string without control characters, as our own fields are.
fn plain<'de, A: MapAccess<'de>>(access: &mut A, key: &str) -> Result<Cow<'de, str>, A::Error> {
    let text = access.next_value::<Text<'de>>()?.0;
    if path::plain_text(text.as_bytes()).is_none() {
        return Err(de::Error::custom(format!("control character in '{key}'")));
    }
    Ok(text)
}

/// A string that borrows from the input where it can.
struct Text<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

fn encoded<'de, A: MapAccess<'de>>(access: &mut A, key: &str) -> Result<Vec<u8>, A::Error> {
    let text = access.next_value::<Text<'de>>()?.0;
    let bytes = path::from_base64(&text)
        .ok_or_else(|| de::Error::custom(format!("'{key}' is not standard base64")))?;
    if path::plain_text(&bytes).is_some() {
        return Err(de::Error::custom(format!("'{key}' encodes what needs no encoding")));
    }
    Ok(bytes)
}

fn integer<'de, A: MapAccess<'de>>(access: &mut A, key: &str) -> Result<u64, A::Error> {
    let value = access.next_value::<u64>()?;
    if value > json::INTEGER_LIMIT {
        return Err(de::Error::custom(format!("'{key}' is beyond 2^53")));
    }
    Ok(value)
}

fn parsed<'de, A: MapAccess<'de>, T>(
    access: &mut A,
    key: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, A::Error> {
    let text = access.next_value::<Text<'de>>()?.0;
    parse(&text)
        .ok_or_else(|| de::Error::custom(format!("'{key}' cannot be '{}'", text.escape_debug())))
}

/// A time; one written in another way than ours is kept as it stands, so that sums stay the same.
fn time<'de, A: MapAccess<'de>>(
    access: &mut A,
    key: &str,
    extra: &mut Map<String, Value>,
) -> Result<Time, A::Error> {
    let text = access.next_value::<Text<'de>>()?.0;
    let parsed = Some(&*text).filter(|text| time::is_rfc3339(text.as_bytes()));
    let time = parsed
        .and_then(|text| text.parse::<Time>().ok())
        .ok_or_else(|| de::Error::custom(format!("'{key}' cannot be '{}'", text.escape_debug())))?;
    if !time::is_ours(text.as_bytes()) && time.to_string() != *text {
        json::insert(extra, key.into(), text.into())?;
    }
    Ok(time)
}

/// Two decimal numbers with a colon between them.
fn pair(text: &str) -> Option<(u32, u32)> {
    let (first, second) = text.split_once(':')?;
    Some((decimal(first)?, decimal(second)?))
}

/// A user and a group; the largest number is no id, to the system it means "as it is".
pub(crate) fn user_and_group(text: &str) -> Option<(u32, u32)> {
    pair(text).filter(|(user, group)| *user != u32::MAX && *group != u32::MAX)
}

/// A decimal number in its only form: no sign, no leading zero.
fn decimal<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}

/// A mode in its only form: four octal digits.
pub(crate) fn octal_mode(text: &str) -> Option<u32> {
    let mode = u32::from_str_radix(text, 8).ok()?;
    (mode <= 0o7777 && format!("{mode:04o}") == text).then_some(mode)
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Entry, A::Error> {
        let (mut path, mut target, mut word, mut device) = (None, None, None, None);
        let (mut at, mut checksum, mut component, mut ctime) = (None, None, None, None);
        let (mut inode, mut mode, mut mtime, mut owner) = (None, None, None, None);
        let (mut size, mut extra) = (None, Map::new());
        let a = &mut access;
        while let Some(Text(key)) = a.next_key::<Text<'de>>()? {
            match &*key {
                "path" => set(&mut path, "path", plain(a, "path")?.into_owned().into_bytes())?,
                "path_b64" => set(&mut path, "path", encoded(a, "path_b64")?)?,
                "target" => {
                    set(&mut target, "target", plain(a, "target")?.into_owned().into_bytes())?;
                }
                "target_b64" => set(&mut target, "target", encoded(a, "target_b64")?)?,
                "type" => set(&mut word, "type", plain(a, "type")?)?,
                "at" => set(&mut at, "at", a.next_value::<At>()?)?,
                "checksum" => {
                    let text = a.next_value::<Text<'de>>()?.0;
                    set(&mut checksum, "checksum", text.parse().map_err(de::Error::custom)?)?;
                    if !text.starts_with("sha256:") {
                        json::insert(&mut extra, "checksum".into(), text.into())?;
                    }
                }
                "component" => {
                    let name = |text: &str| crate::manifest::is_name(text).then(|| text.to_owned());
                    set(&mut component, "component", parsed(a, "component", name)?)?;
                }
                "ctime" => set(&mut ctime, "ctime", time(a, "ctime", &mut extra)?)?,
                "mtime" => set(&mut mtime, "mtime", time(a, "mtime", &mut extra)?)?,
                "device" => set(&mut device, "device", parsed(a, "device", pair)?)?,
                "inode" => set(&mut inode, "inode", parsed(a, "inode", decimal::<u64>)?)?,
                "mode" => set(&mut mode, "mode", parsed(a, "mode", octal_mode)?)?,
                "owner" => set(&mut owner, "owner", parsed(a, "owner", user_and_group)?)?,
                "size" => set(&mut size, "size", integer(a, "size")?)?,
                _ => {
                    let value = a.next_value::<Strict>()?.0;
                    json::insert(&mut extra, key.into_owned(), value)?;
                }
            }
        }
        let bad = |what: &str| de::Error::custom(what);
        let path = RelPath::new(path.ok_or_else(|| bad("entry without a path"))?)
            .map_err(de::Error::custom)?;
        let at_error = |what: &str| de::Error::custom(format!("{what} in the entry of '{path}'"));
        let kind = match (word.as_deref(), target, device) {
            (None, None, None) => Kind::File,
            (Some("directory"), None, None) => Kind::Directory,
            (Some("fifo"), None, None) => Kind::Fifo,
            (Some("symlink"), Some(target), None) if !target.is_empty() => Kind::Symlink(target),
            (Some("hardlink"), Some(target), None) => {
                Kind::Hardlink(RelPath::new(target).map_err(|error| at_error(&error.to_string()))?)
            }
            (Some("block"), None, Some((major, minor))) => Kind::Block(major, minor),
            (Some("char"), None, Some((major, minor))) => Kind::Char(major, minor),
            _ => return Err(at_error("type, target and device do not fit together")),
        };
        if let Kind::Hardlink(first) = &kind
            && *first >= path
        {
            return Err(at_error("hard link to a later path"));
        }
        Ok(Entry {
            path,
            kind,
            at,
            checksum,
            component,
            ctime,
            inode,
            mode,
            mtime,
            owner,
            size,
            extra,
        })
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AtVisitor)
    }
}

struct AtVisitor;

impl<'de> Visitor<'de> for AtVisitor {
    type Value = At;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("where an entry lies")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<At, A::Error> {
        let (mut backup, mut object, mut member) = (None, None, None);
        let (mut offset, mut length, mut skip) = (None, None, None);
        let mut extra = Map::new();
        let a = &mut access;
        while let Some(Text(key)) = a.next_key::<Text<'de>>()? {
            match &*key {
                "backup" => set(&mut backup, "backup", plain(a, "backup")?.into_owned())?,
                "object" => set(&mut object, "object", plain(a, "object")?.into_owned())?,
                "member" => {
                    set(&mut member, "member", plain(a, "member")?.into_owned().into_bytes())?;
                }
                "member_b64" => set(&mut member, "member", encoded(a, "member_b64")?)?,
                "offset" => set(&mut offset, "offset", integer(a, "offset")?)?,
                "length" => set(&mut length, "length", integer(a, "length")?)?,
                "skip" => set(&mut skip, "skip", integer(a, "skip")?)?,
                _ => {
                    let value = a.next_value::<Strict>()?.0;
                    json::insert(&mut extra, key.into_owned(), value)?;
                }
            }
        }
        let object = object.ok_or_else(|| de::Error::custom("'at' without an object"))?;
        RelPath::new(object.as_bytes())
            .map_err(|error| de::Error::custom(format!("{error} as object of 'at'")))?;
        if offset.is_some() != length.is_some() || (offset.is_none() && skip.is_some()) {
            return Err(de::Error::custom("'at' needs offset and length together"));
        }
        Ok(At { backup, object, offset, length, skip, member, extra })
    }
}
