//! What a store answers in XML, as far as it is asked for.

use bk_manifest::time::Time;
use quick_xml::events::Event;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::fault::Fault;

/// A kind of answer.
pub(super) trait Form: DeserializeOwned {
    /// What its root element is called.
    const ROOT: &str;
}

/// Reads an answer that came with the status of success.
///
/// # Errors
/// [`Fault::Refused`] for a refusal: S3 begins to answer with 200 before it knows how it will end.
/// [`Fault::Odd`] for what is not XML of this form: the page of a proxy would else be an answer in
/// which nothing stands.
pub(super) fn parse<T: Form>(body: &str) -> Result<T, Fault> {
    let root = root(body)?;
    if root == T::ROOT {
        return quick_xml::de::from_str(body).map_err(|error| Fault::Odd(error.to_string()));
    }
    Err(other(body, &root, T::ROOT))
}

/// Reads an answer that has no words if all went well.
///
/// # Errors
/// As [`parse`].
pub(super) fn silence(body: &str) -> Result<(), Fault> {
    if body.trim().is_empty() { Ok(()) } else { Err(other(body, &root(body)?, "nothing")) }
}

/// What is wrong with an answer that is not `expected`.
fn other(body: &str, root: &str, expected: &str) -> Fault {
    if root == Refusal::ROOT {
        let Refusal { code, message, .. } = refusal(body);
        return Fault::said(code.unwrap_or_default(), message.unwrap_or_default());
    }
    Fault::Odd(format!("it is '{root}', not {expected}"))
}

/// The name of the outermost element.
fn root(body: &str) -> Result<String, Fault> {
    let mut reader = quick_xml::Reader::from_str(body);
    loop {
        match reader.read_event().map_err(|error| Fault::Odd(error.to_string()))? {
            Event::Start(tag) | Event::Empty(tag) => {
                return Ok(String::from_utf8_lossy(tag.local_name().as_ref()).into_owned());
            }
            Event::Eof => return Err(Fault::Odd("it is no XML".into())),
            _ => {}
        }
    }
}

/// Text as it stands in XML.
pub(super) fn quoted(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

/// Why a request was refused.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Refusal {
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) region: Option<String>,
}

impl Form for Refusal {
    const ROOT: &str = "Error";
}

/// Reads a refusal; one that is not XML says nothing.
pub(super) fn refusal(body: &str) -> Refusal {
    parse(body).unwrap_or_default()
}

/// A page of a listing (`ListObjectsV2`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObjectPage {
    #[serde(default)]
    pub(super) contents: Vec<Listed>,
    pub(super) encoding_type: Option<String>,
    pub(super) is_truncated: bool,
    pub(super) next_continuation_token: Option<String>,
}

impl Form for ObjectPage {
    const ROOT: &str = "ListBucketResult";
}

/// An object of a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) last_modified: Time,
    #[serde(rename = "ETag")]
    pub(super) etag: Option<String>,
}

/// The answer to `CreateMultipartUpload`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Begun {
    pub(super) upload_id: String,
}

impl Form for Begun {
    const ROOT: &str = "InitiateMultipartUploadResult";
}

/// The answer to `CompleteMultipartUpload`.
#[derive(Debug, Deserialize)]
pub(super) struct Completed {}

impl Form for Completed {
    const ROOT: &str = "CompleteMultipartUploadResult";
}

/// A page of unfinished uploads (`ListMultipartUploads`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct UploadPage {
    #[serde(default)]
    pub(super) upload: Vec<UploadListed>,
    pub(super) encoding_type: Option<String>,
    /// Some stores leave it out; what is missed only takes space.
    #[serde(default)]
    pub(super) is_truncated: bool,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_upload_id_marker: Option<String>,
}

impl Form for UploadPage {
    const ROOT: &str = "ListMultipartUploadsResult";
}

/// An unfinished upload.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct UploadListed {
    pub(super) key: String,
    pub(super) upload_id: String,
    pub(super) initiated: Time,
}

/// The answer to `DeleteObjects`, asked for errors only.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Deleted {
    #[serde(default)]
    pub(super) error: Vec<NotDeleted>,
}

impl Form for Deleted {
    const ROOT: &str = "DeleteResult";
}

/// An object that was not deleted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NotDeleted {
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

