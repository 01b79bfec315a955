//! Every check: a kernel that is wrong is reported, and the same kernel made right is not.

use emulator::{Checks, Device, FaultKind, Report, Shape};

use crate::{module, try_run};

fn outcome(source: &str, shape: Shape, out: usize) -> Result<(), FaultKind> {
    let (result, _) = try_run(Checks::default(), source, shape, &[1; 256], out, 0);
    result.map(|_| ()).map_err(|report| report.kind)
}

fn warp() -> Shape {
    Shape::linear(1, 32)
}

fn with_shared(threads: u32, bytes: usize) -> Shape {
    Shape { shared_bytes: bytes, ..Shape::linear(1, threads) }
}

#[test]
fn out_of_bounds_names_the_line() {
    let body = "mad.wide.u32 %d4, %r1, 4, %d1;\n.loc 1 42 7\nst.global.u32 [%d4+4], %r1;";
    let source = module("", body) + "\n.file 1 \"kernels/cuda/example.cu\"\n";
    let (result, _) = try_run(Checks::default(), &source, warp(), &[], 128, 0);
    let report = result.expect_err("the last lane is out of bounds");
    assert_eq!(report.kind, FaultKind::OutOfBounds);
    assert_eq!(report.kernel, "k");
    let place = report.place.clone().expect("an instruction");
    assert_eq!(place.source, Some(("kernels/cuda/example.cu".to_owned(), 42)));
    assert_eq!((place.lane, place.warp, place.block), (Some(31), 0, [0; 3]));
    assert!(report.to_string().contains("kernels/cuda/example.cu:42"), "{report}");
    assert_eq!(outcome(&source, warp(), 132), Ok(()));
}

#[test]
fn a_guarded_access_is_not_out_of_bounds() {
    let source = module(
        "",
        "mad.wide.u32 %d4, %r1, 4, %d1; setp.lt.u32 %p1, %r1, 10; @%p1 st.global.u32 [%d4], %r1;",
    );
    assert_eq!(outcome(&source, warp(), 40), Ok(()));
    assert_eq!(outcome(&source, warp(), 36), Err(FaultKind::OutOfBounds));
}

#[test]
fn shared_and_local_bounds() {
    let store = |offset: u32| {
        module("", &format!("mad.lo.u32 %r5, %r1, 4, {offset}; st.shared.u32 [%r5], %r1;"))
    };
    assert_eq!(outcome(&store(0), with_shared(32, 128), 4), Ok(()));
    assert_eq!(outcome(&store(4), with_shared(32, 128), 4), Err(FaultKind::OutOfBounds));
    assert_eq!(outcome(&store(0), warp(), 4), Err(FaultKind::OutOfBounds), "no shared memory");
    let local = |index: &str| {
        format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c)\n\
             {{ .local .align 4 .b8 depot[16]; .reg .b64 %d<9>; .reg .b32 %r<9>;\n\
             mov.u64 %d1, depot; cvta.local.u64 %d2, %d1; mov.u32 %r1, %tid.x;\n\
             st.u32 [%d2+{index}], %r1; ld.local.u32 %r2, [%d1+{index}]; ret; }}"
        )
    };
    assert_eq!(outcome(&local("12"), warp(), 4), Ok(()));
    assert_eq!(outcome(&local("16"), warp(), 4), Err(FaultKind::OutOfBounds));
}

#[test]
fn misaligned_accesses() {
    let source =
        |offset: u32| module("", &format!("ld.global.v2.u32 {{%r5, %r6}}, [%d2+{offset}];"));
    assert_eq!(outcome(&source(8), warp(), 4), Ok(()));
    assert_eq!(outcome(&source(4), warp(), 4), Err(FaultKind::Misaligned));
}

#[test]
fn null_and_wild_pointers() {
    let source = module("", "mov.u64 %d4, 0; ld.global.u32 %r5, [%d4];");
    assert_eq!(outcome(&source, warp(), 4), Err(FaultKind::OutOfBounds));
    let source = module("", "add.s64 %d4, %d2, 0x7fffffff00; ld.global.u32 %r5, [%d4];");
    assert_eq!(outcome(&source, warp(), 4), Err(FaultKind::OutOfBounds));
}

