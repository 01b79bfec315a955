//! `/v1/chat/completions` and `/v1/completions`: requests, answers and streams in OpenAI's form.

use std::sync::Arc;

use engine::{
    generate::{FinishReason, Request},
    text::{
        chat::{Message, RenderOptions},
        tokenizer::{Encoded, Tokenizer},
    },
};
use hyper::{Response, body::Bytes};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, interval_at},
};

use super::{
    Served,
    body::{self, Body, json_response, stream_response},
    error::ApiError,
    fields::Fields,
    generation::{Generation, MOST_CHOICES},
    text::{StoppedBy, Writer},
    worker::{Event, Ticket, Token},
};

/// Messages of a conversation at most.
const MOST_MESSAGES: usize = 1000;
/// Tokens of a completion where a request of `/v1/completions` does not say.
const COMPLETION_TOKENS: usize = 16;
/// Log-probabilities of one answer at most, of drawn tokens and of others in their place: it is built in memory.
const MOST_LOG_PROBS: usize = 100_000;
/// How often a stream that waits says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which of the two ways to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Text,
}

/// A request that was understood.
pub(super) struct Asked {
    kind: Kind,
    /// The name that the client uses.
    model: String,
    prompts: Vec<Vec<u32>>,
    generation: Generation,
}

impl Asked {
    /// Reads a body. The prompt is rendered and encoded here, which takes a while if it is long.
    pub(super) fn read(kind: Kind, body: &Value, served: &Served) -> Result<Asked, ApiError> {
        let fields = Fields::of(body)?;
        let model = served.model_name(fields)?;
        let mut generation = Generation::read(fields, served)?;
        let prompts = match kind {
            Kind::Chat => {
                if fields.flag("logprobs")?.unwrap_or(false) {
                    generation.log_probs =
                        Some(Generation::top_of(fields, "top_logprobs")?.unwrap_or(0));
                } else if fields.get("top_logprobs").is_some_and(|top| top.as_u64() != Some(0)) {
                    return Err(ApiError::field("top_logprobs", "needs logprobs: true"));
                }
                let newer = Generation::tokens_of(fields, "max_completion_tokens")?;
                generation.max_tokens = newer.or(Generation::tokens_of(fields, "max_tokens")?);
                vec![encoded(&chat_text(fields, served)?, served)?]
            }
            Kind::Text => {
                generation.log_probs = Generation::top_of(fields, "logprobs")?;
                let asked = Generation::tokens_of(fields, "max_tokens")?;
                generation.max_tokens = Some(asked.unwrap_or(COMPLETION_TOKENS));
                text_prompts(fields, served)?
            }
        };
        if prompts.len() * generation.samples > MOST_CHOICES {
            return Err(ApiError::field(
                "n",
                format!("prompts times n is more than {MOST_CHOICES}"),
            ));
        }
        Ok(Asked { kind, model, prompts, generation })
    }

    /// Sends it on its way.
    fn submit(&self, served: &Served) -> Result<Ticket, ApiError> {
        let generation = &self.generation;
        let samples = generation.samples as u64;
        let request = |(place, prompt): (u64, &Vec<u32>)| {
            Ok(Request {
                samples: (place * samples..(place + 1) * samples).collect(),
                seed: generation.seed,
                max_new_tokens: served.new_tokens(prompt.len(), generation.max_tokens)?,
                sampling: generation.sampling,
                repetition_penalty: generation.repetition_penalty,
                top_log_probs: generation.log_probs.unwrap_or(0),
                prompt: prompt.clone(),
            })
        };
        let requests =
            (0..).zip(&self.prompts).map(request).collect::<Result<Vec<_>, ApiError>>()?;
        if let Some(top) = generation.log_probs.filter(|_| !generation.stream) {
            let of = |one: &Request| one.samples.len() * one.max_new_tokens * (1 + top);
            let asked: usize = requests.iter().map(of).sum();
            if asked > MOST_LOG_PROBS {
                let message = format!(
                    "up to {asked} log-probabilities are more than the {MOST_LOG_PROBS} that one answer may have: ask \
                     for fewer tokens, or for a stream"
                );
                return Err(ApiError::field("logprobs", message));
            }
        }
        served.submit(requests)
    }

    /// The fields that an answer and each chunk of a stream have.
    fn frame(&self, id: &str, created: u64, is_chunk: bool) -> Value {
        let object = match (self.kind, is_chunk) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Text, _) => "text_completion",
        };
        json!({"id": id, "object": object, "created": created, "model": self.model})
    }

    fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }
}

