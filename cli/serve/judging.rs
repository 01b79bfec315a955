//! `/v1/judge`: replies to one prompt, judged by pairs in both orders; `/v1/judge/batch`: many of them in one request.
//!
//! The same request gets the same bytes, but for `id` and `created`, and so does `j1 judge` with the same seed.

use std::sync::Arc;

use engine::generate::Request;
use hyper::{Response, StatusCode, body::Bytes};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use trainer::{
    data::Pair,
    eval::results::{Finish, Record},
    judge::{
        Judge, Task, Writing,
        ranking::{self, Comparisons},
        tasks_of,
    },
};

use super::{
    Served,
    body::{self, Body, json_response, lines_response},
    completion,
    error::ApiError,
    fields::Fields,
    item::{Item, to_json},
    worker::{Event, Ticket},
};

/// Items of a batch at most.
const MOST_ITEMS: usize = 512;
/// Judgements of one request at most.
const MOST_JUDGEMENTS: usize = 8192;
/// Bytes of all prompts of one request at most: what items have in common stands in each.
const MOST_BYTES: usize = 64 << 20;

/// Items whose prompts are ready for the engine.
pub(super) struct Prepared {
    pub(super) items: Vec<Item>,
    /// Of each item, its pairs.
    pairs: Vec<Vec<Pair>>,
    asked: Vec<Votes>,
    requests: Vec<Request>,
}

/// One request to the engine: the votes of a pair in an order.
struct Votes {
    item: usize,
    pair: usize,
    tasks: Vec<Task>,
    prompt_tokens: usize,
}

