//! Whether two base tokenizers encode alike. They are compared as the `tokenizers` crate reads them, so that spellings
//! and defaults of its versions do not count; and only in what makes ids of text: the decoder, which each version wrote
//! a little otherwise, and the post-processor, which AdaptiVocab never uses, may differ.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::TokenizerSource;
use crate::base::TokenizerJson;
use crate::fingerprint::of_tokenizer;
use crate::{Error, Result};

/// Checks the model's tokenizer against the pickled one.
///
/// # Errors
/// [`Error::TokenizersDiffer`] says in what.
pub(super) fn check(pickled: &[u8], model: &[u8]) -> Result<TokenizerSource> {
    let (pickled, model) = (TokenizerJson::parse(pickled)?, TokenizerJson::parse(model)?);
    if of_tokenizer(pickled.value()) == of_tokenizer(model.value()) {
        return Ok(TokenizerSource::Model);
    }
    let difference = difference(&Meaning::read(&pickled)?, &Meaning::read(&model)?);
    match difference {
        None => Ok(TokenizerSource::ModelWrittenOtherwise),
        Some(difference) => Err(Error::TokenizersDiffer { difference }),
    }
}

/// What makes ids of text.
struct Meaning {
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    added: BTreeMap<u64, Value>,
    /// Normaliser, pre-tokenizer and the model's options, by name.
    rest: Vec<(String, Value)>,
}

impl Meaning {
    fn read(json: &TokenizerJson) -> Result<Self> {
        let tokenizer = json.tokenizer()?;
        let vocab = tokenizer.get_vocab(false);
        let merges = json.merges().map(|(left, right)| (left.to_owned(), right.to_owned())).collect();
        let written = serde_json::to_value(&tokenizer)
            .map_err(|source| Error::Json { file: "tokenizer.json", source })?;
        let added = written["added_tokens"].as_array().into_iter().flatten();
        let added = added.filter_map(|token| Some((token["id"].as_u64()?, token.clone()))).collect();
        let mut rest: Vec<_> =
            ["normalizer", "pre_tokenizer"].map(|part| (part.to_owned(), written[part].clone())).into();
        let options = written["model"].as_object().into_iter().flatten();
        let options = options.filter(|(key, _)| !matches!(key.as_str(), "vocab" | "merges"));
        rest.extend(options.map(|(key, value)| (format!("model.{key}"), value.clone())));
        rest.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        Ok(Self { vocab, merges, added, rest })
    }
}

fn difference(pickled: &Meaning, model: &Meaning) -> Option<String> {
    vocab_difference(pickled, model)
        .or_else(|| merges_difference(&pickled.merges, &model.merges))
        .or_else(|| added_difference(&pickled.added, &model.added))
        .or_else(|| {
            let differing = pickled.rest.iter().zip(&model.rest).find(|(pickled, model)| pickled != model);
            let ((name, pickled), (model_name, model)) = differing?;
            let (pickled, model) = (shown(&pickled.to_string()), shown(&model.to_string()));
            Some(if name == model_name {
                format!("{name} is {pickled} in the pickle and {model} in the model")
            } else {
                format!("{name} stands in the pickle where the model has {model_name}")
            })
        })
        .or_else(|| (pickled.rest.len() != model.rest.len()).then(|| "model: other options".to_owned()))
}

fn vocab_difference(pickled: &Meaning, model: &Meaning) -> Option<String> {
    let mut differing: Vec<_> = pickled
        .vocab
        .iter()
        .filter(|(text, id)| model.vocab.get(*text) != Some(id))
        .map(|(text, id)| (*id, text, model.vocab.get(text)))
        .collect();
    differing.sort_unstable();
    if let Some((id, text, other)) = differing.first() {
        let other = other.map_or("none".to_owned(), ToString::to_string);
        return Some(format!(
            "model.vocab: {} tokens have another id or none; token {:?} has the id {id} in the pickle and {other} in the model",
            differing.len(),
            shown(text)
        ));
    }
    let more = model.vocab.iter().filter(|(text, _)| !pickled.vocab.contains_key(*text));
    let (id, text) = more.map(|(text, id)| (id, text)).min()?;
    let num_more = model.vocab.len() - pickled.vocab.len();
    Some(format!("model.vocab: the model has {num_more} tokens more, as {:?} with the id {id}", shown(text)))
}

fn merges_difference(pickled: &[(String, String)], model: &[(String, String)]) -> Option<String> {
    if let Some(rank) = pickled.iter().zip(model).position(|(pickled, model)| pickled != model) {
        let (left, right) = (&pickled[rank], &model[rank]);
        return Some(format!(
            "model.merges: rank {rank} joins {:?} and {:?} in the pickle, {:?} and {:?} in the model",
            shown(&left.0),
            shown(&left.1),
            shown(&right.0),
            shown(&right.1)
        ));
    }
    let (num_pickled, num_model) = (pickled.len(), model.len());
    (num_pickled != num_model)
        .then(|| format!("model.merges: there are {num_pickled} in the pickle and {num_model} in the model"))
}

fn added_difference(pickled: &BTreeMap<u64, Value>, model: &BTreeMap<u64, Value>) -> Option<String> {
    let id = pickled.keys().chain(model.keys()).find(|id| pickled.get(*id) != model.get(*id))?;
    let text = |token: Option<&Value>| token.map_or("none".to_owned(), |token| shown(&token.to_string()));
    Some(format!(
        "added_tokens: {id} is {} in the pickle and {} in the model",
        text(pickled.get(id)),
        text(model.get(id))
    ))
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(160).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
