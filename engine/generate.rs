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
mod sequence;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use kernels::cpu::{
    attention::PAGE,
    philox::{RngKey, Stream},
    profile,
    sample::{self, Sample, Scratch},
};
pub use kernels::cpu::{
    log_prob::LogitsError,
    repetition_penalty,
    sample::{ParamsError, SamplingParams},
};

use cuda::CapturedSteps;
pub use error::GenerateError;
use sequence::{Seen, Sequence, distinct};

use crate::{
    model::{
        Batch, Model,
        kv_cache::{KvCache, PageTable},
    },
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
pub struct TokenEvent {
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
}

/// A part of a request that is scheduled as one: all its samples, or as many as fit at once.
struct Job {
    id: RequestId,
    request: Request,
    /// The distinct tokens of the prompt, if they are penalized.
    distinct: Arc<[u32]>,
    /// Which of the request's samples: `first_sample..first_sample + samples`.
    first_sample: usize,
    samples: usize,
}

struct Prefill {
    job: Job,
    table: PageTable,
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
    /// Pages promised to running sequences and to the prompt under way.
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

    /// Queues a request. Its tokens come from [`Generator::step`].
    pub fn submit(&mut self, request: Request) -> Result<RequestId, GenerateError> {
        assert!(!request.samples.is_empty(), "a request for no samples");
        assert!(request.max_new_tokens > 0, "a request for no tokens");
        if let Err(error) = repetition_penalty::validate(request.repetition_penalty) {
            panic!("{error}");
        }
        let config = self.model.config();
        if request.prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if let Some(&token) = request.prompt.iter().find(|&&t| t as usize >= config.vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size: config.vocab_size });
        }
        let (prompt, new) = (request.prompt.len(), request.max_new_tokens);
        let tokens = prompt.saturating_add(new);
        if tokens > config.max_position_embeddings {
            let limit = config.max_position_embeddings;
            return Err(GenerateError::TooLong { prompt, max_new_tokens: new, limit });
        }
        let needed_pages = KvCache::pages_for(tokens);
        if needed_pages > self.pages {
            return Err(GenerateError::CacheTooSmall {
                tokens,
                needed_bytes: needed_pages * self.page_bytes,
                cache_bytes: self.cache_bytes,
            });
        }

        let id = RequestId(self.next_id);
        self.next_id += 1;
        // A job holds at most the samples that fit in the batch and the cache at once.
        let each = needed_pages - prompt / PAGE;
        let shared = needed_pages - each;
        let fitting = ((self.pages - shared) / each).clamp(1, self.options.max_batch);
        let total = request.samples.len();
        let distinct = distinct(&request.prompt, request.repetition_penalty);
        for first_sample in (0..total).step_by(fitting) {
            let samples = fitting.min(total - first_sample);
            let (request, distinct) = (request.clone(), distinct.clone());
            self.queue.push_back(Job { id, request, distinct, first_sample, samples });
        }
        Ok(id)
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

    /// Counts of what ran so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// One forward pass. Calls `on` for each token, in an order that depends on the schedule.
    /// After an error the generator cannot be used any more.
    pub fn step(&mut self, on: &mut dyn FnMut(TokenEvent)) -> Result<(), GenerateError> {
        let mut step = std::mem::take(&mut self.step);
        step.batch.clear();
        step.destinations.clear();
        step.draws.clear();
        step.first_of_row.clear();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.table.len() % PAGE == 0 {
                sequence.reserved_pages -= 1;
                self.reserved_pages -= 1;
            }
            let position = sequence.table.len();
            self.cache.extend(&mut sequence.table, 1);
            step.batch.push(&[sequence.last_token], position, sequence.table.pages());
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

    /// Fills the batch with prompt rows: the prompt under way, then new ones while there is room.
    fn schedule_prompts(&mut self, step: &mut Step) {
        let Step { batch, destinations, prefilled, .. } = step;
        let mut rows = self.options.prefill_rows;
        let mut joining = 0;
        while rows > 0 {
            let Some(Prefill { job, mut table }) =
                self.prefill.take().or_else(|| self.admit(joining))
            else {
                break;
            };
            let prompt = &job.request.prompt;
            let start = table.len();
            let chunk = (prompt.len() - start).min(rows);
            let pages_before = table.pages().len();
            self.cache.extend(&mut table, chunk);
            self.reserved_pages -= table.pages().len() - pages_before;
            self.cache.publish_prefix(&table, prompt);
            batch.push(&prompt[start..start + chunk], start, table.pages());
            self.stats.prompt_tokens += chunk as u64;
            rows -= chunk;
            let done = table.len() == prompt.len();
            let prefill = Prefill { job, table };
            if done {
                batch.want_logits();
                destinations.push(Destination::Prefilled);
                joining += prefill.job.samples;
                prefilled.push(prefill);
            } else {
                self.prefill = Some(prefill);
            }
        }
    }

    /// Takes the next job if all its samples can run to their end beside the running sequences.
    fn admit(&mut self, joining: usize) -> Option<Prefill> {
        let job = self.queue.front()?;
        if self.running.len() + joining + job.samples > self.options.max_batch {
            return None;
        }
        let prompt = &job.request.prompt;
        let all = KvCache::pages_for(prompt.len() + job.request.max_new_tokens);
        // The last token is computed in any case: its logits are needed.
        let (found, idle) = self.cache.find_prefix(&prompt[..prompt.len() - 1]);
        let full = prompt.len() / PAGE;
        let new = all - KvCache::pages_for(found) + (job.samples - 1) * (all - full);
        if new + idle + self.reserved_pages > self.cache.available_pages() {
            return None;
        }
        let job = self.queue.pop_front()?;
        let prompt = &job.request.prompt;
        let table = self.cache.attach_prefix(&prompt[..prompt.len() - 1]);
        self.stats.shared_tokens += table.len() as u64;
        self.reserved_pages += new;
        Some(Prefill { job, table })
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
            let draw = |sequence| Draw { logits_row, sequence, result: None };
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
            let uniform = sequence.key.uniform_f64(sequence.generated as u32);
            let mut scratch = self.scratch[thread].lock().expect("one thread, one scratch");
            let logits = logits.row(logits_row);
            let result = sample::draw(cpu, &mut scratch, logits, &sequence.sampling, uniform);
            draws.lock().expect("no panic under the lock")[index].result = Some(result);
        });
    }

    /// Reports the tokens drawn; sequences that end leave.
    fn apply_draws(
        &mut self,
        draws: &[Draw],
        on: &mut dyn FnMut(TokenEvent),
    ) -> Result<(), GenerateError> {
        for draw in draws {
            let sequence = &mut self.running[draw.sequence];
            let sampled = draw
                .result
                .expect("every planned draw was made")
                .map_err(|source| GenerateError::Sampling { request: sequence.id, source })?;
            sequence.generated += 1;
            sequence.last_token = sampled.token;
            sequence.seen.push(sampled.token);
            self.stats.generated_tokens += 1;
            let finish = if self.stop_tokens.contains(&sampled.token) {
                Some(FinishReason::Stop)
            } else if sequence.generated == sequence.max_new_tokens {
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
            });
            sequence.ended = finish.is_some();
        }
        self.release_ended();
        Ok(())
    }

    fn release_ended(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].ended {
                let ended = self.running.swap_remove(index);
                self.reserved_pages -= ended.reserved_pages;
                self.cache.release(ended.table);
            }
        }
    }

    /// Turns a prefilled prompt into its running samples. The last takes the prompt's own table.
    fn start_samples(&mut self, prefill: Prefill) {
        let Prefill { job, table } = prefill;
        let all = KvCache::pages_for(job.request.prompt.len() + job.request.max_new_tokens);
        let mut table = Some(table);
        for sample in job.first_sample..job.first_sample + job.samples {
            let last = sample + 1 == job.first_sample + job.samples;
            let mut own = if last {
                table.take().expect("taken once")
            } else {
                let prompt = table.as_ref().expect("taken last");
                let own = self.cache.fork(prompt);
                self.reserved_pages -= own.len().div_ceil(PAGE) - own.len() / PAGE;
                own
            };
            own.reserve(all);
            self.running.push(Sequence {
                id: job.id,
                sample,
                key: RngKey::new(job.request.seed, job.request.samples[sample], Stream::TOKENS),
                sampling: job.request.sampling,
                seen: Seen::new(
                    job.request.repetition_penalty,
                    job.distinct.clone(),
                    job.request.max_new_tokens,
                ),
                max_new_tokens: job.request.max_new_tokens,
                reserved_pages: all - own.pages().len(),
                table: own,
                last_token: 0,
                generated: 0,
                ended: false,
            });
        }
    }
}
