//! The tape: which ops ran, so that they can run backward (reverse-mode differentiation; Griewank
//! and Walther, "Evaluating Derivatives", 2008, chapter 3).
//!
//! It is an argument of every op. An op is recorded only if one of its inputs needs a gradient; its
//! node holds what its backward pass reads, and nodes are dropped as they are used. Gradients that
//! meet are added in the order of the tape, so a backward pass gives the same bits every time.
//!
//! The result of an elementwise op or a norm is not saved. It is computed again from the op's input, which that op's node
//! holds anyway (`Saved`). For a layer of Qwen3-0.6B this is half the memory, for a hundredth of the time. Where matmuls
//! round their inputs to bf16, saved tensors are rounded too, except queries, keys and LoRA's hidden state: the gradients are
//! those at the rounded values.
//!
//! # An op of your own
//!
//! An op is a function of the tape and its inputs. It computes y and, if the tape records, pushes a struct that holds
//! what the backward pass reads: the [`Id`]s of the inputs, and values as clones, which share their memory.
//!
//! ```
//! use engine::{prelude::*, tensor::check_gradient::check_gradient};
//!
//! /// y = tanh(x), element by element; dx = dy·(1 − y²).
//! fn tanh(tape: &mut Tape<'_>, x: &Tensor) -> Tensor {
//!     let mut y = x.clone().into_owned();
//!     y.data_mut().iter_mut().for_each(|y| *y = y.tanh());
//!     if tape.records(x.requires_grad()) {
//!         let op = Tanh { x: x.id(), y: y.clone() };
//!         tape.push(&mut y, op);
//!     }
//!     y
//! }
//!
//! struct Tanh {
//!     x: Id,
//!     y: Tensor,
//! }
//!
//! impl Backward for Tanh {
//!     fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
//!         let mut dx = dy.into_owned();
//!         dx.data_mut().iter_mut().zip(self.y.data()).for_each(|(d, y)| *d *= 1.0 - y * y);
//!         gradients.add(self.x, dx);
//!     }
//! }
//!
//! // Against central differences, on every instruction set of this CPU.
//! check_gradient([3, 5], tanh);
//!
//! let mut x = Tensor::from_slice(&Device::cpu(), 1, 2, &[0.0, 1.0]);
//! x.set_requires_grad(true);
//! let (mut tape, mut gradients) = (Tape::new(), Gradients::default());
//! let y = tanh(&mut tape, &x);
//! let ones = Tensor::from_slice(x.device(), 1, 2, &[1.0, 1.0]);
//! tape.backward(&y, ones, &mut gradients);
//! let dx = gradients.get(&x).expect("a leaf").data();
//! assert_eq!(dx[0], 1.0, "tanh'(0)");
//! assert!((dx[1] - 0.419_974_3).abs() < 1e-6, "tanh'(1)");
//! ```
//!
//! This one runs on the CPU, where [`Tensor::data`] is at hand. The engine's own ops, in [`ops`](crate::ops), match on the
//! [`Device`] and call kernels.

use std::{cell::OnceCell, collections::HashMap, rc::Rc};

use kernels::cpu::{ComputeDtype, add, profile};

use crate::tensor::device::Device;
use crate::tensor::{Bf16Tensor, Id, Tensor};

/// Ops in the order they ran. `'m`: how long the model and the batch live, whose weights and
/// positions nodes refer to.
pub struct Tape<'m> {
    nodes: Vec<(Id, Box<dyn Backward + 'm>)>,
    /// How to compute values again that are not saved.
    recomputes: HashMap<Id, Rc<Recompute<'m>>>,
    recording: bool,
}

/// One recorded op; its fields are what the forward pass saved.
pub trait Backward {
    /// Adds the gradients of the op's inputs ([`Gradients::add`]), given that of its output: `dy` has the shape of y. An
    /// input that needs no gradient is left out.
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients);
}

