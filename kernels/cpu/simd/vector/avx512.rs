//! Sixteen lanes with AVX-512 F, BW, DQ and VL; products of bf16 pairs with AVX-512 BF16.

use std::arch::x86_64::*;

use super::{Avx2, Doubles, Element, Simd, Vector, bf16, f16, methods};
use crate::cpu::dot::Dot;
use crate::cpu::exp;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Avx512 {
    /// The register itself, for instructions that only some kernels use.
    #[inline(always)]
    pub(crate) fn register(self) -> __m512 {
        self.0
    }
}

impl Simd for Avx512 {
    type Scalar = f32;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 6;

    methods! {
        fn splat(x: f32) -> Self { Avx512(_mm512_set1_ps(x)) }
        fn load(from: *const f32) -> Self { Avx512(_mm512_loadu_ps(from)) }
        fn load_first(from: *const f32, count: usize) -> Self {
            Avx512(_mm512_maskz_loadu_ps(mask(count), from))
        }
        fn store(self, to: *mut f32) -> () { _mm512_storeu_ps(to, self.0) }
        fn store_first(self, to: *mut f32, count: usize) -> () {
            _mm512_mask_storeu_ps(to, mask(count), self.0)
        }
        fn add(self, other: Self) -> Self { Avx512(_mm512_add_ps(self.0, other.0)) }
        fn sub(self, other: Self) -> Self { Avx512(_mm512_sub_ps(self.0, other.0)) }
        fn mul(self, other: Self) -> Self { Avx512(_mm512_mul_ps(self.0, other.0)) }
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Avx512(_mm512_fmadd_ps(self.0, factor.0, term.0))
        }
        fn max(self, other: Self) -> Self { Avx512(_mm512_max_ps(self.0, other.0)) }
        fn min(self, other: Self) -> Self { Avx512(_mm512_min_ps(self.0, other.0)) }
        fn round(self) -> Self {
            Avx512(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
        }
        fn scale(self, n: Self) -> Self { Avx512(_mm512_scalef_ps(self.0, n.0)) }
        fn reduce_add(self) -> f32 {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), high);
            let high = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn reduce_add4(of: [Self; 4]) -> [f32; 4] {
            let [a, b, c, d] = [of[0].0, of[1].0, of[2].0, of[3].0];
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>(a, b),
                _mm512_shuffle_f32x4::<0xEE>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>(c, d),
                _mm512_shuffle_f32x4::<0xEE>(c, d),
            );
            // Four lanes of each: [a | b | c | d]
            let four = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x88>(ab, cd),
                _mm512_shuffle_f32x4::<0xDD>(ab, cd),
            );
            let two = _mm512_add_ps(four, _mm512_shuffle_ps::<0x4E>(four, four));
            let one = _mm512_add_ps(two, _mm512_shuffle_ps::<0xB1>(two, two));
            let sums = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, one));
            std::mem::transmute::<__m128, [f32; 4]>(sums)
        }
        fn prefetch(address: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        fn reduce_max(self) -> f32 {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            let eight = _mm256_max_ps(_mm512_castps512_ps256(self.0), high);
            let high = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), high);
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

impl Vector for Avx512 {
    type Doubles = Avx512Doubles;

    methods! {
        fn load_bf16(from: *const bf16) -> Self {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
        fn load_bf16_first(from: *const bf16, count: usize) -> Self {
            let bits = _mm256_maskz_loadu_epi16(mask(count), from.cast());
            let bits = _mm512_cvtepu16_epi32(bits);
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
        fn load_f16(from: *const f16) -> Self {
            Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
        }
        fn load_f16_first(from: *const f16, count: usize) -> Self {
            Avx512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(count), from.cast())))
        }
        fn transpose<T: Element>(
            from: *const T, stride: usize, to: *mut f32, to_stride: usize
        ) -> () {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_castps_si512(T::load::<Self>(from.add(i * stride)).0);
            }
            for (i, column) in transposed(rows).into_iter().enumerate() {
                _mm512_storeu_ps(to.add(i * to_stride), _mm512_castsi512_ps(column));
            }
        }
        fn div(self, other: Self) -> Self { Avx512(_mm512_div_ps(self.0, other.0)) }
        fn sqrt(self) -> Self { Avx512(_mm512_sqrt_ps(self.0)) }
    }
}

/// A bit for each of the first `count` lanes, at most 16.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// Both operands bf16: `vdpbf16ps` adds the products of two neighboring pairs to each f32 lane.
/// It takes subnormal operands for zero and flushes subnormal sums.
pub(crate) struct Bf16Pairs;

impl Dot for Bf16Pairs {
    type X = bf16;
    type W = bf16;
    type XRegister = __m512bh;
    type WRegister = __m512bh;
    type Sum = Avx512;
    const STEP: usize = 32;

