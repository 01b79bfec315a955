//! The tile form of the product: panels of w, widened to f32 on the way, under tiles of x's rows. For
//! products of f32 with many rows, and for gradients; its bits are those of the dot form (gemv.rs).
//!
//! The dot form sums every LANES-th product along a chunk in a lane of its own and adds the lanes by
//! halves. Here a lane holds an output, so the same chains run one after the other: all products of
//! lane 0, then those of another, and the sums of two lanes are added as soon as both are there. For
//! that a chunk lies lane by lane in scratch memory: a tile of x as `[lane][step][rows]`, a panel as
//! `[lane][step][columns]`. Rests of k are filled up with zeros, as masked loads are in the dot form.
//!
//! A tile is 6 rows x 16 columns with AVX2, 12 x 32 with AVX-512, 4 x 16 without: a step loads two
//! vectors of w and broadcasts as many values of x as there are rows. A task's panels stay in L2.
//!
//! Bound: the multipliers (197 GFLOP/s of 234 with AVX2 on two cores of a Zen 4, the dot form 94).
//! Packing a panel takes what sixteen rows of x do, half of it for reading w from memory.

#![allow(clippy::needless_range_loop)] // indices of tiles, as in the formulas

use super::gemv::CHUNK;
use super::{Product, STREAM};
use crate::cpu::context::{Line, Scratch, grown};
use crate::cpu::dot::Rows;
use crate::cpu::pool::Disjoint;
use crate::cpu::round::Rounded;
#[cfg(target_arch = "x86_64")]
use crate::cpu::vector::{Avx2, Avx512};
use crate::cpu::vector::{Element, Portable, Vector, for_each_isa};
use crate::cpu::{ComputeDtype, Cpu, Isa, Matrix};

/// Up to this many columns of y, packing x does not pay.
const FEW_COLUMNS: usize = 32;

/// Vectors of columns in a panel.
const VECTORS: usize = 2;

/// Panels that are taken through the rows of a block together.
const GROUP: usize = 2;

/// Most rows of x in a block, for each of which panels are packed.
const ROW_BLOCK: usize = 512;

/// Rows that pay for packing a panel: blocks for more threads are not smaller.
const LEAST_ROWS: usize = 48;

/// Most lanes of a vector.
const MOST_LANES: usize = 16;

/// Elements between two lanes of a panel: without them all lanes' first lines share a set of L1.
const GAP: usize = 16;

/// Whether x·wᵀ with `m` rows of x and `n` columns of y is taken in this form.
pub(super) fn takes_tiles(isa: Isa, [m, n]: [usize; 2], compute: ComputeDtype) -> bool {
    compute != ComputeDtype::F64 && m > few_rows(isa) && n > FEW_COLUMNS
}

/// Up to this many rows of x, the dot form is as fast: it packs nothing. With AVX-512 it always is, as
/// its 24 accumulators make little of their reduction (208 GFLOP/s of 234, here 203; the same Zen 4).
fn few_rows(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 4,
        Isa::Avx2 => 12,
        Isa::Avx512 | Isa::Avx512Bf16 => usize::MAX,
    }
}

/// Tiles of m rows, shared out evenly.
#[derive(Clone, Copy)]
struct Tiles {
    m: usize,
    count: usize,
}

impl Tiles {
    fn new(m: usize, most_rows: usize) -> Tiles {
        Tiles { m, count: m.div_ceil(most_rows) }
    }

    /// The first row of a tile; of the one after the last, m.
    fn first(self, tile: usize) -> usize {
        tile * (self.m / self.count) + tile.min(self.m % self.count)
    }

    fn rows(self, tile: usize) -> usize {
        self.first(tile + 1) - self.first(tile)
    }
}

/// Elements from lane to lane of a tile of x.
const fn x_lane(steps: usize, rows: usize) -> usize {
    steps * rows + MOST_LANES
}

/// Elements from tile to tile of packed x: room for the most rows, chunk after chunk.
fn x_tile(k: usize, lanes: usize, most_rows: usize) -> usize {
    let whole = k / CHUNK * lanes * x_lane(CHUNK / lanes, most_rows);
    whole + lanes * x_lane((k % CHUNK).div_ceil(lanes), most_rows)
}

/// Elements of f32 scratch memory for packed x `[m, k]`.
pub(super) fn tile_elements(isa: Isa, m: usize, k: usize) -> usize {
    let (lanes, most_rows) = (lanes(isa), most_rows(isa));
    m.div_ceil(most_rows) * x_tile(k, lanes, most_rows)
}

