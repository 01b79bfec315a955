//! A frozen projection with an optional bias and an optional LoRA adapter (Hu et al. 2021, arXiv 2106.09685,
//! equation 3), with dropout D on the adapter's input in training:
//!
//! ```text
//! h  = s·D(x)·Aᵀ              x [rows, k], A [r, k], h [rows, r]
//! y  = x·Wᵀ + b + h·Bᵀ        W [n, k], b [n], B [n, r], y [rows, n]
//!
//! dB = dyᵀ·h
//! dh = s·dy·B
//! dA = dhᵀ·D(x)
//! dx = dy·W + D(dh·A)         D is linear and its own transpose
//! ```
//!
//! `W` and `b` are frozen, so there is no `dW` and no `db`. `W` is read where the checkpoint's file is mapped, or packed
//! (see [`Weight`]). With [`ComputeDtype::Bf16`] the values of `x` and `dy` are rounded to bf16 before they meet a bf16 `W`.
//! h, the hidden state of LoRA, and its products are in [`lora`].

pub mod lora;

use kernels::{
    cpu::{
        add,
        matmul::{self, LowRank, Product},
        product::{self, Left},
    },
    cuda::{Buffer, Gpu, Operands},
};

pub use self::lora::{Dropout, Lora};
use crate::{
    checkpoint::weights::Weight,
    tensor::{
        Id, Tensor,
        device::{Device, DeviceError, Mirrored},
        tape::{Backward, Gradients, Saved, Tape},
    },
};
pub use kernels::cpu::ComputeDtype;

/// One projection of the model.
pub struct Linear {
    /// `[n, k]`, mapped.
    pub weight: Weight,
    /// `[n]`.
    pub bias: Option<Mirrored<f32>>,
    /// The adapter's factors for this projection, if it has any.
    pub lora: Option<Lora>,
}

/// How a pass goes through the projections.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// How matmuls round.
    pub compute: ComputeDtype,
    /// Whether LoRA takes part. Without it the pass is the base model's.
    pub adapter: bool,
    /// Dropout on the adapter's inputs: in training, if at all.
    pub dropout: Option<Dropout>,
}

impl Linear {
    /// Columns of y: n, on a GPU with columns for what pads the vocabulary.
    fn columns(&self, device: &Device) -> usize {
        self.weight.rows().next_multiple_of(if device.is_cuda() { 8 } else { 1 })
    }
}

/// `x [rows, k]` through the projection: `[rows, n]`.
pub fn linear<'m>(tape: &mut Tape<'m>, x: &Tensor, linear: &'m Linear, pass: Pass) -> Tensor {
    let [y] = linear_all(tape, x, [linear], pass);
    y
}

/// `x [rows, k]` through several projections (at most four) in one pass over it.
pub fn linear_all<'m, const N: usize>(
    tape: &mut Tape<'m>,
    x: &Tensor,
    linears: [&'m Linear; N],
    pass: Pass,
) -> [Tensor; N] {
    let ([rows, _], device) = (x.shape(), x.device());
    let outputs =
        linears.map(|linear| (linear, Tensor::uninitialized(device, rows, linear.columns(device))));
    apply(tape, None, x, outputs, pass)
}

/// The residual connection: `residual [rows, n]` plus the projection of `x [rows, k]`, in place
/// if nothing else shares it.
pub fn linear_add<'m>(
    tape: &mut Tape<'m>,
    residual: Tensor,
    x: &Tensor,
    linear: &'m Linear,
    pass: Pass,
) -> Tensor {
    let source = Residual { id: residual.id(), requires_grad: residual.requires_grad() };
    let [y] = apply(tape, Some(source), x, [(linear, residual.into_owned())], pass);
    y
}

struct Residual {
    id: Id,
    requires_grad: bool,
}

/// One projection on its way: y is written, or grows where there is a residual.
struct Output<'m> {
    y: Tensor,
    linear: &'m Linear,
    /// The factors and h, where LoRA takes part.
    adapter: Option<(&'m Lora, Tensor)>,
}

