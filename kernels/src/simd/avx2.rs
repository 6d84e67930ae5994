#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m128i, __m256, _mm_loadu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps_pd,
    _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_div_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_permute2f128_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps,
    _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
};

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

/// An expression of AVX2, FMA and F16C instructions on registers and on references to whole arrays.
macro_rules! intrinsics {
    ($expression:expr) => {
        // SAFETY: the CPU has AVX2, FMA and F16C, because `self` exists and only `detect` makes one. Pointers come
        // from references to arrays of exactly the bytes that are read or written; none asks for alignment.
        unsafe {
            $expression
        }
    };
}

/// AVX2 with FMA and F16C: two registers a vector.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        let has_all = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }

    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) {
            kernel.run(simd);
        }
        intrinsics!(compiled(self, kernel));
    }
}

/// Both halves of an array of sixteen.
#[inline(always)]
fn halves<T>(from: &[T; LANES]) -> [&[T; 8]; 2] {
    let (chunks, _) = from.as_chunks::<8>();
    [&chunks[0], &chunks[1]]
}

/// The same operation on both halves.
macro_rules! both {
    ($operation:ident($($operand:ident),+)) => {
        intrinsics!([$operation($($operand[0]),+), $operation($($operand[1]),+)])
    };
}

impl Simd for Avx2 {
    type F32 = [__m256; 2];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F32 {
        intrinsics!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        let [low, high] = halves(from);
        intrinsics!([_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())])
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32 {
        let [low, high] = halves(from);
        intrinsics!([
            _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast::<__m128i>())),
            _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast::<__m128i>())),
        ])
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32 {
        let [low, high] = halves(from);
        intrinsics!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(low.as_ptr().cast::<__m128i>()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(high.as_ptr().cast::<__m128i>()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], value: Self::F32) {
        let (chunks, _) = to.as_chunks_mut::<8>();
        for (chunk, half) in chunks.iter_mut().zip(value) {
            intrinsics!(_mm256_storeu_ps(chunk.as_mut_ptr(), half));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        both!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn power_of_two(self, value: Self::F32) -> Self::F32 {
        intrinsics!({
            let one = _mm256_set1_epi32(0x3f80_0000);
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(value[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(value[1]));
            [
                _mm256_castsi256_ps(_mm256_add_epi32(low, one)),
                _mm256_castsi256_ps(_mm256_add_epi32(high, one)),
            ]
        })
    }

    #[inline(always)]
    fn sum(self, value: Self::F32) -> f32 {
        let mut lanes = [0.0_f32; LANES];
        self.store(&mut lanes, value);
        super::Portable.sum(lanes)
    }

    #[inline(always)]
    fn sums(self, values: [Self::F32; LANES]) -> Self::F32 {
        // Each vector's halves are added first; then a tree of additions narrows each one while it interleaves it with
        // its neighbour.
        intrinsics!({
            let mut eights = [_mm256_set1_ps(0.0); 2];
            for (eight, v) in eights.iter_mut().zip(values.as_chunks::<8>().0) {
                let mut quads = [_mm256_set1_ps(0.0); 2];
                for (quad, v) in quads.iter_mut().zip(v.as_chunks::<4>().0) {
                    let a = _mm256_add_ps(v[0][0], v[0][1]);
                    let b = _mm256_add_ps(v[1][0], v[1][1]);
                    let c = _mm256_add_ps(v[2][0], v[2][1]);
                    let d = _mm256_add_ps(v[3][0], v[3][1]);
                    let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                    let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
                    let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
                    *quad = _mm256_add_ps(low, _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
                }
                let [abcd, efgh] = quads;
                *eight = _mm256_add_ps(
                    _mm256_permute2f128_ps::<0x20>(abcd, efgh),
                    _mm256_permute2f128_ps::<0x31>(abcd, efgh),
                );
            }
            eights
        })
    }
}
