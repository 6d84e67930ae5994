use fused_checkpoint::{ModelConfig, ModelFiles};
use fused_vocabulary::{PatchVocabulary, TokenId};
use serde::Deserialize;

use crate::Error;

/// Where a tokenizer says what its special tokens are, the first that does.
const FILES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// What of such a file ends an output.
#[derive(Deserialize)]
struct TokenizerConfig {
    eos_token: Option<TokenText>,
}

/// A token's text, alone or as an object with its properties.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Object { content: String },
}

/// The model ids of the tokens that end an output: those that generation_config.json or config.json names, and the
/// tokenizer's own `eos_token`, by which many a chat model's turns end though its config.json names another.
pub(crate) fn end_tokens(
    files: &ModelFiles,
    config: &ModelConfig,
    patch: Option<&PatchVocabulary>,
    tokenizer_json: &[u8],
) -> Result<Vec<TokenId>, Error> {
    let mut ids = named_by_config(config, patch)?;
    // Of the base tokenizer, whatever the checkpoint was adapted to; one that was removed is never drawn.
    let of_tokenizer = named_by_tokenizer(files, tokenizer_json)?
        .and_then(|id| patch.map_or(Some(id), |patch| patch.model_id(id)))
        .filter(|id| id.row() < config.vocab_size.max(patch.map_or(0, PatchVocabulary::vocab_size)));
    ids.extend(of_tokenizer.filter(|id| !ids.contains(id)));
    Ok(ids)
}

/// A checkpoint that was saved adapted already names model ids; an unadapted one names base ids.
fn named_by_config(config: &ModelConfig, patch: Option<&PatchVocabulary>) -> Result<Vec<TokenId>, Error> {
    let named = config.eos_token_ids.iter().copied().map(TokenId);
    let Some(patch) = patch.filter(|_| config.vocabulary_fingerprint.is_none()) else {
        return Ok(named.collect());
    };
    // The builder never removes a special token; a file made by others may.
    let removed = |id| {
        let problem =
            format!("has no token for {id}, which ends the model's output; build it without removing that");
        Error::setting("patch_vocabulary", problem)
    };
    named.map(|id| patch.model_id(id).ok_or_else(|| removed(id))).collect()
}

/// The base id of the tokenizer's `eos_token`.
fn named_by_tokenizer(files: &ModelFiles, tokenizer_json: &[u8]) -> Result<Option<TokenId>, Error> {
    for file in FILES {
        let Some(bytes) = files.read(file)? else { continue };
        let config: TokenizerConfig = serde_json::from_slice(&bytes).map_err(|source| {
            fused_checkpoint::Error::Json { model: files.name().to_owned(), file: file.to_owned(), source }
        })?;
        if let Some(TokenText::Text(text) | TokenText::Object { content: text }) = config.eos_token {
            return Ok(fused_vocabulary::base_token_id(tokenizer_json, &text)?);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use fused_vocabulary::{Mode, NToken, PatchContent, Removed, Segmentation};

    use super::*;

    fn files() -> ModelFiles {
        ModelFiles::open(&fused_testkit::model_dir("demo-llama")).unwrap()
    }

    fn tokenizer() -> Vec<u8> {
        files().read("tokenizer.json").unwrap().unwrap().to_vec()
    }

    fn ends_with(ids: &[u32]) -> ModelConfig {
        ModelConfig { eos_token_ids: ids.into(), ..ModelConfig::parse(&files()).unwrap() }
    }

    /// Removes the base token 3, and gives 0 and 1 each other's places.
    fn patch() -> PatchVocabulary {
        let parts = vec![TokenId(0), TokenId(1)];
        let content = PatchContent {
            base_tokenizer: fused_vocabulary::fingerprint(&tokenizer(), None).unwrap(),
            mode: Mode::Replace,
            segmentation: Segmentation::Greedy,
            model_ids: [Some(1), Some(0), Some(2), None, Some(4)].map(|id| id.map(TokenId)).into(),
            removed: vec![Removed { id: TokenId(3), parts: parts.clone(), text: String::new() }],
            n_tokens: vec![NToken { id: TokenId(3), base: parts, text: String::new() }],
        };
        PatchVocabulary::new(content).unwrap()
    }

    #[test]
    fn a_patch_without_the_models_end_of_sequence_is_refused_by_its_id() {
        assert_eq!(named_by_config(&ends_with(&[0, 4]), Some(&patch())).unwrap(), [TokenId(1), TokenId(4)]);
        let error = named_by_config(&ends_with(&[0, 3]), Some(&patch())).unwrap_err();
        assert!(error.to_string().starts_with("patch_vocabulary has no token for 3,"), "{error}");
        // An adapted checkpoint names its own ids: 3 is the n-token there.
        let adapted = ModelConfig { vocabulary_fingerprint: Some(String::new()), ..ends_with(&[3]) };
        assert_eq!(named_by_config(&adapted, Some(&patch())).unwrap(), [TokenId(3)]);
        assert_eq!(named_by_config(&ends_with(&[3]), None).unwrap(), [TokenId(3)]);
    }

    #[test]
    fn the_tokenizers_own_end_counts_beside_the_models() {
        let dir = tempfile::tempdir().unwrap();
        let ends = |tokenizer_config: &str, config: &ModelConfig, patch: Option<&PatchVocabulary>| {
            std::fs::write(dir.path().join(FILES[0]), tokenizer_config).unwrap();
            let ids = end_tokens(&ModelFiles::open(dir.path())?, config, patch, &tokenizer())?;
            Ok::<_, Error>(ids.into_iter().map(|id| id.0).collect::<Vec<_>>())
        };
        let text = r#"{"eos_token": "<|endoftext|>"}"#;
        assert_eq!(ends(text, &ends_with(&[7]), None).unwrap(), [7, 0]);
        assert_eq!(ends(text, &ends_with(&[0]), None).unwrap(), [0], "once");
        assert_eq!(ends(r#"{"eos_token": {"content": "a"}}"#, &ends_with(&[]), None).unwrap().len(), 1);
        assert_eq!(ends(r#"{"eos_token": "no such token"}"#, &ends_with(&[7]), None).unwrap(), [7]);
        assert_eq!(ends("{}", &ends_with(&[7]), None).unwrap(), [7]);
        // The tokenizer file is the base's, whatever the checkpoint's ids are.
        let adapted = ModelConfig { vocabulary_fingerprint: Some(String::new()), ..ends_with(&[4]) };
        assert_eq!(ends(text, &adapted, Some(&patch())).unwrap(), [4, 1]);
        let error = ends("[", &ends_with(&[7]), None).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(FILES[0]), "{cause}");
        std::fs::write(dir.path().join(FILES[1]), text).unwrap();
        assert_eq!(ends("{}", &ends_with(&[7]), None).unwrap(), [7, 0]);
    }
}