fn apply<'m, const N: usize>(
    tape: &mut Tape<'m>,
    residual: Option<Residual>,
    x: &Tensor,
    outputs: [(&'m Linear, Tensor); N],
    pass: Pass,
) -> [Tensor; N] {
    let ([rows, k], device) = (x.shape(), x.device());
    for (linear, y) in &outputs {
        let shapes = (x.shape(), linear.weight.rows());
        assert_eq!(linear.weight.columns(), k, "linear: x and the rows of the weight: {shapes:?}");
        assert_eq!(
            y.shape(),
            [rows, linear.columns(device)],
            "linear: x and the rows of the weight: {shapes:?}"
        );
    }
    let grows = residual.is_some();
    let input = x.for_matmul();
    let mut outputs = outputs.map(|(linear, y)| {
        let lora = linear.lora.as_ref().filter(|_| pass.adapter);
        Output { y, linear, adapter: lora.map(|lora| (lora, lora.hidden(&input, pass))) }
    });
    match device {
        Device::Cpu(device) => {
            let mut products = outputs.each_mut().map(|Output { y, linear, adapter }| Product {
                y: y.data_mut(),
                w: linear.weight.for_matmul(device.cpu(), pass.compute, rows),
                n: linear.weight.rows(),
                accumulate: grows,
                low_rank: adapter.as_ref().map(|(lora, hidden)| lora.delta(hidden)),
            });
            matmul::forward_all(device.cpu(), &mut products, x.data(), [rows, k], pass.compute);
            for Output { y, linear, .. } in &mut outputs {
                if let Some(bias) = &linear.bias {
                    y.on_host(|y| {
                        for row in y.chunks_exact_mut(bias.len()) {
                            row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
                        }
                    });
                }
            }
        }
        Device::Cuda(cuda) => {
            for Output { y, linear, adapter } in &mut outputs {
                let [_, n] = y.shape();
                cuda.queue(|gpu| {
                    let (x, w) = (input.bf16(), linear.weight.on(gpu)?);
                    let mut products = vec![Operands { x, w, first_row: 0, k }];
                    if let Some((lora, hidden)) = adapter {
                        products.push(lora.split(gpu)?.b.forward(hidden.bf16()));
                    }
                    if let Some(bias) = &linear.bias {
                        assert!(!grows, "a projection with a bias is not added");
                        // The bias in every row.
                        gpu.gather(y.f32_mut(), bias.on(gpu)?, &gpu.zeros(rows)?, n)?;
                    }
                    gpu.matmul(y.f32_mut(), &products, [rows, n], grows || linear.bias.is_some())
                });
            }
        }
    }

    let residual = residual.filter(|source| source.requires_grad).map(|source| source.id);
    outputs.map(|Output { mut y, linear, adapter }| {
        let trained = adapter.as_ref().is_some_and(|(lora, _)| lora.requires_grad());
        if tape.records(residual.is_some() || x.requires_grad() || trained) {
            let adapter = adapter.map(|(lora, hidden)| Adapter { lora, hidden, x: tape.save(x) });
            let x = x.requires_grad().then_some(x.id());
            tape.push(&mut y, Applied { residual, x, weight: &linear.weight, adapter, pass });
        }
        y
    })
}

struct Applied<'m> {
    residual: Option<Id>,
    /// The input, if its gradient is wanted.
    x: Option<Id>,
    weight: &'m Weight,
    adapter: Option<Adapter<'m>>,
    pass: Pass,
}

/// Saved for LoRA's backward pass.
struct Adapter<'m> {
    lora: &'m Lora,
    /// h.
    hidden: Tensor,
    x: Saved<'m>,
}

impl Backward for Applied<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Applied { residual, x, weight, adapter, pass } = *self;
        if let Some(residual) = residual {
            gradients.add(residual, dy.clone());
        }
        let dy = dy.for_matmul();
        let adapter = adapter.map(|Adapter { lora, hidden, x }| {
            let x = || x.get().for_matmul();
            (lora, lora.hidden_backward(&dy, &hidden, x, pass, gradients))
        });
        let Some(x) = x else { return };
        let ([rows, n], k) = (dy.shape(), weight.columns());
        let mut dx = Tensor::uninitialized(dy.device(), rows, k);
        match dy.device() {
            Device::Cpu(device) => {
                let cpu = device.cpu();
                let mask = adapter.as_ref().and_then(|(lora, _)| pass.mask(lora));
                let low_rank = adapter.as_ref().map(|(lora, dhidden)| {
                    let [rank, _] = lora.a.shape();
                    LowRank { left: dhidden.data(), right: lora.a.data(), rank }
                });
                let w = weight.for_matmul(cpu, pass.compute, rows);
                let (shape, fused) = ([rows, n, k], low_rank.filter(|_| mask.is_none()));
                let (to, dy) = (dx.data_mut(), dy.data());
                matmul::backward(cpu, to, dy, w, shape, pass.compute, false, fused);
                if let (Some(mask), Some(LowRank { left, right, rank })) = (mask, low_rank) {
                    let mut part = Tensor::zeros(dx.device(), rows, k);
                    let shape = [rows, k, rank];
                    product::accumulate(cpu, part.data_mut(), left, Left::Rows, right, shape);
                    let part = lora::dropped_on_cpu(&part, mask);
                    add::accumulate(cpu, dx.data_mut(), part.data());
                }
            }
            Device::Cuda(cuda) => cuda.queue(|gpu| {
                let own = Operands { x: dy.bf16(), w: weight.on(gpu)?, first_row: 0, k: n };
                let adapter = adapter.as_ref().map(|(lora, dhidden)| (*lora, dhidden));
                input_gradient(gpu, dx.f32_mut(), &[Part { own, adapter }], [rows, k], pass)
            }),
        }
        gradients.add(x, dx);
    }
}

