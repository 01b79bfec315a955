//! The backward pass of attention over sequences that share their prompt.
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
//! A task is one tree and one kv head: it alone adds to that head's dk and dv, in the order of the
//! rows, so that the result has the same bits for any number of threads. Where the forward pass met
//! rounded queries, keys and values, so does this one; their gradients pass the rounding unchanged.
//! Bound: the multipliers, five products of queries × keys × head_dim, in f32 here, in pairs of bf16
//! where the forward pass took those (bf16_dot.rs).

#[cfg(target_arch = "x86_64")]
mod bf16_dot;

use super::{Shape, work};
use crate::cpu::context::grown;
use crate::cpu::dot::Rows;
use crate::cpu::pool::Disjoint;
use crate::cpu::product::{Strided, product};
use crate::cpu::vector::{Vector, for_each_isa};
use crate::cpu::{Cpu, elements, profile, round};

/// Query vectors (rows × heads of a kv head) that are taken through the keys together.
const VECTORS: usize = 48;

/// Keys a block of scores spans; a multiple of every vector.
const KEYS: usize = 64;

/// A prompt and what continues it: each branch sees the prompt and itself. Rows lie one after the
/// other, the prompt first, then the branches in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Row of the prompt's first token.
    pub first_row: usize,
    /// Rows of the prompt.
    pub prompt: usize,
    /// Rows of each branch.
    pub branches: Vec<usize>,
}

impl Tree {
    /// Rows of the prompt, then of each branch.
    fn segments(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.prompt).chain(self.branches.iter().copied())
    }

    /// Total number of rows.
    ///
    /// # Panics
    /// If they cannot be counted: a sum that wrapped would let trees overlap.
    pub fn rows(&self) -> usize {
        let rows = self.segments().try_fold(0usize, |sum, rows| sum.checked_add(rows));
        rows.expect("rows of a tree that can be counted")
    }
}

/// Saved tensors: what the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Queries of the forward pass, [rows, heads, head_dim].
    pub q: &'a [f32],
    /// Keys before the cache rounds them, [rows, kv_heads, head_dim].
    pub k: &'a [f32],
    /// Values, shaped as keys.
    pub v: &'a [f32],
    /// The result of the forward pass, shaped as q.
    pub y: &'a [f32],
    /// ln Σ e^s of the forward pass, [rows, heads].
    pub log_sums: &'a [f32],
    /// Whether the cache was bf16.
    pub rounded: bool,
}

/// Writes the gradients of q, k and v, given that of y, for the rows in `trees` (in ascending
/// order); other rows are left alone.
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
    let rows = dy.len() / width;
    let Saved { q, k, v, y, log_sums, .. } = saved;
    for len in [dy.len(), dq.len(), q.len(), y.len()] {
        assert_eq!(len, elements([rows, width]), "queries are not [{rows}, {heads}, {head_dim}]");
    }
    for len in [dk.len(), dv.len(), k.len(), v.len()] {
        assert_eq!(
            len,
            elements([rows, kv_width]),
            "keys are not [{rows}, {kv_heads}, {head_dim}]"
        );
    }
    assert_eq!(log_sums.len(), elements([rows, heads]), "log-sums are not [{rows}, {heads}]");
    let mut next = 0;
    for tree in trees {
        assert!(next <= tree.first_row, "rows of trees overlap");
        next = tree.first_row.checked_add(tree.rows()).expect("rows of trees that can be counted");
    }
    assert!(next <= rows, "trees have {next} rows of {rows}");
    let work = || work::backward(trees, shape);
    let _span = profile::span("attention backward", [rows, heads, head_dim], work);

    let [dq, dk, dv] = [dq, dk, dv].map(Disjoint::new);
    let scratch = &mut cpu.scratch().f32;
    #[cfg(target_arch = "x86_64")]
    if saved.rounded && super::bf16_dot::suits(cpu.isa(), shape) {
        let layout = bf16_dot::Layout::of(shape, trees.iter());
        let scratch = Disjoint::new(grown(scratch, cpu.threads() * layout.len));
        cpu.pool().for_each(trees.len() * kv_heads, &|thread, task| {
            // SAFETY: each thread has a part of its own.
            let scratch = unsafe { scratch.part(thread * layout.len, layout.len) };
            let (tree, kv_head) = (&trees[task / kv_heads], task % kv_heads);
            let head = bf16_dot::Head { cpu, tree, kv_head, shape, layout, saved, dy, scratch };
            // SAFETY: `suits` says that the CPU has AVX-512 BF16 and that head_dim suits; tasks
            // differ in tree, whose rows do not overlap by the assert above, or in head.
            unsafe { head.run(&dq, &dk, &dv) };
        });
        return;
    }
    let layout = Layout::of(shape, trees.iter());
    let scratch = Disjoint::new(grown(scratch, cpu.threads() * layout.len));
    cpu.pool().for_each(trees.len() * kv_heads, &|thread, task| {
        // SAFETY: each thread has a part of its own.
        let scratch = unsafe { scratch.part(thread * layout.len, layout.len) };
        let (tree, kv_head) = (&trees[task / kv_heads], task % kv_heads);
        let head = Head { cpu, tree, kv_head, shape, layout, saved, dy, scratch };
        // SAFETY: tasks differ in tree, whose rows do not overlap by the assert above, or in head.
        unsafe { head.run(&dq, &dk, &dv) };
    });
}

