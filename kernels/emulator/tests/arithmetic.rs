//! Integer, bit and float arithmetic at the edges that the PTX manual names.

use crate::{expect_32, expect_64, expect_f32};

const MIN: u32 = 0x8000_0000;

#[test]
fn shifts_beyond_the_width() {
    expect_32("shl.b32 %r20, %r10, %r11;", &[([1, 31], MIN), ([1, 32], 0), ([1, 255], 0)]);
    expect_32("shr.u32 %r20, %r10, %r11;", &[([MIN, 31], 1), ([MIN, 32], 0), ([!0, 4000], 0)]);
    expect_32("shr.s32 %r20, %r10, %r11;", &[([MIN, 31], !0), ([MIN, 99], !0), ([5, 99], 0)]);
    expect_64("shl.b64 %d20, %d10, %r11;", &[([1, 63], 1 << 63), ([1, 64], 0)]);
    expect_64("shr.s64 %d20, %d10, %r11;", &[([1 << 63, 70], u64::MAX), ([8, 2], 2)]);
    // 16 bits: the amount is not cut to them.
    let body = "cvt.u16.u32 %h1, %r10; shl.b16 %h2, %h1, %r11; cvt.u32.u16 %r20, %h2;";
    expect_32(body, &[([1, 15], 0x8000), ([1, 16], 0), ([3, 15], 0x8000), ([1, 0x10000], 0)]);
    let body = "cvt.u16.u32 %h1, %r10; shr.s16 %h2, %h1, %r11; cvt.u32.u16 %r20, %h2;";
    expect_32(body, &[([0x8000, 15], 0xffff), ([0x8000, 40], 0xffff), ([0x7fff, 3], 0xfff)]);
}

#[test]
fn funnel_shifts() {
    expect_32(
        "shf.l.wrap.b32 %r20, %r10, %r11, %r12;",
        &[([0x8000_0001, 2, 1], 5), ([1, 2, 32], 2), ([1, 2, 33], 4)],
    );
    expect_32("shf.l.clamp.b32 %r20, %r10, %r11, %r12;", &[([7, 2, 32], 7), ([7, 2, 99], 7)]);
    expect_32(
        "shf.r.wrap.b32 %r20, %r10, %r11, %r12;",
        &[([2, 1, 1], 0x8000_0001), ([2, 1, 32], 2), ([4, 1, 34], 0x4000_0001)],
    );
    expect_32("shf.r.clamp.b32 %r20, %r10, %r11, %r12;", &[([2, 9, 32], 9), ([2, 9, 77], 9)]);
}

#[test]
fn products_and_quotients() {
    expect_32("mul.hi.s32 %r20, %r10, %r11;", &[([!0, !0], 0), ([MIN, MIN], 1 << 30)]);
    expect_32("mul.hi.u32 %r20, %r10, %r11;", &[([!0, !0], !0 - 1), ([MIN, 2], 1)]);
    expect_32("mad.lo.s32 %r20, %r10, %r11, %r12;", &[([!0, 5, 7], 2), ([MIN, 2, 1], 1)]);
    expect_32("mad.hi.s32 %r20, %r10, %r11, %r12;", &[([!0, 5, 7], 6)]);
    expect_64("mad.wide.s32 %d20, %r10, %r11, %d12;", &[([0xffff_ffff, 2, 5], 3)]);
    expect_64("mad.wide.u32 %d20, %r10, %r11, %d12;", &[([0xffff_ffff, 2, 5], 0x2_0000_0003)]);
    expect_64("mul.wide.s32 %d20, %r10, %r11;", &[([0x8000_0000, 2], (-1i64 << 32) as u64)]);
    expect_64("mul.hi.u64 %d20, %d10, %d11;", &[([u64::MAX, u64::MAX], u64::MAX - 1)]);
    expect_32("div.s32 %r20, %r10, %r11;", &[([!6, 2], !2), ([MIN, !0], MIN), ([5, 0], !0)]);
    expect_32("rem.s32 %r20, %r10, %r11;", &[([!6, 2], !0), ([MIN, !0], 0), ([5, 0], 5)]);
    expect_32("div.u32 %r20, %r10, %r11;", &[([7, 2], 3), ([5, 0], !0)]);
    let wide = "cvt.u16.u32 %h1, %r10; cvt.u16.u32 %h2, %r11; mul.wide.s16 %r20, %h1, %h2;";
    expect_32(wide, &[([0xffff, 3], (-3i32) as u32), ([0x8000, 0x8000], 1 << 30)]);
    let low = "cvt.u16.u32 %h1, %r10; cvt.u16.u32 %h2, %r11; mul.lo.s16 %h3, %h1, %h2; cvt.u32.u16 %r20, %h3;";
    expect_32(low, &[([0xffff, 3], 0xfffd), ([0x100, 0x100], 0)]);
    expect_32(
        "add.sat.s32 %r20, %r10, %r11;",
        &[([0x7fff_ffff, 1], 0x7fff_ffff), ([MIN, !0], MIN)],
    );
    expect_32("sad.s32 %r20, %r10, %r11, %r12;", &[([!0, 4, 10], 15)]);
}

