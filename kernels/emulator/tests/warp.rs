//! What crosses lanes: shuffles, votes, matches, `redux`, `ldmatrix`, `mma`; layouts written out from
//! the PTX manual, not taken from the emulator.

use emulator::{Checks, FaultKind, Shape};

use crate::{bytes_of_words, module, run, try_run, words};

/// Runs a body of one warp; `%r10` is the lane's word of the input, `%r20` its result, `%p1` a predicate
/// that is stored beside it.
fn warp(body: &str, input: &[u32; 32]) -> (Vec<u32>, Vec<u32>) {
    let source = module(
        "",
        &format!(
            "mad.wide.u32 %d4, %r1, 8, %d1; mad.wide.u32 %d5, %r1, 4, %d2; ld.global.u32 %r10, [%d5];\n\
             setp.ne.u32 %p1, 0, 0; {body}\n selp.u32 %r21, 1, 0, %p1;\n\
             st.global.v2.u32 [%d4], {{%r20, %r21}};"
        ),
    );
    let output = words(&run(&source, Shape::linear(1, 32), &bytes_of_words(*input), 256));
    (
        output.iter().step_by(2).copied().collect(),
        output.iter().skip(1).step_by(2).copied().collect(),
    )
}

fn lanes() -> [u32; 32] {
    std::array::from_fn(|lane| 100 + lane as u32)
}

#[test]
fn shuffle_modes_with_clamp_and_segments() {
    // (mode, b, c, source lane of lane l and whether it is in range), by the manual's pseudocode.
    type Source = fn(usize) -> (usize, bool);
    let cases: [(&str, u32, u32, Source); 8] = [
        ("up", 1, 0, |l| if l >= 1 { (l - 1, true) } else { (l, false) }),
        ("down", 4, 31, |l| if l + 4 <= 31 { (l + 4, true) } else { (l, false) }),
        ("bfly", 16, 31, |l| (l ^ 16, true)),
        ("idx", 3, 31, |_| (3, true)),
        // Segments of 8 lanes: bits 8..13 of c are 0x18.
        ("up", 2, 0x1800, |l| if l % 8 >= 2 { (l - 2, true) } else { (l, false) }),
        ("down", 3, 0x181f, |l| if l % 8 + 3 < 8 { (l + 3, true) } else { (l, false) }),
        ("idx", 9, 0x181f, |l| (l / 8 * 8 + 1, true)),
        // A clamp of 7 without segments: sources beyond lane 7 are out of range.
        ("bfly", 4, 7, |l| if l ^ 4 <= 7 { (l ^ 4, true) } else { (l, false) }),
    ];
    for (mode, b, c, source) in cases {
        let body = format!("shfl.sync.{mode}.b32 %r20|%p1, %r10, {b}, {c}, -1;");
        let (values, in_range) = warp(&body, &lanes());
        for lane in 0..32 {
            let (from, good) = source(lane);
            assert_eq!(values[lane], 100 + from as u32, "{body} lane {lane}");
            assert_eq!(in_range[lane], u32::from(good), "{body} lane {lane}");
        }
    }
}

#[test]
fn votes_and_matches() {
    let input: [u32; 32] = std::array::from_fn(|lane| lane as u32 % 4);
    let ballot = "setp.eq.u32 %p2, %r10, 1; vote.sync.ballot.b32 %r20, %p2, -1;";
    assert_eq!(warp(ballot, &input).0, [0x2222_2222; 32]);
    let all = "setp.lt.u32 %p2, %r10, 4; vote.sync.all.pred %p1, %p2, -1; mov.u32 %r20, 0;";
    assert_eq!(warp(all, &input).1, [1; 32]);
    let any = "setp.eq.u32 %p2, %r10, 9; vote.sync.any.pred %p1, !%p2, -1; mov.u32 %r20, 0;";
    assert_eq!(warp(any, &input).1, [1; 32]);
    let uniform = "setp.eq.u32 %p2, %r10, 1; vote.sync.uni.pred %p1, %p2, -1; mov.u32 %r20, 0;";
    assert_eq!(warp(uniform, &input).1, [0; 32]);
    let (found, _) = warp("match.any.sync.b32 %r20, %r10, -1;", &input);
    assert_eq!(found[2], 0x4444_4444);
    let (found, same) = warp("match.all.sync.b32 %r20|%p1, %r10, -1;", &[7; 32]);
    assert_eq!((found[0], same[0]), (u32::MAX, 1));
    let (found, same) = warp("match.all.sync.b32 %r20|%p1, %r10, -1;", &input);
    assert_eq!((found[0], same[0]), (0, 0));
    assert_eq!(warp("activemask.b32 %r20;", &input).0, [u32::MAX; 32]);
}

