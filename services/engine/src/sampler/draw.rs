use std::cmp::Ordering;

use fused_vocabulary::TokenId;

use super::{SampleStep, Sampling};

/// How many candidates are sorted first when top_p asks for an order: nearly always enough, and far cheaper than the
/// whole vocabulary.
const FIRST_CANDIDATES: usize = 128;

/// Draws from a row whose penalties are applied.
pub(super) fn draw(logits: &[f32], step: &SampleStep<'_>) -> TokenId {
    let sampling = step.sampling;
    let (likeliest, max) = argmax(logits);
    if sampling.temperature == 0.0 || !max.is_finite() {
        return likeliest;
    }
    let uniform = uniform(sampling.seed, step.sequence_idx, step.output.len() as u64);
    let weight = |logit: f32| f64::from((logit - max) / sampling.temperature).exp();
    let is_filtered = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    if !is_filtered {
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        let weights = (0u32..).zip(logits.iter().map(|&logit| weight(logit)));
        return pick(weights, uniform * total).unwrap_or(likeliest);
    }
    let candidates: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|&logit| weight(logit))).collect();
    let kept = filter(candidates, sampling);
    let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
    pick(kept.into_iter(), uniform * total).unwrap_or(likeliest)
}

/// The largest logit, the lowest id among equals.
fn argmax(logits: &[f32]) -> (TokenId, f32) {
    let mut best = (TokenId(0), f32::NEG_INFINITY);
    for (id, &logit) in (0u32..).zip(logits) {
        if logit > best.1 {
            best = (TokenId(id), logit);
        }
    }
    best
}

/// Keeps what min_p, then top_k, then top_p let through: `(id, weight)`, where the largest weight is 1.
fn filter(mut candidates: Vec<(u32, f64)>, sampling: &Sampling) -> Vec<(u32, f64)> {
    if sampling.min_p > 0.0 {
        candidates.retain(|&(_, weight)| weight >= f64::from(sampling.min_p));
    }
    if sampling.top_k > 0 && (sampling.top_k as usize) < candidates.len() {
        candidates.select_nth_unstable_by(sampling.top_k as usize, descending);
        candidates.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        keep_nucleus(&mut candidates, f64::from(sampling.top_p));
    } else {
        // A fixed order, so that the same draw picks the same token.
        candidates.sort_unstable_by(descending);
    }
    candidates
}

/// Nucleus sampling (arXiv 1904.09751): the fewest likeliest tokens whose probabilities sum to at least `top_p`.
fn keep_nucleus(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let needed = top_p * candidates.iter().map(|&(_, weight)| weight).sum::<f64>();
    let mut num_sorted = FIRST_CANDIDATES;
    loop {
        num_sorted = num_sorted.min(candidates.len());
        if num_sorted < candidates.len() {
            candidates.select_nth_unstable_by(num_sorted, descending);
        }
        candidates[..num_sorted].sort_unstable_by(descending);
        let mut sum = 0.0;
        let reached = candidates[..num_sorted].iter().position(|&(_, weight)| {
            sum += weight;
            sum >= needed
        });
        if let Some(last) = reached {
            return candidates.truncate(last + 1);
        }
        if num_sorted == candidates.len() {
            // Rounding left the sum a hair under what is needed: all are in.
            return;
        }
        num_sorted *= 4;
    }
}

