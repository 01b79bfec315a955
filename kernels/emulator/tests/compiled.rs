//! Kernels as nvcc compiles them (fixtures/*.cu, *.ptx), against plain computations; and the same PTX
//! with one line made wrong, which a check must find.

use emulator::{Category, Checks, Device, FaultKind, Report, Shape};

const GEMM: &str = include_str!("../fixtures/gemm.ptx");
const SOFTMAX: &str = include_str!("../fixtures/softmax.ptx");
const ARITHMETIC: &str = include_str!("../fixtures/arithmetic.ptx");

/// Numbers that look random, in -1..1 with 8 bits.
fn number(index: usize) -> f32 {
    let mixed = (index as u32).wrapping_mul(2_654_435_761) ^ (index as u32 >> 7);
    ((mixed >> 9) & 0xff) as f32 / 128.0 - 1.0
}

fn bf16_bytes(count: usize, salt: usize) -> Vec<u8> {
    (0..count).flat_map(|i| ((number(i + salt).to_bits() >> 16) as u16).to_le_bytes()).collect()
}

fn gemm(source: &str, [m, n, k]: [usize; 3], threads: usize) -> Result<(Vec<f32>, Device), Report> {
    let mut device = Device::new(Checks::default());
    device.set_threads(threads);
    let module = device.load(source).unwrap_or_else(|error| panic!("{error}"));
    let kernel = module.kernel("gemm").expect("the kernel");
    let upload = |device: &mut Device, bytes: &[u8]| {
        let address = device.allocate(bytes.len() as u64).expect("memory");
        device.write(address, bytes).expect("in bounds");
        address
    };
    let a = upload(&mut device, &bf16_bytes(m * k, 0));
    let b = upload(&mut device, &bf16_bytes(n * k, 1000));
    let c = device.allocate((4 * m * n) as u64).expect("memory");
    let mut arguments: Vec<u8> = [a, b, c].iter().flat_map(|value| value.to_le_bytes()).collect();
    for size in [m, n, k] {
        arguments.extend((size as i32).to_le_bytes());
    }
    let shape = Shape {
        grid: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1],
        block: [128, 1, 1],
        shared_bytes: 3 * 64 * 32 * 2 * 2,
    };
    device.launch(&kernel, shape, &arguments)?;
    let mut bytes = vec![0; 4 * m * n];
    device.read(c, &mut bytes).expect("in bounds");
    let floats = bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
    Ok((floats.collect(), device))
}

#[test]
fn a_tiled_product() {
    for [m, n, k] in [[64, 64, 32], [100, 72, 136], [1, 8, 8], [130, 65, 64]] {
        let (result, device) = gemm(GEMM, [m, n, k], 2).unwrap_or_else(|report| panic!("{report}"));
        for row in 0..m {
            for column in 0..n {
                let product = |i: usize| {
                    let half = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
                    half(number(row * k + i)) * half(number(column * k + i + 1000))
                };
                // All products are multiples of 2^-14 below 2^10: sums are exact in f32.
                let expected: f32 = (0..k).map(product).sum();
                assert_eq!(result[row * n + column], expected, "{m}x{n}x{k} at {row}, {column}");
            }
        }
        let counters = &device.counters()[0];
        let tiles = (m.div_ceil(64) * n.div_ceil(64) * k.div_ceil(32)) as u64;
        assert_eq!(counters.mma_products, tiles * 64 * 64 * 32);
        assert_eq!(counters.warps(Category::Mma), tiles * 4 * 16);
        // Swizzled: each 8×8 matrix is one wavefront.
        assert_eq!(counters.matrix_wavefronts, 4 * counters.warps(Category::LoadMatrix));
    }
}

#[test]
fn a_product_does_not_depend_on_threads() {
    let sizes = [128, 192, 96];
    let (one, _) = gemm(GEMM, sizes, 1).expect("no fault");
    let (two, _) = gemm(GEMM, sizes, 3).expect("no fault");
    assert_eq!(one, two);
}

/// Replaces the `at`-th occurrence of a line's text.
fn spoil(source: &str, from: &str, to: &str, at: usize) -> String {
    let (position, _) = source.match_indices(from).nth(at).expect("the text occurs");
    format!("{}{to}{}", &source[..position], &source[position + from.len()..])
}

