//! How many tokens this machine computes within a target inter-token latency.

use std::time::{Duration, Instant};

use fused_vocabulary::TokenId;

use crate::Error;
use crate::kv::KvCache;
use crate::runner::{Runner, SequenceStep};

/// Budgets are multiples of it: products of matrices come in tiles of about so many rows.
const GRANULARITY: usize = 32;
/// The largest budget that is tried.
const MAX_BUDGET: usize = 16_384;
/// Each is measured so often, and the quickest counts: what disturbed the others is not the machine's speed.
const NUM_RUNS: usize = 3;

/// The largest token budget with which a step stays within `target`, measured with a prompt at the end of the longest
/// context that leaves room for it; at least the smallest that is tried, and at least a token for each running sequence.
///
/// # Errors
/// The device failed, or KV memory cannot be had.
pub(crate) fn measure<R: Runner>(
    runner: &mut R,
    kv: &mut KvCache<R::Memory>,
    vocab_size: usize,
    target: Duration,
) -> Result<usize, Error> {
    let max_model_len = kv.size().max_model_len;
    let floor = kv.size().num_sequences.next_multiple_of(GRANULARITY);
    let slot = kv.acquire(max_model_len)?;
    let tokens: Vec<_> =
        (0..max_model_len).map(|idx| TokenId(u32::try_from(idx * 31 % vocab_size).unwrap_or(0))).collect();
    let mut step = |num_tokens: usize| -> Result<Duration, Error> {
        let context_len = max_model_len - num_tokens;
        let tokens = &tokens[..num_tokens];
        let step =
            SequenceStep { slot, context_len, tokens, sample: None, drawn_by: None, prompt_logprobs: None };
        let began = Instant::now();
        runner.step(&[step], kv)?;
        Ok(began.elapsed())
    };
    let mut fits = |num_tokens: usize| -> Result<bool, Error> {
        let mut best = Duration::MAX;
        for _ in 0..NUM_RUNS {
            best = best.min(step(num_tokens.min(max_model_len))?);
            if best <= target {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let (mut budget, mut too_large) = (GRANULARITY, None);
    // Doubled while it fits, then halved into the gap.
    while too_large.is_none() && budget < most(max_model_len) {
        match fits(2 * budget)? {
            true => budget *= 2,
            false => too_large = Some(2 * budget),
        }
    }
    while let Some(limit) = too_large.filter(|limit| limit - budget > GRANULARITY) {
        let middle = (budget + (limit - budget) / 2).next_multiple_of(GRANULARITY);
        match fits(middle)? {
            true => budget = middle,
            false if middle == limit => break,
            false => too_large = Some(middle),
        }
    }
    kv.release(slot);
    // The last one that fitted may have been tried with all the tokens that there can be.
    Ok(budget.min(most(max_model_len)).max(floor))
}

/// No budget that [`measure`] finds is larger, for contexts of at most so many tokens and so many running sequences.
#[cfg(feature = "cuda")]
pub(crate) fn largest(max_model_len: usize, num_sequences: usize) -> usize {
    most(max_model_len).max(num_sequences.next_multiple_of(GRANULARITY))
}

fn most(max_model_len: usize) -> usize {
    MAX_BUDGET.min(max_model_len).max(GRANULARITY)
}
