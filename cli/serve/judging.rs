//! `/v1/judge`: replies to one prompt, judged by pairs in both orders; `/v1/judge/batch`: many of them in one request.
//!
//! The same request gets the same bytes, but for `id` and `created`, and so does `j1 judge` with the same seed.

use std::sync::Arc;

use hyper::{Response, StatusCode, body::Bytes};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use trainer::{
    data::{Message, Pair},
    eval::results::Record,
    judge::{
        Judge, Task, Writing,
        prompt::OrderPlan,
        ranking::{self, Comparisons, Standing},
        verdict::{MatchRule, Verdict, parts},
    },
};

use super::{
    Served,
    body::{Body, json_response, lines_response},
    completion,
    error::ApiError,
    fields::Fields,
    generation::Generation,
    worker::{Event, Ticket},
};

/// Replies of one item at most.
const MOST_REPLIES: usize = 8;
/// Judgements of each pair and order at most.
const MOST_VOTES: u64 = 64;
/// Items of a batch at most.
const MOST_ITEMS: usize = 512;
/// Judgements of one request at most.
const MOST_JUDGEMENTS: usize = 8192;

/// Texts of a judgement that an answer has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Returned {
    criteria: bool,
    critique: bool,
    thinking: bool,
    text: bool,
}

/// Replies to one prompt, and how they are to be judged.
pub(super) struct Item {
    pub(super) messages: Vec<Message>,
    pub(super) responses: Vec<String>,
    pub(super) order: OrderPlan,
    pub(super) votes: u32,
    pub(super) rule: MatchRule,
    pub(super) seed: u64,
    temperature: Option<f32>,
    max_tokens: Option<usize>,
    returned: Returned,
}

impl Item {
    /// An item that is judged as flags say.
    pub(super) fn new(
        messages: Vec<Message>,
        responses: Vec<String>,
        served: &Served,
    ) -> Result<Item, ApiError> {
        Ok(Item {
            messages,
            responses,
            order: OrderPlan::Both,
            votes: 1,
            rule: MatchRule::Strict,
            seed: served.judge()?.seed,
            temperature: None,
            max_tokens: None,
            returned: Returned::default(),
        })
    }

    pub(super) fn read(fields: Fields<'_>, served: &Served) -> Result<Item, ApiError> {
        let messages: Vec<Message> = match (fields.text("prompt")?, fields.get("messages")) {
            (Some(_), Some(_)) => {
                return Err(ApiError::field("prompt", "give prompt or messages, not both"));
            }
            (Some(prompt), None) => vec![Message::new("user", prompt)],
            (None, _) => {
                let list = completion::messages(fields, "messages")?;
                list.iter().map(|one| Message::new(&one.role, &one.content)).collect()
            }
        };
        if messages.is_empty() {
            return Err(ApiError::field("messages", "messages or prompt are wanted"));
        }
        let responses = fields.texts("responses", MOST_REPLIES)?;
        if responses.len() < 2 || !fields.get("responses").is_some_and(Value::is_array) {
            return Err(ApiError::field(
                "responses",
                format!("a list of 2 to {MOST_REPLIES} replies is wanted"),
            ));
        }
        let mut returned = Returned::default();
        match fields.get("return") {
            None => (returned.criteria, returned.critique) = (true, true),
            Some(_) => {
                for part in fields.texts("return", 8)? {
                    match part {
                        "criteria" => returned.criteria = true,
                        "critique" => returned.critique = true,
                        "thinking" => returned.thinking = true,
                        "text" => returned.text = true,
                        _ => {
                            let what = "of criteria, critique, thinking and text are wanted";
                            return Err(ApiError::field("return", what));
                        }
                    }
                }
            }
        }
        let responses = responses.into_iter().map(str::to_owned).collect();
        let default = Item::new(messages, responses, served)?;
        let orders = [
            ("both", OrderPlan::Both),
            ("given", OrderPlan::ChosenFirst),
            ("random", OrderPlan::Random),
        ];
        let rules = [("strict", MatchRule::Strict), ("soft", MatchRule::Soft)];
        let temperature = fields.number("temperature", 0.0..=100.0)?.map(|t| t as f32);
        Ok(Item {
            order: fields.choice("orders", &orders)?.unwrap_or(default.order),
            votes: fields.whole("votes", 1..=MOST_VOTES)?.unwrap_or(1) as u32,
            rule: fields.choice("match", &rules)?.unwrap_or(default.rule),
            seed: fields.whole("seed", 0..=u64::MAX)?.unwrap_or(default.seed),
            temperature,
            max_tokens: Generation::tokens_of(fields, "max_tokens")?,
            returned,
            ..default
        })
    }

    fn judge<'s>(&self, served: &'s Served) -> Result<Judge<'s>, ApiError> {
        let mut judge = served.judge()?;
        judge.seed = self.seed;
        if let Some(temperature) = self.temperature {
            judge.sampling.temperature = temperature;
            judge
                .sampling
                .validate()
                .map_err(|error| ApiError::field("temperature", error.to_string()))?;
        }
        if let Some(tokens) = self.max_tokens {
            judge.max_new_tokens = tokens;
        }
        Ok(judge)
    }
}

