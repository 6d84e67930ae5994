/// Writes the cosines, then the sines, of one position's rotation: `angles` `[2, pairs]`, `frequencies` `[pairs]` in
/// radians a position (rotary position embedding, arXiv 2104.09864).
///
/// # Panics
/// The shapes disagree.
pub fn rope_angles(frequencies: &[f32], position: usize, angles: &mut [f32]) {
    assert_eq!(angles.len(), 2 * frequencies.len(), "angles and frequencies disagree");
    let (cosines, sines) = angles.split_at_mut(frequencies.len());
    for ((frequency, cosine), sine) in frequencies.iter().zip(cosines).zip(sines) {
        // f32 all the way, as the models were trained.
        (*sine, *cosine) = (position as f32 * frequency).sin_cos();
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
            rope_angles(&frequencies, position, &mut angles);
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
}
