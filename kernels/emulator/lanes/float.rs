//! f32 and f64 arithmetic. Approximate instructions (`ex2.approx`, `rsqrt.approx`, ..) are computed
//! more exactly than a GPU does; see the crate's documentation.

use crate::lanes::lane_operations;
use crate::numeric::{self, Directed};

lane_operations! {
    ADD(a: F, b: F) -> F = a + b;
    SUB(a: F, b: F) -> F = a - b;
    MUL(a: F, b: F) -> F = a * b;
    FMA(a: F, b: F, c: F) -> F = a.mul_add(b, c);
    ADD_RZ(a: F, b: F) -> F = numeric::fma_directed(a, 1.0, b, Directed::Zero);
    ADD_RM(a: F, b: F) -> F = numeric::fma_directed(a, 1.0, b, Directed::Down);
    ADD_RP(a: F, b: F) -> F = numeric::fma_directed(a, 1.0, b, Directed::Up);
    SUB_RZ(a: F, b: F) -> F = numeric::fma_directed(a, 1.0, -b, Directed::Zero);
    SUB_RM(a: F, b: F) -> F = numeric::fma_directed(a, 1.0, -b, Directed::Down);
    SUB_RP(a: F, b: F) -> F = numeric::fma_directed(a, 1.0, -b, Directed::Up);
    MUL_RZ(a: F, b: F) -> F = numeric::round_f32(a as f64 * b as f64, 0.0, Directed::Zero);
    MUL_RM(a: F, b: F) -> F = numeric::round_f32(a as f64 * b as f64, 0.0, Directed::Down);
    MUL_RP(a: F, b: F) -> F = numeric::round_f32(a as f64 * b as f64, 0.0, Directed::Up);
    FMA_RZ(a: F, b: F, c: F) -> F = numeric::fma_directed(a, b, c, Directed::Zero);
    FMA_RM(a: F, b: F, c: F) -> F = numeric::fma_directed(a, b, c, Directed::Down);
    FMA_RP(a: F, b: F, c: F) -> F = numeric::fma_directed(a, b, c, Directed::Up);
    DIV(a: F, b: F) -> F = a / b;
    RECIPROCAL(a: F) -> F = 1.0 / a;
    SQRT(a: F) -> F = a.sqrt();
    RSQRT(a: F) -> F = (1.0 / (a as f64).sqrt()) as f32;
    EXP2(a: F) -> F = numeric::exp2(a);
    LOG2(a: F) -> F = (a as f64).log2() as f32;
    SIN(a: F) -> F = (a as f64).sin() as f32;
    COS(a: F) -> F = (a as f64).cos() as f32;
    TANH(a: F) -> F = (a as f64).tanh() as f32;
    MIN(a: F, b: F) -> F = numeric::min_f32(a, b);
    MAX(a: F, b: F) -> F = numeric::max_f32(a, b);
    MIN_NAN(a: F, b: F) -> F = {
        let nan = f32::from_bits(numeric::CANONICAL_NAN);
        if a.is_nan() | b.is_nan() { nan } else { numeric::min_f32(a, b) }
    };
    MAX_NAN(a: F, b: F) -> F = {
        let nan = f32::from_bits(numeric::CANONICAL_NAN);
        if a.is_nan() | b.is_nan() { nan } else { numeric::max_f32(a, b) }
    };
    NEG(a: W) -> W = a ^ 0x8000_0000;
    ABS(a: W) -> W = a & 0x7fff_ffff;
    // The sign of a, the magnitude of b.
    COPYSIGN(a: W, b: W) -> W = (a & 0x8000_0000) | (b & 0x7fff_ffff);
    FLUSH(a: F) -> F = numeric::flush(a);
    SATURATE(a: F) -> F = numeric::saturate(a);

    ADD_F64(a: G, b: G) -> G = a + b;
    SUB_F64(a: G, b: G) -> G = a - b;
    MUL_F64(a: G, b: G) -> G = a * b;
    FMA_F64(a: G, b: G, c: G) -> G = a.mul_add(b, c);
    DIV_F64(a: G, b: G) -> G = a / b;
    RECIPROCAL_F64(a: G) -> G = 1.0 / a;
    SQRT_F64(a: G) -> G = a.sqrt();
    RSQRT_F64(a: G) -> G = 1.0 / a.sqrt();
    MIN_F64(a: G, b: G) -> G = numeric::min_f64(a, b);
    MAX_F64(a: G, b: G) -> G = numeric::max_f64(a, b);
    NEG_F64(a: D) -> D = a ^ 1 << 63;
    ABS_F64(a: D) -> D = a & !(1 << 63);
    COPYSIGN_F64(a: D, b: D) -> D = (a & 1 << 63) | (b & !(1 << 63));
}
