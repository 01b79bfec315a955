//! Divergence: nested branches, loops of different lengths, early exits, tables of branches, barriers.

use emulator::{Checks, FaultKind, Shape};

use crate::{evaluate_32, module, run, try_run, words};

#[test]
fn nested_branches_meet_again() {
    let body = "mov.u32 %r20, 0; and.b32 %r21, %r10, 1; setp.eq.u32 %p1, %r21, 0; @%p1 bra $even;\n\
                and.b32 %r22, %r10, 2; setp.eq.u32 %p2, %r22, 0; @%p2 bra $one;\n\
                add.u32 %r20, %r20, 3; bra $join;\n$one: add.u32 %r20, %r20, 1; bra $join;\n\
                $even: add.u32 %r20, %r20, 100;\n$join: activemask.b32 %r23; setp.eq.u32 %p3, %r23, 0xff;\n\
                @!%p3 add.u32 %r20, %r20, 1000;";
    let cases: Vec<[u32; 1]> = (0..8).map(|x| [x]).collect();
    let expected = [100, 1, 100, 3, 100, 1, 100, 3];
    assert_eq!(evaluate_32(body, &cases), expected);
}

#[test]
fn loops_of_different_lengths() {
    // Collatz steps, with an exit in the middle of the loop for one value.
    let body = "mov.u32 %r20, 0; mov.u32 %r21, %r10;\n$loop: setp.eq.u32 %p1, %r21, 1; @%p1 bra $done;\n\
                setp.eq.u32 %p3, %r21, 7; @%p3 bra $seven;\n\
                and.b32 %r22, %r21, 1; setp.eq.u32 %p2, %r22, 0; @%p2 bra $halve;\n\
                mad.lo.u32 %r21, %r21, 3, 1; bra $next;\n$halve: shr.u32 %r21, %r21, 1;\n\
                $next: add.u32 %r20, %r20, 1; bra $loop;\n$seven: mov.u32 %r20, 777;\n$done:";
    let cases: Vec<[u32; 1]> = (1..33).map(|x| [x]).collect();
    let steps = |mut x: u32| {
        let mut count = 0;
        while x != 1 {
            if x == 7 {
                return 777;
            }
            x = if x & 1 == 0 { x / 2 } else { 3 * x + 1 };
            count += 1;
        }
        count
    };
    let expected: Vec<u32> = (1..33).map(steps).collect();
    assert_eq!(evaluate_32(body, &cases), expected);
}

#[test]
fn branches_through_a_table() {
    let body = "min.u32 %r21, %r10, 3; mov.u32 %r20, 0;\n$list: .branchtargets $a, $b, $c, $b;\n\
                brx.idx %r21, $list;\n$a: add.u32 %r20, %r20, 1;\n$b: add.u32 %r20, %r20, 10;\n$c:";
    let cases: Vec<[u32; 1]> = (0..6).map(|x| [x]).collect();
    assert_eq!(evaluate_32(body, &cases), [11, 10, 0, 10, 10, 10]);
}

#[test]
fn a_slot_is_not_lost_to_the_other_side() {
    // Both sides fill many registers; the value from before must survive on each lane.
    let fill = |salt: u32| -> String {
        (30..60).map(|r| format!("add.u32 %r{r}, %r10, {};", salt * r)).collect()
    };
    let sum: String = (30..60).map(|r| format!("add.u32 %r20, %r20, %r{r};")).collect();
    let body = format!(
        "mul.lo.u32 %r11, %r10, 7; setp.lt.u32 %p1, %r10, 5; @%p1 bra $small;\n\
         {} mov.u32 %r20, 0; {sum} bra $end;\n$small: {} mov.u32 %r20, 0; {sum}\n$end: add.u32 %r20, %r20, %r11;",
        fill(1),
        fill(2)
    );
    let cases: Vec<[u32; 1]> = (0..10).map(|x| [x]).collect();
    let total: u32 = (30..60).sum();
    let expected: Vec<u32> =
        (0..10).map(|x| 30 * x + if x < 5 { 2 } else { 1 } * total + 7 * x).collect();
    assert_eq!(evaluate_32(&body, &cases), expected);
}

#[test]
fn a_guarded_write_keeps_other_lanes() {
    let body = "mov.u32 %r20, 5; setp.eq.u32 %p1, %r10, 1; @%p1 mov.u32 %r20, 6; @!%p1 add.u32 %r20, %r20, 2;";
    assert_eq!(evaluate_32(body, &[[0], [1], [2]]), [7, 6, 7]);
}

