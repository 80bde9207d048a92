//! What must not leave this host in clear, and keys that must not be locked in with what they open.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::{HostPath, Run, SourceKind};
use bk_manifest::progress::Progress;

use crate::push::Options;

/// Looks at what this run is about to store, before anything is.
///
/// # Errors
/// [`Exit::Usage`] for secrets that would be stored in clear where that is refused, and for a name to
/// be encrypted that is no component's.
pub fn check(run: &Run, options: &Options, progress: &dyn Progress) -> anyhow::Result<()> {
    let components: BTreeSet<&str> =
        run.sources.iter().map(|source| source.component.as_str()).collect();
    options.encryption.check(&components)?;
    let is_plain = |component: &&String| options.encryption.of(component).is_none();
    let plain: Vec<&str> = run.secrets.iter().filter(is_plain).map(String::as_str).collect();
    if options.refuses_plain_secrets && !plain.is_empty() {
        let names = plain.join(", ");
        let message = format!("secrets would leave this host in clear: {names}");
        return Err(Failure::new(Exit::Usage, message)
            .hint("encrypt them: --encrypt age:RECIPIENT (BACKUP_ENCRYPT)")
            .hint("an archive without secrets: bk-dump archive --public")
            .hint("or say that it is meant so: --plaintext-secrets (BACKUP_PLAINTEXT_SECRETS)")
            .into());
    }
    if let Some(identity) = &options.identity
        && is_inside(run, identity)
    {
        progress.warn(&format!(
            "the key '{}' lies in what is backed up: keep a copy elsewhere, or nothing opens the backup",
            identity.display()
        ));
    }
    Ok(())
}

/// Whether a file lies in a tree or an archive of this run.
fn is_inside(run: &Run, file: &Path) -> bool {
    let host_path = |path: &HostPath| PathBuf::from(OsStr::from_bytes(&path.0));
    let trees = run.sources.iter().filter(|source| source.kind == SourceKind::Tree);
    let areas = trees.flat_map(|source| {
        let root = host_path(&source.root);
        if source.paths.is_empty() {
            return vec![root];
        }
        source.paths.iter().map(|path| root.join(host_path(path))).collect()
    });
    let Ok(file) = std::fs::canonicalize(file) else { return false };
    areas
        .chain(run.archived.iter().map(host_path))
        .any(|area| std::fs::canonicalize(area).is_ok_and(|area| file.starts_with(area)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encrypt::Choice;
    use bk_manifest::exit::classify;
    use bk_manifest::manifest::Source;
    use bk_manifest::progress::Silent;
    use bk_manifest::stream::Format;

    #[test]
    fn secrets_in_clear_are_refused_unless_that_is_said() {
        let source = |component: &str| Source {
            component: component.into(),
            kind: SourceKind::Stage,
            root: HostPath(b"/stage".to_vec()),
            prefix: HostPath::default(),
            paths: Vec::new(),
            access: None,
        };
        let sources = ["config", "database", "globals"].map(source).to_vec();
        let secrets = ["config", "globals"].map(str::to_owned).into();
        let run = Run { sources, secrets, ..Run::default() };
        let recipient = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
        let all = format!("age:{recipient}");
        let both = format!("config=age:{recipient} globals=age:{recipient}");
        let one = format!("config=age:{recipient}");
        for (refuses_plain_secrets, encrypt, is_fine) in [
            (true, "", false),
            (false, "", true),
            (true, all.as_str(), true),
            (true, both.as_str(), true),
            (true, one.as_str(), false),
        ] {
            let options = Options {
                full: false,
                format: Format::Json,
                encryption: Choice::new(&[encrypt.to_owned()], None).unwrap(),
                refuses_plain_secrets,
                identity: None,
            };
            match check(&run, &options, &Silent) {
                Ok(()) => assert!(is_fine, "{encrypt}"),
                Err(error) => {
                    assert!(!is_fine, "{error:#}");
                    assert_eq!(classify(&error), Exit::Usage);
                    assert!(error.to_string().contains("globals"), "{error:#}");
                    assert!(!error.to_string().contains("database"), "{error:#}");
                }
            }
        }
    }
}
