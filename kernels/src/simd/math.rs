//! Elementary functions on vectors.

use super::Simd;

/// e^x, within 2 units in the last place on [-87, 88]. Beyond, the result stays finite: about 1e-38 and 2e38.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    // 1.5 * 2^23: adding it rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the high one has few bits, so that n * HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // The Taylor series of e^r on |r| <= ln(2) / 2, from r^6 down to r^2: the rest is under half a unit.
    const SERIES: [f32; 5] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];

    let x = simd.min(simd.max(x, simd.splat(-87.3)), simd.splat(88.0));
    let rounded = simd.mul_add(x, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.sub(rounded, simd.splat(ROUND));
    let r = simd.mul_add(n, simd.splat(-LN2_HIGH), x);
    let r = simd.mul_add(n, simd.splat(-LN2_LOW), r);
    let mut sum = simd.splat(1.0 / 5040.0);
    for coefficient in SERIES {
        sum = simd.mul_add(sum, r, simd.splat(coefficient));
    }
    let tail = simd.mul_add(simd.mul(r, r), sum, r);
    let scale = simd.power_of_two(rounded);
    simd.mul_add(tail, scale, scale)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let one = simd.splat(1.0);
    let minus_x = simd.sub(simd.splat(0.0), x);
    simd.div(one, simd.add(one, exp(simd, minus_x)))
}

/// The hyperbolic tangent, absolute error under 3e-7.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let two = simd.splat(2.0);
    simd.sub(simd.mul(two, sigmoid(simd, simd.mul(two, x))), simd.splat(1.0))
}

/// The error function, absolute error under 5e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    const P: f32 = 0.327_591_1;
    const A: [f32; 4] = [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6];
    let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
    // It is 1 in f32 from 4 on; infinities must not reach the division below.
    let x = simd.min(simd.max(x, simd.splat(-8.0)), simd.splat(8.0));
    let size = simd.max(x, simd.sub(zero, x));
    let t = simd.div(one, simd.mul_add(simd.splat(P), size, one));
    let mut sum = simd.splat(1.061_405_4);
    for coefficient in A {
        sum = simd.mul_add(sum, t, simd.splat(coefficient));
    }
    let gauss = exp(simd, simd.sub(zero, simd.mul(size, size)));
    let positive = simd.sub(one, simd.mul(simd.mul(sum, t), gauss));
    // The sign of x, without a comparison: x / |x|, and 0 at 0.
    let sign = simd.div(x, simd.max(size, simd.splat(f32::MIN_POSITIVE)));
    simd.mul(positive, sign)
}

#[cfg(test)]
mod tests {
    use super::super::{InstructionSet, Kernel, LANES};
    use super::*;

    struct Functions<'a> {
        x: [f32; LANES],
        check: &'a dyn Fn(&[[f32; LANES]; 3]),
    }

    impl Kernel for Functions<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let x = simd.load(&self.x);
            let mut results = [[0.0; LANES]; 3];
            simd.store(&mut results[0], exp(simd, x));
            simd.store(&mut results[1], tanh(simd, x));
            simd.store(&mut results[2], erf(simd, x));
            (self.check)(&results);
        }
    }

    /// The error function in f64 by its series; for |x| under 6.
    fn erf_reference(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn the_functions_agree_with_the_references() {
        for step in 0..2000 {
            let x: [f32; LANES] = std::array::from_fn(|lane| {
                let at = (step * LANES + lane) as f32 / (2000.0 * LANES as f32);
                if step % 2 == 0 { -87.0 + at * 175.0 } else { -4.0 + at * 8.0 }
            });
            InstructionSet::available().for_each(|set| {
                set.run(Functions {
                    x,
                    check: &|results| {
                        for (lane, &x) in x.iter().enumerate() {
                            let (got, wanted) = (f64::from(results[0][lane]), f64::from(x).exp());
                            assert!((got - wanted).abs() < 3e-7 * wanted, "exp({x}): {got} for {wanted}");
                            let error = (f64::from(results[1][lane]) - f64::from(x).tanh()).abs();
                            assert!(error < 3e-7, "tanh({x})");
                            if x.abs() < 4.0 {
                                let error = (f64::from(results[2][lane]) - erf_reference(f64::from(x))).abs();
                                assert!(error < 5e-7, "erf({x})");
                            }
                        }
                    },
                });
            });
        }
    }

    #[test]
    fn outside_their_range_they_stay_finite() {
        let mut x = [0.0; LANES];
        x[..6].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 200.0, -200.0]);
        InstructionSet::available().for_each(|set| {
            set.run(Functions {
                x,
                check: &|results| {
                    assert!(results.iter().flatten().all(|value| value.is_finite()), "{results:?}");
                    assert!(results[0][1] < 2e-38 && results[1][0] == 1.0 && results[2][2] == 1.0);
                    assert_eq!((results[0][6], results[1][6], results[2][6]), (1.0, 0.0, 0.0));
                },
            });
        });
    }
}
