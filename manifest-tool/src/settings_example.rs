//! The annotated env file with all settings: scripts/env.example.

use std::fmt::Write as _;

use crate::known_settings::{BUCKET_PREFIX, COPY_PREFIX, SETTINGS, Setting, twins};

/// Its text; everything in it is commented out.
pub fn example() -> String {
    let mut text = String::from(
        "# Settings of bk: copy this file, uncomment what you need, and `chmod 600` the copy.\n\
         #\n\
         # It is read by the rules of Docker Compose's env files and never executed. What the\n\
         # environment says beats it. An empty value counts as not set. The values below are the\n\
         # defaults where they are marked so, and examples elsewhere. A secret can also lie in a file\n\
         # of its own: NAME_FILE=/run/secrets/name instead of NAME=value.\n\
         #\n\
         # Printed by `bk-manifest settings --example`.\n",
    );
    for (title, settings) in SETTINGS {
        let _ = write!(text, "\n## {title}\n");
        for setting in *settings {
            text.push('\n');
            for line in setting.help.lines() {
                let _ = writeln!(text, "# {line}");
            }
            match (setting.default, setting.is_secret) {
                (Some(_), _) => text += "# Default:\n",
                (None, true) => {
                    let _ = writeln!(text, "# Secret; or {}_FILE", setting.name);
                }
                (None, false) => {}
            }
            text += &line(setting.name, setting);
        }
    }
    text += "\n## A second destination, which each backup is copied to once it is stored\n\n\
             # Each as its namesake without COPY: what it is reached with, and how long it keeps backups\n";
    for (name, setting) in twins(COPY_PREFIX) {
        text += &line(&name, setting);
    }
    text += "\n## The store of BACKUP_BUCKET, the application's own\n\n\
             # Each as its namesake without BUCKET. Without keys here they are those of S3_* or AWS_*. A line above can be\n\
             # referred to: BACKUP_BUCKET_S3_ACCESS_KEY=${MINIO_ROOT_USER}\n";
    for (name, setting) in twins(BUCKET_PREFIX) {
        text += &line(&name, setting);
    }
    text
}

fn line(name: &str, setting: &Setting) -> String {
    let value = setting.default.unwrap_or(setting.example);
    let quote = if value.contains(' ') { "\"" } else { "" };
    format!("#{name}={quote}{value}{quote}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::known_settings::{self, Refused};
    use crate::setting_value::normalize;

    #[test]
    fn the_example_is_an_env_file_with_every_setting() {
        let text = example();
        assert!(crate::env_file::parse(&text, &|_| None).unwrap().is_empty());
        let uncommented: String = text
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with([' ', '#'])))
            .map(|line| line.to_owned() + "\n")
            .collect();
        let values = crate::env_file::parse(&uncommented, &|_| None).unwrap();
        for (name, setting) in known_settings::all() {
            let value = values.get(&*name).unwrap_or_else(|| panic!("{name}"));
            if !value.is_empty() && !matches!(setting.refused, Refused::Everything(_)) {
                normalize(setting.kind, value).unwrap();
            }
        }
        assert_eq!(values.len(), known_settings::all().count());
    }
}
