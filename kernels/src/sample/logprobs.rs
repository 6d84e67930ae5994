use std::cmp::Reverse;

use super::weights::{ONE, weights};
use super::{key, likeliest};

/// The log-probability of `token` (minus infinity beyond the vocabulary), and the `num_top` likeliest tokens with theirs, in
/// descending order, the lower id first among equals; from one row of logits `[vocabulary]` as the model made it.
#[must_use]
pub fn logprobs(logits: &[f32], token: u32, num_top: usize) -> (f32, Vec<(u32, f32)>) {
    let normaliser = log_sum_exp(logits);
    let logprob = |token: u32| {
        let logit = logits.get(token as usize).filter(|logit| !logit.is_nan());
        logit.map_or(f32::NEG_INFINITY, |&logit| (f64::from(logit) - normaliser) as f32)
    };
    let top = top(logits, num_top).into_iter().map(|token| (token, logprob(token)));
    (logprob(token), top.collect())
}

/// 0 where no logit is finite, or one is infinite.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let (_, largest) = likeliest(logits);
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

    /// Among very many tokens the small ones together still count.
    #[test]
    fn a_long_tail_counts() {
        let mut logits = vec![-16.0; 150_000];
        logits[7] = 0.0;
        let wanted = -(1.0 + 149_999.0 * (-16_f64).exp()).ln();
        assert!((f64::from(logprobs(&logits, 7, 0).0) - wanted).abs() < 1e-6);
    }
}
