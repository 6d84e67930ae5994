use fused_checkpoint::{Rope, RopeScaling};

/// Radians a position for each pair of a head's elements: theta^(-2i / dim), scaled.
#[expect(clippy::cast_possible_truncation, reason = "models are trained with these in f32")]
pub(super) fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let frequency = |pair: usize| {
        let exponent = (2 * pair) as f32 / head_dim as f32;
        let frequency = 1.0 / rope.theta.powf(f64::from(exponent)) as f32;
        match rope.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => {
                let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
                // How often the wave fits into the context of the first training.
                let num_waves = original as f32 / (2.0 * std::f32::consts::PI / frequency);
                if num_waves > high {
                    frequency
                } else if num_waves < low {
                    frequency / factor
                } else {
                    let smooth = (num_waves - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    };
    (0..head_dim / 2).map(frequency).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(scaling: RopeScaling) -> Vec<f32> {
        frequencies(&Rope { theta: 500_000.0, scaling }, 64)
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
}
