//! LoRA's hidden state h = s·D(x)·Aᵀ `[rows, r]` and its backward pass (formulas in [`super`]).
//!
//! On a CPU the low-rank products take f32 throughout. On a GPU x is bf16, and the factors are split in two bf16 parts
//! each ([`Factor`]), so that the delta h·Bᵀ is one more product of matrices in the projection's own product.

use kernels::{
    cpu::{
        ComputeDtype, Matrix,
        dropout::{self, Mask},
        matmul::{self, LowRank},
        philox::{RngKey, Stream},
        product::{self, Left},
    },
    cuda::{Factor, Gpu},
};

use super::Pass;
use crate::tensor::{
    Tensor,
    device::{Device, DeviceCell, DeviceError},
    tape::Gradients,
};

/// The factors of an adapter for one projection. They are leaves: where they require a gradient, they get one.
pub struct Lora {
    /// A `[r, k]`.
    pub a: Tensor,
    /// Bᵀ `[r, n]`: every product with B then runs along rows.
    pub b_transposed: Tensor,
    /// s.
    pub scale: f32,
    /// Tells this projection's dropout masks from the others'.
    pub stream: u32,
    /// The factors as a GPU multiplies them; forgotten when they may change.
    split: DeviceCell<Split>,
}

/// Dropout of one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is dropped.
    pub probability: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the pass: each has masks of its own.
    pub pass: u32,
}

/// The bf16 parts of the factors. Ranks are padded by rows of zeros to what kernels take.
#[derive(Debug)]
pub(crate) struct Split {
    pub(crate) a: Factor,
    /// Of Bᵀ.
    pub(crate) b: Factor,
}

/// Ranks that a GPU's kernels take are multiples of this.
const RANKS: usize = 8;

impl Pass {
    fn adapter_compute(&self) -> ComputeDtype {
        match self.compute {
            ComputeDtype::Bf16 => ComputeDtype::F32,
            ComputeDtype::F32 | ComputeDtype::F64 => self.compute,
        }
    }

    /// Whether there is dropout.
    pub(crate) fn drops(&self) -> bool {
        self.dropout.is_some_and(|dropout| dropout.probability > 0.0)
    }

    /// A projection's mask; `None` without dropout.
    pub(super) fn mask(&self, lora: &Lora) -> Option<Mask> {
        self.dropout.filter(|_| self.drops()).map(|dropout| {
            let Dropout { probability, seed, pass } = dropout;
            let sequence = u64::from(pass) << 32 | u64::from(lora.stream);
            Mask { key: RngKey::new(seed, sequence, Stream::DROPOUT), probability }
        })
    }
}

impl Lora {
    /// Factors `a [r, k]` and `b_transposed [r, n]` with the scale s and the number of their dropout masks.
    pub fn new(a: Tensor, b_transposed: Tensor, scale: f32, stream: u32) -> Lora {
        Lora { a, b_transposed, scale, stream, split: DeviceCell::default() }
    }

    /// Whether a gradient is wanted.
    pub(crate) fn requires_grad(&self) -> bool {
        self.a.requires_grad() || self.b_transposed.requires_grad()
    }

    /// h·Bᵀ.
    pub(super) fn delta<'a>(&'a self, hidden: &'a Tensor) -> LowRank<'a> {
        let [rank, _] = self.b_transposed.shape();
        LowRank { left: hidden.data(), right: self.b_transposed.data(), rank }
    }

    /// The factors as a GPU multiplies them.
    pub(crate) fn split(&self, gpu: &Gpu) -> Result<&Split, DeviceError> {
        self.split.get_or_make(|| {
            Ok(Split { a: factor(gpu, &self.a, 0, 0)?, b: factor(gpu, &self.b_transposed, 0, 0)? })
        })
    }

    /// Forgets what a GPU made of the factors, which may change.
    pub(crate) fn forget_split(&mut self) {
        self.split.clear();
    }

    /// h = s·D(x)·Aᵀ for x as matmuls read it. On a GPU h has the columns that its [`Factor`] is multiplied with.
    pub(crate) fn hidden(&self, x: &Tensor, pass: Pass) -> Tensor {
        let masked = self.dropped(x, pass);
        self.scaled_product(masked.as_ref().unwrap_or(x), &self.a, |split| &split.a, pass)
    }

