//! One case at a time, on a model and a device of its own, so that the memory it takes is its own too.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use engine::{
    checkpoint::{
        adapter::{Adapter, AdapterSettings, Projection},
        config::Config,
        weights::{Checkpoint, Dtype},
    },
    generate::{self, Generator, GeneratorOptions, Request, SamplingParams, TokenEvent},
    model::{
        Model, Precision,
        kv_cache::KvCache,
        memory::{TrainedModel, TrainedPass},
    },
    optimizer,
    tensor::Device,
};
use indicatif::ProgressBar;
use trainer::train::{
    grpo::loss,
    memory::usable,
    peak_memory_bytes,
    update::{PromptGroup, TrainedCompletion, UpdateSettings, largest_batch, update},
};

use super::work::{Sizes, Work};
use crate::{
    Failure,
    args::{BenchWork, Recompute, WeightsArg},
    machine,
};

/// Weight of the KL term, that of the presets.
const BETA: f64 = 0.04;

/// Something to be timed. Lengths are in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Prefill { prompt: usize },
    Decode { batch: usize, depth: usize, tokens: usize },
    Lora { tokens: usize },
    Grpo { prompt: usize, group: usize, completion: usize },
}

impl Case {
    pub(super) fn kind(self) -> BenchWork {
        match self {
            Case::Prefill { .. } => BenchWork::Prefill,
            Case::Decode { .. } => BenchWork::Decode,
            Case::Lora { .. } => BenchWork::Lora,
            Case::Grpo { .. } => BenchWork::Grpo,
        }
    }

    /// Tokens of a pass: those of the prompt, or those decoded, or those trained on, a shared prompt once.
    pub(super) fn tokens(self) -> usize {
        match self {
            Case::Prefill { prompt } => prompt,
            Case::Decode { batch, tokens, .. } => batch * tokens,
            Case::Lora { tokens } => tokens,
            Case::Grpo { prompt, group, completion } => prompt + group * completion,
        }
    }

    /// Positions that its longest sequence takes.
    pub(super) fn positions(self) -> usize {
        match self {
            Case::Prefill { prompt } => prompt + 1,
            Case::Decode { batch, depth, tokens } => depth + decoded(batch, depth, tokens),
            Case::Lora { tokens } => tokens,
            Case::Grpo { prompt, completion, .. } => prompt + completion,
        }
    }

    pub(super) fn work(self, sizes: &Sizes) -> Work {
        let [a, b, c] = match self {
            Case::Prefill { prompt } => return sizes.prefill(prompt as u64),
            Case::Decode { batch, depth, tokens } => {
                return sizes.decode(batch as u64, depth as u64, tokens as u64);
            }
            Case::Lora { tokens } => [1, 1, tokens],
            Case::Grpo { prompt, group, completion } => [prompt, group, completion],
        };
        sizes.update(a as u64, b as u64, c as u64, self.kind() == BenchWork::Grpo)
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Case::Prefill { prompt } => write!(f, "prefill {prompt}"),
            Case::Decode { batch, depth, tokens } => {
                write!(f, "decode {batch} x {tokens} after {depth}")
            }
            Case::Lora { tokens } => write!(f, "lora {tokens}"),
            Case::Grpo { prompt, group, completion } => {
                write!(f, "grpo {prompt} + {group} x {completion}")
            }
        }
    }
}

/// The opened model that is measured.
pub(super) struct Subject {
    pub(super) checkpoint: Checkpoint,
    pub(super) config: Config,
    pub(super) weights: Dtype,
    pub(super) placement: WeightsArg,
    pub(super) precision: Precision,
    /// Directory of an adapter.
    pub(super) adapter: Option<PathBuf>,
    /// A GPU by its number; `None` for the CPU.
    pub(super) gpu: Option<usize>,
    pub(super) threads: Option<u16>,
}

/// How it is measured.
pub(super) struct Run<'a> {
    pub(super) repeat: u32,
    pub(super) recompute: Recompute,
    pub(super) stop: &'a AtomicBool,
    pub(super) bar: &'a ProgressBar,
}

/// Result of a case.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) case: Case,
    /// Seconds of every pass but the first.
    pub(super) seconds: Vec<f64>,
    pub(super) work: Work,
    /// Peak memory of the process, or of the GPU's buffers. `None` where the system does not tell.
    pub(super) peak_memory: Option<u64>,
    /// Whether layers were recomputed; `None` without a backward pass.
    pub(super) recomputed: Option<bool>,
}