/// The conversation of a chat as the model reads it.
fn chat_text(fields: Fields<'_>, served: &Served) -> Result<String, ApiError> {
    let messages = messages(fields, "messages")?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "at least one message is wanted"));
    }
    let mut options = RenderOptions { add_generation_prompt: true, ..served.render_options };
    if let Some(kwargs) = fields.get("chat_template_kwargs") {
        let kwargs = Fields::of(kwargs)
            .map_err(|_| ApiError::field("chat_template_kwargs", "an object is wanted"))?;
        if let Some(other) = kwargs.names().find(|name| *name != "enable_thinking") {
            let name = format!("chat_template_kwargs.{other}");
            return Err(ApiError::field(
                &name,
                "is not supported by this server; enable_thinking is",
            ));
        }
        options.enable_thinking = kwargs.flag("enable_thinking")?.or(options.enable_thinking);
    }
    let chat = &served.session.language_model.chat;
    chat.render(&messages, options).map_err(|error| ApiError::field("messages", error.to_string()))
}

/// Messages with a role and text, which may be given in parts.
pub(super) fn messages(fields: Fields<'_>, name: &str) -> Result<Vec<Message>, ApiError> {
    let list = fields.list(name, MOST_MESSAGES)?.unwrap_or_default();
    let message = |(index, value): (usize, &Value)| {
        let at = format!("{name}[{index}]");
        let wrong = |what: &str| ApiError::field(&at, what);
        let message = value.as_object().ok_or_else(|| wrong("an object is wanted"))?;
        let role = message.get("role").and_then(Value::as_str);
        let role = role.ok_or_else(|| wrong("role is not a string"))?;
        if message.get("tool_calls").is_some_and(|calls| !calls.is_null()) {
            return Err(wrong("tool_calls are not supported by this server"));
        }
        let content = match message.get("content") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let part = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text" | "input_text"), Some(text)) => Ok(text.to_owned()),
                    _ => Err(wrong("content has a part that is not text")),
                };
                parts.iter().map(part).collect::<Result<Vec<_>, _>>()?.concat()
            }
            Some(_) => return Err(wrong("content is neither a string nor a list of parts")),
        };
        Ok(Message::new(role, content))
    };
    list.iter().enumerate().map(message).collect()
}

/// The prompts of a request for completions: texts or token ids, one or several.
fn text_prompts(fields: Fields<'_>, served: &Served) -> Result<Vec<Vec<u32>>, ApiError> {
    let wrong = || {
        ApiError::field(
            "prompt",
            "a string, a list of strings, token ids or a list of lists of them is wanted",
        )
    };
    let ids = |list: &[Value]| {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        list.iter().map(id).collect::<Option<Vec<u32>>>().ok_or_else(wrong)
    };
    let prompts = match fields.get("prompt") {
        Some(Value::String(text)) => vec![encoded(text, served)?],
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => vec![ids(list)?],
            _ => {
                if list.len() > MOST_CHOICES {
                    return Err(ApiError::field(
                        "prompt",
                        format!("at most {MOST_CHOICES} are taken"),
                    ));
                }
                let one = |value: &Value| match value {
                    Value::String(text) => encoded(text, served),
                    Value::Array(list) => ids(list),
                    _ => Err(wrong()),
                };
                list.iter().map(one).collect::<Result<_, _>>()?
            }
        },
        _ => return Err(wrong()),
    };
    match prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        true => Err(ApiError::field("prompt", "it has no tokens")),
        false => Ok(prompts),
    }
}

/// The ids of a prompt's text. One of many more tokens than the model has positions is not encoded to its end.
pub(super) fn encoded(text: &str, served: &Served) -> Result<Vec<u32>, ApiError> {
    let positions = served.positions();
    let encoded = served.session.language_model.tokenizer.encode_up_to(text, positions);
    match encoded.map_err(|error| ApiError::bad(error.to_string()))? {
        Encoded::Whole(ids) => Ok(ids),
        long @ Encoded::TooLong { .. } => Err(ApiError::too_long(positions, 1, long.len())),
    }
}

/// One choice as it grows.
struct Choice<'a> {
    writer: Writer<'a>,
    tokenizer: &'a Tokenizer,
    tokens: usize,
    finish: Option<&'static str>,
    stopped_by: Option<StoppedBy>,
}

/// What a token adds to its choice.
#[derive(Default)]
struct Delta {
    text: String,
    log_probs: Option<Value>,
}

