//! What runs next: admission, chunks of prompts, pages as sequences grow, and who waits where they run out.
//!
//! A sequence takes a page when it needs one, not the pages of the longest completion that it may write: most end long
//! before. A job is admitted while [`HEADROOM`] pages are left for every sequence that runs. Where the pages run out all the
//! same, the youngest waits: its pages are given back and it goes to the head of the queue, with what it has written as a
//! part of its prompt. It continues with the bits that it would have had, as keys and values and draws depend on its tokens
//! alone. One sequence always fits, so that the oldest reaches its end.

use std::sync::Arc;

use kernels::cpu::{
    attention::PAGE,
    philox::{RngKey, Stream},
};

use super::{
    Destination, GenerateError, Generator, Request, RequestId, Step,
    sequence::{Seen, Sequence, distinct},
};
use crate::model::kv_cache::{KvCache, PageTable};

/// Pages that a sequence may still take beside others before it is admitted; fewer if it cannot need so many.
pub(super) const HEADROOM: usize = 8;

/// A part of a request that is scheduled as one: all its samples, or as many as fit at once.
pub(super) struct Job {
    pub(super) id: RequestId,
    /// Without its prompt, which is in `tokens`.
    pub(super) request: Arc<Request>,
    /// The prompt, and behind it what a sample had written before it had to wait.
    pub(super) tokens: Arc<[u32]>,
    /// How many of them are the prompt.
    pub(super) prompt: usize,
    /// The distinct tokens of the prompt, if they are penalized.
    pub(super) distinct: Arc<[u32]>,
    /// Which of the request's samples: `first_sample..first_sample + samples`.
    pub(super) first_sample: usize,
    pub(super) samples: usize,
}

pub(super) struct Prefill {
    pub(super) job: Job,
    pub(super) table: PageTable,
}

impl Job {
    /// Pages of a sample that is as long as it may become.
    fn most_pages(&self) -> usize {
        KvCache::pages_for(self.prompt + self.request.max_new_tokens)
    }

    /// Pages that each sample but one takes for itself when the prompt is done: a copy of the last, if that is not full.
    fn copied_pages(&self) -> usize {
        usize::from(!self.tokens.len().is_multiple_of(PAGE))
    }

    /// Pages that each sample may soon take beyond those of the prompt.
    fn headroom(&self) -> usize {
        (self.most_pages() - KvCache::pages_for(self.tokens.len())).min(HEADROOM)
    }
}

impl Sequence {
    /// Pages that it may soon take.
    fn headroom(&self) -> usize {
        let most = KvCache::pages_for(self.prompt.len() + self.request.max_new_tokens);
        (most - self.table.pages().len()).min(HEADROOM)
    }
}

