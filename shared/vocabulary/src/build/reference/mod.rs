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

mod choice;
mod ngrams;
mod overlap;
mod piece;
mod python;
mod removal;
mod token_text;

use std::sync::atomic::{AtomicU64, Ordering};

use super::BuildRequest;
use super::observer::{Observer, Stage, Unit, go_on};
use super::spool::Spool;
use crate::base::{BaseTokenizer, TokenizerJson};
use crate::{Error, Mode, Removed, Result, TokenId};

/// Documents with fewer words are passed over.
const MIN_WORDS: usize = 50;
/// So many n-grams for each token of the vocabulary may become n-tokens.
const NGRAMS_PER_TOKEN: usize = 5;
/// Tables are cut into so many parts, that cores fill without waiting for each other. The result does not depend on it.
const NUM_SHARDS: usize = 16;

/// Documents that the reference passes over, because they have fewer than 50 words.
#[derive(Default)]
pub(super) struct PassedOver(AtomicU64);

impl PassedOver {
    /// Whether the reference reads a document; counts those that it does not.
    pub(super) fn reads<D>(&self, document: &std::result::Result<String, D>) -> bool {
        let reads = document.as_ref().map_or(true, |text| python::num_words(text) >= MIN_WORDS);
        self.0.fetch_add(u64::from(!reads), Ordering::Relaxed);
        reads
    }

    /// Says why there is nothing to read, if that is why.
    pub(super) fn explain(&self, error: Error) -> Error {
        match (error, self.0.load(Ordering::Relaxed)) {
            (Error::EmptyCorpus, num @ 1..) => Error::Request {
                field: "selection",
                problem: format!(
                    "the reference passes over documents with fewer than {MIN_WORDS} words, and all {num} of the corpus \
                     have fewer"
                ),
            },
            (error, _) => error,
        }
    }
}

/// Refuses what the reference cannot do.
pub(super) fn check(request: &BuildRequest<'_>) -> Result<()> {
    let refused = |field, problem| Err(Error::Request { field, problem });
    if request.mode == Mode::Replace && request.add != request.remove {
        let problem = format!(
            "the reference adds as many n-tokens as tokens are removed: {} is not {}",
            request.remove, request.add
        );
        return refused("remove", problem);
    }
    if request.words == super::Words::Within {
        let problem = "the reference has its own rule about words, which cannot be chosen".to_owned();
        return refused("cross_words", problem);
    }
    if request.lines == super::Lines::Within {
        return refused("cross_lines", "the reference's n-tokens may reach across lines".to_owned());
    }
    Ok(())
}

/// Chooses as the reference does: removed tokens by ascending id, and as many n-tokens in rank order, which is the order
/// of choice. In extend mode, which the reference does not have, nothing is removed and as many n-tokens are added as
/// are asked for.
pub(super) fn choose(
    json: &TokenizerJson,
    base: &BaseTokenizer,
    spool: &Spool,
    request: &BuildRequest<'_>,
    observer: &dyn Observer,
) -> Result<(Vec<Removed>, Vec<Vec<TokenId>>)> {
    let texts = token_text::TokenTexts::new(base);
    let counts = count_tokens(spool, base.vocab_size(), observer)?;
    let halves = super::removal::halves(json, base);
    let keep = super::removal::named(base, request.keep)?;
    let removed = removal::choose(&texts, &counts, &halves, &keep, request.remove);
    if removed.is_empty() && request.mode == Mode::Replace {
        return Err(Error::NotReachable { what: "removable tokens", asked: request.remove, reachable: 0 });
    }
    let num = match request.mode {
        Mode::Replace => removed.len(),
        Mode::Extend => request.add,
    };
    let n_tokens = choose_n_tokens(&texts, spool, &removed, num, request.max_n, observer)?;
    let removed = removal::decompose(&removed, &halves).into_iter().map(|(id, parts)| {
        let text = String::from_utf8_lossy(base.bytes(id)).into_owned();
        Removed { id, parts, text }
    });
    Ok((removed.collect(), n_tokens.into_iter().map(|ranked| ranked.base).collect()))
}

fn count_tokens(
    spool: &Spool,
    vocab_size: usize,
    observer: &dyn Observer,
) -> Result<Vec<removal::TokenCount>> {
    let total = Some(spool.num_tokens());
    observer.begin(&Stage { name: "counting tokens", unit: Unit::Tokens, total });
    let mut counts = vec![removal::TokenCount::default(); vocab_size];
    let mut num_seen = 0;
    spool.for_each_document(|tokens| {
        go_on(observer)?;
        for id in tokens {
            let Some(count) = counts.get_mut(id.row()) else { continue };
            if count.freq == 0 {
                count.rank = num_seen;
                num_seen += 1;
            }
            count.freq += 1;
        }
        observer.advance(tokens.len() as u64);
        Ok(())
    })?;
    Ok(counts)
}

/// An n-token that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranked {
    base: Vec<TokenId>,
    /// Occurrences that it had left when it was chosen.
    freq: i64,
}

/// The first `num` n-tokens. N-grams are counted on the text as the base tokenizer has it: the reference means to encode
/// it anew without the removed tokens, but its cache gives it the first encoding again (quirk 1). That makes no
/// difference as long as no removed token stands in the corpus.
fn choose_n_tokens(
    texts: &token_text::TokenTexts,
    spool: &Spool,
    removed: &[TokenId],
    num: usize,
    max_n: usize,
    observer: &dyn Observer,
) -> Result<Vec<Ranked>> {
    let max = NGRAMS_PER_TOKEN * texts.vocab_len();
    let ngrams = ngrams::NGrams::count(spool, texts, max_n, max, observer)?;
    let is_kept = |id: &TokenId| removed.binary_search(id).is_err();
    let candidates: Vec<_> = (0..ngrams.len() as u32)
        .map(|place| choice::Candidate {
            freq: ngrams.freq(place),
            n: ngrams.num_tokens(place),
            is_possible: ngrams.tokens(place).iter().all(is_kept),
        })
        .collect();
    let overlaps = overlap::CorpusOverlaps { spool, ngrams: &ngrams, observer };
    let chosen = choice::choose(&candidates, num, &overlaps, observer)?;
    let ranked = |chosen: choice::Chosen| Ranked { base: ngrams.tokens(chosen.place), freq: chosen.freq };
    Ok(chosen.into_iter().map(ranked).collect())
}

#[cfg(test)]
mod tests;