#[test]
fn lanes_that_return_early_are_not_waited_for() {
    // As nvcc may write it: a return of its own, a jump to the common one, work before the return, and
    // a return in the middle of another branch or of a loop.
    let rest = "vote.sync.ballot.b32 %r20, 1, -1; bar.sync 0; mad.wide.u32 %d4, %r1, 4, %d1;\n\
                st.global.u32 [%d4], %r20;";
    for body in [
        format!("setp.lt.u32 %p1, %r1, 8; @%p1 bra $go; ret; $go: {rest}"),
        format!("setp.ge.u32 %p1, %r1, 8; @%p1 bra $end; {rest} $end:"),
        format!(
            "setp.lt.u32 %p1, %r1, 8; @%p1 bra $go; st.global.u32 [%d2], %r3; bra $end; $go: {rest} $end:"
        ),
        format!(
            "setp.lt.u32 %p1, %r1, 16; @!%p1 bra $join; setp.ge.u32 %p2, %r1, 8; @%p2 bra $end;\n\
             add.u32 %r5, %r1, 1; $join: setp.ge.u32 %p3, %r1, 16; @%p3 bra $end; {rest} $end:"
        ),
        format!(
            "mov.u32 %r5, 31; $loop: setp.eq.u32 %p1, %r5, %r1; @%p1 bra $end;\n\
             vote.sync.ballot.b32 %r6, 1, -1; sub.u32 %r5, %r5, 1; setp.ge.u32 %p2, %r5, 8;\n\
             @%p2 bra $loop; {rest} $end:"
        ),
    ] {
        let output = run(&module("", &body), Shape::linear(1, 32), &[0; 4], 32);
        assert_eq!(words(&output), [0xff; 8], "{body}");
    }
}

#[test]
fn barriers_order_warps() {
    // Each thread writes its index and reads that of the next warp's.
    let source = module(
        "",
        "mov.u32 %r4, dynamic; mad.lo.u32 %r5, %r1, 4, %r4; st.shared.u32 [%r5], %r1; bar.sync 0;\n\
         add.u32 %r6, %r1, 32; rem.u32 %r6, %r6, 128; mad.lo.u32 %r7, %r6, 4, %r4;\n\
         ld.shared.u32 %r8, [%r7]; mad.wide.u32 %d4, %r1, 4, %d1; st.global.u32 [%d4], %r8;",
    );
    let shape = Shape { shared_bytes: 512, ..Shape::linear(1, 128) };
    let expected: Vec<u32> = (0..128).map(|thread| (thread + 32) % 128).collect();
    assert_eq!(words(&run(&source, shape, &[], 512)), expected);
}

#[test]
fn barriers_that_reduce() {
    let source = module(
        "",
        "setp.lt.u32 %p1, %r1, 40; bar.red.popc.u32 %r20, 0, %p1; bar.red.and.pred %p2, 0, %p1;\n\
         bar.red.or.pred %p3, 0, %p1; selp.u32 %r21, 1, 0, %p2; selp.u32 %r22, 2, 0, %p3;\n\
         add.u32 %r20, %r20, %r21; add.u32 %r20, %r20, %r22; mad.wide.u32 %d4, %r1, 4, %d1;\n\
         st.global.u32 [%d4], %r20;",
    );
    assert_eq!(words(&run(&source, Shape::linear(1, 64), &[], 256)), [42; 64]);
}

#[test]
fn named_barriers_of_some_warps() {
    // Warps 0 and 1 hand a value over barrier 1; warp 2 does not take part.
    let source = module(
        "",
        "mov.u32 %r4, dynamic; setp.ge.u32 %p1, %r1, 64; @%p1 bra $end; setp.ge.u32 %p2, %r1, 32;\n\
         @%p2 bra $reader; mad.lo.u32 %r5, %r1, 4, %r4; st.shared.u32 [%r5], %r1; bar.arrive 1, 64; bra $end;\n\
         $reader: bar.sync 1, 64; mad.lo.u32 %r5, %r1, 4, %r4; ld.shared.u32 %r6, [%r5+-128];\n\
         sub.u32 %r7, %r1, 32; mad.wide.u32 %d4, %r7, 4, %d1; st.global.u32 [%d4], %r6;\n$end:",
    );
    let shape = Shape { shared_bytes: 128, ..Shape::linear(1, 96) };
    let expected: Vec<u32> = (0..32).collect();
    assert_eq!(words(&run(&source, shape, &[], 128)), expected);
}

#[test]
fn endless_loops_end() {
    let checks = Checks { instruction_budget: 10_000, ..Checks::default() };
    let source = module("", "$loop: bra $loop;");
    let (result, _) = try_run(checks, &source, Shape::linear(1, 32), &[], 4, 0);
    assert_eq!(result.expect_err("endless").kind, FaultKind::Budget);
}

#[test]
fn traps() {
    let source = module("", "setp.eq.u32 %p1, %r1, 3; @%p1 trap;");
    let (result, _) = try_run(Checks::default(), &source, Shape::linear(1, 32), &[], 4, 0);
    assert_eq!(result.expect_err("a trap").kind, FaultKind::Trap);
}
