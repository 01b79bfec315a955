//! The MLP with its residual connection:
//!
//! ```text
//! y = r + swiglu(h·Wgateᵀ, h·Wupᵀ)·Wdownᵀ           h, r [rows, k], with LoRA as in linear.rs
//! ```
//!
//! On the CPU it is those ops one after the other. On a GPU gate and up are one matmul with SwiGLU as its epilogue,
//! and the gradient of down's input is one with SwiGLU's backward pass as its epilogue: gate and up in f32
//! are all that is saved, beside h.

use kernels::cuda::{Buffer, Factor, Gpu, Operands};

use super::{
    linear::{Linear, Lora, Part, Pass, input_gradient, linear_add, linear_all, lora::factor},
    swiglu::swiglu,
};
use crate::tensor::{
    Id, Tensor,
    device::{CudaDevice, Device, DeviceCell, DeviceError},
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
    stacked: DeviceCell<Buffer<u16>>,
    wide: DeviceCell<[Option<Factor>; 2]>,
}

impl Mlp {
    /// An MLP of these.
    pub fn new(gate: Linear, up: Linear, down: Linear) -> Mlp {
        assert_eq!(gate.weight.rows(), up.weight.rows(), "gate and up");
        Mlp { gate, up, down, stacked: DeviceCell::default(), wide: DeviceCell::default() }
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

    /// Bᵀ of gate and of up, each beside zeros, for the stacked matmul.
    fn wide(&self, gpu: &Gpu) -> Result<&[Option<Factor>; 2], DeviceError> {
        let n = self.gate.weight.rows();
        let one = |linear: &Linear, before: usize, after: usize| {
            let lora = linear.lora.as_ref();
            lora.map(|lora| factor(gpu, &lora.b_transposed, before, after)).transpose()
        };
        self.wide.get_or_make(|| Ok([one(&self.gate, 0, n)?, one(&self.up, n, 0)?]))
    }

    /// The factors that take part, of gate, up and down.
    fn loras(&self, pass: Pass) -> [Option<&Lora>; 3] {
        [&self.gate, &self.up, &self.down]
            .map(|linear| linear.lora.as_ref().filter(|_| pass.adapter))
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

/// `residual` plus the MLP of `h`, both `[rows, k]`, in place if nothing else shares it.
pub fn mlp<'m>(
    tape: &mut Tape<'m>,
    residual: Tensor,
    h: Tensor,
    mlp: &'m Mlp,
    pass: Pass,
) -> Tensor {
    match h.device().clone() {
        Device::Cpu(_) => {
            let [gate, up] = linear_all(tape, &h, [&mlp.gate, &mlp.up], pass);
            drop(h);
            let gated = swiglu(tape, &gate, &up, pass.compute);
            drop((gate, up));
            linear_add(tape, residual, &gated, &mlp.down, pass)
        }
        Device::Cuda(cuda) => fused(tape, cuda, residual, &h, mlp, pass),
    }
}

fn fused<'m>(
    tape: &mut Tape<'m>,
    cuda: CudaDevice,
    residual: Tensor,
    h: &Tensor,
    mlp: &'m Mlp,
    pass: Pass,
) -> Tensor {
    let ([rows, k], n) = (h.shape(), mlp.gate.weight.rows());
    let device = h.device();
    let (id, grows) = (residual.id(), residual.requires_grad());
    let mut y = residual.into_owned();
    let loras = mlp.loras(pass);
    let trained = loras.iter().flatten().any(|lora| lora.requires_grad());
    let recorded = tape.records(grows || h.requires_grad() || trained);

    let input = h.for_matmul();
    let hidden = |lora: Option<&Lora>, x: &Tensor| lora.map(|lora| lora.hidden(x, pass));
    let [gate, up, down] = loras;
    let first = [hidden(gate, &input), hidden(up, &input)];
    let mut gated = Tensor::uninitialized_for_matmul(device, rows, n);
    let mut gate_up = recorded.then(|| [(); 2].map(|()| Tensor::uninitialized(device, rows, n)));
    cuda.queue(|gpu| {
        let (x, w) = (input.bf16(), mlp.stacked(gpu)?);
        let mut products = vec![Operands { x, w, first_row: 0, k }];
        let wide = if pass.adapter { Some(mlp.wide(gpu)?) } else { None };
        for (hidden, wide) in first.iter().zip(wide.into_iter().flatten()) {
            if let (Some(hidden), Some(wide)) = (hidden, wide) {
                products.push(wide.forward(hidden.bf16()));
            }
        }
        let kept = gate_up.as_mut().map(|both| both.each_mut().map(Tensor::f32_mut));
        gpu.matmul_swiglu(gated.bf16_mut(), kept, &products, [rows, n])
    });
    let last = hidden(down, &gated);
    cuda.queue(|gpu| {
        let (x, w) = (gated.bf16(), mlp.down.weight.on(gpu)?);
        let mut products = vec![Operands { x, w, first_row: 0, k: n }];
        if let (Some(lora), Some(hidden)) = (down, &last) {
            products.push(lora.split(gpu)?.b.forward(hidden.bf16()));
        }
        gpu.matmul(y.f32_mut(), &products, [rows, k], true)
    });
    if let Some(gate_up) = gate_up {
        let ids = [grows.then_some(id), h.requires_grad().then_some(h.id())];
        let [gate, up] = first;
        let hidden = [gate, up, last];
        tape.push(&mut y, Fused { mlp, cuda, pass, ids, h: tape.save(h), hidden, gate_up });
    }
    y
}

/// The node of an MLP on a GPU.
struct Fused<'m> {
    mlp: &'m Mlp,
    cuda: CudaDevice,
    pass: Pass,
    /// The residual and h, if their gradients are wanted.
    ids: [Option<Id>; 2],
    h: Saved<'m>,
    /// LoRA's hidden states of gate, up and down.
    hidden: [Option<Tensor>; 3],
    gate_up: [Tensor; 2],
}