#[test]
fn minima_of_signs() {
    expect_32("min.s32 %r20, %r10, %r11;", &[([!0, 1], !0)]);
    expect_32("min.u32 %r20, %r10, %r11;", &[([!0, 1], 1)]);
    let body = "cvt.u16.u32 %h1, %r10; max.s16 %h2, %h1, -5; cvt.u32.u16 %r20, %h2;";
    expect_32(body, &[([0xfff0], 0xfffb), ([7], 7)]);
    expect_32("abs.s32 %r20, %r10;", &[([!0], 1), ([MIN], MIN)]);
    expect_32("neg.s32 %r20, %r10;", &[([1], !0), ([MIN], MIN)]);
}

#[test]
fn bit_fields() {
    let unsigned = "bfe.u32 %r20, %r10, %r11, %r12;";
    expect_32(
        unsigned,
        &[
            ([0xabcd_1234, 8, 8], 0x12),
            ([!0, 28, 8], 0xf),
            ([!0, 32, 8], 0),
            ([!0, 0, 0], 0),
            ([0xdead_beef, 0, 32], 0xdead_beef),
            ([0xdead_beef, 4, 255], 0x0dea_dbee),
            ([0x0000_ff00, 0x108, 8], 0xff), // only 8 bits of the position count
        ],
    );
    expect_32(
        "bfe.s32 %r20, %r10, %r11, %r12;",
        &[
            ([0x0000_8000, 8, 8], 0xffff_ff80),
            ([MIN, 28, 8], 0xffff_fff8), // beyond the top: copies of bit 31
            ([MIN, 40, 8], !0),
            ([!0, 5, 0], 0),
            ([0x70, 4, 4], 7),
        ],
    );
    expect_64("bfe.s64 %d20, %d10, %r11, %r12;", &[([1 << 63, 60, 4], (-8i64) as u64)]);
    expect_64("bfe.u64 %d20, %d10, %r11, %r12;", &[([u64::MAX, 4, 64], u64::MAX >> 4)]);
    expect_32(
        "bfi.b32 %r20, %r10, %r11, %r12, %r13;",
        &[
            ([0xff, 0, 4, 4], 0xf0),
            ([0, !0, 8, 8], 0xffff_00ff),
            ([!0, 0, 28, 8], 0xf000_0000),
            ([!0, 7, 32, 8], 7),
            ([!0, 7, 0, 0], 7),
            ([!0, 0, 0, 32], !0),
        ],
    );
    expect_64("bfi.b64 %d20, %d10, %d11, 32, 32;", &[([5, 7], 5 << 32 | 7)]);
    expect_32("bfind.u32 %r20, %r10;", &[([0], !0), ([1], 0), ([MIN], 31)]);
    expect_32("bfind.s32 %r20, %r10;", &[([!0], !0), ([0xffff_fffe], 0), ([MIN], 30)]);
    expect_32("bfind.shiftamt.u32 %r20, %r10;", &[([0], !0), ([1], 31), ([MIN], 0)]);
    expect_32("popc.b32 %r20, %r10;", &[([!0], 32), ([0], 0)]);
    expect_32("clz.b32 %r20, %r10;", &[([0], 32), ([1], 31)]);
    expect_32("clz.b64 %r20, %d10;", &[([0], 64), ([1], 63)]);
    expect_32("brev.b32 %r20, %r10;", &[([1], MIN), ([0x8000_0002], 0x4000_0001)]);
}

