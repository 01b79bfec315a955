//! A frozen projection with an optional bias and an optional low-rank update (LoRA, Hu et al.
//! 2021, arXiv 2106.09685, equation 3):
//!
//! ```text
//! y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ      x [rows, k], W [n, k], b [n], A [r, k], B [n, r], y [rows, n]
//! ```
//!
//! `W` is read where the checkpoint's file is mapped. With [`Rounding::Bf16`] the values of `x` are
//! rounded to bf16 before they meet a bf16 `W`; the low-rank path takes f32 throughout.

use kernels::cpu::{Matrix, Rounding, matmul};

use crate::{adapter::LoraFactors, tensor::Tensor, weights::Weight};

/// One projection of the model.
pub struct Linear {
    /// `[n, k]`, mapped.
    pub weight: Weight,
    /// `[n]`.
    pub bias: Option<Vec<f32>>,
    /// The adapter's factors for this projection, if it has any.
    pub lora: Option<LoraFactors>,
}

/// `x [rows, k]` through the projection: `[rows, n]`.
pub fn linear(x: &Tensor, linear: &Linear, rounding: Rounding) -> Tensor {
    let [rows, _] = x.shape();
    let mut y = Tensor::uninitialized(x.device(), rows, linear.weight.rows());
    apply(&mut y, x, linear, rounding, false);
    y
}

/// Adds the projection of `x [rows, k]` to `y [rows, n]`: the residual connection.
pub fn linear_add(y: &mut Tensor, x: &Tensor, linear: &Linear, rounding: Rounding) {
    apply(y, x, linear, rounding, true);
}

fn apply(y: &mut Tensor, x: &Tensor, linear: &Linear, rounding: Rounding, accumulate: bool) {
    let Linear { weight, bias, lora } = linear;
    let [rows, k] = x.shape();
    let n = weight.rows();
    assert_eq!(weight.columns(), k, "linear: x is {:?}, the weight [{n}, _]", x.shape());
    assert_eq!(y.shape(), [rows, n], "linear: x is {:?}, the weight [{n}, {k}]", x.shape());

    let device = x.device().clone();
    let cpu = device.cpu();
    let shape = [rows, n, k];
    matmul::forward(cpu, y.data_mut(), x.data(), weight.matrix(), shape, rounding, accumulate);
    if let Some(bias) = bias {
        for row in y.data_mut().chunks_exact_mut(n) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    if let Some(LoraFactors { a, b, rank, scale }) = lora {
        let factors = match rounding {
            Rounding::Bf16 => Rounding::F32,
            Rounding::F32 | Rounding::F64Sums => rounding,
        };
        let mut low = Tensor::uninitialized(&device, rows, *rank);
        let (a, b) = (Matrix::F32(a), Matrix::F32(b));
        matmul::forward(cpu, low.data_mut(), x.data(), a, [rows, *rank, k], factors, false);
        low.data_mut().iter_mut().for_each(|value| *value *= scale);
        matmul::forward(cpu, y.data_mut(), low.data(), b, [rows, n, *rank], factors, true);
    }
}
