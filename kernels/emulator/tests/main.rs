//! Tests of the emulator: instructions against the PTX manual, checks that must report and must not,
//! counters, the driver's functions, and compiled kernels against plain computations.

mod arithmetic;
mod checks;
mod compiled;
mod convert;
mod counting;
mod driver;
mod flow;
mod warp;

use emulator::{Checks, Device, Report, Shape};

/// A kernel `k(out, in, extra)` around a body: `%d1`, `%d2`, `%d3` are the parameters, `%r1` the
/// thread's index in the grid.
fn module(declarations: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 dynamic[];\n\
         {declarations}\n\
         .visible .entry k(.param .u64 out, .param .u64 in, .param .u64 extra)\n{{\n\
         .reg .pred %p<20>; .reg .b16 %h<40>; .reg .b32 %r<80>; .reg .f32 %f<60>;\n\
         .reg .b64 %d<60>; .reg .f64 %g<20>;\n\
         ld.param.u64 %d1, [out]; ld.param.u64 %d2, [in]; ld.param.u64 %d3, [extra];\n\
         mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x;\n\
         mad.lo.s32 %r1, %r2, %r3, %r1;\n{body}\nret;\n}}"
    )
}

/// Runs `k` on one device with `out` bytes of output (unwritten) and an input; the output afterwards.
fn try_run(
    checks: Checks,
    source: &str,
    shape: Shape,
    input: &[u8],
    out: usize,
    extra: u64,
) -> (Result<Vec<u8>, Report>, Device) {
    let mut device = Device::new(checks);
    let module = device.load(source).unwrap_or_else(|error| panic!("{error}\n{source}"));
    let kernel = module.kernel("k").expect("the kernel");
    let output = device.allocate(out.max(1) as u64).expect("memory");
    let from = device.allocate(input.len().max(1) as u64).expect("memory");
    device.write(from, input).expect("in bounds");
    let arguments: Vec<u8> =
        [output, from, extra].iter().flat_map(|value| value.to_le_bytes()).collect();
    let result = device.launch(&kernel, shape, &arguments).map(|()| {
        let mut bytes = vec![0; out];
        device.read(output, &mut bytes).expect("in bounds");
        bytes
    });
    (result, device)
}

/// As [`try_run`] with all checks, and no fault.
fn run(source: &str, shape: Shape, input: &[u8], out: usize) -> Vec<u8> {
    let (result, _) = try_run(Checks::default(), source, shape, input, out, 0);
    result.unwrap_or_else(|report| panic!("{report}\n{source}"))
}

/// Evaluates a body for up to 32 cases at once, a lane each. A case's operands are in `%r10`, `%r11`,
/// `%r12`, `%r13` (low 32 bits), `%f10`.. (the same bits), `%d10`.. and `%g10`.. (64 bits); the result is
/// what the body leaves in `%d20`.
fn evaluate<const N: usize>(body: &str, cases: &[[u64; N]]) -> Vec<u64> {
    assert!(cases.len() <= 32 && N <= 4, "at most 32 cases of 4 operands");
    let mut loads = String::new();
    for operand in 0..N {
        let register = 10 + operand;
        loads += &format!(
            "ld.global.u64 %d{register}, [%d5+{}]; cvt.u32.u64 %r{register}, %d{register};\n\
             mov.b32 %f{register}, %r{register}; mov.b64 %g{register}, %d{register};\n",
            8 * operand
        );
    }
    let source = module(
        "",
        &format!(
            "mad.wide.u32 %d4, %r1, 8, %d1; mad.wide.u32 %d5, %r1, {}, %d2;\n{loads}{body}\n\
             st.global.u64 [%d4], %d20;",
            8 * N
        ),
    );
    let input: Vec<u8> = cases.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let threads = cases.len() as u32;
    let output = run(&source, Shape::linear(1, threads), &input, 8 * cases.len());
    output.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// 32-bit operands, result in `%r20`.
fn evaluate_32<const N: usize>(body: &str, cases: &[[u32; N]]) -> Vec<u32> {
    let cases: Vec<[u64; N]> = cases.iter().map(|case| case.map(u64::from)).collect();
    let results = evaluate(&format!("{body} cvt.u64.u32 %d20, %r20;"), &cases);
    results.into_iter().map(|value| value as u32).collect()
}

/// Checks 32-bit results, cases as (operands, expected).
fn expect_32<const N: usize>(body: &str, cases: &[([u32; N], u32)]) {
    let operands: Vec<[u32; N]> = cases.iter().map(|(operands, _)| *operands).collect();
    let results = evaluate_32(body, &operands);
    for ((operands, expected), result) in cases.iter().zip(results) {
        assert_eq!(result, *expected, "{body} on {operands:x?}: {result:#x}, not {expected:#x}");
    }
}

/// Checks f32 results bit by bit, result in `%f20`.
fn expect_f32<const N: usize>(body: &str, cases: &[([f32; N], f32)]) {
    let cases: Vec<([u32; N], u32)> = cases
        .iter()
        .map(|(operands, expected)| (operands.map(f32::to_bits), expected.to_bits()))
        .collect();
    expect_32(&format!("{body} mov.b32 %r20, %f20;"), &cases);
}

/// Checks 64-bit results, result in `%d20`.
fn expect_64<const N: usize>(body: &str, cases: &[([u64; N], u64)]) {
    let operands: Vec<[u64; N]> = cases.iter().map(|(operands, _)| *operands).collect();
    for ((operands, expected), result) in cases.iter().zip(evaluate(body, &operands)) {
        assert_eq!(result, *expected, "{body} on {operands:x?}: {result:#x}, not {expected:#x}");
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn bytes_of_words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
