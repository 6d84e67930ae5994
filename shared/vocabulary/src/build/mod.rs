//! The builder of patch vocabularies: removes the base tokens that a corpus uses least and adds the n-tokens that
//! save most on it.
//!
//! [`Selection::Exact`] is ours (see `exact`), [`Selection::Reference`] does as AdaptiVocab's own code. Everything is
//! deterministic: the same corpus gives the same file.

mod content;
mod exact;
mod observer;
mod reference;
mod removal;
mod request;
mod spool;

use std::fmt;

pub use observer::{Observer, Stage, Unit, Unobserved};
use rayon::prelude::*;
pub use request::{BuildRequest, Lines, Selection, Words};
use spool::Spool;

use crate::base::{BaseTokenizer, TokenizerJson};
use crate::{Error, PatchVocabulary, Result, Segmentation, Vocabulary};

/// What a build did to the corpus it was built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildReport {
    /// Documents that have a token.
    pub num_documents: u64,
    /// Bytes of text.
    pub num_bytes: u64,
    /// Tokens of the corpus in the base vocabulary.
    pub num_base_tokens: u64,
    /// Tokens of the corpus in the new one.
    pub num_tokens: u64,
    /// Base tokens removed.
    pub num_removed: usize,
    /// N-tokens added.
    pub num_n_tokens: usize,
}

/// Builds a patch vocabulary from a stream of documents, which is read once. Works on the threads of the current rayon
/// pool; the number of threads does not change the result.
///
/// # Errors
/// The request or the tokenizer cannot be used ([`Error::Request`], [`Error::NotBpe`]), a document cannot be read
/// ([`Error::Corpus`]) or there is none ([`Error::EmptyCorpus`]), the encoded corpus finds no room ([`Error::Spool`]),
/// the observer says so ([`Error::Cancelled`]), or the corpus does not offer as many n-tokens or removable tokens as
/// asked for ([`Error::NotReachable`] says how many it does).
pub fn build<D>(
    request: &BuildRequest<'_>,
    documents: impl Iterator<Item = std::result::Result<String, D>> + Send,
    observer: &dyn Observer,
) -> Result<(PatchVocabulary, BuildReport)>
where
    D: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    request.check()?;
    let json = TokenizerJson::parse(request.tokenizer_json)?;
    check_kind(&json)?;
    let base = BaseTokenizer::load(&json)?;
    let spool = match request.selection {
        Selection::Exact => Spool::encode(&base, documents, request.scratch, observer)?,
        Selection::Reference => {
            let passed_over = reference::PassedOver::default();
            let documents = documents.filter(|document| passed_over.reads(document));
            Spool::encode(&base, documents, request.scratch, observer)
                .map_err(|error| passed_over.explain(error))?
        }
    };

    let (spool, removed, n_tokens) = match request.selection {
        Selection::Exact => {
            let uses = removal::count_uses(&base, &spool, observer)?;
            let removed = removal::choose(&json, &base, &uses, request.remove, request.keep)?;
            let spool = spool.reduced(&removed);
            let n_tokens = exact::choose(&base, &spool, request, observer)?;
            (spool, removed, n_tokens)
        }
        Selection::Reference => {
            let (removed, n_tokens) = reference::choose(&json, &base, &spool, request, observer)?;
            (spool.reduced(&removed), removed, n_tokens)
        }
    };
    // Each list is made for one segmentation.
    let segmentation = match request.selection {
        Selection::Exact => Segmentation::Optimal,
        Selection::Reference => Segmentation::Greedy,
    };
    let patch = PatchVocabulary::new(content::of(&base, request.mode, segmentation, removed, n_tokens))?;
    let report = report(base, &patch, &spool, observer)?;
    Ok((patch, report))
}

/// Only byte-pair tokenizers have merge rules, and only those say what stands for a removed token.
fn check_kind(json: &TokenizerJson) -> Result<()> {
    let model = json.value().get("model");
    let kind = model.and_then(|model| model.get("type")).and_then(serde_json::Value::as_str);
    match kind {
        Some("BPE") => Ok(()),
        Some(kind) => Err(Error::NotBpe(kind.to_owned())),
        // Old files do not name the kind.
        None if model.and_then(|model| model.get("merges")).is_some() => Ok(()),
        None => Err(Error::NotBpe("unknown".to_owned())),
    }
}

/// Counts the corpus in the new vocabulary.
fn report(
    base: BaseTokenizer,
    patch: &PatchVocabulary,
    spool: &Spool,
    observer: &dyn Observer,
) -> Result<BuildReport> {
    let total = Some(spool.num_tokens());
    observer.begin(&Stage { name: "counting what is saved", unit: Unit::Tokens, total });
    let vocabulary = Vocabulary::from_base(base, Some(patch.clone()))?;
    let count = |chunk: Result<spool::Chunk>| {
        observer::go_on(observer)?;
        let mut num_tokens = 0;
        for ids in chunk?.documents() {
            num_tokens += vocabulary.adapt(ids.to_vec()).len() as u64;
            observer.advance(ids.len() as u64);
        }
        Ok(num_tokens)
    };
    Ok(BuildReport {
        num_documents: spool.num_documents(),
        num_bytes: spool.num_bytes(),
        num_base_tokens: spool.num_tokens(),
        num_tokens: spool.chunks().map(count).try_reduce(|| 0, |a, b| Ok(a + b))?,
        num_removed: patch.removed().len(),
        num_n_tokens: patch.n_tokens().len(),
    })
}

impl fmt::Display for BuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let saved = 100.0 * (1.0 - self.num_tokens as f64 / self.num_base_tokens.max(1) as f64);
        write!(
            f,
            "{} documents: {} base tokens, {} with the patch vocabulary ({saved:.1} % fewer)",
            self.num_documents, self.num_base_tokens, self.num_tokens
        )
    }
}

#[cfg(test)]
mod tests;
