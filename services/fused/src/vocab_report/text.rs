//! The text to measure: plain files, documents divided by lines `<|endoftext|>`, one document in memory at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, ensure};

/// A line that ends a document.
const SEPARATOR: &[u8] = b"<|endoftext|>";
/// The longest document, which is held in memory whole, with its tokens.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// The documents of a file, without blank ones. After an error nothing more comes.
pub(crate) fn documents(path: &Path) -> impl Iterator<Item = anyhow::Result<String>> {
    let name = format!("--text {}", path.display());
    let mut source = Some(open(path));
    std::iter::from_fn(move || {
        let next = match source.as_mut()? {
            Ok(documents) => documents.next().transpose(),
            Err(_) => source.take().and_then(Result::err).map(Err),
        };
        if !matches!(next, Some(Ok(_))) {
            source = None;
        }
        next.map(|document| document.with_context(|| name.clone()))
    })
}

fn open(path: &Path) -> anyhow::Result<Documents<BufReader<File>>> {
    let file = File::open(path)?;
    ensure!(file.metadata()?.is_file(), "is no plain file");
    Ok(Documents { reader: BufReader::new(file), offset: 0 })
}

struct Documents<R> {
    reader: R,
    /// Bytes read so far.
    offset: u64,
}

impl<R: BufRead> Documents<R> {
    /// The next document that is not blank; none at the end.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let start = self.offset;
            let Some(bytes) = self.read()? else { return Ok(None) };
            let text = String::from_utf8(bytes).map_err(|error| {
                let valid = error.utf8_error().valid_up_to() as u64;
                anyhow::anyhow!("is not UTF-8 at byte {}", start + valid)
            })?;
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
        }
    }

    fn read(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut document = Vec::new();
        loop {
            let start = document.len();
            let room = (MAX_DOCUMENT_BYTES - start) as u64 + 1;
            let num_bytes = (&mut self.reader).take(room).read_until(b'\n', &mut document)?;
            self.offset += num_bytes as u64;
            ensure!(
                document.len() <= MAX_DOCUMENT_BYTES,
                "has a document of over {MAX_DOCUMENT_BYTES} bytes: divide documents by lines `<|endoftext|>`"
            );
            let line = &document[start..];
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            if num_bytes == 0 {
                return Ok((!document.is_empty()).then_some(document));
            }
            if line.strip_suffix(b"\r").unwrap_or(line) == SEPARATOR {
                document.truncate(start);
                return Ok(Some(document));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Vec<anyhow::Result<String>> {
        let mut documents = Documents { reader: text, offset: 0 };
        std::iter::from_fn(|| documents.next().transpose()).take(9).collect()
    }

    fn texts(text: &str) -> Vec<String> {
        read(text.as_bytes()).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn documents_end_at_separator_lines_only() {
        assert_eq!(texts("a\nb <|endoftext|>\n<|endoftext|>\nc\n"), ["a\nb <|endoftext|>\n", "c\n"]);
        assert_eq!(texts("a\r\n<|endoftext|>\r\n \n<|endoftext|>\n\nb"), ["a\r\n", "\nb"]);
        assert_eq!(texts("whole"), ["whole"]);
        assert!(texts("<|endoftext|>").is_empty());
        assert!(texts("").is_empty());
    }

    #[test]
    fn another_encoding_is_refused_with_the_byte_in_the_file() {
        let read = read(b"a\n<|endoftext|>\nbc\xFFd");
        assert_eq!(read[0].as_ref().unwrap(), "a\n");
        assert_eq!(read[1].as_ref().unwrap_err().to_string(), "is not UTF-8 at byte 18");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_once() {
        let folder = tempfile::tempdir().unwrap();
        let errors: Vec<_> = documents(folder.path()).chain(documents(Path::new("/no/such/text"))).collect();
        assert_eq!(errors.len(), 2);
        for error in errors {
            assert!(format!("{:#}", error.unwrap_err()).starts_with("--text /"));
        }
    }
}
