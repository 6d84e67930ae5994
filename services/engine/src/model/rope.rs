//! The one table of rotary frequencies, from which host and device take their sines and cosines.

use fused_checkpoint::{Rope, RopeScaling};

/// How queries and keys are turned by their position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a position for each pair of a head's elements; the pairs behind these are not turned.
    pub frequencies: Vec<f32>,
    /// What sines and cosines are multiplied by (YaRN, LongRoPE).
    pub scale: f32,
    /// Positions that a sequence may have.
    pub num_positions: usize,
}

#[expect(clippy::cast_possible_truncation, reason = "models are trained with these in f32")]
impl Rotary {
    /// theta^(-2i / rotary_dim) for each pair, scaled.
    pub(super) fn new(rope: &Rope) -> Self {
        let waves = wavelengths(theta(rope), rope.rotary_dim);
        let (frequencies, scale) = match &rope.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => (inverse(&waves), 1.0),
            RopeScaling::Linear { factor } => {
                (inverse(&waves).into_iter().map(|frequency| frequency / *factor as f32).collect(), 1.0)
            }
            &RopeScaling::Yarn { factor, attention_factor, .. } => {
                let ramp = ramp(rope);
                let blended = waves.iter().zip(ramp).map(|(wave, stretched)| {
                    let kept = 1.0 - stretched;
                    1.0 / (factor as f32 * wave) * (1.0 - kept) + 1.0 / wave * kept
                });
                (blended.collect(), attention_factor)
            }
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                attention_factor,
                original_max_position_embeddings,
            } => {
                let is_long = rope.context_len > *original_max_position_embeddings;
                let divisors = if is_long { long_factor } else { short_factor };
                let divided =
                    waves.iter().zip(divisors).map(|(wave, divisor)| 1.0 / (*divisor as f32 * wave));
                (divided.collect(), *attention_factor)
            }
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let band = Band {
                    factor: factor as f32,
                    low: low_freq_factor as f32,
                    high: high_freq_factor as f32,
                    context_len: original_max_position_embeddings as f32,
                };
                (inverse(&waves).into_iter().map(|frequency| band.scaled(frequency)).collect(), 1.0)
            }
        };
        Self { frequencies, scale: scale as f32, num_positions: rope.context_len }
    }
}

/// theta^(2i / dim) for each pair.
#[expect(clippy::cast_possible_truncation, reason = "models are trained with these in f32")]
fn wavelengths(theta: f64, dim: usize) -> Vec<f32> {
    let wave = |pair: usize| theta.powf(f64::from((2 * pair) as f32 / dim as f32)) as f32;
    (0..dim / 2).map(wave).collect()
}

fn inverse(waves: &[f32]) -> Vec<f32> {
    waves.iter().map(|wave| 1.0 / wave).collect()
}

/// The base, which grows with the context under `Dynamic`.
fn theta(rope: &Rope) -> f64 {
    let RopeScaling::Dynamic { factor, original_max_position_embeddings: original } = rope.scaling else {
        return rope.theta;
    };
    if rope.context_len <= original {
        return rope.theta;
    }
    let dim = rope.rotary_dim as f64;
    let ratio = rope.context_len as f64 / original as f64;
    rope.theta * (factor * ratio - (factor - 1.0)).powf(dim / (dim - 2.0))
}

