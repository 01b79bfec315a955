//! The same for a GPU: what its pool holds at most ([`Gpu::counting`]).

use kernels::{
    cpu::{Cpu, sample::SamplingParams},
    cuda::{Gpu, attention_backward_bytes, logits_columns},
};

use super::{TrainedModel, TrainedPass, run_training};
use crate::{
    generate::{Generator, GeneratorOptions, Request},
    model::{
        kv_cache::{CacheDtype, KvCache},
        training::PackedBatch,
    },
    tensor::{Device, Tensor, device::CudaDevice},
};

/// Multiprocessors of an A100. Other numbers change little: they decide in how many parts narrow matmuls are summed.
const MULTIPROCESSORS: usize = 108;

/// A GPU's memory for a model, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaModel {
    /// Weights in bf16, the vocabulary padded; norms and rotary tables in f32.
    pub weights: u64,
    /// A and B in f32, and in the bf16 parts that matmuls take.
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

/// The memory of a training pass beside the model, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaPass {
    /// Everything at the peak: the two below are in it where they live at that moment.
    pub peak: u64,
    /// Logits of a part of the vocabulary in f32, and their gradients in bf16.
    pub log_probs: u64,
    /// Gradients of attention's scores.
    pub attention: u64,
}

/// A GPU that counts, and what it counts.
struct Counter(CudaDevice);

impl Counter {
    fn new() -> (Device, Counter) {
        let counter = CudaDevice::new(Gpu::counting(MULTIPROCESSORS), Cpu::new(1));
        (Device::Cuda(counter.clone()), Counter(counter))
    }

    /// Bytes that live.
    fn live(&self) -> u64 {
        self.0.gpu().memory_in_use().0 as u64
    }

    /// The most that lived at once.
    fn most(&self) -> u64 {
        self.0.gpu().memory_in_use().1 as u64
    }
}

impl TrainedModel<'_> {
    /// The memory of the model on a GPU.
    pub fn on_cuda(&self) -> CudaModel {
        // After one pass everything is there that a pass makes on first use.
        let mut batch = PackedBatch::default();
        batch.push(&[0], &[&[0]]);
        let pass = TrainedPass { checkpoint: false, dropout: false, reference: false };
        let live = |rank| {
            let (device, counter) = Counter::new();
            let model = TrainedModel { rank, ..*self }.counted(&device);
            // A batch keeps what it has on a device: each has its own.
            run_training(&model, &batch.clone(), pass);
            let live = counter.live();
            let zeros = |x: &Tensor| Tensor::zeros(&device, x.shape()[0], x.shape()[1]);
            let moments: Vec<_> =
                model.parameters().map(|(_, x)| [(); 2].map(|()| zeros(x))).collect();
            let with_moments = counter.live();
            drop(moments);
            (live, with_moments - live)
        };
        let ((weights, _), (all, moments)) = (live(0), live(self.rank));
        CudaModel { weights, adapter: all - weights, moments }
    }

    /// The peak over micro-batches of this shape on a GPU, beside [`TrainedModel::on_cuda`]: the reference pass if
    /// there is one, forward, backward, gradients of which some are there before.
    pub fn training_on_cuda(&self, batch: &PackedBatch, pass: TrainedPass) -> CudaPass {
        let (device, counter) = Counter::new();
        let model = self.counted(&device);
        run_training(&model, &batch.clone(), pass);
        let rows = batch.targets();
        let columns = logits_columns(rows).min(self.config.vocab_size);
        let bytes_each = size_of::<f32>() + size_of::<u16>();
        CudaPass {
            peak: counter.most() - counter.live(),
            log_probs: (rows * columns * bytes_each) as u64,
            attention: attention_backward_bytes(
                batch.layout().queries(false).trees(),
                model.attention_shape(),
            ) as u64,
        }
    }

    /// The peak of generation on a GPU, beside the model and keys and values: a step of `prefill_rows` rows of
    /// prompts and `sequences` running ones, up to `length` long, beside what recorded steps keep for themselves.
    pub fn generation_on_cuda(&self, prefill_rows: usize, sequences: usize, length: usize) -> u64 {
        /// Tokens of each sequence: after the first of a prompt, steps are recorded.
        const NEW: usize = 4;
        let (device, counter) = Counter::new();
        let model = self.counted(&device);
        let pages = (sequences + 1) * KvCache::pages_for(length + 1);
        let cache_bytes = pages * KvCache::page_bytes(self.config, model.cache_dtype());
        let options = GeneratorOptions { max_batch: sequences, prefill_rows, cache_bytes };
        let before = counter.live();
        let mut generator = Generator::new(&model, &[], options).expect("a device without limits");
        let cache = counter.live() - before;
        let prompt = length.saturating_sub(NEW).max(1);
        let submit = |generator: &mut Generator<'_>, token: usize, samples: usize| {
            let request = Request {
                prompt: vec![token as u32; prompt],
                samples: (0..samples as u64).collect(),
                seed: 0,
                max_new_tokens: NEW,
                sampling: SamplingParams::GREEDY,
                repetition_penalty: 1.0,
                top_log_probs: 0,
            };
            generator.submit(request).expect("a request within the cache");
        };
        // Prompts that fill a step come last, when all other sequences run and steps have been recorded.
        let last = prefill_rows.div_ceil(prompt).min(sequences).min(self.config.vocab_size - 1);
        let first = sequences - last;
        if first > 0 {
            submit(&mut generator, 0, first);
        }
        while generator.stats().generated_tokens < 2 * first as u64 {
            generator.step(&mut |_| ()).expect("a device that works");
        }
        (1..=last).for_each(|token| submit(&mut generator, token, 1));
        while !generator.is_idle() {
            generator.step(&mut |_| ()).expect("a device that works");
        }
        drop(generator);
        counter.most() - counter.live() - cache
    }

    /// Bytes of keys and values on a GPU in `pages` pages and the one for rows that pad captured steps.
    pub fn cache_on_cuda(&self, pages: usize) -> u64 {
        let (device, counter) = Counter::new();
        let _cache = KvCache::new(&device, self.config, CacheDtype::Bf16, pages + 1);
        counter.live()
    }
}