impl<'a> Choice<'a> {
    fn new(asked: &'a Asked, served: &'a Served) -> Choice<'a> {
        let tokenizer = &served.session.language_model.tokenizer;
        let Generation { stops, skip_special_tokens, .. } = &asked.generation;
        let writer = Writer::new(tokenizer, stops, *skip_special_tokens);
        Choice { writer, tokenizer, tokens: 0, finish: None, stopped_by: None }
    }

    fn take(&mut self, token: &Token, log_probs: bool) -> Result<Delta, ApiError> {
        self.tokens += 1;
        let internal = |error| ApiError::internal(&error);
        let (mut text, mut stopped) = match token.finish {
            Some(FinishReason::Stop) => (String::new(), None),
            _ => self.writer.push(token.id).map_err(internal)?,
        };
        if token.finish.is_some() && stopped.is_none() {
            let (rest, found) = self.writer.finish().map_err(internal)?;
            text += &rest;
            stopped = found;
        }
        self.finish = match (&stopped, token.finish) {
            (Some(_), _) | (None, Some(FinishReason::Stop)) => Some("stop"),
            (None, Some(FinishReason::Length)) => Some("length"),
            (None, None) => None,
        };
        self.stopped_by = stopped;
        let log_probs = if log_probs { Some(self.log_probs(token)?) } else { None };
        Ok(Delta { text, log_probs })
    }

    /// A token and the most probable ones in its place. What they are of is the distribution that it was drawn from: at the
    /// request's temperature, before tokens are cut off.
    fn log_probs(&self, token: &Token) -> Result<Value, ApiError> {
        let one = |id: u32, log_prob: f32| -> Result<Value, ApiError> {
            let text =
                self.tokenizer.decode(&[id], false).map_err(|error| ApiError::internal(&error))?;
            Ok(json!({"token": text, "logprob": log_prob, "bytes": text.as_bytes()}))
        };
        let mut drawn = one(token.id, token.log_prob)?;
        let top = token.top.iter().map(|&(id, log_prob)| one(id, log_prob));
        drawn["top_logprobs"] = top.collect::<Result<Value, _>>()?;
        Ok(drawn)
    }

    fn stop_reason(&self) -> Value {
        match &self.stopped_by {
            None => Value::Null,
            Some(StoppedBy::Text(text)) => json!(text),
            Some(StoppedBy::Token(id)) => json!(id),
        }
    }
}

/// Reads the tokens of all choices to their end, telling `on` what each adds to which.
async fn follow(
    asked: &Asked,
    served: &Served,
    mut ticket: Ticket,
    mut on: impl AsyncFnMut(usize, &Choice<'_>, Delta) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    let samples = asked.generation.samples;
    let count = asked.prompts.len() * samples;
    let mut choices: Vec<Choice> = (0..count).map(|_| Choice::new(asked, served)).collect();
    let mut left = count;
    while left > 0 {
        let token = match ticket.next().await {
            Some(Event::Token(token)) => token,
            Some(Event::Failed(error)) => return Err(error),
            None => return Err(ApiError::internal(&"the engine has ended")),
        };
        let index = token.request * samples + token.sample;
        let choice = &mut choices[index];
        if choice.finish.is_some() {
            // It was on its way when a stop string had ended the choice.
            continue;
        }
        let delta = choice.take(&token, asked.generation.log_probs.is_some())?;
        if let Some(reason) = choice.finish {
            left -= 1;
            served.metrics.sample_ended(reason);
            if token.finish.is_none() {
                ticket.end(token.request, token.sample);
            }
        }
        on(index, choice, delta).await?;
    }
    let (prompt, completion) =
        (asked.prompt_tokens(), choices.iter().map(|choice| choice.tokens).sum::<usize>());
    Ok(json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }))
}

/// Answers a request: whole, or as a stream.
pub(super) async fn answer(served: Arc<Served>, asked: Asked) -> Result<Response<Body>, ApiError> {
    let ticket = asked.submit(&served)?;
    match asked.generation.stream {
        false => whole(&served, &asked, ticket).await,
        true => Ok(stream(served, asked, ticket)),
    }
}

async fn whole(served: &Served, asked: &Asked, ticket: Ticket) -> Result<Response<Body>, ApiError> {
    let count = asked.prompts.len() * asked.generation.samples;
    let mut texts = vec![String::new(); count];
    let mut log_probs: Vec<Vec<Value>> = vec![Vec::new(); count];
    let mut ends: Vec<(Option<&str>, Value)> = vec![(None, Value::Null); count];
    let usage = follow(asked, served, ticket, async |index, choice: &Choice<'_>, delta: Delta| {
        texts[index] += &delta.text;
        log_probs[index].extend(delta.log_probs);
        if choice.finish.is_some() {
            ends[index] = (choice.finish, choice.stop_reason());
        }
        Ok(())
    })
    .await?;
    let wanted = asked.generation.log_probs.is_some();
    let choice = |index: usize| {
        let (reason, by) = &ends[index];
        let mut choice = json!({"index": index, "finish_reason": reason, "stop_reason": by});
        let tokens = &log_probs[index];
        match asked.kind {
            Kind::Chat => {
                choice["message"] = json!({"role": "assistant", "content": texts[index], "refusal": null, "tool_calls": []});
                choice["logprobs"] = if wanted { json!({"content": tokens}) } else { Value::Null };
            }
            Kind::Text => {
                choice["text"] = json!(texts[index]);
                choice["logprobs"] = if wanted { of_text(tokens, 0) } else { Value::Null };
            }
        }
        choice
    };
    let mut answer = asked.frame(&served.fresh_id(asked.kind), super::now(), false);
    answer["choices"] = (0..count).map(choice).collect();
    answer["usage"] = usage;
    answer["system_fingerprint"] = json!(served.fingerprint);
    Ok(json_response(hyper::StatusCode::OK, &answer))
}

