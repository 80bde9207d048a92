//! One line of a manifest: a path, what it is, and where its bytes lie.

use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::json;
use crate::path::{self, RelPath};
use crate::time::Time;

/// The component of entries that name none.
pub const DEFAULT_COMPONENT: &str = "files";

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// A regular file (`type` absent).
    #[default]
    File,
    /// A directory.
    Directory,
    /// A symbolic link and the bytes of its target.
    Symlink(Vec<u8>),
    /// A further name of a file whose first path this is.
    Hardlink(RelPath),
    /// A named pipe.
    Fifo,
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A character device: major and minor number.
    Char(u32, u32),
}

impl Kind {
    /// The word in `type`; `None` for a regular file.
    pub fn word(&self) -> Option<&'static str> {
        match self {
            Kind::File => None,
            Kind::Directory => Some("directory"),
            Kind::Symlink(_) => Some("symlink"),
            Kind::Hardlink(_) => Some("hardlink"),
            Kind::Fifo => Some("fifo"),
            Kind::Block(..) => Some("block"),
            Kind::Char(..) => Some("char"),
        }
    }
}

/// Where an entry's bytes lie at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct At {
    /// The backup whose folder holds the object; `None` is the manifest's own.
    pub backup: Option<String>,
    /// The object's name in that folder.
    pub object: String,
    /// Where the frames begin, in bytes of the object before encryption; `None`: the object is this
    /// one file.
    pub offset: Option<u64>,
    /// How many bytes of the object the frames take.
    pub length: Option<u64>,
    /// Decompressed bytes before the content.
    pub skip: Option<u64>,
    /// The name in the tar, where it differs from the path.
    pub member: Option<Vec<u8>>,
    /// Fields that this version does not know.
    pub extra: Map<String, Value>,
}

/// One path of a backup.
///
/// Fields that were not recorded are `None`. Times, sizes and modes are those of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, below the root it came from.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// Where its bytes lie, once stored.
    pub at: Option<At>,
    /// SHA-256 of its content, once read.
    pub checksum: Option<Digest>,
    /// The component that it belongs to; `None` is [`DEFAULT_COMPONENT`].
    pub component: Option<String>,
    /// Last change of content or attributes.
    pub ctime: Option<Time>,
    /// Inode number.
    pub inode: Option<u64>,
    /// Permission bits with set-uid, set-gid and sticky.
    pub mode: Option<u32>,
    /// Last change of content.
    pub mtime: Option<Time>,
    /// Numeric user and group.
    pub owner: Option<(u32, u32)>,
    /// Bytes of content; `None` for what has none.
    pub size: Option<u64>,
    /// Fields that this version does not know, and known ones in a form that we do not write
    /// (`.500Z`): these are printed as they came.
    pub extra: Map<String, Value>,
}

impl Entry {
    /// An entry of a regular file with nothing but a path.
    pub fn new(path: RelPath) -> Self {
        Entry {
            path,
            kind: Kind::File,
            at: None,
            checksum: None,
            component: None,
            ctime: None,
            inode: None,
            mode: None,
            mtime: None,
            owner: None,
            size: None,
            extra: Map::new(),
        }
    }

    /// Records what was read: the content's digest and size.
    pub fn set_content(&mut self, checksum: Digest, size: u64) {
        self.extra.remove("checksum");
        self.checksum = Some(checksum);
        self.size = Some(size);
    }

    /// The name of its component.
    pub fn component(&self) -> &str {
        self.component.as_deref().unwrap_or(DEFAULT_COMPONENT)
    }

