//! SwiGLU (Shazeer 2020, arXiv 2002.05202) between the MLP's projections:
//!
//! ```text
//! y     = gate·σ·up            σ = sigmoid(gate);  gate, up, y [rows, n]
//! dgate = dy·up·σ·(1 + gate·(1 − σ))
//! dup   = dy·gate·σ
//! ```

use kernels::cpu;

use crate::{
    tape::{Backward, Gradients, Tape},
    tensor::Tensor,
};

/// Gates `up`.
pub fn swiglu(tape: &mut Tape<'_>, gate: &Tensor, up: &Tensor) -> Tensor {
    assert_eq!(gate.shape(), up.shape(), "swiglu");
    let [rows, n] = gate.shape();
    let mut y = Tensor::uninitialized(gate.device(), rows, n);
    cpu::swiglu::forward(gate.device().cpu(), y.data_mut(), gate.data(), up.data());
    if tape.records(gate.requires_grad() || up.requires_grad()) {
        tape.push(&mut y, Swiglu { gate: gate.clone(), up: up.clone() });
    }
    y
}

struct Swiglu {
    gate: Tensor,
    up: Tensor,
}

impl Backward for Swiglu {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Swiglu { gate, up } = *self;
        let [rows, n] = gate.shape();
        let [mut dgate, mut dup] = [(); 2].map(|()| Tensor::uninitialized(dy.device(), rows, n));
        let both = [dgate.data_mut(), dup.data_mut()];
        cpu::swiglu::backward(dy.device().cpu(), both, dy.data(), gate.data(), up.data());
        for (x, dx) in [(&gate, dgate), (&up, dup)] {
            if x.requires_grad() {
                gradients.add(x.id(), dx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient::{check_gradient, values};

    #[test]
    fn gradient() {
        for shape in [[1, 1], [3, 33]] {
            let other = values(7, shape);
            check_gradient(shape, |tape, gate| swiglu(tape, gate, &other));
            check_gradient(shape, |tape, up| swiglu(tape, &other, up));
            check_gradient(shape, |tape, x| swiglu(tape, x, x));
        }
    }
}
