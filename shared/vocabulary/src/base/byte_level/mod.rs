//! Byte-level byte pair encoding, the kind of tokenizer of GPT-2, Llama-3 and Qwen, some ten times faster than the
//! `tokenizers` crate: a scanner instead of a regular expression, one look for a word that is one token, and merging on
//! ids for the others. Ids are the same; a tokenizer with anything in it that is not known here is left to that crate.
//!
//! Linear-time crates for byte pair encoding exist, but take merge ranks from the order of token ids and leave the
//! splitting to a regular expression; here the rules of `tokenizer.json` hold as they are written, and the splitting is
//! what takes most of the time.

mod classes;
mod merges;
mod pattern;
mod words;

use std::collections::HashMap;

use serde_json::Value;

use self::merges::Merges;
pub(super) use self::pattern::End;
use self::pattern::Pattern;
use self::words::Words;
use super::TokenizerJson;
use super::bytes::byte_of;
use crate::TokenId;

/// Text without added tokens, already normalized, to base ids.
pub(super) struct ByteLevelBpe {
    pattern: Pattern,
    words: Words,
    merges: Merges,
}

impl ByteLevelBpe {
    /// Nothing where the tokenizer is of another kind.
    pub(super) fn from_json(json: &TokenizerJson) -> Option<Self> {
        let pattern = pattern_of(json.value().get("pre_tokenizer")?)?;
        let model = json.value().get("model")?;
        if !is_plain_bpe(model) {
            return None;
        }
        let vocab = model.get("vocab")?.as_object()?;
        let ids: HashMap<&str, TokenId> = vocab
            .iter()
            .filter_map(|(text, id)| Some((text.as_str(), TokenId(u32::try_from(id.as_u64()?).ok()?))))
            .collect();
        let merges = merges(json, &ids)?;

        let words = ids.iter().filter_map(|(text, id)| Some((bytes_of(text)?, *id)));
        let words: Vec<(Vec<u8>, TokenId)> = match model.get("ignore_merges").and_then(Value::as_bool) {
            Some(true) => words.collect(),
            // A token that merging does not arrive at is none that a text can have.
            _ => words.filter(|(bytes, id)| is_reached(&merges, bytes, *id)).collect(),
        };
        let words = Words::new(words.iter().map(|(bytes, id)| (bytes.as_slice(), *id)));
        Some(Self { pattern, words, merges })
    }

    /// Appends the ids of all words of `text` that are decided; where what is left begins.
    pub(super) fn encode(&self, text: &str, end: End, out: &mut Vec<TokenId>) -> usize {
        let mut start = 0;
        while let Some(word_end) = self.pattern.word_end(text, start, end) {
            let word = &text.as_bytes()[start..word_end];
            match self.words.get(word) {
                Some(id) => out.push(id),
                None => self.merges.encode(word, out),
            }
            start = word_end;
        }
        start
    }
}

/// No dropout, no unknown token, no affixes: nothing but merging.
fn is_plain_bpe(model: &Value) -> bool {
    let is_null_or = |key: &str, other: &Value| model.get(key).is_none_or(|v| v.is_null() || v == other);
    model.get("type").and_then(Value::as_str) == Some("BPE")
        && is_null_or("dropout", &Value::Null)
        && is_null_or("continuing_subword_prefix", &Value::from(""))
        && is_null_or("end_of_word_suffix", &Value::from(""))
        && is_null_or("byte_fallback", &Value::Bool(false))
}

fn pattern_of(pre_tokenizer: &Value) -> Option<Pattern> {
    let is_byte_level = |step: &Value, use_regex: bool| {
        step.get("type").and_then(Value::as_str) == Some("ByteLevel")
            && step.get("add_prefix_space").and_then(Value::as_bool) == Some(false)
            && step.get("use_regex").and_then(Value::as_bool).unwrap_or(true) == use_regex
    };
    if is_byte_level(pre_tokenizer, true) {
        return Pattern::gpt2();
    }
    let steps = pre_tokenizer.get("pretokenizers")?.as_array()?;
    let [split, byte_level] = steps.as_slice() else { return None };
    let is_isolating = split.get("type").and_then(Value::as_str) == Some("Split")
        && split.get("behavior").and_then(Value::as_str) == Some("Isolated")
        && split.get("invert").and_then(Value::as_bool) == Some(false);
    if !is_isolating || !is_byte_level(byte_level, false) {
        return None;
    }
    Pattern::from_regex(split.pointer("/pattern/Regex")?.as_str()?)
}

/// Nothing where a byte has no token, or a rule names what is none.
fn merges(json: &TokenizerJson, ids: &HashMap<&str, TokenId>) -> Option<Merges> {
    let mut by_byte = [None; 256];
    for (text, id) in ids {
        if let Some(&[byte]) = bytes_of(text).as_deref() {
            by_byte[usize::from(byte)] = Some(*id);
        }
    }
    let mut tokens = [TokenId(0); 256];
    for (token, found) in tokens.iter_mut().zip(by_byte) {
        *token = found?;
    }
    let rules: Option<Vec<_>> = json
        .merges()
        .map(|(left, right)| {
            Some((*ids.get(left)?, *ids.get(right)?, *ids.get(format!("{left}{right}").as_str())?))
        })
        .collect();
    Merges::new(tokens, rules?.into_iter())
}

/// The bytes that a token of the byte alphabet spells; none for one with another character, which no word has.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

fn is_reached(merges: &Merges, bytes: &[u8], id: TokenId) -> bool {
    let mut ids = Vec::with_capacity(bytes.len());
    merges.encode(bytes, &mut ids);
    ids == [id]
}