#[test]
fn permutations() {
    let (a, b) = (0x3322_1100, 0x7766_5544);
    let cases = [
        ("prmt.b32", 0x3210, a),
        ("prmt.b32", 0x7654, b),
        ("prmt.b32", 0x0246, 0x0022_4466),
        ("prmt.b32.f4e", 1, 0x4433_2211),
        ("prmt.b32.b4e", 1, 0x6677_0011),
        ("prmt.b32.rc8", 2, 0x2222_2222),
        ("prmt.b32.ecl", 1, 0x3322_1111),
        ("prmt.b32.ecr", 1, 0x1111_1100),
        ("prmt.b32.rc16", 1, 0x3322_3322),
    ];
    for (opcode, selector, expected) in cases {
        let body = format!("{opcode} %r20, %r10, %r11, %r12;");
        expect_32(&body, &[([a, b, selector], expected)]);
    }
    // The highest bit of a nibble repeats the byte's sign.
    expect_32("prmt.b32 %r20, %r10, %r11, %r12;", &[([0x0000_0080, 0, 0x1198], 0x0000_00ff)]);
}

#[test]
fn truth_tables() {
    let (a, b, c) = (0xf0f0_f0f0, 0xcccc_cccc, 0xaaaa_aaaa);
    // The manual: the table is the function of 0xf0, 0xcc and 0xaa.
    for lut in [0u32, 0x80, 0xfe, 0x96, 0x1a, 0xca, 0xe8, 0xff] {
        let body = format!("lop3.b32 %r20, %r10, %r11, %r12, {lut:#x};");
        expect_32(&body, &[([a, b, c], lut * 0x0101_0101)]);
    }
}

#[test]
fn comparisons_with_nan_and_signs() {
    let nan = f32::NAN.to_bits();
    let (one, two) = (1f32.to_bits(), 2f32.to_bits());
    for (name, ordered, with_nan) in [
        ("eq", [0, 1], 0),
        ("ne", [1, 0], 0),
        ("lt", [1, 0], 0),
        ("ge", [0, 1], 0),
        ("equ", [0, 1], 1),
        ("neu", [1, 0], 1),
        ("ltu", [1, 0], 1),
        ("geu", [0, 1], 1),
        ("num", [1, 1], 0),
        ("nan", [0, 0], 1),
    ] {
        let body = format!("setp.{name}.f32 %p1, %f10, %f11; selp.u32 %r20, 1, 0, %p1;");
        let cases = [([one, two], ordered[0]), ([one, one], ordered[1]), ([one, nan], with_nan)];
        expect_32(&body, &cases);
    }
    let body = "setp.lt.s32 %p1, %r10, %r11; selp.u32 %r20, 1, 0, %p1;";
    expect_32(body, &[([!0, 0], 1)]);
    let body = "setp.lo.u32 %p1, %r10, %r11; selp.u32 %r20, 1, 0, %p1;";
    expect_32(body, &[([!0, 0], 0)]);
    let body = "cvt.u16.u32 %h1, %r10; setp.lt.s16 %p1, %h1, -1; selp.u32 %r20, 1, 0, %p1;";
    expect_32(body, &[([0xfffe], 1), ([0xffff], 0), ([1], 0)]);
    // Both results, and a third predicate.
    let body = "setp.ne.u32 %p3, %r12, 0; setp.lt.and.u32 %p1|%p2, %r10, %r11, %p3;\n\
                selp.u32 %r21, 1, 0, %p1; selp.u32 %r22, 2, 0, %p2; or.b32 %r20, %r21, %r22;";
    expect_32(body, &[([1, 2, 1], 1), ([2, 1, 1], 2), ([1, 2, 0], 0)]);
    let body = "set.gt.u32.f32 %r20, %f10, %f11;";
    expect_32(body, &[([two, one], !0), ([one, nan], 0)]);
    let body = "slct.u32.s32 %r20, %r10, %r11, %r12;";
    expect_32(body, &[([7, 8, 0], 7), ([7, 8, !0], 8)]);
}

