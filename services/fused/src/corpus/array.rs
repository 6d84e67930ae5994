use std::io::{self, Read};

use anyhow::{anyhow, bail};
use serde::de::DeserializeSeed;

use super::MAX_DOCUMENT_BYTES;
use super::jsonl::{Found, Record, missing, problem};
use super::lines::Lines;

/// What an array begins with.
pub(super) enum Beginning {
    /// Objects with names: this is JSON, whatever the file is called. (A plain text that does begin so needs a line
    /// `<|endoftext|>` before it.)
    Objects,
    /// Anything else: a text may begin so, too.
    Any,
}

/// Whether a file that begins with these bytes may be an array.
pub(super) fn begins(bytes: &[u8]) -> Option<Beginning> {
    let items = behind(bytes, b'[')?;
    let is_object = behind(items, b'{').and_then(|names| behind(names, b'"')).is_some();
    Some(if is_object { Beginning::Objects } else { Beginning::Any })
}

fn behind(bytes: &[u8], sign: u8) -> Option<&[u8]> {
    bytes.trim_ascii_start().strip_prefix(&[sign])
}

/// The documents of a file that is one JSON array of records, read one record after the other.
pub(super) struct Documents {
    input: Lines,
    field: String,
    num_records: u64,
    is_at_end: bool,
}

impl Documents {
    pub(super) fn new(input: Lines, field: &str) -> Self {
        Self { input, field: field.to_owned(), num_records: 0, is_at_end: false }
    }

    fn next_document(&mut self) -> anyhow::Result<Option<String>> {
        if self.is_at_end {
            return Ok(None);
        }
        let start = self.input.offset();
        match (self.next_sign()?, self.num_records) {
            (Some(b'['), 0) | (Some(b','), 1..) => {}
            (Some(b']'), _) => return self.end(),
            (None, _) => bail!("ends inside its array, behind record {}", self.num_records),
            (Some(_), _) => bail!("byte {start}: expected `,` or `]` behind record {}", self.num_records),
        }
        // An empty array is the only one with an end where a record could be.
        if self.num_records == 0 && self.peek_sign()? == Some(b']') {
            self.next_sign()?;
            return self.end();
        }
        self.num_records += 1;
        self.record().map(Some)
    }

    fn record(&mut self) -> anyhow::Result<String> {
        let number = self.num_records;
        let start = self.input.offset();
        let record = Limited { input: &mut self.input, num_left: MAX_DOCUMENT_BYTES };
        // Records are objects and strings, of which the parser reads no byte too many.
        let mut json = serde_json::Deserializer::from_reader(record);
        match (Record { field: &self.field }).deserialize(&mut json) {
            Ok(Found::Text(text)) => Ok(text),
            Ok(Found::Missing(names)) => bail!("record {number}: {}", missing(&self.field, &names)),
            Err(error) => Err(anyhow!("record {number}, which begins at byte {start}: {}", problem(&error))),
        }
    }

    fn end(&mut self) -> anyhow::Result<Option<String>> {
        self.is_at_end = true;
        match self.peek_sign()? {
            None => Ok(None),
            Some(_) => bail!("has more behind its array, from byte {} on", self.input.offset()),
        }
    }

    /// The next byte that is no white space.
    fn peek_sign(&mut self) -> anyhow::Result<Option<u8>> {
        loop {
            match self.input.peek_byte()? {
                Some(byte) if byte.is_ascii_whitespace() => self.input.skip_byte(),
                byte => return Ok(byte),
            }
        }
    }

    fn next_sign(&mut self) -> anyhow::Result<Option<u8>> {
        let sign = self.peek_sign()?;
        if sign.is_some() {
            self.input.skip_byte();
        }
        Ok(sign)
    }
}

impl Iterator for Documents {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_document().transpose()
    }
}

/// Gives no more than a record may have.
struct Limited<'a> {
    input: &'a mut Lines,
    num_left: usize,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.num_left == 0 {
            return Err(io::Error::other(format!("it is over {MAX_DOCUMENT_BYTES} bytes")));
        }
        let len = buffer.len().min(self.num_left);
        let num = self.input.read(&mut buffer[..len])?;
        self.num_left -= num;
        Ok(num)
    }
}
