use fused_vocabulary::{SpecialTokens, TokenId, Vocabulary};

use crate::Error;
use crate::tokenizer_config::{TokenText, TokenizerConfig};

/// The tokens that go before and after a text where special tokens are asked for.
///
/// This is the only place that adds them: texts are always encoded bare. What the tokenizer's post-processor would add
/// is found once, at start; `add_bos_token` and `add_eos_token` of `tokenizer_config.json` overrule it, as transformers
/// has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Affixes {
    before: Vec<TokenId>,
    after: Vec<TokenId>,
    /// The model's own beginning of a text, whether one is set before texts or not.
    bos: Option<TokenId>,
}

impl Affixes {
    pub(crate) fn load(vocabulary: &Vocabulary, config: &TokenizerConfig) -> Result<Self, Error> {
        // Any text would do: a post-processor's tokens do not depend on it.
        let bare = vocabulary.encode("a", SpecialTokens::Omit)?.ids;
        let full = vocabulary.encode("a", SpecialTokens::Add)?.ids;
        let start = full.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        let (before, rest) = full.split_at(start);
        let mut affixes = Self {
            before: before.to_vec(),
            after: rest.get(bare.len()..).unwrap_or_default().to_vec(),
            bos: None,
        };
        affixes.bos = config.bos_token.as_ref().and_then(|token| vocabulary.token_id(token.text()));

        if let Some(id) = asked_for(vocabulary, "bos_token", config.bos_token.as_ref(), config.add_bos_token)?
        {
            affixes.before.retain(|before| *before != id);
            if config.add_bos_token == Some(true) {
                affixes.before.insert(0, id);
            }
        }
        if let Some(id) = asked_for(vocabulary, "eos_token", config.eos_token.as_ref(), config.add_eos_token)?
        {
            affixes.after.retain(|after| *after != id);
            if config.add_eos_token == Some(true) {
                affixes.after.push(id);
            }
        }
        Ok(affixes)
    }

    /// What stands for an empty text, of which a model can compute nothing.
    pub(crate) fn beginning(&self) -> Option<TokenId> {
        self.before.first().copied().or(self.bos)
    }

    /// Tokens before a text.
    pub(crate) fn num_before(&self) -> usize {
        self.before.len()
    }

    /// Sets the tokens before a text, whose first ids, more than [`num_before`](Self::num_before) or all, are there; but
    /// none that the text itself has written there: two beginnings of sequence are never what a caller wants. Returns how
    /// many were set.
    pub(crate) fn begin(&self, ids: &mut Vec<TokenId>) -> usize {
        if ids.starts_with(&self.before) {
            return 0;
        }
        ids.splice(0..0, self.before.iter().copied());
        self.before.len()
    }

    /// Sets the tokens after a text, likewise.
    pub(crate) fn end(&self, ids: &mut Vec<TokenId>) -> usize {
        if ids.ends_with(&self.after) {
            return 0;
        }
        ids.extend_from_slice(&self.after);
        self.after.len()
    }
}

/// The token that a setting speaks of; none where it is not set.
fn asked_for(
    vocabulary: &Vocabulary,
    field: &'static str,
    token: Option<&TokenText>,
    add: Option<bool>,
) -> Result<Option<TokenId>, Error> {
    let (Some(token), Some(add)) = (token, add) else { return Ok(None) };
    match vocabulary.token_id(token.text()) {
        None if add => Err(Error::UnknownToken { field, token: token.text().to_owned() }),
        id => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Characters a, b, c and the special tokens `<s>` and `</s>`; the post-processor sets `<s>` before a text.
    fn vocabulary() -> Vocabulary {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false},
            "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4}, "merges": []},
        });
        Vocabulary::load(tokenizer.to_string().as_bytes(), None).unwrap()
    }

    fn wrapped(config: serde_json::Value, text: &str) -> Vec<u32> {
        let config: TokenizerConfig = serde_json::from_value(config).unwrap();
        let vocabulary = vocabulary();
        let mut ids = vocabulary.encode(text, SpecialTokens::Omit).unwrap().ids;
        let affixes = Affixes::load(&vocabulary, &config).unwrap();
        let num_bare = ids.len();
        assert_eq!(affixes.begin(&mut ids) + affixes.end(&mut ids), ids.len() - num_bare);
        ids.into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn the_post_processor_is_followed_where_nothing_else_is_said() {
        assert_eq!(wrapped(json!({}), "ab"), [0, 2, 3]);
        assert_eq!(wrapped(json!({"bos_token": "<s>", "eos_token": "</s>"}), "ab"), [0, 2, 3]);
    }

    #[test]
    fn the_config_overrules_it() {
        assert_eq!(wrapped(json!({"bos_token": "<s>", "add_bos_token": false}), "ab"), [2, 3]);
        let both = json!({"bos_token": {"content": "<s>"}, "add_bos_token": true, "eos_token": "</s>",
            "add_eos_token": true});
        assert_eq!(wrapped(both, "ab"), [0, 2, 3, 1]);
    }

    #[test]
    fn no_beginning_is_set_twice() {
        assert_eq!(wrapped(json!({"bos_token": "<s>", "add_bos_token": true}), "<s>ab"), [0, 2, 3]);
    }

    #[test]
    fn an_unknown_token_is_refused_by_name() {
        let config = serde_json::from_value(json!({"bos_token": "<bos>", "add_bos_token": true})).unwrap();
        let error = Affixes::load(&vocabulary(), &config).unwrap_err().to_string();
        assert!(error.contains("bos_token") && error.contains("<bos>"), "{error}");
    }
}
