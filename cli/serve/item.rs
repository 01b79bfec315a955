//! Replies that are to be judged: what a request says of them, and what an answer does.

use serde_json::{Value, json};
use trainer::{
    data::Message,
    eval::results::Record,
    judge::{
        Judge,
        prompt::OrderPlan,
        ranking::{Comparisons, Standing},
        verdict::{MatchRule, UnparsedReason, parts},
    },
};

use super::{
    Served, completion,
    error::ApiError,
    fields::Fields,
    generation::{Generation, seed_of},
};

/// Replies of one item at most.
const MOST_REPLIES: usize = 8;
/// Judgements of each pair and order at most.
const MOST_VOTES: u64 = 64;

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
    pub(super) fn new(messages: Vec<Message>, responses: Vec<String>, served: &Served) -> Item {
        Item {
            messages,
            responses,
            order: OrderPlan::Both,
            votes: 1,
            rule: MatchRule::Strict,
            seed: served.judge().seed,
            temperature: None,
            max_tokens: None,
            returned: Returned::default(),
        }
    }

    pub(super) fn read(fields: Fields<'_>, served: &Served) -> Result<Item, ApiError> {
        for name in [
            "top_p",
            "top_k",
            "min_p",
            "n",
            "stop",
            "chat_template_kwargs",
            "tools",
            "response_format",
        ] {
            fields.only(name, &[])?;
        }
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
        let default = Item::new(messages, responses, served);
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
            seed: seed_of(fields)?.unwrap_or(default.seed),
            temperature,
            max_tokens: Generation::tokens_of(fields, "max_tokens")?,
            returned,
            ..default
        })
    }

    /// The judge that judges it.
    pub(super) fn judge<'s>(&self, served: &'s Served) -> Result<Judge<'s>, ApiError> {
        let mut judge = served.judge();
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

/// Tokens of the prompts and of the judgements.
pub(super) fn usage(compared: &Comparisons) -> [u64; 2] {
    let sum = |of: fn(&Record) -> u32| compared.records().iter().map(|r| u64::from(of(r))).sum();
    [sum(|record| record.prompt_tokens), sum(|record| record.tokens)]
}

/// An answer's judgement of one item.
pub(super) fn to_json(item: &Item, compared: &Comparisons, served: &Served, model: &str) -> Value {
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
        "reason": verdict.unparsed().map(UnparsedReason::name),
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
