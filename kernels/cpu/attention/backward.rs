//! The backward pass of attention over sequences that share what they begin with.
//!
//! With s = q·k/√d and the saved L = ln Σ e^s of each query vector, nothing of the size of tokens ×
//! tokens is ever kept; probabilities are recomputed block by block (Dao et al. 2022, arXiv
//! 2205.14135, appendix B.2):
//!
//! ```text
//! p  = e^(s − L)              Δ  = dy·y
//! dv = Σ p·dy                 ds = p·(dy·v − Δ)/√d
//! dq = Σ ds·k                 dk = Σ ds·q
//! ```
//!
//! A task is a part of a tree and one kv head. It alone adds to that head's dk and dv of the part's keys, in the order of
//! the rows; of the keys that the part only sees it makes sums of its own, which are added in the order of parts. So the
//! result has the same bits for any number of threads. Where the forward pass met rounded queries, keys and values, so
//! does this one; their gradients pass the rounding unchanged.
//! Bound: the multipliers, five products of queries × keys × head_dim, in f32 here, in pairs of bf16
//! where the forward pass took those (bf16_dot.rs).

#[cfg(target_arch = "x86_64")]
mod bf16_dot;
pub(crate) mod tree;

use super::{Shape, work};
use crate::cpu::context::grown;
use crate::cpu::dot::Rows;
use crate::cpu::pool::Disjoint;
use crate::cpu::product::{Strided, product};
use crate::cpu::vector::{Vector, for_each_isa};
use crate::cpu::{Cpu, elements, profile, round};
pub(crate) use tree::Place;
use tree::{Keys, Part, Run};
pub use tree::{Segment, Tree};

/// Query vectors (rows × heads of a kv head) that are taken through the keys together.
const VECTORS: usize = 48;

/// Keys a block of scores spans; a multiple of every vector.
const KEYS: usize = 64;

/// Saved tensors: what the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Queries of the forward pass, [queries, heads, head_dim].
    pub q: &'a [f32],
    /// Keys before the cache rounds them, [rows, kv_heads, head_dim].
    pub k: &'a [f32],
    /// Values, shaped as keys.
    pub v: &'a [f32],
    /// The result of the forward pass, shaped as q.
    pub y: &'a [f32],
    /// ln Σ e^s of the forward pass, [queries, heads].
    pub log_sums: &'a [f32],
    /// Whether the cache was bf16.
    pub rounded: bool,
}

