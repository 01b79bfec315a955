//! The backward pass with products of bf16 pairs (AVX-512 BF16), where the forward pass took pairs.
//!
//! As in the forward pass, what meets another operand is rounded to bf16 first: dy, and of every block
//! p and ds; all sums are f32, each one chain in the order of keys or of rows. Keys and values of a
//! part are packed once as panels; the gradients dk and dv are kept transposed, `[head_dim, keys]`, so
//! that p and ds are panels of theirs as they come: rows of pairs of query vectors, one lane per key.
//!
//! Every run of a part starts at a multiple of 32 of the packed keys; the keys between are zero and seen by nobody.

#![allow(clippy::needless_range_loop)] // indices of tiles, as in the formulas

use std::arch::x86_64::*;

use half::bf16;

use super::{KEYS, Keys, Part, Results, Saved};
use crate::cpu::attention::Shape;
use crate::cpu::matmul::{PANEL_ROWS, multiply, pack_columns, pack_rows};
use crate::cpu::vector::{Avx512, Simd, transposed};
use crate::cpu::{Cpu, round};

/// Query vectors (rows × heads of a kv head) that are taken through the keys together.
const VECTORS: usize = 96;

/// Parts of a thread's scratch memory, in elements of four bytes.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Keys of a part, its runs padded.
    keys: usize,
    /// Elements from row to row of the transposed gradients: a line apart from a power of two.
    stride: usize,
    /// Query vectors of a block, and the same as whole blocks of sixteen pairs.
    vectors: usize,
    padded: usize,
    pub(super) len: usize,
}

/// Rows of a run's keys, padded to whole panels.
fn whole_panels(rows: usize) -> usize {
    rows.next_multiple_of(PANEL_ROWS)
}

impl Layout {
    pub(super) fn of(shape: Shape, parts: &[Part]) -> Layout {
        let keys = parts.iter().map(|part| part.keys(whole_panels)).max().unwrap_or(0);
        let group = shape.heads / shape.kv_heads;
        let vectors = (VECTORS / group).max(1) * group;
        let padded = vectors.next_multiple_of(32);
        let stride = keys + 16;
        let d = shape.head_dim;
        // Rounded rows, three kinds of panels, two gradients; then a block's parts (see `Head::run`).
        let part = 4 * (keys * d / 2) + 2 * d * stride;
        let rows = 2 * (padded * d / 2) + 2 * d * (padded / 2) + padded / 2 * PANEL_ROWS;
        let scores = 2 * padded * KEYS + 4 * (padded * KEYS / 2);
        let len = part + rows + scores + padded * d + 2 * padded;
        Layout { keys, stride, vectors, padded, len: len.next_multiple_of(16) }
    }
}

/// One kv head of one part.
pub(super) struct Head<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) part: &'a Part,
    pub(super) kv_head: usize,
    pub(super) shape: Shape,
    pub(super) layout: Layout,
    pub(super) saved: Saved<'a>,
    pub(super) dy: &'a [f32],
    /// `layout.len` elements.
    pub(super) scratch: &'a mut [f32],
}

