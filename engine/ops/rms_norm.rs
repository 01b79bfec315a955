//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) over rows of length `n`:
//!
//! ```text
//! y = x·(mean(x²) + eps)^-1/2·w      x [.., n], w [n], y as x
//! ```

use kernels::cpu;

use crate::tensor::Tensor;

/// Normalizes each row of `x` (`[rows, n]`).
pub fn rms_norm(x: &Tensor, w: &[f32], eps: f32) -> Tensor {
    let [rows, n] = x.shape();
    assert_eq!(w.len(), n, "rms_norm: x is {:?}", x.shape());
    let mut y = Tensor::uninitialized(x.device(), rows, n);
    cpu::rms_norm::forward(x.device().cpu(), y.data_mut(), x.data(), w, eps);
    y
}

/// Normalizes each head of `x` (`[rows, heads·head_dim]`) with one `w` (`[head_dim]`) for all heads:
/// Qwen3's norm of queries and keys.
pub fn rms_norm_heads(x: &Tensor, w: &[f32], eps: f32) -> Tensor {
    let [rows, columns] = x.shape();
    assert_eq!(columns % w.len(), 0, "rms_norm_heads: x is {:?}, w [{}]", x.shape(), w.len());
    let mut y = Tensor::uninitialized(x.device(), rows, columns);
    cpu::rms_norm::forward(x.device().cpu(), y.data_mut(), x.data(), w, eps);
    y
}
