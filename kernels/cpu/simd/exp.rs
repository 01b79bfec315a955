//! The exponential function on vectors, within 2 ulp: e^x = 2^n · e^r, n = round(x / ln 2), with a
//! polynomial for e^r on |r| ≤ ln 2 / 2 (coefficients of Cephes' expf).
//!
//! In f32 the polynomial is fused where the instruction set can, so bits differ between instruction
//! sets. Log-probabilities and sampling need the same bits everywhere, a GPU included, and use
//! `lanes::exp`, which fuses nothing.

use super::vector::{Doubles, Vector};

/// e^x lane by lane. Overflows to infinity, underflows through subnormals to 0, keeps NaN.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise, passed on. After clamping |n| is at most 151.
    unsafe {
        // Beyond these the result is 0 and infinity; the order of operands keeps NaN.
        let x = V::splat(104.0).min(V::splat(-104.0).max(x));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, of which the first has few enough bits for n · part to be exact.
        let r = n.mul_add(V::splat(-0.693_359_4), x);
        let r = n.mul_add(V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
            p = p.mul_add(r, V::splat(c));
        }
        p.mul_add(r.mul(r), r).add(V::splat(1.0)).scale(n)
    }
}

/// e^x lane by lane in f64, within 2 ulp. Overflows to infinity, underflows through subnormals to
/// 0, keeps NaN. Own code, since the last bit of a C library's differs between versions.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn exp_f64<V: Doubles>(x: V) -> V {
    /// 1/k! for k = 13 down to 0: the rest of the series is below 2^-57 for |r| ≤ ln 2 / 2.
    const TERMS: [f64; 14] = {
        let mut terms = [1.0; 14];
        let (mut k, mut factorial) = (1, 1u64);
        while k < 14 {
            factorial *= k as u64;
            terms[13 - k] = 1.0 / factorial as f64;
            k += 1;
        }
        terms
    };
    // SAFETY: the caller's promise, passed on. After clamping |n| is at most 1077.
    unsafe {
        // Beyond these the result is 0 and infinity; the order of operands keeps NaN.
        let x = V::splat(710.0).min(V::splat(-746.0).max(x));
        let n = x.mul(V::splat(std::f64::consts::LOG2_E)).round();
        // ln 2 in two parts, of which the first has few enough bits for n · part to be exact.
        let r = x.sub(n.mul(V::splat(LN_2_HIGH)));
        let r = r.sub(n.mul(V::splat(LN_2_LOW)));
        let mut p = V::splat(TERMS[0]);
        for c in &TERMS[1..] {
            p = p.mul_add(r, V::splat(*c));
        }
        p.scale(n)
    }
}

/// The first 33 bits of ln 2, and the rest (fdlibm, e_exp.c).
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::vector::{Simd, for_each_isa};

    /// # Safety
    /// As for [`exp`]; the length of `x` is a multiple of 16.
    #[inline(always)]
    unsafe fn apply<V: Vector>(x: &mut [f32]) {
        assert_eq!(x.len() % 16, 0);
        for x in x.chunks_exact_mut(V::LANES) {
            // SAFETY: the chunk has all lanes.
            unsafe { exp(V::load(x.as_ptr())).store(x.as_mut_ptr()) };
        }
    }

    for_each_isa! {
        fn apply_on(x: &mut [f32]) = apply
    }

    #[test]
    fn within_two_ulp_over_the_whole_range() {
        let mut x: Vec<f32> = (-1_040_000..900_000).map(|i| i as f32 * 1e-4).collect();
        x.extend((0..60_000u32).map(|i| f32::from_bits(0x3000_0000 + i * 4096)));
        x.resize(x.len().next_multiple_of(16), 0.0);
        for isa in Isa::available() {
            let mut y = x.clone();
            // SAFETY: `isa` is available.
            unsafe { apply_on(isa, &mut y) };
            for (x, y) in x.iter().zip(&y) {
                let exact = f64::from(*x).exp();
                if exact > f64::from(f32::MAX) {
                    assert!(y.is_infinite() || *y == f32::MAX, "{isa}: exp({x}) = {y}");
                    continue;
                }
                let exponent = exact.log2().floor().max(-126.0);
                let ulp = (exponent - 23.0).exp2();
                let error = (f64::from(*y) - exact).abs() / ulp;
                assert!(error < 2.0, "{isa}: exp({x}) = {y}, {error} ulp off");
            }
        }
    }

    /// # Safety
    /// As for [`exp_f64`]; the length of `x` is a multiple of 8.
    #[inline(always)]
    unsafe fn apply_f64<V: Vector>(x: &mut [f64]) {
        assert_eq!(x.len() % V::Doubles::LANES, 0);
        for x in x.chunks_exact_mut(V::Doubles::LANES) {
            // SAFETY: the chunk has all lanes.
            unsafe { exp_f64(V::Doubles::load(x.as_ptr())).store(x.as_mut_ptr()) };
        }
    }

    for_each_isa! {
        fn apply_f64_on(x: &mut [f64]) = apply_f64
    }

    #[test]
    fn in_f64_within_two_ulp_and_the_same_bits_everywhere() {
        let mut x: Vec<f64> = (-760_000..720_000).map(|i| f64::from(i) * 1e-3 + 1e-5).collect();
        x.extend([-0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY, -1e300, 1e300, 1e-300, f64::NAN]);
        assert_eq!(x.len() % 8, 0);
        let mut first: Option<Vec<f64>> = None;
        for isa in Isa::available() {
            let mut y = x.clone();
            // SAFETY: `isa` is available.
            unsafe { apply_f64_on(isa, &mut y) };
            for (x, y) in x.iter().zip(&y) {
                let want = x.exp();
                if want.is_finite() {
                    let ulp = want.next_up() - want;
                    assert!((y - want).abs() <= 2.0 * ulp, "{isa}: exp({x}) = {y}, not {want}");
                } else {
                    assert_eq!(y.is_nan(), want.is_nan(), "{isa}: exp({x}) = {y}");
                    assert!(want.is_nan() || *y == want, "{isa}: exp({x}) = {y}");
                }
            }
            assert_eq!(
                y[y.len() - 8..y.len() - 2],
                [1.0, 1.0, f64::INFINITY, 0.0, 0.0, f64::INFINITY]
            );
            let first = first.get_or_insert_with(|| y.clone());
            assert!(first.iter().zip(&y).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())));
        }
    }

    #[test]
    fn ends_of_the_line() {
        for isa in Isa::available() {
            let inf = f32::INFINITY;
            let mut x = [
                inf,
                -inf,
                0.0,
                -0.0,
                89.0,
                -104.1,
                f32::MAX,
                f32::MIN,
                88.0,
                1e-40,
                0.,
                0.,
                0.,
                0.,
                0.,
                f32::NAN,
            ];
            // SAFETY: `isa` is available.
            unsafe { apply_on(isa, &mut x) };
            assert_eq!(x[..8], [inf, 0.0, 1.0, 1.0, inf, 0.0, inf, 0.0]);
            assert!(x[8].is_finite() && x[9] == 1.0 && x[15].is_nan(), "{isa}: {x:?}");
        }
    }
}
