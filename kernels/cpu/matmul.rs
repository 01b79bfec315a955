//! Matrix product with row-major weights: `y[m,n] = x[m,k] · w[n,k]ᵀ`, or y += that.
//!
//! Weights are read where they lie, so every output is a dot product of two contiguous rows. Its
//! order of summation is fixed by k alone: chunks of 1024 elements, each summed lane by lane and
//! reduced by one tree (dot.rs), chunk sums added to y in order. Sums in f64 are not cut into
//! chunks, so that y is rounded once; their bits are the same on every instruction set.
//!
//! Bound: for a few rows reading w, once; for many the multipliers. There a task's block of x and
//! its block of w stay in the L2 cache, and six rows of x in L1 while w passes by.

use half::{bf16, f16};

use super::context::Transposed;
use super::dot::{Dot, Output, Rows, Scalar, Widened, WidenedDoubles, strip};
use super::pool::Disjoint;
use super::profile::{self, Work};
use super::vector::{Element, Portable, PortableDoubles, Simd};
use super::{Cpu, Isa, Matrix, Rounding, round};

/// Elements of a row that are summed before the sum is added to y, but for sums in f64.
const CHUNK: usize = 1024;

/// Most rows of x in a block: with chunks of bf16 384 KiB, with f32 768 KiB, of an L2 cache of 1 MiB.
const ROW_BLOCK: usize = 192;

/// Rows of w a task of many rows of x takes, if they are long: 128 KiB of bf16 a chunk.
const COLUMN_BLOCK: usize = 64;

/// Up to this many rows of x a task walks along w once; above, blocks of w are read again from L2.
const FEW_ROWS: usize = 24;

/// Weights (in elements) a task of few rows streams at least; less is not worth waking a thread.
const STREAM: usize = 64 * 1024;

/// Writes x·wᵀ to `y`, or adds it to `y` if `accumulate`. Shapes: `y [m,n]`, `x [m,k]`, `w [n,k]`.
/// `rounding` says how x is rounded first and what sums are kept in.
pub fn forward(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    rounding: Rounding,
    accumulate: bool,
) {
    assert_eq!(Some(y.len()), m.checked_mul(n), "y is not [{m}, {n}]");
    assert_eq!(Some(x.len()), m.checked_mul(k), "x is not [{m}, {k}]");
    assert_eq!(Some(w.len()), n.checked_mul(k), "w is not [{n}, {k}]");
    let work = || Work::product([m, n, k], [4 * m * k, w.bytes()], accumulate);
    let _span = profile::span("matmul", [m, n, k], work);
    let exact = rounding == Rounding::F64Sums;
    let chunk = if exact { usize::MAX } else { CHUNK };
    let size = Size { m, n, k, x_stride: k, chunk, accumulate };
    // Rounded rows a line apart from a power of two: else those of a tile share a few cache sets.
    let padded = Size { x_stride: k.next_multiple_of(32) + 32, ..size };
    match w {
        Matrix::Bf16(w) if rounding == Rounding::Bf16 => {
            let scratch = &mut *cpu.scratch();
            #[cfg(target_arch = "x86_64")]
            if cpu.isa() == Isa::Avx512Bf16 {
                let rounded = super::context::grown(&mut scratch.bf16, m * padded.x_stride);
                round::rows(cpu, rounded, padded.x_stride, x, k);
                return distribute(cpu, y, rounded, w, padded, block_avx512_bf16);
            }
            let rounded = super::context::grown(&mut scratch.f32, m * padded.x_stride);
            round::rows(cpu, rounded, padded.x_stride, x, k);
            distribute(cpu, y, rounded, w, padded, block_widened::<bf16>(cpu.isa()));
        }
        Matrix::Bf16(w) if exact => distribute(cpu, y, x, w, size, block_exact(cpu.isa())),
        Matrix::F16(w) if exact => distribute(cpu, y, x, w, size, block_exact(cpu.isa())),
        Matrix::F32(w) if exact => distribute(cpu, y, x, w, size, block_exact(cpu.isa())),
        Matrix::Bf16(w) => distribute(cpu, y, x, w, size, block_widened::<bf16>(cpu.isa())),
        Matrix::F16(w) => distribute(cpu, y, x, w, size, block_widened::<f16>(cpu.isa())),
        Matrix::F32(w) => distribute(cpu, y, x, w, size, block_widened::<f32>(cpu.isa())),
    }
}

