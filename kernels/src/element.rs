use half::{bf16, f16};

use crate::simd::{LANES, Simd};

/// Weights in row-major order, in one of the precisions that checkpoints come in.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Brain float: the upper half of an f32.
    Bf16(&'a [bf16]),
}

impl Elements<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::F16(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A precision that weights are kept in.
pub(crate) trait Element: Copy + Default + Send + Sync {
    /// A vector of them, widened.
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32;

    /// The same number in f32; every element has one.
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32 {
        simd.load(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32 {
        simd.load_f16(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32 {
        simd.load_bf16(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
