//! A frozen projection with an optional bias and an optional low-rank update (LoRA, Hu et al.
//! 2021, arXiv 2106.09685, equation 3), with dropout D on the update's input in training:
//!
//! ```text
//! l  = s·D(x)·Aᵀ              x [rows, k], A [r, k], l [rows, r]
//! y  = x·Wᵀ + b + l·Bᵀ        W [n, k], b [n], B [n, r], y [rows, n]
//!
//! dB = dyᵀ·l
//! dl = s·dy·B
//! dA = dlᵀ·D(x)
//! dx = dy·W + D(dl·A)         D is linear and its own transpose
//! ```
//!
//! `W` and `b` are frozen, so there is no `dW` and no `db`. `W` is read where the checkpoint's file
//! is mapped, or packed (see [`Weight`]). With [`ComputeDtype::Bf16`] the values of `x` and `dy` are rounded to bf16 before they meet
//! a bf16 `W`; the low-rank path takes f32 throughout.

pub(crate) mod cuda;

pub use kernels::cpu::ComputeDtype;
use kernels::cpu::{
    Matrix,
    dropout::{self, Mask},
    matmul::{self, LowRank, Product},
    philox::{RngKey, Stream},
    product::{self, Left},
};

use crate::{
    checkpoint::weights::Weight,
    tensor::{
        Id, Tensor,
        device::{OnDevice, Resident},
        tape::{Backward, Gradients, Saved, Tape},
    },
};

/// One projection of the model.
pub struct Linear {
    /// `[n, k]`, mapped.
    pub weight: Weight,
    /// `[n]`.
    pub bias: Option<Resident<f32>>,
    /// The adapter's factors for this projection, if it has any.
    pub lora: Option<Lora>,
}

/// The factors of a low-rank update. They are leaves: where they require a gradient, they get one.
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
    pub(crate) split: OnDevice<cuda::Split>,
}

/// How a pass goes through the projections.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// How matmuls round.
    pub compute: ComputeDtype,
    /// Whether the low-rank updates take part. Without them the pass is the base model's.
    pub adapter: bool,
    /// Dropout on their inputs: in training, if at all.
    pub dropout: Option<Dropout>,
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

impl Lora {
    /// l·Bᵀ.
    fn update<'a>(&'a self, low: &'a Tensor) -> LowRank<'a> {
        let [rank, _] = self.b_transposed.shape();
        LowRank { left: low.data(), right: self.b_transposed.data(), rank }
    }
}

impl Pass {
    fn adapter_compute(&self) -> ComputeDtype {
        match self.compute {
            ComputeDtype::Bf16 => ComputeDtype::F32,
            ComputeDtype::F32 | ComputeDtype::F64 => self.compute,
        }
    }

    /// A projection's mask; `None` without dropout.
    fn mask(&self, lora: &Lora) -> Option<Mask> {
        self.dropout.filter(|_| self.drops()).map(|dropout| {
            let Dropout { probability, seed, pass } = dropout;
            let sequence = u64::from(pass) << 32 | u64::from(lora.stream);
            Mask { key: RngKey::new(seed, sequence, Stream::DROPOUT), probability }
        })
    }

    /// Whether there is dropout.
    pub(crate) fn drops(&self) -> bool {
        self.dropout.is_some_and(|dropout| dropout.probability > 0.0)
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
    let [rows, _] = x.shape();
    // A GPU's logits have columns for what pads the vocabulary.
    let align = if x.device().is_cuda() { 8 } else { 1 };
    let ys = linears.map(|linear| {
        Tensor::uninitialized(x.device(), rows, linear.weight.rows().next_multiple_of(align))
    });
    apply(tape, ys, None, x, linears, pass)
}

/// The residual connection: `residual [rows, n]` plus the projection of `x [rows, k]`, in place
/// where nobody shares it.
pub fn linear_add<'m>(
    tape: &mut Tape<'m>,
    residual: Tensor,
    x: &Tensor,
    linear: &'m Linear,
    pass: Pass,
) -> Tensor {
    let source = Source { id: residual.id(), requires_grad: residual.requires_grad() };
    let [y] = apply(tape, [residual.into_owned()], Some(source), x, [linear], pass);
    y
}

