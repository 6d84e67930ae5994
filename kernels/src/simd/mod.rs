//! Vectors of [`LANES`] numbers on three instruction sets, chosen once at run time.
//!
//! Kernels are written once, generic over [`Simd`], and handed to [`run`], which compiles them once for each
//! instruction set. The vector is 16 lanes wide everywhere (two registers on AVX2, an array in the portable version),
//! so that tiles and tails are the same code. A value of a `Simd` type is the proof that the CPU has the instructions:
//! only detection makes one, and that is what makes the methods safe.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod portable;

use half::{bf16, f16};

pub(crate) use math::{erf, exp, sigmoid, tanh};
pub(crate) use portable::Portable;

/// Numbers in a vector.
pub(crate) const LANES: usize = 16;

/// The operations kernels are made of.
pub(crate) trait Simd: Copy {
    /// A vector of [`LANES`] f32.
    type F32: Copy;

    /// Whether there are registers for 24 accumulators and their operands.
    const MANY_REGISTERS: bool;

    fn splat(self, value: f32) -> Self::F32;
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32;
    fn store(self, to: &mut [f32; LANES], value: Self::F32);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    /// 2^n, where the low bits of `value`'s representation hold the integer n in [-126, 127].
    fn power_of_two(self, value: Self::F32) -> Self::F32;

    /// The sum of the lanes, in one fixed order.
    fn sum(self, value: Self::F32) -> f32;

    /// Lane i is the sum of the lanes of `values[i]`, in one fixed order.
    fn sums(self, values: [Self::F32; LANES]) -> Self::F32;

    /// The first `from.len()` (at most [`LANES`]) lanes from memory, zero in the others.
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> Self::F32 {
        if let Some(whole) = from.as_array() {
            return self.load(whole);
        }
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// The first `to.len()` (at most [`LANES`]) lanes to memory.
    #[inline(always)]
    fn store_partial(self, to: &mut [f32], value: Self::F32) {
        if let Some(whole) = to.as_mut_array() {
            return self.store(whole, value);
        }
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, value);
        to.copy_from_slice(&lanes[..to.len()]);
    }
}

/// A computation that is compiled for each instruction set. `run` and everything it calls must be `#[inline(always)]`:
/// code that is not inlined is not compiled for the instruction set.
pub(crate) trait Kernel {
    fn run<S: Simd>(self, simd: S);
}

/// An instruction set that the CPU has.
#[derive(Clone, Copy)]
pub(crate) enum InstructionSet {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Portable(Portable),
}

impl InstructionSet {
    /// Those that the CPU has, the widest first.
    #[inline]
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        [
            #[cfg(target_arch = "x86_64")]
            avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            avx2::Avx2::detect().map(Self::Avx2),
            Some(Self::Portable(Portable)),
        ]
        .into_iter()
        .flatten()
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.run(kernel),
            Self::Portable(simd) => kernel.run(simd),
        }
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Portable(_) => "portable",
        }
    }
}

/// Runs a kernel on the widest instruction set.
#[inline]
pub(crate) fn run<K: Kernel>(kernel: K) {
    widest().run(kernel);
}

/// The name of the instruction set that the kernels run on.
#[must_use]
pub fn instruction_set() -> &'static str {
    widest().name()
}

#[inline]
fn widest() -> InstructionSet {
    InstructionSet::available().next().unwrap_or(InstructionSet::Portable(Portable))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe<'a> {
        rows: [[f32; LANES]; LANES],
        check: &'a dyn Fn([f32; LANES], [f32; LANES], f32),
    }

    impl Kernel for Probe<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let mut vectors = [simd.splat(0.0); LANES];
            for (vector, row) in vectors.iter_mut().zip(&self.rows) {
                *vector = simd.load(row);
            }
            let (mut sums, mut difference) = ([0.0; LANES], [1.0; LANES]);
            simd.store(&mut sums, simd.sums(vectors));
            let halves = self.rows[0].map(f16::from_f32);
            let brains = self.rows[0].map(bf16::from_f32);
            simd.store(&mut difference, simd.sub(simd.load_f16(&halves), simd.load_bf16(&brains)));
            (self.check)(sums, difference, simd.sum(vectors[3]));
        }
    }

    #[test]
    fn every_instruction_set_sums_and_converts() {
        // Small integers: every order of summation is exact, and both half formats hold them.
        let rows: [[f32; LANES]; LANES] = std::array::from_fn(|row| {
            std::array::from_fn(|lane| (row * 31 % 64 + lane * 7 % 13) as f32 - 20.0)
        });
        for set in InstructionSet::available() {
            set.run(Probe {
                rows,
                check: &|sums, difference, sum| {
                    assert_eq!(sums, rows.map(|row| row.iter().sum::<f32>()), "{}", set.name());
                    assert_eq!(sum, rows[3].iter().sum::<f32>());
                    assert_eq!(difference, [0.0; LANES]);
                },
            });
        }
    }

    struct Partial;

    impl Kernel for Partial {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for len in 0..=LANES {
                let mut loaded = [1.0; LANES];
                let mut stored = [1.0; LANES + 1];
                let value = simd.load_partial(&[2.0; LANES][..len]);
                simd.store(&mut loaded, value);
                simd.store_partial(&mut stored[..len], value);
                for lane in 0..LANES {
                    assert_eq!(loaded[lane], if lane < len { 2.0 } else { 0.0 });
                    assert_eq!(stored[lane], if lane < len { 2.0 } else { 1.0 });
                }
                assert_eq!(stored[LANES], 1.0);
            }
        }
    }

    #[test]
    fn partial_vectors_touch_their_lanes_only() {
        InstructionSet::available().for_each(|set| set.run(Partial));
    }
}
