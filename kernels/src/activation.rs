use crate::parallel;
use crate::simd::{self, Kernel, LANES, Simd};

/// The function between a feed-forward block's two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x), also called swish.
    Silu,
    /// x · Φ(x), by the error function.
    Gelu,
    /// GELU approximated by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// An element's cost in multiply-adds: most of it is one exponential.
const WORK: usize = 32;

/// x = f(x), element by element: x `[rows, width]`.
pub fn activate(activation: Activation, x: &mut [f32]) {
    parallel::for_each_chunk(x, 1, WORK, |_, x| simd::run(Activate { activation, x }));
}

/// y = f(gate) · up for each row: a row of x `[rows, 2 width]` holds its gate, then its up; y
/// `[rows, width]`.
///
/// # Panics
/// The shapes disagree.
pub fn activate_gated(activation: Activation, x: &[f32], width: usize, y: &mut [f32]) {
    assert!(x.len() == 2 * y.len() && y.len().is_multiple_of(width), "x and y disagree");
    parallel::for_each_chunk(y, width, WORK * width, |first_row, y| {
        simd::run(ActivateGated { activation, x: &x[2 * first_row * width..][..2 * y.len()], width, y });
    });
}

/// x = x + y, element by element.
///
/// # Panics
/// The lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "x and y disagree");
    // A plain loop: it runs at the speed of memory in any vector width.
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

struct Activate<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for x in self.x.chunks_mut(LANES) {
            simd.store_partial(x, apply(simd, self.activation, simd.load_partial(x)));
        }
    }
}

struct ActivateGated<'a> {
    activation: Activation,
    x: &'a [f32],
    width: usize,
    y: &'a mut [f32],
}

impl Kernel for ActivateGated<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (x, y) in self.x.chunks_exact(2 * self.width).zip(self.y.chunks_exact_mut(self.width)) {
            let (gate, up) = x.split_at(self.width);
            for ((gate, up), y) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(y.chunks_mut(LANES)) {
                let gate = apply(simd, self.activation, simd.load_partial(gate));
                simd.store_partial(y, simd.mul(gate, simd.load_partial(up)));
            }
        }
    }
}

#[inline(always)]
fn apply<S: Simd>(simd: S, activation: Activation, x: S::F32) -> S::F32 {
    let (half, one) = (simd.splat(0.5), simd.splat(1.0));
    match activation {
        Activation::Silu => simd.mul(x, simd::sigmoid(simd, x)),
        Activation::Gelu => {
            let error = simd::erf(simd, simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2)));
            simd.mul(simd.mul(half, x), simd.add(one, error))
        }
        Activation::GeluTanh => {
            // tanh(sqrt(2 / π) (x + 0.044715 x³))
            let cubic = simd.mul_add(simd.mul(x, x), simd.splat(0.044_715), one);
            let inner = simd.mul(simd.mul(x, cubic), simd.splat(0.797_884_6));
            simd.mul(simd.mul(half, x), simd.add(one, simd::tanh(simd, inner)))
        }
        Activation::Relu => simd.max(x, simd.splat(0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, numbers};

    fn reference(activation: Activation, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match activation {
            Activation::Silu => x * sigmoid(x),
            Activation::Gelu => x * normal_cdf(x),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Relu => x.max(0.0),
        }
    }

    /// Φ(x) by its series.
    fn normal_cdf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..300 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn activations_agree_with_the_references() {
        use Activation::{Gelu, GeluTanh, Relu, Silu};
        for activation in [Silu, Gelu, GeluTanh, Relu] {
            for (num_rows, width) in [(1, 1), (1, 15), (3, 17), (2, 704), (300, 33)] {
                let x: Vec<f32> = numbers(2 * num_rows * width, 6).iter().map(|x| 6.0 * x).collect();
                let mut y = x.clone();
                activate(activation, &mut y);
                let wanted: Vec<f64> = x.iter().map(|&x| reference(activation, f64::from(x))).collect();
                assert_close(&y, &wanted, 2e-6);

                let mut gated = vec![0.0; num_rows * width];
                activate_gated(activation, &x, width, &mut gated);
                let rows = wanted.chunks(2 * width).zip(x.chunks(2 * width));
                let wanted: Vec<f64> = rows
                    .flat_map(|(f, x)| f[..width].iter().zip(&x[width..]).map(|(f, &up)| f * f64::from(up)))
                    .collect();
                assert_close(&gated, &wanted, 1e-5);
            }
        }
    }

    #[test]
    fn addition_is_element_by_element() {
        let mut x = vec![1.0, 2.0, 3.0];
        add_assign(&mut x, &[0.5, 0.25, -3.0]);
        assert_eq!(x, [1.5, 2.25, 0.0]);
    }
}
