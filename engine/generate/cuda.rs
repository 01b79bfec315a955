//! Steps on a GPU.
//!
//! A step without prompts is hundreds of small kernels, each of which costs the host microseconds to launch. So it
//! is captured as a CUDA graph ([`Gpu::capture`]) and launched as one. Its inputs are rewritten in the buffers that the graph
//! reads, and its tokens are always in the same buffer. One graph serves any sequences whose number rounds to the same rows
//! (1, 2, 4, 8, then multiples of 8) and whose longest rounds to the same power of two (of 512 tokens at least). Rows that
//! pad are a sequence of zeros with a page of its own, and their tokens are dropped. No bit depends on any of it, as none
//! depends on a batch.
//!
//! Graphs end with their [`Generator`]: it borrows the model, whose weights and factors do not change meanwhile, and owns the
//! cache. What a pass makes when first asked (weights on the device, parts of factors, loaded kernels) is there before
//! anything is captured: a sequence decodes after a prefill by the same generator.

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

/// Graphs at most; the one launched longest ago makes room. Each holds its lists, and of the driver's memory
/// what the arguments of some hundred kernels need.
const MOST: usize = 16;
/// Rows are rounded up by less than this. One page is enough for those that pad.
const STEP: usize = 8;
/// The shortest sequence that a graph has room for, in tokens: a partition of attention.
const SHORTEST: usize = 512;
const _: () = assert!(STEP <= PAGE && SHORTEST.is_multiple_of(PAGE));

/// The captured steps of one generator.
pub(super) struct CapturedSteps {
    most: usize,
    /// In the order of their last launch.
    steps: Vec<CapturedStep>,
    workspace: Option<Arc<Workspace>>,
    /// The page of the keys and values of rows that pad.
    padding: PageTable,
    /// The inputs of the next step; kept, since their memory is used again.
    batch: Batch,
    requests: Vec<SampleRequest>,
    table: Vec<u32>,
}

/// A captured step, and the buffers that it reads and writes.
struct CapturedStep {
    bucket: Bucket,
    graph: Graph,
    batch: Batch,
    requests: Buffer<u32>,
    penalties: Option<Penalties>,
    drawn: Buffer<u32>,
}

/// The steps that one graph serves.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Bucket {
    rows: usize,
    /// Tokens of the longest sequence.
    longest: usize,
    /// Whether any sequence penalizes repetition.
    penalized: bool,
}

impl Bucket {
    fn of(running: &[Sequence]) -> Bucket {
        let longest = running.iter().map(|sequence| sequence.table.len()).max();
        let longest = longest.expect("a step of no rows").max(SHORTEST).next_power_of_two();
        let penalized = running.iter().any(|sequence| sequence.seen.is_penalized());
        Bucket { rows: captured_rows(running.len()), longest, penalized }
    }
}

/// Rows of a captured step of `sequences` sequences.
fn captured_rows(sequences: usize) -> usize {
    match sequences {
        ..=STEP => sequences.next_power_of_two(),
        _ => sequences.next_multiple_of(STEP),
    }
}

impl CapturedSteps {
    /// No step yet; takes the `spare` pages (0 or 1) of the cache for rows that pad.
    pub(super) fn new(cache: &mut KvCache, spare: usize) -> CapturedSteps {
        let mut padding = PageTable::default();
        cache.extend(&mut padding, spare * PAGE);
        CapturedSteps {
            most: MOST,
            steps: Vec::new(),
            workspace: None,
            padding,
            batch: Batch::default(),
            requests: Vec::new(),
            table: Vec::new(),
        }
    }

    /// Whether steps are to be captured.
    pub(super) fn are_wanted(&self) -> bool {
        self.most > 0
    }

    /// Lays out the next step of `running` in the bucket's shape.
    fn fill(&mut self, running: &[Sequence], bucket: Bucket) {
        let CapturedSteps { padding, batch, requests, table, .. } = self;
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
            push(sequence.last_token(), position, sequence.table.pages(), sequence.request());
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
    /// Keeps at most `most` graphs; with none, kernels are launched one by one.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn limit_captures(&mut self, most: usize) {
        self.captures.most = most;
    }

    /// Rows and longest sequence of each graph, in the order of their last launch.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn captures(&self) -> Vec<[usize; 2]> {
        self.captures.steps.iter().map(|step| [step.bucket.rows, step.bucket.longest]).collect()
    }

    /// Forward pass and draws of a step in which every running sequence, and nothing else, has a row.
    pub(super) fn decode_captured(
        &mut self,
        cuda: &CudaDevice,
        draws: &mut [Draw],
    ) -> Result<(), DeviceError> {
        let bucket = Bucket::of(&self.running);
        self.captures.batch.clear();
        self.captures.requests.clear();
        self.captures.fill(&self.running, bucket);
        let known = self.captures.steps.iter().position(|step| step.bucket == bucket);
        let mut step = match known {
            Some(index) => {
                let mut step = self.captures.steps.remove(index);
                let CapturedSteps { batch, requests, .. } = &self.captures;
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
                if self.captures.steps.len() == self.captures.most {
                    self.captures.steps.remove(0);
                }
                cuda.finish(|gpu| self.capture(cuda, gpu, bucket))?
            }
        };
        let samples = cuda.finish(|gpu| {
            step.graph.launch()?;
            gpu.samples(&step.drawn)
        })?;
        self.captures.steps.push(step);
        for (draw, sample) in draws.iter_mut().zip(samples) {
            draw.result = Some(sample);
        }
        Ok(())
    }

    /// Captures the step that was laid out. Nothing of it runs.
    fn capture(
        &mut self,
        cuda: &CudaDevice,
        gpu: &Gpu,
        bucket: Bucket,
    ) -> Result<CapturedStep, DeviceError> {
        let Bucket { rows, longest, penalized } = bucket;
        let _span = profile::phase("capture", [rows]);
        let batch = std::mem::take(&mut self.captures.batch);
        self.model.upload_batch(gpu, &batch, &self.cache, longest)?;
        let requests = gpu.sample_requests(&self.captures.requests)?;
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
        let workspace = match &self.captures.workspace {
            Some(workspace) => workspace.clone(),
            None => self.captures.workspace.insert(gpu.workspace()?).clone(),
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
        Ok(CapturedStep { bucket, graph, batch, requests, penalties, drawn })
    }

    /// The penalties of each row: those of the running sequences come first, rows that pad have none.
    fn penalized(&self, rows: usize) -> Vec<Penalized<'_>> {
        let mut all: Vec<_> =
            self.running.iter().map(|sequence| sequence.seen.penalized()).collect();
        all.resize(rows, Penalized::NOT);
        all
    }

    /// Draws tokens on the device of the logits; only the tokens come to the host.
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
        for (row, (draw, sample)) in draws.iter_mut().zip(samples).enumerate() {
            draw.result = Some(sample);
            let sequence = &self.running[draw.sequence];
            if sequence.request.top_log_probs > 0 {
                let row = gather::forward(&logits, &vec![row as u32].into()).to_vec()?;
                // Columns behind the vocabulary only pad.
                draw.top = sequence.top_of(self.model.device().host(), &row[..vocab]);
            }
        }
        Ok(())
    }
}
