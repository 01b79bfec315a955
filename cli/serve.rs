//! `j1 serve`: a judge, and the model under it, behind HTTP.
//!
//! One thread owns the generator ([`worker`]); one runs the connections. A request is read and checked ([`completion`],
//! [`judging`], [`rewards`]), sent to the engine, and answered as its tokens come. What a request gets depends on its own
//! bytes alone, as no token depends on what else runs.

mod body;
mod completion;
mod error;
mod fields;
mod generation;
mod http;
mod item;
mod judging;
mod metrics;
mod rewards;
mod text;
mod worker;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use engine::{generate::Request, text::chat::RenderOptions};
pub(crate) use http::{Limits, Options, run};
use tokio::sync::Semaphore;
use trainer::judge::Judge;

use crate::session::{JudgeRoom, Session};
use completion::Kind;
use error::ApiError;
use fields::Fields;
use metrics::Metrics;
use worker::{Ticket, Worker};

/// How completions are drawn where a request does not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_k: u32,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
}

/// What is served, and to whom.
pub(crate) struct Served {
    session: Arc<Session>,
    worker: Worker,
    metrics: Arc<Metrics>,
    /// Names of the model, the first of which answers have.
    names: Vec<String>,
    defaults: Defaults,
    render_options: RenderOptions,
    /// Of all that decides what is answered.
    fingerprint: String,
    /// What judgements, and completions whose request does not say, have room for.
    room: JudgeRoom,
    /// The reply with which one reply alone is compared.
    reference: Option<String>,
    limits: Limits,
    /// Tokens that the memory for keys and values has room for.
    cache_tokens: usize,
    /// KiB that bodies may take while they are read.
    bodies: Arc<Semaphore>,
    is_draining: AtomicBool,
    random: RandomState,
    drawn: AtomicU64,
    started: u64,
}

impl Served {
    fn positions(&self) -> usize {
        self.session.language_model.model.config().max_position_embeddings
    }

    /// The name that a request calls the model; without one, the first.
    fn model_name(&self, fields: Fields<'_>) -> Result<String, ApiError> {
        match fields.text("model")? {
            None | Some("") => Ok(self.names[0].clone()),
            Some(name) if self.names.iter().any(|known| known == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::no_model(name)),
        }
    }

    /// A number that no other request of this process has.
    fn draw(&self) -> u64 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.drawn.fetch_add(1, Ordering::Relaxed));
        hasher.finish()
    }

    /// The seed of a request that names none. It fits a JSON number that clients read as a float.
    fn fresh_seed(&self) -> u64 {
        self.draw() >> 12
    }

    fn fresh_id(&self, kind: Kind) -> String {
        let start = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        format!("{start}-{:016x}{:016x}", self.draw(), self.draw())
    }

    /// Tokens that a completion may have.
    fn new_tokens(&self, prompt: usize, asked: Option<usize>) -> Result<usize, ApiError> {
        let positions = self.positions();
        let left = positions.saturating_sub(prompt);
        match asked {
            _ if left == 0 => Err(ApiError::too_long(positions, asked.unwrap_or(1), prompt)),
            Some(tokens) if tokens > left => Err(ApiError::too_long(positions, tokens, prompt)),
            Some(tokens) => Ok(tokens),
            None => {
                let room = self.cache_tokens.saturating_sub(prompt).max(1);
                Ok(left.min(self.room.max_new_tokens).min(room))
            }
        }
    }

    /// Samples that have to wait for others.
    fn waiting(&self) -> usize {
        self.worker.open().saturating_sub(self.room.options.max_batch)
    }

    /// Sends requests to the engine, unless they cannot run or would wait too long.
    fn submit(&self, requests: Vec<Request>) -> Result<Ticket, ApiError> {
        let vocab = self.session.language_model.model.config().vocab_size;
        for request in &requests {
            if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
                return Err(ApiError::bad(format!(
                    "token id {token} is beyond the model's {vocab}"
                )));
            }
            let tokens = request.prompt.len() + request.max_new_tokens;
            if tokens > self.cache_tokens {
                return Err(ApiError::bad(format!(
                    "{tokens} tokens of prompt and completion are more than the {} that the server's memory for keys and \
                     values holds: ask for fewer (or start it with more --cache-memory)",
                    self.cache_tokens
                )));
            }
        }
        let state = self.worker.state();
        let refuse = |message: &str, retry_after: f64| {
            self.metrics.refused.add(1);
            Err(ApiError::busy(message, retry_after.clamp(1.0, 600.0) as u64))
        };
        if state.is_dead {
            return refuse("the engine has ended", 60.0);
        }
        if self.is_draining.load(Ordering::Relaxed) {
            return refuse("the server is about to end", 60.0);
        }
        let waiting = self.waiting();
        let wait = state.wait_seconds(waiting);
        if wait > self.limits.max_wait_seconds {
            let message =
                format!("a request that comes now would wait {wait:.0} s; try again later");
            return refuse(&message, wait - self.limits.max_wait_seconds);
        }
        let asked: usize = requests.iter().map(|request| request.samples.len()).sum();
        if asked > self.limits.max_queue {
            let most = self.limits.max_queue;
            return Err(ApiError::bad(format!(
                "{asked} completions are more than the {most} that may wait at once"
            )));
        }
        if waiting + asked > self.limits.max_queue {
            return refuse("the queue is full; try again later", 5.0);
        }
        Ok(self.worker.submit(requests))
    }

    /// The judge, as flags have it.
    fn judge(&self) -> Judge<'_> {
        self.session.judge_within(&self.room)
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
