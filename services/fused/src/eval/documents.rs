use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::corpus::Corpus;

/// Held-out text is held in memory.
const MAX_BYTES: u64 = 1 << 30;

/// The documents of all texts, in order; no more than fit into `max_bytes`. Empty lines around a document are no part of
/// it, and its last line ends: so it does not matter how files divide them.
pub(super) fn read(
    paths: &[PathBuf],
    field: Option<&str>,
    max_bytes: Option<u64>,
) -> anyhow::Result<Vec<String>> {
    let corpus = Corpus::open(paths, field).context("--text")?;
    let mut documents = Vec::new();
    let mut left = max_bytes.unwrap_or(u64::MAX);
    for document in corpus.into_documents() {
        let document = trimmed(&document.context("--text")?);
        match left.checked_sub(document.len() as u64) {
            Some(rest) => left = rest,
            None if documents.is_empty() => bail!("--max-bytes is less than the first document takes"),
            None => return Ok(documents),
        }
        documents.push(document);
        if max_bytes.unwrap_or(u64::MAX) - left > MAX_BYTES {
            bail!(
                "--text has over {MAX_BYTES} bytes, which are held in memory: take less of it with --max-bytes"
            );
        }
    }
    if documents.is_empty() {
        bail!("--text has nothing but white space: there is nothing to measure");
    }
    Ok(documents)
}

fn trimmed(document: &str) -> String {
    format!("{}\n", document.trim_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_one_last_line_end() {
        assert_eq!(trimmed("\n\na\n\nb\n\n"), "a\n\nb\n");
        assert_eq!(trimmed("c"), "c\n");
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
        assert_eq!(read(&paths, None, None).unwrap(), ["abc\n", "def\n", "ghi\n"]);
        assert_eq!(read(&paths, None, Some(11)).unwrap(), ["abc\n", "def\n"]);
        assert!(read(&paths, None, Some(3)).unwrap_err().to_string().contains("--max-bytes"));
        let latin1 = write("latin1", b"a\xe4");
        let error = format!("{:#}", read(&[latin1], None, None).unwrap_err());
        assert!(error.contains("latin1") && error.contains("byte 1"), "{error}");
        assert!(read(&[write("empty", b" \n")], None, None).is_err());
        assert!(read(&[dir.path().join("nothing")], None, None).is_err());
    }
}