impl<'m> Tape<'m> {
    /// A tape that records.
    pub fn new() -> Tape<'m> {
        Tape { nodes: Vec::new(), recomputes: HashMap::new(), recording: true }
    }

    /// A tape that records nothing, for passes that are not differentiated.
    pub fn off() -> Tape<'m> {
        Tape { nodes: Vec::new(), recomputes: HashMap::new(), recording: false }
    }

    /// Whether an op is recorded. `requires_grad`: whether one of its inputs needs a gradient
    /// ([`Tensor::requires_grad`]).
    pub fn records(&self, requires_grad: bool) -> bool {
        self.recording && requires_grad
    }

    /// Records that `op` computed `y`, which from now on needs a gradient. For ops that [`Tape::records`] says yes to.
    pub fn push(&mut self, y: &mut Tensor, op: impl Backward + 'm) {
        y.set_requires_grad(true);
        self.nodes.push((y.id(), Box::new(op)));
    }

    /// Says how to compute `y` again, bit for bit or nearly, from what its op's node holds.
    pub(crate) fn recomputes(&mut self, y: &Tensor, again: impl Fn() -> Tensor + 'm) {
        self.recomputes.insert(y.id(), Recompute::new(again));
    }

    /// Lets later nodes that save `y` share the copy that an earlier node keeps.
    pub(crate) fn shares(&mut self, y: &Tensor, kept: &Saved<'m>) {
        if let Saved::Recomputed(recipe) = kept {
            self.recomputes.insert(y.id(), recipe.clone());
        }
    }

    /// How to compute `x` again, if that is known.
    pub(crate) fn recompute(&self, x: &Tensor) -> Option<Rc<Recompute<'m>>> {
        self.recomputes.get(&x.id()).cloned()
    }

    /// `x` as a node saves it for its backward pass.
    pub(crate) fn save(&self, x: &Tensor) -> Saved<'m> {
        self.recompute(x).map_or_else(|| Saved::Held(x.clone()), Saved::Recomputed)
    }

    /// Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): computes f(x) without
    /// recording what happens inside, which is computed again in the backward pass.
    ///
    /// `f` must compute the same value each time. Its result may depend on leaves.
    pub(crate) fn checkpoint(
        &mut self,
        x: Tensor,
        f: impl Fn(&mut Tape<'m>, Tensor) -> Tensor + 'm,
    ) -> Tensor {
        if !self.recording {
            return f(self, x);
        }
        let mut y = f(&mut Tape::off(), x.clone());
        self.push(&mut y, Checkpoint { x, f, model: std::marker::PhantomData });
        y
    }

    /// Runs the recorded ops backward from `y`, whose gradient is `dy`, and adds the gradients of
    /// leaves to `gradients`.
    pub fn backward(self, y: &Tensor, dy: Tensor, gradients: &mut Gradients) {
        assert_eq!(y.shape(), dy.shape(), "the gradient has the shape of the value");
        let _span = profile::phase("backward", y.shape());
        self.backward_from(y.id(), dy, gradients);
    }

    /// The same if only the id of the value is left.
    fn backward_from(self, y: Id, dy: Tensor, gradients: &mut Gradients) {
        gradients.add(y, dy);
        let Tape { nodes, recomputes, .. } = self;
        // From here on a recomputed value lives as long as the nodes that read it.
        drop(recomputes);
        for (id, op) in nodes.into_iter().rev() {
            // What did not influence y has no gradient.
            if let Some(dy) = gradients.0.remove(&id) {
                op.backward(dy, gradients);
            }
        }
    }
}

/// A saved tensor: a node reads it in its backward pass.
#[derive(Clone)]
pub(crate) enum Saved<'m> {
    /// The tensor itself.
    Held(Tensor),
    /// Computed again when the first of its nodes asks for it.
    Recomputed(Rc<Recompute<'m>>),
}

/// How a value is computed again, and the value once it was.
pub(crate) struct Recompute<'m> {
    again: Box<dyn Fn() -> Tensor + 'm>,
    value: OnceCell<Tensor>,
}

