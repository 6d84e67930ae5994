use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A line that ends a document.
const SEPARATOR: &str = "<|endoftext|>";
/// Held-out text is held in memory.
const MAX_BYTES: u64 = 1 << 30;

/// The documents of all files, in order; no more than fit into `max_bytes`. Empty lines around a document are no part of
/// it, and its last line ends: so it does not matter how files divide them.
pub(super) fn read(paths: &[PathBuf], max_bytes: Option<u64>) -> anyhow::Result<Vec<String>> {
    let mut documents = Vec::new();
    let mut left = max_bytes.unwrap_or(u64::MAX);
    for path in paths {
        let text = read_text(path).with_context(|| format!("--text {}", path.display()))?;
        for document in split(&text) {
            match left.checked_sub(document.len() as u64) {
                Some(rest) => left = rest,
                None if documents.is_empty() => bail!("--max-bytes is less than the first document takes"),
                None => return Ok(documents),
            }
            documents.push(document);
        }
    }
    if documents.is_empty() {
        bail!("--text has nothing but white space: there is nothing to measure");
    }
    Ok(documents)
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        bail!("must be a plain file of at most {MAX_BYTES} bytes");
    }
    String::from_utf8(std::fs::read(path)?)
        .map_err(|error| anyhow::anyhow!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        match documents.last_mut() {
            Some(document) if line.trim_end_matches(['\r', '\n']) != SEPARATOR => document.push_str(line),
            _ => documents.push(String::new()),
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    documents.iter().map(|document| format!("{}\n", document.trim_matches('\n'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_end_at_separator_lines_and_have_one_last_line_end() {
        assert_eq!(
            split("\na\n\nb <|endoftext|>\n\n<|endoftext|>\n \n<|endoftext|>\r\nc"),
            ["a\n\nb <|endoftext|>\n", "c\n"]
        );
        assert!(split("\n<|endoftext|>\n").is_empty());
    }

    #[test]
    fn reading_stops_before_too_many_bytes_and_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let two = write("two", b"abc\n<|endoftext|>\ndef\n");
        let one = write("one", b"ghi");
        let paths = [two, one];
        assert_eq!(read(&paths, None).unwrap(), ["abc\n", "def\n", "ghi\n"]);
        assert_eq!(read(&paths, Some(11)).unwrap(), ["abc\n", "def\n"]);
        assert!(read(&paths, Some(3)).unwrap_err().to_string().contains("--max-bytes"));
        let latin1 = write("latin1", b"a\xe4");
        let error = format!("{:#}", read(&[latin1], None).unwrap_err());
        assert!(error.ends_with("latin1: is not UTF-8 at byte 1"), "{error}");
        assert!(read(&[write("empty", b" \n")], None).is_err());
        assert!(read(&[dir.path().join("nothing")], None).is_err());
    }
}