/// Judges items, telling `on` as each is complete.
pub(super) async fn judge_items(
    served: &Served,
    items: &[Item],
    mut on: impl AsyncFnMut(usize, Comparisons) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let several = items.len() > 1;
    let of_item =
        |index: usize| move |error: ApiError| if several { error.in_item(index) } else { error };
    /// What is under way of an item.
    struct Open {
        pairs: Vec<Pair>,
        records: Vec<Record>,
        left: usize,
    }
    /// One request to the engine: the votes of a pair in an order.
    struct Asked {
        item: usize,
        pair: usize,
        tasks: Vec<Task>,
        prompt_tokens: usize,
    }
    let judge = |(index, item): (usize, &Item)| item.judge(served).map_err(of_item(index));
    let judges = items.iter().enumerate().map(judge).collect::<Result<Vec<Judge>, _>>()?;
    let (mut open, mut asked, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for (index, item) in items.iter().enumerate() {
        let judge = &judges[index];
        let pairs = ranking::pairs("pair", &item.messages, &item.responses);
        let mut left = 0;
        for (place, pair) in pairs.iter().enumerate() {
            let tasks = ranking::tasks(place, pair.row, item.order, item.votes, item.seed);
            for votes in tasks.chunk_by(|a, b| a.order == b.order) {
                let prompt = judge.prompter().text(pair, votes[0].order);
                let prompt =
                    prompt.map_err(|error| of_item(index)(ApiError::bad(error.to_string())))?;
                let prompt = completion::encoded(&prompt, served).map_err(of_item(index))?;
                // Over-long prompts are refused, never cut.
                served
                    .new_tokens(prompt.len(), Some(judge.max_new_tokens))
                    .map_err(of_item(index))?;
                left += votes.len();
                asked.push(Asked {
                    item: index,
                    pair: place,
                    tasks: votes.to_vec(),
                    prompt_tokens: prompt.len(),
                });
                requests.push(judge.request(pair, votes, prompt));
            }
        }
        open.push(Open { pairs, records: Vec::new(), left });
    }
    let count: usize = asked.iter().map(|asked| asked.tasks.len()).sum();
    if count > MOST_JUDGEMENTS {
        return Err(ApiError::bad(format!(
            "{count} judgements are more than the {MOST_JUDGEMENTS} that one request may ask for"
        )));
    }
    let mut ticket: Ticket = served.submit(requests)?;
    let mut writing: Vec<Vec<Option<Writing>>> = asked
        .iter()
        .map(|asked| asked.tasks.iter().map(|&task| Some(judges[asked.item].begin(task))).collect())
        .collect();
    let mut left = count;
    while left > 0 {
        let token = match ticket.next().await {
            Some(Event::Token(token)) => token,
            Some(Event::Failed(error)) => return Err(error),
            None => return Err(ApiError::internal(&"the engine has ended")),
        };
        let Asked { item, pair, prompt_tokens, .. } = asked[token.request];
        let place = &mut writing[token.request][token.sample];
        // It was on its way when a stop string had ended the judgement.
        let Some(one) = place else { continue };
        let (_, finish) = one
            .push(token.id, token.log_prob, token.finish)
            .map_err(|error| ApiError::internal(&error))?;
        let Some(finish) = finish else { continue };
        served.metrics.sample_ended(if finish == trainer::eval::results::Finish::Length {
            "length"
        } else {
            "stop"
        });
        if token.finish.is_none() {
            ticket.end(token.request, token.sample);
        }
        left -= 1;
        let state = &mut open[item];
        state.records.push(judges[item].record(&state.pairs[pair], one, prompt_tokens));
        *place = None;
        state.left -= 1;
        if state.left == 0 {
            let records = std::mem::take(&mut state.records);
            let compared = Comparisons::new(items[item].responses.len(), records, items[item].rule);
            on(item, compared).await?;
        }
    }
    Ok(())
}

/// Tokens of the prompts and of the judgements.
pub(super) fn usage(compared: &Comparisons) -> [u64; 2] {
    let sum = |of: fn(&Record) -> u32| compared.records().iter().map(|r| u64::from(of(r))).sum();
    [sum(|record| record.prompt_tokens), sum(|record| record.tokens)]
}

/// An answer's judgement of one item.
fn to_json(item: &Item, compared: &Comparisons, served: &Served, model: &str) -> Value {
    let standings = compared.standings();
    let all = |of: fn(&Standing) -> Value| standings.iter().map(of).collect::<Vec<Value>>();
    let result =
        |standing: &Standing| json!({"index": standing.reply, "relevance_score": standing.mean});
    let [prompt, completion] = usage(compared);
    let both = item.order == OrderPlan::Both;
    let judgements = compared.records().iter().map(|record| judgement(item, compared, record));
    let mut answer = json!({
        "object": "judgement",
        "model": model,
        "winner": compared.winner(),
        "scores": all(|standing| json!(standing.mean.map(|_| standing.points))),
        "means": all(|standing| json!(standing.mean)),
        "margin": compared.margin(),
        "agreement": if both { compared.agreement() } else { None },
        "parsed": compared.verdicts(),
        "judgements_made": compared.records().len(),
        "results": compared.ranking().iter().map(result).collect::<Vec<_>>(),
        "judgements": judgements.collect::<Vec<_>>(),
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "fingerprint": served.fingerprint,
    });
    if compared.places().len() > 1 {
        let pair = |(pair, &(first, second)): (usize, &(usize, usize))| {
            json!({
                "responses": [first, second],
                "winner": compared.winner_of(pair),
                "agreement": if both { compared.agreement_of(pair) } else { None },
            })
        };
        answer["pairs"] = compared.places().iter().enumerate().map(pair).collect();
    }
    answer
}

fn judgement(item: &Item, compared: &Comparisons, record: &Record) -> Value {
    let verdict = record.verdict(item.rule);
    let mut one = json!({
        "order": compared.slots(record),
        "vote": record.vote,
        "scores": verdict.scores().map(|(a, b)| [a, b]),
        "reason": match verdict {
            Verdict::Scores(..) => Value::Null,
            Verdict::Unparsed(reason) => json!(reason.name()),
        },
        "finish_reason": record.finish,
        "log_prob": record.log_prob,
        "prompt_tokens": record.prompt_tokens,
        "tokens": record.tokens,
    });
    let parts = parts(&record.text);
    let Returned { criteria, critique, thinking, text } = item.returned;
    for (wanted, name, value) in [
        (criteria, "criteria", parts.criteria),
        (critique, "critique", parts.analysis),
        (thinking, "thinking", parts.thinking),
        (text, "text", Some(record.text.as_str())),
    ] {
        if wanted {
            one[name] = json!(value.map(str::trim));
        }
    }
    one
}

/// A request to judge that was understood.
pub(super) struct Asked {
    model: String,
    items: Vec<Item>,
    /// Whether it is a batch, and whether its items come as they are complete.
    batch: Option<bool>,
}

impl Asked {
    pub(super) fn read(body: &Value, is_batch: bool, served: &Served) -> Result<Asked, ApiError> {
        let fields = Fields::of(body)?;
        let model = served.model_name(fields)?;
        let streams = fields.flag("stream")?.unwrap_or(false);
        if !is_batch {
            if streams {
                return Err(ApiError::field(
                    "stream",
                    "is for /v1/judge/batch, whose items come as they are complete",
                ));
            }
            return Ok(Asked { model, items: vec![Item::read(fields, served)?], batch: None });
        }
        let list = fields.list("items", MOST_ITEMS)?.unwrap_or_default();
        if list.is_empty() {
            return Err(ApiError::field("items", "a list of at least one item is wanted"));
        }
        let item = |(index, value): (usize, &Value)| {
            // What all items have in common stands beside them.
            let own = value
                .as_object()
                .ok_or_else(|| ApiError::bad("an object is wanted").in_item(index))?;
            let mut all: Map<String, Value> = fields.0.clone();
            ["items", "stream", "model"].iter().for_each(|name| drop(all.remove(*name)));
            all.extend(own.clone());
            Item::read(Fields(&all), served).map_err(|error| error.in_item(index))
        };
        let items = list.iter().enumerate().map(item).collect::<Result<_, _>>()?;
        Ok(Asked { model, items, batch: Some(streams) })
    }
}

/// Answers a request to judge.
pub(super) async fn answer(served: Arc<Served>, asked: Asked) -> Result<Response<Body>, ApiError> {
    let head = json!({"id": format!("judge-{:016x}", served.draw()), "created": super::now()});
    let with_head = |mut value: Value| {
        for name in ["id", "created"] {
            value[name] = head[name].clone();
        }
        value
    };
    if asked.batch == Some(true) {
        return Ok(lines(served, asked));
    }
    let mut done: Vec<Value> = vec![Value::Null; asked.items.len()];
    judge_items(&served, &asked.items, async |index, compared: Comparisons| {
        done[index] = to_json(&asked.items[index], &compared, &served, &asked.model);
        Ok(())
    })
    .await?;
    let answer = match asked.batch {
        None => with_head(done.remove(0)),
        Some(_) => with_head(json!({"object": "list", "model": asked.model, "data": done})),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

/// The items of a batch, a line each, as they are complete. An error is the last line.
fn lines(served: Arc<Served>, asked: Asked) -> Response<Body> {
    let (send, receive) = mpsc::channel::<Bytes>(16);
    tokio::task::spawn_local(async move {
        let line = |value: &Value| Bytes::from(format!("{value}\n"));
        let gone = send.clone();
        let work = judge_items(&served, &asked.items, async |index, compared: Comparisons| {
            let mut one = to_json(&asked.items[index], &compared, &served, &asked.model);
            one["index"] = json!(index);
            let gone = |_| ApiError::internal(&"the client has gone");
            send.send(line(&one)).await.map_err(gone)
        });
        tokio::select! {
            () = gone.closed() => {}
            end = work => if let Err(error) = end {
                let _ = gone.send(line(&error.to_json())).await;
            },
        }
    });
    lines_response(receive)
}
