//! The MLP with its residual connection:
//!
//! ```text
//! y = r + swiglu(h·Wgateᵀ, h·Wupᵀ)·Wdownᵀ           h, r [rows, k], with LoRA's updates as in linear.rs
//! ```
//!
//! On the CPU it is those ops one after the other. On a GPU gate and up are one product whose epilogue is
//! SwiGLU, and the gradient of down's input is one whose epilogue is SwiGLU's backward pass: gate and up in f32
//! are all that is kept, beside h.

use kernels::cuda::{Buffer, Factor, Gpu, Operands};

use super::{
    linear::{
        Linear, Lora, Pass,
        cuda::{Part, factor, input_gradient, low_rank, low_rank_backward},
        linear_add, linear_all,
    },
    swiglu::swiglu,
};
use crate::tensor::{
    Id, Tensor,
    device::{CudaDevice, Device, DeviceError, OnDevice},
    tape::{Backward, Gradients, Saved, Tape},
};

/// The three projections.
pub struct Mlp {
    /// `[n, k]`.
    pub gate: Linear,
    /// `[n, k]`.
    pub up: Linear,
    /// `[k, n]`.
    pub down: Linear,
    stacked: OnDevice<Buffer<u16>>,
    wide: OnDevice<[Option<Factor>; 2]>,
}

impl Mlp {
    /// An MLP of these.
    pub fn new(gate: Linear, up: Linear, down: Linear) -> Mlp {
        assert_eq!(gate.weight.rows(), up.weight.rows(), "gate and up");
        Mlp { gate, up, down, stacked: OnDevice::default(), wide: OnDevice::default() }
    }

    /// Gate's weights and up's as one matrix `[2n, k]`.
    fn stacked(&self, gpu: &Gpu) -> Result<&Buffer<u16>, DeviceError> {
        self.stacked.get_or_make(|| {
            let len = self.gate.weight.rows() * self.gate.weight.columns();
            let mut both = gpu.uninitialized(2 * len)?;
            self.gate.weight.upload(gpu, &mut both, 0)?;
            self.up.weight.upload(gpu, &mut both, len)?;
            Ok(both)
        })
    }

    /// Bᵀ of gate and of up, each beside zeros: a product for the stacked product.
    fn wide(&self, gpu: &Gpu) -> Result<&[Option<Factor>; 2], DeviceError> {
        let n = self.gate.weight.rows();
        let one = |linear: &Linear, before: usize, after: usize| {
            let lora = linear.lora.as_ref();
            lora.map(|lora| factor(gpu, &lora.b_transposed, before, after)).transpose()
        };
        self.wide.get_or_make(|| Ok([one(&self.gate, 0, n)?, one(&self.up, n, 0)?]))
    }

    /// Takes the weights to the device now.
    pub(crate) fn upload(&self, gpu: &Gpu) -> Result<(), DeviceError> {
        self.stacked(gpu)?;
        self.down.weight.on(gpu)?;
        Ok(())
    }

    /// Forgets what a device made of the adapter's factors, which may change.
    pub(crate) fn forget_factors(&mut self) {
        self.wide.clear();
    }
}

/// `residual` plus the MLP of `h`, both `[rows, k]`, in place where nobody shares it.
pub fn mlp<'m>(
    tape: &mut Tape<'m>,
    residual: Tensor,
    h: Tensor,
    mlp: &'m Mlp,
    pass: Pass,
) -> Tensor {
    if h.device().is_cuda() {
        return on_cuda(tape, residual, &h, mlp, pass);
    }
    let [gate, up] = linear_all(tape, &h, [&mlp.gate, &mlp.up], pass);
    drop(h);
    let gated = swiglu(tape, &gate, &up, pass.compute);
    drop((gate, up));
    linear_add(tape, residual, &gated, &mlp.down, pass)
}

/// What the forward pass leaves on a GPU: l of gate, up and down where they have one, and gate and up.
struct Kept {
    lows: [Option<Buffer<u16>>; 3],
    gate_up: Option<[Buffer<f32>; 2]>,
}

fn on_cuda<'m>(
    tape: &mut Tape<'m>,
    residual: Tensor,
    h: &Tensor,
    mlp: &'m Mlp,
    pass: Pass,
) -> Tensor {
    let device = h.device().clone();
    let Device::Cuda(cuda) = &device else { unreachable!("asked before") };
    let (id, grows) = (residual.id(), residual.requires_grad());
    let mut y = residual.into_owned();
    let loras = mlp.loras(pass);
    let trained = loras
        .iter()
        .flatten()
        .any(|lora| lora.a.requires_grad() || lora.b_transposed.requires_grad());
    let recorded = tape.records(grows || h.requires_grad() || trained);
    let kept = cuda.run(|gpu| forward(gpu, &mut y, h, mlp, pass, recorded));
    if recorded {
        let ids = [grows.then_some(id), h.requires_grad().then_some(h.id())];
        tape.push(&mut y, MlpOnCuda { mlp, pass, ids, h: tape.save(h), kept });
    }
    y
}

impl Mlp {
    fn loras(&self, pass: Pass) -> [Option<&Lora>; 3] {
        [&self.gate, &self.up, &self.down]
            .map(|linear| linear.lora.as_ref().filter(|_| pass.adapter))
    }
}