/// The answer to `GetBucketVersioning`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Versioning {
    pub(super) status: Option<String>,
}

impl Form for Versioning {
    const ROOT: &str = "VersioningConfiguration";
}

/// The answer to `GetObjectLockConfiguration`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObjectLock {
    pub(super) rule: Option<LockRule>,
}

impl Form for ObjectLock {
    const ROOT: &str = "ObjectLockConfiguration";
}

/// What new objects get.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct LockRule {
    pub(super) default_retention: Option<Retention>,
}

/// How long an object cannot be removed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Retention {
    pub(super) mode: Option<String>,
    pub(super) days: Option<u32>,
    pub(super) years: Option<u32>,
}

/// The answer to `GetBucketLifecycleConfiguration`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Lifecycle {
    #[serde(default)]
    pub(super) rule: Vec<LifecycleRule>,
}

impl Form for Lifecycle {
    const ROOT: &str = "LifecycleConfiguration";
}

/// A rule by which the store changes or removes objects by itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct LifecycleRule {
    #[serde(rename = "ID")]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) status: String,
    pub(super) prefix: Option<String>,
    pub(super) filter: Option<Filter>,
    pub(super) expiration: Option<Expiration>,
    #[serde(default)]
    pub(super) transition: Vec<Transition>,
}

/// Which objects a rule is for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Filter {
    pub(super) prefix: Option<String>,
    pub(super) and: Option<Box<Filter>>,
    #[serde(default)]
    pub(super) tag: Vec<IgnoredAny>,
}

/// When objects are removed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Expiration {
    pub(super) days: Option<u32>,
    pub(super) date: Option<String>,
}

/// When objects move to another storage class.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Transition {
    #[serde(default)]
    pub(super) storage_class: String,
}

/// A key as it was before the store encoded it for its answer; `None` if that is no text.
pub(super) fn decoded(key: &str, encoding: Option<&str>) -> Option<String> {
    if !encoding.is_some_and(|encoding| encoding.eq_ignore_ascii_case("url")) {
        return Some(key.to_owned());
    }
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded() {
        for (key, text) in [
            ("a/b%2Fc+d%2B", Some("a/b/c d+")),
            ("%C3%A4", Some("ä")),
            ("%FF", None),
            ("%4", None),
            ("%zz", None),
        ] {
            assert_eq!(decoded(key, Some("url")).as_deref(), text, "{key}");
        }
        assert_eq!(decoded("a+%41", None).as_deref(), Some("a+%41"));
    }

    #[test]
    fn answers_of_the_stores_are_read() {
        let page: ObjectPage = parse(
            r#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
            <Prefix/><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>
            <Contents><Key>a &amp; b</Key><LastModified>2026-05-01T00:00:00.123Z</LastModified>
            <ETag>&quot;x&quot;</ETag><Size>5</Size><Owner><ID>x</ID></Owner></Contents>
            <Contents><Key>c</Key><LastModified>2026-05-01T00:00:00Z</LastModified>
            <Size>0</Size></Contents><NextContinuationToken>t</NextContinuationToken>
            </ListBucketResult>"#,
        )
        .unwrap();
        let keys: Vec<_> = page.contents.iter().map(|object| &*object.key).collect();
        assert_eq!(keys, ["a & b", "c"]);
        assert!(page.is_truncated && page.next_continuation_token.as_deref() == Some("t"));
        let empty = "\n <a:ListBucketResult xmlns:a='x'><IsTruncated>false</IsTruncated>\
                     </a:ListBucketResult>";
        let empty: ObjectPage = parse(empty).unwrap();
        assert!(empty.contents.is_empty() && !empty.is_truncated);
        assert!(parse::<ObjectPage>("<ListBucketResult><Contents>").is_err());
        let lifecycle: Lifecycle = parse(
            "<LifecycleConfiguration><Rule><ID>old</ID><Filter><And><Prefix>a/</Prefix><Tag>
            <Key>k</Key></Tag></And></Filter><Status>Enabled</Status><Expiration><Days>30</Days>
            </Expiration></Rule></LifecycleConfiguration>",
        )
        .unwrap();
        assert_eq!(lifecycle.rule[0].expiration.as_ref().unwrap().days, Some(30));
        assert!(refusal("<html>").code.is_none());
    }
}
