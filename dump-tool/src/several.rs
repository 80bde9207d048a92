//! Several dumps in one step: a filter for each, joined by pipes inside this process, as if each were
//! a program of its own in the pipe.

use std::io::{self, BufWriter, PipeReader, Read, Write};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use bk_manifest::command::Cancel;
use bk_manifest::exit::Exit;

use crate::filter::Patient;

/// One of them: reads a document and passes it on.
type Run<'a> = Box<dyn FnOnce(&mut dyn Read, &mut dyn Write) -> anyhow::Result<Exit> + Send + 'a>;

/// A filter, and what ends it.
pub struct Step<'a> {
    /// What it does.
    pub run: Run<'a>,
    /// Ends it, once another has failed.
    pub cancel: Cancel,
}

/// Where the document comes from and goes to. Each is opened by the thread that uses it.
pub struct Ends<I, O> {
    /// Opens what the first step reads.
    pub input: I,
    /// Opens what the last step writes.
    pub output: O,
}

/// Runs the steps; the document flows through them in their order.
///
/// # Errors
/// That of the step which failed first: what the others say follows from it.
pub fn run<I, O>(steps: Vec<Step<'_>>, ends: Ends<I, O>) -> anyhow::Result<Exit>
where
    I: FnOnce() -> anyhow::Result<Box<dyn Read>> + Send,
    O: FnOnce() -> Box<dyn Write> + Send,
{
    let all = Joined {
        cancels: steps.iter().map(|step| step.cancel.clone()).collect(),
        failure: Mutex::new(None),
    };
    let last = steps.len().saturating_sub(1);
    let (mut first_input, mut last_output) = (Some(ends.input), Some(ends.output));
    let mut behind: Option<PipeReader> = None;
    let exit = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            let reader = behind.take();
            let open = first_input.take();
            let (output, writer) = if number == last {
                (last_output.take(), None)
            } else {
                let Some((reader, writer)) = all.note(io::pipe().context("cannot make a pipe"))
                else {
                    break;
                };
                behind = Some(reader);
                (None, Some(writer))
            };
            let all = &all;
            threads.push(scope.spawn(move || {
                let mut input = match (reader, open) {
                    (Some(pipe), _) => all
                        .note(Patient::of_pipe(pipe, &step.cancel).map_err(Into::into))
                        .map(|pipe| Box::new(pipe) as Box<dyn Read>)?,
                    (None, Some(open)) => all.note(open())?,
                    (None, None) => return None,
                };
                let mut output: Box<dyn Write> = match (writer, output) {
                    (Some(writer), _) => Box::new(BufWriter::new(writer)),
                    (None, Some(open)) => open(),
                    (None, None) => return None,
                };
                // Its pipes are closed behind that: the neighbours fail of it only once it is noted.
                all.note((step.run)(&mut *input, &mut *output))
            }));
        }
        let ended = threads.into_iter().map(|thread| thread.join().ok().flatten());
        anyhow::Ok(ended.last().flatten())
    })?;
    match all.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => exit.context("a step ended early"),
    }
}

/// What the threads share.
struct Joined {
    cancels: Vec<Cancel>,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Joined {
    /// Keeps the first error, and ends all for it.
    fn note<T>(&self, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
                self.cancels.iter().for_each(Cancel::cancel);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bk_manifest::exit::{classify, fail};
    use std::sync::Arc;

    /// More than pipes hold: without a reader it would be stuck.
    static LONG: [u8; 1 << 20] = [b'x'; 1 << 20];

    /// Adds a letter to what flows past.
    fn adding(letter: u8) -> Step<'static> {
        let run: Run<'static> = Box::new(move |input, output| {
            io::copy(input, output)?;
            output.write_all(&[letter])?;
            output.flush()?;
            Ok(Exit::Done)
        });
        Step { run, cancel: Cancel::default() }
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn run_on(steps: Vec<Step<'_>>, input: &'static [u8]) -> (anyhow::Result<Exit>, Vec<u8>) {
        let shared = Shared::default();
        let output = shared.clone();
        let ends = Ends {
            input: move || Ok(Box::new(input) as Box<dyn Read>),
            output: move || Box::new(output) as Box<dyn Write>,
        };
        let exit = run(steps, ends);
        let written = shared.0.lock().unwrap().clone();
        (exit, written)
    }

    #[test]
    fn the_document_goes_from_one_to_the_next() {
        for (letters, expected) in [(&b"a"[..], &b"<a"[..]), (b"abc", b"<abc")] {
            let steps = letters.iter().map(|letter| adding(*letter)).collect();
            let (exit, output) = run_on(steps, b"<");
            assert_eq!(exit.unwrap(), Exit::Done);
            assert_eq!(output, expected);
        }
    }

    #[test]
    fn the_first_failure_is_told_and_ends_the_others() {
        for at in 0..3 {
            let mut steps: Vec<Step<'_>> = b"abc".iter().map(|letter| adding(*letter)).collect();
            steps[at].run = Box::new(|_, _| Err(fail(Exit::Denied, "no")));
            let (exit, _) = run_on(steps, &LONG);
            assert_eq!(classify(&exit.unwrap_err()), Exit::Denied, "{at}");
        }
    }
}
