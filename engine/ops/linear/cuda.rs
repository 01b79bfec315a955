//! A projection on a GPU. x is bf16 there, and the factors are split in two bf16 parts each
//! ([`Factor`]), so that a low-rank update is one more product of matrices in the projection's own product.

use kernels::cuda::{Buffer, Factor, Gpu, Operands};

use super::{Linear, Lora, Pass, Source};
use crate::{
    checkpoint::weights::Weight,
    tensor::{
        Id, Tensor,
        device::{CudaDevice, Device, DeviceError},
        tape::{Backward, Gradients, Saved, Tape},
    },
};

/// The parts of an adapter's factors. Ranks are padded by rows of zeros to what kernels take.
#[derive(Debug)]
pub(crate) struct Split {
    pub(crate) a: Factor,
    /// Of Bᵀ.
    pub(crate) b: Factor,
}

/// Ranks that kernels take are multiples of this.
const RANKS: usize = 8;

impl Lora {
    pub(crate) fn split(&self, gpu: &Gpu) -> Result<&Split, DeviceError> {
        self.split.get_or_make(|| {
            Ok(Split { a: factor(gpu, &self.a, 0, 0)?, b: factor(gpu, &self.b_transposed, 0, 0)? })
        })
    }
}

/// The parts of a factor `[rank, n]` with `before` columns of zeros before it and `after` behind it.
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

/// l = s·D(x)·Aᵀ, and what of x it was taken of where that is not x itself.
pub(crate) fn low_rank(
    gpu: &Gpu,
    x: &Buffer<u16>,
    lora: &Lora,
    pass: Pass,
    rows: usize,
) -> Result<Buffer<u16>, DeviceError> {
    let masked = dropped(gpu, x, lora, pass)?;
    gpu.lora_hidden(masked.as_ref().unwrap_or(x), &lora.split(gpu)?.a, rows, lora.scale)
}

/// D(x), where there is dropout.
fn dropped(
    gpu: &Gpu,
    x: &Buffer<u16>,
    lora: &Lora,
    pass: Pass,
) -> Result<Option<Buffer<u16>>, DeviceError> {
    let Some(mask) = pass.mask(lora) else { return Ok(None) };
    let mut y = gpu.uninitialized(x.len())?;
    gpu.dropout_rounded(&mut y, x, mask)?;
    Ok(Some(y))
}

/// dl = s·dy·B. Adds the gradients of B, and of A, for which `x` gives what the update multiplied.
#[allow(clippy::too_many_arguments)] // the update's
pub(crate) fn low_rank_backward(
    cuda: &CudaDevice,
    gpu: &Gpu,
    dy: &Buffer<u16>,
    low: &Buffer<u16>,
    lora: &Lora,
    pass: Pass,
    rows: usize,
    x: impl FnOnce() -> Result<std::sync::Arc<Buffer<u16>>, DeviceError>,
    gradients: &mut Gradients,
) -> Result<Buffer<u16>, DeviceError> {
    let dlow = gpu.lora_hidden(dy, &lora.split(gpu)?.b, rows, lora.scale)?;
    let mut add = |factor: &Tensor, low: &Buffer<u16>, x: &Buffer<u16>| {
        let gradient = gradient(gpu, low, x, rows, factor.shape())?;
        gradients.add(factor.id(), Tensor::cuda(cuda, factor.shape(), Some(gradient)));
        Ok(())
    };
    if lora.b_transposed.requires_grad() {
        add(&lora.b_transposed, low, dy)?;
    }
    if lora.a.requires_grad() {
        let x = x()?;
        let masked = dropped(gpu, &x, lora, pass)?;
        add(&lora.a, &dlow, masked.as_ref().unwrap_or(&x))?;
    }
    Ok(dlow)
}

/// lᵀ·x, the gradient of a factor `[rank, n]`.
fn gradient(
    gpu: &Gpu,
    low: &Buffer<u16>,
    x: &Buffer<u16>,
    rows: usize,
    [rank, n]: [usize; 2],
) -> Result<Buffer<f32>, DeviceError> {
    let padded = rank.next_multiple_of(RANKS);
    let mut all = gpu.uninitialized(padded * n)?;
    gpu.matmul_gradient(&mut all, low, x, [rows, padded, n], false)?;
    if padded == rank {
        return Ok(all);
    }
    let mut own = gpu.uninitialized(rank * n)?;
    gpu.copy(&mut own, 0, &all, 0, rank * n)?;
    Ok(own)
}

/// A projection as far as the gradient of its input depends on it.
pub(crate) struct Part<'a> {
    /// dy, and the rows of a weight that are its own.
    pub(crate) own: Operands<'a>,
    /// The adapter's factors and dl.
    pub(crate) update: Option<(&'a Lora, &'a Buffer<u16>)>,
}

