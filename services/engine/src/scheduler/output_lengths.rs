/// Buckets of an octave: lengths in one differ by a fifth at most, and their mean is kept.
const BUCKETS_PER_OCTAVE: f64 = 4.0;
/// Up to 2^24 tokens; longer outputs count in the last bucket.
const NUM_BUCKETS: usize = 4 * 24 + 1;
/// What an observation still counts when the next one comes: the last two hundred count most.
const DECAY: f64 = 0.995;
/// Without observations an output is expected to go on for as long as it is already, and at least for so many tokens.
const LEAST_REMAINING: f64 = 32.0;

/// How long outputs are, learned from those that have ended: a histogram of logarithmic buckets that forgets.
#[derive(Clone, Debug)]
pub(super) struct OutputLengths {
    /// Weight and weighted sum of lengths.
    buckets: [(f64, f64); NUM_BUCKETS],
    /// The same summed over a bucket and all behind it, because every forecast asks for it.
    from: [(f64, f64); NUM_BUCKETS + 1],
}

impl Default for OutputLengths {
    fn default() -> Self {
        Self { buckets: [(0.0, 0.0); NUM_BUCKETS], from: [(0.0, 0.0); NUM_BUCKETS + 1] }
    }
}

impl OutputLengths {
    /// Takes in an output that has ended by itself, of so many tokens.
    pub(super) fn note(&mut self, num_tokens: usize) {
        for (weight, sum) in &mut self.buckets {
            *weight *= DECAY;
            *sum *= DECAY;
        }
        let (weight, sum) = &mut self.buckets[bucket(num_tokens)];
        *weight += 1.0;
        *sum += num_tokens as f64;
        for idx in (0..NUM_BUCKETS).rev() {
            let (behind, bucket) = (self.from[idx + 1], self.buckets[idx]);
            self.from[idx] = (behind.0 + bucket.0, behind.1 + bucket.1);
        }
    }

    /// How many tokens an output of `num_tokens` that has not ended is expected to get still, at most `most`.
    pub(super) fn remaining(&self, num_tokens: usize, most: usize) -> usize {
        let so_far = num_tokens as f64;
        let own = bucket(num_tokens);
        let (mut weight, mut sum) = self.from[own + 1];
        // Of outputs as long as this one is, those that are longer on average.
        let (own_weight, own_sum) = self.buckets[own];
        if own_sum > own_weight * so_far {
            weight += own_weight;
            sum += own_sum;
        }
        // One observation's weight for what would be expected without any.
        let guess = so_far.max(LEAST_REMAINING);
        let expected = (sum - weight * so_far + guess) / (weight + 1.0);
        (expected.max(1.0) as usize).min(most)
    }
}

fn bucket(num_tokens: usize) -> usize {
    let nth = ((num_tokens + 1) as f64).log2() * BUCKETS_PER_OCTAVE;
    (nth as usize).min(NUM_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_observations_an_output_goes_on_for_as_long_as_it_is() {
        let lengths = OutputLengths::default();
        assert_eq!(lengths.remaining(0, 1000), 32);
        assert_eq!(lengths.remaining(400, 1000), 400);
        assert_eq!(lengths.remaining(400, 7), 7, "no more than it may come to");
    }

    #[test]
    fn equal_outputs_are_expected_to_be_equal() {
        let mut lengths = OutputLengths::default();
        (0..300).for_each(|_| lengths.note(1000));
        for so_far in [0, 100, 500, 999] {
            let expected = 1000 - so_far;
            let error = lengths.remaining(so_far, 10_000).abs_diff(expected);
            assert!(error <= 8, "{so_far}: {error}");
        }
        assert!(lengths.remaining(1500, 10_000) == 1500, "none was so long");
    }

    #[test]
    fn long_outputs_that_are_left_are_expected_to_stay() {
        let mut lengths = OutputLengths::default();
        for nth in 0..400 {
            lengths.note(if nth % 10 == 0 { 2000 } else { 50 });
        }
        assert!((200..300).contains(&lengths.remaining(0, 10_000)), "the mean of all");
        assert!((1700..1950).contains(&lengths.remaining(100, 10_000)), "one of the long ones");
        (0..2000).for_each(|_| lengths.note(50));
        assert!(lengths.remaining(0, 10_000) < 60, "what was is forgotten");
    }

    proptest! {
        #[test]
        fn an_expectation_is_in_bounds(
            observed in prop::collection::vec(0..200_000_usize, 0..50),
            so_far in 0..300_000_usize,
            most in 0..300_000_usize,
        ) {
            let mut lengths = OutputLengths::default();
            observed.iter().for_each(|num_tokens| lengths.note(*num_tokens));
            let longest = observed.iter().copied().max().unwrap_or(0).max(2 * so_far).max(32);
            let remaining = lengths.remaining(so_far, most);
            prop_assert!(remaining <= most && remaining <= longest && (remaining >= 1 || most == 0));
        }
    }
}
