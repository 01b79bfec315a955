//! Generation: a queue of requests, continuous batching, shared prompts.
//!
//! Every [`Generator::step`] is one forward pass over a batch that holds one row for each running
//! sequence and up to [`GeneratorOptions::prefill_rows`] rows of prompts. Sequences join when there is room
//! and leave as they end. A prompt is prefilled once for all its samples, and prompts that begin
//! alike share the pages of what they have in common (see [`crate::model::kv_cache`]).
//!
//! None of it can be seen in the results: a token depends on its own sequence, its request's seed
//! and its sample's number only, never on what else ran in the batch.
//!
//! ```
//! # use std::path::Path;
//! use engine::prelude::*;
//!
//! # let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/qwen3-tied/model");
//! let LanguageModel { model, tokenizer, generation, .. } = LanguageModel::open(directory)?;
//! let prefill_rows = GeneratorOptions::PREFILL_ROWS;
//! let options = GeneratorOptions { max_batch: 8, prefill_rows, cache_bytes: 64 << 20 };
//! let mut generator = Generator::new(&model, &generation.eos_token_ids, options)?;
//! // Three samples of one prompt, which is computed once.
//! generator.submit(Request {
//!     prompt: tokenizer.encode("Once upon a time")?,
//!     samples: vec![0, 1, 2],
//!     seed: 7,
//!     max_new_tokens: 8,
//!     sampling: SamplingParams::default(),
//!     repetition_penalty: 1.0,
//!     top_log_probs: 0,
//! })?;
//! let mut completions = vec![Vec::new(); 3];
//! while !generator.is_idle() {
//!     generator.step(&mut |event| completions[event.sample].push(event.token))?;
//! }
//! for completion in &completions {
//!     println!("{:?}", tokenizer.decode(completion, true)?);
//! }
//! # assert!(completions.iter().all(|tokens| (1..=8).contains(&tokens.len())), "{completions:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cuda;
mod error;
mod schedule;
mod sequence;

use std::{collections::VecDeque, sync::Mutex};

pub use kernels::cpu::{
    log_prob::LogitsError,
    repetition_penalty,
    sample::{ParamsError, SamplingParams},
};
use kernels::cpu::{
    profile,
    sample::{self, Sample, Scratch},
};

use cuda::CapturedSteps;
pub use error::GenerateError;
use schedule::{Job, Prefill};
use sequence::{Seen, Sequence};

use crate::{
    model::{Batch, Model, kv_cache::KvCache},
    tensor::{
        Tensor,
        device::{Device, DeviceError},
    },
};

/// What to generate from one prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's token ids. Not empty.
    pub prompt: Vec<u32>,
    /// One number per sample. The seed and the number decide which tokens are drawn: give every sample of a run
    /// its own, or two samples of one prompt are the same.
    pub samples: Vec<u64>,
    /// Seed of the run.
    pub seed: u64,
    /// Completion tokens at most, the stop token included. At least 1.
    pub max_new_tokens: usize,
    /// Temperature and truncation.
    pub sampling: SamplingParams,
    /// Makes tokens of the prompt and of the completion so far less likely; see
    /// [`repetition_penalty`]. 1 is none, and costs nothing.
    pub repetition_penalty: f32,
    /// With each token, this many of the most probable ones are reported: [`TokenEvent::top`].
    pub top_log_probs: usize,
}

/// Identifies a request within its generator, in order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model wrote a stop token.
    Stop,
    /// `max_new_tokens` were written.
    Length,
}

/// One token of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenEvent<'a> {
    /// The request that this token belongs to.
    pub request: RequestId,
    /// Index into the request's `samples`.
    pub sample: usize,
    /// The token. A stop token is reported too.
    pub token: u32,
    /// Its log-probability in nats at the sampling temperature (greedy: at temperature 1), under the whole softmax.
    /// Where repetition is penalized, the logits are the penalized ones: the value is not the model's own and must not be
    /// trained on.
    pub log_prob: f32,
    /// Entropy in nats of the distribution that `log_prob` is of.
    pub entropy: f32,
    /// Set with the sample's last token.
    pub finish: Option<FinishReason>,
    /// The most probable tokens in the place of this one, as many as the request asks for, the most probable first, each with
    /// its log-probability. The one that was drawn need not be among them.
    pub top: &'a [(u32, f32)],
}

/// How much runs at once. No token depends on it.
#[derive(Clone, Debug)]
pub struct GeneratorOptions {
    /// Sequences that run at once, at most.
    pub max_batch: usize,
    /// Prompt rows per step, at most.
    pub prefill_rows: usize,
    /// Memory for keys and values, in bytes.
    pub cache_bytes: usize,
}

impl GeneratorOptions {
    /// The default number of prompt rows per step: enough that matmuls are bound by arithmetic.
    pub const PREFILL_ROWS: usize = 512;
}

