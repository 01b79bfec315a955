//! How much memory a pass takes, without running it.
//!
//! The pass is run as [`super::training`] and generation run it, on a device that only counts
//! ([`Cpu::counting`]; PyTorch's *meta* device): ops take and drop the buffers they always do, kernels take
//! their scratch memory and compute nothing. Nothing is fitted to measurements, and nothing is said
//! twice. There are three kinds of memory:
//!
//! | | what | kind for the system |
//! |---|---|---|
//! | buffers | tensors: activations, gradients, blocks of logits, LoRA's factors | anonymous |
//! | scratch | transposed or packed weights, rounded or packed inputs, attention's scores, by the largest call | anonymous |
//! | weights | pages of the checkpoint's files that were read | mapped; the system may take them back |
//!
//! The optimizer's moments are two f32 per parameter ([`TrainedModel::adapter_parameters`]).

mod cuda;

use std::{collections::HashMap, sync::Arc};

pub use kernels::cpu::ScratchBytes;
use kernels::cpu::{Cpu, Isa};

use super::{
    Batch, Model, Precision,
    training::{PackedBatch, TrainingPass},
};
use crate::{
    checkpoint::{
        adapter::Projection,
        config::Config,
        weights::{Dtype, Weight},
    },
    memory,
    model::kv_cache::KvCache,
    ops::{
        linear::{Dropout, Lora},
        log_prob::{block_columns, block_rows},
    },
    tensor::{
        Device, Tensor,
        tape::{Gradients, Tape},
    },
};
pub use cuda::{CudaModel, CudaPass};

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

/// Options of a training pass that memory depends on.
#[derive(Clone, Copy, Debug)]
pub struct TrainedPass {
    /// Gradient checkpointing, as in [`super::training::TrainingPass`].
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
    /// The part of it that is written to, and so resident.
    pub buffers: u64,
    /// The part of it that the largest block of logits takes.
    pub logits: u64,
    /// The kernels' scratch memory.
    pub scratch: ScratchBytes,
}