impl Backward for Fused<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Fused { mlp, cuda, pass, ids: [residual, input], h, hidden, gate_up } = *self;
        if let Some(residual) = residual {
            gradients.add(residual, dy.clone());
        }
        let ([rows, k], n) = (dy.shape(), mlp.gate.weight.rows());
        let device = dy.device().clone();
        let loras = mlp.loras(pass);
        let dy = dy.for_matmul();

        // Through down and SwiGLU: the gradients of gate and up.
        let down = loras[2].zip(hidden[2].as_ref()).map(|(lora, hidden)| {
            let gated = || {
                let mut gated = Tensor::uninitialized_for_matmul(&device, rows, n);
                let [gate, up] = &gate_up;
                cuda.queue(|gpu| gpu.swiglu(gated.bf16_mut(), gate.f32(), up.f32()));
                gated
            };
            (lora, lora.hidden_backward(&dy, hidden, gated, pass, gradients))
        });
        let mut both = [(); 2].map(|()| Tensor::uninitialized_for_matmul(&device, rows, n));
        cuda.queue(|gpu| {
            let own = Operands { x: dy.bf16(), w: mlp.down.weight.on(gpu)?, first_row: 0, k };
            let [gate, up] = gate_up.each_ref().map(Tensor::f32);
            let to = both.each_mut().map(Tensor::bf16_mut);
            if pass.drops() {
                let mut dgated = gpu.uninitialized(rows * n)?;
                let adapter = down.as_ref().map(|(lora, dhidden)| (*lora, dhidden));
                input_gradient(gpu, &mut dgated, &[Part { own, adapter }], [rows, n], pass)?;
                gpu.swiglu_backward(to, &dgated, gate, up)
            } else {
                let mut products = vec![own];
                if let Some((lora, dhidden)) = &down {
                    products.push(lora.split(gpu)?.a.backward(dhidden.bf16()));
                }
                gpu.matmul_swiglu_backward(to, [gate, up], &products, [rows, n])
            }
        });
        drop((gate_up, down));

        // Through gate and up.
        let adapters = [0, 1].map(|index| {
            let (lora, hidden) = (loras[index]?, hidden[index].as_ref()?);
            let x = || h.get().for_matmul();
            Some((lora, lora.hidden_backward(&both[index], hidden, x, pass, gradients)))
        });
        let Some(input) = input else { return };
        let mut dh = Tensor::uninitialized(&device, rows, k);
        cuda.queue(|gpu| {
            let w = mlp.stacked(gpu)?;
            let part = |index: usize| {
                let own = Operands { x: both[index].bf16(), w, first_row: index * n, k: n };
                let adapter = adapters[index].as_ref().map(|(lora, dhidden)| (*lora, dhidden));
                Part { own, adapter }
            };
            input_gradient(gpu, dh.f32_mut(), &[part(0), part(1)], [rows, k], pass)
        });
        gradients.add(input, dh);
    }
}
