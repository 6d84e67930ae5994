//! The field `prompt` of completions: a string, an array of strings, an array of token ids, or an array of those.

use fused_proto::text::v1::TokenIds;
use fused_proto::text::v1::prompt::Prompt;
use fused_status::Error;
use serde_json::value::RawValue;

use crate::fields::{Fields, missing, parse, parse_array, parse_items, wrong};

const NAME: &str = "prompt";

/// Reads it: at least one prompt. An empty text is one, an empty list of token ids is not.
pub(super) fn prompts(fields: &mut Fields<'_>) -> Result<Vec<Prompt>, Error> {
    let value = fields.raw(NAME).ok_or_else(|| missing(NAME))?;
    match Shape::of(value) {
        Some(Shape::Text) => Ok(vec![text(NAME, value)?]),
        Some(Shape::Texts) => many(value, text),
        Some(Shape::TokenIds) => Ok(vec![token_ids(NAME, value)?]),
        Some(Shape::ManyTokenIds) => many(value, token_ids),
        None => {
            let expected = "a string, an array of strings, an array of token ids, or an array of such arrays";
            Err(wrong(NAME, expected, value))
        }
    }
}

/// At most how many tokens a prompt has: only the text service knows how many bytes make one.
pub(super) fn most_tokens(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::TokenIds(tokens) => tokens.ids.len(),
        Prompt::Chat(chat) => chat.messages_json.iter().map(String::len).sum(),
    }
}

/// How many tokens a prompt is thought to have before the text service has counted them.
pub(super) fn tokens_estimate(prompt: &Prompt) -> u64 {
    const BYTES_PER_TOKEN: u64 = 4;
    let most = most_tokens(prompt) as u64;
    if matches!(prompt, Prompt::TokenIds(_)) { most } else { most.div_ceil(BYTES_PER_TOKEN) }
}

enum Shape {
    Text,
    Texts,
    TokenIds,
    ManyTokenIds,
}

impl Shape {
    /// An array is what its first item says; the others must be like it.
    fn of(value: &RawValue) -> Option<Self> {
        let text = value.get();
        if text.starts_with('"') {
            return Some(Self::Text);
        }
        match text.strip_prefix('[')?.trim_start().as_bytes().first()? {
            b'"' => Some(Self::Texts),
            b'[' => Some(Self::ManyTokenIds),
            _ => Some(Self::TokenIds),
        }
    }
}

fn many(
    value: &RawValue,
    one: impl Fn(&str, &RawValue) -> Result<Prompt, Error>,
) -> Result<Vec<Prompt>, Error> {
    let items = parse_items(NAME, value)?;
    items.into_iter().enumerate().map(|(idx, item)| one(&format!("{NAME}[{idx}]"), item)).collect()
}

fn text(path: &str, value: &RawValue) -> Result<Prompt, Error> {
    parse(path, value).map(Prompt::Text)
}

fn token_ids(path: &str, value: &RawValue) -> Result<Prompt, Error> {
    let ids: Vec<u32> = parse_array(path, value)?;
    if ids.is_empty() { Err(empty(path)) } else { Ok(Prompt::TokenIds(TokenIds { ids })) }
}

fn empty(path: &str) -> Error {
    Error::invalid(path, format!("{path} must not be empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Result<Vec<Prompt>, Error> {
        let body = format!(r#"{{"prompt": {prompt}}}"#);
        prompts(&mut Fields::parse(body.as_bytes())?)
    }

    #[test]
    fn every_form_is_read() {
        let ids = |ids: &[u32]| Prompt::TokenIds(TokenIds { ids: ids.to_vec() });
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(read(r#""a""#).unwrap(), [text("a")]);
        assert_eq!(read(r#""""#).unwrap(), [text("")]);
        assert_eq!(read(r#"["a", ""]"#).unwrap(), [text("a"), text("")]);
        assert_eq!(read(r#"[ "a", "b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(read("[1, 2]").unwrap(), [ids(&[1, 2])]);
        assert_eq!(read("[[1], [2, 3]]").unwrap(), [ids(&[1]), ids(&[2, 3])]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (prompt, param, part) in [
            ("null", "prompt", "required"),
            ("[]", "prompt", "must not be empty"),
            ("[[1], []]", "prompt[1]", "must not be empty"),
            ("7", "prompt", "got 7"),
            (r#"{"a": 1}"#, "prompt", "got an object"),
            ("[1, -2]", "prompt[1]", "got -2"),
            ("[4294967296]", "prompt[0]", "got 4294967296"),
            (r#"["a", 1]"#, "prompt[1]", "must be a string, got 1"),
            (r#"[[1], "a"]"#, "prompt[1]", "must be an array, got a string"),
            (r#"[1, "a"]"#, "prompt[1]", "got a string"),
        ] {
            let error = read(prompt).unwrap_err();
            assert_eq!(error.param(), Some(param), "{prompt}");
            assert!(error.message().contains(part), "{prompt}: {error}");
        }
    }
}
