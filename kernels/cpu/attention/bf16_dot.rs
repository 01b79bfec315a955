//! Attention over a bf16 cache with products of bf16 pairs (AVX-512 BF16), and that cache's layout.
//!
//! In a page, a kv head's keys are a panel as [`crate::cpu::matmul`] has them: `[head_dim / 2][32
//! slots]` of pairs along head_dim. Its values are pairs of slots: `[16][head_dim]` of (v[2i], v[2i +
//! 1]). So scores and weighted sums are tiles of twelve query vectors that broadcast a pair at a time.
//!
//! Probabilities are rounded to bf16 before they meet values, unnormalized: p = e^(s − max) in (0, 1];
//! the sum that normalizes is of p before rounding (as in flash-attention's bf16 kernels). Every sum
//! is one chain over positions, so a row has the same bits in a prefill and alone in decode. Where a
//! row sees the first slot of a pair only, the other one is masked: it may hold anything.

#![allow(clippy::needless_range_loop)] // indices of tiles, as in the formulas

use std::arch::x86_64::*;

use half::bf16;

use super::block::{Block, first_vector, stride};
use super::{PAGE, Shape};
use crate::cpu::matmul::{TILE, multiply};
use crate::cpu::pool::Disjoint;
use crate::cpu::round;
use crate::cpu::vector::{Avx512, Scalar as _, Simd};
use crate::cpu::{Cpu, Isa};

/// Whether caches of this shape have this layout.
pub(super) fn suits(isa: Isa, shape: Shape) -> bool {
    isa == Isa::Avx512Bf16 && shape.head_dim.is_multiple_of(32)
}

/// Scores, softmax and weighted sums of a block.
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and BF16; the block has passed [`Block::check`]; head_dim is a
/// multiple of 32.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn attend(_: Isa, block: Block<'_, bf16, bf16, f32>) {
    let head_dim = block.head_dim;
    let vectors = block.rows * block.group;
    let stride = stride(block.len(vectors - 1));
    let scale = f32::inverse_sqrt(head_dim);
    // SAFETY: `Block::check` asserts that all vectors, their scores and the pages exist.
    unsafe {
        for (index, page) in block.table.iter().enumerate() {
            let first = index * PAGE;
            let keys = block.keys.as_ptr().add(*page as usize * block.page_stride);
            let keys = keys.add(block.head_offset);
            // The next page may lie anywhere: the hardware does not see it coming.
            let next = match block.table.get(index + 1) {
                Some(page) => block.keys.as_ptr().add(*page as usize * block.page_stride),
                None => block.values.as_ptr().add(block.table[0] as usize * block.page_stride),
            };
            let next = next.add(block.head_offset);
            let next = Some((next.cast(), 2 * PAGE * size_of::<bf16>()));
            let i = first_vector(&block, first);
            let queries = block.queries.as_ptr().add(i * head_dim);
            let scores = block.scores.as_mut_ptr().add(i * stride + first);
            let shape = [vectors - i, head_dim / 2];
            multiply(shape, (queries, head_dim), keys.cast(), (scores, stride), false, next);
        }
        for i in 0..vectors {
            let len = block.len(i);
            let scores = &mut block.scores[i * stride..(i + 1) * stride];
            let (max, total) = exponentials(scores, len, scale);
            // The last element is free: the probabilities take half of the row, which is a page or
            // more.
            scores[stride - 1] = total.inverse();
            if let Some(log_sum) = block.log_sums.get_mut(i) {
                *log_sum = max.plus_ln(total);
            }
        }
        let mut i = 0;
        while i < vectors {
            let m = TILE.min(vectors - i);
            let joint = block.len(i) / 2;
            let wide = m <= 3 && head_dim.is_multiple_of(128);
            for columns in (0..head_dim).step_by(if wide { 128 } else { 32 }) {
                let sums = Sums {
                    p: block.scores.as_ptr().add(i * stride).cast(),
                    stride: 2 * stride,
                    y: block.sums.as_mut_ptr().add(i * head_dim + columns),
                    head_dim,
                    pages: block.table,
                    values: block.values.as_ptr().add(block.head_offset).cast::<u32>().add(columns),
                    page_stride: block.page_stride / 2,
                    pairs: joint,
                };
                match (m, wide) {
                    (1, true) => sums.run::<1, 8>(),
                    (2, true) => sums.run::<2, 8>(),
                    (3, true) => sums.run::<3, 8>(),
                    (1, _) => sums.run::<1, 2>(),
                    (2, _) => sums.run::<2, 2>(),
                    (3, _) => sums.run::<3, 2>(),
                    (4, _) => sums.run::<4, 2>(),
                    (5, _) => sums.run::<5, 2>(),
                    (6, _) => sums.run::<6, 2>(),
                    (7, _) => sums.run::<7, 2>(),
                    (8, _) => sums.run::<8, 2>(),
                    (9, _) => sums.run::<9, 2>(),
                    (10, _) => sums.run::<10, 2>(),
                    (11, _) => sums.run::<11, 2>(),
                    _ => sums.run::<12, 2>(),
                }
            }
            for i in i..i + m {
                finish(&block, i, stride, joint);
            }
            i += m;
        }
    }
}

