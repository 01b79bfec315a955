//! How fast a kernel runs here: `cargo run --release -p emulator --example speed`. With a folder as argument:
//! whether every .ptx in it loads, and how many slots its kernels take.

use std::time::Instant;

use emulator::{Checks, Device, Shape};

fn main() {
    match std::env::args_os().nth(1) {
        Some(folder) => load_all(std::path::Path::new(&folder)),
        None => {
            product();
            launches();
        }
    }
}

/// The fixture's matrix product, with and without checks, on one and two threads.
fn product() {
    let mut lane_instructions = None;
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
            let lanes = *lane_instructions
                .get_or_insert_with(|| device.counters()[0].lane_instructions / 3);
            println!(
                "{name}, {threads} threads: {:.1} ms, {:.0} M lane instructions/s, {:.1} GFLOP/s",
                best * 1e3,
                lanes as f64 / best / 1e6,
                2.0 * f64::from(size).powi(3) / best / 1e9
            );
        }
    }
}

/// What a launch costs beyond its work: one block of the fixture's product with no depth, beside many
/// allocations.
fn launches() {
    let mut device = Device::new(Checks::default());
    let module = device.load(include_str!("../fixtures/gemm.ptx")).expect("legal");
    let kernel = module.kernel("gemm").expect("the kernel");
    let addresses: Vec<u64> = (0..500).map(|_| device.allocate(1 << 16).expect("memory")).collect();
    let mut arguments: Vec<u8> =
        addresses[..3].iter().flat_map(|value| value.to_le_bytes()).collect();
    [64, 64, 0].iter().for_each(|size: &i32| arguments.extend(size.to_le_bytes()));
    let shape = Shape { grid: [1, 1, 1], block: [128, 1, 1], shared_bytes: 24_576 };
    let (count, begun) = (2000, Instant::now());
    for _ in 0..count {
        device.launch(&kernel, shape, &arguments).expect("no fault");
    }
    println!("a launch: {:.1} us", begun.elapsed().as_secs_f64() * 1e6 / f64::from(count));
}

fn load_all(folder: &std::path::Path) {
    for file in std::fs::read_dir(folder).expect("a folder") {
        let path = file.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let source = std::fs::read_to_string(&path).expect("text");
        match Device::new(Checks::default()).load(&source) {
            Ok(module) => {
                for name in module.kernel_names() {
                    let kernel = module.kernel(name).expect("a kernel of the module");
                    let (declared, used) = kernel.registers();
                    println!("{}: {name}: {declared} registers, {used} slots", path.display());
                }
            }
            Err(error) => println!("{}: REFUSED {error}", path.display()),
        }
    }
}
