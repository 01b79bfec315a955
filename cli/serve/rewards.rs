//! The forms in which trainers and search programs ask for scores: OpenRLHF's `/get_reward`, verl's `/classify`, and
//! `/v1/rerank` as Cohere's and litellm's clients send it.
//!
//! A judge compares. So one reply alone is judged against another, the reference, in both orders: that of the request where
//! its form has one, or else the server's.

use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use trainer::{
    data::Message,
    judge::ranking::{Comparisons, Standing},
};

use super::{
    Served,
    body::{Body, json_response},
    error::ApiError,
    fields::Fields,
    item::{Item, usage},
    judging::Prepared,
};

/// Queries of one request at most.
const MOST: usize = 512;
/// What a lead of the whole scale, from 1 to 10, is.
const SCALE: f64 = 9.0;

/// The tags of a conversation in ChatML, the form of Qwen's templates.
const TURN: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

/// The turns of a text that a chat template made; a text without its tags is one turn of the user's. A last turn that is not
/// closed is where the model is to go on, and is left out.
fn turns(text: &str) -> Vec<Message> {
    if !text.contains(TURN) {
        return vec![Message::new("user", text.trim())];
    }
    let turn = |part: &str| {
        let (role, rest) = part.split_once('\n')?;
        let (content, _) = rest.split_once(END)?;
        Some(Message::new(role.trim(), content.trim()))
    };
    text.split(TURN).skip(1).filter_map(turn).collect()
}

/// A reply as it stands at the end of a whole text: without the tags that end it.
fn reply(text: &str) -> String {
    let text = text.split(END).next().unwrap_or_default();
    text.trim().trim_end_matches("<|endoftext|>").trim_end_matches("</s>").trim().to_owned()
}

/// The leads of first replies over second ones, as a share of the scale, and the shares of judgements that prefer them; of
/// items without a verdict 0 and a half.
struct Leads {
    leads: Vec<(f64, f64)>,
    parsed: Vec<bool>,
    tokens: [u64; 2],
}

impl Leads {
    async fn of(served: &Served, mut prepared: Prepared) -> Result<Leads, ApiError> {
        let ticket = prepared.submit(served)?;
        let count = prepared.items.len();
        let mut all =
            Leads { leads: vec![(0.0, 0.5); count], parsed: vec![false; count], tokens: [0; 2] };
        let on = async |index: usize, compared: Comparisons| {
            if let Some((lead, share)) = compared.lead() {
                all.leads[index] = (lead / SCALE, share);
                all.parsed[index] = true;
            }
            let [prompt, completion] = usage(&compared);
            all.tokens = [all.tokens[0] + prompt, all.tokens[1] + completion];
            Ok(())
        };
        prepared.follow(served, ticket, on).await?;
        Ok(all)
    }
}

/// What `/get_reward` asks.
pub(super) fn read_get_reward(body: &Value, served: &Served) -> Result<Prepared, ApiError> {
    let fields = Fields::of(body)?;
    let queries = fields.texts("query", MOST)?;
    let (prompts, labels) = (fields.texts("prompts", MOST)?, fields.texts("labels", MOST)?);
    if queries.is_empty() {
        return Err(ApiError::field("query", "a list of texts is wanted"));
    }
    if prompts.len() != queries.len() {
        return Err(ApiError::field("prompts", "as many as queries are wanted"));
    }
    if !labels.is_empty() && labels.len() != queries.len() {
        return Err(ApiError::field("labels", "as many as queries are wanted"));
    }
    let item = |(index, (query, prompt)): (usize, (&&str, &&str))| {
        let label = labels.get(index).map(|label| (*label).to_owned());
        let reference = label.filter(|label| !label.is_empty()).or(served.reference.clone());
        let reference = reference.ok_or_else(|| {
            let message = "a reply to compare with is wanted for each query (or start the server with --reference)";
            ApiError::field("labels", message)
        })?;
        let own = query.strip_prefix(prompt).ok_or_else(|| {
            ApiError::field("query", format!("number {index} does not begin with its prompt"))
        })?;
        Ok(Item::new(turns(prompt), vec![reply(own), reference], served))
    };
    let items = queries.iter().zip(&prompts).enumerate().map(item);
    Prepared::new(items.collect::<Result<_, _>>()?, served)
}

/// `/get_reward`: rewards from -1 to 1, scores from 0 to 1.
pub(super) async fn get_reward(
    served: &Served,
    prepared: Prepared,
) -> Result<Response<Body>, ApiError> {
    let Leads { leads, parsed, .. } = Leads::of(served, prepared).await?;
    let rewards: Vec<f64> = leads.iter().map(|lead| lead.0).collect();
    let scores: Vec<f64> = leads.iter().map(|lead| lead.1).collect();
    let parsed: Vec<f64> = parsed.iter().map(|&parsed| f64::from(u8::from(parsed))).collect();
    let answer = json!({"rewards": rewards, "scores": scores, "extra_logs": {"parsed": parsed}});
    Ok(json_response(StatusCode::OK, &answer))
}

/// What `/classify` asks.
pub(super) struct Classify {
    model: String,
    activation: bool,
    prepared: Prepared,
}

