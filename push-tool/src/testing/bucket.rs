//! A bucket in memory that answers requests as S3 does.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bk_manifest::time::Time;
use md5::{Digest as _, Md5};

use super::http::{Reply, Request, decode, encode};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A whole object is put.
    Put,
    /// An object is read.
    Get,
    /// An object is looked at.
    Head,
    /// One object is removed.
    Delete,
    /// Many are.
    DeleteMany,
    /// Objects are listed.
    List,
    /// An upload in parts begins.
    Begin,
    /// A part is put.
    Part,
    /// Parts are made an object.
    Complete,
    /// Parts are taken away.
    Abort,
    /// Unfinished uploads are listed.
    Uploads,
    /// A rule of the bucket is asked for.
    Rule,
}

/// What is stored, and what the store can do.
pub struct Bucket {
    /// By key.
    pub objects: BTreeMap<String, Object>,
    /// Unfinished uploads, by id.
    pub uploads: BTreeMap<String, Unfinished>,
    /// What a bucket's rules are, in XML, by the parameter that asks for them.
    pub rules: BTreeMap<String, String>,
    /// Whether `If-None-Match` is heeded.
    pub has_create_only: bool,
    /// Whether many objects are removed at once.
    pub has_delete_many: bool,
    /// Objects of one page of a listing.
    pub page: usize,
    /// Seconds by which its clock is ahead.
    pub ahead: i64,
    next: u64,
}

/// An object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its content.
    pub bytes: Vec<u8>,
    /// When it was stored.
    pub modified: Time,
    /// Its class; an archived one cannot be read.
    pub class: Option<String>,
    /// Headers that are kept with it.
    pub metadata: Vec<(String, String)>,
    etag: String,
}

/// An upload that was begun.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// Its object's key.
    pub key: String,
    /// When it was begun.
    pub initiated: Time,
    /// The parts so far, with their `ETags`.
    pub parts: BTreeMap<u64, (Vec<u8>, String)>,
    metadata: Vec<(String, String)>,
}

impl Default for Bucket {
    fn default() -> Self {
        Bucket {
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            rules: BTreeMap::new(),
            has_create_only: true,
            has_delete_many: true,
            page: 1000,
            ahead: 0,
            next: 0,
        }
    }
}

/// What a request asks for; `None` for what no store knows.
pub(super) fn kind(request: &Request, key: &str) -> Option<Kind> {
    let has = |name: &str| request.query.iter().any(|(query, _)| query == name);
    let is_part = has("uploadId");
    Some(match (&*request.method, key.is_empty()) {
        ("PUT", false) if is_part => Kind::Part,
        ("PUT", false) => Kind::Put,
        ("GET", false) => Kind::Get,
        ("HEAD", false) => Kind::Head,
        ("DELETE", false) if is_part => Kind::Abort,
        ("DELETE", false) => Kind::Delete,
        ("POST", false) if has("uploads") => Kind::Begin,
        ("POST", false) if is_part => Kind::Complete,
        ("POST", true) if has("delete") => Kind::DeleteMany,
        ("GET", true) if has("uploads") => Kind::Uploads,
        ("GET", true) if has("list-type") => Kind::List,
        ("GET", true) => Kind::Rule,
        _ => return None,
    })
}

impl Bucket {
    /// Its clock, in whole seconds.
    pub fn now(&self) -> Time {
        Time::from_unix(Time::now().unix().0 + self.ahead, 0)
    }

    /// Puts an object behind everybody's back.
    pub fn store(&mut self, key: &str, bytes: &[u8]) {
        let object = self.object(bytes.to_vec(), Vec::new());
        self.objects.insert(key.to_owned(), object);
    }

    fn object(&mut self, bytes: Vec<u8>, metadata: Vec<(String, String)>) -> Object {
        self.next += 1;
        let etag = format!("\"{:032x}\"", self.next);
        Object { bytes, modified: self.now(), class: None, metadata, etag }
    }