    /// Whether it is a regular file, the kind that has content of its own.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Whether `other` describes the same state of a regular file: size, times and inode.
    ///
    /// What was not recorded on either side is not the same.
    pub fn is_unchanged_from(&self, other: &Entry, trust: Trust) -> bool {
        fn same<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            a.is_some() && a == b
        }
        self.is_file()
            && other.is_file()
            && same(self.size.as_ref(), other.size.as_ref())
            && same(self.mtime.as_ref(), other.mtime.as_ref())
            && (!trust.ctime || same(self.ctime.as_ref(), other.ctime.as_ref()))
            && (!trust.inode || same(self.inode.as_ref(), other.inode.as_ref()))
    }

    /// Appends the entry exactly as `jq -cS` prints it, without the newline.
    pub fn write_canonical(&self, out: &mut Vec<u8>) {
        if self.extra.is_empty() {
            self.write_known(out);
        } else {
            let mut known = Vec::with_capacity(256);
            self.write_known(&mut known);
            let Ok(Value::Object(mut map)) = json::parse(&known) else {
                unreachable!("our own line is JSON")
            };
            map.extend(self.extra.clone());
            out.extend(json::canonical(&Value::Object(map)));
        }
    }

    fn write_known(&self, out: &mut Vec<u8>) {
        let mut object = ObjectWriter::begin(out);
        if let Some(at) = &self.at {
            at.write(object.key("at"));
        }
        if let Some(checksum) = &self.checksum {
            object.text("checksum", &checksum.to_string());
        }
        if let Some(component) = &self.component {
            object.text("component", component);
        }
        if let Some(ctime) = &self.ctime {
            object.text("ctime", &ctime.to_string());
        }
        if let Kind::Block(major, minor) | Kind::Char(major, minor) = self.kind {
            object.text("device", &format!("{major}:{minor}"));
        }
        if let Some(inode) = self.inode {
            object.text("inode", &inode.to_string());
        }
        if let Some(mode) = self.mode {
            object.text("mode", &format!("{mode:04o}"));
        }
        if let Some(mtime) = &self.mtime {
            object.text("mtime", &mtime.to_string());
        }
        if let Some((user, group)) = self.owner {
            object.text("owner", &format!("{user}:{group}"));
        }
        object.bytes("path", "path_b64", self.path.as_bytes());
        if let Some(size) = self.size {
            object.number("size", size);
        }
        match &self.kind {
            Kind::Symlink(target) => object.bytes("target", "target_b64", target),
            Kind::Hardlink(target) => object.bytes("target", "target_b64", target.as_bytes()),
            _ => {}
        }
        if let Some(word) = self.kind.word() {
            object.text("type", word);
        }
        object.end();
    }
}

/// Which attributes count when deciding that a file is unchanged, beside size and mtime.
#[derive(Clone, Copy, Debug)]
pub struct Trust {
    /// Change time; off for network file systems that invent it.
    pub ctime: bool,
    /// Inode number; off for network file systems that invent it.
    pub inode: bool,
}

impl At {
    fn write(&self, out: &mut Vec<u8>) {
        if !self.extra.is_empty() {
            let mut known = Vec::new();
            At { extra: Map::new(), ..self.clone() }.write(&mut known);
            let Ok(Value::Object(mut map)) = json::parse(&known) else {
                unreachable!("our own fragment is JSON")
            };
            map.extend(self.extra.clone());
            out.extend(json::canonical(&Value::Object(map)));
            return;
        }
        let mut object = ObjectWriter::begin(out);
        if let Some(backup) = &self.backup {
            object.text("backup", backup);
        }
        if let Some(length) = self.length {
            object.number("length", length);
        }
        if let Some(member) = &self.member {
            object.bytes("member", "member_b64", member);
        }
        object.text("object", &self.object);
        if let Some(offset) = self.offset {
            object.number("offset", offset);
        }
        if let Some(skip) = self.skip {
            object.number("skip", skip);
        }
        object.end();
    }
}

/// Writes an object whose keys are given in sorted order.
struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
    is_first: bool,
}