struct Source {
    id: Id,
    requires_grad: bool,
}

fn apply<'m, const N: usize>(
    tape: &mut Tape<'m>,
    mut ys: [Tensor; N],
    residual: Option<Source>,
    x: &Tensor,
    linears: [&'m Linear; N],
    pass: Pass,
) -> [Tensor; N] {
    let [rows, k] = x.shape();
    for (y, Linear { weight, .. }) in ys.iter().zip(linears) {
        let n = weight.rows();
        let align = if x.device().is_cuda() { 8 } else { 1 };
        assert_eq!(weight.columns(), k, "linear: x is {:?}, the weight [{n}, _]", x.shape());
        let columns = n.next_multiple_of(align);
        assert_eq!(
            y.shape(),
            [rows, columns],
            "linear: x is {:?}, the weight [{n}, {k}]",
            x.shape()
        );
    }
    if x.device().is_cuda() {
        return cuda::apply(tape, ys, residual, x, linears, pass);
    }
    let device = x.device().clone();
    let cpu = device.host();
    let loras = linears.map(|linear| linear.lora.as_ref().filter(|_| pass.adapter));
    let lows = loras.map(|lora| lora.map(|lora| low_rank(x, lora, pass)));
    let mut parts = ys.iter_mut().zip(linears).zip(loras.iter().zip(&lows));
    let mut products: [Product<'_>; N] = std::array::from_fn(|_| {
        let ((y, linear), (lora, low)) = parts.next().expect("N of each");
        Product {
            y: y.data_mut(),
            w: linear.weight.for_product(cpu, pass.compute, rows),
            n: linear.weight.rows(),
            accumulate: residual.is_some(),
            low_rank: lora.zip(low.as_ref()).map(|(lora, low)| lora.update(low)),
        }
    });
    matmul::forward_all(cpu, &mut products, x.data(), [rows, k], pass.compute);

    let residual = residual.filter(|source| source.requires_grad).map(|source| source.id);
    for (((y, linear), lora), low) in ys.iter_mut().zip(linears).zip(loras).zip(lows) {
        let Linear { weight, bias, .. } = linear;
        if let Some(bias) = bias {
            y.on_host(|y| {
                for row in y.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
                }
            });
        }
        let trained =
            lora.is_some_and(|lora| lora.a.requires_grad() || lora.b_transposed.requires_grad());
        if tape.records(residual.is_some() || x.requires_grad() || trained) {
            let update = lora.zip(low).map(|(lora, low)| Update { lora, low, x: tape.save(x) });
            let x = x.requires_grad().then_some(x.id());
            tape.push(y, Applied { residual, x, weight, update, pass });
        }
    }
    ys
}

/// l = s·D(x)·Aᵀ.
fn low_rank(x: &Tensor, lora: &Lora, pass: Pass) -> Tensor {
    let ([rows, k], [rank, _]) = (x.shape(), lora.a.shape());
    let masked = pass.mask(lora).map(|mask| dropped(x, mask));
    let input = masked.as_ref().unwrap_or(x);
    let mut low = Tensor::uninitialized(x.device(), rows, rank);
    let (a, shape) = (Matrix::F32(lora.a.data()), [rows, rank, k]);
    let (cpu, compute) = (x.device().host(), pass.adapter_compute());
    matmul::forward(cpu, low.data_mut(), input.data(), a, shape, compute, false);
    scale(&mut low, lora.scale);
    low
}

fn dropped(x: &Tensor, mask: Mask) -> Tensor {
    let [rows, k] = x.shape();
    let mut masked = Tensor::uninitialized(x.device(), rows, k);
    dropout::forward(x.device().host(), masked.data_mut(), x.data(), mask);
    masked
}