/// A projection as far as the gradient of its input depends on it.
pub(super) struct Part<'a> {
    /// dy, and the rows of a weight that are its own.
    pub(super) own: Operands<'a>,
    /// The adapter's factors and dh.
    pub(super) adapter: Option<(&'a Lora, &'a Tensor)>,
}

/// On a GPU, dx `[rows, k]` becomes Σ dy·W + D(dh·A) over projections of the same input.
pub(super) fn input_gradient(
    gpu: &Gpu,
    dx: &mut Buffer<f32>,
    parts: &[Part<'_>],
    [rows, k]: [usize; 2],
    pass: Pass,
) -> Result<(), DeviceError> {
    for (index, Part { own, adapter }) in parts.iter().enumerate() {
        let Some((lora, dhidden)) = adapter else {
            gpu.matmul_backward(dx, &[*own], [rows, k], index > 0)?;
            continue;
        };
        let delta = lora.split(gpu)?.a.backward(dhidden.bf16());
        let Some(mask) = pass.mask(lora) else {
            gpu.matmul_backward(dx, &[*own, delta], [rows, k], index > 0)?;
            continue;
        };
        gpu.matmul_backward(dx, &[*own], [rows, k], index > 0)?;
        let mut part = gpu.uninitialized(rows * k)?;
        gpu.matmul_backward(&mut part, &[delta], [rows, k], false)?;
        let mut dropped = gpu.uninitialized::<f32>(rows * k)?;
        gpu.dropout(&mut dropped, &part, mask)?;
        gpu.add(dx, &dropped)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::check_gradient::{check_gradient, values};

    const F32: Pass = Pass { compute: ComputeDtype::F32, adapter: true, dropout: None };

    fn projection(n: usize, k: usize, rank: usize) -> Linear {
        let [a, b_transposed] = [values(5, [rank, k]), values(6, [rank, n])];
        let weight = Weight::from_f32(n, k, values(4, [n, k]).data());
        let bias = Some(values(3, [1, n]).data().to_vec().into());
        Linear { weight, bias, lora: Some(Lora::new(a, b_transposed, 0.7, 3)) }
    }

    #[test]
    fn gradient_of_the_input() {
        for ([rows, k], n, rank) in [([1, 1], 1, 1), ([3, 33], 5, 2), ([2, 16], 40, 17)] {
            let projection = projection(n, k, rank);
            check_gradient([rows, k], |tape, x| linear(tape, x, &projection, F32));
            let base = Pass { adapter: false, ..F32 };
            check_gradient([rows, k], |tape, x| linear(tape, x, &projection, base));
            let dropout = Some(Dropout { probability: 0.3, seed: 1, pass: 9 });
            let masked = Pass { dropout, ..F32 };
            check_gradient([rows, k], |tape, x| linear(tape, x, &projection, masked));
            let exact = Pass { compute: ComputeDtype::F64, ..F32 };
            check_gradient([rows, k], |tape, x| linear(tape, x, &projection, exact));
        }
    }

    #[test]
    fn gradient_of_the_residual() {
        let projection = projection(6, 6, 2);
        let other = values(9, [4, 6]);
        check_gradient([4, 6], |tape, residual| {
            linear_add(tape, residual.clone(), &other, &projection, F32)
        });
        check_gradient([4, 6], |tape, x| linear_add(tape, other.clone(), x, &projection, F32));
        check_gradient([4, 6], |tape, x| linear_add(tape, x.clone(), x, &projection, F32));
    }

    #[test]
    fn gradients_of_the_factors() {
        let (n, k, rank) = (7, 18, 3);
        let x = values(9, [5, k]);
        for dropout in [None, Some(Dropout { probability: 0.4, seed: 2, pass: 0 })] {
            let pass = Pass { dropout, ..F32 };
            // Leaked, as the tape refers to the projection that holds the leaf.
            let with = |change: &dyn Fn(&mut Lora)| {
                let mut projection = projection(n, k, rank);
                change(projection.lora.as_mut().unwrap());
                &*Box::leak(Box::new(projection))
            };
            check_gradient([rank, k], |tape, a| {
                linear(tape, &x, with(&|lora| lora.a = a.clone()), pass)
            });
            check_gradient([rank, n], |tape, b| {
                linear(tape, &x, with(&|lora| lora.b_transposed = b.clone()), pass)
            });
        }
    }

    #[test]
    fn without_the_adapter_only_the_base_remains() {
        let with = projection(4, 8, 2);
        let without = Linear { lora: None, weight: with.weight.clone(), bias: with.bias.clone() };
        let x = values(1, [3, 8]);
        let base = Pass { adapter: false, ..F32 };
        let tape = &mut Tape::off();
        assert_eq!(linear(tape, &x, &with, base).data(), linear(tape, &x, &without, F32).data());
        assert_ne!(linear(tape, &x, &with, F32).data(), linear(tape, &x, &without, F32).data());
    }
}
