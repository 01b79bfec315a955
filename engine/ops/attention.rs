//! Causal grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) against the paged KV
//! cache. For the query of head `h` at position `p`, with the keys and values of kv head `g(h)`:
//!
//! ```text
//! y = Σ_j softmax_j(q·k_j / sqrt(head_dim))·v_j        j = 0..=p
//! ```
//!
//! The order of every sum depends on `p` alone, so a row has the same bits in a prefill, in a
//! chunk of one, and in decoding.

use kernels::cpu::attention::{self, Shape, Span};

use crate::{kv_cache::KvCache, tensor::Tensor};

/// Where the rows of a step stand.
pub(crate) struct Rows<'a> {
    /// Runs of consecutive positions of one sequence.
    pub(crate) spans: &'a [Span],
    /// Page tables of all spans, one after the other.
    pub(crate) tables: &'a [u32],
    /// Where each row's keys and values go: page·PAGE + place in the page.
    pub(crate) slots: &'a [u32],
}

/// Writes the rows' keys and values (`[rows, kv_heads·head_dim]`) into the cache.
pub(crate) fn append(
    cache: &mut KvCache,
    layer: usize,
    k: &Tensor,
    v: &Tensor,
    rows: &Rows,
    shape: Shape,
) {
    let cpu = k.device().cpu();
    attention::append(cpu, cache.layer_mut(layer), k.data(), v.data(), rows.slots, shape);
}

/// Attends from each row of `q` (`[rows, heads·head_dim]`) to its sequence up to its own position.
pub(crate) fn attention(
    q: &Tensor,
    cache: &KvCache,
    layer: usize,
    rows: &Rows,
    shape: Shape,
) -> Tensor {
    let [n, columns] = q.shape();
    let mut y = Tensor::uninitialized(q.device(), n, columns);
    let (cpu, kv) = (q.device().cpu(), cache.layer(layer));
    attention::forward(cpu, y.data_mut(), q.data(), kv, rows.tables, rows.spans, shape);
    y
}