impl Head<'_> {
    /// # Safety
    /// The CPU has the features below; nobody else uses this head's place in the part's rows of dq, dk and dv, and in
    /// the part's sums; head_dim is a multiple of 32.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn run(self, results: &Results<'_>) {
        let Head { cpu, part, kv_head, shape, layout, saved, dy, scratch } = self;
        let Shape { heads, kv_heads, head_dim } = shape;
        let group = heads / kv_heads;
        let (d, Layout { keys, stride, padded, .. }) = (head_dim, layout);
        let mut rest = scratch;
        let mut take = |len: usize| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        };
        let rounded = narrow(take(keys * d / 2));
        let [key_panels, value_panels, key_pairs] = [0; 3].map(|_| words(take(keys * d / 2)));
        let [dkeys, dvalues] = [0; 2].map(|_| take(d * stride));
        let [queries, dys] = [0; 2].map(|_| narrow(take(padded * d / 2)));
        let [queries_t, dys_t] = [0; 2].map(|_| words(take(d * (padded / 2))));
        let columns = words(take(padded / 2 * PANEL_ROWS));
        let [scores, dp] = [0; 2].map(|_| take(padded * KEYS));
        let [p_rows, ds_rows] = [0; 2].map(|_| narrow(take(padded * KEYS / 2)));
        let [p_panels, ds_panels] = [0; 2].map(|_| words(take(padded * KEYS / 2)));
        let dqueries = take(padded * d);
        let [log_sums, deltas] = [0; 2].map(|_| take(padded));

        // Where the keys of each run lie here.
        let starts = part.starts(whole_panels);
        let all_keys = part.keys(whole_panels);
        for (from, panels, pairs) in [
            (saved.k, &mut *key_panels, Some(&mut *key_pairs)),
            (saved.v, &mut *value_panels, None),
        ] {
            for (run, start) in part.runs.iter().zip(&starts) {
                for index in 0..whole_panels(run.keys.len()) {
                    let to = &mut rounded[(start + index) * d..(start + index + 1) * d];
                    let row = run.keys.start + index;
                    match row < run.keys.end {
                        true => round::row(cpu, to, &from[results.key(row, kv_head)..][..d]),
                        false => to.fill(bf16::ZERO),
                    }
                }
            }
            let rounded = &rounded[..all_keys * d];
            for first in (0..all_keys).step_by(PANEL_ROWS) {
                let panel = &mut panels[first * (d / 2)..];
                pack_rows(panel, rounded, [all_keys, d], first, [0, d / 2]);
            }
            if let Some(pairs) = pairs {
                for first in (0..d).step_by(PANEL_ROWS) {
                    let panel = &mut pairs[first * (keys / 2)..];
                    pack_columns(panel, rounded, [all_keys, d], first, [0, all_keys / 2]);
                }
            }
        }
        dkeys.fill(0.0);
        dvalues.fill(0.0);

        let place = |row: usize| (row * heads + kv_head * group) * d;
        let width = group * d;
        let step = layout.vectors / group;
        for (index, run) in part.runs.iter().enumerate() {
            for first in (0..run.queries.len()).step_by(step) {
                let rows = step.min(run.queries.len() - first);
                let vectors = rows * group;
                for i in 0..rows {
                    let from = place(run.queries.start + first + i);
                    let vectors = i * width..(i + 1) * width;
                    round::row(cpu, &mut queries[vectors.clone()], &saved.q[from..][..width]);
                    round::row(cpu, &mut dys[vectors], &dy[from..][..width]);
                    let heads = i * group..(i + 1) * group;
                    log_sums[heads.clone()].copy_from_slice(&saved.log_sums[from / d..][..group]);
                    super::deltas(&mut deltas[heads], &dy[from..], &saved.y[from..], d);
                }
                queries[vectors * d..].fill(bf16::ZERO);
                dys[vectors * d..].fill(bf16::ZERO);
                for (rows, to) in [(&*queries, &mut *queries_t), (&*dys, &mut *dys_t)] {
                    transpose(to, rows, columns, [padded, d]);
                }
                dqueries[..vectors * d].fill(0.0);
                let mut block = Block {
                    queries,
                    dys,
                    queries_t,
                    dys_t,
                    key_panels,
                    value_panels,
                    key_pairs,
                    pairs_stride: keys / 2 * PANEL_ROWS,
                    dkeys,
                    dvalues,
                    stride,
                    scores,
                    dp,
                    p_rows,
                    ds_rows,
                    p_panels,
                    ds_panels,
                    dqueries,
                    log_sums,
                    deltas,
                    vectors,
                    padded,
                    group,
                    d,
                };
                for keys in part.blocks(index, first..first + rows, &starts, KEYS) {
                    // SAFETY: the caller's promise; the keys named lie inside the padded part.
                    unsafe { block.keys(keys) };
                }
                for i in 0..rows {
                    let to = place(run.queries.start + first + i);
                    // SAFETY: the caller's promise.
                    let to = unsafe { results.gradients[0].part(to, width) };
                    to.copy_from_slice(&dqueries[i * width..(i + 1) * width]);
                }
            }
        }
        for (which, from) in [&*dkeys, &*dvalues].into_iter().enumerate() {
            let row = |run: usize, index: usize, to: &mut [f32]| {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = from[i * stride + starts[run] + index];
                }
            };
            // SAFETY: the caller's promise.
            unsafe { results.keys(part, kv_head, which, row) };
        }
    }
}