/// Writes the gradients of q, k and v, given that of y, for the rows in `trees` (in ascending
/// order); other rows are left alone. `dy` and `dq` are shaped as q, `dk` and `dv` as k.
pub fn backward(
    cpu: &Cpu,
    [dq, dk, dv]: [&mut [f32]; 3],
    dy: &[f32],
    saved: Saved<'_>,
    trees: &[Tree],
    shape: Shape,
) {
    shape.check();
    let Shape { heads, kv_heads, head_dim } = shape;
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let Saved { q, k, v, y, log_sums, .. } = saved;
    let (queries, rows) = (dy.len() / width, k.len() / kv_width);
    for len in [dy.len(), dq.len(), q.len(), y.len()] {
        let fits = len == elements([queries, width]);
        assert!(fits, "queries are not [{queries}, {heads}, {head_dim}]");
    }
    for len in [dk.len(), dv.len(), k.len(), v.len()] {
        assert_eq!(
            len,
            elements([rows, kv_width]),
            "keys are not [{rows}, {kv_heads}, {head_dim}]"
        );
    }
    assert_eq!(log_sums.len(), elements([queries, heads]), "log-sums are not [{queries}, {heads}]");
    tree::check(trees, rows, queries);
    let work = || work::backward(trees, shape);
    let _span = profile::span("attention backward", [queries, heads, head_dim], work);

    let parts = Part::all(trees);
    let shared_rows = parts.last().map_or(0, |part| part.sums_before + part.shared_rows());
    let sums_len = shared_rows * 2 * kv_width;
    let (gradients, threads) = ([dq, dk, dv].map(Disjoint::new), cpu.threads());
    let scratch = &mut cpu.scratch().f32;
    #[cfg(target_arch = "x86_64")]
    if saved.rounded && super::bf16_dot::suits(cpu.isa(), shape) {
        let layout = bf16_dot::Layout::of(shape, &parts);
        let scratch = grown(scratch, sums_len + threads * layout.len);
        let (sums, scratch) = scratch.split_at_mut(sums_len);
        let (sums, scratch) = (Disjoint::new(sums), Disjoint::new(scratch));
        let results = Results { gradients: &gradients, sums: &sums, shape };
        cpu.pool().for_each(parts.len() * kv_heads, &|thread, task| {
            // SAFETY: each thread has a part of its own.
            let scratch = unsafe { scratch.part(thread * layout.len, layout.len) };
            let (part, kv_head) = (&parts[task / kv_heads], task % kv_heads);
            let head = bf16_dot::Head { cpu, part, kv_head, shape, layout, saved, dy, scratch };
            // SAFETY: `suits` says that the CPU has AVX-512 BF16 and that head_dim suits; tasks
            // differ in part, whose rows do not overlap by the check above, or in head.
            unsafe { head.run(&results) };
        });
        results.join(cpu, &parts);
        return;
    }
    let layout = Layout::of(shape, &parts);
    let scratch = grown(scratch, sums_len + threads * layout.len);
    let (sums, scratch) = scratch.split_at_mut(sums_len);
    let (sums, scratch) = (Disjoint::new(sums), Disjoint::new(scratch));
    let results = Results { gradients: &gradients, sums: &sums, shape };
    cpu.pool().for_each(parts.len() * kv_heads, &|thread, task| {
        // SAFETY: each thread has a part of its own.
        let scratch = unsafe { scratch.part(thread * layout.len, layout.len) };
        let (part, kv_head) = (&parts[task / kv_heads], task % kv_heads);
        let head = Head { cpu, part, kv_head, shape, layout, saved, dy, scratch };
        // SAFETY: tasks differ in part, whose rows do not overlap by the check above, or in head.
        unsafe { head.run(&results) };
    });
    results.join(cpu, &parts);
}

/// Where tasks leave what they find.
struct Results<'a> {
    /// dq, dk and dv.
    gradients: &'a [Disjoint<'a, f32>; 3],
    /// Gradients of the keys and values that parts only see: of each part `[kv_heads, 2, shared rows, head_dim]`.
    sums: &'a Disjoint<'a, f32>,
    shape: Shape,
}

impl Results<'_> {
    /// Elements of dk or dv before a row's.
    fn key(&self, row: usize, kv_head: usize) -> usize {
        (row * self.shape.kv_heads + kv_head) * self.shape.head_dim
    }

    /// Where in `sums` those of dk (or, of `which` 1, of dv) of a part and a head begin.
    fn sums_of(&self, part: &Part, kv_head: usize, which: usize) -> usize {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let before = part.sums_before * 2 * kv_heads + (2 * kv_head + which) * part.shared_rows();
        before * head_dim
    }

    /// Takes a task's dk (or dv): `row(run, index, to)` writes that of a run's key.
    ///
    /// # Safety
    /// Nobody else uses this head's place in the part's rows of dk and dv, and in the part's sums.
    unsafe fn keys(
        &self,
        part: &Part,
        kv_head: usize,
        which: usize,
        mut row: impl FnMut(usize, usize, &mut [f32]),
    ) {
        let d = self.shape.head_dim;
        let mut sums = self.sums_of(part, kv_head, which);
        for (run, Run { keys, .. }) in part.runs.iter().enumerate() {
            for (index, key) in keys.clone().enumerate() {
                // SAFETY: the caller's promise.
                let to = unsafe {
                    if run < part.shared {
                        self.sums.part(sums, d)
                    } else {
                        self.gradients[1 + which].part(self.key(key, kv_head), d)
                    }
                };
                sums += d;
                row(run, index, to);
            }
        }
    }

    /// Adds the parts' sums, in their order.
    fn join(&self, cpu: &Cpu, parts: &[Part]) {
        let d = self.shape.head_dim;
        cpu.pool().for_each(self.shape.kv_heads, &|_, kv_head| {
            for (part, which) in parts.iter().flat_map(|part| [(part, 0), (part, 1)]) {
                let mut sums = self.sums_of(part, kv_head, which);
                for key in part.shared_keys() {
                    // SAFETY: a task has a head of its own.
                    let (to, from) = unsafe {
                        let to = self.gradients[1 + which].part(self.key(key, kv_head), d);
                        (to, self.sums.part(sums, d))
                    };
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
                    sums += d;
                }
            }
        });
    }
}

