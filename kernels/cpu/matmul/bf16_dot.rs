//! Bf16 dot products: pairs of bf16 (AVX-512 BF16) over panels of weights.
//!
//! A lane holds one output, to which `vdpbf16ps` adds two products per step, in the order of k: one
//! chain of additions from the first pair to the last, whatever the tile, the chunk, the number of
//! rows or threads, and whether the panel was packed before or is packed on the way. So a row has the
//! same bits in a prefill, in a decoding step and in training, with weights mapped or packed.
//!
//! Up to twelve rows of x by a panel of 32 rows of w are a tile: 24 accumulators, for which a step
//! loads two vectors of w and broadcasts twelve pairs of x. Many rows go by blocks that stay in L2;
//! few stream w once, at the speed of memory (34 GB/s of 34 on two cores of a Zen 4, 2026-11-24).

#![allow(clippy::needless_range_loop)] // indices of tiles, as in the formulas

use std::arch::x86_64::*;

use half::bf16;

use super::pack::{column_block, pack_columns, pack_panel_columns, pack_rows};
use super::panels::{PANEL_ROWS, PanelSlice};
use super::{FEW_ROWS, LowRank, STREAM};
use crate::cpu::context::{Line, Scratch, grown};
use crate::cpu::pool::Disjoint;
use crate::cpu::{Cpu, round};

/// Bytes of a pair of a panel's rows.
const PANEL_BYTES: usize = PANEL_ROWS * size_of::<u32>();

/// Most rows of x in a tile.
pub(crate) const TILE: usize = 12;

/// Pairs of a panel that are taken through all rows of a block: 64 KiB of w.
const CHUNK: usize = 512;

/// The same where few rows make more than one tile.
const SHORT_CHUNK: usize = 256;

/// Most rows of x in a block: of a chunk 384 KiB, beside 128 KiB of w, of an L2 cache of 1 MiB.
const ROW_BLOCK: usize = 192;

/// The same where panels are packed on the way, which has to pay.
const PACKED_ROW_BLOCK: usize = 512;

/// Panels that are taken through the rows of a block together, where rows are many.
const GROUP: usize = 2;

/// Bytes of w that are asked for ahead of their use where rows make one tile. Where they make more, all
/// tiles together ask for the next chunk while they use this one, so that memory is read all the time
/// (16 rows: 433 GFLOP/s of 453, 335 without; two cores of a Zen 4, 2026-11-24).
const AHEAD: usize = 4096;

