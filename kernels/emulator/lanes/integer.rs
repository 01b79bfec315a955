//! 32-bit integers, bits and predicates' selects.

use crate::lanes::lane_operations;
use crate::numeric;

lane_operations! {
    MOV(a: W) -> W = a;
    ADD(a: W, b: W) -> W = a.wrapping_add(b);
    SUB(a: W, b: W) -> W = a.wrapping_sub(b);
    ADD_SAT(a: W, b: W) -> W = (a as i32).saturating_add(b as i32) as u32;
    SUB_SAT(a: W, b: W) -> W = (a as i32).saturating_sub(b as i32) as u32;
    MUL_LO(a: W, b: W) -> W = a.wrapping_mul(b);
    MUL_HI_S(a: W, b: W) -> W = ((a as i32 as i64).wrapping_mul(b as i32 as i64) >> 32) as u32;
    MUL_HI_U(a: W, b: W) -> W = ((a as u64).wrapping_mul(b as u64) >> 32) as u32;
    MAD_LO(a: W, b: W, c: W) -> W = a.wrapping_mul(b).wrapping_add(c);
    MAD_HI_S(a: W, b: W, c: W) -> W =
        (((a as i32 as i64).wrapping_mul(b as i32 as i64) >> 32) as u32).wrapping_add(c);
    MAD_HI_U(a: W, b: W, c: W) -> W =
        (((a as u64).wrapping_mul(b as u64) >> 32) as u32).wrapping_add(c);
    // The result of a division by zero is not specified; a GPU gives all ones (and a for the rest).
    DIV_S(a: W, b: W) -> W =
        if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 };
    DIV_U(a: W, b: W) -> W = a.checked_div(b).unwrap_or(u32::MAX);
    REM_S(a: W, b: W) -> W = if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 };
    REM_U(a: W, b: W) -> W = a.checked_rem(b).unwrap_or(a);
    MIN_S(a: W, b: W) -> W = (a as i32).min(b as i32) as u32;
    MIN_U(a: W, b: W) -> W = a.min(b);
    MAX_S(a: W, b: W) -> W = (a as i32).max(b as i32) as u32;
    MAX_U(a: W, b: W) -> W = a.max(b);
    NEG(a: W) -> W = a.wrapping_neg();
    ABS(a: W) -> W = (a as i32).wrapping_abs() as u32;
    SAD_U(a: W, b: W, c: W) -> W = c.wrapping_add(a.abs_diff(b));
    SAD_S(a: W, b: W, c: W) -> W = c.wrapping_add((a as i32).abs_diff(b as i32));
    AND(a: W, b: W) -> W = a & b;
    OR(a: W, b: W) -> W = a | b;
    XOR(a: W, b: W) -> W = a ^ b;
    NOT(a: W) -> W = !a;
    CNOT(a: W) -> W = (a == 0) as u32;
    LOP3(a: W, b: W, c: W, lut: W) -> W = numeric::logic3(a, b, c, lut);
    // Shifts by more than the width give what shifting bit by bit would.
    SHL(a: W, b: W) -> W = if b > 31 { 0 } else { a << b };
    SHR_U(a: W, b: W) -> W = if b > 31 { 0 } else { a >> b };
    SHR_S(a: W, b: W) -> W = ((a as i32) >> b.min(31)) as u32;
    // Funnel shifts of the 64 bits b:a.
    SHF_L_WRAP(a: W, b: W, c: W) -> W = ((((b as u64) << 32 | a as u64) << (c & 31)) >> 32) as u32;
    SHF_L_CLAMP(a: W, b: W, c: W) -> W =
        ((((b as u64) << 32 | a as u64) << c.min(32)) >> 32) as u32;
    SHF_R_WRAP(a: W, b: W, c: W) -> W = (((b as u64) << 32 | a as u64) >> (c & 31)) as u32;
    SHF_R_CLAMP(a: W, b: W, c: W) -> W = (((b as u64) << 32 | a as u64) >> c.min(32)) as u32;
    POPC(a: W) -> W = a.count_ones();
    CLZ(a: W) -> W = a.leading_zeros();
    BREV(a: W) -> W = a.reverse_bits();
    // The position of the highest bit that is not the sign; all ones where there is none.
    BFIND_U(a: W) -> W = 31u32.wrapping_sub(a.leading_zeros());
    BFIND_S(a: W) -> W = 31u32.wrapping_sub((a ^ ((a as i32) >> 31) as u32).leading_zeros());
    BFIND_SHIFT_U(a: W) -> W = if a == 0 { u32::MAX } else { a.leading_zeros() };
    BFIND_SHIFT_S(a: W) -> W = {
        let a = a ^ ((a as i32) >> 31) as u32;
        if a == 0 { u32::MAX } else { a.leading_zeros() }
    };
    BFE_U(a: W, b: W, c: W) -> W = numeric::extract_u64(a as u64, b, c, 32) as u32;
    BFE_S(a: W, b: W, c: W) -> W = numeric::extract_i64(a as i32 as i64, b, c, 32) as u32;
    BFI(a: W, b: W, c: W, d: W) -> W = numeric::insert_u64(a as u64, b as u64, c, d, 32) as u32;
    BMSK_CLAMP(a: W, b: W) -> W = numeric::insert_u64(u64::MAX, 0, a.min(32), b.min(32), 32) as u32;
    PRMT(a: W, b: W, c: W) -> W = numeric::permute(a, b, c);
    PRMT_MODE(a: W, b: W, c: W, mode: W) -> W =
        numeric::permute(a, b, numeric::permute_selector(mode, c));
    SELECT(a: W, b: W, p: P) -> W = if p { a } else { b };
    // Four 8-bit products, summed onto c.
    DP4A_S(a: W, b: W, c: W) -> W = {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        let product = |i: usize| (a[i] as i8 as i32 * b[i] as i8 as i32) as u32;
        c.wrapping_add(product(0)).wrapping_add(product(1)).wrapping_add(product(2))
            .wrapping_add(product(3))
    };
    DP4A_U(a: W, b: W, c: W) -> W = {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        let product = |i: usize| a[i] as u32 * b[i] as u32;
        c.wrapping_add(product(0)).wrapping_add(product(1)).wrapping_add(product(2))
            .wrapping_add(product(3))
    };
    // Halves of 32 bits.
    PACK_HALVES(a: W, b: W) -> W = (a & 0xffff) | b << 16;
    LOW_HALF(a: W) -> W = a & 0xffff;
    HIGH_HALF(a: W) -> W = a >> 16;
    LOW_BYTE(a: W) -> W = a & 0xff;
    EXTEND_BYTE(a: W) -> W = a as i8 as i32 as u32;
    EXTEND_HALF(a: W) -> W = a as i16 as i32 as u32;
}
