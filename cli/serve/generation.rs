//! What a completion is to be: the sampling fields of OpenAI's requests, with vLLM's names and defaults.

use engine::generate::{SamplingParams, repetition_penalty};
use serde_json::{Value, json};

use super::{Served, error::ApiError, fields::Fields, text::Stops};

/// Samples of one prompt, and choices of one request, at most.
pub(super) const MOST_CHOICES: usize = 128;
/// Stop strings, and stop tokens, at most.
const MOST_STOPS: usize = 16;
/// Most probable tokens beside each, at most.
const MOST_TOP: u64 = 20;

/// How completions are drawn and ended.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    pub(super) samples: usize,
    /// Drawn, if the request names none: identical requests get samples of their own.
    pub(super) seed: u64,
    pub(super) sampling: SamplingParams,
    pub(super) repetition_penalty: f32,
    pub(super) stops: Stops,
    /// Tokens of a completion, if the request says.
    pub(super) max_tokens: Option<usize>,
    /// Whether log-probabilities are wanted, and of how many of the most probable.
    pub(super) log_probs: Option<usize>,
    pub(super) skip_special_tokens: bool,
    pub(super) stream: bool,
    /// Whether a stream ends with the usage.
    pub(super) include_usage: bool,
}

impl Generation {
    /// Reads the fields that chats and completions share.
    pub(super) fn read(fields: Fields<'_>, served: &Served) -> Result<Generation, ApiError> {
        refuse_what_is_not_done(fields)?;
        let defaults = served.defaults;
        let single = |number: Option<f64>, default: f32| number.map_or(default, |n| n as f32);
        let temperature = single(fields.number("temperature", 0.0..=100.0)?, defaults.temperature);
        let top_p = single(fields.number("top_p", 0.0..=1.0)?, defaults.top_p);
        let min_p = single(fields.number("min_p", 0.0..=1.0)?, defaults.min_p);
        // -1 is vLLM's way to keep all.
        let top_k = match fields.get("top_k") {
            Some(value) if value.as_f64() == Some(-1.0) => 0,
            _ => {
                fields.whole("top_k", 0..=u64::from(u32::MAX))?.map_or(defaults.top_k, |k| k as u32)
            }
        };
        let sampling = SamplingParams { temperature, top_k, top_p, min_p };
        sampling.validate().map_err(|error| ApiError::bad(error.to_string()))?;
        let (least, most) = repetition_penalty::PENALTIES;
        let penalties = f64::from(least)..=f64::from(most);
        let repetition_penalty = fields.number("repetition_penalty", penalties)?;
        let strings = fields.texts("stop", MOST_STOPS)?;
        if strings.iter().any(|text| text.is_empty()) {
            return Err(ApiError::field("stop", "an empty string would end everything"));
        }
        let token = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| ApiError::field("stop_token_ids", "a list of token ids is wanted"))
        };
        let tokens = fields.list("stop_token_ids", MOST_STOPS)?.unwrap_or_default();
        let stream = fields.flag("stream")?.unwrap_or(false);
        let options = fields.get("stream_options");
        if options.is_some() && !stream {
            return Err(ApiError::field("stream_options", "is for streams: set stream to true"));
        }
        let include_usage = match options {
            None => false,
            Some(options) => {
                let options = Fields::of(options)
                    .map_err(|_| ApiError::field("stream_options", "an object is wanted"))?;
                options.only("continuous_usage_stats", &[json!(false)])?;
                options.flag("include_usage")?.unwrap_or(false)
            }
        };
        Ok(Generation {
            samples: fields.whole("n", 1..=MOST_CHOICES as u64)?.unwrap_or(1) as usize,
            seed: seed_of(fields)?.unwrap_or_else(|| served.fresh_seed()),
            sampling,
            repetition_penalty: single(repetition_penalty, defaults.repetition_penalty),
            stops: Stops {
                strings: strings.into_iter().map(str::to_owned).collect(),
                tokens: tokens.iter().map(token).collect::<Result<_, _>>()?,
                is_kept: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
            },
            max_tokens: None,
            log_probs: None,
            skip_special_tokens: fields.flag("skip_special_tokens")?.unwrap_or(true),
            stream,
            include_usage,
        })
    }

    /// The most tokens that are taken from a field.
    pub(super) fn tokens_of(fields: Fields<'_>, name: &str) -> Result<Option<usize>, ApiError> {
        Ok(fields.whole(name, 1..=1 << 31)?.map(|tokens| tokens as usize))
    }

    /// The number of most probable tokens that a field asks for.
    pub(super) fn top_of(fields: Fields<'_>, name: &str) -> Result<Option<usize>, ApiError> {
        Ok(fields.whole(name, 0..=MOST_TOP)?.map(|most| most as usize))
    }
}

/// The seed that a request names: any whole number of 64 bits, with or without a sign.
pub(super) fn seed_of(fields: Fields<'_>) -> Result<Option<u64>, ApiError> {
    match fields.get("seed").and_then(Value::as_i64) {
        Some(seed) => Ok(Some(seed as u64)),
        None => fields.whole("seed", 0..=u64::MAX),
    }
}

/// Refuses the fields that would change the answer and are not computed. Their neutral values are taken: many clients send
/// them always.
fn refuse_what_is_not_done(fields: Fields<'_>) -> Result<(), ApiError> {
    let (no, yes) = (json!(false), json!(true));
    for (name, neutral) in [
        ("presence_penalty", vec![json!(0)]),
        ("frequency_penalty", vec![json!(0)]),
        ("logit_bias", vec![json!({})]),
        ("min_tokens", vec![json!(0)]),
        ("ignore_eos", vec![no.clone()]),
        ("allowed_token_ids", vec![]),
        ("bad_words", vec![json!([])]),
        ("prompt_logprobs", vec![]),
        ("response_format", vec![json!({"type": "text"})]),
        ("structured_outputs", vec![]),
        ("guided_json", vec![]),
        ("guided_regex", vec![]),
        ("guided_choice", vec![]),
        ("guided_grammar", vec![]),
        ("tools", vec![json!([])]),
        ("tool_choice", vec![json!("none"), json!("auto")]),
        ("functions", vec![json!([])]),
        ("use_beam_search", vec![no.clone()]),
        ("best_of", vec![json!(1), fields.get("n").cloned().unwrap_or(json!(1))]),
        ("suffix", vec![json!("")]),
        ("echo", vec![no.clone()]),
        ("add_generation_prompt", vec![yes.clone()]),
        ("continue_final_message", vec![no.clone()]),
        ("chat_template", vec![]),
        ("documents", vec![]),
        ("truncate_prompt_tokens", vec![]),
        ("thinking_token_budget", vec![]),
        ("return_token_ids", vec![no.clone()]),
        ("return_tokens_as_token_ids", vec![no.clone()]),
        ("modalities", vec![json!(["text"])]),
        ("audio", vec![]),
        ("prediction", vec![]),
        ("logits_processors", vec![]),
        ("length_penalty", vec![json!(1)]),
        ("add_special_tokens", vec![no.clone(), yes.clone()]),
        ("include_reasoning", vec![yes.clone()]),
        ("reasoning_effort", vec![]),
        ("function_call", vec![json!("none"), json!("auto")]),
        ("return_prompt_text", vec![no.clone()]),
    ] {
        fields.only(name, &neutral)?;
    }
    Ok(())
}
