//! How much memory a pass takes, without running it.
//!
//! A pass is gone through as [`super::training`] runs it, with buffers that are counted instead of held
//! ([`dry_run`]): the device hands them out by the same rule, so that what it keeps for later is counted
//! too. Nothing is fitted to measurements. Three kinds of memory are told apart:
//!
//! | | what | where it counts |
//! |---|---|---|
//! | buffers | tensors: activations, gradients, blocks of logits, LoRA's factors | anonymous |
//! | scratch | transposed or packed weights, rounded or packed inputs, attention's scores, by the largest call | anonymous |
//! | weights | pages of the checkpoint's files that were read | mapped; the system may take them back |
//!
//! The optimizer's moments are two f32 a parameter ([`TrainedModel::adapter_parameters`]).

mod cuda;
mod dry_run;

use kernels::cpu::Isa;

use super::{Precision, training::PackedBatch};
use crate::{
    adapter::Projection,
    config::Config,
    ops::log_prob::{block_columns, block_rows},
    weights::Dtype,
};
pub use cuda::{CudaModel, CudaPass};
use dry_run::DryRun;

/// A model and its adapter, as far as memory depends on them.
#[derive(Clone, Copy, Debug)]
pub struct TrainedModel<'a> {
    /// Shapes.
    pub config: &'a Config,
    /// How the weights are stored.
    pub weights: Dtype,
    /// How it runs.
    pub precision: Precision,
    /// r; 0 for a model without an adapter.
    pub rank: usize,
    /// The adapted projections of every layer.
    pub targets: &'a [Projection],
    /// Threads of the device.
    pub threads: usize,
    /// Its instruction set: inputs are rounded to two bytes or to four.
    pub isa: Isa,
}

/// What a training pass does.
#[derive(Clone, Copy, Debug)]
pub struct TrainedPass {
    /// As in [`super::training::TrainingPass`].
    pub checkpoint: bool,
    /// Whether there is dropout on the adapter's inputs.
    pub dropout: bool,
    /// Whether a pass of the reference policy goes before, for the KL term.
    pub reference: bool,
}

/// Memory of a pass, in bytes, the adapter's factors included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassMemory {
    /// Room of all buffers of the device: what [`crate::tensor::Device::allocated_bytes`] becomes.
    pub allocated: u64,
    /// Of it what is written to, and so resident.
    pub buffers: u64,
    /// Of it the largest block of logits.
    pub logits: u64,
    /// The kernels' scratch memory.
    pub scratch: Scratch,
}

/// The kernels' scratch memory in bytes: each part grows to its largest use and stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Inputs of matmuls rounded to bf16.
    pub rounded_bf16: u64,
    /// The same in f32, packed where products take tiles; attention's backward pass.
    pub rounded_f32: u64,
    /// Attention's scores.
    pub scores: u64,
    /// Transposed weights in bf16 or f16, for gradients with sums in f64.
    pub transposed_16bit: u64,
    /// Transposed weights in f32.
    pub transposed_f32: u64,
    /// Panels of weights, packed on the way.
    pub panels: u64,
}

impl Scratch {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        let Scratch { rounded_bf16, rounded_f32, scores, transposed_16bit, transposed_f32, panels } =
            *self;
        rounded_bf16 + rounded_f32 + scores + transposed_16bit + transposed_f32 + panels
    }

    /// What two passes leave, in either order.
    pub fn joined(self, other: Scratch) -> Scratch {
        Scratch {
            rounded_bf16: self.rounded_bf16.max(other.rounded_bf16),
            rounded_f32: self.rounded_f32.max(other.rounded_f32),
            scores: self.scores.max(other.scores),
            transposed_16bit: self.transposed_16bit.max(other.transposed_16bit),
            transposed_f32: self.transposed_f32.max(other.transposed_f32),
            panels: self.panels.max(other.panels),
        }
    }
}

impl TrainedModel<'_> {
    /// Values of all A and B.
    pub fn adapter_parameters(&self) -> u64 {
        let of = |projection: &Projection| {
            let [outputs, inputs] = projection.shape(self.config);
            (self.rank * (outputs + inputs)) as u64
        };
        self.config.num_hidden_layers as u64 * self.targets.iter().map(of).sum::<u64>()
    }

    /// The peak over micro-batches of this shape: the reference pass if there is one, forward, backward,
    /// gradients. The second is gone through as well: its buffers are the first's, beside the gradients.
    pub fn training(&self, batch: &PackedBatch, pass: TrainedPass) -> PassMemory {
        let mut run = DryRun::new(*self);
        for _ in 0..2 {
            if pass.reference {
                run.log_probs(batch, pass, false);
            }
            let y = run.log_probs(batch, pass, true);
            run.backward(y, batch, pass.dropout);
        }
        let rows = block_rows(batch.targets());
        let columns = block_columns(rows.max(1)).min(self.config.vocab_size);
        PassMemory { logits: 4 * (rows * columns) as u64, ..run.memory() }
    }

    /// The peak of generation: steps of `prefill_rows` rows of prompts beside `sequences` running ones,
    /// and of these alone, over sequences up to `length`. Keys and values are not in it.
    pub fn generation(&self, prefill_rows: usize, sequences: usize, length: usize) -> PassMemory {
        let mut run = DryRun::new(*self);
        for rows in [prefill_rows + sequences, sequences] {
            run.generate(rows, sequences, length);
        }
        PassMemory { logits: 4 * (sequences * self.config.vocab_size) as u64, ..run.memory() }
    }
}

#[cfg(test)]
mod tests;
