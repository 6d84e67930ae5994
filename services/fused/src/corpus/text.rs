use anyhow::bail;

use super::lines::{Appended, Lines};
use super::{MAX_DOCUMENT_BYTES, utf8};

/// A line that ends a document.
const SEPARATOR: &[u8] = b"<|endoftext|>";

/// The documents of a plain text; those of white space alone are left out.
pub(super) struct Documents {
    lines: Lines,
}

impl Documents {
    pub(super) fn new(lines: Lines) -> Self {
        Self { lines }
    }

    fn next_document(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let start = self.lines.offset();
            let mut bytes = Vec::new();
            let is_last = loop {
                let line_start = bytes.len();
                match self.lines.append(&mut bytes)? {
                    Appended::Line if is_separator(&bytes[line_start..]) => {
                        bytes.truncate(line_start);
                        break false;
                    }
                    Appended::Line => {}
                    Appended::End => break true,
                    Appended::TooLong => bail!(
                        "the document that begins at byte {start} is over {MAX_DOCUMENT_BYTES} bytes: divide it by lines \
                         <|endoftext|>"
                    ),
                }
            };
            let text = utf8(bytes, start)?;
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
            if is_last {
                return Ok(None);
            }
        }
    }
}

fn is_separator(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line) == SEPARATOR
}

impl Iterator for Documents {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_document().transpose()
    }
}
