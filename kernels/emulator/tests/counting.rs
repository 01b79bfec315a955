//! Counters on access patterns whose numbers are known.

use emulator::model::{A100, Resource, modelled};
use emulator::{Category, Checks, KernelCounters, Shape};

use crate::{module, try_run};

fn count(body: &str, shape: Shape, out: usize) -> KernelCounters {
    let (result, device) = try_run(Checks::default(), &module("", body), shape, &[0; 8192], out, 0);
    result.unwrap_or_else(|report| panic!("{report}"));
    device.counters()[0].clone()
}

#[test]
fn coalesced_and_strided_loads() {
    let warp = Shape::linear(1, 32);
    let counters = count("mad.wide.u32 %d4, %r1, 4, %d2; ld.global.u32 %r5, [%d4];", warp, 4);
    assert_eq!((counters.load.requests, counters.load.sectors, counters.load.bytes), (1, 4, 128));
    assert_eq!(counters.unique_read_bytes, 128);
    let counters = count("mad.wide.u32 %d4, %r1, 128, %d2; ld.global.u32 %r5, [%d4];", warp, 4);
    assert_eq!((counters.load.sectors, counters.unique_read_bytes), (32, 128));
    let counters = count(
        "mad.wide.u32 %d4, %r1, 16, %d2; ld.global.v4.u32 {%r5,%r6,%r7,%r8}, [%d4];",
        warp,
        4,
    );
    assert_eq!((counters.load.sectors, counters.load.bytes), (16, 512));
    let counters = count("ld.global.u32 %r5, [%d2];", warp, 4);
    assert_eq!((counters.load.sectors, counters.unique_read_bytes), (1, 4), "a broadcast");
    // Two blocks read the same bytes: requested twice, needed once.
    let counters = count("ld.global.u32 %r5, [%d2];", Shape::linear(2, 32), 4);
    assert_eq!((counters.load.requests, counters.unique_read_bytes), (2, 4));
    let counters = count("mad.wide.u32 %d4, %r1, 4, %d1; st.global.u32 [%d4], %r1;", warp, 128);
    assert_eq!((counters.store.sectors, counters.unique_written_bytes), (4, 128));
}

#[test]
fn bank_conflicts() {
    for (stride, ways) in [(4, 1), (8, 2), (16, 4), (32, 8), (128, 32), (132, 1)] {
        let shape = Shape { shared_bytes: 32 * 132, ..Shape::linear(1, 32) };
        let body = format!("mul.lo.u32 %r5, %r1, {stride}; st.shared.u32 [%r5], %r1;");
        let counters = count(&body, shape, 4);
        assert_eq!(counters.shared_store.wavefronts, ways, "stride {stride}");
    }
    // ldmatrix: rows 16 bytes apart are one wavefront a matrix, rows 128 bytes apart eight.
    for (stride, wavefronts) in [(16, 4), (128, 32), (144, 4)] {
        let shape = Shape { shared_bytes: 32 * 144, ..Shape::linear(1, 32) };
        let body = format!(
            "mul.lo.u32 %r5, %r1, {stride}; st.shared.v4.u32 [%r5], {{%r1,%r1,%r1,%r1}}; bar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r6,%r7,%r8,%r9}}, [%r5];"
        );
        assert_eq!(count(&body, shape, 4).matrix_wavefronts, wavefronts, "stride {stride}");
    }
}

#[test]
fn instructions_by_class() {
    let body = "mov.f32 %f1, 0f3F800000; fma.rn.f32 %f2, %f1, %f1, %f1; ex2.approx.f32 %f3, %f2;\n\
                cvt.rn.bf16x2.f32 %r5, %f2, %f3; add.s32 %r6, %r5, 1; bar.sync 0;\n\
                shfl.sync.bfly.b32 %r7, %r6, 1, 31, -1;";
    let counters = count(body, Shape::linear(3, 64), 4);
    for category in [
        Category::Float,
        Category::Special,
        Category::Convert,
        Category::Barrier,
        Category::Exchange,
    ] {
        assert_eq!(counters.warps(category), 6, "{category:?}");
    }
    // The add, and the thread's index in the kernel's head.
    assert_eq!(counters.warps(Category::Integer), 12);
    assert_eq!((counters.blocks, counters.barriers, counters.launches), (3, 3, 1));
    assert_eq!((counters.threads_per_block, counters.busiest_blocks), (64, 1));
}

#[test]
fn a_copy_is_bound_by_memory() {
    let body = "mad.wide.u32 %d4, %r1, 16, %d2; mad.wide.u32 %d5, %r1, 16, %d1;\n\
                ld.global.v4.u32 {%r5,%r6,%r7,%r8}, [%d4]; st.global.v4.u32 [%d5], {%r5,%r6,%r7,%r8};";
    let counters = count(body, Shape::linear(4, 128), 8192);
    assert_eq!((counters.unique_read_bytes, counters.unique_written_bytes), (8192, 8192));
    // Spread over the whole device, as a large copy would be.
    let spread = KernelCounters { blocks: 108, busiest_blocks: 1, ..counters };
    let result = modelled(&spread, &A100);
    assert_eq!(result.bound, Resource::Memory);
    assert!((result.time_seconds - 16384.0 / 2.039e12).abs() < 1e-15);
    assert!((result.sectors_per_fewest - 1.0).abs() < 1e-9);
}

#[test]
fn counts_do_not_depend_on_threads() {
    let source = module("", "mad.wide.u32 %d4, %r1, 4, %d1; st.global.u32 [%d4], %r1;");
    let run = |threads: usize| {
        let mut device = emulator::Device::new(Checks::default());
        device.set_threads(threads);
        let loaded = device.load(&source).expect("legal");
        let kernel = loaded.kernel("k").expect("the kernel");
        let out = device.allocate(4 * 64 * 4096).expect("memory");
        let arguments: Vec<u8> =
            [out, 0, 0].iter().flat_map(|value: &u64| value.to_le_bytes()).collect();
        device.launch(&kernel, Shape::linear(4096, 64), &arguments).expect("no fault");
        device.counters()[0].clone()
    };
    assert_eq!(run(1), run(4));
}