/// YaRN: how far each pair is stretched, from 0, not at all, to 1.
#[expect(clippy::cast_possible_truncation, reason = "models are trained with these in f32")]
fn ramp(rope: &Rope) -> Vec<f32> {
    let &RopeScaling::Yarn {
        beta_fast, beta_slow, truncate, original_max_position_embeddings: original, ..
    } = &rope.scaling
    else {
        return vec![0.0; rope.rotary_dim / 2];
    };
    let dim = rope.rotary_dim as f64;
    // The pair whose wave fits so often into the first training's context.
    let pair = |num_waves: f64| {
        let wavelength = original as f64 / (num_waves * 2.0 * std::f64::consts::PI);
        dim * wavelength.ln() / (2.0 * rope.theta.ln())
    };
    let (low, high) = (pair(beta_fast), pair(beta_slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    let width = if low == high { 0.001 } else { high - low };
    let stretched = |pair: usize| ((pair as f32 - low as f32) / width as f32).clamp(0.0, 1.0);
    (0..rope.rotary_dim / 2).map(stretched).collect()
}

/// Llama 3.1's bounds between short and long waves.
struct Band {
    factor: f32,
    low: f32,
    high: f32,
    /// Of the first training.
    context_len: f32,
}

impl Band {
    fn scaled(&self, frequency: f32) -> f32 {
        // How often the wave fits into the context of the first training.
        let num_waves = self.context_len / (2.0 * std::f32::consts::PI / frequency);
        if num_waves > self.high {
            frequency
        } else if num_waves < self.low {
            frequency / self.factor
        } else {
            let smooth = (num_waves - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

/// The order of the elements of so many heads in which those that turn together lie half a head apart, as the kernels
/// have it, although only the first `rotary_dim` of a head turn; none where the checkpoint's is that. Scores do not change,
/// since queries and keys are ordered alike.
pub(super) fn order(rope: &Rope, head_dim: usize, num_heads: usize) -> Option<Vec<usize>> {
    if rope.rotary_dim == head_dim {
        return None;
    }
    let (turning, half) = (rope.rotary_dim / 2, head_dim / 2);
    let first = (0..half).map(|i| if i < turning { i } else { turning + i });
    let second = (0..half).map(|i| if i < turning { turning + i } else { half + i });
    let of_head: Vec<usize> = first.chain(second).collect();
    let heads = (0..num_heads).map(|head| head * head_dim);
    Some(heads.flat_map(|begin| of_head.iter().map(move |element| begin + element)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(scaling: RopeScaling) -> Vec<f32> {
        let rope = Rope { theta: 500_000.0, rotary_dim: 64, scaling, context_len: 131_072 };
        Rotary::new(&rope).frequencies
    }

    #[test]
    fn llama3_scaling_leaves_short_waves_and_stretches_long_ones() {
        let plain = of(RopeScaling::None);
        assert_eq!(plain[0], 1.0);
        assert!((f64::from(plain[31]) / 500_000_f64.powf(-62.0 / 64.0) - 1.0).abs() < 1e-6);
        let scaled = of(RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[31] / 32.0, scaled[31]);
        let ratios = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        assert!(ratios.filter(|ratio| (1.001..31.9).contains(ratio)).count() > 0, "some wave lies between");
        assert!(scaled.is_sorted_by(|a, b| a > b));
        assert_eq!(of(RopeScaling::Linear { factor: 2.0 })[5], plain[5] / 2.0);
    }

    #[test]
    fn what_is_served_decides_between_short_and_long() {
        let at = |scaling: RopeScaling, context_len| {
            Rotary::new(&Rope { theta: 10_000.0, rotary_dim: 8, scaling, context_len }).frequencies
        };
        let dynamic = || RopeScaling::Dynamic { factor: 4.0, original_max_position_embeddings: 64 };
        let plain = at(RopeScaling::None, 64);
        assert_eq!(at(dynamic(), 64), plain);
        // 64 · 2: theta grows (4 · 2 - 3)^(8 / 6) fold.
        let doubled = at(dynamic(), 128);
        assert!((doubled[3] / plain[3] - 5_f32.powf(-8.0 / 6.0 * 6.0 / 8.0)).abs() < 1e-6);
        let long_rope = || RopeScaling::LongRope {
            short_factor: vec![1.0; 4],
            long_factor: vec![1.0, 2.0, 4.0, 8.0],
            attention_factor: 1.2,
            original_max_position_embeddings: 64,
        };
        assert_eq!(at(long_rope(), 64), plain);
        assert_eq!(at(long_rope(), 65)[3], 1.0 / (8.0 * 10_000_f32.powf(0.75)));
    }

    #[test]
    fn elements_that_turn_together_come_to_lie_half_a_head_apart() {
        let rope = |rotary_dim| Rope { theta: 1e4, rotary_dim, scaling: RopeScaling::None, context_len: 64 };
        assert_eq!(order(&rope(8), 8, 3), None);
        let of_one = [0, 1, 4, 5, 6, 7, 2, 3, 8, 9, 10, 11];
        assert_eq!(order(&rope(4), 12, 1).unwrap(), of_one);
        assert_eq!(order(&rope(4), 12, 2).unwrap()[12..], of_one.map(|element| 12 + element));
    }
}
