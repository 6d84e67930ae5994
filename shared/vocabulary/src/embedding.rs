//! The weights by which the embedding rows of an n-token are averages of its base tokens' rows (AdaptiVocab, section
//! 3.3): the input row leans on the last base token, whose place the n-token takes in the context; the output row leans
//! on the first, which the model would have predicted.
//!
//! An adapted model's input and output matrices differ even where the base model's are tied: the adapted model is
//! untied.

/// Weights of an n-token's base tokens in its input row: `0.5^(n-1-j) / S`, rising, with sum 1.
#[must_use]
pub fn input_weights(num_base_tokens: usize) -> Vec<f32> {
    let mut weights = output_weights(num_base_tokens);
    weights.reverse();
    weights
}

/// Weights of an n-token's base tokens in its output row: `0.5^j / S`, falling, with sum 1.
#[must_use]
pub fn output_weights(num_base_tokens: usize) -> Vec<f32> {
    let halves = || std::iter::successors(Some(1.0_f64), |weight| Some(weight / 2.0)).take(num_base_tokens);
    let sum: f64 = halves().sum();
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32; only the division is done in f64")]
    halves().map(|weight| (weight / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_follow_the_paper() {
        assert_eq!(input_weights(1), [1.0]);
        assert_eq!(input_weights(2), [1.0 / 3.0, 2.0 / 3.0]);
        assert_eq!(output_weights(3), [4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0]);
        assert!(input_weights(0).is_empty());
    }

    #[test]
    fn every_length_sums_to_one() {
        for n in 1..=64 {
            let sum: f64 = input_weights(n).into_iter().map(f64::from).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{n}: {sum}");
        }
    }
}
