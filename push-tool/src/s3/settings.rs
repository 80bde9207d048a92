//! How a bucket is reached: endpoint, region, keys, read from variables.

use std::time::Duration;

use bk_manifest::exit::{Exit, Failure, fail};
use object_store::aws::AwsCredential;
use reqwest::Url;

use crate::access::Access;
use crate::rate::Rate;

const DEFAULT_REGION: &str = "us-east-1";
const DEFAULT_RETRIES: u32 = 3;
const DEFAULT_DELAY: Duration = Duration::from_secs(1);
/// How long nothing may move before a server counts as dead.
const STALL: Duration = Duration::from_mins(1);

/// How a bucket is reached.
pub(super) struct Settings {
    /// The bucket's own address; keys come behind its slash.
    pub(super) base: Url,
    pub(super) region: String,
    pub(super) credential: AwsCredential,
    /// Certificates to trust beside the system's, PEM.
    pub(super) authorities: Option<Vec<u8>>,
    /// How often a request is tried again.
    pub(super) retries: u32,
    /// Before the first of these; then twice as long each time.
    pub(super) delay: Duration,
    pub(super) stall: Duration,
    pub(super) rate: Option<Rate>,
    pub(super) names: Names,
}

/// What the variables are called, and which are set, for hints.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) keys: String,
    pub(super) region: String,
    pub(super) authorities: String,
    pub(super) has_authorities: bool,
    pub(super) endpoint: String,
    /// The variable that names a proxy, and where that is.
    pub(super) proxy: Option<String>,
}

/// The variables of one group: a pair of keys is never made of two groups.
struct Group {
    id: String,
    secret: String,
    token: Option<&'static str>,
    /// Whether it is the application's own, whose endpoint goes with its keys only.
    is_application: bool,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// [`Exit::Denied`] without keys, [`Exit::Usage`] for what is malformed.
    pub(super) fn read(bucket: &str, access: &Access) -> anyhow::Result<Self> {
        let (group, credential) = credential(access)?;
        let found = |own: &str, application: Option<&str>, standard: &[&str]| {
            let application = application.filter(|_| group.is_application);
            let names = application.iter().chain(standard).map(|name| (*name).to_owned());
            let mut names = std::iter::once(access.name(own)).chain(names);
            names.find_map(|name| Some((access.plain(&name)?, name)))
        };
        let find = |own: &str, application: Option<&str>, standard: &[&str]| {
            found(own, application, standard).map(|(value, _)| value)
        };
        let region =
            match found("S3_REGION", Some("S3_REGION"), &["AWS_REGION", "AWS_DEFAULT_REGION"]) {
                Some((region, name)) => parse_region(region, &name)?,
                None => DEFAULT_REGION,
            };
        let endpoint =
            find("S3_ENDPOINT", Some("S3_ENDPOINT"), &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        let is_path_style = match access.switch("S3_FORCE_PATH_STYLE")? {
            Some(switch) => switch,
            None => match access.plain("S3_ADDRESSING_STYLE").filter(|_| group.is_application) {
                Some("path") => true,
                Some("virtual") => false,
                None | Some("auto") => endpoint.is_some(),
                Some(_) => {
                    let message = "S3_ADDRESSING_STYLE is neither auto, path nor virtual";
                    return Err(fail(Exit::Usage, message));
                }
            },
        };
        let is_plain_allowed = access.switch("S3_SSL_ENABLED")? == Some(false);
        let endpoint = match endpoint {
            Some(endpoint) => parse_endpoint(endpoint, is_plain_allowed, access)?,
            None => parse_endpoint(&format!("https://s3.{region}.amazonaws.com"), false, access)?,
        };
        let authorities = match find("S3_CA_FILE", None, &["AWS_CA_BUNDLE"]) {
            None => None,
            Some(file) => Some(std::fs::read(file).map_err(|error| {
                let name = access.name("S3_CA_FILE");
                fail(Exit::Usage, format!("{name}: cannot read '{file}': {error}"))
            })?),
        };
        let number = |suffix: &str| -> anyhow::Result<Option<u32>> {
            let name = access.name(suffix);
            let parse = |text: &str| text.parse().map_err(|_| format!("{name} is no number"));
            access.own(suffix).map(parse).transpose().map_err(|error| fail(Exit::Usage, error))
        };
        Ok(Settings {
            names: Names {
                keys: format!("{} and {}", group.id, group.secret),
                region: access.name("S3_REGION"),
                authorities: access.name("S3_CA_FILE"),
                has_authorities: authorities.is_some(),
                endpoint: access.name("S3_ENDPOINT"),
                proxy: proxy(&endpoint, access),
            },
            base: base(endpoint, bucket, is_path_style)?,
            region: region.to_owned(),
            credential,
            authorities,
            retries: number("S3_MAX_RETRIES")?.unwrap_or(DEFAULT_RETRIES),
            delay: number("S3_RETRY_DELAY")?
                .map_or(DEFAULT_DELAY, |delay| Duration::from_millis(delay.into())),
            stall: STALL,
            rate: access.rate()?,
        })
    }
}

/// The first group that has keys, and its keys.
fn credential(access: &Access) -> anyhow::Result<(Group, AwsCredential)> {
    let groups = [
        Group {
            id: access.name("S3_ACCESS_KEY"),
            secret: access.name("S3_SECRET_KEY"),
            token: None,
            is_application: false,
        },
        Group {
            id: "S3_ACCESS_KEY_ID".into(),
            secret: "S3_SECRET_ACCESS_KEY".into(),
            token: None,
            is_application: true,
        },
        Group {
            id: "AWS_ACCESS_KEY_ID".into(),
            secret: "AWS_SECRET_ACCESS_KEY".into(),
            token: Some("AWS_SESSION_TOKEN"),
            is_application: false,
        },
    ];
    let own = &groups[0];
    let hint = format!("set {} and {} (or …_FILE), or AWS_ACCESS_KEY_ID …", own.id, own.secret);
    for group in groups {
        let (key_id, secret_key) = (access.secret(&group.id)?, access.secret(&group.secret)?);
        let (key_id, secret_key) = match (key_id, secret_key) {
            (None, None) => continue,
            (Some(key_id), Some(secret_key)) => (key_id, secret_key),
            (key_id, _) => {
                let (set, unset) = match key_id {
                    Some(_) => (&group.id, &group.secret),
                    None => (&group.secret, &group.id),
                };
                return Err(fail(Exit::Usage, format!("{set} is set, and {unset} is not")));
            }
        };
        let token = group.token.map(|name| access.secret(name)).transpose()?.flatten();
        // They go into headers.
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain(&key_id) || token.as_deref().is_some_and(|token| !is_plain(token)) {
            let message = format!("{} or the token beside it has other characters", group.id);
            return Err(Failure::new(Exit::Usage, message)
                .hint("a key is of letters, digits and signs, without blanks")
                .into());
        }
        return Ok((group, AwsCredential { key_id, secret_key, token }));
    }
    Err(Failure::new(Exit::Denied, "there are no keys for the bucket").hint(hint).into())
}

/// A region as it can stand in a signature and in a host's name.
fn parse_region<'a>(region: &'a str, name: &str) -> anyhow::Result<&'a str> {
    if region.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Ok(region);
    }
    Err(Failure::new(Exit::Usage, format!("{name} has other characters than a region"))
        .hint("a region is of letters, digits, '-', '_' and '.', as in eu-west-1")
        .into())
}