/// Likeliest first, the lower id first among equals.
fn descending(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The first token at which the running sum of weights passes `threshold`.
fn pick(weights: impl Iterator<Item = (u32, f64)>, threshold: f64) -> Option<TokenId> {
    let mut sum = 0.0;
    let mut last = None;
    for (id, weight) in weights {
        if weight > 0.0 {
            sum += weight;
            last = Some(TokenId(id));
            if sum > threshold {
                break;
            }
        }
    }
    last
}

/// A number in [0, 1) that depends on nothing but its key: a generator with a counter instead of a state, so that
/// preemption, batching and the order of requests cannot change a draw.
fn uniform(seed: u64, sequence_idx: u32, position: u64) -> f64 {
    let key = mix(mix(mix(seed) ^ u64::from(sequence_idx)) ^ position);
    (key >> 11) as f64 / (1u64 << 53) as f64
}

/// The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) after its increment.
fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{sampling, step};
    use super::*;

    /// How often each token is drawn at 20,000 positions.
    fn shares(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let num_draws = 20_000;
        let output = vec![TokenId(0); num_draws];
        for position in 0..num_draws {
            let token = draw(logits, &step(sampling, &output[..position]));
            counts[token.0 as usize] += 1.0 / num_draws as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.1f32.ln(), 0.2f32.ln(), 0.3f32.ln(), 0.4f32.ln()];
        for (share, expected) in shares(&logits, &sampling()).iter().zip([0.1, 0.2, 0.3, 0.4]) {
            assert!((share - expected).abs() < 0.015, "{share} for {expected}");
        }
        let cold = Sampling { temperature: 0.5, ..sampling() };
        for (share, expected) in shares(&logits, &cold).iter().zip([1.0, 4.0, 9.0, 16.0]) {
            assert!((share - expected / 30.0).abs() < 0.015, "{share} for {}", expected / 30.0);
        }
    }

    #[test]
    fn filters_cut_where_they_say() {
        let logits = [0.1f32.ln(), 0.2f32.ln(), 0.3f32.ln(), 0.4f32.ln()];
        let drawn = |sampling: &Sampling| -> Vec<usize> {
            let shares = shares(&logits, sampling);
            (0..4).filter(|&id| shares[id] > 0.0).collect()
        };
        assert_eq!(drawn(&Sampling { top_k: 2, ..sampling() }), [2, 3]);
        assert_eq!(drawn(&Sampling { top_p: 0.65, ..sampling() }), [2, 3]);
        assert_eq!(drawn(&Sampling { top_p: 0.75, ..sampling() }), [1, 2, 3]);
        assert_eq!(drawn(&Sampling { min_p: 0.45, ..sampling() }), [1, 2, 3]);
        // top_p counts within what top_k left: 4/7 of it is the likeliest token alone.
        assert_eq!(drawn(&Sampling { top_k: 2, top_p: 0.55, ..sampling() }), [3]);
    }

    #[test]
    fn seed_and_sequence_both_change_the_draws() {
        let logits = [0.0f32; 64];
        let draws = |seed, sequence_idx| -> Vec<u32> {
            let sampling = Sampling { seed, ..sampling() };
            let output = [TokenId(0); 32];
            (0..32)
                .map(|position| {
                    let mut step = step(&sampling, &output[..position]);
                    step.sequence_idx = sequence_idx;
                    draw(&logits, &step).0
                })
                .collect()
        };
        assert_eq!(draws(1, 0), draws(1, 0));
        assert_ne!(draws(1, 0), draws(2, 0));
        assert_ne!(draws(1, 0), draws(1, 1));
    }

    proptest! {
        /// The partial sort finds the same nucleus as a whole sort does.
        #[test]
        fn nucleus_equals_a_whole_sort(
            logits in proptest::collection::vec(-8.0f32..8.0, 1..2000),
            top_p in 0.01f64..0.999,
        ) {
            let weights: Vec<(u32, f64)> =
                (0u32..).zip(logits.iter().map(|&logit| f64::from(logit).exp())).collect();
            let mut sorted = weights.clone();
            sorted.sort_by(descending);
            let total: f64 = weights.iter().map(|&(_, weight)| weight).sum();
            let mut sum = 0.0;
            let mut expected = Vec::new();
            for candidate in sorted {
                expected.push(candidate);
                sum += candidate.1;
                if sum >= top_p * total {
                    break;
                }
            }
            let mut kept = weights;
            keep_nucleus(&mut kept, top_p);
            prop_assert_eq!(kept, expected);
        }

        #[test]
        fn uniform_stays_in_range(seed: u64, sequence_idx: u32, position: u64) {
            let value = uniform(seed, sequence_idx, position);
            prop_assert!((0.0..1.0).contains(&value));
        }
    }
}
