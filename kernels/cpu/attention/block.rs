//! A block of attention: consecutive query rows of a sequence, the heads of one kv head, all keys
//! up to each row's position. Compiled once per instruction set and element type. Scores,
//! probabilities and sums are f32, or f64 where the cache is f32.

#![allow(clippy::needless_range_loop)] // indices of tiles, as in the formulas

use half::bf16;

use super::PAGE;
use crate::cpu::Isa;
use crate::cpu::dot::{Dot, Output, Rows, Scalar, Widened, WidenedDoubles, strip};
use crate::cpu::product::{Strided, product};
use crate::cpu::vector::{Element, Scalar as _, Simd, Vector, for_each_isa};

/// Operands of a block. A query vector is one head of one row; they are numbered row by row.
pub(super) struct Block<'a, X, T, S> {
    /// [rows · group, head_dim], in the type scores are computed from.
    pub(super) queries: &'a [X],
    /// Scratch for [rows · group, stride(longest)].
    pub(super) scores: &'a mut [S],
    /// The result, [rows · group, head_dim].
    pub(super) sums: &'a mut [S],
    /// ln Σ e^score of each vector, or empty if nobody asks.
    pub(super) log_sums: &'a mut [f32],
    pub(super) keys: &'a [T],
    pub(super) values: &'a [T],
    /// Pages of the sequence, up to the last row's position.
    pub(super) table: &'a [u32],
    /// Elements from page to page.
    pub(super) page_stride: usize,
    /// Elements from a page's start to the kv head's tokens.
    pub(super) head_offset: usize,
    /// Number of keys the first row sees; every next row sees one more.
    pub(super) first_len: usize,
    pub(super) rows: usize,
    pub(super) group: usize,
    pub(super) head_dim: usize,
}

/// A block, compiled for each instruction set. The CPU must have that one, and [`Block::check`] must have passed.
pub(super) type Kernel<X, T, S> = unsafe fn(Isa, Block<'_, X, T, S>);

/// Elements from one vector's scores to the next one's; a multiple of every vector, and pages have
/// room to be scored whole.
pub(super) fn stride(len: usize) -> usize {
    len.next_multiple_of(PAGE)
}

impl<X, T, S> Block<'_, X, T, S> {
    /// Number of keys a query vector sees.
    #[inline(always)]
    pub(super) fn len(&self, vector: usize) -> usize {
        self.first_len + vector / self.group
    }

    /// Asserts what makes the kernels' pointers valid.
    pub(super) fn check(self) -> Self {
        let (vectors, longest) = (self.rows * self.group, self.first_len + self.rows - 1);
        assert!(self.rows > 0 && self.group > 0 && self.first_len > 0, "a block is not empty");
        assert_eq!(self.queries.len(), vectors * self.head_dim, "queries of a block");
        assert_eq!(self.sums.len(), vectors * self.head_dim, "sums of a block");
        assert!([0, vectors].contains(&self.log_sums.len()), "log-sums of a block");
        assert!(self.scores.len() >= vectors * stride(longest), "scores of a block");
        assert_eq!(self.table.len(), longest.div_ceil(PAGE), "pages of a block");
        assert!(self.head_offset + PAGE * self.head_dim <= self.page_stride, "a head of a page");
        let last = self.table.iter().max().map_or(0, |page| *page as usize);
        assert!((last + 1) * self.page_stride <= self.keys.len(), "page {last} of keys");
        assert!((last + 1) * self.page_stride <= self.values.len(), "page {last} of values");
        self
    }
}

