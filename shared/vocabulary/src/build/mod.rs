//! A small builder of patch vocabularies: removes the base tokens that a corpus uses least and adds the n-tokens that
//! save most on it.
//!
//! N-tokens come from continued pair merging on base tokens, across word borders, which saves about half again as much
//! as counting n-grams (measured; the paper's own choice is among n-grams of at most 3). They stand in the list longest
//! first, so that greedy segmentation takes the longest match. Everything is deterministic: the same corpus gives the
//! same file.

mod corpus;
mod merging;
mod reference;
mod removal;

use std::fmt;

use crate::base::{BaseTokenizer, TokenizerJson};
use crate::{
    Mode, NToken, PatchContent, PatchVocabulary, Removed, Result, Segmentation, TokenId, Vocabulary,
};

/// The longest n-token that is built, in base tokens: longer ones are rare, and harder for a model to learn.
const MAX_BUILT_N: usize = 12;

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct BuildRequest<'a> {
    /// The base tokenizer.
    pub tokenizer_json: &'a [u8],
    /// Texts of the domain. Lines that read `<|endoftext|>` divide a text into documents.
    pub corpus: &'a [String],
    /// How many n-tokens take the place of as many base tokens.
    pub add: usize,
}

/// What a build did to the corpus it was built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildReport {
    /// Documents read.
    pub num_documents: usize,
    /// Tokens of the corpus in the base vocabulary.
    pub num_base_tokens: usize,
    /// Tokens of the corpus in the new one.
    pub num_tokens: usize,
}

/// Builds a patch vocabulary.
///
/// # Errors
/// The tokenizer cannot be used, or the corpus does not offer as many n-tokens or removable tokens as asked for
/// ([`crate::Error::NotReachable`] says how many it does).
pub fn build(request: &BuildRequest<'_>) -> Result<(PatchVocabulary, BuildReport)> {
    let json = TokenizerJson::parse(request.tokenizer_json)?;
    let base = BaseTokenizer::load(&json)?;
    let documents = corpus::encode(request.corpus, &base)?;

    let removed = removal::choose(&json, &base, &documents, request.add)?;
    let reduced = removal::apply(&removed, &documents);
    let n_tokens = merging::choose(&base, &reduced, request.add, MAX_BUILT_N)?;

    let patch = PatchVocabulary::new(content(&base, removed, n_tokens))?;
    let vocabulary = Vocabulary::from_base(base, Some(patch.clone()))?;
    let report = BuildReport {
        num_documents: documents.len(),
        num_base_tokens: documents.iter().map(Vec::len).sum(),
        num_tokens: documents.into_iter().map(|ids| vocabulary.adapt(ids).len()).sum(),
    };
    Ok((patch, report))
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

/// Kept tokens keep their base ids and n-tokens take the removed ones', so that an adapted model's rows stay where they
/// were.
fn content(
    base: &BaseTokenizer,
    removed: Vec<(TokenId, Vec<TokenId>)>,
    n_tokens: Vec<Vec<TokenId>>,
) -> PatchContent {
    let mut model_ids: Vec<_> = (0..base.vocab_size() as u32).map(|id| Some(TokenId(id))).collect();
    removed.iter().for_each(|(id, _)| model_ids[id.row()] = None);
    let text = |ids: &[TokenId]| String::from_utf8_lossy(&base.joined_bytes(ids)).into_owned();
    let n_tokens = n_tokens.into_iter().zip(&removed);
    PatchContent {
        base_tokenizer: base.hash(),
        mode: Mode::Replace,
        segmentation: Segmentation::Greedy,
        model_ids,
        n_tokens: n_tokens.map(|(base, (id, _))| NToken { id: *id, text: text(&base), base }).collect(),
        removed: removed.into_iter().map(|(id, parts)| Removed { id, text: text(&[id]), parts }).collect(),
    }
}

#[cfg(test)]
mod tests;