    pub(super) fn answer(&mut self, kind: Kind, key: &str, request: &Request) -> Reply {
        if let Some(sum) = request.header("content-md5")
            && sum != BASE64_STANDARD.encode(Md5::digest(&request.body))
        {
            return Reply::refusal(400, "BadDigest");
        }
        match kind {
            Kind::Put | Kind::Complete if self.is_refused(key, request) => {
                Reply::refusal(412, "PreconditionFailed")
            }
            Kind::Put => {
                let object = self.object(request.body.clone(), metadata(request));
                let etag = object.etag.clone();
                self.objects.insert(key.to_owned(), object);
                Reply::new(200, "").with("etag", etag)
            }
            Kind::Get | Kind::Head => self.get(kind, key, request),
            Kind::Delete => {
                self.objects.remove(key);
                Reply::new(204, "")
            }
            Kind::DeleteMany if !self.has_delete_many => Reply::refusal(501, "NotImplemented"),
            Kind::DeleteMany => self.delete_many(request),
            Kind::List => self.list(request),
            Kind::Begin => {
                self.next += 1;
                let id = format!("upload-{}", self.next);
                let (initiated, metadata) = (self.now(), metadata(request));
                let (key, parts) = (key.to_owned(), BTreeMap::new());
                self.uploads.insert(id.clone(), Unfinished { key, initiated, parts, metadata });
                Reply::new(200, begun(&id))
            }
            Kind::Part => self.part(request),
            Kind::Complete => self.complete(request),
            Kind::Abort => match self.uploads.remove(&upload_id(request)) {
                Some(_) => Reply::new(204, ""),
                None => Reply::refusal(404, "NoSuchUpload"),
            },
            Kind::Uploads => self.list_uploads(request),
            Kind::Rule => {
                let rule = request.query.first().and_then(|(name, _)| self.rules.get(name));
                match rule {
                    Some(rule) => Reply::new(200, rule.clone()),
                    None => Reply::refusal(404, "NoSuchConfiguration"),
                }
            }
        }
    }

    fn is_refused(&self, key: &str, request: &Request) -> bool {
        let is_conditional = request.header("if-none-match") == Some("*");
        self.has_create_only && is_conditional && self.objects.contains_key(key)
    }

    fn get(&self, kind: Kind, key: &str, request: &Request) -> Reply {
        let Some(object) = self.objects.get(key) else { return Reply::refusal(404, "NoSuchKey") };
        if kind == Kind::Get && object.class.is_some() {
            return Reply::refusal(403, "InvalidObjectState");
        }
        if request.header("if-match").is_some_and(|etag| etag != object.etag) {
            return Reply::refusal(412, "PreconditionFailed");
        }
        let size = object.bytes.len();
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
        let range = range.and_then(|range| range.split_once('-'));
        let range = range.map(|(first, last)| {
            let end = last.parse().map_or(size, |last: usize| last.saturating_add(1).min(size));
            first.parse().unwrap_or(size)..end
        });
        let reply = match range {
            None => Reply::new(200, object.bytes.clone()),
            Some(range) if range.is_empty() => return Reply::refusal(416, "InvalidRange"),
            Some(range) => {
                let said = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                Reply::new(206, &object.bytes[range]).with("content-range", said)
            }
        };
        let reply =
            reply.with("etag", &*object.etag).with("last-modified", http_date(object.modified));
        object.metadata.iter().fold(reply, |reply, (name, value)| reply.with(name, value))
    }

    fn delete_many(&mut self, request: &Request) -> Reply {
        if request.header("content-md5").is_none() {
            return Reply::refusal(400, "MissingContentMD5");
        }
        let body = String::from_utf8_lossy(&request.body).into_owned();
        for key in body.split("<Key>").skip(1) {
            let key = key.split("</Key>").next().unwrap_or_default();
            self.objects.remove(&key.replace("&lt;", "<").replace("&amp;", "&"));
        }
        Reply::new(200, "<DeleteResult></DeleteResult>")
    }

