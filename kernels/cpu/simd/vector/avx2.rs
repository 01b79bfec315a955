//! Eight lanes with AVX2, FMA and F16C.

#![allow(clippy::needless_range_loop)] // indices of registers

use std::arch::x86_64::*;

use super::{Doubles, Element, Simd, Vector, bf16, f16, methods};
use crate::cpu::exp;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(super) __m256);

impl Simd for Avx2 {
    type Scalar = f32;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 3;

    methods! {
        fn splat(x: f32) -> Self { Avx2(_mm256_set1_ps(x)) }
        fn load(from: *const f32) -> Self { Avx2(_mm256_loadu_ps(from)) }
        fn load_first(from: *const f32, count: usize) -> Self {
            Avx2(_mm256_maskload_ps(from, mask(count)))
        }
        fn store(self, to: *mut f32) -> () { _mm256_storeu_ps(to, self.0) }
        fn store_first(self, to: *mut f32, count: usize) -> () {
            _mm256_maskstore_ps(to, mask(count), self.0)
        }
        fn add(self, other: Self) -> Self { Avx2(_mm256_add_ps(self.0, other.0)) }
        fn sub(self, other: Self) -> Self { Avx2(_mm256_sub_ps(self.0, other.0)) }
        fn mul(self, other: Self) -> Self { Avx2(_mm256_mul_ps(self.0, other.0)) }
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Avx2(_mm256_fmadd_ps(self.0, factor.0, term.0))
        }
        fn max(self, other: Self) -> Self { Avx2(_mm256_max_ps(self.0, other.0)) }
        fn min(self, other: Self) -> Self { Avx2(_mm256_min_ps(self.0, other.0)) }
        fn round(self) -> Self {
            Avx2(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
        }
        fn scale(self, n: Self) -> Self {
            // In two steps, so that each factor is a normal number.
            let n = _mm256_cvtps_epi32(n.0);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let rest = _mm256_sub_epi32(n, half);
            let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias));
            let once = _mm256_mul_ps(self.0, _mm256_castsi256_ps(first));
            Avx2(_mm256_mul_ps(once, _mm256_castsi256_ps(second)))
        }
        fn reduce_add(self) -> f32 {
            let high = _mm256_extractf128_ps::<1>(self.0);
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn reduce_add4(of: [Self; 4]) -> [f32; 4] {
            let [a, b, c, d] = [of[0].0, of[1].0, of[2].0, of[3].0];
            let ab = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x31>(a, b),
            );
            let cd = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(c, d),
                _mm256_permute2f128_ps::<0x31>(c, d),
            );
            // [a a c c | b b d d]
            let pairs = _mm256_add_ps(
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xEE>(ab, cd),
            );
            // [a c a c | b d b d]
            let sums = _mm256_add_ps(
                _mm256_shuffle_ps::<0x88>(pairs, pairs),
                _mm256_shuffle_ps::<0xDD>(pairs, pairs),
            );
            let (ac, bd) = (_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            std::mem::transmute::<__m128, [f32; 4]>(_mm_unpacklo_ps(ac, bd))
        }
        fn prefetch(address: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        fn reduce_max(self) -> f32 {
            let high = _mm256_extractf128_ps::<1>(self.0);
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), high);
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn widen<T: Element>(from: *const T) -> Self { T::load(from) }
        fn widen_first<T: Element>(from: *const T, count: usize) -> Self {
            T::load_first(from, count)
        }
        fn exp(self) -> Self { exp::exp(self) }
    }
}

impl Vector for Avx2 {
    type Doubles = Avx2Doubles;

    methods! {
        fn load_bf16(from: *const bf16) -> Self {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        }
        fn load_bf16_first(from: *const bf16, count: usize) -> Self {
            let mut lanes = [bf16::ZERO; 8];
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            Self::load_bf16(lanes.as_ptr())
        }
        fn load_f16(from: *const f16) -> Self {
            Avx2(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())))
        }
        fn load_f16_first(from: *const f16, count: usize) -> Self {
            let mut lanes = [f16::ZERO; 8];
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            Self::load_f16(lanes.as_ptr())
        }
        fn transpose<T: Element>(
            from: *const T, stride: usize, to: *mut f32, to_stride: usize
        ) -> () {
            let mut r = [_mm256_setzero_ps(); 8];
            for i in 0..8 {
                r[i] = T::load::<Self>(from.add(i * stride)).0;
            }
            let mut t = r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in [0, 4] {
                r[i] = _mm256_shuffle_ps::<0x44>(t[i], t[i + 2]);
                r[i + 1] = _mm256_shuffle_ps::<0xEE>(t[i], t[i + 2]);
                r[i + 2] = _mm256_shuffle_ps::<0x44>(t[i + 1], t[i + 3]);
                r[i + 3] = _mm256_shuffle_ps::<0xEE>(t[i + 1], t[i + 3]);
            }
            for i in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]);
                let high = _mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]);
                _mm256_storeu_ps(to.add(i * to_stride), low);
                _mm256_storeu_ps(to.add((i + 4) * to_stride), high);
            }
        }
        fn div(self, other: Self) -> Self { Avx2(_mm256_div_ps(self.0, other.0)) }
        fn sqrt(self) -> Self { Avx2(_mm256_sqrt_ps(self.0)) }
    }
}

