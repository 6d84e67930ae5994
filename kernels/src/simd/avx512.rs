#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m256i, __m512, _mm256_loadu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_div_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

/// An expression of AVX-512F instructions on registers and on references to whole arrays.
macro_rules! intrinsics {
    ($expression:expr) => {
        // SAFETY: the CPU has AVX-512F, because `self` exists and only `detect` makes one. Pointers come from
        // references to arrays of exactly the bytes that the instruction reads or writes, none asks for alignment.
        unsafe {
            $expression
        }
    };
}

/// AVX-512F: one register a vector.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_x86_feature_detected!("avx512f").then_some(Self(()))
    }

    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f")]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) {
            kernel.run(simd);
        }
        intrinsics!(compiled(self, kernel));
    }
}

/// The lanes below `num_lanes`.
#[inline(always)]
fn first_lanes(num_lanes: usize) -> u16 {
    ((1_u32 << num_lanes.min(LANES)) - 1) as u16
}

impl Simd for Avx512 {
    type F32 = __m512;

    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        intrinsics!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        intrinsics!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        intrinsics!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast::<__m256i>())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        intrinsics!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast::<__m256i>()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], value: __m512) {
        intrinsics!(_mm512_storeu_ps(to.as_mut_ptr(), value));
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn power_of_two(self, value: __m512) -> __m512 {
        intrinsics!({
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(value));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f80_0000)))
        })
    }

    #[inline(always)]
    fn sum(self, value: __m512) -> f32 {
        intrinsics!(_mm512_reduce_add_ps(value))
    }

    #[inline(always)]
    fn sums(self, v: [__m512; LANES]) -> __m512 {
        // A tree of additions that narrows each vector while it interleaves it with its neighbour: 15 additions and 30
        // shuffles for 16 sums.
        intrinsics!({
            let mut quads = [_mm512_set1_ps(0.0); 4];
            for (quad, v) in quads.iter_mut().zip(v.as_chunks::<4>().0) {
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
                let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                *quad = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            }
            let [a, b, c, d] = quads;
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
        })
    }

    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> __m512 {
        // Lanes outside the mask are not read.
        intrinsics!(_mm512_maskz_loadu_ps(first_lanes(from.len()), from.as_ptr()))
    }

    #[inline(always)]
    fn store_partial(self, to: &mut [f32], value: __m512) {
        // Lanes outside the mask are not written.
        intrinsics!(_mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(to.len()), value));
    }
}