impl<'a> ObjectWriter<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        ObjectWriter { out, is_first: true }
    }

    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.is_first) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    fn text(&mut self, key: &str, text: &str) {
        json::push_plain_string(self.key(key), text);
    }

    fn number(&mut self, key: &str, number: u64) {
        use std::io::Write;
        let _ = write!(self.key(key), "{number}");
    }

    fn bytes(&mut self, key: &str, key_base64: &str, bytes: &[u8]) {
        match path::plain_text(bytes) {
            Some(text) => self.text(key, text),
            None => self.text(key_base64, &path::to_base64(bytes)),
        }
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(line: &str) {
        let entry: Entry = serde_json::from_str(line).unwrap();
        let mut out = Vec::new();
        entry.write_canonical(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), line);
    }

    #[test]
    fn lines_come_back_byte_for_byte() {
        round_trip(r#"{"path":"a"}"#);
        round_trip(concat!(
            r#"{"at":{"backup":"b","length":45,"member":"x","object":"files/000001.tar.zst","offset":1048,"skip":512},"#,
            r#""checksum":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","#,
            r#""component":"c","ctime":"2026-04-02T10:00:07.5Z","inode":"18446744073709551615","mode":"0644","#,
            r#""mtime":"2026-04-02T10:00:00.123456789Z","owner":"1000:1000","path":"a\"b\\c ä","size":4523894}"#
        ));
        round_trip(r#"{"path_b64":"YQpi","target_b64":"/w==","type":"symlink"}"#);
        round_trip(r#"{"device":"1:3","path":"null","type":"char"}"#);
        round_trip(r#"{"path":"b","target":"a","type":"hardlink"}"#);
        round_trip(
            r#"{"ctime":"2026-04-02T12:00:07+02:00","mtime":"2026-04-02T10:00:07.500Z","path":"a"}"#,
        );
        round_trip(
            r#"{"checksum":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","path":"a"}"#,
        );
        round_trip(
            r#"{"aa":[1,{"x":null}],"at":{"object":"o","zz":1},"path":"a","xattr":{"k":"v"}}"#,
        );
    }

    #[test]
    fn malformed_entries_are_refused() {
        for bad in [
            "{}",
            r#"{"path":"../x"}"#,
            r#"{"path":"/x"}"#,
            r#"{"path":"a","path":"a"}"#,
            r#"{"path":"a","path_b64":"YQpi"}"#,
            r#"{"path":"a\nb"}"#,
            r#"{"path_b64":"YQ=="}"#,
            r#"{"path_b64":"YQ"}"#,
            r#"{"path":"a","x":1,"x":1}"#,
            r#"{"path":"a","size":-1}"#,
            r#"{"path":"a","size":1.0}"#,
            r#"{"path":"a","size":9007199254740993}"#,
            r#"{"path":"a","mode":"644"}"#,
            r#"{"path":"a","mode":"77777"}"#,
            r#"{"path":"a","inode":7}"#,
            r#"{"path":"a","inode":"+7"}"#,
            r#"{"path":"a","type":"socket"}"#,
            r#"{"path":"a","type":"symlink"}"#,
            r#"{"path":"a","target":"b"}"#,
            r#"{"path":"a","target":"b","type":"hardlink"}"#,
            r#"{"path":"a","target":"../b","type":"hardlink"}"#,
            r#"{"path":"a","checksum":"md5:0"}"#,
            r#"{"path":"a","at":{"object":"../../etc/shadow"}}"#,
            r#"{"path":"a","at":{"object":"/etc/shadow"}}"#,
            r#"{"path":"a","at":{"object":"o","offset":1}}"#,
            r#"{"path":"a","mtime":"yesterday"}"#,
            r#"{"path":"a","mtime":"2026-04-02T10:00:00"}"#,
            r#"{"path":"a","mtime":"2026-04-02T10:00:00,5Z"}"#,
            r#"{"path":"a","mtime":"2026-04-02T10:00:00.Z"}"#,
            r#"{"path":"a","mtime":"2026-04-02T10:00:00.1234567891Z"}"#,
            r#"{"path":"a","mtime":"20260402T100000Z"}"#,
            r#"{"path":"a","component":"../x"}"#,
            r#"["a"]"#,
        ] {
            assert!(serde_json::from_str::<Entry>(bad).is_err(), "{bad}");
        }
    }
}
