use std::cmp::Reverse;

use super::{RowSampling, key};

/// The tokens of a row that the filters keep.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    logits: &'a [f32],
    weights: &'a [u64],
    /// Of a logit; lower ones are not kept. Nor, though nobody could tell, is what weighs nothing.
    min_key: u32,
}

impl<'a> Kept<'a> {
    pub(super) fn new(logits: &'a [f32], weights: &'a [u64], largest: f32, row: &RowSampling) -> Self {
        let mut kept = Self { logits, weights, min_key: 0 };
        if row.log_min_p < 0.0 {
            kept.min_key = key(largest + row.temperature * row.log_min_p);
        }
        if row.top_k > 0 {
            let kth_largest = kth_largest(&mut kept.candidates(), row.top_k as usize);
            kept.min_key = kept.min_key.max(kth_largest);
        }
        if row.top_p > 0.0 && row.top_p < 1.0 {
            let mut candidates = kept.candidates();
            let total = candidates.iter().map(|&(_, weight)| weight).sum();
            kept.min_key = nucleus(&mut candidates, share(total, fraction(row.top_p)));
        }
        kept
    }

    /// The kept tokens and their weights, by id.
    pub(super) fn weights(&self) -> impl Iterator<Item = (u32, u64)> {
        let tokens = (0..).zip(self.logits.iter().zip(self.weights));
        tokens
            .filter(|&(_, (&logit, &weight))| weight > 0 && key(logit) >= self.min_key)
            .map(|(id, (_, &weight))| (id, weight))
    }

    /// Key and weight of what is kept so far.
    fn candidates(&self) -> Vec<(u32, u64)> {
        let tokens = self.logits.iter().zip(self.weights).map(|(&logit, &weight)| (key(logit), weight));
        tokens.filter(|&(key, weight)| weight > 0 && key >= self.min_key).collect()
    }
}

/// The K-th largest key, 0 where there are fewer.
fn kth_largest(candidates: &mut [(u32, u64)], k: usize) -> u32 {
    if k > candidates.len() {
        return 0;
    }
    candidates.select_nth_unstable_by_key(k - 1, |&(key, _)| Reverse(key)).1.0
}

/// The largest key from which on the weights sum to at least `needed`, which is no more than all do.
fn nucleus(mut candidates: &mut [(u32, u64)], mut needed: u64) -> u32 {
    while candidates.len() > 1 {
        let middle = candidates.len() / 2;
        candidates.select_nth_unstable_by_key(middle, |&(key, _)| Reverse(key));
        let (larger, smaller) = candidates.split_at_mut(middle);
        let sum: u64 = larger.iter().map(|&(_, weight)| weight).sum();
        if sum >= needed {
            candidates = larger;
        } else {
            needed -= sum;
            candidates = smaller;
        }
    }
    candidates.first().map_or(0, |&(key, _)| key)
}

/// So many 2⁻⁶⁴ of a sum, rounded down.
pub(super) fn share(total: u64, fraction: u64) -> u64 {
    ((u128::from(total) * u128::from(fraction)) >> 64) as u64
}

/// A number under 1 in 2⁻⁶⁴.
fn fraction(number: f32) -> u64 {
    (f64::from(number) * 2.0_f64.powi(64)) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Halving finds the same nucleus as a whole sort does.
        #[test]
        fn the_nucleus_equals_a_whole_sorts(
            mut candidates in proptest::collection::vec((0_u32..500, 1_u64..1 << 44), 1..2000),
            fraction: u64,
        ) {
            let needed = share(candidates.iter().map(|&(_, weight)| weight).sum(), fraction);
            let mut sorted = candidates.clone();
            sorted.sort_by_key(|&(key, _)| Reverse(key));
            let mut sum = 0;
            let last = sorted.iter().find(|(_, weight)| {
                sum += weight;
                sum >= needed
            });
            prop_assert_eq!(nucleus(&mut candidates, needed), last.unwrap().0);
        }

        #[test]
        fn a_share_is_less_than_the_whole(total in 1_u64.., fraction: u64) {
            prop_assert!(share(total, fraction) < total);
        }
    }

    #[test]
    fn the_kth_largest_counts_equals_each() {
        let candidates = [(5, 1), (9, 1), (5, 1), (7, 1)];
        let kth = |k| kth_largest(&mut candidates.clone(), k);
        assert_eq!([kth(1), kth(2), kth(3), kth(4), kth(5)], [9, 7, 5, 5, 0]);
    }
}