impl Subject {
    /// `None` if `stop` was raised before all passes were made.
    pub(super) fn measure(&self, case: Case, run: &Run) -> Result<Option<Row>, Failure> {
        let alone = machine::reset_peak_memory();
        let device = self.device()?;
        let adapter = match case.kind() {
            BenchWork::Prefill | BenchWork::Decode => self.adapter()?,
            BenchWork::Lora | BenchWork::Grpo => Some(match self.adapter()? {
                Some(adapter) => adapter,
                None => Adapter::initialize(&self.config, &new_adapter(), 0)?,
            }),
        };
        let config = self.config.clone();
        let mut model =
            Model::new(&self.checkpoint, config, adapter.as_ref(), self.precision, device.clone())?;
        machine::place_weights(&mut model, self.placement)?;
        let values = model.parameters().map(|(_, factor)| factor.len() as u64).sum();
        let mut recomputed = None;
        let seconds = match case {
            Case::Prefill { prompt } => prefill(&model, prompt, run)?,
            Case::Decode { batch, depth, tokens } => decode(&model, [batch, depth, tokens], run)?,
            Case::Lora { .. } | Case::Grpo { .. } => {
                let rank = adapter.map_or(0, |adapter| adapter.rank);
                let recompute =
                    recomputed.insert(self.recomputes(&device, case, rank, run.recompute));
                train(&mut model, case, *recompute, run)?
            }
        };
        let work = case.work(&self.sizes(values));
        let peak_memory = match &device {
            Device::Cpu(_) => peak_memory_bytes().filter(|_| alone),
            Device::Cuda(cuda) => Some(cuda.gpu().memory_in_use().1 as u64),
        };
        Ok(seconds.map(|seconds| Row { case, seconds, work, peak_memory, recomputed }))
    }

    /// A new one, with no memory taken yet.
    fn device(&self) -> Result<Device, Failure> {
        let cpu = machine::cpu(self.threads);
        Ok(match self.gpu {
            None => Device::new(cpu),
            Some(ordinal) => Device::cuda(ordinal, cpu)?,
        })
    }

    fn adapter(&self) -> Result<Option<Adapter>, Failure> {
        let load = |path: &PathBuf| Adapter::load(path, &self.config);
        Ok(self.adapter.as_ref().map(load).transpose()?)
    }

    fn sizes(&self, adapter: u64) -> Sizes<'_> {
        Sizes {
            config: &self.config,
            // A GPU holds them in bf16.
            weight_bytes: if self.weights == Dtype::F32 && self.gpu.is_none() { 4 } else { 2 },
            cache_bytes: if self.precision == Precision::F32 { 4 } else { 2 },
            adapter,
        }
    }

    /// As `train.gradient_checkpointing` decides it, by the memory that one update takes.
    fn recomputes(&self, device: &Device, case: Case, rank: usize, choice: Recompute) -> bool {
        match choice {
            Recompute::On => return true,
            Recompute::Off => return false,
            Recompute::Auto => (),
        }
        let ([lengths, [group, _]], reference) = match case {
            Case::Grpo { prompt, group, completion } => ([[prompt, completion], [group, 1]], true),
            _ => ([[1, case.tokens()], [1, 1]], false),
        };
        let model = TrainedModel {
            config: &self.config,
            weights: self.weights,
            precision: self.precision,
            rank,
            targets: &Projection::ALL,
            threads: device.host().threads(),
            isa: device.host().isa(),
        };
        let Ok(batch) = largest_batch(lengths, group, 1, usize::MAX) else { return true };
        let pass = TrainedPass { checkpoint: false, dropout: false, reference };
        match device {
            Device::Cpu(_) => machine::available_memory().is_none_or(|free| {
                let Ok(memory) = model.training(&batch, pass) else { return true };
                let moments = 8 * model.adapter_parameters();
                let own = memory.buffers + memory.scratch.total() + moments;
                own + self.checkpoint.len_bytes() > free / 2
            }),
            // The model is there; moments are part of it.
            Device::Cuda(cuda) => cuda.gpu().memory().map_or(true, |(free, _)| {
                let moments = model.on_cuda().moments;
                moments + model.training_on_cuda(&batch, pass).peak > usable(free as u64)
            }),
        }
    }
}

/// The adapter that is trained where none is given.
fn new_adapter() -> AdapterSettings {
    AdapterSettings {
        rank: 16,
        alpha: 32.0,
        rank_stabilized: false,
        dropout: 0.0,
        targets: Projection::ALL.to_vec(),
    }
}

/// Seconds of every pass but the first; `None` if `stop` was raised.
fn time(
    run: &Run,
    pass: &mut dyn FnMut(u32) -> Result<f64, Failure>,
) -> Result<Option<Vec<f64>>, Failure> {
    let mut seconds = Vec::with_capacity(run.repeat as usize);
    for number in 0..=run.repeat {
        if run.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let taken = pass(number)?;
        if number > 0 {
            seconds.push(taken);
        }
        run.bar.inc(1);
    }
    Ok(Some(seconds))
}

/// Until a GPU has done what it was given; what it failed of is the error.
fn wait(model: &Model) -> Result<(), Failure> {
    if let Device::Cuda(cuda) = model.device() {
        cuda.status()?;
        cuda.gpu().synchronize()?;
    }
    Ok(())
}

