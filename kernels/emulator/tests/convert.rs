//! `cvt` in all its kinds: ties, directions, saturation, NaN.

use crate::{expect_32, expect_64, expect_f32};

#[test]
fn bf16_ties_and_nan() {
    let cases = [
        (0x3f80_8000, 0x3f80), // a tie: to even
        (0x3f81_8000, 0x3f82),
        (0x3f80_8001, 0x3f81),
        (0x3f80_7fff, 0x3f80),
        (0x7f7f_ffff, 0x7f80), // overflow is infinity
        (0x7f80_0000, 0x7f80),
        (0x7fc0_0000, 0x7fff), // NaN is canonical
        (0xff80_0001, 0x7fff),
        (0x8000_0001, 0x8000),
    ];
    let cases = cases.map(|(from, to)| ([from], to));
    expect_32("cvt.rn.bf16.f32 %h1, %f10; cvt.u32.u16 %r20, %h1;", &cases);
    expect_32(
        "cvt.rz.bf16.f32 %h1, %f10; cvt.u32.u16 %r20, %h1;",
        &[([0x3f80_ffff], 0x3f80), ([0xbf80_ffff], 0xbf80)],
    );
    // The first operand goes to the high half.
    let two = "cvt.rn.bf16x2.f32 %r20, %f10, %f11;";
    expect_32(two, &[([0x3f80_0000, 0x4000_0000], 0x3f80_4000)]);
    let relu = "cvt.rn.relu.bf16x2.f32 %r20, %f10, %f11;";
    expect_32(relu, &[([0xbf80_0000, 0x4000_0000], 0x0000_4000)]);
    let widen = "cvt.u16.u32 %h1, %r10; cvt.f32.bf16 %f20, %h1; mov.b32 %r20, %f20;";
    expect_32(widen, &[([0xc049], 0xc049_0000)]);
    let f16 = "cvt.rn.f16.f32 %h1, %f10; cvt.u32.u16 %r20, %h1;";
    expect_32(f16, &[([0x3f80_0000], 0x3c00), ([0x477f_f000], 0x7c00), ([0x3380_0000], 1)]);
    let f16 = "cvt.rz.f16.f32 %h1, %f10; cvt.u32.u16 %r20, %h1;";
    expect_32(f16, &[([0x3f80_3fff], 0x3c01), ([0x477f_ffff], 0x7bff)]);
    let tf32 = "cvt.rna.tf32.f32 %r20, %f10;";
    expect_32(tf32, &[([0x3f80_1000], 0x3f80_2000), ([0x3f80_0fff], 0x3f80_0000)]);
}

#[test]
fn floats_to_integers() {
    let all = [2.5f32, -2.5, 3.5, -0.5, 1e10, -1e10, f32::NAN];
    let expected: [(&str, [i32; 7]); 4] = [
        ("rni", [2, -2, 4, 0, i32::MAX, i32::MIN, 0]),
        ("rzi", [2, -2, 3, 0, i32::MAX, i32::MIN, 0]),
        ("rmi", [2, -3, 3, -1, i32::MAX, i32::MIN, 0]),
        ("rpi", [3, -2, 4, 0, i32::MAX, i32::MIN, 0]),
    ];
    for (rounding, results) in expected {
        let cases: Vec<_> =
            all.iter().zip(results).map(|(x, y)| ([x.to_bits()], y as u32)).collect();
        expect_32(&format!("cvt.{rounding}.s32.f32 %r20, %f10;"), &cases);
    }
    expect_32(
        "cvt.rzi.u32.f32 %r20, %f10;",
        &[([(-1f32).to_bits()], 0), ([1e10f32.to_bits()], u32::MAX), ([f32::NAN.to_bits()], 0)],
    );
    expect_64(
        "cvt.rzi.s64.f32 %d20, %f10;",
        &[
            ([u64::from(f32::NAN.to_bits())], 1 << 63),
            ([u64::from(1e30f32.to_bits())], i64::MAX as u64),
        ],
    );
    let body = "cvt.rzi.s32.f64 %r1, %g10; cvt.u64.u32 %d20, %r1;";
    expect_64(body, &[([f64::NAN.to_bits()], 1 << 31), ([(-7.9f64).to_bits()], 0xffff_fff9)]);
    expect_64(
        "cvt.rzi.u64.f64 %d20, %g10;",
        &[([1e30f64.to_bits()], u64::MAX), ([(-1f64).to_bits()], 0)],
    );
    let body = "cvt.rni.s8.f32 %r20, %f10;";
    expect_32(body, &[([300f32.to_bits()], 127), ([(-300f32).to_bits()], (-128i32) as u32)]);
    let body = "cvt.rzi.u16.f32 %h1, %f10; cvt.u32.u16 %r20, %h1;";
    expect_32(body, &[([70000f32.to_bits()], 0xffff)]);
}

