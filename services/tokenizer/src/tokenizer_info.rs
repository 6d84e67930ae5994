use fused_checkpoint::ModelFiles;
use serde_json::{Map, Value};

use crate::Error;
use crate::tokenizer_config::{FILE, TokenizerConfig};

/// Keys that hold ids of the base tokenizer, which mean other texts to an adapted model, or name code.
const LEFT_OUT: [&str; 2] = ["added_tokens_decoder", "auto_map"];

/// What clients that tokenize over the API need beside it (vLLM's `/tokenizer_info`): `tokenizer_config.json`, its special
/// tokens as plain texts, null where there is none, and the chat template wherever it comes from.
pub(crate) fn tokenizer_info(
    files: &ModelFiles,
    config: &TokenizerConfig,
    given_template: Option<&str>,
) -> Result<Value, Error> {
    let mut info: Map<String, Value> = match files.read(FILE)? {
        Some(bytes) => {
            serde_json::from_slice(&bytes).map_err(|source| Error::TokenizerConfig { file: FILE, source })?
        }
        None => Map::new(),
    };
    info.retain(|key, _| !LEFT_OUT.contains(&key.as_str()));
    for value in info.values_mut() {
        // An added token with its properties.
        if let Some(Value::String(text)) = value.get_mut("content").map(Value::take) {
            *value = Value::String(text);
        }
    }
    for name in ["bos_token", "eos_token"] {
        info.entry(name).or_insert(Value::Null);
    }
    for (name, text) in config.special_tokens() {
        info.insert(name.to_owned(), text.into());
    }
    if let Some(template) = given_template.or(config.chat_templates().get("default").copied()) {
        info.insert("chat_template".to_owned(), template.into());
    }
    Ok(Value::Object(info))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_the_config_with_plain_tokens_and_without_base_ids() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, "added_tokens_decoder": {"0": {}},
            "eos_token": {"content": "</s>", "special": true}, "mask_token": null, "chat_template": "old",
        });
        std::fs::write(dir.path().join(FILE), config.to_string()).unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), "new").unwrap();
        let files = ModelFiles::open(dir.path()).unwrap();
        let tokenizer_config = TokenizerConfig::load(&files).unwrap();
        let info = tokenizer_info(&files, &tokenizer_config, None).unwrap();
        let expected = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, "eos_token": "</s>", "mask_token": null,
            "bos_token": null, "chat_template": "new",
        });
        assert_eq!(info, expected);
        let info = tokenizer_info(&files, &tokenizer_config, Some("given")).unwrap();
        assert_eq!(info["chat_template"], "given");
    }
}