impl Generator<'_> {
    /// Queues a request. Its tokens come from [`Generator::step`].
    pub fn submit(&mut self, request: Request) -> Result<RequestId, GenerateError> {
        assert!(!request.samples.is_empty(), "a request for no samples");
        assert!(request.max_new_tokens > 0, "a request for no tokens");
        super::repetition_penalty::validate(request.repetition_penalty)
            .map_err(GenerateError::Penalty)?;
        request.sampling.validate().map_err(GenerateError::Params)?;
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
        // A job holds at most the samples that can start at once in the batch and the cache.
        let shared = prompt / PAGE;
        let each = (needed_pages - shared).min(1 + HEADROOM);
        let fitting = ((self.pages - shared) / each).clamp(1, self.options.max_batch);
        let total = request.samples.len();
        let distinct = distinct(&request.prompt, request.repetition_penalty);
        let mut request = request;
        let tokens: Arc<[u32]> = std::mem::take(&mut request.prompt).into();
        let request = Arc::new(request);
        for first_sample in (0..total).step_by(fitting) {
            let samples = fitting.min(total - first_sample);
            let (request, tokens, distinct) = (request.clone(), tokens.clone(), distinct.clone());
            self.queue.push_back(Job {
                id,
                request,
                tokens,
                prompt,
                distinct,
                first_sample,
                samples,
            });
        }
        Ok(id)
    }

    /// Ends a sample before its time, between steps: no more of its tokens come. One that has ended stays ended; one that has no
    /// token yet beside others of its request goes on, as it cannot be told from them.
    pub fn end(&mut self, request: RequestId, sample: usize) {
        for sequence in &mut self.running {
            sequence.ended |= sequence.id == request && sequence.sample == sample;
        }
        self.release_ended();
        let is_it = |job: &Job| job.id == request && job.samples == 1 && job.first_sample == sample;
        self.queue.retain(|job| !is_it(job));
        if self.prefill.as_ref().is_some_and(|prefill| is_it(&prefill.job)) {
            self.take_prefill_back();
        }
    }

    /// Ends a request, whatever has become of it: in the queue, in its prompt, or running. No more of its tokens come, and
    /// its pages are free. Between steps; one that has ended, or is not known, is left as it is.
    pub fn cancel(&mut self, request: RequestId) {
        self.queue.retain(|job| job.id != request);
        if self.prefill.as_ref().is_some_and(|prefill| prefill.job.id == request) {
            self.take_prefill_back();
        }
        for sequence in &mut self.running {
            sequence.ended |= sequence.id == request;
        }
        self.release_ended();
    }

    /// Gives the pages of the prompt under way back, and returns its job.
    fn take_prefill_back(&mut self) -> Option<Job> {
        let Prefill { job, table } = self.prefill.take()?;
        self.cache.release(table);
        self.reserved_pages = 0;
        Some(job)
    }

    /// Lets the youngest wait until every running sequence can take the page that its next token needs.
    pub(super) fn make_room(&mut self) {
        let needs_page = |sequence: &&super::Sequence| sequence.table.len().is_multiple_of(PAGE);
        loop {
            let needed = self.running.iter().filter(needs_page).count();
            if needed + self.reserved_pages <= self.cache.available_pages() {
                return;
            }
            if let Some(job) = self.take_prefill_back() {
                self.queue.push_front(job);
                continue;
            }
            let age = |&index: &usize| (self.running[index].id, self.running[index].sample);
            let youngest =
                (0..self.running.len()).max_by_key(age).expect("a sequence needs a page");
            let waits = self.running.swap_remove(youngest);
            let tokens: Arc<[u32]> = [&waits.prompt[..], &waits.written].concat().into();
            // They are found again where their room was not needed.
            self.cache.publish_prefix(&waits.table, &tokens);
            self.cache.release(waits.table);
            self.stats.preemptions += 1;
            self.queue.push_front(Job {
                id: waits.id,
                request: waits.request,
                tokens,
                prompt: waits.prompt.len(),
                distinct: waits.seen.of_prompt(),
                first_sample: waits.sample,
                samples: 1,
            });
        }
    }

    /// Fills the batch with prompt rows: the prompt under way, then new ones while there is room.
    pub(super) fn schedule_prompts(&mut self, step: &mut Step) {
        let Step { batch, destinations, prefilled, .. } = step;
        let mut rows = self.options.prefill_rows;
        while rows > 0 {
            let Some(Prefill { job, mut table }) =
                self.prefill.take().or_else(|| self.admit(prefilled))
            else {
                break;
            };
            let tokens = &job.tokens;
            let start = table.len();
            let chunk = (tokens.len() - start).min(rows);
            let pages_before = table.pages().len();
            self.cache.extend(&mut table, chunk);
            self.reserved_pages -= table.pages().len() - pages_before;
            self.cache.publish_prefix(&table, tokens);
            batch.push(&tokens[start..start + chunk], start, table.pages());
            self.stats.prompt_tokens += chunk as u64;
            rows -= chunk;
            let done = table.len() == tokens.len();
            let prefill = Prefill { job, table };
            if done {
                batch.want_logits();
                destinations.push(Destination::Prefilled);
                prefilled.push(prefill);
            } else {
                self.prefill = Some(prefill);
            }
        }
    }

    /// Takes the next job if its samples fit beside the running sequences and those that join them.
    fn admit(&mut self, joining: &[Prefill]) -> Option<Prefill> {
        let job = self.queue.front()?;
        let join: usize = joining.iter().map(|prefill| prefill.job.samples).sum();
        if self.running.len() + join + job.samples > self.options.max_batch {
            return None;
        }
        // The last token is computed in any case: its logits are needed.
        let known = &job.tokens[..job.tokens.len() - 1];
        let (found, idle) = self.cache.find_prefix(known);
        let own = KvCache::pages_for(job.tokens.len()) - KvCache::pages_for(found);
        let new = own + (job.samples - 1) * job.copied_pages();
        let of_joining = |prefill: &Prefill| prefill.job.samples * prefill.job.headroom();
        let headroom = self.running.iter().map(Sequence::headroom).sum::<usize>()
            + joining.iter().map(of_joining).sum::<usize>()
            + job.samples * job.headroom();
        if new + idle + self.reserved_pages + headroom > self.cache.available_pages() {
            return None;
        }
        let job = self.queue.pop_front()?;
        let table = self.cache.attach_prefix(&job.tokens[..job.tokens.len() - 1]);
        self.stats.shared_tokens += table.len() as u64;
        self.reserved_pages += new;
        Some(Prefill { job, table })
    }

    /// Turns a prefilled prompt into its running samples. The last takes the prompt's own table.
    pub(super) fn start_samples(&mut self, prefill: Prefill) {
        let Prefill { job, table } = prefill;
        let (prompt, written) = job.tokens.split_at(job.prompt);
        // Of one sample, if it has written anything, no other shares the tokens.
        let prompt: Arc<[u32]> =
            if written.is_empty() { job.tokens.clone() } else { prompt.into() };
        let most = job.request.max_new_tokens;
        let mut table = Some(table);
        for sample in job.first_sample..job.first_sample + job.samples {
            let last = sample + 1 == job.first_sample + job.samples;
            let mut own = if last {
                table.take().expect("taken once")
            } else {
                let prompt = table.as_ref().expect("taken last");
                self.reserved_pages -= job.copied_pages();
                self.cache.fork(prompt)
            };
            own.reserve(job.most_pages());
            let mut seen = Seen::new(job.request.repetition_penalty, job.distinct.clone(), most);
            written.iter().for_each(|&token| seen.push(token));
            let mut all = Vec::with_capacity(most);
            all.extend_from_slice(written);
            self.running.push(Sequence {
                id: job.id,
                sample,
                key: RngKey::new(job.request.seed, job.request.samples[sample], Stream::TOKENS),
                request: job.request.clone(),
                prompt: prompt.clone(),
                written: all,
                seen,
                table: own,
                ended: false,
            });
        }
    }
}
