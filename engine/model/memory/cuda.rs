//! The same for a GPU: what its pool holds at most, gone through as the ops take it and let it go.
//!
//! Every function here mirrors the GPU's part of the op of its name. Not mirrored are lists of rows, positions
//! and work items, which are some bytes a row.

mod backward;
mod forward;

use kernels::cuda_memory::{buffer_bytes, lasting_bytes};

use super::{TrainedModel, TrainedPass};
use crate::{
    adapter::Projection, generate::recorded_rows, kv_cache::PAGE, model::training::PackedBatch,
};
use forward::CudaRun;

/// Bytes of an element.
const F64: usize = 8;
const F32: usize = 4;
const BF16: usize = 2;

/// Multiprocessors of an A100. Other numbers change little: in how many parts narrow products are summed.
const MULTIPROCESSORS: usize = 108;

/// Ranks and vocabularies are padded to multiples of this.
const PADDED: usize = 8;

/// What a model takes of a GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaModel {
    /// Weights in bf16, the vocabulary padded; norms and rotary tables in f32.
    pub weights: u64,
    /// A and B in f32, and in the bf16 parts that products take.
    pub adapter: u64,
    /// The optimizer's two moments in f32.
    pub moments: u64,
}

impl CudaModel {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.weights + self.adapter + self.moments
    }
}

/// What a training pass takes beside the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaPass {
    /// Everything at the peak: the three below are in it where they live at that moment.
    pub peak: u64,
    /// Logits of a part of the vocabulary, their gradients, and each row's sums.
    pub log_probs: u64,
    /// Scratch of attention's backward pass.
    pub attention: u64,
}

impl TrainedModel<'_> {
    /// What the model takes on a GPU; `positions` is its rotary table's length.
    pub fn on_cuda(&self, positions: usize) -> CudaModel {
        let config = self.config;
        let buffer = |elements: usize, element: usize| buffer_bytes(elements * element) as u64;
        let matrix =
            |rows: usize, columns: usize| buffer(rows.next_multiple_of(PADDED) * columns, BF16);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let mut layer = 2 * buffer(hidden, F32) + buffer(2 * inner * hidden, BF16);
        for projection in Projection::ALL {
            let [n, k] = projection.shape(config);
            layer += match projection {
                Projection::Gate | Projection::Up => 0,
                _ => matrix(n, k),
            };
            let attends =
                matches!(projection, Projection::Query | Projection::Key | Projection::Value);
            if attends && config.family.has_qkv_bias() {
                layer += buffer(n, F32);
            }
        }
        if config.family.has_qk_norm() {
            layer += 2 * buffer(config.head_dim, F32);
        }
        let vocabulary = matrix(config.vocab_size, hidden);
        let tables = if config.tie_word_embeddings { 1 } else { 2 };
        let rest = buffer(hidden, F32) + buffer(positions * config.head_dim, F32);
        let layers = config.num_hidden_layers as u64;

        let rank = self.rank.next_multiple_of(PADDED);
        // Rows and columns of high, high and low parts.
        let split = |n: usize| 2 * buffer(3 * rank * n, BF16);
        let (mut adapter, mut moments) = (0, 0);
        for projection in self.targets {
            let [n, k] = projection.shape(config);
            let plain = buffer(self.rank * n, F32) + buffer(self.rank * k, F32);
            adapter += plain + split(n) + split(k);
            if matches!(projection, Projection::Gate | Projection::Up) {
                adapter += split(2 * n);
            }
            moments += 2 * plain;
        }
        CudaModel {
            weights: layers * layer + tables * vocabulary + rest,
            adapter: layers * adapter,
            moments: layers * moments,
        }
    }

    /// The peak over micro-batches of this shape on a GPU, beside [`TrainedModel::on_cuda`]: the reference pass if
    /// there is one, forward, backward, gradients of which some are there before.
    pub fn training_on_cuda(&self, batch: &PackedBatch, pass: TrainedPass) -> CudaPass {
        let mut run = CudaRun::new(*self);
        for _ in 0..2 {
            if pass.reference {
                run.log_probs(batch, pass, false);
            }
            let y = run.log_probs(batch, pass, true);
            run.backward(&y, batch, pass.dropout);
        }
        CudaPass {
            peak: run.pool.most.get() as u64,
            log_probs: run.log_probs as u64,
            attention: run.attention as u64,
        }
    }

    /// The peak of generation on a GPU, beside the model and keys and values: a step of `prefill_rows` rows of
    /// prompts and `sequences` running ones, up to `length` long, beside what recorded steps keep for themselves.
    pub fn generation_on_cuda(&self, prefill_rows: usize, sequences: usize, length: usize) -> u64 {
        let step = |rows, sequences| {
            let mut run = CudaRun::new(*self);
            run.generate(rows, sequences, length);
            run.pool.most.get() as u64
        };
        let recorded = recorded_rows(sequences);
        step(prefill_rows + sequences, sequences) + step(recorded, recorded)
    }

    /// Bytes of keys and values on a GPU in so many pages and the one for rows that pad recorded steps.
    pub fn cache_on_cuda(&self, pages: usize) -> u64 {
        let config = self.config;
        let layer = lasting_bytes((pages + 1) * PAGE * config.key_value_width() * BF16);
        (2 * config.num_hidden_layers * layer) as u64
    }
}