#[test]
fn reductions_of_a_warp() {
    let input: [u32; 32] = std::array::from_fn(|lane| (lane as u32).wrapping_sub(4));
    assert_eq!(warp("redux.sync.add.s32 %r20, %r10, -1;", &input).0[5], 496 - 128);
    assert_eq!(warp("redux.sync.min.s32 %r20, %r10, -1;", &input).0[5], 4u32.wrapping_neg());
    assert_eq!(warp("redux.sync.max.u32 %r20, %r10, -1;", &input).0[5], u32::MAX);
    assert_eq!(warp("redux.sync.xor.b32 %r20, %r10, -1;", &lanes()).0[0], 0);
    // Two halves of a warp, each with a mask of its own.
    let body = "setp.lt.u32 %p2, %r1, 16; selp.b32 %r11, 0xffff, 0xffff0000, %p2;\n\
                redux.sync.min.u32 %r20, %r10, %r11;";
    let (least, _) = warp(body, &lanes());
    assert_eq!((least[0], least[31]), (100, 116));
}

#[test]
fn lane_masks() {
    assert_eq!(warp("mov.u32 %r20, %lanemask_lt;", &lanes()).0[3], 7);
    assert_eq!(warp("mov.u32 %r20, %lanemask_ge;", &lanes()).0[31], 1 << 31);
    assert_eq!(warp("mov.u32 %r20, %laneid;", &lanes()).0[31], 31);
}

fn bf16(x: f32) -> u32 {
    assert_eq!(x.to_bits() & 0xffff, 0, "{x} is exact in bf16");
    x.to_bits() >> 16
}

/// Small integers, so that every sum is exact in f32.
fn entry(row: usize, column: usize, salt: usize) -> f32 {
    ((row * 7 + column * 3 + salt) % 11) as f32 - 5.0
}

/// The manual, "Matrix fragments for mma.m16n8k16 with floating point type": groupID = lane >> 2,
/// threadID_in_group = lane % 4; element i of A is at
/// row = groupID for i in {0, 1, 4, 5}, groupID + 8 for the others;
/// column = threadID_in_group * 2 + (i & 1), + 8 for i >= 4.
fn a_place(lane: usize, i: usize) -> (usize, usize) {
    let row = if matches!(i, 0 | 1 | 4 | 5) { lane >> 2 } else { (lane >> 2) + 8 };
    (row, (lane % 4) * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
}

/// B: row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2; column = groupID.
fn b_place(lane: usize, i: usize) -> (usize, usize) {
    ((lane % 4) * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, lane >> 2)
}

/// C and D: row = groupID for i < 2, groupID + 8 else; column = threadID_in_group * 2 + (i & 1).
fn c_place(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane % 4) * 2 + (i & 1))
}

