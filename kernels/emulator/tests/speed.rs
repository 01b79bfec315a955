//! Not a test of correctness: how fast a kernel runs here. `cargo test --release -p emulator -- --ignored
//! speed --nocapture` prints it.

use std::time::Instant;

use emulator::{Checks, Device, Shape};

#[test]
#[ignore = "a measurement"]
fn speed_of_a_product() {
    for (name, checks) in [("all checks", Checks::default()), ("none", Checks::none())] {
        for threads in [1, 2] {
            let mut device = Device::new(checks);
            device.set_threads(threads);
            let module = device.load(include_str!("../fixtures/gemm.ptx")).expect("legal");
            let kernel = module.kernel("gemm").expect("the kernel");
            let size = 512i32;
            let bytes = vec![0x3f; 2 * (size * size) as usize];
            let [a, b] = [0, 1].map(|_| {
                let address = device.allocate(bytes.len() as u64).expect("memory");
                device.write(address, &bytes).expect("in bounds");
                address
            });
            let c = device.allocate(4 * (size * size) as u64).expect("memory");
            let mut arguments: Vec<u8> =
                [a, b, c].iter().flat_map(|value| value.to_le_bytes()).collect();
            [size; 3].iter().for_each(|size| arguments.extend(size.to_le_bytes()));
            let shape = Shape { grid: [8, 8, 1], block: [128, 1, 1], shared_bytes: 24_576 };
            let mut best = f64::MAX;
            for _ in 0..3 {
                let begun = Instant::now();
                device.launch(&kernel, shape, &arguments).expect("no fault");
                best = best.min(begun.elapsed().as_secs_f64());
            }
            // Counted once with all checks on: the same in every run.
            let lanes =
                LANE_INSTRUCTIONS.get_or_init(|| device.counters()[0].lane_instructions / 3);
            println!(
                "{name}, {threads} threads: {:.1} ms, {:.0} M lane instructions/s, {:.1} GFLOP/s",
                best * 1e3,
                *lanes as f64 / best / 1e6,
                2.0 * f64::from(size).powi(3) / best / 1e9
            );
        }
    }
}

static LANE_INSTRUCTIONS: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