#[test]
fn use_after_free() {
    let mut device = Device::new(Checks::default());
    let loaded = device.load(&module("", "ld.global.u32 %r5, [%d3];")).expect("legal");
    let kernel = loaded.kernel("k").expect("the kernel");
    let address = device.allocate(64).expect("memory");
    device.write(address, &[0; 64]).expect("in bounds");
    let launch = |device: &mut Device| {
        let arguments: Vec<u8> =
            [0, 0, address].iter().flat_map(|value: &u64| value.to_le_bytes()).collect();
        device.launch(&kernel, warp(), &arguments).map_err(|report| report.kind)
    };
    assert_eq!(launch(&mut device), Ok(()));
    assert!(device.free(address));
    let other = device.allocate(64).expect("memory");
    assert_ne!(other, address, "addresses are not given twice");
    assert_eq!(launch(&mut device), Err(FaultKind::UseAfterFree));
    assert!(!device.free(address), "freed twice");
    let report = device.read(address, &mut [0]).expect_err("freed");
    assert_eq!(report.kind, FaultKind::UseAfterFree);
    assert!(address > 1 << 47, "not an address of the host");
}

#[test]
fn uninitialized_reads_of_global_memory() {
    let read = module("", "ld.global.u32 %r5, [%d1];");
    assert_eq!(outcome(&read, warp(), 4), Err(FaultKind::UninitializedGlobal));
    let written = module("", "st.global.u32 [%d1], %r3; ld.global.u32 %r5, [%d1];");
    assert_eq!(outcome(&written, warp(), 4), Ok(()));
    // Byte by byte: one half of a word is not the other.
    let half =
        module("", "cvt.u16.u32 %h1, %r3; st.global.u16 [%d1], %h1; ld.global.u16 %h2, [%d1+2];");
    assert_eq!(outcome(&half, warp(), 4), Err(FaultKind::UninitializedGlobal));
    let (result, _) =
        try_run(Checks { uninitialized: false, ..Checks::default() }, &read, warp(), &[], 4, 0);
    assert!(result.is_ok(), "the check is off");
}

#[test]
fn copying_uninitialized_bytes_is_not_reading_them() {
    let mut device = Device::new(Checks::default());
    let (a, b) = (device.allocate(16).expect("memory"), device.allocate(16).expect("memory"));
    device.write(a, &[1; 8]).expect("in bounds");
    device.copy(b, a, 16).expect("in bounds");
    let loaded = device
        .load(&module("", "ld.global.u32 %r5, [%d1]; ld.global.u32 %r5, [%d2];"))
        .expect("legal");
    let kernel = loaded.kernel("k").expect("the kernel");
    let mut launch = |second: u64| {
        let arguments: Vec<u8> =
            [b, second, 0].iter().flat_map(|value: &u64| value.to_le_bytes()).collect();
        device.launch(&kernel, warp(), &arguments).map_err(|report| report.kind)
    };
    assert_eq!(launch(b + 4), Ok(()));
    assert_eq!(launch(b + 8), Err(FaultKind::UninitializedGlobal));
}

#[test]
fn uninitialized_reads_of_shared_memory() {
    let read = module("", "ld.shared.u32 %r5, [dynamic];");
    assert_eq!(outcome(&read, with_shared(32, 64), 4), Err(FaultKind::UninitializedShared));
    // What the block before left behind does not count.
    let source = module(
        "",
        "setp.ne.u32 %p1, %r2, 0; @%p1 bra $second; st.shared.u32 [dynamic], %r2;\n\
         $second: ld.shared.u32 %r5, [dynamic];",
    );
    let two_blocks = Shape { grid: [2, 1, 1], ..with_shared(32, 64) };
    assert_eq!(outcome(&source, with_shared(32, 64), 4), Ok(()));
    assert_eq!(outcome(&source, two_blocks, 4), Err(FaultKind::UninitializedShared));
}