/// Weights `[n, k]` of y = x·wᵀ, and how to get a panel of them.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Packed panels.
    Panels(PanelSlice<'a>),
    /// Row by row.
    Rows { w: &'a [bf16], n: usize, k: usize },
    /// The transpose of a matrix `[k, n]`.
    Columns { w: &'a [bf16], n: usize, k: usize },
    /// The transpose of packed weights `[k, n]`.
    PanelColumns(PanelSlice<'a>),
}

impl Source<'_> {
    /// [n, k] of the weights.
    fn shape(&self) -> [usize; 2] {
        match *self {
            Source::Panels(panels) => panels.shape(),
            Source::Rows { n, k, .. } | Source::Columns { n, k, .. } => [n, k],
            Source::PanelColumns(panels) => {
                let [k, n] = panels.shape();
                [n, k]
            }
        }
    }
}

/// One product of several with the same x.
pub(super) struct Job<'a> {
    /// `[m, n]`.
    pub(super) y: Disjoint<'a, f32>,
    pub(super) source: Source<'a>,
    pub(super) accumulate: bool,
    pub(super) low_rank: Option<LowRank<'a>>,
}

/// Rows of x in a block of m.
fn row_block(m: usize, packs: bool) -> usize {
    let most = if packs { PACKED_ROW_BLOCK } else { ROW_BLOCK };
    if m <= FEW_ROWS { m } else { m.div_ceil(m.div_ceil(most)) }
}

/// Bytes of scratch memory for panels that are packed on the way.
fn panel_bytes(threads: usize) -> usize {
    threads * GROUP * CHUNK * PANEL_ROWS * size_of::<u32>()
}

/// Elements of f32 scratch memory for sums between chunks, with m rows of x.
fn partial_elements(m: usize, threads: usize) -> usize {
    threads * GROUP * PANEL_ROWS * row_block(m, true)
}

/// Computes all jobs. Shapes: x `[m, k]`, y `[m, n]` of each. The caller has checked them.
pub(super) fn run(cpu: &Cpu, x: &[f32], [m, k]: [usize; 2], jobs: &[Option<Job<'_>>]) {
    if m == 0 {
        return;
    }
    let Scratch { bf16, panels: lines, f32: partial, .. } = &mut *cpu.scratch();
    // Rows a line apart from a power of two: else those of a tile share a few cache sets.
    let x_stride = k.next_multiple_of(32) + 32;
    let rounded = grown(bf16, m * x_stride);
    round::rows(cpu, rounded, x_stride, x, k);
    if k % 2 == 1 && !cpu.counts() {
        rounded.iter_mut().skip(k).step_by(x_stride).for_each(|second| *second = bf16::ZERO);
    }

    let few = m <= FEW_ROWS;
    let packs = |job: &Job<'_>| !matches!(job.source, Source::Panels(_));
    let row_block = row_block(m, jobs.iter().flatten().any(packs));
    let group = if few { 1 } else { GROUP };
    // Many rows: tasks as small as a group of panels. Few: longer runs of w, some for each thread so
    // that none waits for a thread that was held up.
    let panels = |job: &Job<'_>| job.source.shape()[0].div_ceil(PANEL_ROWS);
    let total: usize = jobs.iter().flatten().map(panels).sum();
    let per_task = match few {
        true => {
            let least = STREAM.div_ceil(PANEL_ROWS * k.max(1));
            total.div_ceil(8 * cpu.threads()).max(least).next_multiple_of(group)
        }
        false => group,
    };
    let tasks_of = |job: &Job<'_>| panels(job).div_ceil(per_task);
    let column_tasks: usize = jobs.iter().flatten().map(tasks_of).sum();
    if column_tasks == 0 {
        return;
    }
    let row_tasks = m.div_ceil(row_block);

    let threads = cpu.threads();
    let line_count = panel_bytes(1) / size_of::<Line>();
    let lines = Disjoint::new(grown(lines, threads * line_count));
    let partial_len = partial_elements(m, 1);
    let partial = Disjoint::new(grown(partial, threads * partial_len));
    let x = &*rounded;
    let task = |thread: usize, task: usize| {
        let (rows, mut index) = (task / column_tasks, task % column_tasks);
        let mut jobs = jobs.iter().flatten();
        let job = loop {
            let job = jobs.next().expect("a task belongs to a job");
            let count = tasks_of(job);
            if index < count {
                break job;
            }
            index -= count;
        };
        let first_row = rows * row_block;
        let first_panel = index * per_task;
        // SAFETY: each thread has a part of its own.
        let (lines, partial) = unsafe {
            (
                lines.part(thread * line_count, line_count),
                partial.part(thread * partial_len, partial_len),
            )
        };
        let block = Block {
            job,
            x: &x[first_row * x_stride..],
            x_stride,
            first_row,
            rows: row_block.min(m - first_row),
            first_panel,
            panels: per_task.min(panels(job) - first_panel),
            group,
            chunk: if few && m > TILE { SHORT_CHUNK } else { CHUNK },
            packed: words(lines),
            partial,
        };
        // SAFETY: this module runs where the CPU has AVX-512 BF16 (matmul.rs asks the context); the
        // block's rows and panels exist and no other task has them.
        unsafe { block.run() }
    };
    let work: usize = jobs.iter().flatten().map(|job| job.source.shape()[0] * k).sum();
    if work <= STREAM && m * work <= STREAM {
        (0..row_tasks * column_tasks).for_each(|index| task(0, index));
    } else {
        cpu.pool().for_each(row_tasks * column_tasks, &task);
    }
}

fn words(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a line is sixteen u32 without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// The block of y that a task computes: some rows, and the columns of some panels of one job.
struct Block<'a> {
    job: &'a Job<'a>,
    /// Rounded rows, from the block's first on.
    x: &'a [bf16],
    x_stride: usize,
    first_row: usize,
    rows: usize,
    first_panel: usize,
    panels: usize,
    group: usize,
    /// Pairs taken at a time.
    chunk: usize,
    /// Memory for a chunk of a group of panels.
    packed: &'a mut [u32],
    /// Sums between two chunks, `[group][rows, 32]`.
    partial: &'a mut [f32],
}

impl Block<'_> {
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16; y has the block's rows, which nobody else uses.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run(self) {
        let Block { job, x, x_stride, first_row, rows, packed, partial, .. } = self;
        let [n, k] = job.source.shape();
        let pairs = k.div_ceil(2);
        assert!(x.len() >= (rows - 1) * x_stride + 2 * pairs, "rows of x");
        assert!(packed.len() >= self.group * self.chunk * PANEL_ROWS, "memory for panels");
        assert!(partial.len() >= self.group * rows * PANEL_ROWS, "memory for sums");
        let tiles = rows.div_ceil(TILE);
        let end = self.first_panel + self.panels;
        for first in (self.first_panel..end).step_by(self.group) {
            let group = self.group.min(end - first);
            let mut start = 0;
            loop {
                let count = self.chunk.min(pairs - start);
                let mut w = [std::ptr::null(); GROUP];
                for (index, w) in w.iter_mut().take(group).enumerate() {
                    let part = self.chunk * PANEL_ROWS;
                    let to = &mut packed[index * part..(index + 1) * part];
                    *w = panel(job.source, first + index, start, count, to);
                }
                let last = start + count == pairs;
                // After the last chunk of a panel comes the same panel of the next group.
                let skipped = if last { (group - 1) * pairs * PANEL_ROWS } else { 0 };
                let mut row = 0;
                for tile in 0..tiles {
                    let tile_rows = tile_size(rows, tile);
                    for (index, w) in w.iter().take(group).enumerate() {
                        let column = (first + index) * PANEL_ROWS;
                        let part = (index * rows + row) * PANEL_ROWS;
                        let output = Output {
                            y: job.y.as_mut_ptr().wrapping_add((first_row + row) * n + column),
                            stride: n,
                            columns: PANEL_ROWS.min(n - column),
                            accumulate: job.accumulate,
                            low_rank: job.low_rank.map(|low_rank| Low {
                                left: low_rank.left[(first_row + row) * low_rank.rank..].as_ptr(),
                                right: low_rank.right[column..].as_ptr(),
                                rank: low_rank.rank,
                                stride: n,
                            }),
                        };
                        let (next, next_step) = match job.source {
                            _ if tiles == 1 => (w.wrapping_byte_add(AHEAD), PANEL_BYTES),
                            // What is packed next lies in blocks of 2 KiB all over w: packing would wait for
                            // memory at each. Every tile asks for its share of them.
                            Source::PanelColumns(panels) => {
                                let [next, at] = match last {
                                    true => [first + group, 0],
                                    false => [first, start + count],
                                };
                                let blocks = self.chunk.min(pairs - at).div_ceil(16);
                                let block = (tile * group + index) * blocks / tiles;
                                let block = [at / 16 + block / group, next + block % group];
                                let step = (16 * PANEL_BYTES / count).next_multiple_of(4);
                                (column_block(panels, block), step)
                            }
                            _ => {
                                let next = w.wrapping_add(count * PANEL_ROWS + skipped);
                                let share = tile * count * PANEL_BYTES / tiles;
                                (next.wrapping_byte_add(share), PANEL_BYTES / tiles)
                            }
                        };
                        // SAFETY: the asserts above and those of matmul.rs on y and the delta; the
                        // panel has `count` pairs.
                        unsafe {
                            let of = if tiles == 2 { tile_of::<false> } else { tile_of::<true> };
                            of(
                                tile_rows,
                                Tile {
                                    x: x.as_ptr().add(row * x_stride + 2 * start),
                                    x_stride,
                                    w: *w,
                                    pairs: count,
                                    next,
                                    next_step,
                                    partial: partial.as_mut_ptr().add(part),
                                    first: start == 0,
                                    output: last.then_some(output),
                                },
                            );
                        }
                    }
                    row += tile_rows;
                }
                start += count;
                if last {
                    break;
                }
            }
        }
    }
}

