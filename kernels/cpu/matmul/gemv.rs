//! GEMV, the form of the product for few rows of x: every output is a dot product of two contiguous
//! rows, and weights are read where they lie. AVX-512 and sums in f64 use it for many rows too.
//!
//! The order of summation is fixed by k alone: chunks of 1024 elements, each summed lane by lane and
//! reduced by one tree (dot.rs), chunk sums added to y in order. Sums in f64 are not cut into
//! chunks, so that y is rounded once; their bits are the same on every instruction set.
//!
//! Bound: for a few rows reading w, once; for many the multipliers. There a task's block of x and
//! its block of w stay in the L2 cache, and six rows of x in L1 while w passes by.

use half::{bf16, f16};

use super::STREAM;
use crate::cpu::context::{Transposed, grown};
use crate::cpu::dot::{Dot, Output, Rows, Scalar, Widened, WidenedDoubles, strip};
use crate::cpu::pool::Disjoint;
use crate::cpu::vector::{Element, Simd, Vector, for_each_isa};
use crate::cpu::{ComputeDtype, Cpu, Isa, Matrix, round};

/// Elements of a row that are summed before the sum is added to y, but for sums in f64.
pub(super) const CHUNK: usize = 1024;

/// Most rows of x in a block: with chunks of bf16 384 KiB, with f32 768 KiB, of an L2 cache of 1 MiB.
const ROW_BLOCK: usize = 192;

/// Rows of w that a task of many rows of x takes, if they are long: 128 KiB of bf16 per chunk.
const COLUMN_BLOCK: usize = 64;

/// Up to this many rows of x a task walks along w once; above, blocks of w are read again from L2.
const FEW_ROWS: usize = 24;

/// [`super::forward`] in this form.
pub(super) fn forward(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    compute: ComputeDtype,
    accumulate: bool,
) {
    let exact = compute == ComputeDtype::F64;
    let chunk = if exact { usize::MAX } else { CHUNK };
    let size = Size { m, n, k, x_stride: k, chunk, accumulate };
    match w {
        Matrix::Bf16(w) if compute == ComputeDtype::Bf16 => {
            // Rounded rows a line apart from a power of two: else those of a tile share a few cache
            // sets.
            let padded = Size { x_stride: k.next_multiple_of(32) + 32, ..size };
            let scratch = &mut *cpu.scratch();
            let rounded = grown(&mut scratch.f32, m * padded.x_stride);
            round::rows(cpu, rounded, padded.x_stride, x, k);
            distribute(cpu, y, rounded, w, padded, block_widened_on::<bf16>);
        }
        Matrix::Bf16(w) if exact => distribute(cpu, y, x, w, size, block_exact_on),
        Matrix::F16(w) if exact => distribute(cpu, y, x, w, size, block_exact_on),
        Matrix::F32(w) if exact => distribute(cpu, y, x, w, size, block_exact_on),
        Matrix::Bf16(w) => distribute(cpu, y, x, w, size, block_widened_on::<bf16>),
        Matrix::F16(w) => distribute(cpu, y, x, w, size, block_widened_on::<f16>),
        Matrix::F32(w) => distribute(cpu, y, x, w, size, block_widened_on::<f32>),
        Matrix::Panels(_) => panic!("panels hold bf16 weights for products of bf16 pairs only"),
    }
}

/// [`super::backward`] in this form, for sums in f64: w is transposed into scratch memory first, so
/// that the product is one of rows again: a pass over w, against m passes of the multipliers.
pub(super) fn backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dy: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    compute: ComputeDtype,
    accumulate: bool,
) {
    // Taken out, as the product itself uses scratch memory.
    let mut transposed = std::mem::take(&mut cpu.scratch().transposed);
    let Transposed { bf16, f16, f32 } = &mut transposed;
    let columns = match w {
        Matrix::Bf16(w) => Matrix::Bf16(transpose(cpu, bf16, w, n, k)),
        Matrix::F16(w) => Matrix::F16(transpose(cpu, f16, w, n, k)),
        Matrix::F32(w) => Matrix::F32(transpose(cpu, f32, w, n, k)),
        Matrix::Panels(_) => panic!("panels hold bf16 weights for products of bf16 pairs only"),
    };
    forward(cpu, dx, dy, columns, [m, k, n], compute, accumulate);
    cpu.scratch().transposed = transposed;
}

/// The transpose `[k, n]` of `w [n, k]` in `memory`.
fn transpose<'a, T: Copy + bytemuck::Zeroable + Send + Sync>(
    cpu: &Cpu,
    memory: &'a mut Vec<T>,
    w: &[T],
    n: usize,
    k: usize,
) -> &'a [T] {
    /// Side of a tile: its lines of both matrices stay in L1.
    const TILE: usize = 32;
    let memory = grown(memory, n * k);
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

/// A block of y, `rows` × `columns`, and where its operands begin.
struct Task<W> {
    y: *mut f32,
    x: *const f32,
    w: *const W,
    rows: usize,
    columns: usize,
    size: Size,
}

/// [`block`], compiled for each instruction set.
type Block<W> = unsafe fn(Isa, Task<W>);

/// Splits y into blocks and computes them on the threads. The split has no influence on any bit.
fn distribute<W: Sync>(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &[W], size: Size, block: Block<W>) {
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
            let task = Task {
                y: y.as_mut_ptr().add(first_row * n + first_column),
                x: x.as_ptr().add(first_row * x_stride),
                w: w.as_ptr().add(first_column * k),
                rows: rows.min(m - first_row),
                columns: columns.min(n - first_column),
                size,
            };
            block(cpu.isa(), task);
        }
    };
    if n * k <= STREAM && m * n * k <= STREAM {
        (0..row_blocks * column_blocks).for_each(|index| task(0, index));
    } else {
        cpu.pool().for_each(row_blocks * column_blocks, &task);
    }
}

/// Computes a task's block of y.
///
/// # Safety
/// The CPU has the instruction set of `D`. The rows of x and w, of k elements, and the columns of
/// y, in rows of n, exist, and nothing else uses that block of y.
#[inline(always)]
unsafe fn block<D: Dot<X = f32>>(task: Task<D::W>)
where
    f32: Output<Scalar<D>>,
{
    let Task { y, x, w, rows, columns, size } = task;
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

for_each_isa! {
    fn block_widened_on<W: Element>(task: Task<W>) = block_widened
}

/// [`block`] of weights of type W.
///
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn block_widened<V: Vector, W: Element>(task: Task<W>) {
    // SAFETY: the caller's promise, passed on.
    unsafe { block::<Widened<V, W>>(task) }
}

for_each_isa! {
    fn block_exact_on<W: Element>(task: Task<W>) = block_exact
}

/// [`block`] of weights of type W, with sums in f64.
///
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn block_exact<V: Vector, W: Element>(task: Task<W>) {
    // SAFETY: the caller's promise, passed on.
    unsafe { block::<WidenedDoubles<V::Doubles, W>>(task) }
}
