use std::collections::BTreeMap;

use fused_checkpoint::ModelFiles;
use serde::Deserialize;

use crate::Error;

pub(crate) const FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// What of `tokenizer_config.json` matters here; the rest, which is much, is for other programs.
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

impl TokenText {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`, or defaults where the model has none. A template in a file of its own replaces the
    /// one in it, as transformers has it.
    pub(crate) fn load(files: &ModelFiles) -> Result<Self, Error> {
        let mut config: Self = match files.read(FILE)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(Error::TokenizerConfig)?,
            None => Self::default(),
        };
        if let Some(bytes) = files.read(TEMPLATE_FILE)? {
            let template = std::str::from_utf8(&bytes).map_err(Error::ChatTemplate)?;
            config.chat_template = Some(TemplateField::One(template.to_owned()));
        }
        Ok(config)
    }

    /// The chat templates by name; a single one is called `default`.
    pub(crate) fn chat_templates(&self) -> BTreeMap<&str, &str> {
        match &self.chat_template {
            None => BTreeMap::new(),
            Some(TemplateField::One(template)) => BTreeMap::from([("default", template.as_str())]),
            Some(TemplateField::Named(templates)) => {
                templates.iter().map(|named| (named.name.as_str(), named.template.as_str())).collect()
            }
        }
    }

    /// The special tokens' texts, under the names by which templates know them.
    pub(crate) fn special_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let tokens = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
            ("sep_token", &self.sep_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ];
        tokens.into_iter().filter_map(|(name, token)| Some((name, token.as_ref()?.text())))
    }
}