/// Writes dy·w to `dx`, or adds it: the gradient of x in y = x·wᵀ. Shapes: `dx [m,k]`, `dy [m,n]`,
/// `w [n,k]`. dy is rounded as x would be; w's own gradient is not computed.
///
/// w is transposed into scratch memory first, so that the product is one of rows again: a pass over
/// w, against m passes of the multipliers.
pub fn backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dy: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    rounding: Rounding,
    accumulate: bool,
) {
    assert_eq!(Some(w.len()), n.checked_mul(k), "w is not [{n}, {k}]");
    let work = || Work::product([m, k, n], [4 * m * n, w.bytes()], accumulate);
    let _span = profile::span("matmul backward", [m, n, k], work);
    // Taken out, as the product itself uses scratch memory.
    let mut transposed = std::mem::take(&mut cpu.scratch().transposed);
    let Transposed { bf16, f16, f32 } = &mut transposed;
    let columns = match w {
        Matrix::Bf16(w) => Matrix::Bf16(transpose(cpu, bf16, w, n, k)),
        Matrix::F16(w) => Matrix::F16(transpose(cpu, f16, w, n, k)),
        Matrix::F32(w) => Matrix::F32(transpose(cpu, f32, w, n, k)),
    };
    forward(cpu, dx, dy, columns, [m, k, n], rounding, accumulate);
    cpu.scratch().transposed = transposed;
}

/// The transpose `[k, n]` of `w [n, k]` in `memory`.
fn transpose<'a, T: Copy + Default + Send + Sync>(
    cpu: &Cpu,
    memory: &'a mut Vec<T>,
    w: &[T],
    n: usize,
    k: usize,
) -> &'a [T] {
    /// Side of a tile: its lines of both matrices stay in L1.
    const TILE: usize = 32;
    let memory = super::context::grown(memory, n * k);
    let out = Disjoint::new(memory);
    cpu.for_rows(k.div_ceil(TILE), TILE * n, &|first, count| {
        let (first, end) = (first * TILE, k.min((first + count) * TILE));
        // SAFETY: ranges of different tasks do not overlap.
        let out = unsafe { out.part(first * n, (end - first) * n) };
        for column in (first..end).step_by(TILE) {
            for row in (0..n).step_by(TILE) {
                for j in column..end.min(column + TILE) {
                    let to = &mut out[(j - first) * n + row..][..TILE.min(n - row)];
                    for (i, to) in to.iter_mut().enumerate() {
                        *to = w[(row + i) * k + j];
                    }
                }
            }
        }
    });
    memory
}

#[derive(Clone, Copy)]
struct Size {
    m: usize,
    n: usize,
    k: usize,
    /// Elements from row to row of x.
    x_stride: usize,
    /// Elements of a row that are summed before the sum is added to y.
    chunk: usize,
    accumulate: bool,
}

/// Computes a block of y; the arguments of [`block`].
type Block<X, W> = unsafe fn(*mut f32, *const X, *const W, usize, usize, Size);