    fn list(&self, request: &Request) -> Reply {
        let prefix = request.parameter("prefix").unwrap_or_default();
        let after = request.parameter("continuation-token").unwrap_or_default();
        let most = request.parameter("max-keys").and_then(|most| most.parse().ok());
        let page = self.page.min(most.unwrap_or(self.page));
        let is_encoded = request.parameter("encoding-type").is_some();
        let mut found = self
            .objects
            .range(after.clone()..)
            .filter(|(key, _)| **key != after && key.starts_with(&prefix));
        let mut body = "<ListBucketResult>".to_owned();
        let mut last = None;
        for (key, object) in found.by_ref().take(page) {
            let written = if is_encoded { encode(key) } else { key.clone() };
            let _ = write!(
                body,
                "<Contents><Key>{written}</Key><LastModified>{}</LastModified><ETag>{}</ETag>\
                 <Size>{}</Size></Contents>",
                object.modified,
                object.etag.replace('"', "&quot;"),
                object.bytes.len()
            );
            last = Some(key);
        }
        let last = last.filter(|_| found.next().is_some());
        let _ = write!(body, "<IsTruncated>{}</IsTruncated>", last.is_some());
        if let Some(last) = last {
            let _ = write!(
                body,
                "<NextContinuationToken>{}</NextContinuationToken>",
                last.replace('&', "&amp;").replace('<', "&lt;")
            );
        }
        if is_encoded {
            body += "<EncodingType>url</EncodingType>";
        }
        Reply::new(200, body + "</ListBucketResult>")
    }

    fn part(&mut self, request: &Request) -> Reply {
        let number = request.parameter("partNumber").and_then(|number| number.parse().ok());
        self.next += 1;
        let etag = format!("\"{:032x}\"", self.next);
        let Some(upload) = self.uploads.get_mut(&upload_id(request)) else {
            return Reply::refusal(404, "NoSuchUpload");
        };
        upload.parts.insert(number.unwrap_or(0), (request.body.clone(), etag.clone()));
        Reply::new(200, "").with("etag", etag)
    }

    fn complete(&mut self, request: &Request) -> Reply {
        let Some(upload) = self.uploads.remove(&upload_id(request)) else {
            return Reply::refusal(404, "NoSuchUpload");
        };
        let body = String::from_utf8_lossy(&request.body).replace("&quot;", "\"");
        let parts = upload.parts.values();
        let named = parts.clone().all(|(_, etag)| body.contains(etag.as_str()));
        if !named || body.matches("<Part>").count() != upload.parts.len() {
            return Reply::refusal(400, "InvalidPart");
        }
        let bytes = parts.map(|(bytes, _)| bytes.as_slice()).collect::<Vec<_>>().concat();
        let object = self.object(bytes, upload.metadata);
        self.objects.insert(upload.key, object);
        Reply::new(200, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
    }

    fn list_uploads(&self, request: &Request) -> Reply {
        let prefix = request.parameter("prefix").unwrap_or_default();
        let after = request.parameter("upload-id-marker").unwrap_or_default();
        let mut found = self
            .uploads
            .iter()
            .filter(|(id, upload)| **id > after && upload.key.starts_with(&prefix));
        let mut body = "<ListMultipartUploadsResult>".to_owned();
        let mut last = None;
        for (id, upload) in found.by_ref().take(self.page) {
            let _ = write!(
                body,
                "<Upload><Key>{}</Key><UploadId>{id}</UploadId><Initiated>{}</Initiated></Upload>",
                encode(&upload.key),
                upload.initiated
            );
            last = Some((id, encode(&upload.key)));
        }
        let last = last.filter(|_| found.next().is_some());
        if let Some((id, key)) = last {
            body.push_str("<IsTruncated>true</IsTruncated>");
            let _ = write!(
                body,
                "<NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>"
            );
        }
        let end = "<EncodingType>url</EncodingType></ListMultipartUploadsResult>";
        Reply::new(200, body + end)
    }
}

/// The key that a path names, behind the bucket's name.
pub(super) fn key_of(path: &str, bucket: &str) -> Option<String> {
    let rest = path.strip_prefix('/')?.strip_prefix(bucket)?;
    Some(decode(rest.strip_prefix('/').unwrap_or(rest)))
}

/// A time as HTTP writes it.
pub(super) fn http_date(time: Time) -> String {
    time.format("%a, %d %b %Y %H:%M:%S GMT")
}

fn begun(id: &str) -> String {
    format!(
        "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
    )
}

fn upload_id(request: &Request) -> String {
    request.parameter("uploadId").unwrap_or_default()
}

fn metadata(request: &Request) -> Vec<(String, String)> {
    let is_metadata = |(name, _): &(&String, &String)| {
        name.starts_with("x-amz-meta-") || crate::bucket::HEADERS.contains(&name.as_str())
    };
    let own = |(name, value): (&String, &String)| (name.clone(), value.clone());
    request.headers.iter().filter(is_metadata).map(own).collect()
}