#[test]
fn mma_m16n8k16_of_bf16() {
    let mut input = Vec::new();
    for lane in 0..32 {
        for pair in 0..4 {
            let half = |i: usize| {
                let (row, column) = a_place(lane, i);
                bf16(entry(row, column, 1))
            };
            input.push(half(2 * pair) | half(2 * pair + 1) << 16);
        }
        for pair in 0..2 {
            let half = |i: usize| {
                let (row, column) = b_place(lane, i);
                bf16(entry(row, column, 2))
            };
            input.push(half(2 * pair) | half(2 * pair + 1) << 16);
        }
        for i in 0..4 {
            let (row, column) = c_place(lane, i);
            input.push(entry(row, column, 3).to_bits());
        }
    }
    let loads: String =
        (0..10).map(|i| format!("ld.global.u32 %r{}, [%d5+{}];", 10 + i, 4 * i)).collect();
    let source = module(
        "",
        &format!(
            "mad.wide.u32 %d4, %r1, 16, %d1; mad.wide.u32 %d5, %r1, 40, %d2; {loads}\n\
             mov.b32 %f1, %r16; mov.b32 %f2, %r17; mov.b32 %f3, %r18; mov.b32 %f4, %r19;\n\
             mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f1,%f2,%f3,%f4}},\n\
             {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%f1,%f2,%f3,%f4}};\n\
             st.global.v4.f32 [%d4], {{%f1,%f2,%f3,%f4}};"
        ),
    );
    let output = words(&run(&source, Shape::linear(1, 32), &bytes_of_words(input), 512));
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c_place(lane, i);
            let product = |k: usize| entry(row, k, 1) * entry(k, column, 2);
            let expected = (0..16).map(product).sum::<f32>() + entry(row, column, 3);
            let result = f32::from_bits(output[lane * 4 + i]);
            assert_eq!(result, expected, "row {row} column {column}");
        }
    }
}

#[test]
fn mma_m16n8k8_of_tf32() {
    // A: row = groupID (+ 8 for odd i), column = threadID_in_group (+ 4 for i >= 2);
    // B: row = threadID_in_group (+ 4 for i = 1), column = groupID.
    let mut input = Vec::new();
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = ((lane >> 2) + 8 * (i & 1), lane % 4 + 4 * (i >> 1));
            // Bits below tf32's ten are ignored.
            input.push(entry(row, column, 1).to_bits() | 0x1fff);
        }
        for i in 0..2 {
            input.push(entry(lane % 4 + 4 * i, lane >> 2, 2).to_bits());
        }
    }
    let loads: String =
        (0..6).map(|i| format!("ld.global.u32 %r{}, [%d5+{}];", 10 + i, 4 * i)).collect();
    let source = module(
        "",
        &format!(
            "mad.wide.u32 %d4, %r1, 16, %d1; mad.wide.u32 %d5, %r1, 24, %d2; {loads}\n\
             mov.f32 %f5, 0f00000000;\n\
             mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {{%f1,%f2,%f3,%f4}},\n\
             {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%f5,%f5,%f5,%f5}};\n\
             st.global.v4.f32 [%d4], {{%f1,%f2,%f3,%f4}};"
        ),
    );
    let output = words(&run(&source, Shape::linear(1, 32), &bytes_of_words(input), 512));
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c_place(lane, i);
            let expected = (0..8).map(|k| entry(row, k, 1) * entry(k, column, 2)).sum::<f32>();
            let result = f32::from_bits(output[lane * 4 + i]);
            assert_eq!(result, expected, "row {row} column {column}");
        }
    }
}

/// Fills shared memory with halves 0, 1, 2.. and loads `count` 8×8 matrices of them, each row of lane l's
/// address at byte 16·l.
fn load_matrices(count: usize, transposed: bool) -> Vec<u32> {
    let registers = ["%r20", "%r21", "%r22", "%r23"];
    let list = registers[..count].join(",");
    let trans = if transposed { ".trans" } else { "" };
    let source = module(
        "",
        &format!(
            "mov.u32 %r4, dynamic; mad.lo.u32 %r5, %r1, 16, %r4; shl.b32 %r6, %r1, 3;\n\
             mov.u32 %r20, 0; mov.u32 %r21, 0; mov.u32 %r22, 0; mov.u32 %r23, 0;\n\
             mad.lo.u32 %r10, %r6, 0x10001, 0x10000; add.u32 %r11, %r10, 0x20002;\n\
             add.u32 %r12, %r11, 0x20002; add.u32 %r13, %r12, 0x20002;\n\
             st.shared.v4.u32 [%r5], {{%r10, %r11, %r12, %r13}}; bar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{list}}}, [%r5];\n\
             mad.wide.u32 %d4, %r1, 16, %d1; st.global.v4.u32 [%d4], {{%r20, %r21, %r22, %r23}};"
        ),
    );
    let shape = Shape { shared_bytes: 512, ..Shape::linear(1, 32) };
    words(&run(&source, shape, &[], 512))
}