impl Prepared {
    /// Renders and encodes the prompts, which takes a while if there are many.
    pub(super) fn new(items: Vec<Item>, served: &Served) -> Result<Prepared, ApiError> {
        let several = items.len() > 1;
        let of_item = |index: usize| {
            move |error: ApiError| if several { error.in_item(index) } else { error }
        };
        let places = |item: &Item| ranking::every_two(item.responses.len()).len();
        let orders = |item: &Item| places(item) * 2;
        let judgements: usize = items.iter().map(|item| orders(item) * item.votes as usize).sum();
        if judgements > 2 * MOST_JUDGEMENTS {
            let message =
                format!("more than the {MOST_JUDGEMENTS} judgements that one request may ask for");
            return Err(ApiError::bad(message));
        }
        let bytes = |item: &Item| {
            let prompt: usize = item.messages.iter().map(|message| message.content.len()).sum();
            let longest = item.responses.iter().map(String::len).max().unwrap_or(0);
            orders(item) * (prompt + 2 * longest)
        };
        if items.iter().map(bytes).sum::<usize>() > MOST_BYTES {
            return Err(ApiError::bad(format!(
                "all prompts together are more than {MOST_BYTES} bytes"
            )));
        }
        let (mut all, mut asked, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        for (index, item) in items.iter().enumerate() {
            let judge = item.judge(served).map_err(of_item(index))?;
            let pairs = ranking::pairs("pair", &item.messages, &item.responses);
            for (place, pair) in pairs.iter().enumerate() {
                let tasks = tasks_of(place, pair.row, item.order, item.votes, item.seed);
                for votes in tasks.chunk_by(|a, b| a.order == b.order) {
                    let prompt = judge.prompter().text(pair, votes[0].order);
                    let prompt = prompt.map_err(|error| ApiError::bad(error.to_string()));
                    let prompt = prompt.and_then(|text| completion::encoded(&text, served));
                    let prompt = prompt.map_err(of_item(index))?;
                    // Over-long prompts are refused, never cut.
                    let room = served.new_tokens(prompt.len(), Some(judge.max_new_tokens));
                    room.map_err(of_item(index))?;
                    asked.push(Votes {
                        item: index,
                        pair: place,
                        tasks: votes.to_vec(),
                        prompt_tokens: prompt.len(),
                    });
                    requests.push(judge.request(pair, votes, prompt));
                }
            }
            all.push(pairs);
        }
        let count: usize = asked.iter().map(|votes| votes.tasks.len()).sum();
        if count > MOST_JUDGEMENTS {
            return Err(ApiError::bad(format!(
                "{count} judgements are more than the {MOST_JUDGEMENTS} that one request may ask for"
            )));
        }
        Ok(Prepared { items, pairs: all, asked, requests })
    }

    /// Sends it to the engine.
    pub(super) fn submit(&mut self, served: &Served) -> Result<Ticket, ApiError> {
        served.submit(std::mem::take(&mut self.requests))
    }

    /// Reads the judgements to their end, telling `on` as each item is complete.
    pub(super) async fn follow(
        &self,
        served: &Served,
        mut ticket: Ticket,
        mut on: impl AsyncFnMut(usize, Comparisons) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let judges = self.items.iter().map(|item| item.judge(served));
        let judges = judges.collect::<Result<Vec<Judge>, _>>()?;
        let begin = |votes: &Votes| -> Vec<Option<Writing>> {
            votes.tasks.iter().map(|&task| Some(judges[votes.item].begin(task))).collect()
        };
        let mut writing: Vec<Vec<Option<Writing>>> = self.asked.iter().map(begin).collect();
        let mut left = vec![0; self.items.len()];
        self.asked.iter().for_each(|votes| left[votes.item] += votes.tasks.len());
        let mut records: Vec<Vec<Record>> = self.items.iter().map(|_| Vec::new()).collect();
        let mut items_left = self.items.len();
        while items_left > 0 {
            let token = match ticket.next().await {
                Some(Event::Token(token)) => token,
                Some(Event::Failed(error)) => return Err(error),
                None => return Err(ApiError::internal(&"the engine has ended")),
            };
            let Votes { item, pair, prompt_tokens, .. } = self.asked[token.request];
            let place = &mut writing[token.request][token.sample];
            // It was on its way when a stop string had ended the judgement.
            let Some(one) = place else { continue };
            let pushed = one.push(token.id, token.log_prob, token.finish);
            let (_, finish) = pushed.map_err(|error| ApiError::internal(&error))?;
            let Some(finish) = finish else { continue };
            served.metrics.sample_ended(if finish == Finish::Length { "length" } else { "stop" });
            if token.finish.is_none() {
                ticket.end(token.request, token.sample);
            }
            records[item].push(judges[item].record(&self.pairs[item][pair], one, prompt_tokens));
            *place = None;
            left[item] -= 1;
            if left[item] == 0 {
                items_left -= 1;
                let Item { responses, rule, .. } = &self.items[item];
                let records = std::mem::take(&mut records[item]);
                on(item, Comparisons::new(responses.len(), records, *rule)).await?;
            }
        }
        Ok(())
    }
}

/// A request to judge that was understood.
pub(super) struct Asked {
    model: String,
    prepared: Prepared,
    /// Whether it is a batch, and whether its items come as they are complete.
    batch: Option<bool>,
}

impl Asked {
    pub(super) fn read(body: &Value, is_batch: bool, served: &Served) -> Result<Asked, ApiError> {
        let fields = Fields::of(body)?;
        let model = served.model_name(fields)?;
        let streams = fields.flag("stream")?.unwrap_or(false);
        let (items, batch) = match is_batch {
            false if streams => {
                let message = "is for /v1/judge/batch, whose items come as they are complete";
                return Err(ApiError::field("stream", message));
            }
            false => (vec![Item::read(fields, served)?], None),
            true => {
                let list = fields.list("items", MOST_ITEMS)?.unwrap_or_default();
                if list.is_empty() {
                    return Err(ApiError::field("items", "a list of at least one item is wanted"));
                }
                // What all items have in common stands beside them.
                let item = |(index, value): (usize, &Value)| {
                    let fields = fields.within(value);
                    let item = fields.and_then(|fields| Item::read(fields, served));
                    item.map_err(|error| error.in_item(index))
                };
                let items = list.iter().enumerate().map(item).collect::<Result<_, _>>()?;
                (items, Some(streams))
            }
        };
        Ok(Asked { model, prepared: Prepared::new(items, served)?, batch })
    }
}

/// Answers a request to judge.
pub(super) async fn answer(
    served: Arc<Served>,
    mut asked: Asked,
) -> Result<Response<Body>, ApiError> {
    let ticket = asked.prepared.submit(&served)?;
    if asked.batch == Some(true) {
        return Ok(lines(served, asked, ticket));
    }
    let Asked { model, prepared, batch } = asked;
    let mut done: Vec<Value> = vec![Value::Null; prepared.items.len()];
    let on = async |index: usize, compared: Comparisons| {
        done[index] = to_json(&prepared.items[index], &compared, &served, &model);
        Ok(())
    };
    prepared.follow(&served, ticket, on).await?;
    let mut answer = match batch {
        None => done.remove(0),
        Some(_) => json!({"object": "list", "model": model, "data": done}),
    };
    answer["id"] = json!(format!("judge-{:016x}", served.draw()));
    answer["created"] = json!(super::now());
    Ok(json_response(StatusCode::OK, &answer))
}

/// The items of a batch, a line each, as they are complete. An error is the last line.
fn lines(served: Arc<Served>, asked: Asked, ticket: Ticket) -> Response<Body> {
    let (send, receive) = mpsc::channel::<Bytes>(16);
    tokio::task::spawn_local(async move {
        let line = |value: &Value| Bytes::from(format!("{value}\n"));
        let gone = send.clone();
        let Asked { model, prepared, .. } = &asked;
        let on = async |index: usize, compared: Comparisons| {
            let mut one = to_json(&prepared.items[index], &compared, &served, model);
            one["index"] = json!(index);
            body::send(&send, line(&one)).await
        };
        tokio::select! {
            () = gone.closed() => {}
            end = prepared.follow(&served, ticket, on) => if let Err(error) = end {
                let _ = gone.try_send(line(&error.to_json()));
            },
        }
    });
    lines_response(receive)
}