/// Why memory cannot be counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Uncountable {
    /// Counted buffers need addresses, though no memory.
    #[error(
        "memory cannot be predicted where address space is bounded (ulimit -v, vm.overcommit_memory = 2)"
    )]
    BoundedAddresses,
    /// Which the system would not give addresses, either.
    #[error("one tensor of {} GiB is larger than this machine's memory", bytes >> 30)]
    LargerThanMachine {
        /// Bytes of the tensor.
        bytes: u64,
    },
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

    /// The peak over micro-batches of this shape: the reference pass if there is one, forward, backward, gradients.
    /// Two are run: the second one's activations live beside the first one's gradients.
    ///
    /// # Errors
    /// If the machine does not let memory be counted.
    pub fn training(
        &self,
        batch: &PackedBatch,
        pass: TrainedPass,
    ) -> Result<PassMemory, Uncountable> {
        self.check_countable(batch.rows())?;
        let model = self.counted(&self.counting_cpu());
        run_training(&model, batch, pass);
        let rows = block_rows(batch.targets());
        let columns = block_columns(rows.max(1)).min(self.config.vocab_size);
        Ok(PassMemory { logits: 4 * (rows * columns) as u64, ..memory_of(&model) })
    }

    /// The peak of generation: steps of `prefill_rows` rows of prompts beside `sequences` running ones,
    /// and of these alone, over sequences up to `length` tokens. Keys and values are not counted.
    ///
    /// # Errors
    /// As [`TrainedModel::training`].
    pub fn generation(
        &self,
        prefill_rows: usize,
        sequences: usize,
        length: usize,
    ) -> Result<PassMemory, Uncountable> {
        self.check_countable((prefill_rows + sequences).max(length))?;
        let model = self.counted(&self.counting_cpu());
        for rows in [prefill_rows, 0] {
            run_generation(&model, rows, sequences, length);
        }
        let logits = 4 * (sequences * self.config.vocab_size) as u64;
        Ok(PassMemory { logits, ..memory_of(&model) })
    }

    fn check_countable(&self, rows: usize) -> Result<(), Uncountable> {
        if memory::address_space_is_bounded() {
            return Err(Uncountable::BoundedAddresses);
        }
        let widest = self.config.intermediate_size.max(self.config.query_width());
        let bytes = rows.saturating_mul(widest).saturating_mul(size_of::<f32>()) as u64;
        match memory::machine_bytes() {
            Some(machine) if bytes > machine => Err(Uncountable::LargerThanMachine { bytes }),
            _ => Ok(()),
        }
    }

    fn counting_cpu(&self) -> Device {
        Device::new(Cpu::counting(self.threads, self.isa))
    }

    /// The model on a device that counts. Its weights are zeros that share one untouched piece of memory.
    fn counted(&self, device: &Device) -> Model {
        let TrainedModel { config, rank, .. } = *self;
        let shapes: HashMap<String, [usize; 2]> = config
            .expected_tensors()
            .map(|tensor| match tensor.shape[..] {
                [columns] => (tensor.name, [1, columns]),
                [rows, columns] => (tensor.name, [rows, columns]),
                _ => unreachable!("a checkpoint has matrices and vectors"),
            })
            .collect();
        let largest = shapes.values().map(|[rows, columns]| rows * columns).max().unwrap_or(0);
        let memory = Arc::new(vec![0; (largest * size_of::<f32>()).div_ceil(size_of::<u64>())]);
        let weight = |name: &str| Ok(Weight::counted(&memory, self.weights, shapes[name]));
        let lora = |_, projection: Projection| {
            let [n, k] = projection.shape(config);
            let factor = |columns| Tensor::zeros(device, rank, columns);
            (rank > 0 && self.targets.contains(&projection))
                .then(|| Lora::new(factor(k), factor(n), 1.0, 0))
        };
        let mut model = Model::of(&weight, &lora, config.clone(), self.precision, device.clone())
            .expect("every tensor is there");
        model.train_adapter();
        model
    }
}

fn memory_of(model: &Model) -> PassMemory {
    let device = model.device();
    PassMemory {
        allocated: device.allocated_bytes() as u64,
        buffers: device.written_bytes() as u64,
        logits: 0,
        scratch: device.host().scratch_bytes(),
    }
}

/// Two micro-batches.
fn run_training(model: &Model, batch: &PackedBatch, pass: TrainedPass) {
    let options = TrainingPass {
        temperature: 1.0,
        adapter: true,
        dropout: pass.dropout.then_some(Dropout { probability: 0.1, seed: 0, pass: 0 }),
        checkpoint: pass.checkpoint,
    };
    let mut gradients = Gradients::default();
    for _ in 0..2 {
        if pass.reference {
            let options = TrainingPass { adapter: false, dropout: None, ..options };
            model.log_probs(&mut Tape::off(), batch, options).expect("finite logits");
        }
        let mut tape = Tape::new();
        let y = model.log_probs(&mut tape, batch, options).expect("finite logits");
        let dy = Tensor::zeros(model.device(), y.shape()[0], y.shape()[1]);
        tape.backward(&y, dy, &mut gradients);
    }
}

/// A step of `prompt` rows of a prompt and `sequences` running sequences, all `length` long.
fn run_generation(model: &Model, prompt: usize, sequences: usize, length: usize) {
    let pages = KvCache::pages_for(length.max(prompt));
    let mut cache = KvCache::new(model.device(), model.config(), model.cache_dtype(), pages)
        .expect("address space");
    // All sequences have the same pages: their contents are never read.
    let table: Vec<u32> = (0..pages as u32).collect();
    let mut batch = Batch::default();
    for _ in 0..sequences {
        batch.push(&[0], length - 1, &table);
        batch.want_logits();
    }
    if prompt > 0 {
        batch.push(&vec![0; prompt], length.saturating_sub(prompt), &table);
    }
    model.forward(&batch, &mut cache);
}

#[cfg(test)]
mod tests;
