//! How much memory a training run takes at its peak, from its settings: what `j1 info` prints and
//! what decides `train.gradient_checkpointing = "auto"`.
//!
//! ```text
//! peak = mapped weights and program + process + adapter and moments + scratch
//!      + the larger of (generation's buffers, keys and values) and (training's buffers)
//! ```
//!
//! for a step in which every prompt and completion has the length that settings allow. Buffers are
//! trimmed between the two phases; scratch memory stays.

mod cuda;

use engine::{
    checkpoint::{config::Config, weights::Dtype},
    generate::GeneratorOptions,
    model::{
        Precision,
        kv_cache::{KvCache, PAGE},
        memory::{PassMemory, TrainedModel, TrainedPass, Uncountable},
    },
    tensor::device::Isa,
};

use super::{
    running_sequences,
    update::{TooLarge, largest_batch},
};
use crate::train::settings::Settings;
pub use cuda::{CudaMemory, usable};

/// Memory of a run, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct RunMemory {
    /// The checkpoint's files, mapped.
    pub weights: u64,
    /// The program's file, mapped.
    pub program: u64,
    /// Threads, templates, the tokenizer, rotary tables.
    pub process: u64,
    /// A and B as they train and as they are written.
    pub adapter: u64,
    /// The optimizer's moments.
    pub moments: u64,
    /// Keys and values of the rollouts.
    pub cache: u64,
    /// A step of generation.
    pub generation: PassMemory,
    /// A micro-batch with activations kept.
    pub kept: PassMemory,
    /// The same with activations recomputed.
    pub recomputed: PassMemory,
    /// Rows of that micro-batch.
    pub rows: usize,
}

/// Sizes that the prediction takes beside the settings.
#[derive(Clone, Copy, Debug)]
pub struct RunShape {
    /// Bytes of the checkpoint's tensors.
    pub weights: u64,
    /// Bytes of its tokenizer.json.
    pub tokenizer: u64,
    /// The longest prompt, in tokens.
    pub prompt: usize,
    /// Memory for keys and values at most.
    pub cache: u64,
}

/// Bytes of the tensors of a checkpoint of this configuration.
pub fn weights_bytes(config: &Config, stored: Dtype) -> u64 {
    config.parameter_count() * (stored.bitsize() / 8) as u64
}

/// Why a run's memory cannot be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PredictError {
    /// The settings are beyond any machine.
    #[error("{0}")]
    TooLarge(#[from] TooLarge),
    /// The memory of this model cannot be counted.
    #[error("{0}")]
    Uncountable(#[from] Uncountable),
}

impl RunMemory {
    /// The memory of a run with these settings of a model of this configuration, whose weights are stored and computed
    /// so, on `threads` threads.
    ///
    /// # Errors
    /// As [`RunMemory::predict`].
    pub fn of(
        settings: &Settings,
        config: &Config,
        (weights, precision): (Dtype, Precision),
        (threads, isa): (usize, Isa),
        shape: RunShape,
    ) -> Result<RunMemory, PredictError> {
        let adapter = settings.lora.adapter();
        let (rank, targets) = (adapter.rank, &adapter.targets[..]);
        let model = TrainedModel { config, weights, precision, rank, targets, threads, isa };
        RunMemory::predict(&model, settings, shape)
    }

    /// The memory of a run of `model` with these settings, unless they are beyond any machine.
    pub fn predict(
        model: &TrainedModel,
        settings: &Settings,
        shape: RunShape,
    ) -> Result<RunMemory, PredictError> {
        let rollout = &settings.rollout;
        let (prompt, completion) = (shape.prompt, rollout.max_completion_tokens);
        let batch = largest_batch(
            [prompt, completion],
            rollout.group_size,
            rollout.prompts_per_step,
            settings.micro_batch_tokens(),
        )?;
        let length = prompt + completion;
        let pass = |checkpoint| {
            let (dropout, reference) = (settings.lora.dropout > 0.0, settings.loss.beta != 0.0);
            model.training(&batch, TrainedPass { checkpoint, dropout, reference })
        };
        let sequences = running_sequences(settings);
        let parameters = model.adapter_parameters();
        Ok(RunMemory {
            weights: shape.weights,
            program: PROGRAM_MAPPED,
            process: PROGRAM
                + TOKENIZER * shape.tokenizer
                + (4 * length * model.config.head_dim) as u64,
            // The tensors' own are among the buffers.
            adapter: 2 * 4 * parameters,
            moments: 2 * 4 * parameters,
            cache: cache_bytes(model, settings, shape),
            generation: model.generation(GeneratorOptions::PREFILL_ROWS, sequences, length)?,
            kept: pass(false)?,
            recomputed: pass(true)?,
            rows: batch.rows(),
        })
    }

    /// A training pass with activations recomputed, or kept.
    pub fn pass(&self, recompute: bool) -> &PassMemory {
        if recompute { &self.recomputed } else { &self.kept }
    }

    /// Activations, gradients and logits of a micro-batch.
    pub fn activations(&self, recompute: bool) -> u64 {
        self.pass(recompute).buffers.saturating_sub(self.adapter / 2)
    }

    /// Scratch memory of both phases.
    pub fn scratch(&self, recompute: bool) -> u64 {
        self.generation.scratch.joined(self.pass(recompute).scratch).total()
    }

    /// The peak of memory that is the run's own, beside what is mapped.
    pub fn anonymous(&self, recompute: bool) -> u64 {
        let phases = (self.generation.buffers + self.cache).max(self.pass(recompute).buffers);
        self.process + self.adapter / 2 + self.moments + self.scratch(recompute) + phases
    }

    /// The peak of all resident memory.
    pub fn total(&self, recompute: bool) -> u64 {
        self.weights + self.program + self.anonymous(recompute)
    }
}

/// Pages of the program's file that a run touches, and what it takes beside the model: threads, the template
/// engine, the pairs. Measured on the tiny model of tests/golden, whose own part is below 1 MB, on a
/// 2-core Xeon, 2026-11-24: 11.8 MB (22.1 MB of a build with debug assertions), and 5.2 MB.
const PROGRAM_MAPPED: u64 = if cfg!(debug_assertions) { 22 << 20 } else { 12 << 20 };
const PROGRAM: u64 = 5 << 20;

/// Bytes that a tokenizer takes for each byte of its file: 80 MB for Qwen3's 11.4 MB, same machine and day.
const TOKENIZER: u64 = 7;

/// Keys and values of the rollouts: the prompts', each once, and those of the completions that run at once.
fn cache_bytes(model: &TrainedModel, settings: &Settings, shape: RunShape) -> u64 {
    let rollout = &settings.rollout;
    let shared = shape.prompt / PAGE;
    // The last token is drawn, not fed.
    let fed = shape.prompt + rollout.max_completion_tokens.saturating_sub(1);
    let own = KvCache::pages_for(fed) - shared;
    let prompts = rollout.prompts_per_step.saturating_mul(shared);
    let pages = prompts.saturating_add(running_sequences(settings).saturating_mul(own));
    let page = KvCache::page_bytes(model.config, model.precision.cache_dtype()) as u64;
    (pages as u64).saturating_mul(page).min(shape.cache)
}
