//! Scalar arithmetic that PTX defines and Rust does not have: 16-bit floats, directed rounding,
//! 2^x, bit fields, byte permutation.

/// What PTX's 32-bit instructions return for "not a number".
pub(crate) const CANONICAL_NAN: u32 = 0x7fff_ffff;

/// A bf16 as an f32.
#[inline(always)]
pub(crate) fn from_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// An f32 as a bf16, to nearest with ties to even. NaN is 0x7fff, as `cvt.rn.bf16.f32` gives.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

/// An f32 as a bf16, toward zero.
#[inline(always)]
pub(crate) fn to_bf16_rz(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { x.to_bits() >> 16 }
}

/// An f16 as an f32.
#[inline(always)]
pub(crate) fn from_f16(bits: u32) -> f32 {
    half::f16::from_bits(bits as u16).to_f32_const()
}

/// An f32 as an f16, to nearest with ties to even. NaN is 0x7fff.
#[inline(always)]
pub(crate) fn to_f16(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { u32::from(half::f16::from_f32_const(x).to_bits()) }
}

/// An f32 as an f16, toward zero.
#[inline(always)]
pub(crate) fn to_f16_rz(x: f32) -> u32 {
    let nearest = to_f16(x);
    if x.is_nan() || from_f16(nearest).abs() <= x.abs() { nearest } else { nearest - 1 }
}

/// An f32 as tf32 (10 bits of mantissa), to nearest with ties away from zero.
#[inline(always)]
pub(crate) fn to_tf32(x: f32) -> u32 {
    if x.is_nan() {
        return CANONICAL_NAN;
    }
    if x.is_infinite() {
        return x.to_bits();
    }
    x.to_bits().wrapping_add(0x1000) & !0x1fff
}

/// a·b + c of three bf16, rounded once.
#[inline(always)]
pub(crate) fn fma_bf16(a: u32, b: u32, c: u32) -> u32 {
    // The product of two 8-bit mantissas is exact; the sum is rounded to odd in f64 and again in
    // f32, both wide enough that the last rounding sees what the exact sum would give it.
    let product = f64::from(from_bf16(a)) * f64::from(from_bf16(b));
    to_bf16(odd_f32(odd_sum(product, f64::from(from_bf16(c)))))
}

/// a·b + c of three f16, rounded once.
#[inline(always)]
pub(crate) fn fma_f16(a: u32, b: u32, c: u32) -> u32 {
    let product = f64::from(from_f16(a)) * f64::from(from_f16(b));
    to_f16(odd_f32(odd_sum(product, f64::from(from_f16(c)))))
}

/// a + b rounded to odd: the last bit of an inexact sum is 1.
#[inline(always)]
fn odd_sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let error = sum_error(a, b, sum);
    if error == 0.0 || !sum.is_finite() || sum.to_bits() & 1 == 1 {
        return sum;
    }
    // The sum is even and inexact: its odd neighbor lies on the side of the error.
    let away = (error > 0.0) == (sum > 0.0);
    let bits = sum.to_bits();
    f64::from_bits(if away { bits + 1 } else { bits - 1 })
}

/// An f64 as an f32, rounded to odd.
#[inline(always)]
fn odd_f32(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || !nearest.is_finite() || nearest.to_bits() & 1 == 1 {
        return nearest;
    }
    let away = f64::from(nearest).abs() < x.abs();
    f32::from_bits(if away { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
}

/// What a + b lost when it was rounded to `sum` (Knuth's two-sum).
#[inline(always)]
fn sum_error(a: f64, b: f64, sum: f64) -> f64 {
    let b_part = sum - a;
    (a - (sum - b_part)) + (b - b_part)
}

/// A rounding that is not to nearest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Directed {
    Zero,
    Down,
    Up,
}

/// `value` + `rest` (of smaller magnitude than half a unit of `value`) as an f32, rounded once.
#[inline(always)]
pub(crate) fn round_f32(value: f64, rest: f64, direction: Directed) -> f32 {
    let nearest = value as f32;
    if value.is_nan() || value.is_infinite() {
        return nearest;
    }
    let difference = f64::from(nearest) - value;
    let too_high = difference > 0.0 || (difference == 0.0 && rest < 0.0);
    let too_low = difference < 0.0 || (difference == 0.0 && rest > 0.0);
    match direction {
        Directed::Down if too_high => nearest.next_down(),
        Directed::Up if too_low => nearest.next_up(),
        Directed::Zero if value > 0.0 && too_high => nearest.next_down(),
        Directed::Zero if value < 0.0 && too_low => nearest.next_up(),
        _ => nearest,
    }
}

/// a·b + c of three f32, rounded once in a direction.
#[inline(always)]
pub(crate) fn fma_directed(a: f32, b: f32, c: f32, direction: Directed) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let result = round_f32(sum, sum_error(product, c, sum), direction);
    // An exact zero of opposite signs is -0 when rounding down, +0 otherwise (IEEE 754, 6.3).
    if sum == 0.0 && product.is_sign_negative() != c.is_sign_negative() {
        return if direction == Directed::Down { -0.0 } else { 0.0 };
    }
    result
}

/// The smaller, as `min.f32` has it: a NaN loses against a number, and -0 is below +0.
#[inline(always)]
pub(crate) fn min_f32(a: f32, b: f32) -> f32 {
    let equal = f32::from_bits(a.to_bits() | b.to_bits());
    let number = if a < b {
        a
    } else if b < a {
        b
    } else {
        equal
    };
    pick_number(a, b, number)
}

/// The larger, as `max.f32` has it.
#[inline(always)]
pub(crate) fn max_f32(a: f32, b: f32) -> f32 {
    let equal = f32::from_bits(a.to_bits() & b.to_bits());
    let number = if a > b {
        a
    } else if b > a {
        b
    } else {
        equal
    };
    pick_number(a, b, number)
}