/// Turns the first `len` scores into e^(s·scale − max), rounded to bf16 in the first half of their
/// memory and 0 up to the end of the page, and returns max and the sum before rounding. The sum of
/// lane i runs over positions j ≡ i modulo 16, in order.
///
/// # Safety
/// The CPU has the features of [`attend`]; `scores` is whole pages, at least `len` elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn exponentials(scores: &mut [f32], len: usize, scale: f32) -> (f32, f32) {
    let end = len.next_multiple_of(PAGE);
    scores[len..end].fill(f32::NEG_INFINITY);
    let from = scores[..end].as_mut_ptr();
    let to = from.cast::<__m256i>();
    // SAFETY: whole pages up to `end`, which the slice above has; what is written lies before what
    // is still to be read.
    unsafe {
        let mut max = [Avx512::splat(f32::NEG_INFINITY); 2];
        for j in (0..end).step_by(32) {
            max[0] = max[0].max(Avx512::load(from.add(j)));
            max[1] = max[1].max(Avx512::load(from.add(j + 16)));
        }
        // Scaling by a positive number and rounding keep the order.
        let scale = Avx512::splat(scale);
        let max = Avx512::splat(max[0].max(max[1]).reduce_max()).mul(scale);
        let mut total = Avx512::splat(0.0);
        for j in (0..end).step_by(32) {
            let p = [0, 16].map(|half| Avx512::load(from.add(j + half)).mul(scale).sub(max).exp());
            let rounded = p.map(|p| _mm512_cvtneps_pbh(p.register()));
            for half in 0..2 {
                let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded[half]);
                _mm256_storeu_si256(to.add(j / 16 + half), rounded);
                total = total.add(p[half]);
            }
        }
        (max.reduce_max(), total.reduce_add())
    }
}

/// Weighted sums of some columns of values for some query vectors, over whole pairs of slots.
struct Sums<'a> {
    /// Probabilities, `stride` elements from vector to vector.
    p: *const bf16,
    stride: usize,
    /// `head_dim` elements from vector to vector.
    y: *mut f32,
    head_dim: usize,
    pages: &'a [u32],
    /// The columns in page 0, `page_stride` pairs from page to page.
    values: *const u32,
    page_stride: usize,
    pairs: usize,
}

impl Sums<'_> {
    /// Of M vectors and 16 · N columns.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BF16; the vectors, columns, pages and `pairs` pairs exist.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn run<const M: usize, const N: usize>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); N]; M];
            for (index, page) in self.pages.iter().enumerate() {
                let done = index * PAGE / 2;
                if done >= self.pairs {
                    break;
                }
                let mut v = self.values.add(*page as usize * self.page_stride);
                let next = self.pages.get(index + 1).unwrap_or(page);
                let mut next = self.values.add(*next as usize * self.page_stride);
                let mut p = self.p.add(index * PAGE).cast::<i32>();
                for _ in 0..(self.pairs - done).min(PAGE / 2) {
                    let mut weights = [_mm512_setzero_si512(); M];
                    for i in 0..M {
                        let pair = p.add(i * self.stride / 2).read_unaligned();
                        weights[i] = _mm512_set1_epi32(pair);
                    }
                    for j in 0..N {
                        let values = _mm512_loadu_si512(v.add(16 * j).cast());
                        _mm_prefetch::<_MM_HINT_T1>(next.add(16 * j).cast());
                        for i in 0..M {
                            sums[i][j] = _mm512_dpbf16_ps(
                                sums[i][j],
                                std::mem::transmute::<__m512i, __m512bh>(weights[i]),
                                std::mem::transmute::<__m512i, __m512bh>(values),
                            );
                        }
                    }
                    v = v.add(self.head_dim);
                    next = next.wrapping_add(self.head_dim);
                    p = p.add(1);
                }
            }
            for i in 0..M {
                for j in 0..N {
                    _mm512_storeu_ps(self.y.add(i * self.head_dim + 16 * j), sums[i][j]);
                }
            }
        }
    }
}

