use crate::parallel;
use crate::simd::{self, Kernel, LANES, Simd};

/// y = x / sqrt(mean(x²) + epsilon) · weight for each row: x, y `[rows, width]`, weight `[width]` (RMSNorm,
/// arXiv 1910.07467).
///
/// # Panics
/// The shapes disagree.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y disagree");
    let width = weight.len();
    parallel::for_each_chunk(y, width, 4 * width, |first_row, y| {
        y.copy_from_slice(&x[first_row * width..][..y.len()]);
        simd::run(RmsNorm { weight, epsilon, x: y });
    });
}

/// [`rms_norm`] where x and y are the same memory; x is small (the heads of one token).
///
/// # Panics
/// `x` is not made of whole rows.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
    assert!(x.len().is_multiple_of(weight.len()), "x and weight disagree");
    simd::run(RmsNorm { weight, epsilon, x });
}

/// y = (x − mean(x)) / sqrt(var(x) + epsilon) · weight + bias for each row: x, y `[rows, width]`, weight and bias
/// `[width]` (arXiv 1607.06450).
///
/// # Panics
/// The shapes disagree.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, y: &mut [f32]) {
    assert!(x.len() == y.len() && weight.len() == bias.len(), "x and y, or weight and bias, disagree");
    let width = weight.len();
    parallel::for_each_chunk(y, width, 4 * width, |first_row, y| {
        simd::run(LayerNorm { x: &x[first_row * width..][..y.len()], weight, bias, epsilon, y });
    });
}

struct RmsNorm<'a> {
    weight: &'a [f32],
    epsilon: f32,
    x: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for row in self.x.chunks_exact_mut(width) {
            let mean_square = sum_of_squares(simd, row, 0.0) / width as f32;
            let scale = simd.splat(1.0 / (mean_square + self.epsilon).sqrt());
            for (x, weight) in row.chunks_mut(LANES).zip(self.weight.chunks(LANES)) {
                let scaled = simd.mul(simd.load_partial(x), scale);
                simd.store_partial(x, simd.mul(scaled, simd.load_partial(weight)));
            }
        }
    }
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
    y: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let mut sum = simd.splat(0.0);
            for x in x.chunks(LANES) {
                sum = simd.add(sum, simd.load_partial(x));
            }
            let mean = simd.sum(sum) / width as f32;
            let variance = sum_of_squares(simd, x, mean) / width as f32;
            let (mean, scale) = (simd.splat(mean), simd.splat(1.0 / (variance + self.epsilon).sqrt()));
            let parameters = self.weight.chunks(LANES).zip(self.bias.chunks(LANES));
            for ((x, y), (weight, bias)) in x.chunks(LANES).zip(y.chunks_mut(LANES)).zip(parameters) {
                let normed = simd.mul(simd.sub(simd.load_partial(x), mean), scale);
                let (weight, bias) = (simd.load_partial(weight), simd.load_partial(bias));
                simd.store_partial(y, simd.mul_add(normed, weight, bias));
            }
        }
    }
}

/// Σ (x − centre)².
#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, x: &[f32], centre: f32) -> f32 {
    let splat = simd.splat(centre);
    let mut sum = simd.splat(0.0);
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        let x = simd.sub(simd.load(x), splat);
        sum = simd.mul_add(x, x, sum);
    }
    let mut total = simd.sum(sum);
    for x in rest {
        total += (x - centre) * (x - centre);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, numbers};

    fn rms_reference(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f64> {
        let rows = x.chunks(weight.len()).map(|row| {
            let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
            row.iter().zip(weight).map(move |(&x, &weight)| f64::from(x) * scale * f64::from(weight))
        });
        rows.flatten().collect()
    }

    fn layer_reference(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) -> Vec<f64> {
        let rows = x.chunks(weight.len()).map(|row| {
            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
            row.iter().zip(weight.iter().zip(bias)).map(move |(&x, (&weight, &bias))| {
                (f64::from(x) - mean) * scale * f64::from(weight) + f64::from(bias)
            })
        });
        rows.flatten().collect()
    }

    #[test]
    fn norms_agree_with_the_references() {
        for (num_rows, width) in [(1, 1), (3, 15), (2, 16), (5, 33), (4, 256), (1, 4096), (70, 768)] {
            let x = numbers(num_rows * width, 1);
            let (weight, bias) = (numbers(width, 2), numbers(width, 3));
            let mut y = vec![0.0; x.len()];
            rms_norm(&x, &weight, 1e-5, &mut y);
            assert_close(&y, &rms_reference(&x, &weight, 1e-5), 1e-5);
            let mut in_place = x.clone();
            rms_norm_in_place(&mut in_place, &weight, 1e-5);
            assert_eq!(y, in_place);
            // One number has no variance: its deviation is 0 by 0.003, which f32 keeps.
            layer_norm(&x, &weight, &bias, 1e-5, &mut y);
            assert_close(&y, &layer_reference(&x, &weight, &bias, 1e-5), 2e-5);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (num_rows, width) = (300, 768);
        let (x, weight) = (numbers(num_rows * width, 4), numbers(width, 5));
        let (mut together, mut alone) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        rms_norm(&x, &weight, 1e-6, &mut together);
        for (x, y) in x.chunks(width).zip(alone.chunks_mut(width)) {
            rms_norm(x, &weight, 1e-6, y);
        }
        assert_eq!(together, alone);
        layer_norm(&x, &weight, &weight, 1e-6, &mut together);
        for (x, y) in x.chunks(width).zip(alone.chunks_mut(width)) {
            layer_norm(x, &weight, &weight, 1e-6, y);
        }
        assert_eq!(together, alone);
    }
}