#[inline(always)]
fn pick_number(a: f32, b: f32, number: f32) -> f32 {
    let with_nan = if a.is_nan() { b } else { a };
    let with_nan = if a.is_nan() & b.is_nan() { f32::from_bits(CANONICAL_NAN) } else { with_nan };
    if a.is_nan() | b.is_nan() { with_nan } else { number }
}

/// The smaller of two f64.
#[inline(always)]
pub(crate) fn min_f64(a: f64, b: f64) -> f64 {
    if a == b { f64::from_bits(a.to_bits() | b.to_bits()) } else { a.min(b) }
}

/// The larger of two f64.
#[inline(always)]
pub(crate) fn max_f64(a: f64, b: f64) -> f64 {
    if a == b { f64::from_bits(a.to_bits() & b.to_bits()) } else { a.max(b) }
}

/// Subnormals become zero of the same sign, as `.ftz` wants.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// Clamped to [0, 1]; NaN is 0.
#[inline(always)]
pub(crate) fn saturate(x: f32) -> f32 {
    // Not f32::clamp, which keeps NaN.
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// 2^x by a polynomial of degree 9 in f64, whose error of 1e-11 vanishes in the rounding to f32.
/// Without branches, so that 32 lanes are a loop of vector instructions.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let clamped = f64::from(x).clamp(-1020.0, 1020.0);
    // Adding and subtracting 1.5·2^52 rounds to an integer, whose bits the sum holds.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let shifted = clamped + ROUND;
    let f = (clamped - (shifted - ROUND)) * std::f64::consts::LN_2;
    let tail = 1.0 / 720.0 + f * (1.0 / 5040.0 + f * (1.0 / 40320.0 + f * (1.0 / 362_880.0)));
    let middle = 1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * tail));
    let mantissa = 1.0 + f * (1.0 + f * (0.5 + f * middle));
    let exponent = (shifted.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
    let result = mantissa * f64::from_bits(((exponent + 1023) as u64) << 52);
    if x.is_nan() { f32::from_bits(CANONICAL_NAN) } else { result as f32 }
}

/// Integer of a float that is already rounded, clamped to the range; `nan` for NaN.
#[inline(always)]
pub(crate) fn to_integer(x: f64, low: f64, high: f64, nan: i64) -> i64 {
    if x.is_nan() { nan } else { x.clamp(low, high) as i64 }
}

/// `bfe.u32`: `length` bits of a from `position` on.
#[inline(always)]
pub(crate) fn extract_u64(a: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= width {
        return 0;
    }
    let shifted = a >> position;
    if length >= 64 { shifted } else { shifted & ((1 << length) - 1) }
}

/// `bfe.s32`, `bfe.s64`: bits beyond the field, or beyond the value, repeat the sign.
#[inline(always)]
pub(crate) fn extract_i64(a: i64, position: u32, length: u32, width: u32) -> i64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let top = width - 1;
    // The manual: sign = a[min(pos + len - 1, msb)]; bits from the sign on are copies of it.
    let sign_at = (position + length - 1).min(top);
    let sign = a >> sign_at & 1;
    let field =
        if position > top { 0 } else { (a as u64) << (64 - width) >> (64 - width) >> position };
    let keep = length.min(width.saturating_sub(position));
    let mask = if keep >= 64 { u64::MAX } else { (1 << keep) - 1 };
    let kept = field & mask;
    (if sign == 1 { kept | !mask } else { kept }) as i64
}

/// `bfi`: the low `length` bits of a, put into b at `position`.
#[inline(always)]
pub(crate) fn insert_u64(a: u64, b: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 || position >= width {
        return b;
    }
    let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    let mask = ones << position;
    (a << position & mask) | (b & !mask)
}

/// `prmt.b32` in its default mode: each nibble of `selector` picks a byte of b:a, or its sign.
#[inline(always)]
pub(crate) fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(a) | u64::from(b) << 32;
    let mut out = 0;
    for index in 0..4 {
        let pick = selector >> (4 * index) & 0xf;
        let byte = (bytes >> (8 * (pick & 7))) as u32 & 0xff;
        let sign = if byte & 0x80 != 0 { 0xff } else { 0 };
        out |= (if pick & 8 != 0 { sign } else { byte }) << (8 * index);
    }
    out
}

/// The selector by which a named `prmt` mode equals the default mode.
#[inline(always)]
pub(crate) fn permute_selector(mode: u32, c: u32) -> u32 {
    // Rows of the manual's table for f4e, b4e, rc8, ecl, ecr, rc16, by the low bits of c.
    const TABLE: [[u32; 4]; 6] = [
        [0x3210, 0x4321, 0x5432, 0x6543],
        [0x5670, 0x6701, 0x7012, 0x0123],
        [0x0000, 0x1111, 0x2222, 0x3333],
        [0x3210, 0x3211, 0x3222, 0x3333],
        [0x0000, 0x1110, 0x2210, 0x3210],
        [0x1010, 0x3232, 0x1010, 0x3232],
    ];
    TABLE[mode as usize % 6][(c & 3) as usize]
}

/// `lop3.b32`: the truth table `lut` applied bit by bit.
#[inline(always)]
pub(crate) fn logic3(a: u32, b: u32, c: u32, lut: u32) -> u32 {
    let mut out = 0;
    for row in 0..8u32 {
        let pick = |value: u32, bit: u32| if row & bit != 0 { value } else { !value };
        let chosen = if lut >> row & 1 != 0 { u32::MAX } else { 0 };
        out |= chosen & pick(a, 4) & pick(b, 2) & pick(c, 1);
    }
    out
}