/// Adds to the sums of vector `i` the pairs from `joint` on that it sees, and divides by the total.
///
/// # Safety
/// As for [`attend`], of which this is a part.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn finish(block: &Block<'_, bf16, bf16, f32>, i: usize, stride: usize, joint: usize) {
    let (len, head_dim) = (block.len(i), block.head_dim);
    // SAFETY: the caller's promise: the vector, its probabilities and the pages exist.
    unsafe {
        let row = block.scores.as_ptr().add(i * stride);
        let inverse = _mm512_set1_ps(*row.add(stride - 1));
        let sums = block.sums.as_ptr().cast_mut().add(i * head_dim);
        for column in (0..head_dim).step_by(16) {
            let mut sum = _mm512_loadu_ps(sums.add(column));
            for pair in joint..len.div_ceil(2) {
                let page = block.table[pair / (PAGE / 2)] as usize * block.page_stride;
                let values = block.values.as_ptr().add(page + block.head_offset).cast::<u32>();
                let at = pair % (PAGE / 2) * head_dim + column;
                let mut values = _mm512_loadu_si512(values.add(at).cast());
                if 2 * pair + 1 == len {
                    values = _mm512_and_si512(values, _mm512_set1_epi32(0xFFFF));
                }
                let weight = _mm512_set1_epi32(row.cast::<i32>().add(pair).read_unaligned());
                sum = _mm512_dpbf16_ps(
                    sum,
                    std::mem::transmute::<__m512i, __m512bh>(weight),
                    std::mem::transmute::<__m512i, __m512bh>(values),
                );
            }
            _mm512_storeu_ps(sums.add(column), _mm512_mul_ps(sum, inverse));
        }
    }
}

/// Writes rows of k and v to their slots (see [`super::append`]) in this layout.
pub(super) fn append(
    cpu: &Cpu,
    [keys, values]: [&mut [bf16]; 2],
    [k, v]: [&[f32]; 2],
    slots: &[u32],
    shape: Shape,
) {
    let Shape { kv_heads, head_dim, .. } = shape;
    let page_len = PAGE * head_dim;
    let [keys, values] = [keys, values].map(Disjoint::new);
    // By kv head, not by row: whatever the slots are, no two tasks write the same place.
    let cost = 2 * slots.len() * head_dim;
    cpu.for_rows(kv_heads, cost, &|first, count| {
        let mut rounded = [bf16::ZERO; 512];
        for head in first..first + count {
            for (row, &slot) in slots.iter().enumerate() {
                let (page, slot) = (slot as usize / PAGE, slot as usize % PAGE);
                let start = (page * kv_heads + head) * page_len;
                // SAFETY: tasks have different heads, whose places in a cache do not overlap.
                let [keys, values] =
                    [&keys, &values].map(|cache| unsafe { cache.part(start, page_len) });
                let from = (row * kv_heads + head) * head_dim;
                for done in (0..head_dim).step_by(rounded.len()) {
                    let part = (head_dim - done).min(rounded.len());
                    let rounded = &mut rounded[..part];
                    round::row(cpu, rounded, &k[from + done..][..part]);
                    let to = &mut keys[done * PAGE..(done + part) * PAGE];
                    for (pair, to) in rounded.chunks_exact(2).zip(to.chunks_exact_mut(2 * PAGE)) {
                        to[2 * slot..2 * slot + 2].copy_from_slice(pair);
                    }
                    round::row(cpu, rounded, &v[from + done..][..part]);
                    let to = &mut values[(slot / 2 * head_dim + done) * 2..][..2 * part];
                    for (x, to) in rounded.iter().zip(to.chunks_exact_mut(2)) {
                        to[slot % 2] = *x;
                    }
                }
            }
        }
    });
}
