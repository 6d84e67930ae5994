//! Tokens that only the files beside `tokenizer.json` name. transformers adds them to the tokenizer when it loads one, and
//! so prompts that were written for it mean single tokens by them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::AddedToken;

use crate::base::TokenizerJson;
use crate::{Error, Result};

/// What lies beside a `tokenizer.json`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer_config.json`.
    pub config: Option<&'a [u8]>,
    /// `special_tokens_map.json`; read only where the configuration lists no added tokens, as the next.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `added_tokens.json`.
    pub added_tokens: Option<&'a [u8]>,
}

/// The keys that name tokens.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Names {
    added_tokens_decoder: Option<BTreeMap<u32, Token>>,
    bos_token: Option<Name>,
    eos_token: Option<Name>,
    unk_token: Option<Name>,
    sep_token: Option<Name>,
    pad_token: Option<Name>,
    cls_token: Option<Name>,
    mask_token: Option<Name>,
    extra_special_tokens: Option<Extra>,
    additional_special_tokens: Option<Extra>,
}

#[derive(Clone, Deserialize)]
struct Token {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Token(Token),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Extra {
    List(Vec<Name>),
    /// Of models of images and sound.
    Map(BTreeMap<String, Name>),
    /// No tokens that transformers would add either.
    Other(serde::de::IgnoredAny),
}

/// A `tokenizer.json` with the tokens that the files beside it name and it lacks, numbered as transformers numbers them,
/// whatever ids those files give: added tokens first, in the order of their ids, then special ones.
///
/// # Errors
/// A file that is too large or not of its form, by its name.
pub fn with_extra_tokens<'a>(tokenizer: &'a [u8], files: &TokenizerFiles<'_>) -> Result<Cow<'a, [u8]>> {
    let mut json = TokenizerJson::parse(tokenizer)?;
    let in_file = json.value().get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ids: HashSet<u64> = in_file.iter().filter_map(|token| token.get("id")?.as_u64()).collect();
    let contents = in_file.iter().filter_map(|token| token.get("content")?.as_str());
    let mut known: HashSet<String> = contents.map(str::to_owned).collect();
    let mut missing = named(files, &ids)?;
    missing.retain(|token| !token.content.is_empty() && known.insert(token.content.clone()));
    if missing.is_empty() {
        return Ok(Cow::Borrowed(tokenizer));
    }
    let mut numbered = json.tokenizer()?;
    let added: Vec<AddedToken> = missing.iter().map(Token::to_added).collect();
    numbered.add_tokens(&added);
    json.add_tokens(missing.iter().filter_map(|token| {
        let id = numbered.token_to_id(&token.content)?;
        Some(json!({
            "id": id, "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
            "rstrip": token.rstrip, "normalized": token.is_normalized(), "special": token.special,
        }))
    }));
    Ok(Cow::Owned(json.value().to_string().into_bytes()))
}

/// All tokens that the files name, in the order in which they are added. `ids`: which `tokenizer.json` gives to its own.
fn named(files: &TokenizerFiles<'_>, ids: &HashSet<u64>) -> Result<Vec<Token>> {
    let mut config: Names = parse("tokenizer_config.json", files.config)?;
    let listed = config.added_tokens_decoder.take();
    let legacy: Option<Names> = match &listed {
        Some(_) => None,
        None => Some(parse("special_tokens_map.json", files.special_tokens_map)?),
    };
    let special = special(legacy.into_iter().chain([config]));
    let mut tokens: Vec<Token> = match listed {
        Some(listed) => listed.into_values().collect(),
        None => {
            let added: BTreeMap<String, u32> = parse("added_tokens.json", files.added_tokens)?;
            let mut added: Vec<_> =
                added.into_iter().filter(|(_, id)| !ids.contains(&u64::from(*id))).collect();
            added.sort_by_key(|(_, id)| *id);
            added.into_iter().map(|(content, _)| Token::plain(content, false)).collect()
        }
    };
    let names: HashSet<&str> = special.iter().map(|token| token.content.as_str()).collect();
    tokens.iter_mut().for_each(|token| token.special |= names.contains(token.content.as_str()));
    tokens.extend(special);
    Ok(tokens)
}

/// The special tokens, each name's from the first of the files that has it.
fn special(files: impl Iterator<Item = Names>) -> Vec<Token> {
    let (mut by_name, mut extra) = ([const { None }; 7], Vec::new());
    for file in files {
        let names = [
            file.bos_token,
            file.eos_token,
            file.unk_token,
            file.sep_token,
            file.pad_token,
            file.cls_token,
            file.mask_token,
        ];
        for (slot, name) in by_name.iter_mut().zip(names) {
            *slot = slot.take().or(name);
        }
        for list in [file.extra_special_tokens, file.additional_special_tokens].into_iter().flatten() {
            match list {
                Extra::List(names) => extra.extend(names),
                Extra::Map(names) => extra.extend(names.into_values()),
                Extra::Other(_) => {}
            }
        }
    }
    let tokens = by_name.into_iter().flatten().chain(extra).map(|name| match name {
        Name::Text(content) => Token::plain(content, true),
        Name::Token(token) => Token { special: true, ..token },
    });
    tokens.collect()
}

impl Token {
    fn plain(content: String, special: bool) -> Self {
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: None, special }
    }

