//! 64-bit integers, and what crosses between 32 and 64 bits.

use crate::lanes::lane_operations;
use crate::numeric;

lane_operations! {
    MOV(a: D) -> D = a;
    ADD(a: D, b: D) -> D = a.wrapping_add(b);
    SUB(a: D, b: D) -> D = a.wrapping_sub(b);
    MUL_LO(a: D, b: D) -> D = a.wrapping_mul(b);
    MUL_HI_S(a: D, b: D) -> D = ((a as i64 as i128 * b as i64 as i128) >> 64) as u64;
    MUL_HI_U(a: D, b: D) -> D = ((a as u128 * b as u128) >> 64) as u64;
    MAD_LO(a: D, b: D, c: D) -> D = a.wrapping_mul(b).wrapping_add(c);
    MAD_HI_S(a: D, b: D, c: D) -> D =
        (((a as i64 as i128 * b as i64 as i128) >> 64) as u64).wrapping_add(c);
    MAD_HI_U(a: D, b: D, c: D) -> D = (((a as u128 * b as u128) >> 64) as u64).wrapping_add(c);
    MUL_WIDE_S(a: W, b: W) -> D = (a as i32 as i64).wrapping_mul(b as i32 as i64) as u64;
    MUL_WIDE_U(a: W, b: W) -> D = (a as u64).wrapping_mul(b as u64);
    MAD_WIDE_S(a: W, b: W, c: D) -> D =
        ((a as i32 as i64).wrapping_mul(b as i32 as i64) as u64).wrapping_add(c);
    MAD_WIDE_U(a: W, b: W, c: D) -> D = (a as u64).wrapping_mul(b as u64).wrapping_add(c);
    DIV_S(a: D, b: D) -> D =
        if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 };
    DIV_U(a: D, b: D) -> D = a.checked_div(b).unwrap_or(u64::MAX);
    REM_S(a: D, b: D) -> D = if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 };
    REM_U(a: D, b: D) -> D = a.checked_rem(b).unwrap_or(a);
    MIN_S(a: D, b: D) -> D = (a as i64).min(b as i64) as u64;
    MIN_U(a: D, b: D) -> D = a.min(b);
    MAX_S(a: D, b: D) -> D = (a as i64).max(b as i64) as u64;
    MAX_U(a: D, b: D) -> D = a.max(b);
    NEG(a: D) -> D = a.wrapping_neg();
    ABS(a: D) -> D = (a as i64).wrapping_abs() as u64;
    AND(a: D, b: D) -> D = a & b;
    OR(a: D, b: D) -> D = a | b;
    XOR(a: D, b: D) -> D = a ^ b;
    NOT(a: D) -> D = !a;
    CNOT(a: D) -> D = (a == 0) as u64;
    SHL(a: D, b: W) -> D = if b > 63 { 0 } else { a << b };
    SHR_U(a: D, b: W) -> D = if b > 63 { 0 } else { a >> b };
    SHR_S(a: D, b: W) -> D = ((a as i64) >> b.min(63)) as u64;
    POPC(a: D) -> W = a.count_ones();
    CLZ(a: D) -> W = a.leading_zeros();
    BREV(a: D) -> D = a.reverse_bits();
    BFIND_U(a: D) -> W = 63u32.wrapping_sub(a.leading_zeros());
    BFIND_S(a: D) -> W = 63u32.wrapping_sub((a ^ ((a as i64) >> 63) as u64).leading_zeros());
    BFIND_SHIFT_U(a: D) -> W = if a == 0 { u32::MAX } else { a.leading_zeros() };
    BFIND_SHIFT_S(a: D) -> W = {
        let a = a ^ ((a as i64) >> 63) as u64;
        if a == 0 { u32::MAX } else { a.leading_zeros() }
    };
    BFE_U(a: D, b: W, c: W) -> D = numeric::extract_u64(a, b, c, 64);
    BFE_S(a: D, b: W, c: W) -> D = numeric::extract_i64(a as i64, b, c, 64) as u64;
    BFI(a: D, b: D, c: W, d: W) -> D = numeric::insert_u64(a, b, c, d, 64);
    SELECT(a: D, b: D, p: P) -> D = if p { a } else { b };
    PACK(a: W, b: W) -> D = a as u64 | (b as u64) << 32;
    LOW(a: D) -> W = a as u32;
    HIGH(a: D) -> W = (a >> 32) as u32;
    EXTEND_U(a: W) -> D = a as u64;
    EXTEND_S(a: W) -> D = a as i32 as i64 as u64;
}
