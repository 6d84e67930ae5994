use std::collections::BTreeMap;

use fused_checkpoint::{FileBytes, ModelFiles, TEMPLATE_FOLDER};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Error;

pub(crate) const FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Where the processors of older models keep theirs.
const PROCESSOR_TEMPLATE_FILE: &str = "chat_template.json";
const DEFAULT: &str = "default";

/// What of `tokenizer_config.json` and the files beside it matters here; the rest, which is much, is for other programs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenizerConfig {
    pub(crate) bos_token: Option<TokenText>,
    pub(crate) eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    sep_token: Option<TokenText>,
    cls_token: Option<TokenText>,
    mask_token: Option<TokenText>,
    pub(crate) add_bos_token: Option<bool>,
    pub(crate) add_eos_token: Option<bool>,
    chat_template: Option<TemplateField>,
    #[serde(skip)]
    template_files: BTreeMap<String, String>,
    /// A model may have special tokens under names of its own.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A token's text, alone or as an object with its properties.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenText {
    Text(String),
    Object { content: String },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Debug, Deserialize)]
struct ProcessorTemplate {
    chat_template: Option<TemplateField>,
}

impl TokenText {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`, or defaults where the model has none, and what transformers reads beside it: special
    /// tokens of older models, and templates in files of their own, which replace those of the same names.
    pub(crate) fn load(files: &ModelFiles) -> Result<Self, Error> {
        let mut json: Map<String, Value> = read(files, FILE)?.unwrap_or_default();
        // Newer models, which have this, say all in the one file, and what the other one says does not count.
        if !json.contains_key("added_tokens_decoder")
            && let Some(tokens) = read::<Map<String, Value>>(files, SPECIAL_TOKENS_FILE)?
        {
            json.extend(tokens);
        }
        let invalid = |source| Error::TokenizerConfig { file: FILE, source };
        let mut config: Self = serde_json::from_value(Value::Object(json)).map_err(invalid)?;
        if let Some(file) = read::<ProcessorTemplate>(files, PROCESSOR_TEMPLATE_FILE)?
            && file.chat_template.is_some()
        {
            config.chat_template = file.chat_template;
        }
        for (name, bytes) in files.read_folder(TEMPLATE_FOLDER, "jinja")? {
            config.add_template(format!("{TEMPLATE_FOLDER}/{name}.jinja"), name, &bytes)?;
        }
        if let Some(bytes) = files.read(TEMPLATE_FILE)? {
            config.add_template(TEMPLATE_FILE.to_owned(), DEFAULT.to_owned(), &bytes)?;
        }
        Ok(config)
    }

    fn add_template(&mut self, file: String, name: String, bytes: &FileBytes) -> Result<(), Error> {
        let template =
            std::str::from_utf8(bytes).map_err(|source| Error::ChatTemplateText { file, source })?;
        self.template_files.insert(name, template.to_owned());
        Ok(())
    }

    /// The chat templates by name; a single one is called `default`.
    pub(crate) fn chat_templates(&self) -> BTreeMap<&str, &str> {
        let mut templates = match &self.chat_template {
            None => BTreeMap::new(),
            Some(TemplateField::One(template)) => BTreeMap::from([(DEFAULT, template.as_str())]),
            Some(TemplateField::Named(templates)) => {
                templates.iter().map(|named| (named.name.as_str(), named.template.as_str())).collect()
            }
        };
        templates
            .extend(self.template_files.iter().map(|(name, template)| (name.as_str(), template.as_str())));
        templates
    }

    /// The special tokens' texts, under the names by which templates know them.
    pub(crate) fn special_tokens(&self) -> BTreeMap<String, String> {
        let own = self.others.iter().filter(|(name, _)| name.ends_with("_token"));
        let named = self.others.get("extra_special_tokens").and_then(Value::as_object);
        let own = own.chain(named.into_iter().flatten());
        let text = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
        let mut tokens: BTreeMap<_, _> =
            own.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect();
        let standard = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
            ("sep_token", &self.sep_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ];
        let standard = standard.into_iter();
        tokens.extend(
            standard.filter_map(|(name, token)| Some((name.to_owned(), token.as_ref()?.text().to_owned()))),
        );
        tokens
    }
}

fn read<T: serde::de::DeserializeOwned>(files: &ModelFiles, file: &'static str) -> Result<Option<T>, Error> {
    let Some(bytes) = files.read(file)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::TokenizerConfig { file, source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn model(files: &[(&str, &str)]) -> (tempfile::TempDir, TokenizerConfig) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let config = TokenizerConfig::load(&ModelFiles::open(dir.path()).unwrap()).unwrap();
        (dir, config)
    }

    #[test]
    fn special_tokens_of_older_models_stand_in_a_file_of_their_own() {
        let map = (
            SPECIAL_TOKENS_FILE,
            r#"{"bos_token": "<b>", "eos_token": {"content": "</b>"}, "unk_token": null}"#,
        );
        let (_dir, config) =
            model(&[(FILE, r#"{"eos_token": "</s>", "image_token": "<i>", "add_bos_token": true}"#), map]);
        let tokens: Vec<_> = config.special_tokens().into_iter().collect();
        let expected = [("bos_token", "<b>"), ("eos_token", "</b>"), ("image_token", "<i>")];
        assert_eq!(tokens, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        let newer = r#"{"eos_token": "</s>", "added_tokens_decoder": {}, "extra_special_tokens": {"x_token": "<x>"}}"#;
        let (_dir, config) = model(&[(FILE, newer), map]);
        let tokens: Vec<_> = config.special_tokens().into_iter().collect();
        let expected = [("eos_token", "</s>"), ("x_token", "<x>")];
        assert_eq!(tokens, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn templates_in_files_replace_those_of_their_names() {
        let list =
            r#"{"chat_template": [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]}"#;
        let (_dir, config) = model(&[(FILE, list)]);
        assert_eq!(config.chat_templates(), BTreeMap::from([("default", "a"), ("rag", "b")]));
        let processor = (PROCESSOR_TEMPLATE_FILE, r#"{"chat_template": "c"}"#);
        let (_dir, config) = model(&[(FILE, list), processor]);
        assert_eq!(config.chat_templates(), BTreeMap::from([("default", "c")]));
        let tool_use = ("additional_chat_templates/tool_use.jinja", "e");
        let other = ("additional_chat_templates/README.md", "f");
        let (_dir, config) = model(&[(FILE, list), processor, (TEMPLATE_FILE, "d"), tool_use, other]);
        assert_eq!(config.chat_templates(), BTreeMap::from([("default", "d"), ("tool_use", "e")]));
    }
}