/// Elements of a thread's scratch memory: for a whole tree keys, values, their transposes and
/// gradients; for a block of queries the rest.
#[derive(Clone, Copy)]
struct Layout {
    /// Elements from column to column of the transposes.
    stride: usize,
    vectors: usize,
    /// Of `[rows, head_dim]`.
    tree: usize,
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
    fn of<'t>(shape: Shape, trees: impl Iterator<Item = &'t Tree>) -> Layout {
        let largest = trees.map(Tree::rows).max().unwrap_or(0);
        let group = shape.heads / shape.kv_heads;
        Layout::new(largest, shape.head_dim, (VECTORS / group).max(1) * group)
    }

    fn new(rows: usize, head_dim: usize, vectors: usize) -> Layout {
        // A line apart from a power of two: else a column's elements share a few cache sets.
        let stride = rows.next_multiple_of(16) + 16;
        let (tree, transposed, queries) = (rows * head_dim, head_dim * stride, vectors * head_dim);
        let block = 3 * queries + 2 * vectors * KEYS + 2 * vectors;
        Layout {
            stride,
            vectors,
            tree,
            transposed,
            queries,
            len: 4 * tree + 2 * transposed + block,
        }
    }
}

/// One kv head of one tree.
struct Head<'a> {
    cpu: &'a Cpu,
    tree: &'a Tree,
    kv_head: usize,
    shape: Shape,
    layout: Layout,
    saved: Saved<'a>,
    dy: &'a [f32],
    scratch: &'a mut [f32],
}

impl Head<'_> {
    /// # Safety
    /// Nobody else uses this head's part of the tree's rows of dq, dk and dv.
    unsafe fn run(self, dq: &Disjoint<'_, f32>, dk: &Disjoint<'_, f32>, dv: &Disjoint<'_, f32>) {
        let Head { cpu, tree, kv_head, shape, layout, saved, dy, scratch } = self;
        let Shape { heads, kv_heads, head_dim } = shape;
        let group = heads / kv_heads;
        let rows = tree.rows();
        let mut rest = scratch;
        let mut take = |len: usize| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        };
        let [keys, values, dkeys, dvalues] = [0; 4].map(|_| take(layout.tree));
        let [keys_t, values_t] = [0; 2].map(|_| take(layout.transposed));
        let [queries, dys, dqueries] = [0; 3].map(|_| take(layout.queries));
        let [p, ds] = [0; 2].map(|_| take(layout.vectors * KEYS));
        let [log_sums, deltas] = [0; 2].map(|_| take(layout.vectors));

        let convert = |to: &mut [f32], from: &[f32]| match saved.rounded {
            true => round::row(cpu, to, from),
            false => to.copy_from_slice(from),
        };
        let kv_place = |row: usize| ((tree.first_row + row) * kv_heads + kv_head) * head_dim;
        for (to, transposed, from) in
            [(&mut *keys, &mut *keys_t, saved.k), (&mut *values, &mut *values_t, saved.v)]
        {
            for (row, to) in to.chunks_exact_mut(head_dim).take(rows).enumerate() {
                convert(to, &from[kv_place(row)..][..head_dim]);
                for (d, value) in to.iter().enumerate() {
                    transposed[d * layout.stride + row] = *value;
                }
            }
        }
        dkeys.fill(0.0);
        dvalues.fill(0.0);

        let place = |row: usize| ((tree.first_row + row) * heads + kv_head * group) * head_dim;
        let width = group * head_dim;
        let mut segment = 0;
        for (index, len) in tree.segments().enumerate() {
            let step = layout.vectors / group;
            for first in (0..len).step_by(step) {
                let count = step.min(len - first);
                for i in 0..count {
                    let from = place(segment + first + i);
                    let vectors = i * width..(i + 1) * width;
                    convert(&mut queries[vectors.clone()], &saved.q[from..][..width]);
                    dys[vectors.clone()].copy_from_slice(&dy[from..][..width]);
                    let heads = i * group..(i + 1) * group;
                    log_sums[heads.clone()]
                        .copy_from_slice(&saved.log_sums[from / head_dim..][..group]);
                    self::deltas(&mut deltas[heads], &dy[from..], &saved.y[from..], head_dim);
                }
                dqueries[..count * width].fill(0.0);
                let block = Block {
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
                    prompt: if index == 0 { 0 } else { tree.prompt },
                    segment,
                    first,
                };
                // SAFETY: `Cpu::with_isa` asserts the instruction set, `check` the sizes.
                unsafe { block_on(cpu.isa(), block.check()) };
                for i in 0..count {
                    // SAFETY: the caller's promise.
                    let to = unsafe { dq.part(place(segment + first + i), width) };
                    to.copy_from_slice(&dqueries[i * width..(i + 1) * width]);
                }
            }
            segment += len;
        }
        for (to, from) in [(dk, &*dkeys), (dv, &*dvalues)] {
            for (row, from) in from.chunks_exact(head_dim).take(rows).enumerate() {
                // SAFETY: the caller's promise.
                unsafe { to.part(kv_place(row), head_dim) }.copy_from_slice(from);
            }
        }
    }
}

