//! What a store answers when it does not do what it was asked, and what to do about it.

use std::io;

use bk_manifest::exit::{Exit, Failure};

use super::answer;
use super::settings::Names;
use crate::destination::{Error, ErrorKind};

/// A request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The store refused it.
    #[error("{code} (HTTP {status}){}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// The HTTP status.
        status: u16,
        /// S3's own word for it, or HTTP's where the answer has none.
        code: String,
        /// What the store says to it.
        message: String,
        /// Where the bucket is, if that is what was wrong.
        region: Option<String>,
    },
    /// No answer came, or not all of it.
    #[error("{text}")]
    Network {
        /// What happened.
        text: String,
        /// Whether trying again may help.
        is_transient: bool,
        /// Whether there was a connection.
        reached: bool,
    },
    /// An answer came that cannot be understood.
    #[error("the store's answer cannot be understood: {0}")]
    Odd(String),
    /// The process was told to stop, or the request could not be made.
    #[error("{0}")]
    Local(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Local(error.to_string())
    }
}

impl Fault {
    /// Takes it from the store's answer.
    pub(super) fn refused(status: u16, region: Option<String>, body: &str) -> Self {
        let answer = answer::refusal(body);
        let word = match status {
            403 => "AccessDenied",
            404 => "NotFound",
            _ => "refused",
        };
        Fault::Refused {
            status,
            code: answer.code.unwrap_or_else(|| word.to_owned()),
            message: answer.message.unwrap_or_default(),
            region: region.or(answer.region),
        }
    }

    /// Takes it from words that came with the status of success; its own is the one that S3 gives
    /// such a refusal.
    pub(super) fn said(code: String, message: String) -> Self {
        let status = match &*code {
            "InternalError" => 500,
            "NotImplemented" => 501,
            "SlowDown" | "ServiceUnavailable" => 503,
            "AccessDenied" | "ObjectLocked" => 403,
            "NoSuchBucket" | "NoSuchKey" | "NoSuchUpload" => 404,
            "MethodNotAllowed" => 405,
            "ConditionalRequestConflict" => 409,
            "PreconditionFailed" => 412,
            _ => 400,
        };
        let code = if code.is_empty() { "refused".into() } else { code };
        Fault::Refused { status, code, message, region: None }
    }

    /// S3's word for it; empty if there was no answer.
    pub(super) fn code(&self) -> &str {
        match self {
            Fault::Refused { code, .. } => code,
            _ => "",
        }
    }

    /// The HTTP status of the answer, if there was one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Fault::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the store does not know this kind of request at all.
    pub(super) fn is_unknown_request(&self) -> bool {
        matches!(self.status(), Some(405 | 501))
            || matches!(self.code(), "NotImplemented" | "MethodNotAllowed")
    }

    /// What kind it is.
    pub(super) fn kind(&self) -> ErrorKind {
        let (status, code) = match self {
            Fault::Refused { status, code, .. } => (*status, code.as_str()),
            Fault::Network { is_transient: true, .. } => return ErrorKind::Transient,
            Fault::Network { .. } | Fault::Odd(_) | Fault::Local(_) => return ErrorKind::Other,
        };
        match (status, code) {
            (_, "InvalidObjectState") => ErrorKind::Archived,
            (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage") => {
                ErrorKind::Full
            }
            (_, "NoSuchBucket") => ErrorKind::Other,
            (_, "SlowDown" | "RequestTimeout" | "InternalError" | "Throttling")
            | (408 | 429 | 500 | 502 | 503 | 504, _) => ErrorKind::Transient,
            (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                ErrorKind::Denied
            }
            (404, _) => ErrorKind::NotFound,
            (409 | 412, _) => ErrorKind::Exists,
            _ => ErrorKind::Other,
        }
    }

