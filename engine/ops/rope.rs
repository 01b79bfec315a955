//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the rotate-half form that Llama
//! and Qwen checkpoints use. For a head `x` of length `d` at position `p`, with `i < d/2`:
//!
//! ```text
//! y[i]       = x[i]·cos(p·f[i]) − x[i + d/2]·sin(p·f[i])
//! y[i + d/2] = x[i + d/2]·cos(p·f[i]) + x[i]·sin(p·f[i])        f[i] = theta^(−2i/d)
//! dx         = dy turned back by the same angle
//! ```

use kernels::{
    cpu::{
        Rounding,
        rope::{self, RopeTable},
    },
    cuda,
};

use super::rms_norm;
use crate::{
    device::{Device, DeviceError, OnDevice, Resident},
    tape::{Backward, Gradients, Tape},
    tensor::{Id, Tensor},
};

/// Cosines and sines by position.
pub struct Rotations {
    table: RopeTable,
    frequencies: Vec<f32>,
    positions: usize,
    on_device: OnDevice<cuda::RopeTable>,
}

impl Rotations {
    /// Those of `frequencies` at positions below `positions`.
    pub fn new(frequencies: Vec<f32>, positions: usize) -> Rotations {
        let table = RopeTable::new(&frequencies, positions);
        Rotations { table, frequencies, positions, on_device: OnDevice::default() }
    }

    fn on(&self, gpu: &cuda::Gpu) -> Result<&cuda::RopeTable, DeviceError> {
        self.on_device.get_or_make(|| gpu.rope_table(&self.frequencies, self.positions))
    }
}

/// Qwen3's norm of each head before it is turned.
#[derive(Clone, Copy)]
pub struct HeadNorm<'m> {
    /// `[head_dim]`, for all heads.
    pub w: &'m Resident<f32>,
    /// As in [`rms_norm::rms_norm`].
    pub eps: f32,
}

/// Rotates every head of `x` (`[rows, heads·head_dim]`), normalized if there is a norm, in place where
/// nobody shares it; row `r` stands at `positions[r]`.
pub fn rope<'m>(
    tape: &mut Tape<'m>,
    x: Tensor,
    norm: Option<HeadNorm<'m>>,
    rotations: &'m Rotations,
    positions: &'m Resident<u32>,
) -> Tensor {
    let [rows, columns] = x.shape();
    assert_eq!(positions.len(), rows, "rope: x is {:?}", x.shape());
    let head_dim = rotations.table.head_dim();
    assert_eq!(columns % head_dim, 0, "rope: x is {:?}", x.shape());
    if x.device().is_cuda() {
        return on_cuda(tape, x, norm, rotations, positions);
    }
    let x = match norm {
        // Kept in f32: attention's backward pass takes e^(s - log_sum) with s from it, and with the forward
        // pass's sums.
        Some(HeadNorm { w, eps }) => rms_norm::normalized(tape, &x, w, eps, Rounding::F32),
        None => x,
    };
    let heads = columns / head_dim;
    let (id, requires_grad) = (x.id(), x.requires_grad());
    let recipe = tape.recipe(&x);
    let turned = move |x: Tensor| {
        let mut y = x.into_owned();
        let device = y.device().clone();
        rope::forward(device.cpu(), y.data_mut(), positions, &rotations.table, heads);
        y
    };
    let mut y = turned(x);
    if tape.records(requires_grad) {
        tape.push(&mut y, Rope { x: id, rotations, positions, heads });
        // Where x cannot be computed again, y takes its place.
        if let Some(recipe) = recipe {
            tape.recomputes(&y, move || turned(recipe.again()));
        }
    }
    y
}

struct Rope<'m> {
    x: Id,
    rotations: &'m Rotations,
    positions: &'m Resident<u32>,
    heads: usize,
}

impl Backward for Rope<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Rope { x, rotations, positions, heads } = *self;
        let mut dx = dy.into_owned();
        let device = dx.device().clone();
        rope::backward(device.cpu(), dx.data_mut(), positions, &rotations.table, heads);
        gradients.add(x, dx);
    }
}

/// On a GPU norm and rotation are one pass over x, which is held for the backward pass.
fn on_cuda<'m>(
    tape: &mut Tape<'m>,
    x: Tensor,
    norm: Option<HeadNorm<'m>>,
    rotations: &'m Rotations,
    positions: &'m Resident<u32>,
) -> Tensor {
    let turned = move |x: &Tensor| {
        let Device::Cuda(cuda) = x.device() else { unreachable!("asked before") };
        let y = cuda.run(|gpu| {
            let (at, table) = (positions.on(gpu)?, rotations.on(gpu)?);
            let mut y = gpu.uninitialized::<f32>(x.len())?;
            match norm {
                Some(HeadNorm { w, eps }) => {
                    gpu.rope_norm(&mut y, x.f32(), w.on(gpu)?, eps, at, table)?;
                }
                None => {
                    gpu.copy(&mut y, 0, x.f32(), 0, x.len())?;
                    gpu.rope(&mut y, at, table, false)?;
                }
            }
            Ok(y)
        });
        Tensor::cuda(cuda, x.shape(), y)
    };
    let mut y = turned(&x);
    if tape.records(x.requires_grad()) {
        tape.push(&mut y, RopeOnCuda { x: x.clone(), norm, rotations, positions });
        tape.recomputes(&y, move || turned(&x));
    }
    y
}

struct RopeOnCuda<'m> {
    x: Tensor,
    norm: Option<HeadNorm<'m>>,
    rotations: &'m Rotations,
    positions: &'m Resident<u32>,
}

impl Backward for RopeOnCuda<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let RopeOnCuda { x, norm, rotations, positions } = *self;
        let mut turned = dy.into_owned();
        if let Device::Cuda(cuda) = x.device() {
            cuda.run(|gpu| {
                gpu.rope(turned.f32_mut(), positions.on(gpu)?, rotations.on(gpu)?, true)
            });
        }
        let dx = match norm {
            Some(HeadNorm { w, eps }) => rms_norm::backward(&turned, &x, w, eps),
            None => turned,
        };
        gradients.add(x.id(), dx);
    }
}

/// The frequencies `f` of heads of length `head_dim`, in the precision in which transformers
/// computes them.
pub fn frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f32 / head_dim as f32;
    (0..head_dim / 2).map(|i| 1.0 / theta.powf(f64::from(exponent(i))) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_gradient::check_gradient;

    #[test]
    fn gradient() {
        let rotations = Rotations::new(frequencies(1e4, 6), 100);
        let positions = Resident::from(vec![0, 99, 7]);
        let w = Resident::from(vec![1.0, -0.5, 0.3, 2.0, 0.7, 1.1]);
        for norm in [None, Some(HeadNorm { w: &w, eps: 1e-6 })] {
            check_gradient([3, 12], |tape, x| rope(tape, x.clone(), norm, &rotations, &positions));
        }
    }
}
