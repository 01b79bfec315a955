//! The thread that owns the generator: requests in, tokens out.
//!
//! Handlers send commands and read tokens from a channel of their own, so that neither a slow client nor one that has gone
//! holds up a step. A [`Ticket`] that is dropped cancels its request, wherever that is: in the queue, in its prompt, or
//! decoding.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Instant,
};

use engine::generate::{
    FinishReason, GenerateError, Generator, GeneratorOptions, Request, RequestId, Stats,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{error::ApiError, metrics::Metrics};
use crate::session::Session;

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
}

/// What the thread says about itself after each step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) cache_usage: f64,
    pub(super) stats: Stats,
    /// Sequences per second that have ended lately; 0 before the first.
    ended_per_second: f64,
    /// The device is lost: nothing can be generated any more.
    pub(super) is_dead: bool,
}

impl State {
    /// Seconds until a sequence that comes now would be decoded, as far as the last ones tell.
    pub(super) fn wait_seconds(&self) -> f64 {
        match self.ended_per_second {
            rate if rate > 0.0 => self.waiting as f64 / rate,
            _ => 0.0,
        }
    }
}

/// Requests under way. Dropping it cancels those that have not ended.
pub(super) struct Ticket {
    id: u64,
    commands: mpsc::Sender<Command>,
    events: UnboundedReceiver<Event>,
}

impl Ticket {
    /// The next token. Where the thread has ended, the request has failed, too.
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
        let _ = self.commands.send(Command::Cancel { ticket: self.id });
    }
}

