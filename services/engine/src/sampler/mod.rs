//! Draws tokens from logits.
//!
//! Order: repetition, presence and frequency penalties, logit bias and bans; then temperature, min_p, top_k, top_p. The
//! arithmetic is `fused_kernels`', on the CPU and on a GPU alike; here is what goes into it. Log-probabilities are of the
//! model's own distribution, before any of these. Draws come from a counter-based generator keyed by seed, sequence and
//! position, so that the same seed gives the same tokens whatever else is in the batch.

mod occurrences;
mod random;
mod row;

use fused_kernels::Adjustments;
use fused_vocabulary::TokenId;

pub use occurrences::{Occurrences, PromptOccurrences};

/// How a request wants its tokens drawn; in range (see `request`).
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// (0, 1]; 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// [0, 1]; 0 is off.
    pub min_p: f32,
    /// Given or drawn at admission.
    pub seed: u64,
    /// Over 0; 1 is off; over prompt and output.
    pub repetition_penalty: f32,
    /// 0 is off; over output.
    pub presence_penalty: f32,
    /// 0 is off; over output.
    pub frequency_penalty: f32,
    /// Added to the logits.
    pub logit_bias: Vec<(TokenId, f32)>,
}

/// One draw.
#[derive(Clone, Copy, Debug)]
pub struct SampleStep<'a> {
    /// The request's parameters.
    pub sampling: &'a Sampling,
    /// Which of the request's sequences: part of the generator's key.
    pub sequence_idx: u32,
    /// How many of the sequence's tokens were drawn before: the rest of the key.
    pub position: u64,
    /// What penalties count; `None` where there are none.
    pub occurrences: Option<&'a Occurrences>,
    /// Tokens that may not be drawn (ending ones before `min_tokens`).
    pub banned: &'a [TokenId],
    /// How many of the likeliest to return; `None`: no log-probabilities at all.
    pub num_logprobs: Option<u32>,
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: TokenId,
    /// Where asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log-probabilities of one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that stands there.
    pub token: TokenId,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens, in descending order.
    pub top: Vec<(TokenId, f32)>,
}

/// Draws the next token from one row of logits, `[vocab_size]`, which it overwrites.
///
/// A logit that is not a number counts as minus infinity; where none is finite, token 0 is drawn, since a row of
/// nonsense must not end anybody else's request.
#[must_use]
pub fn sample(logits: &mut [f32], step: &SampleStep<'_>) -> SampledToken {
    // The log-probabilities are of the untouched row, and of which token is known only after the draw.
    let untouched = step.num_logprobs.map(|num_top| (num_top, logits.to_vec()));
    let biases = step.biases();
    let occurrences = step.occurrences.map_or(&[][..], Occurrences::as_slice);
    let adjustments = Adjustments { occurrences, latest: None, biases: &biases };
    let token = TokenId(fused_kernels::draw(logits, &step.row(biases.len()), &adjustments));
    let logprobs = untouched.map(|(num_top, row)| logprobs(&row, token, num_top));
    SampledToken { token, logprobs }
}

/// The log-probability of `token` and of the `num_top` likeliest, from one row of logits `[vocab_size]`.
#[must_use]
pub fn logprobs(logits: &[f32], token: TokenId, num_top: u32) -> TokenLogprobs {
    let (logprob, top) = fused_kernels::logprobs(logits, token.0, num_top as usize);
    let top = top.into_iter().map(|(token, logprob)| (TokenId(token), logprob)).collect();
    TokenLogprobs { token, logprob, top }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    pub(super) fn sampling() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 7,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }

    pub(super) fn step(sampling: &Sampling) -> SampleStep<'_> {
        SampleStep {
            sampling,
            sequence_idx: 0,
            position: 0,
            occurrences: None,
            banned: &[],
            num_logprobs: None,
        }
    }

    #[test]
    fn a_row_of_nonsense_draws_a_token_all_the_same() {
        for temperature in [0.0, 1.0] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let sampling = Sampling { temperature, ..sampling() };
                let drawn = sample(&mut [value; 5], &step(&sampling));
                assert!(drawn.token.0 < 5);
            }
        }
    }

    #[test]
    fn logprobs_are_of_the_models_own_distribution() {
        let sampling = Sampling { temperature: 0.0, logit_bias: vec![(TokenId(2), 100.0)], ..sampling() };
        let mut step = step(&sampling);
        step.num_logprobs = Some(1);
        let drawn = sample(&mut [1.0, 3.0, 0.0], &step);
        assert_eq!(drawn.token, TokenId(2));
        let logprobs = drawn.logprobs.unwrap();
        let normaliser = (1f64.exp() + 3f64.exp() + 1.0).ln();
        assert!((f64::from(logprobs.logprob) + normaliser).abs() < 1e-6);
        assert_eq!(logprobs.top[0].0, TokenId(1));
    }

    #[test]
    fn penalties_and_bans_keep_a_token_away() {
        let sampling = Sampling { temperature: 0.0, presence_penalty: 1.5, ..sampling() };
        let mut occurrences = Occurrences::after(Arc::default());
        occurrences.push_output(TokenId(1));
        let banned = [TokenId(2)];
        let step = SampleStep { occurrences: Some(&occurrences), banned: &banned, ..step(&sampling) };
        assert_eq!(sample(&mut [1.0, 2.0, 9.0], &step).token, TokenId(0));
    }

    #[test]
    fn a_seed_draws_the_same_tokens_again() {
        let draws = |seed| -> Vec<u32> {
            let sampling = Sampling { seed, ..sampling() };
            let step = |position| SampleStep { position, ..step(&sampling) };
            (0..32).map(|position| sample(&mut [0.0; 64], &step(position)).token.0).collect()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
