//! Causal attention with grouped query heads against a paged cache of keys and values.
//!
//! For a query row at position p, head h of kv head g = h / (heads / kv_heads):
//! out = Σ_{j≤p} softmax_j(q·k_j / √head_dim) v_j.
//!
//! A layer's cache is keys and values, each [pages, kv_heads, PAGE, head_dim]. A sequence has a
//! page table; its token at position p lies in page table[p / PAGE], slot p % PAGE.

use half::bf16;

use super::Cpu;

/// Tokens in a page of the cache.
pub const PAGE: usize = 32;

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Consecutive query rows of one sequence at consecutive positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Row of q and out of the first.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub first_position: usize,
    /// Where the sequence's page table lies in `tables`.
    pub table: std::ops::Range<usize>,
}

/// A layer's keys and values, each [pages, kv_heads, PAGE, head_dim].
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the fields are what the type says
pub enum Cache<'a> {
    /// Rounded to bf16.
    Bf16 { keys: &'a [bf16], values: &'a [bf16] },
    /// As computed.
    F32 { keys: &'a [f32], values: &'a [f32] },
}

/// The same, to be written.
#[derive(Debug)]
#[allow(missing_docs)] // the fields are what the type says
pub enum CacheMut<'a> {
    /// Rounded to bf16.
    Bf16 { keys: &'a mut [bf16], values: &'a mut [bf16] },
    /// As computed.
    F32 { keys: &'a mut [f32], values: &'a mut [f32] },
}

/// Writes rows of `k` and `v` [rows, kv_heads, head_dim] to the cache, rounded to nearest even
/// where it is bf16. `slots[i]` = page · PAGE + slot is where row i goes.
pub fn append(cpu: &Cpu, cache: CacheMut<'_>, k: &[f32], v: &[f32], slots: &[u32], shape: Shape) {
    let Shape { kv_heads, head_dim, .. } = shape;
    let rows = slots.len();
    assert_eq!(k.len(), rows * kv_heads * head_dim, "k is not [{rows}, {kv_heads}, {head_dim}]");
    assert_eq!(v.len(), rows * kv_heads * head_dim, "v is not [{rows}, {kv_heads}, {head_dim}]");
    let _ = cpu;
    match cache {
        CacheMut::Bf16 { keys, values } => {
            write(keys, k, slots, shape, bf16::from_f32);
            write(values, v, slots, shape, bf16::from_f32);
        }
        CacheMut::F32 { keys, values } => {
            write(keys, k, slots, shape, |x| x);
            write(values, v, slots, shape, |x| x);
        }
    }
}

fn write<T>(cache: &mut [T], x: &[f32], slots: &[u32], shape: Shape, round: impl Fn(f32) -> T) {
    let Shape { kv_heads, head_dim, .. } = shape;
    for (x, &slot) in x.chunks_exact(kv_heads * head_dim).zip(slots) {
        let (page, slot) = (slot as usize / PAGE, slot as usize % PAGE);
        for (head, x) in x.chunks_exact(head_dim).enumerate() {
            let first = ((page * kv_heads + head) * PAGE + slot) * head_dim;
            for (y, &x) in cache[first..first + head_dim].iter_mut().zip(x) {
                *y = round(x);
            }
        }
    }
}

/// Writes attention of each row of `q` [rows, heads, head_dim] to `out` [rows, heads · head_dim].
/// The spans' own keys and values must have been appended. Rows in no span are left alone.
/// With a bf16 cache q is rounded to bf16 first.
pub fn forward(
    cpu: &Cpu,
    out: &mut [f32],
    q: &[f32],
    cache: Cache<'_>,
    tables: &[u32],
    spans: &[Span],
    shape: Shape,
) {
    let Shape { heads, kv_heads, head_dim } = shape;
    assert_eq!(out.len(), q.len(), "out and q differ in length");
    assert_eq!(heads % kv_heads, 0, "{heads} heads over {kv_heads} kv heads");
    let _ = cpu;
    for span in spans {
        let table = &tables[span.table.clone()];
        for i in 0..span.rows {
            for head in 0..heads {
                let first = ((span.first_row + i) * heads + head) * head_dim;
                let at = |j: usize| {
                    let page = table[j / PAGE] as usize;
                    let kv_head = head / (heads / kv_heads);
                    ((page * kv_heads + kv_head) * PAGE + j % PAGE) * head_dim
                };
                let positions = span.first_position + i + 1;
                let q = |d: usize| match cache {
                    Cache::Bf16 { .. } => bf16::from_f32(q[first + d]).to_f32(),
                    Cache::F32 { .. } => q[first + d],
                };
                let k = |j: usize, d: usize| match cache {
                    Cache::Bf16 { keys, .. } => keys[at(j) + d].to_f32(),
                    Cache::F32 { keys, .. } => keys[at(j) + d],
                };
                let v = |j: usize, d: usize| match cache {
                    Cache::Bf16 { values, .. } => values[at(j) + d].to_f32(),
                    Cache::F32 { values, .. } => values[at(j) + d],
                };
                let scale = 1.0 / (head_dim as f32).sqrt();
                let scores: Vec<f32> = (0..positions)
                    .map(|j| (0..head_dim).map(|d| q(d) * k(j, d)).sum::<f32>() * scale)
                    .collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let p: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f32 = p.iter().sum();
                for d in 0..head_dim {
                    out[first + d] = (0..positions).map(|j| p[j] * v(j, d)).sum::<f32>() / total;
                }
            }
        }
    }
}
