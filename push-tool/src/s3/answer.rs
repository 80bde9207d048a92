//! What a store answers in XML, as far as it is asked for.

use bk_manifest::time::Time;
use serde::Deserialize;

use super::fault::Fault;

/// Reads an answer.
///
/// # Errors
/// [`Fault::Odd`] for what is not XML of this form.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, Fault> {
    quick_xml::de::from_str(body).map_err(|error| Fault::Odd(error.to_string()))
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

/// Reads a refusal; one that is not XML says nothing.
pub(super) fn refusal(body: &str) -> Refusal {
    if !body.contains("<Error") {
        return Refusal::default();
    }
    parse(body).unwrap_or_default()
}

/// A page of a listing (`ListObjectsV2`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObjectPage {
    #[serde(default)]
    pub(super) contents: Vec<Listed>,
    pub(super) encoding_type: Option<String>,
    #[serde(default)]
    pub(super) is_truncated: bool,
    pub(super) next_continuation_token: Option<String>,
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

/// A page of unfinished uploads (`ListMultipartUploads`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct UploadPage {
    #[serde(default)]
    pub(super) upload: Vec<UploadListed>,
    pub(super) encoding_type: Option<String>,
    #[serde(default)]
    pub(super) is_truncated: bool,
    pub(super) next_key_marker: Option<String>,
    pub(super) next_upload_id_marker: Option<String>,
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
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Deleted {
    #[serde(default)]
    pub(super) error: Vec<NotDeleted>,
}

/// An object that was not deleted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NotDeleted {
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

/// The answer to `GetObjectLockConfiguration`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ObjectLock {
    pub(super) rule: Option<LockRule>,
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
        let empty: ObjectPage = parse("<ListBucketResult></ListBucketResult>").unwrap();
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
