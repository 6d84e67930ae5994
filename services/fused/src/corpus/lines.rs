use std::io::{self, BufRead, ErrorKind, Read};

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

    /// What the stream goes on with, as far as it has been read: at least a byte unless it is at its end, and at its beginning
    /// some hundred.
    pub(super) fn peek(&mut self) -> anyhow::Result<&[u8]> {
        while let Err(error) = self.input.fill_buf() {
            if error.kind() != ErrorKind::Interrupted {
                return Err(error).with_context(|| format!("cannot be read past byte {}", self.offset));
            }
        }
        Ok(self.input.fill_buf()?)
    }

    /// The next byte; none at the end.
    pub(super) fn peek_byte(&mut self) -> anyhow::Result<Option<u8>> {
        Ok(self.peek()?.first().copied())
    }

    /// Goes past the byte that was peeked at.
    pub(super) fn skip_byte(&mut self) {
        self.input.consume(1);
        self.offset += 1;
    }

    /// Appends the next line to `buffer`.
    pub(super) fn append(&mut self, buffer: &mut Vec<u8>) -> anyhow::Result<Appended> {
        let start = self.offset;
        loop {
            let available = self.peek()?;
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

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num = self.input.read(buffer)?;
        self.offset += num as u64;
        Ok(num)
    }
}
