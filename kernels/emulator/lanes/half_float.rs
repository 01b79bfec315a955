//! bf16 and f16, alone and in pairs: each result is rounded once.

use crate::lanes::lane_operations;
use crate::numeric::{fma_bf16, fma_f16, from_bf16, from_f16, max_f32, min_f32, to_bf16, to_f16};

const BF16_ONE: u32 = 0x3f80;
/// A product with 1 is exact, so that a sum is an fma.
const F16_ONE: u32 = 0x3c00;
/// -0: adding it changes nothing, not even the sign of a zero.
const MINUS_ZERO: u32 = 0x8000;

/// The same on both halves.
#[inline(always)]
fn pairwise(a: u32, b: u32, c: u32, half: impl Fn(u32, u32, u32) -> u32) -> u32 {
    half(a & 0xffff, b & 0xffff, c & 0xffff) | half(a >> 16, b >> 16, c >> 16) << 16
}

lane_operations! {
    ADD_BF16(a: W, b: W) -> W = fma_bf16(a, BF16_ONE, b);
    SUB_BF16(a: W, b: W) -> W = fma_bf16(a, BF16_ONE, b ^ 0x8000);
    MUL_BF16(a: W, b: W) -> W = fma_bf16(a, b, MINUS_ZERO);
    FMA_BF16(a: W, b: W, c: W) -> W = fma_bf16(a, b, c);
    MIN_BF16(a: W, b: W) -> W = to_bf16(min_f32(from_bf16(a), from_bf16(b)));
    MAX_BF16(a: W, b: W) -> W = to_bf16(max_f32(from_bf16(a), from_bf16(b)));
    ADD_BF16X2(a: W, b: W) -> W = pairwise(a, b, 0, |a, b, _| fma_bf16(a, BF16_ONE, b));
    SUB_BF16X2(a: W, b: W) -> W = pairwise(a, b, 0, |a, b, _| fma_bf16(a, BF16_ONE, b ^ 0x8000));
    MUL_BF16X2(a: W, b: W) -> W = pairwise(a, b, 0, |a, b, _| fma_bf16(a, b, MINUS_ZERO));
    FMA_BF16X2(a: W, b: W, c: W) -> W = pairwise(a, b, c, fma_bf16);
    MIN_BF16X2(a: W, b: W) -> W =
        pairwise(a, b, 0, |a, b, _| to_bf16(min_f32(from_bf16(a), from_bf16(b))));
    MAX_BF16X2(a: W, b: W) -> W =
        pairwise(a, b, 0, |a, b, _| to_bf16(max_f32(from_bf16(a), from_bf16(b))));
    EXP2_BF16(a: W) -> W = to_bf16(crate::numeric::exp2(from_bf16(a)));
    TANH_BF16(a: W) -> W = to_bf16(from_bf16(a).tanh());

    ADD_F16(a: W, b: W) -> W = fma_f16(a, F16_ONE, b);
    SUB_F16(a: W, b: W) -> W = fma_f16(a, F16_ONE, b ^ 0x8000);
    MUL_F16(a: W, b: W) -> W = fma_f16(a, b, MINUS_ZERO);
    FMA_F16(a: W, b: W, c: W) -> W = fma_f16(a, b, c);
    MIN_F16(a: W, b: W) -> W = to_f16(min_f32(from_f16(a), from_f16(b)));
    MAX_F16(a: W, b: W) -> W = to_f16(max_f32(from_f16(a), from_f16(b)));
    ADD_F16X2(a: W, b: W) -> W = pairwise(a, b, 0, |a, b, _| fma_f16(a, F16_ONE, b));
    SUB_F16X2(a: W, b: W) -> W = pairwise(a, b, 0, |a, b, _| fma_f16(a, F16_ONE, b ^ 0x8000));
    MUL_F16X2(a: W, b: W) -> W = pairwise(a, b, 0, |a, b, _| fma_f16(a, b, MINUS_ZERO));
    FMA_F16X2(a: W, b: W, c: W) -> W = pairwise(a, b, c, fma_f16);
    MIN_F16X2(a: W, b: W) -> W =
        pairwise(a, b, 0, |a, b, _| to_f16(min_f32(from_f16(a), from_f16(b))));
    MAX_F16X2(a: W, b: W) -> W =
        pairwise(a, b, 0, |a, b, _| to_f16(max_f32(from_f16(a), from_f16(b))));

    NEG_HALF(a: W) -> W = a ^ 0x8000;
    ABS_HALF(a: W) -> W = a & 0x7fff;
    NEG_PAIR(a: W) -> W = a ^ 0x8000_8000;
    ABS_PAIR(a: W) -> W = a & 0x7fff_7fff;
}