/// Counts of what ran so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Forward passes.
    pub steps: u64,
    /// Prompt tokens that were computed in forward passes.
    pub prompt_tokens: u64,
    /// Prompt tokens whose keys and values were found in the cache.
    pub shared_tokens: u64,
    /// Completion tokens.
    pub generated_tokens: u64,
    /// How often a sequence gave its pages back and waited for others to end.
    pub preemptions: u64,
}

/// Which sequences draw from a row of logits.
enum Destination {
    /// `running[index]`.
    Running(usize),
    /// All samples of the next prompt in `prefilled`; they join `running` in this step.
    Prefilled,
}

/// One draw of a step.
struct Draw {
    logits_row: usize,
    sequence: usize,
    result: Option<Result<Sample, LogitsError>>,
    /// The most probable tokens, if they are asked for.
    top: Vec<(u32, f32)>,
}

/// Runs requests over one model.
pub struct Generator<'m> {
    model: &'m Model,
    options: GeneratorOptions,
    cache: KvCache,
    cache_bytes: usize,
    /// Pages that sequences may take.
    pages: usize,
    page_bytes: usize,
    stop_tokens: Vec<u32>,
    queue: VecDeque<Job>,
    prefill: Option<Prefill>,
    running: Vec<Sequence>,
    /// Pages that the prompt under way will take, and those that join the running sequences in this step.
    reserved_pages: usize,
    next_id: u64,
    stats: Stats,
    step: Step,
    /// One per thread.
    scratch: Vec<Mutex<Scratch>>,
    /// Captured decoding steps of a GPU.
    captures: CapturedSteps,
}

/// Buffers of a step, kept so that a warm step allocates nothing.
#[derive(Default)]
struct Step {
    batch: Batch,
    destinations: Vec<Destination>,
    prefilled: Vec<Prefill>,
    draws: Vec<Draw>,
    /// The first sequence that draws from each row of logits. The others of a row are samples of the same prompt.
    first_of_row: Vec<usize>,
}