    methods! {
        fn load_x(from: *const bf16) -> __m512bh {
            std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast()))
        }
        fn load_x_first(from: *const bf16, count: usize) -> __m512bh {
            let bits = _mm512_maskz_loadu_epi16((1u32 << count) - 1, from.cast());
            std::mem::transmute::<__m512i, __m512bh>(bits)
        }
        fn load_w(from: *const bf16) -> __m512bh { Self::load_x(from) }
        fn load_w_first(from: *const bf16, count: usize) -> __m512bh {
            Self::load_x_first(from, count)
        }
        fn accumulate(sum: Avx512, x: __m512bh, w: __m512bh) -> Avx512 {
            Avx512(_mm512_dpbf16_ps(sum.0, x, w))
        }
    }
}

/// Eight f64 lanes, one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Doubles(__m512d);

impl Simd for Avx512Doubles {
    type Scalar = f64;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    methods! {
        fn splat(x: f64) -> Self { Avx512Doubles(_mm512_set1_pd(x)) }
        fn load(from: *const f64) -> Self { Avx512Doubles(_mm512_loadu_pd(from)) }
        fn load_first(from: *const f64, count: usize) -> Self {
            Avx512Doubles(_mm512_maskz_loadu_pd(mask(count) as __mmask8, from))
        }
        fn widen<T: Element>(from: *const T) -> Self {
            Avx512Doubles(_mm512_cvtps_pd(T::load::<Avx2>(from).0))
        }
        fn widen_first<T: Element>(from: *const T, count: usize) -> Self {
            Avx512Doubles(_mm512_cvtps_pd(T::load_first::<Avx2>(from, count).0))
        }
        fn store(self, to: *mut f64) -> () { _mm512_storeu_pd(to, self.0) }
        fn store_first(self, to: *mut f64, count: usize) -> () {
            _mm512_mask_storeu_pd(to, mask(count) as __mmask8, self.0)
        }
        fn add(self, other: Self) -> Self { Avx512Doubles(_mm512_add_pd(self.0, other.0)) }
        fn sub(self, other: Self) -> Self { Avx512Doubles(_mm512_sub_pd(self.0, other.0)) }
        fn mul(self, other: Self) -> Self { Avx512Doubles(_mm512_mul_pd(self.0, other.0)) }
        fn mul_add(self, factor: Self, term: Self) -> Self { self.mul(factor).add(term) }
        fn max(self, other: Self) -> Self { Avx512Doubles(_mm512_max_pd(self.0, other.0)) }
        fn min(self, other: Self) -> Self { Avx512Doubles(_mm512_min_pd(self.0, other.0)) }
        fn round(self) -> Self {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            Avx512Doubles(_mm512_roundscale_pd::<NEAREST>(self.0))
        }
        fn scale(self, n: Self) -> Self { Avx512Doubles(_mm512_scalef_pd(self.0, n.0)) }
        fn reduce_add(self) -> f64 {
            let high = _mm512_extractf64x4_pd::<1>(self.0);
            let four = _mm256_add_pd(_mm512_castpd512_pd256(self.0), high);
            let high = _mm256_extractf128_pd::<1>(four);
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), high);
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
        fn reduce_add4(of: [Self; 4]) -> [f64; 4] {
            [of[0].reduce_add(), of[1].reduce_add(), of[2].reduce_add(), of[3].reduce_add()]
        }
        fn reduce_max(self) -> f64 { _mm512_reduce_max_pd(self.0) }
        fn prefetch(address: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        fn exp(self) -> Self { exp::exp_f64(self) }
    }
}

impl Doubles for Avx512Doubles {
    methods! {
        fn add_exact_product(self, factor: Self, term: Self) -> Self {
            Avx512Doubles(_mm512_fmadd_pd(self.0, factor.0, term.0))
        }
    }
}

/// The transpose of 16 × 16 values. Inlined into its callers' features: called, it would pass its block
/// through memory.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers
pub(crate) unsafe fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut r = rows;
    let mut t = r;
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
            t[i + 4] = _mm512_shuffle_i32x4::<0xDD>(r[i], r[i + 4]);
            t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
            t[i + 12] = _mm512_shuffle_i32x4::<0xDD>(r[i + 8], r[i + 12]);
        }
        for i in 0..4 {
            r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
            r[i + 8] = _mm512_shuffle_i32x4::<0xDD>(t[i], t[i + 8]);
            r[i + 4] = _mm512_shuffle_i32x4::<0x88>(t[i + 4], t[i + 12]);
            r[i + 12] = _mm512_shuffle_i32x4::<0xDD>(t[i + 4], t[i + 12]);
        }
    }
    r
}
