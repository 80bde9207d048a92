//! The report that CI servers read: one test case for each object or entry.

use std::fmt::Write;

use bk_manifest::path::escape;

use crate::report::Report;

/// The report as a `JUnit` document.
pub fn document(report: &Report<'_>) -> String {
    let failed = |is_judged| {
        let is_so = |case: &&crate::report::Case| {
            case.failure.as_ref().is_some_and(|failure| failure.is_judged == is_judged)
        };
        report.cases.iter().filter(is_so).count()
    };
    let class = format!("{}.{}", report.backup, report.level());
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    // A string takes everything that is written to it.
    let _ = writeln!(
        text,
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"0\" \
         timestamp=\"{}\" hostname=\"{}\">",
        xml(report.backup),
        report.cases.len(),
        failed(true),
        failed(false),
        report.now.format("%Y-%m-%dT%H:%M:%SZ"),
        xml(&report.options.host),
    );
    for case in &report.cases {
        let _ = write!(
            text,
            "<testcase classname=\"{}\" name=\"{}\" time=\"0\"",
            xml(&class),
            xml(&case.name)
        );
        let _ = match &case.failure {
            None => writeln!(text, "/>"),
            Some(failure) => {
                let tag = if failure.is_judged { "failure" } else { "error" };
                let first = failure.detail.lines().next().unwrap_or_default();
                let lines: Vec<String> = failure.detail.lines().map(xml).collect();
                writeln!(
                    text,
                    "><{tag} type=\"{}\" message=\"{}\">{}</{tag}></testcase>",
                    failure.kind,
                    xml(first),
                    lines.join("\n")
                )
            }
        };
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

/// Text that XML can hold anywhere: control characters, which it cannot, are shown escaped.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in escape(text.as_bytes()).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            // Not characters to XML 1.0 (2.2), though they are to Unicode.
            '\u{fffe}' | '\u{ffff}' => escaped.extend(character.escape_unicode()),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Fault, Findings, Problem};
    use crate::report::{Case, Checked};
    use crate::sample::options;
    use bk_manifest::digest::Digest;
    use bk_manifest::path::RelPath;

    #[test]
    fn hostile_text_is_escaped() {
        assert_eq!(
            xml("<a b=\"'&\u{1}\n\t\u{fffe}\u{1b}[31m]]>"),
            "&lt;a b=&quot;&apos;&amp;\\u{1}\\n\\t\\u{fffe}\\u{1b}[31m]]&gt;"
        );
        assert_eq!(xml("ä \u{1f600}"), "ä \u{1f600}");
    }

    /// Takes a document apart as far as this writer's go: tags, quoted attributes, entities.
    fn assert_well_formed(text: &str) {
        let body = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap();
        let is_char = |c: char| matches!(c, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        assert!(body.chars().all(is_char), "a character that XML cannot hold");
        for after in body.split('&').skip(1) {
            let entity = after.split(';').next().unwrap();
            assert!(["amp", "lt", "gt", "quot", "apos"].contains(&entity), "&{entity}");
        }
        let mut open = Vec::new();
        for tag in body.split('<').skip(1) {
            let (tag, text) = tag.split_once('>').unwrap();
            assert!(!text.contains('>'));
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
                continue;
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        assert!(open.is_empty());
    }

    #[test]
    fn hostile_names_leave_the_document_well_formed() {
        let names: [&[u8]; 5] =
            [b"a\n\"<b>&", b"\xff\xfe]]>", b"\x1b[31m'", "\u{ffff}\u{85}".as_bytes(), b"--><!--"];
        let mut findings = Findings::default();
        let mut paths = Vec::new();
        for name in names {
            let path = RelPath::new(name).unwrap();
            findings.add(Problem::of_path(Fault::Content, &path, format!("is not '{path}' <&")));
            paths.push(path);
        }
        let mut object = Problem::of_object(Fault::Missing, "o\u{1}<", "is missing");
        for path in &paths {
            object.files.add(path);
        }
        findings.add(object);
        let mut cases = Case::of_compared(&paths, &findings);
        cases.extend(Case::of_objects(&["o\u{1}<", "good"], &findings));
        let options = options();
        let document = document(&Report {
            backup: "backup-1",
            total_checksum: Digest::of(b""),
            tasks: &[],
            now: (options.clock)(),
            options: &options,
            checked: &Checked::default(),
            findings: &findings,
            cases,
            strangers: None,
        });
        assert_well_formed(&document);
        assert!(document.contains("tests=\"7\" failures=\"6\" errors=\"0\""), "{document}");
    }
}
