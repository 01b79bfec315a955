//! Steps on a GPU.
//!
//! A step without prompts is hundreds of small kernels, each of which costs the host microseconds to launch. So it
//! is recorded ([`Gpu::record`]) and launched as one: its inputs are rewritten where the recording
//! reads them, and what it drew lies where it always does. One recording serves any sequences whose number
//! rounds to the same rows (1, 2, 4, 8, then multiples of 8) and whose longest rounds to the same power of two
//! (of 512 tokens at least). Rows that pad are a sequence of their own, of zeros in a page of its own, and what they
//! draw is nobody's. No bit depends on any of it, as none depends on a batch.
//!
//! Recordings end with their [`Generator`]: it borrows the model, whose weights and factors stay as they are
//! meanwhile, and owns the cache. What a pass makes when first asked (weights on the device, parts of factors, loaded
//! kernels) is there before anything is recorded: a sequence decodes after a prefill by the same generator.

use std::sync::Arc;

use kernels::{
    cpu::{
        attention::PAGE,
        philox::{RngKey, Stream},
        profile,
        repetition_penalty::Penalized,
        sample::SamplingParams,
    },
    cuda::{Buffer, Gpu, Graph, Penalties, SampleRequest, Workspace},
};

use super::{Draw, Generator, Seen, Sequence};
use crate::{
    model::{
        Batch,
        kv_cache::{KvCache, PageTable},
    },
    ops::gather,
    tensor::{
        Tensor,
        device::{CudaDevice, DeviceError},
    },
};

/// Recordings at most; the one launched longest ago makes room. Each holds its lists, and of the driver's memory
/// what some hundred kernels' arguments need.
const MOST: usize = 16;
/// Rows are rounded up by less than this: what pads has a page.
const STEP: usize = 8;
/// The least that recordings have room for, in tokens of a sequence: a partition of attention.
const SHORTEST: usize = 512;
const _: () = assert!(STEP <= PAGE && SHORTEST.is_multiple_of(PAGE));

/// Recorded steps of one generator.
pub(super) struct Recordings {
    most: usize,
    /// Launched last stands last.
    steps: Vec<Recorded>,
    workspace: Option<Arc<Workspace>>,
    /// Where rows that pad have keys and values.
    padding: PageTable,
    /// What the next step reads, kept for its memory.
    batch: Batch,
    requests: Vec<SampleRequest>,
    table: Vec<u32>,
}

/// A step that was recorded, and the buffers it reads and leaves.
struct Recorded {
    bucket: Bucket,
    graph: Graph,
    batch: Batch,
    requests: Buffer<u32>,
    penalties: Option<Penalties>,
    drawn: Buffer<u32>,
}

/// What one recording serves.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Bucket {
    rows: usize,
    /// Tokens of a sequence.
    longest: usize,
    /// Whether any sequence penalizes repetition.
    penalized: bool,
}

impl Bucket {
    fn of(running: &[Sequence]) -> Bucket {
        let longest = running.iter().map(|sequence| sequence.table.len()).max();
        let longest = longest.expect("a step of no rows").max(SHORTEST).next_power_of_two();
        let penalized = running.iter().any(|sequence| sequence.seen.is_penalized());
        Bucket { rows: recorded_rows(running.len()), longest, penalized }
    }
}

/// Rows of a recorded step of so many sequences.
fn recorded_rows(sequences: usize) -> usize {
    match sequences {
        ..=STEP => sequences.next_power_of_two(),
        _ => sequences.next_multiple_of(STEP),
    }
}

impl Recordings {
    /// None yet; takes the `spare` pages (0 or 1) of the cache for what pads.
    pub(super) fn new(cache: &mut KvCache, spare: usize) -> Recordings {
        let mut padding = PageTable::default();
        cache.extend(&mut padding, spare * PAGE);
        Recordings {
            most: MOST,
            steps: Vec::new(),
            workspace: None,
            padding,
            batch: Batch::default(),
            requests: Vec::new(),
            table: Vec::new(),
        }
    }

    /// Whether steps are to be recorded.
    pub(super) fn are_wanted(&self) -> bool {
        self.most > 0
    }

    /// Lays out the next step of `running` in the bucket's shape.
    fn fill(&mut self, running: &[Sequence], bucket: Bucket) {
        let Recordings { padding, batch, requests, table, .. } = self;
        let mut push = |token, position, pages: &[u32], request| {
            table.clear();
            table.extend_from_slice(pages);
            table.resize(bucket.longest / PAGE, padding.pages()[0]);
            batch.push(&[token], position, table);
            batch.want_logits();
            requests.push(request);
        };
        for sequence in running {
            let position = sequence.table.len() - 1;
            push(sequence.last_token, position, sequence.table.pages(), sequence.request());
        }
        let nobody = RngKey::new(0, 0, Stream::TOKENS);
        let params = SamplingParams::GREEDY;
        for position in 0..bucket.rows - running.len() {
            let request = SampleRequest { params, key: nobody, position: 0 };
            push(0, position, padding.pages(), request);
        }
    }
}