fn parse_endpoint(endpoint: &str, is_plain_allowed: bool, access: &Access) -> anyhow::Result<Url> {
    let name = access.name("S3_ENDPOINT");
    let malformed = || {
        Failure::new(Exit::Usage, format!("{name} is no address"))
            .hint("it is https://HOST or https://HOST:PORT")
    };
    let full = match (endpoint.contains("://"), is_plain_allowed) {
        (true, _) => endpoint.to_owned(),
        (false, true) => format!("http://{endpoint}"),
        (false, false) => format!("https://{endpoint}"),
    };
    let url = Url::parse(&full).map_err(|_| malformed())?;
    let is_bare = url.username().is_empty() && url.password().is_none();
    let is_root = url.query().is_none() && url.fragment().is_none();
    if !url.has_host() || !is_bare || !is_root {
        return Err(malformed().into());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_plain_allowed => Ok(url),
        "http" => Err(Failure::new(
            Exit::Usage,
            format!("{name} is plain http: everybody on the way could read the backups"),
        )
        .hint(format!("if that is meant: {}=false", access.name("S3_SSL_ENABLED")))
        .into()),
        _ => Err(malformed().into()),
    }
}

/// The variable that has reqwest go through a proxy, and the host that it names: nothing else of it,
/// for a password may stand there.
fn proxy(endpoint: &Url, access: &Access) -> Option<String> {
    let names = match endpoint.scheme() {
        "http" => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
    };
    let (name, value) = names.iter().find_map(|name| Some((name, access.plain(name)?)))?;
    let host = value.rsplit_once('@').or_else(|| value.split_once("://"));
    let host = host.map_or(value, |(_, host)| host).split('/').next().unwrap_or_default();
    Some(format!("{name} ({})", bk_manifest::path::escape(host.as_bytes())))
}

