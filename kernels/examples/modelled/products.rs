//! Matrix products. The rule: a block's counts are a line over its steps of k, the same for all blocks of a
//! grid without edges; bytes are each operand once, which is asserted of every run.

use emulator::KernelCounters;
use kernels::cuda::{Error, FEW_ROWS, Operands};

use super::counts::{Figure, Lab, assert_same_blocks, scaled};

pub(crate) const RANK: usize = 16;
/// Columns of a LoRA factor's three parts: see `kernels::cuda::Factor`.
pub(crate) const PARTS: usize = 3 * RANK;

/// Rows and columns of the runs of 128x128 tiles: four blocks.
const SIDE: usize = 256;

/// The same kernel on so many blocks, which touch these bytes (read, written): they share operands.
fn spread(mut counters: KernelCounters, blocks: usize, bytes: [usize; 2]) -> KernelCounters {
    (counters.unique_read_bytes, counters.unique_written_bytes) = (0, 0);
    let mut counters = scaled(&counters, blocks);
    [counters.unique_read_bytes, counters.unique_written_bytes] = bytes.map(|bytes| bytes as u64);
    counters
}

fn shape([m, n, k]: [usize; 3], lora: usize, added: bool) -> String {
    let lora = if lora > 0 { format!("+{}", lora * PARTS) } else { String::new() };
    format!("m{m} n{n} k{k}{lora}{}", if added { " added" } else { "" })
}

/// y = x wᵀ + `lora` products with LoRA's factors, added to what is there if `added`.
pub(crate) fn nt(
    lab: &Lab,
    [m, n, k]: [usize; 3],
    lora: usize,
    added: bool,
) -> Result<Figure, Error> {
    plain(lab, "matmul_nt_f32", [m, n, k], lora, added, false)
}

/// dx = dy w + dl A.
pub(crate) fn nn(
    lab: &Lab,
    [m, n, k]: [usize; 3],
    lora: usize,
    added: bool,
) -> Result<Figure, Error> {
    plain(lab, "matmul_nn_f32", [m, n, k], lora, added, true)
}

fn plain(
    lab: &Lab,
    kernel: &str,
    [m, n, k]: [usize; 3],
    lora: usize,
    added: bool,
    backward: bool,
) -> Result<Figure, Error> {
    let bytes = |m: usize, n: usize, k: usize| {
        let out = 4 * m * n;
        [2 * (m + n) * (k + lora * PARTS) + if added { out } else { 0 }, out]
    };
    let name = format!("{kernel} lora {lora} added {added}");
    let run = |[m, n, k]: [usize; 3]| {
        let mut y = lab.floats(m * n)?;
        let [x, w] = [lab.halves(m * k)?, lab.halves(n * k)?];
        let lows = [lab.halves(m * PARTS)?, lab.halves(n * PARTS)?];
        let all = [
            Operands { x: &x, w: &w, first_row: 0, k },
            Operands { x: &lows[0], w: &lows[1], first_row: 0, k: PARTS },
        ];
        let products = &all[..=lora];
        lab.count(|gpu| match backward {
            true => gpu.matmul_backward(&mut y, products, [m, n], added),
            false => gpu.matmul(&mut y, products, [m, n], added),
        })
    };
    let runs = lab.runs(name, 1, 256, 128, |k| {
        let counted = run([SIDE, SIDE, k])?;
        if k == 256 {
            // 27 blocks, in two groups of rows of tiles.
            assert_same_blocks(&counted, &run([1152, 384, k])?, kernel);
        }
        Ok(counted)
    })?;
    runs.check_bytes(kernel, |k| bytes(SIDE, SIDE, k));
    let [read, written] = bytes(m, n, k);
    let counters = spread(runs.at(kernel, k), m.div_ceil(128) * n.div_ceil(128), [read, written]);
    let products = m * n * (k + lora * PARTS);
    Ok(Figure::new(shape([m, n, k], lora, added), counters, read + written, products))
}