/// Elements of a thread's panels.
fn panel_elements(lanes: usize) -> usize {
    GROUP * (CHUNK * VECTORS * lanes + lanes * GAP)
}

/// Bytes of scratch memory for panels.
fn tile_panel_bytes(isa: Isa, threads: usize) -> usize {
    threads * panel_elements(lanes(isa)) * size_of::<f32>()
}

/// Rows of the largest tile.
fn most_rows(isa: Isa) -> usize {
    match isa {
        Isa::Portable => most_rows_of::<Portable>(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => most_rows_of::<Avx2>(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => most_rows_of::<Avx512>(),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("{isa} on this architecture"),
    }
}

fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Portable | Isa::Avx2 => 8,
        Isa::Avx512 | Isa::Avx512Bf16 => 16,
    }
}

/// How weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// `[n, k]`: along the sums.
    Rows,
    /// `[k, n]`.
    Columns,
}

/// [`super::forward_all`] in this form, of the products that take it and without their updates.
pub(super) fn forward(
    cpu: &Cpu,
    products: &mut [Product<'_>],
    x: &[f32],
    [m, k]: [usize; 2],
    compute: ComputeDtype,
) {
    let Scratch { f32: packed, panels, .. } = &mut *cpu.scratch();
    // How x was packed for the product before.
    let mut last = None;
    for Product { y, w, n, accumulate, .. } in products {
        if !takes_tiles(cpu.isa(), [m, *n], compute) {
            continue;
        }
        let rounds = rounds(*w, compute);
        if last.replace(rounds) != Some(rounds) {
            pack_inputs(cpu, packed, x, [m, k], rounds);
        }
        multiply_all(cpu, y, packed, *w, Order::Rows, [m, *n, k], *accumulate, panels);
    }
}

/// [`super::backward`] in this form, without its delta.
pub(super) fn backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dy: &[f32],
    w: Matrix<'_>,
    [m, n, k]: [usize; 3],
    compute: ComputeDtype,
    accumulate: bool,
) {
    let Scratch { f32: packed, panels, .. } = &mut *cpu.scratch();
    pack_inputs(cpu, packed, dy, [m, n], rounds(w, compute));
    multiply_all(cpu, dx, packed, w, Order::Columns, [m, k, n], accumulate, panels);
}

/// Whether inputs are rounded to bf16.
fn rounds(w: Matrix<'_>, compute: ComputeDtype) -> bool {
    compute == ComputeDtype::Bf16 && matches!(w, Matrix::Bf16(_))
}

/// Packs `x` `[m, k]` tile by tile, rounded to bf16 if `rounds`.
fn pack_inputs(cpu: &Cpu, packed: &mut Vec<f32>, x: &[f32], [m, k]: [usize; 2], rounds: bool) {
    assert_eq!(x.len(), m * k, "x is not [{m}, {k}]");
    let isa = cpu.isa();
    let tiles = Tiles::new(m, most_rows(isa));
    let stride = x_tile(k, lanes(isa), most_rows(isa));
    let packed = Disjoint::new(grown(packed, tile_elements(isa, m, k)));
    cpu.for_rows(tiles.count, k * most_rows(isa), &|first, count| {
        for tile in first..first + count {
            let (rows, x) = (tiles.rows(tile), &x[tiles.first(tile) * k..]);
            // SAFETY: tiles do not overlap; `Cpu::with_isa` asserts the instruction set; the rows
            // are inside x by `Tiles`, and `x_tile` is the room they take.
            unsafe {
                let to = packed.part(tile * stride, stride);
                pack_tile_on(isa, to.as_mut_ptr(), x, [rows, k], rounds);
            }
        }
    });
}

for_each_isa! {
    fn pack_tile_on(to: *mut f32, x: &[f32], shape: [usize; 2], rounds: bool) = pack_tile
}