#[test]
fn float_minima_and_signs_of_zero() {
    let nan = f32::from_bits(0x7fff_ffff);
    expect_f32("min.f32 %f20, %f10, %f11;", &[([f32::NAN, 2.0], 2.0), ([-0.0, 0.0], -0.0)]);
    expect_f32("min.f32 %f20, %f10, %f11;", &[([f32::NAN, f32::NAN], nan), ([3.0, 2.0], 2.0)]);
    expect_f32("max.f32 %f20, %f10, %f11;", &[([2.0, f32::NAN], 2.0), ([-0.0, 0.0], 0.0)]);
    expect_f32("max.NaN.f32 %f20, %f10, %f11;", &[([2.0, f32::NAN], nan), ([2.0, 3.0], 3.0)]);
    expect_f32("neg.f32 %f20, %f10;", &[([0.0], -0.0), ([f32::INFINITY], f32::NEG_INFINITY)]);
    expect_f32("abs.f32 %f20, %f10;", &[([-0.0], 0.0), ([-2.5], 2.5)]);
    expect_f32("copysign.f32 %f20, %f10, %f11;", &[([-1.0, 3.0], -3.0)]);
    expect_f32("add.sat.f32 %f20, %f10, %f11;", &[([0.75, 0.75], 1.0), ([-1.0, 0.5], 0.0)]);
    let tiny = f32::from_bits(1);
    expect_f32("add.ftz.f32 %f20, %f10, %f11;", &[([tiny, 0.0], 0.0), ([1.0, tiny], 1.0)]);
    expect_f32("add.f32 %f20, %f10, %f11;", &[([tiny, tiny], f32::from_bits(2))]);
}

#[test]
fn directed_roundings() {
    let (low, high) = (1.0f32, f32::from_bits(0x3f80_0001));
    let little = 1e-10f32;
    for (name, plus, minus) in [
        ("rn", low, low),
        ("rz", low, f32::from_bits(0x3f7f_ffff)),
        ("rm", low, f32::from_bits(0x3f7f_ffff)),
        ("rp", high, low),
    ] {
        let body = format!("fma.{name}.f32 %f20, %f10, %f11, %f12;");
        expect_f32(&body, &[([1.0, 1.0, little], plus), ([1.0, 1.0, -little], minus)]);
    }
    // A product that needs 48 bits, and the same with both signs.
    let x = f32::from_bits(0x3f80_0003);
    let (down, up) = (f32::from_bits(0x3f80_0006), f32::from_bits(0x3f80_0007));
    expect_f32("mul.rm.f32 %f20, %f10, %f11;", &[([x, x], down), ([-x, x], -up)]);
    expect_f32("mul.rz.f32 %f20, %f10, %f11;", &[([x, x], down), ([-x, x], -down)]);
    expect_f32("add.rm.f32 %f20, %f10, %f11;", &[([1.0, -1.0], -0.0), ([1.0, little], 1.0)]);
    // One fma is not a product and a sum.
    let e = f32::EPSILON;
    expect_f32("fma.rn.f32 %f20, %f10, %f11, %f12;", &[([1.0 + e, 1.0 - e, -1.0], -e * e)]);
}