/// `count` pairs of a panel from pair `start` on: where they lie, or packed into `to`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn panel(
    source: Source<'_>,
    index: usize,
    start: usize,
    count: usize,
    to: &mut [u32],
) -> *const u32 {
    match source {
        Source::Panels(panels) => {
            let pairs = panels.k.div_ceil(2);
            panels.data[(index * pairs + start) * PANEL_ROWS..][..count * PANEL_ROWS].as_ptr()
        }
        Source::Rows { w, n, k } => {
            pack_rows(to, w, [n, k], index * PANEL_ROWS, [start, count]);
            to.as_ptr()
        }
        Source::Columns { w, n, k } => {
            pack_columns(to, w, [k, n], index * PANEL_ROWS, [start, count]);
            to.as_ptr()
        }
        Source::PanelColumns(panels) => {
            pack_panel_columns(to, panels, index * PANEL_ROWS, [start, count]);
            to.as_ptr()
        }
    }
}

/// Writes x·panel, of m rows and 32 columns over some pairs, to y, or adds it. x and y come with the
/// elements from row to row, what is to be fetched into L2 meanwhile with the bytes of it for each pair
/// (into L1 it waits for the few misses that L1 can have at a time: benches/LOG.md, 2026-11-25).
///
/// # Safety
/// The CPU has AVX-512 F, BW and BF16; the operands exist.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) unsafe fn multiply(
    [m, pairs]: [usize; 2],
    (x, x_stride): (*const bf16, usize),
    w: *const u32,
    (y, stride): (*mut f32, usize),
    accumulate: bool,
    next: Option<(*const u32, usize)>,
) {
    // The panel itself costs nothing to fetch again.
    let (next, next_step) = next.unwrap_or((w, 0));
    let tiles = m.div_ceil(TILE);
    let mut row = 0;
    for tile in 0..tiles {
        let rows = tile_size(m, tile);
        // SAFETY: the caller's promise, for rows below m.
        unsafe {
            let y = y.add(row * stride);
            let columns = PANEL_ROWS;
            let output = Output { y, stride, columns, accumulate, low_rank: None };
            let tile = Tile {
                x: x.add(row * x_stride),
                x_stride,
                w,
                pairs,
                next,
                next_step,
                partial: std::ptr::null_mut(),
                first: true,
                output: Some(output),
            };
            tile_of::<false>(rows, tile);
        }
        row += rows;
    }
}