fn prefill(model: &Model, prompt: usize, run: &Run) -> Result<Option<Vec<f64>>, Failure> {
    let mut generator = generator(model, 1, prompt + 1)?;
    time(run, &mut |number| {
        // Another prompt each time: one that was seen would be found in the cache.
        let request = request(tokens(model.config(), number, prompt), 1);
        let started = Instant::now();
        generator.submit(request)?;
        while !generator.is_idle() {
            generator.step(&mut |_| ())?;
        }
        wait(model)?;
        Ok(started.elapsed().as_secs_f64())
    })
}

/// Tokens that a sequence is given to decode, so that none ends before the last one of the batch has decoded
/// `tokens`: the first begins as many steps before the last as prompts take.
fn decoded(batch: usize, depth: usize, tokens: usize) -> usize {
    tokens + (batch * depth).div_ceil(GeneratorOptions::PREFILL_ROWS) + 1
}

fn decode(
    model: &Model,
    [batch, depth, tokens_each]: [usize; 3],
    run: &Run,
) -> Result<Option<Vec<f64>>, Failure> {
    let new = decoded(batch, depth, tokens_each);
    let mut generator = generator(model, batch, depth + new)?;
    time(run, &mut |_| {
        // The same prompts each time: all but the first pass find them in the cache.
        for sequence in 0..batch as u32 {
            generator.submit(request(tokens(model.config(), sequence, depth), new))?;
        }
        let mut begun = std::collections::HashSet::new();
        while begun.len() < batch {
            generator.step(&mut |event: TokenEvent| {
                begun.insert(event.request);
            })?;
        }
        let before = generator.stats().generated_tokens;
        let started = Instant::now();
        for _ in 0..tokens_each {
            generator.step(&mut |_| ())?;
        }
        wait(model)?;
        let seconds = started.elapsed().as_secs_f64();
        let made = generator.stats().generated_tokens - before;
        assert_eq!(made, (batch * tokens_each) as u64, "every sequence decodes in every step");
        while !generator.is_idle() {
            generator.step(&mut |_| ())?;
        }
        Ok(seconds)
    })
}

/// A generator for `batch` sequences up to `length`, that nothing stops before.
fn generator(
    model: &Model,
    batch: usize,
    length: usize,
) -> Result<Generator<'_>, generate::GenerateError> {
    // A sequence's pages, and as many that keep its prompt.
    let pages = 2 * batch * KvCache::pages_for(length);
    let cache_bytes = pages * KvCache::page_bytes(model.config(), model.cache_dtype());
    let options = GeneratorOptions {
        max_batch: batch,
        prefill_rows: GeneratorOptions::PREFILL_ROWS,
        cache_bytes,
    };
    Generator::new(model, &[], options)
}

fn request(prompt: Vec<u32>, max_new_tokens: usize) -> Request {
    let sampling = SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    Request {
        prompt,
        samples: vec![0],
        seed: 0,
        max_new_tokens,
        sampling,
        repetition_penalty: 1.0,
        top_log_probs: 0,
    }
}

/// Some tokens, others for every `seed`.
fn tokens(config: &Config, seed: u32, len: usize) -> Vec<u32> {
    let vocabulary = config.vocab_size as u64;
    (0..len as u64)
        .map(|i| ((i * 7919 + u64::from(seed) * 104_729 + 13) % vocabulary) as u32)
        .collect()
}

/// An update as `j1 train` makes it, on one group. With one completion that follows one token, an advantage of 1
/// and no KL term, its gradient is that of the cross-entropy, and the update a step of supervised learning.
fn train(
    model: &mut Model,
    case: Case,
    checkpoint: bool,
    run: &Run,
) -> Result<Option<Vec<f64>>, Failure> {
    let (prompt, group, completion, beta) = match case {
        Case::Grpo { prompt, group, completion } => (prompt, group, completion, BETA),
        _ => (1, 1, case.tokens(), 0.0),
    };
    model.train_adapter();
    let mut optimizer = model.optimizer(optimizer::AdamWSettings::default());

    let prompt = tokens(model.config(), 0, prompt);
    let completions: Vec<Vec<u32>> =
        (1..=group as u32).map(|seed| tokens(model.config(), seed, completion)).collect();
    let weight = 1.0 / (group * completion) as f64;
    let items = completions.iter().enumerate().map(|(index, tokens)| TrainedCompletion {
        tokens,
        sampled: None,
        advantage: if index % 2 == 0 { 1.0 } else { -1.0 },
        weight,
        scores: [0; 2],
    });
    let groups = [PromptGroup { prompt: &prompt, items: items.collect() }];
    let settings = UpdateSettings {
        loss: loss::LossTerms { beta, ..loss::LossTerms::default() },
        iterations: 1,
        temperature: 1.0,
        dropout: 0.0,
        seed: 0,
        micro_batch_tokens: usize::MAX,
        checkpoint,
    };
    time(run, &mut |number| {
        let (started, first) = (Instant::now(), u64::from(number));
        update(model, &mut optimizer, None, &groups, &settings, first, &|_| 1e-5, &mut |_, _| ())?;
        wait(model)?;
        Ok(started.elapsed().as_secs_f64())
    })
}
