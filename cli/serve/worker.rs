//! The thread that owns the generator: requests in, tokens out.
//!
//! Handlers send commands and read tokens from a channel of their own, so that neither a slow client nor one that has gone
//! holds up a step. A [`Ticket`] that is dropped cancels its requests, wherever they are: in the queue, in their prompts, or
//! decoding.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Instant,
};

use engine::generate::{
    FinishReason, GenerateError, Generator, GeneratorOptions, Request, RequestId, Stats, TokenEvent,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{error::ApiError, metrics::Metrics};
use crate::{Failure, output::note, session::Session};

/// Failures of the device in a row after which the thread gives up.
const FAILURES: u32 = 3;

/// One token of one sample, on its way to a client.
#[derive(Debug)]
pub(super) struct Token {
    /// Which of the ticket's requests.
    pub(super) request: usize,
    /// Which of the request's samples.
    pub(super) sample: usize,
    pub(super) id: u32,
    pub(super) log_prob: f32,
    pub(super) top: Vec<(u32, f32)>,
    /// Set with the last one.
    pub(super) finish: Option<FinishReason>,
}

/// What a handler reads.
#[derive(Debug)]
pub(super) enum Event {
    Token(Token),
    /// A request ended without its tokens.
    Failed(ApiError),
}

enum Command {
    Submit {
        ticket: u64,
        requests: Vec<Request>,
        events: UnboundedSender<Event>,
        at: Instant,
    },
    /// No more tokens of one sample are wanted.
    End {
        ticket: u64,
        request: usize,
        sample: usize,
    },
    Cancel {
        ticket: u64,
    },
}

/// The way to the thread.
#[derive(Clone)]
pub(super) struct Worker {
    commands: mpsc::Sender<Command>,
    next: Arc<AtomicU64>,
    state: Arc<Mutex<State>>,
    /// Samples that were sent and have not ended.
    open: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

/// What the thread says about itself after each step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) cache_usage: f64,
    pub(super) stats: Stats,
    pace: Pace,
    /// Nothing can be generated any more.
    pub(super) is_dead: bool,
}

/// How fast tokens come while any are asked for, and how many a sample has; of the latest, 0 before the first.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    tokens_per_second: f64,
    tokens_per_sample: f64,
}

impl Pace {
    /// `old` with a share of `new`.
    fn mixed(old: f64, new: f64, share: f64) -> f64 {
        if old == 0.0 { new } else { (1.0 - share) * old + share * new }
    }
}

impl State {
    /// Seconds until so many samples that wait are written, as far as the latest tell.
    pub(super) fn wait_seconds(&self, waiting: usize) -> f64 {
        match self.pace {
            Pace { tokens_per_second, tokens_per_sample } if tokens_per_second > 0.0 => {
                waiting as f64 * tokens_per_sample / tokens_per_second
            }
            _ => 0.0,
        }
    }
}

/// Requests under way. Dropping it cancels those that have not ended.
pub(super) struct Ticket {
    id: u64,
    commands: mpsc::Sender<Command>,
    events: UnboundedReceiver<Event>,
    metrics: Arc<Metrics>,
    submitted: Instant,
}

impl Ticket {
    /// The next token. `None` when all have ended, or the thread has.
    pub(super) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Ends a sample before its time. Tokens that are on their way still come.
    pub(super) fn end(&self, request: usize, sample: usize) {
        let _ = self.commands.send(Command::End { ticket: self.id, request, sample });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.metrics.request_latency.observe(self.submitted.elapsed().as_secs_f64());
        let _ = self.commands.send(Command::Cancel { ticket: self.id });
    }
}