/// Warp 0 writes and warp 1 reads, or the other way around, with and without a barrier between.
#[test]
fn races_between_warps() {
    let exchange = |first: &str, between: &str, second: &str| {
        let source = module(
            "",
            &format!(
                "shl.b32 %r5, %r1, 2; and.b32 %r6, %r5, 124; add.u32 %r7, %r6, 128;\n\
                 setp.lt.u32 %p1, %r1, 32; st.shared.u32 [%r5], %r1; bar.sync 0;\n\
                 @%p1 {first} {between} @!%p1 {second}"
            ),
        );
        outcome(&source, with_shared(64, 256), 4)
    };
    let (write, read) = ("st.shared.u32 [%r7], %r1;", "ld.shared.u32 %r8, [%r7];");
    assert_eq!(exchange(write, "", read), Err(FaultKind::SharedRace));
    assert_eq!(exchange(read, "", write), Err(FaultKind::SharedRace));
    assert_eq!(exchange(write, "", write), Err(FaultKind::SharedRace));
    assert_eq!(exchange(read, "", read), Ok(()));
    for (first, second) in [(write, read), (read, write), (write, write)] {
        assert_eq!(exchange(first, "bar.sync 0;", second), Ok(()));
    }
    // Neighboring halves of a word do not race, the same half does.
    let half = |offset: u32| format!("st.shared.u16 [dynamic+{offset}], %h1;");
    let both = |a: u32, b: u32| {
        let source = module(
            "",
            &format!(
                "setp.lt.u32 %p1, %r1, 32; mov.u16 %h1, 1; @%p1 {} @!%p1 {}",
                half(a),
                half(b)
            ),
        );
        outcome(&source, with_shared(64, 256), 4)
    };
    assert_eq!(both(0, 2), Ok(()));
    assert_eq!(both(2, 2), Err(FaultKind::SharedRace));
    // Atomics do not race with each other, but with a plain read.
    let atomic = "atom.shared.add.u32 %r9, [%r7], 1;";
    assert_eq!(exchange(atomic, "", atomic), Ok(()));
    assert_eq!(exchange(atomic, "", read), Err(FaultKind::SharedRace));
}

#[test]
fn races_between_blocks() {
    let two = Shape::linear(2, 32);
    let with = |body: &str| {
        let source = module(
            "",
            &format!(
                "and.b32 %r5, %r1, 31; mad.wide.u32 %d4, %r5, 4, %d2; mad.wide.u32 %d5, %r1, 4, %d2; \n\
                 setp.eq.u32 %p1, %r2, 0; {body}"
            ),
        );
        outcome(&source, two, 4)
    };
    assert_eq!(with("st.global.u32 [%d5], %r1;"), Ok(()));
    assert_eq!(with("st.global.u32 [%d4], %r1;"), Err(FaultKind::GlobalRace));
    assert_eq!(with("ld.global.u32 %r6, [%d4];"), Ok(()));
    let one_writes = "@%p1 st.global.u32 [%d4], %r1; @!%p1 ld.global.u32 %r6, [%d4];";
    assert_eq!(with(one_writes), Err(FaultKind::GlobalRace));
    let one_reads = "@!%p1 st.global.u32 [%d4], %r1; @%p1 ld.global.u32 %r6, [%d4];";
    assert_eq!(with(one_reads), Err(FaultKind::GlobalRace));
    assert_eq!(with("red.global.add.u32 [%d4], 1;"), Ok(()));
    let atomic_and_plain = "@%p1 red.global.add.u32 [%d4], 1; @!%p1 ld.global.u32 %r6, [%d4];";
    assert_eq!(with(atomic_and_plain), Err(FaultKind::GlobalRace));
}