impl<'m> Saved<'m> {
    /// A tensor that `again` computes, for one node.
    pub(crate) fn recomputed(again: impl Fn() -> Tensor + 'm) -> Saved<'m> {
        Saved::Recomputed(Recompute::new(again))
    }

    /// `x`: on a CPU in bf16 if that is the compute dtype, on a GPU as it is.
    pub(crate) fn rounded(x: &Tensor, compute: ComputeDtype) -> Saved<'m> {
        match (x.device(), compute) {
            (Device::Cpu(_), ComputeDtype::Bf16) => {
                let narrow = Bf16Tensor::of(x);
                Saved::recomputed(move || narrow.widened())
            }
            _ => Saved::Held(x.clone()),
        }
    }

    /// The tensor. Its id is another one if it was computed again.
    pub(crate) fn get(&self) -> &Tensor {
        match self {
            Saved::Held(x) => x,
            Saved::Recomputed(recipe) => recipe.value.get_or_init(&*recipe.again),
        }
    }
}

impl<'m> Recompute<'m> {
    fn new(again: impl Fn() -> Tensor + 'm) -> Rc<Recompute<'m>> {
        Rc::new(Recompute { again: Box::new(again), value: OnceCell::new() })
    }

    /// The value for a reader that changes it: not kept for others.
    pub(crate) fn again(&self) -> Tensor {
        (self.again)()
    }
}

impl Default for Tape<'_> {
    fn default() -> Self {
        Tape::new()
    }
}

struct Checkpoint<'m, F> {
    x: Tensor,
    f: F,
    model: std::marker::PhantomData<&'m ()>,
}

impl<'m, F: Fn(&mut Tape<'m>, Tensor) -> Tensor> Backward for Checkpoint<'m, F> {
    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
        let mut tape = Tape::new();
        let again = profile::phase("recompute", self.x.shape());
        // The result was the next layer's input, which has run backward: only its name is needed.
        let y = (self.f)(&mut tape, self.x).id();
        drop(again);
        tape.backward_from(y, dy, gradients);
    }
}

/// Gradients by value.
#[derive(Default)]
pub struct Gradients(HashMap<Id, Tensor>);

impl Gradients {
    /// The gradient of `x`, if one reached it.
    pub fn get(&self, x: &Tensor) -> Option<&Tensor> {
        self.0.get(&x.id())
    }

    /// The gradient of `x`, to be changed: scaled, or clipped.
    pub fn get_mut(&mut self, x: &Tensor) -> Option<&mut Tensor> {
        self.0.get_mut(&x.id())
    }

    /// Adds `dx` to the gradient of the value `id`.
    ///
    /// # Panics
    /// If `dx` has another shape than what was added before.
    pub fn add(&mut self, id: Id, dx: Tensor) {
        let sum = match self.0.remove(&id) {
            None => dx,
            Some(there) => {
                assert_eq!(there.shape(), dx.shape(), "gradients of one value");
                let mut sum = there.into_owned();
                match dx.device() {
                    Device::Cpu(_) => {
                        add::accumulate(dx.device().host(), sum.data_mut(), dx.data());
                    }
                    Device::Cuda(cuda) => {
                        cuda.run(|gpu| gpu.add(sum.f32_mut(), dx.f32()));
                    }
                }
                sum
            }
        };
        self.0.insert(id, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y = factor·x, to have an op without a kernel.
    fn scaled<'m>(tape: &mut Tape<'m>, x: &Tensor, factor: f32) -> Tensor {
        struct Scaled(Id, f32);
        impl Backward for Scaled {
            fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
                let mut dx = dy.into_owned();
                dx.data_mut().iter_mut().for_each(|d| *d *= self.1);
                gradients.add(self.0, dx);
            }
        }
        let mut y = x.clone().into_owned();
        y.data_mut().iter_mut().for_each(|y| *y *= factor);
        if tape.records(x.requires_grad()) {
            tape.push(&mut y, Scaled(x.id(), factor));
        }
        y
    }