/// Rows of a tile of m rows, which are shared out evenly.
fn tile_size(m: usize, tile: usize) -> usize {
    let tiles = m.div_ceil(TILE);
    m / tiles + usize::from(tile < m % tiles)
}

/// Where a tile's sums go.
#[derive(Clone, Copy)]
struct Output {
    y: *mut f32,
    stride: usize,
    /// Of the panel's 32.
    columns: usize,
    accumulate: bool,
    low_rank: Option<Low>,
}

/// The part of a delta that a tile adds: left `[rows, rank]`, right `[rank, 32]`.
#[derive(Clone, Copy)]
struct Low {
    left: *const f32,
    right: *const f32,
    rank: usize,
    /// Elements from row to row of right.
    stride: usize,
}

/// Operands of a tile.
#[derive(Clone, Copy)]
struct Tile {
    x: *const bf16,
    x_stride: usize,
    w: *const u32,
    pairs: usize,
    /// Memory that is read next and that the caches shall fetch, and its bytes per pair.
    next: *const u32,
    next_step: usize,
    /// Sums of the chunks before, `[rows, 32]`.
    partial: *mut f32,
    first: bool,
    /// With the last chunk.
    output: Option<Output>,
}

/// A tile of some rows. NEAR: what is read next is fetched into L1, else into L2, which is better where
/// two tiles take turns with a chunk that nearly fills L1 (16 rows: 433 GFLOP/s, else 337).
///
/// # Safety
/// The CPU has AVX-512 F and BF16; x has `rows` rows of `pairs` pairs, w `pairs` rows of 32, partial
/// `rows` rows of 32; the output's rows and columns exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_of<const NEAR: bool>(rows: usize, tile: Tile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match rows {
            1 => tile_rows::<1, NEAR>(tile),
            2 => tile_rows::<2, NEAR>(tile),
            3 => tile_rows::<3, NEAR>(tile),
            4 => tile_rows::<4, NEAR>(tile),
            5 => tile_rows::<5, NEAR>(tile),
            6 => tile_rows::<6, NEAR>(tile),
            7 => tile_rows::<7, NEAR>(tile),
            8 => tile_rows::<8, NEAR>(tile),
            9 => tile_rows::<9, NEAR>(tile),
            10 => tile_rows::<10, NEAR>(tile),
            11 => tile_rows::<11, NEAR>(tile),
            12 => tile_rows::<12, NEAR>(tile),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// # Safety