impl Classify {
    pub(super) fn read(body: &Value, served: &Served) -> Result<Classify, ApiError> {
        let fields = Fields::of(body)?;
        let model = served.model_name(fields)?;
        let newer = fields.flag("use_activation")?;
        let activation = newer.or(fields.flag("activation")?).unwrap_or(true);
        let Some(reference) = &served.reference else {
            let message = "this judge compares: start the server with --reference, the reply that others are compared with";
            return Err(ApiError::bad(message));
        };
        let item = |text: &&str| {
            let mut turns = turns(text);
            match turns.pop() {
                Some(last) if last.role == "assistant" && !turns.is_empty() => {
                    Ok(Item::new(turns, vec![last.content, reference.clone()], served))
                }
                _ => {
                    let message = "a conversation that ends with the reply, as a chat template writes it, is wanted";
                    Err(ApiError::field("input", message))
                }
            }
        };
        let items = fields.texts("input", MOST)?.iter().map(item).collect::<Result<Vec<_>, _>>()?;
        if items.is_empty() {
            return Err(ApiError::field("input", "a text or a list of texts is wanted"));
        }
        Ok(Classify { model, activation, prepared: Prepared::new(items, served)? })
    }
}

/// `/classify`: the share of judgements that prefer the last turn of a conversation to the server's reference, or without
/// activation its lead.
pub(super) async fn classify(served: &Served, asked: Classify) -> Result<Response<Body>, ApiError> {
    let Classify { model, activation, prepared } = asked;
    let Leads { leads, tokens: [prompt, completion], .. } = Leads::of(served, prepared).await?;
    let one = |(index, lead): (usize, &(f64, f64))| {
        let value = if activation { lead.1 } else { lead.0 };
        json!({"index": index, "label": null, "probs": [value], "num_classes": 1})
    };
    let answer = json!({
        "id": format!("classify-{:016x}", served.draw()),
        "object": "list",
        "created": super::now(),
        "model": model,
        "data": leads.iter().enumerate().map(one).collect::<Vec<_>>(),
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// What `/v1/rerank` asks.
pub(super) struct Rerank {
    model: String,
    top: usize,
    with_text: bool,
    prepared: Prepared,
}

impl Rerank {
    pub(super) fn read(body: &Value, served: &Served) -> Result<Rerank, ApiError> {
        let fields = Fields::of(body)?;
        let model = served.model_name(fields)?;
        let query = fields.text("query")?;
        let query = query.ok_or_else(|| ApiError::field("query", "a string is wanted"))?;
        let text = |value: &Value| {
            let text = value.as_str().or_else(|| value["text"].as_str());
            let text = text.map(str::to_owned);
            text.ok_or_else(|| ApiError::field("documents", "a list of strings is wanted"))
        };
        let documents = fields.list("documents", 8)?.unwrap_or_default();
        let documents = documents.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        if documents.len() < 2 {
            return Err(ApiError::field(
                "documents",
                "a list of 2 to 8 is wanted: a judge compares",
            ));
        }
        let top = fields.whole("top_n", 0..=u64::MAX)?.filter(|&top| top > 0);
        let item = Item::new(vec![Message::new("user", query)], documents, served);
        Ok(Rerank {
            model,
            top: top.map_or(usize::MAX, |top| top as usize),
            with_text: fields.flag("return_documents")?.unwrap_or(true),
            prepared: Prepared::new(vec![item], served)?,
        })
    }
}

/// `/v1/rerank`: documents by mean score, the best first.
pub(super) async fn rerank(served: &Served, asked: Rerank) -> Result<Response<Body>, ApiError> {
    let Rerank { model, top, with_text, mut prepared } = asked;
    let ticket = prepared.submit(served)?;
    let (mut ranking, mut tokens) = (Vec::new(), [0, 0]);
    let on = async |_: usize, compared: Comparisons| {
        (ranking, tokens) = (compared.ranking(), usage(&compared));
        Ok(())
    };
    prepared.follow(served, ticket, on).await?;
    let one = |standing: &Standing| {
        // Clients expect a number: what no verdict speaks of stands below all scores.
        let score = standing.mean.unwrap_or(0.0);
        let mut one = json!({"index": standing.reply, "relevance_score": score});
        if with_text {
            one["document"] = json!({"text": prepared.items[0].responses[standing.reply]});
        }
        one
    };
    let [prompt, completion] = tokens;
    let answer = json!({
        "id": format!("rerank-{:016x}", served.draw()),
        "model": model,
        "results": ranking.iter().map(one).take(top).collect::<Vec<_>>(),
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
    });
    Ok(json_response(StatusCode::OK, &answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_are_found_in_what_a_chat_template_wrote() {
        let text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
        let expected =
            [("system", "Be kind."), ("user", "Hi\nthere")].map(|(r, c)| Message::new(r, c));
        assert_eq!(turns(text), expected);
        // An empty reply is a reply.
        let closed = turns("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n");
        assert_eq!(closed, [("user", "Q"), ("assistant", "")].map(|(r, c)| Message::new(r, c)));
        assert_eq!(turns("  plain text "), [Message::new("user", "plain text")]);
        assert_eq!(reply("\nFine.<|im_end|>\n"), "Fine.");
        assert_eq!(reply("Fine.</s>"), "Fine.");
    }
}
