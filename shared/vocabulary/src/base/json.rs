use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{Error, Result, TokenId};

const FILE: &str = "tokenizer.json";
/// The largest file that is parsed; the largest published ones have some 35 MB.
const MAX_BYTES: usize = 128 << 20;

/// A parsed `tokenizer.json`.
pub(crate) struct TokenizerJson(Value);

impl TokenizerJson {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::TooLarge { file: FILE, bytes: bytes.len(), max_bytes: MAX_BYTES });
        }
        match serde_json::from_slice(bytes) {
            Ok(value) => Ok(Self(value)),
            Err(source) => Err(Error::Json { file: FILE, source }),
        }
    }

    pub(crate) fn value(&self) -> &Value {
        &self.0
    }

    pub(crate) fn add_tokens(&mut self, tokens: impl Iterator<Item = Value>) {
        if let Some(json) = self.0.as_object_mut()
            && let Value::Array(added) = json.entry("added_tokens").or_insert(Value::Array(Vec::new()))
        {
            added.extend(tokens);
        }
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        super::growth::check(&self.0)?;
        Tokenizer::deserialize(&self.0).map_err(|error| Error::Tokenizer(error.into()))
    }

    /// The merge rules in rank order, as the texts of both halves; none for a tokenizer that is not BPE.
    pub(crate) fn merges(&self) -> impl Iterator<Item = (&str, &str)> {
        let merges = self.0.pointer("/model/merges").and_then(Value::as_array);
        merges.into_iter().flatten().filter_map(|merge| match merge {
            Value::String(both) => both.split_once(' '),
            _ => Some((merge.get(0)?.as_str()?, merge.get(1)?.as_str()?)),
        })
    }
}

/// The base id that a `tokenizer.json` gives a token of this text; an added token goes before one of the model's own.
///
/// # Errors
/// The file is not JSON, or too large.
pub fn base_token_id(tokenizer_json: &[u8], text: &str) -> Result<Option<TokenId>> {
    let TokenizerJson(file) = TokenizerJson::parse(tokenizer_json)?;
    let added = file.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let added = added.filter(|token| token.get("content").and_then(Value::as_str) == Some(text));
    let id = match file.pointer("/model/vocab") {
        // Unigram: pairs of text and score, in the order of their ids.
        Some(Value::Array(pieces)) => pieces
            .iter()
            .position(|piece| piece.get(0).and_then(Value::as_str) == Some(text))
            .and_then(|idx| u64::try_from(idx).ok()),
        vocab => vocab.and_then(|vocab| vocab.get(text)).and_then(Value::as_u64),
    };
    let id = added.filter_map(|token| token.get("id").and_then(Value::as_u64)).next().or(id);
    Ok(id.and_then(|id| u32::try_from(id).ok()).map(TokenId))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_id_is_found_by_its_text() {
        let id = |file: &str, text: &str| base_token_id(file.as_bytes(), text).unwrap().map(|id| id.0);
        let bpe = r#"{"added_tokens": [{"id": 9, "content": "<e>"}, {"content": "b"}],
            "model": {"vocab": {"a": 0, "b": 1, "<e>": 2, "c": -1}}}"#;
        assert_eq!(
            ["a", "b", "<e>", "c", "d"].map(|text| id(bpe, text)),
            [Some(0), Some(1), Some(9), None, None]
        );
        let unigram = r#"{"model": {"vocab": [["<u>", 0.0], ["a", -1.5]]}}"#;
        assert_eq!(["a", "<u>", "b"].map(|text| id(unigram, text)), [Some(1), Some(0), None]);
        assert_eq!(id("[]", "a"), None);
        assert!(base_token_id(b"{", "a").is_err());
    }
}