#[test]
fn special_functions() {
    expect_f32(
        "ex2.approx.f32 %f20, %f10;",
        &[
            ([0.0], 1.0),
            ([10.0], 1024.0),
            ([-149.0], f32::from_bits(1)),
            ([128.0], f32::INFINITY),
            ([f32::NEG_INFINITY], 0.0),
            ([0.5], std::f32::consts::SQRT_2),
        ],
    );
    expect_f32("lg2.approx.f32 %f20, %f10;", &[([8.0], 3.0), ([0.0], f32::NEG_INFINITY)]);
    expect_f32("rsqrt.approx.f32 %f20, %f10;", &[([4.0], 0.5), ([0.0], f32::INFINITY)]);
    expect_f32("rcp.rn.f32 %f20, %f10;", &[([3.0], 1.0 / 3.0), ([0.0], f32::INFINITY)]);
    expect_f32("div.rn.f32 %f20, %f10, %f11;", &[([1.0, 3.0], 1.0 / 3.0)]);
    expect_f32("sqrt.rn.f32 %f20, %f10;", &[([2.0], std::f32::consts::SQRT_2)]);
}

#[test]
fn doubles() {
    let bits = f64::to_bits;
    let body = "fma.rn.f64 %g1, %g10, %g11, %g12; mov.b64 %d20, %g1;";
    expect_64(body, &[([bits(3.0), bits(0.5), bits(1.0)], bits(2.5))]);
    let body = "div.rn.f64 %g1, %g10, %g11; mov.b64 %d20, %g1;";
    expect_64(body, &[([bits(1.0), bits(3.0)], bits(1.0 / 3.0))]);
    let body = "add.f64 %g1, %g10, 0d3FF0000000000000; neg.f64 %g2, %g1; mov.b64 %d20, %g2;";
    expect_64(body, &[([bits(1.5)], bits(-2.5))]);
}

#[test]
fn halves_round_once() {
    // 1 + 2^-8 is half way between two bf16 numbers: to even. A little more: up.
    let body = "cvt.u16.u32 %h1, %r10; cvt.u16.u32 %h2, %r11; cvt.u16.u32 %h3, %r12;\n\
                fma.rn.bf16 %h4, %h1, %h2, %h3; cvt.u32.u16 %r20, %h4;";
    expect_32(
        body,
        &[
            ([0x3f80, 0x3f80, 0x3b80], 0x3f80), // 1·1 + 2^-8
            ([0x3f81, 0x3f80, 0x3b80], 0x3f82), // 1.0078125 + 2^-8: tie to even, up
            ([0x3f80, 0x3f80, 0x3b81], 0x3f81),
            ([0x4000, 0x4040, 0xc0c0], 0x0000), // 2·3 - 6
            // The product 0x3f81² = 1 + 2^-6 + 2^-14 needs 15 bits: minus (1 + 2^-6) leaves 2^-14.
            ([0x3f81, 0x3f81, 0xbf82], 0x3880),
        ],
    );
    let pair = "fma.rn.bf16x2 %r20, %r10, %r11, %r12;";
    expect_32(pair, &[([0x4000_3f80, 0x4040_3f80, 0x3f80_3f80], 0x40e0_4000)]);
    expect_32("neg.bf16x2 %r20, %r10;", &[([0x3f80_bf80], 0xbf80_3f80)]);
    expect_32("max.bf16x2 %r20, %r10, %r11;", &[([0x3f80_bf80, 0x4000_0000], 0x4000_0000)]);
    expect_32("add.f16x2 %r20, %r10, %r11;", &[([0x3c00_4000, 0x3c00_4200], 0x4000_4500)]);
}

#[test]
fn vectors_in_registers() {
    expect_32(
        "mov.b32 {%h1, %h2}, %r10; mov.b32 %r20, {%h2, %h1};",
        &[([0x1234_5678], 0x5678_1234)],
    );
    let body = "mov.b64 {%r1, %r2}, %d10; mov.b64 %d20, {%r2, %r1};";
    expect_64(body, &[([0x1111_2222_3333_4444], 0x3333_4444_1111_2222)]);
    let body = "mov.b64 {%h1, %h2, %h3, %h4}, %d10; mov.b64 %d20, {%h4, %h3, %h2, %h1};";
    expect_64(body, &[([0x1111_2222_3333_4444], 0x4444_3333_2222_1111)]);
}
