//! Steps as the kernels have them.

use fused_kernels::{Bias, RowSampling};

use super::random::random;
use super::{SampleStep, Sampling};

impl SampleStep<'_> {
    /// How a row is sampled, but for what only the runner knows: the lists' addresses on a GPU, and whether the sequence's
    /// latest token is on its way. `num_biases` is the length of [`biases`](Self::biases).
    #[must_use]
    pub fn row(&self, num_biases: usize) -> RowSampling {
        let sampling = self.sampling;
        RowSampling {
            random: random(sampling.seed, self.sequence_idx, self.position),
            num_occurrences: self
                .occurrences
                .filter(|_| sampling.has_penalties())
                .map_or(0, |occurrences| occurrences.as_slice().len() as u32),
            num_biases: num_biases as u32,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            log_min_p: RowSampling::log_min_p(sampling.min_p),
            top_k: sampling.top_k,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            flags: if self.num_logprobs.is_some() { RowSampling::WANTS_LOGPROBS } else { 0 },
            num_top: self.num_logprobs.unwrap_or(0),
            ..RowSampling::default()
        }
    }

    /// Biases and bans, each token once; empty for most requests.
    #[must_use]
    pub fn biases(&self) -> Vec<Bias> {
        let given = self.sampling.logit_bias.iter().copied();
        // A ban wins over any bias, since it is added as well.
        let banned = self.banned.iter().map(|&token| (token, f32::NEG_INFINITY));
        let all = given.chain(banned).map(|(token, bias)| Bias { token: token.0, bias, ..Bias::default() });
        let mut biases: Vec<Bias> = all.collect();
        biases.sort_by_key(|bias| bias.token);
        biases.dedup_by(|next, bias| {
            let is_same = next.token == bias.token;
            if is_same {
                bias.bias += next.bias;
            }
            is_same
        });
        biases
    }
}

impl Sampling {
    /// Whether it matters which tokens have occurred before.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

#[cfg(test)]
mod tests {
    use fused_vocabulary::TokenId;

    use super::super::tests::{sampling, step};
    use super::*;

    #[test]
    fn a_token_has_one_bias_and_a_ban_wins() {
        let logit_bias = vec![(TokenId(7), 1.0), (TokenId(3), 100.0), (TokenId(7), 0.5)];
        let sampling = Sampling { logit_bias, ..sampling() };
        let banned = [TokenId(3), TokenId(1)];
        let step = SampleStep { banned: &banned, ..step(&sampling) };
        let biases: Vec<_> = step.biases().iter().map(|bias| (bias.token, bias.bias)).collect();
        assert_eq!(biases, [(1, f32::NEG_INFINITY), (3, f32::NEG_INFINITY), (7, 1.5)]);
    }

    #[test]
    fn seed_sequence_and_position_all_change_the_draw() {
        let random = |seed, sequence_idx, position| {
            let sampling = Sampling { seed, ..sampling() };
            SampleStep { sequence_idx, position, ..step(&sampling) }.row(0).random
        };
        let all = [random(1, 0, 0), random(2, 0, 0), random(1, 1, 0), random(1, 0, 1)];
        assert!((1..4).all(|idx| !all[..idx].contains(&all[idx])), "{all:?}");
        assert_eq!(random(1, 0, 0), all[0]);
    }
}