impl Worker {
    /// Starts the thread, which ends when nobody can send it commands any more. Returns when it has its memory.
    pub(super) fn start(
        session: Arc<Session>,
        options: GeneratorOptions,
        metrics: Arc<Metrics>,
    ) -> Result<(Worker, JoinHandle<()>), Failure> {
        let (commands, receive) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let (state, open): (Arc<Mutex<State>>, Arc<AtomicUsize>) = Default::default();
        let worker = Worker {
            commands,
            next: Arc::default(),
            state: state.clone(),
            open: open.clone(),
            metrics: metrics.clone(),
        };
        let work = move || {
            let _at_last = AtLast(state.clone());
            let of_session = &session;
            let (samples, requests) = (open, HashMap::new());
            Thread {
                session: of_session,
                options,
                receive,
                state,
                metrics,
                samples,
                open: requests,
            }
            .run(&ready);
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(work)?;
        match is_ready.recv() {
            Ok(Ok(())) => Ok((worker, thread)),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err("the engine's thread ended at once".into()),
        }
    }

    /// Sends requests on their way.
    pub(super) fn submit(&self, requests: Vec<Request>) -> Ticket {
        let (send, events) = unbounded_channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let submitted = Instant::now();
        let samples: usize = requests.iter().map(|request| request.samples.len()).sum();
        self.open.fetch_add(samples, Ordering::Relaxed);
        // Where the thread has ended, the sender of the events is dropped with the command.
        let _ = self.commands.send(Command::Submit {
            ticket: id,
            requests,
            events: send,
            at: submitted,
        });
        let (commands, metrics) = (self.commands.clone(), self.metrics.clone());
        Ticket { id, commands, events, metrics, submitted }
    }

    pub(super) fn state(&self) -> State {
        *self.state.lock().expect("no panic under the lock")
    }

    /// Samples that were sent and have not ended.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Marks the state dead when the thread ends, be it by a panic.
struct AtLast(Arc<Mutex<State>>);

impl Drop for AtLast {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.lock() {
            state.is_dead = true;
        }
    }
}

struct Thread<'a> {
    session: &'a Session,
    options: GeneratorOptions,
    receive: mpsc::Receiver<Command>,
    state: Arc<Mutex<State>>,
    metrics: Arc<Metrics>,
    samples: Arc<AtomicUsize>,
    open: HashMap<RequestId, Open>,
}

