use std::io::{BufRead, ErrorKind};

use anyhow::Context;

use super::MAX_DOCUMENT_BYTES;

/// Lines of a stream whose length nobody knows, with the place of each.
pub(super) struct Lines {
    input: Box<dyn BufRead + Send>,
    offset: u64,
}

/// What became of a line that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Appended {
    /// It stands at the end of the buffer, with its line break if it has one.
    Line,
    /// There is none.
    End,
    /// The buffer would become longer than a document may be.
    TooLong,
}

impl Lines {
    pub(super) fn new(input: Box<dyn BufRead + Send>, offset: u64) -> Self {
        Self { input, offset }
    }

    /// Where the next line begins, in bytes of the decompressed stream.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends the next line to `buffer`.
    pub(super) fn append(&mut self, buffer: &mut Vec<u8>) -> anyhow::Result<Appended> {
        let start = self.offset;
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot be read past byte {}", self.offset));
                }
            };
            let line_break = available.iter().position(|byte| *byte == b'\n');
            let num = line_break.map_or(available.len(), |idx| idx + 1);
            if buffer.len() + num > MAX_DOCUMENT_BYTES {
                return Ok(Appended::TooLong);
            }
            buffer.extend_from_slice(&available[..num]);
            self.input.consume(num);
            self.offset += num as u64;
            if line_break.is_some() {
                return Ok(Appended::Line);
            }
            if num == 0 {
                return Ok(if self.offset == start { Appended::End } else { Appended::Line });
            }
        }
    }
}