    fn is_normalized(&self) -> bool {
        self.normalized.unwrap_or(!self.special)
    }

    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.is_normalized())
    }
}

fn parse<T: Default + for<'de> Deserialize<'de>>(file: &'static str, bytes: Option<&[u8]>) -> Result<T> {
    match bytes {
        None => Ok(T::default()),
        Some(bytes) => serde_json::from_slice(bytes).map_err(|source| Error::Json { file, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three letters and `<e>`.
    const TOKENIZER: &str = r#"{"version": "1.0",
        "added_tokens": [{"id": 3, "content": "<e>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}}"#;

    /// The tokens that are added, with their ids and whether they are special.
    fn added(files: &TokenizerFiles<'_>) -> Vec<(String, u64, bool)> {
        let json: Value =
            serde_json::from_slice(&with_extra_tokens(TOKENIZER.as_bytes(), files).unwrap()).unwrap();
        let tokens = json["added_tokens"].as_array().unwrap()[1..].iter().map(|token| {
            let content = token["content"].as_str().unwrap().to_owned();
            (content, token["id"].as_u64().unwrap(), token["special"].as_bool().unwrap())
        });
        tokens.collect()
    }

    /// As transformers 5.24 answers for the same files (`AutoTokenizer.from_pretrained(...).added_tokens_decoder`).
    #[test]
    fn tokens_are_added_and_numbered_as_transformers_does() {
        let config = |config: &'static str| TokenizerFiles {
            config: Some(config.as_bytes()),
            ..TokenizerFiles::default()
        };
        let list = r#"{"added_tokens_decoder": {"30": {"content": "<c>", "special": true}, "8": {"content": "<b>"},
                       "3": {"content": "<e>", "special": true}}, "eos_token": "<e>", "pad_token": "<b>"}"#;
        let legacy = TokenizerFiles {
            config: Some(br#"{"pad_token": "<p>"}"#),
            special_tokens_map: Some(br#"{"pad_token": "<q>", "additional_special_tokens": ["<x>"]}"#),
            added_tokens: Some(br#"{"<z>": 9, "<q>": 7, "<clash>": 3}"#),
        };
        for (files, expected) in [
            (TokenizerFiles::default(), &[][..]),
            (config(r#"{"eos_token": "<e>", "chat_template": "x"}"#), &[]),
            (config(list), &[("<b>", 4, true), ("<c>", 5, true)]),
            (
                TokenizerFiles { config: Some(list.as_bytes()), ..legacy },
                &[("<b>", 4, true), ("<c>", 5, true)],
            ),
            (
                config(r#"{"bos_token": "a", "pad_token": {"content": "<p>", "lstrip": true}}"#),
                &[("a", 0, true), ("<p>", 4, true)],
            ),
            (config(r#"{"extra_special_tokens": {"image_token": "<i>"}}"#), &[("<i>", 4, true)]),
            (config(r#"{"extra_special_tokens": {"sizes": [1, 2]}}"#), &[]),
            (legacy, &[("<q>", 4, true), ("<z>", 5, false), ("<x>", 6, true)]),
        ] {
            let expected: Vec<_> =
                expected.iter().map(|&(text, id, special)| (text.to_owned(), id, special)).collect();
            assert_eq!(added(&files), expected);
        }
    }

    #[test]
    fn a_file_that_is_not_of_its_form_is_named() {
        let bytes = Some(&b"{\"added_tokens_decoder\": {\"x\": {}}}"[..]);
        let config = TokenizerFiles { config: bytes, ..TokenizerFiles::default() };
        let added_tokens = TokenizerFiles { added_tokens: bytes, ..TokenizerFiles::default() };
        for (files, name) in [(config, "tokenizer_config.json"), (added_tokens, "added_tokens.json")] {
            let error = with_extra_tokens(TOKENIZER.as_bytes(), &files).unwrap_err().to_string();
            assert_eq!(error, format!("{name} cannot be parsed"));
        }
    }
}
