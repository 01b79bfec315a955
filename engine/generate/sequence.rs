//! A running sequence: its end, and the tokens it holds where they are penalized.

use std::sync::Arc;

use kernels::{
    cpu::{
        Cpu,
        philox::RngKey,
        repetition_penalty::{self, Penalized},
        sample,
    },
    cuda::SampleRequest,
};

use super::{Generator, Request, RequestId};
use crate::{model::kv_cache::PageTable, tensor::Tensor};

pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) sample: usize,
    pub(super) key: RngKey,
    /// Without its prompt.
    pub(super) request: Arc<Request>,
    pub(super) prompt: Arc<[u32]>,
    /// The completion so far. The keys and values of its last token are not in the table yet.
    pub(super) written: Vec<u32>,
    pub(super) seen: Seen,
    pub(super) table: PageTable,
    /// Whether it leaves at the end of the step.
    pub(super) ended: bool,
}

impl Sequence {
    /// The next draw.
    pub(super) fn request(&self) -> SampleRequest {
        let position = self.written.len() as u32;
        SampleRequest { params: self.request.sampling, key: self.key, position }
    }

    /// The most probable next tokens by its row of logits, as many as its request asks for.
    pub(super) fn top_of(&self, cpu: &Cpu, logits: &[f32]) -> Vec<(u32, f32)> {
        let Request { sampling, top_log_probs, .. } = *self.request;
        match top_log_probs {
            0 => Vec::new(),
            // What is wrong with the logits was said by the draw.
            most => {
                sample::most_probable(cpu, logits, sampling.temperature, most).unwrap_or_default()
            }
        }
    }

    pub(super) fn last_token(&self) -> u32 {
        *self.written.last().expect("a running sequence has drawn a token")
    }
}

/// The distinct tokens of a sequence. Kept only if repetition is penalized.
pub(super) struct Seen {
    penalty: f32,
    /// The tokens of the prompt, sorted; one list for all its samples.
    prompt: Arc<[u32]>,
    /// The others, sorted.
    written: Vec<u32>,
}

/// The distinct tokens of a prompt, sorted; empty if repetition is not penalized.
pub(super) fn distinct(prompt: &[u32], penalty: f32) -> Arc<[u32]> {
    if penalty == 1.0 {
        return Arc::new([]);
    }
    let mut tokens = prompt.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    tokens.into()
}

impl Seen {
    /// For a sequence that has its prompt and will write `most` tokens at most.
    pub(super) fn new(penalty: f32, prompt: Arc<[u32]>, most: usize) -> Seen {
        let room = if penalty == 1.0 { 0 } else { most };
        Seen { penalty, prompt, written: Vec::with_capacity(room) }
    }

    /// The distinct tokens of the prompt.
    pub(super) fn of_prompt(&self) -> Arc<[u32]> {
        self.prompt.clone()
    }

    pub(super) fn is_penalized(&self) -> bool {
        self.penalty != 1.0
    }

    /// Adds a token that was written.
    pub(super) fn push(&mut self, token: u32) {
        if self.is_penalized()
            && self.prompt.binary_search(&token).is_err()
            && let Err(place) = self.written.binary_search(&token)
        {
            self.written.insert(place, token);
        }
    }

    pub(super) fn penalized(&self) -> Penalized<'_> {
        Penalized { tokens: [&self.prompt, &self.written], penalty: self.penalty }
    }
}

impl Generator<'_> {
    /// Penalizes repetition, where any sequence asks for it.
    pub(super) fn penalize(&self, logits: &mut Tensor, first_of_row: &[usize]) {
        if !self.running.iter().any(|sequence| sequence.seen.is_penalized()) {
            return;
        }
        let (cpu, vocab) = (self.model.device().host(), self.model.config().vocab_size);
        let of_row = |row: usize| self.running[first_of_row[row]].seen.penalized();
        repetition_penalty::apply(cpu, logits.data_mut(), vocab, &of_row);
    }
}