    /// dh = s·dy·B. Adds the gradients of B, and of A, for which `x` gives the projection's input; it and dy are as
    /// matmuls read them.
    pub(crate) fn hidden_backward(
        &self,
        dy: &Tensor,
        hidden: &Tensor,
        x: impl FnOnce() -> Tensor,
        pass: Pass,
        gradients: &mut Gradients,
    ) -> Tensor {
        let dhidden = self.scaled_product(dy, &self.b_transposed, |split| &split.b, pass);
        if self.b_transposed.requires_grad() {
            let db = factor_gradient(hidden, dy, self.b_transposed.shape());
            gradients.add(self.b_transposed.id(), db);
        }
        if self.a.requires_grad() {
            let x = x();
            let masked = self.dropped(&x, pass);
            let da = factor_gradient(&dhidden, masked.as_ref().unwrap_or(&x), self.a.shape());
            gradients.add(self.a.id(), da);
        }
        dhidden
    }

    /// s·x·Fᵀ for x `[rows, n]` and a factor F `[rank, n]`, whose parts on a GPU are `parts`.
    fn scaled_product(
        &self,
        x: &Tensor,
        factor: &Tensor,
        parts: fn(&Split) -> &Factor,
        pass: Pass,
    ) -> Tensor {
        let ([rows, n], [rank, _]) = (x.shape(), factor.shape());
        match x.device() {
            Device::Cpu(device) => {
                let mut y = Tensor::uninitialized(x.device(), rows, rank);
                let (f, compute) = (Matrix::F32(factor.data()), pass.adapter_compute());
                let shape = [rows, rank, n];
                matmul::forward(device.cpu(), y.data_mut(), x.data(), f, shape, compute, false);
                y.on_host(|y| y.iter_mut().for_each(|value| *value *= self.scale));
                y
            }
            Device::Cuda(cuda) => {
                let columns = 3 * rank.next_multiple_of(RANKS);
                let y = cuda.run(|gpu| {
                    gpu.lora_hidden(x.bf16(), parts(self.split(gpu)?), rows, self.scale)
                });
                Tensor::cuda_bf16(cuda, [rows, columns], y)
            }
        }
    }

    /// D(x), where there is dropout.
    fn dropped(&self, x: &Tensor, pass: Pass) -> Option<Tensor> {
        let mask = pass.mask(self)?;
        Some(match x.device() {
            Device::Cpu(_) => dropped_on_cpu(x, mask),
            Device::Cuda(cuda) => {
                let [rows, k] = x.shape();
                let mut y = Tensor::uninitialized_for_matmul(x.device(), rows, k);
                cuda.queue(|gpu| gpu.dropout_rounded(y.bf16_mut(), x.bf16(), mask));
                y
            }
        })
    }
}

/// `x` in f32, of which `mask` drops elements.
pub(super) fn dropped_on_cpu(x: &Tensor, mask: Mask) -> Tensor {
    let [rows, k] = x.shape();
    let mut masked = Tensor::uninitialized(x.device(), rows, k);
    dropout::forward(x.device().host(), masked.data_mut(), x.data(), mask);
    masked
}

/// The gradient hᵀ·x of a factor `[rank, n]`, for h as [`Lora::hidden`] gives it and x `[rows, n]`.
fn factor_gradient(hidden: &Tensor, x: &Tensor, [rank, n]: [usize; 2]) -> Tensor {
    let [rows, _] = x.shape();
    match x.device() {
        Device::Cpu(device) => {
            let mut gradient = Tensor::zeros(x.device(), rank, n);
            let (to, hidden, shape) = (gradient.data_mut(), hidden.data(), [rank, n, rows]);
            product::accumulate(device.cpu(), to, hidden, Left::Columns, x.data(), shape);
            gradient
        }
        Device::Cuda(cuda) => {
            let padded = rank.next_multiple_of(RANKS);
            let gradient = cuda.run(|gpu| {
                let mut all = gpu.uninitialized(padded * n)?;
                gpu.matmul_gradient(&mut all, hidden.bf16(), x.bf16(), [rows, padded, n], false)?;
                if padded == rank {
                    return Ok(all);
                }
                let mut own = gpu.uninitialized(rank * n)?;
                gpu.copy(&mut own, 0, &all, 0, rank * n)?;
                Ok(own)
            });
            Tensor::cuda(cuda, [rank, n], gradient)
        }
    }
}

/// The bf16 parts of a factor `[rank, n]` with `before` columns of zeros before it and `after` behind it.
pub(crate) fn factor(
    gpu: &Gpu,
    x: &Tensor,
    before: usize,
    after: usize,
) -> Result<Factor, DeviceError> {
    let [rank, n] = x.shape();
    let (padded, width) = (rank.next_multiple_of(RANKS), before + n + after);
    if padded == rank && width == n {
        return gpu.factor(x.f32(), [rank, n]);
    }
    let mut wide = gpu.zeros(padded * width)?;
    for row in 0..rank {
        gpu.copy(&mut wide, row * width + before, x.f32(), row * n, n)?;
    }
    gpu.factor(&wide, [padded, width])
}
