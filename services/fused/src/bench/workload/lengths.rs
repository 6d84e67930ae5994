use super::random::Random;

/// How long generated requests are, in tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lengths {
    /// All alike.
    Fixed { num_prompt: usize, num_output: usize },
    /// Prompt and output together equally likely from the one number to the other.
    Uniform { total: Totals },
    /// Prompt and output together: the nth shortest (or some nth, scrambled) in proportion to 1/n^theta.
    Zipf { total: Totals, theta: f64, order: ZipfOrder },
}

/// Tokens of prompt and output together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Totals {
    pub(crate) min: usize,
    pub(crate) max: usize,
    /// Prompt tokens for each output token.
    pub(crate) prompt_to_output: f64,
}

/// Which lengths are the frequent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZipfOrder {
    ShortestFirst,
    Scrambled,
}

impl Lengths {
    /// Prompt and output tokens of so many requests.
    pub(super) fn generate(&self, num: usize, random: &mut Random) -> Vec<(usize, usize)> {
        match self {
            Self::Fixed { num_prompt, num_output } => vec![(*num_prompt, *num_output); num],
            Self::Uniform { total } => {
                let span = (total.max - total.min + 1) as f64;
                (0..num).map(|_| total.split(total.min + (random.uniform() * span) as usize)).collect()
            }
            Self::Zipf { total, theta, order } => {
                let lengths = zipf_lengths(*total, *order, random);
                let cumulative = cumulative(lengths.len(), *theta);
                let all = cumulative.last().copied().unwrap_or(0.0);
                let mut rank = || {
                    let drawn = random.uniform() * all;
                    cumulative.partition_point(|sum| *sum <= drawn).min(lengths.len().saturating_sub(1))
                };
                (0..num).map(|_| total.split(lengths[rank()])).collect()
            }
        }
    }
}

impl Totals {
    /// At least one token each.
    fn split(&self, total: usize) -> (usize, usize) {
        let num_output = (total as f64 / (1.0 + self.prompt_to_output)).ceil() as usize;
        let num_output = num_output.clamp(1, total.saturating_sub(1).max(1));
        (total.saturating_sub(num_output).max(1), num_output)
    }
}

fn zipf_lengths(total: Totals, order: ZipfOrder, random: &mut Random) -> Vec<usize> {
    let mut lengths: Vec<usize> = (total.min..=total.max).collect();
    if order == ZipfOrder::Scrambled {
        // Fisher and Yates.
        for idx in (1..lengths.len()).rev() {
            lengths.swap(idx, (random.uniform() * (idx + 1) as f64) as usize);
        }
    }
    lengths
}

/// Sums of 1/n^theta.
fn cumulative(num: usize, theta: f64) -> Vec<f64> {
    let sums = (1..=num).scan(0.0, |sum, n| {
        *sum += (n as f64).powf(-theta);
        Some(*sum)
    });
    sums.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn lengths_are_within_bounds_and_split_as_asked(
            seed: u64,
            min in 2..2000usize,
            span in 0..3000usize,
            prompt_to_output in 0.1..100.0f64,
            theta in 0.0..2.0f64,
        ) {
            let total = Totals { min, max: min + span, prompt_to_output };
            let kinds = [
                Lengths::Uniform { total },
                Lengths::Zipf { total, theta, order: ZipfOrder::ShortestFirst },
                Lengths::Zipf { total, theta, order: ZipfOrder::Scrambled },
            ];
            for lengths in kinds {
                let drawn = lengths.generate(200, &mut Random::new(seed, 1));
                prop_assert_eq!(&drawn, &lengths.generate(200, &mut Random::new(seed, 1)));
                for (num_prompt, num_output) in drawn {
                    prop_assert!(num_prompt >= 1 && num_output >= 1);
                    prop_assert!((min..=min + span).contains(&(num_prompt + num_output)));
                    let share = num_output as f64 - (num_prompt + num_output) as f64 / (1.0 + prompt_to_output);
                    prop_assert!((-1.0..=1.0).contains(&share), "{num_prompt} + {num_output}");
                }
            }
        }
    }

    #[test]
    fn zipf_prefers_short_ones_and_uniform_none() {
        let total = Totals { min: 100, max: 1099, prompt_to_output: 1.0 };
        let mean = |lengths: Lengths| {
            let drawn = lengths.generate(20_000, &mut Random::new(7, 0));
            drawn.iter().map(|(prompt, output)| (prompt + output) as f64).sum::<f64>() / 20_000.0
        };
        assert!((mean(Lengths::Uniform { total }) - 599.5).abs() < 10.0);
        // Expected: sum of n^(1 - theta) / sum of n^-theta, with n from 1 to 1000, plus 99.
        let theta = 0.99;
        let expected = (1..=1000).map(|n| f64::from(n).powf(1.0 - theta)).sum::<f64>()
            / (1..=1000).map(|n| f64::from(n).powf(-theta)).sum::<f64>()
            + 99.0;
        let own = mean(Lengths::Zipf { total, theta, order: ZipfOrder::ShortestFirst });
        assert!((own - expected).abs() < 10.0, "{own} for {expected}");
    }
}
