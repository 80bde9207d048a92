//! What must not leave this host in clear, and keys that must not be locked in with what they open.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bk_manifest::exit::{Exit, Failure};
use bk_manifest::manifest::{Component, HostPath, Run, SourceKind};
use bk_manifest::path::escape;
use bk_manifest::progress::Progress;
use serde_json::Value;

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
    if options.refuses_plain_secrets {
        refuse_plain(&plain)?;
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

/// Looks at the components of a stored backup before it goes to another host.
///
/// # Errors
/// [`Exit::Usage`] for secrets that are stored in clear.
pub fn check_stored(components: &[Component]) -> anyhow::Result<()> {
    let is_plain = |component: &&Component| {
        let text = |name: &str| component.extra.get(name).and_then(Value::as_str);
        let is_clear =
            text("encryption").is_none_or(|how| how.split(", ").any(|one| one == "none"));
        let is_public = component.extra.get("public") == Some(&Value::Bool(true));
        matches!(&*component.kind, "archive" | "globals") && !is_public && is_clear
    };
    let plain: Vec<&str> =
        components.iter().filter(is_plain).map(|component| &*component.name).collect();
    refuse_plain(&plain)
}

fn refuse_plain(components: &[&str]) -> anyhow::Result<()> {
    if components.is_empty() {
        return Ok(());
    }
    let message = format!("secrets would leave this host in clear: {}", components.join(", "));
    Err(Failure::new(Exit::Usage, escape(message.as_bytes()))
        .hint("have bk-push encrypt them: --encrypt age:RECIPIENT (BACKUP_ENCRYPT)")
        .hint("an archive without secrets: bk-dump archive --public")
        .hint("or say that it is meant so: --plaintext-secrets (BACKUP_PLAINTEXT_SECRETS)")
        .into())
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
    use bk_manifest::manifest::{Layout, Source};
    use bk_manifest::progress::Silent;
    use serde_json::json;

    #[test]
    fn secrets_in_clear_are_refused_unless_that_is_said() {
        let source = |component: &str| Source {
            component: component.into(),
            kind: SourceKind::Stage,
            root: HostPath(b"/stage".to_vec()),
            prefix: HostPath::default(),
            paths: Vec::new(),
            access: None,
            layout: Layout::Packed,
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
            let encryption = Choice::new(&[encrypt.to_owned()], None).unwrap();
            let options = Options { encryption, refuses_plain_secrets, ..Options::default() };
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

    #[test]
    fn a_stored_backup_is_asked_for_secrets_in_clear_too() {
        for (kind, extra, is_fine) in [
            ("archive", json!({}), false),
            ("archive", json!({"public": true}), true),
            ("archive", json!({"public": "yes"}), false),
            ("archive", json!({"encryption": "age"}), true),
            ("globals", json!({"encryption": "age, none"}), false),
            ("postgresql", json!({}), true),
        ] {
            let record = json!({"name": "config", "kind": kind, "status": "complete"});
            let mut component: Component = serde_json::from_value(record).unwrap();
            component.extra = extra.as_object().unwrap().clone();
            let checked = check_stored(&[component]);
            assert_eq!(checked.is_ok(), is_fine, "{kind} {extra}");
            assert!(checked.is_err_and(|error| classify(&error) == Exit::Usage) != is_fine);
        }
    }
}
