//! The judge at work: pairs of replies in, judgements out.
//!
//! Judgements of one prompt (the votes of one pair in one order) are samples of one request; both
//! orders of a pair share what their prompts have in common. What a judgement says depends on its
//! pair, order, vote and the seed alone, so a run may be cut and continued anywhere.

pub mod prompt;
pub mod ranking;
mod stop;
pub mod verdict;
mod writing;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use engine::{
    generate::{self, Generator, RequestId, SamplingParams, Stats},
    language_model::LanguageModel,
    text::{
        chat::{self, ChatError, ChatTemplate, Date, RenderOptions},
        tokenizer::{Encoded, Tokenizer, TokenizerError},
    },
};

use crate::{
    data::Pair,
    eval::results::Record,
    judge::prompt::{Order, OrderPlan, PromptError, PromptInput, Template},
};
pub use writing::Writing;

/// Votes of one pair and order at most.
pub const MAX_VOTES: u32 = 1 << 16;

/// How judgements are written.
pub struct Judge<'a> {
    /// The model with its tokenizer and chat template.
    pub language_model: &'a LanguageModel,
    /// Template of the judge's prompt.
    pub template: &'a Template,
    /// Whether it may think first; `None` leaves it to the chat template.
    pub thinking: Option<bool>,
    /// Today's date for the chat template; `None`: no date.
    pub date: Option<Date>,
    /// Temperature and truncation.
    pub sampling: SamplingParams,
    /// Of tokens that prompt or judgement hold already; 1 is none. See [`generate::repetition_penalty`].
    pub repetition_penalty: f32,
    /// Texts that end a judgement, none of them empty. It keeps the one that ended it, as with transformers, and
    /// nothing behind it.
    pub stop_strings: &'a [String],
    /// Seed of the run.
    pub seed: u64,
    /// Tokens of a judgement at most.
    pub max_new_tokens: usize,
    /// Longer prompts are not judged, and reported as such.
    pub max_prompt_tokens: usize,
    /// How much runs at once.
    pub options: generate::GeneratorOptions,
}

/// One judgement to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Index of the pair in the slice given to [`Judge::run`].
    pub pair: usize,
    /// The reply in slot A.
    pub order: Order,
    /// Number of the judgement among those of this pair and order.
    pub vote: u32,
}

/// The judgements of a pair whose data have it in this row, those of one order side by side.
pub fn tasks_of(pair: usize, row: u64, order: OrderPlan, votes: u32, seed: u64) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for vote in 0..votes {
        let orders = order.orders(seed, row, vote);
        tasks.extend(orders.iter().map(|&order| Task { pair, order, vote }));
    }
    tasks.sort_by_key(|task| (task.order, task.vote));
    tasks
}

/// An event of a run.
pub enum JudgeEvent<'e> {
    /// More text of one judgement.
    Text {
        /// The judgement that the text belongs to.
        task: Task,
        /// Text completed by the latest token. Incomplete UTF-8 is held back.
        text: &'e str,
    },
    /// A forward pass ended.
    Step(Stats),
    /// A judgement is complete.
    Done(Task, Record),
}

/// The end of a run: complete or interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// All judgements were made.
    Complete,
    /// The caller's flag was raised; judgements under way are lost.
    Interrupted,
}

/// Error of the callback that receives the events.
pub type CallbackError = Box<dyn std::error::Error + Send + Sync>;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // one variant a part
pub enum JudgeError {
    #[error("row {row} ({id}): {source}")]
    Prompt { row: u64, id: String, source: PromptError },
    #[error("row {row} ({id}): {source}")]
    Chat { row: u64, id: String, source: Box<ChatError> },
    #[error(
        "row {row} ({id}): {source}; without the system prompt it accepts it: use a template file that begins with an empty system \
         part, the line ---system--- followed by the line ---user---"
    )]
    NoSystem { row: u64, id: String, source: Box<ChatError> },
    #[error(
        "row {row} ({id}): the prompt has more than {at_least} tokens, and the model {positions} positions; if the template does not \
         repeat anything, leave the pair out"
    )]
    TooLong { row: u64, id: String, at_least: usize, positions: usize },
    #[error("row {row} ({id}): {source}")]
    Tokenizer { row: u64, id: String, source: TokenizerError },
    #[error("row {row} ({id}): {source}")]
    Generate { row: u64, id: String, source: generate::GenerateError },
    /// No row's fault: the device failed, or there is no memory.
    #[error("{0}")]
    Machine(#[source] generate::GenerateError),
    #[error("{0}")]
    Callback(#[source] CallbackError),
}

/// A request under way: all votes of one pair and order that are still to be made.
struct Open<'a> {
    prompt_tokens: usize,
    votes: Vec<Writing<'a>>,
    left: usize,
}