#[test]
fn ldmatrix_fragments() {
    // The manual: register i of lane l holds, of matrix i, row l / 4, elements 2 (l % 4) and the next;
    // with .trans, column l / 4, rows 2 (l % 4) and the next. Row r of matrix i is lane 8 i + r's.
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            let output = load_matrices(count, transposed);
            for lane in 0..32 {
                for matrix in 0..count {
                    let value =
                        |row: usize, column: usize| ((8 * matrix + row) * 8 + column) as u32;
                    let (a, b) = (lane / 4, 2 * (lane % 4));
                    let expected = if transposed {
                        value(b, a) | value(b + 1, a) << 16
                    } else {
                        value(a, b) | value(a, b + 1) << 16
                    };
                    let result = output[4 * lane + matrix];
                    assert_eq!(result, expected, "x{count} trans {transposed} lane {lane}");
                }
            }
        }
    }
}

#[test]
fn lanes_that_are_not_there() {
    let divergent = |body: &str| {
        let source = module(
            "",
            &format!(
                "setp.lt.u32 %p1, %r1, 16; @!%p1 bra $end;\n{body}\n$end: add.u32 %r5, %r1, 1;"
            ),
        );
        let shape = Shape { shared_bytes: 512, ..Shape::linear(1, 32) };
        let (result, _) = try_run(Checks::default(), &source, shape, &[0; 256], 256, 0);
        result.map(|_| ()).map_err(|report| report.kind)
    };
    let fault = Err(FaultKind::Divergence);
    assert_eq!(divergent("shfl.sync.bfly.b32 %r20, %r1, 1, 31, -1;"), fault);
    assert_eq!(divergent("shfl.sync.bfly.b32 %r20, %r1, 1, 31, 0xffff;"), Ok(()));
    assert_eq!(divergent("shfl.sync.bfly.b32 %r20, %r1, 1, 31, 0xfff;"), fault, "not a member");
    assert_eq!(
        divergent("shfl.sync.down.b32 %r20, %r1, 1, 31, 0xffff;"),
        Err(FaultKind::InactiveLane),
        "lane 15 reads lane 16"
    );
    assert_eq!(divergent("vote.sync.ballot.b32 %r20, %p1, -1;"), fault);
    assert_eq!(divergent("bar.warp.sync -1;"), fault);
    assert_eq!(divergent("bar.sync 0;"), fault);
    let mma = "mov.f32 %f1, 0f00000000; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32\n\
               {%f1,%f1,%f1,%f1}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%f1,%f1,%f1,%f1};";
    assert_eq!(divergent(mma), fault);
    let load = "mov.u32 %r4, 0; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r20}, [%r4];";
    assert_eq!(divergent(load), fault);
}

#[test]
fn lanes_that_never_existed_or_exited_are_not_missed() {
    let source = module("", "shfl.sync.idx.b32 %r20, %r1, 0, 31, -1;");
    run(&source, Shape::linear(1, 20), &[], 4);
    let source = module(
        "",
        "setp.ge.u32 %p1, %r1, 8; @%p1 exit; vote.sync.ballot.b32 %r20, %p1, -1; st.global.u32 [%d1], %r20;",
    );
    let shape = Shape::linear(1, 32);
    assert_eq!(words(&run(&source, shape, &[], 4)), [0]);
}
