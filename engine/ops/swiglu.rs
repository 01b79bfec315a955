//! SwiGLU (Shazeer 2020, arXiv 2002.05202) between the MLP's projections:
//!
//! ```text
//! y = gate·sigmoid(gate)·up      gate, up, y [rows, n]
//! ```

use kernels::cpu;

use crate::tensor::Tensor;

/// Gates `up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    assert_eq!(gate.shape(), up.shape(), "swiglu");
    let [rows, n] = gate.shape();
    let mut y = Tensor::uninitialized(gate.device(), rows, n);
    cpu::swiglu::forward(gate.device().cpu(), y.data_mut(), gate.data(), up.data());
    y
}
