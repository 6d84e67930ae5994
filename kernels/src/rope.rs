/// Writes the cosines, then the sines, of one position's rotation: `angles` `[2, pairs]`, `frequencies` of the first pairs
/// in radians a position (rotary position embedding, arXiv 2104.09864), multiplied by `scale`. The pairs behind those are
/// not turned.
///
/// # Panics
/// There are more frequencies than pairs.
pub fn rope_angles(frequencies: &[f32], scale: f32, position: usize, angles: &mut [f32]) {
    let num_pairs = angles.len() / 2;
    assert!(frequencies.len() <= num_pairs, "angles and frequencies disagree");
    let (cosines, sines) = angles.split_at_mut(num_pairs);
    cosines[frequencies.len()..].fill(1.0);
    sines[frequencies.len()..].fill(0.0);
    for ((frequency, cosine), sine) in frequencies.iter().zip(cosines).zip(sines) {
        // f32 all the way, as the models were trained.
        let (unscaled_sine, unscaled_cosine) = (position as f32 * frequency).sin_cos();
        (*sine, *cosine) = (scale * unscaled_sine, scale * unscaled_cosine);
    }
}

/// Turns heads `[heads, dim]` by one position's `angles`, in the pairing of Hugging Face's models: element i of a head's
/// first half turns with element i of its second half.
///
/// # Panics
/// The shapes disagree.
pub fn rotate(angles: &[f32], heads: &mut [f32]) {
    let num_pairs = angles.len() / 2;
    assert!(heads.len().is_multiple_of(2 * num_pairs), "angles and heads disagree");
    let (cosines, sines) = angles.split_at(num_pairs);
    for head in heads.chunks_exact_mut(2 * num_pairs) {
        let (first, second) = head.split_at_mut(num_pairs);
        for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, numbers};

    #[test]
    fn rotation_is_multiplication_by_a_complex_number() {
        let head_dim = 10;
        let frequencies: Vec<f32> = (0..5).map(|pair| 10_000_f32.powf(pair as f32 / -5.0)).collect();
        let x = numbers(3 * head_dim, 7);
        for position in [0, 1, 77, 1000] {
            let mut angles = vec![0.0; head_dim];
            rope_angles(&frequencies, 1.0, position, &mut angles);
            let mut turned = x.clone();
            rotate(&angles, &mut turned);
            let mut wanted = vec![0.0_f64; x.len()];
            for (x, wanted) in x.chunks(head_dim).zip(wanted.chunks_mut(head_dim)) {
                for pair in 0..5 {
                    let (sine, cosine) = (position as f64 * f64::from(frequencies[pair])).sin_cos();
                    let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 5]));
                    wanted[pair] = a * cosine - b * sine;
                    wanted[pair + 5] = b * cosine + a * sine;
                }
            }
            // A thousand radians in f32 are exact to 3e-5.
            assert_close(&turned, &wanted, 1e-4);
        }
    }

    #[test]
    fn pairs_without_a_frequency_stay_and_only_the_others_are_scaled() {
        let x = numbers(8, 7);
        let mut angles = vec![0.0; 8];
        rope_angles(&[0.5, 0.25], 1.5, 3, &mut angles);
        let mut turned = x.clone();
        rotate(&angles, &mut turned);
        for pair in 2..4 {
            assert_eq!((turned[pair], turned[pair + 4]), (x[pair], x[pair + 4]));
        }
        for pair in 0..2 {
            let length = |x: &[f32]| x[pair].hypot(x[pair + 4]);
            assert!((length(&turned) - 1.5 * length(&x)).abs() < 1e-5);
        }
    }
}