/// A request that the generator has.
struct Open {
    ticket: u64,
    /// Which of the ticket's requests it is.
    place: usize,
    events: UnboundedSender<Event>,
    samples: Vec<Progress>,
    submitted: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

/// A sample of a request.
#[derive(Clone, Copy, Default)]
struct Progress {
    tokens: u32,
    has_ended: bool,
}

impl Thread<'_> {
    fn run(mut self, ready: &mpsc::Sender<Result<(), GenerateError>>) {
        let mut failures = 0;
        // A generator is of no further use after its device failed. Another one may find the device well again.
        loop {
            let language_model = &self.session.language_model;
            let stop = language_model.stop_tokens();
            let error = match Generator::new(&language_model.model, stop, self.options.clone()) {
                Ok(mut generator) => {
                    let _ = ready.send(Ok(()));
                    match self.generate(&mut generator) {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) if failures == 0 => {
                    let _ = ready.send(Err(error));
                    return;
                }
                Err(error) => error,
            };
            note(&format!("the engine failed: {error}"));
            self.metrics.engine_failures.add(1);
            // In a row: one that made steps had worked.
            let steps = self.state.lock().expect("no panic under the lock").stats.steps;
            failures = if steps > 1 { 1 } else { failures + 1 };
            for (_, open) in self.open.drain() {
                let _ = open.events.send(Event::Failed(ApiError::internal(&error)));
            }
            self.samples.store(0, Ordering::Relaxed);
            if failures == FAILURES {
                return;
            }
        }
    }

    /// Steps until there are no more handlers, or the device fails.
    fn generate(&mut self, generator: &mut Generator) -> Result<(), GenerateError> {
        // Seconds of steps, and tokens in them, since the pace was told last.
        let (mut busy, mut tokens) = (0.0, 0);
        loop {
            loop {
                let command = match generator.is_idle() {
                    true => self.receive.recv().map_err(|_| mpsc::TryRecvError::Disconnected),
                    false => self.receive.try_recv(),
                };
                match command {
                    Ok(command) => self.obey(generator, command),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                }
                self.tell(generator);
            }
            let begin = Instant::now();
            let step = generator.step(&mut |event| {
                tokens += 1;
                self.pass_on(event);
            });
            match step {
                Ok(()) => {}
                Err(error) => {
                    let GenerateError::Sampling { request, others, .. } = &error else {
                        return Err(error);
                    };
                    for id in others.iter().chain([request]) {
                        if let Some(open) = self.open.remove(id) {
                            self.forget(&open);
                            let _ = open.events.send(Event::Failed(ApiError::internal(&error)));
                        }
                    }
                }
            }
            busy += begin.elapsed().as_secs_f64();
            if busy > 1.0 {
                let mut state = self.state.lock().expect("no panic under the lock");
                let pace = &mut state.pace;
                pace.tokens_per_second =
                    Pace::mixed(pace.tokens_per_second, tokens as f64 / busy, 0.1);
                (busy, tokens) = (0.0, 0);
            }
            self.tell(generator);
        }
    }

    /// Sends a token to its handler.
    fn pass_on(&mut self, event: TokenEvent<'_>) {
        let Some(request) = self.open.get_mut(&event.request) else { return };
        let now = Instant::now();
        match request.first_token {
            None => {
                request.first_token = Some(now);
                let waited = (now - request.submitted).as_secs_f64();
                self.metrics.time_to_first_token.observe(waited);
            }
            // Samples of one request come side by side: the first tells for all.
            Some(_) if event.sample > 0 => {}
            Some(_) => {
                let waited = (now - request.last_token).as_secs_f64();
                self.metrics.inter_token_latency.observe(waited);
            }
        }
        if event.sample == 0 {
            request.last_token = now;
        }
        request.samples[event.sample].tokens += 1;
        let _ = request.events.send(Event::Token(Token {
            request: request.place,
            sample: event.sample,
            id: event.token,
            log_prob: event.log_prob,
            top: event.top.to_vec(),
            finish: event.finish,
        }));
        if event.finish.is_some() {
            self.ended(event.request, event.sample);
        }
    }

    /// A sample has ended, if it has not before.
    fn ended(&mut self, id: RequestId, sample: usize) {
        let Some(request) = self.open.get_mut(&id) else { return };
        let progress = &mut request.samples[sample];
        if std::mem::replace(&mut progress.has_ended, true) {
            return;
        }
        let tokens = f64::from(progress.tokens);
        self.samples.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.state.lock().expect("no panic under the lock");
        state.pace.tokens_per_sample = Pace::mixed(state.pace.tokens_per_sample, tokens, 0.02);
        if request.samples.iter().all(|sample| sample.has_ended) {
            self.open.remove(&id);
        }
    }

    /// Takes what is open of a request out of the count.
    fn forget(&self, open: &Open) {
        let left = open.samples.iter().filter(|sample| !sample.has_ended).count();
        self.samples.fetch_sub(left, Ordering::Relaxed);
    }

    fn obey(&mut self, generator: &mut Generator, command: Command) {
        match command {
            Command::Submit { ticket, requests, events, at } => {
                for (place, request) in requests.into_iter().enumerate() {
                    let samples = vec![Progress::default(); request.samples.len()];
                    self.metrics.prompt_tokens.add(request.prompt.len() as u64);
                    let open = Open {
                        ticket,
                        place,
                        events: events.clone(),
                        samples,
                        submitted: at,
                        first_token: None,
                        last_token: at,
                    };
                    match generator.submit(request) {
                        Ok(id) => drop(self.open.insert(id, open)),
                        Err(error) => {
                            self.forget(&open);
                            let _ = events.send(Event::Failed(ApiError::of_request(&error)));
                        }
                    }
                }
            }
            Command::End { ticket, request, sample } => {
                let is_it = |open: &Open| open.ticket == ticket && open.place == request;
                let found = self.open.iter().find(|(_, open)| is_it(open)).map(|(id, _)| *id);
                if let Some(id) = found {
                    generator.end(id, sample);
                    self.ended(id, sample);
                }
            }
            Command::Cancel { ticket } => {
                let of_ticket = self.open.iter().filter(|(_, open)| open.ticket == ticket);
                let ids: Vec<RequestId> = of_ticket.map(|(id, _)| *id).collect();
                for id in ids {
                    generator.cancel(id);
                    let open = self.open.remove(&id).expect("it was found");
                    self.forget(&open);
                    self.metrics.cancelled.add(1);
                }
            }
        }
    }

    /// Updates what [`Worker::state`] says.
    fn tell(&self, generator: &Generator) {
        let mut state = self.state.lock().expect("no panic under the lock");
        state.running = generator.running();
        state.waiting = generator.queued();
        state.cache_usage = generator.cache_usage();
        state.stats = generator.stats();
    }
}