/// # Safety
/// The CPU has the instruction set of `V`; there are at most as many rows as lanes, and `to` has room
/// for them, of k elements.
#[inline(always)]
unsafe fn pack_tile<V: Vector>(mut to: *mut f32, x: &[f32], [rows, k]: [usize; 2], rounds: bool) {
    /// Elements of a row taken at a time.
    const PART: usize = 64;
    let mut part = [[0f32; PART]; MOST_LANES];
    for start in (0..k).step_by(CHUNK) {
        let end = k.min(start + CHUNK);
        let steps = (end - start).div_ceil(V::LANES);
        let lane = x_lane(steps, rows);
        for first in (start..end).step_by(PART) {
            let count = PART.min(end - first);
            for (row, to) in part[..rows].iter_mut().enumerate() {
                for (to, &x) in to.iter_mut().zip(&x[row * k + first..][..count]) {
                    *to = if rounds { <f32 as Rounded>::round(x) } else { x };
                }
                to[count..].fill(0.0);
            }
            for l in (0..count).step_by(V::LANES) {
                let step = (first - start + l) / V::LANES;
                // SAFETY: the part has as many rows as any vector has lanes. What is written beyond
                // a step's rows the next step writes again, or lies between two lanes.
                unsafe {
                    let from = part.as_ptr().cast::<f32>().add(l);
                    V::transpose(from, PART, to.add(step * rows), lane);
                }
            }
        }
        to = to.wrapping_add(V::LANES * lane);
    }
}

/// Computes y, or adds to it, from packed x. `n` counts columns of y, `k` what is summed.
#[allow(clippy::too_many_arguments)] // operands, their sizes, and memory
fn multiply_all(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    w: Matrix<'_>,
    order: Order,
    shape: [usize; 3],
    accumulate: bool,
    panels: &mut Vec<Line>,
) {
    match w {
        Matrix::Bf16(w) => distribute(cpu, y, x, w, order, shape, accumulate, panels),
        Matrix::F16(w) => distribute(cpu, y, x, w, order, shape, accumulate, panels),
        Matrix::F32(w) => distribute(cpu, y, x, w, order, shape, accumulate, panels),
        Matrix::Panels(_) => panic!("panels hold bf16 weights for products of bf16 pairs only"),
    }
}

/// Splits y into blocks and computes them on the threads. The split has no influence on any bit.
#[allow(clippy::too_many_arguments)] // as above
fn distribute<W: Element>(
    cpu: &Cpu,
    y: &mut [f32],
    x: &[f32],
    w: &[W],
    order: Order,
    [m, n, k]: [usize; 3],
    accumulate: bool,
    panels: &mut Vec<Line>,
) {
    let (isa, threads) = (cpu.isa(), cpu.threads());
    assert!(y.len() == m * n && w.len() == n * k, "a product of [{m}, {n}, {k}]");
    assert!(x.len() >= tile_elements(isa, m, k), "packed rows of x");
    if m == 0 || n == 0 {
        return;
    }
    let columns = GROUP * VECTORS * lanes(isa);
    let column_tasks = n.div_ceil(columns);
    // As many blocks of rows as the threads need, but none so small that packing does not pay.
    let tiles = Tiles::new(m, most_rows(isa));
    let row_tasks = (4 * threads).div_ceil(column_tasks).min(m / LEAST_ROWS);
    let block_tiles = tiles.count.div_ceil(row_tasks.max(m.div_ceil(ROW_BLOCK)));
    let row_tasks = tiles.count.div_ceil(block_tiles);

    let line_count = tile_panel_bytes(isa, 1) / size_of::<Line>();
    let panels = Disjoint::new(grown(panels, threads * line_count));
    let y = Disjoint::new(y);
    let task = |thread: usize, task: usize| {
        let first_tile = task / column_tasks * block_tiles;
        let first_column = task % column_tasks * columns;
        // SAFETY: each thread has a part of its own.
        let panels = unsafe { panels.part(thread * line_count, line_count) };
        let block = Block {
            y: y.as_mut_ptr(),
            x,
            tiles,
            first_tile,
            end_tile: tiles.count.min(first_tile + block_tiles),
            w,
            order,
            shape: [n, k],
            first_column,
            columns: columns.min(n - first_column),
            accumulate,
            panels: panels.as_mut_ptr().cast(),
        };
        // SAFETY: `Cpu::with_isa` asserts the instruction set; rows and columns of the block lie
        // inside y, x and w by the asserts above, blocks of different tasks do not overlap, and
        // `tile_panel_bytes` is what a task's panels take.
        unsafe { block_on(isa, block) };
    };
    if n * k <= STREAM && m * n * k <= STREAM {
        (0..row_tasks * column_tasks).for_each(|index| task(0, index));
    } else {
        cpu.pool().for_each(row_tasks * column_tasks, &task);
    }
}

/// The block of y that a task computes.
struct Block<'a, W> {
    /// All of y, packed x and its tiles.
    y: *mut f32,
    x: &'a [f32],
    tiles: Tiles,
    first_tile: usize,
    end_tile: usize,
    /// All weights.
    w: &'a [W],
    order: Order,
    /// n, k.
    shape: [usize; 2],
    first_column: usize,
    columns: usize,
    accumulate: bool,
    panels: *mut f32,
}