/// Consecutive query rows of a segment (the prompt or a branch) against all keys they see.
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
    /// Of the whole tree, [tree rows, head_dim].
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
    /// Rows of the prompt that every query sees; 0 in the prompt itself.
    prompt: usize,
    /// The segment's first row in the tree, and the block's first row in the segment.
    segment: usize,
    first: usize,
}

impl Block<'_> {
    /// Asserts what makes the kernel's pointers valid.
    fn check(self) -> Self {
        let vectors = self.rows * self.group;
        for len in [self.queries.len(), self.dys.len(), self.dqueries.len()] {
            assert!(len >= vectors * self.head_dim, "queries of a block");
        }
        assert!(self.p.len().min(self.ds.len()) >= vectors * KEYS, "scores of a block");
        assert!(self.log_sums.len().min(self.deltas.len()) >= vectors, "sums of a block");
        let last = (self.segment + self.first + self.rows).max(self.prompt);
        for len in [self.keys.len(), self.values.len(), self.dkeys.len(), self.dvalues.len()] {
            assert!(len >= last * self.head_dim, "keys of a block");
        }
        assert!(self.stride >= last, "columns of a block");
        for len in [self.keys_t.len(), self.values_t.len()] {
            assert!(len >= self.head_dim * self.stride, "transposed keys of a block");
        }
        self
    }
}

for_each_isa! {
    fn block_on(block: Block<'_>) = run_block
}

/// # Safety
/// The CPU has the instruction set of `V`; the block has passed [`Block::check`].
#[inline(always)]
unsafe fn run_block<V: Vector>(mut block: Block<'_>) {
    let own = block.first + block.rows;
    // SAFETY: the keys named exist, by `Block::check`.
    unsafe {
        let mut key = 0;
        while key < block.prompt {
            let count = KEYS.min(block.prompt - key);
            keys::<V>(&mut block, key, count, count as isize);
            key += count;
        }
        key = 0;
        while key < own {
            let count = KEYS.min(own - key);
            // A row sees the segment's keys up to its own.
            let visible = (block.first + 1) as isize - key as isize;
            let first = block.segment + key;
            keys::<V>(&mut block, first, count, visible);
            key += count;
        }
    }
}

/// Adds what `count` keys from `first` on contribute. The block's first row sees `visible` of them
/// (none if negative, all if more), every next row one more.
///
/// # Safety
/// As for [`run_block`]; the keys exist and are at most KEYS.
#[inline(always)]
unsafe fn keys<V: Vector>(block: &mut Block<'_>, first: usize, count: usize, visible: isize) {
    let (head_dim, group) = (block.head_dim, block.group);
    let vectors = block.rows * group;
    let scale = 1.0 / (head_dim as f32).sqrt();
    // SAFETY: the caller's promise; p and ds have KEYS elements per vector.
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
        let tree_rows = |of: &mut [f32]| Rows {
            start: of.as_mut_ptr().add(first * head_dim),
            stride: head_dim,
        };
        let own = Rows { start: block.keys.as_ptr().add(first * head_dim), stride: head_dim };
        let dqueries = Rows { start: block.dqueries.as_mut_ptr(), stride: head_dim };
        let by_row = Strided { start: ds.cast_const(), row: KEYS, step: 1 };
        product::<V, f32>(dqueries, by_row, own, [vectors, head_dim, count]);
        let by_key = |of: *mut f32| Strided { start: of.cast_const(), row: 1, step: KEYS };
        let shape = [count, head_dim, vectors];
        product::<V, f32>(tree_rows(block.dkeys), by_key(ds), rows(block.queries), shape);
        product::<V, f32>(tree_rows(block.dvalues), by_key(p), rows(block.dys), shape);
    }
}

#[cfg(test)]
mod tests;
