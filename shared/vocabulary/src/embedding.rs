//! The weights by which the embedding rows of an n-token are averages of its base tokens' rows (AdaptiVocab, section
//! 3.3): the input row leans on the last base token, whose place the n-token takes in the context; the output row leans
//! on the first, which the model would have predicted.
//!
//! An adapted model's input and output matrices differ even where the base model's are tied: the adapted model is
//! untied.

/// How the rows of n-tokens begin, before any training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Initialisation {
    /// Weights that halve from one base token to the next: what AdaptiVocab proposes.
    #[default]
    Exponential,
    /// The plain average, which AdaptiVocab compares with.
    Mean,
}

/// Which of a model's two matrices `[vocabulary, hidden]` a row stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The embedding.
    Input,
    /// The head.
    Output,
}

impl Initialisation {
    /// Weights of an n-token's base tokens, in their order, with sum 1.
    #[must_use]
    pub fn weights(self, side: Side, num_base_tokens: usize) -> Vec<f32> {
        match (self, side) {
            (Self::Exponential, Side::Input) => input_weights(num_base_tokens),
            (Self::Exponential, Side::Output) => output_weights(num_base_tokens),
            #[expect(clippy::cast_precision_loss, reason = "an n-token has at most 64 base tokens")]
            (Self::Mean, _) => vec![1.0 / num_base_tokens as f32; num_base_tokens],
        }
    }
}

/// `0.5^(n-1-j) / S`, rising.
fn input_weights(num_base_tokens: usize) -> Vec<f32> {
    let mut weights = output_weights(num_base_tokens);
    weights.reverse();
    weights
}

/// `0.5^j / S`, falling.
fn output_weights(num_base_tokens: usize) -> Vec<f32> {
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
        assert_eq!(Initialisation::Mean.weights(Side::Input, 4), [0.25; 4]);
    }

    #[test]
    fn every_length_sums_to_one() {
        for n in 1..=64 {
            for initialisation in [Initialisation::Exponential, Initialisation::Mean] {
                for side in [Side::Input, Side::Output] {
                    let weights = initialisation.weights(side, n);
                    let sum: f64 = weights.iter().copied().map(f64::from).sum();
                    assert_eq!(weights.len(), n);
                    assert!((sum - 1.0).abs() < 1e-6, "{n}: {sum}");
                }
            }
        }
    }
}
