//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the rotate-half form that Llama
//! and Qwen checkpoints use. For a head `x` of length `d` at position `p`, with `i < d/2`:
//!
//! ```text
//! y[i]       = x[i]·cos(p·f[i]) − x[i + d/2]·sin(p·f[i])
//! y[i + d/2] = x[i + d/2]·cos(p·f[i]) + x[i]·sin(p·f[i])        f[i] = theta^(−2i/d)
//! ```

use kernels::cpu::rope::RopeTable;

use crate::tensor::Tensor;

/// Rotates every head of `x` (`[rows, heads·head_dim]`) in place; row `r` stands at `positions[r]`.
pub fn rope(x: &mut Tensor, table: &RopeTable, positions: &[u32]) {
    let [rows, columns] = x.shape();
    assert_eq!(positions.len(), rows, "rope: x is {:?}", x.shape());
    assert_eq!(columns % table.head_dim(), 0, "rope: x is {:?}", x.shape());
    let device = x.device().clone();
    let heads = columns / table.head_dim();
    kernels::cpu::rope::forward(device.cpu(), x.data_mut(), positions, table, heads);
}

/// The frequencies `f` of heads of length `head_dim`, in the precision in which transformers
/// computes them.
pub fn frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f32 / head_dim as f32;
    (0..head_dim / 2).map(|i| 1.0 / theta.powf(f64::from(exponent(i))) as f32).collect()
}
