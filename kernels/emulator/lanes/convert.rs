//! `cvt` between integers and floats. Conversions among integers are moves and extensions.

use crate::lanes::lane_operations;
use crate::numeric::{self, Directed, to_integer};

/// 2^63 and 2^64 as f64; a value at or above them saturates.
const I64_LIMIT: f64 = 9_223_372_036_854_775_808.0;
const U64_LIMIT: f64 = 18_446_744_073_709_551_616.0;

/// f64 that is already an integer, to the bits of an i32 (f64 sources: NaN is MININT).
#[inline(always)]
fn f64_to_i32(x: f64) -> u32 {
    to_integer(x, i32::MIN as f64, i32::MAX as f64, i32::MIN as i64) as u32
}

#[inline(always)]
fn f64_to_u32(x: f64) -> u32 {
    to_integer(x, 0.0, u32::MAX as f64, 1 << 31) as u32
}

#[inline(always)]
fn f64_to_i64(x: f64) -> u64 {
    if x.is_nan() || x < -I64_LIMIT { 1 << 63 } else { x as i64 as u64 }
}

#[inline(always)]
fn f64_to_u64(x: f64) -> u64 {
    if x.is_nan() {
        1 << 63
    } else if x >= U64_LIMIT {
        u64::MAX
    } else {
        x as u64
    }
}

lane_operations! {
    // From integers, to nearest. The float may be wide enough to be exact.
    F32_FROM_I32(a: W) -> F = a as i32 as f32;
    F32_FROM_U32(a: W) -> F = a as f32;
    F32_FROM_I64(a: D) -> F = a as i64 as f32;
    F32_FROM_U64(a: D) -> F = a as f32;
    F64_FROM_I32(a: W) -> G = a as i32 as f64;
    F64_FROM_U32(a: W) -> G = a as f64;
    F64_FROM_I64(a: D) -> G = a as i64 as f64;
    F64_FROM_U64(a: D) -> G = a as f64;
    // From 32-bit integers in a direction: exact in f64, then rounded once.
    F32_FROM_F64_RZ(a: G) -> F = numeric::round_f32(a, 0.0, Directed::Zero);
    F32_FROM_F64_RM(a: G) -> F = numeric::round_f32(a, 0.0, Directed::Down);
    F32_FROM_F64_RP(a: G) -> F = numeric::round_f32(a, 0.0, Directed::Up);

    // To integers: these take what ROUND_* gave. NaN is 0 unless a side has 64 bits.
    I32_FROM_F32(a: F) -> W = a as i32 as u32;
    U32_FROM_F32(a: F) -> W = a as u32;
    I64_FROM_F32(a: F) -> D = f64_to_i64(a as f64);
    U64_FROM_F32(a: F) -> D = f64_to_u64(a as f64);
    I32_FROM_F64(a: G) -> W = f64_to_i32(a);
    U32_FROM_F64(a: G) -> W = f64_to_u32(a);
    I64_FROM_F64(a: G) -> D = f64_to_i64(a);
    U64_FROM_F64(a: G) -> D = f64_to_u64(a);
    // Conversions to 16 and 8 bits saturate to those.
    I16_FROM_F32(a: F) -> W = (a as i16 as u32) & 0xffff;
    U16_FROM_F32(a: F) -> W = a as u16 as u32;
    I8_FROM_F32(a: F) -> W = a as i8 as i32 as u32;
    U8_FROM_F32(a: F) -> W = a as u8 as u32;

    ROUND_NEAREST(a: F) -> F = a.round_ties_even();
    ROUND_ZERO(a: F) -> F = a.trunc();
    ROUND_DOWN(a: F) -> F = a.floor();
    ROUND_UP(a: F) -> F = a.ceil();
    ROUND_NEAREST_F64(a: G) -> G = a.round_ties_even();
    ROUND_ZERO_F64(a: G) -> G = a.trunc();
    ROUND_DOWN_F64(a: G) -> G = a.floor();
    ROUND_UP_F64(a: G) -> G = a.ceil();

    F64_FROM_F32(a: F) -> G = a as f64;
    F32_FROM_F64(a: G) -> F = a as f32;
    F32_FROM_BF16(a: W) -> F = numeric::from_bf16(a);
    F32_FROM_F16(a: W) -> F = numeric::from_f16(a);
    BF16_FROM_F32(a: F) -> W = numeric::to_bf16(a);
    BF16_FROM_F32_RZ(a: F) -> W = numeric::to_bf16_rz(a);
    F16_FROM_F32(a: F) -> W = numeric::to_f16(a);
    F16_FROM_F32_RZ(a: F) -> W = numeric::to_f16_rz(a);
    TF32_FROM_F32(a: F) -> W = numeric::to_tf32(a);
    // Pairs: the first operand goes to the high half.
    BF16X2_FROM_F32(a: F, b: F) -> W = numeric::to_bf16(a) << 16 | numeric::to_bf16(b);
    BF16X2_FROM_F32_RZ(a: F, b: F) -> W = numeric::to_bf16_rz(a) << 16 | numeric::to_bf16_rz(b);
    F16X2_FROM_F32(a: F, b: F) -> W = numeric::to_f16(a) << 16 | numeric::to_f16(b);
    F16X2_FROM_F32_RZ(a: F, b: F) -> W = numeric::to_f16_rz(a) << 16 | numeric::to_f16_rz(b);
    // `.relu`: negative results and NaN become 0.
    RELU(a: F) -> F = if a > 0.0 { a } else { 0.0 };
}
