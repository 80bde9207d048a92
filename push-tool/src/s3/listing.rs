//! Goes through the keys of a bucket, page by page.

use std::vec;

use bk_manifest::path::RelPath;
use bk_manifest::time::Time;
use reqwest::Method;

use super::answer::{self, Listed, ObjectPage, UploadPage};
use super::client::Request;
use super::fault::Fault;
use super::{S3, probe};
use crate::destination::{ErrorKind, ObjectInfo, Result};

/// What a listing makes of an object, and of its key as it was before the store encoded it, if that is
/// text.
pub(super) type Take<T> = fn(&S3, Option<String>, &Listed) -> Option<T>;

/// The objects below a folder; those that `take` has no use for are passed over.
pub(super) struct Objects<'a, T> {
    s3: &'a S3,
    take: Take<T>,
    folder: String,
    request: Request,
    page: vec::IntoIter<Listed>,
    encoding: Option<String>,
    /// What the next page is asked for with; none at the end.
    next: Option<Request>,
    token: Option<String>,
}

impl<'a, T> Objects<'a, T> {
    /// Asks for the first page.
    pub(super) fn begin(s3: &'a S3, folder: &str, take: Take<T>) -> Result<Self> {
        let prefix = s3.key_prefix(folder);
        let request = Request::new(Method::GET, "")
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("prefix", prefix);
        let mut objects = Objects {
            s3,
            take,
            folder: folder.to_owned(),
            next: Some(request.clone()),
            request,
            page: Vec::new().into_iter(),
            encoding: None,
            token: None,
        };
        objects.turn()?;
        Ok(objects)
    }

    fn turn(&mut self) -> Result<()> {
        let Some(request) = self.next.take() else { return Ok(()) };
        let mut turn = || -> std::result::Result<(), Fault> {
            let page: ObjectPage = self.s3.client.ask(&request)?;
            if page.is_truncated {
                let token = page.next_continuation_token.filter(|token| !token.is_empty());
                if token.is_none() || token == self.token {
                    return Err(Fault::Odd("it lists the same again and again".into()));
                }
                let next = token.clone().unwrap_or_default();
                self.next = Some(self.request.clone().query("continuation-token", next));
                self.token = token;
            }
            self.encoding = page.encoding_type;
            self.page = page.contents.into_iter();
            Ok(())
        };
        turn().map_err(|fault| self.s3.error("list", &self.folder, fault))
    }
}

/// An object of ours. Keys that are no relative path (`/a`, `a//b`, `folder/`) are none of ours and
/// cannot be asked for by name.
pub(super) fn info(s3: &S3, key: Option<String>, listed: &Listed) -> Option<ObjectInfo> {
    let key = key?;
    let name = s3.name(&key)?;
    (!name.starts_with(probe::NAME)).then(|| ObjectInfo {
        name: name.to_owned(),
        size: listed.size,
        // As looking at it alone says it, and the clock: in whole seconds.
        modified: Time::from_unix(listed.last_modified.unix().0, 0),
    })
}

impl<T> Iterator for Objects<'_, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for listed in self.page.by_ref() {
                let key = answer::decoded(&listed.key, self.encoding.as_deref());
                if let Some(taken) = (self.take)(self.s3, key, &listed) {
                    return Some(Ok(taken));
                }
            }
            self.next.as_ref()?;
            if let Err(error) = self.turn() {
                return Some(Err(error));
            }
        }
    }
}

/// What keys must be allowed to do for uploads that died to be swept.
pub(super) const SWEEP_RIGHTS: &str =
    "s3:ListBucketMultipartUploads on the bucket and s3:AbortMultipartUpload on its objects";

/// Takes away uploads that were begun before `before` and never ended, and what a probe left: all that
/// it may, whatever else is refused.
pub(super) fn sweep(s3: &S3, before: Time) -> std::result::Result<u64, Fault> {
    let uploads = sweep_uploads(s3, before);
    let probes = sweep_probes(s3, before)?;
    Ok(uploads? + probes)
}

fn sweep_uploads(s3: &S3, before: Time) -> std::result::Result<u64, Fault> {
    let first = Request::new(Method::GET, "")
        .query("uploads", "")
        .query("encoding-type", "url")
        .query("prefix", s3.key_prefix(""));
    let mut request = Some(first.clone());
    let mut swept = 0;
    let mut last = None;
    let mut refused = None;
    while let Some(asked) = request.take() {
        bk_manifest::signal::check()?;
        let page: UploadPage = match s3.client.ask(&asked) {
            Err(fault) if fault.is_unknown_request() => break,
            page => page?,
        };
        let encoding = page.encoding_type.as_deref();
        for upload in &page.upload {
            let Some(key) = answer::decoded(&upload.key, encoding) else { continue };
            if upload.initiated < before && s3.name(&key).is_some_and(is_ours) {
                let abort =
                    Request::new(Method::DELETE, &key).query("uploadId", upload.upload_id.clone());
                match s3.client.send(&abort) {
                    // Another prune was faster.
                    Err(fault) if fault.kind() == ErrorKind::NotFound => {}
                    Err(fault) if fault.kind() == ErrorKind::Denied => refused = Some(fault),
                    sent => {
                        sent?;
                        swept += 1;
                    }
                }
            }
        }
        if page.is_truncated {
            let key = page.next_key_marker.and_then(|key| answer::decoded(&key, encoding));
            let markers = (key.unwrap_or_default(), page.next_upload_id_marker.unwrap_or_default());
            if markers.0.is_empty() || last.as_ref() == Some(&markers) {
                return Err(Fault::Odd("it lists the same uploads again and again".into()));
            }
            let next = first.clone().query("key-marker", markers.0.clone());
            request = Some(next.query("upload-id-marker", markers.1.clone()));
            last = Some(markers);
        }
    }
    refused.map_or(Ok(swept), Err)
}

fn sweep_probes(s3: &S3, before: Time) -> std::result::Result<u64, Fault> {
    let prefix = s3.key_prefix("") + probe::NAME;
    let request = Request::new(Method::GET, "").query("list-type", "2").query("prefix", prefix);
    let page: ObjectPage = s3.client.ask(&request)?;
    let mut swept = 0;
    for listed in page.contents.iter().filter(|listed| listed.last_modified < before) {
        s3.client.send(&Request::new(Method::DELETE, &listed.key))?;
        swept += 1;
    }
    Ok(swept)
}

/// Whether an upload can be one of ours, by its name: the bucket may be an application's too.
fn is_ours(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let is_year = first.len() == 4 && first.bytes().all(|byte| byte.is_ascii_digit());
    RelPath::new(name).is_ok() && (is_year || first == crate::place::OWN_FOLDER)
}