/// The bucket's address: a folder of the endpoint's, or a host below it.
fn base(mut endpoint: Url, bucket: &str, is_path_style: bool) -> anyhow::Result<Url> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if !bucket.bytes().all(is_name) || matches!(bucket, "." | "..") {
        return Err(fail(Exit::Usage, "a bucket's name is of letters, digits, '.' and '-'"));
    }
    let path = endpoint.path().trim_end_matches('/').to_owned();
    // A certificate for *.HOST does not cover a name with a dot.
    if is_path_style || bucket.contains('.') {
        endpoint.set_path(&format!("{path}/{bucket}/"));
    } else {
        let host = format!("{bucket}.{}", endpoint.host_str().unwrap_or_default());
        endpoint.set_host(Some(&host)).map_err(|_| {
            Failure::new(Exit::Usage, format!("'{host}' is no host"))
                .hint("reach the bucket by its path: …_S3_FORCE_PATH_STYLE=true")
        })?;
        endpoint.set_path(&format!("{path}/"));
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::classify;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Settings::read("photos", &Access::new("BACKUP", variables))
    }

    const KEYS: [(&str, &str); 2] = [("BACKUP_S3_ACCESS_KEY", "k"), ("BACKUP_S3_SECRET_KEY", "s")];

    fn with_keys(more: &[(&str, &str)]) -> anyhow::Result<Settings> {
        read(&[&KEYS, more].concat())
    }

    #[test]
    fn a_bucket_has_its_address() {
        for (variables, address) in [
            (&[] as &[_], "https://photos.s3.us-east-1.amazonaws.com/"),
            (
                &[("BACKUP_S3_REGION", "eu-west-1"), ("BACKUP_S3_FORCE_PATH_STYLE", "true")],
                "https://s3.eu-west-1.amazonaws.com/photos/",
            ),
            (&[("BACKUP_S3_ENDPOINT", "https://nas:9000")], "https://nas:9000/photos/"),
            (&[("BACKUP_S3_ENDPOINT", "nas:9000")], "https://nas:9000/photos/"),
            (
                &[("BACKUP_S3_ENDPOINT", "nas:9000"), ("BACKUP_S3_SSL_ENABLED", "false")],
                "http://nas:9000/photos/",
            ),
            (
                &[
                    ("BACKUP_S3_ENDPOINT", "https://store.example.org"),
                    ("BACKUP_S3_FORCE_PATH_STYLE", "false"),
                ],
                "https://photos.store.example.org/",
            ),
            (&[("AWS_ENDPOINT_URL", "https://a"), ("S3_ENDPOINT", "b")], "https://a/photos/"),
        ] {
            assert_eq!(with_keys(variables).unwrap().base.as_str(), address);
        }
    }

    #[test]
    fn plain_http_must_be_asked_for() {
        let endpoint = ("BACKUP_S3_ENDPOINT", "http://nas:9000");
        let error = with_keys(&[endpoint]).err().unwrap();
        assert_eq!(classify(&error), Exit::Usage);
        assert!(with_keys(&[endpoint, ("BACKUP_S3_SSL_ENABLED", "false")]).is_ok());
    }

    #[test]
    fn keys_come_from_one_group() {
        let application = [("S3_ACCESS_KEY_ID", "a"), ("S3_SECRET_ACCESS_KEY", "as")];
        let own = read(&[&KEYS[..], &application].concat()).unwrap();
        assert_eq!((&*own.credential.key_id, &*own.credential.secret_key), ("k", "s"));
        let half = [KEYS[0], application[0], application[1]];
        let error = read(&half).err().unwrap();
        assert_eq!(classify(&error), Exit::Usage);
        assert!(error.to_string().contains("BACKUP_S3_SECRET_KEY is not"), "{error}");
        // An application's endpoint gets the application's keys only.
        let endpoint = ("S3_ENDPOINT", "https://app");
        assert_eq!(with_keys(&[endpoint]).unwrap().base.host_str(), {
            Some("photos.s3.us-east-1.amazonaws.com")
        });
        let theirs = read(&[&application[..], &[endpoint]].concat()).unwrap();
        assert_eq!(theirs.base.as_str(), "https://app/photos/");
    }

    #[test]
    fn without_keys_nobody_is_asked() {
        let error = read(&[("BACKUP_S3_ENDPOINT", "https://nas")]).err().unwrap();
        assert_eq!(classify(&error), Exit::Denied);
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert!(failure.hints[0].contains("BACKUP_S3_ACCESS_KEY"), "{failure:?}");
    }

    #[test]
    fn a_region_that_is_no_word_is_named() {
        for name in ["BACKUP_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"] {
            for region in ["us-east-1\r", "us east", "eu/../x", "\u{e9}"] {
                let error = with_keys(&[(name, region)]).err().unwrap();
                assert_eq!(classify(&error), Exit::Usage, "{name}");
                assert!(error.to_string().starts_with(&format!("{name} ")), "{error}");
            }
        }
        for region in ["eu-west-1", "auto", "Home_1.nas"] {
            assert_eq!(with_keys(&[("AWS_REGION", region)]).unwrap().region, region);
        }
    }

    #[test]
    fn malformed_settings_are_named() {
        for (name, value) in [
            ("BACKUP_S3_ENDPOINT", "ftp://x"),
            ("BACKUP_S3_ENDPOINT", "https://key:secret@x"),
            ("BACKUP_S3_MAX_RETRIES", "many"),
            ("BACKUP_S3_FORCE_PATH_STYLE", "maybe"),
            ("BACKUP_S3_CA_FILE", "/no/such/file"),
            ("BACKUP_LIMIT_RATE", "fast"),
        ] {
            let error = with_keys(&[(name, value)]).err().unwrap();
            assert_eq!(classify(&error), Exit::Usage, "{name}");
            assert!(error.to_string().contains(name), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let blank = [("BACKUP_S3_ACCESS_KEY", "k\n"), ("BACKUP_S3_SECRET_KEY", "s")];
        assert_eq!(classify(&read(&blank).err().unwrap()), Exit::Usage);
    }
}