#[test]
fn the_last_block_may_sum_up() {
    // Each block writes its number, then counts itself; the last one reads them all.
    let source = |fence: &str| {
        module(
            "",
            &format!(
                "setp.ne.u32 %p1, %r1, 0; mov.u32 %r4, %tid.x; setp.ne.u32 %p1, %r4, 0; @%p1 bra $end;\n\
                 mad.wide.u32 %d4, %r2, 4, %d1; st.global.u32 [%d4], %r2; {fence}\n\
                 atom.global.inc.u32 %r5, [%d2], 7; setp.ne.u32 %p2, %r5, 7; @%p2 bra $end;\n\
                 mov.u32 %r6, 0; mov.u32 %r7, 0;\n\
                 $loop: mad.wide.u32 %d5, %r6, 4, %d1; ld.global.u32 %r8, [%d5]; add.u32 %r7, %r7, %r8;\n\
                 add.u32 %r6, %r6, 1; setp.lt.u32 %p3, %r6, 8; @%p3 bra $loop;\n\
                 st.global.u32 [%d1+32], %r7;\n$end:"
            ),
        )
    };
    let run = |fence: &str| {
        let (result, _) =
            try_run(Checks::default(), &source(fence), Shape::linear(8, 32), &[0; 4], 36, 0);
        result.map(|bytes| bytes[32]).map_err(|report| report.kind)
    };
    assert_eq!(run("membar.gl;"), Ok(28));
    assert_eq!(run(""), Err(FaultKind::GlobalRace));
}

#[test]
fn copies_that_nobody_waited_for() {
    let copy = |wait: &str| {
        let source = module(
            "",
            &format!(
                "shl.b32 %r5, %r1, 4; cvt.u64.u32 %d4, %r5; and.b64 %d4, %d4, 0xf0; add.s64 %d5, %d2, %d4;\n\
                 cp.async.cg.shared.global [%r5], [%d5], 16; cp.async.commit_group;\n\
                 cp.async.cg.shared.global [%r5+512], [%d5], 16, 4; cp.async.commit_group;\n\
                 {wait} ld.shared.u32 %r6, [%r5+8]; ld.shared.u32 %r7, [%r5+512]; ld.shared.u32 %r8, [%r5+516];\n\
                 add.u32 %r6, %r6, %r7; add.u32 %r6, %r6, %r8; mad.wide.u32 %d6, %r1, 4, %d1;\n\
                 st.global.u32 [%d6], %r6;"
            ),
        );
        let (result, _) =
            try_run(Checks::default(), &source, with_shared(32, 1024), &[1; 256], 128, 0);
        result.map(|bytes| bytes[..4].to_vec()).map_err(|report| report.kind)
    };
    // The second copy reads 4 of its 16 bytes: the rest is zero.
    let sum = Ok(vec![2; 4]);
    assert_eq!(copy("cp.async.wait_all;"), sum);
    assert_eq!(copy("cp.async.wait_group 0;"), sum);
    assert_eq!(copy("cp.async.wait_group 1;"), Err(FaultKind::PendingCopy), "a weak wait");
    assert_eq!(copy(""), Err(FaultKind::PendingCopy));
    // Waiting makes the bytes known to the lanes that waited: other warps need a barrier.
    let handed = |barrier: &str| {
        let source = module(
            "",
            &format!(
                "setp.ge.u32 %p1, %r1, 32; shl.b32 %r5, %r1, 4; and.b32 %r5, %r5, 511;\n\
                 @%p1 bra $read; cp.async.ca.shared.global [%r5], [%d2], 4; cp.async.wait_all;\n\
                 $read: {barrier} ld.shared.u32 %r6, [%r5];"
            ),
        );
        outcome(&source, with_shared(64, 512), 4)
    };
    assert_eq!(handed("bar.sync 0;"), Ok(()));
    assert_eq!(handed(""), Err(FaultKind::SharedRace));
    // A copy into bytes that another warp may still be reading.
    let refill = |barrier: &str| {
        let source = module(
            "",
            &format!(
                "setp.ge.u32 %p1, %r1, 32; st.shared.u32 [dynamic+64], %r1;\n\
                 setp.lt.u32 %p2, %r1, 32; @%p2 st.shared.u32 [dynamic], %r1; bar.sync 0;\n\
                 @!%p1 ld.shared.u32 %r6, [dynamic]; {barrier}\n\
                 setp.eq.u32 %p3, %r1, 32; @%p3 cp.async.ca.shared.global [dynamic], [%d2], 4; cp.async.wait_all;"
            )
            .replace("st.shared.u32 [dynamic+64], %r1;", ""),
        );
        outcome(&source, with_shared(64, 512), 4)
    };
    assert_eq!(refill("bar.sync 0;"), Ok(()));
    assert_eq!(refill(""), Err(FaultKind::SharedRace));
}