/// y = silu(gate) up of 2n rows of w, gate and up kept.
pub(crate) fn nt_swiglu(lab: &Lab, [m, n, k]: [usize; 3]) -> Result<Figure, Error> {
    let kernel = "matmul_nt_swiglu";
    let bytes = |m: usize, n: usize, k: usize| [2 * (m + 2 * n) * (k + 2 * PARTS), (2 + 8) * m * n];
    let runs = lab.runs(kernel.to_owned(), 1, 256, 128, |k| {
        let n = SIDE / 2;
        let [x, w] = [lab.halves(SIDE * k)?, lab.halves(2 * n * k)?];
        let [hidden, factor] = [lab.halves(SIDE * PARTS)?, lab.halves(2 * n * PARTS)?];
        let [more, other] = [lab.halves(SIDE * PARTS)?, lab.halves(2 * n * PARTS)?];
        let product = |x, w, k| Operands { x, w, first_row: 0, k };
        let products =
            [product(&x, &w, k), product(&hidden, &factor, PARTS), product(&more, &other, PARTS)];
        let mut y = lab.halves(SIDE * n)?;
        let [mut gate, mut up] = [lab.floats(SIDE * n)?, lab.floats(SIDE * n)?];
        lab.count(|gpu| gpu.matmul_swiglu(&mut y, Some([&mut gate, &mut up]), &products, [SIDE, n]))
    })?;
    runs.check_bytes(kernel, |k| bytes(SIDE, SIDE / 2, k));
    let [read, written] = bytes(m, n, k);
    let counters = spread(runs.at(kernel, k), m.div_ceil(128) * n.div_ceil(64), [read, written]);
    let products = 2 * m * n * (k + 2 * PARTS);
    Ok(Figure::new(shape([m, n, k], 2, false), counters, read + written, products))
}

/// Gradients of gate and up from that of the down projection's output.
pub(crate) fn nn_swiglu_backward(lab: &Lab, [m, n, k]: [usize; 3]) -> Result<Figure, Error> {
    let kernel = "matmul_nn_swiglu_backward";
    let bytes = |m: usize, n: usize, k: usize| [2 * (m + n) * (k + PARTS) + 8 * m * n, 4 * m * n];
    let runs = lab.runs(kernel.to_owned(), 1, 256, 128, |k| {
        let [x, w] = [lab.halves(SIDE * k)?, lab.halves(SIDE * k)?];
        let [hidden, factor] = [lab.halves(SIDE * PARTS)?, lab.halves(SIDE * PARTS)?];
        let product = |x, w, k| Operands { x, w, first_row: 0, k };
        let products = [product(&x, &w, k), product(&hidden, &factor, PARTS)];
        let [gate, up] = [lab.floats(SIDE * SIDE)?, lab.floats(SIDE * SIDE)?];
        let [mut dgate, mut dup] = [lab.halves(SIDE * SIDE)?, lab.halves(SIDE * SIDE)?];
        lab.count(|gpu| {
            let gradients = [&mut dgate, &mut dup];
            gpu.matmul_swiglu_backward(gradients, [&gate, &up], &products, [SIDE, SIDE])
        })
    })?;
    runs.check_bytes(kernel, |k| bytes(SIDE, SIDE, k));
    let [read, written] = bytes(m, n, k);
    let counters = spread(runs.at(kernel, k), m.div_ceil(128) * n.div_ceil(128), [read, written]);
    let products = m * n * (k + PARTS);
    Ok(Figure::new(shape([m, n, k], 1, false), counters, read + written, products))
}

/// l = s x Aᵀ (or dl = s dy B): the product with a factor's parts, and their way to bf16.
pub(crate) fn low_rank(lab: &Lab, m: usize, k: usize) -> Result<[Figure; 2], Error> {
    // In decoding k is cut into slices of 256, four more from run to run, as the loop over them is unrolled by four.
    // Else one slice, which takes so many rows that their blocks are more than multiprocessors with two slices.
    let few = m <= FEW_ROWS;
    let (kernel, own, rows, step) = match few {
        true => ("matmul_few_narrow", m, 16, 1024),
        false => ("matmul_nt_narrow", 128 * (lab.gpu.multiprocessors() / 2 + 1), 128, 512),
    };
    assert!(few || m.div_ceil(128) * k.div_ceil(256) > lab.gpu.multiprocessors(), "slices");
    let slices = |k: usize| if few { k.div_ceil(256) } else { 1 };
    let runs = lab.runs(format!("low rank, {own} rows"), 1, step, step, |k| {
        let x = lab.halves(own * k)?;
        let factor = lab.gpu.factor(&lab.floats(RANK * k)?, [RANK, k])?;
        lab.count(|gpu| gpu.lora_hidden(&x, &factor, own, 2.0).map(drop))
    })?;
    let bytes = |m: usize, k: usize| [2 * (m + 2 * RANK) * k, 4 * m * 2 * RANK * slices(k)];
    runs.check_bytes(kernel, |k| bytes(own, k));
    let [read, written] = bytes(m, k);
    let counters = spread(runs.at(kernel, k), m.div_ceil(rows) * slices(k), [read, written]);
    let products = m * 2 * RANK * k;
    let narrow = Figure::new(shape([m, 2 * RANK, k], 0, false), counters, read + written, products);
    let counters = scaled(&runs.at("matmul_lora_hidden", k), (m * RANK).div_ceil(256));
    let fewest = m * (8 * RANK * slices(k) + 2 * PARTS);
    Ok([narrow, Figure::new(format!("m{m} rank{RANK}"), counters, fewest, 0)])
}