    /// The exit code and what to do, where there is something to say.
    fn advice(&self, names: &Names) -> Option<(Exit, String)> {
        let Names { keys, region, authorities, has_authorities, endpoint, proxy } = names;
        let denied = |hint: String| Some((Exit::Denied, hint));
        match self.code() {
            "NoSuchBucket" => {
                let hint = format!("make the bucket first; is its name right, and {endpoint}?");
                return Some((Exit::NoDestination, hint));
            }
            "InvalidAccessKeyId" => {
                return denied(format!("the store does not know this access key: see {keys}"));
            }
            "SignatureDoesNotMatch" => {
                return denied(format!("the secret key does not belong to the access key: {keys}"));
            }
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                return denied("these keys were lent for a time that is over: get new ones".into());
            }
            "RequestTimeTooSkewed" => {
                return denied("this machine's clock is wrong: set it (timedatectl)".into());
            }
            "InvalidObjectState" => {
                let hint = "it is in an archive class (Glacier): have the store restore it first";
                return Some((Exit::Failed, hint.into()));
            }
            _ => {}
        }
        match self {
            Fault::Refused { region: Some(right), .. } => {
                Some((Exit::Failed, format!("the bucket is in another region: {region}={right}")))
            }
            Fault::Refused { status: 301 | 307 | 308, .. } => {
                Some((Exit::Failed, format!("is {endpoint} right, and {region}?")))
            }
            _ if self.kind() == ErrorKind::Denied => {
                denied("these keys may not do that in this bucket: see its policy".into())
            }
            Fault::Network { text, .. } if text.contains("certificate") => {
                let hint = if *has_authorities {
                    format!("is it in {authorities}, for the host in {endpoint}, and still valid?")
                } else {
                    format!("if the store has a certificate of your own: {authorities}")
                };
                Some((Exit::NoDestination, hint))
            }
            Fault::Network { text, .. } if text.contains("corrupt message") => {
                let hint =
                    format!("the server speaks no TLS: http instead of https in {endpoint}?");
                Some((Exit::NoDestination, hint))
            }
            Fault::Network { reached: false, .. } => {
                let hint = match proxy {
                    Some(proxy) => format!(
                        "is {endpoint} right, and the store up? {proxy} is set: does it reach the \
                         store, or should NO_PROXY name it?"
                    ),
                    None => format!("is {endpoint} right, and the store up?"),
                };
                Some((Exit::NoDestination, hint))
            }
            _ => None,
        }
    }

    /// The error of an operation on an object.
    pub(super) fn error(self, verb: &'static str, name: &str, place: &str, names: &Names) -> Error {
        let kind = self.kind();
        let source = match self.advice(names) {
            Some((exit, hint)) => Failure::new(exit, self.to_string()).hint(hint).into(),
            None => self.into(),
        };
        let name = bk_manifest::path::escape(name.as_bytes());
        Error { kind, verb, name, place: place.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;

    fn refused(status: u16, code: &str) -> Fault {
        let body = format!("<Error><Code>{code}</Code><Message>because</Message></Error>");
        Fault::refused(status, None, &body)
    }

    fn names() -> Names {
        Names {
            keys: "KEYS".into(),
            region: "REGION".into(),
            authorities: "CA".into(),
            has_authorities: false,
            endpoint: "ENDPOINT".into(),
            proxy: None,
        }
    }

    #[test]
    fn each_refusal_has_its_kind_its_code_and_its_hint() {
        use ErrorKind::{Archived, Denied, Exists, Full, NotFound, Other, Transient};
        for (status, code, kind, exit, hint) in [
            (404, "NoSuchKey", NotFound, Exit::Failed, ""),
            (404, "NoSuchBucket", Other, Exit::NoDestination, "ENDPOINT"),
            (403, "AccessDenied", Denied, Exit::Denied, "policy"),
            (403, "InvalidAccessKeyId", Denied, Exit::Denied, "KEYS"),
            (403, "SignatureDoesNotMatch", Denied, Exit::Denied, "KEYS"),
            (400, "ExpiredToken", Denied, Exit::Denied, "new ones"),
            (403, "RequestTimeTooSkewed", Denied, Exit::Denied, "clock"),
            (403, "InvalidObjectState", Archived, Exit::Failed, "Glacier"),
            (403, "QuotaExceeded", Full, Exit::Failed, ""),
            (507, "XMinioStorageFull", Full, Exit::Failed, ""),
            (503, "SlowDown", Transient, Exit::Failed, ""),
            (500, "InternalError", Transient, Exit::Failed, ""),
            (400, "RequestTimeout", Transient, Exit::Failed, ""),
            (412, "PreconditionFailed", Exists, Exit::Failed, ""),
            (301, "PermanentRedirect", Other, Exit::Failed, "REGION"),
            (400, "EntityTooLarge", Other, Exit::Failed, ""),
        ] {
            let fault = refused(status, code);
            assert_eq!(fault.kind(), kind, "{code}");
            let error = anyhow::Error::from(fault.error("read", "a\nb", "s3://x", &names()));
            assert_eq!(classify(&error), exit, "{code}");
            let text = format!("{error:#}");
            assert!(text.contains(code) && text.contains("because"), "{text}");
            assert!(!text.contains('\n'), "{text}");
            let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
            assert!(failure.is_none_or(|failure| failure.hints[0].contains(hint)), "{code}");
            assert_eq!(failure.is_none(), hint.is_empty(), "{code}");
        }
    }

    #[test]
    fn the_right_region_is_named() {
        let fault = Fault::refused(301, Some("eu-west-1".into()), "");
        let error = anyhow::Error::from(fault.error("list", "", "s3://x", &names()));
        let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).unwrap();
        assert!(failure.hints[0].contains("REGION=eu-west-1"), "{failure:?}");
    }

    #[test]
    fn an_answer_that_is_no_xml_has_a_cause_too() {
        let fault = Fault::refused(502, None, "<html>Bad Gateway");
        assert_eq!(fault.kind(), ErrorKind::Transient);
        assert_eq!(fault.to_string(), "refused (HTTP 502)");
    }
}
