//! `setp` and `testp`: comparisons whose result is a predicate. Integers have the six comparisons of
//! each signedness; floats have them ordered (false with NaN) and unordered (`U`: true with NaN).

use crate::lanes::lane_operations;

lane_operations! {
    EQ(a: W, b: W) -> P = a == b;
    NE(a: W, b: W) -> P = a != b;
    LT_S(a: W, b: W) -> P = (a as i32) < b as i32;
    LE_S(a: W, b: W) -> P = a as i32 <= b as i32;
    GT_S(a: W, b: W) -> P = a as i32 > b as i32;
    GE_S(a: W, b: W) -> P = a as i32 >= b as i32;
    LT_U(a: W, b: W) -> P = a < b;
    LE_U(a: W, b: W) -> P = a <= b;
    GT_U(a: W, b: W) -> P = a > b;
    GE_U(a: W, b: W) -> P = a >= b;

    EQ_LONG(a: D, b: D) -> P = a == b;
    NE_LONG(a: D, b: D) -> P = a != b;
    LT_LONG_S(a: D, b: D) -> P = (a as i64) < b as i64;
    LE_LONG_S(a: D, b: D) -> P = a as i64 <= b as i64;
    GT_LONG_S(a: D, b: D) -> P = a as i64 > b as i64;
    GE_LONG_S(a: D, b: D) -> P = a as i64 >= b as i64;
    LT_LONG_U(a: D, b: D) -> P = a < b;
    LE_LONG_U(a: D, b: D) -> P = a <= b;
    GT_LONG_U(a: D, b: D) -> P = a > b;
    GE_LONG_U(a: D, b: D) -> P = a >= b;

    EQ_F(a: F, b: F) -> P = a == b;
    NE_F(a: F, b: F) -> P = (a < b) | (a > b);
    LT_F(a: F, b: F) -> P = a < b;
    LE_F(a: F, b: F) -> P = a <= b;
    GT_F(a: F, b: F) -> P = a > b;
    GE_F(a: F, b: F) -> P = a >= b;
    EQU_F(a: F, b: F) -> P = (a == b) | a.is_nan() | b.is_nan();
    NEU_F(a: F, b: F) -> P = a != b;
    LTU_F(a: F, b: F) -> P = (a < b) | a.is_nan() | b.is_nan();
    LEU_F(a: F, b: F) -> P = (a <= b) | a.is_nan() | b.is_nan();
    GTU_F(a: F, b: F) -> P = (a > b) | a.is_nan() | b.is_nan();
    GEU_F(a: F, b: F) -> P = (a >= b) | a.is_nan() | b.is_nan();
    NUM_F(a: F, b: F) -> P = !(a.is_nan() | b.is_nan());
    NAN_F(a: F, b: F) -> P = a.is_nan() | b.is_nan();

    EQ_G(a: G, b: G) -> P = a == b;
    NE_G(a: G, b: G) -> P = (a < b) | (a > b);
    LT_G(a: G, b: G) -> P = a < b;
    LE_G(a: G, b: G) -> P = a <= b;
    GT_G(a: G, b: G) -> P = a > b;
    GE_G(a: G, b: G) -> P = a >= b;
    EQU_G(a: G, b: G) -> P = (a == b) | a.is_nan() | b.is_nan();
    NEU_G(a: G, b: G) -> P = a != b;
    LTU_G(a: G, b: G) -> P = (a < b) | a.is_nan() | b.is_nan();
    LEU_G(a: G, b: G) -> P = (a <= b) | a.is_nan() | b.is_nan();
    GTU_G(a: G, b: G) -> P = (a > b) | a.is_nan() | b.is_nan();
    GEU_G(a: G, b: G) -> P = (a >= b) | a.is_nan() | b.is_nan();
    NUM_G(a: G, b: G) -> P = !(a.is_nan() | b.is_nan());
    NAN_G(a: G, b: G) -> P = a.is_nan() | b.is_nan();

    IS_FINITE(a: F) -> P = a.is_finite();
    IS_INFINITE(a: F) -> P = a.is_infinite();
    IS_NUMBER(a: F) -> P = !a.is_nan();
    IS_NAN(a: F) -> P = a.is_nan();
    IS_NORMAL(a: F) -> P = a.is_normal();
    IS_SUBNORMAL(a: F) -> P = a.is_subnormal();

    AND(a: P, b: P) -> P = a & b;
    OR(a: P, b: P) -> P = a | b;
    XOR(a: P, b: P) -> P = a ^ b;
    NOT(a: P) -> P = !a;
    MOV(a: P) -> P = a;
}
