//! Products of bf16 pairs (AVX-512 BF16) over panels of weights.
//!
//! A lane holds one output, to which `vdpbf16ps` adds two products a step, in the order of k: one
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

use super::panels::{PANEL_ROWS, PanelSlice};
use super::{LowRank, STREAM};
use crate::cpu::context::{Scratch, grown};
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

/// Up to this many rows of x a task streams w once.
const FEW_ROWS: usize = 36;

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
    /// As packed.
    Panels(PanelSlice<'a>),
    /// Row by row.
    Rows { w: &'a [bf16], n: usize, k: usize },
    /// The transpose of a matrix `[k, n]`.
    Columns { w: &'a [bf16], n: usize, k: usize },
    /// The transpose of packed weights `[k, n]`.
    PanelColumns(PanelSlice<'a>),
}

impl Source<'_> {
    /// n, k.
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

/// A line of the cache, so that panels packed on the way start at one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; 16]);

/// Rows of x in a block of m.
fn row_block(m: usize, packs: bool) -> usize {
    let most = if packs { PACKED_ROW_BLOCK } else { ROW_BLOCK };
    if m <= FEW_ROWS { m } else { m.div_ceil(m.div_ceil(most)) }
}

/// Bytes of scratch memory for panels that are packed on the way.
pub fn panel_bytes(threads: usize) -> usize {
    threads * GROUP * CHUNK * PANEL_ROWS * size_of::<u32>()
}

/// Elements of f32 scratch memory for sums between chunks, with m rows of x.
pub fn partial_elements(m: usize, threads: usize) -> usize {
    threads * GROUP * PANEL_ROWS * row_block(m, true)
}

/// Computes all jobs. Shapes: x `[m, k]`, y `[m, n]` of each. The caller has checked them.
pub(super) fn run(cpu: &Cpu, x: &[f32], [m, k]: [usize; 2], jobs: &[Option<Job<'_>>]) {
    if m == 0 {
        return;
    }
    let Scratch { bf16, pairs: lines, f32: partial, .. } = &mut *cpu.scratch();
    // Rows a line apart from a power of two: else those of a tile share a few cache sets.
    let x_stride = k.next_multiple_of(32) + 32;
    let rounded = grown(bf16, m * x_stride);
    round::rows(cpu, rounded, x_stride, x, k);
    if k % 2 == 1 {
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
            packed: bytemuck_lines(lines),
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

fn bytemuck_lines(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a line is sixteen u32 without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// What a task computes: some rows of y, some panels of one job.
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
                    let tile_rows = rows / tiles + usize::from(tile < rows % tiles);
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
                        let (next, next_step) = match tiles {
                            1 => (w.wrapping_byte_add(AHEAD), PANEL_BYTES),
                            _ => {
                                let next = w.wrapping_add(count * PANEL_ROWS + skipped);
                                let share = tile * count * PANEL_BYTES / tiles;
                                (next.wrapping_byte_add(share), PANEL_BYTES / tiles)
                            }
                        };
                        // SAFETY: the asserts above and those of matmul.rs on y and the update; the
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

/// Panel `index` of `w` `[n, k]`, whole, into `to`.
pub(super) fn pack_panel(cpu: &Cpu, to: &mut [u32], w: &[bf16], shape: [usize; 2], index: usize) {
    assert!(super::Panels::suit(cpu), "panels on {}", cpu.isa());
    // SAFETY: the CPU has the instructions by the assert above.
    unsafe { pack_rows(to, w, shape, index * PANEL_ROWS, [0, shape[1].div_ceil(2)]) }
}

/// Pairs `start..start + count` of the 32 rows of `w` `[n, k]` from `first` on.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn pack_rows(
    to: &mut [u32],
    w: &[bf16],
    [n, k]: [usize; 2],
    first: usize,
    [start, count]: [usize; 2],
) {
    assert!(w.len() == n * k && first < n && 2 * (start + count) <= k + 1, "a panel of [{n}, {k}]");
    assert!(to.len() >= count * PANEL_ROWS, "room for a panel");
    for half in [0, 16] {
        let rows = n.saturating_sub(first + half).min(16);
        for i in (0..count).step_by(16) {
            let columns = (k - 2 * (start + i)).min(32);
            let from = w.as_ptr().wrapping_add((first + half) * k + 2 * (start + i));
            let out = to[i * PANEL_ROWS + half..].as_mut_ptr();
            let pairs = 16.min(count - i);
            // SAFETY: rows first + half .. + rows are below n, elements 2 (start + i) .. + columns
            // below k; of the result's rows those below `count` are stored.
            unsafe {
                let mut block = [_mm512_setzero_si512(); 16];
                // The whole block in registers: loops of unknown length would keep it in memory.
                if rows == 16 && columns == 32 && pairs == 16 {
                    for row in 0..16 {
                        block[row] = _mm512_loadu_si512(from.add(row * k).cast());
                    }
                    let block = transposed(block);
                    for pair in 0..16 {
                        _mm512_storeu_si512(out.add(pair * PANEL_ROWS).cast(), block[pair]);
                    }
                    continue;
                }
                let mask = u32::MAX >> (32 - columns);
                for row in 0..rows {
                    block[row] = _mm512_maskz_loadu_epi16(mask, from.add(row * k).cast());
                }
                let block = transposed(block);
                for pair in 0..pairs {
                    _mm512_storeu_si512(out.add(pair * PANEL_ROWS).cast(), block[pair]);
                }
            }
        }
    }
}

/// Row pairs `start..start + count` of the 32 columns of `w` `[rows, columns]` from `first` on: a
/// panel of its transpose.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn pack_columns(
    to: &mut [u32],
    w: &[bf16],
    [rows, columns]: [usize; 2],
    first: usize,
    [start, count]: [usize; 2],
) {
    assert!(w.len() == rows * columns && first < columns, "a panel of [{rows}, {columns}]");
    assert!(2 * (start + count) <= rows + 1, "a panel of [{rows}, {columns}]");
    assert!(to.len() >= count * PANEL_ROWS, "room for a panel");
    let mask = u32::MAX >> (32 - (columns - first).min(32));
    let low = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
        35, 3, 34, 2, 33, 1, 32, 0,
    );
    let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for i in 0..count {
        let row = 2 * (start + i);
        // SAFETY: row is below `rows`, the masked elements below `columns`; the second row is read
        // only if there is one.
        unsafe {
            let from = w.as_ptr().add(row * columns + first);
            let even = _mm512_maskz_loadu_epi16(mask, from.cast());
            let odd = match row + 1 < rows {
                true => _mm512_maskz_loadu_epi16(mask, from.add(columns).cast()),
                false => _mm512_setzero_si512(),
            };
            let out = to.as_mut_ptr().add(i * PANEL_ROWS);
            _mm512_storeu_si512(out.cast(), _mm512_permutex2var_epi16(even, low, odd));
            let second = _mm512_permutex2var_epi16(even, high, odd);
            _mm512_storeu_si512(out.add(16).cast(), second);
        }
    }
}

/// The same of packed weights.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_panel_columns(
    to: &mut [u32],
    panels: PanelSlice<'_>,
    first: usize,
    [start, count]: [usize; 2],
) {
    let [_, columns] = panels.shape();
    let pairs = columns.div_ceil(2);
    assert!(
        start.is_multiple_of(16) && first.is_multiple_of(PANEL_ROWS) && first < columns,
        "a panel of panels"
    );
    assert!(to.len() >= count * PANEL_ROWS, "room for a panel");
    let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    let low_half = _mm512_set1_epi32(0xFFFF);
    for i in (0..count).step_by(16) {
        // The sixteen row pairs are one panel's; its pairs of columns are rows of 32 there.
        let panel = (start + i) / 16;
        let mut halves = [[_mm512_setzero_si512(); 16]; 2];
        for pair in 0..16.min(pairs - first / 2) {
            let from =
                &panels.data[(panel * pairs + first / 2 + pair) * PANEL_ROWS..][..PANEL_ROWS];
            // SAFETY: the slice has the 32 elements.
            let (a, b) = unsafe {
                (
                    _mm512_loadu_si512(from.as_ptr().cast()),
                    _mm512_loadu_si512(from[16..].as_ptr().cast()),
                )
            };
            let e = _mm512_permutex2var_epi32(a, even, b);
            let o = _mm512_permutex2var_epi32(a, odd, b);
            // Columns 2 pair and 2 pair + 1, of each row pair.
            let first = _mm512_or_si512(_mm512_and_si512(e, low_half), _mm512_slli_epi32::<16>(o));
            let second =
                _mm512_or_si512(_mm512_srli_epi32::<16>(e), _mm512_andnot_si512(low_half, o));
            halves[pair / 8][pair % 8 * 2] = first;
            halves[pair / 8][pair % 8 * 2 + 1] = second;
        }
        for (half, block) in halves.into_iter().enumerate() {
            let block = transposed(block);
            let rows = 16.min(count - i);
            let to = &mut to[i * PANEL_ROWS..(i + rows) * PANEL_ROWS];
            let out = to[16 * half..].as_mut_ptr();
            // SAFETY: row by row, the sixteen elements are inside the slice above.
            unsafe {
                if rows == 16 {
                    for row in 0..16 {
                        _mm512_storeu_si512(out.add(row * PANEL_ROWS).cast(), block[row]);
                    }
                } else {
                    for row in 0..rows {
                        _mm512_storeu_si512(out.add(row * PANEL_ROWS).cast(), block[row]);
                    }
                }
            }
        }
    }
}

/// The transpose of 16 × 16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut r = rows;
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for i in 0..4 {
        t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
        t[i + 4] = _mm512_shuffle_i32x4::<0xDD>(r[i], r[i + 4]);
        t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
        t[i + 12] = _mm512_shuffle_i32x4::<0xDD>(r[i + 8], r[i + 12]);
    }
    for i in 0..4 {
        r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
        r[i + 8] = _mm512_shuffle_i32x4::<0xDD>(t[i], t[i + 8]);
        r[i + 4] = _mm512_shuffle_i32x4::<0x88>(t[i + 4], t[i + 12]);
        r[i + 12] = _mm512_shuffle_i32x4::<0xDD>(t[i + 4], t[i + 12]);
    }
    r
}

/// Where a tile's sums go.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) y: *mut f32,
    pub(crate) stride: usize,
    /// Of the panel's 32.
    pub(crate) columns: usize,
    pub(crate) accumulate: bool,
    pub(crate) low_rank: Option<Low>,
}

/// The part of an update that a tile adds: left `[rows, rank]`, right `[rank, 32]`.
#[derive(Clone, Copy)]
pub(crate) struct Low {
    left: *const f32,
    right: *const f32,
    rank: usize,
    /// Elements from row to row of right.
    stride: usize,
}

/// Operands of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) x: *const bf16,
    pub(crate) x_stride: usize,
    pub(crate) w: *const u32,
    pub(crate) pairs: usize,
    /// What is to be read next, for the caches to fetch, and how many bytes of it each pair.
    pub(crate) next: *const u32,
    pub(crate) next_step: usize,
    /// Sums of the chunks before, `[rows, 32]`.
    pub(crate) partial: *mut f32,
    pub(crate) first: bool,
    /// With the last chunk.
    pub(crate) output: Option<Output>,
}

/// A tile of some rows. NEAR: what is read next is fetched into L1, else into L2, which is better where
/// two tiles take turns with a chunk that nearly fills L1 (16 rows: 433 GFLOP/s, else 337).
///
/// # Safety
/// The CPU has AVX-512 F and BF16; x has `rows` rows of `pairs` pairs, w `pairs` rows of 32, partial
/// `rows` rows of 32; the output's rows and columns exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) unsafe fn tile_of<const NEAR: bool>(rows: usize, tile: Tile) {
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
