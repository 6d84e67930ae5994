//! The choice of AdaptiVocab's own code (`itay-nakash/AdaptiVocab`, commit 95276dd): which base tokens are removed and
//! which n-tokens are added. Given the same removed tokens, the list of n-tokens is the same, in order and frequencies.
//!
//! Kept as they are, each described where it stands: documents under 50 words are passed over; tokens without a merge
//! rule take part in the removal and stay ([`removal`]); n-grams are counted on the text *before* removal
//! (quirk 1, [`choose`]); words matter only where a token begins with `▁`; n-grams of digits only, and those with
//! `<0x` or a no-break space, are dropped ([`token_text`]); the five times vocabulary size most frequent n-grams are
//! looked at ([`choose`]); overlaps seen once or twice are forgotten ([`overlap`]); frequency × length is what counts,
//! ties go by age, frequencies may fall below zero ([`choice`]).
//!
//! Not kept, because the reference ends there with an assertion or an endless recursion: it reaches a removed token in
//! its queue, or chooses n-grams that hold removed tokens and so can never match (they are passed over and choosing
//! goes on); a merge rule has a half that is no token (the rule is not used). Not kept, because it is random there: the
//! order of equally long tokens in the removal. And where its token strings are not those of the vocabulary (added
//! tokens with normalised text, quirk 10), ids are what counts here.

mod batch;
mod choice;
mod ngrams;
mod overlap;
mod python;
mod removal;
mod token_text;

use std::collections::HashSet;

pub(super) use python::num_words;

use crate::base::{BaseTokenizer, TokenizerJson};
use crate::{Result, TokenId};

/// Documents with fewer words, as [`num_words`] counts them, are passed over.
pub(super) const MIN_WORDS: usize = 50;
/// The longest n-token, unless the caller says otherwise.
pub(super) const DEFAULT_MAX_N: usize = 3;
/// So many n-grams for each token of the vocabulary may become n-tokens.
const NGRAMS_PER_TOKEN: usize = 5;
/// Tables are cut into so many parts, that cores fill without waiting for each other. The result does not depend on it.
const NUM_SHARDS: usize = 16;

/// A corpus in base ids that can be read again and again, always in the same order.
pub(super) trait Documents: Sync {
    /// Gives every document that has [`MIN_WORDS`] words; the first error ends the pass.
    fn for_each(&self, visit: &mut dyn FnMut(&[TokenId]) -> Result<()>) -> Result<()>;
}

/// What to choose.
pub(super) struct Request<'a> {
    /// Tokens that the user wants to keep.
    pub(super) keep: &'a HashSet<TokenId>,
    /// Base tokens asked to go. As many n-tokens are added as really go.
    pub(super) num_remove: usize,
    /// The longest n-token, in base tokens: 2 or more.
    pub(super) max_n: usize,
}

/// What was chosen.
pub(super) struct Choice {
    /// Removed tokens by ascending id, with the kept tokens that stand for each.
    pub(super) removed: Vec<(TokenId, Vec<TokenId>)>,
    /// N-tokens in rank order, which is the order of choice.
    pub(super) n_tokens: Vec<Ranked>,
}

/// An n-token that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranked {
    pub(super) base: Vec<TokenId>,
    /// Occurrences that it had left when it was chosen.
    pub(super) freq: i64,
}

/// Chooses as the reference does.
///
/// # Errors
/// Reading fails, or the corpus has fewer n-grams than tokens are removed.
pub(super) fn choose(
    json: &TokenizerJson,
    base: &BaseTokenizer,
    documents: &dyn Documents,
    request: &Request<'_>,
) -> Result<Choice> {
    let texts = token_text::TokenTexts::new(base);
    let counts = count_tokens(documents, base.vocab_size())?;
    let halves = super::removal::halves(json, base);
    let is_wanted = |id| request.keep.contains(&id);
    let removed = removal::choose(&texts, &counts, &halves, is_wanted, request.num_remove);
    let n_tokens = choose_n_tokens(&texts, documents, &removed, request.max_n)?;
    Ok(Choice { removed, n_tokens })
}

fn count_tokens(documents: &dyn Documents, vocab_size: usize) -> Result<Vec<removal::TokenCount>> {
    let mut counts = vec![removal::TokenCount::default(); vocab_size];
    let mut num_seen = 0;
    documents.for_each(&mut |tokens| {
        for id in tokens {
            let Some(count) = counts.get_mut(id.row()) else { continue };
            if count.freq == 0 {
                count.rank = num_seen;
                num_seen += 1;
            }
            count.freq += 1;
        }
        Ok(())
    })?;
    Ok(counts)
}

/// As many n-tokens as tokens are removed. N-grams are counted on the text as the base tokenizer has it: the reference
/// means to encode it anew without the removed tokens, but its cache gives it the first encoding again (quirk 1). That
/// makes no difference as long as no removed token stands in the corpus.
fn choose_n_tokens(
    texts: &token_text::TokenTexts,
    documents: &dyn Documents,
    removed: &[(TokenId, Vec<TokenId>)],
    max_n: usize,
) -> Result<Vec<Ranked>> {
    let max = NGRAMS_PER_TOKEN * texts.vocab_len();
    let ngrams = ngrams::NGrams::count(documents, texts, max_n, max)?;
    let is_kept = |id: &TokenId| removed.binary_search_by_key(id, |(id, _)| *id).is_err();
    let candidates: Vec<_> = (0..ngrams.len() as u32)
        .map(|place| choice::Candidate {
            freq: ngrams.freq(place),
            n: ngrams.num_tokens(place),
            is_possible: ngrams.tokens(place).iter().all(is_kept),
        })
        .collect();
    let overlaps = overlap::CorpusOverlaps { documents, ngrams: &ngrams };
    let chosen = choice::choose(&candidates, removed.len(), &overlaps)?;
    let ranked = |chosen: choice::Chosen| Ranked { base: ngrams.tokens(chosen.place), freq: chosen.freq };
    Ok(chosen.into_iter().map(ranked).collect())
}

#[cfg(test)]
mod tests;