    fn leaf(values: &[f32]) -> Tensor {
        let device = Device::cpu_threads(1);
        let mut x = Tensor::from_slice(&device, 1, values.len(), values);
        x.set_requires_grad(true);
        x
    }

    #[test]
    fn gradients_multiply_along_the_tape_and_add_over_passes() {
        let x = leaf(&[1.0, 2.0]);
        let mut gradients = Gradients::default();
        for pass in 1..=2 {
            let mut tape = Tape::new();
            let unused = scaled(&mut tape, &x, 100.0);
            let between = scaled(&mut tape, &x, 3.0);
            let y = scaled(&mut tape, &between, 5.0);
            assert_eq!(y.data(), [15.0, 30.0]);
            tape.backward(&y, leaf(&[1.0, -1.0]), &mut gradients);
            let want = 15.0 * pass as f32;
            assert_eq!(gradients.get(&x).unwrap().data(), [want, -want]);
            assert!(gradients.get(&unused).is_none());
            assert!(gradients.get(&between).is_none(), "only leaves keep theirs");
        }
    }

    #[test]
    fn a_checkpoint_gives_the_same_gradients() {
        let (x, leaf_inside) = (leaf(&[1.0, 2.0]), leaf(&[7.0, 8.0]));
        let run = |checkpoint: bool| {
            let mut tape = Tape::new();
            let inside = leaf_inside.clone();
            let f = move |tape: &mut Tape<'_>, x: Tensor| {
                // The sum of a function of x and one of a leaf.
                let a = scaled(tape, &x, 3.0);
                struct Sum(Id, Id);
                impl Backward for Sum {
                    fn backward(self: Box<Self>, dy: Tensor, gradients: &mut Gradients) {
                        gradients.add(self.0, dy.clone());
                        gradients.add(self.1, dy);
                    }
                }
                let mut y = a.clone().into_owned();
                y.data_mut().iter_mut().zip(inside.data()).for_each(|(y, b)| *y += b);
                if tape.records(true) {
                    tape.push(&mut y, Sum(a.id(), inside.id()));
                }
                y
            };
            let y =
                if checkpoint { tape.checkpoint(x.clone(), f) } else { f(&mut tape, x.clone()) };
            let y = scaled(&mut tape, &y, 2.0);
            let mut gradients = Gradients::default();
            tape.backward(&y, leaf(&[1.0, 10.0]), &mut gradients);
            [&x, &leaf_inside].map(|leaf| gradients.get(leaf).unwrap().data().to_vec())
        };
        assert_eq!(run(false), [[6.0, 60.0], [2.0, 20.0]]);
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn a_recomputed_value_is_computed_once_and_let_go_with_its_last_reader() {
        let x = leaf(&[3.0]);
        let times = std::cell::Cell::new(0);
        let mut tape = Tape::new();
        let y = scaled(&mut tape, &x, 2.0);
        assert!(matches!(tape.save(&y), Saved::Held(_)));
        let again = || {
            times.set(times.get() + 1);
            Tensor::from_slice(x.device(), 1, 1, &[6.0])
        };
        tape.recomputes(&y, again);
        let (first, second) = (tape.save(&y), tape.save(&y));
        drop(tape);
        assert_eq!(times.get(), 0);
        assert_eq!((first.get().data(), second.get().data()), (&[6.0][..], &[6.0][..]));
        assert_eq!(first.get().id(), second.get().id());
        assert_eq!(times.get(), 1);
        let address = first.get().data().as_ptr();
        drop((first, second));
        assert_eq!(Tensor::zeros(x.device(), 1, 1).data().as_ptr(), address);
    }

    #[test]
    fn a_tape_that_is_off_records_nothing() {
        let x = leaf(&[1.0]);
        let mut tape = Tape::off();
        let y = scaled(&mut tape, &x, 2.0);
        assert!(!y.requires_grad() && tape.nodes.is_empty());
    }
}
