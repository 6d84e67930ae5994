use std::cmp::Reverse;

use super::weights::{ONE, weights};
use super::{key, likeliest};

/// The log-probability of `token` (minus infinity beyond the vocabulary), and the `num_top` likeliest tokens with theirs, in
/// descending order, the lower id first among equals; from one row of logits `[vocabulary]` as the model made it. None is
/// over 0 or no number, whatever the logits are: infinite ones share all probability evenly, NaN has none.
#[must_use]
pub fn logprobs(logits: &[f32], token: u32, num_top: usize) -> (f32, Vec<(u32, f32)>) {
    let (_, largest) = likeliest(logits);
    let normaliser = log_sum_exp(logits, largest);
    let logprob = |token: u32| match logits.get(token as usize) {
        Some(&logit) if logit == f32::INFINITY => -normaliser as f32,
        Some(&logit) if largest < f32::INFINITY && !logit.is_nan() => (f64::from(logit) - normaliser) as f32,
        _ => f32::NEG_INFINITY,
    };
    let top = top(logits, num_top).into_iter().map(|token| (token, logprob(token)));
    (logprob(token), top.collect())
}

/// Where the largest is infinite, the logarithm of how many are; 0 where none is a number over minus infinity.
fn log_sum_exp(logits: &[f32], largest: f32) -> f64 {
    if largest == f32::INFINITY {
        let num_infinite = logits.iter().filter(|logit| **logit == largest).count();
        return (num_infinite as f64).ln();
    }
    if !largest.is_finite() {
        return 0.0;
    }
    let total: u64 = weights(logits, largest, 1.0).iter().sum();
    f64::from(largest) + (total as f64).ln() - f64::from(ONE).ln()
}

/// The tokens of the `num` largest logits. One pass: `num` is small.
fn top(logits: &[f32], num: usize) -> Vec<u32> {
    let mut top: Vec<(Reverse<u32>, u32)> = Vec::with_capacity(num.min(logits.len()) + 1);
    for (token, &logit) in (0..).zip(logits) {
        let candidate = (Reverse(key(logit)), token);
        let is_full = top.len() == num;
        if is_full && top.last().is_none_or(|last| candidate > *last) {
            continue;
        }
        let at = top.partition_point(|other| *other < candidate);
        top.insert(at, candidate);
        top.truncate(num);
    }
    top.into_iter().map(|(_, token)| token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_normalised_and_sorted() {
        let (logprob, top) = logprobs(&[0.5, -1.0, 2.0, 2.0, 0.0], 1, 5);
        let total: f64 = top.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        let tokens: Vec<u32> = top.iter().map(|&(token, _)| token).collect();
        assert_eq!(tokens, [2, 3, 0, 4, 1]);
        assert_eq!(logprob, top[4].1);
    }

    #[test]
    fn none_and_more_than_all_can_be_asked_for() {
        assert!(logprobs(&[1.0, 2.0], 0, 0).1.is_empty());
        assert_eq!(logprobs(&[1.0, 2.0], 0, 9).1.len(), 2);
    }

    #[test]
    fn what_is_not_there_is_impossible() {
        let (logprob, top) = logprobs(&[f32::NAN, 0.0], 7, 2);
        assert_eq!((logprob, top), (f32::NEG_INFINITY, vec![(1, 0.0), (0, f32::NEG_INFINITY)]));
        assert_eq!(logprobs(&[f32::NEG_INFINITY; 2], 0, 0).0, f32::NEG_INFINITY);
    }

    #[test]
    fn beside_an_infinite_logit_nothing_else_is_possible() {
        let (inf, none) = (f32::INFINITY, f32::NEG_INFINITY);
        let (logprob, top) = logprobs(&[3.0, inf, f32::NAN, none], 1, 4);
        assert_eq!((logprob, top), (0.0, vec![(1, 0.0), (0, none), (2, none), (3, none)]));
        let half = -std::f32::consts::LN_2;
        assert_eq!(logprobs(&[inf, 1e30, inf], 1, 2), (none, vec![(0, half), (2, half)]));
        // As large as logits get without being infinite.
        assert_eq!(logprobs(&[f32::MAX, f32::MIN], 0, 2).1[0], (0, 0.0));
    }

    /// Among very many tokens the small ones together still count.
    #[test]
    fn a_long_tail_counts() {
        let mut logits = vec![-16.0; 150_000];
        logits[7] = 0.0;
        let wanted = -(1.0 + 149_999.0 * (-16_f64).exp()).ln();
        assert!((f64::from(logprobs(&logits, 7, 0).0) - wanted).abs() < 1e-6);
    }
}