impl Generator<'_> {
    /// Keeps at most so many recordings; with none, kernels are launched one by one.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn limit_recordings(&mut self, most: usize) {
        self.recordings.most = most;
    }

    /// Rows and longest sequence of each recording, that launched last at the end.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn recordings(&self) -> Vec<[usize; 2]> {
        self.recordings.steps.iter().map(|step| [step.bucket.rows, step.bucket.longest]).collect()
    }

    /// Forward pass and draws of a step in which every running sequence, and nothing else, has a row.
    pub(super) fn decode_recorded(
        &mut self,
        cuda: &CudaDevice,
        draws: &mut [Draw],
    ) -> Result<(), DeviceError> {
        let bucket = Bucket::of(&self.running);
        self.recordings.batch.clear();
        self.recordings.requests.clear();
        self.recordings.fill(&self.running, bucket);
        let known = self.recordings.steps.iter().position(|step| step.bucket == bucket);
        let mut step = match known {
            Some(index) => {
                let mut step = self.recordings.steps.remove(index);
                let Recordings { batch, requests, .. } = &self.recordings;
                let penalized = self.penalized(bucket.rows);
                cuda.finish(|gpu| {
                    step.batch.rewrite(gpu, batch)?;
                    if let Some(penalties) = &mut step.penalties {
                        gpu.rewrite_penalties(penalties, &penalized)?;
                    }
                    gpu.rewrite_requests(&mut step.requests, requests)
                })?;
                step
            }
            None => {
                if self.recordings.steps.len() == self.recordings.most {
                    self.recordings.steps.remove(0);
                }
                cuda.finish(|gpu| self.record(cuda, gpu, bucket))?
            }
        };
        let samples = cuda.finish(|gpu| {
            step.graph.launch()?;
            gpu.samples(&step.drawn)
        })?;
        self.recordings.steps.push(step);
        for (draw, sample) in draws.iter_mut().zip(samples) {
            draw.result = Some(sample);
        }
        Ok(())
    }

    /// Records the step that was laid out. Nothing of it runs.
    fn record(
        &mut self,
        cuda: &CudaDevice,
        gpu: &Gpu,
        bucket: Bucket,
    ) -> Result<Recorded, DeviceError> {
        let Bucket { rows, longest, penalized } = bucket;
        let _span = profile::phase("record", [rows]);
        let batch = std::mem::take(&mut self.recordings.batch);
        self.model.upload_batch(gpu, &batch, &self.cache, longest)?;
        let requests = gpu.sample_requests(&self.recordings.requests)?;
        let vocab = self.model.config().vocab_size;
        let penalties = match penalized {
            // A sequence has no more distinct tokens than tokens.
            true => {
                let room = rows * longest.min(vocab);
                Some(gpu.penalties(&self.penalized(rows), room, vocab)?)
            }
            false => None,
        };
        let mut drawn = gpu.uninitialized(4 * rows)?;
        let workspace = match &self.recordings.workspace {
            Some(workspace) => workspace.clone(),
            None => self.recordings.workspace.insert(gpu.workspace()?).clone(),
        };
        let graph = gpu.capture("a decoding step", &workspace, || {
            let mut logits = self.model.forward(&batch, &mut self.cache);
            // An op has no error to return.
            cuda.status()?;
            if let Some(penalties) = &penalties {
                gpu.repetition_penalty(logits.f32_mut(), penalties)?;
            }
            gpu.sample(&mut drawn, logits.f32(), &requests, vocab)
        })?;
        Ok(Recorded { bucket, graph, batch, requests, penalties, drawn })
    }

    /// What the first rows, the running sequences', are penalized for; the others for nothing.
    fn penalized(&self, rows: usize) -> Vec<Penalized<'_>> {
        let mut all: Vec<_> =
            self.running.iter().map(|sequence| sequence.seen.penalized()).collect();
        all.resize(rows, Penalized::NOT);
        all
    }

    /// Draws tokens on the device of the logits; only what was drawn comes to the host.
    pub(super) fn draw_on_cuda(
        &self,
        cuda: &CudaDevice,
        logits: Tensor,
        draws: &mut [Draw],
    ) -> Result<(), DeviceError> {
        let _span = profile::phase("draw tokens", [draws.len()]);
        let request = |draw: &Draw| self.running[draw.sequence].request();
        let requests: Vec<SampleRequest> = draws.iter().map(request).collect();
        // Samples of one prompt draw from one row.
        let rows: Vec<u32> = draws.iter().map(|draw| draw.logits_row as u32).collect();
        let in_order = rows.iter().copied().eq(0..logits.shape()[0] as u32);
        let mut logits = match in_order {
            true => logits,
            false => gather::forward(&logits, &rows.into()),
        };
        let vocab = self.model.config().vocab_size;
        let seen = draws.iter().map(|draw| &self.running[draw.sequence].seen);
        let penalized: Vec<Penalized<'_>> = match seen.clone().any(Seen::is_penalized) {
            true => seen.map(Seen::penalized).collect(),
            false => Vec::new(),
        };
        let samples = cuda.finish(|gpu| {
            if !penalized.is_empty() {
                let room = penalized.iter().flat_map(|row| row.tokens).map(<[u32]>::len).sum();
                let penalties = gpu.penalties(&penalized, room, vocab)?;
                gpu.repetition_penalty(logits.f32_mut(), &penalties)?;
            }
            let mut out = gpu.uninitialized(4 * draws.len())?;
            let requests = gpu.sample_requests(&requests)?;
            gpu.sample(&mut out, logits.f32(), &requests, vocab)?;
            gpu.samples(&out)
        })?;
        for (draw, sample) in draws.iter_mut().zip(samples) {
            draw.result = Some(sample);
        }
        Ok(())
    }
}