#[test]
fn floats_to_integral_floats() {
    expect_f32("cvt.rni.f32.f32 %f20, %f10;", &[([2.5], 2.0), ([-0.4], -0.0), ([1e20], 1e20)]);
    expect_f32("cvt.rmi.f32.f32 %f20, %f10;", &[([-2.5], -3.0)]);
    expect_f32("cvt.rpi.f32.f32 %f20, %f10;", &[([2.1], 3.0)]);
    expect_f32("cvt.sat.f32.f32 %f20, %f10;", &[([2.1], 1.0), ([f32::NAN], 0.0), ([-1.0], 0.0)]);
}

#[test]
fn integers_to_floats() {
    let big = 16_777_217u32; // 2^24 + 1, half way
    expect_32(
        "cvt.rn.f32.u32 %f20, %r10; mov.b32 %r20, %f20;",
        &[([big], 16_777_216f32.to_bits())],
    );
    expect_32(
        "cvt.rp.f32.u32 %f20, %r10; mov.b32 %r20, %f20;",
        &[([big], 16_777_218f32.to_bits())],
    );
    expect_32(
        "cvt.rz.f32.s32 %f20, %r10; mov.b32 %r20, %f20;",
        &[([!big + 1], (-16_777_216f32).to_bits())],
    );
    let body = "cvt.rn.f64.s64 %g1, %d10; mov.b64 %d20, %g1;";
    expect_64(body, &[([(-3i64) as u64], (-3f64).to_bits())]);
    let body = "cvt.rn.f32.u64 %f20, %d10; mov.b32 %r1, %f20; cvt.u64.u32 %d20, %r1;";
    expect_64(body, &[([u64::MAX], u64::from(1.844_674_4e19f32.to_bits()))]);
    let body = "cvt.u16.u32 %h1, %r10; cvt.rn.f32.s16 %f20, %h1; mov.b32 %r20, %f20;";
    expect_32(body, &[([0xffff], (-1f32).to_bits())]);
    let body = "cvt.rm.f32.f64 %f20, %g10; mov.b32 %r1, %f20; cvt.u64.u32 %d20, %r1;";
    expect_64(
        body,
        &[
            ([(1.0 + 1e-12f64).to_bits()], 0x3f80_0000),
            ([(-1.0 - 1e-12f64).to_bits()], 0xbf80_0001),
        ],
    );
}

#[test]
fn integers_to_integers() {
    expect_32("cvt.s32.s8 %r20, %r10;", &[([0x80], 0xffff_ff80), ([0x17f], 0x7f)]);
    expect_32("cvt.u32.u8 %r20, %r10;", &[([0x180], 0x80)]);
    expect_32("cvt.sat.u8.s32 %r20, %r10;", &[([!0], 0), ([300], 255), ([7], 7)]);
    expect_32("cvt.sat.s8.s32 %r20, %r10;", &[([!999], (-128i32) as u32), ([300], 127)]);
    expect_64("cvt.s64.s32 %d20, %r10;", &[([0xffff_ffff], u64::MAX)]);
    expect_64("cvt.u64.u32 %d20, %r10;", &[([0xffff_ffff], 0xffff_ffff)]);
    expect_64("cvt.sat.s32.s64 %r1, %d10; cvt.s64.s32 %d20, %r1;", &[([1 << 40], 0x7fff_ffff)]);
    let body = "cvt.s16.s32 %h1, %r10; cvt.s32.s16 %r20, %h1;";
    expect_32(body, &[([0x1_8000], 0xffff_8000)]);
    let body = "cvt.s16.s8 %h1, %r10; cvt.u32.u16 %r20, %h1;";
    expect_32(body, &[([0x80], 0xff80)]);
}