/// Pairs to prompts, without a model.
#[derive(Clone, Copy, Debug)]
pub struct Prompter<'a> {
    /// Template of the judge's prompt.
    pub template: &'a Template,
    /// How that becomes a conversation with the model.
    pub chat: &'a ChatTemplate,
    /// The tokenizer: text to ids.
    pub tokenizer: &'a Tokenizer,
    /// Options of the chat template.
    pub options: RenderOptions,
    /// The model's: a prompt of many more tokens is not encoded to its end.
    pub positions: usize,
}

impl Prompter<'_> {
    /// The prompt of a pair in an order, as the model reads it.
    pub fn text(&self, pair: &Pair, order: Order) -> Result<String, JudgeError> {
        let (row, id) = (pair.row, || pair.id.clone());
        let (response_a, response_b) = order.slots(pair);
        let input = PromptInput { messages: &pair.prompt, response_a, response_b };
        let prompt = self.template.render(&input).map_err(|source| JudgeError::Prompt {
            row,
            id: id(),
            source,
        })?;
        let messages: Vec<chat::Message> = prompt
            .messages()
            .into_iter()
            .map(|message| chat::Message { role: message.role, content: message.content })
            .collect();
        let render = |messages: &[chat::Message]| self.chat.render(messages, self.options);
        render(&messages).map_err(|source| {
            let refused = matches!(source, ChatError::Refused { .. } | ChatError::Render { .. });
            if refused && prompt.system.is_some() && render(&messages[1..]).is_ok() {
                return JudgeError::NoSystem { row, id: id(), source: source.into() };
            }
            JudgeError::Chat { row, id: id(), source: source.into() }
        })
    }

    /// The ids of a prompt's text.
    pub fn encode(&self, pair: &Pair, text: &str) -> Result<Encoded, JudgeError> {
        let encoded = self.tokenizer.encode_up_to(text, self.positions);
        encoded.map_err(|source| JudgeError::Tokenizer {
            row: pair.row,
            id: pair.id.clone(),
            source,
        })
    }
}