impl Worker {
    /// Starts the thread. It ends when all senders of commands have.
    pub(super) fn start(
        session: Arc<Session>,
        options: GeneratorOptions,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Worker, JoinHandle<()>)> {
        let (commands, receive) = mpsc::channel();
        let state = Arc::new(Mutex::new(State::default()));
        let worker = Worker { commands, next: Arc::default(), state: state.clone() };
        let work = move || {
            let dead = AtLast(state.clone());
            Thread { session: &session, options, receive, state, metrics, open: HashMap::new() }
                .run();
            drop(dead);
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(work)?;
        Ok((worker, thread))
    }

    /// Sends requests on their way.
    pub(super) fn submit(&self, requests: Vec<Request>) -> Ticket {
        let (send, events) = unbounded_channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let at = Instant::now();
        // Where the thread has ended, the sender of the events is dropped with the command.
        let _ = self.commands.send(Command::Submit { ticket: id, requests, events: send, at });
        Ticket { id, commands: self.commands.clone(), events }
    }

    pub(super) fn state(&self) -> State {
        *self.state.lock().expect("no panic under the lock")
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
    open: HashMap<RequestId, Open>,
}

/// A request that the generator has.
struct Open {
    ticket: u64,
    /// Which of the ticket's requests it is.
    place: usize,
    events: UnboundedSender<Event>,
    /// Samples that have not ended.
    left: usize,
    submitted: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

/// How quickly the rate of ended sequences forgets: the weight of the newest second.
const FORGET: f64 = 0.1;

impl Thread<'_> {
    fn run(mut self) {
        let mut failures = 0;
        // A generator is of no further use after its device failed. Another one may find the device well again.
        while failures < 3 {
            match self.generate() {
                Ok(()) => return,
                Err(error) => {
                    failures += 1;
                    crate::output::note(&format!("the engine failed: {error}"));
                    self.metrics.engine_failures.add(1);
                    for (_, open) in self.open.drain() {
                        let _ = open.events.send(Event::Failed(ApiError::internal(&error)));
                    }
                }
            }
        }
    }

    /// Steps until there are no more handlers, or the device fails.
    fn generate(&mut self) -> Result<(), GenerateError> {
        let language_model = &self.session.language_model;
        let stop = language_model.stop_tokens();
        let mut generator = Generator::new(&language_model.model, stop, self.options.clone())?;
        let (mut since, mut ended) = (Instant::now(), 0);
        loop {
            loop {
                let command = match generator.is_idle() {
                    true => self.receive.recv().map_err(|_| mpsc::TryRecvError::Disconnected),
                    false => self.receive.try_recv(),
                };
                match command {
                    Ok(command) => self.obey(&mut generator, command),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                }
                self.tell(&generator, None);
            }
            let (open, metrics) = (&mut self.open, &self.metrics);
            let step = generator.step(&mut |event| {
                let Some(request) = open.get_mut(&event.request) else { return };
                let now = Instant::now();
                match request.first_token {
                    None => {
                        request.first_token = Some(now);
                        metrics
                            .time_to_first_token
                            .observe((now - request.submitted).as_secs_f64());
                    }
                    // Samples of one request come side by side: the first tells for all.
                    Some(_) if event.sample > 0 => {}
                    Some(_) => {
                        metrics
                            .inter_token_latency
                            .observe((now - request.last_token).as_secs_f64());
                    }
                }
                if event.sample == 0 {
                    request.last_token = now;
                }
                ended += u64::from(event.finish.is_some());
                let _ = request.events.send(Event::Token(Token {
                    request: request.place,
                    sample: event.sample,
                    id: event.token,
                    log_prob: event.log_prob,
                    top: event.top.to_vec(),
                    finish: event.finish,
                }));
                if event.finish.is_some() {
                    request.left -= 1;
                    if request.left == 0 {
                        open.remove(&event.request);
                    }
                }
            });
            match step {
                Ok(()) => {}
                Err(error @ GenerateError::Sampling { request, .. }) => {
                    if let Some(open) = self.open.remove(&request) {
                        let _ = open.events.send(Event::Failed(ApiError::internal(&error)));
                    }
                }
                Err(error) => return Err(error),
            }
            let seconds = since.elapsed().as_secs_f64();
            let rate = (seconds >= 1.0).then(|| ended as f64 / seconds);
            if rate.is_some() {
                (since, ended) = (Instant::now(), 0);
            }
            self.tell(&generator, rate);
        }
    }

    fn obey(&mut self, generator: &mut Generator, command: Command) {
        match command {
            Command::Submit { ticket, requests, events, at } => {
                for (place, request) in requests.into_iter().enumerate() {
                    let left = request.samples.len();
                    self.metrics.prompt_tokens.add(request.prompt.len() as u64);
                    match generator.submit(request) {
                        Ok(id) => {
                            let open = Open {
                                ticket,
                                place,
                                events: events.clone(),
                                left,
                                submitted: at,
                                first_token: None,
                                last_token: at,
                            };
                            self.open.insert(id, open);
                        }
                        Err(error) => {
                            let _ = events.send(Event::Failed(ApiError::of_request(&error)));
                        }
                    }
                }
            }
            Command::End { ticket, request, sample } => {
                let is_it = |open: &Open| open.ticket == ticket && open.place == request;
                let found = self.open.iter_mut().find(|(_, open)| is_it(open));
                if let Some((&id, open)) = found {
                    generator.end(id, sample);
                    open.left -= 1;
                    if open.left == 0 {
                        self.open.remove(&id);
                    }
                }
            }
            Command::Cancel { ticket } => {
                let ids: Vec<RequestId> = self
                    .open
                    .iter()
                    .filter(|(_, open)| open.ticket == ticket)
                    .map(|(id, _)| *id)
                    .collect();
                for id in ids {
                    generator.cancel(id);
                    self.open.remove(&id);
                    self.metrics.cancelled.add(1);
                }
            }
        }
    }

    /// Updates what [`Worker::state`] says.
    fn tell(&self, generator: &Generator, rate: Option<f64>) {
        let mut state = self.state.lock().expect("no panic under the lock");
        if let Some(rate) = rate {
            let old = state.ended_per_second;
            state.ended_per_second =
                if old == 0.0 { rate } else { (1.0 - FORGET) * old + FORGET * rate };
        }
        state.running = generator.running();
        state.waiting = generator.queued();
        state.cache_usage = generator.cache_usage();
        state.stats = generator.stats();
    }
}
