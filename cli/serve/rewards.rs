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
    judging::{Item, judge_items, usage},
};

/// Queries of one request at most.
const MOST: usize = 512;
/// What a lead of the whole scale, from 1 to 10, is.
const SCALE: f64 = 9.0;

/// The tags of a conversation in ChatML, the form of Qwen's templates.
const TURN: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

/// The turns of a text that a chat template made; a text without its tags is one turn of the user's. A turn without
/// anything, as a generation prompt ends with, is left out.
fn turns(text: &str) -> Vec<Message> {
    if !text.contains(TURN) {
        return vec![Message::new("user", text.trim())];
    }
    let turn = |part: &str| {
        let (role, content) = part.split_once('\n')?;
        let content = content.split(END).next().unwrap_or_default().trim();
        (!content.is_empty()).then(|| Message::new(role.trim(), content))
    };
    text.split(TURN).skip(1).filter_map(turn).collect()
}

/// A reply as it stands at the end of a whole text: without the tags that end it.
fn reply(text: &str) -> String {
    let text = text.split(END).next().unwrap_or_default();
    text.trim().trim_end_matches("<|endoftext|>").trim_end_matches("</s>").trim().to_owned()
}

/// One reply against its reference.
fn against(
    messages: Vec<Message>,
    own: String,
    reference: String,
    served: &Served,
) -> Result<Item, ApiError> {
    Item::new(messages, vec![own, reference], served)
}

/// The leads of first replies over second ones, as a share of the scale, and the shares of judgements that prefer them; of
/// items without a verdict 0 and a half.
async fn leads(
    served: &Served,
    items: &[Item],
) -> Result<(Vec<(f64, f64)>, Vec<bool>, [u64; 2]), ApiError> {
    let mut leads = vec![(0.0, 0.5); items.len()];
    let mut parsed = vec![false; items.len()];
    let mut tokens = [0, 0];
    judge_items(served, items, async |index, compared: Comparisons| {
        if let Some((lead, share)) = compared.lead() {
            leads[index] = (lead / SCALE, share);
            parsed[index] = true;
        }
        let own = usage(&compared);
        tokens = [tokens[0] + own[0], tokens[1] + own[1]];
        Ok(())
    })
    .await?;
    Ok((leads, parsed, tokens))
}

/// `/get_reward`: rewards from -1 to 1, scores from 0 to 1.
pub(super) async fn get_reward(served: &Served, body: &Value) -> Result<Response<Body>, ApiError> {
    let fields = Fields::of(body)?;
    let queries = fields.texts("query", MOST)?;
    let (prompts, labels) = (fields.texts("prompts", MOST)?, fields.texts("labels", MOST)?);
    if queries.is_empty() {
        return Err(ApiError::field("query", "a list of texts is wanted"));
    }
    if prompts.len() != queries.len() {
        return Err(ApiError::field("prompts", "as many as queries are wanted"));
    }
    let item = |(index, (query, prompt)): (usize, (&&str, &&str))| {
        let reference = labels.get(index).map(|label| (*label).to_owned());
        let reference = reference.filter(|label| !label.is_empty()).or(served.reference.clone());
        let reference = reference.ok_or_else(|| {
            ApiError::field("labels", "a reply to compare with is wanted for each query (or start the server with --reference)")
        })?;
        let own = query.strip_prefix(prompt).unwrap_or(query);
        against(turns(prompt), reply(own), reference, served)
    };
    let items =
        queries.iter().zip(&prompts).enumerate().map(item).collect::<Result<Vec<_>, _>>()?;
    let (leads, parsed, _) = leads(served, &items).await?;
    let rewards: Vec<f64> = leads.iter().map(|lead| lead.0).collect();
    let scores: Vec<f64> = leads.iter().map(|lead| lead.1).collect();
    let parsed: Vec<f64> = parsed.iter().map(|&parsed| f64::from(u8::from(parsed))).collect();
    let answer = json!({"rewards": rewards, "scores": scores, "extra_logs": {"parsed": parsed}});
    Ok(json_response(StatusCode::OK, &answer))
}

/// `/classify`: the share of judgements that prefer the last turn of a conversation to the server's reference.
pub(super) async fn classify(served: &Served, body: &Value) -> Result<Response<Body>, ApiError> {
    let fields = Fields::of(body)?;
    let model = served.model_name(fields)?;
    let name = if fields.get("use_activation").is_some() { "use_activation" } else { "activation" };
    let activation = fields.flag(name)?.unwrap_or(true);
    let Some(reference) = &served.reference else {
        let message = "this judge compares: start the server with --reference, the reply that others are compared with";
        return Err(ApiError::bad(message));
    };
    let inputs = fields.texts("input", MOST)?;
    let item = |text: &&str| {
        let mut turns = turns(text);
        match turns.pop() {
            Some(last) if !turns.is_empty() => {
                against(turns, last.content, reference.clone(), served)
            }
            _ => Err(ApiError::field(
                "input",
                "a conversation with its reply, as a chat template writes it, is wanted",
            )),
        }
    };
    let items = inputs.iter().map(item).collect::<Result<Vec<_>, _>>()?;
    if items.is_empty() {
        return Err(ApiError::field("input", "a text or a list of texts is wanted"));
    }
    let (leads, _, [prompt, completion]) = leads(served, &items).await?;
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

/// `/v1/rerank`: documents by mean score, the best first.
pub(super) async fn rerank(served: &Served, body: &Value) -> Result<Response<Body>, ApiError> {
    let fields = Fields::of(body)?;
    let model = served.model_name(fields)?;
    let query =
        fields.text("query")?.ok_or_else(|| ApiError::field("query", "a string is wanted"))?;
    let documents = fields.list("documents", 8)?.unwrap_or_default();
    let text = |value: &Value| {
        let text = value.as_str().or_else(|| value["text"].as_str());
        text.map(str::to_owned)
            .ok_or_else(|| ApiError::field("documents", "a list of strings is wanted"))
    };
    let documents = documents.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    if documents.len() < 2 {
        return Err(ApiError::field("documents", "a list of 2 to 8 is wanted: a judge compares"));
    }
    let top = fields.whole("top_n", 0..=u64::MAX)?.filter(|&top| top > 0);
    let with_text = fields.flag("return_documents")?.unwrap_or(true);
    let items = [Item::new(vec![Message::new("user", query)], documents.clone(), served)?];
    let (mut ranking, mut tokens) = (Vec::new(), [0, 0]);
    judge_items(served, &items, async |_, compared: Comparisons| {
        (ranking, tokens) = (compared.ranking(), usage(&compared));
        Ok(())
    })
    .await?;
    let one = |standing: &Standing| {
        // Clients expect a number: what no verdict speaks of stands below all scores.
        let mut one =
            json!({"index": standing.reply, "relevance_score": standing.mean.unwrap_or(0.0)});
        if with_text {
            one["document"] = json!({"text": documents[standing.reply]});
        }
        one
    };
    let results = ranking.iter().map(one);
    let [prompt, completion] = tokens;
    let answer = json!({
        "id": format!("rerank-{:016x}", served.draw()),
        "model": model,
        "results": results.take(top.map_or(usize::MAX, |top| top as usize)).collect::<Vec<_>>(),
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
        let text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n";
        let expected =
            [("system", "Be kind."), ("user", "Hi\nthere")].map(|(r, c)| Message::new(r, c));
        assert_eq!(turns(text), expected);
        assert_eq!(turns("  plain text "), [Message::new("user", "plain text")]);
        assert_eq!(reply("\nFine.<|im_end|>\n"), "Fine.");
        assert_eq!(reply("Fine.</s>"), "Fine.");
    }
}