fn scale(x: &mut Tensor, factor: f32) {
    x.on_host(|x| x.iter_mut().for_each(|value| *value *= factor));
}

struct Applied<'m> {
    residual: Option<Id>,
    /// Whose gradient is wanted.
    x: Option<Id>,
    weight: &'m Weight,
    update: Option<Update<'m>>,
    pass: Pass,
}

/// What the low-rank update's backward pass reads.
struct Update<'m> {
    lora: &'m Lora,
    /// l.
    low: Tensor,
    x: Saved<'m>,
}

impl Backward for Applied<'_> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let Applied { residual, x, weight, update, pass } = *self;
        if let Some(residual) = residual {
            gradients.add(residual, dy.clone());
        }
        let mask = update.as_ref().and_then(|update| pass.mask(update.lora));
        let dlow = update.as_ref().map(|update| update.backward(&dy, mask, pass, gradients));
        let Some(x) = x else { return };
        let ([rows, n], k) = (dy.shape(), weight.columns());
        let device = dy.device();
        let cpu = device.host();
        let update = update.zip(dlow).map(|(update, dlow)| (update.lora, dlow));
        let low_rank = update.as_ref().map(|(lora, dlow)| {
            let [rank, _] = lora.a.shape();
            LowRank { left: dlow.data(), right: lora.a.data(), rank }
        });
        let mut dx = Tensor::uninitialized(device, rows, k);
        let w = weight.for_product(cpu, pass.compute, rows);
        let (shape, fused) = ([rows, n, k], low_rank.filter(|_| mask.is_none()));
        let (to, dy) = (dx.data_mut(), dy.data());
        matmul::backward(cpu, to, dy, w, shape, pass.compute, false, fused);
        if let (Some(mask), Some(LowRank { left, right, rank })) = (mask, low_rank) {
            let mut part = Tensor::zeros(device, rows, k);
            let shape = [rows, k, rank];
            product::accumulate(cpu, part.data_mut(), left, Left::Rows, right, shape);
            let part = dropped(&part, mask);
            kernels::cpu::add::accumulate(cpu, dx.data_mut(), part.data());
        }
        gradients.add(x, dx);
    }
}

impl Update<'_> {
    /// Adds the gradients of A and B, and returns dl.
    fn backward(
        &self,
        dy: &Tensor,
        mask: Option<Mask>,
        pass: Pass,
        gradients: &mut Gradients,
    ) -> Tensor {
        let Update { lora, low, x } = self;
        let ([rows, n], [rank, k]) = (dy.shape(), lora.a.shape());
        let device = dy.device();
        let cpu = device.host();
        let mut dlow = Tensor::uninitialized(device, rows, rank);
        let (b, compute) = (Matrix::F32(lora.b_transposed.data()), pass.adapter_compute());
        matmul::forward(cpu, dlow.data_mut(), dy.data(), b, [rows, rank, n], compute, false);
        scale(&mut dlow, lora.scale);
        if lora.b_transposed.requires_grad() {
            let mut db = Tensor::zeros(device, rank, n);
            let (shape, left) = ([rank, n, rows], Left::Columns);
            product::accumulate(cpu, db.data_mut(), low.data(), left, dy.data(), shape);
            gradients.add(lora.b_transposed.id(), db);
        }
        if lora.a.requires_grad() {
            let x = x.get();
            let masked = mask.map(|mask| dropped(x, mask));
            let input = masked.as_ref().unwrap_or(x);
            let mut da = Tensor::zeros(device, rank, k);
            let (shape, left) = ([rank, k, rows], Left::Columns);
            product::accumulate(cpu, da.data_mut(), dlow.data(), left, input.data(), shape);
            gradients.add(lora.a.id(), da);
        }
        dlow
    }
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
        let split = OnDevice::default();
        Linear { weight, bias, lora: Some(Lora { a, b_transposed, scale: 0.7, stream: 3, split }) }
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
