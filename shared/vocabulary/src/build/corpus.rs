use crate::base::BaseTokenizer;
use crate::{Error, Result, TokenId};

/// The largest corpus, all texts together: encoded it takes some ten times its size in memory.
const MAX_BYTES: usize = 256 << 20;
/// A line that ends a document.
const SEPARATOR: &str = "<|endoftext|>";

/// Encodes each document in base ids.
pub(super) fn encode(texts: &[String], base: &BaseTokenizer) -> Result<Vec<Vec<TokenId>>> {
    let bytes = texts.iter().map(String::len).sum();
    if bytes > MAX_BYTES {
        return Err(Error::TooLarge { file: "the corpus", bytes, max_bytes: MAX_BYTES });
    }
    texts.iter().flat_map(|text| split(text)).map(|document| base.encode(document)).collect()
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut end = 0;
        for line in text.split_inclusive('\n') {
            if line.trim_end_matches(['\r', '\n']) == SEPARATOR {
                rest = Some(&text[end + line.len()..]);
                return Some(&text[..end]);
            }
            end += line.len();
        }
        rest = None;
        Some(text)
    })
    .filter(|document| !document.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_end_at_separator_lines_only() {
        let documents = |text| split(text).collect::<Vec<_>>();
        assert_eq!(documents("a\nb <|endoftext|>\n<|endoftext|>\nc\n"), ["a\nb <|endoftext|>\n", "c\n"]);
        assert_eq!(documents("a\r\n<|endoftext|>\r\n<|endoftext|>\n\nb"), ["a\r\n", "\nb"]);
        assert_eq!(documents("whole"), ["whole"]);
        assert!(documents("<|endoftext|>").is_empty());
    }
}