fn narrow(memory: &mut [f32]) -> &mut [bf16] {
    bytemuck::cast_slice_mut(memory)
}

fn words(memory: &mut [f32]) -> &mut [u32] {
    bytemuck::cast_slice_mut(memory)
}

/// The transpose of `rows` `[n, d]` as `[d][n / 2]` pairs of rows; n and d are multiples of 32.
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(to: &mut [u32], rows: &[bf16], columns: &mut [u32], [n, d]: [usize; 2]) {
    let pairs = n / 2;
    assert!(to.len() >= d * pairs && pairs.is_multiple_of(16), "a transpose of [{n}, {d}]");
    for first in (0..d).step_by(PANEL_ROWS) {
        pack_columns(columns, rows, [n, d], first, [0, pairs]);
        for half in [0, 16] {
            for pair in (0..pairs).step_by(16) {
                let from = &columns[pair * PANEL_ROWS..(pair + 16) * PANEL_ROWS];
                let to = &mut to[(first + half) * pairs..(first + half + 16) * pairs];
                // SAFETY: sixteen rows of the slices above, sixteen elements of each.
                unsafe {
                    let mut block = [_mm512_setzero_si512(); 16];
                    for i in 0..16 {
                        let from = from.as_ptr().add(i * PANEL_ROWS + half);
                        block[i] = _mm512_loadu_si512(from.cast());
                    }
                    let block = transposed(block);
                    for i in 0..16 {
                        let to = to.as_mut_ptr().add(i * pairs + pair);
                        _mm512_storeu_si512(to.cast(), block[i]);
                    }
                }
            }
        }
    }
}

/// Consecutive query vectors of a segment; what they are multiplied with, and what they add to.
struct Block<'a> {
    /// `[padded, d]`, zero from `vectors` on, and the transposes `[d, padded]` in pairs.
    queries: &'a [bf16],
    dys: &'a [bf16],
    queries_t: &'a [u32],
    dys_t: &'a [u32],
    /// `[keys / 32][d / 2][32]`.
    key_panels: &'a [u32],
    value_panels: &'a [u32],
    /// `[d / 32][keys / 2][32]`, `pairs_stride` from the first to the second.
    key_pairs: &'a [u32],
    pairs_stride: usize,
    /// `[d, stride]`.
    dkeys: &'a mut [f32],
    dvalues: &'a mut [f32],
    stride: usize,
    /// Scratch, `[padded, KEYS]`.
    scores: &'a mut [f32],
    dp: &'a mut [f32],
    p_rows: &'a mut [bf16],
    ds_rows: &'a mut [bf16],
    /// Scratch, `[KEYS / 32][padded / 2][32]`.
    p_panels: &'a mut [u32],
    ds_panels: &'a mut [u32],
    /// `[vectors, d]`.
    dqueries: &'a mut [f32],
    log_sums: &'a [f32],
    deltas: &'a [f32],
    vectors: usize,
    padded: usize,
    group: usize,
    d: usize,
}

