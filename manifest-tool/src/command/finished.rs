//! How a program has ended, in words.

use std::process::ExitStatus;

use crate::exit::{Exit, Failure};

/// How much of what a program said is put into an error's line.
const MESSAGE_LIMIT: usize = 600;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    name: String,
    status: ExitStatus,
    /// The end of what it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// The end of a program of that name.
    pub(super) fn new(name: &str, status: ExitStatus, stderr: String) -> Self {
        Finished { name: name.to_owned(), status, stderr }
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it exited with 0.
    pub fn is_success(&self) -> bool {
        self.status.success()
    }

    /// What it exited with; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What it wrote to standard error, line by line, without empty ones.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.stderr.lines().map(str::trim).filter(|line| !line.is_empty())
    }

    /// How it failed, in one line with what it said last; the last error of a server is in it,
    /// however long the statement is that stands behind that.
    pub fn message(&self) -> String {
        let lines: Vec<&str> = self.lines().collect();
        let length = |lines: &[&str]| lines.iter().map(|line| line.chars().count() + 2).sum();
        let said = lines.join("; ");
        let mut skipped = said.chars().count().saturating_sub(MESSAGE_LIMIT);
        let is_error = |line: &&str| line.contains("ERROR:") || line.contains("FATAL:");
        if let Some(error) = lines.iter().rposition(is_error) {
            skipped = skipped.min(length(&lines[..error]));
        }
        let mut shown: String = said.chars().skip(skipped).take(MESSAGE_LIMIT).collect();
        if skipped > 0 {
            shown.insert(0, '…');
        }
        if said.chars().count() > skipped + MESSAGE_LIMIT {
            shown.push('…');
        }
        let how = self.status.to_string();
        match shown.as_str() {
            "" => format!("'{}' failed ({how}) and said nothing", self.name),
            shown => format!("'{}' failed ({how}): {shown}", self.name),
        }
    }

    /// Fails unless it exited with 0.
    ///
    /// # Errors
    /// [`Exit::Failed`] with [`Finished::message`].
    pub fn check(&self) -> anyhow::Result<()> {
        if self.is_success() {
            return Ok(());
        }
        Err(Failure::new(Exit::Failed, self.message()).into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_long_statement_does_not_push_the_error_out() {
        let stderr = format!("first\nx: error: ERROR:  the cause\n{}\nlast\n", "0".repeat(5000));
        let finished = Finished::new("sh", ExitStatus::from_raw(1 << 8), stderr);
        let message = finished.message();
        assert!(message.contains("): …x: error: ERROR:  the cause; 000"), "{message}");
        assert!(message.ends_with("00…") && message.len() < 2 * MESSAGE_LIMIT, "{message}");
    }
}