impl<'m> Generator<'m> {
    /// A generator over `model` that ends completions at `stop_tokens`. It takes at most as much memory for keys and values as
    /// twice `max_batch` sequences of the model's length can use: half of them keep prompts.
    ///
    /// # Errors
    /// [`GenerateError::NoRoom`].
    pub fn new(
        model: &'m Model,
        stop_tokens: &[u32],
        options: GeneratorOptions,
    ) -> Result<Generator<'m>, GenerateError> {
        assert!(options.max_batch > 0 && options.prefill_rows > 0, "{options:?}");
        let dtype = model.cache_dtype();
        let page_bytes = KvCache::page_bytes(model.config(), dtype);
        let longest = KvCache::pages_for(model.config().max_position_embeddings);
        let usable = options.max_batch.saturating_mul(2 * longest).clamp(1, u32::MAX as usize - 1);
        let pages = (options.cache_bytes / page_bytes).clamp(1, usable);
        let spare = usize::from(model.device().is_cuda());
        let mut cache = KvCache::new(model.device(), model.config(), dtype, pages + spare)
            .map_err(GenerateError::NoRoom)?;
        Ok(Generator {
            model,
            captures: CapturedSteps::new(&mut cache, spare),
            cache,
            cache_bytes: pages * page_bytes,
            pages,
            page_bytes,
            stop_tokens: stop_tokens.to_vec(),
            queue: VecDeque::new(),
            prefill: None,
            running: Vec::with_capacity(options.max_batch.min(pages)),
            reserved_pages: 0,
            next_id: 0,
            stats: Stats::default(),
            step: Step::default(),
            scratch: (0..model.device().host().threads())
                .map(|_| Mutex::new(Scratch::new(model.config().vocab_size)))
                .collect(),
            options,
        })
    }

    /// Whether all submitted requests have ended.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.prefill.is_none() && self.running.is_empty()
    }

    /// Queued sequences, in jobs not yet started. Keep this small but not 0: then memory holds few prompts and the batch stays
    /// full.
    pub fn queued(&self) -> usize {
        self.queue.iter().map(|job| job.samples).sum()
    }

    /// Sequences that run, without those whose prompt is still computed.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Share of the memory for keys and values that sequences hold, in [0, 1]. What is kept to be found again does not count.
    pub fn cache_usage(&self) -> f64 {
        let held = self.cache.pages() - self.cache.available_pages();
        held as f64 / self.cache.pages() as f64
    }

    /// Counts of what ran so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// One forward pass. Calls `on` for each token, in an order that depends on the schedule.
    ///
    /// # Errors
    /// After [`GenerateError::Sampling`] the requests that it names have ended, all others have their tokens, and the next step
    /// goes on. After [`GenerateError::Device`] the generator cannot be used any more.
    pub fn step(&mut self, on: &mut dyn FnMut(TokenEvent<'_>)) -> Result<(), GenerateError> {
        let mut step = std::mem::take(&mut self.step);
        step.batch.clear();
        step.destinations.clear();
        step.draws.clear();
        step.first_of_row.clear();
        self.make_room();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let position = sequence.table.len();
            self.cache.extend(&mut sequence.table, 1);
            step.batch.push(&[sequence.last_token()], position, sequence.table.pages());
            step.batch.want_logits();
            step.destinations.push(Destination::Running(index));
        }
        let decoded = step.batch.rows();
        self.schedule_prompts(&mut step);
        let prompts = step.batch.rows() - decoded;
        let name = if prompts == 0 { "decode" } else { "prefill and decode" };
        let _span = profile::phase(name, [decoded, prompts]);
        let mut result = Ok(());
        if step.batch.rows() > 0 {
            self.stats.steps += 1;
            result = match self.forward_and_draw(&mut step, prompts) {
                Ok(()) => self.apply_draws(&step.draws, on),
                Err(error) => Err(GenerateError::Device(error)),
            };
        }
        self.step = step;
        result
    }

    fn forward_and_draw(&mut self, step: &mut Step, prompts: usize) -> Result<(), DeviceError> {
        let model = self.model;
        if let Device::Cuda(cuda) = model.device()
            && prompts == 0
            && self.captures.are_wanted()
            && self.running.iter().all(|sequence| sequence.request.top_log_probs == 0)
        {
            self.plan_draws(step);
            return self.decode_captured(cuda, &mut step.draws);
        }
        let mut logits = model.forward(&step.batch, &mut self.cache);
        self.plan_draws(step);
        match model.device() {
            Device::Cpu(_) => {
                self.penalize(&mut logits, &step.first_of_row);
                self.draw(&logits, &mut step.draws);
                Ok(())
            }
            Device::Cuda(cuda) => self.draw_on_cuda(cuda, logits, &mut step.draws),
        }
    }

    /// Says which sequence draws from which row of logits. Samples of finished prompts join here.
    fn plan_draws(&mut self, step: &mut Step) {
        let mut prefilled = step.prefilled.drain(..);
        for (logits_row, destination) in step.destinations.iter().enumerate() {
            let sequences = match *destination {
                Destination::Running(index) => index..index + 1,
                Destination::Prefilled => {
                    let start = self.running.len();
                    self.start_samples(prefilled.next().expect("one a destination"));
                    start..self.running.len()
                }
            };
            step.first_of_row.push(sequences.start);
            let draw = |sequence| Draw { logits_row, sequence, result: None, top: Vec::new() };
            step.draws.extend(sequences.map(draw));
        }
    }

    fn draw(&self, logits: &Tensor, draws: &mut [Draw]) {
        let cpu = self.model.device().host();
        let count = draws.len();
        let _span = profile::phase("draw tokens", [count]);
        let draws = Mutex::new(draws);
        cpu.pool().for_each(count, &|thread, index| {
            let (logits_row, sequence) = {
                let draws = draws.lock().expect("no panic under the lock");
                (draws[index].logits_row, &self.running[draws[index].sequence])
            };
            let uniform = sequence.key.uniform_f64(sequence.written.len() as u32);
            let mut scratch = self.scratch[thread].lock().expect("one thread, one scratch");
            let logits = logits.row(logits_row);
            let result =
                sample::draw(cpu, &mut scratch, logits, &sequence.request.sampling, uniform);
            let top = sequence.top_of(cpu, logits);
            let mut draws = draws.lock().expect("no panic under the lock");
            (draws[index].result, draws[index].top) = (Some(result), top);
        });
    }

    /// Reports the tokens drawn; sequences that end leave.
    fn apply_draws(
        &mut self,
        draws: &[Draw],
        on: &mut dyn FnMut(TokenEvent<'_>),
    ) -> Result<(), GenerateError> {
        let mut failed: Vec<(RequestId, LogitsError)> = Vec::new();
        for draw in draws {
            let sequence = &mut self.running[draw.sequence];
            let sampled = match draw.result.expect("every planned draw was made") {
                Ok(sampled) => sampled,
                Err(source) => {
                    failed.push((sequence.id, source));
                    sequence.ended = true;
                    continue;
                }
            };
            sequence.written.push(sampled.token);
            sequence.seen.push(sampled.token);
            self.stats.generated_tokens += 1;
            let finish = if self.stop_tokens.contains(&sampled.token) {
                Some(FinishReason::Stop)
            } else if sequence.written.len() == sequence.request.max_new_tokens {
                Some(FinishReason::Length)
            } else {
                None
            };
            on(TokenEvent {
                request: sequence.id,
                sample: sequence.sample,
                token: sampled.token,
                log_prob: sampled.log_prob,
                entropy: sampled.entropy,
                finish,
                top: &draw.top,
            });
            sequence.ended = finish.is_some();
        }
        self.release_ended();
        failed.dedup_by_key(|(request, _)| *request);
        failed.iter().for_each(|(request, _)| self.cancel(*request));
        let mut failed = failed.into_iter();
        match failed.next() {
            None => Ok(()),
            Some((request, source)) => {
                let others =
                    failed.map(|(other, _)| other).filter(|other| *other != request).collect();
                Err(GenerateError::Sampling { request, others, source })
            }
        }
    }

    fn release_ended(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].ended {
                let ended = self.running.swap_remove(index);
                self.cache.release(ended.table);
            }
        }
    }
}