#[test]
fn barriers_that_some_warps_miss() {
    let outcome = |body: &str| outcome(&module("", body), Shape::linear(1, 64), 4);
    assert_eq!(outcome("bar.sync 0;"), Ok(()));
    let missed = "setp.lt.u32 %p1, %r1, 32; @%p1 bra $end; bar.sync 0; $end:";
    assert_eq!(outcome(missed), Err(FaultKind::Divergence));
    let different =
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra $one; bar.sync 0; bra $end; $one: bar.sync 0; $end:";
    assert_eq!(outcome(different), Err(FaultKind::Divergence));
    let part = "setp.lt.u32 %p1, %r1, 16; @%p1 bar.sync 0;";
    assert_eq!(outcome(part), Err(FaultKind::Divergence));
    let stuck = "setp.lt.u32 %p1, %r1, 32; @%p1 bra $one; bar.sync 1, 64; bra $end; $one: bar.sync 2, 64; $end:";
    assert_eq!(outcome(stuck), Err(FaultKind::Deadlock));
}

#[test]
fn limits_of_a_launch() {
    let mut device = Device::new(Checks::default());
    let source = module("", "").replace("extra)", "extra)\n.maxntid 128, 1, 1");
    let loaded = device.load(&source).expect("legal");
    let kernel = loaded.kernel("k").expect("the kernel");
    let mut launch = |shape: Shape, arguments: usize| {
        device.launch(&kernel, shape, &vec![0; arguments]).map_err(|report: Report| report.kind)
    };
    let refused = Err(FaultKind::LaunchLimits);
    assert_eq!(launch(Shape::linear(1, 128), 24), Ok(()));
    assert_eq!(launch(Shape::linear(1, 129), 24), refused, "maxntid");
    assert_eq!(launch(Shape::linear(0, 32), 24), refused, "an empty grid");
    assert_eq!(launch(Shape { grid: [1, 65_536, 1], ..warp() }, 24), refused);
    assert_eq!(launch(Shape { block: [1, 1, 65], ..warp() }, 24), refused);
    assert_eq!(launch(Shape::linear(1, 32), 20), refused, "arguments");
    assert_eq!(launch(with_shared(32, 166_912), 24), Ok(()));
    assert_eq!(launch(with_shared(32, 166_913), 24), refused);
    let shape = with_shared(32, 48 * 1024 + 1);
    assert!(device.check_shape(&kernel, &shape, 0).is_err(), "needs opting in");
    assert!(device.check_shape(&kernel, &shape, 50_000).is_ok());
}

#[test]
fn unknown_instructions_are_refused_with_their_line() {
    let mut device = Device::new(Checks::default());
    for (body, word) in [
        ("frobnicate.u32 %r1, %r1;", "frobnicate"),
        ("add.cc.u32 %r1, %r1, %r1;", "cc"),
        ("ld.global.b128 %r1, [%d1];", "width"),
        ("call foo;", "call"),
        ("bra $nowhere;", "nowhere"),
        ("add.u32 %r1, %r1;", "operands"),
        ("mov.u32 %r1, nothing;", "nothing"),
        ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 %r1, %r1, %r1, %r1;", "shape"),
    ] {
        let source = module("", &format!("\n\n{body}"));
        let error = device.load(&source).err().expect(body);
        let line = source.lines().position(|line| line == body).expect("the line") as u32 + 1;
        assert_eq!(error.line(), Some(line), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}