#[test]
fn seeded_faults_are_found() {
    let fault = |source: String, sizes: [usize; 3]| gemm(&source, sizes, 2).err().map(|r| r.kind);
    let sizes = [64, 64, 160];
    let weak = spoil(GEMM, "cp.async.wait_group 1", "cp.async.wait_group 2", 0);
    assert_eq!(fault(weak, sizes), Some(FaultKind::PendingCopy));
    // Warps run one after the other: the first finds what the others have not copied yet.
    let dropped = spoil(GEMM, "bar.sync \t0;", "", 0);
    assert_eq!(fault(dropped, sizes), Some(FaultKind::UninitializedShared));
    let open = spoil(GEMM, "cp.async.commit_group;", "", 1);
    assert_eq!(fault(open, sizes), Some(FaultKind::PendingCopy), "copies of no group");
    let shifted = spoil(GEMM, "wait_group 1;\n", "wait_group 1;\nadd.s32 %r1, %r1, 1;\n", 0);
    let _ = fault(shifted, sizes); // whatever it is, it is no panic
    // The report names the line of the .cu file.
    let source = spoil(GEMM, "bar.sync \t0;", "", 0);
    let report = gemm(&source, sizes, 2).err().expect("a fault");
    let (file, line) = report.place.expect("a place").source.expect("a line");
    assert_eq!(file, "gemm.cu");
    let text: Vec<&str> = include_str!("../fixtures/gemm.cu").lines().collect();
    // The statement begins in the lines before.
    let statement = text[line as usize - 3..line as usize].join(" ");
    assert!(statement.contains("ldmatrix"), "line {line}: {statement}");
}

#[test]
fn a_softmax() {
    let (rows, columns) = (3usize, 300usize);
    let mut device = Device::new(Checks::default());
    let module = device.load(SOFTMAX).unwrap_or_else(|error| panic!("{error}"));
    let kernel = module.kernel("softmax").expect("the kernel");
    let x: Vec<f32> = (0..rows * columns).map(|i| 8.0 * number(i)).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = device.allocate(bytes.len() as u64).expect("memory");
    device.write(input, &bytes).expect("in bounds");
    let output = device.allocate(bytes.len() as u64).expect("memory");
    let mut arguments: Vec<u8> = [input, output].iter().flat_map(|v| v.to_le_bytes()).collect();
    arguments.extend((columns as i32).to_le_bytes());
    device
        .launch(&kernel, Shape::linear(rows as u32, 128), &arguments)
        .unwrap_or_else(|report| panic!("{report}"));
    let mut out = vec![0; bytes.len()];
    device.read(output, &mut out).expect("in bounds");
    for row in 0..rows {
        let x = &x[row * columns..][..columns];
        let most = x.iter().fold(f64::MIN, |most, &value| most.max(f64::from(value)));
        let sum: f64 = x.iter().map(|&value| (f64::from(value) - most).exp()).sum();
        for (column, &value) in x.iter().enumerate() {
            let expected = (f64::from(value) - most).exp() / sum;
            let at = 4 * (row * columns + column);
            let result = f64::from(f32::from_le_bytes(out[at..at + 4].try_into().unwrap()));
            // expf errs by 2 units in the last place, the sum by a few more.
            let error = (result - expected).abs() / expected;
            assert!(error < 1e-6, "row {row} column {column}: {result}, not {expected}");
        }
    }
}

