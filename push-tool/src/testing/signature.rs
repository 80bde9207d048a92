//! Checks the signature of a request (AWS Signature Version 4), written from its description alone.

use std::fmt::Write;

use bk_manifest::time::Time;
use sha2::{Digest, Sha256};

use super::http::Request;

/// How far a request's time may be from the server's, in seconds.
const SKEW: u64 = 15 * 60;

/// Whether the request is signed with the key, for now; if not, S3's word for what is wrong.
pub(super) fn check(
    request: &Request,
    (key_id, secret, token): (&str, &str, Option<&str>),
    now: Time,
) -> Result<(), &'static str> {
    let authorization = request.header("authorization").ok_or("AccessDenied")?;
    let part = |name: &str| {
        let (_, rest) = authorization.split_once(name)?;
        Some(rest.split(',').next().unwrap_or(rest))
    };
    let scope = part("Credential=").ok_or("AccessDenied")?;
    let (id, scope) = scope.split_once('/').ok_or("AccessDenied")?;
    if id != key_id {
        return Err("InvalidAccessKeyId");
    }
    if request.header("x-amz-security-token") != token {
        return Err("InvalidToken");
    }
    let time = request.header("x-amz-date").ok_or("AccessDenied")?;
    let signed: jiff::Timestamp = jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", time)
        .and_then(|time| time.to_datetime())
        .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC))
        .map_err(|_| "AccessDenied")?
        .timestamp();
    if signed.as_second().abs_diff(now.unix().0) > SKEW {
        return Err("RequestTimeTooSkewed");
    }
    let payload = request.header("x-amz-content-sha256").ok_or("AccessDenied")?;
    if payload != hex(&Sha256::digest(&request.body)) {
        return Err("XAmzContentSHA256Mismatch");
    }
    let names = part("SignedHeaders=").ok_or("AccessDenied")?;
    let canonical = canonical(request, names, payload);
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part.as_bytes());
    }
    let signature = hex(&hmac(&key, to_sign.as_bytes()));
    if part("Signature=") == Some(&signature) { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

fn canonical(request: &Request, names: &str, payload: &str) -> String {
    let mut query: Vec<String> =
        request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    query.sort();
    let mut text = format!("{}\n{}\n{}\n", request.method, request.path, query.join("&"));
    for name in names.split(';') {
        let _ = writeln!(text, "{name}:{}", request.header(name).unwrap_or_default());
    }
    text + "\n" + names + "\n" + payload
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    let short = if key.len() > 64 { Sha256::digest(key).to_vec() } else { key.to_vec() };
    for (to, from) in block.iter_mut().zip(&short) {
        *to = *from;
    }
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