/// Elements of a thread's scratch memory: for all keys of a part keys, values, their transposes and
/// gradients; for a block of queries the rest.
#[derive(Clone, Copy)]
struct Layout {
    /// Elements from column to column of the transposes.
    stride: usize,
    vectors: usize,
    /// Of `[keys, head_dim]`.
    keys: usize,
    /// Of `[head_dim, stride]`.
    transposed: usize,
    /// Of `[vectors, head_dim]`.
    queries: usize,
    len: usize,
}

/// Δ = dy·y of each vector.
fn deltas(to: &mut [f32], dy: &[f32], y: &[f32], head_dim: usize) {
    let vectors = dy.chunks_exact(head_dim).zip(y.chunks_exact(head_dim));
    for (delta, (dy, y)) in to.iter_mut().zip(vectors) {
        let products = dy.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b));
        *delta = products.sum::<f64>() as f32;
    }
}

impl Layout {
    fn of(shape: Shape, parts: &[Part]) -> Layout {
        let largest = parts.iter().map(|part| part.keys(|rows| rows)).max().unwrap_or(0);
        let group = shape.heads / shape.kv_heads;
        Layout::new(largest, shape.head_dim, (VECTORS / group).max(1) * group)
    }

    fn new(rows: usize, head_dim: usize, vectors: usize) -> Layout {
        // A line apart from a power of two: else a column's elements share a few cache sets.
        let stride = rows.next_multiple_of(16) + 16;
        let (keys, transposed, queries) = (rows * head_dim, head_dim * stride, vectors * head_dim);
        let block = 3 * queries + 2 * vectors * KEYS + 2 * vectors;
        Layout {
            stride,
            vectors,
            keys,
            transposed,
            queries,
            len: 4 * keys + 2 * transposed + block,
        }
    }
}

/// One kv head of one part.
struct Head<'a> {
    cpu: &'a Cpu,
    part: &'a Part,
    kv_head: usize,
    shape: Shape,
    layout: Layout,
    saved: Saved<'a>,
    dy: &'a [f32],
    scratch: &'a mut [f32],
}