/// As for [`tile_of`], with rows = M.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_rows<const M: usize, const NEAR: bool>(tile: Tile) {
    let Tile { x, x_stride, mut w, pairs, mut next, next_step, partial, first, output } = tile;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        if !first {
            for i in 0..M {
                for half in 0..2 {
                    sums[i][half] = _mm512_loadu_ps(partial.add(i * PANEL_ROWS + 16 * half));
                }
            }
        }
        let mut x = x.cast::<i32>();
        let stride = x_stride / 2;
        for _ in 0..pairs {
            let low = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.cast()));
            let high =
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.add(16).cast()));
            if NEAR {
                _mm_prefetch::<_MM_HINT_T0>(next.cast());
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_byte_add(64).cast());
            } else {
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_byte_add(64).cast());
            }
            next = next.wrapping_byte_add(next_step);
            for i in 0..M {
                let pair = _mm512_set1_epi32(x.add(i * stride).read_unaligned());
                let pair = std::mem::transmute::<__m512i, __m512bh>(pair);
                sums[i][0] = _mm512_dpbf16_ps(sums[i][0], pair, low);
                sums[i][1] = _mm512_dpbf16_ps(sums[i][1], pair, high);
            }
            w = w.add(PANEL_ROWS);
            x = x.add(1);
        }
        let Some(Output { y, stride, columns, accumulate, low_rank }) = output else {
            for i in 0..M {
                for half in 0..2 {
                    _mm512_storeu_ps(partial.add(i * PANEL_ROWS + 16 * half), sums[i][half]);
                }
            }
            return;
        };
        let mask = u32::MAX >> (32 - columns as u32);
        let masks = [mask as __mmask16, (mask >> 16) as __mmask16];
        if let Some(Low { left, right, rank, stride }) = low_rank {
            for r in 0..rank {
                let right = right.add(r * stride);
                let low = _mm512_maskz_loadu_ps(masks[0], right);
                let high = _mm512_maskz_loadu_ps(masks[1], right.wrapping_add(16));
                for i in 0..M {
                    let left = _mm512_set1_ps(*left.add(i * rank + r));
                    sums[i][0] = _mm512_fmadd_ps(left, low, sums[i][0]);
                    sums[i][1] = _mm512_fmadd_ps(left, high, sums[i][1]);
                }
            }
        }
        for i in 0..M {
            for half in 0..2 {
                let to = y.add(i * stride).wrapping_add(16 * half);
                let mut sum = sums[i][half];
                if columns == PANEL_ROWS {
                    if accumulate {
                        sum = _mm512_add_ps(_mm512_loadu_ps(to), sum);
                    }
                    _mm512_storeu_ps(to, sum);
                } else {
                    if accumulate {
                        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], to), sum);
                    }
                    _mm512_mask_storeu_ps(to, masks[half], sum);
                }
            }
        }
    }
}
