//! SwiGLU (Shazeer 2020, arXiv 2002.05202) between the MLP's projections:
//!
//! ```text
//! y     = gate·σ·up            σ = sigmoid(gate);  gate, up, y [rows, n]
//! dgate = dy·up·σ·(1 + gate·(1 − σ))
//! dup   = dy·gate·σ
//! ```
//!
//! This op runs on a CPU; on a GPU it is part of matmuls (see [`super::mlp`]).
//!
//! gate and up are half of what a layer saves for its backward pass. Where matmuls round their
//! inputs to bf16 ([`ComputeDtype::Bf16`]) they are kept rounded so, as PyTorch's bf16 keeps them: the
//! gradients are those at the rounded values.

use std::rc::Rc;

use kernels::cpu::{
    ComputeDtype,
    swiglu::{self, Inputs},
};

use crate::tensor::{
    Bf16Tensor, Device, Id, Tensor,
    tape::{Backward, Gradients, Tape},
};

/// Gates `up`.
pub fn swiglu(tape: &mut Tape<'_>, gate: &Tensor, up: &Tensor, compute: ComputeDtype) -> Tensor {
    assert_eq!(gate.shape(), up.shape(), "swiglu");
    let shape = gate.shape();
    let device = gate.device().clone();
    let mut y = forward(&device, shape, Inputs::F32([gate.data(), up.data()]));
    if tape.records(gate.requires_grad() || up.requires_grad()) {
        let id = |x: &Tensor| x.requires_grad().then_some(x.id());
        let ids = [gate, up].map(id);
        let kept = Rc::new(Kept::new([gate, up], compute));
        tape.push(&mut y, Swiglu { kept: kept.clone(), shape, ids });
        tape.recomputes(&y, move || forward(&device, shape, kept.inputs()));
    }
    y
}

fn forward(device: &Device, [rows, n]: [usize; 2], inputs: Inputs) -> Tensor {
    let mut y = Tensor::uninitialized(device, rows, n);
    swiglu::forward(device.host(), y.data_mut(), inputs);
    y
}

/// gate and up.
enum Kept {
    F32([Tensor; 2]),
    Bf16([Bf16Tensor; 2]),
}

impl Kept {
    fn new(both: [&Tensor; 2], compute: ComputeDtype) -> Kept {
        match compute {
            ComputeDtype::Bf16 => Kept::Bf16(both.map(Bf16Tensor::of)),
            ComputeDtype::F32 | ComputeDtype::F64 => Kept::F32(both.map(Clone::clone)),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        match self {
            Kept::F32(both) => Inputs::F32(both.each_ref().map(Tensor::data)),
            Kept::Bf16(both) => Inputs::Bf16(both.each_ref().map(Bf16Tensor::values)),
        }
    }
}

struct Swiglu {
    kept: Rc<Kept>,
    shape: [usize; 2],
    ids: [Option<Id>; 2],
}

impl Backward for Swiglu {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Swiglu { kept, shape: [rows, n], ids } = *self;
        let [mut dgate, mut dup] = [(); 2].map(|()| Tensor::uninitialized(dy.device(), rows, n));
        let both = [dgate.data_mut(), dup.data_mut()];
        swiglu::backward(dy.device().host(), both, dy.data(), kept.inputs());
        for (id, dx) in ids.into_iter().zip([dgate, dup]) {
            if let Some(id) = id {
                gradients.add(id, dx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::check_gradient::{check_gradient, values};
    use half::bf16;

    #[test]
    fn gradient() {
        for shape in [[1, 1], [3, 33]] {
            let other = values(7, shape);
            let f32 = ComputeDtype::F32;
            check_gradient(shape, |tape, gate| swiglu(tape, gate, &other, f32));
            check_gradient(shape, |tape, up| swiglu(tape, &other, up, f32));
            check_gradient(shape, |tape, x| swiglu(tape, x, x, f32));
        }
    }

    #[test]
    fn what_is_kept_in_bf16_gives_the_gradient_at_the_rounded_values() {
        for shape in [[1, 1], [3, 33]] {
            let rounded = |seed| {
                let mut x = values(seed, shape);
                x.data_mut().iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                x
            };
            let run = |mut gate: Tensor, mut up: Tensor, compute| {
                for x in [&mut gate, &mut up] {
                    x.set_requires_grad(true);
                }
                let mut tape = Tape::new();
                let y = swiglu(&mut tape, &gate, &up, compute);
                let again = tape.save(&y);
                let mut gradients = Gradients::default();
                tape.backward(&y, values(3, shape), &mut gradients);
                let all = [&gate, &up].map(|x| gradients.get(x).unwrap().data().to_vec());
                [all.concat(), again.get().data().to_vec()].concat()
            };
            let got = run(values(7, shape), values(8, shape), ComputeDtype::Bf16);
            assert_eq!(got, run(rounded(7), rounded(8), ComputeDtype::F32));
        }
    }
}