/// dx `[rows, k]` becomes Σ dy·W + D(dl·A) over projections of the same input.
pub(crate) fn input_gradient(
    gpu: &Gpu,
    dx: &mut Buffer<f32>,
    parts: &[Part<'_>],
    [rows, k]: [usize; 2],
    pass: Pass,
) -> Result<(), DeviceError> {
    for (index, Part { own, update }) in parts.iter().enumerate() {
        let mut products = vec![*own];
        let mut masked = None;
        if let Some((lora, dlow)) = update {
            match pass.mask(lora) {
                None => products.push(lora.split(gpu)?.a.backward(dlow)),
                Some(mask) => masked = Some((lora, dlow, mask)),
            }
        }
        gpu.matmul_backward(dx, &products, [rows, k], index > 0)?;
        if let Some((lora, dlow, mask)) = masked {
            let mut part = gpu.uninitialized(rows * k)?;
            let product = lora.split(gpu)?.a.backward(dlow);
            gpu.matmul_backward(&mut part, &[product], [rows, k], false)?;
            let mut dropped = gpu.uninitialized::<f32>(rows * k)?;
            gpu.dropout(&mut dropped, &part, mask)?;
            gpu.add(dx, &dropped)?;
        }
    }
    Ok(())
}

/// [`super::apply`] on a GPU; `ys` are written, or grow where there is a residual.
pub(super) fn apply<'m, const N: usize>(
    tape: &mut Tape<'m>,
    mut ys: [Tensor; N],
    residual: Option<Source>,
    x: &Tensor,
    linears: [&'m Linear; N],
    pass: Pass,
) -> [Tensor; N] {
    let device = x.device().clone();
    let Device::Cuda(cuda) = &device else { unreachable!("asked before") };
    let [rows, k] = x.shape();
    let rounded = cuda.run(|_| x.bf16());
    let grows = residual.is_some();
    let residual = residual.filter(|source| source.requires_grad).map(|source| source.id);
    for (y, linear) in ys.iter_mut().zip(linears) {
        let lora = linear.lora.as_ref().filter(|_| pass.adapter);
        let [_, n] = y.shape();
        let low = cuda.run(|gpu| {
            let x = rounded.as_ref().expect("the device works");
            let low = lora.map(|lora| low_rank(gpu, x, lora, pass, rows)).transpose()?;
            let mut products = vec![Operands { x, w: linear.weight.on(gpu)?, first_row: 0, k }];
            if let (Some(lora), Some(low)) = (lora, &low) {
                products.push(lora.split(gpu)?.b.forward(low));
            }
            if let Some(bias) = &linear.bias {
                assert!(!grows, "a projection with a bias is not added");
                // The bias in every row.
                gpu.gather(y.f32_mut(), bias.on(gpu)?, &gpu.zeros(rows)?, n)?;
            }
            gpu.matmul(y.f32_mut(), &products, [rows, n], grows || linear.bias.is_some())?;
            Ok(low)
        });
        let trained =
            lora.is_some_and(|lora| lora.a.requires_grad() || lora.b_transposed.requires_grad());
        if tape.records(residual.is_some() || x.requires_grad() || trained) {
            let update = lora.map(|lora| Update { lora, low: low.flatten(), x: tape.save(x) });
            let x = x.requires_grad().then_some(x.id());
            tape.push(y, Applied { residual, x, weight: &linear.weight, update, pass });
        }
    }
    ys
}

struct Applied<'m> {
    residual: Option<Id>,
    x: Option<Id>,
    weight: &'m Weight,
    update: Option<Update<'m>>,
    pass: Pass,
}

struct Update<'m> {
    lora: &'m Lora,
    /// l; `None` where the device has failed.
    low: Option<Buffer<u16>>,
    x: Saved<'m>,
}

impl Backward for Applied<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Applied { residual, x, weight, update, pass } = *self;
        if let Some(residual) = residual {
            gradients.add(residual, dy.clone());
        }
        let device = dy.device().clone();
        let Device::Cuda(cuda) = &device else { unreachable!("recorded on a GPU") };
        let ([rows, n], k) = (dy.shape(), weight.columns());
        let dx = cuda.run(|gpu| {
            let dy = dy.bf16()?;
            let dlow = match &update {
                None => None,
                Some(Update { lora, low, x }) => {
                    let low = low.as_ref().expect("the device works");
                    let x = || x.get().bf16();
                    let dlow =
                        low_rank_backward(cuda, gpu, &dy, low, lora, pass, rows, x, gradients)?;
                    Some((*lora, dlow))
                }
            };
            if x.is_none() {
                return Ok(None);
            }
            let mut dx = gpu.uninitialized(rows * k)?;
            let own = Operands { x: &dy, w: weight.on(gpu)?, first_row: 0, k: n };
            let update = dlow.as_ref().map(|(lora, dlow)| (*lora, dlow));
            input_gradient(gpu, &mut dx, &[Part { own, update }], [rows, k], pass)?;
            Ok(Some(dx))
        });
        if let Some(x) = x {
            gradients.add(x, Tensor::cuda(cuda, [rows, k], dx.flatten()));
        }
    }
}