impl Head<'_> {
    /// # Safety
    /// Nobody else uses this head's place in the part's rows of dq, dk and dv, and in the part's sums.
    unsafe fn run(self, results: &Results<'_>) {
        let Head { cpu, part, kv_head, shape, layout, saved, dy, scratch } = self;
        let Shape { heads, kv_heads, head_dim } = shape;
        let group = heads / kv_heads;
        let mut rest = scratch;
        let mut take = |len: usize| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        };
        let [keys, values, dkeys, dvalues] = [0; 4].map(|_| take(layout.keys));
        let [keys_t, values_t] = [0; 2].map(|_| take(layout.transposed));
        let [queries, dys, dqueries] = [0; 3].map(|_| take(layout.queries));
        let [p, ds] = [0; 2].map(|_| take(layout.vectors * KEYS));
        let [log_sums, deltas] = [0; 2].map(|_| take(layout.vectors));

        let convert = |to: &mut [f32], from: &[f32]| match saved.rounded {
            true => round::row(cpu, to, from),
            false => to.copy_from_slice(from),
        };
        let rows_of_keys = || part.runs.iter().flat_map(|run| run.keys.clone());
        for (to, transposed, from) in
            [(&mut *keys, &mut *keys_t, saved.k), (&mut *values, &mut *values_t, saved.v)]
        {
            for (index, (to, row)) in to.chunks_exact_mut(head_dim).zip(rows_of_keys()).enumerate()
            {
                convert(to, &from[results.key(row, kv_head)..][..head_dim]);
                for (d, value) in to.iter().enumerate() {
                    transposed[d * layout.stride + index] = *value;
                }
            }
        }
        dkeys.fill(0.0);
        dvalues.fill(0.0);

        // Where the keys of each run lie here.
        let starts = part.starts(|rows| rows);
        let width = group * head_dim;
        let place = |row: usize| (row * heads + kv_head * group) * head_dim;
        let step = layout.vectors / group;
        for (index, run) in part.runs.iter().enumerate() {
            for first in (0..run.queries.len()).step_by(step) {
                let count = step.min(run.queries.len() - first);
                for i in 0..count {
                    let from = place(run.queries.start + first + i);
                    let vectors = i * width..(i + 1) * width;
                    convert(&mut queries[vectors.clone()], &saved.q[from..][..width]);
                    dys[vectors.clone()].copy_from_slice(&dy[from..][..width]);
                    let heads = i * group..(i + 1) * group;
                    log_sums[heads.clone()]
                        .copy_from_slice(&saved.log_sums[from / head_dim..][..group]);
                    self::deltas(&mut deltas[heads], &dy[from..], &saved.y[from..], head_dim);
                }
                dqueries[..count * width].fill(0.0);
                let mut block = Block {
                    queries,
                    dys,
                    dqueries,
                    p,
                    ds,
                    log_sums,
                    deltas,
                    keys,
                    values,
                    keys_t,
                    values_t,
                    stride: layout.stride,
                    dkeys,
                    dvalues,
                    group,
                    head_dim,
                    rows: count,
                }
                .check();
                for keys in part.blocks(index, first..first + count, &starts, KEYS) {
                    // SAFETY: `Cpu::with_isa` asserts the instruction set, `check` the sizes.
                    unsafe { block_on(cpu.isa(), &mut block, keys) };
                }
                for i in 0..count {
                    // SAFETY: the caller's promise.
                    let to = unsafe {
                        results.gradients[0].part(place(run.queries.start + first + i), width)
                    };
                    to.copy_from_slice(&dqueries[i * width..(i + 1) * width]);
                }
            }
        }
        for (which, from) in [&*dkeys, &*dvalues].into_iter().enumerate() {
            let row = |run: usize, index: usize, to: &mut [f32]| {
                to.copy_from_slice(&from[(starts[run] + index) * head_dim..][..head_dim]);
            };
            // SAFETY: the caller's promise.
            unsafe { results.keys(part, kv_head, which, row) };
        }
    }
}

/// Consecutive query rows of a run; what they are multiplied with, and what they add to.
struct Block<'a> {
    /// [rows · group, head_dim].
    queries: &'a [f32],
    dys: &'a [f32],
    dqueries: &'a mut [f32],
    /// Scratch, [rows · group, KEYS].
    p: &'a mut [f32],
    ds: &'a mut [f32],
    log_sums: &'a [f32],
    deltas: &'a [f32],
    /// Of the whole part, [keys, head_dim].
    keys: &'a [f32],
    values: &'a [f32],
    /// Their transposes, [head_dim, stride].
    keys_t: &'a [f32],
    values_t: &'a [f32],
    stride: usize,
    dkeys: &'a mut [f32],
    dvalues: &'a mut [f32],
    group: usize,
    head_dim: usize,
    rows: usize,
}