impl Judge<'_> {
    /// The part of the judge that makes prompts.
    pub fn prompter(&self) -> Prompter<'_> {
        Prompter {
            template: self.template,
            chat: &self.language_model.chat,
            tokenizer: &self.language_model.tokenizer,
            options: RenderOptions {
                add_generation_prompt: true,
                enable_thinking: self.thinking,
                date: self.date,
            },
            positions: self.language_model.model.config().max_position_embeddings,
        }
    }

    /// The prompt of a pair in an order, as token ids.
    pub fn prompt(&self, pair: &Pair, order: Order) -> Result<Encoded, JudgeError> {
        let prompter = self.prompter();
        prompter.encode(pair, &prompter.text(pair, order)?)
    }

    /// Makes the judgements `tasks` asks for (those of one pair and order side by side), telling
    /// `on` as they come, in an order that depends on the schedule. Ends early when `stop` is set.
    pub fn run(
        &self,
        pairs: &[Pair],
        tasks: &[Task],
        stop: &AtomicBool,
        on: &mut dyn FnMut(JudgeEvent) -> Result<(), CallbackError>,
    ) -> Result<RunStatus, JudgeError> {
        let LanguageModel { model, .. } = self.language_model;
        let stop_tokens = self.language_model.stop_tokens();
        let mut generator = Generator::new(model, stop_tokens, self.options.clone())
            .map_err(JudgeError::Machine)?;
        let mut requests = tasks.chunk_by(|a, b| (a.pair, a.order) == (b.pair, b.order)).peekable();
        let mut open: HashMap<RequestId, Open> = HashMap::new();
        loop {
            while generator.queued() < self.options.max_batch {
                let Some(votes) = requests.next() else { break };
                if stop.load(Ordering::Relaxed) {
                    return Ok(RunStatus::Interrupted);
                }
                self.submit(&mut generator, &mut open, pairs, votes, on)?;
            }
            if generator.is_idle() {
                return Ok(RunStatus::Complete);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(RunStatus::Interrupted);
            }
            let mut failure = None;
            let mut stopped = Vec::new();
            let step = generator.step(&mut |event| {
                if failure.is_none() {
                    match self.receive(&mut open, pairs, event, on) {
                        Ok(false) => {}
                        Ok(true) => stopped.push((event.request, event.sample)),
                        Err(error) => failure = Some(error),
                    }
                }
            });
            stopped.into_iter().for_each(|(request, sample)| generator.end(request, sample));
            if let Err(error) = step {
                return Err(step_failed(error, &open, pairs));
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            on(JudgeEvent::Step(generator.stats())).map_err(JudgeError::Callback)?;
        }
    }

    /// Queues the votes of one pair and order, or reports them as too long.
    fn submit<'s>(
        &'s self,
        generator: &mut Generator,
        open: &mut HashMap<RequestId, Open<'s>>,
        pairs: &[Pair],
        votes: &[Task],
        on: &mut dyn FnMut(JudgeEvent) -> Result<(), CallbackError>,
    ) -> Result<(), JudgeError> {
        let pair = &pairs[votes[0].pair];
        let prompt = self.prompt(pair, votes[0].order)?;
        let prompt_tokens = prompt.len();
        let prompt = match prompt {
            Encoded::Whole(ids) if prompt_tokens <= self.max_prompt_tokens => Some(ids),
            _ => None,
        };
        let Some(prompt) = prompt else {
            for &task in votes {
                let record = self.too_long(pair, task, prompt_tokens);
                on(JudgeEvent::Done(task, record)).map_err(JudgeError::Callback)?;
            }
            return Ok(());
        };
        let request = self.request(pair, votes, prompt);
        let id = generator.submit(request).map_err(|source| JudgeError::Generate {
            row: pair.row,
            id: pair.id.clone(),
            source,
        })?;
        let votes: Vec<Writing> = votes.iter().map(|&task| self.begin(task)).collect();
        open.insert(id, Open { prompt_tokens, left: votes.len(), votes });
        Ok(())
    }

    /// Takes one token. Says whether a stop string ended the judgement, where the generator would go on.
    fn receive(
        &self,
        open: &mut HashMap<RequestId, Open>,
        pairs: &[Pair],
        event: generate::TokenEvent,
        on: &mut dyn FnMut(JudgeEvent) -> Result<(), CallbackError>,
    ) -> Result<bool, JudgeError> {
        let request = open.get_mut(&event.request).expect("events of open requests only");
        let vote = &mut request.votes[event.sample];
        let task = vote.task();
        let pair = &pairs[task.pair];
        let (fresh, finish) =
            vote.push(event.token, event.log_prob, event.finish).map_err(|source| {
                JudgeError::Tokenizer { row: pair.row, id: pair.id.clone(), source }
            })?;
        if !fresh.is_empty() {
            on(JudgeEvent::Text { task, text: &fresh }).map_err(JudgeError::Callback)?;
        }
        if finish.is_none() {
            return Ok(false);
        }
        let record = self.record(pair, vote, request.prompt_tokens);
        request.left -= 1;
        if request.left == 0 {
            open.remove(&event.request);
        }
        on(JudgeEvent::Done(task, record)).map_err(JudgeError::Callback)?;
        Ok(event.finish.is_none())
    }
}

/// A failed step: the row whose logits cannot be sampled, or what is no row's fault.
fn step_failed(
    source: generate::GenerateError,
    open: &HashMap<RequestId, Open>,
    pairs: &[Pair],
) -> JudgeError {
    let generate::GenerateError::Sampling { request, .. } = &source else {
        return JudgeError::Machine(source);
    };
    let pair = &pairs[open[request].votes[0].task().pair];
    JudgeError::Generate { row: pair.row, id: pair.id.clone(), source }
}

#[cfg(test)]
mod tests {
    use engine::tensor::device::DeviceError;

    use super::*;

    #[test]
    fn a_device_that_fails_is_no_rows_fault() {
        let source = generate::GenerateError::Device(DeviceError::NoDriver);
        let said = source.to_string();
        let error = step_failed(source, &HashMap::new(), &[]);
        assert!(matches!(error, JudgeError::Machine(_)), "{error:?}");
        assert_eq!(error.to_string(), said);
    }
}
