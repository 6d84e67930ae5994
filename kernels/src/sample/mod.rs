//! Draws a token from a row of logits, and says how likely tokens are.
//!
//! Weights are whole numbers, so that a sum is the same in whatever order it is taken: a draw is the same token however
//! many threads look for it, and whether it is made here or on a GPU, where every operation below is done with the same
//! bits. What is done with a row, in order:
//!
//! - repetition penalty, presence and frequency penalty, bias ([`Adjustments`]); a logit that is not a number counts as
//!   minus infinity;
//! - without a temperature, or where no logit is finite, the likeliest token, the lowest id among equals;
//! - a token's weight is exp((logit − largest) / temperature), cut to a multiple of 2⁻⁴⁴;
//! - min_p keeps the logits from largest + temperature · ln(min_p) on, whose weights are at least `min_p` of the largest;
//!   then top_k keeps the logits from the K-th largest on; then top_p keeps the logits from the largest one on with which
//!   the kept weights make up `top_p` of their sum (nucleus sampling, arXiv 1904.09751). So the three are one cut, and
//!   what equals the last that is kept is kept too;
//! - the token drawn is the first, by id, at which the running sum of kept weights passes `random` / 2⁶⁴ of their sum.

mod adjust;
mod cut;
mod logprobs;
mod weights;

use bytemuck::{Pod, Zeroable};

pub use adjust::Adjustments;
pub use logprobs::logprobs;

use cut::{Kept, share};
use weights::weights;

/// How one row of logits is sampled, as `cuda/sample.cu` has it. With all bytes 0: the likeliest token, and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowSampling {
    /// Evenly distributed over all of its range.
    pub random: u64,
    /// On a GPU: the address there of `num_occurrences` [`Occurrence`]s, each token once.
    pub occurrences: u64,
    /// On a GPU: the address there of `num_biases` [`Bias`]es, each token once.
    pub biases: u64,
    /// How many there are at `occurrences`.
    pub num_occurrences: u32,
    /// How many there are at `biases`.
    pub num_biases: u32,
    /// 0: the likeliest token.
    pub temperature: f32,
    /// 0, and 1 or more, keep all.
    pub top_p: f32,
    /// The [logarithm](Self::log_min_p) of min_p; 0 keeps all.
    pub log_min_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 and 1 change nothing.
    pub repetition_penalty: f32,
    /// 0 changes nothing.
    pub presence_penalty: f32,
    /// 0 changes nothing.
    pub frequency_penalty: f32,
    /// [`WANTS_LOGPROBS`](Self::WANTS_LOGPROBS) and the others, together.
    pub flags: u32,
    /// With [`IS_GIVEN`](Self::IS_GIVEN): the token.
    pub token: u32,
    /// How many of the likeliest tokens are told beside the row's own.
    pub num_top: u32,
    /// With [`FOLLOWS`](Self::FOLLOWS): the row of the batch whose token is the sequence's latest.
    pub batch_row: u32,
    /// With [`CHANGES`](Self::CHANGES): which entry of the list.
    pub changed_place: u32,
    /// Its token.
    pub changed_token: u32,
    /// And how often that is in the output.
    pub changed_count: u32,
}

impl RowSampling {
    /// Log-probabilities are told.
    pub const WANTS_LOGPROBS: u32 = 1;
    /// Nothing is drawn: the token is known (it is the prompt's), and only log-probabilities are wanted.
    pub const IS_GIVEN: u32 = 2;
    /// The occurrences lack the sequence's latest token, which the host did not know when it sent them.
    pub const FOLLOWS: u32 = 4;
    /// The list at `occurrences` lacks one entry, or has it with another count: it is to be written there first.
    pub const CHANGES: u32 = 8;

    /// The logarithm of a part of the largest probability, under which tokens are not kept; 0 for 0, which keeps all. Taken
    /// by whoever fills a row in, since a GPU's logarithm has other last bits.
    #[must_use]
    pub fn log_min_p(min_p: f32) -> f32 {
        // That of 1 keeps the largest logit alone.
        if min_p > 0.0 { min_p.ln().min(-f32::MIN_POSITIVE) } else { 0.0 }
    }
}

/// How often a token has occurred in a sequence, as `cuda/sample.cu` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Occurrence {
    /// A token of prompt or output.
    pub token: u32,
    /// How often it is in the output; 0 where only the prompt has it.
    pub count: u32,
    /// Where the GPU keeps the logit while an adjusted one stands in the row.
    pub untouched: f32,
}

/// What is added to a token's logit, as `cuda/sample.cu` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Bias {
    /// The token.
    pub token: u32,
    /// Minus infinity: it cannot be drawn.
    pub bias: f32,
    /// Where the GPU keeps the logit while an adjusted one stands in the row.
    pub untouched: f32,
}

/// Draws a token from a row of logits `[vocabulary]`, which it adjusts. The addresses and [`flags`](RowSampling::flags) of
/// `row` mean nothing here. 0 where no logit is a number.
#[must_use]
pub fn draw(logits: &mut [f32], row: &RowSampling, adjustments: &Adjustments<'_>) -> u32 {
    adjustments.apply(logits, row);
    let (likeliest, largest) = likeliest(logits);
    let is_greedy = row.temperature.is_nan() || row.temperature <= 0.0;
    if is_greedy || !largest.is_finite() {
        return likeliest;
    }
    let weights = weights(logits, largest, row.temperature);
    let kept = Kept::new(logits, &weights, largest, row);
    let total = kept.weights().map(|(_, weight)| weight).sum();
    let threshold = share(total, row.random);
    let mut sum = 0;
    let drawn = kept.weights().find(|(_, weight)| {
        sum += weight;
        sum > threshold
    });
    drawn.map_or(likeliest, |(id, _)| id)
}

/// The largest logit and its id, the lowest among equals; token 0 where none is a number over minus infinity.
fn likeliest(logits: &[f32]) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best
}

/// A whole number for a logit, in the same order; NaN is where minus infinity is, and both zeros are one.
fn key(logit: f32) -> u32 {
    let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit + 0.0 };
    let bits = logit.to_bits();
    if logit.is_sign_negative() { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests;