/// All bits of the first `count` lanes set.
///
/// # Safety
/// `count` is at most 8, and the CPU has AVX2.
#[inline(always)]
unsafe fn mask(count: usize) -> __m256i {
    const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: 8 values from 8 - count on lie inside MASKS.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast()) }
}

/// Eight f64 lanes in two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Doubles([__m256d; 2]);

impl Simd for Avx2Doubles {
    type Scalar = f64;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 1;

    methods! {
        fn splat(x: f64) -> Self { Avx2Doubles([_mm256_set1_pd(x); 2]) }
        fn load(from: *const f64) -> Self {
            Avx2Doubles([_mm256_loadu_pd(from), _mm256_loadu_pd(from.add(4))])
        }
        fn load_first(from: *const f64, count: usize) -> Self {
            let mut lanes = [0.0; 8];
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            Self::load(lanes.as_ptr())
        }
        fn widen<T: Element>(from: *const T) -> Self { T::load::<Avx2>(from).doubles() }
        fn widen_first<T: Element>(from: *const T, count: usize) -> Self {
            T::load_first::<Avx2>(from, count).doubles()
        }
        fn store(self, to: *mut f64) -> () {
            _mm256_storeu_pd(to, self.0[0]);
            _mm256_storeu_pd(to.add(4), self.0[1])
        }
        fn store_first(self, to: *mut f64, count: usize) -> () {
            let mut lanes = [0.0; 8];
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count)
        }
        fn add(self, other: Self) -> Self {
            Avx2Doubles([_mm256_add_pd(self.0[0], other.0[0]), _mm256_add_pd(self.0[1], other.0[1])])
        }
        fn sub(self, other: Self) -> Self {
            Avx2Doubles([_mm256_sub_pd(self.0[0], other.0[0]), _mm256_sub_pd(self.0[1], other.0[1])])
        }
        fn mul(self, other: Self) -> Self {
            Avx2Doubles([_mm256_mul_pd(self.0[0], other.0[0]), _mm256_mul_pd(self.0[1], other.0[1])])
        }
        fn mul_add(self, factor: Self, term: Self) -> Self { self.mul(factor).add(term) }
        fn max(self, other: Self) -> Self {
            Avx2Doubles([_mm256_max_pd(self.0[0], other.0[0]), _mm256_max_pd(self.0[1], other.0[1])])
        }
        fn min(self, other: Self) -> Self {
            Avx2Doubles([_mm256_min_pd(self.0[0], other.0[0]), _mm256_min_pd(self.0[1], other.0[1])])
        }
        fn round(self) -> Self {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            let [low, high] = self.0;
            Avx2Doubles([_mm256_round_pd::<NEAREST>(low), _mm256_round_pd::<NEAREST>(high)])
        }
        fn scale(self, n: Self) -> Self {
            Avx2Doubles([scale_four(self.0[0], n.0[0]), scale_four(self.0[1], n.0[1])])
        }
        fn reduce_add(self) -> f64 {
            let four = _mm256_add_pd(self.0[0], self.0[1]);
            let high = _mm256_extractf128_pd::<1>(four);
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), high);
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
        fn reduce_add4(of: [Self; 4]) -> [f64; 4] {
            [of[0].reduce_add(), of[1].reduce_add(), of[2].reduce_add(), of[3].reduce_add()]
        }
        fn reduce_max(self) -> f64 {
            let four = _mm256_max_pd(self.0[0], self.0[1]);
            let high = _mm256_extractf128_pd::<1>(four);
            let two = _mm_max_pd(_mm256_castpd256_pd128(four), high);
            _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)))
        }
        fn prefetch(address: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        fn exp(self) -> Self { exp::exp_f64(self) }
    }
}

impl Doubles for Avx2Doubles {
    methods! {
        fn add_exact_product(self, factor: Self, term: Self) -> Self {
            let ([a, b], [c, d], [e, f]) = (self.0, factor.0, term.0);
            Avx2Doubles([_mm256_fmadd_pd(a, c, e), _mm256_fmadd_pd(b, d, f)])
        }
    }
}

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn doubles(self) -> Avx2Doubles {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            Avx2Doubles([_mm256_cvtps_pd(low), _mm256_cvtps_pd(high)])
        }
    }
}

/// [`Simd::scale`] of one register, in two steps, so that each factor is a normal number.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn scale_four(x: __m256d, n: __m256d) -> __m256d {
    // SAFETY: the caller's promise.
    unsafe {
        let n = _mm256_cvtpd_epi32(n);
        let half = _mm_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi64x(1023);
        let first = _mm256_add_epi64(_mm256_cvtepi32_epi64(half), bias);
        let second = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm_sub_epi32(n, half)), bias);
        let once = _mm256_mul_pd(x, _mm256_castsi256_pd(_mm256_slli_epi64::<52>(first)));
        _mm256_mul_pd(once, _mm256_castsi256_pd(_mm256_slli_epi64::<52>(second)))
    }
}
