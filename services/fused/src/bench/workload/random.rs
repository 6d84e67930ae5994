/// Random numbers by counting (the finaliser of SplitMix64 over seed, stream and place): the same seed draws the same on
/// every machine, and what one stream draws does not depend on how much another has drawn.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Random {
    key: u64,
    num_drawn: u64,
}

impl Random {
    pub(in crate::bench) fn new(seed: u64, stream: u64) -> Self {
        Self { key: mix(mix(seed) ^ stream), num_drawn: 0 }
    }

    /// In (0, 1), each of 2^53 numbers as likely as any other.
    pub(in crate::bench) fn uniform(&mut self) -> f64 {
        self.num_drawn += 1;
        let bits = mix(self.key.wrapping_add(self.num_drawn)) >> 11;
        (bits as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// With mean 1.
    pub(super) fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// With mean 1 and this coefficient of variation, over 0 (Marsaglia and Tsang, ACM TOMS 2000).
    pub(super) fn gamma(&mut self, cv: f64) -> f64 {
        let shape = 1.0 / (cv * cv);
        // Their method is for shapes from 1 on; smaller ones are drawn one higher and brought down.
        let raised = if shape < 1.0 { shape + 1.0 } else { shape };
        let (d, mut drawn) = (raised - 1.0 / 3.0, 0.0);
        while drawn == 0.0 {
            let normal = self.normal();
            let cube = (1.0 + normal / (9.0 * d).sqrt()).powi(3);
            if cube > 0.0 && self.uniform().ln() < 0.5 * normal * normal + d - d * cube + d * cube.ln() {
                drawn = d * cube;
            }
        }
        if shape < 1.0 {
            drawn *= self.uniform().powf(1.0 / shape);
        }
        drawn / shape
    }

    /// With mean 0 and deviation 1 (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NUM: usize = 20_000;

    fn mean_and_cv(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let drawn: Vec<f64> = (0..NUM).map(|_| draw()).collect();
        let mean = drawn.iter().sum::<f64>() / NUM as f64;
        let variance = drawn.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / NUM as f64;
        (mean, variance.sqrt() / mean)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn draws_have_the_mean_and_the_variation_they_should(seed: u64, cv in 0.1..2.5f64) {
            // Five deviations of the estimates, or a little more for the long tails.
            let tolerance = |cv: f64| 5.0 * cv / (NUM as f64).sqrt();
            let mut random = Random::new(seed, 0);
            let (mean, own_cv) = mean_and_cv(|| random.gamma(cv));
            prop_assert!((mean - 1.0).abs() < tolerance(cv), "mean {mean}");
            prop_assert!((own_cv / cv - 1.0).abs() < 0.05 * (1.0 + cv), "cv {own_cv} for {cv}");
            let (mean, own_cv) = mean_and_cv(|| random.exponential());
            prop_assert!((mean - 1.0).abs() < tolerance(1.0) && (own_cv - 1.0).abs() < 0.06);
            let (mean, own_cv) = mean_and_cv(|| random.uniform());
            prop_assert!((mean - 0.5).abs() < 0.012 && (own_cv - 0.577).abs() < 0.02);
        }

        #[test]
        fn the_same_seed_draws_the_same_and_streams_are_apart(seed: u64) {
            let draw = |stream| {
                let mut random = Random::new(seed, stream);
                (0..8).map(|_| random.uniform().to_bits()).collect::<Vec<_>>()
            };
            prop_assert_eq!(draw(3), draw(3));
            prop_assert_ne!(draw(3), draw(4));
        }
    }
}