impl Block<'_> {
    /// Asserts what makes the kernel's pointers valid, but for the keys' place.
    fn check(self) -> Self {
        let vectors = self.rows * self.group;
        for len in [self.queries.len(), self.dys.len(), self.dqueries.len()] {
            assert!(len >= vectors * self.head_dim, "queries of a block");
        }
        assert!(self.p.len().min(self.ds.len()) >= vectors * KEYS, "scores of a block");
        assert!(self.log_sums.len().min(self.deltas.len()) >= vectors, "sums of a block");
        for len in [self.keys_t.len(), self.values_t.len()] {
            assert!(len >= self.head_dim * self.stride, "transposed keys of a block");
        }
        self
    }
}

for_each_isa! {
    fn block_on(block: &mut Block<'_>, keys: Keys) = run_block
}

/// Adds what `keys` contribute.
///
/// # Safety
/// The CPU has the instruction set of `V`; the block has passed [`Block::check`].
#[inline(always)]
unsafe fn run_block<V: Vector>(block: &mut Block<'_>, keys: Keys) {
    let Keys { first, count, visible } = keys;
    let (head_dim, group) = (block.head_dim, block.group);
    let end = first + count;
    for len in [block.keys.len(), block.values.len(), block.dkeys.len(), block.dvalues.len()] {
        assert!(len >= end * head_dim, "keys of a block");
    }
    assert!(block.stride >= end && count <= KEYS, "columns of a block");
    let vectors = block.rows * group;
    let scale = 1.0 / (head_dim as f32).sqrt();
    // SAFETY: the caller's promise and the sizes above; p and ds have KEYS elements per vector.
    unsafe {
        let (p, ds) = (block.p.as_mut_ptr(), block.ds.as_mut_ptr());
        let scores = |to| Rows { start: to, stride: KEYS };
        let queries = |from: &[f32]| Strided { start: from.as_ptr(), row: head_dim, step: 1 };
        let columns = |of: &[f32]| Rows { start: of.as_ptr().add(first), stride: block.stride };
        block.p[..vectors * KEYS].fill(0.0);
        block.ds[..vectors * KEYS].fill(0.0);
        let shape = [vectors, count, head_dim];
        product::<V, f32>(scores(p), queries(block.queries), columns(block.keys_t), shape);
        product::<V, f32>(scores(ds), queries(block.dys), columns(block.values_t), shape);

        for i in 0..vectors {
            let seen = (visible + (i / group) as isize).clamp(0, count as isize) as usize;
            let (p, ds) = (p.add(i * KEYS), ds.add(i * KEYS));
            let log_sum = V::splat(block.log_sums[i]);
            let (delta, scale) = (V::splat(block.deltas[i]), V::splat(scale));
            let mut j = 0;
            while j < seen {
                let probability = V::load(p.add(j)).mul(scale).sub(log_sum).exp();
                probability.store(p.add(j));
                let gradient = V::load(ds.add(j)).sub(delta).mul(scale);
                probability.mul(gradient).store(ds.add(j));
                j += V::LANES;
            }
            // What the row does not see must not count, whatever it is.
            std::slice::from_raw_parts_mut(p.add(seen), KEYS - seen).fill(0.0);
            std::slice::from_raw_parts_mut(ds.add(seen), KEYS - seen).fill(0.0);
        }

        let rows = |of: &[f32]| Rows { start: of.as_ptr(), stride: head_dim };
        let key_rows = |of: &mut [f32]| Rows {
            start: of.as_mut_ptr().add(first * head_dim),
            stride: head_dim,
        };
        let own = Rows { start: block.keys.as_ptr().add(first * head_dim), stride: head_dim };
        let dqueries = Rows { start: block.dqueries.as_mut_ptr(), stride: head_dim };
        let by_row = Strided { start: ds.cast_const(), row: KEYS, step: 1 };
        product::<V, f32>(dqueries, by_row, own, [vectors, head_dim, count]);
        let by_key = |of: *mut f32| Strided { start: of.cast_const(), row: 1, step: KEYS };
        let shape = [count, head_dim, vectors];
        product::<V, f32>(key_rows(block.dkeys), by_key(ds), rows(block.queries), shape);
        product::<V, f32>(key_rows(block.dvalues), by_key(p), rows(block.dys), shape);
    }
}

#[cfg(test)]
mod tests;