for_each_isa! {
    fn block_on<W: Element>(of: Block<'_, W>) = block
}

/// # Safety
/// The CPU has the instruction set of `V`; the block's rows and columns of y, x and w exist, nothing
/// else uses those of y, and panels have [`panel_elements`].
#[inline(always)]
unsafe fn block<V: Vector, W: Element>(of: Block<'_, W>) {
    let Block { y, x, tiles, w, order, columns, accumulate, panels, shape, .. } = of;
    let [n, k] = shape;
    let width = VECTORS * V::LANES;
    let x_stride = x_tile(k, V::LANES, most_rows_of::<V>());
    let panel = |index: usize| panels.wrapping_add(index * panel_elements(V::LANES) / GROUP);
    // Of the chunks before: elements of a row of packed x, and between lanes.
    let (mut x_chunk, mut x_gaps) = (0, 0);
    let mut start = 0;
    loop {
        let count = CHUNK.min(k - start);
        let steps = count.div_ceil(V::LANES);
        // SAFETY: columns of the group are inside the block, elements start .. start + count are
        // below k, rows of a tile below m; a panel of `steps` steps fits its part of the memory.
        unsafe {
            for (index, column) in (0..columns).step_by(width).enumerate() {
                let columns = [of.first_column + column, width.min(columns - column)];
                let (to, chunk) = (panel(index), [start, count]);
                match columns[1] > V::LANES {
                    true => pack::<V, W, 2>(to, w, order, shape, columns, chunk),
                    false => pack::<V, W, 1>(to, w, order, shape, columns, chunk),
                }
            }
            for index in of.first_tile..of.end_tile {
                let rows = tiles.rows(index);
                let x = x[index * x_stride + x_chunk * rows + x_gaps..].as_ptr();
                let y = y.add(tiles.first(index) * n + of.first_column);
                for (index, column) in (0..columns).step_by(width).enumerate() {
                    let tile = Tile {
                        y: Rows { start: y.add(column), stride: n },
                        x,
                        w: panel(index),
                        steps,
                        columns: width.min(columns - column),
                        add: accumulate || start > 0,
                    };
                    tile_of::<V>(rows, tile);
                }
            }
        }
        start += count;
        x_chunk += steps * V::LANES;
        x_gaps += V::LANES * MOST_LANES;
        if start == k {
            break;
        }
    }
}

/// Elements from lane to lane of a panel.
const fn lane_stride(steps: usize, width: usize) -> usize {
    steps * width + GAP
}

/// Packs a chunk of a panel of N vectors, widened; missing columns are zero.
///
/// # Safety
/// The CPU has the instruction set of `V`; the columns are inside n, at most N vectors and more than
/// N - 1, the chunk is inside k, and `to` has room for it.
#[inline(always)]
unsafe fn pack<V: Vector, W: Element, const N: usize>(
    to: *mut f32,
    w: &[W],
    order: Order,
    [n, k]: [usize; 2],
    [column, columns]: [usize; 2],
    [start, count]: [usize; 2],
) {
    /// Steps taken at a time from one row of w: a line of bf16 with AVX2.
    const STEPS: usize = 4;
    let width = N * V::LANES;
    let steps = count.div_ceil(V::LANES);
    let lane = lane_stride(steps, width);
    // SAFETY: rows (columns) column .. column + columns and elements start .. start + count exist.
    unsafe {
        if order == Order::Columns {
            for l in 0..steps * V::LANES {
                let to = to.add(l % V::LANES * lane + l / V::LANES * width);
                for v in 0..N {
                    let lanes = V::LANES.min(columns - v * V::LANES);
                    let from = w.as_ptr().wrapping_add((start + l) * n + column + v * V::LANES);
                    let values = match lanes == V::LANES {
                        _ if l >= count => V::splat(0.0),
                        true => W::load::<V>(from),
                        false => W::load_first::<V>(from, lanes),
                    };
                    values.store(to.add(v * V::LANES));
                }
            }
            return;
        }
        for first in (0..steps).step_by(STEPS) {
            for v in 0..N {
                let rows = V::LANES.min(columns - v * V::LANES);
                let from = w.as_ptr().add((column + v * V::LANES) * k + start);
                for row in 0..rows {
                    // The same of the next panel: streams this short the hardware does not see.
                    let next = from.wrapping_add((width + row) * k + first * V::LANES);
                    V::prefetch(next.cast());
                }
                for step in first..steps.min(first + STEPS) {
                    let from = from.add(step * V::LANES);
                    let to = to.add(step * width + v * V::LANES);
                    let elements = V::LANES.min(count - step * V::LANES);
                    if rows == V::LANES && elements == V::LANES {
                        V::transpose(from, k, to, lane);
                        continue;
                    }
                    let mut edge = [0f32; MOST_LANES * MOST_LANES];
                    for row in 0..rows {
                        let from = from.add(row * k);
                        let values = match elements == V::LANES {
                            true => W::load::<V>(from),
                            false => W::load_first::<V>(from, elements),
                        };
                        values.store(edge[row * V::LANES..][..V::LANES].as_mut_ptr());
                    }
                    V::transpose(edge.as_ptr(), V::LANES, to, lane);
                }
            }
        }
    }
}

/// Operands of a tile over a chunk.
#[derive(Clone, Copy)]
struct Tile {
    y: Rows<*mut f32>,
    x: *const f32,
    w: *const f32,
    steps: usize,
    columns: usize,
    /// Whether to y or over it.
    add: bool,
}

/// Rows of the largest tile: with two vectors as many accumulators as the dot form has with four.
const fn most_rows_of<V: Vector>() -> usize {
    2 * V::TILE_ROWS
}

/// # Safety
/// As for [`tile`]; the panel has one vector where that holds the columns, else two.
#[inline(always)]
unsafe fn tile_of<V: Vector>(rows: usize, of: Tile) {
    macro_rules! of_rows {
        ($($m:literal)*) => {
            match rows {
                $($m if most_rows_of::<V>() >= $m => match of.columns > V::LANES {
                    true => tile::<V, $m, 2>(of),
                    false => tile::<V, $m, 1>(of),
                },)*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    // SAFETY: the caller's promise, passed on; every arm takes exactly the rows there are.
    unsafe { of_rows!(1 2 3 4 5 6 7 8 9 10 11 12) }
}

/// Writes sums of M rows and N vectors of columns over a chunk, or adds them.
///
/// # Safety
/// The CPU has the instruction set of `V`; M rows of y with the columns, of packed x and a packed panel
/// of N vectors with the steps exist.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const N: usize>(tile: Tile) {
    let Tile { y, x, w, steps, columns, add } = tile;
    let lane = lane_stride(steps, N * V::LANES);
    // SAFETY: lanes and steps as the caller promises; whole vectors of y exist but for the last one.
    unsafe {
        // The sum of 2^i lanes, of each output.
        let mut sums = [[[V::splat(0.0); N]; M]; MOST_LANES.ilog2() as usize + 1];
        for index in 0..V::LANES {
            // Bits reversed: so lanes follow each other as halves are added, 0 and 4 of 8, 2 and 6.
            let l = index.reverse_bits() >> (usize::BITS - V::LANES.trailing_zeros());
            let mut sum = chain::<V, M, N>(x.add(l * x_lane(steps, M)), w.add(l * lane), steps);
            let whole = index.trailing_ones() as usize;
            for other in &sums[..whole] {
                for i in 0..M {
                    for v in 0..N {
                        sum[i][v] = other[i][v].add(sum[i][v]);
                    }
                }
            }
            sums[whole] = sum;
        }
        let sum = &sums[V::LANES.trailing_zeros() as usize];
        for i in 0..M {
            for v in 0..N {
                let to = y.start.add(i * y.stride + v * V::LANES);
                let lanes = V::LANES.min(columns - v * V::LANES);
                match (lanes == V::LANES, add) {
                    (true, true) => V::load(to).add(sum[i][v]).store(to),
                    (true, false) => sum[i][v].store(to),
                    (false, true) => V::load_first(to, lanes).add(sum[i][v]).store_first(to, lanes),
                    (false, false) => sum[i][v].store_first(to, lanes),
                }
            }
        }
    }
}

/// The sums of one lane.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn chain<V: Vector, const M: usize, const N: usize>(
    mut x: *const f32,
    mut w: *const f32,
    steps: usize,
) -> [[V; N]; M] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; M];
        for _ in 0..steps {
            let mut row = [V::splat(0.0); N];
            for v in 0..N {
                row[v] = V::load(w.add(v * V::LANES));
            }
            w = w.add(N * V::LANES);
            for i in 0..M {
                let x = V::splat(*x.add(i));
                for v in 0..N {
                    sums[i][v] = x.mul_add(row[v], sums[i][v]);
                }
            }
            x = x.add(M);
        }
        sums
    }
}