#[test]
fn arithmetic_as_the_host_does_it() {
    let n = 70usize;
    let x: Vec<i32> = (0..n)
        .map(|i| match i {
            0 => 0,
            1 => i32::MIN,
            2 => i32::MAX,
            3 => -1,
            _ => (i as i32).wrapping_mul(0x9e37_79b9u32 as i32) >> (i % 24),
        })
        .collect();
    let (scale, shift, half, byte, wide) = (0.37f32, 37i32, 40_000u16, -3i8, 0x1_0000_0001i64);
    let mut device = Device::new(Checks::default());
    let module = device.load(ARITHMETIC).unwrap_or_else(|error| panic!("{error}"));
    let kernel = module.kernel("arithmetic").expect("the kernel");
    let bytes: Vec<u8> = x.iter().flat_map(|value| value.to_le_bytes()).collect();
    let input = device.allocate(bytes.len() as u64).expect("memory");
    device.write(input, &bytes).expect("in bounds");
    let output = device.allocate((n * 128) as u64).expect("memory");
    let mut arguments: Vec<u8> = [input, output].iter().flat_map(|v| v.to_le_bytes()).collect();
    arguments.extend(scale.to_le_bytes());
    arguments.extend(shift.to_le_bytes());
    arguments.extend(half.to_le_bytes());
    arguments.extend(byte.to_le_bytes());
    arguments.extend([0; 5]);
    arguments.extend(wide.to_le_bytes());
    arguments.extend((n as i32).to_le_bytes());
    device
        .launch(&kernel, Shape::linear(2, 64), &arguments)
        .unwrap_or_else(|report| panic!("{report}"));
    let mut out = vec![0; n * 128];
    device.read(output, &mut out).expect("in bounds");
    let results: Vec<i64> =
        out.chunks_exact(8).map(|word| i64::from_le_bytes(word.try_into().unwrap())).collect();
    for i in 0..n {
        let (a, b) = (x[i], x[(i + 1) % n]);
        let (la, lb) = (i64::from(a), i64::from(b));
        let product = a.wrapping_mul(i32::from(byte)) as i8;
        let find_first = a.trailing_zeros().wrapping_add(1) as i32 * i32::from(a != 0);
        let counts = a.count_ones() as i32
            + b.leading_zeros() as i32
            + find_first
            + ((b as u32).reverse_bits() >> 5) as i32;
        let high = ((la * lb) >> 32) ^ ((la as u64 as u128 * lb as u64 as u128) >> 64) as i64;
        let switched = match a & 7 {
            0 => b.wrapping_add(1),
            1 => b.wrapping_mul(3),
            2 => b.wrapping_sub(7),
            3 => !b,
            4 => b << 2,
            5 => b >> 3,
            _ => 99,
        };
        let (mut steps, mut v) = (0, a as u32 | 1);
        while v != 1 && steps < 50 {
            v = if v & 1 == 1 { v.wrapping_mul(3).wrapping_add(1) } else { v / 2 };
            steps += 1;
        }
        let funnel = ((b as u32 as u64) << 32 | a as u32 as u64) << (shift & 31) >> 32;
        let pick = |byte: u32| ((lb as u32 as u64) << 32 | la as u32 as u64) >> (8 * byte) & 0xff;
        let limit = if 1e10f32 > a as f32 { 4e9f32 } else { 0.0 };
        let expected = [
            if b != 0 { a.wrapping_div(b).into() } else { 0 },
            if b != 0 { a.wrapping_rem(b).into() } else { 0 },
            if b != 0 { (a as u32 / b as u32).into() } else { 0 },
            (la * lb) / (wide | 1),
            i64::from(i32::from(a.wrapping_add(i32::from(half)) as i16) * i32::from(b as i16)),
            (product >> 1).into(),
            (a as f32 * scale).round_ties_even() as i32 as i64,
            (f64::from(a) / 3.0) as i64,
            counts.into(),
            high,
            a.wrapping_mul(b & 7).wrapping_add(b).into(),
            switched.into(),
            steps.into(),
            i64::from(funnel as u32 as i32) & 0xffff_ffff,
            (pick(0) | pick(4) << 8 | pick(1) << 16 | pick(5) << 24) as i64,
            (a as f32 * 0.5).max(-3.0).min(limit) as u32 as i64,
        ];
        for (column, expected) in expected.into_iter().enumerate() {
            let result = results[16 * i + column];
            assert_eq!(result, expected, "column {column} of {a} and {b}");
        }
    }
}

#[test]
fn spoiled_text_is_refused_or_loads_but_never_panics() {
    for source in [ARITHMETIC, SOFTMAX] {
        let words: Vec<&str> = source.split_inclusive(|c: char| " ,;\n\t".contains(c)).collect();
        for round in 0..400usize {
            let mut spoiled = words.clone();
            for change in 0..1 + round % 3 {
                let at = (round * 7919 + change * 104_729) % spoiled.len();
                let from = (round * 6151 + change * 31) % words.len();
                match round % 4 {
                    0 => drop(spoiled.remove(at)),
                    1 => spoiled[at] = words[from],
                    2 => spoiled.insert(at, words[from]),
                    _ => spoiled.truncate(at.max(1)),
                }
            }
            // An error is as good as a module.
            let _ = Device::new(Checks::default()).load(&spoiled.concat());
        }
    }
}
