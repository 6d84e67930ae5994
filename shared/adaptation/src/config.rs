use fused_checkpoint::ModelFiles;
use fused_vocabulary::{PatchVocabulary, TokenId};
use serde_json::{Map, Value};

use crate::{Error, Result};

const CONFIG_FILE: &str = "config.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// Keys that hold token ids, in lists of any depth, beside those whose name ends with `_token_id`.
const TOKEN_LISTS: [&str; 4] =
    ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids"];

/// The adapted model's configuration files: the base model's, key for key and in their order, apart from the vocabulary's
/// size, the matrices that are tied no longer, the vocabulary's fingerprint, and token ids, which are model ids here.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedConfig {
    config: Map<String, Value>,
    generation: Option<Map<String, Value>>,
}

impl AdaptedConfig {
    /// Reads the base model's files.
    ///
    /// # Errors
    /// A file that is missing or no JSON object; a key that names a token which the adapted model does not have.
    pub fn new(base: &ModelFiles, patch: &PatchVocabulary) -> Result<Self> {
        let mut config = read(base, CONFIG_FILE)?.ok_or_else(|| fused_checkpoint::Error::MissingFile {
            model: base.name().to_owned(),
            file: CONFIG_FILE.to_owned(),
        })?;
        let mut generation = read(base, GENERATION_CONFIG_FILE)?;
        for (file, keys) in [(CONFIG_FILE, Some(&mut config)), (GENERATION_CONFIG_FILE, generation.as_mut())]
        {
            for (key, value) in keys.into_iter().flatten() {
                if key.ends_with("_token_id") || TOKEN_LISTS.contains(&key.as_str()) {
                    map_ids(value, patch).map_err(|token| Error::SpecialToken {
                        model: base.name().to_owned(),
                        file,
                        key: key.clone(),
                        token,
                    })?;
                }
            }
        }
        config.insert("vocab_size".to_owned(), patch.vocab_size().into());
        config.insert("tie_word_embeddings".to_owned(), false.into());
        config.insert("fused_vocabulary_fingerprint".to_owned(), patch.fingerprint().to_string().into());
        Ok(Self { config, generation })
    }

    /// Names and contents of the files.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, String)> {
        [(CONFIG_FILE, Some(&self.config)), (GENERATION_CONFIG_FILE, self.generation.as_ref())]
            .into_iter()
            .filter_map(|(name, keys)| Some((name, format!("{:#}\n", Value::Object(keys?.clone())))))
    }
}

/// Base ids to model ids. What is no token id (`null`, the -1 of models without a padding token) stays.
fn map_ids(value: &mut Value, patch: &PatchVocabulary) -> std::result::Result<(), TokenId> {
    match value {
        Value::Array(values) => values.iter_mut().try_for_each(|value| map_ids(value, patch)),
        Value::Number(number) => {
            let Some(id) = number.as_u64() else { return Ok(()) };
            // An id beyond 32 bits is certainly none of the tokenizer's.
            let token = TokenId(u32::try_from(id).unwrap_or(u32::MAX));
            *value = patch.model_id(token).ok_or(token)?.0.into();
            Ok(())
        }
        _ => Ok(()),
    }
}

fn read(base: &ModelFiles, file: &'static str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = base.read(file)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Json {
        model: base.name().to_owned(),
        file,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use fused_vocabulary::{Mode, NToken, PatchContent, Removed, Segmentation};
    use tempfile::TempDir;

    use super::*;

    /// Four base tokens in reverse order, of which the first is removed; the n-token has the id 3.
    fn patch() -> PatchVocabulary {
        let two = || vec![TokenId(1), TokenId(2)];
        PatchVocabulary::new(PatchContent {
            base_tokenizer: "07".repeat(32).parse().unwrap(),
            mode: Mode::Replace,
            segmentation: Segmentation::Greedy,
            model_ids: [None, Some(2), Some(1), Some(0)].map(|id| id.map(TokenId)).into(),
            removed: vec![Removed { id: TokenId(0), parts: two(), text: String::new() }],
            n_tokens: vec![NToken { id: TokenId(3), base: two(), text: String::new() }],
        })
        .unwrap()
    }

    fn adapt(config: &str, generation: Option<&str>) -> Result<Vec<(&'static str, String)>> {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join(CONFIG_FILE), config).unwrap();
        if let Some(generation) = generation {
            fs::write(dir.path().join(GENERATION_CONFIG_FILE), generation).unwrap();
        }
        let files = ModelFiles::open(dir.path()).unwrap();
        Ok(AdaptedConfig::new(&files, &patch())?.files().collect())
    }

    #[test]
    fn ids_are_mapped_and_everything_else_stays_in_its_place() {
        let config = r#"{"z": [1, 2], "bos_token_id": 1, "vocab_size": 9, "pad_token_id": -1, "a": 1e-05,
            "eos_token_id": [3, 2], "sep_token_id": null, "num_hidden_layers": 3}"#;
        let generation = r#"{"eos_token_id": 3, "max_length": 3, "bad_words_ids": [[1, 2], [3]]}"#;
        let files = adapt(config, Some(generation)).unwrap();
        let flat: Vec<_> = files.iter().map(|(name, text)| (*name, text.replace(['\n', ' '], ""))).collect();
        let fingerprint = patch().fingerprint();
        assert_eq!(
            flat,
            [
                (
                    "config.json",
                    format!(
                        "{{\"z\":[1,2],\"bos_token_id\":2,\"vocab_size\":4,\"pad_token_id\":-1,\"a\":0.00001,\
                 \"eos_token_id\":[0,1],\"sep_token_id\":null,\"num_hidden_layers\":3,\
                 \"tie_word_embeddings\":false,\"fused_vocabulary_fingerprint\":\"{fingerprint}\"}}"
                    )
                ),
                (
                    "generation_config.json",
                    "{\"eos_token_id\":0,\"max_length\":3,\"bad_words_ids\":[[2,1],[0]]}".to_owned()
                ),
            ]
        );
        assert_eq!(adapt("{}", None).unwrap().len(), 1, "no generation_config.json where the base has none");
    }

    #[test]
    fn a_token_that_is_gone_and_a_broken_file_are_named() {
        for (config, generation, said) in [
            (r#"{"eos_token_id": 0}"#, None, "config.json: `eos_token_id` names token 0"),
            (r#"{"pad_token_id": 4}"#, None, "config.json: `pad_token_id` names token 4"),
            (r#"{"pad_token_id": 9000000000}"#, None, "config.json: `pad_token_id` names token 4294967295"),
            (
                "{}",
                Some(r#"{"suppress_tokens": [1, 0]}"#),
                "generation_config.json: `suppress_tokens` names token 0",
            ),
            ("[]", None, "config.json is not a JSON object"),
            ("{}", Some("{"), "generation_config.json is not a JSON object"),
        ] {
            let error = adapt(config, generation).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