impl Block<'_> {
    /// Adds what packed keys contribute.
    ///
    /// # Safety
    /// The CPU has the features below; whole panels of keys from the first, a multiple of 32, exist.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn keys(&mut self, keys: Keys) {
        let Keys { first, count, visible } = keys;
        let Block { vectors, padded, group, d, stride, .. } = *self;
        let panels = count.div_ceil(PANEL_ROWS);
        let end = (first + panels * PANEL_ROWS) * (d / 2);
        assert!(
            first.is_multiple_of(PANEL_ROWS) && end <= self.key_panels.len(),
            "keys of a block"
        );
        let scale = 1.0 / (d as f32).sqrt();
        // SAFETY: the shapes above; `end` bounds the keys, `stride` is larger than their number.
        unsafe {
            for j in 0..panels {
                let at = (first + j * PANEL_ROWS) * (d / 2);
                for (x, w, y) in [
                    (self.queries, self.key_panels, &mut *self.scores),
                    (self.dys, self.value_panels, &mut *self.dp),
                ] {
                    let y = y[j * PANEL_ROWS..].as_mut_ptr();
                    multiply(
                        [vectors, d / 2],
                        (x.as_ptr(), d),
                        w[at..].as_ptr(),
                        (y, KEYS),
                        false,
                        None,
                    );
                }
            }
            let spans = panels * PANEL_ROWS;
            for i in 0..vectors {
                let seen = (visible + (i / group) as isize).clamp(0, count as isize) as usize;
                let log_sum = Avx512::splat(self.log_sums[i]);
                let (delta, scale) = (Avx512::splat(self.deltas[i]), Avx512::splat(scale));
                for j in (0..spans).step_by(16) {
                    let at = i * KEYS + j;
                    let p = Avx512::load(self.scores[at..].as_ptr());
                    let p = p.mul(scale).sub(log_sum).exp();
                    let ds = Avx512::load(self.dp[at..].as_ptr()).sub(delta).mul(scale).mul(p);
                    // What the row does not see must not count, whatever it is.
                    let mask = ((1u32 << seen.saturating_sub(j).min(16)) - 1) as __mmask16;
                    for (x, to) in [(p, &mut *self.p_rows), (ds, &mut *self.ds_rows)] {
                        let x = _mm512_maskz_mov_ps(mask, x.register());
                        let x = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                        _mm256_storeu_si256(to[at..at + 16].as_mut_ptr().cast(), x);
                    }
                }
            }
            let pairs = vectors.div_ceil(2);
            for rows in [&mut *self.p_rows, &mut *self.ds_rows] {
                rows[vectors * KEYS..2 * pairs * KEYS].fill(bf16::ZERO);
            }
            for column in (0..d).step_by(PANEL_ROWS) {
                let at = column / PANEL_ROWS * self.pairs_stride + first / 2 * PANEL_ROWS;
                let w = self.key_pairs[at..at + spans / 2 * PANEL_ROWS].as_ptr();
                let y = self.dqueries[column..].as_mut_ptr();
                multiply(
                    [vectors, spans / 2],
                    (self.ds_rows.as_ptr(), KEYS),
                    w,
                    (y, d),
                    true,
                    None,
                );
            }
            let len = padded / 2 * PANEL_ROWS;
            for (rows, panel_memory, x, y) in [
                (&*self.p_rows, &mut *self.p_panels, self.dys_t, &mut *self.dvalues),
                (&*self.ds_rows, &mut *self.ds_panels, self.queries_t, &mut *self.dkeys),
            ] {
                for j in 0..panels {
                    let panel = &mut panel_memory[j * len..(j + 1) * len];
                    pack_columns(panel, rows, [padded, KEYS], j * PANEL_ROWS, [0, pairs]);
                    let y = y[first + j * PANEL_ROWS..].as_mut_ptr();
                    let x = (x.as_ptr().cast(), padded);
                    multiply([d, pairs], x, panel.as_ptr(), (y, stride), true, None);
                }
            }
        }
    }
}
