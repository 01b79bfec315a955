//! Sixteen f32 lanes as `[f32; 16]`: loops over them are written once and compiled for each
//! instruction set by `for_each_isa!`, with the same bits on all of them.
//!
//! Every operation is a plain IEEE multiplication, addition, comparison or bit operation, and each
//! is rounded by itself: there is no fused multiply-add and no approximate instruction. So AVX-512
//! (one register), AVX2 (two) and the baseline (four) give the same bits, and so does a GPU.
//!
//! This is why the crate has a second [`exp`]. That of `exp.rs` uses a fused multiply-add where
//! the instruction set has one: it is faster, but its bits differ between instruction sets.

/// Lanes of a vector. Entry `i` of a row belongs to lane `i % LANES`.
pub(crate) const LANES: usize = 16;

/// One vector.
pub(crate) type Lanes = [f32; LANES];

/// Below this, `exp` is 0: its result would be subnormal, which some hardware computes slowly or
/// flushes. Just above ln(2^-126).
pub(crate) const EXP_LOWEST: f32 = -87.336_5;
/// Above this, `exp` is infinite: ln of the largest f32, rounded down.
const EXP_HIGHEST: f32 = 88.722_83;
/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts. The first has 9 bits, so its product with an exponent is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, highest power first (Moshier, Cephes, expf.c).
const EXP_TERMS: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x: exactly 1 at 0, 0 below `EXP_LOWEST`, NaN at NaN.
///
/// At most 0.99 units in the last place off over every f32 from `EXP_LOWEST` to -0.01.
///
/// x = n ln 2 + r; e^r is a polynomial; 2^n is added to the exponent bits. Branch-free, so a loop
/// over lanes becomes vector code.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut q = EXP_TERMS[0];
    for term in &EXP_TERMS[1..] {
        q = q * r + term;
    }
    let power = (q * (r * r) + r) + 1.0;
    let bits = power.to_bits().wrapping_add(rounded.to_bits() << 23);
    let y = f32::from_bits(bits);
    let y = if x < EXP_LOWEST { 0.0 } else { y };
    let y = if x > EXP_HIGHEST { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// ln x of a positive normal x, within 1e-15 of ln x relative to max(1, |ln x|).
///
/// Written out rather than taken from the C library, whose last bit differs between versions.
/// x = m 2^n with m in [sqrt(1/2), sqrt(2)), s = (m - 1) / (m + 1), ln m = 2 (s + s^3/3 + ..).
pub(crate) fn ln(x: f64) -> f64 {
    assert!(x.is_normal() && x > 0.0, "ln of {x}");
    let bits = x.to_bits();
    let mut n = (bits >> 52) as i32 - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        n += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for k in (1..=12).rev() {
        series = (series + 1.0 / (2 * k + 1) as f64) * square;
    }
    n as f64 * std::f64::consts::LN_2 + 2.0 * (s + s * series)
}

/// The larger, lane by lane; a NaN on the right is passed over.
#[inline(always)]
pub(crate) fn max(a: Lanes, b: &Lanes) -> Lanes {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = if *b > *out { *b } else { *out };
    }
    out
}

/// The largest lane. NaN lanes other than lane 0 are passed over.
#[inline(always)]
pub(crate) fn reduce_max(lanes: &Lanes) -> f32 {
    lanes.iter().skip(1).fold(lanes[0], |a, &b| if b > a { b } else { a })
}

