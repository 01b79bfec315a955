//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) over rows of length `n`:
//!
//! ```text
//! r  = (mean(x²) + eps)^-1/2                     x [.., n], w [n], y as x
//! y  = x·r·w
//! dx = r·w·dy − r³/n·x·Σ(dy·w·x)
//! ```
//!
//! `w` is frozen, so there is no `dw`. r is computed again in the backward pass, and so is y for
//! the ops that read it there.

use kernels::cpu::{self, ComputeDtype};

use crate::tensor::{
    Id, Tensor,
    device::{Device, Mirrored},
    tape::{Backward, Gradients, Saved, Tape},
};

/// Normalizes each row of `x` (`[rows, n]`) for matmuls of this compute dtype: if that is bf16, a CPU saves x in bf16 for the
/// backward pass. On a GPU the result is rounded to bf16.
pub fn rms_norm<'m>(
    tape: &mut Tape<'m>,
    x: &Tensor,
    w: &'m Mirrored<f32>,
    eps: f32,
    compute: ComputeDtype,
) -> Tensor {
    assert_eq!(w.len(), x.shape()[1], "rms_norm: x is {:?}", x.shape());
    normalized(tape, x, w, eps, compute)
}

/// Normalizes each part of a row that is as long as `w`: with w of a row's length all of it, with one of
/// head_dim each head (Qwen3's norm of queries and keys). `compute` as for [`rms_norm`].
pub(super) fn normalized<'m>(
    tape: &mut Tape<'m>,
    x: &Tensor,
    w: &'m Mirrored<f32>,
    eps: f32,
    compute: ComputeDtype,
) -> Tensor {
    let [_, columns] = x.shape();
    assert_eq!(columns % w.len(), 0, "rms_norm: x is {:?}, w [{}]", x.shape(), w.len());
    let mut y = forward(x, w, eps);
    if tape.records(x.requires_grad()) {
        let (id, x) = (x.id(), Saved::rounded(x, compute));
        tape.push(&mut y, RmsNorm { id, x: x.clone(), w, eps });
        tape.recomputes(&y, move || forward(x.get(), w, eps));
    }
    y
}

fn forward(x: &Tensor, w: &Mirrored<f32>, eps: f32) -> Tensor {
    let [rows, columns] = x.shape();
    let mut y = Tensor::uninitialized_for_matmul(x.device(), rows, columns);
    match x.device() {
        Device::Cpu(device) => {
            cpu::rms_norm::forward(device.cpu(), y.data_mut(), x.data(), w, eps);
        }
        Device::Cuda(cuda) => {
            cuda.queue(|gpu| gpu.rms_norm(y.bf16_mut(), x.f32(), w.on(gpu)?, eps));
        }
    }
    y
}

struct RmsNorm<'m> {
    /// The id of x.
    id: Id,
    x: Saved<'m>,
    w: &'m Mirrored<f32>,
    eps: f32,
}

impl Backward for RmsNorm<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let RmsNorm { id, x, w, eps } = *self;
        let dx = backward(&dy, x.get(), w, eps);
        gradients.add(id, dx);
    }
}

/// The gradient of x.
pub(super) fn backward(dy: &Tensor, x: &Tensor, w: &Mirrored<f32>, eps: f32) -> Tensor {
    let [rows, columns] = x.shape();
    let mut dx = Tensor::uninitialized(x.device(), rows, columns);
    match x.device() {
        Device::Cpu(device) => {
            cpu::rms_norm::backward(device.cpu(), dx.data_mut(), dy.data(), x.data(), w, eps);
        }
        Device::Cuda(cuda) => cuda.queue(|gpu| {
            gpu.rms_norm_backward(dx.f32_mut(), dy.f32(), x.f32(), w.on(gpu)?, eps, false)
        }),
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{
        Bf16Tensor,
        check_gradient::{check_gradient, values},
    };

    #[test]
    fn gradient() {
        let w: Vec<f32> = (0..128).map(|i| 1.0 - 0.3 * (i % 7) as f32).collect();
        for (rows, n) in [(1, 1), (2, 3), (5, 33), (3, 128)] {
            let w = Mirrored::from(w[..n].to_vec());
            check_gradient([rows, n], |tape, x| rms_norm(tape, x, &w, 1e-6, ComputeDtype::F32));
        }
        let w = Mirrored::from(w[..16].to_vec());
        check_gradient([3, 4 * 16], |tape, x| normalized(tape, x, &w, 1e-6, ComputeDtype::F32));
    }

    #[test]
    fn what_is_kept_in_bf16_gives_the_gradient_at_the_rounded_values() {
        let w = Mirrored::from(vec![1.0, -0.5, 0.3, 2.0, 0.7, 1.1]);
        let run = |mut x: Tensor, compute| {
            x.set_requires_grad(true);
            let mut tape = Tape::new();
            let y = rms_norm(&mut tape, &x, &w, 1e-6, compute);
            let again = tape.save(&y);
            let mut gradients = Gradients::default();
            tape.backward(&y, values(3, [3, 6]), &mut gradients);
            let dx = gradients.get(&x).unwrap().data().to_vec();
            (y.data().to_vec(), [dx, again.get().data().to_vec()].concat())
        };
        let x = values(1, [3, 6]);
        let rounded = Bf16Tensor::of(&x).widened();
        let (y, kept) = run(x.clone(), ComputeDtype::Bf16);
        assert_eq!(y, run(x, ComputeDtype::F32).0, "the forward pass rounds nothing");
        assert_eq!(kept, run(rounded, ComputeDtype::F32).1);
    }
}
