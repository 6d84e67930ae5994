use crate::simd::{self, Kernel, LANES, Simd};

/// What weight 1 is: 2⁴⁴, so that the sum of 2²⁰ − 1 of them fits a u64.
pub(super) const ONE: f32 = (1_u64 << 44) as f32;

/// exp((logit − largest) / temperature) of each logit, as whole numbers of 1 / [`ONE`]. NaN has weight 0.
pub(super) fn weights(logits: &[f32], largest: f32, temperature: f32) -> Vec<u64> {
    let mut weights = vec![0; logits.len()];
    simd::run(Weights { logits, largest, scale: 1.0 / temperature, weights: &mut weights });
    weights
}

struct Weights<'a> {
    logits: &'a [f32],
    largest: f32,
    scale: f32,
    weights: &'a mut [u64],
}

impl Kernel for Weights<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (largest, scale) = (simd.splat(self.largest), simd.splat(self.scale));
        for (logits, weights) in self.logits.chunks(LANES).zip(self.weights.chunks_mut(LANES)) {
            let x = simd.mul(simd.sub(simd.load_partial(logits), largest), scale);
            let mut lanes = [0.0; LANES];
            simd.store(&mut lanes, simd.mul(simd::exp(simd, x), simd.splat(ONE)));
            for (weight, lane) in weights.iter_mut().zip(lanes) {
                *weight = lane as u64;
            }
        }
    }
}
