//! An object on its way here, whatever becomes of the connection meanwhile.

use std::io::{self, Read};
use std::ops::Range;

use super::Far;
use crate::destination::ErrorKind;
use crate::rsync::fault::Fault;
use crate::rsync::link::Reply;
use crate::rsync::transfer::{ATTEMPTS, retried};

/// Bytes between two cuts that count as a step forward: one byte with each would go on for days.
const PROGRESS: u64 = 1 << 20;

/// What a script prints of an object. A connection that is cut is made again, and the rest is asked for.
pub(super) struct FarReader<'a> {
    far: &'a Far,
    name: String,
    /// The next byte's place in the object.
    place: u64,
    /// Where the range ends; `None` is the object's end.
    end: Option<u64>,
    /// How often a connection was cut since [`PROGRESS`] was made.
    cuts: u32,
    /// Where the reading was when these were counted from none.
    counted_from: u64,
    state: State,
}

enum State {
    Reading(Reply),
    Ended,
    /// For good: what comes behind a fault must not look like the end of the object.
    Failed(Fault),
}

impl<'a> FarReader<'a> {
    /// Opens an object, or a range of its bytes.
    ///
    /// # Errors
    /// Those of the link; [`ErrorKind::NotFound`] if there is no such object.
    pub(super) fn open(far: &'a Far, name: &str, range: Option<Range<u64>>) -> Result<Self, Fault> {
        let (place, end) = range.map_or((0, None), |range| (range.start, Some(range.end)));
        let state = State::Ended;
        let name = name.to_owned();
        let mut reader = FarReader { far, name, place, end, cuts: 0, counted_from: place, state };
        reader.state = State::Reading(reader.begin()?);
        Ok(reader)
    }

    /// Asks for the object from where it was read to.
    fn begin(&self) -> Result<Reply, Fault> {
        retried(|| self.far.begin_read(&self.name, self.place, self.end))?
            .ok_or_else(Fault::missing)
    }

    /// What is read next, once an output has ended: nothing, or the rest.
    fn went_on(&mut self, reply: Reply) -> Result<State, Fault> {
        match self.far.link.end(reply) {
            Ok(()) => Ok(State::Ended),
            Err(fault) if fault.kind == ErrorKind::Transient => {
                self.cuts += 1;
                if self.cuts >= ATTEMPTS {
                    return Err(fault);
                }
                self.begin().map(State::Reading)
            }
            Err(fault) => Err(fault),
        }
    }
}

impl Read for FarReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.state {
                State::Ended => return Ok(0),
                State::Failed(fault) => {
                    let error = fault.again().on("read", &self.name, self.far.place());
                    return Err(io::Error::other(error));
                }
                State::Reading(reply) => {
                    let read = reply.output.read(buffer)?;
                    if read > 0 {
                        self.place += read as u64;
                        if self.place - self.counted_from >= PROGRESS {
                            (self.cuts, self.counted_from) = (0, self.place);
                        }
                        return Ok(read);
                    }
                }
            }
            // It stays so unless all goes well.
            let failed = State::Failed(Fault::missing());
            if let State::Reading(reply) = std::mem::replace(&mut self.state, failed) {
                self.state = self.went_on(reply).unwrap_or_else(State::Failed);
            }
        }
    }
}
