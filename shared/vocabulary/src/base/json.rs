use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{Error, Result};

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