/// Log-probabilities in the older form, of lists side by side.
fn of_text(tokens: &[Value], mut offset: usize) -> Value {
    let all = |key: &str| tokens.iter().map(|token| token[key].clone()).collect::<Vec<Value>>();
    let top = |token: &Value| -> Value {
        let list = token["top_logprobs"].as_array().into_iter().flatten();
        list.map(|one| {
            (one["token"].as_str().unwrap_or_default().to_owned(), one["logprob"].clone())
        })
        .collect()
    };
    let offsets: Vec<usize> = tokens
        .iter()
        .map(|token| {
            let at = offset;
            offset += token["token"].as_str().unwrap_or_default().chars().count();
            at
        })
        .collect();
    json!({
        "tokens": all("token"),
        "token_logprobs": all("logprob"),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// Starts a stream. Its task ends when the client does.
fn stream(served: Arc<Served>, asked: Asked, ticket: Ticket) -> Response<Body> {
    // Few chunks wait here: a slow client holds up its own task and no other.
    let (send, receive) = mpsc::channel(16);
    tokio::task::spawn_local(async move {
        let gone = send.clone();
        tokio::select! {
            // The client went: the ticket is dropped with the other branch.
            () = gone.closed() => {}
            () = chunks(&served, &asked, ticket, &send) => {}
        }
    });
    stream_response(receive)
}

async fn chunks(served: &Served, asked: &Asked, ticket: Ticket, send: &mpsc::Sender<Bytes>) {
    let (id, created) = (served.fresh_id(asked.kind), super::now());
    let chunk = |choices: Value| {
        let mut chunk = asked.frame(&id, created, true);
        chunk["choices"] = choices;
        chunk["system_fingerprint"] = json!(served.fingerprint);
        event(&chunk)
    };
    if asked.kind == Kind::Chat {
        for index in 0..asked.prompts.len() * asked.generation.samples {
            let delta = json!({"role": "assistant", "content": ""});
            let first =
                json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}]);
            if body::send(send, chunk(first)).await.is_err() {
                return;
            }
        }
    }
    let waits = async {
        let mut ticks = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        loop {
            ticks.tick().await;
            // Where chunks wait for the client, it knows.
            let _ = send.try_send(Bytes::from_static(b": keep-alive\n\n"));
        }
    };
    let wanted = asked.generation.log_probs.is_some();
    let mut offsets = vec![0; asked.prompts.len() * asked.generation.samples];
    let follow = follow(asked, served, ticket, async |index, choice: &Choice<'_>, delta: Delta| {
        if delta.text.is_empty() && delta.log_probs.is_none() && choice.finish.is_none() {
            return Ok(());
        }
        let tokens: Vec<Value> = delta.log_probs.into_iter().collect();
        let mut one = json!({"index": index, "finish_reason": choice.finish, "stop_reason": choice.stop_reason()});
        match asked.kind {
            Kind::Chat => {
                one["delta"] = json!({"content": delta.text});
                one["logprobs"] = if wanted { json!({"content": tokens}) } else { Value::Null };
            }
            Kind::Text => {
                one["text"] = json!(delta.text);
                one["logprobs"] =
                    if wanted { of_text(&tokens, offsets[index]) } else { Value::Null };
                offsets[index] += tokens
                    .iter()
                    .filter_map(|t| t["token"].as_str())
                    .map(|text| text.chars().count())
                    .sum::<usize>();
            }
        }
        body::send(send, chunk(json!([one]))).await
    });
    let end = tokio::select! {
        end = follow => end,
        () = waits => return,
    };
    let last = match end {
        Ok(usage) if asked.generation.include_usage => {
            let mut last = asked.frame(&id, created, true);
            last["choices"] = json!([]);
            last["usage"] = usage;
            Some(last)
        }
        Ok(_) => None,
        Err(error) => Some(error.to_json()),
    };
    if let Some(last) = last {
        let _ = body::send(send, event(&last)).await;
    }
    let _ = body::send(send, Bytes::from_static(b"data: [DONE]\n\n")).await;
}

/// One event of a stream.
pub(super) fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