/// Splits y into blocks and computes them on the threads. The split has no influence on any bit.
fn distribute<X: Sync, W: Sync>(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[X],
    w: &[W],
    size: Size,
    block: Block<X, W>,
) {
    let Size { m, n, k, x_stride, .. } = size;
    assert!(y.len() == m * n && x.len() == m * x_stride && w.len() == n * k, "{m} {n} {k}");
    assert!(x_stride >= k, "rows of x overlap");
    if m == 0 || n == 0 {
        return;
    }
    let few = m <= FEW_ROWS;
    let (columns, rows) = if few {
        // Contiguous runs of w, some per thread so that none waits for a thread that was held up.
        let least = STREAM.div_ceil(k.max(1)).max(4);
        (n.div_ceil(8 * cpu.threads()).max(least).next_multiple_of(4), m)
    } else {
        // With short rows more columns, so that a task's edges in y, whose cache lines neighbors
        // share, are few beside it; then as many row blocks as the threads need.
        let columns = (COLUMN_BLOCK * CHUNK / k.clamp(1, CHUNK)).min(n.next_multiple_of(4));
        let tasks = (4 * cpu.threads()).div_ceil(n.div_ceil(columns));
        (columns, m.div_ceil(tasks).next_multiple_of(6).clamp(FEW_ROWS + 6, ROW_BLOCK))
    };
    let (row_blocks, column_blocks) = (m.div_ceil(rows), n.div_ceil(columns));
    let y = Disjoint::new(y);
    let task = |_: usize, task: usize| {
        let first_row = task / column_blocks * rows;
        let first_column = task % column_blocks * columns;
        // SAFETY: `Cpu::with_isa` asserts the instruction set; rows and columns of the block lie
        // inside y, x and w by the assert above; blocks of different tasks do not overlap.
        unsafe {
            block(
                y.as_mut_ptr().add(first_row * n + first_column),
                x.as_ptr().add(first_row * x_stride),
                w.as_ptr().add(first_column * k),
                rows.min(m - first_row),
                columns.min(n - first_column),
                size,
            );
        }
    };
    if n * k <= STREAM && m * n * k <= STREAM {
        (0..row_blocks * column_blocks).for_each(|index| task(0, index));
    } else {
        cpu.pool().for_each(row_blocks * column_blocks, &task);
    }
}

/// Computes `rows` × `columns` outputs from `y`, `x`, `w` on; `size` gives the strides.
///
/// # Safety
/// The CPU has the instruction set of `D`. The rows of x and w, of k elements, and the columns of
/// y, in rows of n, exist, and nothing else uses that block of y.
#[inline(always)]
unsafe fn block<D: Dot>(
    y: *mut f32,
    x: *const D::X,
    w: *const D::W,
    rows: usize,
    columns: usize,
    size: Size,
) where
    f32: Output<Scalar<D>>,
{
    let Size { n, k, x_stride, chunk: longest, accumulate, .. } = size;
    // Few rows: one pass over w, four rows of it at a time. Many: each chunk as a block of its own.
    let few = rows <= FEW_ROWS;
    let panel = if few { 4 } else { columns.max(1) };
    let mut j = 0;
    while j < columns {
        let panel = panel.min(columns - j);
        let mut l = 0;
        loop {
            let chunk = longest.min(k - l);
            let mut i = 0;
            while i < rows {
                let tile_rows = D::Sum::TILE_ROWS.min(rows - i);
                // The next four rows of w are one run of memory; this chunk's share of it. Every tile
                // asks again: for 16 rows of x 290 GFLOP/s on two threads, 200 if one does.
                let ahead = if few { 4 * k + 3 * l } else { 0 };
                // SAFETY: i, j and l are inside the block the caller vouches for.
                unsafe {
                    strip::<D, f32>(
                        Rows { start: y.add(i * n + j), stride: n },
                        Rows { start: x.add(i * x_stride + l), stride: x_stride },
                        tile_rows,
                        Rows { start: w.add(j * k + l), stride: k },
                        panel,
                        chunk,
                        accumulate || l > 0,
                        ahead,
                    );
                }
                i += tile_rows;
            }
            l += chunk;
            if l >= k {
                break;
            }
        }
        j += panel;
    }
}

/// The block function for f32 inputs and weights of type W.
fn block_widened<W: Element>(isa: Isa) -> Block<f32, W> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => block_avx2::<W>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => block_avx512::<W>,
        _ => block::<Widened<Portable, W>>,
    }
}

/// The block function for f32 inputs, weights of type W and sums in f64.
fn block_exact<W: Element>(isa: Isa) -> Block<f32, W> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => block_exact_avx2::<W>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => block_exact_avx512::<W>,
        _ => block::<WidenedDoubles<PortableDoubles, W>>,
    }
}