/// Scores, softmax and weighted sums of a block.
///
/// # Safety
/// The CPU has the instruction set of `D`, and the block has passed [`Block::check`].
#[inline(always)]
unsafe fn attend<D: Dot<W: Element>>(block: Block<'_, D::X, D::W, Scalar<D>>)
where
    Scalar<D>: Output<Scalar<D>>,
{
    let head_dim = block.head_dim;
    let vectors = block.rows * block.group;
    let stride = stride(block.len(vectors - 1));
    let scale = Scalar::<D>::inverse_sqrt(head_dim);
    // SAFETY: `Block::check` asserts that all vectors, their scores and the pages exist.
    unsafe {
        for (index, page) in block.table.iter().enumerate() {
            let first = index * PAGE;
            let keys = block.keys.as_ptr().add(*page as usize * block.page_stride);
            let keys = Rows { start: keys.add(block.head_offset), stride: head_dim };
            let mut i = first_vector(&block, first);
            while i < vectors {
                let m = D::Sum::TILE_ROWS.min(vectors - i);
                // By fours: a page has all its slots, and a score nobody asked for is not read.
                let n = (block.len(i + m - 1) - first).min(PAGE).next_multiple_of(4);
                let scores = block.scores.as_mut_ptr().add(i * stride + first);
                let scores = Rows { start: scores, stride };
                let queries = block.queries.as_ptr().add(i * head_dim);
                let queries = Rows { start: queries, stride: head_dim };
                strip::<D, Scalar<D>>(scores, queries, m, keys, n, head_dim, false, 4 * head_dim);
                i += m;
            }
        }
        block.sums.fill(Scalar::<D>::default());
        for i in 0..vectors {
            let len = block.len(i);
            let scores = &mut block.scores[i * stride..(i + 1) * stride];
            let (max, total) = softmax::<D::Sum>(scores, len, scale);
            if let Some(log_sum) = block.log_sums.get_mut(i) {
                *log_sum = max.plus_ln(total);
            }
        }
        for (index, page) in block.table.iter().enumerate() {
            let first = index * PAGE;
            let values = block.values.as_ptr().add(*page as usize * block.page_stride);
            let values = values.add(block.head_offset);
            let mut i = first_vector(&block, first);
            while i < vectors {
                let m = D::Sum::TILE_ROWS.min(vectors - i);
                let sums = block.sums.as_mut_ptr().add(i * head_dim);
                let sums = Rows { start: sums, stride: head_dim };
                let scores = block.scores.as_ptr().add(i * stride + first);
                let weights = Strided { start: scores, row: stride, step: 1 };
                let values = Rows { start: values, stride: head_dim };
                // Together as far as the first of the tile sees, then one by one: a key that a row
                // does not see must not even be multiplied by 0, it may be anything.
                let joint = (block.len(i) - first).min(PAGE);
                product::<D::Sum, D::W>(sums, weights, values, [m, head_dim, joint]);
                for j in 1..m {
                    let more = (block.len(i + j) - first).min(PAGE) - joint;
                    let sums = Rows { start: sums.start.add(j * head_dim), ..sums };
                    let start = scores.add(j * stride + joint);
                    let weights = Strided { start, ..weights };
                    let values = Rows { start: values.start.add(joint * head_dim), ..values };
                    product::<D::Sum, D::W>(sums, weights, values, [1, head_dim, more]);
                }
                i += m;
            }
        }
    }
}

/// The first query vector that sees the key at `position`.
#[inline(always)]
pub(super) fn first_vector<X, T, S>(block: &Block<'_, X, T, S>, position: usize) -> usize {
    (position + 1).saturating_sub(block.first_len) * block.group
}

/// Turns the first `len` scores into probabilities: p = e^(s·scale − max) / Σ, and returns max and
/// Σ. The sum of lane i runs over positions j ≡ i modulo the lanes, in order.
///
/// # Safety
/// The CPU has the instruction set of `V`; `scores` is a multiple of its lanes, at least `len`.
#[inline(always)]
unsafe fn softmax<V: Simd>(
    scores: &mut [V::Scalar],
    len: usize,
    scale: V::Scalar,
) -> (V::Scalar, V::Scalar) {
    let end = len.next_multiple_of(V::LANES);
    scores[len..end].fill(V::Scalar::NEG_INFINITY);
    let scores = scores[..end].as_mut_ptr();
    // SAFETY: whole vectors up to `end`, which the slice above has.
    unsafe {
        let scale = V::splat(scale);
        let mut max = V::splat(V::Scalar::NEG_INFINITY);
        let mut j = 0;
        while j < end {
            max = max.max(V::load(scores.add(j)));
            j += V::LANES;
        }
        // Scaling by a positive number and rounding keep the order.
        let max = V::splat(max.reduce_max()).mul(scale);
        let mut total = V::splat(V::Scalar::default());
        j = 0;
        while j < end {
            let p = V::load(scores.add(j)).mul(scale).sub(max).exp();
            p.store(scores.add(j));
            total = total.add(p);
            j += V::LANES;
        }
        let total = total.reduce_add();
        let inverse = V::splat(total.inverse());
        j = 0;
        while j < end {
            V::load(scores.add(j)).mul(inverse).store(scores.add(j));
            j += V::LANES;
        }
        (max.reduce_max(), total)
    }
}

for_each_isa! {
    pub(super) fn attend_widened_on(block: Block<'_, f32, bf16, f32>) = attend_widened
}

/// [`attend`] for a bf16 cache and rounded queries in f32.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn attend_widened<V: Vector>(block: Block<'_, f32, bf16, f32>) {
    // SAFETY: the caller's promise, passed on.
    unsafe { attend::<Widened<V, bf16>>(block) }
}

for_each_isa! {
    pub(super) fn attend_exact_on(block: Block<'_, f32, f32, f64>) = attend_exact
}

/// [`attend`] for an f32 cache.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn attend_exact<V: Vector>(block: Block<'_, f32, f32, f64>) {
    // SAFETY: the caller's promise, passed on.
    unsafe { attend::<WidenedDoubles<V::Doubles, f32>>(block) }
}

/// [`attend`] with dot products of bf16 pairs.
///
/// # Safety
/// As for [`attend`]; the CPU has AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn attend_avx512_bf16(_: Isa, block: Block<'_, bf16, bf16, f32>) {
    // SAFETY: the caller's promise, passed on.
    unsafe { attend::<crate::cpu::vector::Bf16Pairs>(block) }
}