fn forward(
    gpu: &Gpu,
    y: &mut Tensor,
    h: &Tensor,
    mlp: &Mlp,
    pass: Pass,
    keep: bool,
) -> Result<Kept, DeviceError> {
    let ([rows, k], n) = (h.shape(), mlp.gate.weight.rows());
    let [gate, up, down] = mlp.loras(pass);
    let h = h.bf16()?;
    let low = |lora: Option<&Lora>, x: &Buffer<u16>| {
        lora.map(|lora| low_rank(gpu, x, lora, pass, rows)).transpose()
    };
    let first = [low(gate, &h)?, low(up, &h)?];
    let mut products = vec![Operands { x: &h, w: mlp.stacked(gpu)?, first_row: 0, k }];
    let wide = if pass.adapter { Some(mlp.wide(gpu)?) } else { None };
    for (low, wide) in first.iter().zip(wide.into_iter().flatten()) {
        if let (Some(low), Some(wide)) = (low, wide) {
            products.push(wide.forward(low));
        }
    }
    let mut gated = gpu.uninitialized(rows * n)?;
    let mut gate_up = None;
    if keep {
        gate_up = Some([gpu.uninitialized(rows * n)?, gpu.uninitialized(rows * n)?]);
    }
    let kept = gate_up.as_mut().map(|[gate, up]| [gate, up]);
    gpu.matmul_swiglu(&mut gated, kept, &products, [rows, n])?;

    let last = low(down, &gated)?;
    let mut products =
        vec![Operands { x: &gated, w: mlp.down.weight.on(gpu)?, first_row: 0, k: n }];
    if let (Some(lora), Some(low)) = (down, &last) {
        products.push(lora.split(gpu)?.b.forward(low));
    }
    gpu.matmul(y.f32_mut(), &products, [rows, k], true)?;
    let [gate, up] = first;
    Ok(Kept { lows: [gate, up, last], gate_up })
}

struct MlpOnCuda<'m> {
    mlp: &'m Mlp,
    pass: Pass,
    /// Of the residual and of h, where their gradients are wanted.
    ids: [Option<Id>; 2],
    h: Saved<'m>,
    /// `None` where the device has failed.
    kept: Option<Kept>,
}

impl Backward for MlpOnCuda<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let [residual, h] = self.ids;
        if let Some(residual) = residual {
            gradients.add(residual, dy.clone());
        }
        let device = dy.device().clone();
        let Device::Cuda(cuda) = &device else { unreachable!("recorded on a GPU") };
        let shape = dy.shape();
        let dh = cuda.run(|gpu| self.gradients(cuda, gpu, dy, h.is_some(), gradients));
        if let Some(h) = h {
            gradients.add(h, Tensor::cuda(cuda, shape, dh.flatten()));
        }
    }
}

impl MlpOnCuda<'_> {
    /// Adds the gradients of the factors; that of h where it is wanted.
    fn gradients(
        self,
        cuda: &CudaDevice,
        gpu: &Gpu,
        dy: Tensor,
        wanted: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Buffer<f32>>, DeviceError> {
        let MlpOnCuda { mlp, pass, h, kept, .. } = self;
        let ([rows, k], n) = (dy.shape(), mlp.gate.weight.rows());
        let Kept { lows, gate_up } = kept.expect("the device works");
        let gate_up = gate_up.expect("kept for this");
        let loras = mlp.loras(pass);
        let dy = dy.bf16()?;

        // Through down and SwiGLU: the gradients of gate and up.
        let dlow = match (loras[2], &lows[2]) {
            (Some(lora), Some(low)) => {
                let gated = || {
                    let mut gated = gpu.uninitialized::<u16>(rows * n)?;
                    let [gate, up] = &gate_up;
                    gpu.swiglu(&mut gated, gate, up)?;
                    Ok(std::sync::Arc::new(gated))
                };
                let dlow =
                    low_rank_backward(cuda, gpu, &dy, low, lora, pass, rows, gated, gradients)?;
                Some((lora, dlow))
            }
            _ => None,
        };
        let [mut dgate, mut dup] = [gpu.uninitialized(rows * n)?, gpu.uninitialized(rows * n)?];
        let own = Operands { x: &dy, w: mlp.down.weight.on(gpu)?, first_row: 0, k };
        let kept = gate_up.each_ref();
        if pass.drops() {
            let mut dgated = gpu.uninitialized(rows * n)?;
            let update = dlow.as_ref().map(|(lora, dlow)| (*lora, dlow));
            input_gradient(gpu, &mut dgated, &[Part { own, update }], [rows, n], pass)?;
            gpu.swiglu_backward([&mut dgate, &mut dup], &dgated, kept[0], kept[1])?;
        } else {
            let mut products = vec![own];
            if let Some((lora, dlow)) = &dlow {
                products.push(lora.split(gpu)?.a.backward(dlow));
            }
            gpu.matmul_swiglu_backward([&mut dgate, &mut dup], kept, &products, [rows, n])?;
        }
        drop((gate_up, dlow));

        // Through gate and up.
        let both = [&dgate, &dup];
        let mut dlows = [None, None];
        for (index, to) in dlows.iter_mut().enumerate() {
            if let (Some(lora), Some(low)) = (loras[index], &lows[index]) {
                let x = || h.get().bf16();
                let dy = both[index];
                *to = Some(low_rank_backward(cuda, gpu, dy, low, lora, pass, rows, x, gradients)?);
            }
        }
        if !wanted {
            return Ok(None);
        }
        let mut dh = gpu.uninitialized(rows * k)?;
        let w = mlp.stacked(gpu)?;
        let part = |index: usize| {
            let own = Operands { x: both[index], w, first_row: index * n, k: n };
            Part { own, update: loras[index].zip(dlows[index].as_ref()) }
        };
        input_gradient(gpu, &mut dh, &[part(0), part(1)], [rows, k], pass)?;
        Ok(Some(dh))
    }
}