/// Defines [`block`] for one way to multiply, compiled for its instruction set; its contract.
macro_rules! compiled {
    ($name:ident, $features:literal, $x:ty, $w:ty, $dot:ty $(, $t:ident)?) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name $(<$t: Element>)? (
            y: *mut f32,
            x: *const $x,
            w: *const $w,
            rows: usize,
            columns: usize,
            size: Size,
        ) {
            // SAFETY: the caller's promise, passed on.
            unsafe { block::<$dot>(y, x, w, rows, columns, size) }
        }
    };
}
compiled!(block_avx2, "avx2,fma,f16c", f32, W, Widened<super::vector::Avx2, W>, W);
compiled!(
    block_avx512,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl",
    f32,
    W,
    Widened<super::vector::Avx512, W>,
    W
);
compiled!(
    block_exact_avx2,
    "avx2,fma,f16c",
    f32,
    W,
    WidenedDoubles<super::vector::Avx2Doubles, W>,
    W
);
compiled!(
    block_exact_avx512,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl",
    f32,
    W,
    WidenedDoubles<super::vector::Avx512Doubles, W>,
    W
);
compiled!(
    block_avx512_bf16,
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    bf16,
    bf16,
    super::vector::Bf16Pairs
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::twin::{assert_close, assert_rounded_once, assert_same_bits, contexts, values};

    const ROUNDINGS: [Rounding; 3] = [Rounding::Bf16, Rounding::F32, Rounding::F64Sums];

    /// Weights in the three types.
    struct Weights {
        bf16: Vec<bf16>,
        f16: Vec<f16>,
        f32: Vec<f32>,
    }

    impl Weights {
        fn new(seed: u64, len: usize) -> Weights {
            let f32 = values(seed, len);
            let bf16 = f32.iter().map(|x| bf16::from_f32(*x)).collect();
            let f16 = f32.iter().map(|x| f16::from_f32(*x)).collect();
            Weights { bf16, f16, f32 }
        }

        fn matrices(&self) -> [Matrix<'_>; 3] {
            [Matrix::Bf16(&self.bf16), Matrix::F16(&self.f16), Matrix::F32(&self.f32)]
        }
    }

    fn widened(w: Matrix<'_>) -> Vec<f32> {
        match w {
            Matrix::Bf16(w) => w.iter().map(|w| w.to_f32()).collect(),
            Matrix::F16(w) => w.iter().map(|w| w.to_f32()).collect(),
            Matrix::F32(w) => w.to_vec(),
        }
    }

    /// The naive twin in f32, and the exact result in f64, of x as it is rounded.
    fn twins(
        y: &[f32],
        x: &[f32],
        w: Matrix<'_>,
        [m, n, k]: [usize; 3],
        rounding: Rounding,
    ) -> (Vec<f32>, Vec<f64>) {
        let rounds = rounding == Rounding::Bf16 && matches!(w, Matrix::Bf16(_));
        let round = |x: &f32| if rounds { bf16::from_f32(*x).to_f32() } else { *x };
        let (x, w): (Vec<f32>, _) = (x.iter().map(round).collect(), widened(w));
        let (mut naive, mut exact) = (y.to_vec(), Vec::new());
        for i in 0..m {
            for j in 0..n {
                let pairs = || x[i * k..(i + 1) * k].iter().zip(&w[j * k..(j + 1) * k]);
                naive[i * n + j] += pairs().map(|(x, w)| x * w).sum::<f32>();
                let sum: f64 = pairs().map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                exact.push(f64::from(y[i * n + j]) + sum);
            }
        }
        (naive, exact)
    }

    #[test]
    fn equals_the_naive_twin_on_awkward_shapes() {
        let contexts = contexts();
        let shapes = [
            [0, 5, 7],
            [3, 0, 7],
            [2, 3, 0],
            [1, 1, 1],
            [1, 4, 16],
            [2, 5, 15],
            [3, 33, 33],
            [5, 7, 31],
            [7, 2, 100],
            [13, 9, 1025],
            [14, 67, 48],
            [200, 66, 17],
            [1, 130, 2100],
        ];
        for shape in shapes {
            let [m, n, k] = shape;
            let (x, w, y) = (values(1, m * k), Weights::new(2, n * k), values(3, m * n));
            for w in w.matrices() {
                for rounding in ROUNDINGS {
                    let zeros = vec![0.0; m * n];
                    for (old, accumulate) in [(&zeros, false), (&y, true)] {
                        let (naive, exact) = twins(old, &x, w, shape, rounding);
                        let mut first: Option<Vec<f32>> = None;
                        for cpu in &contexts {
                            // Not read unless accumulating: NaN would show.
                            let mut got =
                                if accumulate { y.clone() } else { vec![f32::NAN; m * n] };
                            forward(cpu, &mut got, &x, w, shape, rounding, accumulate);
                            let case = format!("{} {shape:?} {rounding:?}", cpu.isa());
                            if rounding == Rounding::F64Sums {
                                assert_rounded_once(&got, &exact, 1e-13, &case);
                                let bits = first.get_or_insert_with(|| got.clone());
                                assert_same_bits(&got, bits, "instruction sets");
                            } else {
                                assert_close(&got, &naive, &exact, 1e-6, &case);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch_on_any_number_of_threads() {
        for [n, k] in [[70, 16], [37, 1500], [150, 2049]] {
            let (x, w) = (values(4, 256 * k), Weights::new(5, n * k));
            for w in w.matrices() {
                for rounding in ROUNDINGS {
                    let mut reference: Option<(Isa, Vec<f32>)> = None;
                    for cpu in contexts() {
                        let mut whole = vec![0.0; 256 * n];
                        forward(&cpu, &mut whole, &x, w, [256, n, k], rounding, false);
                        match &reference {
                            Some((isa, rows)) if *isa == cpu.isa() => {
                                assert_same_bits(&whole, rows, "threads");
                            }
                            _ => reference = Some((cpu.isa(), whole.clone())),
                        }
                        for batch in [1, 3, 7, 16, 64] {
                            // From the end, so that rows fall on other places of the tiles.
                            let first = 256 - batch;
                            let mut part = vec![0.0; batch * n];
                            let x = &x[first * k..];
                            forward(&cpu, &mut part, x, w, [batch, n, k], rounding, false);
                            let case = format!("{} batch {batch}", cpu.isa());
                            assert_same_bits(&part, &whole[first * n..], &case);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_gradient_of_x_is_the_product_with_w_itself() {
        let contexts = contexts();
        for [m, n, k] in [[0, 5, 7], [3, 1, 33], [7, 100, 15], [30, 65, 70]] {
            let (dy, w, old) = (values(8, m * n), Weights::new(9, n * k), values(10, m * k));
            for w in w.matrices() {
                let rows = widened(w);
                let columns: Vec<f32> =
                    (0..k * n).map(|index| rows[index % n * k + index / n]).collect();
                for rounding in ROUNDINGS {
                    let rounds = rounding == Rounding::Bf16 && matches!(w, Matrix::Bf16(_));
                    let round = |x: &f32| if rounds { bf16::from_f32(*x).to_f32() } else { *x };
                    let dy_rounded: Vec<f32> = dy.iter().map(round).collect();
                    let shape = [m, k, n];
                    let columns = Matrix::F32(&columns);
                    let (naive, exact) = twins(&old, &dy_rounded, columns, shape, Rounding::F32);
                    for cpu in &contexts {
                        let mut dx = old.clone();
                        backward(cpu, &mut dx, &dy, w, [m, n, k], rounding, true);
                        let case = format!("{} [{m}, {n}, {k}] {rounding:?}", cpu.isa());
                        assert_close(&dx, &naive, &exact, 1e-6, &case);
                    }
                }
            }
        }
    }

    #[test]
    fn infinities_and_nans_pass_through() {
        let w = Weights::new(6, 4 * 40);
        let mut x = values(7, 3 * 40);
        (x[5], x[45]) = (f32::INFINITY, f32::NAN);
        for w in w.matrices() {
            for (cpu, rounding) in contexts().iter().flat_map(|cpu| ROUNDINGS.map(|r| (cpu, r))) {
                let mut y = vec![0.0; 12];
                forward(cpu, &mut y, &x, w, [3, 4, 40], rounding, false);
                assert!(y[..4].iter().all(|y| y.is_infinite()), "{y:?}");
                assert!(y[4..8].iter().all(|y| y.is_nan()), "{y:?}");
                assert!(y[8..].iter().all(|y| y.is_finite()), "{y:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "w is not [4, 8]")]
    fn shapes_are_checked() {
        let cpu = Cpu::new(1);
        let w = Matrix::F32(&[0.0; 31]);
        forward(&cpu, &mut [0.0; 8], &[0.0; 16], w, [2, 4, 8], Rounding::F32, false);
    }
}
