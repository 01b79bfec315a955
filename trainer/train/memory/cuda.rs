//! The memory of a training run on a GPU.
//!
//! ```text
//! peak = weights + adapter and moments
//!      + the larger of (keys and values, generation's activations) and (training's)
//! ```
//!
//! Between the two phases what one took is given back to the driver. Counted are buffers as the pool rounds them.

use engine::{
    checkpoint::{config::Config, weights::Dtype},
    generate::GeneratorOptions,
    model::{
        Precision,
        kv_cache::KvCache,
        memory::{CudaModel, CudaPass, TrainedModel, TrainedPass},
    },
    tensor::device::Isa,
};

use super::RunShape;
use crate::train::{
    cache_pages, running_sequences,
    settings::Settings,
    update::{TooLarge, largest_batch},
};

/// GPU memory of a run, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct CudaMemory {
    /// Weights, adapter and moments.
    pub model: CudaModel,
    /// Keys and values of the rollouts.
    pub cache: u64,
    /// Keys and values of one prompt and completion: fewer cannot be.
    pub least_cache: u64,
    /// A step of generation.
    pub generation: u64,
    /// A micro-batch with activations kept.
    pub kept: CudaPass,
    /// The same with activations recomputed.
    pub recomputed: CudaPass,
    /// Rows of that micro-batch.
    pub rows: usize,
}

/// Of free memory what a run should take at most: a tenth is left for what waits in the pool in other sizes, and
/// for what the prediction leaves out.
pub fn usable(free: u64) -> u64 {
    free - free / 10
}

impl CudaMemory {
    /// The memory of a run with these settings of a model of this configuration, with so many bytes for keys and values. It
    /// depends on neither the CPU nor how files store weights.
    ///
    /// # Errors
    /// As [`CudaMemory::predict`].
    pub fn of(
        settings: &Settings,
        config: &Config,
        prompt: usize,
        cache: u64,
    ) -> Result<CudaMemory, TooLarge> {
        let adapter = settings.lora.adapter();
        let model = TrainedModel {
            config,
            weights: Dtype::BF16,
            precision: Precision::Bf16,
            rank: adapter.rank,
            targets: &adapter.targets,
            threads: 1,
            isa: Isa::Portable,
        };
        let shape = RunShape { weights: 0, tokenizer: 0, prompt, cache };
        CudaMemory::predict(&model, settings, shape)
    }

    /// The memory of a run of `model` with these settings, unless they are beyond any machine. Of `shape` the files' bytes
    /// do not matter.
    pub fn predict(
        model: &TrainedModel,
        settings: &Settings,
        shape: RunShape,
    ) -> Result<CudaMemory, TooLarge> {
        let (prompt, completion) = (shape.prompt, settings.rollout.max_completion_tokens);
        let batch = largest_batch(
            [prompt, completion],
            settings.rollout.group_size,
            settings.rollout.prompts_per_step,
            settings.micro_batch_tokens(),
        )?;
        let pass = |checkpoint| {
            let (dropout, reference) = (settings.lora.dropout > 0.0, settings.loss.beta != 0.0);
            model.training_on_cuda(&batch, TrainedPass { checkpoint, dropout, reference })
        };
        let page =
            KvCache::page_bytes(model.config, engine::model::kv_cache::CacheDtype::Bf16) as u64;
        let pages = (shape.cache / page).clamp(1, cache_pages(settings) as u64) as usize;
        let sequences = running_sequences(settings);
        let length = prompt + completion;
        Ok(CudaMemory {
            model: model.on_cuda(),
            cache: model.cache_on_cuda(pages),
            least_cache: model.cache_on_cuda(KvCache::pages_for(length)),
            generation: model.generation_on_cuda(GeneratorOptions::PREFILL_ROWS, sequences, length),
            kept: pass(false),
            recomputed: pass(true),
            rows: batch.rows(),
        })
    }

    /// A training pass with activations recomputed, or kept.
    pub fn pass(&self, recompute: bool) -> &CudaPass {
        if recompute { &self.recomputed } else { &self.kept }
    }

    /// The peak of training, which is what keeping activations depends on.
    pub fn training(&self, recompute: bool) -> u64 {
        self.model.bytes() + self.pass(recompute).peak
    }

    /// Peak of the run, in bytes.
    pub fn total(&self, recompute: bool) -> u64 {
        self.training(recompute).max(self.model.bytes() + self.generation + self.cache)
    }

    /// The advice of [`CudaMemory::advice`] where keys and values take too much memory. That memory is no setting.
    pub const LESS_CACHE: &str = "lower the memory for keys and values";

    /// Which settings to lower so that the run takes less than `most`, where it does not even with activations
    /// recomputed.
    pub fn advice(&self, settings: &Settings, most: u64) -> Option<&'static str> {
        if self.total(true) <= most {
            return None;
        }
        let room = most.saturating_sub(self.model.bytes());
        let longest = settings.data.max_prompt_tokens + settings.rollout.max_completion_tokens;
        Some(if room == 0 {
            "the model alone does not fit: take a smaller one"
        } else if self.recomputed.peak > room && settings.micro_batch_tokens() > longest {
            "lower train.micro_batch_tokens"
        } else if self.recomputed.peak > room {
            "lower rollout.max_completion_tokens or data.max_prompt_tokens"
        } else if self.generation + self.least_cache <= room {
            CudaMemory::LESS_CACHE
        } else {
            "lower rollout.prompts_per_step, rollout.group_size or rollout.max_completion_tokens"
        })
    }
}