/// A factor's gradient lᵀ dy [rank, n] over m rows: the chunks' products, and their sum.
pub(crate) fn gradient(lab: &Lab, m: usize, n: usize) -> Result<[Figure; 2], Error> {
    // Four slices more from run to run: the loop over them is unrolled by four.
    let runs = lab.runs("LoRA gradient".to_owned(), 1, 2048, 1024, |m| {
        let [hidden, x] = [lab.halves(m * PARTS)?, lab.halves(m * SIDE)?];
        let mut dw = lab.floats(RANK * SIDE)?;
        lab.count(|gpu| gpu.matmul_gradient(&mut dw, &hidden, &x, [m, RANK, SIDE], true))
    })?;
    let bytes = |m: usize, n: usize| [2 * m * (2 * RANK + n), 4 * m / 512 * 2 * RANK * n];
    runs.check_bytes("matmul_tn", |m| bytes(m, SIDE));
    let [read, written] = bytes(m, n);
    let counters = spread(runs.at("matmul_tn", m), n / 128 * m / 512, [read, written]);
    let products = m * 2 * RANK * n;
    let product =
        Figure::new(shape([2 * RANK, n, m], 0, false), counters, read + written, products);
    let counters = scaled(&runs.at("add_slices", m), RANK * n / 1024);
    let fewest = written + 8 * RANK * n;
    Ok([product, Figure::new(format!("{} of {RANK}x{n}", m / 256), counters, fewest, 0)])
}

/// A product of at most 64 rows, as in decoding.
pub(crate) fn few(
    lab: &Lab,
    [m, n, k]: [usize; 3],
    lora: usize,
    added: bool,
) -> Result<Figure, Error> {
    let columns = if n.div_ceil(32) >= lab.gpu.multiprocessors() { 32 } else { 16 };
    let rows = if m <= 16 { 16 } else { 64 };
    let kernel = format!("matmul_few_f32_{rows}x{columns}");
    let own = if columns == 32 { 32 * lab.gpu.multiprocessors() } else { 64 };
    let bytes = |n: usize, k: usize| {
        let out = 4 * m * n;
        [2 * (m + n) * (k + lora * PARTS) + if added { out } else { 0 }, out]
    };
    let name = format!("{kernel}, {m} rows, lora {lora} added {added}");
    let runs = lab.runs(name, 1, 512, 128, |k| {
        let mut y = lab.floats(m * own)?;
        let [x, w] = [lab.halves(m * k)?, lab.halves(own * k)?];
        let [l, f] = [lab.halves(m * PARTS)?, lab.halves(own * PARTS)?];
        let product = |x, w, k| Operands { x, w, first_row: 0, k };
        let products = [product(&x, &w, k), product(&l, &f, PARTS)];
        lab.count(|gpu| gpu.matmul(&mut y, &products[..=lora], [m, own], added))
    })?;
    runs.check_bytes(&kernel, |k| bytes(own, k));
    let [read, written] = bytes(n, k);
    let counters = spread(runs.at(&kernel, k), n / columns, [read, written]);
    let products = m * n * (k + lora * PARTS);
    Ok(Figure::new(shape([m, n, k], lora, added), counters, read + written, products))
}

/// The same for gate and up, of which nothing is kept.
pub(crate) fn few_swiglu(lab: &Lab, [m, n, k]: [usize; 3]) -> Result<Figure, Error> {
    assert!((2 * n).div_ceil(32) >= lab.gpu.multiprocessors(), "another tile is picked");
    let rows = if m <= 16 { 16 } else { 64 };
    let kernel = format!("matmul_few_swiglu_{rows}x32");
    let own = 16 * lab.gpu.multiprocessors();
    let bytes = |n: usize, k: usize| [2 * (m + 2 * n) * (k + 2 * PARTS), 2 * m * n];
    let runs = lab.runs(format!("{kernel}, {m} rows"), 1, 512, 128, |k| {
        let mut y = lab.halves(m * own)?;
        let [x, w] = [lab.halves(m * k)?, lab.halves(2 * own * k)?];
        let [l, f] = [lab.halves(m * PARTS)?, lab.halves(2 * own * PARTS)?];
        let [more, other] = [lab.halves(m * PARTS)?, lab.halves(2 * own * PARTS)?];
        let product = |x, w, k| Operands { x, w, first_row: 0, k };
        let products = [product(&x, &w, k), product(&l, &f, PARTS), product(&more, &other, PARTS)];
        lab.count(|gpu| gpu.matmul_swiglu(&mut y, None, &products, [m, own]))
    })?;
    runs.check_bytes(&kernel, |k| bytes(own, k));
    let [read, written] = bytes(n, k);
    let counters = spread(runs.at(&kernel, k), n / 16, [read, written]);
    let products = 2 * m * n * (k + 2 * PARTS);
    Ok(Figure::new(shape([m, n, k], 2, false), counters, read + written, products))
}