/// The sum of the lanes by halves: lane i + lane i + 8, then + 4, + 2, + 1.
#[inline(always)]
pub(crate) fn reduce_sum(lanes: &Lanes) -> f32 {
    let mut sums = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Up to LANES entries of a row as a vector, filled up with minus infinity: the neutral element of
/// a maximum and of a sum of exponentials.
#[inline(always)]
pub(crate) fn padded(entries: &[f32]) -> Lanes {
    if let Ok(whole) = entries.try_into() {
        return whole;
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes[..entries.len()].copy_from_slice(entries);
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::vector::{Vector, for_each_isa};

    /// |got - e^x| in units of the last place of the f32 nearest to e^x.
    fn exp_error_ulp(x: f32) -> f64 {
        let want = (x as f64).exp();
        let nearest = want as f32;
        let ulp = (f32::from_bits(nearest.to_bits() + 1) - nearest) as f64;
        ((exp(x) as f64 - want) / ulp).abs()
    }

    #[test]
    fn exp_is_within_one_ulp() {
        // Every 1009th f32 of each sign in the range.
        let mut worst = (0.0, 0.0);
        let negative = 0x8000_0000..=EXP_LOWEST.to_bits();
        let positive = 0..88.72f32.to_bits();
        for bits in negative.step_by(1009).chain(positive.step_by(1009)) {
            let x = f32::from_bits(bits);
            let error = exp_error_ulp(x);
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 < 1.0, "{} ulp at {}", worst.0, worst.1);
        assert!(worst.0 > 0.4, "a correctly rounded exp was not expected: {}", worst.0);
    }

    #[test]
    fn exp_at_its_edges() {
        assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
        assert_eq!(exp(-0.0).to_bits(), 1f32.to_bits());
        for x in [f32::NEG_INFINITY, f32::MIN, -1e9, -104.0, EXP_LOWEST.next_down()] {
            assert_eq!(exp(x).to_bits(), 0, "{x}");
        }
        for x in [f32::INFINITY, f32::MAX, 1e9, EXP_HIGHEST.next_up()] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
        }
        assert!(exp(EXP_LOWEST).is_normal());
        assert!(exp(EXP_HIGHEST).is_finite());
        assert!(exp_error_ulp(EXP_LOWEST) < 1.0);
        assert!((exp(EXP_HIGHEST) as f64 / (EXP_HIGHEST as f64).exp() - 1.0).abs() < 2e-7);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-f32::NAN).is_nan());
    }

    #[test]
    fn ln_agrees_with_the_library() {
        assert_eq!(ln(1.0), 0.0);
        for i in 0..20_000 {
            let x = (i as f64 * 0.07 - 700.0).exp() * (1.0 + i as f64 * 1e-5);
            let want = x.ln();
            assert!((ln(x) - want).abs() <= 1e-15 * want.abs().max(1.0), "{x} {want}");
        }
    }

    #[test]
    fn reductions_follow_the_documented_order() {
        let lanes: Lanes = std::array::from_fn(|i| 1.0 / (i as f32 + 3.0));
        let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        let want = (four[0] + four[2]) + (four[1] + four[3]);
        assert_eq!(reduce_sum(&lanes).to_bits(), want.to_bits());
        assert_eq!(reduce_max(&lanes), lanes[0]);
        let mut last = lanes;
        last[15] = 9.0;
        assert_eq!(reduce_max(&last), 9.0);
        assert_eq!(max(lanes, &last), last);
        assert_eq!(padded(&[1.0, 2.0])[..3], [1.0, 2.0, f32::NEG_INFINITY]);
    }

    for_each_isa! {
        fn exp_lanes_on(x: &Lanes) -> Lanes = exp_lanes
    }

    #[inline(always)]
    fn exp_lanes<V: Vector>(x: &Lanes) -> Lanes {
        x.map(exp)
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for isa in Isa::available() {
            for start in (0..u32::MAX).step_by(50_021) {
                let x: Lanes = std::array::from_fn(|i| f32::from_bits(start ^ (i as u32 * 77)));
                // SAFETY: `isa` is available.
                let out = unsafe { exp_lanes_on(isa, &x) };
                for (got, x) in out.iter().zip(x) {
                    let want = exp(x);
                    assert!(
                        got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                        "{isa}: exp({x}) = {got}, portable {want}"
                    );
                }
            }
        }
    }
}
